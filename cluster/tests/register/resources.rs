//! Resources made through the API, and everything that refuses one.

use cluster::register::{AUDIT_RING, Act, Expected, Kind, Refusal, Reply, SPEC_BYTES_MAX, Stored};

use super::{World, delete, key_spec, put};

fn expecting(expected: Expected) -> impl Fn(&str) -> Act {
    move |spec| Act::Put {
        kind: Kind::Routes,
        name: "support".to_owned(),
        spec: spec.to_owned(),
        expected,
        shape: None,
    }
}

#[test]
fn what_was_put_is_read_listed_and_deleted() {
    let mut world = World::default();
    let version = world.put(Kind::Tenants, "acme", "{}");
    world.put(Kind::Tenants, "zeta", "{}");
    world.put(Kind::Tenants, "beta", "{}");

    let Stored { spec, version: found, revoked, off, .. } = world.register.get(Kind::Tenants, "acme").unwrap();
    assert_eq!((spec, found, revoked, off), ("{}", version, false, false));
    let names = |after| world.register.list(Kind::Tenants, after).map(|stored| stored.name).collect::<Vec<_>>();
    assert_eq!(names(None), ["acme", "beta", "zeta"]);
    assert_eq!(names(Some("acme")), ["beta", "zeta"]);
    assert_eq!(world.register.len(Kind::Tenants), 3);

    assert_eq!(world.reply(delete(Kind::Tenants, "acme")), Reply::Deleted);
    assert_eq!(world.register.get(Kind::Tenants, "acme"), None);
}

#[test]
fn only_who_saw_the_last_version_changes_it() {
    let mut world = World::default();
    assert!(matches!(world.refusal(expecting(Expected::Version(1))("{}")), Refusal::NotFound { .. }));
    let Reply::Put { version } = world.reply(expecting(Expected::Absent)("{}")) else { panic!("refused") };

    let name = "support".to_owned();
    assert_eq!(
        world.refusal(expecting(Expected::Absent)("{}")),
        Refusal::Exists { name: name.clone(), current: version }
    );
    let wanted = version + 1;
    let stale = Refusal::Changed { name: name.clone(), wanted, current: version };
    assert_eq!(world.refusal(expecting(Expected::Version(wanted))("{}")), stale);
    let expected = Expected::Version(wanted);
    let stale_delete = Act::Delete { kind: Kind::Routes, name, expected, shape: None };
    assert!(matches!(world.refusal(stale_delete), Refusal::Changed { .. }));
    let Reply::Put { version: next } = world.reply(expecting(Expected::Version(version))("{}")) else {
        panic!("refused")
    };
    assert!(next > version);
}

/// What was checked against other resources is checked again. Keys change no other resource's meaning.
#[test]
fn a_change_checked_against_an_older_shape_is_refused() {
    let mut world = World::default();
    world.put(Kind::Tenants, "acme", "{}");
    let shape = world.register.shape_version();
    world.put(Kind::Keys, "web", &key_spec("one", ""));
    assert_eq!(world.register.shape_version(), shape, "a key is not part of the shape");
    let checked = |shape| Act::Put {
        kind: Kind::Routes,
        name: "r".to_owned(),
        spec: "{}".to_owned(),
        expected: Expected::Any,
        shape: Some(shape),
    };
    assert!(matches!(world.reply(checked(shape)), Reply::Put { .. }));

    let current = world.register.shape_version();
    assert_ne!(current, shape);
    assert_eq!(world.refusal(checked(shape)), Refusal::Moved { wanted: shape, current });
    let late = Act::Delete { kind: Kind::Routes, name: "r".to_owned(), expected: Expected::Any, shape: Some(shape) };
    assert_eq!(world.refusal(late), Refusal::Moved { wanted: shape, current });
}

#[test]
fn what_is_no_resource_is_refused() {
    let mut world = World::default();
    for (kind, name, spec) in [
        (Kind::Tenants, "a b", "{}"),
        (Kind::Tenants, "", "{}"),
        (Kind::Tenants, "acme", "nonsense"),
        (Kind::Tenants, "acme", "[]"),
        (Kind::Tenants, "acme", r#"{"teams":[]}"#),
        (Kind::Keys, "web", "{}"),
        (Kind::Keys, "web", r#"{"hash":"b3:12"}"#),
        (Kind::Keys, "web", &key_spec("x", r#","secret":"x""#)),
        (Kind::Keys, "web", &key_spec("x", r#","roles":"admin""#)),
        (Kind::Keys, "web", &key_spec("x", r#","roles":[1]"#)),
        (Kind::Keys, "web", &key_spec("x", r#","tenant":7"#)),
        (Kind::Keys, "web", &key_spec("x", r#","budgets":"b""#)),
        (Kind::Keys, "web", &key_spec("x", r#","budgets":[1]"#)),
        (Kind::Budgets, "b", "[]"),
    ] {
        assert!(matches!(world.refusal(put(kind, name, spec)), Refusal::Malformed { .. }), "{kind} {name} {spec}");
    }
    let long = format!(r#"{{"description":"{}"}}"#, "x".repeat(SPEC_BYTES_MAX));
    assert!(matches!(world.refusal(put(Kind::Tenants, "acme", &long)), Refusal::TooLarge { .. }));
    assert!(matches!(world.refusal(put(Kind::Roles, "admin", "{}")), Refusal::BuiltIn { .. }));
    assert!(matches!(world.refusal(delete(Kind::Tenants, "acme")), Refusal::NotFound { .. }));
    assert_eq!(world.register.all().count(), 0);
}

#[test]
fn what_keys_refer_to_must_exist_and_stays() {
    let mut world = World::default();
    let missing = |more: &str| put(Kind::Keys, "web", &key_spec("one", more));
    for more in [r#","tenant":"acme""#, r#","team":"support""#, r#","roles":["helpdesk"]"#] {
        assert!(matches!(world.refusal(missing(more)), Refusal::NotFound { .. }), "{more}");
    }
    world.put(Kind::Tenants, "acme", r#"{"teams":{"support":{}}}"#);
    world.put(Kind::Roles, "helpdesk", "{}");
    world.put(Kind::Keys, "web", &key_spec("one", r#","tenant":"acme","team":"support","roles":["helpdesk","admin"]"#));

    let in_use = |what: &str, name: &str| Refusal::InUse { what: what.to_owned(), name: name.to_owned(), by: 1 };
    assert_eq!(world.refusal(delete(Kind::Tenants, "acme")), in_use("tenant", "acme"));
    assert_eq!(world.refusal(delete(Kind::Roles, "helpdesk")), in_use("role", "helpdesk"));
    assert_eq!(world.refusal(put(Kind::Tenants, "acme", "{}")), in_use("team", "acme/support"));

    world.put(Kind::Keys, "web", &key_spec("one", ""));
    world.put(Kind::Tenants, "acme", "{}");
    assert_eq!(world.reply(delete(Kind::Roles, "helpdesk")), Reply::Deleted);
    assert_eq!(world.reply(delete(Kind::Tenants, "acme")), Reply::Deleted);
}

#[test]
fn a_budget_that_a_key_names_must_exist_and_stays() {
    let mut world = World::default();
    let key = key_spec("one", r#","budgets":["day","month"]"#);
    world.put(Kind::Budgets, "day", r#"{"limit":"$1","window":"day"}"#);
    let missing = Refusal::NotFound { what: "budget".to_owned(), name: "month".to_owned() };
    assert_eq!(world.refusal(put(Kind::Keys, "web", &key)), missing);

    world.put(Kind::Budgets, "month", r#"{"limit":"$20","window":"month"}"#);
    world.put(Kind::Keys, "web", &key);
    world.put(Kind::Keys, "app", &key_spec("two", r#","budgets":["day"]"#));

    let in_use = |name: &str, by| Refusal::InUse { what: "budget".to_owned(), name: name.to_owned(), by };
    assert_eq!(world.refusal(delete(Kind::Budgets, "day")), in_use("day", 2));
    assert_eq!(world.refusal(delete(Kind::Budgets, "month")), in_use("month", 1));
    world.put(Kind::Budgets, "day", r#"{"limit":"$2","window":"day"}"#);
    world.put(Kind::Keys, "web", &key_spec("one", ""));
    assert_eq!(world.reply(delete(Kind::Budgets, "month")), Reply::Deleted);
    assert_eq!(world.reply(delete(Kind::Keys, "app")), Reply::Deleted);
    assert_eq!(world.reply(delete(Kind::Budgets, "day")), Reply::Deleted);
    assert!(matches!(world.refusal(delete(Kind::Budgets, "day")), Refusal::NotFound { .. }));
}

/// The tenant `default` exists without being declared; its teams do not.
#[test]
fn the_default_tenant_may_be_forgotten_but_not_its_teams() {
    let mut world = World::default();
    world.put(Kind::Tenants, "default", r#"{"teams":{"support":{}}}"#);
    world.put(Kind::Keys, "web", &key_spec("one", r#","team":"support""#));
    assert!(matches!(world.refusal(delete(Kind::Tenants, "default")), Refusal::InUse { .. }));
    world.put(Kind::Keys, "web", &key_spec("one", ""));
    assert_eq!(world.reply(delete(Kind::Tenants, "default")), Reply::Deleted);
}

#[test]
fn a_provider_is_switched_off_and_on() {
    let mut world = World::default();
    let switch = |off| Act::SwitchProvider { name: "openai".to_owned(), off };
    assert!(matches!(world.refusal(switch(true)), Refusal::NotFound { .. }));
    world.put(Kind::Providers, "openai", "{}");

    let applied = world.apply(switch(true));
    assert!(applied.changed.directory && applied.changed.shape);
    assert!(world.register.get(Kind::Providers, "openai").unwrap().off);
    assert_eq!(world.apply(switch(true)).changed, cluster::register::Changed::default(), "it is so already");

    world.put(Kind::Providers, "openai", r#"{"http2":true}"#);
    assert!(world.register.get(Kind::Providers, "openai").unwrap().off, "a change of the provider does not lift it");
    assert!(world.apply(switch(false)).changed.shape);
    assert!(!world.register.get(Kind::Providers, "openai").unwrap().off);
    world.apply(switch(true));
    world.apply(delete(Kind::Providers, "openai"));
    world.put(Kind::Providers, "openai", "{}");
    assert!(!world.register.get(Kind::Providers, "openai").unwrap().off, "another one of the same name");
}

#[test]
fn every_change_and_every_refusal_is_on_record() {
    let mut world = World::default();
    let first = world.put(Kind::Tenants, "acme", "{}");
    let second = world.put(Kind::Tenants, "acme", r#"{"description":"x"}"#);
    world.apply(Act::Delete { kind: Kind::Tenants, name: "acme".to_owned(), expected: Expected::Absent, shape: None });
    let last = world.apply(delete(Kind::Tenants, "acme")).audit.unwrap();

    let records: Vec<_> = world.register.audit(0).collect();
    let versions: Vec<_> = records.iter().map(|record| (record.before_version, record.after_version)).collect();
    let (one, two) = (Some(first), Some(second));
    assert_eq!(versions, [(None, one), (one, two), (two, two), (two, None)]);
    assert_eq!(records[2].outcome, format!("refused: `acme` is there already, at version {second}"));
    assert_eq!(*records[3], last);
    assert_eq!((last.who.as_str(), last.request_id.as_str(), last.at.as_secs()), ("root", "req-1", 7));
    assert_eq!((last.action.as_str(), last.kind, last.name.as_str()), ("delete", Some(Kind::Tenants), "acme"));
    assert_eq!(world.register.audit(last.index).count(), 1);
}

#[test]
fn the_record_has_an_end_and_its_texts_have_one() {
    let mut world = World::default();
    for _ in 0..AUDIT_RING + 5 {
        world.put(Kind::Tenants, "acme", "{}");
    }
    assert_eq!(world.register.audit(0).count(), AUDIT_RING);
    let mut long = super::command(put(Kind::Tenants, "acme", "{}"));
    long.author.who = "ä".repeat(2000);
    let record = world.apply_command(&long).audit.unwrap();
    assert!(record.who.len() <= 512 && record.who.chars().all(|letter| letter == 'ä'));
}

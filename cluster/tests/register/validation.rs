//! What is checked before a change is proposed.

use cluster::register::{Change, Checked, Kind, Policy, validate};

use super::{World, declared, key_spec, policy};

fn world() -> World {
    let mut world = World::default();
    world.put(Kind::Providers, "openai", r#"{"api_key":"${OPENAI_API_KEY}"}"#);
    world.put(Kind::Routes, "support", r#"{"targets":["openai/gpt-4o"]}"#);
    world.put(Kind::Tenants, "acme", r#"{"teams":{"a":{}}}"#);
    world
}

fn problems(world: &World, change: Change<'_>) -> Vec<String> {
    let refused = validate(&world.register, change, policy()).err();
    refused.iter().flat_map(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>()).collect()
}

fn put<'a>(kind: Kind, name: &'a str, spec: &'a str) -> Change<'a> {
    Change::Put { kind, name, spec }
}

#[test]
fn a_change_that_fits_is_given_its_canonical_text_and_shape() {
    let world = world();
    let spec = r#"{ "strategy": "failover", "targets": [ {"target": "openai/o3"} ] }"#;
    let checked = validate(&world.register, put(Kind::Routes, "new", spec), policy()).unwrap();
    let text = r#"{"targets":["openai/o3"]}"#.to_owned();
    assert_eq!(checked, Checked { shape: world.register.shape_version(), spec: Some(text) });
    let delete = Change::Delete { kind: Kind::Routes, name: "support" };
    let shape = world.register.shape_version();
    assert_eq!(validate(&world.register, delete, policy()).unwrap(), Checked { shape, spec: None });
}

#[test]
fn what_refers_to_nothing_is_told_with_its_path() {
    let world = world();
    let one = |kind, name, spec: &str| problems(&world, put(kind, name, spec)).join("\n");
    assert_eq!(
        one(Kind::Routes, "new", r#"{"targets":["opnai/o3"]}"#),
        "routes.new.targets.0: there is no provider `opnai`; did you mean `openai`?"
    );
    assert_eq!(
        one(Kind::Keys, "k", &key_spec("k", r#","tenant":"acne""#)),
        "keys.k.tenant: there is no tenant `acne`; did you mean `acme`?"
    );
    assert!(one(Kind::Keys, "k", &key_spec("k", r#","tenant":"acme","team":"b""#)).starts_with("keys.k.team: "));
    assert!(one(Kind::Keys, "k", &key_spec("k", r#","roles":["admn"]"#)).contains("did you mean `admin`?"));
    assert!(one(Kind::Keys, "k", "{}").starts_with("keys.k: has neither"));
    assert!(one(Kind::Keys, "k*", &key_spec("k", "")).starts_with("keys.k*: has a `*`"));
    assert!(
        one(Kind::Routes, "new", r#"{"tragets":[]}"#)
            .starts_with("routes.new.tragets: unknown field `tragets`, expected one of ")
    );
    assert!(one(Kind::Roles, "viewer", "{}").starts_with("roles.viewer: always exists"));
    assert_eq!(one(Kind::Keys, "k", &key_spec("k", r#","tenant":"acme","team":"a","roles":["viewer"]"#)), "");
}

#[test]
fn what_others_refer_to_is_not_deleted() {
    let world = world();
    let found = problems(&world, Change::Delete { kind: Kind::Providers, name: "openai" });
    assert_eq!(found, ["routes.support.targets.0: there is no provider `openai`"]);
}

/// Keys say so themselves, when a budget is deleted; what else names one is looked at before.
#[test]
fn a_budget_that_others_name_is_not_deleted() {
    let mut world = world();
    world.put(Kind::Budgets, "b", r#"{"limit":"$1","window":"day"}"#);
    world.put(Kind::Providers, "openai", r#"{"budgets":["b"]}"#);
    world.put(Kind::Models, "openai/o3", r#"{"budgets":["b"]}"#);
    world.put(Kind::Tenants, "acme", r#"{"budgets":["b"],"teams":{"a":{"budgets":["b"]}}}"#);

    let found = problems(&world, Change::Delete { kind: Kind::Budgets, name: "b" });

    assert_eq!(
        found,
        [
            "providers.openai.budgets.0: there is no budget `b`",
            "models.openai/o3.budgets.0: there is no budget `b`",
            "tenants.acme.budgets.0: there is no budget `b`",
            "tenants.acme.teams.a.budgets.0: there is no budget `b`",
        ]
    );
}

#[test]
fn a_budget_is_checked_and_so_is_who_names_it() {
    let mut world = world();
    let one = |world: &World, kind, name, spec: &str| problems(world, put(kind, name, spec)).join("\n");
    let wrong = one(&world, Kind::Budgets, "b", r#"{"limit":50,"window":"day"}"#);
    assert!(wrong.starts_with("budgets.b.limit: `50` does not say of what"), "{wrong}");
    let wrong = one(&world, Kind::Budgets, "b", r#"{"limit":"$1","window":"fortnight"}"#);
    assert!(wrong.starts_with("budgets.b.window: unknown variant `fortnight`, expected one of `total`"), "{wrong}");
    assert!(!wrong.contains(" line "), "{wrong}");
    let wrong = one(&world, Kind::Budgets, "b", r#"{"limit":"$1","window":"x at line y"}"#);
    assert!(wrong.starts_with("budgets.b.window: unknown variant `x at line y`, expected"), "{wrong}");
    let wrong = one(&world, Kind::Budgets, "b", r#"["fifty","day"]"#);
    assert_eq!(wrong, "budgets.b: is not what one of the budgets looks like: it is not an object");
    let wrong = one(&world, Kind::Budgets, "b", r#"{"limit":"$1","window":"day""#);
    assert!(wrong.starts_with("budgets.b: is not what one of the budgets looks like: "), "{wrong}");

    world.put(Kind::Budgets, "day", r#"{"limit":"$1","window":"day"}"#);
    assert_eq!(
        one(&world, Kind::Tenants, "acme", r#"{"budgets":["dya"],"teams":{"a":{}}}"#),
        "tenants.acme.budgets.0: there is no budget `dya`; did you mean `day`?"
    );
    assert_eq!(
        one(&world, Kind::Keys, "k", &key_spec("k", r#","budgets":["day","day"]"#)),
        "keys.k.budgets.1: `day` is listed twice"
    );
    assert_eq!(one(&world, Kind::Keys, "k", &key_spec("k", r#","budgets":["day"]"#)), "");
    let checked = validate(
        &world.register,
        put(Kind::Budgets, "day", r#"{ "window": "day", "mode": "hard", "limit": "$2" }"#),
        policy(),
    );
    assert_eq!(checked.unwrap().spec.unwrap(), r#"{"limit":"$2","window":"day"}"#);
}

/// What is wrong already is told elsewhere, and keeps nobody from changing something else.
#[test]
fn old_problems_are_no_obstacle() {
    let mut world = world();
    world.put(Kind::Routes, "dangling", r#"{"targets":["gone/x"]}"#);
    assert_eq!(problems(&world, put(Kind::Tenants, "beta", "{}")), Vec::<String>::new());
    assert_eq!(problems(&world, Change::Delete { kind: Kind::Routes, name: "dangling" }), Vec::<String>::new());
}

#[test]
fn no_secret_enters_through_the_api() {
    let world = world();
    for secret in [r#""sk-literal""#, r#""${KEY:-sk-literal}""#, r#"{"local":"openai/0"}"#] {
        let spec = format!(r#"{{"kind":"openai","api_key":{secret}}}"#);
        let found = problems(&world, put(Kind::Providers, "mine", &spec)).join("\n");
        assert!(found.starts_with("providers.mine.api_key: is not a reference") && !found.contains("sk-"), "{found}");
        let spec = format!(r#"{{"kind":"openai","api_keys":["${{OK}}",{secret}]}}"#);
        let found = problems(&world, put(Kind::Providers, "mine", &spec)).join("\n");
        assert!(found.starts_with("providers.mine.api_keys.1: is not a reference"), "{found}");
    }
    for reference in [r#""${KEY}""#, r#"{"file":"/run/secrets/key"}"#, r#""none""#] {
        let spec = format!(r#"{{"kind":"openai","api_key":{reference}}}"#);
        assert_eq!(problems(&world, put(Kind::Providers, "mine", &spec)), Vec::<String>::new(), "{reference}");
    }
    let secret = format!(r#"{{"secret":"{}"}}"#, "s".repeat(40));
    assert!(problems(&world, put(Kind::Keys, "k", &secret))[0].starts_with("keys.k.secret: never enters"));
}

#[test]
fn private_addresses_need_leave() {
    let world = world();
    let change = put(Kind::Providers, "mine", r#"{"kind":"compatible","base_url":"http://169.254.169.254/v1"}"#);
    assert!(
        problems(&world, change)[0].starts_with("providers.mine.base_url: `http://169.254.169.254/v1` is at a private")
    );
    let allowing = Policy { allow_private_providers: true, ..policy() };
    assert!(validate(&world.register, change, allowing).is_ok());
    let file = declared("providers: { mine: { kind: compatible, base_url: \"http://10.0.0.5/v1\" }, openai: {} }");
    assert!(validate(&world.register, Change::File(&file), policy()).is_ok(), "a file's may");
}

#[test]
fn higher_rooms_add_what_they_know() {
    let world = world();
    let policy = Policy {
        check_provider: &|name, spec, problems| problems.add("kind", format!("{name} is {}", spec.kind(name))),
        ..policy()
    };
    let found = validate(&world.register, put(Kind::Providers, "mine", r#"{"kind":"x"}"#), policy).unwrap_err();
    assert_eq!(found.to_string(), "providers.mine.kind: mine is x");
}

/// A file is right in itself; together with what the API made it may not be.
#[test]
fn a_file_is_checked_together_with_what_the_api_made() {
    let mut world = World::default();
    world.file(1, "providers: { openai: {} }");
    world.put(Kind::Routes, "mine", r#"{"targets":["openai/o3"]}"#);

    let without = declared("providers: { anthropic: {} }");
    assert_eq!(problems(&world, Change::File(&without)), ["routes.mine.targets.0: there is no provider `openai`"]);
    let with = declared("providers: { anthropic: {}, openai: {} }");
    assert_eq!(problems(&world, Change::File(&with)), Vec::<String>::new());
}

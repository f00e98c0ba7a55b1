//! Keys: found by one hash, revoked for good.

use cluster::register::{Act, KeyRef, Kind, Refusal, Reply};

use super::{World, delete, hash, key_spec, put, revoke};

#[test]
fn two_keys_never_have_the_same_hash() {
    let mut world = World::default();
    world.put(Kind::Keys, "web", &key_spec("one", ""));
    assert_eq!(
        world.refusal(put(Kind::Keys, "app", &key_spec("one", ""))),
        Refusal::HashTaken { by: "web".to_owned() }
    );
    world.put(Kind::Keys, "web", &key_spec("two", ""));
    assert!(world.accepts("two") && !world.accepts("one"), "a key changes its hash and the former one is free");
    world.put(Kind::Keys, "app", &key_spec("one", ""));
    assert_eq!(world.reply(delete(Kind::Keys, "app")), Reply::Deleted);
    assert!(!world.accepts("one"));
}

#[test]
fn keys_are_listed_by_tenant() {
    let mut world = World::default();
    world.put(Kind::Tenants, "acme", "{}");
    for (name, tenant) in [("c", "acme"), ("a", "acme"), ("b", "default"), ("d", "acme")] {
        world.put(Kind::Keys, name, &key_spec(name, &format!(r#","tenant":"{tenant}""#)));
    }
    world.put(Kind::Keys, "d", &key_spec("d", ""));
    let names = |tenant, after| world.register.keys_of(tenant, after).map(|key| key.name).collect::<Vec<_>>();
    assert_eq!(names("acme", None), ["a", "c"]);
    assert_eq!(names("acme", Some("a")), ["c"]);
    assert_eq!(names("default", None), ["b", "d"]);
    assert_eq!(names("nobody", None), Vec::<&str>::new());
}

#[test]
fn a_revoked_key_is_found_no_more_and_cannot_come_back() {
    let mut world = World::default();
    let version = world.put(Kind::Keys, "web", &key_spec("one", ""));

    let applied = world.apply(revoke("web"));
    let Reply::Revoked { hash: revoked, first } = applied.reply else { panic!("refused") };
    assert_eq!(revoked, hash("one"));
    assert!(applied.changed.directory && applied.changed.cut.is_none());
    assert!(!world.accepts("one"));
    let stored = world.register.get(Kind::Keys, "web").unwrap();
    assert!(stored.revoked && stored.version > version);

    assert_eq!(world.refusal(put(Kind::Keys, "web", &key_spec("one", r#","rpm":1"#))), Refusal::Revoked);
    world.apply(delete(Kind::Keys, "web"));
    assert_eq!(world.refusal(put(Kind::Keys, "other", &key_spec("one", ""))), Refusal::Revoked);
    assert_eq!(world.register.revoked(&hash("one")).unwrap().first, first);
    world.put(Kind::Keys, "web", &key_spec("two", ""));
    assert!(world.accepts("two"), "the name may have another key");
}

/// Cutting the streams can be asked for later, and again.
#[test]
fn revoking_twice_answers_with_the_first_time_and_may_still_cut() {
    let mut world = World::default();
    world.put(Kind::Keys, "web", &key_spec("one", ""));
    let first = world.reply(revoke("web"));
    let again = world.apply(revoke("web"));
    assert_eq!((again.reply, again.changed.directory), (first.clone(), false));
    assert_eq!(world.register.cut().count(), 0);

    let cut = || Act::Revoke { key: KeyRef::Hash(hash("one")), cut: true };
    for _ in 0..2 {
        let applied = world.apply(cut());
        assert_eq!((applied.reply, applied.changed.cut), (first.clone(), Some(hash("one"))));
    }
    assert_eq!(world.register.cut().collect::<Vec<_>>(), [&hash("one")]);
}

#[test]
fn a_key_nobody_made_can_be_revoked_by_its_hash_only() {
    let mut world = World::default();
    assert!(matches!(world.refusal(revoke("web")), Refusal::NotFound { .. }));
    let by_hash = Act::Revoke { key: KeyRef::Hash(hash("leaked")), cut: false };
    assert!(matches!(world.reply(by_hash), Reply::Revoked { .. }));
    assert_eq!(world.refusal(put(Kind::Keys, "web", &key_spec("leaked", ""))), Refusal::Revoked);
    let record = world.register.audit(0).nth(1).unwrap();
    assert!(record.name.starts_with("b3:") && record.name.len() < 20, "only the start of the hash: {}", record.name);
}

/// A file goes on declaring a leaked key; no file lifts the revocation.
#[test]
fn no_file_brings_a_revoked_key_back() {
    const FILE: &str = "keys: { web: { secret: \"${WEB_KEY}\" } }";
    let text = "w".repeat(40);
    let mut world = World::default();
    world.file(1, FILE);
    assert!(world.accepts(&text));

    assert!(matches!(world.reply(revoke("web")), Reply::Revoked { .. }));
    assert!(!world.accepts(&text));
    world.file(2, "keys: {}");
    world.file(3, FILE);
    assert!(!world.accepts(&text) && world.register.get(Kind::Keys, "web").unwrap().revoked);
    world.file(4, "keys: { another: { secret: \"${WEB_KEY}\", rpm: 5 } }");
    assert!(!world.accepts(&text), "under another name neither");
}

//! The directory that is published: what a change costs, and that there always is one.

use std::sync::Arc;

use cluster::directory::UnknownBudget;
use cluster::directory::shards::SHARDS;
use cluster::register::{Act, Kind};

use super::{World, delete, hash, key_spec, revoke};

/// A world with enough keys that every shard has some.
fn crowded() -> World {
    let mut world = World::default();
    world.put(Kind::Providers, "openai", r#"{"api_key":"none"}"#);
    for number in 0..3000 {
        world.put(Kind::Keys, &format!("k{number}"), &key_spec(&format!("text-{number}"), ""));
    }
    world
}

/// A commit copies one of 256 parts, and nothing else is built.
#[test]
fn a_change_of_one_key_copies_one_shard() {
    let mut world = crowded();
    let before = world.register.directory(None);

    world.put(Kind::Keys, "new", &key_spec("new", ""));
    let after = world.register.directory(Some(&before));

    assert_eq!(before.keys().shared_with(after.keys()), SHARDS - 1);
    assert!(Arc::ptr_eq(before.shape(), after.shape()));
    assert!(
        after.key(&hash("new")).is_some() && before.key(&hash("new")).is_none(),
        "what was published stays as it was"
    );

    world.apply(revoke("new"));
    let revoked = world.register.directory(Some(&after));
    assert_eq!(after.keys().shared_with(revoked.keys()), SHARDS - 1);
    assert!(revoked.key(&hash("new")).is_none() && after.key(&hash("new")).is_some());
}

#[test]
fn a_change_of_anything_else_shares_all_keys() {
    let mut world = crowded();
    let before = world.register.directory(None);
    world.put(Kind::Routes, "support", r#"{"targets":["openai/o3"]}"#);
    let after = world.register.directory(Some(&before));
    assert_eq!(before.keys().shared_with(after.keys()), SHARDS);
    assert!(!Arc::ptr_eq(before.shape(), after.shape()));
    assert_eq!(after.routes().filter(|route| &*route.name == "support").count(), 1);
    assert_eq!(before.routes().filter(|route| &*route.name == "support").count(), 0);
}

#[test]
fn every_key_is_found_and_no_other() {
    let world = crowded();
    let directory = world.register.directory(None);
    assert_eq!(directory.keys_len(), 3000);
    for number in 0..3000 {
        assert_eq!(directory.key(&hash(&format!("text-{number}"))).unwrap().name, format!("k{number}"));
    }
    assert!(directory.key(&hash("text-3000")).is_none());
}

#[test]
fn no_route_leads_to_a_provider_that_is_off() {
    let mut world = World::default();
    world.put(Kind::Providers, "openai", r#"{"api_key":"none"}"#);
    world.put(Kind::Providers, "anthropic", r#"{"api_key":"none"}"#);
    world.put(Kind::Routes, "both", r#"{"targets":["openai/gpt-4o","anthropic/claude-sonnet-4-5"]}"#);
    world.put(Kind::Routes, "one", r#"{"targets":["openai/gpt-4o"]}"#);
    world.put(Kind::Routes, "x-*", r#"{"targets":["openai/*"]}"#);
    world.apply(Act::SwitchProvider { name: "openai".to_owned(), off: true });

    let directory = world.register.directory(None);
    let targets = |model: &str| directory.resolve(model).map(|route| route.targets.len());

    assert_eq!(targets("both"), Some(1));
    for model in ["one", "x-gpt-4o", "openai/gpt-4o", "gpt-4o", "openai/new"] {
        assert_eq!(targets(model), Some(0), "{model} is known and leads nowhere");
    }
    assert_eq!(targets("unheard-of"), None);
    assert!(directory.provider("openai").unwrap().off);
    let anyone = cluster::directory::key::Key::anonymous();
    assert!(!directory.models_for(&anyone).iter().any(|model| model.owned_by == "openai"));

    world.apply(Act::SwitchProvider { name: "openai".to_owned(), off: false });
    assert_eq!(world.register.directory(Some(&directory)).resolve("one").unwrap().targets.len(), 1);
}

/// What a newer program wrote, or what refers to nothing, is left out and told; the rest is there.
#[test]
fn there_is_a_directory_whatever_the_register_holds() {
    let mut world = World::default();
    world.put(Kind::Providers, "openai", r#"{"api_key":"none"}"#);
    world.put(Kind::Providers, "future", r#"{"telepathy":true}"#);
    world.put(Kind::Routes, "mixed", r#"{"targets":["openai/gpt-4o","gone/x","future/y"]}"#);
    world.put(Kind::Prices, "broken", r#"{"input":"much"}"#);
    world.put(Kind::Keys, "future", &key_spec("future", r#","telepathy":true"#));
    world.put(Kind::Keys, "wrong", &key_spec("wrong", r#","expires":"never""#));
    world.put(Kind::Keys, "good", &key_spec("good", ""));

    let directory = world.register.directory(None);

    assert_eq!(directory.resolve("mixed").unwrap().targets.len(), 1);
    assert!(directory.provider("future").is_none());
    let complaints: Vec<_> = directory.complaints().iter().map(ToString::to_string).collect();
    let paths: Vec<_> = complaints.iter().map(|complaint| complaint.split(':').next().unwrap()).collect();
    let wanted = [
        "providers.future.telepathy",
        "prices.broken.input",
        "prices.broken.output",
        "routes.mixed.targets.1",
        "routes.mixed.targets.2",
    ];
    assert_eq!(paths, wanted, "{complaints:#?}");
    assert!(world.accepts("good") && !world.accepts("future") && !world.accepts("wrong"));
    assert_eq!(world.register.unreadable_keys().collect::<Vec<_>>(), ["future", "wrong"]);
    world.apply(delete(Kind::Keys, "future"));
    assert_eq!(world.register.unreadable_keys().count(), 1);
}

/// Whoever names a budget that this program cannot read is not let through as if there were none.
#[test]
fn a_budget_that_is_not_known_is_no_leave() {
    let mut world = World::default();
    world.put(Kind::Providers, "openai", r#"{"api_key":"none"}"#);
    world.put(Kind::Budgets, "fine", r#"{"limit":"$1","window":"day"}"#);
    world.put(Kind::Budgets, "future", r#"{"limit":"$1","window":"day","telepathy":true}"#);
    world.put(Kind::Keys, "one", &key_spec("one", r#","budgets":["fine"]"#));
    world.put(Kind::Keys, "two", &key_spec("two", r#","budgets":["fine","future"]"#));

    let directory = world.register.directory(None);
    let budgets = |text| directory.budgets_of(directory.key(&hash(text)).unwrap(), "openai", "gpt-4o");

    assert_eq!(budgets("one").unwrap().len(), 1);
    assert_eq!(budgets("two"), Err(UnknownBudget { name: "future".to_owned() }));
    assert!(directory.complaints().to_string().contains("budgets.future.telepathy: unknown field"));
}

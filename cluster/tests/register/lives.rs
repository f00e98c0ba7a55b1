//! Members, their lives, and commands that come twice.

use std::time::Duration;

use cluster::id::Incarnation;
use cluster::register::{Act, COMMAND_VERSION, Expected, Kind, MEMBERS_MAX, Refusal, Reply, TOKENS_MAX};

use super::{World, command, member, node, put};

fn started(number: u64, nonce: u8) -> Act {
    Act::Started { node: node(number), nonce: [nonce; 16], member: member("edge") }
}

fn admit(number: u64) -> Act {
    Act::Admit { node: node(number), member: member("edge") }
}

/// A world with one admitted node, and the incarnation it started with.
fn with_node() -> (World, u64) {
    let mut world = World::default();
    world.apply(admit(1));
    let Reply::Incarnation(incarnation) = world.reply(started(1, 1)) else { panic!("not started") };
    (world, incarnation.get())
}

#[test]
fn a_repeated_nonce_is_the_same_life() {
    let (mut world, first) = with_node();

    let again = world.apply(started(1, 1));
    assert_eq!(again.reply, Reply::Incarnation(Incarnation::new(first)));
    assert!(!again.changed.members);

    let Reply::Incarnation(second) = world.reply(started(1, 2)) else { panic!("not started") };
    assert!(second.get() > first);
    assert_eq!(world.register.members().get(node(1)).unwrap().incarnation, second);
}

/// One log entry carries commands of many nodes; their lives must still be told apart.
#[test]
fn commands_of_one_entry_have_serials_of_their_own() {
    let (mut world, _) = with_node();
    world.apply(admit(2));
    let index = world.index + 1;

    let replies = [1, 2].map(|number| world.register.apply(index, &command(started(number, 9))).reply);
    let puts = ["a", "b"].map(|name| world.register.apply(index, &command(put(Kind::Tenants, name, "{}"))).reply);

    assert_eq!(replies, [index, index + 1].map(|serial| Reply::Incarnation(Incarnation::new(serial))));
    assert_eq!(puts, [index + 2, index + 3].map(|version| Reply::Put { version }));
    let far = world.register.apply(index + 100, &command(put(Kind::Tenants, "c", "{}"))).reply;
    assert_eq!(far, Reply::Put { version: index + 100 }, "the index again, once it is free");
}

#[test]
fn who_was_not_admitted_does_not_start() {
    let mut world = World::default();
    assert_eq!(world.refusal(started(1, 1)), Refusal::NotMember { node: node(1) });
    world.apply(admit(1));
    assert_eq!(world.reply(Act::Remove { node: node(1) }), Reply::Done);
    assert_eq!(world.refusal(started(1, 1)), Refusal::NotMember { node: node(1) });
    assert_eq!(world.refusal(Act::Remove { node: node(1) }), Refusal::NotMember { node: node(1) });
}

#[test]
fn admitting_twice_changes_nothing() {
    let (mut world, incarnation) = with_node();

    let again = world.apply(admit(1));
    assert_eq!((again.reply, again.changed.members), (Reply::Done, false));
    assert_eq!(world.register.members().get(node(1)).unwrap().incarnation.get(), incarnation);

    let moved = world.apply(Act::Admit { node: node(1), member: member("elsewhere") });
    assert!(moved.changed.members);
    assert_eq!(world.register.members().get(node(1)).unwrap().info.peer, "elsewhere:7947");
}

#[test]
fn a_cluster_has_a_most_of_members() {
    let mut world = World::default();
    for number in 1..=MEMBERS_MAX as u64 {
        assert_eq!(world.reply(admit(number)), Reply::Done);
    }
    let full = Refusal::TooMany { what: "members".to_owned(), max: MEMBERS_MAX as u64 };
    assert_eq!(world.refusal(admit(1000)), full);
    assert_eq!(world.reply(admit(1)), Reply::Done, "who is one stays one");
}

#[test]
fn a_repeated_token_is_answered_as_before_and_changes_nothing() {
    let (mut world, life) = with_node();
    let first = world.with_token(put(Kind::Tenants, "acme", "{}"), life, 1, 0);
    world.put(Kind::Tenants, "acme", r#"{"description":"later"}"#);

    let again = world.with_token(put(Kind::Tenants, "acme", "{}"), life, 1, 0);

    assert_eq!(again, first);
    assert!(world.register.get(Kind::Tenants, "acme").unwrap().spec.contains("later"));
}

/// A refusal is an answer too: the second time must not succeed behind the back of who heard no.
#[test]
fn a_repeated_refusal_stays_one() {
    let (mut world, life) = with_node();
    let act = Act::Delete { kind: Kind::Tenants, name: "acme".to_owned(), expected: Expected::Any, shape: None };
    let first = world.with_token(act.clone(), life, 1, 0);
    assert!(matches!(first, Reply::Refused(Refusal::NotFound { .. })));
    world.put(Kind::Tenants, "acme", "{}");
    assert_eq!(world.with_token(act, life, 1, 0), first);
    assert!(world.register.get(Kind::Tenants, "acme").is_some());
}

#[test]
fn replies_below_the_floor_are_forgotten() {
    let (mut world, life) = with_node();
    for seq in 1..=3 {
        world.with_token(put(Kind::Tenants, &format!("t{seq}"), "{}"), life, seq, 0);
    }
    let third = world.with_token(put(Kind::Tenants, "t3", "{}"), life, 3, 3);
    assert!(matches!(third, Reply::Put { .. }), "at the floor it is still known");
    let second = world.with_token(put(Kind::Tenants, "t2", "{}"), life, 2, 0);
    assert_eq!(second, Reply::Refused(Refusal::Forgotten { seq: 2, floor: 3 }), "a floor never sinks");
}

#[test]
fn a_node_has_a_most_of_open_commands() {
    let (mut world, life) = with_node();
    let tick = |seq| Act::Tick { now: Duration::from_secs(seq) };
    for seq in 1..=TOKENS_MAX as u64 {
        assert_eq!(world.with_token(tick(seq), life, seq, 0), Reply::Done);
    }
    let next = TOKENS_MAX as u64 + 1;
    let full = Reply::Refused(Refusal::TooManyOpen { max: TOKENS_MAX as u64 });
    assert_eq!(world.with_token(tick(next), life, next, 0), full);
    assert_eq!(world.register.tick(), Duration::from_secs(TOKENS_MAX as u64));
    assert_eq!(world.with_token(tick(next), life, next, 2), Reply::Done, "the floor makes room, and it was not kept");
}

#[test]
fn commands_of_an_ended_life_are_refused() {
    let (mut world, first) = with_node();
    let Reply::Incarnation(second) = world.reply(started(1, 2)) else { panic!("not started") };
    let act = || put(Kind::Tenants, "acme", "{}");

    assert_eq!(world.with_token(act(), first, 1, 0), Reply::Refused(Refusal::Frozen { incarnation: first }));
    assert_eq!(world.with_token(act(), 999, 1, 0), Reply::Refused(Refusal::Frozen { incarnation: 999 }));
    assert!(matches!(world.with_token(act(), second.get(), 1, 0), Reply::Put { .. }));
    world.apply(Act::Remove { node: node(1) });
    let removed = Reply::Refused(Refusal::Frozen { incarnation: second.get() });
    assert_eq!(world.with_token(act(), second.get(), 2, 0), removed);
}

#[test]
fn time_never_goes_back() {
    let mut world = World::default();
    assert!(world.apply(Act::Tick { now: Duration::from_secs(10) }).changed.time);
    assert!(!world.apply(Act::Tick { now: Duration::from_secs(9) }).changed.time);
    assert_eq!(world.register.tick(), Duration::from_secs(10));
}

#[test]
fn a_command_of_a_newer_version_changes_nothing() {
    let mut world = World::default();
    let mut newer = command(put(Kind::Tenants, "acme", "{}"));
    newer.version = COMMAND_VERSION + 1;

    assert!(!newer.is_known());
    let applied = world.apply_command(&newer);

    let refusal = Refusal::NewerVersion { version: COMMAND_VERSION + 1, known: COMMAND_VERSION };
    assert_eq!(applied.reply, Reply::Refused(refusal));
    assert!(world.register.get(Kind::Tenants, "acme").is_none());
}

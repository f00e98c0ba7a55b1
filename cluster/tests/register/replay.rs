//! Determinism: equal logs make equal registers, and a snapshot anywhere in between changes nothing.

use std::time::Duration;

use cluster::id::Incarnation;
use cluster::ledger::accounts::{BudgetId, Place, Roll, UserId};
use cluster::ledger::book::Statement;
use cluster::ledger::lease::Mark;
use cluster::register::{Act, Command, Expected, KeyRef, Kind, Origin, Register, Token};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

use super::{author, declared, hash, key_spec, member, node};

const NAMES: [&str; 4] = ["a", "b", "openai", "default"];
const TEXTS: [&str; 5] = ["one", "two", "three", "four", "five"];

fn name() -> impl Strategy<Value = String> {
    proptest::sample::select(&NAMES[..]).prop_map(str::to_owned)
}

fn expected() -> impl Strategy<Value = Expected> {
    prop_oneof![4 => Just(Expected::Any), 1 => Just(Expected::Absent), 1 => (0..20u64).prop_map(Expected::Version)]
}

fn key() -> impl Strategy<Value = String> {
    let tenant = prop_oneof![Just(""), Just(r#","tenant":"a""#), Just(r#","tenant":"a","team":"x""#)];
    let roles = prop_oneof![Just(""), Just(r#","roles":["a"]"#), Just(r#","roles":["viewer","b"]"#)];
    let rest = prop_oneof![
        Just(""),
        Just(r#","rpm":5"#),
        Just(r#","unheard_of":1"#),
        Just(r#","budgets":["a"]"#),
        Just(r#","budgets":["a","b"]"#)
    ];
    (proptest::sample::select(&TEXTS[..]), tenant, roles, rest)
        .prop_map(|(text, tenant, roles, rest)| key_spec(text, &format!("{tenant}{roles}{rest}")))
}

fn spec_of(kind: Kind) -> BoxedStrategy<String> {
    let one_of = |texts: &'static [&'static str]| proptest::sample::select(texts).prop_map(str::to_owned).boxed();
    match kind {
        Kind::Keys => key().boxed(),
        Kind::Tenants => one_of(&["{}", r#"{"teams":{"x":{}}}"#, r#"{"teams":{"y":{}}}"#, "[]"]),
        Kind::Routes => one_of(&[r#"{"targets":["openai/o3"]}"#, r#"{"targets":["a/*","b/x"]}"#, "nonsense"]),
        Kind::Providers => one_of(&["{}", r#"{"api_key":"none","models":["m"]}"#, r#"{"kind":"openai"}"#]),
        Kind::Budgets => one_of(&[
            "{}",
            r#"{"limit":"$1","window":"day"}"#,
            r#"{"limit":"$2","window":"day"}"#,
            r#"{"limit":"9 requests","window":"total"}"#,
            r#"{"limit":"9 requests","window":"day","each":"end_user"}"#,
        ]),
        Kind::Roles | Kind::Models | Kind::Prices => one_of(&["{}", r#"{"context":1}"#]),
    }
}

const FILES: [&str; 5] = [
    "{}",
    "tenants: { a: { teams: { x: {} } } }",
    "tenants: { b: {} }\nkeys: { a: { hash: \"b3:0000000000000000000000000000000000000000000000000000000000000000\" } }",
    "providers: { openai: {} }\nroutes: { a: { targets: [openai/o3] } }\nroles: { a: {}, b: {} }",
    "tenants: { a: { budgets: [b] } }\nbudgets: { a: { limit: $1, window: day, each: end_user }, b: { limit: 9 requests, window: total } }",
];

fn act() -> impl Strategy<Value = Act> {
    let kind = || proptest::sample::select(&Kind::ALL[..]);
    let put = prop_oneof![Just(Kind::Keys), kind()].prop_flat_map(|kind| {
        (name(), spec_of(kind), expected(), of(0..30u64)).prop_map(move |(name, spec, expected, shape)| Act::Put {
            kind,
            name,
            spec,
            expected,
            shape,
        })
    });
    let delete = (kind(), name(), expected()).prop_map(|(kind, name, expected)| Act::Delete {
        kind,
        name,
        expected,
        shape: None,
    });
    let which = prop_oneof![
        name().prop_map(KeyRef::Name),
        proptest::sample::select(&TEXTS[..]).prop_map(|text| KeyRef::Hash(hash(text))),
    ];
    let revoke = (which, any::<bool>()).prop_map(|(key, cut)| Act::Revoke { key, cut });
    let switch = (name(), any::<bool>()).prop_map(|(name, off)| Act::SwitchProvider { name, off });
    // Each file is one part; a wrong count of parts stages it.
    let file = (0..FILES.len(), of(0..5u64), 0..30u64, 1..3u32).prop_map(|(file, revision, shape, parts)| {
        match declared(FILES[file]).acts(revision, shape, node(1)).next().unwrap() {
            Act::ReconcilePart { digest, revision, part, bytes, shape, by, of: _ } => {
                Act::ReconcilePart { digest, revision, part, of: parts, bytes, shape, by }
            }
            other => other,
        }
    });
    let node_of = || (1..4u64).prop_map(node);
    let started =
        (node_of(), 0..3u8).prop_map(|(node, nonce)| Act::Started { node, nonce: [nonce; 16], member: member("m") });
    let admit = (node_of(), "[mn]").prop_map(|(node, name)| Act::Admit { node, member: member(&name) });
    let remove = node_of().prop_map(|node| Act::Remove { node });
    let tick = (0..100u64).prop_map(|now| Act::Tick { now: Duration::from_secs(now) });
    let user = || prop_oneof![Just(UserId::NOBODY), "[uv]".prop_map(|name| UserId::of(&name))];
    let place =
        || (0..4u64, 0..3u64, user()).prop_map(|(budget, window, user)| Place::new(BudgetId(budget), window).of(user));
    let said = (place(), 0..9u64, 0..9u64, 0..20u64)
        .prop_map(|(place, used, returned, wants)| (place, Statement { used, returned, wants, least: 1 }));
    let quota = (node_of(), 0..40u64, vec(said, 0..4)).prop_map(|(node, incarnation, said)| Act::Quota {
        node,
        incarnation: Incarnation::new(incarnation),
        said,
    });
    let roll = (place(), any::<bool>()).prop_map(|(Place { budget, window, .. }, first)| Act::Roll {
        rolls: [Roll { budget, after: (!first).then_some(window), starts: Duration::ZERO, ends: None }].into(),
    });
    let mark = || (0..9u64, 0..4u64).prop_map(|(reach, lent)| Mark { reach, lent });
    let settle = (node_of(), 0..40u64, vec((place(), mark()), 0..3), any::<bool>(), any::<bool>()).prop_map(
        |(node, incarnation, marks, whole, last)| Act::Settle {
            node,
            incarnation: Incarnation::new(incarnation),
            marks,
            whole,
            last,
        },
    );
    let unspent = (place(), 0..40u64, 0..9u64).prop_map(|(place, incarnation, used)| Act::Unspent {
        place,
        incarnation: Incarnation::new(incarnation),
        used,
    });
    prop_oneof![
        3 => quota, 3 => roll, 1 => settle, 1 => unspent,
        10 => put, 3 => delete, 2 => revoke, 2 => switch, 4 => file, 2 => started, 2 => admit, 1 => remove, 1 => tick
    ]
}

fn command() -> impl Strategy<Value = (u64, Command)> {
    let token = (1..12u64, 0..10u64, 0..10u64).prop_map(|(incarnation, seq, floor)| Token { incarnation, seq, floor });
    (0..2u64, of(token), act()).prop_map(|(step, token, act)| {
        let command = Command::new(author(), Duration::from_secs(1), act);
        (step, Command { token, ..command })
    })
}

/// Makes indices out of steps: several commands may share one.
fn log(steps: Vec<(u64, Command)>) -> Vec<(u64, Command)> {
    let mut index = 1;
    steps
        .into_iter()
        .map(|(step, command)| {
            index += step;
            (index, command)
        })
        .collect()
}

/// What must hold of any register: what was revoked is not found, what is readable and not revoked is.
fn check(register: &Register) -> Result<(), TestCaseError> {
    let directory = register.directory(None);
    let unreadable: Vec<_> = register.unreadable_keys().collect();
    let keys: Vec<_> = register.list(Kind::Keys, None).collect();
    prop_assert_eq!(keys.len(), directory.keys_len());
    for stored in keys {
        let spec: serde_json::Value = serde_json::from_str(stored.spec).unwrap();
        let hash = cluster::directory::key::KeyHash::parse(spec["hash"].as_str().unwrap()).unwrap();
        prop_assert_eq!(stored.revoked, register.revoked(&hash).is_some());
        let found = directory.key(&hash).map(|key| key.name.as_str());
        let wanted = (!stored.revoked && !unreadable.contains(&stored.name)).then_some(stored.name);
        prop_assert_eq!(found, wanted);
        let tenant = spec["tenant"].as_str().unwrap_or("default");
        prop_assert!(tenant == "default" || register.get(Kind::Tenants, tenant).is_some());
        prop_assert!(register.keys_of(tenant, None).any(|key| key.name == stored.name));
        for role in spec["roles"].as_array().into_iter().flatten() {
            let role = role.as_str().unwrap();
            prop_assert!(role == "viewer" || register.get(Kind::Roles, role).is_some());
        }
        for budget in spec["budgets"].as_array().into_iter().flatten() {
            prop_assert!(register.get(Kind::Budgets, budget.as_str().unwrap()).is_some());
        }
    }
    for (_kind, stored) in register.all() {
        prop_assert!(stored.version <= register.serial());
        prop_assert!(stored.origin == Origin::Api || register.file().digest.is_some());
    }
    Ok(())
}

proptest! {
    /// Replay and snapshot give the same bytes, wherever the snapshot is taken.
    #[test]
    fn replay_and_snapshot_give_the_same_bytes(steps in vec(command(), 0..60), at in 0..60usize) {
        let log = log(steps);
        let (mut replayed, mut restored) = (Register::default(), Register::default());
        for (position, (index, command)) in log.iter().enumerate() {
            if position == at {
                let bytes = restored.encode();
                restored = Register::decode(&bytes).unwrap();
                prop_assert_eq!(restored.encode(), bytes);
            }
            prop_assert_eq!(replayed.apply(*index, command), restored.apply(*index, command));
        }
        prop_assert!(replayed == restored);
        prop_assert_eq!(replayed.encode(), restored.encode());
        prop_assert!(Register::decode(&replayed.encode()).unwrap() == replayed);
    }

    /// Whatever is applied, the register is whole and a directory comes out of it.
    #[test]
    fn any_schedule_leaves_a_whole_register(steps in vec(command(), 0..60)) {
        let mut register = Register::default();
        for (index, command) in log(steps) {
            let before = register.serial();
            register.apply(index, &command);
            prop_assert!(register.serial() > before);
            check(&register)?;
        }
    }

    /// A directory made from the one before it is the one that would be made anew.
    #[test]
    fn building_upon_the_last_directory_changes_nothing(steps in vec(command(), 0..40)) {
        let mut register = Register::default();
        let mut last = register.directory(None);
        for (index, command) in log(steps) {
            let changed = register.apply(index, &command).changed;
            let (next, anew) = (register.directory(Some(&last)), register.directory(None));
            prop_assert!(next.keys() == anew.keys());
            prop_assert_eq!(next.shape().version(), anew.shape().version());
            prop_assert_eq!(changed.shape, last.shape().version() != next.shape().version());
            prop_assert_eq!(changed.directory, changed.shape || last.keys() != next.keys());
            last = next;
        }
    }

    /// Nothing that is read from a disk may panic.
    #[test]
    fn damaged_bytes_are_refused(steps in vec(command(), 1..20), at in any::<proptest::sample::Index>(), flip in 1..=255u8, cut in any::<bool>()) {
        let mut register = Register::default();
        for (index, command) in log(steps) {
            register.apply(index, &command);
        }
        let mut bytes = register.encode();
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
            prop_assert!(Register::decode(&bytes).is_err());
        } else {
            bytes[at] ^= flip;
            let _any = Register::decode(&bytes);
        }
    }
}

#[test]
fn no_bytes_are_no_register() {
    assert!(Register::decode(&[]).is_err());
    assert!(Register::decode(&[2]).is_err());
    let mut bytes = Register::default().encode();
    assert!(Register::decode(&bytes).unwrap() == Register::default());
    bytes.push(0);
    assert!(Register::decode(&bytes).is_err());
}

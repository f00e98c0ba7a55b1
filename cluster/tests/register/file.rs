//! What a file declares: in parts, by revision, all at once.

use cluster::directory::wire::Spec;
use cluster::register::{Act, Kind, Origin, PART_BYTES_MAX, Refusal, Register, Reply, STAGINGS_MAX, difference};

use super::{World, declared, delete, hash, key_spec, node, put};

const FIRST: &str = r#"
providers: { openai: { api_key: "sk-literal" } }
routes: { support: { targets: [openai/gpt-4o] }, old: { targets: [openai/o1] } }
tenants: { acme: {} }
keys: { web: { secret: "${WEB_KEY}", tenant: acme } }
"#;

fn counts(reply: &Reply) -> (u32, u32, u32) {
    match reply {
        Reply::Reconciled { put, removed, taken } => (*put, *removed, *taken),
        other => panic!("{other:?}"),
    }
}

#[test]
fn exactly_what_the_file_declares_is_there() {
    let mut world = World::default();
    world.put(Kind::Routes, "mine", r#"{"targets":["openai/o3"]}"#);
    assert_eq!(counts(&world.file(1, FIRST)), (5, 0, 0));
    let support = world.register.get(Kind::Routes, "support").unwrap().version;

    let second = FIRST.replace("old: { targets: [openai/o1] }", "new: { targets: [openai/o1] }");
    assert_eq!(counts(&world.file(2, &second)), (1, 1, 0));

    let names: Vec<_> = world.register.list(Kind::Routes, None).map(|route| (route.name, route.origin)).collect();
    assert_eq!(names, [("mine", Origin::Api), ("new", Origin::File), ("support", Origin::File)]);
    assert_eq!(world.register.get(Kind::Routes, "support").unwrap().version, support, "what stays keeps its version");
    assert_eq!(world.register.file().revision, Some(2));
    assert!(world.accepts(&"w".repeat(40)));
}

/// The text of a secret is in none of the bytes that leave the node.
#[test]
fn no_secret_travels() {
    let file = declared(FIRST);
    let mut world = World::default();
    world.reconcile(Some(1), &file);
    let bytes: Vec<u8> = file
        .acts(Some(1), 0, node(1))
        .flat_map(|act| match act {
            Act::ReconcilePart { bytes, .. } => bytes,
            other => panic!("{other:?}"),
        })
        .chain(world.register.encode())
        .collect();
    for secret in ["sk-literal".to_owned(), "w".repeat(40)] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
    assert_eq!(world.register.get(Kind::Providers, "openai").unwrap().spec, r#"{"api_key":{"local":"openai/0"}}"#);
}

#[test]
fn the_revision_decides() {
    let mut world = World::default();
    let (first, other) = (declared(FIRST), declared("tenants: { acme: {}, beta: {} }"));
    assert!(matches!(world.reconcile(Some(5), &first), Reply::Reconciled { .. }));

    let before = world.register.clone();
    assert_eq!(world.reconcile(Some(4), &other), Reply::Older { current: 5 });
    assert_eq!(world.reconcile(Some(5), &first), Reply::Unchanged);
    assert_eq!(world.reconcile(Some(5), &other), Reply::Conflict { current: first.digest() });
    assert!(before.all().eq(world.register.all()) && before.file() == world.register.file());

    assert_eq!(counts(&world.reconcile(Some(6), &first)), (0, 0, 0), "a new number for the same");
    assert_eq!(world.register.file().revision, Some(6));
    assert!(matches!(world.reconcile(Some(7), &other), Reply::Reconciled { .. }));
}

#[test]
fn without_a_revision_only_the_contents_decide() {
    let mut world = World::default();
    let (first, other) = (declared(FIRST), declared("tenants: { acme: {} }"));
    assert!(matches!(world.reconcile(None, &first), Reply::Reconciled { .. }));
    assert_eq!(world.reconcile(None, &first), Reply::Unchanged);
    assert!(matches!(world.reconcile(None, &other), Reply::Reconciled { .. }));
    assert!(matches!(world.reconcile(None, &first), Reply::Reconciled { .. }));
}

#[test]
fn what_the_file_declares_is_read_only_and_says_where_it_stands() {
    let mut world = World::default();
    world.file(1, FIRST);
    let refused = |kind: Kind, name: &str| Refusal::DeclaredInFile { section: kind.to_string(), name: name.to_owned() };
    assert_eq!(world.refusal(put(Kind::Routes, "support", "{}")), refused(Kind::Routes, "support"));
    assert_eq!(world.refusal(delete(Kind::Keys, "web")), refused(Kind::Keys, "web"));
    let off = Act::SwitchProvider { name: "openai".to_owned(), off: true };
    assert_eq!(world.reply(off), Reply::Done, "an operator may take it out of use all the same");
    world.file(2, "tenants: {}");
    world.file(3, FIRST);
    assert!(world.register.get(Kind::Providers, "openai").unwrap().off, "and no file brings it back");
}

#[test]
fn the_file_takes_over_what_the_api_made() {
    let mut world = World::default();
    world.put(Kind::Routes, "support", r#"{"targets":["openai/o3"]}"#);
    world.put(Kind::Keys, "web", &key_spec("before", ""));
    assert_eq!(counts(&world.file(1, FIRST)).2, 2);
    let record = world.register.audit(0).last().unwrap();
    assert!(record.outcome.contains("taken over from the API: routes.support, keys.web"), "{}", record.outcome);
    assert_eq!(world.register.get(Kind::Routes, "support").unwrap().origin, Origin::File);
    assert!(!world.accepts("before"));
}

/// All or nothing: a file that cannot be applied leaves everything as it was.
#[test]
fn a_file_that_does_not_fit_changes_nothing() {
    let mut world = World::default();
    world.file(1, FIRST);
    world.put(Kind::Keys, "mine", &key_spec("mine", r#","tenant":"acme""#));
    let before = world.register.all().map(|(kind, stored)| (kind, stored.name.to_owned())).collect::<Vec<_>>();

    let gone = Reply::Refused(Refusal::InUse { what: "tenant".to_owned(), name: "acme".to_owned(), by: 1 });
    assert_eq!(world.file(2, "tenants: { other: {} }"), gone);
    let taken = format!("tenants: {{ acme: {{}} }}\nkeys: {{ theirs: {{ hash: \"{}\" }} }}", hash("mine").to_text());
    assert_eq!(world.file(2, &taken), Reply::Refused(Refusal::HashTaken { by: "mine".to_owned() }));

    let after = world.register.all().map(|(kind, stored)| (kind, stored.name.to_owned())).collect::<Vec<_>>();
    assert_eq!((after, world.register.file().revision), (before, Some(1)));
}

/// Keys are put before the budgets they name: all of a file counts at once.
#[test]
fn budgets_of_a_file_come_and_go_with_who_names_them() {
    let key = format!("hash: \"{}\"", hash("one").to_text());
    let file = format!(
        "tenants: {{ acme: {{ budgets: [month] }} }}\nkeys: {{ web: {{ {key}, tenant: acme, budgets: [day] }} }}\n\
         budgets: {{ day: {{ limit: $1, window: day }}, month: {{ limit: $20, window: month }} }}"
    );
    let mut world = World::default();
    assert_eq!(counts(&world.file(1, &file)), (4, 0, 0));
    let refused = Refusal::DeclaredInFile { section: "budgets".to_owned(), name: "day".to_owned() };
    assert_eq!(world.refusal(delete(Kind::Budgets, "day")), refused);
    assert_eq!(world.refusal(put(Kind::Budgets, "day", r#"{"limit":"$9","window":"day"}"#)), refused);
    assert_eq!(counts(&world.file(2, &file.replace("$20", "$30"))), (1, 0, 0));

    world.put(Kind::Keys, "mine", &key_spec("mine", r#","budgets":["day"]"#));
    let without = "tenants: { acme: {} }";
    let in_use = Refusal::InUse { what: "budget".to_owned(), name: "day".to_owned(), by: 1 };
    assert_eq!(world.file(3, without), Reply::Refused(in_use));
    assert_eq!(world.register.len(Kind::Budgets), 2);
    world.put(Kind::Keys, "mine", &key_spec("mine", ""));
    assert_eq!(counts(&world.file(3, without)), (1, 3, 0));
    assert_eq!(world.register.len(Kind::Budgets), 0);
    assert_eq!(
        difference(&world.register, &declared(&format!("{without}\nbudgets: {{ b: {{}} }}"))),
        Some("budgets.b".to_owned())
    );
}

#[test]
fn keys_of_a_file_may_change_places() {
    let [a, b] = ["a", "b"].map(|text| hash(text).to_text());
    let file = |one: &str, two: &str| format!("keys: {{ one: {{ hash: \"{one}\" }}, two: {{ hash: \"{two}\" }} }}");
    let mut world = World::default();
    world.file(1, &file(&a, &b));
    assert_eq!(counts(&world.file(2, &file(&b, &a))), (2, 0, 0));
    let directory = world.register.directory(None);
    assert_eq!(directory.key(&hash("a")).unwrap().name, "two");
    assert_eq!(directory.key(&hash("b")).unwrap().name, "one");
}

/// A file of several parts.
fn large(mark: &str) -> String {
    let tenant = |number| format!("  t{number}: {{ description: \"{mark}{}\" }}\n", "x".repeat(60_000));
    (0..12).fold("tenants:\n".to_owned(), |yaml, number| yaml + &tenant(number))
}

fn parts(world: &World, revision: u64, yaml: &str) -> Vec<Act> {
    declared(yaml).acts(Some(revision), world.register.shape_version(), node(1)).collect()
}

#[test]
fn a_file_of_several_parts_is_applied_with_the_last() {
    let mut world = World::default();
    let acts = parts(&world, 1, &large("a"));
    assert!(acts.len() >= 3, "{}", acts.len());
    let (last, first) = acts.split_last().unwrap();

    for act in first {
        assert_eq!(world.reply(act.clone()), Reply::Staged);
        assert_eq!(world.reply(act.clone()), Reply::Staged, "another node sends the same file");
    }
    assert_eq!(world.register.len(Kind::Tenants), 0);
    assert_eq!(counts(&world.reply(last.clone())), (12, 0, 0));
    assert_eq!(world.reply(last.clone()), Reply::Unchanged, "the other node's last part");
    let clean: Register = Register::decode(&world.register.encode()).unwrap();
    assert!(clean.encode().len() < 12 * 61_000 + PART_BYTES_MAX / 4, "no part is kept");
}

#[test]
fn parts_come_in_order_and_whole() {
    let mut world = World::default();
    let acts = parts(&world, 1, &large("a"));
    assert_eq!(world.refusal(acts[1].clone()), Refusal::PartMissing { wanted: 0, part: 1 });
    assert_eq!(world.reply(acts[0].clone()), Reply::Staged);
    assert_eq!(world.refusal(acts[2].clone()), Refusal::PartMissing { wanted: 1, part: 2 });

    let with = |act: &Act, change: &dyn Fn(&mut Vec<u8>, &mut u32, &mut u32)| match act.clone() {
        Act::ReconcilePart { digest, revision, mut part, mut of, mut bytes, shape, by } => {
            change(&mut bytes, &mut part, &mut of);
            Act::ReconcilePart { digest, revision, part, of, bytes, shape, by }
        }
        other => panic!("{other:?}"),
    };
    let damaged = [
        with(&acts[0], &|bytes, _, _| bytes[0] ^= 1),
        with(&acts[0], &|bytes, _, _| bytes.clear()),
        with(&acts[0], &|bytes, _, _| bytes.resize(PART_BYTES_MAX + 1, 0)),
        with(&acts[0], &|_, part, of| *part = *of),
        with(&acts[0], &|_, part, of| (*part, *of) = (0, 0)),
        with(&acts[0], &|_, _, of| *of = 65),
        with(&acts[0], &|_, _, of| *of = 1),
    ];
    for act in damaged {
        world.apply(acts[0].clone());
        assert!(matches!(world.refusal(act), Refusal::Damaged { .. }));
    }
    assert_eq!(world.register.len(Kind::Tenants), 0);
}

/// The resources changed while the parts were on their way: check again, then send the last part again.
#[test]
fn a_file_checked_against_an_older_shape_waits_for_its_last_part() {
    let mut world = World::default();
    let acts = parts(&world, 1, &large("a"));
    let (last, first) = acts.split_last().unwrap();
    for act in first {
        world.apply(act.clone());
    }
    world.put(Kind::Tenants, "acme", "{}");
    assert!(matches!(world.refusal(last.clone()), Refusal::Moved { .. }));

    let again = parts(&world, 1, &large("a")).pop().unwrap();
    assert_eq!(counts(&world.reply(again)), (12, 0, 0));
}

#[test]
fn few_files_are_on_their_way_at_once() {
    let mut world = World::default();
    let files: Vec<_> = (0..=STAGINGS_MAX).map(|number| parts(&world, 1, &large(&number.to_string()))).collect();
    for acts in &files {
        assert_eq!(world.reply(acts[0].clone()), Reply::Staged);
    }
    assert_eq!(world.refusal(files[0][1].clone()), Refusal::PartMissing { wanted: 0, part: 1 }, "it made room");
    assert_eq!(world.reply(files[1][1].clone()), Reply::Staged);
}

#[test]
fn what_differs_is_named() {
    let mut world = World::default();
    let first = declared(FIRST);
    world.file(1, FIRST);
    let differs = |yaml: &str| difference(&world.register, &declared(yaml));
    assert_eq!(difference(&world.register, &first), None);
    assert_eq!(differs(&FIRST.replace("sk-literal", "sk-other")), None, "each node has its own text");
    assert_eq!(differs(&FIRST.replace("openai/gpt-4o", "openai/gpt-4")), Some("routes.support.targets".to_owned()));
    assert_eq!(
        differs(&FIRST.replace("openai/gpt-4o]", "openai/gpt-4o], retries: { attempts_max: 2 }")),
        Some("routes.support.retries".to_owned())
    );
    assert_eq!(differs(&FIRST.replace("old:", "older:")), Some("routes.old".to_owned()));
    assert_eq!(differs(&FIRST.replace("acme: {}", "acme: {}, beta: {}")), Some("tenants.beta".to_owned()));
}

/// A node whose file has keys in another order, or says defaults aloud, has the same file.
#[test]
fn the_digest_is_of_what_is_meant() {
    let one = declared("routes: { b: { targets: [openai/o1] }, a: { targets: [openai/o3] } }");
    let two = declared(
        "routes: { a: { targets: [{ target: openai/o3 }], strategy: failover }, b: { targets: [openai/o1], retries: { attempts_max: 4 } } }",
    );
    assert_eq!(one.digest(), two.digest());
    for ((kind, _name), text) in one.declared() {
        assert!(Spec::read(*kind, text).is_ok());
    }
}

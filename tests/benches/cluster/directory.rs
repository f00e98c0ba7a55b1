//! A register and a directory of many keys: looking one up, changing one, and the memory of all.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use cluster::directory::Directory;
use cluster::directory::key::KeyHash;
use cluster::register::{Act, Author, Command, Expected, Kind, Register};

use crate::report::{Report, Row, quantile};

const LOOK_UPS: usize = 2_000_000;
const CHANGES: usize = 500;
const WHOLE_BUILDS: usize = 5;

pub fn measure(keys: usize, report: &mut Report) {
    let before = resident_bytes();
    let mut register = Register::default();
    let mut index = 0;
    apply(&mut register, &mut index, Kind::Providers, "openai", r#"{"api_key":"none"}"#.to_owned());
    let mut written = 0;
    for number in 0..keys {
        let (name, spec) = (format!("key-{number}"), spec(number));
        written += name.len() + spec.len();
        apply(&mut register, &mut index, Kind::Keys, &name, spec);
    }
    let directory = Arc::new(register.directory(None));
    let mebibytes = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    report.row(Row {
        name: format!("memory of {keys} keys, register and directory"),
        value: mebibytes(resident_bytes().saturating_sub(before)),
        unit: "MiB",
        baseline: mebibytes(written),
        beside: "their names and specs as text",
        more: String::new(),
    });
    look_up(keys, &directory, report);
    change(register, index, directory, report);
}

fn look_up(keys: usize, directory: &Directory, report: &mut Report) {
    let hashes: Vec<KeyHash> = (0..keys).map(hash).collect();
    let plain: HashMap<[u8; 32], usize> = hashes.iter().map(|hash| hash.0).zip(0..).collect();
    // A stride that is prime to the number of keys: no two look-ups in a row are neighbours.
    let order = |number: usize| (number * 7_919) % keys;
    let time = |look: &dyn Fn(&KeyHash) -> bool| {
        let started = Instant::now();
        let found = (0..LOOK_UPS).filter(|number| look(&hashes[order(*number)])).count();
        assert_eq!(found, LOOK_UPS);
        started.elapsed().as_secs_f64() * 1e9 / LOOK_UPS as f64
    };
    report.row(Row {
        name: format!("look-up of one of {keys} keys"),
        baseline: time(&|hash| black_box(plain.get(&hash.0)).is_some()),
        value: time(&|hash| black_box(directory.key(hash)).is_some()),
        unit: "ns",
        beside: "a HashMap of the same hashes",
        more: String::new(),
    });
}

/// What happens between a commit and the next request that sees it: the register, the directory, the swap.
fn change(mut register: Register, mut index: u64, directory: Arc<Directory>, report: &mut Report) {
    let keys = directory.keys_len();
    let published = ArcSwap::new(directory);
    let mut took = Vec::new();
    for number in 0..CHANGES {
        let name = format!("key-{number}");
        let started = Instant::now();
        apply(&mut register, &mut index, Kind::Keys, &name, spec(keys + number));
        let known = published.load_full();
        published.store(Arc::new(register.directory(Some(&known))));
        took.push(started.elapsed().as_secs_f64() * 1e6);
        assert!(published.load().key(&hash(keys + number)).is_some());
    }
    let mut whole = Vec::new();
    for _ in 0..WHOLE_BUILDS {
        let started = Instant::now();
        black_box(register.directory(None));
        whole.push(started.elapsed().as_secs_f64() * 1e6);
    }
    report.row(Row {
        name: format!("a committed change of one of {keys} keys, published"),
        value: quantile(&mut took, 0.5),
        unit: "µs",
        baseline: quantile(&mut whole, 0.5),
        beside: "everything but the keys built again",
        more: format!("; p99 {:.1} µs", quantile(&mut took, 0.99)),
    });
}

fn apply(register: &mut Register, index: &mut u64, kind: Kind, name: &str, spec: String) {
    *index += 1;
    let act = Act::Put { kind, name: name.to_owned(), spec, expected: Expected::Any, shape: None };
    let applied = register.apply(*index, &Command::new(Author::default(), Duration::ZERO, act));
    assert!(matches!(applied.reply, cluster::register::Reply::Put { .. }), "{:?}", applied.reply);
}

fn hash(number: usize) -> KeyHash {
    KeyHash::of(&format!("the text of key number {number}"))
}

pub fn spec(number: usize) -> String {
    format!(r#"{{"hash":"{}","rpm":600}}"#, hash(number).to_text())
}

/// Of this process.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

//! Fifty-two worlds under crash, power cut, partition, loss and reorder keep what was promised.
//!
//! `LEA_SEEDS=FIRST..END` runs others.

#![expect(clippy::unwrap_used, reason = "helpers end the test where something failed")]

use std::collections::BTreeMap;
use std::time::Duration;

use jepsen::check::money::Coverage;
use jepsen::history::{Operation, Outcome};
use jepsen::nemesis::Harm;
use jepsen::run::{Options, Verdict, run};

const SEEDS: u64 = 52;

#[expect(clippy::disallowed_methods, reason = "a test is told by its environment what to run")]
fn seeds() -> std::ops::Range<u64> {
    let wanted = std::env::var("LEA_SEEDS").ok();
    let range = wanted.as_deref().and_then(|text| text.split_once(".."));
    let parsed = range.and_then(|(first, end)| Some(first.parse().ok()?..end.parse().ok()?));
    parsed.unwrap_or(0..SEEDS)
}

fn play(seed: u64) -> Verdict {
    let (verdict, _history) = run(Options::new(seed)).unwrap();
    assert!(
        verdict.broken.is_empty(),
        "seed {seed}: {:#?}\nagain: cargo run -p jepsen -- --seed {seed} --history",
        verdict.broken
    );
    verdict
}

/// Each quarter is a test of its own, so that they share the cores.
fn quarter(number: u64) {
    let mut harms: BTreeMap<Harm, usize> = BTreeMap::new();
    let mut money = Coverage::default();
    let (mut ok, mut revoked, mut lost, mut blocked) = (0, 0, 0, 0);
    let mut gave_up = 0;
    let all = seeds();
    let standard = all == (0..SEEDS);
    for seed in all.filter(|seed| seed % 4 == number) {
        let verdict = play(seed);
        for (harm, count) in verdict.harms {
            *harms.entry(harm).or_default() += count;
        }
        money = money.plus(verdict.money);
        ok += verdict.ok;
        revoked += verdict.revoked;
        lost += verdict.lost_calls;
        blocked += verdict.blocked_calls;
        gave_up += verdict.gave_up;
    }
    // What never happened was never tested.
    if standard {
        // Openraft may give up where a leader is deposed while it sends a snapshot; it is to be rare.
        assert!(gave_up <= 1, "{gave_up} processes ended by themselves");
        for harm in Harm::ALL {
            assert!(harms.get(&harm).is_some_and(|count| *count > 0), "no seed had a {}", harm.name());
        }
        assert!(ok > 250 && revoked > 10 && lost > 30 && blocked > 30, "{ok} {revoked} {lost} {blocked}");
        let Coverage {
            calls,
            users,
            lent,
            paid,
            refused,
            unanswered,
            over,
            rolls,
            raised,
            lowered,
            made,
            settled,
            burned,
            emptied,
        } = money;
        let spent = calls > 600 && users > 150 && refused > 20 && unanswered > 10 && emptied > 5;
        let changed = over > 0 && rolls > 5 && raised > 10 && lowered > 10 && made > 20;
        assert!(spent && changed && settled > 30 && burned > 10 && lent > 10 && paid > 1, "{money:?}");
    }
}

#[test]
fn promises_hold_under_faults_first_quarter() {
    quarter(0);
}

#[test]
fn promises_hold_under_faults_second_quarter() {
    quarter(1);
}

#[test]
fn promises_hold_under_faults_third_quarter() {
    quarter(2);
}

#[test]
fn promises_hold_under_faults_last_quarter() {
    quarter(3);
}

/// Without faults nothing may fail once there is a leader: else a fault proves nothing.
#[test]
fn without_faults_everything_works() {
    let options = Options { faults: false, time: Duration::from_secs(20), ..Options::new(1) };
    let (verdict, history) = run(options).unwrap();

    assert!(verdict.broken.is_empty(), "{:#?}", verdict.broken);
    let late = history.events().into_iter().filter(|event| event.at > Duration::from_secs(5));
    let mut unwell: Vec<_> = late.filter(|event| event.outcome != Outcome::Ok).collect();
    // Budgets may well be spent; nobody may be left without an answer.
    let money = |operation: &Operation| [Operation::Spend, Operation::Budget].contains(operation);
    unwell.retain(|event| !money(&event.operation) || event.outcome == Outcome::Info);
    assert!(unwell.is_empty(), "{unwell:#?}");
}

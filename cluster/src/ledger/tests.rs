//! An account under every schedule of a small world, and under random ones of larger worlds.

use std::collections::{HashSet, VecDeque};

use proptest::prelude::*;

use super::invariants::Broken;
use super::model::{Planted, Step, World};

const NODES: usize = 2;
const LIMIT: u64 = 1;
const MESSAGES_MAX: usize = 2;
const LIVES_MAX: u64 = 3;
/// Counters grow with every grant that is given back: here they end, one sooner where there is credit.
const GRANTED_MAX: u64 = 3;

/// Every step of the small world that may come to something. Amounts are of one unit.
fn steps(world: &World, planted: Planted, nodes: usize, overdraft: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    for node in 0..nodes {
        if world.messages() < MESSAGES_MAX {
            steps.push(Step::GiveBack { node, keep: 0 });
            if world.granted() < GRANTED_MAX - overdraft {
                steps.push(Step::Ask { node, more: 1 });
            }
            if world.lives() < LIVES_MAX {
                steps.push(Step::Crash { node });
            }
        }
        steps.extend([Step::Call { node, amount: 1 }, Step::Mark { node, chunk: 1 }]);
        if overdraft > 0 {
            steps.push(Step::Lend { node });
        }
        if planted == Planted::MarkedLate {
            steps.push(Step::Flush { node });
        }
        if !world.calls(node).is_empty() {
            steps.extend([Step::End { node, call: 0, used: 0 }, Step::End { node, call: 0, used: 1 }]);
        }
    }
    for message in 0..world.messages() {
        steps.push(Step::Lose { message });
        steps.push(Step::Deliver { message, again: false });
        if world.messages() < MESSAGES_MAX {
            steps.push(Step::Deliver { message, again: true });
        }
    }
    if planted == Planted::TimedReclaim {
        steps.extend((0..nodes).map(|line| Step::Reclaim { line }));
    }
    steps
}

struct Search {
    worlds: usize,
    /// The shortest way to what must not happen.
    found: Option<(Vec<Step>, Broken)>,
    most_spent: u64,
}

/// Breadth first, through every world that can be reached.
fn search(planted: Planted, nodes: usize, overdraft: u64) -> Search {
    let start = World::new(nodes, LIMIT, overdraft);
    let mut seen = HashSet::from([start.clone()]);
    // What led to each world: the one before it, and the step.
    let mut trail: Vec<(usize, Option<Step>)> = vec![(0, None)];
    let mut queue = VecDeque::from([(start, 0)]);
    let mut most_spent = 0;
    while let Some((world, at)) = queue.pop_front() {
        for step in steps(&world, planted, nodes, overdraft) {
            let mut next = world.clone();
            if !next.take(step, planted) || !seen.insert(next.clone()) {
                continue;
            }
            trail.push((at, Some(step)));
            most_spent = most_spent.max(next.spent());
            let broken = if planted == Planted::Nothing { next.check() } else { next.audit() };
            if let Err(broken) = broken {
                let mut way = Vec::new();
                let mut from = trail.len() - 1;
                while let (before, Some(step)) = trail[from] {
                    way.push(step);
                    from = before;
                }
                way.reverse();
                return Search { worlds: seen.len(), found: Some((way, broken)), most_spent };
            }
            queue.push_back((next, trail.len() - 1));
        }
    }
    Search { worlds: seen.len(), found: None, most_spent }
}

#[test]
fn no_schedule_of_two_nodes_overspends() {
    let search = search(Planted::Nothing, NODES, 0);

    println!("{} worlds", search.worlds);
    assert!(search.found.is_none(), "{:?}", search.found);
    assert_eq!(search.most_spent, LIMIT, "the limit can be spent whole");
    assert!(search.worlds > 10_000, "only {} worlds", search.worlds);
}

/// And on credit none spends more than the limit and its overdraft, whatever lives it had.
#[test]
fn no_schedule_of_a_node_spends_beyond_its_overdraft() {
    let search = search(Planted::Nothing, 1, 1);

    println!("{} worlds", search.worlds);
    assert!(search.found.is_none(), "{:?}", search.found);
    assert_eq!(search.most_spent, LIMIT + 1, "all of it can be spent");
}

/// A search that does not find what is known to be wrong shows nothing.
#[test]
fn planted_defects_are_found() {
    for planted in [
        Planted::TimedReclaim,
        Planted::MarkedLate,
        Planted::ReturnedNotDebited,
        Planted::SettledAtReport,
        Planted::LentAnew,
    ] {
        let (nodes, overdraft) = if planted == Planted::LentAnew { (1, 1) } else { (NODES, 0) };
        let search = search(planted, nodes, overdraft);

        let (way, broken) = search.found.unwrap_or_else(|| panic!("{planted:?} was not found"));
        println!("{planted:?}: {} steps: {way:?}: {broken}", way.len());
        assert!(matches!(broken, Broken::Overspent { .. }));
    }
}

fn any_step(nodes: usize) -> impl Strategy<Value = Step> {
    let node = 0..nodes;
    prop_oneof![
        4 => (node.clone(), 1..40_u64).prop_map(|(node, more)| Step::Ask { node, more }),
        2 => (node.clone(), 0..10_u64).prop_map(|(node, keep)| Step::GiveBack { node, keep }),
        6 => (node.clone(), 1..12_u64).prop_map(|(node, amount)| Step::Call { node, amount }),
        4 => (node.clone(), 1..30_u64).prop_map(|(node, chunk)| Step::Mark { node, chunk }),
        4 => (node.clone(), 0..4_usize, 0..12_u64).prop_map(|(node, call, used)| Step::End { node, call, used }),
        8 => (0..12_usize, any::<bool>()).prop_map(|(message, again)| Step::Deliver { message, again }),
        1 => (0..12_usize).prop_map(|message| Step::Lose { message }),
        1 => node.clone().prop_map(|node| Step::Crash { node }),
        2 => node.prop_map(|node| Step::Lend { node }),
        1 => (20..120_u64).prop_map(|to| Step::Limit { to }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, ..ProptestConfig::default() })]

    /// Crashes, repeats, losses, another order, limits that fall and rise: P-MONEY, I1 and I2 after every step.
    #[test]
    fn no_random_schedule_overspends(
        (nodes, steps) in (2..8_usize).prop_flat_map(|nodes| (Just(nodes), prop::collection::vec(any_step(nodes), 1..250))),
        overdraft in prop_oneof![Just(0), 1..30_u64],
    ) {
        let mut world = World::new(nodes, 100, overdraft);
        for step in steps {
            world.take(step, Planted::Nothing);
            prop_assert_eq!(world.check(), Ok(()));
        }
    }
}

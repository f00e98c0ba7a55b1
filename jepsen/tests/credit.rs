//! What a life spent on credit is known to the next one of its node before that is lent anything, in virtual time.

#![expect(clippy::unwrap_used, reason = "helpers end the test where something failed")]

use std::sync::Arc;
use std::time::Duration;

use actors::quota::held::{DOUBT_MAX, Demand, Patience};
use actors::quota::shared::known;
use cluster::directory::budget::Unit;
use cluster::ledger::accounts::{Place, UserId};
use cluster::register::{Act, Author, Expected, Kind};
use jepsen::random::Random;
use jepsen::world::simulated::{Life, World};
use tokio::time::{Instant, sleep, timeout};

const SOON: Duration = Duration::from_mins(1);

/// Of an overdraft of nine.
const SPENT: u64 = 5;

/// In some of these a settlement is answered before it is applied where it came from.
const SEEDS: u64 = 40;

async fn made(life: &Life) {
    let spec = r#"{"limit":"4 requests","window":"total","on_no_quorum":"open","overdraft":"9 requests"}"#.to_owned();
    let act = Act::Put { kind: Kind::Budgets, name: "b".to_owned(), spec, expected: Expected::Absent, shape: None };
    let author = Author { who: "operator".to_owned(), node: life.consensus.me(), request_id: String::new() };
    life.consensus.propose(act, author, SOON).await.unwrap();
}

/// Where the budget is spent, as soon as this node knows of it.
async fn place(life: &Life) -> Place {
    loop {
        if let Some(budget) = life.consensus.read(|register| known(register, "b"))
            && let Some(place) = life.escrow.find_now(|places| places.of(&budget, UserId::NOBODY))
        {
            return place;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

async fn spent_on_credit(life: &Life, place: Place) {
    let demands: Arc<[Demand]> = Arc::new([Demand { place, unit: Unit::Requests, amount: SPENT, overdraft: 9 }]);
    let until = (Instant::now() + SOON).into_std();
    let hold = life.escrow.reserve(demands, Patience::all(DOUBT_MAX), until).await.unwrap();
    hold.settle([SPENT]);
}

/// What the next life knows of it, when it first knows anything.
async fn play(seed: u64) -> u64 {
    let mut world = World::new(3, Random::new(seed));
    world.start_all().await;
    while world.leader().is_none() || !world.alive().into_iter().all(|number| world.life(number).unwrap().serves()) {
        sleep(Duration::from_millis(10)).await;
    }
    let cut = (world.leader().unwrap() + 1) % 3;
    made(&world.life(world.leader().unwrap()).unwrap()).await;
    let life = world.life(cut).unwrap();
    let place = place(&life).await;

    // The ledger never hears of this life there.
    let ids: Vec<_> = world.nodes.iter().map(|node| node.id).collect();
    for other in ids.iter().filter(|id| **id != ids[cut]) {
        world.network.block(ids[cut], *other);
        world.network.block(*other, ids[cut]);
    }
    spent_on_credit(&life, place).await;
    assert_eq!(life.debts(place), Some(0), "its own is no other's");
    world.crash(cut, true).await;
    world.network.heal();
    world.start(cut).await;

    let life = world.life(cut).unwrap();
    loop {
        if let Some(debts) = life.debts(place) {
            return debts;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn a_life_is_lent_nothing_before_it_knows_what_the_one_before_it_spent_on_credit() {
    let mut wrong = Vec::new();
    for seed in 0..SEEDS {
        cluster::consensus::types::seed_randomness(seed);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let known = runtime.block_on(async { timeout(SOON * 3, play(seed)).await }).unwrap();
        runtime.shutdown_background();
        if known < SPENT {
            wrong.push((seed, known));
        }
    }
    assert!(wrong.is_empty(), "less than {SPENT} is known with these seeds: {wrong:?}");
}

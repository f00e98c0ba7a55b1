//! Who votes changes when an operator says so, in virtual time.

#![expect(clippy::unwrap_used, reason = "helpers end the test where something failed")]

use std::time::Duration;

use cluster::consensus::{ChangeMember, Consensus};
use cluster::id::NodeId;
use jepsen::random::Random;
use jepsen::world::simulated::World;
use tokio::time::{sleep, timeout};

/// Elections, calls and the ten seconds for which a node must keep up before it votes.
const SOON: Duration = Duration::from_mins(1);

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

fn in_virtual_time(test: impl Future<Output = ()>) {
    cluster::consensus::types::seed_randomness(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test);
    runtime.shutdown_background();
}

/// By what this node knows.
fn votes(consensus: &Consensus, node: NodeId) -> bool {
    consensus.metrics().borrow().membership_config.voter_ids().any(|voter| voter == node)
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let looks = async {
        while !holds() {
            sleep(LOOK_EVERY).await;
        }
    };
    assert!(timeout(SOON, looks).await.is_ok(), "not within {SOON:?}: {what}");
}

/// A node that was to leave and stays after all votes again.
#[test]
fn a_drained_voter_that_stays_after_all_votes_again() {
    in_virtual_time(async {
        let mut world = World::new(3, Random::new(1));
        world.start_all().await;
        let (here, leaving) = (world.life(0).unwrap().consensus, world.nodes[2].id);
        until("three vote", || here.leader().is_some() && votes(&here, leaving)).await;

        here.change_member(&ChangeMember::Drain { node: leaving }, SOON).await.unwrap();
        until("it does not vote any more", || !votes(&here, leaving)).await;
        // For longer than who has kept up waits for a vote.
        sleep(SOON).await;
        assert!(!votes(&here, leaving), "it is still about to leave");

        here.change_member(&ChangeMember::Undrain { node: leaving }, SOON).await.unwrap();
        until("it votes again", || votes(&here, leaving)).await;
    });
}

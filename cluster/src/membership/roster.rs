//! Who is there, from what gossip has heard. Pure: time is an argument.
//!
//! A node is alive while its counter goes on counting. A counter seen for the first time proves nothing: it may be told
//! by somebody who heard it long ago.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::state::{NodeState, OwnState};
use crate::id::NodeId;

/// What gossip knows of one life of a node.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub node: NodeId,
    pub generation: u64,
    pub gossip: SocketAddr,
    /// Counts while the node lives.
    pub beat: u64,
    pub state: OwnState,
}

/// A node and how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub node: NodeId,
    /// What it tells of itself; the last, if it is dead.
    pub told: OwnState,
    /// Where it gossips.
    pub gossip: SocketAddr,
    /// Which life of it; a later one has a larger number. Not the generation it was started with.
    pub generation: u64,
    pub alive: bool,
    /// Since when it is alive, or dead.
    pub since: Instant,
}

impl Member {
    pub fn is_ready(&self) -> bool {
        self.alive && self.told.state == NodeState::Ready
    }
}

/// All that gossip tells of, this node included; of each its newest life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    members: BTreeMap<NodeId, Member>,
}

impl Members {
    pub fn get(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    pub fn alive(&self) -> impl Iterator<Item = &Member> {
        self.iter().filter(|member| member.alive)
    }

    pub fn ready(&self) -> impl Iterator<Item = &Member> {
        self.iter().filter(|member| member.is_ready())
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

/// Remembers when each node was last heard.
#[derive(Debug)]
pub(super) struct Roster {
    own: NodeId,
    dead_after: Duration,
    lives: BTreeMap<NodeId, Life>,
}

#[derive(Debug)]
struct Life {
    generation: u64,
    beat: u64,
    /// When the counter went on last; None until it did.
    heard: Option<Instant>,
    alive: bool,
    since: Instant,
}

impl Roster {
    pub fn new(own: NodeId, dead_after: Duration) -> Self {
        Self { own, dead_after, lives: BTreeMap::new() }
    }

    /// All that gossip knows now. Whom it does not know any more is forgotten.
    pub fn update(&mut self, heard: Vec<Heard>, now: Instant) -> Members {
        let mut newest: BTreeMap<NodeId, Heard> = BTreeMap::new();
        for heard in heard {
            let known = newest.get(&heard.node);
            if known.is_none_or(|known| known.generation < heard.generation) {
                newest.insert(heard.node, heard);
            }
        }
        self.lives.retain(|node, _life| newest.contains_key(node));
        let members = newest.into_iter().map(|(node, heard)| (node, self.member(heard, now)));
        Members { members: members.collect() }
    }

    fn member(&mut self, heard: Heard, now: Instant) -> Member {
        let (node, generation) = (heard.node, heard.generation);
        let life = self.lives.entry(node).or_insert_with(|| Life::new(generation, heard.beat, now));
        if life.generation != generation {
            // That the last life was alive says nothing of this one.
            let since = if life.alive { now } else { life.since };
            *life = Life::new(generation, heard.beat, since);
        }
        if heard.beat > life.beat {
            life.beat = heard.beat;
            life.heard = Some(now);
        }
        let beats = life.heard.is_some_and(|last| now.saturating_duration_since(last) < self.dead_after);
        let alive = node == self.own || (beats && heard.state.state != NodeState::Left);
        if alive != life.alive {
            (life.alive, life.since) = (alive, now);
        }
        Member { node, told: heard.state, gossip: heard.gossip, generation, alive, since: life.since }
    }
}

impl Life {
    fn new(generation: u64, beat: u64, since: Instant) -> Self {
        Self { generation, beat, heard: None, alive: false, since }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const DEAD_AFTER: Duration = Duration::from_millis(1500);

    fn heard(node: u64, generation: u64, beat: u64) -> Heard {
        let gossip = ([127, 0, 0, 1], 1).into();
        let state = OwnState { state: NodeState::Ready, ..OwnState::default() };
        Heard { node: NodeId::new(node), generation, gossip, beat, state }
    }

    fn alive(members: &Members) -> Vec<u64> {
        members.alive().map(|member| member.node.get()).collect()
    }

    fn roster() -> (Roster, Instant) {
        (Roster::new(NodeId::new(1), DEAD_AFTER), clock::now())
    }

    /// A counter that was only ever told once may be that of a node long dead.
    #[test]
    fn a_node_lives_while_its_counter_counts() {
        let (mut roster, start) = roster();
        let at = |millis| start + Duration::from_millis(millis);

        assert_eq!(alive(&roster.update(vec![heard(1, 1, 1), heard(2, 1, 5)], at(0))), [1]);
        assert_eq!(alive(&roster.update(vec![heard(1, 1, 1), heard(2, 1, 6)], at(100))), [1, 2]);
        assert_eq!(alive(&roster.update(vec![heard(1, 1, 1), heard(2, 1, 6)], at(1599))), [1, 2]);
        let members = roster.update(vec![heard(1, 1, 1), heard(2, 1, 6)], at(1600));
        assert_eq!(alive(&members), [1]);
        assert_eq!(members.get(NodeId::new(2)).unwrap().since, at(1600));
        assert_eq!(alive(&roster.update(vec![heard(1, 1, 1), heard(2, 1, 7)], at(9000))), [1, 2]);
    }

    /// What was recorded and is sent again counts backwards.
    #[test]
    fn an_old_counter_wakes_nobody() {
        let (mut roster, start) = roster();
        roster.update(vec![heard(2, 1, 5)], start);
        roster.update(vec![heard(2, 1, 9)], start);
        let later = start + DEAD_AFTER;
        assert_eq!(alive(&roster.update(vec![heard(2, 1, 9)], later)), [0; 0]);

        assert_eq!(alive(&roster.update(vec![heard(2, 1, 7)], later)), [0; 0]);
    }

    #[test]
    fn only_the_newest_life_counts() {
        let (mut roster, now) = roster();
        roster.update(vec![heard(2, 1, 5)], now);
        assert_eq!(alive(&roster.update(vec![heard(2, 1, 6)], now)), [2]);

        let members = roster.update(vec![heard(2, 2, 1), heard(2, 1, 7)], now);
        assert_eq!((members.len(), members.get(NodeId::new(2)).unwrap().generation), (1, 2));
        assert_eq!(alive(&members), [0; 0]);
        assert_eq!(alive(&roster.update(vec![heard(2, 1, 8), heard(2, 2, 2)], now)), [2]);
        assert_eq!(alive(&roster.update(vec![heard(2, 1, 9), heard(2, 2, 2)], now + DEAD_AFTER)), [0; 0]);
    }

    #[test]
    fn who_said_goodbye_is_dead_at_once() {
        let (mut roster, now) = roster();
        roster.update(vec![heard(2, 1, 5)], now);
        assert_eq!(alive(&roster.update(vec![heard(2, 1, 6)], now)), [2]);

        let mut left = heard(2, 1, 7);
        left.state.state = NodeState::Left;
        assert_eq!(alive(&roster.update(vec![left], now)), [0; 0]);
    }

    #[test]
    fn whom_gossip_forgot_is_gone() {
        let (mut roster, now) = roster();
        roster.update(vec![heard(2, 1, 5)], now);

        assert!(roster.update(Vec::new(), now).is_empty());
        assert!(roster.lives.is_empty());
    }
}

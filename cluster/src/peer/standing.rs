//! What this node says of itself in every frame, and which life of each other node it has heard of. Its cluster and
//! incarnation are learnt after the ports are open.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tracing::error;

use super::frame::Header;
use crate::id::{ClusterId, Epoch, Incarnation, NodeId};

/// Nodes whose lives are remembered; a cluster has far fewer. Of one beyond, an earlier life is not told from a later.
const LIVES_MAX: usize = 1024;

/// Shared by client and server.
pub struct Standing {
    now: ArcSwap<Header>,
    newer_self: OnceLock<NewerSelf>,
    lives: Mutex<HashMap<NodeId, Incarnation>>,
}

type NewerSelf = Box<dyn Fn(Incarnation) + Send + Sync>;

impl Standing {
    /// In no cluster and not started.
    pub fn new(node: NodeId) -> Self {
        let now = ArcSwap::from_pointee(Header { node, ..Header::default() });
        Self { now, newer_self: OnceLock::new(), lives: Mutex::default() }
    }

    pub fn get(&self) -> Header {
        **self.now.load()
    }

    pub fn node(&self) -> NodeId {
        self.now.load().node
    }

    pub fn join(&self, cluster: ClusterId, epoch: Epoch) {
        self.now.rcu(|now| Header { cluster, epoch, ..**now });
    }

    /// To be told once `Started` of this life is applied.
    pub fn start(&self, incarnation: Incarnation) {
        self.now.rcu(|now| Header { incarnation, ..**now });
    }

    /// Called when another process speaks as this very node and was started later: this one has to end at once. May be
    /// called many times. The first hook given stays.
    pub fn on_newer_self(&self, hook: impl Fn(Incarnation) + Send + Sync + 'static) {
        if self.newer_self.set(Box::new(hook)).is_err() {
            error!("a second hook for a newer self is ignored");
        }
    }

    /// Looks at who speaks. Tells the newer incarnation where it is ourselves, started later. A process that was not
    /// started yet cannot be the older one.
    pub(super) fn observe(&self, from: &Header) -> Option<Incarnation> {
        let own = self.get();
        let same = from.node == own.node && from.cluster == own.cluster && from.epoch == own.epoch;
        if !same || own.incarnation.is_none() || from.incarnation <= own.incarnation {
            return None;
        }
        self.outdone(from.incarnation);
        Some(from.incarnation)
    }

    /// Another node says that this one was started again since.
    pub(super) fn told_of(&self, newer: Incarnation) {
        let own = self.get().incarnation;
        if !own.is_none() && newer > own {
            self.outdone(newer);
        }
    }

    /// This life of a node has begun: what earlier ones say counts no longer.
    pub fn lives(&self, node: NodeId, incarnation: Incarnation) {
        let mut lives = self.lives.lock();
        if lives.len() < LIVES_MAX || lives.contains_key(&node) {
            let known = lives.entry(node).or_default();
            *known = incarnation.max(*known);
        }
    }

    /// The life of the node after the one that speaks, if there is one: of two processes of one node only the later may
    /// be heard, or both would vote. One that was not started yet is none of them.
    pub(super) fn outlived(&self, from: &Header) -> Option<Incarnation> {
        let own = self.get();
        if from.incarnation.is_none() || from.cluster != own.cluster || from.epoch != own.epoch {
            return None;
        }
        self.lives(from.node, from.incarnation);
        self.lives.lock().get(&from.node).copied().filter(|known| *known > from.incarnation)
    }

    fn outdone(&self, newer: Incarnation) {
        let own = self.get();
        error!(node = %own.node, own = %own.incarnation, %newer, "another process is this node, started later");
        if let Some(hook) = self.newer_self.get() {
            hook(newer);
        }
    }
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Standing").field(&self.get()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// Of two processes of one node the later one lives, and only a started process can be the earlier one.
    #[test]
    fn only_a_later_life_of_this_node_ends_this_process() {
        let standing = Standing::new(NodeId::new(7));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hook = Arc::clone(&heard);
        standing.on_newer_self(move |newer| hook.lock().push(newer));
        let speaks = |node, incarnation| Header {
            node: NodeId::new(node),
            incarnation: Incarnation::new(incarnation),
            ..Header::default()
        };

        assert_eq!(standing.observe(&speaks(7, 9)), None, "not started yet");
        standing.start(Incarnation::new(9));
        assert_eq!(standing.observe(&speaks(7, 8)), None);
        assert_eq!(standing.observe(&speaks(7, 9)), None);
        assert_eq!(standing.observe(&speaks(8, 10)), None, "somebody else");
        assert_eq!(standing.observe(&speaks(7, 10)), Some(Incarnation::new(10)));

        assert_eq!(*heard.lock(), [Incarnation::new(10)]);
    }

    /// Whoever has heard of the later life tells the earlier one, which need not meet it.
    #[test]
    fn an_earlier_life_of_another_node_is_outlived_and_ends_when_told() {
        let standing = Standing::new(NodeId::new(7));
        let speaks = |incarnation| Header {
            node: NodeId::new(8),
            incarnation: Incarnation::new(incarnation),
            ..Header::default()
        };
        assert_eq!(standing.outlived(&speaks(5)), None);
        assert_eq!(standing.outlived(&speaks(9)), None);
        assert_eq!(standing.outlived(&speaks(5)), Some(Incarnation::new(9)));
        assert_eq!(standing.outlived(&speaks(0)), None, "not started yet");
        standing.lives(NodeId::new(8), Incarnation::new(11));
        assert_eq!(standing.outlived(&speaks(9)), Some(Incarnation::new(11)));
        let elsewhere = Header { cluster: ClusterId::new([1; 16]), ..speaks(5) };
        assert_eq!(standing.outlived(&elsewhere), None, "another cluster counts for itself");

        let told = Arc::new(Mutex::new(Vec::new()));
        let hook = Arc::clone(&told);
        standing.on_newer_self(move |newer| hook.lock().push(newer));
        standing.told_of(Incarnation::new(4));
        standing.start(Incarnation::new(4));
        standing.told_of(Incarnation::new(4));
        standing.told_of(Incarnation::new(6));
        assert_eq!(*told.lock(), [Incarnation::new(6)]);
    }
}

//! What this node says of itself in every frame. Its cluster and incarnation are learnt after the ports are open.

use std::fmt;
use std::sync::OnceLock;

use arc_swap::ArcSwap;
use tracing::error;

use super::frame::Header;
use crate::id::{ClusterId, Epoch, Incarnation, NodeId};

/// Shared by client and server.
pub struct Standing {
    now: ArcSwap<Header>,
    newer_self: OnceLock<NewerSelf>,
}

type NewerSelf = Box<dyn Fn(Incarnation) + Send + Sync>;

impl Standing {
    /// In no cluster and not started.
    pub fn new(node: NodeId) -> Self {
        Self { now: ArcSwap::from_pointee(Header { node, ..Header::default() }), newer_self: OnceLock::new() }
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
        error!(node = %own.node, own = %own.incarnation, newer = %from.incarnation, "another process is this node, started later");
        if let Some(hook) = self.newer_self.get() {
            hook(from.incarnation);
        }
        Some(from.incarnation)
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
    use parking_lot::Mutex;
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
}

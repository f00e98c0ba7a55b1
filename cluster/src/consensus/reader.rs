//! Linearizable reads: up to where a leader, confirmed by a quorum, has committed.
//!
//! Questions that arrive while a round runs wait for the next one: their index must be taken after they were asked.

use openraft::error::{CheckIsLeaderError, RaftError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::types::Raft;
use crate::id::NodeId;

/// Questions that wait for one round. A node asks a few times in `stale_max`, and there are at most 64 nodes.
const WAITING_MAX: usize = 1024;

/// Why there is no index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NotRead {
    #[error("another node leads")]
    NotLeader { leader: Option<NodeId> },
    #[error("no quorum confirmed that this node still leads")]
    NoQuorum,
    /// It leads, but has not yet committed an entry of its own life and term: what it knows may be old.
    #[error("this node has only begun to lead")]
    TooSoon,
    #[error("the member is being removed")]
    Leaving,
    /// The leader counts by its own, and would count the asker out too early or too late.
    #[error(
        "the asker would serve for {asker:?} on what it knows, and the leader counts with {leader:?}; give all nodes the same `cluster.stale_max`"
    )]
    StaleMax { asker: std::time::Duration, leader: std::time::Duration },
    #[error("{WAITING_MAX} questions are waiting already")]
    Busy,
    #[error("consensus has stopped on this node")]
    Stopped,
    /// It was removed, or never admitted.
    #[error("the asker is no member")]
    NotMember,
}

/// Why this node is not granted to serve, as long as that is so. It asks many times a second, and says it once.
#[derive(Debug, Default)]
pub(super) struct Refused(Mutex<Option<NotRead>>);

impl Refused {
    /// Notes why; true when that is news.
    pub(super) fn with(&self, why: &NotRead) -> bool {
        self.0.lock().replace(why.clone()).as_ref() != Some(why)
    }

    /// Notes that it is over; true when that is news.
    pub(super) fn over(&self) -> bool {
        self.0.lock().take().is_some()
    }

    pub(super) fn why(&self) -> Option<NotRead> {
        self.0.lock().clone()
    }
}

type Answer = oneshot::Sender<Result<Option<u64>, NotRead>>;

/// Where questions are handed in. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    queue: mpsc::Sender<Answer>,
}

impl Reader {
    /// The handle, and the loop to run.
    pub fn new(raft: Raft) -> (Self, impl Future<Output = ()>) {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        (Self { queue }, run(raft, waiting))
    }

    /// The index that was committed when a quorum confirmed this node's lead, after this call.
    pub async fn read_index(&self) -> Result<Option<u64>, NotRead> {
        let (answer, answered) = oneshot::channel();
        match self.queue.try_send(answer) {
            Ok(()) => answered.await.unwrap_or(Err(NotRead::Stopped)),
            Err(mpsc::error::TrySendError::Full(_)) => Err(NotRead::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(NotRead::Stopped),
        }
    }
}

async fn run(raft: Raft, mut queue: mpsc::Receiver<Answer>) {
    let mut together = Vec::new();
    while queue.recv_many(&mut together, WAITING_MAX).await > 0 {
        let found = match raft.get_read_log_id().await {
            Ok((index, _applied)) => Ok(index.map(|id| id.index)),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward))) => {
                Err(NotRead::NotLeader { leader: forward.leader_id })
            }
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => Err(NotRead::NoQuorum),
            Err(RaftError::Fatal(_)) => Err(NotRead::Stopped),
        };
        for answer in together.drain(..) {
            // Who asked may have given up.
            let _gone = answer.send(found.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// It filled the log, nineteen lines a second.
    #[test]
    fn why_a_node_is_not_granted_to_serve_is_news_once() {
        let refused = Refused::default();
        let why = |leader| NotRead::StaleMax { asker: Duration::from_secs(30), leader: Duration::from_secs(leader) };

        assert_eq!([60, 60, 90, 90, 60].map(|leader| refused.with(&why(leader))), [true, false, true, false, true]);
        assert_eq!(refused.why(), Some(why(60)));

        assert_eq!([refused.over(), refused.over()], [true, false]);
        assert_eq!(refused.why(), None);
        assert!(refused.with(&why(60)), "it begins again");
    }
}

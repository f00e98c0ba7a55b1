//! Commands on their way into the log: gathered while the entry before them is under way, one entry at a time.
//!
//! The fsync of an entry is shared by all that gathered, so the rate of commands does not hang on the disk's latency.

use std::time::Duration;

use metrics::{counter, histogram};
use openraft::error::{ClientWriteError, RaftError};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::debug;

use super::metrics::{BATCH_COMMANDS, PROPOSALS};
use super::types::{Batch, Raft};
use crate::id::NodeId;
use crate::register::{Act, Command, Reply};

/// Commands in one entry.
const BATCH_MAX: usize = 512;

/// Bytes of commands in one entry; a single larger command still gets an entry of its own.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Commands that wait at the leader. More are refused: whoever sent them tries again, or someone else.
const WAITING_MAX: usize = 4096;

/// How long an entry is waited for once this node no longer leads.
const DEPOSED_MAX: Duration = Duration::from_millis(500);

/// What became of a command that was applied.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Accepted {
    /// Log index of its entry.
    pub index: u64,
    pub reply: Reply,
}

/// Why this node did not get a command into the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NotProposed {
    /// Nothing was proposed.
    #[error("another node leads")]
    NotLeader { leader: Option<NodeId> },
    /// It may have been proposed; whether it will be applied is for the next leader to say.
    #[error("this node stopped leading, or stopped, while the command was under way")]
    Deposed { leader: Option<NodeId> },
    /// Nothing was proposed.
    #[error("{WAITING_MAX} commands are waiting already")]
    Busy,
    /// Nothing was proposed.
    #[error("the time for it was over before it could be proposed")]
    TooLate,
    /// Nothing was proposed.
    #[error("the disk is nearly full")]
    NoSpace,
    /// Nothing was proposed.
    #[error("consensus has stopped on this node")]
    Stopped,
    /// It was proposed, and whether it will be applied is for a majority to say.
    #[error("no majority has confirmed the command yet")]
    Undecided,
    /// Nothing was proposed: members that know less could not apply it.
    #[error("the command is of a newer version than a member knows; update every node first")]
    Newer,
    /// Nothing was proposed.
    #[error("no majority of the voters answers the leader")]
    NoQuorum,
}

type Answer = oneshot::Sender<Result<Accepted, NotProposed>>;

struct Waiting {
    command: Command,
    bytes: usize,
    until: Instant,
    answer: Answer,
}

/// Where commands are handed in. Cheap to clone.
#[derive(Clone)]
pub struct Proposer {
    queue: mpsc::Sender<Waiting>,
}

impl Proposer {
    /// The handle, and the loop to run.
    pub fn new(me: NodeId, raft: Raft) -> (Self, impl Future<Output = ()>) {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        (Self { queue }, run(me, raft, waiting))
    }

    /// Proposes at this node, which should lead.
    pub async fn propose(&self, command: Command, until: Instant) -> Result<Accepted, NotProposed> {
        let bytes = weight(&command);
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { command, bytes, until, answer };
        match self.queue.try_send(waiting) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(NotProposed::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(NotProposed::Stopped),
        }
        match tokio::time::timeout_at(until, answered).await {
            Ok(Ok(answer)) => answer,
            // Who had it is gone, perhaps after it was proposed.
            Ok(Err(_gone)) => Err(NotProposed::Deposed { leader: None }),
            // A leader that has lost its followers may go on waiting for them for ever.
            Err(_elapsed) => Err(NotProposed::Undecided),
        }
    }
}

async fn run(me: NodeId, raft: Raft, mut queue: mpsc::Receiver<Waiting>) {
    let mut next = None;
    loop {
        let first = match next.take() {
            Some(first) => first,
            None => match queue.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let (batch, left_over) = gather(first, &mut queue);
        next = left_over;
        if !batch.is_empty() {
            write(me, &raft, batch).await;
        }
    }
}

/// What waits, as much as fits into one entry, without those who have given up.
fn gather(first: Waiting, queue: &mut mpsc::Receiver<Waiting>) -> (Vec<Waiting>, Option<Waiting>) {
    let now = Instant::now();
    let mut batch = Vec::new();
    let mut bytes = 0;
    let mut next = Some(first);
    while let Some(waiting) = next.take() {
        if waiting.answer.is_closed() {
            // Nobody waits for it any more: as if it had never been handed in.
        } else if waiting.until <= now {
            tell(waiting.answer, Err(NotProposed::TooLate));
        } else if !batch.is_empty() && bytes + waiting.bytes > BATCH_BYTES_MAX {
            return (batch, Some(waiting));
        } else {
            bytes += waiting.bytes;
            batch.push(waiting);
        }
        if batch.len() == BATCH_MAX {
            break;
        }
        next = queue.try_recv().ok();
    }
    (batch, None)
}

/// Bytes a command has in the log, about.
fn weight(command: &Command) -> usize {
    const FRAME: usize = 256;
    /// A statement, a roll or a mark.
    const QUOTA_BYTES: usize = 64;
    FRAME
        + match &command.act {
            Act::Put { name, spec, .. } => name.len() + spec.len(),
            Act::ReconcilePart { bytes, .. } => bytes.len(),
            Act::Quota { said, .. } => said.len() * QUOTA_BYTES,
            Act::Roll { rolls } => rolls.len() * QUOTA_BYTES,
            Act::Settle { marks, .. } => marks.len() * QUOTA_BYTES,
            Act::Started { .. }
            | Act::Admit { .. }
            | Act::Remove { .. }
            | Act::Delete { .. }
            | Act::Revoke { .. }
            | Act::SwitchProvider { .. }
            | Act::Tick { .. }
            | Act::Unspent { .. } => 0,
        }
}

async fn write(me: NodeId, raft: &Raft, batch: Vec<Waiting>) {
    let (commands, waiting): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|waiting| (waiting.command, waiting.answer)).unzip();
    #[expect(clippy::cast_precision_loss, reason = "a histogram of small numbers")]
    histogram!(BATCH_COMMANDS).record(commands.len() as f64);
    counter!(PROPOSALS).increment(commands.len() as u64);
    let written = tokio::select! {
        written = raft.client_write(Batch { commands }) => written,
        leader = deposed(me, raft) => return refuse(waiting, &NotProposed::Deposed { leader }),
    };
    match written {
        Ok(done) => {
            let index = done.log_id.index;
            let mut replies = done.data.0.into_iter();
            for answer in waiting {
                let accepted = replies.next().map(|reply| Accepted { index, reply });
                tell(answer, accepted.ok_or(NotProposed::Deposed { leader: None }));
            }
        }
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
            // Openraft says so both before and after it wrote the entry: the careful reading is the second.
            refuse(waiting, &NotProposed::Deposed { leader: forward.leader_id });
        }
        Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(_)) | RaftError::Fatal(_)) => {
            refuse(waiting, &NotProposed::Deposed { leader: None });
        }
    }
}

/// Returns some time after this node stopped leading.
async fn deposed(me: NodeId, raft: &Raft) -> Option<NodeId> {
    let mut metrics = raft.metrics();
    if metrics.wait_for(|metrics| metrics.current_leader != Some(me)).await.is_err() {
        return std::future::pending().await;
    }
    tokio::time::sleep(DEPOSED_MAX).await;
    metrics.borrow().current_leader
}

fn refuse(waiting: Vec<Answer>, why: &NotProposed) {
    debug!(commands = waiting.len(), %why, "commands were not proposed");
    for answer in waiting {
        tell(answer, Err(why.clone()));
    }
}

fn tell(answer: Answer, with: Result<Accepted, NotProposed>) {
    // Who asked may have given up.
    let _gone = answer.send(with);
}

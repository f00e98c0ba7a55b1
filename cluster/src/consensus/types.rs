//! What openraft is told about our types. Nothing outside `consensus` names them.

use std::cell::Cell;
use std::fmt::{self, Display};
use std::io::Cursor;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::async_runtime::TokioOneShotSender;
use rand::RngCore;
use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::register::{Command, Reply};

openraft::declare_raft_types!(
    pub TypeConfig:
        D = Batch,
        R = Replies,
        NodeId = NodeId,
        Node = Place,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = Runtime,
);

pub type Raft = openraft::Raft<TypeConfig>;
pub type LogId = openraft::LogId<NodeId>;
pub type Vote = openraft::Vote<NodeId>;
pub type Entry = openraft::Entry<TypeConfig>;
pub type StorageError = openraft::StorageError<NodeId>;
pub type StoredMembership = openraft::StoredMembership<NodeId, Place>;
pub type Membership = openraft::Membership<NodeId, Place>;
pub type SnapshotMeta = openraft::SnapshotMeta<NodeId, Place>;
pub type Snapshot = openraft::Snapshot<TypeConfig>;
pub type Metrics = openraft::RaftMetrics<NodeId, Place>;

/// What one log entry holds: the commands that gathered while the entry before was under way.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Batch {
    pub commands: Vec<Command>,
}

/// One for each command of a [`Batch`], in its order; none for an entry without commands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Replies(pub Vec<Reply>);

/// Where a member was when it was admitted. Newer addresses come with its gossip and its `Started`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub name: String,
    /// `host:port` of its peer listener.
    pub address: String,
    pub zone: Option<String>,
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.address)
    }
}

/// Tokio, with randomness that a simulation can seed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Runtime;

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on, election timeouts drawn on this thread follow from `seed`.
pub fn seed_randomness(seed: u64) {
    SEED.set(Some(seed));
}

/// Randomness for election timeouts, where quality does not matter: `SplitMix64` (Steele, Lea and Flood 2014).
#[derive(Debug)]
pub struct Randomness {
    state: u64,
    seeded: bool,
}

impl Randomness {
    fn new() -> Self {
        match SEED.get() {
            Some(state) => Self { state, seeded: true },
            // Without randomness of the system the clock must do: it spreads elections well enough.
            None => Self { state: getrandom::u64().unwrap_or_else(|_none| clock_bits()), seeded: false },
        }
    }
}

fn clock_bits() -> u64 {
    u64::try_from(crate::clock::since_boot().as_nanos() & u128::from(u64::MAX)).unwrap_or_default()
}

impl RngCore for Randomness {
    fn next_u32(&mut self) -> u32 {
        u32::try_from(self.next_u64() >> 32).unwrap_or_default()
    }

    fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        if self.seeded {
            SEED.set(Some(self.state));
        }
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let random = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: Send + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = tokio::time::Instant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + Send> = tokio::time::Timeout<T>;
    type ThreadLocalRng = Randomness;
    type OneshotSender<T: Send> = TokioOneShotSender<T>;
    type OneshotReceiver<T: Send> = tokio::sync::oneshot::Receiver<T>;
    type OneshotReceiverError = tokio::sync::oneshot::error::RecvError;

    #[expect(clippy::disallowed_methods, reason = "openraft waits for its own tasks when it is shut down")]
    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        tokio::task::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        tokio::time::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        tokio::time::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        tokio::time::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        tokio::time::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        join_error.is_panic()
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        Randomness::new()
    }

    fn oneshot<T: Send>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        (TokioOneShotSender(sender), receiver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_randomness() {
        let draw = |seed| {
            seed_randomness(seed);
            // Each draw asks for a generator of its own, as openraft does.
            [Runtime::thread_rng().next_u64(), Runtime::thread_rng().next_u64(), Runtime::thread_rng().next_u64()]
        };

        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let [first, second, _] = draw(1);
        assert_ne!(first, second);
    }
}

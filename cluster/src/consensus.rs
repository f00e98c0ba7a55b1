//! What the nodes agree on, in one order: one replicated register, behind openraft.
//!
//! [`Consensus`] is what the rest of the node holds. Any node can propose and read; who does not lead asks the leader.
//! Everything that may be asked twice is: commands carry a token, so the second time changes nothing.

#![expect(clippy::result_large_err, reason = "openraft's errors are as large as they are, and rare")]

pub mod controller;
mod log_store;
pub mod metrics;
mod network;
mod proposer;
mod reader;
mod serve;
mod state_machine;
#[cfg(test)]
mod suite;
pub mod types;
pub mod voters;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::ServerState;
use openraft::error::Fatal;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use storage::cell::Cells;
use storage::log::Log;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

pub use proposer::{Accepted, NotProposed};
pub use reader::NotRead;
pub use serve::{ChangeMember, NotChanged, NotPassed};
pub use state_machine::{Kept, Observer, Progress, Shared};
pub use types::Place;

use self::controller::Controller;
use self::log_store::LogStore;
pub use self::log_store::{StandDownError, stand_down};
use self::network::{Inbound, Network};
use self::proposer::Proposer;
use self::reader::{Reader, Refused};
use self::state_machine::StateMachine;
use self::types::{Metrics, Raft};
use crate::clock::Clock;
use crate::freshness::{Grants, ROUNDS_IN_STALE_MAX};
use crate::id::{Incarnation, NodeId};
use crate::peer::frame::{from_bytes, to_bytes};
use crate::peer::{CallError, Handler, Lane, Service, Transport};
use crate::register::{Act, Author, Command, MemberInfo, Reply, Token};
use crate::tasks::Tasks;

/// Between two tries at whoever leads. Elections take longer, so a few tries fall into one.
const PAUSE: Duration = Duration::from_millis(50);

/// One try at a leader; it may have died without a word.
const TRY_MAX: Duration = Duration::from_secs(3);

/// One call of those that wait at the leader. It goes on waiting when asked again; a server drops who waits longer.
const WAIT_MAX: Duration = Duration::from_secs(20);

const SNAPSHOT_EVERY: u64 = 5_000;

const KEPT_BEHIND: u64 = 1_000;

/// Entries sent to a follower at once.
const PAYLOAD_MAX: u64 = 64;

/// Bytes of a snapshot sent at once; less than a frame holds.
const CHUNK_BYTES: u64 = 1024 * 1024;

/// How long Raft waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
    /// How old what a node serves from may be.
    pub stale_max: Duration,
    /// The largest `stale_max` this node ever counted with: what was granted by it may still run.
    pub stale_held: Duration,
    /// Log entries between two snapshots.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot, so that who is only a little behind needs no snapshot.
    pub kept_behind: u64,
    pub patience: voters::Patience,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(200),
            election_min: Duration::from_millis(600),
            election_max: Duration::from_secs(1),
            stale_max: Duration::from_mins(1),
            stale_held: Duration::ZERO,
            snapshot_every: SNAPSHOT_EVERY,
            kept_behind: KEPT_BEHIND,
            patience: voters::Patience::default(),
        }
    }
}

/// What consensus stands on.
pub struct Ground {
    pub me: NodeId,
    pub log: Log,
    pub cells: Cells,
    pub kept: Kept,
    pub transport: Arc<dyn Transport>,
    pub observer: Box<dyn Observer>,
    /// Up to which entry the node serves by what it applied.
    pub published: watch::Receiver<u64>,
    pub clock: Clock,
    pub timing: Timing,
    pub tasks: Tasks,
}

/// Why consensus did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the replicated state cannot be read back")]
    State(#[source] types::StorageError),
    #[error("consensus cannot start from this data directory")]
    Raft(#[source] Fatal<NodeId>),
    #[error("the timing of elections is unusable")]
    Timing(#[source] openraft::ConfigError),
}

/// The handle. Cheap to clone.
#[derive(Clone)]
pub struct Consensus(Arc<Inner>);

struct Inner {
    me: NodeId,
    raft: Raft,
    shared: Arc<Shared>,
    proposer: Proposer,
    reader: Reader,
    refused: Refused,
    controller: Controller,
    transport: Arc<dyn Transport>,
    published: watch::Receiver<u64>,
    clock: Clock,
    timing: Timing,
    grants: Arc<Grants>,
    tokens: Mutex<Tokens>,
    /// This life, once its `Started` is applied.
    incarnation: watch::Sender<Incarnation>,
    /// Whether the disk has room for more.
    log: Log,
    /// The leader said that this node is no member.
    stranger: AtomicBool,
}

/// Why nothing came of a question to the leader in time.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    #[error("no leader is known")]
    NoLeader,
    #[error("the leader could not be asked")]
    Call(#[source] CallError),
    #[error("the question does not fit into a frame")]
    TooLarge,
}

/// Why a command has no reply.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Certainly not applied.
    #[error("the command was not proposed within {waited:?}")]
    NotProposed {
        waited: Duration,
        #[source]
        cause: NotProposed,
    },
    /// It may still be applied, or may have been.
    #[error("nothing was heard of the command within {waited:?}")]
    Unknown { waited: Duration },
    /// Certainly not applied.
    #[error("no leader could be asked within {waited:?}")]
    NoLeader {
        waited: Duration,
        #[source]
        cause: Unanswered,
    },
}

/// Why this life was not registered.
#[derive(Debug, thiserror::Error)]
pub enum StartedError {
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error("the register refuses this node: {reply}")]
    Refused { reply: String },
}

impl Consensus {
    /// Starts from what the disk has. A node that belongs to no cluster yet waits to be initialised or admitted.
    pub async fn start(ground: Ground) -> Result<Self, StartError> {
        let Ground { me, log, cells, kept, transport, observer, published, clock, timing, tasks } = ground;
        let store = LogStore::new(log.clone(), cells);
        let machine = StateMachine::open(kept, observer).map_err(StartError::State)?;
        let shared = machine.shared();
        let config = Arc::new(config(&timing).validate().map_err(StartError::Timing)?);
        let network = Network::new(Arc::clone(&transport), store.voted());
        let raft = Raft::new(me, config, network, store, machine).await.map_err(StartError::Raft)?;

        let grants = Arc::new(Grants::new(timing.stale_max.max(timing.stale_held)));
        let (proposer, proposing) = Proposer::new(me, raft.clone());
        let (reader, reading) = Reader::new(raft.clone());
        let (controller, controlling) = Controller::new(me, &raft, Arc::clone(&grants), clock.clone(), timing.patience);
        tasks.spawn("proposer", proposing);
        tasks.spawn("linearizable reads", reading);
        tasks.spawn("membership controller", controlling);
        tasks.spawn("leadership", follow_leadership(me, raft.metrics(), Arc::clone(&grants), clock.clone()));

        let incarnation = watch::channel(Incarnation::default()).0;
        let inner = Inner {
            me,
            raft,
            shared,
            proposer,
            reader,
            refused: Refused::default(),
            controller,
            transport,
            published,
            clock,
            timing,
            grants,
            tokens: Mutex::default(),
            incarnation,
            log,
            stranger: AtomicBool::new(false),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// What other nodes may ask of this one.
    pub fn services(&self) -> Vec<(Service, Arc<dyn Handler>)> {
        let mut services = Inbound::services(&self.0.raft);
        services.extend(serve::services(self));
        services
    }

    /// Makes the cluster, with these voters. To be called by exactly one node of them, once; again changes nothing.
    pub async fn initialise(&self, voters: BTreeMap<NodeId, Place>) -> Result<(), Fatal<NodeId>> {
        use openraft::error::{InitializeError, RaftError};
        // Asked first: to be refused is an error in openraft's log, and a founder asks at each of its starts.
        if self.0.raft.is_initialized().await? {
            return Ok(());
        }
        match self.0.raft.initialize(voters).await {
            // Not allowed: the log is not empty, so this was done before.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_) | InitializeError::NotInMembers(_))) => {
                Ok(())
            }
            Err(RaftError::Fatal(fatal)) => Err(fatal),
        }
    }

    /// Whether the leader said, when it was last asked, that this node is no member.
    pub fn is_stranger(&self) -> bool {
        self.0.stranger.load(Ordering::Acquire)
    }

    /// Since 1970, by this node's clock.
    pub fn wall(&self) -> Duration {
        self.0.clock.wall()
    }

    pub fn me(&self) -> NodeId {
        self.0.me
    }

    /// Looks at the register as this node has it; what it blocks is the next commit, so not for long.
    pub fn read<T>(&self, look: impl FnOnce(&crate::register::Register) -> T) -> T {
        self.0.shared.read(look)
    }

    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.0.shared.progress()
    }

    /// What Raft says of itself.
    pub fn metrics(&self) -> watch::Receiver<Metrics> {
        self.0.raft.metrics()
    }

    pub fn controller(&self) -> &Controller {
        &self.0.controller
    }

    pub fn leader(&self) -> Option<NodeId> {
        self.0.raft.metrics().borrow().current_leader
    }

    pub fn incarnation(&self) -> Incarnation {
        *self.0.incarnation.borrow()
    }

    /// Returns once this life is registered, and all that was decided before is applied where that was decided here; never,
    /// if it ends before.
    pub async fn registered(&self) {
        let mut incarnation = self.0.incarnation.subscribe();
        if incarnation.wait_for(|incarnation| incarnation.get() != 0).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Registers this life of the process. Until then the node proposes nothing else, and grants nothing. The same nonce
    /// again is the same life.
    pub async fn started(
        &self,
        nonce: [u8; 16],
        member: MemberInfo,
        author: Author,
        within: Duration,
    ) -> Result<Incarnation, StartedError> {
        let node = self.0.me;
        let wall = self.0.clock.wall();
        let admit = Command::new(author.clone(), wall, Act::Admit { node, member: member.clone() });
        self.submit(admit, within).await?;
        let started = Command::new(author, wall, Act::Started { node, nonce, member });
        match self.submit(started, within).await?.reply {
            Reply::Incarnation(incarnation) => {
                self.0.incarnation.send_replace(incarnation);
                Ok(incarnation)
            }
            other @ (Reply::Done
            | Reply::Put { .. }
            | Reply::Deleted
            | Reply::Revoked { .. }
            | Reply::Staged
            | Reply::Reconciled { .. }
            | Reply::Older { .. }
            | Reply::Unchanged
            | Reply::Conflict { .. }
            | Reply::Told(_)
            | Reply::Refused(_)) => Err(StartedError::Refused { reply: format!("{other:?}") }),
        }
    }

    /// Gets `act` into the log, applied exactly once, wherever the leader is.
    pub async fn propose(&self, act: Act, author: Author, within: Duration) -> Result<Accepted, ProposeError> {
        let (number, token) = self.0.tokens.lock().take(self.incarnation());
        // Also when whoever asked gives up: a number that stays open holds up the floor of all that follow.
        let _open = Open { tokens: &self.0.tokens, number };
        let command = Command::new(author, self.0.clock.wall(), act).with_token(token);
        self.submit(command, within).await
    }

    /// As [`propose`](Self::propose), for what comes to the same when it is applied twice: nothing is remembered of it.
    pub async fn propose_idempotent(&self, act: Act, within: Duration) -> Result<Accepted, ProposeError> {
        let author = Author { node: self.0.me, ..Author::default() };
        self.submit(Command::new(author, self.0.clock.wall(), act), within).await
    }

    async fn submit(&self, command: Command, within: Duration) -> Result<Accepted, ProposeError> {
        let until = Instant::now() + within;
        // A command that was handed to someone may be in a log by now.
        let mut handed_on = false;
        loop {
            let leader = self.known_leader(until).await;
            let outcome = match leader {
                Some(leader) if leader == self.0.me => {
                    // A leader without a quorum may wait for ever; who asked does not.
                    let here = tokio::time::timeout_at(until, self.propose_here(command.clone(), until));
                    Ok(here.await.unwrap_or(Err(NotProposed::Deposed { leader: None })))
                }
                Some(leader) => {
                    let question = (&command, remaining(until));
                    self.call::<_, Result<Accepted, NotProposed>>(leader, Service::PROPOSE, &question, until).await
                }
                None => Err(Unanswered::NoLeader),
            };
            match &outcome {
                Ok(Ok(accepted)) => return Ok(accepted.clone()),
                Ok(Err(NotProposed::Deposed { .. } | NotProposed::Undecided)) => handed_on = true,
                Err(Unanswered::Call(error)) => handed_on |= error.may_have_arrived(),
                Ok(Err(_)) | Err(_) => {}
            }
            debug!(?leader, "a command will be tried again");
            if Instant::now() + PAUSE >= until {
                return Err(match outcome {
                    _any if handed_on => ProposeError::Unknown { waited: within },
                    Ok(Err(cause)) => ProposeError::NotProposed { waited: within, cause },
                    Ok(Ok(_)) => ProposeError::Unknown { waited: within },
                    Err(cause) => ProposeError::NoLeader { waited: within, cause },
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn propose_here(&self, command: Command, until: Instant) -> Result<Accepted, NotProposed> {
        if !self.0.log.has_headroom() {
            return Err(NotProposed::NoSpace);
        }
        if !command.is_known() || !self.all_know(&command) {
            return Err(NotProposed::Newer);
        }
        if self.is_unheard() {
            return Err(NotProposed::NoQuorum);
        }
        self.0.proposer.propose(command, until).await
    }

    /// Whether no majority has answered this leader for so long that another may lead by now. What it would propose could
    /// be applied much later, when whoever asked has long been told that nobody knows.
    fn is_unheard(&self) -> bool {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow();
        let others = metrics.membership_config.voter_ids().any(|voter| voter != self.0.me);
        let silence = metrics.millis_since_quorum_ack.map(Duration::from_millis);
        others && silence.is_some_and(|silence| silence > self.0.timing.election_max * 2)
    }

    /// Whether every member can apply it: one that cannot would have to stop.
    fn all_know(&self, command: &Command) -> bool {
        command.version <= 1
            || self.read(|register| {
                register.members().iter().all(|(_node, member)| member.info.format >= u32::from(command.version))
            })
    }

    /// Returns when every member publishes entry `index`, or serves nothing any more (P-REVOKE).
    pub async fn barrier(&self, index: u64, within: Duration) -> Result<(), Unanswered> {
        let until = Instant::now() + within;
        loop {
            let outcome = match self.known_leader(until).await {
                Some(leader) if leader == self.0.me => Ok(self.pass_here(index, until).await),
                Some(leader) => {
                    let until = until.min(Instant::now() + WAIT_MAX);
                    let question = (index, remaining(until));
                    self.call_long::<_, Result<(), NotPassed>>(leader, Service::BARRIER, &question, until).await
                }
                None => Err(Unanswered::NoLeader),
            };
            if let Ok(Ok(())) = outcome {
                return Ok(());
            }
            if Instant::now() + PAUSE >= until {
                return Err(outcome.err().unwrap_or(Unanswered::NoLeader));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Up to where the cluster had committed after this call was made.
    pub async fn read_index(&self, within: Duration) -> Result<u64, Unanswered> {
        let until = Instant::now() + within;
        loop {
            let outcome = match self.known_leader(until).await {
                Some(leader) if leader == self.0.me => {
                    let here = tokio::time::timeout_at(until, self.read_here(self.0.me, self.0.timing.stale_max));
                    Ok(here.await.unwrap_or(Err(NotRead::NoQuorum)))
                }
                Some(leader) => {
                    let question = self.0.timing.stale_max;
                    self.call::<_, Result<Option<u64>, NotRead>>(leader, Service::READ_INDEX, &question, until).await
                }
                None => Err(Unanswered::NoLeader),
            };
            if let Ok(Err(why @ NotRead::StaleMax { .. })) = &outcome
                && self.0.refused.with(why)
            {
                warn!(%why, "this node is not granted to serve");
            }
            if let Ok(Err(NotRead::NotMember)) = outcome
                && !self.0.stranger.swap(true, Ordering::AcqRel)
            {
                info!("the leader says that this node is no member");
            }
            if let Ok(Ok(index)) = outcome {
                self.0.stranger.store(false, Ordering::Release);
                if self.0.refused.over() {
                    info!("this node is granted to serve again");
                }
                return Ok(index.unwrap_or_default());
            }
            if Instant::now() + PAUSE >= until {
                return Err(outcome.err().unwrap_or(Unanswered::NoLeader));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Why the leader does not grant this node to serve what it knows, while that is so.
    pub fn not_granted(&self) -> Option<NotRead> {
        self.0.refused.why()
    }

    /// Admits, demotes or removes a member. Idempotent.
    pub async fn change_member(&self, change: &ChangeMember, within: Duration) -> Result<(), ChangeError> {
        let until = Instant::now() + within;
        loop {
            let outcome = match self.known_leader(until).await {
                Some(leader) if leader == self.0.me => Ok(self.change_here(change.clone(), until).await),
                Some(leader) => {
                    let until = until.min(Instant::now() + WAIT_MAX);
                    let question = (change, remaining(until), true);
                    self.call_long::<_, Result<(), NotChanged>>(leader, Service::MEMBERSHIP, &question, until).await
                }
                None => Err(Unanswered::NoLeader),
            };
            match outcome {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(refused)) if !refused.may_try_again() => return Err(ChangeError::Refused(refused)),
                Ok(Err(refused)) if Instant::now() + PAUSE >= until => return Err(ChangeError::Refused(refused)),
                Err(cause) if Instant::now() + PAUSE >= until => return Err(ChangeError::Unanswered(cause)),
                Ok(Err(_)) | Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Keeps this node fresh, and says until when it is, by the node's clock.
    pub async fn keep_fresh(self, tell: impl Fn(Duration) + Send) {
        let round = self.0.timing.stale_max / ROUNDS_IN_STALE_MAX;
        let mut published = self.0.published.clone();
        loop {
            let (sent, started) = (self.0.clock.now(), Instant::now());
            let until = started + self.0.timing.stale_max / 2;
            let fresh = match self.read_index(round.min(TRY_MAX).max(PAUSE * 2)).await {
                Ok(index) => {
                    let waited = tokio::time::timeout_at(until, published.wait_for(|known| *known >= index)).await;
                    matches!(waited, Ok(Ok(_)))
                }
                Err(_unanswered) => false,
            };
            if fresh {
                tell(sent + self.0.timing.stale_max);
                tokio::time::sleep_until(started + round).await;
            } else {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Returns when Raft has ended on this node although nobody stopped it, and says why: there was no room for its log,
    /// for one. The node can follow its cluster no longer, and must start again.
    pub async fn ended(&self) -> String {
        let mut metrics = self.0.raft.metrics();
        loop {
            let fatal = metrics.borrow_and_update().running_state.clone().err();
            match fatal {
                Some(Fatal::Stopped) => return std::future::pending().await,
                Some(fatal) => return fatal.to_string(),
                None if metrics.changed().await.is_err() => return std::future::pending().await,
                None => {}
            }
        }
    }

    /// Ends Raft on this node. Its tasks end with the node's.
    pub async fn stop(&self) {
        if self.0.raft.shutdown().await.is_err() {
            info!("consensus ended with a panic of its own");
        }
    }

    /// Returns when a quorum confirms that this node leads; after a restart it may think so without.
    pub async fn leads_for_sure(&self) {
        let mut metrics = self.0.raft.metrics();
        loop {
            let leads = metrics.wait_for(|metrics| metrics.state == ServerState::Leader);
            if leads.await.is_err() {
                return std::future::pending().await;
            }
            if self.0.reader.read_index().await.is_ok() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks whoever lives at `address` to let this node in.
    pub async fn knock(&self, address: &str, place: Place, within: Duration) -> Result<(), ChangeError> {
        let change = ChangeMember::Admit { node: self.0.me, place };
        let asked = async {
            let body = to_bytes(&(change, within, false)).map_err(|_too_large| Unanswered::TooLarge)?;
            let called = self.0.transport.call_address(address, Service::MEMBERSHIP, body, within).await;
            let (_node, answer) = called.map_err(Unanswered::Call)?;
            from_bytes::<Result<(), NotChanged>>(&answer).map_err(|error| Unanswered::Call(error.into()))
        };
        asked.await.map_err(ChangeError::Unanswered)?.map_err(ChangeError::Refused)
    }

    /// Waits for a leader to be known, but no longer than [`PAUSE`] at a time.
    async fn known_leader(&self, until: Instant) -> Option<NodeId> {
        let mut metrics = self.0.raft.metrics();
        let wait = metrics.wait_for(|metrics| metrics.current_leader.is_some());
        let found = tokio::time::timeout_at(until.min(Instant::now() + PAUSE), wait).await;
        found.ok()?.ok()?.current_leader
    }

    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        leader: NodeId,
        service: Service,
        question: &Q,
        until: Instant,
    ) -> Result<A, Unanswered> {
        self.call_long(leader, service, question, until.min(Instant::now() + TRY_MAX)).await
    }

    async fn call_long<Q: Serialize, A: DeserializeOwned>(
        &self,
        leader: NodeId,
        service: Service,
        question: &Q,
        until: Instant,
    ) -> Result<A, Unanswered> {
        let body: Bytes = to_bytes(question).map_err(|_too_large| Unanswered::TooLarge)?;
        let answer = self.0.transport.call(leader, Lane::Bodies, service, body, remaining(until)).await;
        let answer = answer.map_err(Unanswered::Call)?;
        from_bytes(&answer).map_err(|error| Unanswered::Call(error.into()))
    }
}

/// What a member is to consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaftRole {
    Leader,
    Candidate,
    Follower,
    Learner,
}

impl RaftRole {
    pub fn of(metrics: &Metrics) -> Self {
        match metrics.state {
            ServerState::Leader => Self::Leader,
            ServerState::Candidate => Self::Candidate,
            ServerState::Follower => Self::Follower,
            ServerState::Learner | ServerState::Shutdown => Self::Learner,
        }
    }
}

/// Why the members stayed as they were.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Refused(NotChanged),
    #[error("nobody could be asked")]
    Unanswered(#[source] Unanswered),
}

fn remaining(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

fn config(timing: &Timing) -> openraft::Config {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: "llm-edge-agent".to_owned(),
        heartbeat_interval: milliseconds(timing.heartbeat),
        election_timeout_min: milliseconds(timing.election_min),
        election_timeout_max: milliseconds(timing.election_max),
        install_snapshot_timeout: 10_000,
        max_payload_entries: PAYLOAD_MAX,
        replication_lag_threshold: timing.snapshot_every,
        snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(timing.snapshot_every),
        snapshot_max_chunk_size: CHUNK_BYTES,
        max_in_snapshot_log_to_keep: timing.kept_behind,
        purge_batch_size: 256,
        ..openraft::Config::default()
    }
}

/// Tells the grants when this node leads and when not.
async fn follow_leadership(me: NodeId, mut raft: watch::Receiver<Metrics>, grants: Arc<Grants>, clock: Clock) {
    let mut known = None;
    loop {
        let now = {
            let metrics = raft.borrow_and_update();
            let leads = metrics.state == ServerState::Leader && metrics.current_leader == Some(me);
            grants.leads(leads.then_some(metrics.current_term), clock.now());
            show(&metrics, me);
            (metrics.current_leader, metrics.current_term)
        };
        if known != Some(now) && now.0.is_some() {
            ::metrics::counter!(metrics::ELECTIONS).increment(1);
            info!(leader = ?now.0.map(|node| node.to_string()), term = now.1, "a leader is known");
            known = Some(now);
        }
        if raft.changed().await.is_err() {
            return grants.leads(None, clock.now());
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
fn show(raft: &Metrics, me: NodeId) {
    let applied = raft.last_applied.map_or(0, |id| id.index);
    ::metrics::gauge!(metrics::TERM).set(raft.current_term as f64);
    ::metrics::gauge!(metrics::LEADS).set(if raft.current_leader == Some(me) { 1.0 } else { 0.0 });
    ::metrics::gauge!(metrics::APPLIED).set(applied as f64);
    ::metrics::gauge!(metrics::LAG).set(raft.last_log_index.unwrap_or_default().saturating_sub(applied) as f64);
    ::metrics::gauge!(metrics::VOTERS).set(raft.membership_config.voter_ids().count() as f64);
}

/// Numbers for commands under way, so that one that arrives twice is applied once.
#[derive(Default)]
struct Tokens {
    next: u64,
    open: std::collections::BTreeSet<u64>,
}

/// A number under way; dropped, it is done.
struct Open<'a> {
    tokens: &'a Mutex<Tokens>,
    number: u64,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.tokens.lock().done(self.number);
    }
}

impl Tokens {
    fn take(&mut self, incarnation: Incarnation) -> (u64, Token) {
        self.next += 1;
        self.open.insert(self.next);
        let floor = self.open.first().copied().unwrap_or(self.next);
        (self.next, Token { incarnation: incarnation.get(), seq: self.next, floor })
    }

    fn done(&mut self, number: u64) {
        self.open.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever hangs up must not hold up the floor: else every later command of this life is refused in the end.
    #[test]
    fn a_number_is_done_also_when_its_command_is_given_up() {
        let tokens = Mutex::new(Tokens::default());
        let (first, _) = tokens.lock().take(Incarnation::new(1));
        let (second, token) = tokens.lock().take(Incarnation::new(1));
        assert_eq!(token.floor, first);

        drop(Open { tokens: &tokens, number: first });
        drop(Open { tokens: &tokens, number: second });

        let (third, token) = tokens.lock().take(Incarnation::new(1));
        assert_eq!(token.floor, third);
    }
}

//! Who is there and how they are, told by gossip.
//!
//! Owns       one UDP port and chitchat on it. Datagrams are sealed with a key of the cluster's secret.
//! Told by    whoever knows something of this node: [`Membership::set`].
//! Publishes  [`Members`] as a `watch`. Nothing in it is a promise: a node that is said to be dead may live, and the
//!            other way round. Who replays the datagrams of a dead node can make one that never heard of it
//!            believe it alive for a moment; one that knew it goes by the counters it has seen.
//! Restarts   gossip alone, within the process, should it ever end; what the others told is heard again.

mod datagram;
pub mod metrics;
mod roster;
mod socket;
mod state;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::metrics::{counter, gauge};
use chitchat::{Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, ProtocolVersion};
use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, error, warn};

use datagram::Bound;
use metrics::{MEMBERS, RESTARTS};
use roster::{Heard, Roster};
use socket::Sealed;

pub use roster::{Member, Members};
pub use state::{ADDRESS_MAX, MARKS_MAX, NAME_MAX, NodeState, OwnState, STATE_MAX, StateError, VERSION_MAX};

use crate::clock;
use crate::id::{ClusterId, Epoch, NodeId};
use crate::peer::client::resolve;
use crate::peer::trust::LiveTrust;
use crate::tasks::Tasks;

/// Intervals without a word after which a node is dead. A word takes two or three to reach everyone.
const SILENT_MAX: u32 = 6;

/// Names among the seeds are looked up again after so long, and a look-up may take so long.
const RESOLVE_EVERY: Duration = Duration::from_secs(5);
const RESOLVE_MAX: Duration = Duration::from_secs(2);

/// Before gossip that ended is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// Lives of chitchat that fit into one generation of the process.
const LIVES_MAX: u64 = 256;

/// Where a node gossips and as whom.
#[derive(Clone, Debug)]
pub struct MembershipConfig {
    pub node: NodeId,
    pub cluster: ClusterId,
    pub epoch: Epoch,
    /// Larger than that of every earlier process of this node: at least one more than the last, which the caller keeps
    /// on disk, and at least the milliseconds since 1970, should the disk have been lost.
    pub generation: u64,
    /// Where others reach the port. None: the address it is bound to, which must then be one that others can use.
    pub advertise: Option<SocketAddr>,
    /// `host:port` of the gossip ports of some others.
    pub seeds: Vec<String>,
    pub interval: Duration,
    /// A dead node is still told of for so long.
    pub forget_after: Duration,
}

impl MembershipConfig {
    pub fn new(node: NodeId, cluster: ClusterId, epoch: Epoch, generation: u64) -> Self {
        Self {
            node,
            cluster,
            epoch,
            generation,
            advertise: None,
            seeds: Vec::new(),
            interval: Duration::from_millis(250),
            forget_after: Duration::from_mins(10),
        }
    }
}

/// This node's part in gossip. Cheap to clone.
#[derive(Clone)]
pub struct Membership {
    shared: Arc<Shared>,
    members: watch::Receiver<Arc<Members>>,
}

struct Shared {
    config: MembershipConfig,
    advertise: SocketAddr,
    own: Mutex<OwnState>,
    /// The own state changed.
    changed: Notify,
    seeds: watch::Sender<Vec<String>>,
    members: watch::Sender<Arc<Members>>,
    dropped: Arc<AtomicU64>,
    tasks: Tasks,
}

impl Membership {
    /// `socket` is bound already, so that whoever asks for a free port knows it beforehand.
    pub fn start(
        socket: UdpSocket,
        trust: LiveTrust,
        config: MembershipConfig,
        own: OwnState,
        tasks: &Tasks,
    ) -> Result<Self, MembershipError> {
        own.check().map_err(MembershipError::State)?;
        let bound_to = socket.local_addr().map_err(MembershipError::Socket)?;
        let advertise = config.advertise.unwrap_or(bound_to);
        if advertise.ip().is_unspecified() {
            return Err(MembershipError::Advertise { address: advertise });
        }
        let sealed = Sealed::new(socket, trust, Bound::to(config.cluster, config.epoch));
        let dropped = sealed.dropped();
        let (publish, members) = watch::channel(Arc::default());
        let shared = Arc::new(Shared {
            seeds: watch::channel(config.seeds.clone()).0,
            config,
            advertise,
            own: Mutex::new(own),
            changed: Notify::new(),
            members: publish,
            dropped,
            tasks: tasks.part(),
        });
        shared.tasks.spawn("gossip", run(Arc::clone(&shared), sealed));
        Ok(Self { shared, members })
    }

    /// Where others reach this node's gossip.
    pub fn address(&self) -> SocketAddr {
        self.shared.advertise
    }

    pub fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.clone()
    }

    /// Changes what this node tells. What would not fit is refused, and the old state stays.
    pub fn set(&self, change: impl FnOnce(&mut OwnState)) -> Result<(), StateError> {
        let mut own = self.shared.own.lock();
        let mut next = own.clone();
        change(&mut next);
        next.check()?;
        if next != *own {
            *own = next;
            self.shared.changed.notify_one();
        }
        Ok(())
    }

    pub fn own(&self) -> OwnState {
        self.shared.own.lock().clone()
    }

    /// Messages that came or should have gone and were dropped, since the start.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Others to begin with, in place of the ones given before.
    pub fn set_seeds(&self, seeds: Vec<String>) {
        self.shared.seeds.send_replace(seeds);
    }

    /// Says goodbye, so that nobody has to find out, and ends.
    pub async fn leave(self) {
        {
            self.shared.own.lock().state = NodeState::Left;
            self.shared.changed.notify_one();
        }
        // Told to three others in each interval, and by them to the rest.
        sleep(self.shared.config.interval * 2).await;
        self.shared.tasks.stop();
    }
}

/// Why gossip does not start.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    #[error(transparent)]
    State(StateError),

    #[error("the gossip port cannot be used: {0}")]
    Socket(#[source] std::io::Error),

    #[error("the gossip port is bound to {address}, where nobody can reach it: an address to advertise is needed")]
    Advertise { address: SocketAddr },
}

/// Ends with its tasks only.
async fn run(shared: Arc<Shared>, sealed: Sealed) {
    let mut roster = Roster::new(shared.config.node, shared.config.interval * SILENT_MAX);
    for life in 0.. {
        match chitchat::spawn_chitchat(shared.chitchat(life), shared.texts(), &sealed).await {
            Ok(handle) => {
                let ended = handle.termination_watcher();
                tokio::select! {
                    ended = ended => error!(?ended, "gossip ended and is started again"),
                    () = shared.publish(&handle, &mut roster) => {}
                    () = shared.seek(&handle) => {}
                }
                handle.abort();
            }
            Err(cause) => error!(%cause, "gossip cannot start and tries again"),
        }
        counter!(RESTARTS).increment(1);
        sleep(RESTART_PAUSE).await;
    }
}

impl Shared {
    fn chitchat(&self, life: u64) -> ChitchatConfig {
        let MembershipConfig { node, generation, interval, forget_after, .. } = &self.config;
        let generation_id = first_life_of(*generation).saturating_add(life).min(last_life_of(*generation));
        ChitchatConfig {
            chitchat_id: ChitchatId::new(node.to_string(), generation_id, self.advertise),
            // Datagrams of another cluster do not open.
            cluster_id: String::new(),
            gossip_interval: *interval,
            listen_addr: self.advertise,
            // Seeds are looked after by `seek`, more often.
            seed_nodes: Vec::new(),
            // Whom chitchat believes alive decides whom it gossips with; who is published, `Roster` decides.
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: 8.0,
                sampling_window_size: 100,
                max_interval: *interval * 10,
                initial_interval: *interval,
                dead_node_grace_period: *forget_after,
            },
            marked_for_deletion_grace_period: *forget_after,
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V1,
        }
    }

    fn texts(&self) -> Vec<(String, String)> {
        self.own.lock().texts().into_iter().map(|(key, text)| (key.to_owned(), text)).collect()
    }

    /// Hands chitchat what this node tells, and the others what it heard.
    async fn publish(&self, handle: &ChitchatHandle, roster: &mut Roster) {
        let mut tick = interval(self.config.interval / 2);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut outdone = false;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.changed.notified() => {}
            }
            let texts = self.texts();
            let heard = handle.with_chitchat(|chitchat| {
                for (key, text) in &texts {
                    chitchat.self_node_state().set(key, text);
                }
                hear(chitchat)
            });
            let heard = heard.await;
            let last_own = last_life_of(self.config.generation);
            let newer = |heard: &Heard| heard.node == self.config.node && heard.generation > last_own;
            if !outdone && heard.iter().any(newer) {
                outdone = true;
                error!(node = %self.config.node, "another process gossips as this node, started later");
            }
            self.announce(roster.update(heard, clock::now()));
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a cluster has at most 64 nodes")]
    fn announce(&self, members: Members) {
        let alive = members.alive().count();
        gauge!(MEMBERS, "state" => "alive").set(alive as f64);
        gauge!(MEMBERS, "state" => "dead").set((members.len() - alive) as f64);
        self.members.send_if_modified(|published| {
            let changed = **published != members;
            if changed {
                *published = Arc::new(members);
            }
            changed
        });
    }

    /// Gossips with seeds that are no living members, so that a part that was cut off is found again.
    async fn seek(&self, handle: &ChitchatHandle) {
        let mut seeds = self.seeds.subscribe();
        let mut tick = interval(self.config.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut resolved = None;
        loop {
            tick.tick().await;
            let names = seeds.borrow_and_update().clone();
            let due = |(at, of, _): &(_, Vec<String>, _)| clock::now() >= *at + RESOLVE_EVERY || *of != names;
            if resolved.as_ref().is_none_or(due) {
                let addresses = resolve_all(&names).await;
                resolved = Some((clock::now(), names, addresses));
            }
            let living: BTreeSet<SocketAddr> = self.members.borrow().alive().map(|member| member.gossip).collect();
            let addresses = resolved.iter().flat_map(|(_, _, addresses)| addresses);
            for address in addresses.filter(|address| !living.contains(address) && **address != self.advertise) {
                if let Err(cause) = handle.gossip(*address) {
                    debug!(%cause, "gossip has ended");
                }
            }
        }
    }
}

const fn first_life_of(generation: u64) -> u64 {
    generation.saturating_mul(LIVES_MAX)
}

const fn last_life_of(generation: u64) -> u64 {
    first_life_of(generation).saturating_add(LIVES_MAX - 1)
}

async fn resolve_all(names: &[String]) -> BTreeSet<SocketAddr> {
    let mut addresses = BTreeSet::new();
    for name in names {
        match timeout(RESOLVE_MAX, resolve(name)).await {
            Ok(Ok(found)) => addresses.extend(found),
            Ok(Err(cause)) => warn!(%name, %cause, "a seed cannot be looked up"),
            Err(_elapsed) => warn!(%name, "a seed cannot be looked up in time"),
        }
    }
    addresses
}

/// All lives of all nodes that chitchat knows; whose id is none of ours is left out.
fn hear(chitchat: &Chitchat) -> Vec<Heard> {
    let nodes = chitchat.node_states().iter().filter_map(|(id, state)| {
        Some(Heard {
            node: id.node_id.parse().ok()?,
            generation: id.generation_id,
            gossip: id.gossip_advertise_addr,
            beat: state.heartbeat().into(),
            state: OwnState::read(|key| state.get(key)),
        })
    });
    nodes.collect()
}

#[cfg(test)]
#[path = "membership/tests.rs"]
mod tests;

//! This node as a member: from a data directory and a secret to a life in a cluster that serves.
//!
//! ```text
//! open      data directory, identity, log → consensus runs, peers may call; nothing is known of a cluster
//! belong    find or found a cluster → be admitted → register this life → bring in what the file declares
//! serve     publish what the register says, keep fresh, gossip; the gate opens while all that holds
//! ```
//! A node that is alone goes the same way with nobody to ask, and is its own quorum.

#![expect(clippy::result_large_err, reason = "an error that ends the start is as large as it is, and rare")]

mod budget_metrics;
pub mod budgets;
mod control;
mod files;
mod first_key;
mod forget;
mod gossip;
mod pace;
mod publish;
mod rates;
mod reconcile;
mod secrets;
mod slots;
mod status;

pub use control::MemberControl;
pub use files::{FileError, FileOutcome};
pub use forget::{ForgetError, forget_promise};
pub use publish::Publisher;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actors::gate::Gate;
use actors::ingress::pipeline::Gateway;
use arc_swap::ArcSwap;
use cluster::bootstrap::{Bootstrap, BootstrapError, Found, Introduction};
use cluster::clock::{self, Clock};
use cluster::consensus::{self, Consensus, Ground, Kept, Observer, Place, StartedError, Timing};
use cluster::directory::key::KeyHash;
use cluster::id::{Incarnation, NodeId, NodeKey};
use cluster::marks::{Marks, MarksError};
use cluster::membership::Membership;
use cluster::peer::client::{AddressBook, ClientLimits, PeerClient};
use cluster::peer::nobody::Nobody;
use cluster::peer::server::{Handlers, PeerServer, Policy, ServerLimits};
use cluster::peer::standing::Standing;
use cluster::peer::trust::{ClusterSecret, LiveTrust, OwnPki, SecretError, Trust, TrustError};
use cluster::peer::{Service, Transport};
use cluster::register::{Author, COMMAND_VERSION, MemberInfo, Register};
use cluster::tasks::Tasks;
use parking_lot::Mutex;
use storage::database::{Copies, DataDir, OpenError};
use storage::fatal;
use storage::log::LogOptions;
use storage::trail::Trail;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use pace::Pace;
use rates::Rates;
use slots::Slots;

use crate::config::load::Loaded;
use crate::config::reload::describe;

/// For one try to register this life; elections and full disks are waited out by trying again.
const STARTED_WITHIN: Duration = Duration::from_secs(10);

/// For one try to be admitted at one address.
const KNOCK_WITHIN: Duration = Duration::from_secs(5);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// Between two tries to bring in a file that contradicts the cluster's. A reload tries at once.
const FILE_PAUSE: Duration = Duration::from_secs(2);

/// How long tasks of the cluster rooms may take to end.
const STOP_MAX: Duration = Duration::from_secs(5);

const NODE_KEY: &str = "node-key";
const GENERATION: &str = "generation";
const STALE_HELD: &str = "stale-held";

/// Cheap to clone.
#[derive(Clone)]
pub struct Member(Arc<Inner>);

struct Inner {
    consensus: Consensus,
    bootstrap: Bootstrap,
    transport: Arc<dyn Transport>,
    standing: Arc<Standing>,
    book: AddressBook,
    trust: Option<LiveTrust>,
    gossip: OnceLock<Membership>,
    /// Taken when gossip begins.
    gossip_socket: parking_lot::Mutex<Option<UdpSocket>>,
    trail: Arc<Trail>,
    phase: watch::Sender<Phase>,
    published: watch::Sender<u64>,
    marks: Marks,
    /// The directory may be a copy of another's.
    adopted: bool,
    rates: Arc<Rates>,
    slots: Arc<Slots>,
    pace: Arc<Pace>,
    /// Nanoseconds since boot; 0 before the first time.
    fresh_until: AtomicU64,
    timing: Timing,
    introduction: Introduction,
    loaded: Arc<ArcSwap<Loaded>>,
    reloaded: Notify,
    /// Told to leave by an operator elsewhere.
    leave: Notify,
    watching: Watching,
    tasks: Tasks,
    peer_address: Option<SocketAddr>,
    /// Last, so that it is locked until all else has ended.
    data: DataDir,
}

/// How far a node has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Looks for a cluster, and what for it waits.
    Looking(String),
    /// Knows its cluster and asks to be let in.
    Joining,
    /// Registers this life of its process.
    Starting,
    /// Brings in what its file declares, and what is in the way.
    Declaring(Option<String>),
    Member,
}

impl Phase {
    /// What is waited for; `None` when nothing is.
    pub fn waits_for(&self) -> Option<String> {
        match self {
            Self::Looking(what) => Some(what.clone()),
            Self::Joining => Some("to be admitted by the cluster's leader".to_owned()),
            Self::Starting => {
                Some("the cluster to take note of this start; that needs a majority of voters".to_owned())
            }
            Self::Declaring(Some(why)) => Some(why.clone()),
            Self::Declaring(None) => Some("what the configuration file declares to be in force".to_owned()),
            Self::Member => None,
        }
    }
}

/// Why a node cannot even begin to be a member.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    #[error(transparent)]
    Data(#[from] OpenError),
    #[error("the log in the data directory does not open")]
    Log(#[from] storage::log::LogOpenError),
    #[error("the trail in the data directory does not open")]
    Trail(#[from] storage::trail::TrailOpenError),
    #[error("how far budgets were spent cannot be read from the data directory")]
    Marks(#[source] MarksError),
    #[error("how far budgets may be spent cannot be written to the data directory")]
    Unmarked(#[source] storage::log::Failed),
    #[error("the snapshots in the data directory do not open")]
    Snapshots(#[source] std::io::Error),
    #[error("a value in the data directory cannot be used")]
    Cell(#[from] storage::cell::CellError),
    #[error("this node's identity cannot be used")]
    Identity(#[source] cluster::id::IdError),
    #[error("`cluster.secret` cannot be used")]
    Secret(#[source] SecretError),
    #[error("certificates between nodes cannot be set up")]
    Trust(#[source] TrustError),
    #[error("`{}` of `cluster.tls` cannot be read", path.display())]
    Pki {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("cannot listen on {address} for other nodes ({setting}); is another process using it?")]
    Listen {
        setting: &'static str,
        address: SocketAddr,
        #[source]
        cause: std::io::Error,
    },
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    #[error(transparent)]
    Vote(#[from] consensus::StandDownError),
    #[error("consensus does not start")]
    Consensus(#[from] consensus::StartError),
    #[error("the file's resources cannot be put in force")]
    File(#[from] FileError),
    #[error("this start could not be registered")]
    Started(#[source] StartedError),
    #[error("the system gives no randomness")]
    Randomness(#[source] getrandom::Error),
}

/// Watches what is applied, on the thread that applies it. Cheap to clone.
#[derive(Clone)]
struct Watching(Arc<Watched>);

struct Watched {
    me: NodeId,
    standing: Arc<Standing>,
    incarnation: AtomicU64,
    gateway: OnceLock<Arc<Gateway>>,
    /// Keys whose requests end now, and end once more when it is published here that they are revoked: a request that looks
    /// its key up between the two hears of it, too.
    cut: Mutex<Vec<KeyHash>>,
}

impl Observer for Watching {
    fn applied(&self, _index: u64, register: &Register) {
        for (node, member) in register.members().iter() {
            self.0.standing.lives(node, member.incarnation);
        }
        let own = self.0.incarnation.load(Ordering::Acquire);
        let known = register.members().get(self.0.me).map_or(0, |member| member.incarnation.get());
        if own != 0 && known > own {
            end_as_old_self(Incarnation::new(known));
        }
    }

    fn cut(&self, key: KeyHash) {
        self.0.cut.lock().push(key);
        if let Some(gateway) = self.0.gateway.get() {
            gateway.cuts.cut(key);
        }
    }
}

/// Of two processes that are one node, the one that was started first ends at once: both would vote, and spend.
fn end_as_old_self(newer: Incarnation) -> ! {
    fatal::abort(&format!("this node was started elsewhere as incarnation {newer}, so this process must not go on"))
}

impl Member {
    /// Opens the data directory and starts consensus and the peer port. Knows no cluster yet, unless the disk does.
    pub async fn open(loaded: &Arc<ArcSwap<Loaded>>, adopt: bool) -> Result<Self, MemberError> {
        let config = loaded.load_full();
        let data = open_data(config.config.node.data_dir.clone(), adopt).await?;
        let key = node_key(&data)?;
        let me = key.node_id();
        if adopt {
            consensus::stand_down(&data.cells(), me)?;
        }
        let shared = config.config.cluster.is_shared();
        let tasks = Tasks::new();
        let standing = Arc::new(Standing::new(me));
        standing.on_newer_self(|newer| end_as_old_self(newer));
        let book = AddressBook::new();
        let trust = if shared { Some(trust(&config, &key)?.live()) } else { None };
        let transport = transport(trust.as_ref(), &standing, &book, &tasks);
        let sockets = if shared { Some(Sockets::bind(&config).await?) } else { None };
        let introduction = introduction(&config, me, sockets.as_ref());
        let bootstrap = Bootstrap::open(introduction.clone(), data.cells())?;
        let trail = Arc::new(data.open_trail()?);
        let marks = budgets::open_marks(&data, adopt).await?;
        let watching = Watching(Arc::new(Watched {
            me,
            standing: Arc::clone(&standing),
            incarnation: AtomicU64::new(0),
            gateway: OnceLock::new(),
            cut: Mutex::default(),
        }));
        let timing = Timing { stale_held: stale_held(&data, config.config.cluster.stale_max)?, ..timing(&config) };
        let (published, in_force) = watch::channel(0);
        let observer = Box::new(watching.clone());
        let ground = ground(&data, me, &transport, observer, in_force, timing, &tasks, &trail)?;
        let consensus = Consensus::start(ground).await?;
        let (peer_listener, gossip_socket) = sockets.map(|sockets| (sockets.peer, sockets.gossip)).unzip();
        let mut inner = Inner {
            consensus,
            bootstrap,
            transport,
            standing,
            book,
            trust,
            gossip: OnceLock::new(),
            gossip_socket: parking_lot::Mutex::new(gossip_socket),
            trail,
            phase: watch::channel(Phase::Looking("other nodes".to_owned())).0,
            published,
            fresh_until: AtomicU64::new(0),
            timing,
            marks,
            adopted: adopt,
            rates: Arc::new(Rates::new(me).map_err(MemberError::Randomness)?),
            pace: Arc::new(Pace::new()),
            slots: Arc::new(Slots::new().map_err(MemberError::Randomness)?),
            introduction,
            loaded: Arc::clone(loaded),
            reloaded: Notify::new(),
            leave: Notify::new(),
            watching,
            tasks,
            peer_address: None,
            data,
        };
        if let Some(listener) = &peer_listener {
            inner.peer_address = listener.local_addr().ok();
        }
        let member = Self(Arc::new(inner));
        if let Some(listener) = peer_listener {
            member.serve_peers(listener)?;
        }
        Ok(member)
    }

    /// Whether there are others, or may be.
    pub fn is_shared(&self) -> bool {
        self.0.trust.is_some()
    }

    pub fn consensus(&self) -> &Consensus {
        &self.0.consensus
    }

    pub fn phase(&self) -> Phase {
        self.0.phase.borrow().clone()
    }

    /// What is in the way of serving; `None` when nothing is.
    pub fn waits_for(&self) -> Option<String> {
        let phase = self.phase();
        if phase == Phase::Member && self.0.consensus.is_stranger() {
            return Some("its end, or a start anew: it was removed from its cluster".to_owned());
        }
        phase.waits_for()
    }

    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.0.peer_address
    }

    pub fn gossip_address(&self) -> Option<SocketAddr> {
        let gossips = self.0.gossip.get().map(Membership::address);
        gossips.or_else(|| self.0.gossip_socket.lock().as_ref().and_then(|socket| socket.local_addr().ok()))
    }

    pub fn data_dir(&self) -> &Path {
        self.0.data.path()
    }

    /// Returns when an operator, asked at another node, wants this one to leave.
    pub async fn told_to_leave(&self) {
        self.0.leave.notified().await;
    }

    /// A file was read again: what contradicted the cluster may do so no longer.
    pub fn reloaded(&self) {
        self.0.reloaded.notify_one();
    }

    /// The streams of keys that are cut end at this gateway.
    pub fn cuts_at(&self, gateway: &Arc<Gateway>) {
        // Set once, when the gateway is made.
        let _again = self.0.watching.0.gateway.set(Arc::clone(gateway));
    }

    /// Keys that were cut since this was asked last. What is read of the register after it knows that they are revoked.
    fn take_cut(&self) -> Vec<KeyHash> {
        std::mem::take(&mut self.0.watching.0.cut.lock())
    }

    /// From nothing known to a member whose file is in force. A node that is alone gets through or fails; one with
    /// others waits, and says for what.
    pub async fn belong(&self) -> Result<(), MemberError> {
        let founder = self.find().await?;
        self.become_member().await;
        self.register_life().await?;
        if founder {
            first_key::make(self).await;
        }
        self.declare().await?;
        self.enter(Phase::Member);
        Ok(())
    }

    /// Returns once this node serves by everything it has applied so far.
    pub async fn published(&self) {
        let applied = self.0.consensus.progress().borrow().applied.unwrap_or_default();
        let mut published = self.0.published.subscribe();
        // It ends with the node.
        let _ended = published.wait_for(|known| *known >= applied).await.is_err();
    }

    /// The same beside everything else, however long it takes; then the gate is kept open.
    pub fn belong_in_time(&self, gateway: &Arc<Gateway>) {
        gossip::follow_marks(self, Arc::clone(gateway));
        rates::share(self, Arc::clone(gateway));
        let (member, gate) = (self.clone(), gateway.gate.clone());
        self.0.tasks.spawn("belonging", async move {
            match member.belong().await {
                Ok(()) => member.keep_fresh(gate),
                Err(error) => tracing::error!(error = describe(&error), "this node does not become a member"),
            }
        });
    }

    /// Another file of this node: brought in as a whole, or refused.
    pub async fn declare_again(&self, loaded: &Loaded) -> Result<FileOutcome, FileError> {
        files::declare(self, loaded).await
    }

    /// Keeps this node fresh, and the gate open while it is.
    pub fn keep_fresh(&self, gate: Gate) {
        let member = self.clone();
        let said = std::sync::atomic::AtomicBool::new(false);
        let tell = move |until: Duration| {
            if !said.swap(true, Ordering::Relaxed) {
                info!("ready");
            }
            let nanos = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
            member.0.fresh_until.store(nanos, Ordering::Release);
            gate.fresh_until(until);
        };
        self.0.tasks.spawn("freshness", self.0.consensus.clone().keep_fresh(tell));
    }

    /// Tells the others that this node takes no new requests.
    pub fn drains(&self) {
        gossip::drains(self);
    }

    /// Ends everything of the cluster rooms.
    pub async fn stop(&self) -> bool {
        self.0.consensus.stop().await;
        let ended = self.0.tasks.shutdown(STOP_MAX).await;
        let trail = Arc::clone(&self.0.trail);
        let flushed = tokio::task::spawn_blocking(move || trail.flush()).await;
        ended && matches!(flushed, Ok(Ok(())))
    }

    /// True if this node founded the cluster.
    async fn find(&self) -> Result<bool, MemberError> {
        let said = |what: &str| {
            info!(waits_for = what, "no cluster yet");
            self.enter(Phase::Looking(what.to_owned()));
        };
        let found = self.0.bootstrap.find(&*self.0.transport, said).await?;
        let home = found.home();
        self.0.standing.join(home.cluster, home.epoch);
        let founder = matches!(found, Found::Founder { .. });
        if let Found::Founder { voters, .. } = found
            && let Err(fatal) = self.0.consensus.initialise(voters).await
        {
            warn!(error = describe(&fatal), "the cluster could not be initialised");
        }
        gossip::begin(self, home);
        Ok(founder)
    }

    /// What its own log says of it may be of before it was removed: only who leads now knows, so it asks at every start,
    /// unless it is the one.
    async fn become_member(&self) {
        self.enter(Phase::Joining);
        tokio::select! {
            () = self.0.consensus.leads_for_sure() => {}
            () = self.admitted() => {}
        }
        let me = self.0.introduction.me;
        let mut metrics = self.0.consensus.metrics();
        let belongs = metrics.wait_for(|metrics| {
            metrics.current_leader.is_some() && metrics.membership_config.nodes().any(|(node, _place)| *node == me)
        });
        // An error means that consensus has ended, and this node with it.
        let _ended = belongs.await.is_err();
    }

    async fn admitted(&self) {
        loop {
            for address in self.doors() {
                let place = self.0.introduction.place.clone();
                match self.0.consensus.knock(&address, place, KNOCK_WITHIN).await {
                    Ok(()) => return,
                    Err(error) => tracing::debug!(address, error = describe(&error), "not admitted yet"),
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Where admission may be asked for: at the addresses of the file, and at the members this node knew.
    fn doors(&self) -> Vec<String> {
        let mut doors = self.0.bootstrap.doors();
        let own = self.0.introduction.me;
        let known = self.0.consensus.read(|register| {
            let others = register.members().iter().filter(|(node, _)| *node != own);
            others.map(|(_node, member)| member.info.peer.clone()).collect::<Vec<_>>()
        });
        doors.extend(known);
        doors
    }

    async fn register_life(&self) -> Result<(), MemberError> {
        self.enter(Phase::Starting);
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(MemberError::Randomness)?;
        loop {
            let started = self.0.consensus.started(nonce, self.info(), self.author(""), STARTED_WITHIN).await;
            match started {
                Ok(incarnation) => {
                    self.0.watching.0.incarnation.store(incarnation.get(), Ordering::Release);
                    self.0.standing.start(incarnation);
                    // Before this life is granted anything.
                    let books = self.books();
                    books.begin(incarnation).await.map_err(MemberError::Unmarked)?;
                    self.0.tasks.spawn("settling", books.settle_lives());
                    info!(%incarnation, node = %self.0.introduction.me, "this start is registered");
                    return Ok(());
                }
                Err(error) if self.is_shared() => {
                    warn!(error = describe(&error), "this start is not registered yet");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(MemberError::Started(error)),
            }
        }
    }

    async fn declare(&self) -> Result<(), MemberError> {
        self.enter(Phase::Declaring(None));
        loop {
            let loaded = self.0.loaded.load_full();
            match files::declare(self, &loaded).await {
                Ok(_in_force) => return Ok(()),
                Err(error) if self.is_shared() => {
                    let why = describe(&error);
                    warn!(error = why, "the file's resources are not in force");
                    self.enter(Phase::Declaring(Some(why)));
                    // Nothing follows from the time being over but another try.
                    let _elapsed = tokio::time::timeout(FILE_PAUSE, self.0.reloaded.notified()).await;
                }
                Err(error) => return Err(MemberError::File(error)),
            }
        }
    }

    fn serve_peers(&self, listener: TcpListener) -> Result<(), MemberError> {
        let Some(trust) = &self.0.trust else { return Ok(()) };
        let address = self.0.introduction_address();
        let mut handlers = Handlers::new();
        for (service, handler) in self.0.bootstrap.services() {
            handlers = handlers.with(service, Policy::AnyCluster, handler);
        }
        for (service, handler) in self.0.consensus.services() {
            handlers = handlers.with(service, Policy::SameCluster, handler);
        }
        handlers = handlers.with(Service::RATES, Policy::SameCluster, rates::answering(self));
        handlers = handlers.with(Service::SLOTS, Policy::SameCluster, slots::answering(self));
        handlers = handlers.with(Service::PACE, Policy::SameCluster, pace::answering(self));
        handlers = handlers.with(Service::DRAIN, Policy::SameCluster, control::asked_to_drain(self));
        let standing = Arc::clone(&self.0.standing);
        PeerServer::start(listener, trust.clone(), standing, handlers, ServerLimits::default(), &self.0.tasks)
            .map(drop)
            .map_err(|cause| MemberError::Listen { setting: PEER, address, cause })
    }

    fn enter(&self, phase: Phase) {
        self.0.phase.send_if_modified(|now| {
            let changed = *now != phase;
            *now = phase;
            changed
        });
    }

    fn info(&self) -> MemberInfo {
        let Place { name, address, zone } = self.0.introduction.place.clone();
        MemberInfo {
            name,
            zone,
            peer: address,
            format: u32::from(COMMAND_VERSION),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Of what a node does by itself.
    fn author(&self, request_id: &str) -> Author {
        Author {
            who: self.0.introduction.place.name.clone(),
            node: self.0.introduction.me,
            request_id: request_id.to_owned(),
        }
    }
}

impl Inner {
    fn introduction_address(&self) -> SocketAddr {
        self.peer_address.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)))
    }
}

/// What one changes when a port for other nodes is taken.
const PEER: &str = "`listen.peer`";
const GOSSIP: &str = "`listen.gossip`, UDP";

/// The ports for other nodes.
struct Sockets {
    peer: TcpListener,
    gossip: UdpSocket,
}

impl Sockets {
    async fn bind(loaded: &Loaded) -> Result<Self, MemberError> {
        let listen = &loaded.config.listen;
        let failed = |setting, address| move |cause| MemberError::Listen { setting, address, cause };
        Ok(Self {
            peer: TcpListener::bind(listen.peer).await.map_err(failed(PEER, listen.peer))?,
            gossip: UdpSocket::bind(listen.gossip).await.map_err(failed(GOSSIP, listen.gossip))?,
        })
    }
}

/// How other nodes are called; a node alone knows none.
fn transport(
    trust: Option<&LiveTrust>,
    standing: &Arc<Standing>,
    book: &AddressBook,
    tasks: &Tasks,
) -> Arc<dyn Transport> {
    match trust {
        Some(trust) => {
            let limits = ClientLimits::default();
            Arc::new(PeerClient::new(trust.clone(), Arc::clone(standing), book.clone(), limits, tasks))
        }
        None => Arc::new(Nobody),
    }
}

async fn open_data(path: Option<PathBuf>, adopt: bool) -> Result<DataDir, MemberError> {
    let copies = if adopt { Copies::Adopt } else { Copies::Refuse };
    let opened = tokio::task::spawn_blocking(move || match path {
        Some(path) => DataDir::open(&path, copies, fatal::aborting()),
        None => DataDir::ephemeral(fatal::aborting()),
    });
    match opened.await {
        Ok(data) => Ok(data?),
        Err(ended) => std::panic::resume_unwind(ended.into_panic()),
    }
}

/// What consensus stands on, from this node's data directory.
#[expect(clippy::too_many_arguments, reason = "each is one field of what is made, and nothing else groups them")]
fn ground(
    data: &DataDir,
    me: NodeId,
    transport: &Arc<dyn Transport>,
    observer: Box<dyn Observer>,
    published: watch::Receiver<u64>,
    timing: Timing,
    tasks: &Tasks,
    trail: &Arc<Trail>,
) -> Result<Ground, MemberError> {
    Ok(Ground {
        me,
        log: data.open_log(LogOptions { now: Some(clock::now), ..LogOptions::default() })?,
        cells: data.cells(),
        kept: Kept {
            snapshots: data.open_snapshots().map_err(MemberError::Snapshots)?,
            trail: Some(Arc::clone(trail)),
        },
        transport: Arc::clone(transport),
        observer,
        published,
        clock: Clock::Real,
        timing,
        tasks: tasks.clone(),
    })
}

/// The largest `stale_max` this node ever had: grants of an earlier life may still run by it.
fn stale_held(data: &DataDir, now: Duration) -> Result<Duration, MemberError> {
    let cells = data.cells();
    let stored = cells.get(STALE_HELD)?.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
    let held = now.max(Duration::from_millis(stored.unwrap_or_default()));
    let millis = u64::try_from(held.as_millis()).unwrap_or(u64::MAX);
    if stored != Some(millis) {
        cells.set(STALE_HELD, &millis.to_le_bytes())?;
    }
    Ok(held)
}

/// Made with the directory, and kept as long as it is.
fn node_key(data: &DataDir) -> Result<NodeKey, MemberError> {
    let cells = data.cells();
    if let Some(stored) = cells.get(NODE_KEY)? {
        return NodeKey::from_pkcs8(&stored).map_err(MemberError::Identity);
    }
    let key = NodeKey::generate().map_err(MemberError::Identity)?;
    cells.set(NODE_KEY, key.pkcs8())?;
    Ok(key)
}

fn trust(loaded: &Loaded, key: &NodeKey) -> Result<Trust, MemberError> {
    let cluster = &loaded.config.cluster;
    let texts = cluster.all_secrets().filter_map(|reference| loaded.secrets.get(reference));
    let secrets: Vec<ClusterSecret> =
        texts.map(|text| ClusterSecret::parse(text.reveal())).collect::<Result<_, _>>().map_err(MemberError::Secret)?;
    let Some(tls) = &cluster.tls else {
        return Trust::new(&secrets, key).map_err(MemberError::Trust);
    };
    let read = |path: &PathBuf| std::fs::read(path).map_err(|cause| MemberError::Pki { path: path.clone(), cause });
    let pki = OwnPki { ca: read(&tls.ca)?, cert: read(&tls.cert)?, key: read(&tls.key)? };
    Trust::with_own_pki(&pki, &secrets, key).map_err(MemberError::Trust)
}

fn introduction(loaded: &Loaded, me: NodeId, sockets: Option<&Sockets>) -> Introduction {
    let config = &loaded.config;
    let peer = sockets.and_then(|sockets| sockets.peer.local_addr().ok()).unwrap_or(config.listen.peer);
    let gossip = sockets.and_then(|sockets| sockets.gossip.local_addr().ok()).unwrap_or(config.listen.gossip);
    let address = config.cluster.advertised(&config.node.name, peer).unwrap_or_else(|| peer.to_string());
    Introduction {
        me,
        gossip: gossip::advertised(&address, gossip),
        place: Place { name: config.node.name.clone(), address, zone: config.node.zone.clone() },
        seeds: config.cluster.seeds.clone(),
        join: config.cluster.join.clone(),
    }
}

fn timing(loaded: &Loaded) -> Timing {
    let cluster = &loaded.config.cluster;
    Timing {
        heartbeat: cluster.heartbeat,
        election_min: cluster.election_min,
        election_max: cluster.election_max,
        stale_max: cluster.stale_max,
        ..Timing::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_mins(1);
    const SHORT: Duration = Duration::from_secs(2);

    /// Who shortens `stale_max` still has nodes that were granted the longer one.
    #[test]
    fn grants_are_held_by_the_longest_stale_max_of_all_lives() {
        let folder = tempfile::tempdir().unwrap();
        let life = |stale_max| {
            let data = DataDir::open(folder.path(), Copies::Refuse, fatal::aborting()).unwrap();
            stale_held(&data, stale_max).unwrap()
        };

        assert_eq!(life(SHORT), SHORT);
        assert_eq!(life(LONG), LONG);
        assert_eq!(life(SHORT), LONG, "a life before had more");
        assert_eq!(life(LONG * 2), LONG * 2);
    }
}

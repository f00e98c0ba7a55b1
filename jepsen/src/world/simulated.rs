//! Many nodes in one thread and in virtual time: the cluster rooms as they are, on simulated disks and a simulated network.
//!
//! Of each node runs what decides: consensus with its log, cells and snapshots, freshness and the barrier. A *view* stands
//! for what the node would serve by: it follows the register with a delay, as publishing does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cluster::clock::Clock;
use cluster::consensus::{Consensus, Ground, Kept, Observer, Place, Timing};
use cluster::directory::Directory;
use cluster::directory::key::KeyHash;
use cluster::id::NodeId;
use cluster::register::{Author, MemberInfo, Register};
use cluster::tasks::Tasks;
use parking_lot::Mutex;
use storage::cell::Cells;
use storage::disk::simulated::SimulatedDisk;
use storage::log::{Commits, Log, LogOptions};
use storage::snapshot::Snapshots;
use tokio::sync::{Notify, watch};

use super::network::Network;
use crate::random::Random;

/// How old what a node serves by may be.
pub const STALE_MAX: Duration = Duration::from_secs(5);

/// For what is left of a life whose process is gone.
const STOP_MAX: Duration = Duration::from_mins(1);

/// Entries between two comparisons of the registers.
const DIGEST_EVERY: u64 = 16;

/// For a command that a node makes by itself when it starts.
const START_MAX: Duration = Duration::from_secs(30);

pub struct World {
    pub network: Network,
    pub nodes: Vec<Node>,
    pub clock: Clock,
    pub agreement: Arc<Agreement>,
    random: Random,
}

/// A node in all its lives.
pub struct Node {
    pub id: NodeId,
    medium: SimulatedDisk,
    lives: u64,
    life: Option<Life>,
    /// What the wall clock of its machine says at the start of the world.
    wall: Duration,
}

/// One life of a node's process.
#[derive(Clone)]
pub struct Life {
    pub consensus: Consensus,
    pub view: Arc<Mutex<View>>,
    tasks: Tasks,
}

/// What the node serves by.
#[derive(Clone, Default)]
pub struct View {
    pub index: u64,
    pub fresh_until: Duration,
    pub directory: Option<Directory>,
}

/// The digest of the register after each entry, as the first node to apply it found it: all others must find the same.
#[derive(Default)]
pub struct Agreement {
    digests: Mutex<BTreeMap<u64, (NodeId, blake3::Hash)>>,
    broken: Mutex<Vec<String>>,
}

impl Agreement {
    pub fn broken(&self) -> Vec<String> {
        self.broken.lock().clone()
    }

    fn found(&self, node: NodeId, index: u64, register: &Register) {
        let digest = blake3::hash(&register.encode());
        let mut digests = self.digests.lock();
        let (first, known) = *digests.entry(index).or_insert((node, digest));
        if known != digest {
            self.broken.lock().push(format!("after entry {index}, node {node} has {digest} and node {first} {known}"));
        }
    }
}

struct Watching {
    node: NodeId,
    agreement: Arc<Agreement>,
}

impl Observer for Watching {
    fn applied(&self, index: u64, register: &Register) {
        // A register that parted from the others stays so: a look now and then finds it.
        if !index.is_multiple_of(DIGEST_EVERY) {
            return;
        }
        self.agreement.found(self.node, index, register);
    }

    fn cut(&self, _key: KeyHash) {}
}

impl World {
    /// Nodes that have never run. The first is to initialise with all as voters.
    pub fn new(size: usize, mut random: Random) -> Self {
        let clock = Clock::Simulated { start: tokio::time::Instant::now(), wall: Duration::from_hours(500_000) };
        let nodes = (1..=size as u64).map(|id| Node {
            id: NodeId::new(id),
            medium: SimulatedDisk::new(),
            lives: 0,
            life: None,
            // Up to an hour wrong in either direction.
            wall: Duration::from_hours(499_999) + random.milliseconds(0..7_200_000),
        });
        let nodes = nodes.collect();
        let network = Network::new(random.fork());
        Self { network, nodes, clock, agreement: Arc::default(), random }
    }

    pub async fn start_all(&mut self) {
        for number in 0..self.nodes.len() {
            self.start(number).await;
        }
        let voters = self.nodes.iter().map(|node| (node.id, place(node.id))).collect();
        if let Some(first) = self.life(0)
            && first.consensus.initialise(voters).await.is_err()
        {
            self.agreement.broken.lock().push("the first node could not initialise".to_owned());
        }
    }

    pub fn life(&self, number: usize) -> Option<Life> {
        self.nodes.get(number)?.life.clone()
    }

    pub fn alive(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|number| self.nodes[*number].life.is_some()).collect()
    }

    /// Starts a process on the node's disk. A disk that cannot be read is a broken promise.
    pub async fn start(&mut self, number: usize) {
        let mut random = self.random.fork();
        let clock = match self.clock {
            Clock::Simulated { start, .. } => Clock::Simulated { start, wall: self.nodes[number].wall },
            Clock::Real => Clock::Real,
        };
        let node = &mut self.nodes[number];
        if node.life.is_some() {
            return;
        }
        node.lives += 1;
        match begin(node, &self.network, clock, &self.agreement, &mut random).await {
            Ok(life) => node.life = Some(life),
            Err(error) => {
                let id = node.id;
                self.agreement.broken.lock().push(format!("node {id} cannot start from its disk: {error}"));
            }
        }
    }

    /// The process ends without a word; with `power`, what was not synced may be lost.
    pub async fn crash(&mut self, number: usize, power: bool) {
        let seed = self.random.draw();
        let node = &mut self.nodes[number];
        let Some(life) = node.life.take() else { return };
        self.network.unplug(node.id);
        if power {
            node.medium.crash(seed);
        } else {
            node.medium.kill();
        }
        // The dead life's disk fails at once whatever it is asked; someone must ask, or its log would be waited for.
        let stopped = tokio::time::timeout(STOP_MAX, life.consensus.stop()).await;
        life.tasks.stop();
        if stopped.is_err() {
            self.agreement.broken.lock().push(format!("a life of node {number} did not end"));
        }
    }

    /// Whether a client would be served the key by this node now.
    pub fn serves(&self, number: usize, key: &str) -> bool {
        let Some(life) = self.life(number) else { return false };
        let view = life.view.lock();
        let known = view.directory.as_ref().is_some_and(|directory| directory.key(&KeyHash::of(key)).is_some());
        known && self.clock.now() < view.fresh_until
    }
}

fn place(id: NodeId) -> Place {
    Place { name: format!("edge-{id}"), address: id.to_string(), zone: None }
}

async fn begin(
    node: &Node,
    network: &Network,
    clock: Clock,
    agreement: &Arc<Agreement>,
    random: &mut Random,
) -> Result<Life, String> {
    let words = |error: &dyn std::error::Error| error.to_string();
    let disk = node.medium.disk();
    let folder = |name: &str| disk.within(name).map_err(|error| words(&error));
    let fatal: storage::fatal::OnFatal = Arc::new(|_reason| {});
    let tasks = Tasks::new();

    let wake = Arc::new(Notify::new());
    let waker = Arc::clone(&wake);
    let commits = Commits::ByCaller { wake: Arc::new(move || waker.notify_one()) };
    // Small segments, so that a run sees many; no headroom, so that a simulated disk need not tell its size.
    let options = LogOptions {
        segment_bytes_max: 8 << 10,
        recent_bytes_max: 4 << 10,
        headroom_bytes: 0,
        commits,
        on_fatal: Arc::clone(&fatal),
        ..LogOptions::default()
    };
    let log = Log::open(folder("log")?, options).map_err(|error| words(&error))?;
    let syncing = log.clone();
    let mut slow = random.fork();
    tasks.spawn("disk", async move {
        loop {
            wake.notified().await;
            tokio::time::sleep(slow.milliseconds(0..5)).await;
            while syncing.commit_queued() {}
        }
    });
    let cells = Cells::open(folder("cells")?, Arc::clone(&fatal)).map_err(|error| words(&error))?;
    let snapshots = Snapshots::open(folder("snapshots")?, fatal).map_err(|error| words(&error))?;

    let (publish, published) = watch::channel(0);
    let observer = Box::new(Watching { node: node.id, agreement: Arc::clone(agreement) });
    let ground = Ground {
        me: node.id,
        log,
        cells,
        kept: Kept { snapshots, trail: None },
        transport: network.transport(node.id, node.lives),
        observer,
        published,
        clock,
        timing: Timing { stale_max: STALE_MAX, snapshot_every: 40, kept_behind: 10, ..Timing::default() },
        tasks: tasks.clone(),
    };
    let consensus = Consensus::start(ground).await.map_err(|error| words(&error))?;
    network.plug_in(node.id, node.lives, consensus.services());
    let view = Arc::<Mutex<View>>::default();
    let life = Life { consensus: consensus.clone(), view: Arc::clone(&view), tasks: tasks.clone() };
    tasks.spawn("publishing", publishing(consensus.clone(), Arc::clone(&view), publish, random.fork()));
    tasks.spawn("starting", starting(node.id, consensus.clone(), random.fork()));
    let tell = move |until| view.lock().fresh_until = until;
    tasks.spawn("freshness", consensus.keep_fresh(tell));
    Ok(life)
}

/// What a node serves by follows what it applied, a little later.
async fn publishing(consensus: Consensus, view: Arc<Mutex<View>>, publish: watch::Sender<u64>, mut random: Random) {
    let mut progress = consensus.progress();
    loop {
        let applied = progress.borrow_and_update().applied;
        if let Some(index) = applied {
            tokio::time::sleep(random.milliseconds(0..20)).await;
            let previous = view.lock().directory.clone();
            let directory = consensus.read(|register| register.directory(previous.as_ref()));
            let mut view = view.lock();
            view.directory = Some(directory);
            view.index = index;
            drop(view);
            publish.send_replace(index);
        }
        if progress.changed().await.is_err() {
            return;
        }
    }
}

/// A life registers itself until it is heard.
async fn starting(node: NodeId, consensus: Consensus, mut random: Random) {
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&random.draw().to_le_bytes());
    nonce[8..].copy_from_slice(&random.draw().to_le_bytes());
    let member = MemberInfo { name: format!("edge-{node}"), peer: node.to_string(), ..MemberInfo::default() };
    let author = Author { who: member.name.clone(), node, request_id: String::new() };
    while consensus.started(nonce, member.clone(), author.clone(), START_MAX).await.is_err() {}
}

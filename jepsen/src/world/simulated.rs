//! Many nodes in one thread and in virtual time: the cluster rooms as they are, on simulated disks and a simulated network.
//!
//! Of each node runs what decides: consensus with its log, cells and snapshots, freshness and the barrier; and what spends:
//! the escrow of `actors`, its marks on the simulated disk, windows, recalls and settlements, wired as in the process. A
//! *view* stands for what the node would serve by: it follows the register with a delay, as publishing does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actors::quota::escrow::{Escrow, Ledger};
use actors::quota::shared::{Books, places};
use cluster::clock::{Clock, Wall};
use cluster::consensus::{Consensus, Ground, Kept, Observer, Place, Timing};
use cluster::directory::Directory;
use cluster::directory::key::KeyHash;
use cluster::id::{Incarnation, NodeId};
use cluster::ledger::accounts;
use cluster::marks::Marks;
use cluster::register::{Author, COMMAND_VERSION, MemberInfo, Register};
use cluster::tasks::Tasks;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use storage::cell::Cells;
use storage::disk::Disk;
use storage::disk::simulated::SimulatedDisk;
use storage::log::{Commits, Log, LogOptions};
use storage::snapshot::Snapshots;
use tokio::sync::{Notify, watch};

use super::network::Network;
use super::pause::Pause;
use super::proof::{MARKS, Proof};
use crate::check::money::Bills;
use crate::random::Random;
use crate::spending::overdrafts;

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
    /// What was really spent.
    pub bills: Arc<Mutex<Bills>>,
    /// Processes that ended because their Raft gave up.
    pub gave_up: usize,
    random: Random,
}

/// A node in all its lives.
pub struct Node {
    pub id: NodeId,
    medium: SimulatedDisk,
    lives: u64,
    life: Option<Life>,
    /// Of its machine.
    wall: Wall,
}

/// One life of a node's process.
#[derive(Clone)]
pub struct Life {
    pub consensus: Consensus,
    pub view: Arc<Mutex<View>>,
    pub escrow: Escrow,
    pub pause: Pause,
    pub proof: Proof,
    books: Books,
    state: Arc<State>,
    tasks: Tasks,
}

/// How far a life has come.
#[derive(Default)]
struct State {
    /// It is registered, and its marks know of it.
    begun: AtomicBool,
    /// It takes nothing new any more.
    stopping: AtomicBool,
    ended: AtomicBool,
}

impl Life {
    /// Whether calls are taken.
    pub fn serves(&self) -> bool {
        self.lives() && self.state.begun.load(Ordering::Relaxed) && !self.state.stopping.load(Ordering::Relaxed)
    }

    /// What it takes the lives before it to have spent of a place on credit. `None`: it does not know.
    pub fn debts(&self, place: accounts::Place) -> Option<u64> {
        self.books.debts(place)
    }

    pub fn lives(&self) -> bool {
        !self.state.ended.load(Ordering::Relaxed)
    }
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
    bills: Arc<Mutex<Bills>>,
}

impl Observer for Watching {
    fn applied(&self, index: u64, register: &Register) {
        self.bills.lock().applied(index, register.accounts());
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
        let clock =
            Clock::Simulated { start: tokio::time::Instant::now(), wall: Wall::new(Duration::from_hours(500_000)) };
        let nodes = (1..=size as u64).map(|id| Node {
            id: NodeId::new(id),
            medium: SimulatedDisk::new(),
            lives: 0,
            life: None,
            // Up to an hour wrong in either direction.
            wall: Wall::new(Duration::from_hours(499_999) + random.milliseconds(0..7_200_000)),
        });
        let nodes = nodes.collect();
        let network = Network::new(random.fork());
        let bills = Arc::new(Mutex::new(Bills::new(size as u64, overdrafts())));
        Self { network, nodes, clock, agreement: Arc::default(), bills, gave_up: 0, random }
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
        let clock = match &self.clock {
            Clock::Simulated { start, .. } => Clock::Simulated { start: *start, wall: self.nodes[number].wall.clone() },
            Clock::Real => Clock::Real,
        };
        let node = &mut self.nodes[number];
        if node.life.is_some() {
            return;
        }
        node.lives += 1;
        match begin(node, &self.network, clock, (&self.agreement, &self.bills), &mut random).await {
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
        life.state.ended.store(true, Ordering::Relaxed);
        self.bills.lock().ended(life.consensus.incarnation());
        life.pause.end();
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

    /// The process is told to end: it takes no new calls, gives back what it does not use, and ends.
    pub async fn stop(&mut self, number: usize) {
        let Some(life) = self.life(number) else { return };
        life.pause.end();
        life.state.stopping.store(true, Ordering::Relaxed);
        life.books.settle_last(&life.escrow).await;
        self.crash(number, false).await;
    }

    /// Processes whose Raft gave up: they end, as a node does then, and are to be started again.
    pub async fn end_failed(&mut self) {
        for number in 0..self.nodes.len() {
            if self.failed(number) {
                self.crash(number, false).await;
                self.gave_up += 1;
            }
        }
    }

    /// Whether there are any.
    pub fn has_failed(&self) -> bool {
        (0..self.nodes.len()).any(|number| self.failed(number))
    }

    fn failed(&self, number: usize) -> bool {
        self.life(number).is_some_and(|life| life.consensus.metrics().borrow().running_state.is_err())
    }

    /// The process stands still, until all go on.
    pub fn pause(&self, number: usize) {
        if let Some(life) = self.life(number) {
            life.pause.begin();
        }
    }

    pub fn go_on(&self) {
        self.nodes.iter().filter_map(|node| node.life.as_ref()).for_each(|life| life.pause.end());
    }

    /// The wall clock of one machine is put forward, or back.
    pub fn put_clock(&self, number: usize, forward: bool, by: Duration) {
        let wall = &self.nodes[number].wall;
        let now = wall.at_start();
        wall.put(if forward { now + by } else { now.saturating_sub(by) });
    }

    /// Who leads, as any of the others says.
    pub fn leader(&self) -> Option<usize> {
        let leader = self.nodes.iter().filter_map(|node| node.life.as_ref()?.consensus.leader()).next_back()?;
        self.nodes.iter().position(|node| node.id == leader)
    }

    /// What Raft says of a node.
    pub fn words(&self, number: usize) -> String {
        let Some(life) = self.life(number) else { return format!("node {number} is down") };
        format!("node {number}: {}", life.consensus.metrics().borrow().clone())
            + &format!(" {:?}", life.consensus.metrics().borrow().running_state)
    }

    /// The life that a node lives, once it takes calls.
    pub fn incarnation(&self, number: usize) -> Option<Incarnation> {
        self.life(number).filter(Life::serves).map(|life| life.consensus.incarnation())
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
    (agreement, bills): (&Arc<Agreement>, &Arc<Mutex<Bills>>),
    random: &mut Random,
) -> Result<Life, String> {
    let words = |error: &dyn std::error::Error| error.to_string();
    let disk = node.medium.disk();
    let folder = |name: &str| disk.within(name).map_err(|error| words(&error));
    let tasks = Tasks::new();

    let (pause, state) = (Pause::default(), Arc::<State>::default());
    let (id, whose, found) = (node.id, Arc::clone(&state), Arc::clone(agreement));
    // The disk of a life that has ended fails, and only that.
    let fatal: storage::fatal::OnFatal = Arc::new(move |reason| {
        if !whose.ended.load(Ordering::Relaxed) {
            found.broken.lock().push(format!("node {id} gave up: {reason}"));
        }
    });
    let run = |name, part: BoxFuture<'static, ()>| tasks.spawn(name, pause.clone().hold(part));
    let mut open = |name: &str| {
        let slow_percent = if name == MARKS { 15 } else { 0 };
        let (log, syncing) = open_log(folder(name)?, &fatal, slow_percent, random.fork())?;
        run("disk", syncing);
        Ok::<Log, String>(log)
    };
    let (log, marks) = (open("log")?, open(MARKS)?);
    let marks = Marks::open(marks).map_err(|error| words(&error))?;
    let cells = Cells::open(folder("cells")?, Arc::clone(&fatal)).map_err(|error| words(&error))?;
    let snapshots = Snapshots::open(folder("snapshots")?, fatal).map_err(|error| words(&error))?;

    let (publish, published) = watch::channel(0);
    let observer = Box::new(Watching { node: node.id, agreement: Arc::clone(agreement), bills: Arc::clone(bills) });
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
    network.plug_in(node.id, node.lives, consensus.services(), pause.clone());
    let books = Books::new(consensus.clone(), marks, false);
    let (escrow, loops) = books.open();
    for (name, part) in loops {
        run(name, part);
    }
    let view = Arc::<Mutex<View>>::default();
    let publishing = publishing(consensus.clone(), Arc::clone(&view), escrow.clone(), publish, random.fork());
    run("publishing", publishing.boxed());
    let life = Life {
        consensus,
        view: Arc::clone(&view),
        escrow,
        pause: pause.clone(),
        proof: Proof::new(node.medium.clone()),
        books,
        state,
        tasks: tasks.clone(),
    };
    run("starting", starting(life.clone(), Arc::clone(bills), random.fork()).boxed());
    let tell = move |until| view.lock().fresh_until = until;
    run("freshness", life.consensus.clone().keep_fresh(tell).boxed());
    Ok(life)
}

/// A log on the simulated disk, and what syncs it: some of it slowly.
fn open_log(
    disk: Arc<dyn Disk>,
    fatal: &storage::fatal::OnFatal,
    slow_percent: u32,
    mut random: Random,
) -> Result<(Log, BoxFuture<'static, ()>), String> {
    let wake = Arc::new(Notify::new());
    let waker = Arc::clone(&wake);
    let commits = Commits::ByCaller { wake: Arc::new(move || waker.notify_one()) };
    // Small segments, so that a run sees many; no headroom, so that a simulated disk need not tell its size.
    let options = LogOptions {
        segment_bytes_max: 8 << 10,
        recent_bytes_max: 4 << 10,
        headroom_bytes: 0,
        commits,
        on_fatal: Arc::clone(fatal),
        ..LogOptions::default()
    };
    let log = Log::open(disk, options).map_err(|error| error.to_string())?;
    let synced = log.clone();
    let syncing = async move {
        loop {
            wake.notified().await;
            let slow = random.percent(slow_percent);
            tokio::time::sleep(random.milliseconds(if slow { 50..400 } else { 0..5 })).await;
            while synced.commit_queued() {}
        }
    };
    Ok((log, syncing.boxed()))
}

/// What a node serves by follows what it applied, a little later.
async fn publishing(
    consensus: Consensus,
    view: Arc<Mutex<View>>,
    escrow: Escrow,
    publish: watch::Sender<u64>,
    mut random: Random,
) {
    let mut progress = consensus.progress();
    let mut generation = None;
    loop {
        let applied = progress.borrow_and_update().applied;
        if let Some(index) = applied {
            tokio::time::sleep(random.milliseconds(0..20)).await;
            let previous = view.lock().directory.clone();
            let directory = consensus.read(|register| register.directory(previous.as_ref()));
            if let Some((now, places)) = consensus.read(|register| places(register, generation)) {
                generation = Some(now);
                escrow.publish(places);
            }
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

/// A life registers itself until it is heard. Then it settles those before it, and takes calls.
async fn starting(life: Life, bills: Arc<Mutex<Bills>>, mut random: Random) {
    let Life { consensus, books, state, escrow, .. } = life;
    let node = consensus.me();
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&random.draw().to_le_bytes());
    nonce[8..].copy_from_slice(&random.draw().to_le_bytes());
    let format = u32::from(COMMAND_VERSION);
    let member = MemberInfo { name: format!("edge-{node}"), peer: node.to_string(), format, ..MemberInfo::default() };
    let author = Author { who: member.name.clone(), node, request_id: String::new() };
    let incarnation = loop {
        if let Ok(life) = consensus.started(nonce, member.clone(), author.clone(), START_MAX).await {
            break life;
        }
    };
    // A disk that fails has ended the process.
    if books.begin(incarnation).await.is_ok() {
        bills.lock().begun(incarnation, node, move |place| escrow.lease(place));
        state.begun.store(true, Ordering::Relaxed);
        books.settle_lives().await;
    }
}

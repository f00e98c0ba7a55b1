//! One run: a world, what breaks it, what uses it, and the verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cluster::register::Kind;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::check::durable;
use crate::check::money::{Bills, Coverage};
use crate::check::revoke::Watch;
use crate::history::{Event, History, Operation, Outcome};
use crate::nemesis::{Harm, heal, restart_some, strike};
use crate::random::Random;
use crate::spending::{self, BUDGETS, HUNG};
use crate::workload;
use crate::world::simulated::{Life, World};

/// How a run goes.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub seed: u64,
    pub nodes: usize,
    /// Virtual time under faults.
    pub time: Duration,
    /// Off: nothing breaks, and everything must work.
    pub faults: bool,
}

impl Options {
    pub fn new(seed: u64) -> Self {
        // Three nodes mostly; five every third time.
        Self { seed, nodes: if seed % 3 == 2 { 5 } else { 3 }, time: Duration::from_secs(30), faults: true }
    }
}

/// What became of it.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Every broken promise, in words. None: the run passed.
    pub broken: Vec<String>,
    pub ok: usize,
    pub failed: usize,
    pub unknown: usize,
    pub revoked: usize,
    pub harms: BTreeMap<Harm, usize>,
    pub lost_calls: u64,
    pub blocked_calls: u64,
    /// Processes that ended because their Raft gave up.
    pub gave_up: usize,
    /// What spending came to.
    pub money: Coverage,
}

/// Clients at once.
const CLIENTS: usize = 4;

/// Clients that spend.
const SPENDERS: usize = 10;

/// Between two looks at whether a revoked key is served.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Virtual time in which a healed world must be of one mind.
const CONVERGE_MAX: Duration = Duration::from_mins(2);

/// Beyond the time under faults: all waits of clients and of the end together are shorter.
const HANG_MAX: Duration = Duration::from_mins(10);

/// Runs it in a runtime of its own, in virtual time.
pub fn run(options: Options) -> std::io::Result<(Verdict, History)> {
    cluster::consensus::types::seed_randomness(options.seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let history = History::default();
    let whole = async { tokio::time::timeout(options.time + HANG_MAX, play(options, history.clone())).await };
    let verdict = runtime.block_on(whole).unwrap_or_else(|_elapsed| Verdict {
        broken: vec![format!("something waited for more than {HANG_MAX:?} of virtual time")],
        ..Verdict::default()
    });
    // What openraft spawned for lives that were ended ends here.
    runtime.shutdown_background();
    Ok((verdict, history))
}

struct Play {
    world: Arc<tokio::sync::RwLock<World>>,
    history: History,
    watch: Arc<Mutex<Watch>>,
    bills: Arc<Mutex<Bills>>,
    started: Instant,
}

async fn play(options: Options, history: History) -> Verdict {
    let mut random = Random::new(options.seed);
    let mut world = World::new(options.nodes, random.fork());
    world.start_all().await;
    let (agreement, bills) = (Arc::clone(&world.agreement), Arc::clone(&world.bills));
    let play = Play {
        world: Arc::new(tokio::sync::RwLock::new(world)),
        history,
        watch: Arc::default(),
        bills: Arc::clone(&bills),
        started: Instant::now(),
    };
    let mut harms = BTreeMap::new();
    let until = play.started + options.time;
    let clients = (0..CLIENTS).map(|number| play.client(number, random.fork(), until));
    let clients = futures_util::future::join_all(clients);
    let faults = play.faults(options.faults, random.fork(), until, &mut harms);
    let spenders = (0..SPENDERS).map(|_| play.spender(random.fork(), until));
    let spenders = futures_util::future::join_all(spenders);
    let operator = play.operator(random.fork(), until);
    let looks = play.looks(until + Duration::from_secs(1));
    let ((), (), _clients, _spenders, ()) = tokio::join!(faults, looks, clients, spenders, operator);

    let mut verdict = play.end(random.fork()).await;
    verdict.harms = harms;
    verdict.broken.extend(agreement.broken());
    verdict.broken.extend(play.watch.lock().broken().iter().take(5).cloned());
    let bills = bills.lock();
    verdict.broken.extend(bills.broken().iter().take(5).cloned());
    verdict.money = bills.coverage;
    verdict.revoked = play.watch.lock().keys().count();
    verdict
}

impl Play {
    async fn faults(&self, wanted: bool, mut random: Random, until: Instant, harms: &mut BTreeMap<Harm, usize>) {
        // A world that never was whole would prove little.
        sleep(Duration::from_secs(4)).await;
        while wanted && Instant::now() < until {
            let harm = strike(&mut *self.world.write().await, &mut random).await;
            *harms.entry(harm).or_default() += 1;
            sleep(random.milliseconds(harm.lasts())).await;
            self.world.read().await.go_on();
            restart_some(&mut *self.world.write().await, &mut random).await;
            if random.percent(40) {
                self.world.read().await.network.heal();
            }
            sleep(random.milliseconds(100..2_000)).await;
        }
        sleep_until(until).await;
    }

    async fn client(&self, number: usize, mut random: Random, until: Instant) {
        let mut made = Vec::new();
        let mut count = 0;
        while Instant::now() < until {
            sleep(random.milliseconds(1..150)).await;
            let Some((node, Life { consensus, .. })) = self.anyone(&mut random).await else { continue };
            let (operation, (outcome, words)) = if random.percent(15) && !made.is_empty() {
                let key: String = made.swap_remove(random.below(made.len()));
                let outcome = workload::revoke(&consensus, &key).await;
                if outcome.0 == Outcome::Ok {
                    self.watch.lock().returned(&key, self.now());
                }
                (Operation::Revoke { key }, outcome)
            } else {
                count += 1;
                let key = format!("key-{number}-{count}");
                let outcome = workload::create(&consensus, &key).await;
                if outcome.0 == Outcome::Ok {
                    made.push(key.clone());
                }
                (Operation::Create { key }, outcome)
            };
            self.history.add(Event { at: self.now(), node, operation, outcome, words });
        }
    }

    async fn spender(&self, mut random: Random, until: Instant) {
        while Instant::now() < until {
            sleep(random.milliseconds(1..250)).await;
            let Some((node, life)) = self.anyone(&mut random).await else { continue };
            if !life.serves() {
                continue;
            }
            let call = spending::call(&life, &self.bills, random.fork());
            let (outcome, words) = life.pause.clone().hold(call).await;
            self.history.add(Event { at: self.now(), node, operation: Operation::Spend, outcome, words });
        }
    }

    /// Makes all budgets, then changes them.
    async fn operator(&self, mut random: Random, until: Instant) {
        let mut to_make = BUDGETS.map(|kept| kept.name).to_vec();
        while Instant::now() < until {
            let Some((node, life)) = self.anyone(&mut random).await else {
                sleep(LOOK_EVERY).await;
                continue;
            };
            let change = spending::change(&life.consensus, to_make.last().copied(), &mut random);
            let (outcome, words) = life.pause.clone().hold(change).await;
            if outcome == Outcome::Ok {
                to_make.pop();
            }
            self.history.add(Event { at: self.now(), node, operation: Operation::Budget, outcome, words });
            sleep(if to_make.is_empty() { random.milliseconds(200..2_500) } else { LOOK_EVERY }).await;
        }
    }

    async fn anyone(&self, random: &mut Random) -> Option<(usize, Life)> {
        let world = self.world.read().await;
        let alive = world.alive();
        let node = alive.get(random.below(alive.len())).copied()?;
        Some((node, world.life(node)?))
    }

    async fn looks(&self, until: Instant) {
        while Instant::now() < until {
            self.look().await;
            sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&self) {
        let world = self.world.read().await;
        let mut watch = self.watch.lock();
        let keys: Vec<String> = watch.keys().cloned().collect();
        for key in keys {
            for node in 0..world.nodes.len() {
                watch.looked(&key, node, world.serves(node, &key), self.now());
            }
        }
    }

    /// Heals the world, waits until all nodes are of one mind, and compares that with the history.
    async fn end(&self, mut random: Random) -> Verdict {
        heal(&mut *self.world.write().await).await;
        let mut verdict = Verdict {
            ok: self.history.count(&Outcome::Ok),
            failed: self.history.count(&Outcome::Fail),
            unknown: self.history.count(&Outcome::Info),
            ..Verdict::default()
        };
        let mut world = self.world.read().await;
        let last = world.life(0).map(|life| life.consensus);
        let settled = match &last {
            Some(consensus) => timeout(CONVERGE_MAX, converge(&world, consensus)).await.unwrap_or_default(),
            None => None,
        };
        let harm = world.network.harm();
        (verdict.lost_calls, verdict.blocked_calls) = (harm.lost, harm.blocked);
        if let Some((keys, revoked)) = settled {
            verdict.broken = durable::check(&self.history.events(), &keys, &revoked);
        } else {
            verdict.broken.push(format!("the healed world was not of one mind within {CONVERGE_MAX:?}"));
            verdict.broken.extend((0..world.nodes.len()).map(|number| world.words(number)));
        }
        if verdict.broken.is_empty() {
            verdict.broken = spending::end(&world, &mut random).await;
            // One that was deposed may notice as late as now, and then its Raft gives up: its process is started again.
            while !verdict.broken.is_empty() && world.has_failed() {
                drop(world);
                heal(&mut *self.world.write().await).await;
                world = self.world.read().await;
                verdict.broken = spending::end(&world, &mut random).await;
            }
        }
        verdict.gave_up = world.gave_up;
        let hung = self.history.events().into_iter().filter(|event| event.words == HUNG).count();
        verdict.broken.extend((hung > 0).then(|| format!("{hung} reserves did not return")));
        drop(world);
        self.look().await;
        verdict
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A command that goes through, and every node with all of it. The keys of the register, and those revoked.
async fn converge(
    world: &World,
    consensus: &cluster::consensus::Consensus,
) -> Option<(BTreeSet<String>, BTreeSet<String>)> {
    let mut tries = 0;
    let index = loop {
        tries += 1;
        let (outcome, words) = workload::create(consensus, &format!("last-{tries}")).await;
        if outcome == Outcome::Ok {
            break words;
        }
    };
    drop(index);
    let index = loop {
        if let Ok(index) = consensus.read_index(Duration::from_secs(3)).await {
            break index;
        }
    };
    for number in 0..world.nodes.len() {
        let life = world.life(number)?;
        let mut progress = life.consensus.progress();
        progress.wait_for(|progress| progress.has(index)).await.ok()?;
    }
    Some(consensus.read(|register| {
        let keys = || register.list(Kind::Keys, None);
        let revoked = keys().filter(|key| key.revoked).map(|key| key.name.to_owned()).collect();
        (keys().map(|key| key.name.to_owned()).collect(), revoked)
    }))
}

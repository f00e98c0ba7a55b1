//! What breaks a world, a step at a time, and what it did.

use std::ops::Range;
use std::time::Duration;

use crate::random::Random;
use crate::world::simulated::World;

/// So long a kill waits for a call to be sent.
const BILL_MAX: Duration = Duration::from_secs(2);

/// One harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// A process ends without a word and starts again later.
    Kill,
    /// The power of one machine goes: what was not synced may be lost.
    PowerCut,
    /// The power of all machines goes at once.
    PowerCutEverywhere,
    /// Some nodes and the others do not hear each other.
    Partition,
    /// A few nodes are cut off for so long that they go on on credit.
    Minority,
    /// One node is heard by nobody, but hears all.
    OneWay,
    /// Calls get lost and overtake each other.
    Loss,
    /// A process is told to end: it settles what it holds of budgets.
    Stop,
    /// A process stands still while others go on.
    Pause,
    /// The wall clock of one machine is wrong by hours, or a day ahead.
    Clock,
    /// The same where the leader is.
    LeadersClock,
    /// Everything is whole again.
    Heal,
}

impl Harm {
    /// How long it is let be, at least and at most.
    pub const fn lasts(self) -> Range<u64> {
        match self {
            Self::Minority => 4_000..9_000,
            Self::Kill
            | Self::PowerCut
            | Self::PowerCutEverywhere
            | Self::Partition
            | Self::OneWay
            | Self::Loss
            | Self::Stop
            | Self::Pause
            | Self::Clock
            | Self::LeadersClock
            | Self::Heal => 300..4_000,
        }
    }

    pub const ALL: [Self; 12] = [
        Self::Kill,
        Self::PowerCut,
        Self::PowerCutEverywhere,
        Self::Partition,
        Self::Minority,
        Self::OneWay,
        Self::Loss,
        Self::Stop,
        Self::Pause,
        Self::Clock,
        Self::LeadersClock,
        Self::Heal,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::PowerCut => "power cut",
            Self::PowerCutEverywhere => "power cut everywhere",
            Self::Partition => "partition",
            Self::Minority => "minority",
            Self::OneWay => "one-way partition",
            Self::Loss => "loss",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Clock => "clock",
            Self::LeadersClock => "leader's clock",
            Self::Heal => "heal",
        }
    }
}

/// Does one harm and names it.
pub async fn strike(world: &mut World, random: &mut Random) -> Harm {
    let harm = Harm::ALL[random.below(Harm::ALL.len())];
    let ids: Vec<_> = world.nodes.iter().map(|node| node.id).collect();
    match harm {
        Harm::Kill | Harm::PowerCut => {
            if let Some(victim) = just_billed(world, random).await.or_else(|| anyone(world, random)) {
                world.crash(victim, harm == Harm::PowerCut).await;
            }
        }
        Harm::Stop => {
            if let Some(victim) = anyone(world, random) {
                world.stop(victim).await;
            }
        }
        Harm::Pause => {
            if let Some(victim) = anyone(world, random) {
                world.pause(victim);
            }
        }
        Harm::Clock => put_clock(world, random.below(ids.len()), random),
        Harm::LeadersClock => {
            if let Some(leader) = world.leader() {
                put_clock(world, leader, random);
            }
        }
        Harm::PowerCutEverywhere => {
            for number in 0..ids.len() {
                world.crash(number, true).await;
            }
        }
        Harm::Partition | Harm::Minority => {
            let most = if harm == Harm::Minority { ids.len() / 2 } else { ids.len().saturating_sub(1) };
            let cut = 1 + random.below(most);
            let first = random.below(ids.len());
            let side = |number: usize| (number + ids.len() - first) % ids.len() < cut;
            for (a, from) in ids.iter().enumerate() {
                for (b, to) in ids.iter().enumerate() {
                    if side(a) != side(b) {
                        world.network.block(*from, *to);
                    }
                }
            }
        }
        Harm::OneWay => {
            let silent = ids[random.below(ids.len())];
            for to in ids.iter().filter(|to| **to != silent) {
                world.network.block(silent, *to);
            }
        }
        Harm::Loss => {
            world.network.lose(10 + u32::try_from(random.below(30)).unwrap_or_default());
            world.network.delay(0, 200);
        }
        Harm::Heal => heal(world).await,
    }
    harm
}

/// Mostly whoever has just sent his first call of a window, right after it: what he wrote down before counts now.
async fn just_billed(world: &World, random: &mut Random) -> Option<usize> {
    if random.percent(25) {
        return None;
    }
    let mut newly = world.bills.lock().newly();
    tokio::time::timeout(BILL_MAX, newly.changed()).await.ok()?.ok()?;
    let life = *newly.borrow();
    (0..world.nodes.len()).find(|number| life.is_some() && world.incarnation(*number) == life)
}

fn anyone(world: &World, random: &mut Random) -> Option<usize> {
    let alive = world.alive();
    alive.get(random.below(alive.len())).copied()
}

fn put_clock(world: &World, number: usize, random: &mut Random) {
    let (forward, by) = match random.below(4) {
        0 => (true, Duration::from_hours(24)),
        1 => (true, random.milliseconds(60_000..18_000_000)),
        2 => (false, random.milliseconds(60_000..18_000_000)),
        _ => (false, Duration::from_hours(24)),
    };
    world.put_clock(number, forward, by);
}

/// Starts whoever is down with a chance, so that the world does not stay dark.
pub async fn restart_some(world: &mut World, random: &mut Random) {
    world.end_failed().await;
    for number in 0..world.nodes.len() {
        if world.life(number).is_none() && random.percent(50) {
            world.start(number).await;
        }
    }
}

/// Everything runs and hears everything.
pub async fn heal(world: &mut World) {
    world.network.heal();
    world.go_on();
    world.end_failed().await;
    for number in 0..world.nodes.len() {
        world.start(number).await;
    }
}

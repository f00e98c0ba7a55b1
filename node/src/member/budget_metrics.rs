//! Budgets in this node's metrics, and what is told when much of one is spent.
//!
//! All nodes show the same of what the cluster holds, and each what it has set aside itself. That a threshold is passed is
//! told by the leader alone. The others note it too, so that whoever leads next does not tell it again; one that is
//! passed in the very second in which the leader changes may be told twice, or not at all.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actors::quota::escrow::Escrow;
use actors::quota::metrics::{Names, Shown, passed, show};
use actors::quota::shared;
use cluster::ledger::accounts::{Account, BudgetId, Place, Totals};
use cluster::register::Register;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::Member;

/// How often it is looked whether anything has changed.
const EVERY: Duration = Duration::from_secs(1);

/// Percents of the limit at which spending is told.
const PERCENTS: [u8; 3] = [50, 80, 100];

/// From this percentage on, someone should look.
const WARN_FROM: u8 = 80;

/// What the ledger says of a budget.
struct Seen {
    id: BudgetId,
    name: Arc<str>,
    window: Option<u64>,
    /// Each end user has the limit for himself.
    each: bool,
    /// All but what this node has set aside.
    shown: Shown,
}

impl Seen {
    fn new((id, account): (BudgetId, &Account)) -> Self {
        let (limit, name, each) = (account.limit(), Arc::from(account.name.as_str()), account.is_each());
        let Some((number, window)) = account.current() else {
            let shown = Shown { limit, remaining: limit, ..Shown::default() };
            return Self { id, name, window: None, each, shown };
        };
        let Totals { held, used: settled, burned } = window.totals();
        let shown = Shown {
            limit,
            // Of end users, what the one has who has the least.
            remaining: limit.saturating_sub(window.most_held()),
            leased: held.saturating_sub(settled).saturating_sub(burned),
            reserved: 0,
            settled,
            burned,
        };
        Self { id, name, window: Some(number), each, shown }
    }
}

/// Runs until the node ends.
pub async fn keep(member: Member, escrow: Escrow) {
    let consensus = member.0.consensus.clone();
    let mut progress = consensus.progress();
    let look = || consensus.read(|register: &Register| register.accounts().iter().map(Seen::new).collect::<Vec<_>>());
    let (mut gauges, mut thresholds) = (Gauges::default(), Thresholds::default());
    consensus.registered().await;
    // What the log holds of earlier lives was told when it was said. Nothing is spent here before this.
    let mut applied = progress.borrow_and_update().applied;
    let mut seen = look();
    thresholds.note(&seen);
    let mut looks = interval(EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let now = progress.borrow_and_update().applied;
        if now != applied {
            applied = now;
            seen = look();
            let tells = consensus.leader() == Some(consensus.me());
            for (seen, percent) in thresholds.note(&seen) {
                if tells {
                    tell(&member, &gauges.names, seen, percent);
                }
            }
        }
        gauges.show(&seen, |place, each| {
            if each { escrow.reserved(place) } else { escrow.lease(place).map_or(0, |lease| lease.reserved()) }
        });
    }
}

fn tell(member: &Member, names: &Names, seen: &Seen, percent: u8) {
    let Seen { name, window, shown, .. } = seen;
    passed(names, name, percent);
    let unit = member.0.consensus.read(|register| shared::known(register, name)).map(|budget| budget.limit.unit);
    let Some(unit) = unit else { return };
    let (spent, limit) = (unit.show(shown.spent()), unit.show(shown.limit));
    if percent < WARN_FROM {
        info!(budget = %name, percent, spent, limit, window, "a budget has passed a threshold");
    } else {
        warn!(budget = %name, percent, spent, limit, window, "a budget has passed a threshold");
    }
}

/// What the metrics show by now.
#[derive(Default)]
struct Gauges {
    names: Names,
    shown: HashMap<Arc<str>, Shown>,
}

impl Gauges {
    /// A budget that has gone is shown as nothing: a gauge cannot be taken back.
    fn show(&mut self, seen: &[Seen], reserved: impl Fn(Place, bool) -> u64) {
        let mut shown = HashMap::with_capacity(seen.len());
        for budget in seen {
            let place = budget.window.map(|window| Place::new(budget.id, window));
            let now = Shown { reserved: place.map_or(0, |place| reserved(place, budget.each)), ..budget.shown };
            let before = self.shown.remove(&budget.name);
            if before == Some(now) || self.names.take(&budget.name) {
                if before != Some(now) {
                    show(&budget.name, now);
                }
                shown.insert(Arc::clone(&budget.name), now);
            }
        }
        for gone in self.shown.keys() {
            show(gone, Shown::default());
        }
        self.shown = shown;
    }
}

/// How much of each budget was spent when it was last told.
#[derive(Default)]
struct Thresholds(HashMap<BudgetId, (u64, u8)>);

impl Thresholds {
    /// Those that are passed now and were not before in the same window.
    fn note<'a>(&mut self, seen: &'a [Seen]) -> Vec<(&'a Seen, u8)> {
        let mut told = HashMap::with_capacity(seen.len());
        let mut news = Vec::new();
        for budget in seen.iter().filter(|budget| !budget.each) {
            let Some(window) = budget.window else { continue };
            let before =
                self.0.get(&budget.id).filter(|(known, _)| *known == window).map_or(0, |(_, percent)| *percent);
            let passed = PERCENTS.into_iter().filter(|percent| *percent > before && budget.shown.has_spent(*percent));
            let passed: Vec<u8> = passed.collect();
            told.insert(budget.id, (window, passed.last().copied().unwrap_or(before)));
            news.extend(passed.into_iter().map(|percent| (budget, percent)));
        }
        self.0 = told;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(window: u64, limit: u64, settled: u64, burned: u64) -> Seen {
        let shown = Shown { limit, settled, burned, ..Shown::default() };
        Seen { id: BudgetId(1), name: "b".into(), window: Some(window), each: false, shown }
    }

    #[test]
    fn a_threshold_is_told_once_a_window() {
        let mut thresholds = Thresholds::default();
        let mut told =
            |seen: Seen| thresholds.note(&[seen]).into_iter().map(|(_, percent)| percent).collect::<Vec<_>>();

        assert_eq!(told(seen(0, 100, 49, 0)), [0_u8; 0]);
        assert_eq!(told(seen(0, 100, 49, 1)), [50], "what is burned is spent, too");
        assert_eq!(told(seen(0, 100, 49, 0)), [0_u8; 0], "given back");
        assert_eq!(told(seen(0, 100, 51, 0)), [0_u8; 0]);
        assert_eq!(told(seen(0, 60, 60, 0)), [80, 100], "the limit was lowered");
        assert_eq!(told(seen(1, 100, 80, 0)), [50, 80]);
        assert_eq!(told(seen(1, u64::MAX, u64::MAX, 0)), [100]);
        assert_eq!(told(seen(2, 0, 0, 0)), [0_u8; 0], "nothing of nothing");
    }
}

//! What was charged, and how budgets stand.

use crate::metrics::{Described, Kind};
use metrics::Unit;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;

pub const CHARGES: &str = "lea_charges_total";
pub const COST: &str = "lea_cost_nanousd_total";
pub const TOKENS: &str = "lea_tokens_total";
pub const RELEASED: &str = "lea_reservations_released_total";
pub const BOUND_EXCEEDED: &str = "lea_bound_exceeded_total";

pub const LIMIT: &str = "lea_budget_limit";
pub const REMAINING: &str = "lea_budget_remaining";
pub const LEASED: &str = "lea_budget_leased";
pub const RESERVED: &str = "lea_budget_reserved";
pub const SETTLED: &str = "lea_budget_settled";
pub const BURNED: &str = "lea_budget_burned";
pub const DENIED: &str = "lea_budget_denied_total";
pub const REFILL: &str = "lea_budget_refill_seconds";
pub const THRESHOLD: &str = "lea_budget_threshold_total";

/// Budgets that get series of their own in a life of the process. Of the rest nothing is shown, and what was denied
/// counts for [`OTHERS`].
pub const BUDGETS_MAX: usize = 2_000;

/// In place of the name of a budget for which there was no room.
pub const OTHERS: &str = "(others)";

/// Names of budgets that stand in labels. They stay there until the process ends, so their number is bounded.
#[derive(Default)]
pub struct Names(Mutex<HashSet<Arc<str>>>);

impl Names {
    /// Whether there is room for this one. Once there was, there always is.
    pub fn take(&self, name: &Arc<str>) -> bool {
        let mut names = self.0.lock();
        names.contains(name) || (names.len() < BUDGETS_MAX && names.insert(Arc::clone(name)))
    }

    /// The name, or [`OTHERS`] where there is no room for it.
    fn label(&self, name: &Arc<str>) -> Arc<str> {
        if self.take(name) { Arc::clone(name) } else { Arc::from(OTHERS) }
    }
}

/// One budget in its present window, in its own unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    pub limit: u64,
    /// Nobody holds it.
    pub remaining: u64,
    pub leased: u64,
    /// By this node, for calls under way.
    pub reserved: u64,
    pub settled: u64,
    pub burned: u64,
}

impl Shown {
    /// What no call can have any more.
    pub fn spent(self) -> u64 {
        self.settled.saturating_add(self.burned)
    }

    /// Whether so much of the limit is spent. A limit of nothing never is.
    pub fn has_spent(self, percent: u8) -> bool {
        let (spent, limit) = (u128::from(self.spent()), u128::from(self.limit));
        limit > 0 && spent * 100 >= limit * u128::from(percent)
    }
}

#[expect(clippy::cast_precision_loss, reason = "what metrics show is rounded")]
pub fn show(budget: &Arc<str>, shown: Shown) {
    let Shown { limit, remaining, leased, reserved, settled, burned } = shown;
    let amounts = [
        (LIMIT, limit),
        (REMAINING, remaining),
        (LEASED, leased),
        (RESERVED, reserved),
        (SETTLED, settled),
        (BURNED, burned),
    ];
    for (name, amount) in amounts {
        metrics::gauge!(name, "budget" => Arc::clone(budget)).set(amount as f64);
    }
}

/// So much of the budget is spent in this window.
pub fn passed(names: &Names, budget: &Arc<str>, percent: u8) {
    metrics::counter!(THRESHOLD, "budget" => names.label(budget), "percent" => percent.to_string()).increment(1);
}

pub fn denied(names: &Names, budget: &Arc<str>, reason: &'static str) {
    metrics::counter!(DENIED, "budget" => names.label(budget), "reason" => reason).increment(1);
}

pub const METRICS: &[Described] = &[
    Described {
        name: CHARGES,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["tenant", "provider", "route", "basis"],
        help: "Calls to providers that were charged, `exact` from the provider's usage or `estimated` without one.",
    },
    Described {
        name: COST,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["tenant", "provider", "route", "basis"],
        help: "What the calls cost, in billionths of a US dollar. Calls to models without a price add nothing.",
    },
    Described {
        name: TOKENS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["tenant", "provider", "route", "basis", "direction"],
        help: "Tokens charged, `input` and `output`, cached and reasoning tokens included.",
    },
    Described {
        name: RELEASED,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &[],
        help: "Reservations given back because no call was made.",
    },
    Described {
        name: BOUND_EXCEEDED,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &[],
        help: "Calls whose usage was more than the bound reserved for them. Each is a defect of the bound.",
    },
    Described {
        name: LIMIT,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &["budget"],
        help: "The limit of the budget, in the budget's unit: billionths of a US dollar, tokens or requests. It and the next five are of the present window, and 0 once the budget has gone; all but `lea_budget_reserved` are the cluster's, and the same on every node. Of the first 2,000 budgets.",
    },
    Described {
        name: REMAINING,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &["budget"],
        help: "What nobody holds: the least that is left.",
    },
    Described {
        name: LEASED,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &["budget"],
        help: "Granted to nodes that live and not reported as used.",
    },
    Described {
        name: RESERVED,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &["budget"],
        help: "Set aside on this node for calls under way.",
    },
    Described {
        name: SETTLED,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &["budget"],
        help: "Of calls that have ended, as far as nodes have reported.",
    },
    Described {
        name: BURNED,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &["budget"],
        help: "Held by processes that have ended, and not proved unspent; `budget reconcile` gives it back.",
    },
    Described {
        name: DENIED,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["budget", "reason"],
        help: "Attempts not made: the ledger said no (`exceeded`), nobody answered (`unanswered`), the target has no price (`unpriced`), there are too many end users (`crowded`), or too many waited (`full`). `unanswered` and `full` count for each budget that the attempt had to fit in.",
    },
    Described {
        name: REFILL,
        kind: Kind::Histogram,
        unit: Unit::Seconds,
        labels: &[],
        help: "How long the ledger took to answer this node, when it did.",
    },
    Described {
        name: THRESHOLD,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["budget", "percent"],
        help: "Times that 50, 80 or 100 percent of a budget were spent or burned, once a window, counted by the node that leads.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beyond_the_bound_share_one() {
        let names = Names::default();
        let name = |number: usize| Arc::from(format!("b{number}"));
        for number in 0..BUDGETS_MAX {
            assert_eq!(names.label(&name(number)), name(number));
        }

        assert_eq!(&*names.label(&name(BUDGETS_MAX)), OTHERS);
        assert_eq!(names.label(&name(0)), name(0), "once there was room for it");
    }
}

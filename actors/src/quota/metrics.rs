//! What was charged.

use crate::metrics::{Described, Kind};
use metrics::Unit;

pub const CHARGES: &str = "lea_charges_total";
pub const COST: &str = "lea_cost_nanousd_total";
pub const TOKENS: &str = "lea_tokens_total";
pub const RELEASED: &str = "lea_reservations_released_total";
pub const BOUND_EXCEEDED: &str = "lea_bound_exceeded_total";

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
];

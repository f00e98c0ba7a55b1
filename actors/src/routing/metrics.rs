//! What routing counts.

use crate::metrics::{Described, Kind};
use metrics::Unit;

pub const RETRIES: &str = "lea_retries_total";
pub const RETRIES_REFUSED: &str = "lea_retries_refused_total";

pub const METRICS: &[Described] = &[
    Described {
        name: RETRIES,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["class"],
        help: "Further attempts after a failure, by the class of the failure.",
    },
    Described {
        name: RETRIES_REFUSED,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &[],
        help: "Attempts not made because retries already are 20 % of the traffic.",
    },
];

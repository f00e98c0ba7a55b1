//! What identity counts.

use crate::metrics::{Described, Kind};
use metrics::Unit;

pub const REFUSED: &str = "lea_identity_refused_total";

pub const METRICS: &[Described] = &[Described {
    name: REFUSED,
    kind: Kind::Counter,
    unit: Unit::Count,
    labels: &["reason"],
    help: "Requests refused because their key was `missing`, `unknown` or `expired`.",
}];

//! What calls to providers count.

use metrics::Unit;

use crate::metrics::{Described, Kind};

pub const CALLS: &str = "lea_provider_calls_total";
pub const CALLS_OPEN: &str = "lea_provider_calls_open";
pub const HEAD_SECONDS: &str = "lea_provider_head_seconds";
pub const CREDENTIALS_FLAGGED: &str = "lea_provider_credentials_flagged_total";

pub const METRICS: &[Described] = &[
    Described {
        name: CALLS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["provider", "outcome"],
        help: "Calls to providers, by the class of the status (2xx, 4xx, 5xx) or why there was no answer.",
    },
    Described {
        name: CALLS_OPEN,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &["provider"],
        help: "Calls whose answer has not ended.",
    },
    Described {
        name: HEAD_SECONDS,
        kind: Kind::Histogram,
        unit: Unit::Seconds,
        labels: &["provider"],
        help: "From the call to the head of the provider's response.",
    },
    Described {
        name: CREDENTIALS_FLAGGED,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["provider", "why"],
        help: "Credentials left out for a while because the provider refused (dead) or throttled them.",
    },
];

//! What the process counts about itself, next to what the rooms count.

use actors::metrics::{Described, Kind};
use metrics::Unit;

pub const BUILD: &str = "lea_build_info";
pub const READY: &str = "lea_ready";
pub const CONFIG_RELOADS: &str = "lea_config_reloads_total";
pub const ADMIN_REQUESTS: &str = "lea_admin_requests_total";

pub const LOG_LINES_DROPPED: &str = "lea_log_lines_dropped_total";

pub const METRICS: &[Described] = &[
    Described {
        name: BUILD,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &["version"],
        help: "Always 1; the label says what runs.",
    },
    Described {
        name: READY,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &[],
        help: "1 while every readiness check passes, else 0, as of the last time metrics were read.",
    },
    Described {
        name: CONFIG_RELOADS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["outcome"],
        help: "Times the configuration was read again: `applied`, `refused` or `unchanged`.",
    },
    Described {
        name: ADMIN_REQUESTS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &["path", "status"],
        help: "Requests answered by the admin listener.",
    },
    Described {
        name: LOG_LINES_DROPPED,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &[],
        help: "Log lines that were not written because standard error took them too slowly.",
    },
];

/// Every metric of the process: the rooms' and its own.
pub fn all() -> Vec<&'static Described> {
    let mut all = actors::metrics::all();
    all.extend(METRICS);
    all
}

/// Registers help and units of [`METRICS`], and says what runs.
pub fn describe() {
    for described in METRICS {
        match described.kind {
            Kind::Counter => metrics::describe_counter!(described.name, described.unit, described.help),
            Kind::Gauge => metrics::describe_gauge!(described.name, described.unit, described.help),
            Kind::Histogram => metrics::describe_histogram!(described.name, described.unit, described.help),
        }
    }
    metrics::gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

//! What this room shows, and what a metric is for all rooms above it.

use std::time::Duration;

use metrics::Unit;

/// One metric, as the reference shows it.
#[derive(Clone, Debug)]
pub struct Described {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    /// The labels it carries. Their values come from the configuration or from a fixed list, so they are bounded.
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

pub const SYNC_SECONDS: &str = "lea_storage_sync_duration_seconds";
pub const SYNCS: &str = "lea_storage_syncs_total";
pub const LOG_BYTES: &str = "lea_storage_log_bytes";
pub const LOG_ENTRIES: &str = "lea_storage_log_entries";
pub const LOG_SEGMENTS: &str = "lea_storage_log_segments";

pub const METRICS: &[Described] = &[
    Described {
        name: SYNC_SECONDS,
        kind: Kind::Histogram,
        unit: Unit::Seconds,
        labels: &[],
        help: "How long one `fdatasync` of the log took.",
    },
    Described {
        name: SYNCS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &[],
        help: "`fdatasync`s of the log. Commands for each of them is what group commit gains.",
    },
    Described { name: LOG_BYTES, kind: Kind::Gauge, unit: Unit::Bytes, labels: &[], help: "Bytes of the log on disk." },
    Described {
        name: LOG_ENTRIES,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &[],
        help: "Entries of the log on disk.",
    },
    Described {
        name: LOG_SEGMENTS,
        kind: Kind::Gauge,
        unit: Unit::Count,
        labels: &[],
        help: "Segments of the log on disk.",
    },
];

pub(crate) fn count_sync(took: Option<Duration>) {
    ::metrics::counter!(SYNCS).increment(1);
    if let Some(took) = took {
        ::metrics::histogram!(SYNC_SECONDS).record(took);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; 2^53 bytes are enough")]
pub(crate) fn measure_log(bytes: u64, entries: u64, segments: usize) {
    ::metrics::gauge!(LOG_BYTES).set(bytes as f64);
    ::metrics::gauge!(LOG_ENTRIES).set(entries as f64);
    ::metrics::gauge!(LOG_SEGMENTS).set(segments as f64);
}

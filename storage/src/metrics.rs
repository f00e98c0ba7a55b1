//! What storage counts. `<name>: what it is` stands with each; whoever composes the node describes them to its exporter.

use std::time::Duration;

/// Histogram, seconds: how long one `fdatasync` of the log took.
pub const SYNC_SECONDS: &str = "lea_storage_sync_seconds";
/// Counter: `fdatasync`s of the log. Commands per sync is what group commit gains.
pub const SYNCS: &str = "lea_storage_syncs_total";
/// Gauge: bytes of the log on disk.
pub const LOG_BYTES: &str = "lea_storage_log_bytes";
/// Gauge: entries of the log on disk.
pub const LOG_ENTRIES: &str = "lea_storage_log_entries";
/// Gauge: segments of the log on disk.
pub const LOG_SEGMENTS: &str = "lea_storage_log_segments";

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

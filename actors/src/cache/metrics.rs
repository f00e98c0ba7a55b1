//! What the cache counts.

use crate::metrics::{Described, Kind};
use ::metrics::Unit;
use storage::cache::Shard;

pub const BYTES: &str = "lea_cache_bytes";
pub const ENTRIES: &str = "lea_cache_entries";
pub const EVICTIONS: &str = "lea_cache_evictions_total";

pub const METRICS: &[Described] = &[
    Described {
        name: BYTES,
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        labels: &[],
        help: "Weight of the cached answers in memory, keys included.",
    },
    Described { name: ENTRIES, kind: Kind::Gauge, unit: Unit::Count, labels: &[], help: "Cached answers in memory." },
    Described {
        name: EVICTIONS,
        kind: Kind::Counter,
        unit: Unit::Count,
        labels: &[],
        help: "Cached answers that had to go for others.",
    },
];

/// Sets the gauges. `evictions_seen` is how many were counted before.
pub fn measure(shard: &Shard, evictions_seen: &mut u64) {
    let evictions = shard.evictions();
    ::metrics::counter!(EVICTIONS).increment(evictions.saturating_sub(*evictions_seen));
    *evictions_seen = evictions;
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float; 2^53 bytes are enough")]
    let (bytes, entries) = (shard.bytes() as f64, shard.len() as f64);
    ::metrics::gauge!(BYTES).set(bytes);
    ::metrics::gauge!(ENTRIES).set(entries);
}

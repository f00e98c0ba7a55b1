//! Every metric there is: its name, what it counts and the labels it may have.
//!
//! A room lists its own in `<room>/metrics.rs`; here they meet, for the exporter and for the generated reference.

use ::metrics::Counter;
use parking_lot::Mutex;
use std::ops::Deref;
use std::sync::{Arc, Weak};

/// Registers help and unit of every metric with the installed recorder. To be called once, after it is installed.
pub fn describe_all() {
    for described in all() {
        match described.kind {
            Kind::Counter => metrics::describe_counter!(described.name, described.unit, described.help),
            Kind::Gauge => metrics::describe_gauge!(described.name, described.unit, described.help),
            Kind::Histogram => metrics::describe_histogram!(described.name, described.unit, described.help),
        }
    }
}

pub use cluster::metrics::{Described, Kind};

/// A counter looked up once, and counted on through its handle. The exporter forgets a series that nobody has touched for
/// long, and what its handle counts after that is shown to nobody; so each of these is touched whenever metrics are read.
#[derive(Clone)]
pub struct KeptCounter {
    counter: Counter,
    _is_kept: Arc<()>,
}

/// Of the process, as the recorder is.
static KEPT: Mutex<Vec<(Weak<()>, Counter)>> = Mutex::new(Vec::new());

impl KeptCounter {
    pub fn new(counter: Counter) -> Self {
        let is_kept = Arc::new(());
        let mut kept = KEPT.lock();
        // Metrics may never be read.
        if kept.len() == kept.capacity() {
            kept.retain(|(is_kept, _counter)| is_kept.strong_count() > 0);
            // Else the next would look through all of them again.
            let more = kept.len() + 1;
            kept.reserve(more);
        }
        kept.push((Arc::downgrade(&is_kept), counter.clone()));
        Self { counter, _is_kept: is_kept }
    }
}

impl Deref for KeptCounter {
    type Target = Counter;

    fn deref(&self) -> &Counter {
        &self.counter
    }
}

/// Before metrics are read: the series of all [`KeptCounter`] stay. Those of handles that are gone may be forgotten.
pub fn touch_kept() {
    KEPT.lock().retain(|(is_kept, counter)| {
        counter.increment(0);
        is_kept.strong_count() > 0
    });
}

/// Every room's metrics, in the order of the rooms; those of the rooms below last.
pub fn all() -> Vec<&'static Described> {
    ROOMS.iter().copied().flatten().chain(cluster::metrics::all()).collect()
}

const ROOMS: &[&[Described]] = &[
    crate::supervisor::metrics::METRICS,
    crate::ingress::metrics::METRICS,
    crate::ingress::pipeline::metrics::METRICS,
    crate::identity::metrics::METRICS,
    crate::queue::metrics::METRICS,
    crate::cache::metrics::METRICS,
    crate::routing::metrics::METRICS,
    crate::breaker::metrics::METRICS,
    crate::quota::metrics::METRICS,
    crate::provider::metrics::METRICS,
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_list_of_handles_that_are_gone_does_not_grow() {
        for _ in 0..10_000 {
            drop(KeptCounter::new(Counter::noop()));
        }

        let kept = KEPT.lock().len();
        assert!(kept < 5_000, "{kept}");
    }

    #[test]
    fn names_are_unique_and_ours() {
        let mut seen = BTreeSet::new();
        for described in all() {
            assert!(described.name.starts_with("lea_"), "{}", described.name);
            assert!(seen.insert(described.name), "{} is described twice", described.name);
        }
    }

    /// Prometheus' own conventions; dashboards rely on them.
    #[test]
    fn counters_end_in_total_and_nothing_else_does() {
        for described in all() {
            assert_eq!(described.name.ends_with("_total"), described.kind == Kind::Counter, "{}", described.name);
        }
    }

    #[test]
    fn help_is_a_sentence() {
        for described in all() {
            assert!(described.help.ends_with('.'), "{}", described.name);
        }
    }
}

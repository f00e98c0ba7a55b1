//! Every metric there is: its name, what it counts and the labels it may have.
//!
//! A room lists its own in `<room>/metrics.rs`; here they meet, for the exporter and for the generated reference.

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

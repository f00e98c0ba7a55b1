//! What this room shows. Names and labels as Prometheus has them; a test in `actors` holds the conventions.

use metrics::Unit;

/// One metric, as the reference shows it.
#[derive(Clone, Debug)]
pub struct Described {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    /// The labels it carries. Their values come from a fixed list, so they are bounded.
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Every metric of the room.
pub fn all() -> impl Iterator<Item = &'static Described> {
    [crate::peer::metrics::METRICS, crate::membership::metrics::METRICS].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        for described in all() {
            assert!(described.name.starts_with("lea_"), "{}", described.name);
            assert_eq!(described.name.ends_with("_total"), described.kind == Kind::Counter, "{}", described.name);
            assert!(described.help.ends_with('.'), "{}", described.name);
        }
    }
}

//! What this room shows. Names and labels as Prometheus has them; a test in `actors` holds the conventions.

pub use storage::metrics::{Described, Kind};

/// Every metric of this room and of the one below.
pub fn all() -> impl Iterator<Item = &'static Described> {
    let rooms = [
        crate::consensus::metrics::METRICS,
        crate::peer::metrics::METRICS,
        crate::membership::metrics::METRICS,
        storage::metrics::METRICS,
    ];
    rooms.into_iter().flatten()
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

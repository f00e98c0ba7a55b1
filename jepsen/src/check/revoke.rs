//! P-REVOKE: once `revoke` has returned, no node serves a request that arrives with the key.

use std::collections::BTreeMap;
use std::time::Duration;

/// Watches the keys whose revocation has returned.
#[derive(Debug, Default)]
pub struct Watch {
    returned: BTreeMap<String, Duration>,
    broken: Vec<String>,
}

impl Watch {
    pub fn returned(&mut self, key: &str, at: Duration) {
        self.returned.insert(key.to_owned(), at);
    }

    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.returned.keys()
    }

    /// One look at one node: does it serve the key?
    pub fn looked(&mut self, key: &str, node: usize, serves: bool, at: Duration) {
        if let Some(returned) = self.returned.get(key).filter(|_| serves) {
            let late = at.saturating_sub(*returned);
            self.broken.push(format!("node {node} serves `{key}` {late:?} after its revocation returned"));
        }
    }

    pub fn broken(&self) -> &[String] {
        &self.broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_returned_is_held_against_a_node() {
        let mut watch = Watch::default();
        watch.looked("k", 0, true, Duration::ZERO);
        assert!(watch.broken().is_empty());

        watch.returned("k", Duration::from_secs(1));
        watch.looked("k", 0, false, Duration::from_secs(2));
        assert!(watch.broken().is_empty());
        watch.looked("k", 1, true, Duration::from_secs(3));
        assert_eq!(watch.broken(), ["node 1 serves `k` 2s after its revocation returned"]);
    }
}

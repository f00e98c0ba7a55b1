//! What the keys use that have some limit. Those of which nothing need be remembered are forgotten, now and then.

use std::collections::HashMap;
use std::sync::Arc;

/// Keys that are remembered before it is looked which of them need not be.
const KEYS_FEW: usize = 1024;

pub(super) struct ByKey<T> {
    by_id: HashMap<u64, Arc<T>>,
    /// Before there are more, it is looked which need not be kept.
    look_at: usize,
}

impl<T> Default for ByKey<T> {
    fn default() -> Self {
        Self { by_id: HashMap::new(), look_at: KEYS_FEW }
    }
}

impl<T> ByKey<T> {
    pub fn get(&self, id: u64) -> Option<Arc<T>> {
        self.by_id.get(&id).map(Arc::clone)
    }

    pub fn get_or_make(&mut self, id: u64, fresh: impl FnOnce() -> T, is_idle: impl Fn(&T) -> bool) -> Arc<T> {
        if let Some(known) = self.get(id) {
            return known;
        }
        if self.by_id.len() >= self.look_at {
            self.forget(is_idle);
            self.look_at = KEYS_FEW.max(self.by_id.len().saturating_mul(2));
        }
        Arc::clone(self.by_id.entry(id).or_insert_with(|| Arc::new(fresh())))
    }

    /// Those that are idle and in nobody's hands.
    pub fn forget(&mut self, is_idle: impl Fn(&T) -> bool) {
        self.by_id.retain(|_id, known| Arc::strong_count(known) > 1 || !is_idle(known));
    }

    pub fn all(&self) -> Vec<Arc<T>> {
        self.by_id.values().map(Arc::clone).collect()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_idle_and_in_nobodys_hands_is_forgotten_once_there_are_many() {
        let mut keys = ByKey::default();
        let held = keys.get_or_make(0, || true, |idle| *idle);
        let busy = keys.get_or_make(1, || false, |idle| *idle);
        drop(busy);

        for id in 2..10 * KEYS_FEW as u64 {
            drop(keys.get_or_make(id, || true, |idle| *idle));
        }

        assert!(keys.len() <= KEYS_FEW + 1, "{}", keys.len());
        assert!(Arc::ptr_eq(&keys.get(0).unwrap(), &held) && keys.get(1).is_some());
    }
}

//! One shard of the answer cache, in memory.
//!
//! Who may see an entry is decided by its [`Scope`], which is a parameter of every call and part of what is looked up:
//! there is no way to ask for an entry without it (P-ISOLATE).

use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};

/// Answers by scope and key, at most so many bytes of them; what is asked for more often stays longer.
///
/// Shared by reference between threads; the locks inside are held for a look-up, never for a wait.
pub struct Shard {
    cache: Cache<At, Entry, Bytewise, DefaultHashBuilder, CountEvicted>,
    entry_bytes_max: u64,
    evictions: AtomicU64,
}

/// Who may share an entry. Opaque here; whoever makes it answers for what it stands for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(pub [u8; 16]);

/// What was asked, as a hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 32]);

/// An answer as it was stored. Cheap to clone: the bytes are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub value: Bytes,
    pub stored_at: Instant,
    pub fresh_for: Duration,
}

/// Whether an answer was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Stored {
    Yes,
    /// It would take more than its share of the cache. What was stored under its key before is gone all the same.
    TooLarge,
}

/// Each lock guards at least so many bytes, so that one answer is a small part of what it guards.
const LOCK_BYTES_MIN: u64 = 16 << 20;
const LOCKS_MAX: u64 = 16;

/// A guess, used for bookkeeping of what was evicted lately. An order of magnitude matters, no more.
const ANSWER_BYTES_GUESS: u64 = 4 << 10;

/// Beyond key and value: the table's slot and its spare room, and the allocation of the bytes.
const ENTRY_OVERHEAD: u64 = 128;

impl Shard {
    /// `bytes_max` counts values, keys and what it takes to keep them. 0 keeps nothing.
    #[expect(clippy::expect_used, clippy::missing_panics_doc, reason = "fails only without capacities; both are set")]
    pub fn new(bytes_max: u64) -> Self {
        let locks = (bytes_max / LOCK_BYTES_MIN).clamp(1, LOCKS_MAX);
        let locks = 1 << locks.ilog2();
        // The crate rounds each lock's part up; a multiple keeps the sum within the bound.
        let capacity = bytes_max / locks * locks;
        let items = (capacity / ANSWER_BYTES_GUESS).max(64 * locks);
        let options = OptionsBuilder::new()
            .shards(usize::try_from(locks).unwrap_or(1))
            .weight_capacity(capacity)
            .estimated_items_capacity(usize::try_from(items).unwrap_or(usize::MAX))
            .build()
            .expect("both capacities are set");
        let cache = Cache::with_options(options, Bytewise, DefaultHashBuilder::default(), CountEvicted);
        // Below the 97 % that the crate admits: what is refused is refused here, where it can be told.
        let entry_bytes_max = cache.shard_capacity() / 10 * 9;
        Self { cache, entry_bytes_max, evictions: AtomicU64::new(0) }
    }

    /// An entry that is still fresh at `now`. One that is not is removed on the way.
    pub fn get(&self, scope: Scope, key: Key, now: Instant) -> Option<Entry> {
        let at = At { scope, key };
        let entry = self.cache.get(&at)?;
        if entry.is_fresh(now) {
            return Some(entry);
        }
        // Looked at again under the lock: a newer answer may have come in between.
        self.cache.remove_if(&at, |entry| !entry.is_fresh(now));
        None
    }

    /// Replaces what was there. `value` should not be a small part of a large buffer: all of that buffer would be kept.
    pub fn put(&self, scope: Scope, key: Key, value: Bytes, fresh_for: Duration, now: Instant) -> Stored {
        let at = At { scope, key };
        let entry = Entry { value, stored_at: now, fresh_for };
        if Bytewise.weight(&at, &entry) > self.entry_bytes_max {
            self.cache.remove(&at);
            return Stored::TooLarge;
        }
        let mut evicted = Evicted { replaced: Some(at), others: 0 };
        self.cache.insert_with_lifecycle(at, entry, &mut evicted);
        self.evictions.fetch_add(evicted.others, Ordering::Relaxed);
        Stored::Yes
    }

    pub fn remove(&self, scope: Scope, key: Key) {
        self.cache.remove(&At { scope, key });
    }

    pub fn clear(&self) {
        self.cache.clear();
    }

    /// As counted against the bound; entries no longer fresh count until somebody asks for them or room is needed.
    pub fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    pub fn len(&self) -> u64 {
        u64::try_from(self.cache.len()).unwrap_or(u64::MAX)
    }

    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// Entries that made room for others, since the start.
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }
}

impl Entry {
    pub fn is_fresh(&self, now: Instant) -> bool {
        self.age(now) < self.fresh_for
    }

    /// Zero for an entry of the future: clocks of two threads may be read in either order.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.stored_at)
    }
}

/// What an entry is found by: both parts or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct At {
    scope: Scope,
    key: Key,
}

#[derive(Clone)]
struct Bytewise;

impl Weighter<At, Entry> for Bytewise {
    fn weight(&self, _: &At, entry: &Entry) -> u64 {
        let fixed = size_of::<At>() + size_of::<Entry>() + entry.value.len();
        u64::try_from(fixed).unwrap_or(u64::MAX).saturating_add(ENTRY_OVERHEAD)
    }
}

/// Counts what had to go. The crate reports a replaced entry as evicted too; that one does not count.
#[derive(Clone)]
struct CountEvicted;

#[derive(Default)]
struct Evicted {
    replaced: Option<At>,
    others: u64,
}

impl Lifecycle<At, Entry> for CountEvicted {
    type RequestState = Evicted;

    fn on_evict(&self, evicted: &mut Evicted, at: At, _: Entry) {
        if evicted.replaced != Some(at) {
            evicted.others += 1;
        }
    }
}

impl Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard").field("len", &self.len()).field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to count from")]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn scope(number: u8) -> Scope {
        Scope([number; 16])
    }

    fn key(number: u8) -> Key {
        Key([number; 32])
    }

    fn value(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn an_answer_is_fresh_until_its_time_is_over() {
        let shard = Shard::new(1 << 20);
        let start = Instant::now();
        assert_eq!(shard.put(scope(1), key(1), value("answer"), HOUR, start), Stored::Yes);

        let last = start + HOUR.saturating_sub(Duration::from_nanos(1));
        let entry = shard.get(scope(1), key(1), last).unwrap();
        assert_eq!((entry.value, entry.stored_at, entry.fresh_for), (value("answer"), start, HOUR));

        assert_eq!(shard.get(scope(1), key(1), start + HOUR), None);
        assert_eq!((shard.len(), shard.bytes()), (0, 0), "an entry past its time is removed when it is asked for");
        assert_eq!(shard.evictions(), 0);
    }

    #[test]
    fn an_answer_is_replaced_removed_and_cleared() {
        let shard = Shard::new(1 << 20);
        let now = Instant::now();
        for text in ["first", "second"] {
            assert_eq!(shard.put(scope(1), key(1), value(text), HOUR, now), Stored::Yes);
        }
        assert_eq!(shard.get(scope(1), key(1), now).unwrap().value, value("second"));
        assert_eq!((shard.len(), shard.evictions()), (1, 0), "replacing is not evicting");

        shard.remove(scope(1), key(1));
        assert_eq!(shard.get(scope(1), key(1), now), None);

        assert_eq!(shard.put(scope(1), key(1), value("third"), HOUR, now), Stored::Yes);
        shard.clear();
        assert!(shard.is_empty());
    }

    #[test]
    fn an_answer_too_large_is_refused_and_leaves_nothing_stale() {
        let shard = Shard::new(10_000);
        let now = Instant::now();
        assert_eq!(shard.put(scope(1), key(1), value("old"), HOUR, now), Stored::Yes);
        assert_eq!(shard.put(scope(1), key(1), Bytes::from(vec![0; 10_000]), HOUR, now), Stored::TooLarge);
        assert_eq!(shard.get(scope(1), key(1), now), None);
        assert_eq!(Shard::new(0).put(scope(1), key(1), value(""), HOUR, now), Stored::TooLarge);
    }

    #[test]
    fn a_large_cache_takes_answers_of_some_megabytes() {
        let shard = Shard::new(256 << 20);
        let now = Instant::now();
        assert_eq!(shard.put(scope(1), key(1), Bytes::from(vec![0; 8 << 20]), HOUR, now), Stored::Yes);
        assert!(shard.get(scope(1), key(1), now).is_some());
    }

    #[test]
    fn what_is_asked_for_often_outlives_a_scan() {
        let shard = Shard::new(100_000);
        let now = Instant::now();
        assert_eq!(shard.put(scope(1), key(0), value("popular"), HOUR, now), Stored::Yes);
        for number in 1..=255 {
            assert!(shard.get(scope(1), key(0), now).is_some(), "gone after {number}");
            assert_eq!(shard.put(scope(2), key(number), Bytes::from(vec![0; 1_000]), HOUR, now), Stored::Yes);
        }
        assert!(shard.evictions() > 100);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put { scope: u8, key: u8, length: usize, fresh_for: u64 },
        Get { scope: u8, key: u8 },
        Remove { scope: u8, key: u8 },
        Wait { seconds: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..4u8, 0..8u8, 0..3_000usize, 1..100u64)
                .prop_map(|(scope, key, length, fresh_for)| Step::Put { scope, key, length, fresh_for }),
            4 => (0..4u8, 0..8u8).prop_map(|(scope, key)| Step::Get { scope, key }),
            1 => (0..4u8, 0..8u8).prop_map(|(scope, key)| Step::Remove { scope, key }),
            1 => (0..50u64).prop_map(|seconds| Step::Wait { seconds }),
        ]
    }

    proptest! {
        /// P-ISOLATE and the bounds, against a plain map: what comes back was put under this scope and key, was the
        /// last put there, and is fresh; the bytes stay within the bound whatever happens.
        #[test]
        fn what_comes_back_is_what_was_put_in_this_scope(bytes_max in 0..20_000u64, steps in prop::collection::vec(step(), 0..200)) {
            let shard = Shard::new(bytes_max);
            let mut model: HashMap<(u8, u8), (Bytes, Instant)> = HashMap::new();
            let mut now = Instant::now();
            for (count, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Put { scope: s, key: k, length, fresh_for } => {
                        // Different each time, so that a mix-up shows.
                        let mut content = format!("{s} {k} {count} ").into_bytes();
                        content.resize(content.len() + length, b'.');
                        let (content, fresh_for) = (Bytes::from(content), Duration::from_secs(fresh_for));
                        model.remove(&(s, k));
                        if shard.put(scope(s), key(k), content.clone(), fresh_for, now) == Stored::Yes {
                            model.insert((s, k), (content, now + fresh_for));
                        }
                    }
                    Step::Get { scope: s, key: k } => {
                        if let Some(entry) = shard.get(scope(s), key(k), now) {
                            let (content, fresh_until) = model.get(&(s, k)).expect("nothing was put here");
                            prop_assert_eq!(&entry.value, content);
                            prop_assert!(now < *fresh_until);
                        }
                    }
                    Step::Remove { scope: s, key: k } => {
                        shard.remove(scope(s), key(k));
                        model.remove(&(s, k));
                    }
                    Step::Wait { seconds } => now += Duration::from_secs(seconds),
                }
                prop_assert!(shard.bytes() <= bytes_max);
            }
        }

        /// The same key under another scope is another entry, however alike the scopes are.
        #[test]
        fn no_scope_sees_another_ones_entry(mine: [u8; 16], bit in 0..128usize, key: [u8; 32]) {
            let mut other = mine;
            other[bit / 8] ^= 1 << (bit % 8);
            let shard = Shard::new(1 << 20);
            let now = Instant::now();

            prop_assert_eq!(shard.put(Scope(mine), Key(key), value("mine"), HOUR, now), Stored::Yes);

            prop_assert_eq!(shard.get(Scope(other), Key(key), now), None);
            prop_assert!(shard.get(Scope(mine), Key(key), now).is_some());
            shard.remove(Scope(other), Key(key));
            prop_assert!(shard.get(Scope(mine), Key(key), now).is_some());
        }

        /// Many locks or one: together they keep to the bound.
        #[test]
        fn all_locks_together_keep_to_the_bound(bytes_max in (32u64 << 20)..(70 << 20), answers in 100..200u8) {
            let shard = Shard::new(bytes_max);
            let now = Instant::now();
            let answer = Bytes::from(vec![0; 900_000]);
            for number in 0..answers {
                // The bytes are shared between entries, so this takes no memory.
                prop_assert_eq!(shard.put(scope(0), key(number), answer.clone(), HOUR, now), Stored::Yes);
            }
            prop_assert!(shard.bytes() <= bytes_max);
            prop_assert!(shard.bytes() > bytes_max / 2);
        }
    }

    #[test]
    fn scopes_and_keys_print_as_hexadecimal() {
        assert_eq!(format!("{:?}", scope(0xab)), "ab".repeat(16));
        assert_eq!(format!("{:?}", key(0x01)), "01".repeat(32));
    }

    #[test]
    fn threads_share_a_shard() {
        let shard = Shard::new(1 << 20);
        let now = Instant::now();
        std::thread::scope(|threads| {
            for thread in 0..4u8 {
                let shard = &shard;
                threads.spawn(move || {
                    for number in 0..=255 {
                        assert_eq!(shard.put(scope(thread), key(number), value("x"), HOUR, now), Stored::Yes);
                        assert!(shard.get(scope(thread), key(number), now).is_some());
                    }
                });
            }
        });
        assert_eq!(shard.len(), 1_024);
    }
}

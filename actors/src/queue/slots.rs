//! Requests of one key at once: each holds a slot for as long as it is worked on. On a node that is alone the slots are
//! its own; with others it is lent them by the key's owner.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::metrics::Gauge;
use cluster::clock;
use cluster::limits::ASK_WITHIN;
use cluster::limits::slots::borrower::Borrower;
use cluster::limits::slots::{Lent, Told};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::by_key::ByKey;
use super::shared::{Owners, WAIT_MAX};
use super::{Queue, QueueError, metrics};

/// A request waits so long for a slot that is about to be given back: a client may know sooner than the owner that its
/// request before is over.
const LINGER: Duration = Duration::from_millis(100);

/// What the keys use that have a limit on requests at once; the rest is forgotten.
pub(super) struct Slots {
    keys: Mutex<ByKey<Key>>,
    /// Of what was told last, of whatever key.
    sequence: AtomicU64,
    /// Something is lent that nobody uses.
    spare: Arc<Notify>,
    in_use: Gauge,
}

struct Key {
    id: u64,
    state: Mutex<State>,
    /// A slot may be there, or an answer.
    changed: Notify,
    spare: Arc<Notify>,
}

impl Key {
    fn is_idle(&self) -> bool {
        !self.state.lock().borrower.is_live()
    }
}

#[derive(Default)]
struct State {
    borrower: Borrower,
    waiting: u32,
    /// As it was last.
    max: u32,
}

enum Step {
    In,
    Refused,
    /// Until something changed, or so long.
    Wait(Duration),
    Ask(Told),
}

/// One of a key's slots. Dropped, it is free.
pub(super) struct Slot {
    key: Arc<Key>,
    in_use: Gauge,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.key.state.lock().borrower.put_back();
        self.in_use.decrement(1.0);
        self.key.changed.notify_waiters();
        self.key.spare.notify_one();
    }
}

impl Slots {
    pub(super) fn new() -> Self {
        Self {
            keys: Mutex::default(),
            sequence: AtomicU64::new(0),
            spare: Arc::new(Notify::new()),
            in_use: ::metrics::gauge!(metrics::SLOTS_IN_USE),
        }
    }

    fn key(&self, id: u64) -> Arc<Key> {
        let fresh = || Key { id, state: Mutex::default(), changed: Notify::new(), spare: Arc::clone(&self.spare) };
        self.keys.lock().get_or_make(id, fresh, Key::is_idle)
    }

    fn next(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Queue {
    /// One of `max` slots of a key, or why there is none. Waits a moment for one that is about to be free.
    pub(super) async fn slot(&self, key_id: u64, max: u32, now: Instant) -> Result<Slot, QueueError> {
        let key = self.slots.key(key_id);
        let owners = self.owners.get().map(AsRef::as_ref);
        let since = self.time(now);
        let at_once = {
            let mut state = key.state.lock();
            state.max = max;
            state.take(key_id, max, owners, since)
        };
        if !at_once {
            Box::pin(self.wait_for_slot(&key, max, owners, since)).await?;
        }
        self.slots.in_use.increment(1.0);
        Ok(Slot { key, in_use: self.slots.in_use.clone() })
    }

    async fn wait_for_slot(
        &self,
        key: &Arc<Key>,
        max: u32,
        owners: Option<&dyn Owners>,
        since: Duration,
    ) -> Result<(), QueueError> {
        let waiting_max = u32::try_from(self.waiting_max()).unwrap_or(u32::MAX);
        if key.state.lock().waiting >= waiting_max {
            return Err(QueueError::TooManyAtOnce { max });
        }
        let _waiting = Waiting::new(key);
        loop {
            // Before it is looked, so that no change is missed.
            let changed = key.changed.notified();
            let now = self.time(clock::now());
            let step = key.state.lock().step(key.id, max, owners, since, now, || self.slots.next());
            match step {
                Step::In => return Ok(()),
                Step::Refused => return Err(QueueError::TooManyAtOnce { max }),
                // Either way it is looked again.
                Step::Wait(at_most) => drop(timeout(at_most, changed).await),
                Step::Ask(told) => {
                    let asking = Asking { key, sequence: told.sequence };
                    let Some(owners) = owners else { return Err(QueueError::TooManyAtOnce { max }) };
                    let answer = timeout(ASK_WITHIN, owners.ask_slots(told)).await.ok().flatten();
                    self.metrics.slots_asked.count(answer.is_some());
                    key.state.lock().borrower.hear(&told, answer.as_ref(), self.time(clock::now()));
                    drop(asking);
                }
            }
        }
    }

    /// When some slots are lent that nobody uses.
    pub async fn spare_slots(&self) {
        self.slots.spare.notified().await;
    }

    /// What the owners need to hear: of all keys that use slots or were lent some, or only of those that give some back.
    /// The number is smaller than that of all that is told.
    pub fn tell_slots(&self, only_spare: bool, now: Instant) -> (u64, Vec<Told>) {
        let (first, now) = (self.slots.next(), self.time(now));
        let mut keys = self.slots.keys.lock();
        keys.forget(Key::is_idle);
        let keys = keys.all();
        let told = keys.iter().filter_map(|key| {
            let mut state = key.state.lock();
            let State { max, waiting, .. } = *state;
            let borrower = &mut state.borrower;
            let is_wanted = if only_spare { borrower.has_spare() && waiting == 0 } else { borrower.is_live() };
            is_wanted.then(|| borrower.tell(key.id, max, self.slots.next(), 0, now))
        });
        (first, told.collect())
    }

    /// What an owner answered to that; `None` where it did not.
    pub fn hear_slots(&self, told: &[Told], answer: Option<&[Lent]>, now: Instant) {
        let now = self.time(now);
        let lent: HashMap<u64, &Lent> = answer.into_iter().flatten().map(|lent| (lent.key, lent)).collect();
        for told in told {
            let key = self.slots.keys.lock().get(told.key);
            if let Some(key) = key {
                key.state.lock().borrower.hear(told, lent.get(&told.key).copied(), now);
            }
        }
    }
}

impl State {
    fn take(&mut self, key: u64, max: u32, owners: Option<&dyn Owners>, now: Duration) -> bool {
        match owners {
            None => self.borrower.take_own(max),
            Some(owners) => {
                let part = u32::try_from(owners.part(key, max.into())).unwrap_or(max);
                self.borrower.take(max, part, now)
            }
        }
    }

    fn step(
        &mut self,
        key: u64,
        max: u32,
        owners: Option<&dyn Owners>,
        since: Duration,
        now: Duration,
        sequence: impl FnOnce() -> u64,
    ) -> Step {
        if self.take(key, max, owners, now) {
            return Step::In;
        }
        // All of them are used here: nobody need be asked.
        let is_full = owners.is_none() || self.borrower.used() >= max;
        let lingered = now >= since + LINGER && (is_full || self.borrower.is_refused(since + LINGER));
        if lingered || now >= since + WAIT_MAX {
            return Step::Refused;
        }
        let left = (since + WAIT_MAX).saturating_sub(now);
        let pause = self.borrower.pause(now);
        if is_full {
            return Step::Wait((since + LINGER).saturating_sub(now).min(left));
        }
        if self.borrower.is_asking() {
            return Step::Wait(left);
        }
        if !pause.is_zero() {
            return Step::Wait(pause.min(left));
        }
        Step::Ask(self.borrower.tell(key, max, sequence(), self.waiting.min(max), now))
    }
}

/// Dropped, one waits less.
struct Waiting<'a> {
    key: &'a Key,
}

impl<'a> Waiting<'a> {
    fn new(key: &'a Key) -> Self {
        key.state.lock().waiting += 1;
        Self { key }
    }
}

/// What was lent for it and is of no use to anyone is given back.
impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.key.state.lock();
        state.waiting -= 1;
        if state.borrower.has_spare() {
            self.key.spare.notify_one();
        }
    }
}

/// Dropped, another may ask.
struct Asking<'a> {
    key: &'a Key,
    sequence: u64,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.key.state.lock().borrower.give_up(self.sequence);
        self.key.changed.notify_waiters();
    }
}

#[cfg(test)]
#[path = "slots/tests.rs"]
mod tests;

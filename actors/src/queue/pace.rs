//! Requests a second of one key. On a node that is alone it keeps the pace itself; with others, who lacks leave asks the
//! key's owner, one request of a key at a time, and where requests come fast for some of the next ones, too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::limits::ASK_WITHIN;
use cluster::limits::pace::{AHEAD, Ask, Gcra, Given, LEAVE_FOR};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::by_key::ByKey;
use super::shared::{Owners, WAIT_MAX};
use super::{Queue, QueueError, whole_seconds};

/// After the owner gave less than was wanted it is not asked again at once, however fast requests come.
const PAUSE: Duration = Duration::from_millis(5);

/// No more is asked for ahead than this part of a second's worth.
const AHEAD_PART: u32 = 4;

/// An owner that did not answer is not asked for so long; the node goes by its even part meanwhile.
const SILENT_FOR: Duration = Duration::from_millis(500);

/// What the keys use that have a limit a second; the rest is forgotten.
#[derive(Default)]
pub(super) struct Paces(Mutex<ByKey<Key>>);

#[derive(Default)]
struct Key {
    state: Mutex<State>,
    /// The owner answered, or did not.
    answered: Notify,
}

/// Times are since the queue was made.
#[derive(Clone, Default)]
struct State {
    /// Where nobody is asked.
    own: Gcra,
    /// By the owner, and until when.
    leave: u32,
    until: Duration,
    /// The owner had no more.
    none_until: Duration,
    /// The owner did not answer.
    alone_until: Duration,
    asking: bool,
    waiting: u32,
    /// How many came since the owner was asked last, and when that was.
    came: u32,
    asked_at: Duration,
}

enum Step {
    In,
    Refused(Duration),
    /// Until the owner has answered, or so long.
    Wait(Duration),
    Ask(Ask),
}

impl Paces {
    fn key(&self, id: u64, now: Duration) -> Arc<Key> {
        self.0.lock().get_or_make(id, Key::default, |key| key.state.lock().is_idle(now))
    }
}

impl Queue {
    /// Refuses who would be refused now without asking anyone. Takes nothing.
    pub(super) fn is_due(&self, key_id: u64, per_second: u32) -> Result<(), QueueError> {
        let now = self.time(now());
        let key = self.paces.key(key_id, now);
        let limit = Limit { key_id, per_second, owners: self.owners.get().map(AsRef::as_ref) };
        let mut copy = key.state.lock().clone();
        copy.take(limit, now).unwrap_or(Ok(())).map_err(|wait| too_fast(per_second, wait))
    }

    /// Leave for one of `per_second` requests of a key, or when to come back.
    pub(super) async fn pass(&self, key_id: u64, per_second: u32) -> Result<(), QueueError> {
        let now = self.time(now());
        let key = self.paces.key(key_id, now);
        let owners = self.owners.get().map(AsRef::as_ref);
        let limit = Limit { key_id, per_second, owners };
        let at_once = {
            let mut state = key.state.lock();
            state.came = state.came.saturating_add(1);
            state.take(limit, now)
        };
        match at_once {
            Some(taken) => taken.map_err(|wait| too_fast(per_second, wait)),
            None => Box::pin(self.ask_for_pass(&key, limit, now)).await,
        }
    }

    async fn ask_for_pass(&self, key: &Key, limit: Limit<'_>, since: Duration) -> Result<(), QueueError> {
        let refused = |wait| Err(too_fast(limit.per_second, wait));
        let waiting_max = u32::try_from(self.waiting_max()).unwrap_or(u32::MAX);
        let Some(_waiting) = Waiting::new(key, waiting_max) else { return refused(Duration::ZERO) };
        loop {
            // Before it is looked, so that no answer is missed.
            let answered = key.answered.notified();
            let looked = self.time(now());
            let step = key.state.lock().step(limit, looked, since + WAIT_MAX);
            match step {
                Step::In => return Ok(()),
                Step::Refused(wait) => return refused(wait),
                // Either way it is looked again.
                Step::Wait(at_most) => drop(timeout(at_most, answered).await),
                Step::Ask(ask) => {
                    let asking = Asking { key };
                    let Some(owners) = limit.owners else { return refused(Duration::ZERO) };
                    let given = timeout(ASK_WITHIN, owners.ask_pace(ask)).await.ok().flatten();
                    self.metrics.pace_asked.count(given.is_some());
                    key.state.lock().hear(&ask, given, looked, self.time(now()));
                    drop(asking);
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Limit<'a> {
    key_id: u64,
    per_second: u32,
    owners: Option<&'a dyn Owners>,
}

impl State {
    /// Leave, or how long until there is; `None` where the owner is to be asked.
    fn take(&mut self, limit: Limit<'_>, now: Duration) -> Option<Result<(), Duration>> {
        let own = match limit.owners {
            None => Some(limit.per_second),
            Some(owners) if now < self.alone_until => {
                Some(u32::try_from(owners.part(limit.key_id, limit.per_second.into())).unwrap_or(u32::MAX))
            }
            Some(_) => None,
        };
        if let Some(per_second) = own {
            if per_second == 0 {
                return Some(Err(self.alone_until.saturating_sub(now)));
            }
            let (amount, next_in) = self.own.take(per_second, 1, now);
            return Some(if amount == 1 { Ok(()) } else { Err(next_in) });
        }
        if self.leave > 0 && now < self.until {
            self.leave -= 1;
            return Some(Ok(()));
        }
        (now < self.none_until).then(|| Err(self.none_until.saturating_sub(now)))
    }

    fn step(&mut self, limit: Limit<'_>, now: Duration, give_up: Duration) -> Step {
        match self.take(limit, now) {
            Some(Ok(())) => Step::In,
            Some(Err(wait)) => Step::Refused(wait),
            None if now >= give_up => Step::Refused(Duration::ZERO),
            None if self.asking => Step::Wait(give_up.saturating_sub(now)),
            None => {
                self.asking = true;
                let Limit { key_id: key, per_second, .. } = limit;
                Step::Ask(Ask { key, per_second, wanted: self.wanted(per_second, now) })
            }
        }
    }

    /// For those that wait, and for what comes soon if it comes as fast as before: it is felt for by doubling. What nobody
    /// uses is lost to others, so it is a part of what may come while it holds.
    fn wanted(&mut self, per_second: u32, now: Duration) -> u32 {
        let passed = now.saturating_sub(self.asked_at);
        let soon = if passed < AHEAD {
            u128::from(self.came) * 2
        } else {
            u128::from(self.came) * AHEAD.as_nanos() / passed.as_nanos()
        };
        (self.came, self.asked_at) = (0, now);
        u32::try_from(soon).unwrap_or(u32::MAX).min(per_second / AHEAD_PART).max(self.waiting).max(1)
    }

    fn hear(&mut self, ask: &Ask, given: Option<Given>, sent: Duration, now: Duration) {
        let Some(given) = given else {
            self.alone_until = now + SILENT_FOR;
            return;
        };
        (self.leave, self.until) = (given.amount, sent + LEAVE_FOR);
        if given.amount < ask.wanted {
            self.none_until = now + Duration::from_millis(given.next_in_ms.into()).max(PAUSE);
        }
    }

    /// Nothing of it need be remembered.
    fn is_idle(&self, now: Duration) -> bool {
        let latest = self.until.max(self.none_until).max(self.alone_until);
        self.own.is_idle(now) && latest <= now && self.waiting == 0
    }
}

/// By the runtime's clock, as its timeouts are.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn too_fast(per_second: u32, wait: Duration) -> QueueError {
    QueueError::TooFast { per_second, retry_after: whole_seconds(wait) }
}

/// Dropped, another may ask.
struct Asking<'a> {
    key: &'a Key,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.key.state.lock().asking = false;
        self.key.answered.notify_waiters();
    }
}

/// Dropped, one waits less.
struct Waiting<'a> {
    key: &'a Key,
}

impl<'a> Waiting<'a> {
    /// `None`: so many wait already.
    fn new(key: &'a Key, most: u32) -> Option<Self> {
        let mut state = key.state.lock();
        if state.waiting >= most {
            return None;
        }
        state.waiting += 1;
        drop(state);
        Some(Self { key })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.key.state.lock().waiting -= 1;
    }
}

#[cfg(test)]
#[path = "pace/tests.rs"]
mod tests;

//! What a connection is doing, so that one that does nothing can be closed.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::head::Scan;

/// Shared by the socket, which sees bytes, the service, which sees requests, and the watch, which sees the clock.
pub(super) struct Activity(Mutex<State>);

struct State {
    /// Requests whose reply has not ended.
    busy: u32,
    /// Many requests at once: bytes do not mean a head, and heads are not scanned.
    multiplexed: bool,
    phase: Phase,
    scan: Scan,
    /// By when each reply is to have ended. As many as requests at once.
    replies: Vec<(Instant, Weak<Held>)>,
}

/// What a reply holds until it has ended.
type Held = Mutex<Option<super::Reply>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing was read since the last reply ended.
    Idle { since: Instant },
    /// A head has begun and not ended.
    Head { since: Instant },
}

/// Why a connection is closed from our side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    Idle,
    Head,
}

impl Expired {
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Head => "header_timeout",
        }
    }
}

impl Activity {
    pub fn new(now: Instant) -> Self {
        let phase = Phase::Idle { since: now };
        Self(Mutex::new(State { busy: 0, multiplexed: false, phase, scan: Scan::default(), replies: Vec::new() }))
    }

    /// Bytes arrived. True when they belong to a head.
    pub fn read(&self, now: Instant) -> bool {
        let mut state = self.0.lock();
        if state.busy > 0 || state.multiplexed {
            return false;
        }
        if let Phase::Idle { .. } = state.phase {
            state.phase = Phase::Head { since: now };
        }
        true
    }

    pub fn head(&self, bytes: &[u8]) {
        self.0.lock().scan.feed(bytes);
    }

    pub fn multiplexed(&self) {
        let mut state = self.0.lock();
        state.multiplexed = true;
        // The preface was no head.
        if let Phase::Head { since } = state.phase {
            state.phase = Phase::Idle { since };
        }
    }

    /// A request's head is complete. True when its framing was ambiguous.
    pub fn begin(self: &Arc<Self>) -> (Busy, bool) {
        let mut state = self.0.lock();
        state.busy += 1;
        (Busy(Arc::clone(self)), state.scan.ambiguous())
    }

    pub fn ends_by(&self, due: Instant, reply: Weak<Held>) {
        let mut state = self.0.lock();
        state.replies.retain(|(_due, reply)| reply.strong_count() > 0);
        state.replies.push((due, reply));
    }

    /// Drops what replies hold that should have ended by now, and that nobody has read of since the last look.
    pub fn release(&self, now: Instant) {
        // The end of a reply is told to this very activity: what was looked at, and may be the last to know of its reply,
        // goes when this lock is free again.
        let (mut seen, mut released) = (Vec::new(), Vec::new());
        self.0.lock().replies.retain(|(due, reply)| {
            if *due > now {
                return reply.strong_count() > 0;
            }
            let Some(reply) = reply.upgrade() else { return false };
            // One that is being read this moment is locked.
            let is_read = reply.try_lock().is_none_or(|mut held| {
                let is_read = held.as_mut().is_some_and(|reply| std::mem::take(&mut reply.polled));
                if !is_read {
                    released.extend(held.take());
                }
                is_read
            });
            seen.push(reply);
            is_read
        });
    }

    /// Whether the connection has outstayed, or else when to look again. Looking at least once a `header_timeout`
    /// catches a head that begins in between.
    pub fn expired(&self, now: Instant, idle_timeout: Duration, header_timeout: Duration) -> Result<Expired, Instant> {
        let state = self.0.lock();
        let (end, expired) = match state.phase {
            _ if state.busy > 0 => return Err(now + header_timeout),
            Phase::Idle { since } => (since + idle_timeout, Expired::Idle),
            Phase::Head { since } => (since + header_timeout, Expired::Head),
        };
        if end <= now { Ok(expired) } else { Err(end.min(now + header_timeout)) }
    }
}

/// A request in progress; dropped when its reply has ended or will never be sent.
pub(super) struct Busy(Arc<Activity>);

impl Busy {
    pub fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.0)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.busy -= 1;
        state.phase = Phase::Idle { since: Instant::now() };
        state.scan = Scan::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(75);
    const HEAD: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_quiet_connection_lasts_as_long_as_it_may_idle() {
        let start = Instant::now();
        let activity = Activity::new(start);

        assert_eq!(activity.expired(start, IDLE, HEAD), Err(start + HEAD));
        assert_eq!(activity.expired(start + IDLE - HEAD / 2, IDLE, HEAD), Err(start + IDLE));
        assert_eq!(activity.expired(start + IDLE, IDLE, HEAD), Ok(Expired::Idle));
    }

    /// A byte now and then does not buy more time for a head.
    #[tokio::test(start_paused = true)]
    async fn a_head_must_end_soon_after_it_began() {
        let start = Instant::now();
        let activity = Activity::new(start);

        activity.read(start + HEAD / 2);
        activity.read(start + HEAD);

        assert_eq!(activity.expired(start + HEAD, IDLE, HEAD), Err(start + HEAD / 2 + HEAD));
        assert_eq!(activity.expired(start + HEAD * 3 / 2, IDLE, HEAD), Ok(Expired::Head));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_may_take_its_time_and_idling_begins_after_it() {
        let start = Instant::now();
        let activity = Arc::new(Activity::new(start));
        let (busy, _ambiguous) = activity.begin();

        assert!(activity.expired(start + 10 * IDLE, IDLE, HEAD).is_err());
        tokio::time::advance(10 * IDLE).await;
        drop(busy);

        assert!(activity.expired(start + 10 * IDLE, IDLE, HEAD).is_err());
        assert_eq!(activity.expired(start + 11 * IDLE, IDLE, HEAD), Ok(Expired::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_multiplexed_connection_bytes_are_no_head() {
        let start = Instant::now();
        let activity = Activity::new(start);
        activity.read(start);
        activity.multiplexed();

        assert!(!activity.read(start + HEAD));

        assert!(activity.expired(start + 2 * HEAD, IDLE, HEAD).is_err());
        assert_eq!(activity.expired(start + IDLE, IDLE, HEAD), Ok(Expired::Idle));
    }
}

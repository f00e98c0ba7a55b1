//! Ends the running requests of a key that was revoked with `--cut`. Others of that key finish, or are refused when they
//! arrive.
//!
//! Every request that waits for an answer listens, without a table of its own: cuts are rare, requests are not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cluster::directory::key::KeyHash;
use futures_util::FutureExt;
use tokio::sync::watch;

/// Cuts that are remembered for requests that have not looked yet. A request that was not looked at for longer ends as
/// if its own key had been cut: an answer must rather be asked for again than go on to whom it must not.
const CUTS_MAX: usize = 4_096;

/// One for each node; a clone is the same one.
#[derive(Clone, Debug, Default)]
pub struct Cuts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// How many there were in all, to be read by every request without a write that others would have to wait for.
    count: AtomicU64,
    recent: watch::Sender<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    /// How many there were in all.
    count: u64,
    /// The latest, the newest last.
    keys: VecDeque<KeyHash>,
}

impl Default for Inner {
    fn default() -> Self {
        Self { count: AtomicU64::new(0), recent: watch::Sender::new(Recent::default()) }
    }
}

/// From where on a request hears of cuts.
#[derive(Clone, Copy, Debug)]
pub struct Since(u64);

impl Cuts {
    /// To be called once the revocation is published, so that no request comes in between; before that, too, if it takes long.
    pub fn cut(&self, key: KeyHash) {
        self.0.recent.send_modify(|recent| {
            recent.count += 1;
            recent.keys.push_back(key);
            if recent.keys.len() > CUTS_MAX {
                recent.keys.pop_front();
            }
            // Who reads this sees what was published before it.
            self.0.count.store(recent.count, Ordering::Release);
        });
    }

    /// To be taken before the key is looked up.
    pub fn now(&self) -> Since {
        Since(self.0.count.load(Ordering::Acquire))
    }

    /// Whether the requests of `key` are to end already. One load where nothing was cut.
    pub fn is_cut(&self, since: Since, key: Option<KeyHash>) -> bool {
        self.now().0 != since.0 && self.heard(since, key).now_or_never().is_some()
    }

    /// Ends when the requests of `key` are to; never for a request without one. Cancel-safe.
    pub async fn heard(&self, since: Since, key: Option<KeyHash>) {
        let Some(key) = key else { return std::future::pending().await };
        let mut ear = self.0.recent.subscribe();
        let Since(mut seen) = since;
        loop {
            let is_cut = {
                let recent = ear.borrow_and_update();
                let unseen = usize::try_from(recent.count.saturating_sub(seen)).unwrap_or(usize::MAX);
                seen = recent.count;
                unseen > recent.keys.len() || recent.keys.iter().rev().take(unseen).any(|cut| *cut == key)
            };
            if is_cut {
                return;
            }
            if ear.changed().await.is_err() {
                // The node is going away, and its requests with it.
                return std::future::pending().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> KeyHash {
        KeyHash::of(&number.to_string())
    }

    fn is_over(cuts: &Cuts, since: Since, key: KeyHash) -> bool {
        cuts.is_cut(since, Some(key))
    }

    #[tokio::test]
    async fn who_holds_the_key_is_cut_and_nobody_else() {
        let cuts = Cuts::default();
        let since = cuts.now();
        assert!(!is_over(&cuts, since, key(1)));

        cuts.cut(key(1));

        assert!(is_over(&cuts, since, key(1)));
        assert!(!is_over(&cuts, since, key(2)));
        assert!(cuts.heard(since, None).now_or_never().is_none());
        assert!(!is_over(&cuts, cuts.now(), key(1)), "a later request is refused when it arrives");
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let cuts = Cuts::default();
        let mut waits = std::pin::pin!(cuts.heard(cuts.now(), Some(key(1))));
        assert!(waits.as_mut().now_or_never().is_none());

        cuts.cut(key(2));
        assert!(waits.as_mut().now_or_never().is_none());
        cuts.cut(key(1));

        waits.await;
    }

    #[tokio::test]
    async fn a_cut_is_heard_among_others() {
        let cuts = Cuts::default();
        let since = cuts.now();

        for number in 0..CUTS_MAX {
            cuts.cut(key(number));
        }

        assert!(is_over(&cuts, since, key(0)));
    }

    #[tokio::test]
    async fn a_request_that_missed_some_ends() {
        let cuts = Cuts::default();
        let since = cuts.now();

        for number in 0..=CUTS_MAX {
            cuts.cut(key(number));
        }

        assert!(is_over(&cuts, since, key(usize::MAX)));
    }
}

//! Ends the running requests of a key that was revoked with `--cut`. Others of that key finish, or are refused when they
//! arrive.
//!
//! Every request that waits for an answer listens, without a table of its own: cuts are rare, requests are not.

use std::collections::VecDeque;

use cluster::directory::key::KeyHash;
use tokio::sync::watch;

/// Cuts that are remembered for requests that have not looked yet. A request that was not looked at for longer ends as
/// if its own key had been cut: an answer must rather be asked for again than go on to whom it must not.
const CUTS_MAX: usize = 4_096;

/// One for each node.
#[derive(Debug)]
pub struct Cuts(watch::Sender<Recent>);

#[derive(Debug, Default)]
struct Recent {
    /// How many there were in all.
    count: u64,
    /// The latest, the newest last.
    keys: VecDeque<KeyHash>,
}

impl Default for Cuts {
    fn default() -> Self {
        Self(watch::Sender::new(Recent::default()))
    }
}

impl Cuts {
    /// To be called once the revocation is published, so that no request comes in between.
    pub fn cut(&self, key: KeyHash) {
        self.0.send_modify(|recent| {
            recent.count += 1;
            recent.keys.push_back(key);
            if recent.keys.len() > CUTS_MAX {
                recent.keys.pop_front();
            }
        });
    }

    /// Hears of every cut from now on. To be taken before the key is looked up. Allocates nothing.
    pub fn listen(&self) -> Listener {
        let mut recent = self.0.subscribe();
        let seen = recent.borrow_and_update().count;
        Listener { recent, seen }
    }
}

/// A request's ear for cuts. A clone has heard what this one has.
#[derive(Clone, Debug)]
pub struct Listener {
    recent: watch::Receiver<Recent>,
    seen: u64,
}

impl Listener {
    /// Ends when the requests of `key` are to; never for a request without one. Cancel-safe.
    pub async fn cut(&mut self, key: Option<KeyHash>) {
        let Some(key) = key else { return std::future::pending().await };
        loop {
            if self.recent.changed().await.is_err() {
                // The node is going away, and its requests with it.
                return std::future::pending().await;
            }
            if self.is_cut(key) {
                return;
            }
        }
    }

    fn is_cut(&mut self, key: KeyHash) -> bool {
        let recent = self.recent.borrow_and_update();
        let unseen = usize::try_from(recent.count - self.seen).unwrap_or(usize::MAX);
        self.seen = recent.count;
        unseen > recent.keys.len() || recent.keys.iter().rev().take(unseen).any(|cut| *cut == key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn key(number: usize) -> KeyHash {
        KeyHash::of(&number.to_string())
    }

    fn is_over(listener: &mut Listener, key: KeyHash) -> bool {
        listener.cut(Some(key)).now_or_never().is_some()
    }

    #[tokio::test]
    async fn who_holds_the_key_is_cut_and_nobody_else() {
        let cuts = Cuts::default();
        let (mut mine, mut other, mut anyone) = (cuts.listen(), cuts.listen(), cuts.listen());
        assert!(!is_over(&mut mine, key(1)));

        cuts.cut(key(1));

        assert!(is_over(&mut mine, key(1)));
        assert!(!is_over(&mut other, key(2)));
        assert!(anyone.cut(None).now_or_never().is_none());
        assert!(!is_over(&mut cuts.listen(), key(1)), "a later request is refused when it arrives");
    }

    #[tokio::test]
    async fn a_cut_is_heard_among_others() {
        let cuts = Cuts::default();
        let mut mine = cuts.listen();

        for number in 0..CUTS_MAX {
            cuts.cut(key(number));
        }

        assert!(is_over(&mut mine, key(0)));
    }

    #[tokio::test]
    async fn a_request_that_missed_some_ends() {
        let cuts = Cuts::default();
        let mut mine = cuts.listen();

        for number in 0..=CUTS_MAX {
            cuts.cut(key(number));
        }

        assert!(is_over(&mut mine, key(usize::MAX)));
    }
}

//! What this node tells the others of its providers, and what it takes from theirs. Only here breakers and credentials
//! meet: they share one text.

use std::time::Instant;

use super::Gateway;
use crate::breaker::marks::{CredentialMark, Key, Said};
use crate::provider::{Flag, Flagged};

impl Gateway {
    /// For gossip: what other nodes should know of providers now, in at most `breaker::marks::MARKS_MAX` bytes. To be
    /// told anew every few hundred milliseconds, and at once when `breakers.news()` says so.
    pub fn marks(&self, now: Instant) -> String {
        let flagged = self.providers.flagged_here(now).into_iter();
        let credentials = flagged.map(|(provider, Flagged { credential, flag, until })| CredentialMark {
            provider: Key::of(&provider),
            credential,
            said: match flag {
                Flag::Dead => Said::Refused,
                Flag::Throttled => Said::Throttled,
            },
            remaining: until.saturating_duration_since(now),
        });
        self.breakers.marks(credentials.collect(), now)
    }

    /// The latest text of every other node that is alive, each with its node. To be called when one of them changed,
    /// and every few hundred milliseconds; with none, this node is on its own.
    pub fn hear(&self, me: u64, others: &[(u64, &str)], now: Instant) {
        for heard in self.breakers.hear(me, others, now) {
            let flag = match heard.said {
                Said::Refused => Flag::Dead,
                Said::Throttled => Flag::Throttled,
            };
            let flagged = Flagged { credential: heard.credential, flag, until: heard.until };
            self.providers.flag_elsewhere(|provider| Key::of(provider) == heard.provider, flagged);
        }
    }
}

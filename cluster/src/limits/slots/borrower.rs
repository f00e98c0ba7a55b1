//! A node's side of one key's slots: what it uses, what it was lent, what it has asked for.

use std::time::Duration;

use super::{Lent, Told};
use crate::limits::SILENT_MAX;

/// Where none is free it is asked again after so long: others of the key wait meanwhile.
const AGAIN_IN: Duration = Duration::from_millis(100);

/// Two questions without an answer say nothing of the time between them, if it is longer: none was asked in it.
const ASKED_WITHIN: Duration = Duration::from_secs(1);

/// Times are since some moment fixed by the caller.
#[derive(Debug, Default)]
pub struct Borrower {
    used: u32,
    /// The owner believes at least so many to be used here.
    lent: u32,
    asked: Option<Asked>,
    /// Number of the newest message, and whether the owner may believe more than nothing after it.
    newest: u64,
    owed: bool,
    /// Not asked before.
    ask_after: Duration,
    /// When the owner last said that none is free, as of when it was asked.
    none_at: Option<Duration>,
    /// The first and the last question without an answer, since there last was one.
    unanswered: Option<(Duration, Duration)>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    sequence: u64,
    used: u32,
    wanted: u32,
    at: Duration,
}

impl Borrower {
    /// One for a request, if there is one here. `part` is how many there are without an owner.
    pub fn take(&mut self, max: u32, part: u32, now: Duration) -> bool {
        let most = if self.is_silent(now) { self.lent.max(part) } else { self.lent };
        let fits = self.used < most.min(max);
        self.used += u32::from(fits);
        fits
    }

    /// The same on a node that is alone.
    pub fn take_own(&mut self, max: u32) -> bool {
        let fits = self.used < max;
        self.used += u32::from(fits);
        fits
    }

    /// The request is over.
    pub fn put_back(&mut self) {
        self.used = self.used.saturating_sub(1);
    }

    pub fn used(&self) -> u32 {
        self.used
    }

    /// Whether some are lent that nobody uses, and no question is under way that will tell.
    pub fn has_spare(&self) -> bool {
        self.asked.is_none() && (self.lent > self.used || (self.owed && self.used == 0))
    }

    /// Whether the owner need hear of it.
    pub fn is_live(&self) -> bool {
        self.used > 0 || self.lent > 0 || self.owed || self.asked.is_some()
    }

    pub fn is_asking(&self) -> bool {
        self.asked.is_some()
    }

    /// How long it is not asked.
    pub fn pause(&self, now: Duration) -> Duration {
        self.ask_after.saturating_sub(now)
    }

    /// Whether a request that came at `since` has heard that there is none.
    pub fn is_refused(&self, since: Duration) -> bool {
        self.none_at.is_some_and(|at| at >= since)
    }

    /// What is told now, and with `wanted` asked. It gives back what nobody uses.
    pub fn tell(&mut self, key: u64, max: u32, sequence: u64, wanted: u32, now: Duration) -> Told {
        let under_way = self.asked.map_or(0, |asked| asked.wanted);
        self.lent = self.lent.min(self.used);
        let used = self.used.saturating_add(under_way);
        if wanted > 0 {
            self.asked = Some(Asked { sequence, used, wanted, at: now });
        }
        self.newest = sequence;
        self.owed = true;
        Told { key, max, sequence, used, wanted }
    }

    /// What the owner answered to that, or that it did not, or that nobody waits for it any more.
    pub fn hear(&mut self, told: &Told, answer: Option<&Lent>, now: Duration) {
        let asked = self.asked.filter(|asked| asked.sequence == told.sequence);
        if asked.is_some() {
            self.asked = None;
        }
        let Some(answer) = answer else { return self.unanswered(now) };
        self.unanswered = None;
        let is_newest = self.newest == told.sequence;
        if let Some(asked) = asked {
            let lent = answer.lent.min(asked.wanted);
            self.lent = if is_newest { asked.used } else { self.lent }.saturating_add(lent);
            if lent == 0 {
                self.ask_after = now + AGAIN_IN;
                self.none_at = if answer.settled { Some(asked.at) } else { self.none_at };
            }
        } else if is_newest && self.asked.is_none() && told.used <= self.used {
            self.lent = self.lent.max(told.used);
        }
        if is_newest && told.used == 0 && told.wanted == 0 {
            self.owed = false;
        }
    }

    /// Nobody waits for the answer any more: whatever it says is void.
    pub fn give_up(&mut self, sequence: u64) {
        self.asked = self.asked.filter(|asked| asked.sequence != sequence);
    }

    fn unanswered(&mut self, now: Duration) {
        let first = match self.unanswered {
            Some((first, last)) if now.saturating_sub(last) < ASKED_WITHIN => first,
            Some(_) | None => now,
        };
        self.unanswered = Some((first, now));
        self.ask_after = now + AGAIN_IN;
    }

    /// One answer that is late or lost says nothing: only when none has come for so long.
    fn is_silent(&self, now: Duration) -> bool {
        self.unanswered.is_some_and(|(first, last)| {
            last.saturating_sub(first) >= SILENT_MAX && now.saturating_sub(last) < SILENT_MAX
        })
    }
}

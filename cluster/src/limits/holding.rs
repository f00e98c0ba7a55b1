//! A node's side of one limit: the cap it was told, until when, and what is known of the others.

use std::time::Duration;

use super::{FRAME_EVERY, LimitId, Report, SILENT_MAX, Share, fits_in, steps};

/// After an owner said that nothing is left, and after it said nothing, it is not asked for so long. Others of the key
/// are refused meanwhile, or served from the even part.
const ASK_PAUSE: Duration = FRAME_EVERY;

/// Where something is left, but others have leave for it, it is asked for again this soon.
const AGAIN_IN: Duration = Duration::from_millis(100);

/// Between what is freed at one node and leave for it at another: it is told with the one's frame, and given by asking.
const TOLD_IN: Duration = Duration::from_millis(500);

/// Times are since some moment fixed by the caller.
#[derive(Clone, Debug, Default)]
pub struct Holding {
    cap: u64,
    until: Duration,
    answered: (u64, u64),
    /// The owner may believe that this node goes by more than nothing.
    believed: bool,
    demand: u64,
    others_used: u64,
    /// When the others' counts fall, as times.
    others_fall: Vec<(Duration, u64)>,
    /// Not asked before.
    ask_after: Duration,
    /// What it is waited for, if anything.
    pause: Pause,
    /// The first and the last time that the owner did not answer, since it last did.
    unanswered: Option<(Duration, Duration)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Pause {
    /// Nothing is left.
    #[default]
    Refused,
    /// Others have leave for what is left, and give it back; or one answer is missing.
    Coming,
    /// The owner does not answer, and its last word is over.
    Silent,
}

/// What to do where a request does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Ask the owner.
    Ask,
    /// Ask it after so long.
    Later(Duration),
    Refuse,
}

impl Holding {
    /// What this node's count may come to now. `part` is what it is without an owner.
    pub fn cap(&self, part: u64, now: Duration) -> u64 {
        if now < self.until {
            self.cap
        } else if self.is_silent(now) {
            part
        } else {
            0
        }
    }

    /// Clients want so much more, whether they get it or not.
    pub fn want(&mut self, amount: u64) {
        self.demand = self.demand.saturating_add(amount);
    }

    /// A quarter less with each frame.
    pub fn fade(&mut self) {
        self.demand -= self.demand.div_ceil(4);
    }

    /// Whether the owner need hear of it.
    pub fn is_live(&self, now: Duration) -> bool {
        self.demand > 0 || self.believed || (now < self.until && self.cap > 0)
    }

    /// A request that wants so much does not fit here.
    pub fn lack(&self, now: Duration) -> Lack {
        match self.pause {
            _ if now >= self.ask_after => Lack::Ask,
            Pause::Coming => Lack::Later(self.ask_after.saturating_sub(now)),
            Pause::Refused | Pause::Silent => Lack::Refuse,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "each is one field of what is told, by its own name")]
    pub fn report(
        &mut self,
        limit: LimitId,
        per_minute: u64,
        part: u64,
        used: u64,
        wanted: u64,
        falls: Vec<(Duration, u64)>,
        now: Duration,
    ) -> Report {
        let cap = self.cap(part, now);
        self.believed = cap > 0 || used > 0;
        Report {
            limit,
            per_minute,
            sequence: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            used,
            cap,
            answered: self.answered,
            demand: self.demand,
            wanted,
            falls: steps(falls),
        }
    }

    /// The limit is another: what was told of it is void.
    pub fn change(&mut self) {
        self.until = Duration::ZERO;
    }

    /// An answer to what was sent at `sent`. One that was overtaken says nothing.
    pub fn hear(&mut self, life: u64, share: &Share, sent: Duration, now: Duration) {
        self.unanswered = None;
        if self.answered.0 == life && share.number <= self.answered.1 {
            return;
        }
        self.answered = (life, share.number);
        self.cap = share.cap;
        self.until = sent + SILENT_MAX;
        self.others_used = share.others_used;
        let fall = share.others_fall.iter();
        self.others_fall = fall.map(|step| (now + Duration::from_millis(step.within_ms.into()), step.amount)).collect();
        if self.pause == Pause::Silent {
            self.ask_after = now;
        }
    }

    /// What one asked for was answered, and does it fit now? If not, it is asked again when that may help.
    pub fn asked(&mut self, used: u64, wanted: u64, per_minute: u64, now: Duration) {
        if used.saturating_add(wanted) <= self.cap(0, now) {
            return;
        }
        let free = per_minute.saturating_sub(used).saturating_sub(self.others_used(now));
        (self.pause, self.ask_after) =
            if wanted <= free { (Pause::Coming, now + AGAIN_IN) } else { (Pause::Refused, now + ASK_PAUSE) };
    }

    /// The owner did not answer in time, or is not the owner. One answer that is late or lost says nothing: only when none
    /// has come for [`SILENT_MAX`] this node goes by its even part.
    pub fn unanswered(&mut self, now: Duration) {
        let first = match self.unanswered {
            Some((first, last)) if now.saturating_sub(last) < SILENT_MAX => first,
            Some(_) | None => now,
        };
        self.unanswered = Some((first, now));
        (self.pause, self.ask_after) = if now.saturating_sub(first) < SILENT_MAX {
            (Pause::Coming, now + AGAIN_IN)
        } else {
            (Pause::Silent, now + 2 * ASK_PAUSE)
        };
        self.believed = true;
    }

    /// What the others used in their last 60 s, as far as it is known here.
    pub fn others_used(&self, now: Duration) -> u64 {
        let over = self.others_fall.iter().filter(|(at, _)| *at <= now).map(|(_, amount)| *amount);
        over.fold(self.others_used, u64::saturating_sub)
    }

    /// Until the others' counts are zero, as far as it is known here.
    pub fn others_reset(&self, now: Duration) -> Duration {
        self.others_fall.iter().map(|(at, _)| at.saturating_sub(now)).max().unwrap_or_default()
    }

    /// How long until so much fits, if nobody uses more meanwhile; `falls` are those of this node's own count.
    pub fn wait(
        &self,
        used: u64,
        wanted: u64,
        per_minute: u64,
        part: u64,
        mut falls: Vec<(Duration, u64)>,
        now: Duration,
    ) -> Duration {
        if now >= self.until && self.is_silent(now) {
            // Beyond the even part there is nothing but that an owner speaks again.
            return if wanted <= part { fits_in(used, wanted, part, falls) } else { SILENT_MAX };
        }
        let others = self.others_fall.iter().filter(|(at, _)| *at > now);
        falls.extend(others.map(|(at, amount)| (at.saturating_sub(now), *amount)));
        fits_in(used.saturating_add(self.others_used(now)), wanted, per_minute, falls) + TOLD_IN
    }

    fn is_silent(&self, now: Duration) -> bool {
        self.pause == Pause::Silent && now < self.ask_after
    }
}

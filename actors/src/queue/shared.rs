//! Limits that hold for all nodes together: this node's count may come to the cap that the limit's owner told it. What
//! fits is let in without asking anyone; what does not asks the owner, one request of a key at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::clock;
use cluster::limits::holding::{Holding, Lack};
use cluster::limits::slots::{Lent, Told};
use cluster::limits::{ASK_WITHIN, Answer, LimitId, Report, Share, Unit, pace};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::window::Window;
use super::{Entered, Entry, Held, Level, Limit, Limits, Queue, QueueError, Standing, Turn, Used, whole_seconds};

/// How long a request waits at most for what others have leave for and do not use.
pub(super) const WAIT_MAX: Duration = Duration::from_millis(800);

/// Requests of one key that wait, as a part of all that are worked on: they hold their places meanwhile. More are refused.
const WAITING_PART: usize = 4;

/// No request is told to stay away longer: all counts are over by then.
const RETRY_AFTER_MAX: Duration = super::window::SPAN;

/// How the owners of limits are reached.
pub trait Owners: Send + Sync + 'static {
    /// Reports of one key, to the owner of it. `None` where nobody answers.
    fn ask(&self, key: u64, reports: Vec<Report>) -> BoxFuture<'static, Option<Answer>>;

    /// What is told of a key's slots, to the owner of it. `None` where nobody answers.
    fn ask_slots(&self, told: Told) -> BoxFuture<'static, Option<Lent>>;

    /// For leave of a key's requests a second, to the owner of it. `None` where nobody answers.
    fn ask_pace(&self, ask: pace::Ask) -> BoxFuture<'static, Option<pace::Given>>;

    /// This node's even part of a limit, for when nobody answers.
    fn part(&self, key: u64, limit: u64) -> u64;
}

/// What is known of one limit: what was used here, and what may be.
#[derive(Default)]
pub(super) struct Counted {
    pub window: Window,
    pub holding: Holding,
}

/// How far the requests of a key have come with asking.
#[derive(Default)]
pub(super) struct Asked {
    /// One of them asks.
    now: bool,
    /// How many ask, or wait for who does.
    waiting: usize,
    answered: Arc<Notify>,
}

/// What one request wants of its key.
#[derive(Clone, Copy)]
pub(super) struct Wish {
    limits: Limits,
    requests: Option<Wanted>,
    tokens: Option<Wanted>,
}

#[derive(Clone, Copy)]
struct Wanted {
    amount: u64,
    per_minute: u64,
    part: u64,
}

enum Step {
    In(Entered),
    Refused(QueueError),
    Ask(Vec<Report>),
    /// Until someone was answered, or so long.
    Wait(Duration),
}

impl Queue {
    /// From now on limits are shared with others. Once.
    pub fn share(&self, owners: Arc<dyn Owners>) {
        let _again = self.owners.set(owners);
    }

    /// Requests of one key that may wait.
    pub(super) fn waiting_max(&self) -> usize {
        self.places_max.div_ceil(WAITING_PART)
    }

    pub(super) async fn enter_shared(
        &self,
        owners: &dyn Owners,
        limits: &Limits,
        tokens: u64,
        now: Instant,
        held: Held,
    ) -> Result<Turn, QueueError> {
        let now = self.time(now);
        let used = self.used(limits.key_id, now);
        let wish = Wish::new(limits, tokens, owners);
        let at_once = {
            let mut used = used.lock();
            used.want(&wish, now);
            used.try_shared(&wish, now)
        };
        let entered = match at_once {
            Ok(entered) => Ok(entered),
            Err(Lack::Refuse) => Err(used.lock().refusal(&wish, now)),
            Err(Lack::Ask | Lack::Later(_)) => Box::pin(self.ask(owners, &used, &wish, now)).await,
        };
        let Entered { estimate, standing, second } = entered.inspect_err(|error| self.count(error))?;
        Ok(self.turn(Some(Entry { used, estimate, second, born: self.born }), standing, held))
    }

    async fn ask(
        &self,
        owners: &dyn Owners,
        used: &Arc<Mutex<Used>>,
        wish: &Wish,
        since: Duration,
    ) -> Result<Entered, QueueError> {
        let give_up = since + WAIT_MAX;
        let answered = {
            let mut used = used.lock();
            if used.asked.waiting >= self.waiting_max() {
                return Err(used.refusal(wish, since));
            }
            used.asked.waiting += 1;
            Arc::clone(&used.asked.answered)
        };
        let _waiting = Waiting { used };
        loop {
            // Before it is looked whether someone asks, so that the answer is not missed.
            let answer_of_another = answered.notified();
            let now = self.time(clock::now());
            let step = used.lock().step(wish, now, give_up);
            match step {
                Step::In(entered) => return Ok(entered),
                Step::Refused(error) => return Err(error),
                // Either way it is looked again.
                Step::Wait(at_most) => drop(timeout(at_most, answer_of_another).await),
                Step::Ask(reports) => {
                    let asking = Asking { used };
                    let answer = timeout(ASK_WITHIN, owners.ask(wish.limits.key_id, reports)).await;
                    let answer = answer.ok().flatten();
                    self.metrics.rates_asked.count(answer.is_some());
                    used.lock().answered(wish, answer.as_ref(), now, self.time(clock::now()));
                    drop(asking);
                }
            }
        }
    }

    /// What the owners need to hear, of keys that were used or wanted in the last minute. Demand fades with each call.
    pub fn reports(&self, now: Instant) -> Vec<Report> {
        let Some(owners) = self.owners.get() else { return Vec::new() };
        let now = self.time(now);
        let keys: Vec<Arc<Mutex<Used>>> = self.keys.read().by_id.values().map(Arc::clone).collect();
        keys.iter().flat_map(|used| used.lock().reports(owners.as_ref(), now)).collect()
    }

    /// What an owner answered to some reports that were sent at `sent`; `None` where it did not.
    pub fn hear(&self, reports: &[Report], answer: Option<&Answer>, sent: Instant, now: Instant) {
        let (sent, now) = (self.time(sent), self.time(now));
        let life = answer.map_or(0, |answer| answer.life);
        let shares = answer.iter().flat_map(|answer| &answer.shares);
        let shares: HashMap<LimitId, &Share> = shares.map(|share| (share.limit, share)).collect();
        for report in reports {
            let used = self.keys.read().by_id.get(&report.limit.key).map(Arc::clone);
            if let Some(used) = used {
                let share = shares.get(&report.limit).map(|share| (life, *share));
                used.lock().hear(report.limit, share, sent, now);
            }
        }
    }
}

/// Dropped, one waits less.
struct Waiting<'a> {
    used: &'a Mutex<Used>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.used.lock().asked.waiting -= 1;
    }
}

/// Dropped, another may ask.
struct Asking<'a> {
    used: &'a Mutex<Used>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut used = self.used.lock();
        used.asked.now = false;
        used.asked.answered.notify_waiters();
    }
}

impl Wish {
    fn new(limits: &Limits, tokens: u64, owners: &dyn Owners) -> Self {
        let wanted = |amount, per_minute| Wanted { amount, per_minute, part: owners.part(limits.key_id, per_minute) };
        Self {
            limits: *limits,
            requests: limits.rpm.map(|rpm| wanted(1, rpm.into())),
            tokens: limits.tpm.map(|tpm| wanted(tokens.min(tpm), tpm)),
        }
    }
}

impl Used {
    fn want(&mut self, wish: &Wish, now: Duration) {
        let is_changed = self.limits.replace(wish.limits).is_some_and(|limits| limits != wish.limits);
        self.last = self.last.max(now);
        for (_unit, counted, wanted) in self.counted(wish) {
            if is_changed {
                counted.holding.change();
            }
            counted.holding.want(wanted.amount);
        }
    }

    /// Whether an owner need hear of it.
    pub(super) fn is_live(&self, now: Duration) -> bool {
        self.requests.holding.is_live(now) || self.tokens.holding.is_live(now)
    }

    /// What the wish counts on.
    fn counted(&mut self, wish: &Wish) -> impl Iterator<Item = (Unit, &mut Counted, Wanted)> {
        let requests = wish.requests.map(|wanted| (Unit::Requests, &mut self.requests, wanted));
        let tokens = wish.tokens.map(|wanted| (Unit::Tokens, &mut self.tokens, wanted));
        requests.into_iter().chain(tokens)
    }

    /// Counts a request and its tokens, both or neither.
    fn try_shared(&mut self, wish: &Wish, now: Duration) -> Result<Entered, Lack> {
        let now = self.at(now);
        let mut lacks: Option<Lack> = None;
        for (_unit, counted, wanted) in self.counted(wish) {
            if !counted.fits(wanted, now) {
                lacks = Some(worse(lacks, counted.holding.lack(now)));
            }
        }
        if let Some(lack) = lacks {
            return Err(lack);
        }
        for (_unit, counted, wanted) in self.counted(wish) {
            counted.window.add(now, wanted.amount);
        }
        self.last = self.last.max(now);
        let estimate = wish.tokens.map_or(0, |tokens| tokens.amount);
        Ok(Entered { estimate, standing: self.shared_standing(wish, now), second: now.as_secs() })
    }

    fn step(&mut self, wish: &Wish, now: Duration, give_up: Duration) -> Step {
        match self.try_shared(wish, now) {
            Ok(entered) => Step::In(entered),
            Err(Lack::Refuse) => Step::Refused(self.refusal(wish, now)),
            Err(Lack::Ask | Lack::Later(_)) if now >= give_up => Step::Refused(self.refusal(wish, now)),
            Err(Lack::Later(wait)) => Step::Wait(wait.min(give_up.saturating_sub(now))),
            Err(Lack::Ask) if self.asked.now => Step::Wait(give_up.saturating_sub(now)),
            Err(Lack::Ask) => {
                self.asked.now = true;
                let key = wish.limits.key_id;
                let report = |(unit, counted, wanted): (Unit, &mut Counted, Wanted)| {
                    let wanted_now = if counted.fits(wanted, now) { 0 } else { wanted.amount };
                    counted.report(LimitId { key, unit }, wanted, wanted_now, now)
                };
                Step::Ask(self.counted(wish).map(report).collect())
            }
        }
    }

    fn answered(&mut self, wish: &Wish, answer: Option<&Answer>, sent: Duration, now: Duration) {
        let key = wish.limits.key_id;
        let share = |unit| {
            let answer = answer?;
            let share = answer.shares.iter().find(|share| share.limit == LimitId { key, unit })?;
            Some((answer.life, share))
        };
        for (unit, counted, wanted) in self.counted(wish) {
            if counted.hear(share(unit), sent, now) {
                let used = counted.window.used(now);
                counted.holding.asked(used, wanted.amount, wanted.per_minute, now);
            }
        }
    }

    fn hear(&mut self, limit: LimitId, share: Option<(u64, &Share)>, sent: Duration, now: Duration) {
        let counted = match limit.unit {
            Unit::Requests => &mut self.requests,
            Unit::Tokens => &mut self.tokens,
        };
        let _answered = counted.hear(share, sent, now);
    }

    fn reports(&mut self, owners: &dyn Owners, now: Duration) -> Vec<Report> {
        let Some(limits) = self.limits else { return Vec::new() };
        let report = |(unit, counted, wanted): (Unit, &mut Counted, Wanted)| {
            counted.holding.fade();
            let live = counted.holding.is_live(now) || counted.window.used(now) > 0;
            live.then(|| counted.report(LimitId { key: limits.key_id, unit }, wanted, 0, now))
        };
        self.counted(&Wish::new(&limits, 0, owners)).filter_map(report).collect()
    }

    fn refusal(&mut self, wish: &Wish, now: Duration) -> QueueError {
        let mut longest = (Duration::ZERO, Limit::Requests);
        for (unit, counted, wanted) in self.counted(wish) {
            if counted.fits(wanted, now) {
                continue;
            }
            let (used, falls) = (counted.window.used(now), counted.window.falls(now));
            let wait = counted.holding.wait(used, wanted.amount, wanted.per_minute, wanted.part, falls, now);
            let limit = match unit {
                Unit::Requests => Limit::Requests,
                Unit::Tokens => Limit::Tokens,
            };
            if wait > longest.0 {
                longest = (wait, limit);
            }
        }
        let (wait, limit) = longest;
        let retry_after = whole_seconds(wait).min(RETRY_AFTER_MAX);
        QueueError::RateLimited { limit, retry_after, standing: self.shared_standing(wish, now) }
    }

    fn shared_standing(&mut self, wish: &Wish, now: Duration) -> Standing {
        let mut standing = Standing::default();
        for (unit, counted, wanted) in self.counted(wish) {
            let used = counted.window.used(now).saturating_add(counted.holding.others_used(now));
            let level = Level {
                limit: wanted.per_minute,
                remaining: wanted.per_minute.saturating_sub(used),
                reset: counted.window.reset(now).max(counted.holding.others_reset(now)),
            };
            match unit {
                Unit::Requests => standing.requests = Some(level),
                Unit::Tokens => standing.tokens = Some(level),
            }
        }
        standing
    }
}

impl Counted {
    fn fits(&mut self, wanted: Wanted, now: Duration) -> bool {
        self.window.used(now).saturating_add(wanted.amount) <= self.holding.cap(wanted.part, now).min(wanted.per_minute)
    }

    fn report(&mut self, limit: LimitId, wanted: Wanted, wanted_now: u64, now: Duration) -> Report {
        let (used, falls) = (self.window.used(now), self.window.falls(now));
        self.holding.report(limit, wanted.per_minute, wanted.part, used, wanted_now, falls, now)
    }

    /// `share` with the life of who gave it. Whether there was one.
    fn hear(&mut self, share: Option<(u64, &Share)>, sent: Duration, now: Duration) -> bool {
        match share {
            Some((life, share)) => self.holding.hear(life, share, sent, now),
            None => self.holding.unanswered(now),
        }
        share.is_some()
    }
}

/// Of two limits that a request lacks, what it does: nothing helps one that is refused for either.
fn worse(one: Option<Lack>, other: Lack) -> Lack {
    match (one, other) {
        (None, lack) => lack,
        (Some(Lack::Refuse), _) | (_, Lack::Refuse) => Lack::Refuse,
        (Some(Lack::Later(one)), Lack::Later(other)) => Lack::Later(one.max(other)),
        (Some(Lack::Later(wait)), Lack::Ask) | (Some(Lack::Ask), Lack::Later(wait)) => Lack::Later(wait),
        (Some(Lack::Ask), Lack::Ask) => Lack::Ask,
    }
}

#[cfg(test)]
#[path = "shared/tests.rs"]
mod tests;

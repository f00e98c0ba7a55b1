//! What the owner of limits knows of who uses them, and what it gives. Nothing of it is stored: a new owner learns from
//! the next reports.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::{FRAME_EVERY, LimitId, Report, SILENT_MAX, SPAN, STEPS_MAX, Share, Step, View, steps};
use crate::id::NodeId;

/// Limits known at a time. Nodes go by their even parts of more.
const LIMITS_MAX: usize = 262_144;

/// Lives of nodes known for one limit. More get no share.
const HOLDERS_MAX: usize = 256;

/// Lives of one node known for one limit: it starts no more often while they count.
const LIVES_MAX: usize = 4;

/// After a change of members, whoever has not told yet is taken to use its even part: by then all have heard of it and
/// have told, and caps of other owners are over.
const SETTLES_IN: Duration = Duration::from_secs(3);

/// How long units are kept together for one who lacks more than there are at once.
const CLAIM_FOR: Duration = SILENT_MAX;

/// Times are since some moment fixed by the caller.
#[derive(Debug)]
pub struct Table {
    life: u64,
    limits: HashMap<LimitId, Limit>,
    settled: Duration,
    pruned: Duration,
    /// Answers given. Never begins anew: a node takes none with a smaller number than one it has had.
    answers: u64,
}

/// A node, and a life of its process: what one life used, the next does not know.
type Who = (NodeId, u64);

#[derive(Debug, Default)]
struct Limit {
    holders: BTreeMap<Who, Holder>,
    claim: Option<Claim>,
    /// Left to those who cannot be asked: to whoever is here it is used, and stays so.
    withheld: u64,
}

#[derive(Debug)]
struct Holder {
    used: u64,
    /// The most it may go by: the caps told since the last that it has said it knows, and that one.
    held: u64,
    /// Of the latest answer, and the cap in it.
    number: u64,
    told: u64,
    sequence: u64,
    demand: u64,
    heard: Duration,
    /// When its count falls, as times.
    falls: Vec<(Duration, u64)>,
    /// Silent for so long that no cap is in force there.
    is_silent: bool,
}

impl Holder {
    fn new(now: Duration) -> Self {
        Self {
            used: 0,
            held: 0,
            number: 0,
            told: 0,
            sequence: 0,
            demand: 0,
            heard: now,
            falls: Vec::new(),
            is_silent: false,
        }
    }

    /// Of one who has been silent it is not known what he used of his last cap: all of it, and as late as he could. That
    /// falls like any other count.
    fn age(&mut self, now: Duration) {
        if now.saturating_sub(self.heard) < SILENT_MAX {
            return;
        }
        if !self.is_silent {
            self.is_silent = true;
            let known = self.falls.iter().fold(0, |sum: u64, (_, amount)| sum.saturating_add(*amount));
            self.falls.push((self.heard + SILENT_MAX + SPAN, self.held.saturating_sub(known)));
            self.used = self.held;
        }
        self.falls.retain(|(at, amount)| {
            let counts = *at > now;
            if !counts {
                self.used = self.used.saturating_sub(*amount);
                self.held = self.held.saturating_sub(*amount);
            }
            counts
        });
    }
}

/// Someone lacks so much, which is free but in many hands.
#[derive(Clone, Copy, Debug)]
struct Claim {
    who: Who,
    wanted: u64,
    until: Duration,
}

impl Table {
    /// `life` is another for each life of this process.
    pub fn new(life: u64) -> Self {
        Self { life, limits: HashMap::new(), settled: Duration::ZERO, pruned: Duration::ZERO, answers: 0 }
    }

    pub fn life(&self) -> u64 {
        self.life
    }

    /// The members changed: others may have owned limits until now.
    pub fn settle(&mut self, now: Duration) {
        self.settled = now + SETTLES_IN;
    }

    /// Limits of which something is known.
    pub fn len(&self) -> usize {
        self.limits.len()
    }

    pub fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }

    /// Takes note of a report and answers it; one that was overtaken, as the last. `None` where there is no room.
    pub fn hear(&mut self, who: Who, report: &Report, view: &View, now: Duration) -> Option<Share> {
        self.prune(now);
        if self.limits.len() >= LIMITS_MAX && !self.limits.contains_key(&report.limit) {
            return None;
        }
        let settling = now < self.settled;
        let limit = self.limits.entry(report.limit).or_default();
        limit.forget(now);
        if !limit.note(who, self.life, report, now)? {
            return limit.again(who, report.limit, now);
        }
        self.answers += 1;
        let unheard = if settling { limit.unheard(who, report.per_minute, view) } else { 0 };
        Some(limit.answer(who, self.answers, unheard, report, view, now))
    }

    fn prune(&mut self, now: Duration) {
        if now.saturating_sub(self.pruned) < SPAN {
            return;
        }
        self.pruned = now;
        self.limits.retain(|_id, limit| {
            limit.forget(now);
            !limit.holders.is_empty()
        });
    }
}

impl Limit {
    /// Who has been silent for longer than a cap holds and a count lasts is no matter any more.
    fn forget(&mut self, now: Duration) {
        self.holders.values_mut().for_each(|holder| holder.age(now));
        self.holders.retain(|_who, holder| now.saturating_sub(holder.heard) < SILENT_MAX + SPAN);
        self.claim = self.claim.filter(|claim| now < claim.until);
    }

    /// `false` for a report that was overtaken.
    fn note(&mut self, who: Who, life: u64, report: &Report, now: Duration) -> Option<bool> {
        if !self.holders.contains_key(&who) {
            let lives = self.holders.keys().filter(|(node, _life)| *node == who.0).count();
            if self.holders.len() >= HOLDERS_MAX || lives >= LIVES_MAX {
                return None;
            }
        }
        let holder = self.holders.entry(who).or_insert_with(|| Holder::new(now));
        if report.sequence < holder.sequence {
            return Some(false);
        }
        let goes_by = report.cap.max(report.used);
        let knows = report.answered == (life, holder.number);
        holder.held = if knows { goes_by } else { holder.held.max(goes_by) };
        holder.used = report.used;
        holder.sequence = report.sequence;
        holder.demand = report.demand;
        holder.heard = now;
        holder.is_silent = false;
        let falls = report.falls.iter().take(STEPS_MAX);
        holder.falls = falls.map(|step| (now + Duration::from_millis(step.within_ms.into()), step.amount)).collect();
        Some(true)
    }

    /// What was answered last, once more.
    fn again(&self, who: Who, limit: LimitId, now: Duration) -> Option<Share> {
        let Holder { number, told, .. } = *self.holders.get(&who)?;
        Some(Share {
            limit,
            number,
            cap: told,
            others_used: self.others_used(who).saturating_add(self.withheld),
            others_fall: self.others_fall(who, now),
        })
    }

    fn others(&self, who: Who) -> impl Iterator<Item = &Holder> {
        self.holders.iter().filter(move |(holder, _)| **holder != who).map(|(_, holder)| holder)
    }

    fn others_used(&self, who: Who) -> u64 {
        self.others(who).fold(0, |sum, holder| sum.saturating_add(holder.used))
    }

    fn others_fall(&self, who: Who, now: Duration) -> Vec<Step> {
        let falls = self.others(who).flat_map(|holder| &holder.falls).filter(|(at, _)| *at > now);
        steps(falls.map(|(at, amount)| (at.saturating_sub(now), *amount)).collect())
    }

    /// The even parts of those that are there and have not told anything.
    fn unheard(&self, who: Who, per_minute: u64, view: &View) -> u64 {
        let known = |node: NodeId| node == who.0 || self.holders.keys().any(|(holder, _life)| *holder == node);
        let unheard = view.ready.iter().filter(|node| !known(**node)).count() as u64;
        unheard.saturating_mul(per_minute / view.members.max(1))
    }

    fn answer(&mut self, who: Who, number: u64, unheard: u64, report: &Report, view: &View, now: Duration) -> Share {
        let others_used = self.others_used(who);
        let per_minute = view.leave(report.per_minute);
        self.withheld = report.per_minute.saturating_sub(per_minute);
        let others_held = self.others(who).fold(0, |sum: u64, holder| sum.saturating_add(holder.held));
        let taken = report.used.saturating_add(unheard);
        // What nobody used, and of that, what nobody else may use.
        let free = per_minute.saturating_sub(taken).saturating_sub(others_used);
        let available = per_minute.saturating_sub(taken).saturating_sub(others_held);
        let demand = self
            .others(who)
            .filter(|holder| !holder.is_silent)
            .fold(report.demand, |sum, holder| sum.saturating_add(holder.demand));
        let others_fall = self.others_fall(who, now);

        let kept = self.claim.filter(|claim| claim.who != who).map_or(0, |claim| claim.wanted);
        let (available, shared) = (available.saturating_sub(kept), free.saturating_sub(kept));
        let share = if view.is_small(per_minute) { 0 } else { part(shared, report.demand, demand) };
        let ahead = share.min(available / 2);
        let met = report.wanted <= available;
        let headroom = if met { ahead.max(report.wanted) } else { ahead };
        if report.wanted > 0 {
            self.claim = match self.claim {
                Some(claim) if claim.who != who => Some(claim),
                Some(_) | None if met || report.wanted > free => None,
                Some(_) | None => Some(Claim { who, wanted: report.wanted, until: now + CLAIM_FOR }),
            };
        }
        let cap = report.used.saturating_add(headroom);
        if let Some(holder) = self.holders.get_mut(&who) {
            (holder.number, holder.told) = (number, cap);
            holder.held = holder.held.max(cap);
            if met && report.wanted > 0 {
                // It waits for it, and will use it at once: the next report says if not.
                holder.used = holder.used.saturating_add(report.wanted);
                holder.falls.push((now + SPAN, report.wanted));
            }
        }
        let others_used = others_used.saturating_add(self.withheld);
        Share { limit: report.limit, number, cap, others_used, others_fall }
    }
}

/// Of `whole`, as `one` is to `all`, rounded up.
fn part(whole: u64, one: u64, all: u64) -> u64 {
    let part = (u128::from(whole) * u128::from(one)).div_ceil(u128::from(all.max(1)));
    u64::try_from(part).unwrap_or(u64::MAX)
}

/// A claim must outlive the frames in which others learn of it and say so.
const _: () = assert!(CLAIM_FOR.as_millis() > 3 * FRAME_EVERY.as_millis());

//! What the owner of limits knows of who uses them, and what it gives. Nothing of it is stored: a new owner learns from
//! the next reports.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::{FRAME_EVERY, LimitId, Report, SILENT_MAX, SPAN, Share, View, steps};
use crate::id::NodeId;

/// Limits known at a time. Nodes go by their even parts of more.
const LIMITS_MAX: usize = 262_144;

/// Lives of nodes known for one limit. More get no share.
const HOLDERS_MAX: usize = 256;

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
}

/// A node, and a life of its process: what one life used, the next does not know.
type Who = (NodeId, u64);

#[derive(Debug, Default)]
struct Limit {
    holders: BTreeMap<Who, Holder>,
    claim: Option<Claim>,
}

#[derive(Debug)]
struct Holder {
    used: u64,
    /// The most it may go by: the caps told since the last that it has said it knows, and that one.
    held: u64,
    /// Of the latest answer.
    number: u64,
    sequence: u64,
    demand: u64,
    heard: Duration,
    /// When its count falls, as times.
    falls: Vec<(Duration, u64)>,
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
        Self { life, limits: HashMap::new(), settled: Duration::ZERO, pruned: Duration::ZERO }
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

    /// Takes note of a report and answers it. `None` for one that was overtaken, and where there is no room.
    pub fn hear(&mut self, who: Who, report: &Report, view: &View, now: Duration) -> Option<Share> {
        self.prune(now);
        if self.limits.len() >= LIMITS_MAX && !self.limits.contains_key(&report.limit) {
            return None;
        }
        let settling = now < self.settled;
        let limit = self.limits.entry(report.limit).or_default();
        limit.forget(now);
        limit.note(who, self.life, report, now)?;
        let unheard = if settling { limit.unheard(who, report.per_minute, view) } else { 0 };
        Some(limit.answer(who, unheard, report, view, now))
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
        self.holders.retain(|_who, holder| now.saturating_sub(holder.heard) < SILENT_MAX + SPAN);
        self.claim = self.claim.filter(|claim| now < claim.until);
    }

    fn note(&mut self, who: Who, life: u64, report: &Report, now: Duration) -> Option<()> {
        if self.holders.len() >= HOLDERS_MAX && !self.holders.contains_key(&who) {
            return None;
        }
        let holder = self.holders.entry(who).or_insert_with(|| Holder {
            used: 0,
            held: 0,
            number: 0,
            sequence: 0,
            demand: 0,
            heard: now,
            falls: Vec::new(),
        });
        if report.sequence < holder.sequence {
            return None;
        }
        let goes_by = report.cap.max(report.used);
        let knows = report.answered == (life, holder.number);
        holder.held = if knows { goes_by } else { holder.held.max(goes_by) };
        holder.used = report.used;
        holder.sequence = report.sequence;
        holder.demand = report.demand;
        holder.heard = now;
        let falls = report.falls.iter();
        holder.falls = falls.map(|step| (now + Duration::from_millis(step.within_ms.into()), step.amount)).collect();
        Some(())
    }

    /// The even parts of those that are there and have not told anything.
    fn unheard(&self, who: Who, per_minute: u64, view: &View) -> u64 {
        let known = |node: NodeId| node == who.0 || self.holders.keys().any(|(holder, _life)| *holder == node);
        let unheard = view.ready.iter().filter(|node| !known(**node)).count() as u64;
        unheard.saturating_mul(per_minute / view.members.max(1))
    }

    fn answer(&mut self, who: Who, unheard: u64, report: &Report, view: &View, now: Duration) -> Share {
        let others = || self.holders.iter().filter(|(holder, _)| **holder != who).map(|(_, holder)| holder);
        let sum = |of: fn(&Holder) -> u64| others().map(of).fold(0, u64::saturating_add);
        let others_used = sum(|holder| holder.used);
        let taken = report.used.saturating_add(unheard);
        // What nobody used, and of that, what nobody else may use.
        let free = report.per_minute.saturating_sub(taken).saturating_sub(others_used);
        let available = report.per_minute.saturating_sub(taken).saturating_sub(sum(|holder| holder.held));
        let demand = others()
            .filter(|holder| now.saturating_sub(holder.heard) < SILENT_MAX)
            .fold(report.demand, |sum, holder| sum.saturating_add(holder.demand));
        let falls: Vec<(Duration, u64)> = others()
            .flat_map(|holder| &holder.falls)
            .filter(|(at, _)| *at > now)
            .map(|(at, amount)| (at.saturating_sub(now), *amount))
            .collect();

        let kept = self.claim.filter(|claim| claim.who != who).map_or(0, |claim| claim.wanted);
        let (available, shared) = (available.saturating_sub(kept), free.saturating_sub(kept));
        let share = if view.is_small(report.per_minute) { 0 } else { part(shared, report.demand, demand) };
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
        let mut number = 0;
        if let Some(holder) = self.holders.get_mut(&who) {
            holder.number += 1;
            holder.held = holder.held.max(cap);
            if met && report.wanted > 0 {
                // It waits for it, and will use it at once: the next report says if not.
                holder.used = holder.used.saturating_add(report.wanted);
                holder.falls.push((now + SPAN, report.wanted));
            }
            number = holder.number;
        }
        Share { limit: report.limit, number, cap, others_used, others_fall: steps(falls) }
    }
}

/// Of `whole`, as `one` is to `all`, rounded up.
fn part(whole: u64, one: u64, all: u64) -> u64 {
    let part = (u128::from(whole) * u128::from(one)).div_ceil(u128::from(all.max(1)));
    u64::try_from(part).unwrap_or(u64::MAX)
}

/// A claim must outlive the frames in which others learn of it and say so.
const _: () = assert!(CLAIM_FOR.as_millis() > 3 * FRAME_EVERY.as_millis());

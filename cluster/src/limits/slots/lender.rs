//! What the owner of keys knows of who uses their slots, and what it lends. Nothing of it is stored.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::{Answer, Frame, Lent, Roll, SETTLES_IN, Told};
use crate::id::NodeId;
use crate::limits::{SILENT_MAX, View};

/// Keys known at a time. Nodes go by their even parts of more.
const KEYS_MAX: usize = 262_144;

/// So long it is remembered of who uses nothing what it told last: no message takes longer.
const FORGET_AFTER: Duration = Duration::from_secs(10);

/// Changes of members at a time, in all of which a key may have stayed here. After more, it counts as new.
const CHANGES_MAX: usize = 16;

/// A node, and a life of its process.
type Who = (NodeId, u64);

/// Times are since some moment fixed by the caller.
#[derive(Debug, Default)]
pub struct Lender {
    roll: Roll,
    stamp: u64,
    keys: HashMap<u64, BTreeMap<Who, Borrowed>>,
    /// Who told all it uses, going by these members.
    told_all: BTreeSet<NodeId>,
    /// Not waited for longer.
    settles_at: Duration,
    /// Who were there before, since all had told: of the keys that were here all the time everything is known.
    before: Vec<View>,
    /// Others are heard of one by one when a process begins: before then it takes itself for all there are.
    grown_at: Option<Duration>,
    pruned: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Borrowed {
    used: u32,
    sequence: u64,
    heard: Duration,
}

impl Lender {
    /// Who is there. What the dead used is free.
    pub fn see(&mut self, roll: &Roll, now: Duration) {
        if self.roll == *roll {
            return;
        }
        let grown_at = *self.grown_at.get_or_insert(now + SETTLES_IN);
        let stamp = roll.stamp();
        if self.stamp != stamp {
            if self.is_settled(now) {
                self.before = vec![self.roll.view.clone()];
            } else if self.before.len() >= CHANGES_MAX {
                self.before.clear();
            } else if !self.before.is_empty() {
                self.before.push(self.roll.view.clone());
            }
            self.stamp = stamp;
            self.settles_at = now + SETTLES_IN;
            self.told_all.clear();
        }
        // Who is first heard of by a process that has just begun may use what it was lent elsewhere.
        if now < grown_at && roll.alive.iter().any(|node| !is_there(&self.roll, *node)) {
            self.before.clear();
        }
        self.roll = roll.clone();
        for borrowers in self.keys.values_mut() {
            borrowers.retain(|(node, _life), _borrowed| is_there(roll, *node));
        }
    }

    /// Takes note of what a node tells and answers it.
    pub fn hear(&mut self, from: NodeId, frame: &Frame, now: Duration) -> Answer {
        self.prune(now);
        let who = (from, frame.life);
        let own = frame.told.iter().filter(|told| self.roll.view.owner(told.key) == Some(self.roll.view.me));
        let leave = |max: u32| u32::try_from(self.roll.view.leave(max.into())).unwrap_or(max);
        let own: Vec<Told> = own.map(|told| Told { max: leave(told.max), ..*told }).collect();
        let noted: Vec<Told> = own.into_iter().filter(|told| self.note(who, told, now)).collect();
        if frame.all && frame.stamp == self.stamp {
            self.take_for_all(who, frame);
        }
        let answer = |told: Told| {
            let settled = self.is_known(told.key, now);
            let lent = if settled { self.lend(who, &told) } else { 0 };
            Lent { key: told.key, lent, settled }
        };
        let lent = noted.into_iter().map(answer).collect();
        Answer { stamp: self.stamp, lent }
    }

    /// Slots of a key that count as used.
    pub fn used(&self, key: u64) -> u32 {
        let borrowers = self.keys.get(&key).into_iter().flat_map(BTreeMap::values);
        borrowers.fold(0, |sum, borrowed| sum.saturating_add(borrowed.used))
    }

    /// `false` for what was overtaken, and where there is no room.
    fn note(&mut self, who: Who, told: &Told, now: Duration) -> bool {
        if self.keys.len() >= KEYS_MAX && !self.keys.contains_key(&told.key) {
            return false;
        }
        let borrowers = self.keys.entry(told.key).or_default();
        // Of a node that was started again, nothing of before runs.
        borrowers.retain(|(node, life), _borrowed| *node != who.0 || *life == who.1);
        let borrowed = borrowers.entry(who).or_insert(Borrowed { used: 0, sequence: 0, heard: now });
        let is_news = told.sequence > borrowed.sequence;
        if is_news {
            *borrowed = Borrowed { used: told.used, sequence: told.sequence, heard: now };
        }
        is_news
    }

    /// What the frame does not tell of is not used, unless something newer has told of it.
    fn take_for_all(&mut self, who: Who, frame: &Frame) {
        self.told_all.insert(who.0);
        for borrowers in self.keys.values_mut() {
            borrowers.retain(|(node, life), _borrowed| *node != who.0 || *life == who.1);
            let known = borrowers.get_mut(&who).filter(|borrowed| borrowed.sequence < frame.sequence);
            if let Some(borrowed) = known {
                (borrowed.used, borrowed.sequence) = (0, frame.sequence);
            }
        }
    }

    fn lend(&mut self, who: Who, told: &Told) -> u32 {
        let free = told.max.saturating_sub(self.used(told.key));
        let lent = told.wanted.min(free);
        if let Some(borrowed) = self.keys.get_mut(&told.key).and_then(|borrowers| borrowers.get_mut(&who)) {
            borrowed.used = borrowed.used.saturating_add(lent);
        }
        lent
    }

    /// All who are alive have told all they use, or have had the time to.
    fn is_settled(&self, now: Duration) -> bool {
        let alone = !self.roll.alive.contains(&self.roll.view.me);
        let there = self.roll.alive.len() as u64 + u64::from(alone);
        let is_grown = there >= self.roll.view.members || self.grown_at.is_some_and(|at| now >= at);
        let all_told = is_grown && self.roll.alive.iter().all(|node| self.told_all.contains(node));
        !self.roll.view.ready.is_empty() && (now >= self.settles_at || all_told)
    }

    fn is_known(&self, key: u64, now: Duration) -> bool {
        let was_own = |view: &View| view.owner(key) == Some(view.me);
        self.is_settled(now) || (!self.before.is_empty() && self.before.iter().all(was_own))
    }

    /// What came late of who is dead, and whoever has used nothing for long.
    fn prune(&mut self, now: Duration) {
        if now.saturating_sub(self.pruned) < SILENT_MAX {
            return;
        }
        self.pruned = now;
        let roll = &self.roll;
        self.keys.retain(|_key, borrowers| {
            borrowers.retain(|(node, _life), borrowed| {
                let silent = now.saturating_sub(borrowed.heard);
                let counts = if is_there(roll, *node) { borrowed.used > 0 } else { silent < SILENT_MAX };
                counts || silent < FORGET_AFTER && borrowed.used == 0
            });
            !borrowers.is_empty()
        });
    }
}

fn is_there(roll: &Roll, node: NodeId) -> bool {
    node == roll.view.me || roll.alive.contains(&node)
}

//! The account of one budget in one window: which life of which node was granted how much. Pure and deterministic.
//!
//! Escrow: a grant is a debit. What a node was granted counts as spent until it gives it back, and only what it, or
//! what it wrote to its disk, proves unspent is given back. So no message, no crash and no clock can make it spend more
//! than was granted, and all grants together stay within the limit.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::lease::Mark;
use crate::id::{Incarnation, NodeId};

/// Lines of one account. Beyond it those of the oldest lives that are over become one.
pub const LINES_MAX: usize = 256;

/// What one life of a node was granted, has used and has given back, since the window began. The three only grow.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct Line {
    pub node: NodeId,
    pub granted: u64,
    pub used: u64,
    pub returned: u64,
    /// How much it would like to have been granted, all in all. Not more than `granted`: it waits for nothing.
    pub wants: u64,
    /// Less than this, all in all, leaves somebody waiting there.
    pub least: u64,
    /// How far its calls may have gone on credit, by the mark it was settled at; 0 where that was within its rights.
    pub marked: u64,
    pub stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum Stage {
    /// The node lives this life, as far as anyone knows.
    Open,
    /// It lives another, or none: this one is granted nothing more.
    Ended,
    /// What it used is proved, and the rest was given back.
    Settled,
    /// As settled, but by an operator's word before its disk was heard of.
    Answered,
}

impl Stage {
    /// Nothing more is given back of it.
    pub fn is_settled(self) -> bool {
        match self {
            Self::Settled | Self::Answered => true,
            Self::Open | Self::Ended => false,
        }
    }
}

impl Line {
    fn new(node: NodeId) -> Self {
        Self { node, granted: 0, used: 0, returned: 0, wants: 0, least: 0, marked: 0, stage: Stage::Open }
    }

    /// What counts as spent. A call that used more than its bound, or on credit, has used more than was granted: that
    /// counts, too.
    pub fn held(&self) -> u64 {
        self.rights().max(self.used).max(self.marked)
    }

    /// Spent, or perhaps, beyond what was granted.
    pub fn debt(&self) -> u64 {
        self.held() - self.rights()
    }

    fn rights(&self) -> u64 {
        self.granted.saturating_sub(self.returned)
    }

    /// Held by a life that is over and not proved spent.
    pub fn burned(&self) -> u64 {
        if self.stage == Stage::Open { 0 } else { self.held() - self.used }
    }

    /// What has to be free for it to be served; 0: it waits for nothing.
    fn lacks(&self) -> u64 {
        if self.stage == Stage::Open { self.least.saturating_sub(self.granted).saturating_sub(self.debt()) } else { 0 }
    }

    fn unmet(&self) -> u64 {
        if self.stage == Stage::Open { self.wants.saturating_sub(self.granted) } else { 0 }
    }
}

/// What an operator's word made of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconciled {
    pub before: Line,
    pub after: Line,
}

/// What a node says of one of its lines. Cumulative: said twice, late or in another order it comes to the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct Statement {
    pub used: u64,
    /// Has been debited at the node before it is said.
    pub returned: u64,
    /// As [`Line::wants`].
    pub wants: u64,
    /// Less than this much granted, all in all, serves nobody who waits there: then nothing is granted.
    pub least: u64,
}

/// What a node is told of its line, and of all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct Standing {
    /// All in all.
    pub granted: u64,
    pub limit: u64,
    /// Counts as spent, by anyone. More than the limit where that was lowered.
    pub held: u64,
    /// Proved spent, by anyone.
    pub used: u64,
    /// Held by lives that are over, and not proved unspent.
    pub burned: u64,
    /// Others wait for what nobody has: whoever has idle rights is to return them.
    pub recall: bool,
}

impl Standing {
    /// Neither proved spent nor burned, whoever holds it.
    pub fn unused(&self) -> u64 {
        self.limit.saturating_sub(self.used).saturating_sub(self.burned)
    }
}

/// Lives that are over, as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct Folded {
    pub used: u64,
    pub burned: u64,
}

/// As the module says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct Book {
    limit: u64,
    lines: BTreeMap<Incarnation, Line>,
    folded: Folded,
}

impl Book {
    pub fn new(limit: u64) -> Self {
        Self { limit, ..Self::default() }
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// A lower one recalls; nothing that was granted is taken away.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Takes in what a life says and grants what it wants, as far as there is. A life that has no line gets one, unless
    /// it is `over`.
    pub fn state(&mut self, incarnation: Incarnation, node: NodeId, said: Statement, over: bool) -> Standing {
        if over && !self.lines.contains_key(&incarnation) {
            return self.standing(incarnation);
        }
        let line = self.lines.entry(incarnation).or_insert_with(|| Line::new(node));
        line.used = line.used.max(said.used);
        line.returned = line.returned.max(said.returned).min(line.granted);
        line.wants = said.wants;
        line.least = said.least.min(said.wants);
        if over {
            self.end(incarnation);
        } else {
            self.grant(incarnation, said.least);
            self.fold();
        }
        self.standing(incarnation)
    }

    /// This life is over: another of the same node has begun, or the node was removed.
    pub fn end(&mut self, incarnation: Incarnation) {
        if let Some(line) = self.lines.get_mut(&incarnation)
            && line.stage == Stage::Open
        {
            line.stage = Stage::Ended;
        }
    }

    /// Gives back what a life that is over did not use: it cannot have gone beyond `mark`. The first proof counts.
    pub fn settle(&mut self, incarnation: Incarnation, node: NodeId, mark: Mark) {
        if mark.lent > 0 {
            // It may have spent on credit before it was ever heard of.
            self.lines.entry(incarnation).or_insert_with(|| Line { stage: Stage::Ended, ..Line::new(node) });
        }
        let Some(line) = self.lines.get_mut(&incarnation).filter(|line| line.node == node) else { return };
        // A disk that knows less than the node once said has gone back to an earlier state: it proves nothing.
        if line.stage == Stage::Settled || line.used > mark.reach {
            return;
        }
        if line.stage != Stage::Answered {
            line.returned = line.returned.max(line.granted.saturating_sub(mark.reach));
        }
        line.stage = Stage::Settled;
        // A mark is not taken back with the rights: beyond them it went only as far as it had credit. What it gave back may
        // still be heard of: then as much of this is beyond them. An operator who answered for it before this was known
        // did not know of the credit.
        let furthest = mark.reach.min(line.rights().saturating_add(mark.lent));
        line.marked = if mark.lent > 0 { furthest } else { 0 };
    }

    /// An operator says what a life that is over has really used, and answers for it. What was given back before stays
    /// so: others may have spent it. `None`: there is no such line, or it is not over.
    pub fn reconcile(&mut self, incarnation: Incarnation, used: u64) -> Option<Reconciled> {
        let line = self.lines.get_mut(&incarnation).filter(|line| line.stage != Stage::Open)?;
        let before = line.clone();
        line.used = line.used.max(used);
        line.marked = 0;
        line.stage = if line.stage == Stage::Settled { Stage::Settled } else { Stage::Answered };
        line.returned = line.returned.max(line.granted.saturating_sub(line.used));
        Some(Reconciled { before, after: line.clone() })
    }

    pub fn lines(&self) -> impl Iterator<Item = (Incarnation, &Line)> {
        self.lines.iter().map(|(incarnation, line)| (*incarnation, line))
    }

    pub fn line(&self, incarnation: Incarnation) -> Option<&Line> {
        self.lines.get(&incarnation)
    }

    pub fn folded(&self) -> Folded {
        self.folded
    }

    /// Counts as spent.
    pub fn held(&self) -> u64 {
        self.sum(Line::held).saturating_add(self.folded.used).saturating_add(self.folded.burned)
    }

    /// Proved spent.
    pub fn used(&self) -> u64 {
        self.sum(|line| line.used).saturating_add(self.folded.used)
    }

    /// What the other lives of a node have spent on credit, or may have. `None`: nobody knows, since one of them is not
    /// settled, or is one of those that became one. Of a life that was never heard of only its own disk knows.
    pub fn debts(&self, node: NodeId, incarnation: Incarnation) -> Option<u64> {
        if self.folded != Folded::default() {
            return None;
        }
        let mut others = self.lines.iter().filter(|(life, line)| line.node == node && **life != incarnation);
        others.try_fold(0, |sum: u64, (_life, line)| line.stage.is_settled().then(|| sum.saturating_add(line.debt())))
    }

    pub fn burned(&self) -> u64 {
        self.sum(Line::burned).saturating_add(self.folded.burned)
    }

    /// Held by the present lives of these nodes, and not proved spent.
    pub fn held_by(&self, nodes: &BTreeSet<NodeId>) -> u64 {
        self.sum(|line| {
            let theirs = line.stage == Stage::Open && nodes.contains(&line.node);
            if theirs { line.held() - line.used } else { 0 }
        })
    }

    /// As a life is told.
    pub fn standing(&self, incarnation: Incarnation) -> Standing {
        let (held, used) = (self.held(), self.used());
        let others = self.lines.iter().filter(|(other, _line)| **other != incarnation);
        let lacking = others.fold(0, |sum: u64, (_other, line)| sum.saturating_add(line.lacks()));
        Standing {
            granted: self.lines.get(&incarnation).map_or(0, |line| line.granted),
            limit: self.limit,
            held,
            used,
            burned: self.burned(),
            // What is free serves who asks again; and who does not has died.
            recall: lacking > self.limit.saturating_sub(held) || held > self.limit,
        }
    }

    /// Grants what is free: to whoever asks an equal part beside those who wait, but at least what serves anyone there.
    /// Nobody is granted anything while it does not ask, so what is free never goes to a node that has died.
    fn grant(&mut self, incarnation: Incarnation, least: u64) {
        let held = self.held();
        let waiting = self.lines.values().filter(|line| line.unmet() > 0).count();
        let Some(line) = self.lines.get_mut(&incarnation).filter(|line| line.unmet() > 0) else { return };
        // What pays a debt is held already. A debt beyond the limit is not paid: that would be a right to another.
        let debt = line.debt();
        let free = self.limit.saturating_add(debt).saturating_sub(held);
        let unmet = line.unmet();
        let least = least.saturating_sub(line.granted).min(unmet);
        if least > free {
            return;
        }
        // Rounded up: the last unit goes to somebody.
        let part = free.saturating_sub(debt).div_ceil(u64::try_from(waiting).unwrap_or(u64::MAX)).saturating_add(debt);
        line.granted += unmet.min(part.max(least)).min(free);
    }

    fn fold(&mut self) {
        while self.lines.len() > LINES_MAX {
            let over =
                self.lines.iter().find(|(_, line)| line.stage != Stage::Open).map(|(incarnation, _)| *incarnation);
            let Some(line) = over.and_then(|incarnation| self.lines.remove(&incarnation)) else { return };
            self.folded.used = self.folded.used.saturating_add(line.used);
            self.folded.burned = self.folded.burned.saturating_add(line.held() - line.used);
        }
    }

    fn sum(&self, of: impl Fn(&Line) -> u64) -> u64 {
        self.lines.values().fold(0, |sum, line| sum.saturating_add(of(line)))
    }
}

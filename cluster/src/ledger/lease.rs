//! What one node holds of one budget in one window: its side of a [`Book`](super::book::Book)'s line. Pure.
//!
//! Always `used + reserved <= mark` and `used + reserved <= granted - returned`, where the mark is on this node's disk
//! before the first unit above the earlier mark is dispatched. A life that comes after a crash reads the mark, and it
//! proves that no more was used. Usage above its own bound is outside of it. While no ledger answers, rights on credit may
//! come on top of those granted: what was set aside of them is debt, and the first that is granted later pays it.

use serde::{Deserialize, Serialize};

use super::book::Statement;

/// How far a life may have gone with its calls, as it is written down before it goes that far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Mark {
    pub reach: u64,
    /// So much of that on credit, at most.
    pub lent: u64,
}

impl Mark {
    /// Without credit.
    pub const fn to(reach: u64) -> Self {
        Self { reach, lent: 0 }
    }

    /// Both of them are on the disk.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { reach: self.reach.max(other.reach), lent: self.lent.max(other.lent) }
    }
}

/// As the module says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lease {
    granted: u64,
    returned: u64,
    used: u64,
    reserved: u64,
    /// May be reserved beyond the rights, for now.
    credit: u64,
    /// The highest on the disk. What may be dispatched ends at it and at the rights.
    mark: Mark,
}

/// Why an amount cannot be reserved now. Nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The rights are here; this mark has to be on the disk first.
    Mark { wanted: Mark },
    /// So much more has to be granted.
    Rights { missing: u64 },
}

impl Lease {
    /// Granted and not given back.
    pub fn rights(&self) -> u64 {
        self.granted.saturating_sub(self.returned)
    }

    /// In use: gone, or set aside for calls under way.
    pub fn busy(&self) -> u64 {
        self.used.saturating_add(self.reserved)
    }

    /// Rights nothing is set aside of.
    pub fn idle(&self) -> u64 {
        self.rights().saturating_sub(self.busy())
    }

    /// In use beyond the rights.
    pub fn debt(&self) -> u64 {
        self.busy().saturating_sub(self.rights())
    }

    /// May be reserved, on credit where there is any.
    pub fn room(&self) -> u64 {
        self.rights().saturating_add(self.credit).saturating_sub(self.busy())
    }

    /// May be reserved without waiting for the disk.
    pub fn ready(&self) -> u64 {
        let credit = self.credit.min(self.mark.lent);
        self.rights().saturating_add(credit).min(self.mark.reach).saturating_sub(self.busy())
    }

    pub fn granted(&self) -> u64 {
        self.granted
    }

    pub fn used(&self) -> u64 {
        self.used
    }

    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// The mark that leaves `chunk` more to be reserved, as far as there is room.
    pub fn wanted(&self, chunk: u64) -> Mark {
        Mark { reach: self.busy().saturating_add(chunk.min(self.room())), lent: self.credit }
    }

    pub fn reserve(&mut self, amount: u64) -> Result<(), Lack> {
        if amount > self.room() {
            return Err(Lack::Rights { missing: amount - self.room() });
        }
        if amount > self.ready() {
            return Err(Lack::Mark { wanted: self.wanted(amount) });
        }
        self.reserved += amount;
        Ok(())
    }

    /// No call was made.
    pub fn release(&mut self, amount: u64) {
        self.reserved = self.reserved.saturating_sub(amount);
    }

    /// A call has ended that `amount` was set aside for. More than that may have been used only where a bound is none.
    pub fn settle(&mut self, amount: u64, used: u64) {
        self.reserved = self.reserved.saturating_sub(amount);
        self.used = self.used.saturating_add(used);
    }

    /// All in all. An older word changes nothing.
    pub fn grant(&mut self, granted: u64) {
        self.granted = self.granted.max(granted);
    }

    /// So much debt there may be from now on. What is set aside stays so.
    pub fn lend(&mut self, credit: u64) {
        self.credit = credit;
    }

    /// `mark` is on the disk.
    pub fn marked(&mut self, mark: Mark) {
        self.mark = self.mark.and(mark);
    }

    /// Debits idle rights, all but `keep` of them; the next [`statement`](Self::statement) says so. How much it was.
    pub fn give_back(&mut self, keep: u64) -> u64 {
        let back = self.idle().saturating_sub(keep);
        self.returned += back;
        back
    }

    /// What the ledger is told: `more` rights are wanted beyond those granted and what pays the debt, and fewer than
    /// `least` more serve nobody.
    pub fn statement(&self, more: u64, least: u64) -> Statement {
        let paid = self.granted.saturating_add(self.debt());
        Statement {
            // What is said is on the disk: else the next life could prove nothing.
            used: self.used.min(self.mark.reach),
            returned: self.returned,
            wants: paid.saturating_add(more),
            least: if least == 0 { self.granted } else { paid.saturating_add(least) },
        }
    }
}

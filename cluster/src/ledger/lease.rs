//! What one node holds of one budget in one window: its side of a [`Book`](super::book::Book)'s line. Pure.
//!
//! Always `used + reserved <= mark <= granted - returned`, where the mark is on this node's disk before the first unit
//! above the earlier mark is dispatched. A life that comes after a crash reads the mark, and it proves that no more was
//! used. Usage above its own bound, and rights taken on credit, are outside of it and said so.

use super::book::Statement;

/// As the module says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lease {
    granted: u64,
    returned: u64,
    used: u64,
    reserved: u64,
    /// The highest mark on the disk. What may be dispatched ends at it and at the rights.
    mark: u64,
}

/// Why an amount cannot be reserved now. Nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The rights are here; this mark has to be on the disk first.
    Mark { wanted: u64 },
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

    /// May be reserved without waiting for the disk.
    pub fn ready(&self) -> u64 {
        self.rights().min(self.mark).saturating_sub(self.busy())
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

    pub fn mark(&self) -> u64 {
        self.mark
    }

    pub fn reserve(&mut self, amount: u64) -> Result<(), Lack> {
        if amount > self.idle() {
            return Err(Lack::Rights { missing: amount - self.idle() });
        }
        if amount > self.ready() {
            return Err(Lack::Mark { wanted: self.busy().saturating_add(amount) });
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

    /// `mark` is on the disk.
    pub fn marked(&mut self, mark: u64) {
        self.mark = self.mark.max(mark);
    }

    /// Debits idle rights, all but `keep` of them; the next [`statement`](Self::statement) says so. How much it was.
    pub fn give_back(&mut self, keep: u64) -> u64 {
        let back = self.idle().saturating_sub(keep);
        self.returned += back;
        back
    }

    /// What the ledger is told: `more` rights are wanted beyond those granted, and fewer than `least` more serve nobody.
    pub fn statement(&self, more: u64, least: u64) -> Statement {
        Statement {
            used: self.used,
            returned: self.returned,
            wants: self.granted.saturating_add(more),
            least: self.granted.saturating_add(least),
        }
    }
}

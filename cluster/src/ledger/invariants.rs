//! What must hold of accounts, whatever happened: used by properties, simulations and fault runs alike.

use super::book::Book;
use super::lease::{Lease, Mark};
use crate::id::Incarnation;

/// What does not hold, and with which numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("{held} are held of a limit that was never above {most}")]
    Overdrawn { held: u64, most: u64 },
    #[error("{spent} were spent of a limit that was never above {most}")]
    Overspent { spent: u64, most: u64 },
    #[error("the lease of life {incarnation:?} spends {busy} of {rights} rights and {credit} on credit, with {mark:?}")]
    BeyondRights { incarnation: Incarnation, busy: u64, rights: u64, credit: u64, mark: Mark },
    #[error("life {incarnation:?} has {busy} in use, and the ledger lets it hold {held}")]
    BeyondLine { incarnation: Incarnation, busy: u64, held: u64 },
}

/// I1: what all hold stays within the limit, or within the highest that was in force. Not so where calls used more than
/// their bound.
pub fn within_limit(book: &Book, most: u64) -> Result<(), Broken> {
    let held = book.held();
    if held > most { Err(Broken::Overdrawn { held, most }) } else { Ok(()) }
}

/// I2, both sides of it: a node has in use no more than it may, `overdraft` on credit, and the ledger counts at least
/// that as spent, but for what is on credit.
pub fn within_rights(
    incarnation: Incarnation,
    lease: &Lease,
    on_disk: Mark,
    book: &Book,
    overdraft: u64,
) -> Result<(), Broken> {
    let (busy, rights, credit) = (lease.busy(), lease.rights(), overdraft.min(on_disk.lent));
    if busy > rights + credit || busy > on_disk.reach {
        return Err(Broken::BeyondRights { incarnation, busy, rights, credit, mark: on_disk });
    }
    let held = book.line(incarnation).map_or(0, super::book::Line::held);
    if busy > held + credit {
        return Err(Broken::BeyondLine { incarnation, busy, held });
    }
    Ok(())
}

/// I3, P-MONEY: what providers may bill never exceeds the limit.
pub fn within_budget(spent: u64, most: u64) -> Result<(), Broken> {
    if spent > most { Err(Broken::Overspent { spent, most }) } else { Ok(()) }
}

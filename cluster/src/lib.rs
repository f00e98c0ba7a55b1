//! What the nodes agree on: the register of members and resources, the directory made from it, and money.

pub mod clock;
pub mod config;
pub mod directory;
pub mod id;
pub mod ledger;
pub mod register;

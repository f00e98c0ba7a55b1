//! What the nodes agree on: who is a member, one replicated register of members and resources, the directory made from
//! it, and money. Calls to peers carry it.

pub mod bootstrap;
pub mod clock;
pub mod config;
pub mod consensus;
pub mod directory;
pub mod freshness;
pub mod id;
pub mod ledger;
pub mod limits;
pub mod marks;
pub mod membership;
pub mod metrics;
pub mod peer;
pub mod register;
pub mod tasks;

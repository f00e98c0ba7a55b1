//! What the nodes agree on. Today that is one node's directory of resources and the money types; both pure.

pub mod clock;
pub mod config;
pub mod directory;
pub mod ledger;

//! What the nodes agree on. Today that is one node's directory of resources and the money types; both pure.

pub mod clock;
pub mod directory;
pub mod id;
pub mod ledger;
pub mod membership;
pub mod metrics;
pub mod peer;
pub mod tasks;

//! Who is there, told by gossip.

pub mod metrics;

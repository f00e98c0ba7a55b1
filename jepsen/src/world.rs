//! Where nodes live.

pub mod network;
pub mod simulated;

//! Where nodes live.

pub mod network;
pub mod pause;
pub mod proof;
pub mod simulated;

//! What this node remembers: answers in memory, and what outlives the process in one data directory.

pub mod cache;
pub mod cell;
pub mod codec;
pub mod database;
pub mod disk;
pub mod fatal;
pub mod log;
pub mod metrics;
pub mod snapshot;
pub mod trail;

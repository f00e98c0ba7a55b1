//! What this node remembers. Today that is answers in memory, and nothing that outlives the process.

pub mod cache;

//! Proof under faults: a world of nodes, something that breaks it, something that uses it, and checks of what was promised.
//!
//! A run is a function of its seed as far as this program goes; openraft and tokio keep some orders to themselves, so a
//! seed repeats the faults exactly and the schedule nearly.

pub mod check;
pub mod history;
pub mod nemesis;
pub mod random;
pub mod run;
pub mod spending;
pub mod workload;
pub mod world;

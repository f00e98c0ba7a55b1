//! Money, and who may spend how much of it.
//!
//! [`book::Book`] is what the nodes agree on, [`lease::Lease`] what one of them holds; [`invariants`] says what is always
//! true of both. All of it is pure: no clock, no disk, no message.

pub mod accounts;
pub mod book;
pub mod invariants;
pub mod lease;
#[cfg(test)]
mod model;
pub mod money;
#[cfg(test)]
mod tests;
pub mod window;

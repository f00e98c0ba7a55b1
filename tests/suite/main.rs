//! The repository and its binary, seen from outside.

mod bad_input;
mod bad_upstream;
mod cache;
mod chat;
mod lifecycle;
mod keys;
mod streaming;
mod tidy;

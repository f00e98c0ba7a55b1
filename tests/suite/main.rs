//! The repository and its binary, seen from outside.

mod cache;
mod chat;
mod streaming;
mod tidy;

//! The repository and its binary, seen from outside.

mod chat;
mod tidy;

//! The repository and its binary, seen from outside.

mod tidy;

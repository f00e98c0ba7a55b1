//! The repository and its binary, seen from outside.

mod bad_input;
mod bad_upstream;
mod breaker;
mod budgets;
mod cache;
mod chat;
mod cluster;
mod cluster_disk;
mod cluster_faults;
mod cluster_members;
mod cluster_providers;
mod cluster_start;
mod keys;
mod lifecycle;
mod observe;
mod partition;
mod rates;
mod routing;
mod spending;
mod streaming;
mod tidy;
mod tls;

//! Who does the work, and the path of a request.
//!
//! ```text
//! process (node)            leaves, with the reason, when `Supervisor::failed` resolves
//! ├── Supervisor            one for one; more than `restarts_max` deaths of one child `within` a time end it
//! │   ├── breaker `openai`  restarts closed; what other nodes say it is told again
//! │   ├── breaker `…`       one for each provider of the directory
//! │   └── cache `shard 0`   restarts empty, at the size it was told last
//! └── Tasks                 what is not an actor: connections, streams, flights; all waited for at shutdown
//! ```
//!
//! Everything else on the path of a request is a value with a lock held for nanoseconds, or a published snapshot. A
//! restart of the process forgets breakers, flags of credentials, rate windows, turns and the cache, and finds the
//! [`gate`] closed until the node has caught up with its cluster.

pub mod breaker;
pub mod cache;
pub mod gate;
pub mod guard;
pub mod identity;
pub mod ingress;
pub mod metrics;
pub mod provider;
pub mod queue;
pub mod quota;
pub mod routing;
pub mod supervisor;

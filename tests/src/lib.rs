//! What tests need to hold a node from outside: the node as a process, a provider that does as told, clients that can be rude.
//!
//! ```ignore
//! let provider = FakeProvider::start(binary!()).await;
//! let node = TestNode::builder(binary!())
//!     .provider("provider", &provider)
//!     .config("providers: { openai: { base_url: \"{provider}/v1\", api_key: upstream } }\nauth: none")
//!     .start()
//!     .await;
//! let reply = node.client().chat("openai/m", "hello").await;
//! assert_eq!(reply.status, 200);
//! ```
//! Everything that waits has [`DEADLINE`], and what fails says so by ending the test with all that is known. Nothing here
//! knows how the node works inside.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "only tests use this, and a test ends where something failed"
)]

mod client;
mod cluster;
mod failure;
mod metrics;
mod network;
mod node;
mod operator;
mod process;
mod provider;
mod raw;
mod skip;
mod sse;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::{Duration, Instant};

pub use client::{Client, Reply, Streamed};
pub use cluster::{Member, TestCluster, TestClusterBuilder, copy_folder};
pub use failure::{Api, Told};
pub use metrics::Metrics;
pub use network::TestNetwork;
pub use node::{TestNode, TestNodeBuilder};
pub use operator::{Operator, Refused};
pub use process::{Finished, Process, run};
pub use provider::{Bill, Charge, FakeProvider, FakeProviderBuilder, Seen, Sum};
pub use raw::{Afterwards, RawConnection, RawProvider};
pub use skip::skipped;
pub use sse::{Event, Events};

/// How long anything may take. Far more than it takes on a busy machine, so that reaching it means it never happens.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// For what takes several elections, restarts or runs of `stale_max` one after the other.
pub const LONG: Duration = Duration::from_secs(30);

/// Between two looks at a condition.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// The path of the binary under test. Known only where the suite is compiled, hence a macro.
#[macro_export]
macro_rules! binary {
    () => {
        env!("CARGO_BIN_EXE_llm-edge-agent")
    };
}

/// Waits until `condition` holds. It must be a level (something that stays so), not an edge.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    eventually_some(what, async || condition().await.then_some(())).await;
}

/// As [`eventually`], for what may take `within`.
pub async fn eventually_within(within: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    eventually_some_within(within, what, async || condition().await.then_some(())).await;
}

/// Waits until there is something, and returns it.
pub async fn eventually_some<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_some_within(DEADLINE, what, look).await
}

/// As [`eventually_some`], for what may take `within`.
pub async fn eventually_some_within<T>(within: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "tests measure by a clock of their own")]
fn now() -> Instant {
    Instant::now()
}

/// Another number each time, for names and addresses that nobody else has.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The result of `future`, or the end of the test after [`DEADLINE`].
async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    in_time_of(DEADLINE, what, future).await
}

async fn in_time_of<T>(within: Duration, what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(within, future).await.unwrap_or_else(|_elapsed| panic!("not within {within:?}: {what}"))
}

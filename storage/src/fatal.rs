//! The one place that ends the process at once, without destructors.
//!
//! For two things only: a disk that did not keep what it was given, and a newer life of this same node elsewhere. Going on
//! would acknowledge what is not kept, or spend twice; whoever starts again reads what is really there.

use std::io::Write;
use std::sync::Arc;

/// What happens when something that was promised durable may not be. It may return (a simulated node must not take the
/// process with it); whoever called it acknowledges nothing any more.
pub type OnFatal = Arc<dyn Fn(&str) + Send + Sync>;

/// Says why, and ends the process.
pub fn abort(reason: &str) -> ! {
    tracing::error!(reason, "ending the process");
    // The log may be written by a thread that will not run again.
    drop(writeln!(std::io::stderr(), "fatal: {reason}"));
    std::process::abort()
}

/// What a real node does.
pub fn aborting() -> OnFatal {
    Arc::new(|reason| abort(reason))
}

//! Where time enters. Everything below and beside takes `now` as an argument.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time, for deadlines, rates and breakers.
#[expect(clippy::disallowed_methods, reason = "this is where the monotonic clock enters")]
pub fn now() -> Instant {
    Instant::now()
}

/// Wall-clock time since 1970, for expiry dates and `created` fields. Never used to measure.
#[expect(clippy::disallowed_methods, reason = "this is where the wall clock enters")]
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

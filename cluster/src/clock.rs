//! Where time enters. Everything below and beside takes `now` as an argument.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time, for deadlines, rates and breakers.
#[expect(clippy::disallowed_methods, reason = "this is where the monotonic clock enters")]
pub fn now() -> Instant {
    Instant::now()
}

/// Time since the machine started, suspension included: for what must run out even while this machine sleeps.
pub fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Neither part is negative: the clock counts up from the start.
    Duration::new(time.tv_sec.try_into().unwrap_or_default(), time.tv_nsec.try_into().unwrap_or_default())
}

/// Wall-clock time since 1970, for expiry dates and `created` fields. Never used to measure.
#[expect(clippy::disallowed_methods, reason = "this is where the wall clock enters")]
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

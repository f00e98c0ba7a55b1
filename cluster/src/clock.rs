//! Where time enters. Everything below and beside takes `now` as an argument.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

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

/// Time since the machine started, which goes on while it sleeps: a promise about age must not stand still with it.
pub fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.try_into().unwrap_or_default(), time.tv_nsec.try_into().unwrap_or_default())
}

/// The clock of one node. Simulated, it is the paused time of the runtime, and the wall clock may be wrong.
#[derive(Clone, Debug)]
pub enum Clock {
    Real,
    Simulated { start: tokio::time::Instant, wall: Wall },
}

/// What a simulated wall clock says at the start; it may be put forward and back. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct Wall(Arc<AtomicU64>);

impl Wall {
    /// To the millisecond.
    pub fn new(at_start: Duration) -> Self {
        let wall = Self(Arc::default());
        wall.put(at_start);
        wall
    }

    pub fn at_start(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    pub fn put(&self, at_start: Duration) {
        self.0.store(u64::try_from(at_start.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Clock {
    /// For ages: [`since_boot`], or the simulation's time.
    pub fn now(&self) -> Duration {
        match self {
            Self::Real => since_boot(),
            // A simulated node starts somewhere in the life of its machine; 0 would hide what is taken from it.
            Self::Simulated { start, .. } => Duration::from_hours(1) + start.elapsed(),
        }
    }

    /// For dates: [`since_epoch`], or what the simulation makes of it.
    pub fn wall(&self) -> Duration {
        match self {
            Self::Real => since_epoch(),
            Self::Simulated { start, wall } => wall.at_start() + start.elapsed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_runs_at_least_as_long_as_the_monotonic_one() {
        let (boot, monotonic) = (since_boot(), now());
        while now() == monotonic {}
        assert!(since_boot() > boot);
        assert!(boot > Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_simulated_clock_follows_the_runtime() {
        let clock = Clock::Simulated { start: tokio::time::Instant::now(), wall: Wall::new(Duration::from_secs(7)) };
        let before = clock.now();

        tokio::time::sleep(Duration::from_secs(3)).await;

        assert_eq!(clock.now(), before + Duration::from_secs(3));
        assert_eq!(clock.wall(), Duration::from_secs(10));
        let Clock::Simulated { wall, .. } = &clock else { return };
        wall.put(Duration::from_secs(2));
        assert_eq!(clock.wall(), Duration::from_secs(5), "it was put back");
    }
}

//! How fast a budget is used.

use std::time::{Duration, Instant};

use super::IDLE_MAX;

/// What is fetched ahead lasts so long at the present rate: longer than a leader that is lost takes to be replaced.
const HORIZON: Duration = Duration::from_secs(5);

/// Within so short a time a rate does not fade.
const FADES_EVERY: Duration = Duration::from_millis(1);

/// How fast a budget is used, and in what pieces. An estimate: nothing that must hold hangs on it.
#[derive(Default)]
pub struct Pace {
    per_second: f64,
    /// Until when it has faded.
    at: Option<Instant>,
    pub largest: u64,
}

impl Pace {
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn note(&mut self, amount: u64, now: Instant) {
        let passed = self.at.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        if passed >= FADES_EVERY {
            self.per_second *= faded(passed);
            self.at = Some(now);
        }
        self.per_second += amount as f64 / HORIZON.as_secs_f64();
        self.largest = amount.max(self.largest - self.largest / 64);
    }

    /// What the next seconds may take.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an estimate, and never negative")]
    pub fn ahead(&self, now: Instant) -> u64 {
        let Some(at) = self.at else { return 0 };
        let passed = now.saturating_duration_since(at);
        if passed > IDLE_MAX {
            return 0;
        }
        let per_second = if passed < FADES_EVERY { self.per_second } else { self.per_second * faded(passed) };
        ((per_second * HORIZON.as_secs_f64()) as u64).saturating_add(self.largest.saturating_mul(2))
    }
}

/// What is left of each part of a rate after so long.
fn faded(passed: Duration) -> f64 {
    (-passed.as_secs_f64() / HORIZON.as_secs_f64()).exp()
}

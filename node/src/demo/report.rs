//! The report: a heading for each step, what was seen, and whether the claim held.

use std::io;
use std::time::Duration;

use crate::output;

/// What was shown so far.
#[derive(Default)]
pub struct Report {
    steps: usize,
    failed: usize,
}

impl Report {
    /// A step begins.
    pub fn step(&mut self, title: &str) -> io::Result<()> {
        self.steps += 1;
        output::line(&format!("\n{}. {title}", self.steps))
    }

    /// Something that was seen.
    pub fn saw(what: &str) -> io::Result<()> {
        output::line(&format!("     {what}"))
    }

    /// What the step claims, and whether it is so.
    pub fn claim(&mut self, claim: &str, held: bool) -> io::Result<()> {
        let mark = if held { "✓" } else { "✗" };
        self.failed += usize::from(!held);
        output::line(&format!("   {mark} {claim}"))
    }

    /// The last line. How many claims did not hold.
    pub fn close(&self) -> io::Result<usize> {
        let Self { steps, failed } = *self;
        let verdict = if failed == 0 { "every claim held".to_owned() } else { format!("{failed} claims did not hold") };
        output::line(&format!("\n{steps} steps, {verdict}"))?;
        Ok(failed)
    }
}

/// For a person: `0.8 ms`, `112 ms`.
pub fn milliseconds(took: Duration) -> String {
    let took = took.as_secs_f64() * 1e3;
    if took < 10.0 { format!("{took:.1} ms") } else { format!("{took:.0} ms") }
}

/// The middle one.
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

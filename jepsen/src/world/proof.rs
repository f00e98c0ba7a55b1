//! What a life could prove by its disk if the power of its machine went this very moment.

use std::sync::Arc;

use cluster::id::Incarnation;
use cluster::ledger::accounts::Place;
use cluster::ledger::lease::Mark;
use cluster::marks::{Lives, Marks};
use parking_lot::Mutex;
use storage::disk::simulated::SimulatedDisk;
use storage::log::{Commits, Log, LogOptions};

/// Where the marks are on a node's disk.
pub const MARKS: &str = "marks";

/// Cheap to clone.
#[derive(Clone)]
pub struct Proof {
    medium: SimulatedDisk,
    /// As they were read last, and how often they were looked at. Read again where these say too little, and now and then
    /// in any case: marks are not to shrink.
    known: Arc<Mutex<(Lives, u64)>>,
}

/// Every how many looks the disk itself is read.
const READS_EVERY: u64 = 8;

impl Proof {
    pub fn new(medium: SimulatedDisk) -> Self {
        Self { medium, known: Arc::default() }
    }

    /// The mark of a life, which is to reach `reach` with `lent` of it on credit. `None`: the disk does not know the life, or
    /// not any more. A disk that cannot be read proves nothing.
    pub fn of(&self, life: Incarnation, place: Place, least: Mark) -> Option<Mark> {
        let mark = |lives: &Lives| lives.get(&life).map(|marks| marks.get(&place).copied().unwrap_or_default());
        let mut known = self.known.lock();
        let (lives, looks) = &mut *known;
        *looks += 1;
        let enough = mark(lives).filter(|mark| !looks.is_multiple_of(READS_EVERY) && mark.and(least) == *mark);
        if enough.is_some() {
            return enough;
        }
        *lives = self.read().unwrap_or_default();
        mark(lives)
    }

    fn read(&self) -> Option<Lives> {
        let commits = Commits::ByCaller { wake: Arc::new(|| {}) };
        let options =
            LogOptions { headroom_bytes: 0, commits, on_fatal: Arc::new(|_reason| {}), ..LogOptions::default() };
        let disk = self.medium.synced(MARKS).disk().within(MARKS).ok()?;
        Some(Marks::open(Log::open(disk, options).ok()?).ok()?.lives())
    }
}

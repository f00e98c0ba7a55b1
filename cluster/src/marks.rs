//! How far each life of this node may have spent of each budget: the high-water marks, on its disk before it goes that far.
//!
//! A life that comes after reads them and proves with them what was not spent. A life is written down before it is granted
//! anything, so one that is not here was never lived in this directory, and proves nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use storage::codec::{self, CodecError};
use storage::log::{Done, Failed, Log, ReadError, receipt};
use tracing::warn;

use crate::id::Incarnation;
use crate::ledger::accounts::Place;
use crate::ledger::lease::Mark;

/// Records after which everything is written as one, and what came before is purged.
const RECORDS_MAX: u64 = 4_096;

/// Places from which on those of windows that are long over are looked for and forgotten. What remains is bounded by the
/// windows the ledger keeps.
const PLACES_MANY: usize = 4_096;

const FORMAT: u8 = 1;

/// Marks by life and place.
pub type Lives = BTreeMap<Incarnation, BTreeMap<Place, Mark>>;

#[derive(Serialize, Deserialize)]
enum Record {
    Begun(Incarnation),
    Marks(Incarnation, Vec<(Place, Mark)>),
    Forgotten(Incarnation),
    /// All there is.
    All(Lives),
}

/// Why the marks do not open.
#[derive(Debug, thiserror::Error)]
pub enum MarksError {
    #[error("the marks of budgets cannot be read")]
    Read(#[source] ReadError),
    #[error("a mark of a budget is damaged")]
    Damaged(#[source] CodecError),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Marks(Arc<Inner>);

struct Inner {
    log: Log,
    kept: Mutex<Kept>,
}

struct Kept {
    lives: Lives,
    /// Places from which on to prune.
    many: usize,
}

impl Marks {
    /// Blocks on the disk.
    pub fn open(log: Log) -> Result<Self, MarksError> {
        let bounds = log.bounds();
        let mut lives = Lives::new();
        for bytes in log.read(bounds.first..bounds.next).map_err(MarksError::Read)? {
            let (_format, record) = codec::decode(&bytes, bytes.len() as u64).map_err(MarksError::Damaged)?;
            take(&mut lives, record);
        }
        Ok(Self(Arc::new(Inner { log, kept: Mutex::new(Kept { lives, many: PLACES_MANY }) })))
    }

    /// What every life that was begun here may have spent.
    pub fn lives(&self) -> Lives {
        self.0.kept.lock().lives.clone()
    }

    /// Whether no other life than this one is known, or all are settled.
    pub fn is_alone(&self, life: Incarnation) -> bool {
        self.0.kept.lock().lives.keys().all(|known| *known == life)
    }

    /// Before this life is granted anything. Durable when it returns, as are the next two.
    pub async fn begin(&self, life: Incarnation) -> Result<(), Failed> {
        self.write(Record::Begun(life)).await
    }

    pub async fn mark(&self, life: Incarnation, marks: Vec<(Place, Mark)>) -> Result<(), Failed> {
        self.write(Record::Marks(life, marks)).await
    }

    /// Forgets places of which nothing can be given back any more, where there are many. Whoever says that one is `past`
    /// must be sure of it: of a place that is not named here a settlement gives back everything.
    pub fn prune(&self, past: impl Fn(Place) -> bool) {
        let mut kept = self.0.kept.lock();
        let places = |lives: &Lives| lives.values().map(BTreeMap::len).sum::<usize>();
        if places(&kept.lives) < kept.many {
            return;
        }
        for marks in kept.lives.values_mut() {
            marks.retain(|place, _mark| !past(*place));
        }
        kept.many = PLACES_MANY.max(places(&kept.lives) * 2);
    }

    /// Its settlement is applied, or it may not be settled.
    pub async fn forget(&self, life: Incarnation) -> Result<(), Failed> {
        self.write(Record::Forgotten(life)).await
    }

    async fn write(&self, record: Record) -> Result<(), Failed> {
        let place = self.0.log.place(0).await;
        let (done, durable) = receipt();
        let many = {
            let mut kept = self.0.kept.lock();
            let bytes = bytes_of(&record);
            take(&mut kept.lives, record);
            self.append(&kept, place, bytes, done);
            let bounds = self.0.log.bounds();
            bounds.next - bounds.first >= RECORDS_MAX
        };
        durable.durable().await?;
        if many && let Err(why) = self.compact().await {
            // This one is durable, and the next one tries again.
            warn!(%why, "marks of budgets could not be written as one");
        }
        Ok(())
    }

    /// Under the lock, so that the next one's number follows on this one's. The log knows it: after a full disk it has gone
    /// back.
    fn append(&self, _locked: &Kept, place: storage::log::Place, bytes: Bytes, done: Done) -> u64 {
        let index = self.0.log.bounds().next;
        self.0.log.append(place, index, vec![bytes], done);
        index
    }

    async fn compact(&self) -> Result<(), Failed> {
        let (place, purge) = (self.0.log.place(0).await, self.0.log.place(0).await);
        let (done, written) = receipt();
        let all_at = {
            let kept = self.0.kept.lock();
            let all = Record::All(kept.lives.clone());
            self.append(&kept, place, bytes_of(&all), done)
        };
        // Before it is there, what it stands for is needed.
        written.durable().await?;
        let (gone, purged) = receipt();
        self.0.log.purge_to(purge, all_at.saturating_sub(1), Bytes::new(), gone);
        purged.durable().await
    }
}

fn take(lives: &mut Lives, record: Record) {
    match record {
        Record::Begun(life) => {
            lives.entry(life).or_default();
        }
        Record::Marks(life, marks) => {
            let kept = lives.entry(life).or_default();
            for (place, mark) in marks {
                let highest = kept.entry(place).or_default();
                *highest = highest.and(mark);
            }
        }
        Record::Forgotten(life) => {
            lives.remove(&life);
        }
        Record::All(all) => *lives = all,
    }
}

/// Cannot fail for what is whole in memory; an empty record would not be read again, and the node would not start.
fn bytes_of(record: &Record) -> Bytes {
    match codec::encode(FORMAT, record) {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) => storage::fatal::abort(&format!("a mark cannot be written: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::accounts::BudgetId;
    use storage::disk::simulated::SimulatedDisk;
    use storage::log::LogOptions;

    fn open(disk: &SimulatedDisk) -> Marks {
        Marks::open(Log::open(disk.disk(), LogOptions::default()).unwrap()).unwrap()
    }

    fn place(budget: u64) -> Place {
        Place::new(BudgetId(budget), 0)
    }

    #[tokio::test]
    async fn what_was_marked_is_there_after_a_power_cut() {
        let disk = SimulatedDisk::new();
        let marks = open(&disk);
        let (first, second) = (Incarnation::new(5), Incarnation::new(9));
        marks.begin(first).await.unwrap();
        marks.mark(first, vec![(place(1), Mark { reach: 10, lent: 4 }), (place(2), Mark::to(7))]).await.unwrap();
        marks.mark(first, vec![(place(1), Mark::to(30))]).await.unwrap();
        marks.mark(first, vec![(place(1), Mark::to(20))]).await.unwrap();
        marks.begin(second).await.unwrap();
        drop(marks);
        disk.crash(1);

        let marks = open(&disk);

        let reached = BTreeMap::from([(place(1), Mark { reach: 30, lent: 4 }), (place(2), Mark::to(7))]);
        let expected = BTreeMap::from([(first, reached), (second, BTreeMap::new())]);
        assert_eq!(marks.lives(), expected);
        assert!(!marks.is_alone(second));
        marks.forget(first).await.unwrap();
        drop(marks);
        disk.crash(2);
        assert_eq!(open(&disk).lives(), BTreeMap::from([(second, BTreeMap::new())]));
    }

    /// It fills up when all there is comes to be written as one: what is to be replaced by that stays.
    #[tokio::test]
    async fn a_full_disk_loses_no_mark_and_is_got_over() {
        let disk = SimulatedDisk::new();
        let marks = open(&disk);
        let life = Incarnation::new(1);
        let all = (0..2_000).map(|budget| (place(budget), Mark::to(budget))).collect();
        marks.mark(life, all).await.unwrap();
        for number in 1..RECORDS_MAX - 1 {
            marks.mark(life, vec![(place(number % 5), Mark::to(number))]).await.unwrap();
        }
        let much = 1 << 30;
        disk.set_capacity(Some(much));
        let used = much - disk.disk().free_bytes().unwrap();

        disk.set_capacity(Some(used + 4_000));
        marks.mark(life, vec![(place(7), Mark::to(10_000))]).await.unwrap();
        let known = marks.lives();
        let mut refused = 0;
        for _ in 0..200 {
            refused += u32::from(marks.mark(life, vec![(place(8), Mark::to(10_000))]).await == Err(Failed::NoSpace));
        }
        assert!(refused > 0, "it is full");

        disk.set_capacity(None);
        marks.mark(life, vec![(place(9), Mark::to(10_000))]).await.unwrap();
        drop(marks);
        disk.crash(1);
        let found = open(&disk).lives();
        assert_eq!(found[&life].len(), 2_000);
        for (place, mark) in &known[&life] {
            assert!(found[&life][place].reach >= mark.reach, "{place:?}");
        }
    }

    #[tokio::test]
    async fn places_of_the_past_are_forgotten_once_there_are_many() {
        let disk = SimulatedDisk::new();
        let marks = open(&disk);
        let life = Incarnation::new(1);
        let window = |window| Place::new(BudgetId(0), window);
        let past = |place: Place| place.window < 6_000;
        marks.mark(life, (0..4_000).map(|number| (window(number), Mark::to(1))).collect()).await.unwrap();
        marks.prune(past);
        assert_eq!(marks.lives()[&life].len(), 4_000, "not many yet");

        marks.mark(life, (4_000..6_010).map(|number| (window(number), Mark::to(1))).collect()).await.unwrap();
        marks.prune(past);

        assert_eq!(
            marks.lives()[&life].keys().map(|place| place.window).collect::<Vec<_>>(),
            (6_000..6_010).collect::<Vec<_>>()
        );
    }

    #[tokio::test]
    async fn what_is_old_is_purged_and_nothing_lost() {
        let disk = SimulatedDisk::new();
        let marks = open(&disk);
        let life = Incarnation::new(1);
        for number in 0..RECORDS_MAX * 2 + 10 {
            marks.mark(life, vec![(place(number % 5), Mark::to(number))]).await.unwrap();
        }
        let bounds = marks.0.log.bounds();
        let before = marks.lives();
        drop(marks);

        assert!(bounds.next - bounds.first < RECORDS_MAX, "{bounds:?}");
        assert_eq!(open(&disk).lives(), before);
    }
}

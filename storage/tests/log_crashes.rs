//! Whatever is done to a log and whenever the power goes: what is found is a state the log went through, and none from
//! before the last acknowledgement (P-DURABLE).

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a disk that fails unasked fails the test")]
#![expect(clippy::cast_possible_truncation, reason = "logs in here have a few entries")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use storage::disk::simulated::SimulatedDisk;
use storage::log::{Commits, Done, Failed, Log, LogOptions};

#[derive(Clone, Debug)]
enum Step {
    Append {
        sizes: Vec<usize>,
    },
    /// So many of the last entries.
    Truncate {
        back: u64,
    },
    /// To so many after the first entry; it may lie beyond the last.
    Purge {
        ahead: u64,
    },
    Commit,
    Read {
        from: prop::sample::Index,
        to: prop::sample::Index,
    },
    PowerLoss {
        seed: u64,
    },
    Kill,
    /// So much room is left.
    Fill {
        room: u64,
    },
    Relieve,
    FailSyncs {
        after: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(0..120usize, 0..5).prop_map(|sizes| Step::Append { sizes }),
        2 => (0..6u64).prop_map(|back| Step::Truncate { back }),
        2 => (0..6u64).prop_map(|ahead| Step::Purge { ahead }),
        6 => Just(Step::Commit),
        3 => any::<(prop::sample::Index, prop::sample::Index)>().prop_map(|(from, to)| Step::Read { from, to }),
        2 => any::<u64>().prop_map(|seed| Step::PowerLoss { seed }),
        1 => Just(Step::Kill),
        1 => (0..300u64).prop_map(|room| Step::Fill { room }),
        1 => Just(Step::Relieve),
        1 => (0..6u64).prop_map(|after| Step::FailSyncs { after }),
    ]
}

/// What a log contains.
#[derive(Clone, Debug, Default, PartialEq)]
struct Content {
    purged: Option<(u64, Bytes)>,
    first: u64,
    entries: Vec<Bytes>,
}

#[derive(Clone, Debug)]
enum Change {
    Append(u64, Vec<Bytes>),
    Truncate(u64),
    Purge(u64, Bytes),
}

impl Content {
    fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn of(log: &Log) -> Self {
        let bounds = log.bounds();
        let entries = log.read(bounds.first..bounds.next).expect("everything within the bounds is readable");
        assert_eq!(entries.len() as u64, bounds.next - bounds.first);
        Self { purged: bounds.purged.map(|index| (index, bounds.purged_note)), first: bounds.first, entries }
    }

    fn after(&self, change: &Change) -> Self {
        let mut next = self.clone();
        match change {
            Change::Append(first, entries) => {
                if next.entries.is_empty() {
                    next.first = *first;
                }
                next.entries.extend(entries.iter().cloned());
            }
            Change::Truncate(index) => next.entries.truncate((index - self.first) as usize),
            Change::Purge(index, note) => {
                let gone = (index + 1 - self.first).min(self.entries.len() as u64);
                next.entries.drain(..gone as usize);
                next.first = index + 1;
                next.purged = Some((*index, note.clone()));
            }
        }
        next
    }

    /// Every state on the way through `change`, its own and the next included.
    fn through(&self, change: &Change) -> Vec<Self> {
        let mut states = vec![self.clone()];
        match change {
            Change::Append(first, entries) => {
                states.extend(
                    (1..=entries.len()).map(|some| self.after(&Change::Append(*first, entries[..some].to_vec()))),
                );
            }
            Change::Truncate(index) => states.extend((*index..self.next()).map(|at| self.after(&Change::Truncate(at)))),
            Change::Purge(..) => states.push(self.after(change)),
        }
        states
    }

    /// What there is from `first` on. An empty log that was never purged may begin anywhere.
    fn from(&self, first: u64) -> Self {
        let mut content = self.clone();
        let gone = first.saturating_sub(self.first).min(self.entries.len() as u64);
        content.entries.drain(..gone as usize);
        content.first = if content.entries.is_empty() { 0 } else { content.first + gone };
        content
    }
}

type Outcomes = Arc<Mutex<BTreeMap<usize, Result<(), Failed>>>>;

struct World {
    machine: SimulatedDisk,
    log: Log,
    /// What the log was opened with, and everything asked of it since; refused appends are taken out again.
    opened: Content,
    changes: BTreeMap<usize, Change>,
    outcomes: Outcomes,
    asked: usize,
    /// A purge had no room for its mark: it is done in memory, and owed on disk.
    mark_owed: bool,
}

impl World {
    fn new() -> Self {
        let machine = SimulatedDisk::new();
        let log = open(&machine);
        Self {
            machine,
            log,
            opened: Content::default(),
            changes: BTreeMap::new(),
            outcomes: Outcomes::default(),
            asked: 0,
            mark_owed: false,
        }
    }

    fn present(&self) -> Content {
        self.changes.values().fold(self.opened.clone(), |content, change| content.after(change))
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Append { sizes } => {
                let first = self.present().next();
                let entries = sizes.iter().map(|size| self.entry(*size)).collect();
                self.ask(Change::Append(first, entries));
            }
            Step::Truncate { back } => {
                let present = self.present();
                self.ask(Change::Truncate(present.next().saturating_sub(*back).max(present.first)));
            }
            Step::Purge { ahead } => {
                let index = self.present().first + ahead;
                self.ask(Change::Purge(index, Bytes::from(format!("note of {index}"))));
            }
            Step::Commit => drop(self.log.commit_queued()),
            Step::Read { from, to } => self.read(*from, *to),
            Step::PowerLoss { seed } => self.restart(Some(*seed)),
            Step::Kill => self.restart(None),
            Step::Fill { room } => self.fill(*room),
            Step::Relieve => self.machine.set_capacity(None),
            Step::FailSyncs { after } => self.machine.fail_syncs_after(*after),
        }
        self.hear_outcomes();
    }

    /// No two are alike.
    fn entry(&self, size: usize) -> Bytes {
        let mut entry = format!("{} ", self.asked).into_bytes();
        entry.resize(entry.len() + size, b'.');
        entry.into()
    }

    fn ask(&mut self, change: Change) {
        let (number, outcomes) = (self.asked, Arc::clone(&self.outcomes));
        let done: Done = Box::new(move |outcome| {
            assert!(outcomes.lock().insert(number, outcome).is_none(), "told twice");
        });
        self.asked += 1;
        self.changes.insert(number, change.clone());
        let place = self.log.try_place(0).expect("the queue is large");
        match change {
            Change::Append(first, entries) => self.log.append(place, first, entries, done),
            Change::Truncate(index) => self.log.truncate_from(place, index, done),
            Change::Purge(index, note) => self.log.purge_to(place, index, note, done),
        }
    }

    fn hear_outcomes(&mut self) {
        let mut broken = false;
        let heard: Vec<_> = self.outcomes.lock().clone().into_iter().collect();
        for (number, outcome) in heard {
            match (outcome, self.changes.get(&number)) {
                (Err(Failed::NoSpace), Some(Change::Append(..))) => drop(self.changes.remove(&number)),
                (Err(Failed::NoSpace), Some(Change::Purge(..))) => self.mark_owed = true,
                (Err(Failed::Broken), _) => broken = true,
                (Ok(()) | Err(Failed::NoSpace), _) => {}
                (Err(other), _) => panic!("{other}"),
            }
        }
        if broken {
            // Its process ends, and what it wrote without a sync is in the kernel's cache still, or is not.
            self.restart(self.asked.is_multiple_of(2).then_some(self.asked as u64));
        } else {
            let (found, wanted) = (Content::of(&self.log), self.present());
            assert_eq!(found.from(0), wanted.from(0));
        }
    }

    fn read(&self, from: prop::sample::Index, to: prop::sample::Index) {
        let present = self.present();
        let (from, to) = (from.index(present.entries.len() + 1), to.index(present.entries.len() + 1));
        let range = present.first + from as u64..present.first + to as u64;
        if from <= to {
            assert_eq!(self.log.read(range).unwrap(), present.entries[from..to]);
        }
        assert!(self.log.read(present.first..present.next() + 1).is_err(), "never a short read");
    }

    fn fill(&mut self, room: u64) {
        self.machine.set_capacity(Some(u64::MAX));
        let used = u64::MAX - self.machine.disk().free_bytes().unwrap();
        self.machine.set_capacity(Some(used + room));
    }

    fn restart(&mut self, power_loss: Option<u64>) {
        match power_loss {
            Some(seed) => self.machine.crash(seed),
            None => self.machine.kill(),
        }
        self.machine.mend_syncs();
        // What this life of the process still tries changes nothing.
        self.log.commit_queued();
        self.log = open(&self.machine);

        let found = Content::of(&self.log);
        let acknowledged =
            self.outcomes.lock().iter().filter(|(_, outcome)| outcome.is_ok()).map(|(number, _)| *number).max();
        assert!(self.possible(acknowledged, &found), "found {found:?} in {:?}", self.log);
        if power_loss.is_none() {
            // What is read now must not go back: it was made durable when it was opened.
            self.machine.crash(self.asked as u64);
            self.log = open(&self.machine);
            assert_eq!(Content::of(&self.log), found);
        }
        self.opened = found;
        self.changes.clear();
        self.outcomes = Outcomes::default();
        self.mark_owed = false;
    }

    /// Whether the log went through `found` and not before the last acknowledgement.
    fn possible(&self, acknowledged: Option<usize>, found: &Content) -> bool {
        let is = |state: &Content| {
            if self.mark_owed {
                found.from(state.first).entries == state.entries
            } else {
                found.from(0) == state.from(0)
            }
        };
        let mut state = self.opened.clone();
        let mut reached = acknowledged.is_none() && is(&state);
        for (number, change) in &self.changes {
            let states = state.through(change);
            if acknowledged.is_none_or(|acknowledged| *number > acknowledged) {
                reached |= states.iter().any(is);
            }
            state = state.after(change);
            reached |= acknowledged == Some(*number) && is(&state);
        }
        reached
    }
}

fn open(machine: &SimulatedDisk) -> Log {
    let options = LogOptions {
        segment_bytes_max: 400,
        recent_bytes_max: 100,
        commits: Commits::ByCaller { wake: Arc::new(|| {}) },
        on_fatal: Arc::new(|_reason| {}),
        ..LogOptions::default()
    };
    Log::open(machine.disk().within("log").unwrap(), options).expect("a log is whole after any crash")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, ..ProptestConfig::default() })]

    #[test]
    fn what_is_found_was_there_and_nothing_acknowledged_is_lost(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
        }
        world.take(&Step::PowerLoss { seed: 7 });
    }
}

/// There was no room for a segment's head, and the segment before took the next entry: of the one that was never made
/// nothing may come back after it.
#[test]
fn a_segment_that_found_no_room_does_not_come_back() {
    for seed in 0..200 {
        let mut world = World::new();
        for step in [
            Step::Append { sizes: vec![100, 100] },
            Step::Commit,
            // The first of the next two fits into the segment, and leaves no room for the head of another.
            Step::Fill { room: 96 },
            Step::Append { sizes: vec![60, 200] },
            Step::Commit,
            Step::Append { sizes: vec![0] },
        ] {
            world.take(&step);
        }
        assert_eq!(world.present().entries.len(), 3, "the two were refused");
        // Written, and not synced when the power goes.
        world.machine.fail_syncs_after(0);
        world.log.commit_queued();
        world.restart(Some(seed));
    }
}

//! Openraft's own tests of a store, on ours: on a real disk and on the simulated one.

use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, EntryPayload, RaftLogReader, RaftSnapshotBuilder};
use std::sync::Arc;
use std::time::Duration;
use storage::cell::Cells;
use storage::disk::Disk;
use storage::disk::real::RealDisk;
use storage::disk::simulated::SimulatedDisk;
use storage::log::{Log, LogOptions};
use storage::snapshot::Snapshots;

use super::log_store::{LogStore, stand_down};
use super::state_machine::{Kept, Observer, StateMachine};
use super::types::{Batch, Entry, LogId, StorageError, TypeConfig, Vote};
use crate::directory::key::KeyHash;
use crate::id::NodeId;
use crate::register::{Act, Author, Command, KeyRef, Register};

/// The suite names nodes by small numbers.
impl From<u64> for NodeId {
    fn from(id: u64) -> Self {
        Self::new(id)
    }
}

/// Remembers whom it was told to cut.
#[derive(Clone, Default)]
struct Told(Arc<parking_lot::Mutex<Vec<KeyHash>>>);

impl Observer for Told {
    fn applied(&self, _index: u64, _register: &Register) {}

    fn cut(&self, key: KeyHash) {
        self.0.lock().push(key);
    }
}

fn build(disk: &dyn Disk) -> (LogStore, StateMachine) {
    build_telling(disk, Told::default())
}

fn build_telling(disk: &dyn Disk, told: Told) -> (LogStore, StateMachine) {
    let folder = |name| disk.within(name).unwrap();
    // Small segments, so that the tests cross their borders.
    let options = LogOptions { segment_bytes_max: 256, recent_bytes_max: 128, ..LogOptions::default() };
    let fatal: storage::fatal::OnFatal = Arc::new(|reason| panic!("{reason}"));
    let log = Log::open(folder("log"), LogOptions { on_fatal: Arc::clone(&fatal), ..options }).unwrap();
    let cells = Cells::open(folder("cells"), Arc::clone(&fatal)).unwrap();
    let snapshots = Snapshots::open(folder("snapshots"), fatal).unwrap();
    let machine = StateMachine::open(Kept { snapshots, trail: None }, Box::new(told)).unwrap();
    (LogStore::new(log, cells), machine)
}

struct OnRealDisk;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for OnRealDisk {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError> {
        let folder = tempfile::tempdir().unwrap();
        let (log, machine) = build(&RealDisk::open(folder.path()).unwrap());
        Ok((folder, log, machine))
    }
}

struct OnSimulatedDisk;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, SimulatedDisk> for OnSimulatedDisk {
    async fn build(&self) -> Result<(SimulatedDisk, LogStore, StateMachine), StorageError> {
        let medium = SimulatedDisk::new();
        let (log, machine) = build(&*medium.disk());
        Ok((medium, log, machine))
    }
}

/// Else a node that led once, and is slow to send what it had to, would end its consensus.
#[tokio::test]
async fn what_was_purged_is_nothing_to_send_and_still_an_error_to_apply() {
    let (mut log, _machine) = build(&*SimulatedDisk::new().disk());
    let id = |index| LogId::new(CommittedLeaderId::new(1, NodeId::new(1)), index);
    let entries = (0..10).map(|index| Entry { log_id: id(index), payload: EntryPayload::Blank });
    log.blocking_append(entries).await.unwrap();
    log.purge(id(6)).await.unwrap();

    for first in [0, 3] {
        assert_eq!(log.limited_get_log_entries(first, 9).await.unwrap().len(), 0);
    }
    assert_eq!(log.limited_get_log_entries(7, 9).await.unwrap().len(), 2);
    assert!(log.try_get_log_entries(3..9).await.is_err());
}

#[test]
fn openrafts_suite_passes_on_a_real_disk() {
    Suite::test_all(OnRealDisk).unwrap();
}

#[test]
fn openrafts_suite_passes_on_the_simulated_disk() {
    Suite::test_all(OnSimulatedDisk).unwrap();
}

/// Openraft lets who led lead on when it starts again, by the vote that it finds.
#[tokio::test]
async fn who_led_stands_down_and_nobody_elses_vote_is_touched() {
    let medium = SimulatedDisk::new();
    let disk = medium.disk();
    let (mut log, _machine) = build(&*disk);
    let fatal: storage::fatal::OnFatal = Arc::new(|reason| panic!("{reason}"));
    let cells = Cells::open(disk.within("cells").unwrap(), fatal).unwrap();
    let me = NodeId::new(3);
    let after = async |log: &mut LogStore, vote: Vote| {
        log.save_vote(&vote).await.unwrap();
        stand_down(&cells, me).unwrap();
        log.read_vote().await.unwrap().unwrap()
    };

    stand_down(&cells, me).unwrap();
    assert_eq!(log.read_vote().await.unwrap(), None);
    assert_eq!(after(&mut log, Vote::new_committed(7, me)).await, Vote::new(8, me));
    for other in [Vote::new(7, me), Vote::new_committed(7, NodeId::new(2))] {
        assert_eq!(after(&mut log, other).await, other);
    }
}

/// A node that takes over a snapshot cuts who was revoked meanwhile. Who was revoked long ago has nothing left to cut.
#[tokio::test]
async fn a_snapshot_tells_of_the_cuts_that_are_new_here() {
    let [old, new] = ["old", "new"].map(KeyHash::of);
    let entry = |index, key| {
        let revoke = Act::Revoke { key: KeyRef::Hash(key), cut: true };
        let commands = vec![Command::new(Author::default(), Duration::ZERO, revoke)];
        let log_id = LogId::new(CommittedLeaderId::new(1, NodeId::new(1)), index);
        Entry { log_id, payload: EntryPayload::Normal(Batch { commands }) }
    };
    let (behind, ahead) = (Told::default(), Told::default());
    let (_log, mut machine) = build_telling(&*SimulatedDisk::new().disk(), behind.clone());
    let (_log, mut other) = build_telling(&*SimulatedDisk::new().disk(), ahead.clone());
    machine.apply([entry(1, old)]).await.unwrap();
    other.apply([entry(1, old), entry(2, new)]).await.unwrap();
    let snapshot = other.get_snapshot_builder().await.build_snapshot().await.unwrap();

    machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();

    assert_eq!(*ahead.0.lock(), [old, new]);
    assert_eq!(*behind.0.lock(), [old, new], "each of them once");
}

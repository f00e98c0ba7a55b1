//! Openraft's own tests of a store, on ours: on a real disk and on the simulated one.

use openraft::testing::{StoreBuilder, Suite};
use std::sync::Arc;
use storage::cell::Cells;
use storage::disk::Disk;
use storage::disk::real::RealDisk;
use storage::disk::simulated::SimulatedDisk;
use storage::log::{Log, LogOptions};
use storage::snapshot::Snapshots;

use super::log_store::LogStore;
use super::state_machine::{Kept, Observer, StateMachine};
use super::types::{StorageError, TypeConfig};
use crate::directory::key::KeyHash;
use crate::id::NodeId;
use crate::register::Register;

/// The suite names nodes by small numbers.
impl From<u64> for NodeId {
    fn from(id: u64) -> Self {
        Self::new(id)
    }
}

struct Nobody;

impl Observer for Nobody {
    fn applied(&self, _index: u64, _register: &Register) {}

    fn cut(&self, _key: KeyHash) {}
}

fn build(disk: &dyn Disk) -> (LogStore, StateMachine) {
    let folder = |name| disk.within(name).unwrap();
    // Small segments, so that the tests cross their borders.
    let options = LogOptions { segment_bytes_max: 256, recent_bytes_max: 128, ..LogOptions::default() };
    let fatal: storage::fatal::OnFatal = Arc::new(|reason| panic!("{reason}"));
    let log = Log::open(folder("log"), LogOptions { on_fatal: Arc::clone(&fatal), ..options }).unwrap();
    let cells = Cells::open(folder("cells"), Arc::clone(&fatal)).unwrap();
    let snapshots = Snapshots::open(folder("snapshots"), fatal).unwrap();
    let machine = StateMachine::open(Kept { snapshots, trail: None }, Box::new(Nobody)).unwrap();
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

#[test]
fn openrafts_suite_passes_on_a_real_disk() {
    Suite::test_all(OnRealDisk).unwrap();
}

#[test]
fn openrafts_suite_passes_on_the_simulated_disk() {
    Suite::test_all(OnSimulatedDisk).unwrap();
}

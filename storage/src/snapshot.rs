//! Snapshots: whole states under an id, replaced atomically. The two newest are kept.
//!
//! A file is `version · checksum · length of id: u8 · id · length of meta: u32 · meta · data`, named by a number that grows.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::cell::REJOIN;
use crate::codec;
use crate::disk::{self, Disk, ReplaceError};
use crate::fatal::OnFatal;

/// Bytes of one snapshot, id and meta included. A larger state is refused before anything is written.
pub const SNAPSHOT_BYTES_MAX: usize = 1 << 30;

/// Snapshots kept: the newest, and the one before it in case the newest turns out damaged.
pub const SNAPSHOTS_MAX: usize = 2;

const VERSION: u8 = 1;
const ENDING: &str = ".snapshot";

/// Cheap to clone: clones are the same store. Every call blocks for as long as the disk takes.
#[derive(Clone)]
pub struct Snapshots {
    shared: Arc<Shared>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    on_fatal: OnFatal,
    state: Mutex<State>,
}

struct State {
    /// Oldest first.
    numbers: Vec<u64>,
    broken: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub id: String,
    pub meta: Bytes,
    pub data: Bytes,
}

/// Why a snapshot was not kept or not found.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("a snapshot of {found} bytes is more than {SNAPSHOT_BYTES_MAX}, or its id longer than 255")]
    TooLarge { found: usize },

    #[error("no room on the disk for snapshot `{id}`; the one before it stands")]
    NoSpace {
        id: String,
        #[source]
        cause: io::Error,
    },

    #[error("snapshot `{id}` could not be written; the one before it stands")]
    Unwritten {
        id: String,
        #[source]
        cause: io::Error,
    },

    /// Nothing is written any more in this life of the process.
    #[error("snapshot `{id}` could not be made durable")]
    Unsynced {
        id: String,
        #[source]
        cause: io::Error,
    },

    #[error("an earlier snapshot could not be made durable, so nothing is written any more")]
    Broken,

    #[error("snapshot file `{file}` could not be read")]
    Unread {
        file: String,
        #[source]
        cause: io::Error,
    },

    #[error("every snapshot is damaged, the newest in `{file}`. {REJOIN}")]
    Damaged { file: String },
}

impl Snapshots {
    pub fn open(disk: Arc<dyn Disk>, on_fatal: OnFatal) -> io::Result<Self> {
        disk::remove_temporaries(&*disk)?;
        // An earlier life may have ended between a rename and its sync: what is read from here on must not go back.
        disk.sync_directory()?;
        let mut numbers: Vec<u64> =
            disk.list()?.iter().filter_map(|name| name.strip_suffix(ENDING)?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(Self { shared: Arc::new(Shared { disk, on_fatal, state: Mutex::new(State { numbers, broken: false }) }) })
    }

    /// Durable when it returns; then older ones than the two newest are removed.
    pub fn save(&self, id: &str, meta: &[u8], data: &[u8]) -> Result<(), SnapshotError> {
        let found = id.len().saturating_add(meta.len()).saturating_add(data.len());
        let (Ok(id_length), Ok(meta_length)) = (u8::try_from(id.len()), u32::try_from(meta.len())) else {
            return Err(SnapshotError::TooLarge { found });
        };
        if found > SNAPSHOT_BYTES_MAX {
            return Err(SnapshotError::TooLarge { found });
        }
        let mut state = self.shared.state.lock();
        if state.broken {
            return Err(SnapshotError::Broken);
        }
        let number = state.numbers.last().map_or(1, |newest| newest + 1);
        let meta_length = meta_length.to_le_bytes();
        let content = [&[id_length][..], id.as_bytes(), &meta_length, meta, data];
        let header = codec::header(VERSION, &content);
        let parts: Vec<&[u8]> = [&header[..]].into_iter().chain(content).collect();

        match disk::replace(&*self.shared.disk, &file_of(number), &parts) {
            Ok(()) => {}
            Err(ReplaceError::Unwritten(cause)) if disk::is_full(&cause) => {
                return Err(SnapshotError::NoSpace { id: id.to_owned(), cause });
            }
            Err(ReplaceError::Unwritten(cause)) => return Err(SnapshotError::Unwritten { id: id.to_owned(), cause }),
            Err(ReplaceError::Unsynced(cause)) => {
                state.broken = true;
                drop(state);
                (self.shared.on_fatal)(&format!("snapshot `{id}` could not be made durable: {cause}"));
                return Err(SnapshotError::Unsynced { id: id.to_owned(), cause });
            }
        }
        state.numbers.push(number);
        self.remove_old(&mut state);
        Ok(())
    }

    /// The newest that is whole. One that is damaged is passed over with a warning: the caller has to see whether the log
    /// still reaches back to the older one.
    pub fn latest(&self) -> Result<Option<Snapshot>, SnapshotError> {
        let state = self.shared.state.lock();
        for number in state.numbers.iter().rev() {
            let file = file_of(*number);
            let content = self
                .shared
                .disk
                .read_all(&file)
                .map_err(|cause| SnapshotError::Unread { file: file.clone(), cause })?;
            if let Some(snapshot) = parse(&content.into()) {
                return Ok(Some(snapshot));
            }
            tracing::warn!(file, "snapshot is damaged; the one before it is used");
        }
        match state.numbers.last() {
            None => Ok(None),
            Some(newest) => Err(SnapshotError::Damaged { file: file_of(*newest) }),
        }
    }

    fn remove_old(&self, state: &mut State) {
        while state.numbers.len() > SNAPSHOTS_MAX {
            let file = file_of(state.numbers.remove(0));
            // It is found and removed after the next start; until then it only takes room.
            if let Err(error) = self.shared.disk.remove(&file) {
                tracing::warn!(file, %error, "old snapshot could not be removed");
            }
        }
    }
}

fn parse(content: &Bytes) -> Option<Snapshot> {
    let (_version, payload) = codec::unseal(content).ok()?;
    let (id_length, rest) = payload.split_first()?;
    let (id, rest) = rest.split_at_checked(usize::from(*id_length))?;
    let (meta_length, rest) = rest.split_first_chunk::<4>()?;
    let (meta, data) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*meta_length)).ok()?)?;
    let id = String::from_utf8(id.to_vec()).ok()?;
    Some(Snapshot { id, meta: content.slice_ref(meta), data: content.slice_ref(data) })
}

fn file_of(number: u64) -> String {
    format!("{number:020}{ENDING}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::simulated::SimulatedDisk;
    use proptest::prelude::*;

    fn open(machine: &SimulatedDisk) -> Snapshots {
        Snapshots::open(machine.disk(), Arc::new(|_reason| {})).unwrap()
    }

    fn snapshot(number: usize) -> Snapshot {
        let data = vec![u8::try_from(number).unwrap(); 300];
        Snapshot { id: format!("term-{number}"), meta: Bytes::from(format!("meta {number}")), data: data.into() }
    }

    proptest! {
        /// Whenever the power goes or a sync fails, the newest snapshot is the last acknowledged one or one saved after it.
        #[test]
        fn the_newest_is_old_or_new(count in 1..6usize, fail_after in 0..20u64, seeds: (u64, u64), kill: bool) {
            let machine = SimulatedDisk::new();
            let snapshots = open(&machine);
            machine.fail_syncs_after(fail_after);
            let save = |number| { let Snapshot { id, meta, data } = snapshot(number); snapshots.save(&id, &meta, &data) };
            let acknowledged = (1..=count).take_while(|number| save(*number).is_ok()).count();

            machine.mend_syncs();
            if kill { machine.kill() } else { machine.crash(seeds.0) }
            let found = open(&machine).latest().unwrap();
            machine.crash(seeds.1);

            let state = |saved: usize| (saved > 0).then(|| snapshot(saved));
            prop_assert!(found == state(acknowledged) || (acknowledged < count && found == state(acknowledged + 1)));
            prop_assert_eq!(open(&machine).latest().unwrap(), found);
        }
    }

    #[test]
    fn two_are_kept_and_a_damaged_one_is_passed_over_unless_both_are() {
        let machine = SimulatedDisk::new();
        let snapshots = open(&machine);
        for number in 1..=5 {
            let Snapshot { id, meta, data } = snapshot(number);
            snapshots.save(&id, &meta, &data).unwrap();
        }

        let files = machine.disk().list().unwrap();
        assert_eq!(files.len(), SNAPSHOTS_MAX);
        assert_eq!(snapshots.latest().unwrap(), Some(snapshot(5)));
        assert!(machine.damage(&files[1], 100, 1));
        assert_eq!(snapshots.latest().unwrap(), Some(snapshot(4)));
        assert!(machine.damage(&files[0], 100, 1));
        assert!(matches!(snapshots.latest(), Err(SnapshotError::Damaged { .. })));
    }

    #[test]
    fn a_full_disk_leaves_the_snapshot_before() {
        let machine = SimulatedDisk::new();
        let snapshots = open(&machine);
        snapshots.save("a", b"", b"old").unwrap();

        machine.set_capacity(Some(40));
        let refused = snapshots.save("b", b"", &[0; 100]);

        assert!(matches!(refused, Err(SnapshotError::NoSpace { .. })));
        assert_eq!(snapshots.latest().unwrap().unwrap().id, "a");
        assert_eq!(machine.disk().list().unwrap().len(), 1, "nothing half-written stays");
    }
}

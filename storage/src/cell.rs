//! Small values that are durable when `set` returns: a vote, a promise, a counter. One file each.
//!
//! After a crash a cell holds its old or its new value, and the new one if `set` had returned.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::codec::{self, CodecError};
use crate::disk::{self, Disk, ReplaceError};
use crate::fatal::OnFatal;

/// Bytes of a value.
pub const CELL_BYTES_MAX: usize = 1 << 20;

/// Letters of a name.
pub const CELL_NAME_MAX: usize = 64;

const VERSION: u8 = 1;
const ENDING: &str = ".cell";

/// Cheap to clone: clones are the same cells. Every call blocks for as long as the disk takes.
#[derive(Clone)]
pub struct Cells {
    shared: Arc<Shared>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    on_fatal: OnFatal,
    /// Held while writing, so that two who set one cell do not share its temporary file. True once a sync failed.
    broken: Mutex<bool>,
}

/// Why a cell was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    #[error("`{name}` is no name of a cell: 1 to {CELL_NAME_MAX} of a–z, 0–9, `-` and `_`")]
    Name { name: String },

    #[error("cell `{name}` would have {found} bytes, and at most {CELL_BYTES_MAX} are kept")]
    TooLarge { name: String, found: usize },

    #[error("no room on the disk for cell `{name}`; its old value stands")]
    NoSpace {
        name: String,
        #[source]
        cause: io::Error,
    },

    #[error("cell `{name}` could not be written; its old value stands")]
    Unwritten {
        name: String,
        #[source]
        cause: io::Error,
    },

    /// Its old or its new value stands. Nothing is written any more in this life of the process.
    #[error("cell `{name}` could not be made durable")]
    Unsynced {
        name: String,
        #[source]
        cause: io::Error,
    },

    #[error("an earlier write could not be made durable, so nothing is written any more")]
    Broken,

    #[error("cell `{name}` could not be read")]
    Unread {
        name: String,
        #[source]
        cause: io::Error,
    },

    #[error("cell `{name}` is damaged. {REJOIN}")]
    Damaged {
        name: String,
        #[source]
        cause: CodecError,
    },
}

/// What to do about a data directory that cannot be trusted.
pub const REJOIN: &str = "The disk lost or changed what it had confirmed. Look after the disk; then, if the rest of the cluster \
     is alive, remove this node from it, start with an empty data directory and let it join as a new node. \
     On a cluster of one, restore a backup";

impl Cells {
    pub fn open(disk: Arc<dyn Disk>, on_fatal: OnFatal) -> io::Result<Self> {
        disk::remove_temporaries(&*disk)?;
        // An earlier life may have ended between a rename and its sync: what is read from here on must not go back.
        disk.sync_directory()?;
        Ok(Self { shared: Arc::new(Shared { disk, on_fatal, broken: Mutex::new(false) }) })
    }

    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>, CellError> {
        let sealed = match self.shared.disk.read_all(&file_of(name)?) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(CellError::Unread { name: name.to_owned(), cause }),
        };
        let (_version, value) =
            codec::unseal(&sealed).map_err(|cause| CellError::Damaged { name: name.to_owned(), cause })?;
        Ok(Some(value.to_vec()))
    }

    /// Durable when it returns. A sync that fails is fatal and never tried again.
    pub fn set(&self, name: &str, value: &[u8]) -> Result<(), CellError> {
        let file = file_of(name)?;
        if value.len() > CELL_BYTES_MAX {
            return Err(CellError::TooLarge { name: name.to_owned(), found: value.len() });
        }
        self.change(name, |disk| disk::replace(disk, &file, &[&codec::header(VERSION, &[value]), value]))
    }

    /// Durable when it returns. A cell that was never set is no error.
    pub fn remove(&self, name: &str) -> Result<(), CellError> {
        let file = file_of(name)?;
        self.change(name, |disk| match disk.remove(&file) {
            Ok(()) => disk.sync_directory().map_err(ReplaceError::Unsynced),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(ReplaceError::Unwritten(error)),
        })
    }

    fn change(&self, name: &str, act: impl FnOnce(&dyn Disk) -> Result<(), ReplaceError>) -> Result<(), CellError> {
        let mut broken = self.shared.broken.lock();
        if *broken {
            return Err(CellError::Broken);
        }
        let name = name.to_owned();
        match act(&*self.shared.disk) {
            Ok(()) => Ok(()),
            Err(ReplaceError::Unwritten(cause)) if disk::is_full(&cause) => Err(CellError::NoSpace { name, cause }),
            Err(ReplaceError::Unwritten(cause)) => Err(CellError::Unwritten { name, cause }),
            Err(ReplaceError::Unsynced(cause)) => {
                *broken = true;
                drop(broken);
                (self.shared.on_fatal)(&format!("cell `{name}` could not be made durable: {cause}"));
                Err(CellError::Unsynced { name, cause })
            }
        }
    }
}

fn file_of(name: &str) -> Result<String, CellError> {
    let fits = (1..=CELL_NAME_MAX).contains(&name.len());
    if fits && name.bytes().all(|letter| matches!(letter, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_')) {
        Ok(format!("{name}{ENDING}"))
    } else {
        Err(CellError::Name { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::simulated::SimulatedDisk;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn open(machine: &SimulatedDisk) -> Cells {
        Cells::open(machine.disk(), Arc::new(|_reason| {})).unwrap()
    }

    proptest! {
        /// Whenever the power goes or a sync fails, a cell has its last acknowledged value or one set after it; and what was
        /// read once does not go back.
        #[test]
        fn a_cell_is_old_or_new(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..6),
            fail_after in 0..20u64, seeds: (u64, u64), kill: bool,
        ) {
            let machine = SimulatedDisk::new();
            let cells = open(&machine);
            machine.fail_syncs_after(fail_after);
            let acknowledged = values.iter().take_while(|value| cells.set("vote", value).is_ok()).count();

            machine.mend_syncs();
            if kill { machine.kill() } else { machine.crash(seeds.0) }
            let found = open(&machine).get("vote").unwrap();
            machine.crash(seeds.1);

            let state = |set: usize| set.checked_sub(1).map(|last| values[last].clone());
            prop_assert!(found == state(acknowledged) || (acknowledged < values.len() && found == state(acknowledged + 1)));
            prop_assert_eq!(open(&machine).get("vote").unwrap(), found);
        }
    }

    #[test]
    fn a_failed_sync_is_fatal_and_final() {
        let machine = SimulatedDisk::new();
        let told = Arc::new(AtomicBool::new(false));
        let heard = Arc::clone(&told);
        let cells = Cells::open(machine.disk(), Arc::new(move |_reason| heard.store(true, Ordering::Relaxed))).unwrap();

        machine.fail_syncs_after(0);
        assert!(matches!(cells.set("vote", b"1"), Err(CellError::Unsynced { .. })));
        machine.mend_syncs();

        assert!(told.load(Ordering::Relaxed));
        assert!(matches!(cells.set("vote", b"2"), Err(CellError::Broken)));
    }

    #[test]
    fn a_full_disk_leaves_the_old_value() {
        let machine = SimulatedDisk::new();
        let cells = open(&machine);
        cells.set("vote", b"old").unwrap();

        machine.set_capacity(Some(12));
        assert!(matches!(cells.set("vote", b"new"), Err(CellError::NoSpace { .. })));

        assert_eq!(cells.get("vote").unwrap().unwrap(), b"old");
        machine.set_capacity(None);
        cells.set("vote", b"new").unwrap();
        assert_eq!(cells.get("vote").unwrap().unwrap(), b"new");
    }

    #[test]
    fn a_damaged_cell_is_refused_with_advice_and_a_removed_one_is_gone() {
        let machine = SimulatedDisk::new();
        let cells = open(&machine);
        cells.set("vote", b"1").unwrap();
        cells.set("promise", b"2").unwrap();

        assert!(machine.damage("vote.cell", 5, 1));
        cells.remove("promise").unwrap();
        cells.remove("never-set").unwrap();
        machine.crash(1);

        let error = open(&machine).get("vote").unwrap_err();
        assert!(error.to_string().contains("join as a new node"), "{error}");
        assert_eq!(open(&machine).get("promise").unwrap(), None);
    }

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        let cells = open(&SimulatedDisk::new());

        for name in ["", "../vote", "a/b", "A", "a.cell", &"a".repeat(CELL_NAME_MAX + 1)] {
            assert!(matches!(cells.set(name, b""), Err(CellError::Name { .. })), "{name}");
            assert!(matches!(cells.get(name), Err(CellError::Name { .. })), "{name}");
        }
        assert!(matches!(cells.set("a", &vec![0; CELL_BYTES_MAX + 1]), Err(CellError::TooLarge { .. })));
    }
}

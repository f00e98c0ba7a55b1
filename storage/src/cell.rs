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

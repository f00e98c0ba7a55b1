//! The data directory: whose it is, which format it has, and that nobody else uses it. Refusals say what to do.
//!
//! ```text
//! lock        held by the one process that uses the directory; its process id, for the refusal
//! FORMAT      the version of all that is below
//! cells/      small durable values          log/        the durable log
//! snapshots/  whole states                  state/      sled
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::cell::{CellError, Cells};
use crate::codec::{self, CodecError};
use crate::disk::real::RealDisk;
use crate::disk::{self, Disk, ReplaceError};
use crate::fatal::OnFatal;
use crate::log::{Log, LogOpenError, LogOptions};
use crate::snapshot::Snapshots;
use crate::trail::{Trail, TrailOpenError};

/// The format this program writes, and the newest it can read.
pub const FORMAT: u32 = 1;

const FORMAT_FILE: &str = "FORMAT";
const FORMAT_WORD: &str = "llm-edge-agent data, format ";
const LOCK_FILE: &str = "lock";

/// Bytes of `FORMAT` and of `lock` that are looked at.
const SMALL_FILE_MAX: u64 = 256;

/// What may lie in a directory that is not a data directory yet: what a file system or an interrupted first start leaves.
const STRANGERS_ALLOWED: [&str; 3] = ["lost+found", LOCK_FILE, "FORMAT.tmp"];

/// Cells of the directory itself.
const PLACE: &str = "place";
const BOOTS: &str = "boots";

const PLACE_VERSION: u8 = 1;

/// What to do with a directory that is not where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// A copy of a data directory beside its living original would vote twice and spend twice.
    Refuse,
    /// The operator says that the original is gone for good.
    Adopt,
}

/// A data directory that is locked by this process for as long as this lives.
pub struct DataDir {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    cells: Cells,
    boots: u64,
    on_fatal: OnFatal,
    _lock: File,
    /// Dropped last: the directory must not vanish under its lock.
    _ephemeral: Option<Ephemeral>,
}

/// Why a data directory is not used. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("data directory `{}` could not be {act}: see that the directory exists or can be made there, and that this \
             process may read and write it", path.display())]
    Io {
        path: PathBuf,
        act: &'static str,
        #[source]
        cause: io::Error,
    },

    #[error("data directory `{}` is no directory: name another path, or move the file away", path.display())]
    NoDirectory { path: PathBuf },

    #[error("data directory `{}` is in use by {}: stop that process, or give this node a directory of its own",
            path.display(), holder.map_or("another process".to_owned(), |pid| format!("process {pid}")))]
    Locked { path: PathBuf, holder: Option<u32> },

    #[error("`{}` is not a data directory, and it is not empty (`{found}` is in it): name an empty or new directory",
            path.display())]
    NotOurs { path: PathBuf, found: String },

    #[error("data directory `{}` has format {found}, and this program knows up to {FORMAT}: use the newer program that \
             wrote it, or a backup made by this one", path.display())]
    Newer { path: PathBuf, found: u32 },

    #[error("`{FORMAT_FILE}` in data directory `{}` is damaged: restore it from a backup, or start with an empty directory \
             and let the node join as a new one", path.display())]
    FormatDamaged { path: PathBuf },

    #[error("data directory `{}` is a copy, or was moved between file systems. A copy must never live beside its original: \
             the two would vote and spend twice. If the original is gone for good, start once with --adopt-data-dir; else \
             start this node with an empty directory", path.display())]
    Copied { path: PathBuf },

    #[error("the disk under data directory `{}` is full: make room on it", path.display())]
    Full {
        path: PathBuf,
        #[source]
        cause: CellError,
    },

    #[error("a value in data directory `{}` cannot be used", path.display())]
    Cell {
        path: PathBuf,
        #[source]
        cause: CellError,
    },

    #[error("the place of data directory `{}` is damaged. {}", path.display(), crate::cell::REJOIN)]
    PlaceDamaged {
        path: PathBuf,
        #[source]
        cause: CodecError,
    },
}

/// Where a directory is: inode and birth time of it and of its lock. Device numbers are no part, they change at each boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    directory: Birth,
    lock: Birth,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Birth {
    inode: u64,
    /// Nanoseconds since 1970, where the file system tells.
    born: Option<u128>,
}

impl Place {
    fn may_be(&self, other: &Self) -> bool {
        self.directory.may_be(&other.directory) && self.lock.may_be(&other.lock)
    }
}

impl Birth {
    fn may_be(&self, other: &Self) -> bool {
        let born = self.born.zip(other.born).is_none_or(|(this, other)| this == other);
        born && self.inode == other.inode
    }
}

impl DataDir {
    /// Makes the directory if it is not there. Blocks.
    pub fn open(path: &Path, copies: Copies, on_fatal: OnFatal) -> Result<Self, OpenError> {
        Self::open_as(path, copies, on_fatal, None)
    }

    /// A directory that is removed when this is dropped: for nodes that need to remember nothing.
    pub fn ephemeral(on_fatal: OnFatal) -> Result<Self, OpenError> {
        let parent = std::env::temp_dir();
        let random =
            getrandom::u64().map_err(|error| io_error(&parent, "named")(io::Error::other(error.to_string())))?;
        let path = parent.join(format!("llm-edge-agent-{random:016x}"));
        DirBuilder::new().mode(0o700).create(&path).map_err(io_error(&path, "made"))?;
        let ephemeral = Ephemeral(path.clone());
        Self::open_as(&path, Copies::Refuse, on_fatal, Some(ephemeral))
    }

    fn open_as(
        path: &Path,
        copies: Copies,
        on_fatal: OnFatal,
        ephemeral: Option<Ephemeral>,
    ) -> Result<Self, OpenError> {
        make_private(path)?;
        let disk = RealDisk::open(path).map_err(io_error(path, "opened"))?;
        let lock = lock(path)?;
        check_format(path, &disk)?;
        let below = disk.within("cells").map_err(io_error(path, "laid out"))?;
        let cells = Cells::open(below, Arc::clone(&on_fatal)).map_err(io_error(path, "read"))?;
        check_place(path, &lock, &cells, copies)?;
        let boots = count_boot(path, &cells)?;
        let disk: Arc<dyn Disk> = Arc::new(disk);
        Ok(Self { path: path.to_owned(), disk, cells, boots, on_fatal, _lock: lock, _ephemeral: ephemeral })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How often the directory was opened, this time included.
    pub fn boots(&self) -> u64 {
        self.boots
    }

    /// The disk of the directory itself: for free space.
    pub fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.disk)
    }

    /// The same cells at each call. `place` and `boots` are taken.
    pub fn cells(&self) -> Cells {
        self.cells.clone()
    }

    /// To be opened once. `options.on_fatal` is taken as it is.
    pub fn open_log(&self, options: LogOptions) -> Result<Log, LogOpenError> {
        let unreadable = |cause| LogOpenError::Unreadable { what: "log".to_owned(), cause };
        Log::open(self.disk.within("log").map_err(unreadable)?, options)
    }

    /// How far budgets may be spent. Small, and apart from the log: it is read whole at start. To be opened once.
    pub fn open_marks(&self) -> Result<Log, LogOpenError> {
        let unreadable = |cause| LogOpenError::Unreadable { what: "marks".to_owned(), cause };
        let options = LogOptions {
            segment_bytes_max: 1 << 20,
            recent_bytes_max: 0,
            queue_bytes_max: 4 << 20,
            on_fatal: Arc::clone(&self.on_fatal),
            ..LogOptions::default()
        };
        Log::open(self.disk.within("marks").map_err(unreadable)?, options)
    }

    /// To be opened once.
    pub fn open_snapshots(&self) -> io::Result<Snapshots> {
        Snapshots::open(self.disk.within("snapshots")?, Arc::clone(&self.on_fatal))
    }

    /// To be opened once.
    pub fn open_trail(&self) -> Result<Trail, TrailOpenError> {
        self.disk.within("state").map_err(TrailOpenError::Io)?;
        Trail::open(&self.path.join("state"), Arc::clone(&self.on_fatal))
    }
}

struct Ephemeral(PathBuf);

impl Drop for Ephemeral {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "temporary data directory could not be removed");
        }
    }
}

/// Makes the directory, for its owner only. One that others may read is closed to them.
fn make_private(path: &Path) -> Result<(), OpenError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|cause| {
        if matches!(cause.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory) {
            OpenError::NoDirectory { path: path.to_owned() }
        } else {
            io_error(path, "made")(cause)
        }
    })?;
    // What is durable within a directory is lost with the directory's own name.
    for made in missing {
        let parent = made.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)
            .and_then(|parent| Ok(rustix::fs::fsync(&parent)?))
            .map_err(io_error(path, "made durably"))?;
    }
    let permissions = fs::metadata(path).map_err(io_error(path, "read"))?.permissions();
    if permissions.mode() & 0o077 != 0 {
        // It may be a mount that belongs to someone else and is shared with us by group. Everything below is ours alone.
        match fs::set_permissions(path, fs::Permissions::from_mode(0o700)) {
            Ok(()) => tracing::warn!(path = %path.display(), "data directory was open to others; closed it to them"),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "data directory is open to others and is not ours to close");
            }
        }
    }
    Ok(())
}

/// Held until the file is closed, also by a process that is stopped.
fn lock(path: &Path) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(path.join(LOCK_FILE)).map_err(io_error(path, "locked"))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let read = (&file).take(SMALL_FILE_MAX).read_to_string(&mut holder);
            let holder = read.ok().and_then(|_bytes| holder.trim().parse().ok());
            return Err(OpenError::Locked { path: path.to_owned(), holder });
        }
        Err(error) => return Err(io_error(path, "locked")(error.into())),
    }
    // Only a help for the one who is refused: a full disk must not keep us out here.
    let noted = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = noted {
        tracing::warn!(path = %path.display(), %error, "process id could not be noted in the lock");
    }
    Ok(file)
}

fn check_format(path: &Path, disk: &RealDisk) -> Result<(), OpenError> {
    let content = match disk.read_all(FORMAT_FILE) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return write_format(path, disk),
        Err(cause) => return Err(io_error(path, "read")(cause)),
    };
    let text = String::from_utf8(content).ok();
    let found = text.as_deref().and_then(|text| text.strip_prefix(FORMAT_WORD)?.trim_end().parse::<u32>().ok());
    match found {
        None | Some(0) => Err(OpenError::FormatDamaged { path: path.to_owned() }),
        Some(found) if found > FORMAT => Err(OpenError::Newer { path: path.to_owned(), found }),
        Some(_known) => Ok(()),
    }
}

/// Takes an empty directory as a data directory.
fn write_format(path: &Path, disk: &RealDisk) -> Result<(), OpenError> {
    for entry in fs::read_dir(path).map_err(io_error(path, "read"))? {
        let name = entry.map_err(io_error(path, "read"))?.file_name();
        if !STRANGERS_ALLOWED.iter().any(|allowed| name == *allowed) {
            return Err(OpenError::NotOurs { path: path.to_owned(), found: name.to_string_lossy().into_owned() });
        }
    }
    let content = format!("{FORMAT_WORD}{FORMAT}\n");
    disk::replace(disk, FORMAT_FILE, &[content.as_bytes()]).map_err(|error| match error {
        ReplaceError::Unwritten(cause) | ReplaceError::Unsynced(cause) => io_error(path, "written")(cause),
    })
}

fn check_place(path: &Path, lock: &File, cells: &Cells, copies: Copies) -> Result<(), OpenError> {
    let birth = |metadata: &fs::Metadata| Birth {
        inode: metadata.ino(),
        born: metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok()).map(|born| born.as_nanos()),
    };
    let read = io_error(path, "read");
    let place = fs::metadata(path)
        .and_then(|directory| Ok(Place { directory: birth(&directory), lock: birth(&lock.metadata()?) }))
        .map_err(read)?;
    let damaged = |cause| OpenError::PlaceDamaged { path: path.to_owned(), cause };
    if let Some(bytes) = cells.get(PLACE).map_err(cell_error(path))? {
        let (_version, remembered) = codec::decode::<Place>(&bytes, SMALL_FILE_MAX).map_err(damaged)?;
        match copies {
            _ if remembered == place => return Ok(()),
            // A newer kernel may tell more.
            _ if remembered.may_be(&place) => {}
            Copies::Refuse => return Err(OpenError::Copied { path: path.to_owned() }),
            Copies::Adopt => {
                tracing::warn!(path = %path.display(), "adopting a data directory that was elsewhere before");
            }
        }
    }
    let bytes = codec::encode(PLACE_VERSION, &place).map_err(damaged)?;
    cells.set(PLACE, &bytes).map_err(cell_error(path))
}

fn count_boot(path: &Path, cells: &Cells) -> Result<u64, OpenError> {
    let before = cells.get(BOOTS).map_err(cell_error(path))?;
    let before = before.and_then(|bytes| Some(u64::from_le_bytes(*bytes.first_chunk()?))).unwrap_or(0);
    let boots = before.saturating_add(1);
    cells.set(BOOTS, &boots.to_le_bytes()).map_err(cell_error(path))?;
    Ok(boots)
}

fn io_error(path: &Path, act: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |cause| OpenError::Io { path, act, cause }
}

fn cell_error(path: &Path) -> impl FnOnce(CellError) -> OpenError {
    let path = path.to_owned();
    move |cause| {
        if matches!(cause, CellError::NoSpace { .. }) {
            OpenError::Full { path, cause }
        } else {
            OpenError::Cell { path, cause }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(inode: u64, born: Option<u128>) -> Place {
        Place { directory: Birth { inode, born }, lock: Birth { inode: 7, born } }
    }

    /// Another birth under the same inode is another file; no birth at all is what a file system may not tell.
    #[test]
    fn a_place_is_told_by_what_the_file_system_tells() {
        assert!(place(1, Some(5)).may_be(&place(1, Some(5))));
        assert!(place(1, None).may_be(&place(1, Some(5))));
        assert!(!place(1, Some(6)).may_be(&place(1, Some(5))));
        assert!(!place(2, None).may_be(&place(1, None)));
    }
}

//! The seam between what is kept and where: one directory of files, real or simulated.
//!
//! Nothing here is durable before it was asked to be: bytes by [`File::sync`], names (creations, removals, renames) by
//! [`Disk::sync_directory`]. Who forgets one of the two loses data only on a bad day, so the simulated disk has bad days.

pub mod real;
pub mod simulated;

use std::io;
use std::sync::Arc;

/// One file that is only appended to, cut back and read.
pub trait File: Send {
    /// Writes all of `bytes` at the end. After an error any prefix of them may stand there: cut back with `truncate`.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Returns once content and length are on the medium. After an error nobody knows what is there; it must not be tried
    /// again, because the kernel may have dropped what it could not write and then says yes.
    fn sync(&mut self) -> io::Result<()>;

    /// Fills `buffer` from `offset`, or fails.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    fn length(&self) -> io::Result<u64>;

    /// Cuts the file to `length`; durable after `sync`.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
}

/// One directory. All calls block for as long as the medium takes.
pub trait Disk: Send + Sync + 'static {
    /// A new, empty file; fails if the name is taken.
    fn create(&self, name: &str) -> io::Result<Box<dyn File>>;

    /// An existing file.
    fn open(&self, name: &str) -> io::Result<Box<dyn File>>;

    /// Names of the files here, sorted; without directories.
    fn list(&self) -> io::Result<Vec<String>>;

    fn remove(&self, name: &str) -> io::Result<()>;

    /// Replaces `to` if it exists. Atomic, not durable.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes creations, removals and renames durable.
    fn sync_directory(&self) -> io::Result<()>;

    /// What an unprivileged process may still write.
    fn free_bytes(&self) -> io::Result<u64>;

    /// A directory below this one, made durably if it does not exist.
    fn within(&self, name: &str) -> io::Result<Arc<dyn Disk>>;

    fn read_all(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = self.open(name)?;
        let length = usize::try_from(file.length()?).map_err(|_too_large| io::ErrorKind::FileTooLarge)?;
        let mut content = vec![0; length];
        file.read_at(0, &mut content)?;
        Ok(content)
    }
}

/// Ending of files under construction. One that is found at start was never finished and is removed.
pub const TEMPORARY: &str = ".tmp";

/// Why a file was not replaced. What stood under its name before stands there still, or, after `Unsynced`, one of both does.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    #[error("could not write")]
    Unwritten(#[source] io::Error),

    /// Nobody knows what a crash would leave. Whoever promises durability has to end here.
    #[error("could not make durable")]
    Unsynced(#[source] io::Error),
}

/// Replaces the content of `name` by `parts`, one after another: after a crash it is the old or the new content, and the
/// new one once this has returned.
pub fn replace(disk: &dyn Disk, name: &str, parts: &[&[u8]]) -> Result<(), ReplaceError> {
    let temporary = format!("{name}{TEMPORARY}");
    write_temporary(disk, &temporary, parts).inspect_err(|_error| drop(disk.remove(&temporary)))?;
    disk.rename(&temporary, name).map_err(ReplaceError::Unwritten)?;
    disk.sync_directory().map_err(ReplaceError::Unsynced)
}

fn write_temporary(disk: &dyn Disk, temporary: &str, parts: &[&[u8]]) -> Result<(), ReplaceError> {
    match disk.remove(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(ReplaceError::Unwritten(error)),
        Ok(()) | Err(_) => {}
    }
    let mut file = disk.create(temporary).map_err(ReplaceError::Unwritten)?;
    for part in parts {
        file.append(part).map_err(ReplaceError::Unwritten)?;
    }
    file.sync().map_err(ReplaceError::Unsynced)
}

/// Removes what was under construction when the process ended.
pub fn remove_temporaries(disk: &dyn Disk) -> io::Result<()> {
    for name in disk.list()? {
        if name.ends_with(TEMPORARY) {
            disk.remove(&name)?;
        }
    }
    Ok(())
}

/// Whether a write failed because there was no room, which passes, unlike a medium that fails.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

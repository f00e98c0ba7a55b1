//! The append-only trail of what was changed, by whom: opaque records under the index that made them. Kept in sled.
//!
//! Every call blocks for as long as the disk takes: on a runtime, call them where blocking is allowed.
//!
//! Two traps of sled shape this file. Its `flush` starts writing and does not sync: [`Trail::flush`] syncs the file itself.
//! And a leaf page above a quarter of a segment becomes a file of its own that is never synced, so records are cut into
//! chunks so small that a whole leaf stays below.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use sled::{Batch, Db, Tree};

use crate::cell::REJOIN;
use crate::codec::{self, CodecError};
use crate::disk;
use crate::fatal::OnFatal;

/// Bytes of one record. A larger one is refused.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// Records one call of [`Trail::range`] answers.
pub const RANGE_MAX: usize = 10_000;

/// A leaf is split beyond 16 chunks; 32 of this size and their keys are below the 128 KiB from which sled would make a blob.
const CHUNK_BYTES: usize = 3_584;

/// The default would be 1 GiB.
const CACHE_BYTES: u64 = 16 << 20;

/// sled's one file.
const FILE: &str = "db";
const TREE: &str = "trail";
const VERSION: u8 = 1;

/// Cheap to clone: clones are the same trail.
#[derive(Clone)]
pub struct Trail {
    shared: Arc<Shared>,
}

struct Shared {
    database: Db,
    tree: Tree,
    /// `None` for a trail that ends with the process.
    file: Option<File>,
    on_fatal: OnFatal,
    broken: AtomicBool,
    /// The newest index there may be a record of: what is above it needs no look before it is written.
    newest: Mutex<Option<u64>>,
}

/// Why the trail does not open.
#[derive(Debug, thiserror::Error)]
pub enum TrailOpenError {
    #[error("the trail's files could not be opened or made durable")]
    Io(#[source] io::Error),

    #[error("the trail does not open: {found}. {REJOIN}")]
    Damaged { found: String },
}

/// Why a record was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum TrailError {
    #[error("a record of {found} bytes is more than {RECORD_BYTES_MAX}")]
    TooLarge { found: usize },

    #[error("the trail ends at record {found:?}, and record {wanted} had been kept. {REJOIN}")]
    Short { wanted: u64, found: Option<u64> },

    /// Replay gave something else than the first time. The record of the first time stands.
    #[error("another record stands under index {index}")]
    Differs { index: u64 },

    /// What was flushed before stands. sled takes nothing more in this life of the process, so it has to be started again
    /// once there is room.
    #[error("no room on the disk for the trail: make room on it, then start this node again")]
    NoSpace(#[source] io::Error),

    #[error("the trail's database failed")]
    Database(#[source] sled::Error),

    #[error("the trail's database is damaged: {found}. {REJOIN}")]
    Corrupt { found: String },

    #[error("record {index} of the trail is damaged. {REJOIN}")]
    Damaged {
        index: u64,
        #[source]
        cause: CodecError,
    },

    #[error("the trail could not be made durable")]
    Unsynced(#[source] io::Error),

    #[error("the trail could not be made durable before, so nothing is acknowledged any more")]
    Broken,
}

impl Trail {
    /// `directory` is the trail's alone.
    pub fn open(directory: &Path, on_fatal: OnFatal) -> Result<Self, TrailOpenError> {
        let database = open(&configuration().path(directory))?;
        let file = sync_new_files(directory).map_err(TrailOpenError::Io)?;
        Self::with(database, Some(file), on_fatal)
    }

    /// One that nobody needs tomorrow: for tests and simulated nodes.
    pub fn temporary() -> Result<Self, TrailOpenError> {
        Self::with(open(&configuration().temporary(true))?, None, Arc::new(|_reason| {}))
    }

    fn with(database: Db, file: Option<File>, on_fatal: OnFatal) -> Result<Self, TrailOpenError> {
        let damaged = |found: String| TrailOpenError::Damaged { found };
        let tree = database.open_tree(TREE).map_err(|error| damaged(error.to_string()))?;
        let (broken, newest) = (AtomicBool::new(false), Mutex::default());
        let trail = Self { shared: Arc::new(Shared { database, tree, file, on_fatal, broken, newest }) };
        trail.remove_torn_end().map_err(|error| damaged(error.to_string()))?;
        *trail.shared.newest.lock() = trail.last().map_err(|error| damaged(error.to_string()))?;
        trail.flush().map_err(|error| damaged(error.to_string()))?;
        Ok(trail)
    }

    /// Writes the record of `index`; durable after the next [`flush`](Self::flush). Writing the same again changes nothing.
    pub fn append(&self, index: u64, record: &[u8]) -> Result<(), TrailError> {
        self.append_all(&[(index, record)])
    }

    /// As [`append`](Self::append), all or none of them: for less than one by one. No index may stand there twice.
    pub fn append_all<R: AsRef<[u8]>>(&self, records: &[(u64, R)]) -> Result<(), TrailError> {
        let newest = *self.shared.newest.lock();
        let mut batch = Batch::default();
        for (index, record) in records {
            let (index, record) = (*index, record.as_ref());
            if record.len() > RECORD_BYTES_MAX {
                return Err(TrailError::TooLarge { found: record.len() });
            }
            if newest.is_some_and(|newest| index <= newest)
                && let Some(before) = self.get(index)?
            {
                if before == record {
                    continue;
                }
                return Err(TrailError::Differs { index });
            }
            for (number, chunk) in (0u16..).zip(codec::seal(VERSION, &[record]).chunks(CHUNK_BYTES)) {
                batch.insert(&key_of(index, number), chunk);
            }
        }
        let mut newest = self.shared.newest.lock();
        *newest = records.iter().map(|(index, _record)| *index).max().max(*newest);
        drop(newest);
        self.shared.tree.apply_batch(batch).map_err(failed)
    }

    pub fn get(&self, index: u64) -> Result<Option<Vec<u8>>, TrailError> {
        let mut sealed = Vec::new();
        for chunk in self.shared.tree.scan_prefix(index.to_be_bytes()) {
            sealed.extend_from_slice(&chunk.map_err(failed)?.1);
        }
        if sealed.is_empty() { Ok(None) } else { open_record(index, &sealed).map(Some) }
    }

    /// Records from index `from` on, at most `limit` and [`RANGE_MAX`] of them, in order.
    pub fn range(&self, from: u64, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, TrailError> {
        let limit = limit.min(RANGE_MAX);
        let mut sealed = BTreeMap::<u64, Vec<u8>>::new();
        for chunk in self.shared.tree.range(key_of(from, 0)..) {
            let (key, chunk) = chunk.map_err(failed)?;
            let Some(index) = index_of(&key) else { continue };
            if sealed.len() == limit && !sealed.contains_key(&index) {
                break;
            }
            sealed.entry(index).or_default().extend_from_slice(&chunk);
        }
        sealed.into_iter().map(|(index, sealed)| Ok((index, open_record(index, &sealed)?))).collect()
    }

    /// The index of the newest record.
    pub fn last(&self) -> Result<Option<u64>, TrailError> {
        let last = self.shared.tree.last().map_err(failed)?;
        Ok(last.and_then(|(key, _chunk)| index_of(&key)))
    }

    /// Refuses a trail that has lost its end. sled takes damage to its newest pages for a write that never finished and
    /// goes back to before it, so who knows what was flushed has to ask, at start: with the index of the newest record
    /// that will not be replayed.
    pub fn check_reaches(&self, wanted: u64) -> Result<(), TrailError> {
        match self.last()? {
            Some(last) if last >= wanted => Ok(()),
            found => Err(TrailError::Short { wanted, found }),
        }
    }

    /// Makes everything appended before durable. A failure is never tried again, and fatal unless it is for want of room.
    pub fn flush(&self) -> Result<(), TrailError> {
        if self.shared.broken.load(Ordering::Acquire) {
            return Err(TrailError::Broken);
        }
        let written = self.shared.database.flush().map_err(failed);
        let flushed = written.and_then(|_bytes| match &self.shared.file {
            Some(file) => rustix::fs::fdatasync(file).map_err(|cause| TrailError::Unsynced(cause.into())),
            None => Ok(()),
        });
        if let Err(error) = &flushed {
            self.shared.broken.store(true, Ordering::Release);
            if !matches!(error, TrailError::NoSpace(_)) {
                (self.shared.on_fatal)(&format!("the trail could not be made durable: {error:?}"));
            }
        }
        flushed
    }

    /// A record whose last chunks never arrived was not acknowledged; replay writes it again.
    fn remove_torn_end(&self) -> Result<(), TrailError> {
        let Some(index) = self.last()? else { return Ok(()) };
        let Err(TrailError::Damaged { .. }) = self.get(index) else { return Ok(()) };
        tracing::warn!(index, "removing a record of the trail that was never finished");
        for key in self.shared.tree.scan_prefix(index.to_be_bytes()).keys() {
            let key = key.map_err(failed)?;
            self.shared.tree.remove(key).map_err(failed)?;
        }
        Ok(())
    }
}

fn failed(error: sled::Error) -> TrailError {
    if matches!(error, sled::Error::Corruption { .. }) {
        return TrailError::Corrupt { found: error.to_string() };
    }
    let cause = io::Error::from(error.clone());
    if disk::is_full(&cause) { TrailError::NoSpace(cause) } else { TrailError::Database(error) }
}

fn configuration() -> sled::Config {
    sled::Config::new().cache_capacity(CACHE_BYTES).flush_every_ms(None)
}

/// sled answers some damage with an error and some with a panic.
fn open(configuration: &sled::Config) -> Result<Db, TrailOpenError> {
    let damaged = |found: String| TrailOpenError::Damaged { found };
    match panic::catch_unwind(AssertUnwindSafe(|| configuration.open())) {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(sled::Error::Io(error))) => Err(TrailOpenError::Io(error)),
        Ok(Err(error)) => Err(damaged(error.to_string())),
        Err(_panic) => Err(damaged("its database panicked".to_owned())),
    }
}

/// sled syncs neither the names of its files nor the small ones beside its log.
fn sync_new_files(directory: &Path) -> io::Result<File> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_file() {
            rustix::fs::fsync(File::open(path)?)?;
        }
    }
    rustix::fs::fsync(File::open(directory)?)?;
    File::open(directory.join(FILE))
}

fn key_of(index: u64, chunk: u16) -> [u8; 10] {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&index.to_be_bytes());
    key[8..].copy_from_slice(&chunk.to_be_bytes());
    key
}

fn index_of(key: &[u8]) -> Option<u64> {
    key.first_chunk().map(|index| u64::from_be_bytes(*index))
}

fn open_record(index: u64, sealed: &[u8]) -> Result<Vec<u8>, TrailError> {
    let (_version, record) = codec::unseal(sealed).map_err(|cause| TrailError::Damaged { index, cause })?;
    Ok(record.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_at(path: &Path) -> Trail {
        Trail::open(path, Arc::new(|reason| panic!("{reason}"))).unwrap()
    }

    #[test]
    fn records_of_any_size_come_back_in_order_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let records: Vec<(u64, Vec<u8>)> = [0, 1, CHUNK_BYTES - 5, CHUNK_BYTES, 100_000, RECORD_BYTES_MAX]
            .into_iter()
            .zip([3, 4, 255, 256, 70_000, u64::MAX])
            .map(|(size, index)| (index, vec![b'x'; size]))
            .collect();
        let trail = open_at(directory.path());
        for (index, record) in records.iter().rev() {
            trail.append(*index, record).unwrap();
        }
        trail.flush().unwrap();
        drop(trail);

        let trail = open_at(directory.path());

        assert_eq!(trail.range(0, 100).unwrap(), records);
        assert_eq!(trail.range(256, 2).unwrap(), records[3..5]);
        assert_eq!(trail.last().unwrap(), Some(u64::MAX));
        assert!(trail.get(5).unwrap().is_none());
    }

    #[test]
    fn replay_changes_nothing_and_another_record_is_refused() {
        let trail = Trail::temporary().unwrap();
        trail.append(1, b"first").unwrap();

        trail.append(1, b"first").unwrap();
        let other = trail.append(1, b"other");
        let large = trail.append(2, &vec![0; RECORD_BYTES_MAX + 1]);

        assert!(matches!(other, Err(TrailError::Differs { index: 1 })));
        assert!(matches!(large, Err(TrailError::TooLarge { .. })));
        assert_eq!(trail.range(0, 9).unwrap(), [(1, b"first".to_vec())]);
    }

    #[test]
    fn of_several_records_all_are_written_or_none() {
        let directory = tempfile::tempdir().unwrap();
        let trail = open_at(directory.path());
        trail.append_all(&[(1, "first"), (3, "third")]).unwrap();
        trail.flush().unwrap();
        drop(trail);
        let trail = open_at(directory.path());

        let other = trail.append_all(&[(2, "second"), (3, "another"), (4, "fourth")]);
        let again = trail.append_all(&[(1, "first"), (3, "third"), (4, "fourth")]);

        assert!(matches!(other, Err(TrailError::Differs { index: 3 })));
        assert!(again.is_ok());
        let indices: Vec<u64> = trail.range(0, 9).unwrap().into_iter().map(|(index, _record)| index).collect();
        assert_eq!(indices, [1, 3, 4]);
    }

    /// sled would write a large leaf into a file that it never syncs.
    #[test]
    fn nothing_becomes_a_file_that_is_never_synced() {
        let directory = tempfile::tempdir().unwrap();
        let trail = open_at(directory.path());
        for index in 0..200 {
            trail.append(index, &vec![b'x'; 20_000]).unwrap();
        }
        trail.flush().unwrap();

        let blobs = fs::read_dir(directory.path().join("blobs")).unwrap().count();

        assert_eq!(blobs, 0);
    }

    #[test]
    fn a_record_that_was_never_finished_is_removed_and_may_be_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let trail = open_at(directory.path());
        trail.append(1, b"whole").unwrap();
        trail.append(2, &vec![b'x'; 10_000]).unwrap();
        trail.shared.tree.remove(key_of(2, 2)).unwrap();
        trail.flush().unwrap();
        drop(trail);

        let trail = open_at(directory.path());

        assert_eq!(trail.last().unwrap(), Some(1));
        trail.append(2, &vec![b'x'; 10_000]).unwrap();
        assert_eq!(trail.last().unwrap(), Some(2));
    }

    /// At start, when it is read, or by the end that is missing.
    #[test]
    fn damage_anywhere_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let trail = open_at(directory.path());
        for index in 0..100 {
            trail.append(index, &vec![b'x'; 10_000]).unwrap();
        }
        trail.flush().unwrap();
        drop(trail);
        let whole = fs::read(directory.path().join(FILE)).unwrap();

        let mut told = 0;
        for position in 0..12 {
            let mut damaged = whole.clone();
            let start = whole.len() / 12 * position + 1_000;
            damaged[start..start + 64].iter_mut().for_each(|byte| *byte ^= 0x5a);
            fs::write(directory.path().join(FILE), &damaged).unwrap();

            let read = Trail::open(directory.path(), Arc::new(|_reason| {}))
                .map_err(|error| error.to_string())
                .and_then(|trail| {
                    trail.check_reaches(99).map_err(|error| error.to_string())?;
                    trail.range(0, 200).map_err(|error| error.to_string())
                });

            match read {
                Ok(records) => assert_eq!(records.len(), 100, "it hit what nobody needs"),
                Err(error) => {
                    assert!(error.contains("let it join as a new node"), "{error}");
                    told += 1;
                }
            }
            // sled writes when it opens.
            fs::write(directory.path().join(FILE), &whole).unwrap();
        }
        assert!(told > 0);
    }
}

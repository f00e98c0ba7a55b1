//! The Raft log and vote on this node's disk, as openraft asks for them.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{ErrorSubject, ErrorVerb, OptionalSend, RaftLogReader, StorageIOError};
use storage::cell::Cells;
use storage::codec;
use storage::log::Log;

use super::types::{Entry, LogId, StorageError, TypeConfig, Vote};

/// The form in which entries, votes and log ids are written. Readers know every earlier one.
const FORMAT: u8 = 1;

const VOTE: &str = "raft-vote";
const COMMITTED: &str = "raft-committed";

/// Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct LogStore {
    log: Log,
    cells: Arc<Cells>,
    committed: Arc<parking_lot::Mutex<Option<LogId>>>,
}

impl LogStore {
    pub fn new(log: Log, cells: Arc<Cells>) -> Self {
        let committed = Arc::new(parking_lot::Mutex::new(None));
        Self { log, cells, committed }
    }

    fn read_range(&self, range: impl RangeBounds<u64>) -> Result<Vec<Entry>, StorageError> {
        let bounds = self.log.bounds();
        let first = match range.start_bound() {
            Bound::Included(first) => *first,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        // What was asked for beyond the end is not there; what was asked for before the start is an error of the log.
        let end = end.min(bounds.end());
        let first = if range_is_open(&range) { first.max(bounds.first()) } else { first };
        if first >= end {
            return Ok(Vec::new());
        }
        let records = self.log.read(first..end).map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Read, &error))?;
        records.iter().map(|record| decode::<Entry>(record, ErrorSubject::Logs)).collect()
    }
}

/// Whether whoever asks wants what there is from the start on, rather than certain entries.
fn range_is_open(range: &impl RangeBounds<u64>) -> bool {
    matches!(range.start_bound(), Bound::Unbounded | Bound::Included(0))
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, StorageError>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read_range(range)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let bounds = self.log.bounds();
        let purged = match &bounds.purged_note {
            Some(note) => Some(decode::<LogId>(note, ErrorSubject::Logs)?),
            None => None,
        };
        let last = match bounds.end().checked_sub(1) {
            Some(last) if last >= bounds.first() => {
                self.read_range(last..=last)?.first().map(|entry| entry.log_id)
            }
            Some(_) | None => purged,
        };
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let bytes = encode(vote, ErrorSubject::Vote)?;
        self.cells.set(VOTE, &bytes).await.map_err(|error| failed(ErrorSubject::Vote, ErrorVerb::Write, &error))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let bytes = self.cells.get(VOTE).map_err(|error| failed(ErrorSubject::Vote, ErrorVerb::Read, &error))?;
        bytes.map(|bytes| decode(&bytes, ErrorSubject::Vote)).transpose()
    }

    /// Kept in memory only: after a restart nothing counts as committed until a leader of this life says so, and the
    /// state machine starts from its snapshot.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        *self.committed.lock() = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(*self.committed.lock())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut first = None;
        let mut records = Vec::new();
        for entry in entries {
            first = first.or(Some(entry.log_id.index));
            records.push(Bytes::from(encode(&entry, ErrorSubject::Logs)?));
        }
        let Some(first) = first else {
            callback.log_io_completed(Ok(()));
            return Ok(());
        };
        let done = Box::new(move |result: Result<(), storage::log::Failed>| {
            callback.log_io_completed(result.map_err(io::Error::other));
        });
        self.log.append(first, records, done).await.map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Write, &error))
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let truncated = self.log.truncate_from(log_id.index).await;
        truncated.map_err(|error| failed(ErrorSubject::Log(log_id), ErrorVerb::Delete, &error))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let note = Bytes::from(encode(&log_id, ErrorSubject::Log(log_id))?);
        let purged = self.log.purge_to(log_id.index, note).await;
        purged.map_err(|error| failed(ErrorSubject::Log(log_id), ErrorVerb::Delete, &error))
    }
}

pub(super) fn encode<T: serde::Serialize>(
    value: &T,
    subject: ErrorSubject<crate::id::NodeId>,
) -> Result<Vec<u8>, StorageError> {
    codec::encode(FORMAT, value).map_err(|error| failed(subject, ErrorVerb::Write, &error))
}

pub(super) fn decode<T: serde::de::DeserializeOwned>(
    bytes: &[u8],
    subject: ErrorSubject<crate::id::NodeId>,
) -> Result<T, StorageError> {
    match codec::decode(bytes, bytes.len() as u64 + 1) {
        Ok((FORMAT, value)) => Ok(value),
        Ok((newer, _)) => {
            let error = io::Error::other(format!("is written in format {newer}, which this version does not know"));
            Err(failed(subject, ErrorVerb::Read, &error))
        }
        Err(error) => Err(failed(subject, ErrorVerb::Read, &error)),
    }
}

pub(super) fn failed(
    subject: ErrorSubject<crate::id::NodeId>,
    verb: ErrorVerb,
    error: &(impl std::error::Error + 'static),
) -> StorageError {
    StorageIOError::new(subject, verb, openraft::AnyError::new(error)).into()
}

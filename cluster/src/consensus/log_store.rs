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
use storage::log::{Log, receipt};

use super::types::{Entry, LogId, StorageError, TypeConfig, Vote};
use crate::id::NodeId;

/// The form in which entries, votes and log ids are written. Readers know every earlier one.
const FORMAT: u8 = 1;

const VOTE: &str = "raft-vote";

/// Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct LogStore {
    log: Log,
    cells: Cells,
    committed: Arc<parking_lot::Mutex<Option<LogId>>>,
    voted: Voted,
}

/// The last vote that was saved in this life.
pub type Voted = Arc<parking_lot::Mutex<Option<Vote>>>;

/// Why a directory's vote could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("what the data directory says of its last vote cannot be {act}")]
pub struct StandDownError {
    act: &'static str,
    #[source]
    cause: Box<dyn std::error::Error + Send + Sync>,
}

/// Who led leads on in its term when it starts again. From a directory that may be the copy of one that still leads it must
/// not: it is as if it had begun to ask for votes in the next term, and ended. Votes for others stay as they are, so this
/// does not make an older copy of a directory safe.
pub fn stand_down(cells: &Cells, me: NodeId) -> Result<(), StandDownError> {
    let wrong = |act| move |cause| StandDownError { act, cause };
    let Some(bytes) = cells.get(VOTE).map_err(|cause| wrong("read")(cause.into()))? else { return Ok(()) };
    let vote: Vote = decode(&bytes, ErrorSubject::Vote).map_err(|cause| wrong("read")(cause.into()))?;
    if !vote.is_committed() || vote.leader_id().voted_for() != Some(me) {
        return Ok(());
    }
    let next = Vote::new(vote.leader_id().get_term() + 1, me);
    let bytes = encode(&next, ErrorSubject::Vote).map_err(|cause| wrong("written")(cause.into()))?;
    cells.set(VOTE, &bytes).map_err(|cause| wrong("written")(cause.into()))
}

impl LogStore {
    pub fn new(log: Log, cells: Cells) -> Self {
        let committed = Arc::new(parking_lot::Mutex::new(None));
        Self { log, cells, committed, voted: Voted::default() }
    }

    pub fn voted(&self) -> Voted {
        Arc::clone(&self.voted)
    }

    fn read_range(&self, range: impl RangeBounds<u64>) -> Result<Vec<Entry>, StorageError> {
        let bounds = self.log.bounds();
        let first = match range.start_bound() {
            Bound::Included(first) => *first,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => bounds.first,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        // What is beyond the end is not there yet, and before the first entry of a log there never was one. What was purged
        // is asked for by mistake, and the log says so.
        let end = end.min(bounds.next);
        let first = if bounds.purged.is_none() || from_start(&range) { first.max(bounds.first) } else { first };
        if first >= end {
            return Ok(Vec::new());
        }
        let records = self.log.read(first..end).map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Read, &error))?;
        records.iter().map(|record| decode::<Entry>(record, ErrorSubject::Logs)).collect()
    }
}

/// Whether whoever asks wants what there is from the start on, rather than certain entries.
fn from_start(range: &impl RangeBounds<u64>) -> bool {
    matches!(range.start_bound(), Bound::Unbounded | Bound::Included(0))
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, StorageError>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read_range(range)
    }

    /// For what is sent to others. Who led once, and still has something to send from then, may ask for what was purged by
    /// now: nothing is there, which openraft takes for a heartbeat. An error would end consensus on this node.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        let bounds = self.log.bounds();
        if bounds.purged.is_some() && start < bounds.first {
            return Ok(Vec::new());
        }
        let read = self.read_range(start..end);
        // It may have been purged meanwhile.
        if read.is_err() && start < self.log.bounds().first { Ok(Vec::new()) } else { read }
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let bounds = self.log.bounds();
        let purged = match bounds.purged {
            Some(_) => Some(decode::<LogId>(&bounds.purged_note, ErrorSubject::Logs)?),
            None => None,
        };
        let last = match bounds.last() {
            Some(last) => self.read_range(last..=last)?.first().map(|entry| entry.log_id),
            None => purged,
        };
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let bytes = encode(vote, ErrorSubject::Vote)?;
        let cells = self.cells.clone();
        *self.voted.lock() = Some(*vote);
        let set = move || cells.set(VOTE, &bytes).map_err(|error| failed(ErrorSubject::Vote, ErrorVerb::Write, &error));
        blocking(ErrorSubject::Vote, set).await
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
        let purged = self.log.bounds().purged;
        // What was purged was applied: an entry from before is here already, in what came of it.
        for entry in entries.into_iter().filter(|entry| purged.is_none_or(|purged| entry.log_id.index > purged)) {
            first = first.or(Some(entry.log_id.index));
            records.push(Bytes::from(encode(&entry, ErrorSubject::Logs)?));
        }
        let Some(first) = first else {
            callback.log_io_completed(Ok(()));
            return Ok(());
        };
        let place = self.log.place(records.iter().map(Bytes::len).sum()).await;
        let done = Box::new(move |result: Result<(), storage::log::Failed>| {
            callback.log_io_completed(result.map_err(io::Error::other));
        });
        if first < self.log.bounds().next {
            // Openraft truncates what conflicts before it appends; should it not, what it appends counts.
            let (cut, _durable_before_what_follows) = receipt();
            self.log.truncate_from(self.log.place(0).await, first, cut);
        }
        self.log.append(place, first, records, done);
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let (done, receipt) = receipt();
        self.log.truncate_from(self.log.place(0).await, log_id.index, done);
        receipt.durable().await.map_err(|error| failed(ErrorSubject::Log(log_id), ErrorVerb::Delete, &error))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let note = Bytes::from(encode(&log_id, ErrorSubject::Log(log_id))?);
        let (done, receipt) = receipt();
        self.log.purge_to(self.log.place(0).await, log_id.index, note, done);
        receipt.durable().await.map_err(|error| failed(ErrorSubject::Log(log_id), ErrorVerb::Delete, &error))
    }
}

pub(super) fn encode<T: serde::Serialize>(value: &T, subject: ErrorSubject<NodeId>) -> Result<Vec<u8>, StorageError> {
    codec::encode(FORMAT, value).map_err(|error| failed(subject, ErrorVerb::Write, &error))
}

pub(super) fn decode<T: serde::de::DeserializeOwned>(
    bytes: &[u8],
    subject: ErrorSubject<NodeId>,
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

/// Disks do not keep the runtime's threads waiting.
pub(super) async fn blocking<T: Send + 'static>(
    subject: ErrorSubject<NodeId>,
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(failed(subject, ErrorVerb::Write, &error)),
    }
}

pub(super) fn failed(
    subject: ErrorSubject<NodeId>,
    verb: ErrorVerb,
    error: &(impl std::error::Error + 'static),
) -> StorageError {
    StorageIOError::new(subject, verb, openraft::AnyError::new(error)).into()
}

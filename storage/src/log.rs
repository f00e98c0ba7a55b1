//! A durable log of opaque entries, numbered without gaps. What *durable* means is decided here and only here.
//!
//! An entry is acknowledged (its `done` is called with `Ok`) once `fdatasync` has returned for it. Appends that wait are
//! written together with one sync: group commit. Whatever the crash, the log that is found afterwards is a prefix of what
//! was appended and contains every acknowledged entry; anything else is refused at start, with advice.
//!
//! Entries are readable as soon as they are appended: those that are not yet durable, and the newest of the others, are in
//! memory, the rest is read from its segment. Truncations and purges take effect at once for readers and, in order with
//! appends, on the disk.
//!
//! A sync that fails is fatal ([`OnFatal`]) and never tried again. A full disk is not: what was being written is cut back,
//! every append that waits fails with [`Failed::NoSpace`], and the log goes on from its last durable entry.

mod recovery;
mod segment;
mod state;
mod writer;

use std::fmt::{self, Debug};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use self::segment::{Record, Segment};
use self::state::{Queued, State};
use self::writer::Writer;
use crate::cell::REJOIN;
use crate::codec::CodecError;
use crate::disk::Disk;
use crate::fatal::{self, OnFatal};

/// Bytes of one entry. A larger one is refused; nothing of its append is written.
pub const LOG_ENTRY_MAX: usize = 8 << 20;

/// Times a read begins again because a truncation or a purge came between. Each needs a new one, so it is never reached.
const READ_ATTEMPTS_MAX: usize = 16;

/// What places in the queue are counted in: at least one for each operation, so operations have a bound too.
const PLACE_BYTES: usize = 1 << 10;

/// How a log is kept.
#[derive(Clone)]
pub struct LogOptions {
    /// Bytes after which a new segment is begun. A segment is removed whole, once all of it is purged.
    pub segment_bytes_max: u32,
    /// Bytes of durable entries kept in memory for readers.
    pub recent_bytes_max: usize,
    /// Bytes of entries that may wait to be durable. Beyond, [`Log::place`] waits.
    pub queue_bytes_max: usize,
    /// Free bytes below which [`Log::has_headroom`] says no: what purging, votes and a snapshot still need.
    pub headroom_bytes: u64,
    pub commits: Commits,
    pub on_fatal: OnFatal,
    /// The clock that syncs are measured by. Without one they are only counted.
    pub now: Option<fn() -> Instant>,
}

/// Who writes and syncs.
#[derive(Clone)]
pub enum Commits {
    /// A thread of the log's own.
    OnOwnThread,
    /// Nobody, until [`Log::commit_queued`] is called: for a simulated world, where threads would race with its clock.
    /// `wake` is called whenever there is something to commit, also while it was called before.
    ByCaller { wake: Arc<dyn Fn() + Send + Sync> },
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes_max: 16 << 20,
            recent_bytes_max: 16 << 20,
            queue_bytes_max: 64 << 20,
            headroom_bytes: 64 << 20,
            commits: Commits::OnOwnThread,
            on_fatal: fatal::aborting(),
            now: None,
        }
    }
}

/// Called exactly once, on the thread that commits or, for what is refused at once, on the caller's. Must not block.
pub type Done = Box<dyn FnOnce(Result<(), Failed>) + Send>;

/// Why something will never be durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// Nothing of it is in the log, in memory or on disk. The same may be tried again once there is room.
    #[error("no room on the disk for the log")]
    NoSpace,

    /// Whether it is on the disk is unknown. The process should be ending.
    #[error("the log's disk failed, so nothing is acknowledged any more")]
    Broken,

    #[error("entry {wanted} comes next in the log, and {found} was given")]
    Gap { wanted: u64, found: u64 },

    #[error("an entry of {found} bytes is more than {LOG_ENTRY_MAX}")]
    TooLarge { found: usize },

    #[error("the log was closed before it was durable")]
    Closed,
}

/// Why the log does not open.
#[derive(Debug, thiserror::Error)]
pub enum LogOpenError {
    #[error("`{what}` could not be read or mended")]
    Unreadable {
        what: String,
        #[source]
        cause: io::Error,
    },

    #[error("log segment `{segment}` is damaged at byte {offset}, where it had been durable. {REJOIN}")]
    Damaged { segment: String, offset: u32 },

    #[error("the log has no entry {wanted} and goes on at {found}: a segment is missing. {REJOIN}")]
    Missing { wanted: u64, found: u64 },

    #[error("the log's purge mark is damaged. {REJOIN}")]
    MarkDamaged {
        #[source]
        cause: CodecError,
    },

    #[error("the log's thread could not be started")]
    NoThread(#[source] io::Error),
}

/// Why entries were not read. Never fewer than asked for.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("entries {}..{} were asked for, and the log has {}..{}", wanted.start, wanted.end, present.start, present.end)]
    Absent { wanted: Range<u64>, present: Range<u64> },

    #[error("log segment `{segment}` could not be read")]
    Unread {
        segment: String,
        #[source]
        cause: io::Error,
    },

    #[error("entry {index} in log segment `{segment}` is damaged. {REJOIN}")]
    Damaged { segment: String, index: u64 },
}

/// What the log has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The last index that was purged, and the caller's note about it.
    pub purged: Option<u64>,
    pub purged_note: Bytes,
    /// The entries present are `first..next`.
    pub first: u64,
    pub next: u64,
}

impl Bounds {
    /// The last entry present.
    pub fn last(&self) -> Option<u64> {
        (self.first < self.next).then(|| self.next - 1)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    index: u64,
    note: Bytes,
}

/// Leave to put one operation into the queue. Held until it is durable.
#[must_use]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// A handle; cheap to clone. When the last one is dropped, what waits is still committed; that blocks for a sync.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    committer: Committer,
}

enum Committer {
    Thread(Option<JoinHandle<()>>),
    Caller { writer: Mutex<Writer>, wake: Arc<dyn Fn() + Send + Sync> },
}

struct Shared {
    disk: Arc<dyn Disk>,
    options: LogOptions,
    state: Mutex<State>,
    /// Something is queued, or the log is closing.
    queued: Condvar,
    /// What is on disk. Changed by the writer only.
    segments: Mutex<Vec<Segment>>,
    places: Arc<Semaphore>,
    flushes: AtomicU64,
}

impl Log {
    /// Blocks while it reads all there is. The tail of a write that was never acknowledged is cut off; damage to what had
    /// been durable is an error.
    pub fn open(disk: Arc<dyn Disk>, options: LogOptions) -> Result<Self, LogOpenError> {
        let recovered = recovery::recover(&*disk)?;
        let places = Arc::new(Semaphore::new(places_for(options.queue_bytes_max, Semaphore::MAX_PERMITS)));
        let shared = Arc::new(Shared {
            disk,
            state: Mutex::new(State::new(recovered.mark, &recovered.segments)),
            queued: Condvar::new(),
            segments: Mutex::new(recovered.segments),
            places,
            flushes: AtomicU64::new(0),
            options,
        });
        let mut writer = Writer::new(Arc::clone(&shared));
        let committer = match &shared.options.commits {
            Commits::ByCaller { wake } => Committer::Caller { writer: Mutex::new(writer), wake: Arc::clone(wake) },
            Commits::OnOwnThread => {
                let thread = thread::Builder::new().name("log".to_owned());
                Committer::Thread(Some(thread.spawn(move || writer.run_to_the_end()).map_err(LogOpenError::NoThread)?))
            }
        };
        Ok(Self { inner: Arc::new(Inner { shared, committer }) })
    }

    /// Waits for room in the queue for `bytes` of entries; 0 for a truncation or a purge.
    pub async fn place(&self, bytes: usize) -> Place {
        let places = &self.shared().places;
        let wanted = self.permits(bytes);
        match Arc::clone(places).acquire_many_owned(wanted).await {
            Ok(permit) => Place { _permit: permit },
            // The semaphore is never closed.
            Err(_closed) => std::future::pending().await,
        }
    }

    /// A place if there is room now.
    pub fn try_place(&self, bytes: usize) -> Option<Place> {
        Arc::clone(&self.shared().places)
            .try_acquire_many_owned(self.permits(bytes))
            .ok()
            .map(|permit| Place { _permit: permit })
    }

    /// Appends `entries` with the indexes from `first`, which must be the next one (any, in a log that never had entries).
    /// Never waits. They can be read at once; they are durable when `done` says so.
    pub fn append(&self, place: Place, first: u64, entries: Vec<Bytes>, done: Done) {
        let outcome = self.shared().state.lock().append(first, entries, Queued { done, place });
        self.conclude(outcome);
    }

    /// Removes every entry from `index` on. Durable when `done` says so, and before anything appended later is.
    pub fn truncate_from(&self, place: Place, index: u64, done: Done) {
        let outcome = self.shared().state.lock().truncate_from(index, Queued { done, place });
        self.conclude(outcome);
    }

    /// Removes every entry up to and with `index`, which may lie beyond the last: the next entry is then `index + 1`.
    /// `note` is kept with it ([`Bounds::purged_note`]). An index purged before changes nothing.
    pub fn purge_to(&self, place: Place, index: u64, note: Bytes, done: Done) {
        let outcome = self.shared().state.lock().purge_to(Mark { index, note }, Queued { done, place });
        self.conclude(outcome);
    }

    /// All the entries in `range`, appended or durable. Blocks for the disk where they are not among the newest.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<Bytes>, ReadError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let mut attempt = 1;
        loop {
            let (changes, recent) = {
                let state = self.shared().state.lock();
                (state.changes, state.recent(&range)?)
            };
            let split = range.end - recent.len() as u64;
            match self.shared().read_segments(range.start..split) {
                Ok(mut entries) => {
                    entries.extend(recent);
                    return Ok(entries);
                }
                // What was there at first may be gone by now.
                Err(_error) if attempt < READ_ATTEMPTS_MAX && self.shared().state.lock().changes != changes => {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub fn bounds(&self) -> Bounds {
        self.shared().state.lock().bounds()
    }

    /// Whether the disk has room for more than what keeps a full node alive. Who proposes asks this first, so that the log
    /// itself never meets the end of the disk. One system call; a disk that does not tell is taken to have room.
    pub fn has_headroom(&self) -> bool {
        let shared = self.shared();
        shared.disk.free_bytes().is_ok_and(|free| free >= shared.options.headroom_bytes)
    }

    /// How often something was made durable: syncs of segments.
    pub fn flushes(&self) -> u64 {
        self.shared().flushes.load(Ordering::Relaxed)
    }

    /// With [`Commits::ByCaller`], commits what is queued, as one group. False if there was nothing, or a thread does it.
    pub fn commit_queued(&self) -> bool {
        match &self.inner.committer {
            Committer::Thread(_) => false,
            Committer::Caller { writer, .. } => writer.lock().turn(),
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    fn permits(&self, bytes: usize) -> u32 {
        // What is larger than the whole queue takes all of it.
        segment::small(places_for(bytes, places_for(self.shared().options.queue_bytes_max, Semaphore::MAX_PERMITS)))
    }

    /// Wakes who commits, or says at once why there is nothing to.
    fn conclude(&self, outcome: Result<(), (Queued, Failed)>) {
        match (outcome, &self.inner.committer) {
            (Err((queued, failed)), _) => queued.finish(Err(failed)),
            (Ok(()), Committer::Thread(_)) => drop(self.shared().queued.notify_one()),
            (Ok(()), Committer::Caller { wake, .. }) => wake(),
        }
    }
}

impl Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("bounds", &self.bounds()).finish_non_exhaustive()
    }
}

fn places_for(bytes: usize, places_max: usize) -> usize {
    bytes.div_ceil(PLACE_BYTES).clamp(1, places_max)
}

/// A `done` for one who waits, awaiting or blocking.
pub fn receipt() -> (Done, Receipt) {
    let (sender, receiver) = oneshot::channel();
    (Box::new(move |outcome| drop(sender.send(outcome))), Receipt(receiver))
}

/// Tells once whether something is durable.
#[must_use]
pub struct Receipt(oneshot::Receiver<Result<(), Failed>>);

impl Receipt {
    pub async fn durable(self) -> Result<(), Failed> {
        self.0.await.unwrap_or(Err(Failed::Closed))
    }

    /// Not to be called on a thread of the runtime.
    pub fn wait(self) -> Result<(), Failed> {
        self.0.blocking_recv().unwrap_or(Err(Failed::Closed))
    }

    /// The outcome, if there is one already.
    pub fn now(&mut self) -> Option<Result<(), Failed>> {
        self.0.try_recv().ok()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.state.lock().close();
        self.shared.queued.notify_all();
        match &mut self.committer {
            Committer::Thread(thread) => {
                let Some(thread) = thread.take() else { return };
                // The last handle may have been in a `done`, which the thread itself drops.
                if thread.thread().id() != thread::current().id() && thread.join().is_err() {
                    tracing::error!("the log's thread panicked");
                }
            }
            Committer::Caller { .. } => {
                for operation in self.shared.state.lock().take_queue() {
                    operation.finish(Err(Failed::Closed));
                }
            }
        }
    }
}

impl Shared {
    fn read_segments(&self, range: Range<u64>) -> Result<Vec<Bytes>, ReadError> {
        let mut entries = Vec::new();
        let mut index = range.start;
        while index < range.end {
            let (head, end, bytes) = {
                let segments = self.segments.lock();
                let at = segments.partition_point(|segment| segment.first() <= index).checked_sub(1);
                let segment = at.and_then(|at| segments.get(at)).filter(|segment| index < segment.next());
                let found = segment.and_then(|segment| {
                    let end = range.end.min(segment.next());
                    Some((segment.head, end, segment.bytes_of(&(index..end))?))
                });
                let absent = || ReadError::Absent { wanted: range.clone(), present: index..index };
                found.ok_or_else(absent)?
            };
            let name = segment::name(head.first);
            let content =
                self.read_bytes(&name, &bytes).map_err(|cause| ReadError::Unread { segment: name.clone(), cause })?;
            let mut offset = 0;
            for index in index..end {
                let record = content.get(offset..).and_then(|here| Record::decode(here, head.seed()));
                let Some(record) = record.filter(|record| record.index == index) else {
                    return Err(ReadError::Damaged { segment: name, index });
                };
                entries.push(content.slice_ref(record.entry));
                offset += record.bytes();
            }
            index = end;
        }
        Ok(entries)
    }

    fn read_bytes(&self, name: &str, range: &Range<u32>) -> io::Result<Bytes> {
        let mut content = vec![0; (range.end - range.start) as usize];
        self.disk.open(name)?.read_at(u64::from(range.start), &mut content)?;
        Ok(content.into())
    }
}

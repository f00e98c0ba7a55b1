//! The one who writes: takes what is queued as a group, writes it, syncs once, acknowledges.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::recovery::{MARK, MARK_VERSION};
use super::segment::{HEAD_BYTES, Head, RECORD_HEAD_BYTES, Segment, small};
use super::state::{Operation, Queued};
use super::{Failed, Mark, Shared};
use crate::codec;
use crate::disk::{self, File, ReplaceError};
use crate::metrics;

/// Bytes encoded before they are written. Bounds the writer's own memory, not the group.
const BUFFER_BYTES_MAX: usize = 1 << 20;

pub(super) struct Writer {
    shared: Arc<Shared>,
    /// The last segment, once it was written to.
    file: Option<Box<dyn File>>,
    /// How much of the last segment is durable.
    synced: u32,
    /// Everything below is durable.
    durable_next: u64,
    /// A purge whose mark found no room. Nothing is appended before it is durable: what follows a purge may not be
    /// contiguous with what was before.
    mark_owed: Option<Mark>,
    broken: bool,
}

/// Why something was not written.
enum WriteError {
    /// It passes, if the log can go back to where it was.
    Full(io::Error),
    Fatal(String),
}

/// Appends that are written together.
struct Group {
    entries: Vec<Vec<Bytes>>,
    queued: Vec<Queued>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let synced = shared.segments.lock().last().map_or(0, |last| last.length);
        let durable_next = shared.state.lock().bounds().next;
        Self { shared, file: None, synced, durable_next, mark_owed: None, broken: false }
    }

    /// Until the log is closed. Without a writer nothing would ever be acknowledged, and everyone would wait: a panic, of a
    /// `done` for one, is as fatal as a disk that fails.
    pub(super) fn run_to_the_end(&mut self) {
        if panic::catch_unwind(AssertUnwindSafe(|| self.run())).is_err() {
            self.fail(WriteError::Fatal("the log's thread panicked".to_owned()));
        }
    }

    fn run(&mut self) {
        loop {
            {
                let mut state = self.shared.state.lock();
                while state.is_idle() && !state.is_closing() {
                    self.shared.queued.wait(&mut state);
                }
                if state.is_idle() {
                    return;
                }
            }
            self.turn();
        }
    }

    /// Commits what is queued now. False if nothing is.
    pub(super) fn turn(&mut self) -> bool {
        let operations = self.shared.state.lock().take_queue();
        if operations.is_empty() {
            return false;
        }
        let mut waiting = operations.into_iter().peekable();
        while let Some(operation) = waiting.next() {
            match operation {
                operation if self.broken => operation.finish(Err(Failed::Broken)),
                Operation::Truncate { index, queued } => self.truncate(index, queued),
                Operation::Purge { mark, queued } => self.purge(mark, queued),
                Operation::Append { first, entries, queued } => {
                    let mut group = Group { entries: vec![entries], queued: vec![queued] };
                    while let Some(Operation::Append { entries, queued, .. }) = waiting.next_if(Operation::is_append) {
                        group.entries.push(entries);
                        group.queued.push(queued);
                    }
                    if let Err((refused, error)) = self.append(first, group) {
                        // What is left is done in the next turn, without the appends in it.
                        self.out_of_space(refused, waiting.collect(), &error);
                        break;
                    }
                }
            }
        }
        self.measure();
        true
    }

    fn measure(&self) {
        let segments = self.shared.segments.lock();
        let bytes = segments.iter().map(|segment| u64::from(segment.length)).sum();
        let entries = segments.iter().map(|segment| segment.offsets.len() as u64).sum();
        metrics::measure_log(bytes, entries, segments.len());
    }

    /// An error is a full disk: the log has gone back, and who waits has not been told yet.
    fn append(&mut self, first: u64, group: Group) -> Result<(), (Vec<Queued>, io::Error)> {
        if self.shared.segments.lock().is_empty() {
            self.durable_next = first;
        }
        let written = self.pay_mark().and_then(|()| self.write(first, group.entries.iter().flatten()));
        let outcome = match written {
            Ok(next) => {
                self.durable_next = next;
                self.shared.state.lock().keep_recent(next, self.shared.options.recent_bytes_max);
                Ok(())
            }
            Err(WriteError::Full(error)) => match self.cut(self.durable_next) {
                Ok(()) => return Err((group.queued, error)),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let outcome = outcome.map_err(|error| self.fail(error));
        for queued in group.queued {
            queued.finish(outcome.clone());
        }
        Ok(())
    }

    fn truncate(&mut self, index: u64, queued: Queued) {
        let outcome = self.cut(index).map_err(|error| self.fail(error));
        self.shared.state.lock().truncated();
        queued.finish(outcome);
    }

    fn purge(&mut self, mark: Mark, queued: Queued) {
        self.mark_owed = Some(mark);
        let outcome = self.pay_mark().map_err(|error| self.fail(error));
        queued.finish(outcome);
    }

    /// Tells everyone who waits with an append, after the log has gone back for readers too.
    fn out_of_space(&mut self, refused: Vec<Queued>, rest: Vec<Operation>, error: &io::Error) {
        tracing::error!(%error, "no room on the disk for the log");
        let appends = {
            let mut state = self.shared.state.lock();
            state.give_back(rest);
            state.out_of_space(self.durable_next)
        };
        for queued in refused {
            queued.finish(Err(Failed::NoSpace));
        }
        for append in appends {
            append.finish(Err(Failed::NoSpace));
        }
    }

    /// What to tell who waited for it. After anything but a full disk nothing is acknowledged any more.
    fn fail(&mut self, error: WriteError) -> Failed {
        let reason = match error {
            WriteError::Full(_) => return Failed::NoSpace,
            WriteError::Fatal(reason) => reason,
        };
        self.broken = true;
        (self.shared.options.on_fatal)(&reason);
        let waiting = self.shared.state.lock().break_down();
        for operation in waiting {
            operation.finish(Err(Failed::Broken));
        }
        Failed::Broken
    }

    /// Makes `entries` durable from `index` on; returns the index after them.
    fn write<'a>(&mut self, mut index: u64, entries: impl Iterator<Item = &'a Bytes>) -> Result<u64, WriteError> {
        let mut buffer = Vec::new();
        for entry in entries {
            if !self.has_room_for(entry) {
                self.write_out(&mut buffer)?;
                self.sync()?;
                self.begin_segment(index)?;
            }
            if let Some(segment) = self.shared.segments.lock().last_mut() {
                segment.push(segment.head.seed(), self.synced, entry, &mut buffer);
            }
            index += 1;
            if buffer.len() >= BUFFER_BYTES_MAX {
                self.write_out(&mut buffer)?;
            }
        }
        self.write_out(&mut buffer)?;
        self.sync()?;
        Ok(index)
    }

    /// Whether `entry` goes into the last segment. One with nothing in it takes an entry of any size.
    fn has_room_for(&self, entry: &Bytes) -> bool {
        let segments = self.shared.segments.lock();
        let Some(last) = segments.last() else { return false };
        let bytes = last.length.saturating_add(small(RECORD_HEAD_BYTES + entry.len()));
        last.offsets.is_empty() || bytes <= self.shared.options.segment_bytes_max
    }

    fn write_out(&mut self, buffer: &mut Vec<u8>) -> Result<(), WriteError> {
        if !buffer.is_empty() {
            self.last_file()?.append(buffer).map_err(of_write("log segment could not be written"))?;
            buffer.clear();
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), WriteError> {
        let length = self.shared.segments.lock().last().map_or(0, |last| last.length);
        if length == self.synced {
            return Ok(());
        }
        let begun = self.shared.options.now.map(|now| now());
        self.last_file()?.sync().map_err(fatal("log segment could not be made durable"))?;
        let took = begun.zip(self.shared.options.now).map(|(begun, now)| now().saturating_duration_since(begun));
        metrics::count_sync(took);
        self.shared.flushes.fetch_add(1, Ordering::Relaxed);
        self.synced = length;
        Ok(())
    }

    /// Its head and its name are durable before anything is written into it: recovery relies on it.
    fn begin_segment(&mut self, first: u64) -> Result<(), WriteError> {
        let link = self.shared.segments.lock().last().filter(|last| last.next() == first).map_or(0, |last| last.link);
        let random = getrandom::u64().map_err(|cause| WriteError::Fatal(format!("no random numbers: {cause}")))?;
        let segment = Segment::new(Head { first, random, link });
        let disk = &self.shared.disk;

        let mut file = disk.create(&segment.name()).map_err(of_write("log segment could not be made"))?;
        if let Err(error) = file.append(&segment.head.encode()) {
            disk.remove(&segment.name()).map_err(fatal("a half-made log segment could not be removed"))?;
            // Else it could come back after a crash, behind a segment that was written to since.
            disk.sync_directory().map_err(fatal("directory of the log could not be made durable"))?;
            return Err(of_write("log segment could not be begun")(error));
        }
        file.sync().map_err(fatal("log segment could not be made durable"))?;
        disk.sync_directory().map_err(fatal("directory of the log could not be made durable"))?;

        self.synced = small(HEAD_BYTES);
        self.file = Some(file);
        self.shared.segments.lock().push(segment);
        Ok(())
    }

    /// Leaves nothing from `index` on, nor any part of a write that failed. Newest first and synced at each step, so that
    /// a crash in between leaves a prefix, and before anything is written in its place, so that the two do not mix.
    fn cut(&mut self, index: u64) -> Result<(), WriteError> {
        while let Some(name) = self.pop_segment_from(index) {
            self.file = None;
            self.shared.disk.remove(&name).map_err(fatal("log segment could not be removed"))?;
            self.shared.disk.sync_directory().map_err(fatal("directory of the log could not be made durable"))?;
        }
        let Some(mut segment) = self.shared.segments.lock().last().cloned() else { return Ok(()) };
        let file = self.last_file()?;
        let length = segment.offset(index).unwrap_or(segment.length);
        let checksum_at = |offset| {
            let mut checksum = [0; 4];
            file.read_at(u64::from(offset), &mut checksum)?;
            Ok(u32::from_le_bytes(checksum))
        };
        segment.cut(index, checksum_at).map_err(fatal("log segment could not be read"))?;
        // Nothing of a write that failed need have arrived.
        if file.length().map_err(fatal("log segment could not be read"))? != u64::from(length) {
            file.truncate(u64::from(length)).map_err(fatal("log segment could not be cut"))?;
            file.sync().map_err(fatal("log segment could not be made durable"))?;
        }
        self.synced = length;
        self.durable_next = self.durable_next.min(index);
        if let Some(last) = self.shared.segments.lock().last_mut() {
            *last = segment;
        }
        Ok(())
    }

    /// Takes the last segment off if it has nothing before `index`, unless it is the only one, which is kept and emptied.
    fn pop_segment_from(&mut self, index: u64) -> Option<String> {
        let mut segments = self.shared.segments.lock();
        if segments.len() > 1 && segments.last().is_some_and(|last| last.first() >= index) {
            segments.pop().map(|last| last.name())
        } else {
            None
        }
    }

    /// Makes the purge that is owed durable, then removes what nobody needs any more.
    fn pay_mark(&mut self) -> Result<(), WriteError> {
        let Some(mark) = &self.mark_owed else { return Ok(()) };
        let content = codec::seal(MARK_VERSION, &[&mark.index.to_le_bytes(), &mark.note]);
        match disk::replace(&*self.shared.disk, MARK, &[&content]) {
            Ok(()) => {}
            Err(ReplaceError::Unwritten(cause)) => return Err(of_write("purge mark could not be written")(cause)),
            Err(ReplaceError::Unsynced(cause)) => return Err(fatal("purge mark could not be made durable")(cause)),
        }
        let next = mark.index.saturating_add(1);
        self.mark_owed = None;
        self.durable_next = self.durable_next.max(next);
        let removed = {
            let mut segments = self.shared.segments.lock();
            let mut whole = segments.iter().skip(1).take_while(|segment| segment.first() <= next).count();
            if whole + 1 == segments.len() && segments.last().is_some_and(|last| last.next() < next) {
                whole += 1;
                self.file = None;
                self.synced = 0;
            }
            segments.drain(..whole).collect::<Vec<_>>()
        };
        for segment in removed {
            // Found again and removed at the next start; until then it only takes room.
            if let Err(error) = self.shared.disk.remove(&segment.name()) {
                tracing::warn!(segment = segment.name(), %error, "purged log segment could not be removed");
            }
        }
        Ok(())
    }

    fn last_file(&mut self) -> Result<&mut Box<dyn File>, WriteError> {
        if self.file.is_none() {
            let name = self.shared.segments.lock().last().map(Segment::name).unwrap_or_default();
            self.file = Some(self.shared.disk.open(&name).map_err(fatal("log segment could not be opened"))?);
        }
        self.file.as_mut().ok_or_else(|| WriteError::Fatal("log segment is not open".to_owned()))
    }
}

fn fatal(what: &str) -> impl FnOnce(io::Error) -> WriteError {
    move |cause| WriteError::Fatal(format!("{what}: {cause}"))
}

/// Of a write: no room passes, anything else does not.
fn of_write(what: &str) -> impl FnOnce(io::Error) -> WriteError {
    move |cause| if disk::is_full(&cause) { WriteError::Full(cause) } else { fatal(what)(cause) }
}

//! What readers and callers of the log see, and what waits to be committed. Pure: no disk, no lock.

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;

use bytes::Bytes;

use super::segment::Segment;
use super::{Bounds, Done, Failed, LOG_ENTRY_MAX, Mark, Place, ReadError};

/// Who waits for an operation. Giving back the place is what bounds the queue.
pub(super) struct Queued {
    pub done: Done,
    pub place: Place,
}

impl Queued {
    pub(super) fn finish(self, outcome: Result<(), Failed>) {
        drop(self.place);
        (self.done)(outcome);
    }
}

pub(super) enum Operation {
    Append { first: u64, entries: Vec<Bytes>, queued: Queued },
    Truncate { index: u64, queued: Queued },
    Purge { mark: Mark, queued: Queued },
}

impl Operation {
    pub(super) fn is_append(&self) -> bool {
        matches!(self, Self::Append { .. })
    }

    pub(super) fn finish(self, outcome: Result<(), Failed>) {
        match self {
            Self::Append { queued, .. } | Self::Truncate { queued, .. } | Self::Purge { queued, .. } => {
                queued.finish(outcome);
            }
        }
    }
}

pub(super) struct State {
    mark: Option<Mark>,
    first: u64,
    next: u64,
    /// Nothing was ever appended or purged: it may begin anywhere.
    untouched: bool,
    /// The entries `recent_first..next`. Whatever is not on disk is among them.
    recent: VecDeque<Bytes>,
    recent_first: u64,
    recent_bytes: usize,
    queue: Vec<Operation>,
    /// Truncations in the queue or under way. Until they are done, what is on disk is not what will be there.
    truncations: usize,
    /// Grows with each truncation and purge.
    pub changes: u64,
    broken: bool,
    closing: bool,
}

impl State {
    pub(super) fn new(mark: Option<Mark>, segments: &[Segment]) -> Self {
        let purged_next = mark.as_ref().map(|mark| mark.index.saturating_add(1));
        let oldest = segments.first().map(Segment::first);
        let first = purged_next.or(oldest).unwrap_or(0);
        let next = segments.last().map_or(first, Segment::next);
        Self {
            untouched: mark.is_none() && segments.is_empty(),
            mark,
            first,
            next,
            recent: VecDeque::new(),
            recent_first: next,
            recent_bytes: 0,
            queue: Vec::new(),
            truncations: 0,
            changes: 0,
            broken: false,
            closing: false,
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            purged: self.mark.as_ref().map(|mark| mark.index),
            purged_note: self.mark.as_ref().map(|mark| mark.note.clone()).unwrap_or_default(),
            first: self.first,
            next: self.next,
        }
    }

    pub(super) fn append(&mut self, first: u64, entries: Vec<Bytes>, queued: Queued) -> Result<(), (Queued, Failed)> {
        if self.broken {
            return Err((queued, Failed::Broken));
        }
        if let Some(large) = entries.iter().find(|entry| entry.len() > LOG_ENTRY_MAX) {
            return Err((queued, Failed::TooLarge { found: large.len() }));
        }
        if self.untouched && !entries.is_empty() {
            self.untouched = false;
            (self.first, self.next, self.recent_first) = (first, first, first);
        }
        if first != self.next {
            return Err((queued, Failed::Gap { wanted: self.next, found: first }));
        }
        for entry in &entries {
            self.recent_bytes += entry.len();
            self.recent.push_back(entry.clone());
        }
        self.next += entries.len() as u64;
        self.queue.push(Operation::Append { first, entries, queued });
        Ok(())
    }

    pub(super) fn truncate_from(&mut self, index: u64, queued: Queued) -> Result<(), (Queued, Failed)> {
        if self.broken {
            return Err((queued, Failed::Broken));
        }
        let index = index.clamp(self.first, self.next);
        self.cut(index);
        self.truncations += 1;
        self.queue.push(Operation::Truncate { index, queued });
        Ok(())
    }

    pub(super) fn purge_to(&mut self, mark: Mark, queued: Queued) -> Result<(), (Queued, Failed)> {
        if self.broken {
            return Err((queued, Failed::Broken));
        }
        if self.mark.as_ref().is_some_and(|before| before.index >= mark.index) {
            // Finished in order with what waits: the mark before may not be durable yet.
            let before = self.mark.clone().unwrap_or(mark);
            self.queue.push(Operation::Purge { mark: before, queued });
            return Ok(());
        }
        self.untouched = false;
        self.changes += 1;
        self.first = mark.index.saturating_add(1);
        self.next = self.next.max(self.first);
        while self.recent_first < self.first && self.forget_oldest() {}
        self.recent_first = self.recent_first.max(self.first);
        self.mark = Some(mark.clone());
        self.queue.push(Operation::Purge { mark, queued });
        Ok(())
    }

    /// The newest of the entries in `range`; those before are on disk.
    pub(super) fn recent(&self, range: &Range<u64>) -> Result<Vec<Bytes>, ReadError> {
        if range.start < self.first || range.end > self.next {
            return Err(ReadError::Absent { wanted: range.clone(), present: self.first..self.next });
        }
        let start = range.start.max(self.recent_first);
        let position = |index: u64| usize::try_from(index.saturating_sub(self.recent_first)).unwrap_or(usize::MAX);
        if start >= range.end {
            return Ok(Vec::new());
        }
        Ok(self.recent.range(position(start)..position(range.end)).cloned().collect())
    }

    pub(super) fn take_queue(&mut self) -> Vec<Operation> {
        mem::take(&mut self.queue)
    }

    /// What was taken and not done, before what was queued meanwhile.
    pub(super) fn give_back(&mut self, mut operations: Vec<Operation>) {
        operations.append(&mut self.queue);
        self.queue = operations;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn close(&mut self) {
        self.closing = true;
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Everything below `durable_next` is durable: the oldest of it need not be in memory.
    pub(super) fn keep_recent(&mut self, durable_next: u64, bytes_max: usize) {
        // With a truncation to come, what is on disk under an index may not be what was appended under it last.
        if self.truncations > 0 {
            return;
        }
        while self.recent_bytes > bytes_max && self.recent_first < durable_next && self.forget_oldest() {}
    }

    pub(super) fn truncated(&mut self) {
        self.truncations = self.truncations.saturating_sub(1);
    }

    /// There was no room for anything from `durable_next` on: none of it was ever there. Returns the appends that waited,
    /// all of which follow on it. Truncations and purges stay, in order.
    pub(super) fn out_of_space(&mut self, durable_next: u64) -> Vec<Operation> {
        let (appends, others) = mem::take(&mut self.queue).into_iter().partition(Operation::is_append);
        self.queue = others;
        let truncated = self.queue.iter().filter_map(|operation| match operation {
            Operation::Truncate { index, .. } => Some(*index),
            Operation::Append { .. } | Operation::Purge { .. } => None,
        });
        let index = truncated.fold(durable_next, u64::min);
        self.cut(index.clamp(self.first, self.next));
        appends
    }

    /// Nothing is taken any more. Returns everything that waited.
    pub(super) fn break_down(&mut self) -> Vec<Operation> {
        self.broken = true;
        self.take_queue()
    }

    fn cut(&mut self, index: u64) {
        self.changes += 1;
        while self.next > index.max(self.recent_first)
            && let Some(newest) = self.recent.pop_back()
        {
            self.recent_bytes -= newest.len();
            self.next -= 1;
        }
        self.next = index;
        self.recent_first = self.recent_first.min(index);
    }

    fn forget_oldest(&mut self) -> bool {
        let Some(oldest) = self.recent.pop_front() else { return false };
        self.recent_bytes -= oldest.len();
        self.recent_first += 1;
        true
    }
}

//! What of a log is there after a crash: the purge mark, the segments after it, and a tail that was never acknowledged cut off.

use std::io;

use bytes::Bytes;

use super::segment::{self, HEAD_BYTES, Segment, Tail};
use super::{LogOpenError, Mark};
use crate::codec;
use crate::disk::{self, Disk};

/// The file of the purge mark.
pub(super) const MARK: &str = "purged";
pub(super) const MARK_VERSION: u8 = 1;

pub(super) struct Recovered {
    pub mark: Option<Mark>,
    pub segments: Vec<Segment>,
}

/// Leaves the directory such that everything it returns is durable: also what an earlier life wrote and never synced.
pub(super) fn recover(disk: &dyn Disk) -> Result<Recovered, LogOpenError> {
    disk::remove_temporaries(disk).map_err(unread("directory of the log"))?;
    let mark = read_mark(disk)?;
    let names = disk.list().map_err(unread("directory of the log"))?;
    let mut firsts: Vec<u64> = names.iter().filter_map(|name| segment::first_of(name)).collect();
    firsts.sort_unstable();

    // A segment ends where the next begins. Purged ones need not be whole: their removal may have been cut short.
    let wanted_first = mark.as_ref().map_or(0, |mark| mark.index.saturating_add(1));
    while let [first, next, ..] = firsts[..] {
        if next > wanted_first {
            break;
        }
        disk.remove(&segment::name(first)).map_err(unread(&segment::name(first)))?;
        firsts.remove(0);
    }
    let mut segments: Vec<Segment> = Vec::with_capacity(firsts.len());
    for (position, first) in firsts.iter().enumerate() {
        let is_last = position + 1 == firsts.len();
        if let Some(segment) = read_segment(disk, *first, is_last)? {
            check_follows(segments.last(), &segment, mark.as_ref())?;
            segments.push(segment);
        }
    }
    // Whatever was purged beyond its end.
    if let [only] = &segments[..]
        && only.next() < wanted_first
    {
        disk.remove(&only.name()).map_err(unread(&only.name()))?;
        segments.clear();
    }
    disk.sync_directory().map_err(unread("directory of the log"))?;
    Ok(Recovered { mark, segments })
}

/// `None` if the segment was never finished being made.
fn read_segment(disk: &dyn Disk, first: u64, is_last: bool) -> Result<Option<Segment>, LogOpenError> {
    let name = segment::name(first);
    let bytes = disk.read_all(&name).map_err(unread(&name))?;
    // The head is durable before the first record is written.
    if is_last && bytes.len() <= HEAD_BYTES && segment::Head::decode(&bytes).is_none() {
        tracing::info!(segment = name, "removing a segment that was never finished being made");
        disk.remove(&name).map_err(unread(&name))?;
        return Ok(None);
    }
    let damaged = |offset: u32| LogOpenError::Damaged { segment: name.clone(), offset };
    let (segment, tail) = Segment::scan(&bytes).filter(|(segment, _)| segment.first() == first).ok_or(damaged(0))?;
    if !is_last {
        return if tail == Tail::Clean { Ok(Some(segment)) } else { Err(damaged(segment.length)) };
    }
    let mut file = disk.open(&name).map_err(unread(&name))?;
    match tail {
        Tail::Damaged => return Err(damaged(segment.length)),
        Tail::Torn => {
            let cut = bytes.len() - segment.length as usize;
            tracing::warn!(segment = name, cut, "cutting off a write that was never acknowledged");
            file.truncate(u64::from(segment.length)).map_err(unread(&name))?;
        }
        Tail::Clean => {}
    }
    file.sync().map_err(unread(&name))?;
    Ok(Some(segment))
}

fn check_follows(before: Option<&Segment>, segment: &Segment, mark: Option<&Mark>) -> Result<(), LogOpenError> {
    let follows = match (before, mark) {
        (Some(before), _) => segment.first() == before.next() && segment.head.link == before.link,
        (None, Some(mark)) => segment.first() <= mark.index.saturating_add(1),
        (None, None) => segment.head.link == 0,
    };
    if follows {
        return Ok(());
    }
    let wanted = before.map_or(mark.map_or(0, |mark| mark.index.saturating_add(1)), Segment::next);
    Err(LogOpenError::Missing { wanted, found: segment.first() })
}

fn read_mark(disk: &dyn Disk) -> Result<Option<Mark>, LogOpenError> {
    let sealed = match disk.read_all(MARK) {
        Ok(sealed) => sealed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(unread(MARK)(cause)),
    };
    let (_version, payload) = codec::unseal(&sealed).map_err(|cause| LogOpenError::MarkDamaged { cause })?;
    let found = payload.len();
    let (index, note) = payload
        .split_first_chunk::<8>()
        .ok_or(LogOpenError::MarkDamaged { cause: codec::CodecError::Short { found } })?;
    Ok(Some(Mark { index: u64::from_le_bytes(*index), note: Bytes::copy_from_slice(note) }))
}

fn unread(what: &str) -> impl FnOnce(io::Error) -> LogOpenError {
    let what = what.to_owned();
    move |cause| LogOpenError::Unreadable { what, cause }
}

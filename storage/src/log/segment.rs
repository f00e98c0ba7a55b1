//! What a segment of the log looks like, byte for byte. Pure.
//!
//! A segment is a head and records. Every checksum begins with that of its segment's head, which carries a random number,
//! so nothing that lay on the disk before, and nothing inside an entry, is taken for a record. Every record names the
//! checksum of the one before (`link`), so two histories never mix, and how much of its segment was durable when it was
//! written (`synced`). The last is what tells a torn tail from damage: bytes that a later record calls durable may not be
//! missing.
//!
//! ```text
//! head    magic: 8 · first index: u64 · random: u64 · link: u32 · CRC32C: u32
//! record  CRC32C: u32 · length: u32 · index: u64 · link: u32 · synced: u32 · entry
//! ```

use std::io;
use std::ops::Range;

use super::LOG_ENTRY_MAX;

pub(super) const HEAD_BYTES: usize = 32;
pub(super) const RECORD_HEAD_BYTES: usize = 24;

/// The last digit is the version of the format.
const MAGIC: [u8; 8] = *b"lea-log1";

const ENDING: &str = ".log";

/// The beginning of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub first: u64,
    pub random: u64,
    /// Checksum of the last record of the segment before; 0 where a log begins.
    pub link: u32,
}

/// What is known of a segment without reading it again.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub head: Head,
    /// Where each record begins.
    pub offsets: Vec<u32>,
    /// Where the next record will.
    pub length: u32,
    /// Checksum of the last record, or the head's link.
    pub link: u32,
}

/// How the bytes after the last good record look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    Clean,
    /// A write that never finished, and was never acknowledged.
    Torn,
    /// Something that had been durable is not there.
    Damaged,
}

impl Head {
    pub(super) fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.first.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.random.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.link.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..28]);
        bytes[28..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let head = bytes.first_chunk::<HEAD_BYTES>()?;
        let (guarded, checksum) = head.split_last_chunk::<4>()?;
        let (magic, rest) = guarded.split_first_chunk::<8>()?;
        let (first, rest) = rest.split_first_chunk::<8>()?;
        let (random, link) = rest.split_first_chunk::<8>()?;
        if *magic != MAGIC || crc32c::crc32c(guarded) != u32::from_le_bytes(*checksum) {
            return None;
        }
        Some(Self {
            first: u64::from_le_bytes(*first),
            random: u64::from_le_bytes(*random),
            link: u32::from_le_bytes(link.try_into().ok()?),
        })
    }

    /// What every checksum in the segment begins with.
    pub(super) fn seed(&self) -> u32 {
        crc32c::crc32c(&self.encode())
    }
}

impl Segment {
    pub(super) fn new(head: Head) -> Self {
        Self { head, offsets: Vec::new(), length: small(HEAD_BYTES), link: head.link }
    }

    pub(super) fn first(&self) -> u64 {
        self.head.first
    }

    /// The index after its last record.
    pub(super) fn next(&self) -> u64 {
        self.head.first.saturating_add(self.offsets.len() as u64)
    }

    pub(super) fn name(&self) -> String {
        name(self.head.first)
    }

    /// Encodes the next record at the end of `buffer`, which will be written at the end of the segment.
    pub(super) fn push(&mut self, seed: u32, synced: u32, entry: &[u8], buffer: &mut Vec<u8>) {
        let mut guarded = [0; RECORD_HEAD_BYTES - 4];
        guarded[..4].copy_from_slice(&small(entry.len()).to_le_bytes());
        guarded[4..12].copy_from_slice(&self.next().to_le_bytes());
        guarded[12..16].copy_from_slice(&self.link.to_le_bytes());
        guarded[16..].copy_from_slice(&synced.to_le_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c_append(seed, &guarded), entry);
        buffer.extend_from_slice(&checksum.to_le_bytes());
        buffer.extend_from_slice(&guarded);
        buffer.extend_from_slice(entry);
        self.offsets.push(self.length);
        self.length = self.length.saturating_add(small(RECORD_HEAD_BYTES + entry.len()));
        self.link = checksum;
    }

    /// Where the record of `index` stands, or would stand next.
    pub(super) fn offset(&self, index: u64) -> Option<u32> {
        let position = usize::try_from(index.checked_sub(self.head.first)?).ok()?;
        if position == self.offsets.len() { Some(self.length) } else { self.offsets.get(position).copied() }
    }

    /// Bytes of the records in `indexes`, all of which it has.
    pub(super) fn bytes_of(&self, indexes: &Range<u64>) -> Option<Range<u32>> {
        Some(self.offset(indexes.start)?..self.offset(indexes.end)?)
    }

    /// Forgets the records from `index` on. `checksum_at` reads the checksum of the record that begins at an offset.
    pub(super) fn cut(&mut self, index: u64, checksum_at: impl FnOnce(u32) -> io::Result<u32>) -> io::Result<()> {
        let kept = usize::try_from(index.saturating_sub(self.head.first)).unwrap_or(usize::MAX);
        let Some(length) = self.offsets.get(kept).copied() else { return Ok(()) };
        self.link = match kept.checked_sub(1).and_then(|last| self.offsets.get(last)) {
            Some(last) => checksum_at(*last)?,
            None => self.head.link,
        };
        self.offsets.truncate(kept);
        self.length = length;
        Ok(())
    }

    /// Reads a whole segment: every record up to the first that is not good, and what follows it.
    pub(super) fn scan(bytes: &[u8]) -> Option<(Self, Tail)> {
        let mut segment = Self::new(Head::decode(bytes)?);
        let seed = segment.head.seed();
        let mut rest = bytes.get(HEAD_BYTES..)?;
        while let Some(record) = Record::decode(rest, seed) {
            if record.index != segment.next() || record.link != segment.link || record.synced > segment.length {
                break;
            }
            segment.offsets.push(segment.length);
            segment.link = record.checksum;
            segment.length = segment.length.saturating_add(small(record.bytes()));
            rest = rest.get(record.bytes()..).unwrap_or_default();
        }
        let tail = match rest {
            [] => Tail::Clean,
            rest if segment.was_durable_beyond(rest, seed) => Tail::Damaged,
            _ => Tail::Torn,
        };
        Some((segment, tail))
    }

    /// Whether any record in `rest`, which begins at `length`, says that bytes after `length` had been durable.
    fn was_durable_beyond(&self, rest: &[u8], seed: u32) -> bool {
        // A record takes at least its head, so no index in the segment is further from its first than this.
        let indexes = self.next()..self.next().saturating_add((rest.len() / RECORD_HEAD_BYTES) as u64 + 1);
        (0..rest.len()).any(|offset| {
            let here = rest.get(offset..).unwrap_or_default();
            // The index is compared first: a checksum at each offset would take time quadratic in the tail's length.
            index_at(here).is_some_and(|index| indexes.contains(&index))
                && Record::decode(here, seed).is_some_and(|record| record.synced > self.length)
        })
    }
}

/// A record that is whole.
pub(super) struct Record<'a> {
    pub checksum: u32,
    pub index: u64,
    pub link: u32,
    pub synced: u32,
    pub entry: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record at the beginning of `bytes`.
    pub(super) fn decode(bytes: &'a [u8], seed: u32) -> Option<Self> {
        let (checksum, guarded) = bytes.split_first_chunk::<4>()?;
        let (length, rest) = guarded.split_first_chunk::<4>()?;
        let (index, rest) = rest.split_first_chunk::<8>()?;
        let (link, rest) = rest.split_first_chunk::<4>()?;
        let (synced, rest) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|length| *length <= LOG_ENTRY_MAX)?;
        let entry = rest.get(..length)?;
        let checksum = u32::from_le_bytes(*checksum);
        if crc32c::crc32c_append(seed, &guarded[..RECORD_HEAD_BYTES - 4 + length]) != checksum {
            return None;
        }
        Some(Self {
            checksum,
            index: u64::from_le_bytes(*index),
            link: u32::from_le_bytes(*link),
            synced: u32::from_le_bytes(*synced),
            entry,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        RECORD_HEAD_BYTES + self.entry.len()
    }
}

fn index_at(record: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*record.get(8..16)?.first_chunk()?))
}

pub(super) fn name(first: u64) -> String {
    format!("{first:020}{ENDING}")
}

/// The first index of the segment in a file of this name.
pub(super) fn first_of(name: &str) -> Option<u64> {
    name.strip_suffix(ENDING)?.parse().ok()
}

/// Segments and entries are far below 4 GiB.
pub(super) fn small(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A segment from index 5 whose batches were synced one after another, and where each batch begins.
    fn written(batches: &[Vec<Vec<u8>>]) -> (Vec<u8>, Segment, Vec<u32>) {
        let mut segment = Segment::new(Head { first: 5, random: 99, link: 0 });
        let seed = segment.head.seed();
        let mut bytes = segment.head.encode().to_vec();
        let mut begins = Vec::new();
        for batch in batches {
            let synced = segment.length;
            begins.push(synced);
            for entry in batch {
                segment.push(seed, synced, entry, &mut bytes);
            }
        }
        (bytes, segment, begins)
    }

    fn batches() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
        let entry = prop::collection::vec(any::<u8>(), 0..40);
        prop::collection::vec(prop::collection::vec(entry, 1..4), 1..6)
    }

    proptest! {
        #[test]
        fn a_whole_segment_is_read_whole(batches in batches()) {
            let (bytes, written, _begins) = written(&batches);

            let (read, tail) = Segment::scan(&bytes).unwrap();

            prop_assert_eq!(tail, Tail::Clean);
            prop_assert_eq!((read.offsets, read.length, read.link), (written.offsets, written.length, written.link));
        }

        /// A cut anywhere leaves the records before it, and is never called damage.
        #[test]
        fn a_cut_leaves_a_prefix(batches in batches(), at: prop::sample::Index) {
            let (bytes, written, _begins) = written(&batches);
            let cut = HEAD_BYTES + at.index(bytes.len() - HEAD_BYTES);

            let (read, tail) = Segment::scan(&bytes[..cut]).unwrap();

            let kept = written.offsets.iter().chain([&written.length]).filter(|end| **end as usize <= cut).count() - 1;
            prop_assert_eq!(read.offsets.len(), kept);
            prop_assert_eq!(tail, if read.length as usize == cut { Tail::Clean } else { Tail::Torn });
        }

        /// A changed byte is damage where a later batch proves that it had been durable, and else a torn tail. What was
        /// before it is read either way.
        #[test]
        fn a_changed_byte_is_damage_if_it_was_durable(
            batches in batches(), at: prop::sample::Index, flip in 1..=u8::MAX,
        ) {
            let (mut bytes, written, begins) = written(&batches);
            let changed = HEAD_BYTES + at.index(bytes.len() - HEAD_BYTES);
            bytes[changed] ^= flip;

            let (read, tail) = Segment::scan(&bytes).unwrap();

            let good = written.offsets.iter().filter(|offset| **offset as usize <= changed).count() - 1;
            let was_durable = changed < *begins.last().unwrap() as usize;
            prop_assert_eq!(read.offsets.len(), good);
            prop_assert_eq!(tail, if was_durable { Tail::Damaged } else { Tail::Torn });
        }

        #[test]
        fn garbage_is_refused_politely(bytes: Vec<u8>) {
            prop_assert!(Segment::scan(&bytes).is_none());
        }
    }

    /// A client cannot make a node refuse its own log by sending an entry that looks like a record.
    #[test]
    fn an_entry_that_looks_like_a_record_is_not_taken_for_one() {
        let mut forged = Segment::new(Head { first: 5, random: 1, link: 0 });
        let mut entry = Vec::new();
        forged.push(forged.head.seed(), u32::MAX, b"forged", &mut entry);
        let (bytes, _segment, _begins) = written(&[vec![entry]]);

        let (read, tail) = Segment::scan(&bytes[..bytes.len() - 1]).unwrap();

        assert_eq!((read.offsets.len(), tail), (0, Tail::Torn));
    }

    /// Records of two histories do not make a third, even where lengths agree.
    #[test]
    fn histories_do_not_mix() {
        let (old, segment, _begins) = written(&[vec![b"a".to_vec(), b"b".to_vec()]]);
        let (new, ..) = written(&[vec![b"x".to_vec()]]);
        let mut mixed = new.clone();
        mixed.extend_from_slice(&old[segment.offsets[1] as usize..]);

        let (read, tail) = Segment::scan(&mixed).unwrap();

        assert_eq!((read.offsets.len(), tail), (1, Tail::Torn));
    }
}

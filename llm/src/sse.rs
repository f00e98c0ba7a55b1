//! Server-sent events, decoded as they arrive and written exactly.
//!
//! An event that lies in one chunk is a slice of that chunk: a relay that speaks the same dialect on both sides passes
//! [`Event::raw`] on without copying it. Source: the HTML standard, section «Server-sent events».

use std::mem;

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memchr2};

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The last `event` field, where it is not empty.
    pub name: Option<Bytes>,
    /// The `data` fields, joined by line feeds. Not checked to be UTF-8.
    pub data: Bytes,
    /// The bytes the event came in, with its blank line; without that line's LF where a chunk ended after its CR.
    pub raw: Bytes,
}

/// Appends an event; `data` is one line.
pub fn write(out: &mut Vec<u8>, name: Option<&str>, data: &[u8]) {
    if let Some(name) = name {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\n\n");
}

/// An event is longer than the decoder may hold. The stream cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is longer than {line_max} bytes")]
pub struct TooLong {
    pub line_max: usize,
}

/// Bytes to events, whatever the chunks they come in.
///
/// [`Decoder::feed`] a chunk, then call [`Decoder::next`] until it gives nothing. Comments, and events without data, are
/// skipped.
#[derive(Debug)]
pub struct Decoder {
    /// An event, all its lines together, may have this many bytes before its blank line; a longer one is [`TooLong`].
    line_max: usize,
    /// The beginning of an event whose end has not come yet. Scanned.
    held: BytesMut,
    /// What came since. Not scanned.
    pending: Bytes,
    scan: Scan,
    /// Nothing was taken from the stream yet: a byte order mark may come.
    first: bool,
    too_long: bool,
}

impl Decoder {
    pub fn new(line_max: usize) -> Self {
        Self {
            line_max,
            held: BytesMut::new(),
            pending: Bytes::new(),
            scan: Scan { line_empty: true, after_cr: false },
            first: true,
            too_long: false,
        }
    }

    /// Copies nothing when the events of the last chunk were all taken.
    pub fn feed(&mut self, chunk: Bytes) {
        if self.pending.is_empty() {
            self.pending = chunk;
        } else {
            let mut joined = BytesMut::with_capacity(self.pending.len() + chunk.len());
            joined.extend_from_slice(&self.pending);
            joined.extend_from_slice(&chunk);
            self.pending = joined.freeze();
        }
    }

    /// The next whole event, or `None` until more bytes come. After an error, always that error.
    #[expect(clippy::should_implement_trait, reason = "`None` is no end here: more may come after the next chunk")]
    pub fn next(&mut self) -> Result<Option<Event>, TooLong> {
        while !self.too_long {
            if self.scan.ends_line(&self.pending) {
                let line_feed = self.pending.split_to(1);
                if !self.held.is_empty() {
                    self.held.extend_from_slice(&line_feed);
                }
            }
            let Some(found) = self.scan.blank_line(&self.pending) else {
                self.too_long = self.held.len() + self.pending.len() > self.line_max;
                self.held.extend_from_slice(&mem::take(&mut self.pending));
                if self.too_long {
                    break;
                }
                return Ok(None);
            };
            self.too_long = self.held.len() + found.start > self.line_max;
            let mut raw = self.pending.split_to(found.end);
            if !self.held.is_empty() {
                self.held.extend_from_slice(&raw);
                raw = self.held.split().freeze();
            }
            let event = parse(raw, mem::take(&mut self.first));
            if let (Some(event), false) = (event, self.too_long) {
                return Ok(Some(event));
            }
        }
        self.held = BytesMut::new();
        self.pending = Bytes::new();
        Err(TooLong { line_max: self.line_max })
    }

    /// Whether no event is begun: a stream that ends here ends between two events. Comments and blank lines count for
    /// nothing.
    pub fn remainder_is_empty(&self) -> bool {
        let mut rest = [&self.held[..], &self.pending[..]].concat();
        if self.first && rest.starts_with(BYTE_ORDER_MARK) {
            rest.drain(..BYTE_ORDER_MARK.len());
        }
        rest.split(|byte| matches!(byte, b'\n' | b'\r')).all(|line| line.is_empty() || line[0] == b':')
    }

    /// At the end of the stream: whether half an event was left over.
    pub fn end(self) -> bool {
        !self.remainder_is_empty()
    }
}

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Where the scanned bytes left off.
#[derive(Debug)]
struct Scan {
    line_empty: bool,
    /// The last byte was a CR: an LF that follows belongs to it.
    after_cr: bool,
}

/// A blank line, with its terminator.
struct Blank {
    start: usize,
    end: usize,
}

impl Scan {
    /// Whether `bytes` begin with the LF of a line that already ended with its CR.
    fn ends_line(&mut self, bytes: &[u8]) -> bool {
        let ends = self.after_cr && bytes.first() == Some(&b'\n');
        self.after_cr &= bytes.is_empty();
        ends
    }

    /// The first blank line in `bytes`, which go on where the last ones ended.
    fn blank_line(&mut self, bytes: &[u8]) -> Option<Blank> {
        let mut at = 0;
        while let Some(length) = memchr2(b'\n', b'\r', &bytes[at..]) {
            let blank = self.line_empty && length == 0;
            let start = at;
            let carriage_return = bytes[at + length] == b'\r';
            at += length + 1;
            if carriage_return {
                self.after_cr = at == bytes.len();
                at += usize::from(bytes.get(at) == Some(&b'\n'));
            }
            self.line_empty = true;
            if blank {
                return Some(Blank { start, end: at });
            }
        }
        self.line_empty &= at == bytes.len();
        None
    }
}

/// `None` for a comment and for an event that has no `data` field.
fn parse(raw: Bytes, first: bool) -> Option<Event> {
    let mut name = None;
    let mut data: Option<Data> = None;
    let mut at = if first && raw.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    while let Some(length) = memchr2(b'\n', b'\r', &raw[at..]) {
        let line = &raw[at..at + length];
        let colon = memchr(b':', line).unwrap_or(length);
        let space = usize::from(line.get(colon + 1) == Some(&b' '));
        let value = (at + length).min(at + colon + 1 + space)..at + length;
        match &line[..colon] {
            b"data" => data = Some(Data::after(data, &raw, value)),
            b"event" => name = Some(value),
            _ => {}
        }
        at += length + 1;
    }
    let name = name.filter(|range| !range.is_empty()).map(|range| raw.slice(range));
    let data = match data? {
        Data::Line(range) => raw.slice(range),
        Data::Lines(joined) => Bytes::from(joined),
    };
    Some(Event { name, data, raw })
}

/// The data of an event: a part of its bytes, until a second line makes a copy necessary.
enum Data {
    Line(std::ops::Range<usize>),
    Lines(Vec<u8>),
}

impl Data {
    fn after(before: Option<Self>, raw: &[u8], line: std::ops::Range<usize>) -> Self {
        let mut joined = match before {
            None => return Self::Line(line),
            Some(Self::Line(range)) => raw[range].to_vec(),
            Some(Self::Lines(joined)) => joined,
        };
        joined.push(b'\n');
        joined.extend_from_slice(&raw[line]);
        Self::Lines(joined)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What a reader of the stream sees: name and data.
    type Seen = (Option<Vec<u8>>, Vec<u8>);

    fn drain(decoder: &mut Decoder) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        while let Some(event) = decoder.next()? {
            events.push(event);
        }
        Ok(events)
    }

    fn seen(event: &Event) -> Seen {
        (event.name.as_ref().map(|name| name.to_vec()), event.data.to_vec())
    }

    /// The events of `stream`, cut into chunks of the lengths in `cuts` (over and over), and whether half an event was left.
    fn decode(stream: &[u8], cuts: &[usize], line_max: usize) -> Result<(Vec<Seen>, bool), TooLong> {
        let mut decoder = Decoder::new(line_max);
        let mut events = Vec::new();
        let mut rest = stream;
        let mut lengths = cuts.iter().cycle();
        while !rest.is_empty() {
            let length = lengths.next().map_or(rest.len(), |length| (*length).clamp(1, rest.len()));
            decoder.feed(Bytes::copy_from_slice(&rest[..length]));
            events.extend(drain(&mut decoder)?.iter().map(seen));
            rest = &rest[length..];
        }
        Ok((events, decoder.end()))
    }

    fn whole(stream: &str) -> Vec<(Option<String>, String)> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let (events, _) = decode(stream.as_bytes(), &[], 1024).unwrap();
        events.into_iter().map(|(name, data)| (name.map(text), text(data))).collect()
    }

    fn event(name: Option<&str>, data: &str) -> (Option<String>, String) {
        (name.map(str::to_owned), data.to_owned())
    }

    #[test]
    fn events_are_read_with_any_line_end() {
        for end in ["\n", "\r", "\r\n"] {
            let stream = "event: a|data: one|data:two||: note||data||data: x|id: 7|retry: 3|other||".replace('|', end);
            let wanted = [event(Some("a"), "one\ntwo"), event(None, ""), event(None, "x")];
            assert_eq!(whole(&stream), wanted, "{end:?}");
        }
    }

    #[test]
    fn one_space_after_the_colon_is_no_data() {
        assert_eq!(whole("data:  x \n\ndata:y:z\n\n"), [event(None, " x "), event(None, "y:z")]);
    }

    #[test]
    fn a_byte_order_mark_is_no_data() {
        assert_eq!(whole("\u{feff}data: x\n\n"), [event(None, "x")]);
        assert_eq!(whole("\u{feff}\n\ndata: x\n\n"), [event(None, "x")]);
    }

    #[test]
    fn an_event_without_data_is_none() {
        assert_eq!(whole(": a\n\nevent: ping\n\nid: 1\n\n\n\ndata: x\n\n"), [event(None, "x")]);
        assert_eq!(whole("event:\ndata: x\n\n"), [event(None, "x")]);
    }

    #[test]
    fn half_an_event_at_the_end_is_told() {
        let half = |stream: &str| decode(stream.as_bytes(), &[3], 1024).unwrap().1;
        assert!(half("data: x\n\ndata: y"));
        assert!(half("data: x\n\ndata: y\n"));
        assert!(!half("data: x\n\n"));
        assert!(!half("data: x\r\n\r\n"));
        assert!(!half("data: x\n\n: bye"));
        assert!(!half("\u{feff}\n"));
        assert!(!half(""));
    }

    #[test]
    fn an_event_within_a_chunk_is_not_copied() {
        let chunk = Bytes::from_static(b"event: a\ndata: one\n\ndata: two\n\n");
        let mut decoder = Decoder::new(1024);
        decoder.feed(chunk.clone());

        let events = drain(&mut decoder).unwrap();

        let raws: Vec<&[u8]> = events.iter().map(|event| &event.raw[..]).collect();
        assert_eq!(raws, [&chunk[..20], &chunk[20..]]);
        let within = |bytes: &Bytes| chunk.as_ptr_range().contains(&bytes.as_ptr());
        assert!(events.iter().all(|event| within(&event.raw) && within(&event.data)));
    }

    #[test]
    fn raw_bytes_are_exact_across_chunks() {
        let stream = b"event: a\r\ndata: one\r\n\r\ndata: two\n\n";
        let mut decoder = Decoder::new(1024);
        let mut raws = Vec::new();
        for chunk in [&stream[..9], &stream[9..15], &stream[15..]] {
            decoder.feed(Bytes::copy_from_slice(chunk));
            raws.extend(drain(&mut decoder).unwrap().iter().flat_map(|event| event.raw.to_vec()));
        }
        assert_eq!(raws, stream);
    }

    #[test]
    fn chunks_may_be_fed_before_the_last_was_drained() {
        let mut decoder = Decoder::new(1024);
        for chunk in ["data: o", "ne\n\nda", "ta: two\n\n"] {
            decoder.feed(Bytes::from_static(chunk.as_bytes()));
        }
        let data: Vec<Bytes> = drain(&mut decoder).unwrap().into_iter().map(|event| event.data).collect();
        assert_eq!(data, ["one", "two"]);
    }

    #[test]
    fn a_line_that_is_too_long_ends_the_stream() {
        let mut decoder = Decoder::new(8);
        decoder.feed(Bytes::from_static(b"data: 1\n\ndata: 12\n\ndata: 3\n\n"));
        assert_eq!(decoder.next().unwrap().unwrap().data, "1");
        assert_eq!(decoder.next(), Err(TooLong { line_max: 8 }));
        decoder.feed(Bytes::from_static(b"data: 4\n\n"));
        assert_eq!(decoder.next(), Err(TooLong { line_max: 8 }));
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut decoder = Decoder::new(100);
        decoder.feed(Bytes::from(vec![b'x'; 101]));
        assert_eq!(decoder.next(), Err(TooLong { line_max: 100 }));
    }

    #[test]
    fn what_is_written_is_read() {
        let mut out = Vec::new();
        write(&mut out, Some("message_stop"), b"{}");
        write(&mut out, None, b"[DONE]");
        assert_eq!(out, b"event: message_stop\ndata: {}\n\ndata: [DONE]\n\n");
        let text = String::from_utf8(out).unwrap();
        assert_eq!(whole(&text), [event(Some("message_stop"), "{}"), event(None, "[DONE]")]);
    }

    fn piece() -> impl Strategy<Value = &'static [u8]> {
        prop::sample::select(vec![
            &b"\n"[..],
            b"\r",
            b"\r\n",
            b"\n\n",
            b"data",
            b":",
            b" ",
            b"data: x",
            b"event: a",
            b": c",
            b"\xEF\xBB\xBF",
            b"\xFF",
            b"y",
        ])
    }

    proptest! {
        /// Any chunking gives the same events, the same error and the same word on what was left.
        #[test]
        fn chunks_do_not_matter(pieces in vec(piece(), 0..60), cuts in vec(1usize..9, 1..20), line_max in 5usize..60) {
            let stream = pieces.concat();
            let at_once = decode(&stream, &[], line_max);
            prop_assert_eq!(decode(&stream, &cuts, line_max), at_once.clone());
            prop_assert_eq!(decode(&stream, &[1], line_max), at_once);
        }

        #[test]
        fn any_bytes_are_read(stream in vec(any::<u8>(), 0..300), cuts in vec(1usize..40, 1..9)) {
            prop_assert_eq!(decode(&stream, &cuts, 64), decode(&stream, &[], 64));
        }
    }
}

//! A stream of events in any chunks decodes to the same events, and a bound on their length only ever ends it early.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use llm::sse::{Decoder, Event, TooLong};

const NEVER_TOO_LONG: usize = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Some((&seed, stream)) = bytes.split_first() else { return };

    let (whole, whole_left) = decode(stream, stream.len().max(1), NEVER_TOO_LONG).expect("not too long");

    for length in [1, 2, 3, usize::from(seed).max(1)] {
        let (chunked, left) = decode(stream, length, NEVER_TOO_LONG).expect("not too long");
        assert_eq!(content(&chunked), content(&whole), "chunks of {length} bytes");
        assert_eq!(left, whole_left, "whether half an event is left, in chunks of {length} bytes");

        let line_max = usize::from(seed);
        if let Ok((bounded, _left)) = decode(stream, length, line_max) {
            assert_eq!(content(&bounded), content(&whole), "chunks of {length} bytes, at most {line_max} each");
        }
    }
});

/// What an event says, without the bytes it came in.
fn content(events: &[Event]) -> Vec<(Option<&[u8]>, &[u8])> {
    events.iter().map(|event| (event.name.as_deref(), &*event.data)).collect()
}

/// All events, and whether half of one was left over.
fn decode(stream: &[u8], length: usize, line_max: usize) -> Result<(Vec<Event>, bool), TooLong> {
    let mut decoder = Decoder::new(line_max);
    let mut events = Vec::new();
    for chunk in stream.chunks(length) {
        decoder.feed(Bytes::copy_from_slice(chunk));
        while let Some(event) = decoder.next()? {
            events.push(event);
        }
    }
    Ok((events, decoder.end()))
}

//! Any bytes as a provider's stream: no panic, and what is understood of a whole answer says the same text in every dialect.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use llm::chat::Delta;
use llm::dialect::{Dialect, StreamOptions};
use llm::fault::Fault;
use llm::sse;
use llm::transcode::{Collector, deltas_of};

const DIALECTS: [Dialect; 2] = [Dialect::OpenAiChat, Dialect::AnthropicMessages];

fuzz_target!(|bytes: &[u8]| {
    for from in DIALECTS {
        let Ok(deltas) = decode(from, bytes) else { continue };
        let collector = collect(&deltas);
        let whole = collector.whole();
        for to in DIALECTS {
            let stream = encode(to, &deltas);
            if whole && !failed(&deltas) && orderly(&deltas) {
                let again = decode(to, &stream).expect("an encoded stream can be decoded");
                assert_eq!(text(&again), text(&deltas), "{from:?} to {to:?}");
            }
        }
        if whole {
            let replayed = collect(&deltas_of(&collector.into_reply()));
            assert!(replayed.whole(), "a whole answer replays as one");
        }
    }
});

fn decode(dialect: Dialect, bytes: &[u8]) -> Result<Vec<Delta>, Fault> {
    let mut events = sse::Decoder::new(1 << 20);
    let mut decoder = dialect.stream_decoder();
    let mut deltas = Vec::new();
    events.feed(Bytes::copy_from_slice(bytes));
    while let Ok(Some(event)) = events.next() {
        deltas.extend(decoder.event(&event)?);
    }
    Ok(deltas)
}

fn encode(dialect: Dialect, deltas: &[Delta]) -> Vec<u8> {
    let mut encoder = dialect.stream_encoder(StreamOptions { include_usage: true, input_estimate: 1 });
    let mut out = Vec::new();
    for delta in deltas {
        encoder.delta(delta, &mut out);
    }
    encoder.finish(&mut out);
    out
}

fn collect(deltas: &[Delta]) -> Collector {
    let mut collector = Collector::new();
    for delta in deltas {
        collector.add(delta);
    }
    collector
}

fn failed(deltas: &[Delta]) -> bool {
    deltas.iter().any(|delta| matches!(delta, Delta::Fault(_)))
}

/// Nothing of the first choice comes after it, or the stream, has ended. No provider does that, and dialects may differ in what they make
/// of it.
fn orderly(deltas: &[Delta]) -> bool {
    let finish = deltas.iter().position(|delta| matches!(delta, Delta::Finish { choice: 0, .. } | Delta::End));
    let after = finish.and_then(|at| deltas.get(at..)).unwrap_or_default();
    !after.iter().any(|delta| matches!(delta, Delta::Text { choice: 0, .. }))
}

/// The text of the first choice, up to where it finishes: the one every dialect can tell.
fn text(deltas: &[Delta]) -> String {
    let mut text = String::new();
    for delta in deltas {
        if let Delta::Text { choice: 0, text: piece } = delta {
            text.push_str(piece);
        } else if matches!(delta, Delta::Finish { choice: 0, .. } | Delta::End) {
            break;
        }
    }
    text
}

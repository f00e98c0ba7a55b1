//! Answers said in one dialect and read back, whole and streamed; and anything at all from a provider.

#![expect(clippy::unwrap_used, reason = "what an encoder writes must be readable, or the test fails")]

use bytes::Bytes;
use llm::chat::{Block, ChatReply, Choice, Delta, Finish};
use llm::dialect::{Dialect, StreamOptions};
use llm::fault::{Fault, FaultKind};
use llm::sse;
use llm::transcode::{Collector, deltas_of};
use llm::usage::Usage;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

const DIALECTS: [Dialect; 2] = [Dialect::OpenAiChat, Dialect::AnthropicMessages];

fn stream_of(dialect: Dialect, deltas: &[Delta]) -> Vec<u8> {
    let mut encoder = dialect.stream_encoder(StreamOptions { include_usage: true, input_estimate: 1 });
    let mut out = Vec::new();
    for delta in deltas {
        encoder.delta(delta, &mut out);
    }
    encoder.finish(&mut out);
    out
}

/// The events of a stream that comes in chunks of `length` bytes.
fn events_of(stream: &[u8], length: usize) -> Vec<sse::Event> {
    let mut decoder = sse::Decoder::new(1 << 20);
    let mut events = Vec::new();
    for chunk in stream.chunks(length) {
        decoder.feed(Bytes::copy_from_slice(chunk));
        while let Some(event) = decoder.next().unwrap() {
            events.push(event);
        }
    }
    assert!(decoder.remainder_is_empty());
    events
}

fn deltas_of_stream(dialect: Dialect, stream: &[u8], length: usize) -> Vec<Delta> {
    let mut decoder = dialect.stream_decoder();
    events_of(stream, length).iter().flat_map(|event| decoder.event(event).unwrap()).collect()
}

fn collect(deltas: &[Delta]) -> Collector {
    let mut collector = Collector::new();
    for delta in deltas {
        collector.add(delta);
    }
    collector
}

/// An answer both dialects can say without a loss: text, then calls of tools.
fn reply() -> impl Strategy<Value = ChatReply> {
    let arguments = vec(("[a-z]{1,4}", "(?s).{0,6}"), 0..3)
        .prop_map(|fields| Value::Object(fields.into_iter().map(|(name, value)| (name, json!(value))).collect()));
    let call = ("[a-zA-Z0-9_-]{1,8}", "[a-z]{1,8}", arguments);
    let usage = option::of((0..1_000_000u64, 0..1_000_000u64, 0..1_000_000u64));
    (option::of("(?s).{1,40}"), vec(call, 0..4), any::<bool>(), usage).prop_map(|(text, calls, length, usage)| {
        let finish = match (length, calls.is_empty()) {
            (true, _) => Finish::Length,
            (false, true) => Finish::Stop,
            (false, false) => Finish::ToolUse,
        };
        let text = text.map(|text| Block::Text { text, cache_control: None });
        let calls = calls.into_iter().enumerate().map(|(n, (id, name, arguments))| Block::ToolUse {
            id: format!("{id}{n}"),
            name,
            arguments: arguments.to_string(),
        });
        let usage = usage.map(|(fresh, cached_input, output)| Usage {
            input: fresh + cached_input,
            cached_input,
            output,
            ..Usage::default()
        });
        ChatReply {
            id: "id-1".to_owned(),
            model: "model-1".to_owned(),
            created: Some(1_700_000_000),
            choices: vec![Choice {
                blocks: text.into_iter().chain(calls).collect(),
                finish: Some(finish),
                stop_sequence: None,
            }],
            usage,
        }
    })
}

/// What every dialect tells of an answer.
fn told(mut reply: ChatReply) -> ChatReply {
    reply.created = None;
    reply.usage = None;
    reply
}

fn word() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "a", "{", "}", "{\"a\":", "\"x\"", "{}", "\\", "\n", "ö", "END"])
        .prop_map(str::to_owned)
}

/// Steps in no order any provider keeps.
fn delta() -> impl Strategy<Value = Delta> {
    let choice = || prop_oneof![9 => Just(0u32), 1 => Just(1u32)];
    let fault = Fault {
        kind: FaultKind::Server,
        status: None,
        message: String::new(),
        code: None,
        error_type: None,
        param: None,
    };
    prop_oneof![
        Just(Delta::Start { id: "i".into(), model: "m".into(), created: None }),
        (choice(), word()).prop_map(|(choice, text)| Delta::Text { choice, text }),
        (choice(), word()).prop_map(|(choice, text)| Delta::Refusal { choice, text }),
        (choice(), word()).prop_map(|(choice, text)| Delta::Thinking { choice, text }),
        (choice(), word()).prop_map(|(choice, signature)| Delta::ThinkingSignature { choice, signature }),
        (choice(), 0..3u32, word(), word()).prop_map(|(choice, tool, id, name)| Delta::ToolStart {
            choice,
            tool,
            id,
            name
        }),
        (choice(), 0..4u32, word()).prop_map(|(choice, tool, fragment)| Delta::ToolArguments {
            choice,
            tool,
            fragment
        }),
        choice().prop_map(|choice| Delta::Finish { choice, reason: Finish::Stop, stop_sequence: None }),
        Just(Delta::Usage(Usage { input: 3, output: 4, ..Usage::default() })),
        (choice(), word()).prop_map(|(choice, word)| Delta::Other {
            choice,
            dialect: "anthropic_messages".into(),
            value: json!({ "type": "redacted_thinking", "data": word }),
        }),
        Just(Delta::End),
        Just(Delta::Ping),
        Just(Delta::Fault(fault)),
    ]
}

/// Follows an Anthropic stream as the official SDKs do, and is stricter: `message_start` first, blocks one at a time and
/// counted, each with only its own kind of delta, `message_delta` and `message_stop` last.
fn follow(stream: &[u8]) -> Result<(), String> {
    let mut open: Option<String> = None;
    let mut started = 0u64;
    let mut names: Vec<String> = Vec::new();
    for event in events_of(stream, 64) {
        let data: Value = serde_json::from_slice(&event.data).unwrap();
        let name = data["type"].as_str().unwrap().to_owned();
        if event.name.as_deref() != Some(name.as_bytes()) {
            return Err(format!("the event of {name} has another name"));
        }
        if name == "ping" {
            continue;
        }
        let block = data["content_block"]["type"].as_str();
        let piece = data["delta"]["type"].as_str();
        match (name.as_str(), open.as_deref()) {
            ("message_start", None) if names.is_empty() => {}
            (_, _) if names.is_empty() => return Err(format!("{name} comes first")),
            ("content_block_start", None) if data["index"] == started => open = block.map(str::to_owned),
            ("content_block_delta", Some(kind)) if data["index"] == started => match (kind, piece) {
                ("text", Some("text_delta"))
                | ("thinking", Some("thinking_delta" | "signature_delta"))
                | ("tool_use", Some("input_json_delta")) => {}
                (kind, piece) => return Err(format!("{piece:?} in {kind}")),
            },
            ("content_block_stop", Some(_)) if data["index"] == started => {
                open = None;
                started += 1;
            }
            ("message_delta", None) if data["usage"]["output_tokens"].is_u64() => {}
            ("message_stop", None) if names.last().is_some_and(|last| last == "message_delta") => {}
            (name, open) => return Err(format!("{name} while {open:?} is open: {data}")),
        }
        names.push(name);
    }
    let ends = names.iter().filter(|name| *name == "message_stop").count();
    if ends == 1 && names.last().is_some_and(|last| last == "message_stop") {
        Ok(())
    } else {
        Err(format!("{names:?}"))
    }
}

proptest! {
    /// A whole answer said in a dialect is the answer.
    #[test]
    fn whole_answers_survive_a_dialect(reply in reply()) {
        for dialect in DIALECTS {
            let back = dialect.decode_reply(&dialect.encode_reply(&reply, &reply.model)).unwrap();
            prop_assert_eq!(told(back.clone()), told(reply.clone()), "{:?}", dialect);
            if reply.usage.is_some() {
                prop_assert_eq!(back.usage, reply.usage, "{:?}", dialect);
            }
        }
    }

    /// A streamed answer said in a dialect, cut into any chunks, is the answer.
    #[test]
    fn streamed_answers_survive_a_dialect(reply in reply(), length in 1usize..200) {
        for dialect in DIALECTS {
            let stream = stream_of(dialect, &deltas_of(&reply));

            let deltas = deltas_of_stream(dialect, &stream, length);

            prop_assert_eq!(deltas.last(), Some(&Delta::End));
            let collector = collect(&deltas);
            prop_assert!(collector.whole());
            if reply.usage.is_some() {
                prop_assert_eq!(collector.usage(), reply.usage, "{:?}", dialect);
            }
            prop_assert_eq!(told(collector.into_reply()), told(reply.clone()), "{:?}", dialect);
        }
    }

    /// From one dialect to the other and back, step by step, nothing is lost and nothing is said twice.
    #[test]
    fn streams_survive_both_dialects(reply in reply()) {
        for (there, back) in [(DIALECTS[0], DIALECTS[1]), (DIALECTS[1], DIALECTS[0])] {
            let stream = stream_of(there, &deltas_of(&reply));
            let again = stream_of(back, &deltas_of_stream(there, &stream, 7));

            let collector = collect(&deltas_of_stream(back, &again, 11));

            prop_assert!(collector.whole());
            prop_assert_eq!(told(collector.into_reply()), told(reply.clone()));
        }
    }

    /// Whatever the steps, the stream is one the official SDKs can follow.
    #[test]
    fn an_anthropic_stream_is_always_in_order(deltas in vec(delta(), 0..40)) {
        let stream = stream_of(Dialect::AnthropicMessages, &deltas);
        prop_assert_eq!(follow(&stream), Ok(()), "{}", String::from_utf8_lossy(&stream));
    }

    /// The same steps give the same bytes, and nothing panics.
    #[test]
    fn encoders_are_deterministic(deltas in vec(delta(), 0..40)) {
        for dialect in DIALECTS {
            prop_assert_eq!(stream_of(dialect, &deltas), stream_of(dialect, &deltas));
        }
    }

    /// Nothing a provider sends may panic.
    #[test]
    fn any_bytes_of_a_provider_are_read_or_refused(bytes in vec(any::<u8>(), 0..120), status in 200u16..600) {
        for dialect in DIALECTS {
            if let Err(fault) = dialect.decode_reply(&bytes) {
                prop_assert_eq!(fault.kind, FaultKind::Malformed);
            }
            prop_assert!(dialect.decode_error(status, &bytes).message.len() <= 2048);
            let event = sse::Event { data: Bytes::from(bytes.clone()), ..sse::Event::default() };
            let _ = dialect.stream_decoder().event(&event);
        }
    }

    /// Nor may JSON with the right names in the wrong places.
    #[test]
    fn any_json_of_a_provider_is_read_or_refused(values in vec(json_value(), 1..8)) {
        for dialect in DIALECTS {
            let mut decoder = dialect.stream_decoder();
            let mut collector = Collector::new();
            for value in &values {
                let body = value.to_string();
                let _ = dialect.decode_reply(body.as_bytes());
                let _ = dialect.decode_request(body.as_bytes());
                let _ = dialect.decode_error(400, body.as_bytes());
                let event = sse::Event { data: Bytes::from(body), ..sse::Event::default() };
                for delta in decoder.event(&event).unwrap_or_default() {
                    collector.add(&delta);
                }
            }
            let _ = dialect.encode_reply(&collector.into_reply(), "m");
        }
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec![
        "type",
        "index",
        "delta",
        "message",
        "content_block",
        "usage",
        "error",
        "text",
        "partial_json",
        "thinking",
        "signature",
        "stop_reason",
        "id",
        "model",
        "content",
        "input",
        "name",
        "choices",
        "finish_reason",
        "tool_calls",
        "function",
        "arguments",
        "messages",
        "role",
        "max_tokens",
        "input_tokens",
        "prompt_tokens",
        "tools",
        "source",
    ]);
    let word = prop::sample::select(vec![
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
        "message",
        "text",
        "tool_use",
        "thinking",
        "server_tool_use",
        "text_delta",
        "assistant",
        "user",
        "image",
        "base64",
        "{}",
        "",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..3u64).prop_map(Value::from),
        word.prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((name.clone(), inner), 0..6).prop_map(|fields| Value::Object(
                fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            )),
        ]
    })
}

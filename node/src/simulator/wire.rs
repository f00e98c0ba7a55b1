//! An [`Answer`] as bytes of either dialect: whole, as a stream, or as an error.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use super::answer::{Answer, Call, Choice, Finish};
use super::question::{Dialect, Question};
use super::tokens;

/// What a bill and a reply say was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All input, cached and written to the cache included.
    pub input: u64,
    pub cached: u64,
    pub cache_write: u64,
    pub output: u64,
    pub reasoning: u64,
}

/// What is said round an answer.
#[derive(Debug)]
pub struct Envelope<'a> {
    pub sequence: u64,
    pub created: Duration,
    pub usage: Usage,
    /// Whether usage is told at all.
    pub tells_usage: bool,
    pub question: &'a Question,
}

/// A stream in one piece of memory, cut where one event ends and the next begins.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
    /// Where each event ends, and the tokens it carries.
    ends: Vec<(usize, u64)>,
}

impl Frames {
    fn data(&mut self, tokens: u64, event: &impl Serialize) {
        self.bytes.extend_from_slice(b"data: ");
        write(&mut self.bytes, event);
        self.end(tokens);
    }

    fn named(&mut self, tokens: u64, name: &str, event: &impl Serialize) {
        self.bytes.extend_from_slice(b"event: ");
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(b'\n');
        self.data(tokens, event);
    }

    fn end(&mut self, tokens: u64) {
        self.bytes.extend_from_slice(b"\n\n");
        self.ends.push((self.bytes.len(), tokens));
    }

    /// The events one by one, each with its tokens.
    pub fn into_events(self) -> Vec<(Bytes, u64)> {
        let bytes = Bytes::from(self.bytes);
        let mut start = 0;
        let mut events = Vec::with_capacity(self.ends.len());
        for (end, tokens) in self.ends {
            events.push((bytes.slice(start..end), tokens));
            start = end;
        }
        events
    }
}

/// JSON into memory, which cannot fail for the values of this file.
fn write(out: &mut Vec<u8>, value: &impl Serialize) {
    if let Err(error) = serde_json::to_writer(out, value) {
        tracing::error!(%error, "the simulator could not render JSON");
    }
}

fn bytes_of(value: &impl Serialize) -> Bytes {
    let mut out = Vec::with_capacity(512);
    write(&mut out, value);
    Bytes::from(out)
}

/// The whole reply.
pub fn reply(envelope: &Envelope<'_>, answer: &Answer) -> Bytes {
    match envelope.question.dialect {
        Dialect::OpenAi => openai_reply(envelope, answer),
        Dialect::Anthropic => anthropic_reply(envelope, answer),
    }
}

/// The reply as a stream.
pub fn stream(envelope: &Envelope<'_>, answer: &Answer) -> Frames {
    let mut frames = Frames::default();
    match envelope.question.dialect {
        Dialect::OpenAi => openai_stream(envelope, answer, &mut frames),
        Dialect::Anthropic => anthropic_stream(envelope, answer, &mut frames),
    }
    frames
}

/// An error's body, as the API of `dialect` says it.
pub fn error(dialect: Dialect, status: u16, message: &str, param: Option<&str>) -> Bytes {
    match dialect {
        Dialect::OpenAi => {
            let (kind, code) = openai_kind(status);
            bytes_of(&json!({ "error": { "message": message, "type": kind, "param": param, "code": code } }))
        }
        Dialect::Anthropic => bytes_of(&json!({
            "type": "error",
            "error": { "type": anthropic_kind(status), "message": message },
            "request_id": "req_simulated",
        })),
    }
}

/// An error in the middle of a stream.
pub fn error_event(dialect: Dialect, message: &str) -> Bytes {
    let mut frames = Frames::default();
    match dialect {
        Dialect::OpenAi => {
            let error = json!({ "message": message, "type": "server_error", "param": null, "code": null });
            frames.data(0, &json!({ "error": error }));
        }
        Dialect::Anthropic => {
            let error = json!({ "type": "overloaded_error", "message": message });
            frames.named(0, "error", &json!({ "type": "error", "error": error }));
        }
    }
    Bytes::from(frames.bytes)
}

fn openai_kind(status: u16) -> (&'static str, Option<&'static str>) {
    match status {
        401 => ("invalid_request_error", Some("invalid_api_key")),
        402 => ("insufficient_quota", Some("insufficient_quota")),
        403 => ("permission_denied", Some("unsupported_country_region_territory")),
        404 => ("invalid_request_error", Some("model_not_found")),
        429 => ("requests", Some("rate_limit_exceeded")),
        500.. => ("server_error", None),
        _other => ("invalid_request_error", None),
    }
}

fn anthropic_kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        529 => "overloaded_error",
        500.. => "api_error",
        _other => "invalid_request_error",
    }
}

#[derive(Serialize)]
struct OpenAiReply<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<OpenAiChoice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
    system_fingerprint: &'static str,
}

#[derive(Serialize)]
struct OpenAiChoice<'a> {
    index: usize,
    message: OpenAiMessage<'a>,
    logprobs: (),
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct OpenAiMessage<'a> {
    role: &'static str,
    content: Option<&'a str>,
    refusal: (),
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Value>,
}

fn openai_id(envelope: &Envelope<'_>) -> String {
    format!("chatcmpl-sim{:012}", envelope.sequence)
}

fn openai_reply(envelope: &Envelope<'_>, answer: &Answer) -> Bytes {
    let choices = answer.choices.iter().enumerate().map(|(index, choice)| {
        let content = choice.calls.is_empty().then_some(choice.text.as_str());
        let tool_calls = choice.calls.iter().map(|call| openai_call(call, &call.arguments.to_string())).collect();
        let message = OpenAiMessage { role: "assistant", content, refusal: (), tool_calls };
        OpenAiChoice { index, message, logprobs: (), finish_reason: openai_finish(&choice.finish) }
    });
    bytes_of(&OpenAiReply {
        id: openai_id(envelope),
        object: "chat.completion",
        created: envelope.created.as_secs(),
        model: &envelope.question.model,
        choices: choices.collect(),
        usage: envelope.tells_usage.then(|| openai_usage(envelope.usage)),
        system_fingerprint: "fp_simulated",
    })
}

fn openai_call(call: &Call, arguments: &str) -> Value {
    let function = json!({ "name": call.name, "arguments": arguments });
    json!({ "id": format!("call_{:016x}", call.id), "type": "function", "function": function })
}

fn openai_finish(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::StopSequence(_) => "stop",
        Finish::Length => "length",
        Finish::ToolCalls => "tool_calls",
    }
}

fn openai_usage(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": { "cached_tokens": usage.cached, "audio_tokens": 0 },
        "completion_tokens_details": { "reasoning_tokens": usage.reasoning, "audio_tokens": 0 },
    })
}

#[derive(Serialize)]
struct OpenAiChunk<'a, D> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: [OpenAiDelta<D>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<()>,
}

#[derive(Serialize)]
struct OpenAiDelta<D> {
    index: usize,
    delta: D,
    logprobs: (),
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Text<'a> {
    content: &'a str,
}

fn openai_stream(envelope: &Envelope<'_>, answer: &Answer, frames: &mut Frames) {
    let id = openai_id(envelope);
    let tells = envelope.tells_usage && envelope.question.include_usage;
    let chunks = OpenAiChunks { id: &id, envelope, usage: tells.then_some(()) };
    for (index, choice) in answer.choices.iter().enumerate() {
        let thought = choice.thinking.map_or(0, tokens::count);
        let content = choice.calls.is_empty().then_some("");
        let start = json!({ "role": "assistant", "content": content, "refusal": null });
        frames.data(thought, &chunks.one(index, start, None));
    }
    // Choices are written side by side, token by token, as the real API does.
    let mut writing: Vec<_> = answer.choices.iter().map(|choice| tokens::pieces(&choice.text)).collect();
    let mut wrote = true;
    while wrote {
        wrote = false;
        for (index, pieces) in writing.iter_mut().enumerate() {
            if let Some(content) = pieces.next() {
                frames.data(1, &chunks.one(index, Text { content }, None));
                wrote = true;
            }
        }
    }
    for (index, choice) in answer.choices.iter().enumerate() {
        for (place, call) in choice.calls.iter().enumerate() {
            let mut head = openai_call(call, "");
            head["index"] = json!(place);
            frames.data(tokens::count(&call.name), &chunks.one(index, json!({ "tool_calls": [head] }), None));
            for piece in tokens::pieces(&call.arguments.to_string()) {
                let part = json!({ "index": place, "function": { "arguments": piece } });
                frames.data(1, &chunks.one(index, json!({ "tool_calls": [part] }), None));
            }
        }
        frames.data(0, &chunks.one(index, json!({}), Some(openai_finish(&choice.finish))));
    }
    if tells {
        let last = OpenAiReply {
            id: id.clone(),
            object: "chat.completion.chunk",
            created: envelope.created.as_secs(),
            model: &envelope.question.model,
            choices: Vec::new(),
            usage: Some(openai_usage(envelope.usage)),
            system_fingerprint: "fp_simulated",
        };
        frames.data(0, &last);
    }
    frames.bytes.extend_from_slice(b"data: [DONE]");
    frames.end(0);
}

/// What all chunks of a stream share.
struct OpenAiChunks<'a> {
    id: &'a str,
    envelope: &'a Envelope<'a>,
    usage: Option<()>,
}

impl OpenAiChunks<'_> {
    fn one<D>(&self, index: usize, delta: D, finish_reason: Option<&'static str>) -> OpenAiChunk<'_, D> {
        OpenAiChunk {
            id: self.id,
            object: "chat.completion.chunk",
            created: self.envelope.created.as_secs(),
            model: &self.envelope.question.model,
            system_fingerprint: "fp_simulated",
            choices: [OpenAiDelta { index, delta, logprobs: (), finish_reason }],
            usage: self.usage,
        }
    }
}

#[derive(Serialize)]
struct AnthropicReply<'a> {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    role: &'static str,
    model: &'a str,
    content: Vec<Value>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
}

/// Anthropic answers once, whatever `n` says.
fn only(answer: &Answer) -> Option<&Choice> {
    answer.choices.first()
}

fn anthropic_message<'a>(envelope: &'a Envelope<'_>, output: u64) -> AnthropicReply<'a> {
    AnthropicReply {
        id: format!("msg_sim{:012}", envelope.sequence),
        kind: "message",
        role: "assistant",
        model: &envelope.question.model,
        content: Vec::new(),
        stop_reason: None,
        stop_sequence: None,
        usage: envelope.tells_usage.then(|| anthropic_usage(envelope.usage, output)),
    }
}

fn anthropic_reply(envelope: &Envelope<'_>, answer: &Answer) -> Bytes {
    let mut message = anthropic_message(envelope, envelope.usage.output);
    if let Some(choice) = only(answer) {
        (message.stop_reason, message.stop_sequence) = anthropic_stop(&choice.finish);
        for (block, _deltas) in anthropic_blocks(choice) {
            message.content.push(block);
        }
    }
    bytes_of(&message)
}

fn anthropic_usage(usage: Usage, output: u64) -> Value {
    json!({
        "input_tokens": usage.input - usage.cached - usage.cache_write,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": output,
        "service_tier": "standard",
    })
}

fn anthropic_stop(finish: &Finish) -> (Option<&'static str>, Option<&str>) {
    match finish {
        Finish::Stop => (Some("end_turn"), None),
        Finish::StopSequence(sequence) => (Some("stop_sequence"), Some(sequence)),
        Finish::Length => (Some("max_tokens"), None),
        Finish::ToolCalls => (Some("tool_use"), None),
    }
}

/// The content blocks of an answer, each with the deltas that build it and their tokens.
fn anthropic_blocks(choice: &Choice) -> Vec<(Value, Vec<(Value, u64)>)> {
    let mut blocks = Vec::new();
    if let Some(thought) = choice.thinking {
        let mut deltas: Vec<_> =
            tokens::pieces(thought).map(|piece| (json!({ "type": "thinking_delta", "thinking": piece }), 1)).collect();
        deltas.push((json!({ "type": "signature_delta", "signature": "c2ltdWxhdGVk" }), 0));
        blocks.push((json!({ "type": "thinking", "thinking": thought, "signature": "c2ltdWxhdGVk" }), deltas));
    }
    if choice.calls.is_empty() {
        let delta = |piece| (json!({ "type": "text_delta", "text": piece }), 1);
        blocks
            .push((json!({ "type": "text", "text": choice.text }), tokens::pieces(&choice.text).map(delta).collect()));
    }
    for call in &choice.calls {
        let mut deltas = vec![(json!({ "type": "input_json_delta", "partial_json": "" }), tokens::count(&call.name))];
        for piece in tokens::pieces(&call.arguments.to_string()) {
            deltas.push((json!({ "type": "input_json_delta", "partial_json": piece }), 1));
        }
        let id = format!("toolu_{:016x}", call.id);
        blocks.push((json!({ "type": "tool_use", "id": id, "name": call.name, "input": call.arguments }), deltas));
    }
    blocks
}

fn anthropic_stream(envelope: &Envelope<'_>, answer: &Answer, frames: &mut Frames) {
    let start = anthropic_message(envelope, 1);
    frames.named(0, "message_start", &json!({ "type": "message_start", "message": start }));
    let Some(choice) = only(answer) else { return };
    for (index, (block, deltas)) in anthropic_blocks(choice).into_iter().enumerate() {
        let empty = anthropic_empty(block);
        let start = json!({ "type": "content_block_start", "index": index, "content_block": empty });
        frames.named(0, "content_block_start", &start);
        if index == 0 {
            frames.named(0, "ping", &json!({ "type": "ping" }));
        }
        for (delta, tokens) in deltas {
            let event = json!({ "type": "content_block_delta", "index": index, "delta": delta });
            frames.named(tokens, "content_block_delta", &event);
        }
        frames.named(0, "content_block_stop", &json!({ "type": "content_block_stop", "index": index }));
    }
    let (stop_reason, stop_sequence) = anthropic_stop(&choice.finish);
    let mut end = json!({
        "type": "message_delta",
        "delta": { "stop_reason": stop_reason, "stop_sequence": stop_sequence },
    });
    if envelope.tells_usage {
        end["usage"] = json!({ "output_tokens": envelope.usage.output });
    }
    frames.named(0, "message_delta", &end);
    frames.named(0, "message_stop", &json!({ "type": "message_stop" }));
}

/// A block as it starts: nothing in it yet.
fn anthropic_empty(mut block: Value) -> Value {
    for field in ["text", "thinking", "signature"] {
        if block.get(field).is_some() {
            block[field] = json!("");
        }
    }
    if block.get("input").is_some() {
        block["input"] = json!({});
    }
    block
}

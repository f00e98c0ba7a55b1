//! Steps to a stream of this API: one block at a time, each started, told and stopped.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::block::tool_id;
use super::{Counts, NAME, stop_reason};
use crate::chat::{Delta, Finish};
use crate::dialect::StreamOptions;
use crate::json::{write, write_string};
use crate::tokens;
use crate::usage::Usage;

/// Calls that wait for their turn, and the bytes of their arguments. Beyond it the open call is taken to be over.
const WAITING_MAX: usize = 64;
const WAITING_BYTES_MAX: usize = 1 << 20;

/// Writes one stream.
#[derive(Debug, Default)]
pub struct Encoder {
    options: StreamOptions,
    started: bool,
    open: Option<Open>,
    /// Of the block that is open, or else of the next one.
    index: u64,
    /// Calls that began while another one was not over: other APIs tell several at once.
    waiting: VecDeque<Call>,
    called: bool,
    finish: Option<Finish>,
    stop_sequence: Option<String>,
    usage: Option<Usage>,
    output_bytes: u64,
}

#[derive(Debug)]
enum Open {
    Text,
    Thinking,
    Call { tool: u32, brackets: Brackets },
}

#[derive(Debug)]
struct Call {
    tool: u32,
    id: String,
    name: String,
    arguments: String,
}

impl Encoder {
    pub fn new(options: StreamOptions) -> Self {
        Self { options, ..Self::default() }
    }

    /// Choices after the first are left out: this API knows one. A fault writes nothing: the caller does, with
    /// [`super::encode_stream_error`].
    pub fn delta(&mut self, delta: &Delta, out: &mut Vec<u8>) {
        match delta {
            Delta::Start { id, model, .. } => self.start(id, model, out),
            Delta::Text { choice: 0, text } | Delta::Refusal { choice: 0, text } => self.text(text, out),
            Delta::Thinking { choice: 0, text } => self.thinking(text, out),
            Delta::ThinkingSignature { choice: 0, signature } => self.signature(signature, out),
            Delta::ToolStart { choice: 0, tool, id, name } => self.call(*tool, id, name, out),
            Delta::ToolArguments { choice: 0, tool, fragment } => self.arguments(*tool, fragment, out),
            Delta::Other { choice: 0, dialect, value } if dialect == NAME => self.other(value, out),
            Delta::Finish { choice: 0, reason, stop_sequence } => {
                self.stop_all(out);
                self.finish = Some(reason.clone());
                self.stop_sequence.clone_from(stop_sequence);
            }
            Delta::Usage(usage) => self.usage = Some(*usage),
            Delta::Ping => out.extend_from_slice(b"event: ping\ndata: {\"type\":\"ping\"}\n\n"),
            Delta::Text { .. }
            | Delta::Refusal { .. }
            | Delta::Thinking { .. }
            | Delta::ThinkingSignature { .. }
            | Delta::ToolStart { .. }
            | Delta::ToolArguments { .. }
            | Delta::Other { .. }
            | Delta::Finish { .. }
            | Delta::End
            | Delta::Fault(_) => {}
        }
    }

    /// The last two events. Where the provider counted nothing, the usage is estimated.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.stop_all(out);
        let estimate = Usage {
            input: self.options.input_estimate,
            output: tokens::output_estimate(self.output_bytes),
            ..Usage::default()
        };
        let reason = self.finish.as_ref().map(|reason| stop_reason(reason, self.stop_sequence.as_deref(), self.called));
        let event = json!({
            "type": "message_delta",
            "delta": { "stop_reason": reason, "stop_sequence": self.stop_sequence },
            "usage": Counts::of(&self.usage.unwrap_or(estimate)),
        });
        self.event("message_delta", &event, out);
        self.event("message_stop", &json!({ "type": "message_stop" }), out);
    }

    /// Once; a provider that says it again is not heard.
    fn start(&mut self, id: &str, model: &str, out: &mut Vec<u8>) {
        if self.started {
            return;
        }
        self.started = true;
        let usage = self.usage.unwrap_or(Usage { input: self.options.input_estimate, ..Usage::default() });
        let message = json!({
            "id": id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": Counts::of(&usage),
        });
        self.event("message_start", &json!({ "type": "message_start", "message": message }), out);
    }

    fn text(&mut self, text: &str, out: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        if !matches!(self.open, Some(Open::Text)) {
            self.stop_all(out);
            self.begin(Open::Text, &json!({ "type": "text", "text": "" }), out);
        }
        self.piece("text_delta", "text", text, out);
    }

    fn thinking(&mut self, text: &str, out: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        self.begin_thinking(out);
        self.piece("thinking_delta", "thinking", text, out);
    }

    /// A signature ends its block.
    fn signature(&mut self, signature: &str, out: &mut Vec<u8>) {
        self.begin_thinking(out);
        self.piece("signature_delta", "signature", signature, out);
        self.stop(out);
    }

    fn begin_thinking(&mut self, out: &mut Vec<u8>) {
        if !matches!(self.open, Some(Open::Thinking)) {
            self.stop_all(out);
            self.begin(Open::Thinking, &json!({ "type": "thinking", "thinking": "", "signature": "" }), out);
        }
    }

    fn call(&mut self, tool: u32, id: &str, name: &str, out: &mut Vec<u8>) {
        let call = Call { tool, id: id.to_owned(), name: name.to_owned(), arguments: String::new() };
        self.waiting.push_back(call);
        self.next_calls(out);
    }

    fn arguments(&mut self, tool: u32, fragment: &str, out: &mut Vec<u8>) {
        match &mut self.open {
            Some(Open::Call { tool: open, brackets }) if *open == tool && !fragment.is_empty() => {
                brackets.read(fragment);
                self.piece("input_json_delta", "partial_json", fragment, out);
            }
            _ => {
                if let Some(call) = self.waiting.iter_mut().find(|call| call.tool == tool) {
                    call.arguments.push_str(fragment);
                }
            }
        }
        self.next_calls(out);
    }

    /// Lets waiting calls have their turn while the open block is over.
    fn next_calls(&mut self, out: &mut Vec<u8>) {
        while !self.waiting.is_empty() {
            let over = match &self.open {
                Some(Open::Call { brackets, .. }) => brackets.closed(),
                Some(Open::Text | Open::Thinking) | None => true,
            };
            let bytes: usize = self.waiting.iter().map(|call| call.arguments.len()).sum();
            if !over && bytes <= WAITING_BYTES_MAX && self.waiting.len() <= WAITING_MAX {
                return;
            }
            self.next_call(out);
        }
    }

    fn next_call(&mut self, out: &mut Vec<u8>) {
        let Some(call) = self.waiting.pop_front() else { return };
        self.stop(out);
        let mut brackets = Brackets::default();
        brackets.read(&call.arguments);
        let block = json!({ "type": "tool_use", "id": tool_id(&call.id), "name": call.name, "input": {} });
        self.begin(Open::Call { tool: call.tool, brackets }, &block, out);
        self.called = true;
        self.output_bytes = self.output_bytes.saturating_add(call.name.len() as u64);
        if !call.arguments.is_empty() {
            self.piece("input_json_delta", "partial_json", &call.arguments, out);
        }
    }

    /// A block only this API knows comes whole.
    fn other(&mut self, block: &Value, out: &mut Vec<u8>) {
        self.stop_all(out);
        self.event(
            "content_block_start",
            &json!({ "type": "content_block_start", "index": self.index, "content_block": block }),
            out,
        );
        self.stop_block(out);
    }

    fn begin(&mut self, open: Open, block: &Value, out: &mut Vec<u8>) {
        let event = json!({ "type": "content_block_start", "index": self.index, "content_block": block });
        self.event("content_block_start", &event, out);
        self.open = Some(open);
    }

    /// The hot one, written by hand.
    fn piece(&mut self, kind: &str, field: &str, text: &str, out: &mut Vec<u8>) {
        self.output_bytes = self.output_bytes.saturating_add(text.len() as u64);
        out.extend_from_slice(b"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":");
        write(&self.index, out);
        for word in [",\"delta\":{\"type\":\"", kind, "\",\"", field, "\":"] {
            out.extend_from_slice(word.as_bytes());
        }
        write_string(text, out);
        out.extend_from_slice(b"}}\n\n");
    }

    /// Stops the open block and tells the calls that wait, as far as they came.
    fn stop_all(&mut self, out: &mut Vec<u8>) {
        while !self.waiting.is_empty() {
            self.next_call(out);
        }
        self.stop(out);
    }

    fn stop(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            self.stop_block(out);
        }
    }

    fn stop_block(&mut self, out: &mut Vec<u8>) {
        self.event("content_block_stop", &json!({ "type": "content_block_stop", "index": self.index }), out);
        self.index = self.index.saturating_add(1);
    }

    /// Whatever comes first, `message_start` stands before it.
    fn event(&mut self, name: &str, data: &Value, out: &mut Vec<u8>) {
        if !self.started && name != "message_start" {
            self.start("", "", out);
        }
        for word in ["event: ", name, "\ndata: "] {
            out.extend_from_slice(word.as_bytes());
        }
        write(data, out);
        out.extend_from_slice(b"\n\n");
    }
}

/// Whether the JSON object that arrives in fragments is over.
#[derive(Debug, Default)]
struct Brackets {
    depth: u64,
    begun: bool,
    in_string: bool,
    escaped: bool,
}

impl Brackets {
    fn read(&mut self, fragment: &str) {
        for byte in fragment.bytes() {
            match (self.in_string, byte) {
                (true, _) if self.escaped => self.escaped = false,
                (true, b'\\') => self.escaped = true,
                (_, b'"') => self.in_string = !self.in_string,
                (false, b'{' | b'[') => {
                    self.depth = self.depth.saturating_add(1);
                    self.begun = true;
                }
                (false, b'}' | b']') => self.depth = self.depth.saturating_sub(1),
                (true | false, _) => {}
            }
        }
    }

    fn closed(&self) -> bool {
        self.begun && self.depth == 0 && !self.in_string
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(tool: u32) -> Delta {
        Delta::ToolStart { choice: 0, tool, id: format!("call_{tool}"), name: "f".into() }
    }

    fn arguments(tool: u32, fragment: &str) -> Delta {
        Delta::ToolArguments { choice: 0, tool, fragment: fragment.into() }
    }

    fn written(encoder: &mut Encoder, deltas: &[Delta]) -> String {
        let mut out = Vec::new();
        for delta in deltas {
            encoder.delta(delta, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_call_waits_until_the_one_before_is_over() {
        let mut encoder = Encoder::new(StreamOptions::default());
        let before = written(&mut encoder, &[call(0), arguments(0, "{\"a\": \"}"), call(1), arguments(1, "{}")]);
        assert!(!before.contains("call_1"));

        let after = written(&mut encoder, &[arguments(0, "\"}")]);

        let told: Vec<&str> = after.lines().filter_map(|line| line.strip_prefix("event: content_block_")).collect();
        assert_eq!(told, ["delta", "stop", "start", "delta"]);
    }

    /// Calls that wait are told at the end, even if the one before never was over.
    #[test]
    fn a_waiting_call_is_not_lost() {
        let mut encoder = Encoder::new(StreamOptions::default());
        written(&mut encoder, &[call(0), call(1), arguments(1, "{\"b\":1}")]);
        let mut end = Vec::new();
        encoder.finish(&mut end);
        assert!(String::from_utf8(end).unwrap().contains("{\\\"b\\\":1}"));
    }

    #[test]
    fn waiting_calls_are_bounded() {
        let mut encoder = Encoder::new(StreamOptions::default());
        for tool in 0..200 {
            written(&mut encoder, &[call(tool)]);
        }
        assert_eq!(encoder.waiting.len(), WAITING_MAX);
        written(&mut encoder, &[arguments(199, &" ".repeat(WAITING_BYTES_MAX + 1))]);
        assert!(encoder.waiting.is_empty());
    }

    #[test]
    fn a_faulty_or_second_start_is_not_written() {
        let mut encoder = Encoder::new(StreamOptions { include_usage: false, input_estimate: 7 });
        let start = Delta::Start { id: "msg".into(), model: "m".into(), created: None };
        let first = written(&mut encoder, std::slice::from_ref(&start));
        assert!(first.contains("\"input_tokens\":7"));
        assert_eq!(written(&mut encoder, &[start]), "");
    }
}

//! Anthropic's Messages API.
//!
//! What it has and others have not: a reply is a list of blocks, reasoning is signed, server-side tools run in the middle of
//! a turn, and `input_tokens` counts only what the prompt cache neither gave nor took.

mod block;
mod decode_request;
mod decode_stream;
mod encode_request;
mod encode_stream;
mod error;
mod leftovers;
mod reply;

use serde::{Deserialize, Serialize};

use crate::chat::Finish;
use crate::usage::Usage;

pub use decode_request::{decode_count_request, decode_request};
pub use decode_stream::Decoder;
pub use encode_request::encode_request;
pub use encode_stream::Encoder;
pub use error::{decode_error, encode_error, encode_stream_error};
pub use reply::{decode_reply, encode_reply};

/// As in [`crate::dialect::Dialect::name`].
const NAME: &str = "anthropic_messages";

fn finish_of(stop_reason: &str) -> Finish {
    match stop_reason {
        "end_turn" | "stop_sequence" => Finish::Stop,
        "max_tokens" | "model_context_window_exceeded" => Finish::Length,
        "tool_use" => Finish::ToolUse,
        "refusal" => Finish::Refusal,
        "pause_turn" => Finish::Pause,
        other => Finish::Other(other.to_owned()),
    }
}

/// Some providers say that they stopped where they called a tool; clients of this API only run the tool when it says so.
fn stop_reason<'a>(finish: &'a Finish, stop_sequence: Option<&str>, calls_tool: bool) -> &'a str {
    match finish {
        Finish::Stop if stop_sequence.is_some() => "stop_sequence",
        Finish::Stop if calls_tool => "tool_use",
        Finish::Stop => "end_turn",
        Finish::Length => "max_tokens",
        Finish::ToolUse => "tool_use",
        Finish::ContentFilter | Finish::Refusal => "refusal",
        Finish::Pause => "pause_turn",
        Finish::Other(reason) => reason,
    }
}

/// Usage as it is told here: the three kinds of input tokens are disjoint.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
struct Counts {
    #[serde(rename = "input_tokens")]
    input: Option<u64>,
    #[serde(rename = "cache_creation_input_tokens")]
    cache_write: Option<u64>,
    #[serde(rename = "cache_read_input_tokens")]
    cached_input: Option<u64>,
    #[serde(rename = "output_tokens")]
    output: Option<u64>,
    #[serde(rename = "output_tokens_details", skip_serializing_if = "Option::is_none")]
    output_details: Option<OutputDetails>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
struct OutputDetails {
    #[serde(rename = "thinking_tokens")]
    thinking: Option<u64>,
}

impl Counts {
    fn of(usage: &Usage) -> Self {
        let cached = usage.cached_input.saturating_add(usage.cache_write);
        Self {
            input: Some(usage.input.saturating_sub(cached)),
            cache_write: Some(usage.cache_write),
            cached_input: Some(usage.cached_input),
            output: Some(usage.output),
            output_details: (usage.reasoning > 0).then_some(OutputDetails { thinking: Some(usage.reasoning) }),
        }
    }

    /// Each count is cumulative; one that is not told again stays.
    fn and(self, newer: Self) -> Self {
        Self {
            input: newer.input.or(self.input),
            cache_write: newer.cache_write.or(self.cache_write),
            cached_input: newer.cached_input.or(self.cached_input),
            output: newer.output.or(self.output),
            output_details: newer.output_details.or(self.output_details),
        }
    }

    fn usage(self) -> Usage {
        let cached_input = self.cached_input.unwrap_or(0);
        let cache_write = self.cache_write.unwrap_or(0);
        Usage {
            input: self.input.unwrap_or(0).saturating_add(cached_input).saturating_add(cache_write),
            cached_input,
            cache_write,
            output: self.output.unwrap_or(0),
            reasoning: self.output_details.and_then(|details| details.thinking).unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_tokens_are_part_of_the_input() {
        let counts = Counts {
            input: Some(10),
            cache_write: Some(200),
            cached_input: Some(3000),
            output: Some(5),
            output_details: Some(OutputDetails { thinking: Some(2) }),
        };

        let usage = counts.usage();

        assert_eq!(usage, Usage { input: 3210, cached_input: 3000, cache_write: 200, output: 5, reasoning: 2 });
        assert_eq!(Counts::of(&usage).usage(), usage);
    }

    #[test]
    fn counts_beyond_all_measure_do_not_wrap() {
        let counts = Counts { input: Some(u64::MAX), cached_input: Some(9), ..Counts::default() };
        assert_eq!(counts.usage().input, u64::MAX);
        let usage = Usage { input: 1, cached_input: 9, ..Usage::default() };
        assert_eq!(Counts::of(&usage).input, Some(0));
    }

    #[test]
    fn a_tool_call_is_told_as_the_reason_to_stop() {
        assert_eq!(stop_reason(&Finish::Stop, None, true), "tool_use");
        assert_eq!(stop_reason(&Finish::Stop, None, false), "end_turn");
        assert_eq!(stop_reason(&Finish::Stop, Some("END"), false), "stop_sequence");
    }
}

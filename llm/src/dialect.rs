//! The dialects, dispatched by match: bytes of one API to the canonical form and back.

pub mod anthropic_messages;
pub mod compatible;
pub mod openai_chat;

use crate::chat::{ChatReply, ChatRequest, Delta};
use crate::dialect::compatible::Quirks;
use crate::fault::{ErrorBody, Fault};
use crate::sse;

/// How deep JSON from outside may nest. Deeper bodies are refused before anything recurses into them.
pub const DEPTH_MAX: usize = 64;

/// The language of an API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `POST /v1/chat/completions`.
    OpenAiChat,
    /// `POST /v1/messages`.
    AnthropicMessages,
}

impl Dialect {
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenAiChat => "openai_chat",
            Self::AnthropicMessages => "anthropic_messages",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "openai_chat" => Some(Self::OpenAiChat),
            "anthropic_messages" => Some(Self::AnthropicMessages),
            _ => None,
        }
    }

    pub fn decode_request(self, body: &[u8]) -> Result<ChatRequest, BadRequest> {
        match self {
            Self::OpenAiChat => openai_chat::decode_request(body),
            Self::AnthropicMessages => anthropic_messages::decode_request(body),
        }
    }

    /// The body of `count_tokens`: a chat's, which need not have a cap on its output.
    pub fn decode_count_request(self, body: &[u8]) -> Result<ChatRequest, BadRequest> {
        match self {
            Self::OpenAiChat => openai_chat::decode_request(body),
            Self::AnthropicMessages => anthropic_messages::decode_count_request(body),
        }
    }

    /// The request in this dialect, for a vendor with these `quirks`. `from` is the dialect the request came in: its
    /// unknown fields are only said again in that one. What cannot be said is left out and listed.
    pub fn encode_request(self, request: &ChatRequest, from: Dialect, quirks: &Quirks) -> Encoded {
        match self {
            Self::OpenAiChat => openai_chat::encode_request(request, from, quirks),
            Self::AnthropicMessages => anthropic_messages::encode_request(request, from, quirks),
        }
    }

    /// The fault is [`crate::fault::FaultKind::Malformed`].
    pub fn decode_reply(self, body: &[u8]) -> Result<ChatReply, Fault> {
        match self {
            Self::OpenAiChat => openai_chat::decode_reply(body),
            Self::AnthropicMessages => anthropic_messages::decode_reply(body),
        }
    }

    /// A whole JSON body that calls the model `shown_model`.
    pub fn encode_reply(self, reply: &ChatReply, shown_model: &str) -> Vec<u8> {
        match self {
            Self::OpenAiChat => openai_chat::encode_reply(reply, shown_model),
            Self::AnthropicMessages => anthropic_messages::encode_reply(reply, shown_model),
        }
    }

    /// Any bytes give a fault: an HTML page or an empty body is told by its status alone.
    pub fn decode_error(self, status: u16, body: &[u8]) -> Fault {
        match self {
            Self::OpenAiChat => openai_chat::decode_error(status, body),
            Self::AnthropicMessages => anthropic_messages::decode_error(status, body),
        }
    }

    /// A whole JSON body.
    pub fn encode_error(self, error: &ErrorBody) -> Vec<u8> {
        match self {
            Self::OpenAiChat => openai_chat::encode_error(error),
            Self::AnthropicMessages => anthropic_messages::encode_error(error),
        }
    }

    /// The exact SSE bytes of an error in the middle of a stream.
    pub fn encode_stream_error(self, error: &ErrorBody) -> Vec<u8> {
        match self {
            Self::OpenAiChat => openai_chat::encode_stream_error(error),
            Self::AnthropicMessages => anthropic_messages::encode_stream_error(error),
        }
    }

    /// The exact SSE bytes that keep a silent stream alive.
    pub fn ping(self) -> &'static [u8] {
        match self {
            Self::OpenAiChat => b": ping\n\n",
            Self::AnthropicMessages => b"event: ping\ndata: {\"type\":\"ping\"}\n\n",
        }
    }

    /// One for each stream of a provider.
    pub fn stream_decoder(self) -> StreamDecoder {
        match self {
            Self::OpenAiChat => StreamDecoder::OpenAiChat(openai_chat::Decoder::new()),
            Self::AnthropicMessages => StreamDecoder::AnthropicMessages(anthropic_messages::Decoder::new()),
        }
    }

    /// One for each stream to a client.
    pub fn stream_encoder(self, options: StreamOptions) -> StreamEncoder {
        match self {
            Self::OpenAiChat => StreamEncoder::OpenAiChat(openai_chat::Encoder::new(options)),
            Self::AnthropicMessages => StreamEncoder::AnthropicMessages(anthropic_messages::Encoder::new(options)),
        }
    }
}

/// Why a request cannot be understood. The client's fault, always; the same bytes will fail again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadRequest {
    /// For the client: what was wanted and what there was, with the position where the body is not JSON.
    pub message: String,
    /// Where, as `messages[3].content`.
    pub param: Option<String>,
    pub kind: BadRequestKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BadRequestKind {
    /// The body is not JSON, or not UTF-8. Both count from 1; `column` counts bytes.
    Syntax { line: usize, column: usize },
    /// Nested deeper than [`DEPTH_MAX`].
    Depth,
    /// A top-level field stands twice: two readers may each believe another one.
    DuplicateKey,
    /// A required field is absent or empty.
    Missing,
    /// A field has a wrong type or value.
    Invalid,
    /// Known, and not served here.
    Unsupported,
}

impl BadRequest {
    pub fn missing(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: Some(param.into()), kind: BadRequestKind::Missing }
    }

    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: Some(param.into()), kind: BadRequestKind::Invalid }
    }

    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: Some(param.into()), kind: BadRequestKind::Unsupported }
    }
}

/// A request as bytes, and what of it this dialect could not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub body: Vec<u8>,
    /// Fields of the request that were left out, each once, as `messages.content.cache_control`.
    pub dropped: Vec<String>,
}

/// What a client asked of its stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// The client wants the usage at the end (OpenAI's `stream_options.include_usage`).
    pub include_usage: bool,
    /// What a dialect that tells the input tokens first says before the provider has counted them.
    pub input_estimate: u64,
}

/// Reads one stream of a provider.
#[derive(Debug)]
pub enum StreamDecoder {
    OpenAiChat(openai_chat::Decoder),
    AnthropicMessages(anthropic_messages::Decoder),
}

impl StreamDecoder {
    /// What one event says: nothing, one step, or a few. A failure the provider reports is [`Delta::Fault`];
    /// `Err` is an event that cannot be understood.
    pub fn event(&mut self, event: &sse::Event) -> Result<Vec<Delta>, Fault> {
        match self {
            Self::OpenAiChat(decoder) => decoder.event(event),
            Self::AnthropicMessages(decoder) => decoder.event(event),
        }
    }
}

/// Writes one stream to a client. Deterministic: the same deltas give the same bytes.
#[derive(Debug)]
pub enum StreamEncoder {
    OpenAiChat(openai_chat::Encoder),
    AnthropicMessages(anthropic_messages::Encoder),
}

impl StreamEncoder {
    /// Appends the exact SSE bytes of one step; some steps have none in this dialect.
    pub fn delta(&mut self, delta: &Delta, out: &mut Vec<u8>) {
        match self {
            Self::OpenAiChat(encoder) => encoder.delta(delta, out),
            Self::AnthropicMessages(encoder) => encoder.delta(delta, out),
        }
    }

    /// Appends what still lacks. To be called once, at the end of a whole stream and at no other.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        match self {
            Self::OpenAiChat(encoder) => encoder.finish(out),
            Self::AnthropicMessages(encoder) => encoder.finish(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialect_is_found_by_its_name() {
        for dialect in [Dialect::OpenAiChat, Dialect::AnthropicMessages] {
            assert_eq!(Dialect::from_name(dialect.name()), Some(dialect));
        }
        assert_eq!(Dialect::from_name("gemini"), None);
    }
}

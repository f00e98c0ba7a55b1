//! The vendors, as a table: which dialect each speaks, where, and with what accent.

use crate::dialect::Dialect;

/// Which field caps the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxTokensField {
    MaxTokens,
    MaxCompletionTokens,
}

/// What a vendor does not do as the dialect's owner does. A field a vendor refuses is dropped and listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quirks {
    pub max_tokens_field: MaxTokensField,
    /// Knows `stream_options.include_usage`. The others report usage in the last chunk unasked, or never.
    pub supports_stream_usage: bool,
    /// Said where a dialect demands a cap on the output and the client gave none.
    pub output_required_default: u64,
    /// Takes `top_k`, which OpenAI does not have.
    pub top_k: bool,
    /// Takes `user`.
    pub end_user: bool,
    /// Takes `messages[].name`.
    pub message_name: bool,
    /// Takes `n` above 1.
    pub choices: bool,
    /// Takes `parallel_tool_calls`.
    pub parallel_tool_calls: bool,
    /// Takes `reasoning_effort`.
    pub reasoning_effort: bool,
    /// Takes Anthropic's `cache_control` inside content parts.
    pub cache_control: bool,
    /// Takes the assistant's `reasoning_content` back.
    pub reasoning_content: bool,
    /// Takes content as a list of parts; where not, as a string alone.
    pub content_parts: bool,
    /// How many stop sequences it takes.
    pub stop_max: usize,
}

/// OpenAI itself.
const OPENAI: Quirks = Quirks {
    max_tokens_field: MaxTokensField::MaxCompletionTokens,
    supports_stream_usage: true,
    output_required_default: 4096,
    top_k: false,
    end_user: true,
    message_name: true,
    choices: true,
    parallel_tool_calls: true,
    reasoning_effort: true,
    cache_control: false,
    reasoning_content: false,
    content_parts: true,
    stop_max: 4,
};

/// What is safe to say to a server that only claims to speak OpenAI.
const COMPATIBLE: Quirks =
    Quirks { max_tokens_field: MaxTokensField::MaxTokens, reasoning_effort: false, ..OPENAI };

/// One vendor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vendor {
    /// The word in the configuration.
    pub kind: &'static str,
    pub dialect: Dialect,
    /// Where the path of the operation is appended, as `…/v1`. `None` where the user must say.
    pub base_url: Option<&'static str>,
    pub quirks: Quirks,
}

const VENDORS: &[Vendor] = &[
    Vendor {
        kind: "openai",
        dialect: Dialect::OpenAiChat,
        base_url: Some("https://api.openai.com/v1"),
        quirks: OPENAI,
    },
    Vendor {
        kind: "anthropic",
        dialect: Dialect::AnthropicMessages,
        base_url: Some("https://api.anthropic.com/v1"),
        quirks: Quirks { top_k: true, cache_control: true, choices: false, stop_max: usize::MAX, ..COMPATIBLE },
    },
    Vendor { kind: "compatible", dialect: Dialect::OpenAiChat, base_url: None, quirks: COMPATIBLE },
];

impl Quirks {
    /// Those of a kind; an unknown kind is taken for [`COMPATIBLE`].
    pub fn of(kind: &str) -> &'static Quirks {
        vendor(kind).map_or(&COMPATIBLE, |vendor| &vendor.quirks)
    }
}

pub fn vendor(kind: &str) -> Option<&'static Vendor> {
    VENDORS.iter().find(|vendor| vendor.kind == kind)
}

pub fn vendors() -> &'static [Vendor] {
    VENDORS
}

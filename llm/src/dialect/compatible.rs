//! The vendors, as a table: which dialect each speaks, where, and with what accent.

use crate::dialect::Dialect;

/// Which field caps the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaxTokensField {
    MaxTokens,
    #[default]
    MaxCompletionTokens,
}

/// What a vendor does not do as the dialect's owner does. A field a vendor refuses is dropped and listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a table of what each vendor takes: every column is yes or no")]
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
const COMPATIBLE: Quirks = Quirks { max_tokens_field: MaxTokensField::MaxTokens, reasoning_effort: false, ..OPENAI };

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

const fn speaks_openai(kind: &'static str, base_url: &'static str, quirks: Quirks) -> Vendor {
    Vendor { kind, dialect: Dialect::OpenAiChat, base_url: Some(base_url), quirks }
}

const VENDORS: &[Vendor] = &[
    speaks_openai("openai", "https://api.openai.com/v1", OPENAI),
    Vendor {
        kind: "anthropic",
        dialect: Dialect::AnthropicMessages,
        base_url: Some("https://api.anthropic.com/v1"),
        quirks: Quirks { top_k: true, cache_control: true, choices: false, stop_max: usize::MAX, ..COMPATIBLE },
    },
    Vendor { kind: "compatible", dialect: Dialect::OpenAiChat, base_url: None, quirks: COMPATIBLE },
    Vendor {
        kind: "vllm",
        dialect: Dialect::OpenAiChat,
        base_url: None,
        quirks: Quirks { top_k: true, reasoning_content: true, stop_max: usize::MAX, ..COMPATIBLE },
    },
    speaks_openai(
        "ollama",
        "http://127.0.0.1:11434/v1",
        Quirks {
            choices: false,
            end_user: false,
            parallel_tool_calls: false,
            reasoning_effort: true,
            stop_max: usize::MAX,
            ..COMPATIBLE
        },
    ),
    // Answers 400 to a participant's name and to more than one choice.
    speaks_openai(
        "groq",
        "https://api.groq.com/openai/v1",
        Quirks {
            max_tokens_field: MaxTokensField::MaxCompletionTokens,
            message_name: false,
            choices: false,
            ..COMPATIBLE
        },
    ),
    // Answers 422 to every field it does not know, and counts a stream's tokens unasked.
    speaks_openai(
        "mistral",
        "https://api.mistral.ai/v1",
        Quirks {
            supports_stream_usage: false,
            end_user: false,
            message_name: false,
            stop_max: usize::MAX,
            ..COMPATIBLE
        },
    ),
    // Answers 400 to content that is not a string, and wants its reasoning back where it called a tool.
    speaks_openai(
        "deepseek",
        "https://api.deepseek.com/v1",
        Quirks {
            end_user: false,
            choices: false,
            parallel_tool_calls: false,
            reasoning_content: true,
            content_parts: false,
            stop_max: 16,
            ..COMPATIBLE
        },
    ),
    speaks_openai(
        "together",
        "https://api.together.xyz/v1",
        Quirks { top_k: true, stop_max: usize::MAX, ..COMPATIBLE },
    ),
    speaks_openai(
        "openrouter",
        "https://openrouter.ai/api/v1",
        Quirks { top_k: true, cache_control: true, reasoning_effort: true, stop_max: usize::MAX, ..COMPATIBLE },
    ),
    speaks_openai(
        "xai",
        "https://api.x.ai/v1",
        Quirks { max_tokens_field: MaxTokensField::MaxCompletionTokens, ..COMPATIBLE },
    ),
    speaks_openai("fireworks", "https://api.fireworks.ai/inference/v1", Quirks { top_k: true, ..COMPATIBLE }),
    // Answers 400 to `parallel_tool_calls`.
    speaks_openai(
        "cerebras",
        "https://api.cerebras.ai/v1",
        Quirks {
            max_tokens_field: MaxTokensField::MaxCompletionTokens,
            choices: false,
            parallel_tool_calls: false,
            content_parts: false,
            ..COMPATIBLE
        },
    ),
    // Answers 400 to fields it does not know.
    speaks_openai(
        "gemini-openai",
        "https://generativelanguage.googleapis.com/v1beta/openai",
        Quirks {
            end_user: false,
            message_name: false,
            parallel_tool_calls: false,
            reasoning_effort: true,
            stop_max: 5,
            ..COMPATIBLE
        },
    ),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_stands_once_and_is_found() {
        for (index, entry) in vendors().iter().enumerate() {
            assert_eq!(vendors().iter().position(|other| other.kind == entry.kind), Some(index));
            assert_eq!(vendor(entry.kind), Some(entry));
        }
        assert_eq!(vendor("nobody"), None);
        assert_eq!(Quirks::of("nobody"), Quirks::of("compatible"));
    }

    /// The path of an operation begins with a slash.
    #[test]
    fn a_base_url_ends_without_a_slash() {
        for base_url in vendors().iter().filter_map(|vendor| vendor.base_url) {
            assert!(base_url.starts_with("http") && !base_url.ends_with('/'), "{base_url}");
        }
    }
}

//! Shapes that requests, replies and streams share.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::chat::{Finish, ImageSource};
use crate::usage::Usage;

#[derive(Serialize)]
pub struct ToolCall<'a> {
    pub id: &'a str,
    pub r#type: &'static str,
    pub function: CallBody<'a>,
}

#[derive(Serialize)]
pub struct CallBody<'a> {
    pub name: &'a str,
    pub arguments: &'a str,
}

pub fn image_url(source: &ImageSource) -> Cow<'_, str> {
    match source {
        ImageSource::Base64 { media_type, data } => Cow::Owned(format!("data:{media_type};base64,{data}")),
        ImageSource::Url { url } => Cow::Borrowed(url),
    }
}

/// Whether a name in `extra` is a path to a field inside another.
pub fn is_path(name: &str) -> bool {
    ["messages[", "tools[", "stream_options."].iter().any(|path| name.starts_with(path))
}

pub fn finish_of(word: &str) -> Finish {
    match word {
        "stop" => Finish::Stop,
        "length" | "model_length" => Finish::Length,
        "tool_calls" | "function_call" => Finish::ToolUse,
        "content_filter" => Finish::ContentFilter,
        other => Finish::Other(other.to_owned()),
    }
}

/// OpenAI says that a model declined in a field of its own and then stops as ever.
pub fn finish_word(finish: &Finish, has_refusal: bool) -> &str {
    match finish {
        Finish::Stop | Finish::Pause => "stop",
        Finish::Length => "length",
        Finish::ToolUse => "tool_calls",
        Finish::Refusal if has_refusal => "stop",
        Finish::ContentFilter | Finish::Refusal => "content_filter",
        Finish::Other(word) => word,
    }
}

/// Usage as vendors say it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    total_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
    completion_tokens_details: Option<CompletionDetails>,
    /// DeepSeek's word for cached tokens.
    prompt_cache_hit_tokens: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PromptDetails {
    cached_tokens: Option<u64>,
    /// OpenRouter's.
    cache_write_tokens: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CompletionDetails {
    reasoning_tokens: Option<u64>,
}

impl WireUsage {
    /// `None` where it counts nothing: a placeholder some vendors send ahead.
    pub fn canonical(&self) -> Option<Usage> {
        let input = self.prompt_tokens?;
        let said = self.completion_tokens.unwrap_or(0);
        // xAI and Gemini leave reasoning out of the completion and count it in the total alone; it is billed.
        let hidden = self.total_tokens.unwrap_or(0).saturating_sub(input.saturating_add(said));
        let output = said.saturating_add(hidden);
        let prompt = self.prompt_tokens_details.as_ref();
        let reasoning = self.completion_tokens_details.as_ref().and_then(|details| details.reasoning_tokens);
        let cached = prompt.and_then(|details| details.cached_tokens).or(self.prompt_cache_hit_tokens).unwrap_or(0);
        let cached_input = cached.min(input);
        let written = prompt.and_then(|details| details.cache_write_tokens).unwrap_or(0);
        Some(Usage {
            input,
            cached_input,
            cache_write: written.min(input - cached_input),
            output,
            reasoning: reasoning.unwrap_or(hidden).min(output),
        })
    }
}

#[derive(Serialize)]
pub struct UsageOut {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetailsOut,
    completion_tokens_details: CompletionDetailsOut,
}

#[derive(Serialize)]
struct PromptDetailsOut {
    cached_tokens: u64,
    #[serde(skip_serializing_if = "is_zero")]
    cache_write_tokens: u64,
}

#[derive(Serialize)]
struct CompletionDetailsOut {
    reasoning_tokens: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl From<&Usage> for UsageOut {
    fn from(usage: &Usage) -> Self {
        Self {
            prompt_tokens: usage.input,
            completion_tokens: usage.output,
            total_tokens: usage.total(),
            prompt_tokens_details: PromptDetailsOut {
                cached_tokens: usage.cached_input,
                cache_write_tokens: usage.cache_write,
            },
            completion_tokens_details: CompletionDetailsOut { reasoning_tokens: usage.reasoning },
        }
    }
}

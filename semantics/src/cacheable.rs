//! Whether a request may be answered from a cache, whether its answer may be kept, and if not why.
//!
//! A route that caches says so itself, and that answers are then the same each time. Refused is what a kept answer cannot
//! give: an effect outside the answer, a part that is not kept, or something that is only true now.

use llm::chat::{Block, ChatReply, ChatRequest, Choice, Finish};
use serde_json::Value;

/// Why not. The names are for metrics and headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// `n` > 1: several choices are asked for because they differ.
    SeveralChoices,
    /// The provider is to keep the answer, which only asking it does.
    Stored,
    /// A seed is given by who studies what the model does.
    Seeded,
    /// Probabilities are not kept.
    LogProbabilities,
    /// Sound is not kept.
    Audio,
    /// A tool that runs at the provider: it looks at the world, or changes it.
    ServerTool,
    /// The old form of tool calls, which is not kept.
    LegacyFunctions,
    /// The answer has no end, or stopped in the middle of a turn.
    Incomplete,
    /// It ended on a cap of ours, not the client's.
    Capped,
    ContentFilter,
    Refusal,
    /// It calls tools, and the route does not keep such answers.
    ToolCalls,
    /// It ended for a reason nobody here knows.
    UnknownFinish,
    /// It has parts that only one dialect can say.
    Unreplayable,
    /// There is nothing in it.
    Empty,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Self::SeveralChoices => "several_choices",
            Self::Stored => "stored",
            Self::Seeded => "seeded",
            Self::LogProbabilities => "log_probabilities",
            Self::Audio => "audio",
            Self::ServerTool => "server_tool",
            Self::LegacyFunctions => "legacy_functions",
            Self::Incomplete => "incomplete",
            Self::Capped => "capped",
            Self::ContentFilter => "content_filter",
            Self::Refusal => "refusal",
            Self::ToolCalls => "tool_calls",
            Self::UnknownFinish => "unknown_finish",
            Self::Unreplayable => "unreplayable",
            Self::Empty => "empty",
        }
    }
}

/// Whether a kept answer would do. Tools of the client's own do not forbid it, nor does any temperature.
pub fn request(request: &ChatRequest) -> Result<(), Reason> {
    if request.choices > 1 {
        return Err(Reason::SeveralChoices);
    }
    if request.tools.iter().any(|tool| tool.raw.is_some()) {
        return Err(Reason::ServerTool);
    }
    request.extra.iter().try_for_each(|(name, value)| match field(name, value) {
        Some(reason) => Err(reason),
        None => Ok(()),
    })
}

/// What one field, unknown to the canonical form, says against it.
fn field(name: &str, value: &Value) -> Option<Reason> {
    // Said, but as what is taken for granted without it.
    if matches!(value, Value::Null | Value::Bool(false)) {
        return None;
    }
    match name {
        "store" => Some(Reason::Stored),
        "seed" => Some(Reason::Seeded),
        "logprobs" | "top_logprobs" => Some(Reason::LogProbabilities),
        "audio" => Some(Reason::Audio),
        "modalities" => lists_more_than_text(value).then_some(Reason::Audio),
        "web_search_options" | "mcp_servers" | "container" => Some(Reason::ServerTool),
        "functions" | "function_call" => Some(Reason::LegacyFunctions),
        _ => None,
    }
}

fn lists_more_than_text(modalities: &Value) -> bool {
    modalities.as_array().is_none_or(|modalities| modalities.iter().any(|modality| modality != "text"))
}

/// Whether an answer may be kept. `tool_calls`: the route keeps answers that call tools. `capped`: a cap on output tokens
/// was set that the client did not ask for.
pub fn reply(reply: &ChatReply, tool_calls: bool, capped: bool) -> Result<(), Reason> {
    if reply.choices.is_empty() {
        return Err(Reason::Incomplete);
    }
    reply.choices.iter().try_for_each(|choice| {
        finish(choice, tool_calls, capped)?;
        choice.blocks.iter().try_for_each(|part| block(part, tool_calls))?;
        if choice.blocks.iter().any(says_something) { Ok(()) } else { Err(Reason::Empty) }
    })
}

fn finish(choice: &Choice, tool_calls: bool, capped: bool) -> Result<(), Reason> {
    match choice.finish {
        Some(Finish::Stop) => Ok(()),
        // The client's own cap is part of its question.
        Some(Finish::Length) if !capped => Ok(()),
        Some(Finish::Length) => Err(Reason::Capped),
        Some(Finish::ToolUse) if tool_calls => Ok(()),
        Some(Finish::ToolUse) => Err(Reason::ToolCalls),
        Some(Finish::ContentFilter) => Err(Reason::ContentFilter),
        Some(Finish::Refusal) => Err(Reason::Refusal),
        Some(Finish::Pause) | None => Err(Reason::Incomplete),
        Some(Finish::Other(_)) => Err(Reason::UnknownFinish),
    }
}

fn block(block: &Block, tool_calls: bool) -> Result<(), Reason> {
    match block {
        Block::Text { .. } | Block::Thinking { .. } => Ok(()),
        Block::ToolUse { .. } if tool_calls => Ok(()),
        Block::ToolUse { .. } => Err(Reason::ToolCalls),
        Block::Refusal { .. } => Err(Reason::Refusal),
        Block::Image { .. } | Block::ToolResult { .. } | Block::Other { .. } => Err(Reason::Unreplayable),
    }
}

fn says_something(block: &Block) -> bool {
    match block {
        Block::Text { text, .. } => !text.is_empty(),
        Block::ToolUse { .. } => true,
        Block::Thinking { .. }
        | Block::Refusal { .. }
        | Block::Image { .. }
        | Block::ToolResult { .. }
        | Block::Other { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(fields: &Value) -> Result<(), Reason> {
        let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hello" }] });
        if let (Some(body), Some(fields)) = (body.as_object_mut(), fields.as_object()) {
            body.extend(fields.clone());
        }
        let decoded = llm::dialect::Dialect::OpenAiChat.decode_request(body.to_string().as_bytes()).unwrap();
        request(&decoded)
    }

    #[test]
    fn what_a_kept_answer_can_give_may_be_looked_up() {
        let function = json!({ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } });
        for fields in [
            json!({}),
            json!({ "temperature": 2, "top_p": 0.5, "n": 1, "stream": true, "user": "someone" }),
            json!({ "tools": [function], "tool_choice": "auto", "response_format": { "type": "json_object" } }),
            json!({ "store": false, "seed": null, "logprobs": false, "modalities": ["text"] }),
            json!({ "reasoning_effort": "low", "some_new_field": { "a": 1 } }),
        ] {
            assert_eq!(asked(&fields), Ok(()), "{fields}");
        }
    }

    #[test]
    fn what_it_cannot_give_may_not() {
        for (fields, reason) in [
            (json!({ "n": 2 }), Reason::SeveralChoices),
            (json!({ "store": true }), Reason::Stored),
            (json!({ "seed": 0 }), Reason::Seeded),
            (json!({ "logprobs": true }), Reason::LogProbabilities),
            (json!({ "top_logprobs": 3 }), Reason::LogProbabilities),
            (json!({ "audio": { "voice": "ash", "format": "wav" } }), Reason::Audio),
            (json!({ "modalities": ["text", "audio"] }), Reason::Audio),
            (json!({ "web_search_options": {} }), Reason::ServerTool),
            (json!({ "tools": [{ "type": "web_search" }] }), Reason::ServerTool),
            (json!({ "functions": [{ "name": "f" }] }), Reason::LegacyFunctions),
        ] {
            assert_eq!(asked(&fields), Err(reason), "{fields}");
        }
    }

    fn answer(finish: Option<Finish>, blocks: Vec<Block>) -> ChatReply {
        let choices = vec![Choice { blocks, finish, stop_sequence: None }];
        ChatReply { id: "1".to_owned(), model: "m".to_owned(), created: None, choices, usage: None }
    }

    fn text(text: &str) -> Block {
        Block::Text { text: text.to_owned(), cache_control: None }
    }

    fn call() -> Block {
        Block::ToolUse { id: "1".to_owned(), name: "f".to_owned(), arguments: "{}".to_owned() }
    }

    #[test]
    fn whole_answers_are_kept() {
        assert_eq!(reply(&answer(Some(Finish::Stop), vec![text("yes")]), false, false), Ok(()));
        assert_eq!(reply(&answer(Some(Finish::Stop), vec![text("yes")]), false, true), Ok(()));
        assert_eq!(reply(&answer(Some(Finish::Length), vec![text("ye")]), false, false), Ok(()));
        assert_eq!(reply(&answer(Some(Finish::ToolUse), vec![call()]), true, false), Ok(()));
    }

    #[test]
    fn what_is_not_whole_or_not_repeatable_is_never_kept() {
        let other = Block::Other { dialect: "openai_chat".to_owned(), value: json!({}) };
        let refusal = Block::Refusal { text: "no".to_owned() };
        let thinking = Block::Thinking { text: "hm".to_owned(), signature: None };
        let yes = || vec![text("yes")];
        for (finish, blocks, capped, reason) in [
            (None, yes(), false, Reason::Incomplete),
            (Some(Finish::Pause), yes(), false, Reason::Incomplete),
            (Some(Finish::Length), yes(), true, Reason::Capped),
            (Some(Finish::ContentFilter), yes(), false, Reason::ContentFilter),
            (Some(Finish::Refusal), yes(), false, Reason::Refusal),
            (Some(Finish::Stop), vec![refusal], false, Reason::Refusal),
            (Some(Finish::ToolUse), vec![call()], false, Reason::ToolCalls),
            (Some(Finish::Stop), vec![text("yes"), call()], false, Reason::ToolCalls),
            (Some(Finish::Other("new".to_owned())), yes(), false, Reason::UnknownFinish),
            (Some(Finish::Stop), vec![text("yes"), other], false, Reason::Unreplayable),
            (Some(Finish::Stop), vec![], false, Reason::Empty),
            (Some(Finish::Stop), vec![text("")], false, Reason::Empty),
            (Some(Finish::Stop), vec![thinking], false, Reason::Empty),
        ] {
            let answer = answer(finish, blocks);
            assert_eq!(reply(&answer, false, capped), Err(reason), "{answer:?}");
        }
        let none = ChatReply { choices: vec![], ..answer(None, vec![]) };
        assert_eq!(reply(&none, true, false), Err(Reason::Incomplete));
    }

    #[test]
    fn one_bad_choice_spoils_the_answer() {
        let mut two = answer(Some(Finish::Stop), vec![text("yes")]);
        two.choices.push(Choice { blocks: vec![text("ye")], finish: None, stop_sequence: None });
        assert_eq!(reply(&two, true, false), Err(Reason::Incomplete));
    }
}

//! The canonical form of a chat: what every dialect decodes to and encodes from.
//!
//! Fields a codec does not know are kept in `extra`, with the dialect they came in, so that nothing is lost silently.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use crate::usage::Usage;

/// One request for a chat completion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatRequest {
    /// As the client wrote it: an alias, `provider/model`, or a provider's own word.
    pub model: String,
    /// The system prompt that stands before the conversation.
    pub system: Vec<Block>,
    /// The conversation, oldest first. Never empty.
    pub messages: Vec<Message>,
    pub tools: Vec<Tool>,
    pub tool_choice: Option<ToolChoice>,
    pub parallel_tool_calls: Option<bool>,
    /// The client's own cap on output tokens (`max_tokens`, `max_completion_tokens`).
    pub output_max: Option<u64>,
    pub temperature: Option<Number>,
    pub top_p: Option<Number>,
    pub top_k: Option<u64>,
    pub stop: Vec<String>,
    /// How many choices are wanted; 1 unless the client said otherwise.
    pub choices: u32,
    pub stream: bool,
    /// The client asked for a usage chunk at the end of the stream (OpenAI's `stream_options.include_usage`).
    pub include_usage: bool,
    /// The client's name for its own user.
    pub end_user: Option<String>,
    /// Fields this crate does not know, in the dialect the request came in, in their order.
    pub extra: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Instructions in the middle of a conversation (OpenAI `system` and `developer` after the first turn).
    System,
    User,
    Assistant,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    /// Tool results are blocks of a user's message, as in Anthropic's form.
    pub blocks: Vec<Block>,
    /// OpenAI's `name` of a participant.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
}

/// One piece of content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Block {
    Text {
        text: String,
        /// Anthropic's `cache_control`, as it stood.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        cache_control: Option<Value>,
    },
    Image {
        source: ImageSource,
        /// OpenAI's `detail`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        detail: Option<String>,
    },
    /// The assistant calls a tool. `arguments` is JSON text exactly as the model wrote it.
    ToolUse { id: String, name: String, arguments: String },
    /// What the tool answered.
    ToolResult { id: String, content: Vec<Block>, is_error: bool },
    /// The model declined.
    Refusal { text: String },
    /// Visible reasoning, with the provider's signature.
    Thinking { text: String, signature: Option<String> },
    /// A block of a kind only `dialect` knows (its name as in [`crate::dialect::Dialect::name`]), as it stood.
    Other { dialect: String, value: Value },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ImageSource {
    /// `data` is base64 as it stood.
    Base64 {
        media_type: String,
        data: String,
    },
    Url {
        url: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// JSON Schema of the arguments.
    pub parameters: Value,
    pub strict: Option<bool>,
    /// A tool only the arriving dialect knows (a server-side tool): its whole declaration.
    pub raw: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    Auto,
    None,
    /// Some tool must be called.
    Required,
    Named(String),
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatReply {
    pub id: String,
    /// The provider's word for the model that answered.
    pub model: String,
    /// Unix seconds, where the provider says so.
    pub created: Option<u64>,
    /// At least one.
    pub choices: Vec<Choice>,
    /// `None` where the provider did not say.
    pub usage: Option<Usage>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    pub blocks: Vec<Block>,
    /// `None` only where the provider did not say: such an answer is not whole.
    pub finish: Option<Finish>,
    pub stop_sequence: Option<String>,
}

/// Why the model stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// A natural end, or a stop sequence.
    Stop,
    /// The cap on output tokens, or the context window.
    Length,
    ToolUse,
    ContentFilter,
    Refusal,
    /// The provider pauses a long turn; the client may send it again to go on (Anthropic `pause_turn`).
    Pause,
    /// A reason this crate does not know, as it stood.
    Other(String),
}

/// One step of a streamed answer. `choice` counts from 0.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta {
    /// Once, first.
    Start {
        id: String,
        model: String,
        created: Option<u64>,
    },
    Text {
        choice: u32,
        text: String,
    },
    Refusal {
        choice: u32,
        text: String,
    },
    Thinking {
        choice: u32,
        text: String,
    },
    ThinkingSignature {
        choice: u32,
        signature: String,
    },
    /// `tool` counts the calls of this choice from 0.
    ToolStart {
        choice: u32,
        tool: u32,
        id: String,
        name: String,
    },
    ToolArguments {
        choice: u32,
        tool: u32,
        fragment: String,
    },
    Finish {
        choice: u32,
        reason: Finish,
        stop_sequence: Option<String>,
    },
    /// Cumulative: the newest one counts.
    Usage(Usage),
    /// A block only its own dialect knows, as it stood.
    Other {
        choice: u32,
        dialect: String,
        value: Value,
    },
    /// The provider's own word that the stream is over (`[DONE]`, `message_stop`).
    End,
    Ping,
    /// The provider reports a failure in the middle of the stream.
    Fault(crate::fault::Fault),
}

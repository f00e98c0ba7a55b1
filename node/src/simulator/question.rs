//! What a request asks: both dialects read into one [`Question`].
//!
//! Lenient where the real APIs are (unknown fields, null for absent), strict where they refuse. Shares no code with the
//! gateway's own codecs, so that a misreading there is not repeated here.

use serde::Deserialize;
use serde_json::Value;

use super::tokens;

/// Which API is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    OpenAi,
    Anthropic,
}

/// Answers to one question that may be asked for.
const CHOICES_MAX: u64 = 128;

/// A request, understood.
#[derive(Debug)]
pub struct Question {
    pub dialect: Dialect,
    pub model: String,
    /// Everything said so far, for answers that differ with the conversation.
    pub conversation: String,
    /// The text of the last message of the user.
    pub asked: String,
    /// What may be called; nothing once the last message brings the results of calls.
    pub tools: Vec<Tool>,
    pub tool_choice: ToolChoice,
    pub calls_max: usize,
    pub stop: Vec<String>,
    pub output_max: Option<u64>,
    pub choices: u64,
    pub stream: bool,
    pub include_usage: bool,
    /// Whether it is to think before it answers.
    pub thinks: bool,
    /// A JSON schema (or `{}`) the answer must follow.
    pub schema: Option<Value>,
    pub images: u64,
    pub input_tokens: u64,
    /// The part of the input that a prompt cache would keep.
    pub prefix: Option<Prefix>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    pub name: String,
    pub schema: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    Auto,
    Never,
    Required,
    Named(String),
}

/// The start of a prompt, as a prompt cache knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub hash: u64,
    pub tokens: u64,
}

/// Why a request is refused, as the real APIs would.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub message: String,
    pub param: Option<&'static str>,
}

impl Refusal {
    fn new(param: &'static str, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: Some(param) }
    }
}

impl Question {
    /// Reads the body of a request.
    pub fn read(dialect: Dialect, body: &[u8]) -> Result<Self, Refusal> {
        let wire = Wire::read(body)?;
        wire.check(dialect)?;
        if dialect == Dialect::Anthropic && wire.max_tokens.is_none() {
            return Err(Refusal::new("max_tokens", "max_tokens: field required"));
        }
        Ok(wire.into_question(dialect))
    }

    /// How many tokens the input of an Anthropic request is.
    pub fn count(body: &[u8]) -> Result<u64, Refusal> {
        let wire = Wire::read(body)?;
        wire.check(Dialect::Anthropic)?;
        Ok(wire.into_question(Dialect::Anthropic).input_tokens)
    }
}

/// A request of either dialect; what only one of them knows stays empty in the other.
#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    model: String,
    #[serde(default)]
    messages: Vec<Message>,
    system: Option<Content>,
    tools: Option<Vec<WireTool>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    stop: Option<OneOrMany>,
    stop_sequences: Option<Vec<String>>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    n: Option<u64>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    reasoning_effort: Option<String>,
    thinking: Option<Kind>,
    response_format: Option<Value>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Option<Content>,
    tool_calls: Option<Vec<WireCall>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Blocks(Vec<Block>),
}

/// A part of a message; the field its `type` names is there.
#[derive(Deserialize)]
struct Block {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    thinking: Option<String>,
    name: Option<String>,
    input: Option<Value>,
    content: Option<Box<Content>>,
    cache_control: Option<Value>,
}

#[derive(Deserialize)]
struct WireCall {
    function: WireFunction,
}

#[derive(Deserialize)]
struct WireFunction {
    name: String,
    arguments: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
}

#[derive(Deserialize)]
struct WireTool {
    function: Option<WireFunction>,
    name: Option<String>,
    description: Option<String>,
    input_schema: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: String,
}

impl Wire {
    fn read(body: &[u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(body)
            .map_err(|error| Refusal { message: format!("could not parse the JSON body: {error}"), param: None })
    }

    fn check(&self, dialect: Dialect) -> Result<(), Refusal> {
        if self.model.is_empty() {
            return Err(Refusal::new("model", "you must provide a model parameter"));
        }
        if self.messages.is_empty() {
            return Err(Refusal::new("messages", "messages: at least one message is required"));
        }
        if self.max_tokens == Some(0) || self.max_completion_tokens == Some(0) {
            return Err(Refusal::new("max_tokens", "max_tokens: must be greater than or equal to 1"));
        }
        if self.n.is_some_and(|n| n == 0 || n > CHOICES_MAX) {
            return Err(Refusal::new("n", format!("n: must be between 1 and {CHOICES_MAX}")));
        }
        for message in &self.messages {
            let known: &[&str] = match dialect {
                Dialect::OpenAi => &["system", "developer", "user", "assistant", "tool", "function"],
                Dialect::Anthropic => &["user", "assistant"],
            };
            if !known.contains(&message.role.as_str()) {
                return Err(Refusal::new("messages", format!("messages: unexpected role \"{}\"", message.role)));
            }
        }
        Ok(())
    }

    fn into_question(self, dialect: Dialect) -> Question {
        let mut tally = Tally::default();
        for tool in self.tools.iter().flatten() {
            tool.tally(&mut tally);
        }
        if let Some(system) = &self.system {
            tally.add_content(system);
        }
        let mut asked = String::new();
        for message in &self.messages {
            tally.tokens += tokens::PER_MESSAGE;
            if let Some(content) = &message.content {
                if message.role == "user" && content.has_words() {
                    asked = content.words();
                }
                tally.add_content(content);
            }
            for call in message.tool_calls.iter().flatten() {
                tally.add(&call.function.name);
                tally.add(call.function.arguments.as_deref().unwrap_or_default());
            }
            if matches!(message.role.as_str(), "system" | "developer") && tally.marked.is_none() {
                tally.system = tally.tokens;
                tally.system_end = tally.text.len();
            }
        }
        let has_results = self.messages.last().is_some_and(Message::has_results);
        let tools = if has_results { None } else { self.tools };
        let tools = tools.into_iter().flatten().filter_map(WireTool::into_tool).collect();
        let (tool_choice, one_tool) = read_tool_choice(self.tool_choice.as_ref());
        Question {
            dialect,
            prefix: tally.prefix(dialect),
            asked,
            tool_choice,
            calls_max: if one_tool || self.parallel_tool_calls == Some(false) { 1 } else { usize::MAX },
            stop: self.stop.map(OneOrMany::into_vec).or(self.stop_sequences).unwrap_or_default(),
            output_max: self.max_completion_tokens.or(self.max_tokens),
            choices: if dialect == Dialect::OpenAi { self.n.unwrap_or(1) } else { 1 },
            stream: self.stream.unwrap_or(false),
            include_usage: self.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            thinks: self.reasoning_effort.is_some_and(|effort| effort != "none")
                || self.thinking.is_some_and(|thinking| thinking.kind != "disabled"),
            schema: read_schema(self.response_format),
            tools,
            model: self.model,
            images: tally.images,
            input_tokens: tally.tokens,
            conversation: tally.text,
        }
    }
}

/// The smallest prompt that is cached without being marked. Real: 1,024 tokens.
const CACHED_MIN: u64 = 64;

/// Adds up a conversation while it is walked.
#[derive(Default)]
struct Tally {
    text: String,
    tokens: u64,
    images: u64,
    /// Tokens and bytes up to the end of the system prompt.
    system: u64,
    system_end: usize,
    /// Tokens and bytes up to the last block marked with `cache_control`.
    marked: Option<(u64, usize)>,
}

impl Tally {
    fn add(&mut self, text: &str) {
        self.tokens += tokens::count(text);
        self.text.push_str(text);
        self.text.push('\n');
    }

    fn add_content(&mut self, content: &Content) {
        match content {
            Content::Text(text) => self.add(text),
            Content::Blocks(blocks) => blocks.iter().for_each(|block| self.add_block(block)),
        }
    }

    fn add_block(&mut self, block: &Block) {
        if matches!(block.kind.as_str(), "image" | "image_url") {
            self.images += 1;
            self.tokens += tokens::PER_IMAGE;
            self.text.push_str("[image]\n");
        }
        for text in [&block.text, &block.thinking, &block.name].into_iter().flatten() {
            self.add(text);
        }
        if let Some(input) = &block.input {
            self.add(&input.to_string());
        }
        if let Some(content) = &block.content {
            self.add_content(content);
        }
        if block.cache_control.as_ref().is_some_and(|control| !control.is_null()) {
            self.marked = Some((self.tokens, self.text.len()));
        }
    }

    /// `OpenAI` caches long system prompts unasked, Anthropic what is marked.
    fn prefix(&self, dialect: Dialect) -> Option<Prefix> {
        let (tokens, end) = match dialect {
            Dialect::OpenAi => (self.system, self.system_end),
            Dialect::Anthropic => self.marked?,
        };
        let hash = super::answer::hash(dialect as u64, &self.text[..end]);
        (tokens >= CACHED_MIN).then_some(Prefix { hash, tokens })
    }
}

impl Content {
    /// Whether it says something, rather than only bringing tool results or images.
    fn has_words(&self) -> bool {
        match self {
            Self::Text(_) => true,
            Self::Blocks(blocks) => blocks.iter().any(|block| block.text.is_some()),
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Blocks(blocks) => {
                blocks.iter().filter_map(|block| block.text.as_deref()).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

impl Message {
    fn has_results(&self) -> bool {
        let has_block = match &self.content {
            Some(Content::Blocks(blocks)) => blocks.iter().any(|block| block.kind == "tool_result"),
            Some(Content::Text(_)) | None => false,
        };
        matches!(self.role.as_str(), "tool" | "function") || has_block
    }
}

impl WireTool {
    fn tally(&self, tally: &mut Tally) {
        let function = self.function.as_ref();
        for text in [&self.name, &self.description].into_iter().flatten() {
            tally.add(text);
        }
        if let Some(function) = function {
            tally.add(&function.name);
            tally.add(function.description.as_deref().unwrap_or_default());
        }
        if let Some(schema) = self.input_schema.as_ref().or(function.and_then(|function| function.parameters.as_ref()))
        {
            tally.add(&schema.to_string());
        }
    }

    fn into_tool(self) -> Option<Tool> {
        match self.function {
            Some(function) => Some(Tool { name: function.name, schema: function.parameters.unwrap_or(Value::Null) }),
            None => Some(Tool { name: self.name?, schema: self.input_schema.unwrap_or(Value::Null) }),
        }
    }
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// What `tool_choice` says, and whether it allows one call only.
fn read_tool_choice(choice: Option<&Value>) -> (ToolChoice, bool) {
    let Some(choice) = choice else { return (ToolChoice::Auto, false) };
    let kind = choice.as_str().or_else(|| choice["type"].as_str()).unwrap_or("auto");
    let name = choice["name"].as_str().or_else(|| choice["function"]["name"].as_str());
    let read = match (kind, name) {
        ("none", _) => ToolChoice::Never,
        ("function" | "tool", Some(name)) => ToolChoice::Named(name.to_owned()),
        ("required" | "any", _) => ToolChoice::Required,
        _other => ToolChoice::Auto,
    };
    (read, choice["disable_parallel_tool_use"].as_bool().unwrap_or(false))
}

fn read_schema(format: Option<Value>) -> Option<Value> {
    let mut format = format?;
    match format["type"].as_str() {
        Some("json_object") => Some(serde_json::json!({})),
        Some("json_schema") => Some(format["json_schema"]["schema"].take()),
        _other => None,
    }
}

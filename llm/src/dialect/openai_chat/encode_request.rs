//! The canonical form as a request to a vendor that speaks OpenAI.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Map, Number, Value, json};

use super::wire::{CallBody, ToolCall, image_url};
use super::{NAME, wire};
use crate::chat::{Block, ChatRequest, Message, Role, Tool, ToolChoice};
use crate::dialect::compatible::{MaxTokensField, Quirks};
use crate::dialect::{Dialect, Encoded};
use crate::json;

pub fn encode_request(request: &ChatRequest, from: Dialect, quirks: &Quirks) -> Encoded {
    let mut dropped = Dropped::default();
    let own = from == Dialect::OpenAiChat;
    let translator = Translator { own, quirks };
    let mut messages = Vec::with_capacity(request.messages.len() + 1);
    translator.system(&request.system, &mut messages, &mut dropped);
    for message in &request.messages {
        translator.message(message, &mut messages, &mut dropped);
    }
    let tools = translator.tools(&request.tools, &mut dropped);
    let has_tools = !tools.is_empty();
    let extra = if own { own_extra(request, &mut dropped) } else { foreign_extra(request, quirks, &mut dropped) };
    let mut stop = request.stop.as_slice();
    if stop.len() > quirks.stop_max {
        stop = stop.get(..quirks.stop_max).unwrap_or_default();
        dropped.add("stop");
    }
    let (old_cap, new_cap) = match quirks.max_tokens_field {
        MaxTokensField::MaxTokens => (request.output_max, None),
        MaxTokensField::MaxCompletionTokens => (None, request.output_max),
    };
    let asks_usage = request.stream && quirks.supports_stream_usage;
    let choices = (request.choices > 1).then_some(request.choices);
    let wire = Request {
        model: &request.model,
        messages,
        max_tokens: old_cap,
        max_completion_tokens: new_cap,
        temperature: request.temperature.as_ref(),
        top_p: request.top_p.as_ref(),
        top_k: dropped.unless(quirks.top_k, "top_k", request.top_k),
        stop,
        n: dropped.unless(quirks.choices, "n", choices),
        stream: request.stream,
        stream_options: asks_usage.then(|| json!({"include_usage": true})),
        user: dropped.unless(quirks.end_user, "user", request.end_user.as_deref()),
        tools,
        tool_choice: dropped.unless(has_tools, "tool_choice", request.tool_choice.as_ref()).map(tool_choice),
        parallel_tool_calls: dropped.unless(
            has_tools && quirks.parallel_tool_calls,
            "parallel_tool_calls",
            request.parallel_tool_calls,
        ),
        extra,
    };
    let mut body = Vec::with_capacity(1024);
    json::write(&wire, &mut body);
    Encoded { body, dropped: dropped.0 }
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    messages: Vec<WireMessage<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<&'a Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<&'a Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<WireTool<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parallel_tool_calls: Option<bool>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

#[derive(Serialize)]
struct WireMessage<'a> {
    role: &'static str,
    content: Option<Content<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'a str>,
}

impl<'a> WireMessage<'a> {
    fn new(role: &'static str, content: Option<Content<'a>>) -> Self {
        Self {
            role,
            content,
            name: None,
            refusal: None,
            reasoning_content: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
        }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Text(Cow<'a, str>),
    Parts(Vec<Part<'a>>),
}

#[derive(Serialize)]
#[serde(untagged)]
enum Part<'a> {
    Text {
        r#type: &'static str,
        text: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<&'a Value>,
    },
    Image {
        r#type: &'static str,
        image_url: ImageUrl<'a>,
    },
    Raw(&'a Value),
}

#[derive(Serialize)]
struct ImageUrl<'a> {
    url: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Call<'a> {
    Function(ToolCall<'a>),
    Raw(&'a Value),
}

#[derive(Serialize)]
#[serde(untagged)]
enum WireTool<'a> {
    Function { r#type: &'static str, function: Function<'a> },
    Raw(&'a Value),
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    parameters: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

/// What could not be said, each name once.
#[derive(Default)]
struct Dropped(Vec<String>);

impl Dropped {
    fn add(&mut self, name: impl Into<String>) {
        let name = name.into();
        if !self.0.contains(&name) {
            self.0.push(name);
        }
    }

    /// `value` where it may be said.
    fn unless<T>(&mut self, may: bool, name: &str, value: Option<T>) -> Option<T> {
        if value.is_some() && !may {
            self.add(name);
            return None;
        }
        value
    }
}

struct Translator<'q> {
    /// The request came in this dialect, so what only OpenAI knows may be said.
    own: bool,
    quirks: &'q Quirks,
}

impl Translator<'_> {
    fn system<'a>(&self, blocks: &'a [Block], out: &mut Vec<WireMessage<'a>>, dropped: &mut Dropped) {
        if !blocks.is_empty() {
            let parts = self.parts(blocks, "system", dropped);
            out.push(WireMessage::new("system", Some(self.content(parts, dropped))));
        }
    }

    fn message<'a>(&self, message: &'a Message, out: &mut Vec<WireMessage<'a>>, dropped: &mut Dropped) {
        let name = dropped.unless(self.quirks.message_name, "messages.name", message.name.as_deref());
        let first = out.len();
        match message.role {
            Role::System => {
                let parts = self.parts(&message.blocks, "messages.content", dropped);
                out.push(WireMessage::new("system", Some(self.content(parts, dropped))));
            }
            Role::User => self.user(message, out, dropped),
            Role::Assistant => out.push(self.assistant(message, dropped)),
        }
        for wire in out.iter_mut().skip(first).filter(|wire| wire.tool_call_id.is_none()) {
            wire.name = name;
        }
    }

    /// Results first, each a message of its own, as OpenAI wants them right behind the calls. It takes only text in
    /// them, so images another dialect puts there follow with the rest of the user's words.
    fn user<'a>(&self, message: &'a Message, out: &mut Vec<WireMessage<'a>>, dropped: &mut Dropped) {
        let mut rest = Vec::new();
        let mut has_results = false;
        for block in &message.blocks {
            let Block::ToolResult { id, content, is_error } = block else { continue };
            has_results = true;
            if *is_error {
                dropped.add("messages.content.is_error");
            }
            let parts = self.parts(content, "messages.content.content", dropped);
            let (images, texts) = parts.into_iter().partition(|part| !self.own && matches!(part, Part::Image { .. }));
            let images: Vec<Part<'_>> = images;
            rest.extend(images);
            let mut wire = WireMessage::new("tool", Some(self.content(texts, dropped)));
            wire.tool_call_id = Some(id);
            out.push(wire);
        }
        let others = message.blocks.iter().filter(|block| !matches!(block, Block::ToolResult { .. }));
        rest.extend(others.filter_map(|block| self.part(block, "messages.content", dropped)));
        if !rest.is_empty() || !has_results {
            out.push(WireMessage::new("user", Some(self.content(rest, dropped))));
        }
    }

    fn assistant<'a>(&self, message: &'a Message, dropped: &mut Dropped) -> WireMessage<'a> {
        let mut wire = WireMessage::new("assistant", None);
        let mut parts = Vec::new();
        for block in &message.blocks {
            match block {
                Block::ToolUse { id, name, arguments } => {
                    let arguments = if arguments.is_empty() { "{}" } else { arguments };
                    wire.tool_calls.push(Call::Function(ToolCall {
                        id,
                        r#type: "function",
                        function: CallBody { name, arguments },
                    }));
                }
                Block::Other { dialect, value } if self.own && dialect == NAME && value.get("custom").is_some() => {
                    wire.tool_calls.push(Call::Raw(value));
                }
                Block::Refusal { text } => wire.refusal = Some(text),
                Block::Thinking { text, .. } if self.quirks.reasoning_content => wire.reasoning_content = Some(text),
                Block::Thinking { .. } => dropped.add("messages.content.thinking"),
                Block::Image { .. } | Block::ToolResult { .. } => dropped.add("messages.content.image"),
                Block::Text { .. } | Block::Other { .. } => {
                    parts.extend(self.part(block, "messages.content", dropped));
                }
            }
        }
        if !parts.is_empty() {
            wire.content = Some(self.content(parts, dropped));
        } else if wire.tool_calls.is_empty() && wire.refusal.is_none() {
            wire.content = Some(Content::Text(Cow::Borrowed("")));
        }
        wire
    }

    fn parts<'a>(&self, blocks: &'a [Block], path: &str, dropped: &mut Dropped) -> Vec<Part<'a>> {
        blocks.iter().filter_map(|block| self.part(block, path, dropped)).collect()
    }

    fn part<'a>(&self, block: &'a Block, path: &str, dropped: &mut Dropped) -> Option<Part<'a>> {
        match block {
            Block::Text { text, cache_control } => {
                let may = self.quirks.cache_control;
                let cache_control = dropped.unless(may, &format!("{path}.cache_control"), cache_control.as_ref());
                Some(Part::Text { r#type: "text", text, cache_control })
            }
            Block::Image { source, detail } => Some(Part::Image {
                r#type: "image_url",
                image_url: ImageUrl { url: image_url(source), detail: detail.as_deref() },
            }),
            Block::Refusal { text } => Some(Part::Text { r#type: "text", text, cache_control: None }),
            Block::Other { dialect, value } if self.own && dialect == NAME => Some(Part::Raw(value)),
            Block::Other { value, .. } => {
                let kind = value.get("type").and_then(Value::as_str).unwrap_or("unknown");
                dropped.add(format!("{path}.{kind}"));
                None
            }
            Block::Thinking { .. } => {
                dropped.add(format!("{path}.thinking"));
                None
            }
            Block::ToolUse { .. } | Block::ToolResult { .. } => {
                dropped.add(format!("{path}.tool"));
                None
            }
        }
    }

    /// One text is said as a string. A vendor that knows only strings gets all texts as one.
    fn content<'a>(&self, mut parts: Vec<Part<'a>>, dropped: &mut Dropped) -> Content<'a> {
        if let [Part::Text { text, cache_control: None, .. }] = parts.as_slice() {
            return Content::Text(Cow::Borrowed(text));
        }
        if self.quirks.content_parts && !parts.is_empty() {
            return Content::Parts(parts);
        }
        let before = parts.len();
        parts.retain(|part| matches!(part, Part::Text { .. }));
        if parts.len() < before {
            dropped.add("messages.content.image");
        }
        let texts = parts.iter().filter_map(|part| if let Part::Text { text, .. } = part { Some(*text) } else { None });
        Content::Text(Cow::Owned(texts.collect::<Vec<_>>().join("\n\n")))
    }

    fn tools<'a>(&self, tools: &'a [Tool], dropped: &mut Dropped) -> Vec<WireTool<'a>> {
        let mut wire = Vec::with_capacity(tools.len());
        for tool in tools {
            match &tool.raw {
                Some(raw) if self.own => wire.push(WireTool::Raw(raw)),
                Some(_) => dropped.add(format!("tools.{}", tool.name)),
                None => wire.push(WireTool::Function {
                    r#type: "function",
                    function: Function {
                        name: &tool.name,
                        description: tool.description.as_deref(),
                        parameters: &tool.parameters,
                        strict: tool.strict,
                    },
                }),
            }
        }
        wire
    }
}

fn tool_choice(choice: &ToolChoice) -> Value {
    match choice {
        ToolChoice::Auto => json!("auto"),
        ToolChoice::None => json!("none"),
        ToolChoice::Required => json!("required"),
        ToolChoice::Named(name) => json!({"type": "function", "function": {"name": name}}),
    }
}

/// Unknown fields of the body itself are said again; those from deeper inside have lost their place.
fn own_extra(request: &ChatRequest, dropped: &mut Dropped) -> Map<String, Value> {
    let mut extra = Map::new();
    for (name, value) in &request.extra {
        if wire::is_path(name) {
            dropped.add(name);
        } else {
            extra.insert(name.clone(), value.clone());
        }
    }
    extra
}

/// What Anthropic calls otherwise.
fn foreign_extra(request: &ChatRequest, quirks: &Quirks, dropped: &mut Dropped) -> Map<String, Value> {
    let mut extra = Map::new();
    for (name, value) in &request.extra {
        match name.as_str() {
            "thinking" => match (value["type"].as_str(), value["budget_tokens"].as_u64()) {
                (Some("enabled"), Some(budget)) if quirks.reasoning_effort => {
                    extra.insert("reasoning_effort".to_owned(), json!(effort_of(budget)));
                }
                (Some("disabled"), _) => {}
                _ => dropped.add("thinking"),
            },
            "output_config" => output_config(value, quirks, &mut extra, dropped),
            _ => dropped.add(name),
        }
    }
    extra
}

fn output_config(value: &Value, quirks: &Quirks, extra: &mut Map<String, Value>, dropped: &mut Dropped) {
    for (name, value) in value.as_object().into_iter().flatten() {
        match (name.as_str(), value.as_str()) {
            ("effort", Some(effort @ ("low" | "medium" | "high"))) if quirks.reasoning_effort => {
                extra.insert("reasoning_effort".to_owned(), json!(effort));
            }
            ("effort", Some("xhigh" | "max")) if quirks.reasoning_effort => {
                extra.insert("reasoning_effort".to_owned(), json!("high"));
            }
            ("format", None) if value["type"] == "json_schema" => {
                let schema = json!({"name": "answer", "schema": value["schema"], "strict": true});
                extra.insert("response_format".to_owned(), json!({"type": "json_schema", "json_schema": schema}));
            }
            _ => dropped.add(format!("output_config.{name}")),
        }
    }
}

/// Anthropic counts the tokens a model may think; OpenAI has three words for it.
fn effort_of(budget: u64) -> &'static str {
    match budget {
        0..4096 => "low",
        4096..16_384 => "medium",
        _ => "high",
    }
}

//! A client's request to the canonical form.
//!
//! Fields nobody here knows are kept in `extra` under their path in the body (`seed`, `tools[0].cache_control`).

use serde_json::{Map, Value, json};

use super::NAME;
use super::wire::is_path;
use crate::chat::{Block, ChatRequest, ImageSource, Message, Role, Tool, ToolChoice};
use crate::dialect::BadRequest;
use crate::json::{Elements, Member, Raw};

const MODEL_BYTES_MAX: usize = 256;
const CHOICES_MAX: u64 = 128;
const STOP_MAX: usize = 16;
/// No model writes more in one answer; what is larger is a mistake, and money is reserved for it.
const OUTPUT_MAX: u64 = i32::MAX as u64;
/// Messages, parts of a message, tools and calls, each.
const LIST_MAX: usize = 100_000;

pub fn decode_request(body: &[u8]) -> Result<ChatRequest, BadRequest> {
    decode(Raw::parse(body)?).map_err(BadRequest::named)
}

fn decode(body: Raw<'_>) -> Result<ChatRequest, BadRequest> {
    let mut request = ChatRequest { choices: 1, ..ChatRequest::default() };
    let mut has_messages = false;
    for Member { name, value } in body.members()? {
        has_messages |= name == "messages";
        decode_field(&name, value, &mut request).map_err(|error| error.within(&name))?;
    }
    if request.model.is_empty() {
        return Err(BadRequest::missing("model", "is required and may not be empty"));
    }
    if !has_messages {
        return Err(BadRequest::missing("messages", "is required"));
    }
    Ok(request)
}

fn decode_field(name: &str, value: Raw<'_>, request: &mut ChatRequest) -> Result<(), BadRequest> {
    match name {
        "model" => request.model = bounded(value, MODEL_BYTES_MAX)?,
        "messages" => Conversation::decode(value, request)?,
        // SDKs say nothing by `null`.
        _ if value.is_null() => {}
        "max_tokens" | "max_completion_tokens" => {
            let cap = value.integer(1, OUTPUT_MAX)?;
            if request.output_max.replace(cap).is_some() {
                return Err(invalid("only one of `max_tokens` and `max_completion_tokens` may be set"));
            }
        }
        "temperature" => request.temperature = Some(number_up_to(value, 2.0)?),
        "top_p" => request.top_p = Some(number_up_to(value, 1.0)?),
        "n" => request.choices = u32::try_from(value.integer(1, CHOICES_MAX)?).unwrap_or(1),
        "stop" => request.stop = stop(value)?,
        "stream" => request.stream = value.boolean()?,
        "stream_options" => stream_options(value, request)?,
        "user" => request.end_user = Some(value.string()?.into_owned()),
        "parallel_tool_calls" => request.parallel_tool_calls = Some(value.boolean()?),
        "tools" => tools(value, request)?,
        "tool_choice" => match tool_choice(value)? {
            Some(choice) => request.tool_choice = Some(choice),
            None => keep(request, name, value)?,
        },
        // Not OpenAI's, but many vendors take it; some of them a negative one for «all».
        "top_k" => match value.number()?.as_u64() {
            Some(top_k) => request.top_k = Some(top_k),
            None => keep(request, name, value)?,
        },
        _ if is_path(name) => {
            return Err(invalid("is not the name of a field"));
        }
        _ => keep(request, name, value)?,
    }
    Ok(())
}

fn keep(request: &mut ChatRequest, name: &str, value: Raw<'_>) -> Result<(), BadRequest> {
    request.extra.insert(name.to_owned(), value.value()?);
    Ok(())
}

fn bounded(value: Raw<'_>, max: usize) -> Result<String, BadRequest> {
    let text = value.string()?;
    if text.len() > max {
        return Err(invalid(&format!("is {} bytes long; {max} are allowed", text.len())));
    }
    Ok(text.into_owned())
}

fn number_up_to(value: Raw<'_>, most: f64) -> Result<serde_json::Number, BadRequest> {
    let number = value.number()?;
    if number.as_f64().is_some_and(|number| (0.0..=most).contains(&number)) {
        return Ok(number);
    }
    Err(invalid(&format!("expected a number from 0 to {most}, got `{number}`")))
}

fn stop(value: Raw<'_>) -> Result<Vec<String>, BadRequest> {
    if value.is_string() {
        return Ok(vec![value.string()?.into_owned()]);
    }
    if !value.is_list() {
        return Err(value.expected("a string or a list of strings"));
    }
    let mut stops = Vec::new();
    for (index, stop) in value.elements()?.enumerate() {
        if index == STOP_MAX {
            return Err(invalid(&format!("has more than {STOP_MAX} sequences")));
        }
        let stop = stop.and_then(Raw::string).map_err(|error| error.within_element(index))?;
        stops.push(stop.into_owned());
    }
    Ok(stops)
}

fn stream_options(value: Raw<'_>, request: &mut ChatRequest) -> Result<(), BadRequest> {
    for Member { name, value } in value.members()? {
        match &*name {
            _ if value.is_null() => {}
            "include_usage" => request.include_usage = value.boolean().map_err(|error| error.within(&name))?,
            _ => keep(request, &format!("stream_options.{name}"), value)?,
        }
    }
    Ok(())
}

/// `None` is a choice only OpenAI knows.
fn tool_choice(value: Raw<'_>) -> Result<Option<ToolChoice>, BadRequest> {
    if value.is_object() {
        let members = value.members()?;
        let Some(function) = members.iter().find(|member| member.name == "function") else { return Ok(None) };
        let name = required(function.value, "name").map_err(|error| error.within("function"))?;
        return Ok(Some(ToolChoice::Named(name)));
    }
    if !value.is_string() {
        return Err(value.expected("a string or an object"));
    }
    match &*value.string()? {
        "auto" => Ok(Some(ToolChoice::Auto)),
        "none" => Ok(Some(ToolChoice::None)),
        "required" | "any" => Ok(Some(ToolChoice::Required)),
        _ => Err(invalid("expected `none`, `auto`, `required` or an object that names a function")),
    }
}

/// The string `name` of an object.
fn required(object: Raw<'_>, name: &str) -> Result<String, BadRequest> {
    match object.members()?.into_iter().find(|member| member.name == name) {
        Some(member) => member.value.string().map(Into::into).map_err(|error| error.within(name)),
        None => Err(BadRequest::missing(name, "is required")),
    }
}

fn tools(value: Raw<'_>, request: &mut ChatRequest) -> Result<(), BadRequest> {
    for (index, tool) in value.elements()?.enumerate() {
        let mut leftovers = Vec::new();
        let decoded = tool.and_then(|tool| decode_tool(tool, &mut leftovers));
        request.tools.push(decoded.map_err(|error| error.within_element(index))?);
        spill(leftovers, &format!("tools[{index}]"), &mut request.extra);
        check_length(index)?;
    }
    Ok(())
}

fn decode_tool(value: Raw<'_>, leftovers: &mut Leftovers) -> Result<Tool, BadRequest> {
    let members = value.members()?;
    let field = |name: &str| members.iter().find(|member| member.name == name).map(|member| member.value);
    let kind = required(value, "type")?;
    let Some(function) = field("function").filter(|_| kind == "function") else {
        if kind == "function" {
            return Err(BadRequest::missing("function", "is required"));
        }
        let name = field(&kind).and_then(|inner| required(inner, "name").ok()).unwrap_or(kind);
        let raw = Some(value.value()?);
        return Ok(Tool { name, description: None, parameters: Value::Null, strict: None, raw });
    };
    for member in &members {
        if member.name != "type" && member.name != "function" {
            leftovers.push((member.name.to_string(), member.value.value()?));
        }
    }
    decode_function(function, leftovers).map_err(|error| error.within("function"))
}

fn decode_function(value: Raw<'_>, leftovers: &mut Leftovers) -> Result<Tool, BadRequest> {
    let mut tool = Tool {
        name: String::new(),
        description: None,
        parameters: json!({"type": "object", "properties": {}}),
        strict: None,
        raw: None,
    };
    for Member { name, value } in value.members()? {
        let outcome = match &*name {
            "name" => value.string().map(|text| tool.name = text.into_owned()),
            _ if value.is_null() => Ok(()),
            "description" => value.string().map(|text| tool.description = Some(text.into_owned())),
            "parameters" if value.is_object() => value.value().map(|schema| tool.parameters = schema),
            "parameters" => Err(value.expected("an object")),
            "strict" => value.boolean().map(|strict| tool.strict = Some(strict)),
            _ => value.value().map(|value| leftovers.push((format!("function.{name}"), value))),
        };
        outcome.map_err(|error| error.within(&name))?;
    }
    if tool.name.is_empty() {
        return Err(BadRequest::missing("name", "is required and may not be empty"));
    }
    Ok(tool)
}

/// Unknown fields with their path below the value they were found in.
type Leftovers = Vec<(String, Value)>;

fn spill(leftovers: Leftovers, path: &str, extra: &mut Map<String, Value>) {
    for (name, value) in leftovers {
        extra.insert(format!("{path}.{name}"), value);
    }
}

fn check_length(index: usize) -> Result<(), BadRequest> {
    if index < LIST_MAX { Ok(()) } else { Err(invalid(&format!("has more than {LIST_MAX} elements"))) }
}

/// The messages as they are read: instructions that stand first are the system prompt.
struct Conversation {
    leading: Vec<Message>,
    messages: Vec<Message>,
}

impl Conversation {
    fn decode(value: Raw<'_>, request: &mut ChatRequest) -> Result<(), BadRequest> {
        let mut conversation = Self { leading: Vec::new(), messages: Vec::new() };
        for (index, message) in value.elements()?.enumerate() {
            let mut leftovers = Vec::new();
            let message = message.and_then(|message| decode_message(message, &mut leftovers));
            conversation.push(message.map_err(|error| error.within_element(index))?, &mut leftovers);
            if !leftovers.is_empty() {
                spill(leftovers, &format!("messages[{index}]"), &mut request.extra);
            }
            check_length(index)?;
        }
        // A conversation of instructions alone: the last of them is what the model answers.
        if conversation.messages.is_empty() {
            let last = conversation.leading.pop();
            conversation.messages.push(last.ok_or_else(|| invalid("may not be empty"))?);
        }
        request.system = conversation.leading.into_iter().flat_map(|message| message.blocks).collect();
        request.messages = conversation.messages;
        Ok(())
    }

    fn push(&mut self, mut message: Message, leftovers: &mut Leftovers) {
        if message.role == Role::System && self.messages.is_empty() {
            if let Some(name) = message.name.take() {
                leftovers.push(("name".to_owned(), Value::String(name)));
            }
            self.leading.push(message);
            return;
        }
        // The results of parallel calls are one turn of the user.
        match self.messages.last_mut() {
            Some(last) if is_tool_results(last) && is_tool_results(&message) => last.blocks.append(&mut message.blocks),
            Some(_) | None => self.messages.push(message),
        }
    }
}

fn is_tool_results(message: &Message) -> bool {
    !message.blocks.is_empty() && message.blocks.iter().all(|block| matches!(block, Block::ToolResult { .. }))
}

/// What stands in a message, before its role says what it means.
#[derive(Default)]
struct Parts<'a> {
    content: Option<Raw<'a>>,
    tool_calls: Option<Raw<'a>>,
    tool_call_id: Option<Raw<'a>>,
    refusal: Option<Raw<'a>>,
    reasoning: Option<Raw<'a>>,
    name: Option<String>,
}

fn decode_message(value: Raw<'_>, leftovers: &mut Leftovers) -> Result<Message, BadRequest> {
    let members = value.members()?;
    let role = members.iter().find(|member| member.name == "role");
    let role = role.ok_or_else(|| BadRequest::missing("role", "is required"))?.value;
    let role = role.string().map_err(|error| error.within("role"))?;
    let (assistant, tool) = (role == "assistant", role == "tool");
    let mut parts = Parts::default();
    for Member { name, value } in members {
        match &*name {
            "role" => {}
            _ if value.is_null() => {}
            "content" => parts.content = Some(value),
            "name" => parts.name = Some(value.string().map_err(|error| error.within("name"))?.into_owned()),
            "tool_calls" if assistant => parts.tool_calls = Some(value),
            "refusal" if assistant => parts.refusal = Some(value),
            "reasoning_content" | "reasoning" if assistant && value.is_string() && parts.reasoning.is_none() => {
                parts.reasoning = Some(value);
            }
            "tool_call_id" if tool => parts.tool_call_id = Some(value),
            _ => leftovers.push((name.to_string(), value.value()?)),
        }
    }
    let (role, blocks) = match &*role {
        "system" | "developer" => (Role::System, content(&parts, leftovers)?),
        "user" => (Role::User, content(&parts, leftovers)?),
        "assistant" => (Role::Assistant, assistant_blocks(&parts, leftovers)?),
        "tool" => (Role::User, vec![tool_result(&parts, leftovers)?]),
        "function" => {
            return Err(BadRequest::unsupported("role", "the old role `function` is not served; use `tool`"));
        }
        _ => {
            let known = "expected `system`, `developer`, `user`, `assistant` or `tool`";
            return Err(BadRequest::invalid("role", known));
        }
    };
    Ok(Message { role, blocks, name: parts.name })
}

fn content(parts: &Parts<'_>, leftovers: &mut Leftovers) -> Result<Vec<Block>, BadRequest> {
    let value = parts.content.ok_or_else(|| BadRequest::missing("content", "is required"))?;
    content_blocks(value, leftovers).map_err(|error| error.within("content"))
}

fn assistant_blocks(parts: &Parts<'_>, leftovers: &mut Leftovers) -> Result<Vec<Block>, BadRequest> {
    let mut blocks = Vec::new();
    if let Some(reasoning) = parts.reasoning {
        blocks.push(Block::Thinking { text: reasoning.string()?.into_owned(), signature: None });
    }
    if parts.content.is_some() {
        blocks.append(&mut content(parts, leftovers)?);
    }
    if let Some(refusal) = parts.refusal {
        let text = refusal.string().map_err(|error| error.within("refusal"))?;
        blocks.push(Block::Refusal { text: text.into_owned() });
    }
    if let Some(calls) = parts.tool_calls {
        tool_calls(calls, &mut blocks, leftovers).map_err(|error| error.within("tool_calls"))?;
    }
    // The old `function_call` and `audio` are leftovers, and enough.
    if blocks.is_empty() && leftovers.is_empty() && parts.tool_calls.is_none() {
        return Err(BadRequest::missing("content", "is required where there are no tool calls"));
    }
    Ok(blocks)
}

fn tool_result(parts: &Parts<'_>, leftovers: &mut Leftovers) -> Result<Block, BadRequest> {
    let id = parts.tool_call_id.ok_or_else(|| BadRequest::missing("tool_call_id", "is required"))?;
    let id = id.string().map_err(|error| error.within("tool_call_id"))?.into_owned();
    Ok(Block::ToolResult { id, content: content(parts, leftovers)?, is_error: false })
}

pub(super) fn content_blocks(value: Raw<'_>, leftovers: &mut Leftovers) -> Result<Vec<Block>, BadRequest> {
    if value.is_string() {
        return Ok(vec![Block::Text { text: value.string()?.into_owned(), cache_control: None }]);
    }
    if !value.is_list() {
        return Err(value.expected("a string or a list of parts"));
    }
    let mut blocks = Vec::new();
    for (index, part) in value.elements()?.enumerate() {
        let mut unknown = Vec::new();
        let block = part.and_then(|part| decode_part(part, &mut unknown));
        blocks.push(block.map_err(|error| error.within_element(index))?);
        leftovers.extend(unknown.into_iter().map(|(name, value)| (format!("content[{index}].{name}"), value)));
        check_length(index)?;
    }
    if blocks.is_empty() { Err(invalid("may not be an empty list")) } else { Ok(blocks) }
}

fn decode_part(value: Raw<'_>, leftovers: &mut Leftovers) -> Result<Block, BadRequest> {
    let members = value.members()?;
    let kind = required(value, "type")?;
    if !matches!(kind.as_str(), "text" | "image_url" | "refusal") {
        return Ok(Block::Other { dialect: NAME.to_owned(), value: value.value()? });
    }
    let mut block = None;
    let mut cached = None;
    for Member { name, value } in members {
        match &*name {
            "type" => {}
            field if field == kind => {
                block = Some(known_part(&kind, value, leftovers).map_err(|error| error.within(&name))?);
            }
            _ if value.is_null() => {}
            "cache_control" if kind == "text" => cached = Some(value.value()?),
            _ => leftovers.push((name.to_string(), value.value()?)),
        }
    }
    let mut block = block.ok_or_else(|| BadRequest::missing(&*kind, "is required"))?;
    if let Block::Text { cache_control, .. } = &mut block {
        *cache_control = cached;
    }
    Ok(block)
}

/// The field of a part that is called as the part is.
fn known_part(kind: &str, value: Raw<'_>, leftovers: &mut Leftovers) -> Result<Block, BadRequest> {
    match kind {
        "text" => Ok(Block::Text { text: value.string()?.into_owned(), cache_control: None }),
        "refusal" => Ok(Block::Refusal { text: value.string()?.into_owned() }),
        _ => image(value, leftovers),
    }
}

fn image(value: Raw<'_>, leftovers: &mut Leftovers) -> Result<Block, BadRequest> {
    if value.is_string() {
        return Ok(Block::Image { source: image_source(&value.string()?), detail: None });
    }
    let (mut source, mut detail) = (None, None);
    for Member { name, value } in value.members()? {
        match &*name {
            "url" => source = Some(image_source(&value.string().map_err(|error| error.within("url"))?)),
            _ if value.is_null() => {}
            "detail" => detail = Some(value.string().map_err(|error| error.within("detail"))?.into_owned()),
            _ => leftovers.push((format!("image_url.{name}"), value.value()?)),
        }
    }
    let source = source.ok_or_else(|| BadRequest::missing("url", "is required"))?;
    Ok(Block::Image { source, detail })
}

/// `data:image/png;base64,…` or a plain URL.
fn image_source(url: &str) -> ImageSource {
    let data = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,"));
    match data {
        Some((media_type, data)) => ImageSource::Base64 { media_type: media_type.to_owned(), data: data.to_owned() },
        None => ImageSource::Url { url: url.to_owned() },
    }
}

pub(super) fn tool_calls(value: Raw<'_>, blocks: &mut Vec<Block>, leftovers: &mut Leftovers) -> Result<(), BadRequest> {
    let calls: Elements<'_> = value.elements()?;
    for (index, call) in calls.enumerate() {
        let mut unknown = Vec::new();
        let block = call.and_then(|call| tool_call(call, &mut unknown));
        blocks.push(block.map_err(|error| error.within_element(index))?);
        leftovers.extend(unknown.into_iter().map(|(name, value)| (format!("tool_calls[{index}].{name}"), value)));
        check_length(index)?;
    }
    Ok(())
}

fn tool_call(value: Raw<'_>, leftovers: &mut Leftovers) -> Result<Block, BadRequest> {
    let (mut id, mut function) = (String::new(), None);
    for member in value.members()? {
        match &*member.name {
            "id" if member.value.is_string() => id = member.value.string()?.into_owned(),
            "function" => function = Some(member.value),
            "type" if member.value.text() != "\"function\"" => {
                return Ok(Block::Other { dialect: NAME.to_owned(), value: value.value()? });
            }
            "type" => {}
            _ if member.value.is_null() => {}
            _ => leftovers.push((member.name.to_string(), member.value.value()?)),
        }
    }
    let function = function.ok_or_else(|| BadRequest::missing("function", "is required"))?;
    let name = required(function, "name").map_err(|error| error.within("function"))?;
    let arguments = required(function, "arguments").map_err(|error| error.within("function"))?;
    Ok(Block::ToolUse { id, name, arguments })
}

fn invalid(message: &str) -> BadRequest {
    BadRequest { message: message.to_owned(), param: None, kind: crate::dialect::BadRequestKind::Invalid }
}

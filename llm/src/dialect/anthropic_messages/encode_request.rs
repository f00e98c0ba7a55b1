//! Requests of any origin, as this API takes them.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::NAME;
use super::block::{encode_block, short, tool_id};
use crate::chat::{Block, ChatRequest, Message, Role, Tool, ToolChoice};
use crate::dialect::compatible::Quirks;
use crate::dialect::{Dialect, Encoded};

/// System messages are hoisted (unless there are no others), messages of one role in a row become one (so that all results of parallel calls stand in
/// one message), and a cap on the output is said where the client gave none.
pub fn encode_request(request: &ChatRequest, from: Dialect, quirks: &Quirks) -> Encoded {
    let calls = request.messages.iter().flat_map(|message| &message.blocks).filter_map(|block| match block {
        Block::ToolUse { id, .. } => Some(id.as_str()),
        Block::Text { .. }
        | Block::Image { .. }
        | Block::ToolResult { .. }
        | Block::Refusal { .. }
        | Block::Thinking { .. }
        | Block::Other { .. } => None,
    });
    let mut saying = Saying { native: from.name() == NAME, calls: calls.collect(), dropped: Vec::new() };
    let mut body = Map::new();
    body.insert("model".into(), json!(request.model));
    body.insert("max_tokens".into(), json!(request.output_max.unwrap_or(quirks.output_required_default)));
    let system = saying.system(request);
    if !system.is_empty() {
        body.insert("system".into(), short(system));
    }
    body.insert("messages".into(), Value::Array(saying.messages(&request.messages)));
    saying.tools(request, &mut body);
    saying.sampling(request, &mut body);
    if request.stream {
        body.insert("stream".into(), Value::Bool(true));
    }
    if let Some(user) = &request.end_user {
        body.insert("metadata".into(), json!({ "user_id": user }));
    }
    if request.choices > 1 {
        saying.dropped("n");
    }
    saying.extra(&request.extra, &mut body);
    Encoded { body: Value::Object(body).to_string().into_bytes(), dropped: saying.dropped }
}

struct Saying<'a> {
    /// The request came in this dialect.
    native: bool,
    /// The calls this API can say. It refuses the result of any other.
    calls: HashSet<&'a str>,
    dropped: Vec<String>,
}

impl Saying<'_> {
    fn dropped(&mut self, field: &str) {
        if !self.dropped.iter().any(|known| known == field) {
            self.dropped.push(field.to_owned());
        }
    }

    fn blocks(&mut self, blocks: &[Block], field: &str) -> Vec<Value> {
        let mut said = Vec::with_capacity(blocks.len());
        for block in blocks {
            if let Block::ToolResult { id, content, is_error } = block {
                said.extend(self.tool_result(id, content, *is_error));
                continue;
            }
            match encode_block(block) {
                Ok(block) => said.extend(block),
                Err(what) => self.dropped(&format!("{field}.{what}")),
            }
            if let Block::Image { detail: Some(_), .. } = block {
                self.dropped(&format!("{field}.image_url.detail"));
            }
        }
        said
    }

    fn tool_result(&mut self, id: &str, content: &[Block], is_error: bool) -> Option<Value> {
        if !self.native && !self.calls.contains(id) {
            self.dropped("messages.content.tool_result");
            return None;
        }
        let blocks = self.blocks(content, "messages.content.content");
        let mut result = json!({ "type": "tool_result", "tool_use_id": tool_id(id) });
        if !blocks.is_empty() {
            result["content"] = short(blocks);
        }
        if is_error {
            result["is_error"] = Value::Bool(true);
        }
        Some(result)
    }

    fn system(&mut self, request: &ChatRequest) -> Vec<Value> {
        let mut said = self.blocks(&request.system, "system");
        for message in &request.messages {
            if self.hoists(message, &request.messages) {
                said.extend(self.blocks(&message.blocks, "messages.content"));
            }
        }
        said
    }

    /// This API wants a conversation: where there are only instructions, they are what the user says. Not every model
    /// of it takes instructions in the middle, so only who speaks this dialect may say them there.
    fn hoists(&self, message: &Message, messages: &[Message]) -> bool {
        let is_system = |message: &Message| message.role == Role::System;
        !self.native && is_system(message) && !messages.iter().all(is_system)
    }

    fn messages(&mut self, messages: &[Message]) -> Vec<Value> {
        let mut said: Vec<(&str, Vec<Value>)> = Vec::with_capacity(messages.len());
        for message in messages {
            if self.hoists(message, messages) {
                continue;
            }
            let role = match message.role {
                Role::System if self.native => "system",
                Role::System | Role::User => "user",
                Role::Assistant => "assistant",
            };
            if message.name.is_some() {
                self.dropped("messages.name");
            }
            let blocks = self.blocks(&message.blocks, "messages.content");
            match said.last_mut() {
                _ if blocks.is_empty() => {}
                Some((last, before)) if *last == role => before.extend(blocks),
                _ => said.push((role, blocks)),
            }
        }
        said.into_iter().map(|(role, blocks)| json!({ "role": role, "content": short(blocks) })).collect()
    }

    /// A choice among no tools is refused by this API, so it is said only where there are some.
    fn tools(&mut self, request: &ChatRequest, body: &mut Map<String, Value>) {
        let tools: Vec<Value> = request.tools.iter().filter_map(|tool| self.tool(tool)).collect();
        if tools.is_empty() {
            if request.tool_choice.is_some() {
                self.dropped("tool_choice");
            }
            return;
        }
        body.insert("tools".into(), Value::Array(tools));
        let serial = request.parallel_tool_calls == Some(false);
        let mut choice = match &request.tool_choice {
            Some(ToolChoice::Auto) => json!({ "type": "auto" }),
            Some(ToolChoice::None) => json!({ "type": "none" }),
            Some(ToolChoice::Required) => json!({ "type": "any" }),
            Some(ToolChoice::Named(name)) => json!({ "type": "tool", "name": name }),
            None if serial => json!({ "type": "auto" }),
            None => return,
        };
        if serial && request.tool_choice != Some(ToolChoice::None) {
            choice["disable_parallel_tool_use"] = Value::Bool(true);
        }
        body.insert("tool_choice".into(), choice);
    }

    fn tool(&mut self, tool: &Tool) -> Option<Value> {
        if let Some(raw) = &tool.raw {
            if self.native {
                return Some(raw.clone());
            }
            self.dropped(&format!("tools.{}", tool.name));
            return None;
        }
        let mut parameters = tool.parameters.as_object().cloned().unwrap_or_default();
        if parameters.is_empty() {
            parameters.insert("type".into(), json!("object"));
            parameters.insert("properties".into(), json!({}));
        }
        parameters.entry("type").or_insert_with(|| json!("object"));
        let mut said = json!({ "name": tool.name });
        if let Some(description) = &tool.description {
            said["description"] = json!(description);
        }
        said["input_schema"] = Value::Object(parameters);
        match tool.strict {
            Some(strict) if self.native => said["strict"] = Value::Bool(strict),
            Some(true) => self.dropped("tools.function.strict"),
            Some(false) | None => {}
        }
        Some(said)
    }

    /// This API's temperature ends at 1, and it refuses stop sequences of nothing but space.
    fn sampling(&mut self, request: &ChatRequest, body: &mut Map<String, Value>) {
        if let Some(temperature) = &request.temperature {
            let hot = temperature.as_f64().is_some_and(|value| value > 1.0);
            if hot {
                self.dropped("temperature");
            }
            body.insert("temperature".into(), if hot { json!(1) } else { json!(temperature) });
        }
        if let Some(top_p) = &request.top_p {
            body.insert("top_p".into(), json!(top_p));
        }
        if let Some(top_k) = request.top_k {
            body.insert("top_k".into(), json!(top_k));
        }
        let (stop, blank): (Vec<&String>, _) = request.stop.iter().partition(|sequence| !sequence.trim().is_empty());
        if !blank.is_empty() {
            self.dropped("stop");
        }
        if !stop.is_empty() {
            body.insert("stop_sequences".into(), json!(stop));
        }
    }

    /// What OpenAI calls otherwise.
    fn foreign(&mut self, name: &str, value: &Value, body: &mut Map<String, Value>) {
        match (name, value["type"].as_str()) {
            ("response_format", Some("text")) => {}
            ("response_format", Some("json_schema")) if value["json_schema"]["schema"].is_object() => {
                let schema = &value["json_schema"]["schema"];
                let format = json!({ "type": "json_schema", "schema": schema });
                body.insert("output_config".into(), json!({ "format": format }));
            }
            _ => self.dropped(name),
        }
    }

    fn extra(&mut self, extra: &Map<String, Value>, body: &mut Map<String, Value>) {
        for (name, value) in extra {
            match (body.get_mut(name), value) {
                _ if !self.native => self.foreign(name, value, body),
                // A path into the body: what is there has been said without it.
                _ if name.contains(['[', '.']) => self.dropped(name),
                (None, _) => {
                    body.insert(name.clone(), value.clone());
                }
                (Some(Value::Object(said)), Value::Object(more)) => said.extend(more.clone()),
                (Some(_), _) => self.dropped(name),
            }
        }
    }
}

//! Whole answers.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::NAME;
use super::decode_request::content_blocks;
use super::error::fault_of;
use super::wire::{CallBody, ToolCall, UsageOut, WireUsage, finish_of, finish_word};
use crate::chat::{Block, ChatReply, Choice, Finish};
use crate::dialect::BadRequest;
use crate::fault::Fault;
use crate::json::{self, Member, Raw};

/// A vendor may report a failure under status 200: then the fault is the one it reports.
pub fn decode_reply(body: &[u8]) -> Result<ChatReply, Fault> {
    let malformed = |error: BadRequest| Fault::malformed(error.named().message);
    let members = Raw::parse(body).and_then(Raw::members).map_err(malformed)?;
    let field = |name: &str| members.iter().find(|member| member.name == name && !member.value.is_null());
    if let (Some(error), None) = (field("error"), field("choices")) {
        return Err(fault_of(&error.value.value().map_err(malformed)?, None));
    }
    decode(&members).map_err(malformed)
}

fn decode(members: &[Member<'_>]) -> Result<ChatReply, BadRequest> {
    let mut reply =
        ChatReply { id: String::new(), model: String::new(), created: None, choices: Vec::new(), usage: None };
    for Member { name, value } in members.iter().filter(|member| !member.value.is_null()) {
        let outcome = match &**name {
            "id" => value.string().map(|id| reply.id = id.into_owned()),
            "model" => value.string().map(|model| reply.model = model.into_owned()),
            "created" => value.number().map(|created| reply.created = created.as_u64()),
            "choices" => choices(*value).map(|choices| reply.choices = choices),
            "usage" => value.decode::<WireUsage>().map(|usage| reply.usage = usage.canonical()),
            _ => value.check(),
        };
        outcome.map_err(|error| error.within(name))?;
    }
    if reply.choices.is_empty() {
        return Err(BadRequest::missing("choices", "there is none"));
    }
    Ok(reply)
}

fn choices(value: Raw<'_>) -> Result<Vec<Choice>, BadRequest> {
    let mut choices = Vec::with_capacity(1);
    for (place, choice) in value.elements()?.enumerate() {
        let choice = choice.and_then(decode_choice).map_err(|error| error.within_element(place))?;
        choices.push(choice);
    }
    choices.sort_by_key(|(index, _)| *index);
    Ok(choices.into_iter().map(|(_, choice)| choice).collect())
}

fn decode_choice(value: Raw<'_>) -> Result<(u64, Choice), BadRequest> {
    let mut choice = Choice { blocks: Vec::new(), finish: None, stop_sequence: None };
    let mut index = u64::MAX;
    let mut has_message = false;
    for Member { name, value } in value.members()? {
        let outcome = match &*name {
            _ if value.is_null() => Ok(()),
            "index" => value.integer(0, u64::from(u32::MAX)).map(|told| index = told),
            "message" => {
                has_message = true;
                message(value).map(|blocks| choice.blocks = blocks)
            }
            "finish_reason" => value.string().map(|word| choice.finish = Some(finish_of(&word))),
            // vLLM names the sequence here, or the number of a token.
            "stop_reason" if value.is_string() => {
                value.string().map(|stop| choice.stop_sequence = Some(stop.into_owned()))
            }
            _ => value.check(),
        };
        outcome.map_err(|error| error.within(&name))?;
    }
    if !has_message {
        return Err(BadRequest::missing("message", "is missing"));
    }
    let refused = choice.blocks.iter().any(|block| matches!(block, Block::Refusal { .. }));
    if refused && choice.finish == Some(Finish::Stop) {
        choice.finish = Some(Finish::Refusal);
    }
    Ok((index, choice))
}

fn message(value: Raw<'_>) -> Result<Vec<Block>, BadRequest> {
    let members = value.members()?;
    let mut thinking = Vec::new();
    let mut blocks = Vec::new();
    let mut calls = Vec::new();
    let mut others = Vec::new();
    for Member { name, value } in members {
        let outcome = match &*name {
            "role" => value.check(),
            _ if value.is_null() || is_empty(value) => Ok(()),
            "content" => content(value).map(|content| blocks.extend(content)),
            "refusal" => value.string().map(|text| blocks.push(Block::Refusal { text: text.into_owned() })),
            "reasoning_content" | "reasoning" if value.is_string() => value.string().map(|text| {
                // OpenRouter's newer servers say it under both names.
                if thinking.is_empty() {
                    thinking.push(Block::Thinking { text: text.into_owned(), signature: None });
                }
            }),
            "tool_calls" => tool_calls(value).map(|found| calls = found),
            _ => value
                .value()
                .map(|value| others.push(Block::Other { dialect: NAME.to_owned(), value: json!({ &*name: value }) })),
        };
        outcome.map_err(|error| error.within(&name))?;
    }
    thinking.append(&mut blocks);
    thinking.append(&mut calls);
    thinking.append(&mut others);
    Ok(thinking)
}

/// OpenAI sends empty lists and strings where others leave the field out.
fn is_empty(value: Raw<'_>) -> bool {
    matches!(value.text(), "\"\"" | "[]")
}

fn content(value: Raw<'_>) -> Result<Vec<Block>, BadRequest> {
    let mut unknown = Vec::new();
    let blocks = content_blocks(value, &mut unknown)?;
    Ok(blocks.into_iter().map(thought).collect())
}

/// Mistral's reasoning models think in a part of the content: a list of texts.
fn thought(block: Block) -> Block {
    let Block::Other { value, .. } = &block else { return block };
    if value["type"] != "thinking" {
        return block;
    }
    let texts = value["thinking"].as_array().into_iter().flatten().filter_map(|part| part["text"].as_str());
    Block::Thinking { text: texts.collect(), signature: None }
}

fn tool_calls(value: Raw<'_>) -> Result<Vec<Block>, BadRequest> {
    let mut blocks = Vec::new();
    for (index, call) in value.elements()?.enumerate() {
        let block = call.and_then(|call| tool_call(call, index));
        blocks.push(block.map_err(|error| error.within_element(index))?);
    }
    Ok(blocks)
}

/// More lenient than in requests: an id may lack, and arguments may be an object in place of its text.
fn tool_call(value: Raw<'_>, index: usize) -> Result<Block, BadRequest> {
    let members = value.members()?;
    let field = |name: &str| members.iter().find(|member| member.name == name).map(|member| member.value);
    value.check()?;
    let Some(function) = field("function") else {
        return Ok(Block::Other { dialect: NAME.to_owned(), value: value.value()? });
    };
    let id = match field("id").filter(|id| id.is_string()) {
        Some(id) => id.string()?.into_owned(),
        None => format!("call_{index}"),
    };
    let (mut name, mut arguments) = (None, "{}".to_owned());
    for member in function.members()? {
        match &*member.name {
            "name" => name = Some(member.value.string()?.into_owned()),
            "arguments" if member.value.is_string() => arguments = member.value.string()?.into_owned(),
            "arguments" if member.value.is_object() => member.value.text().clone_into(&mut arguments),
            _ => {}
        }
    }
    let name = name.ok_or_else(|| BadRequest::missing("name", "is missing").within("function"))?;
    Ok(Block::ToolUse { id, name, arguments })
}

#[derive(Serialize)]
struct Reply<'a> {
    id: &'a str,
    object: &'static str,
    /// 0 where nobody said: clients want a number.
    created: u64,
    model: &'a str,
    choices: Vec<ChoiceOut<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageOut>,
}

#[derive(Serialize)]
struct ChoiceOut<'a> {
    index: usize,
    message: MessageOut<'a>,
    logprobs: (),
    finish_reason: Option<&'a str>,
}

#[derive(Serialize)]
struct MessageOut<'a> {
    role: &'static str,
    content: Option<String>,
    refusal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Call<'a> {
    Function(ToolCall<'a>),
    Raw(&'a Value),
}

pub fn encode_reply(reply: &ChatReply, shown_model: &str) -> Vec<u8> {
    let wire = Reply {
        id: &reply.id,
        object: "chat.completion",
        created: reply.created.unwrap_or(0),
        model: shown_model,
        choices: reply.choices.iter().enumerate().map(|(index, choice)| choice_out(index, choice)).collect(),
        usage: reply.usage.as_ref().map(UsageOut::from),
    };
    let mut out = Vec::with_capacity(1024);
    json::write(&wire, &mut out);
    out
}

fn choice_out(index: usize, choice: &Choice) -> ChoiceOut<'_> {
    let mut message = MessageOut {
        role: "assistant",
        content: None,
        refusal: None,
        reasoning_content: None,
        tool_calls: Vec::new(),
        others: Map::new(),
    };
    let append = |field: &mut Option<String>, text: &str| field.get_or_insert_default().push_str(text);
    for block in &choice.blocks {
        match block {
            Block::Text { text, .. } => append(&mut message.content, text),
            Block::Refusal { text } => append(&mut message.refusal, text),
            Block::Thinking { text, .. } => append(&mut message.reasoning_content, text),
            Block::ToolUse { id, name, arguments } => message.tool_calls.push(Call::Function(ToolCall {
                id,
                r#type: "function",
                function: CallBody { name, arguments },
            })),
            Block::Other { dialect, value } if dialect == NAME => match value.as_object() {
                Some(fields) if !fields.contains_key("type") => message.others.extend(fields.clone()),
                Some(fields) if fields.contains_key("custom") => message.tool_calls.push(Call::Raw(value)),
                Some(_) | None => {}
            },
            // An assistant's answer holds no others that OpenAI could say.
            Block::Image { .. } | Block::ToolResult { .. } | Block::Other { .. } => {}
        }
    }
    if message.content.is_none() && message.tool_calls.is_empty() && message.refusal.is_none() {
        message.content = Some(String::new());
    }
    let has_refusal = message.refusal.is_some();
    let finish_reason = choice.finish.as_ref().map(|finish| finish_word(finish, has_refusal));
    ChoiceOut { index, message, logprobs: (), finish_reason }
}

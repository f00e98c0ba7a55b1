//! Requests of this API to the canonical form.

use serde_json::{Map, Number, Value, json};

use super::block::{Fields, decode_content, each};
use super::leftovers;
use crate::chat::{ChatRequest, Message, Role, Tool, ToolChoice};
use crate::dialect::BadRequest;
use crate::json::Raw;

/// No model writes as much.
const TOKENS_MAX: u64 = u32::MAX as u64;

pub fn decode_request(body: &[u8]) -> Result<ChatRequest, BadRequest> {
    let request = decode(body).map_err(BadRequest::named)?;
    if request.output_max.is_none() {
        return Err(BadRequest::missing("max_tokens", "is required").named());
    }
    Ok(request)
}

/// The body of `/v1/messages/count_tokens`: the same, without `max_tokens`.
pub fn decode_count_request(body: &[u8]) -> Result<ChatRequest, BadRequest> {
    decode(body).map_err(BadRequest::named)
}

fn decode(body: &[u8]) -> Result<ChatRequest, BadRequest> {
    let mut request = ChatRequest { choices: 1, ..ChatRequest::default() };
    let body = Raw::parse(body)?;
    for member in body.members()? {
        if !member.value.is_null() {
            decode_field(&mut request, &member.name, member.value).map_err(|error| error.within(&member.name))?;
        }
    }
    if request.model.is_empty() {
        return Err(BadRequest::missing("model", "is required"));
    }
    if request.messages.is_empty() {
        return Err(BadRequest::missing("messages", "at least one message is required"));
    }
    leftovers::keep(body, &mut request.extra)?;
    Ok(request)
}

fn decode_field(request: &mut ChatRequest, name: &str, raw: Raw) -> Result<(), BadRequest> {
    match name {
        "model" => request.model = raw.string()?.into_owned(),
        // Zero fills the prompt cache and answers nothing.
        "max_tokens" => request.output_max = Some(raw.integer(0, TOKENS_MAX)?),
        "system" => request.system = decode_content(raw)?,
        "messages" => request.messages = each(raw, decode_message)?,
        "tools" => request.tools = each(raw, decode_tool)?,
        "tool_choice" => decode_tool_choice(request, raw)?,
        "temperature" => request.temperature = Some(share(raw)?),
        "top_p" => request.top_p = Some(share(raw)?),
        "top_k" => request.top_k = Some(raw.integer(0, TOKENS_MAX)?),
        "stop_sequences" => request.stop = each(raw, |sequence| Ok(sequence.string()?.into_owned()))?,
        "stream" => request.stream = raw.boolean()?,
        "metadata" => decode_metadata(request, raw)?,
        _ => {
            request.extra.insert(name.to_owned(), raw.value()?);
        }
    }
    Ok(())
}

/// A number from 0 to 1.
fn share(raw: Raw) -> Result<Number, BadRequest> {
    let number = raw.number()?;
    if number.as_f64().is_some_and(|value| (0.0..=1.0).contains(&value)) {
        return Ok(number);
    }
    Err(raw.expected("a number from 0 to 1"))
}

fn decode_message(raw: Raw) -> Result<Message, BadRequest> {
    let fields = Fields::of(raw)?;
    let role = match &*fields.string("role")? {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "system" => Role::System,
        other => {
            let other = crate::fault::shortened(other, 64);
            return Err(BadRequest::invalid("role", format!("expected `user` or `assistant`, got `{other}`")));
        }
    };
    let blocks = decode_content(fields.required("content")?).map_err(|error| error.within("content"))?;
    Ok(Message { role, blocks, name: None })
}

/// A tool that runs on Anthropic's side has a `type` of its own and is kept as it stood.
fn decode_tool(raw: Raw) -> Result<Tool, BadRequest> {
    let fields = Fields::of(raw)?;
    let name = fields.read("name", Raw::string)?.map(std::borrow::Cow::into_owned);
    let custom = fields.read("type", Raw::string)?.is_none_or(|kind| kind == "custom");
    if !custom {
        let name = name.unwrap_or_default();
        return Ok(Tool { name, description: None, parameters: json!({}), strict: None, raw: Some(raw.value()?) });
    }
    let parameters = fields.required("input_schema")?;
    if !parameters.is_object() {
        return Err(parameters.expected("an object").within("input_schema"));
    }
    Ok(Tool {
        name: name.ok_or_else(|| BadRequest::missing("name", "is required"))?,
        description: fields.read("description", Raw::string)?.map(std::borrow::Cow::into_owned),
        parameters: parameters.value().map_err(|error| error.within("input_schema"))?,
        strict: fields.read("strict", Raw::boolean)?,
        raw: None,
    })
}

fn decode_tool_choice(request: &mut ChatRequest, raw: Raw) -> Result<(), BadRequest> {
    let fields = Fields::of(raw)?;
    request.tool_choice = Some(match &*fields.string("type")? {
        "auto" => ToolChoice::Auto,
        "any" => ToolChoice::Required,
        "none" => ToolChoice::None,
        "tool" => ToolChoice::Named(fields.string("name")?.into_owned()),
        other => {
            let other = crate::fault::shortened(other, 64);
            let message = format!("expected `auto`, `any`, `tool` or `none`, got `{other}`");
            return Err(BadRequest::invalid("type", message));
        }
    });
    let disabled = fields.read("disable_parallel_tool_use", Raw::boolean)?;
    request.parallel_tool_calls = disabled.map(|disabled| !disabled);
    Ok(())
}

/// What it holds besides the user stays unknown.
fn decode_metadata(request: &mut ChatRequest, raw: Raw) -> Result<(), BadRequest> {
    let mut rest = Map::new();
    for member in raw.members()? {
        if member.name == "user_id" {
            if !member.value.is_null() {
                let user = member.value.string().map_err(|error| error.within("user_id"))?;
                request.end_user = Some(user.into_owned());
            }
        } else {
            rest.insert(member.name.to_string(), member.value.value()?);
        }
    }
    if !rest.is_empty() {
        request.extra.insert("metadata".to_owned(), Value::Object(rest));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::dialect::BadRequestKind;

    fn problem(body: &str) -> (BadRequestKind, String) {
        let error = decode_request(body.as_bytes()).unwrap_err();
        assert!(error.message.len() < 512, "{error}");
        (error.kind, error.param.unwrap_or_default())
    }

    /// A request that is right but for `fields`, which are said first.
    fn with(fields: &str) -> String {
        format!(
            "{{{fields}, \"model\": \"m\", \"max_tokens\": 1, \"messages\": [{{\"role\":\"user\",\"content\":\"a\"}}]}}"
        )
    }

    fn with_message(message: &str) -> String {
        format!("{{\"model\": \"m\", \"max_tokens\": 1, \"messages\": [{message}]}}")
    }

    #[test]
    fn what_lacks_is_named() {
        let missing = |body: &str| {
            let (kind, param) = problem(body);
            assert_eq!(kind, BadRequestKind::Missing);
            param
        };
        assert_eq!(missing("{}"), "model");
        assert_eq!(missing("{\"model\": \"m\"}"), "messages");
        assert_eq!(missing("{\"model\": \"m\", \"messages\": []}"), "messages");
        assert_eq!(missing("{\"model\": \"m\", \"messages\": [{\"role\":\"user\",\"content\":\"a\"}]}"), "max_tokens");
        assert_eq!(missing(&with_message("{\"role\":\"user\"}")), "messages[0].content");
        assert_eq!(missing(&with_message("{\"content\":\"a\"}")), "messages[0].role");
        assert_eq!(missing(&with("\"tools\": [{\"name\": \"f\"}]")), "tools[0].input_schema");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let invalid = |body: String| {
            let (kind, param) = problem(&body);
            assert_eq!(kind, BadRequestKind::Invalid);
            param
        };
        for (fields, param) in [
            ("\"temperature\": -1", "temperature"),
            ("\"temperature\": \"hot\"", "temperature"),
            ("\"top_p\": 1.5", "top_p"),
            ("\"top_k\": -3", "top_k"),
            ("\"stream\": 1", "stream"),
            ("\"system\": 7", "system"),
            ("\"stop_sequences\": [\"a\", 1]", "stop_sequences[1]"),
            ("\"metadata\": {\"user_id\": 7}", "metadata.user_id"),
            ("\"tool_choice\": {\"type\": \"some\"}", "tool_choice.type"),
            ("\"tools\": [{\"name\": \"f\", \"input_schema\": 1}]", "tools[0].input_schema"),
        ] {
            assert_eq!(invalid(with(fields)), param);
        }
        for (block, param) in [
            ("7", "messages[0].content[0]"),
            ("{\"type\": \"text\", \"text\": 7}", "messages[0].content[0].text"),
            ("{\"type\": \"tool_use\", \"id\": \"a\", \"name\": \"f\", \"input\": []}", "messages[0].content[0].input"),
        ] {
            assert_eq!(invalid(with_message(&format!("{{\"role\":\"user\",\"content\":[{block}]}}"))), param);
        }
        assert_eq!(invalid(with_message("{\"role\":\"tool\",\"content\":\"a\"}")), "messages[0].role");
        assert_eq!(invalid("{\"max_tokens\": 0.5}".into()), "max_tokens");
        assert_eq!(invalid("{\"max_tokens\": 1e300}".into()), "max_tokens");
        assert_eq!(invalid("{\"max_tokens\": -1}".into()), "max_tokens");
    }

    #[test]
    fn a_body_that_is_no_request_is_refused() {
        let kind = |body: &[u8]| decode_request(body).unwrap_err().kind;
        assert!(matches!(kind(b""), BadRequestKind::Syntax { line: 1, .. }));
        assert!(matches!(kind(b"{\"model\": \"m\""), BadRequestKind::Syntax { .. }));
        assert!(matches!(kind(b"{\"model\": \"\xFF\"}"), BadRequestKind::Syntax { .. }));
        assert_eq!(kind(b"[]"), BadRequestKind::Invalid);
        assert_eq!(kind(b"{\"model\": \"a\", \"model\": \"b\"}"), BadRequestKind::DuplicateKey);
        assert_eq!(kind("[".repeat(10_000).as_bytes()), BadRequestKind::Depth);
    }

    #[test]
    fn counting_needs_no_output_cap() {
        let body = b"{\"model\": \"m\", \"messages\": [{\"role\":\"user\",\"content\":\"a\"}]}";
        assert_eq!(decode_count_request(body).unwrap().output_max, None);
    }

    #[test]
    fn a_number_beyond_measure_in_a_call_keeps_its_digits() {
        let call = "{\"type\":\"tool_use\",\"id\":\"a\",\"name\":\"f\",\"input\":{\"n\": 12345678901234567890123}}";
        let request =
            decode_request(with_message(&format!("{{\"role\":\"assistant\",\"content\":[{call}]}}")).as_bytes());
        let crate::chat::Block::ToolUse { arguments, .. } = &request.unwrap().messages[0].blocks[0] else {
            panic!("a call was decoded as something else");
        };
        assert_eq!(arguments, "{\"n\": 12345678901234567890123}");
    }

    fn fragment() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "null",
            "1",
            "-1e9",
            "\"",
            "\"type\"",
            "\"text\"",
            "\"model\"",
            "\"messages\"",
            "\"role\":\"user\"",
            "\"content\"",
            "\"tool_use\"",
            "\"image\"",
            "\"source\"",
            "\"tools\"",
            "\"max_tokens\":1",
            "\"tool_result\"",
            "\"metadata\"",
            "\\",
            "\u{e9}",
        ])
    }

    proptest! {
        /// Nothing from outside may panic.
        #[test]
        fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200), fragments in vec(fragment(), 0..40)) {
            let _ = decode_request(&bytes);
            let _ = decode_request(fragments.concat().as_bytes());
            let _ = decode_request(with_message(&fragments.concat()).as_bytes());
            let _ = decode_request(with(&fragments.concat()).as_bytes());
        }
    }
}

//! Blocks of content, as requests and replies have them.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::NAME;
use crate::chat::{Block, ImageSource};
use crate::dialect::BadRequest;
use crate::json::{Member, Raw};

/// A string or a list of blocks.
pub(super) fn decode_content(raw: Raw) -> Result<Vec<Block>, BadRequest> {
    if raw.is_string() {
        return Ok(vec![Block::Text { text: raw.string()?.into_owned(), cache_control: None }]);
    }
    if !raw.is_list() {
        return Err(raw.expected("a string or a list of blocks"));
    }
    each(raw, decode_block)
}

/// The values of a list, each read by `decode`.
pub(super) fn each<T>(raw: Raw, decode: impl Fn(Raw) -> Result<T, BadRequest>) -> Result<Vec<T>, BadRequest> {
    let elements = raw.elements()?.enumerate();
    elements.map(|(n, element)| element.and_then(&decode).map_err(|error| error.within_element(n))).collect()
}

/// A kind of block that is not known here is kept as it stood.
pub(super) fn decode_block(raw: Raw) -> Result<Block, BadRequest> {
    let fields = Fields::of(raw)?;
    match &*fields.string("type")? {
        "text" => {
            let cache_control = fields.read("cache_control", Raw::value)?;
            Ok(Block::Text { text: fields.string("text")?.into_owned(), cache_control })
        }
        "image" => decode_image(raw, &fields),
        "tool_use" => {
            let input = fields.required("input")?;
            if !input.is_object() {
                return Err(input.expected("an object").within("input"));
            }
            // Read only to refuse what is no JSON; kept as it stood.
            input.value().map_err(|error| error.within("input"))?;
            Ok(Block::ToolUse {
                id: fields.string("id")?.into_owned(),
                name: fields.string("name")?.into_owned(),
                arguments: input.text().to_owned(),
            })
        }
        "tool_result" => decode_tool_result(&fields),
        "thinking" => {
            let signature = fields.read("signature", Raw::string)?;
            let signature = signature.filter(|signature| !signature.is_empty()).map(Cow::into_owned);
            Ok(Block::Thinking { text: fields.string("thinking")?.into_owned(), signature })
        }
        _ => other(raw),
    }
}

fn decode_image(raw: Raw, fields: &Fields) -> Result<Block, BadRequest> {
    let decode_source = |source| {
        let source = Fields::of(source)?;
        match &*source.string("type")? {
            "base64" => Ok(Some(ImageSource::Base64 {
                media_type: source.string("media_type")?.into_owned(),
                data: source.string("data")?.into_owned(),
            })),
            "url" => Ok(Some(ImageSource::Url { url: source.string("url")?.into_owned() })),
            // An uploaded file, say: only this API can find it.
            _ => Ok(None),
        }
    };
    match decode_source(fields.required("source")?).map_err(|error: BadRequest| error.within("source"))? {
        Some(source) => Ok(Block::Image { source, detail: None }),
        None => other(raw),
    }
}

fn decode_tool_result(fields: &Fields) -> Result<Block, BadRequest> {
    let content = fields.read("content", decode_content)?.unwrap_or_default();
    if content.iter().any(|block| matches!(block, Block::ToolResult { .. } | Block::ToolUse { .. })) {
        return Err(BadRequest::invalid("content", "a tool result cannot hold calls or results of tools"));
    }
    let is_error = fields.read("is_error", Raw::boolean)?.unwrap_or(false);
    Ok(Block::ToolResult { id: fields.string("tool_use_id")?.into_owned(), content, is_error })
}

fn other(raw: Raw) -> Result<Block, BadRequest> {
    Ok(Block::Other { dialect: NAME.to_owned(), value: raw.value()? })
}

/// A block as this API has it, or the name of what cannot be said. `None` is an empty block: this API refuses those.
pub(super) fn encode_block(block: &Block) -> Result<Option<Value>, &str> {
    match block {
        Block::Text { text, cache_control } => Ok(encode_text(text, cache_control.as_ref())),
        Block::Refusal { text } => Ok(encode_text(text, None)),
        Block::Image { source, .. } => match encode_source(source) {
            Some(source) => Ok(Some(json!({ "type": "image", "source": source }))),
            None => Err("image_url"),
        },
        Block::ToolUse { id, name, arguments } => {
            let input = encode_arguments(arguments);
            Ok(Some(json!({ "type": "tool_use", "id": tool_id(id), "name": name, "input": input })))
        }
        // Requests alone have them, and say them themselves.
        Block::ToolResult { .. } => Err("tool_result"),
        Block::Thinking { text, signature: Some(signature) } => {
            Ok(Some(json!({ "type": "thinking", "thinking": text, "signature": signature })))
        }
        // This API takes reasoning back only with its own signature.
        Block::Thinking { signature: None, .. } => Err("thinking"),
        Block::Other { dialect, value } if dialect == NAME => Ok(Some(value.clone())),
        Block::Other { value, .. } => Err(value["type"].as_str().unwrap_or("unknown")),
    }
}

fn encode_text(text: &str, cache_control: Option<&Value>) -> Option<Value> {
    let mut block = json!({ "type": "text", "text": text });
    if let Some(cache_control) = cache_control {
        block["cache_control"] = cache_control.clone();
    }
    (!text.is_empty()).then_some(block)
}

/// A lone piece of plain text as a string, everything else as a list.
pub(super) fn short(mut blocks: Vec<Value>) -> Value {
    if let [Value::Object(block)] = blocks.as_mut_slice()
        && block.len() == 2
        && block.get("type").and_then(Value::as_str) == Some("text")
        && let Some(text @ Value::String(_)) = block.get_mut("text")
    {
        return text.take();
    }
    Value::Array(blocks)
}

/// This API wants an object. Nothing is none; what a model wrote that is no object is handed on whole, under a name.
pub(super) fn encode_arguments(arguments: &str) -> Value {
    match serde_json::from_str(arguments) {
        Ok(Value::Object(fields)) => Value::Object(fields),
        _ if arguments.trim().is_empty() => json!({}),
        Ok(value) => json!({ "arguments": value }),
        Err(_) => json!({ "arguments": arguments }),
    }
}

/// This API takes letters, digits, `_` and `-`; other vendors use more.
pub(super) fn tool_id(id: &str) -> Cow<'_, str> {
    let fits = |char: char| char.is_ascii_alphanumeric() || char == '_' || char == '-';
    match id {
        "" => Cow::Borrowed("_"),
        id if id.chars().all(fits) => Cow::Borrowed(id),
        id => Cow::Owned(id.chars().map(|char| if fits(char) { char } else { '_' }).collect()),
    }
}

/// `None` for a data URL that is not base64.
fn encode_source(source: &ImageSource) -> Option<Value> {
    let base64 = |media_type: &str, data: &str| json!({ "type": "base64", "media_type": media_type, "data": data });
    match source {
        ImageSource::Base64 { media_type, data } => Some(base64(media_type, data)),
        ImageSource::Url { url } => match url.strip_prefix("data:") {
            Some(rest) => {
                let (head, data) = rest.split_once(',')?;
                let media_type = head.strip_suffix(";base64")?;
                Some(base64(media_type.split(';').next().unwrap_or(media_type), data))
            }
            None => Some(json!({ "type": "url", "url": url })),
        },
    }
}

/// The fields of an object, found by name. `null` counts as absent.
pub(super) struct Fields<'a>(Vec<Member<'a>>);

impl<'a> Fields<'a> {
    pub(super) fn of(raw: Raw<'a>) -> Result<Self, BadRequest> {
        raw.members().map(Self)
    }

    pub(super) fn optional(&self, name: &str) -> Option<Raw<'a>> {
        self.0.iter().find(|member| member.name == name).map(|member| member.value).filter(|value| !value.is_null())
    }

    pub(super) fn required(&self, name: &str) -> Result<Raw<'a>, BadRequest> {
        self.optional(name).ok_or_else(|| BadRequest::missing(name, "is required"))
    }

    pub(super) fn string(&self, name: &str) -> Result<Cow<'a, str>, BadRequest> {
        self.required(name)?.string().map_err(|error| error.within(name))
    }

    pub(super) fn read<T>(
        &self,
        name: &str,
        decode: impl FnOnce(Raw<'a>) -> Result<T, BadRequest>,
    ) -> Result<Option<T>, BadRequest> {
        self.optional(name).map(decode).transpose().map_err(|error| error.within(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_become_an_object() {
        assert_eq!(encode_arguments("{\"a\": 1}"), json!({ "a": 1 }));
        assert_eq!(encode_arguments(" "), json!({}));
        assert_eq!(encode_arguments("[1]"), json!({ "arguments": [1] }));
        assert_eq!(encode_arguments("{\"a\": "), json!({ "arguments": "{\"a\": " }));
    }

    #[test]
    fn a_data_url_becomes_a_source() {
        let url = |url: &str| encode_source(&ImageSource::Url { url: url.into() });
        assert_eq!(
            url("data:image/png;charset=x;base64,AAAA"),
            Some(json!({ "type": "base64", "media_type": "image/png", "data": "AAAA" }))
        );
        assert_eq!(url("data:image/svg+xml,<svg/>"), None);
        assert_eq!(url("https://a.example/x.png"), Some(json!({ "type": "url", "url": "https://a.example/x.png" })));
    }

    #[test]
    fn an_id_of_another_vendor_is_made_to_fit() {
        assert_eq!(tool_id("functions.weather:0"), "functions_weather_0");
        assert_eq!(tool_id("toolu_01-a"), "toolu_01-a");
        assert_eq!(tool_id(""), "_");
    }
}

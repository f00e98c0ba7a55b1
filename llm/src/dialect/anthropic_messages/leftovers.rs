//! What of a request has no place in the canonical form, by its path (`messages[3].content[0].citations`).
//!
//! The provider sees it, so two requests that differ in it are two requests: whoever compares them must see it too.

use serde_json::{Map, Value};

use crate::dialect::BadRequest;
use crate::json::{Member, Raw};

/// Adds the leftovers of a body that was decoded to `extra`. Fields at the top are there already.
pub(super) fn keep(body: Raw, extra: &mut Map<String, Value>) -> Result<(), BadRequest> {
    for Member { name, value } in body.members()? {
        match &*name {
            _ if value.is_null() => {}
            "system" => blocks(value, "system", extra)?,
            "messages" => messages(value, extra)?,
            "tools" => tools(value, extra)?,
            "tool_choice" if value.is_object() => tool_choice(value, extra)?,
            _ => {}
        }
    }
    Ok(())
}

fn messages(list: Raw, extra: &mut Map<String, Value>) -> Result<(), BadRequest> {
    for (n, message) in list.elements()?.enumerate() {
        let (message, path) = (message?, format!("messages[{n}]"));
        rest(message, &["role", "content"], &path, extra)?;
        for Member { name, value } in message.members()? {
            if name == "content" {
                blocks(value, &format!("{path}.content"), extra)?;
            }
        }
    }
    Ok(())
}

/// A tool that runs on Anthropic's side was kept whole.
fn tools(list: Raw, extra: &mut Map<String, Value>) -> Result<(), BadRequest> {
    for (n, tool) in list.elements()?.enumerate() {
        let tool = tool?;
        if kind(tool)?.is_none_or(|kind| kind == "custom") {
            let known = ["type", "name", "description", "input_schema", "strict"];
            rest(tool, &known, &format!("tools[{n}]"), extra)?;
        }
    }
    Ok(())
}

fn tool_choice(choice: Raw, extra: &mut Map<String, Value>) -> Result<(), BadRequest> {
    let named = kind(choice)?.is_some_and(|kind| kind == "tool");
    let known: &[&str] =
        if named { &["type", "name", "disable_parallel_tool_use"] } else { &["type", "disable_parallel_tool_use"] };
    rest(choice, known, "tool_choice", extra)
}

/// Blocks of a kind nobody knows were kept whole.
fn blocks(content: Raw, path: &str, extra: &mut Map<String, Value>) -> Result<(), BadRequest> {
    if !content.is_list() {
        return Ok(());
    }
    for (n, block) in content.elements()?.enumerate() {
        let (block, path) = (block?, format!("{path}[{n}]"));
        let known: &[&str] = match kind(block)?.as_deref() {
            Some("text") => &["type", "text", "cache_control"],
            Some("image") => &["type", "source"],
            Some("tool_use") => &["type", "id", "name", "input"],
            Some("tool_result") => &["type", "tool_use_id", "content", "is_error"],
            Some("thinking") => &["type", "thinking", "signature"],
            Some(_) | None => continue,
        };
        rest(block, known, &path, extra)?;
        for Member { name, value } in block.members()? {
            match &*name {
                "content" => blocks(value, &format!("{path}.content"), extra)?,
                "source" if value.is_object() => source(value, &format!("{path}.source"), extra)?,
                _ => {}
            }
        }
    }
    Ok(())
}

/// A source of a kind nobody knows was kept with its block.
fn source(source: Raw, path: &str, extra: &mut Map<String, Value>) -> Result<(), BadRequest> {
    match kind(source)?.as_deref() {
        Some("base64") => rest(source, &["type", "media_type", "data"], path, extra),
        Some("url") => rest(source, &["type", "url"], path, extra),
        Some(_) | None => Ok(()),
    }
}

/// The fields of an object that are not among those `known`. `null` is how SDKs say nothing.
fn rest(object: Raw, known: &[&str], path: &str, extra: &mut Map<String, Value>) -> Result<(), BadRequest> {
    for Member { name, value } in object.members()? {
        if !known.contains(&&*name) && !value.is_null() {
            extra.insert(format!("{path}.{name}"), value.value()?);
        }
    }
    Ok(())
}

fn kind(object: Raw) -> Result<Option<String>, BadRequest> {
    let members = object.members()?;
    let kind = members.into_iter().find(|member| member.name == "type").map(|member| member.value);
    kind.filter(|kind| kind.is_string()).map(|kind| Ok(kind.string()?.into_owned())).transpose()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::decode_request;
    use super::*;

    /// A request with every kind of object that has a place of its own.
    fn rich() -> Value {
        json!({
            "model": "m", "max_tokens": 9, "temperature": 0.5,
            "system": [{ "type": "text", "text": "be kind" }],
            "tools": [{ "name": "look", "description": "looks", "input_schema": { "type": "object" } }],
            "tool_choice": { "type": "tool", "name": "look" },
            "messages": [
                { "role": "user", "content": [
                    { "type": "text", "text": "what is it?" },
                    { "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "AAAA" } },
                    { "type": "image", "source": { "type": "url", "url": "https://a.example/x.png" } },
                ] },
                { "role": "assistant", "content": [
                    { "type": "thinking", "thinking": "hm", "signature": "s" },
                    { "type": "tool_use", "id": "t1", "name": "look", "input": { "at": 1 } },
                ] },
                { "role": "user", "content": [
                    { "type": "tool_result", "tool_use_id": "t1", "content": [{ "type": "text", "text": "a cat" }] },
                ] },
            ],
        })
    }

    /// Every object of a value, by its JSON pointer.
    fn objects(value: &Value, at: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.push(at.to_owned());
                fields.iter().for_each(|(name, value)| objects(value, &format!("{at}/{name}"), found));
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(n, item)| objects(item, &format!("{at}/{n}"), found));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// Every text of a value, by its JSON pointer.
    fn texts(value: &Value, at: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, value)| texts(value, &format!("{at}/{name}"), found));
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(n, item)| texts(item, &format!("{at}/{n}"), found));
            }
            Value::String(_) => found.push(at.to_owned()),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn decoded(body: &Value) -> Option<crate::chat::ChatRequest> {
        decode_request(body.to_string().as_bytes()).ok()
    }

    /// An exact cache must never take two requests for one: whatever is added anywhere is seen.
    #[test]
    fn a_field_added_anywhere_is_seen() {
        let (before, mut places) = (rich(), Vec::new());
        objects(&before, "", &mut places);
        assert!(places.len() > 15);
        for place in places {
            let mut body = before.clone();
            body.pointer_mut(&place).unwrap()["unheard_of"] = json!({ "x": 1 });
            assert_ne!(decoded(&body), decoded(&before), "{place}");
        }
    }

    #[test]
    fn a_text_changed_anywhere_is_seen_or_refused() {
        let (before, mut places) = (rich(), Vec::new());
        texts(&before, "", &mut places);
        for place in places {
            let mut body = before.clone();
            *body.pointer_mut(&place).unwrap() = json!("something else");
            assert_ne!(decoded(&body), decoded(&before), "{place}");
        }
    }

    #[test]
    fn what_is_left_over_stands_under_its_path() {
        let mut body = rich();
        body["messages"][0]["content"][0]["citations"] = json!({ "enabled": true });
        body["tools"][0]["defer_loading"] = json!(true);
        body["tool_choice"]["soon"] = json!(null);
        body["stop_sequences"] = json!(null);

        let extra = decoded(&body).unwrap().extra;

        assert_eq!(extra.get("messages[0].content[0].citations"), Some(&json!({ "enabled": true })));
        assert_eq!(extra.get("tools[0].defer_loading"), Some(&json!(true)));
        assert_eq!(extra.len(), 2, "{extra:?}");
    }

    #[test]
    fn lists_that_are_null_are_absent() {
        for name in ["system", "tools", "tool_choice"] {
            let mut body = rich();
            body[name] = json!(null);
            assert!(decoded(&body).is_some(), "{name}");
        }
    }

    proptest! {
        /// Nothing from outside may panic.
        #[test]
        fn any_object_is_read_or_refused(text in "[{}\\[\\]\":,a-z0-9]{0,60}") {
            if let Ok(raw) = Raw::parse(text.as_bytes()) {
                let _ = keep(raw, &mut Map::new());
            }
        }
    }
}

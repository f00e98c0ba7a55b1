//! The same dialect on both sides: a few values of a request are changed in its bytes, every other byte stays.

use std::ops::Range;

use crate::dialect::Dialect;
use crate::dialect::compatible::MaxTokensField;
use crate::json::{self, Member, Raw};

/// What to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change<'a> {
    pub model: Option<&'a str>,
    /// Sets `stream_options.include_usage` (OpenAI); Anthropic always tells the usage.
    pub include_usage: bool,
    /// Replaces the client's cap on output tokens, or adds one.
    pub output_max: Option<u64>,
    /// Under which name OpenAI's vendor takes a cap the client did not give.
    pub max_tokens_field: MaxTokensField,
}

/// The body with the change made. A body that is not an object is given back as it is; one that [`Dialect`] decoded
/// never is.
pub fn splice(dialect: Dialect, body: &[u8], change: &Change<'_>) -> Vec<u8> {
    let Ok(members) = Raw::parse(body).and_then(|body| Ok((body, body.members()?))) else {
        return body.to_vec();
    };
    let mut edits = Edits { changes: Vec::with_capacity(3), body: members.0, members: &members.1 };
    if let Some(model) = change.model {
        edits.set("model", json_of(model));
    }
    if let Some(cap) = change.output_max {
        edits.set_cap(dialect, change.max_tokens_field, cap);
    }
    if change.include_usage && dialect == Dialect::OpenAiChat {
        edits.include_usage();
    }
    edits.apply(body)
}

/// Ranges of the body and what stands there instead. An empty range inserts.
struct Edits<'e, 'a> {
    changes: Vec<(Range<usize>, Vec<u8>)>,
    body: Raw<'a>,
    members: &'e [Member<'a>],
}

impl<'a> Edits<'_, 'a> {
    fn find(&self, name: &str) -> Option<Raw<'a>> {
        self.members.iter().find(|member| member.name == name).map(|member| member.value)
    }

    fn set(&mut self, name: &str, json: Vec<u8>) {
        match self.find(name) {
            Some(value) => self.changes.push((value.range(), json)),
            None => self.insert(self.body, self.members.last().map(|member| member.value), name, &json),
        }
    }

    /// Adds a field behind the `last` one of the object, or as its first.
    fn insert(&mut self, object: Raw<'_>, last: Option<Raw<'_>>, name: &str, json: &[u8]) {
        let (at, comma) = match last {
            Some(last) => (last.range().end, ","),
            None => (object.range().start + 1, ""),
        };
        let mut field = format!("{comma}\"{name}\":").into_bytes();
        field.extend_from_slice(json);
        self.changes.push((at..at, field));
    }

    fn set_cap(&mut self, dialect: Dialect, field: MaxTokensField, cap: u64) {
        let (wanted, other) = match (dialect, field) {
            (Dialect::AnthropicMessages, _) => ("max_tokens", None),
            (Dialect::OpenAiChat, MaxTokensField::MaxTokens) => ("max_tokens", Some("max_completion_tokens")),
            (Dialect::OpenAiChat, MaxTokensField::MaxCompletionTokens) => ("max_completion_tokens", Some("max_tokens")),
        };
        let said = other.filter(|other| self.find(other).is_some_and(|value| !value.is_null()));
        self.set(said.unwrap_or(wanted), cap.to_string().into_bytes());
    }

    fn include_usage(&mut self) {
        let Some(options) = self.find("stream_options") else {
            return self.set("stream_options", br#"{"include_usage":true}"#.to_vec());
        };
        if options.is_null() {
            return self.set("stream_options", br#"{"include_usage":true}"#.to_vec());
        }
        let Ok(members) = options.members() else { return };
        match members.iter().find(|member| member.name == "include_usage") {
            Some(member) => self.changes.push((member.value.range(), b"true".to_vec())),
            None => self.insert(options, members.last().map(|member| member.value), "include_usage", b"true"),
        }
    }

    fn apply(mut self, body: &[u8]) -> Vec<u8> {
        // Stable: what is added at the same place stays in the order it was asked for.
        self.changes.sort_by_key(|(range, _)| (range.start, range.end));
        let added: usize = self.changes.iter().map(|(_, json)| json.len()).sum();
        let mut out = Vec::with_capacity(body.len() + added);
        let mut kept = 0;
        for (range, json) in &self.changes {
            out.extend_from_slice(body.get(kept..range.start).unwrap_or_default());
            // Two fields added to an empty object.
            if range.is_empty() && out.last() != Some(&b'{') && json.first() != Some(&b',') {
                out.push(b',');
            }
            out.extend_from_slice(json);
            kept = range.end;
        }
        out.extend_from_slice(body.get(kept..).unwrap_or_default());
        out
    }
}

fn json_of(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    json::write_string(text, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn spliced(dialect: Dialect, body: &str, change: &Change<'_>) -> String {
        String::from_utf8(splice(dialect, body.as_bytes(), change)).unwrap()
    }

    #[test]
    fn only_the_model_changes_and_every_other_byte_stays() {
        let body = "{ \"messages\" : [ {\"model\":\"x\"} ],\r\n\t\"mod\\u0065l\"  :  \"alias\" , \"seed\":1e2}  ";

        let out = spliced(Dialect::OpenAiChat, body, &Change { model: Some("gpt \"4\""), ..Change::default() });

        assert_eq!(out, body.replace("\"alias\"", "\"gpt \\\"4\\\"\""));
    }

    #[test]
    fn usage_is_asked_for_wherever_the_client_put_its_options() {
        let change = Change { include_usage: true, ..Change::default() };
        for (body, wanted) in [
            (r#"{"a":1 }"#, r#"{"a":1,"stream_options":{"include_usage":true} }"#),
            (r#"{"stream_options": null}"#, r#"{"stream_options": {"include_usage":true}}"#),
            (r#"{"stream_options": { }}"#, r#"{"stream_options": {"include_usage":true }}"#),
            (r#"{"stream_options":{"x":[] }}"#, r#"{"stream_options":{"x":[],"include_usage":true }}"#),
            (
                r#"{"stream_options":{"include_usage":false,"x":1}}"#,
                r#"{"stream_options":{"include_usage":true,"x":1}}"#,
            ),
        ] {
            assert_eq!(spliced(Dialect::OpenAiChat, body, &change), wanted);
            assert_eq!(spliced(Dialect::AnthropicMessages, body, &change), body);
        }
    }

    #[test]
    fn a_cap_keeps_the_name_the_client_gave_it() {
        let change = Change { output_max: Some(9), ..Change::default() };
        let old = Change { max_tokens_field: MaxTokensField::MaxTokens, ..change };

        assert_eq!(spliced(Dialect::OpenAiChat, r#"{"max_tokens":77}"#, &change), r#"{"max_tokens":9}"#);
        assert_eq!(
            spliced(Dialect::OpenAiChat, r#"{"max_completion_tokens":7}"#, &old),
            r#"{"max_completion_tokens":9}"#
        );
        assert_eq!(spliced(Dialect::OpenAiChat, r#"{"n":1}"#, &change), r#"{"n":1,"max_completion_tokens":9}"#);
        assert_eq!(spliced(Dialect::OpenAiChat, r#"{"n":1}"#, &old), r#"{"n":1,"max_tokens":9}"#);
        assert_eq!(spliced(Dialect::AnthropicMessages, r#"{"n":1}"#, &change), r#"{"n":1,"max_tokens":9}"#);
        assert_eq!(spliced(Dialect::OpenAiChat, r#"{"max_tokens":null}"#, &old), r#"{"max_tokens":9}"#);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(".*", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn body() -> impl Strategy<Value = Value> {
        const KNOWN: &[&str] = &["model", "max_tokens", "max_completion_tokens", "stream_options", "messages"];
        let name = prop_oneof![prop::sample::select(KNOWN).prop_map(str::to_owned), ".*"];
        let options = prop::option::of(any::<bool>())
            .prop_map(|told| told.map_or_else(|| json!({"other": 1}), |told| json!({"include_usage": told})));
        prop::collection::hash_map(name, prop_oneof![3 => value(), 1 => options], 0..6)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    proptest! {
        /// What the bytes mean after a splice is what they meant before, with the change made.
        #[test]
        fn a_splice_is_the_change_and_nothing_else(
            body in body(), pretty in any::<bool>(), model in prop::option::of(".*"), usage in any::<bool>(),
            cap in prop::option::of(any::<u64>()),
        ) {
            let bytes = if pretty { serde_json::to_vec_pretty(&body) } else { serde_json::to_vec(&body) }.unwrap();
            let change = Change { model: model.as_deref(), include_usage: usage, output_max: cap, ..Change::default() };

            let out: Value = serde_json::from_slice(&splice(Dialect::OpenAiChat, &bytes, &change)).unwrap();

            let mut wanted = body;
            if let Some(model) = model {
                wanted["model"] = json!(model);
            }
            if let Some(cap) = cap {
                let old = wanted.get("max_tokens").is_some_and(|value| !value.is_null());
                wanted[if old { "max_tokens" } else { "max_completion_tokens" }] = json!(cap);
            }
            let takes_options = wanted.get("stream_options").is_none_or(|options| options.is_object() || options.is_null());
            if usage && takes_options {
                wanted["stream_options"]["include_usage"] = json!(true);
            }
            prop_assert_eq!(out, wanted);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let change = Change { model: Some("m"), include_usage: true, output_max: Some(1), ..Change::default() };
            if serde_json::from_slice::<Value>(&bytes).is_err() {
                prop_assert_eq!(splice(Dialect::OpenAiChat, &bytes, &change), bytes);
            }
        }
    }
}

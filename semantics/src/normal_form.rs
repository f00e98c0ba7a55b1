//! What of a request decides its answer, as bytes: the same bytes mean the same question.
//!
//! Every field is in it except [`IGNORED`] ones and those about delivery, each with its reason; a field nobody here knows decides.
//! Each value is tagged and each length is written before what it measures, so no two forms run into each other. Objects
//! are sorted by key, numbers are compared as numbers (`1`, `1.0` and `1e0` are one), and the dialect is part of the form
//! only where something is said that only this dialect knows: the same question through two APIs is one question.

use llm::chat::{Block, ChatRequest, ImageSource, Message, Role, Tool, ToolChoice};
use llm::dialect::Dialect;
use serde_json::{Map, Number, Value};

/// Counts up whenever the bytes of any request change, so that nodes of two versions never take one's for the other's.
pub const FORMAT: u8 = 1;

/// The form of most requests fits without growing.
const BYTES_EXPECTED: usize = 2048;

/// `target_line` stands for `request.model`: the name of the route that the client's word led to.
pub fn normal_form(request: &ChatRequest, dialect: Dialect, target_line: &str) -> Vec<u8> {
    let ChatRequest {
        model: _,
        system,
        messages,
        tools,
        tool_choice,
        parallel_tool_calls,
        output_max,
        temperature,
        top_p,
        top_k,
        stop,
        choices,
        // How the answer is delivered, not what it is.
        stream: _,
        include_usage: _,
        // Whom the client asks for. Who shares answers is the scope's business.
        end_user: _,
        extra,
    } = request;
    let mut form = Form { bytes: Vec::with_capacity(BYTES_EXPECTED) };
    form.bytes.push(FORMAT);
    form.text(Tag::Model, target_line);
    form.blocks(Tag::System, system);
    form.list(Tag::Messages, messages, Form::message);
    form.list(Tag::Tools, tools, Form::tool);
    form.tool_choice(tool_choice.as_ref(), tools);
    // True is what both dialects take for granted.
    if *parallel_tool_calls == Some(false) {
        form.tag(Tag::NoParallelToolCalls);
    }
    form.optional(Tag::OutputMax, *output_max, Form::integer);
    form.optional(Tag::Temperature, temperature.as_ref(), Form::number);
    form.optional(Tag::TopP, top_p.as_ref(), Form::number);
    form.optional(Tag::TopK, *top_k, Form::integer);
    form.list(Tag::Stop, stop, |form, stop| form.text(Tag::Text, stop));
    form.integer(Tag::Choices, u64::from(*choices));
    form.extra(extra, dialect, tools);
    form.bytes
}

/// Fields that do not decide the answer, by group with the reason.
const IGNORED: [&str; 8] = [
    // Whom the client asks for, and labels of its own.
    "metadata",
    "safety_identifier",
    "user",
    // How soon and at what price it is answered.
    "service_tier",
    // Whether the provider keeps it. A request that wants it kept is not cacheable at all.
    "store",
    // What the provider's prompt cache should do.
    "cache_control",
    "prompt_cache_key",
    "prompt_cache_retention",
];

/// `name` is a field of the body, or a path to a deeper one: how a stream is cut, or the prompt cache again.
fn is_ignored(name: &str) -> bool {
    IGNORED.contains(&name)
        || (name.contains('[') && name.ends_with(".cache_control"))
        || name.starts_with("stream_options.")
}

/// What comes next. Numbers are never used again for something else; changing one changes [`FORMAT`].
#[derive(Clone, Copy)]
#[repr(u8)]
enum Tag {
    Model = 1,
    System = 2,
    Messages = 3,
    Message = 4,
    Tools = 5,
    Tool = 6,
    ToolChoice = 7,
    NoParallelToolCalls = 8,
    OutputMax = 9,
    Temperature = 10,
    TopP = 11,
    TopK = 12,
    Stop = 13,
    Choices = 14,
    Dialect = 15,
    Extra = 16,
    Name = 17,
    Blocks = 18,
    Description = 19,
    Parameters = 20,
    Strict = 21,
    Raw = 22,
    Text = 32,
    ImageBase64 = 33,
    ImageUrl = 34,
    Detail = 35,
    ToolUse = 36,
    Arguments = 37,
    ToolResult = 38,
    Failed = 39,
    Refusal = 40,
    Thinking = 41,
    Signature = 42,
    Other = 43,
    Data = 44,
    Null = 48,
    True = 49,
    False = 50,
    Integer = 51,
    Fraction = 52,
    String = 53,
    Array = 54,
    Object = 55,
    Key = 56,
}

struct Form {
    bytes: Vec<u8>,
}

impl Form {
    fn tag(&mut self, tag: Tag) {
        self.bytes.push(tag as u8);
    }

    fn length(&mut self, length: usize) {
        self.bytes.extend_from_slice(&(length as u64).to_le_bytes());
    }

    fn text(&mut self, tag: Tag, text: &str) {
        self.tag(tag);
        self.length(text.len());
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn integer(&mut self, tag: Tag, integer: u64) {
        self.tag(tag);
        self.bytes.extend_from_slice(&integer.to_le_bytes());
    }

    fn optional<T>(&mut self, tag: Tag, value: Option<T>, write: impl FnOnce(&mut Self, Tag, T)) {
        if let Some(value) = value {
            write(self, tag, value);
        }
    }

    /// An empty list is no list.
    fn list<T>(&mut self, tag: Tag, items: &[T], write: impl Fn(&mut Self, &T)) {
        if items.is_empty() {
            return;
        }
        self.tag(tag);
        self.length(items.len());
        for item in items {
            write(self, item);
        }
    }

    fn blocks(&mut self, tag: Tag, blocks: &[Block]) {
        self.list(tag, blocks, Self::block);
    }

    fn message(&mut self, message: &Message) {
        let Message { role, blocks, name } = message;
        self.tag(Tag::Message);
        self.bytes.push(match role {
            Role::System => 0,
            Role::User => 1,
            Role::Assistant => 2,
        });
        self.optional(Tag::Name, name.as_deref(), Self::text);
        self.blocks(Tag::Blocks, blocks);
    }

    fn block(&mut self, block: &Block) {
        match block {
            // `cache_control` speaks to the provider's prompt cache.
            Block::Text { text, cache_control: _ } => self.text(Tag::Text, text),
            Block::Image { source, detail } => self.image(source, detail.as_deref()),
            Block::ToolUse { id, name, arguments } => {
                self.text(Tag::ToolUse, id);
                self.text(Tag::Name, name);
                self.arguments(arguments);
            }
            Block::ToolResult { id, content, is_error } => {
                self.text(Tag::ToolResult, id);
                if *is_error {
                    self.tag(Tag::Failed);
                }
                self.blocks(Tag::Blocks, content);
            }
            Block::Refusal { text } => self.text(Tag::Refusal, text),
            Block::Thinking { text, signature } => {
                self.text(Tag::Thinking, text);
                self.optional(Tag::Signature, signature.as_deref(), Self::text);
            }
            Block::Other { dialect, value } => {
                self.text(Tag::Other, dialect);
                self.value(value);
            }
        }
    }

    fn image(&mut self, source: &ImageSource, detail: Option<&str>) {
        match source {
            ImageSource::Base64 { media_type, data } => {
                self.text(Tag::ImageBase64, media_type);
                self.text(Tag::Data, data);
            }
            ImageSource::Url { url } => self.text(Tag::ImageUrl, url),
        }
        // What OpenAI takes for granted, and all that the other dialect has.
        self.optional(Tag::Detail, detail.filter(|detail| *detail != "auto"), Self::text);
    }

    /// JSON as a model wrote it: its digits and the order of its fields are kept, but white space next to brackets, commas
    /// and colons is not, because one client sends back what it was given and another writes it anew.
    fn arguments(&mut self, json: &str) {
        self.tag(Tag::Arguments);
        let length_at = self.bytes.len();
        self.length(0);
        let start = self.bytes.len();
        let mut in_string = false;
        let mut escaped = false;
        let mut pending = 0..0;
        let json = json.as_bytes();
        for (at, &byte) in json.iter().enumerate() {
            if in_string {
                self.bytes.push(byte);
                in_string = escaped || byte != b'"';
                escaped = !escaped && byte == b'\\';
                continue;
            }
            if byte.is_ascii_whitespace() {
                pending = if pending.is_empty() { at..at + 1 } else { pending.start..at + 1 };
                continue;
            }
            let is_structure = |byte: u8| b"{}[],:".contains(&byte);
            let after_structure = self.bytes.get(start..).and_then(<[u8]>::last).is_none_or(|last| is_structure(*last));
            // Between two words white space stays: without it they would be one.
            if !after_structure && !is_structure(byte) {
                self.bytes.extend_from_slice(&json[pending.clone()]);
            }
            pending = 0..0;
            self.bytes.push(byte);
            in_string = byte == b'"';
        }
        let length = (self.bytes.len() - start) as u64;
        self.bytes[length_at..start].copy_from_slice(&length.to_le_bytes());
    }

    fn tool(&mut self, tool: &Tool) {
        let Tool { name, description, parameters, strict, raw } = tool;
        self.text(Tag::Tool, name);
        self.optional(Tag::Description, description.as_deref(), Self::text);
        self.tag(Tag::Parameters);
        self.value(parameters);
        // False is what both dialects take for granted.
        if *strict == Some(true) {
            self.tag(Tag::Strict);
        }
        if let Some(raw) = raw {
            self.tag(Tag::Raw);
            self.value(raw);
        }
    }

    /// `auto` is what both dialects take for granted; without tools there is nothing to choose.
    fn tool_choice(&mut self, choice: Option<&ToolChoice>, tools: &[Tool]) {
        match choice {
            None | Some(ToolChoice::Auto) => {}
            Some(ToolChoice::None) if tools.is_empty() => {}
            Some(ToolChoice::None) => self.text(Tag::ToolChoice, "none"),
            Some(ToolChoice::Required) => self.text(Tag::ToolChoice, "required"),
            Some(ToolChoice::Named(name)) => {
                self.text(Tag::ToolChoice, "named");
                self.text(Tag::Name, name);
            }
        }
    }

    fn extra(&mut self, extra: &Map<String, Value>, dialect: Dialect, tools: &[Tool]) {
        // `null` is how SDKs say nothing.
        let deciding = extra.iter().filter(|(name, value)| !is_ignored(name) && !value.is_null());
        let fields: Vec<_> = deciding.collect();
        if !fields.is_empty() || tools.iter().any(|tool| tool.raw.is_some()) {
            self.text(Tag::Dialect, dialect.name());
        }
        if !fields.is_empty() {
            self.tag(Tag::Extra);
            self.fields(fields);
        }
    }

    /// As deep as the decoder let it be.
    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.tag(Tag::Null),
            Value::Bool(true) => self.tag(Tag::True),
            Value::Bool(false) => self.tag(Tag::False),
            Value::Number(number) => self.bare_number(number),
            Value::String(text) => self.text(Tag::String, text),
            Value::Array(items) => {
                self.tag(Tag::Array);
                self.length(items.len());
                for item in items {
                    self.value(item);
                }
            }
            Value::Object(fields) => {
                self.tag(Tag::Object);
                self.fields(fields.iter().collect());
            }
        }
    }

    /// Sorted by key.
    fn fields(&mut self, mut fields: Vec<(&String, &Value)>) {
        fields.sort_unstable_by_key(|(key, _)| *key);
        self.length(fields.len());
        for (key, value) in fields {
            self.text(Tag::Key, key);
            self.value(value);
        }
    }

    fn number(&mut self, tag: Tag, number: &Number) {
        self.tag(tag);
        self.bare_number(number);
    }

    /// Whole numbers as such, however they were written; all others by the bits of the nearest double, which is all that
    /// decoding left of them.
    fn bare_number(&mut self, number: &Number) {
        let whole = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
        let double = number.as_f64().unwrap_or(f64::NAN);
        if let Some(whole) = whole.or_else(|| as_whole(double)) {
            self.tag(Tag::Integer);
            self.bytes.extend_from_slice(&whole.to_le_bytes());
        } else {
            self.tag(Tag::Fraction);
            self.bytes.extend_from_slice(&double.to_bits().to_le_bytes());
        }
    }
}

/// The whole number a double is, where it is one that 64 bits hold.
fn as_whole(double: f64) -> Option<i128> {
    const LIMIT: f64 = 18_446_744_073_709_551_616.0;
    if double.fract() != 0.0 || double.abs() >= LIMIT {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and below 2^64 in size")]
    let whole = double as i128;
    Some(whole)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arguments(json: &str) -> Vec<u8> {
        let mut form = Form { bytes: Vec::new() };
        form.arguments(json);
        form.bytes.split_off(9)
    }

    fn value(value: &Value) -> Vec<u8> {
        let mut form = Form { bytes: Vec::new() };
        form.value(value);
        form.bytes
    }

    #[test]
    fn numbers_are_one_however_they_are_written() {
        let parse = |text: &str| value(&serde_json::from_str(text).unwrap());
        for same in ["1.0", "1e0", "10e-1"] {
            assert_eq!(parse(same), parse("1"), "{same}");
        }
        assert_eq!(parse("-0.0"), parse("0"));
        assert_eq!(parse("18446744073709551615"), value(&json!(u64::MAX)));
        for other in ["1.5", "-1", "\"1\"", "true", "1e300", "[1]", "null"] {
            assert_ne!(parse(other), parse("1"), "{other}");
        }
        assert_ne!(parse("1e300"), parse("1e301"));
    }

    #[test]
    fn objects_are_sorted_and_lists_are_not() {
        assert_eq!(value(&json!({"a": 1, "b": {"c": 2, "d": 3}})), value(&json!({"b": {"d": 3, "c": 2}, "a": 1})));
        assert_ne!(value(&json!([1, 2])), value(&json!([2, 1])));
        assert_ne!(value(&json!([[1], 2])), value(&json!([[1, 2]])));
        assert_ne!(value(&json!({"a": null})), value(&json!({})));
    }

    #[test]
    fn white_space_between_the_parts_of_json_does_not_count() {
        let plain = br#"{"city":"New  York","days":[1,2]}"#;
        assert_eq!(arguments("{\"city\": \"New  York\",\n \"days\": [1, 2] }"), plain);
        assert_eq!(arguments(" {\"city\":\"New  York\",\"days\":[1,2]}\n"), plain);
        assert_eq!(arguments(r#"{ "a" : "\" , \\" , "b" : 1 }"#), br#"{"a":"\" , \\","b":1}"#);
        assert_ne!(arguments("1 2"), arguments("12"));
        assert_eq!(arguments(""), b"");
    }
}

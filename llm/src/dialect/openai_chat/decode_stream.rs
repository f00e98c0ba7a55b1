//! A vendor's stream, chunk by chunk.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::error::fault_of;
use super::wire::{WireUsage, finish_of};
use crate::chat::{Delta, Finish};
use crate::fault::Fault;
use crate::json::Text;
use crate::sse;

/// Choices of one stream. `n` goes to 128.
const CHOICES_MAX: u32 = 128;

/// Calls of one choice; no model makes so many.
const CALLS_MAX: usize = 1024;

#[derive(Debug, Default)]
pub struct Decoder {
    started: bool,
    choices: Vec<ChoiceState>,
}

#[derive(Debug)]
struct ChoiceState {
    index: u32,
    refused: bool,
    /// In the order they began.
    calls: Vec<OpenCall>,
}

#[derive(Debug)]
struct OpenCall {
    wire_index: Option<u32>,
    id: String,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    id: Option<Text<'a>>,
    #[serde(borrow, default)]
    model: Option<Text<'a>>,
    #[serde(default)]
    created: Option<u64>,
    #[serde(borrow, default)]
    choices: Option<Vec<ChunkChoice<'a>>>,
    #[serde(default)]
    usage: Option<WireUsage>,
    /// Groq says the usage here too, and long said it only here.
    #[serde(default)]
    x_groq: Option<GroqPart>,
    #[serde(default)]
    error: Option<Value>,
    /// Mistral packs an error into no field of its own: `{"object": "error", "message": …}`.
    #[serde(borrow, default)]
    object: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct GroqPart {
    #[serde(default)]
    usage: Option<WireUsage>,
}

#[derive(Deserialize)]
struct ChunkChoice<'a> {
    #[serde(default)]
    index: u32,
    #[serde(borrow, default)]
    delta: Option<ChunkDelta<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<Text<'a>>,
    #[serde(borrow, default)]
    stop_reason: Option<StringOrOther<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ChunkDelta<'a> {
    #[serde(borrow)]
    content: Option<Content<'a>>,
    #[serde(borrow)]
    refusal: Option<Text<'a>>,
    #[serde(borrow)]
    reasoning_content: Option<Text<'a>>,
    #[serde(borrow)]
    reasoning: Option<StringOrOther<'a>>,
    #[serde(borrow)]
    tool_calls: Option<Vec<CallDelta<'a>>>,
}

#[derive(Deserialize)]
struct CallDelta<'a> {
    #[serde(default)]
    index: Option<u32>,
    #[serde(borrow, default)]
    id: Option<Text<'a>>,
    #[serde(borrow, default)]
    function: Option<FunctionDelta<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FunctionDelta<'a> {
    #[serde(borrow)]
    name: Option<Text<'a>>,
    #[serde(borrow)]
    arguments: Option<Text<'a>>,
}

impl Decoder {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn event(&mut self, event: &sse::Event) -> Result<Vec<Delta>, Fault> {
        let data = event.data.trim_ascii();
        if data.is_empty() {
            return Ok(Vec::new());
        }
        if data == b"[DONE]" {
            return Ok(vec![Delta::End]);
        }
        // Serde would take a list for the fields in their order.
        if !data.starts_with(b"{") {
            return Err(Fault::malformed("a chunk of the stream is not an object"));
        }
        let chunk: Chunk<'_> = serde_json::from_slice(data)
            .map_err(|error| Fault::malformed(format!("a chunk of the stream is malformed: {error}")))?;
        if let Some(error) = &chunk.error {
            return Ok(vec![Delta::Fault(fault_of(error, None))]);
        }
        if chunk.object.as_ref().is_some_and(|object| object.0 == "error") {
            let whole = serde_json::from_slice(data).unwrap_or(Value::Null);
            return Ok(vec![Delta::Fault(fault_of(&whole, None))]);
        }
        self.chunk(chunk)
    }

    fn chunk(&mut self, chunk: Chunk<'_>) -> Result<Vec<Delta>, Fault> {
        let mut deltas = Vec::new();
        let id = chunk.id.unwrap_or_default().0;
        let choices = chunk.choices.unwrap_or_default();
        if !self.started && (!id.is_empty() || !choices.is_empty()) {
            self.started = true;
            let model = chunk.model.unwrap_or_default().0.into_owned();
            deltas.push(Delta::Start { id: id.into_owned(), model, created: chunk.created });
        }
        for choice in choices {
            self.choice(choice, &mut deltas)?;
        }
        let usage = chunk.usage.or_else(|| chunk.x_groq.and_then(|groq| groq.usage));
        if let Some(usage) = usage.and_then(|usage| usage.canonical()) {
            deltas.push(Delta::Usage(usage));
        }
        Ok(deltas)
    }

    fn choice(&mut self, wire: ChunkChoice<'_>, deltas: &mut Vec<Delta>) -> Result<(), Fault> {
        let choice = wire.index;
        if choice >= CHOICES_MAX {
            return Err(Fault::malformed(format!("a chunk of the stream is for choice {choice}")));
        }
        let known = self.choices.iter().position(|state| state.index == choice);
        if known.is_none() {
            self.choices.push(ChoiceState { index: choice, refused: false, calls: Vec::new() });
        }
        let place = known.unwrap_or(self.choices.len() - 1);
        let Some(state) = self.choices.get_mut(place) else { return Ok(()) };
        let delta = wire.delta.unwrap_or_default();
        let reasoning = delta.reasoning_content.or_else(|| delta.reasoning.and_then(StringOrOther::string));
        let (mut thought, text) = delta.content.map(|content| (content.thinking, content.text)).unwrap_or_default();
        thought.insert_str(0, &reasoning.unwrap_or_default().0);
        if !thought.is_empty() {
            deltas.push(Delta::Thinking { choice, text: thought });
        }
        if !text.is_empty() {
            deltas.push(Delta::Text { choice, text: text.into_owned() });
        }
        if let Some(refusal) = delta.refusal.filter(|refusal| !refusal.0.is_empty()) {
            state.refused = true;
            deltas.push(Delta::Refusal { choice, text: refusal.0.into_owned() });
        }
        for call in delta.tool_calls.unwrap_or_default() {
            state.call(call, deltas)?;
        }
        if let Some(word) = wire.finish_reason.filter(|word| !word.0.is_empty()) {
            let mut reason = finish_of(&word.0);
            if state.refused && reason == Finish::Stop {
                reason = Finish::Refusal;
            }
            let stop_sequence = wire.stop_reason.and_then(StringOrOther::string).map(|stop| stop.0.into_owned());
            deltas.push(Delta::Finish { choice, reason, stop_sequence });
        }
        Ok(())
    }
}

impl ChoiceState {
    /// A call begins with an id not seen at its index. Some vendors repeat the id in every piece, some give whole calls
    /// under one index or none.
    fn call(&mut self, wire: CallDelta<'_>, deltas: &mut Vec<Delta>) -> Result<(), Fault> {
        let id = wire.id.map(|id| id.0).filter(|id| !id.is_empty());
        let function = wire.function.unwrap_or_default();
        let name = function.name.map(|name| name.0).filter(|name| !name.is_empty());
        let open = match wire.index {
            Some(index) => self.calls.iter().rposition(|call| call.wire_index == Some(index)),
            None => self.calls.len().checked_sub(1),
        };
        let goes_on = open.filter(|open| match (&id, self.calls.get(*open)) {
            (Some(id), Some(call)) => call.id == **id || (wire.index.is_some() && name.is_none()),
            (None, _) => name.is_none() || wire.index.is_some(),
            (Some(_), None) => false,
        });
        let choice = self.index;
        let place = goes_on.unwrap_or(self.calls.len());
        let tool = u32::try_from(place).unwrap_or(u32::MAX);
        if goes_on.is_none() {
            if place >= CALLS_MAX {
                return Err(Fault::malformed(format!(
                    "choice {choice} of the stream has more than {CALLS_MAX} tool calls"
                )));
            }
            let id = id.map_or_else(|| format!("call_{choice}_{tool}"), Cow::into_owned);
            self.calls.push(OpenCall { wire_index: wire.index, id: id.clone() });
            let name = name.unwrap_or_default().into_owned();
            deltas.push(Delta::ToolStart { choice, tool, id, name });
        }
        if let Some(arguments) = function.arguments.filter(|arguments| !arguments.0.is_empty()) {
            deltas.push(Delta::ToolArguments { choice, tool, fragment: arguments.0.into_owned() });
        }
        Ok(())
    }
}

/// A text, or Mistral's list of parts with its thinking among them.
#[derive(Default)]
struct Content<'a> {
    text: Cow<'a, str>,
    thinking: String,
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ContentVisitor;

        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = Content<'de>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a string or a list of parts")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Content { text: Cow::Borrowed(text), thinking: String::new() })
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Content { text: Cow::Owned(text.to_owned()), thinking: String::new() })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
                let mut content = Content::default();
                while let Some(part) = parts.next_element::<Value>()? {
                    if let Some(text) = part["text"].as_str() {
                        content.text.to_mut().push_str(text);
                    }
                    let thoughts = part["thinking"].as_array().into_iter().flatten();
                    content.thinking.extend(thoughts.filter_map(|thought| thought["text"].as_str()));
                }
                Ok(content)
            }
        }

        deserializer.deserialize_any(ContentVisitor)
    }
}

/// A field that is sometimes a string and sometimes of no interest.
enum StringOrOther<'a> {
    String(Cow<'a, str>),
    Other,
}

impl<'a> StringOrOther<'a> {
    fn string(self) -> Option<Text<'a>> {
        match self {
            Self::String(text) => Some(Text(text)),
            Self::Other => None,
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for StringOrOther<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StringVisitor;

        impl<'de> Visitor<'de> for StringVisitor {
            type Value = StringOrOther<'de>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("any value")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(StringOrOther::String(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(StringOrOther::String(Cow::Owned(text.to_owned())))
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
                Ok(StringOrOther::Other)
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
                Ok(StringOrOther::Other)
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self::Value, E> {
                Ok(StringOrOther::Other)
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
                Ok(StringOrOther::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
                while parts.next_element::<IgnoredAny>()?.is_some() {}
                Ok(StringOrOther::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
                while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(StringOrOther::Other)
            }
        }

        deserializer.deserialize_any(StringVisitor)
    }
}

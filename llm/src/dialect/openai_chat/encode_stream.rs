//! A stream to a client that speaks OpenAI.

use serde::Serialize;
use serde_json::{Value, json};

use super::NAME;
use super::wire::{UsageOut, finish_word};
use crate::chat::Delta;
use crate::dialect::StreamOptions;
use crate::json;
use crate::usage::Usage;

#[derive(Debug)]
pub struct Encoder {
    include_usage: bool,
    /// What every chunk begins with, up to its choices.
    head: Vec<u8>,
    choices: Vec<ChoiceState>,
    usage: Option<Usage>,
}

#[derive(Debug)]
struct ChoiceState {
    index: u32,
    refused: bool,
}

#[derive(Default, Serialize)]
struct DeltaOut<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallOut<'a>; 1]>,
}

#[derive(Serialize)]
struct CallOut<'a> {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionOut<'a>,
}

#[derive(Serialize)]
struct FunctionOut<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

impl Encoder {
    pub fn new(options: StreamOptions) -> Self {
        let mut encoder =
            Self { include_usage: options.include_usage, head: Vec::new(), choices: Vec::new(), usage: None };
        encoder.start("", "", None);
        encoder
    }

    /// A fault writes nothing: what a client may read of it is not decided here, see
    /// [`crate::dialect::Dialect::encode_stream_error`].
    pub fn delta(&mut self, delta: &Delta, out: &mut Vec<u8>) {
        match delta {
            Delta::Start { id, model, created } => self.start(id, model, *created),
            Delta::Text { choice, text } => {
                self.say(*choice, &DeltaOut { content: Some(text), ..DeltaOut::default() }, out);
            }
            Delta::Refusal { choice, text } => {
                self.open(*choice, out);
                self.choices.iter_mut().filter(|state| state.index == *choice).for_each(|state| state.refused = true);
                self.say(*choice, &DeltaOut { refusal: Some(text), ..DeltaOut::default() }, out);
            }
            Delta::Thinking { choice, text } => {
                self.say(*choice, &DeltaOut { reasoning_content: Some(text), ..DeltaOut::default() }, out);
            }
            Delta::ToolStart { choice, tool, id, name } => {
                let function = FunctionOut { name: Some(name), arguments: "" };
                let call = CallOut { index: *tool, id: Some(id), r#type: Some("function"), function };
                self.say(*choice, &DeltaOut { tool_calls: Some([call]), ..DeltaOut::default() }, out);
            }
            Delta::ToolArguments { choice, tool, fragment } => {
                let function = FunctionOut { name: None, arguments: fragment };
                let call = CallOut { index: *tool, id: None, r#type: None, function };
                self.say(*choice, &DeltaOut { tool_calls: Some([call]), ..DeltaOut::default() }, out);
            }
            Delta::Finish { choice, reason, .. } => {
                self.open(*choice, out);
                let refused = self.choices.iter().any(|state| state.index == *choice && state.refused);
                self.chunk(*choice, &json!({}), Some(finish_word(reason, refused)), out);
            }
            Delta::Usage(usage) => self.usage = Some(*usage),
            Delta::Other { choice, dialect, value } => {
                let is_fields = value.as_object().is_some_and(|fields| !fields.contains_key("type"));
                if dialect == NAME && is_fields {
                    self.say::<Value>(*choice, value, out);
                }
            }
            Delta::Ping => out.extend_from_slice(b": ping\n\n"),
            Delta::ThinkingSignature { .. } | Delta::End | Delta::Fault(_) => {}
        }
    }

    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if let Some(usage) = self.usage.take().filter(|_| self.include_usage) {
            out.extend_from_slice(&self.head);
            out.extend_from_slice(b"[],\"usage\":");
            json::write(&UsageOut::from(&usage), out);
            out.extend_from_slice(b"}\n\n");
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn start(&mut self, id: &str, model: &str, created: Option<u64>) {
        self.head.clear();
        self.head.extend_from_slice(b"data: {\"id\":");
        json::write_string(id, &mut self.head);
        self.head.extend_from_slice(b",\"object\":\"chat.completion.chunk\",\"created\":");
        json::write(&created.unwrap_or(0), &mut self.head);
        self.head.extend_from_slice(b",\"model\":");
        json::write_string(model, &mut self.head);
        self.head.extend_from_slice(b",\"choices\":");
    }

    /// The role comes first, once for each choice.
    fn open(&mut self, choice: u32, out: &mut Vec<u8>) {
        if self.choices.iter().any(|state| state.index == choice) {
            return;
        }
        self.choices.push(ChoiceState { index: choice, refused: false });
        let role = DeltaOut { role: Some("assistant"), content: Some(""), ..DeltaOut::default() };
        self.chunk(choice, &role, None, out);
    }

    fn say<T: Serialize>(&mut self, choice: u32, delta: &T, out: &mut Vec<u8>) {
        self.open(choice, out);
        self.chunk(choice, delta, None, out);
    }

    fn chunk<T: Serialize>(&self, choice: u32, delta: &T, finish: Option<&str>, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b"[{\"index\":");
        json::write(&choice, out);
        out.extend_from_slice(b",\"delta\":");
        json::write(delta, out);
        out.extend_from_slice(b",\"logprobs\":null,\"finish_reason\":");
        json::write(&finish, out);
        out.extend_from_slice(b"}]");
        // OpenAI's own chunks say so when usage was asked for: it comes last.
        out.extend_from_slice(if self.include_usage { b",\"usage\":null}\n\n" } else { b"}\n\n" });
    }
}

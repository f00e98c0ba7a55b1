//! A stream of this API to steps.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Counts, NAME, error, finish_of};
use crate::chat::Delta;
use crate::fault::Fault;
use crate::json::Text;
use crate::sse;

/// Blocks begun and not stopped. This API has one at a time; more than this is no stream of it.
const OPEN_MAX: usize = 64;

/// Bytes of input gathered for a block that is handed on whole.
const INPUT_MAX: usize = 4 << 20;

/// Reads one stream.
#[derive(Debug, Default)]
pub struct Decoder {
    open: BTreeMap<u64, Open>,
    tools: u32,
    counts: Counts,
}

#[derive(Debug)]
enum Open {
    Call {
        tool: u32,
        /// What the block began with, to be said if nothing follows.
        input: String,
        said: bool,
    },
    /// A block only this API knows, handed on when it is whole.
    Other { block: Map<String, Value>, input: String },
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, rename = "type")]
    kind: Text<'a>,
    index: Option<u64>,
    #[serde(borrow)]
    delta: Option<Piece<'a>>,
    #[serde(borrow)]
    message: Option<Message<'a>>,
    content_block: Option<Map<String, Value>>,
    usage: Option<Counts>,
    error: Option<Value>,
}

/// The `delta` of a block or of the message.
#[derive(Default, Deserialize)]
struct Piece<'a> {
    text: Option<String>,
    partial_json: Option<String>,
    thinking: Option<String>,
    signature: Option<String>,
    #[serde(borrow)]
    stop_reason: Option<Text<'a>>,
    stop_sequence: Option<String>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    model: Text<'a>,
    usage: Option<Counts>,
}

#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(borrow, rename = "type")]
    kind: Text<'a>,
}

impl Decoder {
    pub fn new() -> Self {
        Self::default()
    }

    /// What one event says. Events of a kind that is not known here say nothing, as this API demands of its readers.
    pub fn event(&mut self, event: &sse::Event) -> Result<Vec<Delta>, Fault> {
        let event: Event = match serde_json::from_slice(&event.data) {
            Ok(event) => event,
            Err(_) if unknown(&event.data) => return Ok(Vec::new()),
            Err(cause) => return Err(Fault::malformed(format!("an event cannot be read: {cause}"))),
        };
        let mut deltas = Vec::new();
        match &*event.kind.0 {
            "message_start" => self.message_start(event.message, &mut deltas)?,
            "content_block_start" => self.block_start(index(event.index)?, event.content_block, &mut deltas)?,
            "content_block_delta" => self.block_delta(index(event.index)?, event.delta, &mut deltas)?,
            "content_block_stop" => self.block_stop(index(event.index)?, &mut deltas),
            "message_delta" => {
                let piece = event.delta.unwrap_or_default();
                if let Some(reason) = piece.stop_reason {
                    let stop_sequence = piece.stop_sequence;
                    deltas.push(Delta::Finish { choice: 0, reason: finish_of(&reason.0), stop_sequence });
                }
                self.count(event.usage, &mut deltas);
            }
            "message_stop" => deltas.push(Delta::End),
            "ping" => deltas.push(Delta::Ping),
            "error" => deltas.push(Delta::Fault(error::fault(None, &event.error.unwrap_or_default()))),
            _ => {}
        }
        Ok(deltas)
    }

    fn message_start(&mut self, message: Option<Message>, deltas: &mut Vec<Delta>) -> Result<(), Fault> {
        let message = message.ok_or_else(|| Fault::malformed("`message_start` has no `message`"))?;
        deltas.push(Delta::Start { id: message.id.0.into_owned(), model: message.model.0.into_owned(), created: None });
        self.count(message.usage, deltas);
        Ok(())
    }

    fn count(&mut self, newer: Option<Counts>, deltas: &mut Vec<Delta>) {
        if let Some(newer) = newer {
            self.counts = self.counts.and(newer);
            deltas.push(Delta::Usage(self.counts.usage()));
        }
    }

    fn block_start(
        &mut self,
        index: u64,
        block: Option<Map<String, Value>>,
        deltas: &mut Vec<Delta>,
    ) -> Result<(), Fault> {
        let block = block.ok_or_else(|| Fault::malformed("`content_block_start` has no `content_block`"))?;
        if self.open.len() == OPEN_MAX {
            return Err(Fault::malformed(format!("more than {OPEN_MAX} blocks are open at once")));
        }
        let word = |name| block.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        match word("type").as_str() {
            "text" => say(word("text"), |text| Delta::Text { choice: 0, text }, deltas),
            "thinking" => {
                say(word("thinking"), |text| Delta::Thinking { choice: 0, text }, deltas);
                say(word("signature"), |signature| Delta::ThinkingSignature { choice: 0, signature }, deltas);
            }
            "tool_use" => {
                let tool = self.tools;
                self.tools = tool.saturating_add(1);
                deltas.push(Delta::ToolStart { choice: 0, tool, id: word("id"), name: word("name") });
                let input = block.get("input").filter(|input| input.is_object());
                let input = input.map_or_else(|| "{}".to_owned(), Value::to_string);
                self.open.insert(index, Open::Call { tool, input, said: false });
            }
            _ => {
                self.open.insert(index, Open::Other { block, input: String::new() });
            }
        }
        Ok(())
    }

    fn block_delta(&mut self, index: u64, piece: Option<Piece>, deltas: &mut Vec<Delta>) -> Result<(), Fault> {
        let piece = piece.unwrap_or_default();
        if let Some(fragment) = piece.partial_json {
            match self.open.get_mut(&index) {
                Some(Open::Call { tool, said, .. }) => {
                    let tool = *tool;
                    *said |= !fragment.is_empty();
                    say(fragment, |fragment| Delta::ToolArguments { choice: 0, tool, fragment }, deltas);
                }
                Some(Open::Other { input, .. }) if input.len() + fragment.len() <= INPUT_MAX => {
                    input.push_str(&fragment);
                }
                Some(Open::Other { .. }) => return Err(Fault::malformed("the input of a block is too long")),
                None => return Err(Fault::malformed(format!("block {index} has input and was not begun"))),
            }
        }
        say(piece.text.unwrap_or_default(), |text| Delta::Text { choice: 0, text }, deltas);
        say(piece.thinking.unwrap_or_default(), |text| Delta::Thinking { choice: 0, text }, deltas);
        let signature = |signature| Delta::ThinkingSignature { choice: 0, signature };
        say(piece.signature.unwrap_or_default(), signature, deltas);
        Ok(())
    }

    /// A call without input says so, as a whole answer does.
    fn block_stop(&mut self, index: u64, deltas: &mut Vec<Delta>) {
        match self.open.remove(&index) {
            Some(Open::Call { tool, input, said: false }) => {
                deltas.push(Delta::ToolArguments { choice: 0, tool, fragment: input });
            }
            Some(Open::Other { mut block, input }) => {
                if let Ok(input) = serde_json::from_str(&input) {
                    block.insert("input".to_owned(), input);
                }
                deltas.push(Delta::Other { choice: 0, dialect: NAME.to_owned(), value: Value::Object(block) });
            }
            Some(Open::Call { said: true, .. }) | None => {}
        }
    }
}

fn say(text: String, delta: impl FnOnce(String) -> Delta, deltas: &mut Vec<Delta>) {
    if !text.is_empty() {
        deltas.push(delta(text));
    }
}

fn index(index: Option<u64>) -> Result<u64, Fault> {
    index.ok_or_else(|| Fault::malformed("an event of a block has no `index`"))
}

/// Whether an event is of a kind whose shape is not known here.
fn unknown(data: &[u8]) -> bool {
    serde_json::from_slice::<Kind>(data).is_ok_and(|kind| {
        !matches!(
            &*kind.kind.0,
            "message_start"
                | "content_block_start"
                | "content_block_delta"
                | "content_block_stop"
                | "message_delta"
                | "message_stop"
                | "ping"
                | "error"
        )
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::fault::FaultKind;

    fn read(decoder: &mut Decoder, data: &Value) -> Result<Vec<Delta>, Fault> {
        decoder.event(&sse::Event { data: Bytes::from(data.to_string()), ..sse::Event::default() })
    }

    fn start(index: u64, block: &Value) -> Value {
        json!({ "type": "content_block_start", "index": index, "content_block": block })
    }

    fn piece(index: u64, delta: &Value) -> Value {
        json!({ "type": "content_block_delta", "index": index, "delta": delta })
    }

    #[test]
    fn what_is_new_in_the_api_says_nothing() {
        let mut decoder = Decoder::new();
        for event in [
            json!({ "type": "message_paused", "index": "one", "delta": [], "usage": 7 }),
            piece(0, &json!({ "type": "hologram_delta", "hologram": [1] })),
            json!({ "type": "content_block_stop", "index": 9 }),
        ] {
            assert_eq!(read(&mut decoder, &event), Ok(Vec::new()));
        }
    }

    #[test]
    fn an_event_that_breaks_the_promises_is_malformed() {
        for event in [
            json!([]),
            json!({}),
            json!({ "type": "message_start" }),
            json!({ "type": "message_start", "message": { "id": "a" } }),
            json!({ "type": "content_block_start", "content_block": {} }),
            json!({ "type": "content_block_start", "index": 0 }),
            json!({ "type": "content_block_delta", "index": -1, "delta": { "text": "a" } }),
            json!({ "type": "message_delta", "usage": { "output_tokens": "many" } }),
            piece(0, &json!({ "type": "text_delta", "text": 7 })),
            piece(3, &json!({ "type": "input_json_delta", "partial_json": "{}" })),
        ] {
            assert_eq!(read(&mut Decoder::new(), &event).unwrap_err().kind, FaultKind::Malformed, "{event}");
        }
    }

    #[test]
    fn a_call_given_at_once_is_told() {
        let mut decoder = Decoder::new();
        let call = json!({ "type": "tool_use", "id": "a", "name": "f", "input": { "x": 1 } });
        read(&mut decoder, &start(0, &call)).unwrap();

        let deltas = read(&mut decoder, &json!({ "type": "content_block_stop", "index": 0 })).unwrap();

        assert_eq!(deltas, [Delta::ToolArguments { choice: 0, tool: 0, fragment: "{\"x\":1}".into() }]);
    }

    #[test]
    fn blocks_that_never_stop_are_bounded() {
        let mut decoder = Decoder::new();
        let call = json!({ "type": "tool_use", "id": "a", "name": "f", "input": {} });
        let refused = (0..100).find(|index| read(&mut decoder, &start(*index, &call)).is_err());
        assert_eq!(refused, Some(64));
    }

    #[test]
    fn the_input_of_an_unknown_block_is_bounded() {
        let mut decoder = Decoder::new();
        read(&mut decoder, &start(0, &json!({ "type": "server_tool_use", "input": {} }))).unwrap();
        let more = piece(0, &json!({ "type": "input_json_delta", "partial_json": " ".repeat(1 << 20) }));
        let refused = (1..100).find(|_| read(&mut decoder, &more).is_err());
        assert_eq!(refused, Some(5));
    }
}

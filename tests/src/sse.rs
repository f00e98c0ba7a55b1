//! Server-sent events as a strict client reads them. Not the gateway's own decoder, on purpose.

use bytes::Bytes;
use serde_json::Value;

/// One event: everything up to a blank line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub name: Option<String>,
    /// The data lines, joined by line breaks. Empty for a comment such as a ping.
    pub data: String,
    /// Comment lines, without their colon.
    pub comments: Vec<String>,
}

impl Event {
    fn parse(text: &str) -> Self {
        let mut event = Self { name: None, data: String::new(), comments: Vec::new() };
        let mut data = Vec::new();
        for line in text.lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" => event.comments.push(value.to_owned()),
                "event" => event.name = Some(value.to_owned()),
                "data" => data.push(value),
                other => panic!("an event has an unknown field `{other}`: {text}"),
            }
        }
        event.data = data.join("\n");
        event
    }

    pub fn is_done(&self) -> bool {
        self.data == "[DONE]"
    }

    /// The data as JSON; null where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or(Value::Null)
    }

    /// The text this event adds to the answer, in either dialect.
    pub fn text(&self) -> Option<String> {
        let json = self.json();
        let openai = json["choices"][0]["delta"]["content"].as_str();
        let anthropic = || json["delta"]["text"].as_str();
        openai.or_else(anthropic).map(str::to_owned)
    }

    /// Whether this event is the dialect's error.
    pub fn is_error(&self) -> bool {
        self.json()["error"].is_object()
    }
}

/// All events of a stream.
pub trait Events {
    /// The whole text they say.
    fn text(&self) -> String;

    /// The finish reason, in the dialect's own word.
    fn finish_reason(&self) -> Option<String>;
}

impl Events for [Event] {
    fn text(&self) -> String {
        self.iter().filter_map(Event::text).collect()
    }

    fn finish_reason(&self) -> Option<String> {
        self.iter().rev().find_map(|event| {
            let json = event.json();
            let openai = json["choices"][0]["finish_reason"].as_str();
            openai.or_else(|| json["delta"]["stop_reason"].as_str()).map(str::to_owned)
        })
    }
}

/// Takes bytes in any pieces and gives whole events.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    pub fn feed(&mut self, bytes: &Bytes) {
        self.buffer.extend_from_slice(bytes);
    }

    pub fn next(&mut self) -> Option<Event> {
        let end = self.buffer.windows(2).position(|pair| pair == b"\n\n")?;
        let rest = self.buffer.split_off(end + 2);
        let event = std::mem::replace(&mut self.buffer, rest);
        Some(Event::parse(std::str::from_utf8(&event[..end]).expect("an event is UTF-8")))
    }

    /// What came after the last whole event.
    pub fn rest(&self) -> &[u8] {
        &self.buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_the_bytes_are_cut() {
        let stream = b": ping\n\nevent: a\ndata: {\"delta\":\ndata: {\"text\":\"hi\"}}\n\ndata: [DONE]\n\nhalf";
        let mut decoder = Decoder::default();
        let mut events = Vec::new();
        for byte in stream.chunks(1) {
            decoder.feed(&Bytes::copy_from_slice(byte));
            events.extend(decoder.next());
        }

        assert_eq!(events.len(), 3);
        assert_eq!(events[0].comments, ["ping"]);
        assert_eq!((events[1].name.as_deref(), events[1].text().as_deref()), (Some("a"), Some("hi")));
        assert!(events[2].is_done());
        assert_eq!(decoder.rest(), b"half");
    }
}

//! A stored answer: bytes that replay in any dialect, streamed or whole.

use bytes::{BufMut, Bytes, BytesMut};
use llm::chat::ChatReply;
use llm::dialect::Dialect;

/// Written into every answer; others are a miss.
const FORMAT: u8 = 1;

/// What the cache holds for a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub dialect: Dialect,
    pub provider: String,
    pub model: String,
    /// The whole body in `dialect`, exactly as the provider wrote it where it came whole.
    pub body: Bytes,
    reply: Bytes,
}

impl Answer {
    /// `None` where the reply cannot be written down, which loses a hit and nothing else.
    pub fn new(dialect: Dialect, provider: &str, model: &str, body: Option<Bytes>, reply: &ChatReply) -> Option<Self> {
        let body = body.unwrap_or_else(|| Bytes::from(dialect.encode_reply(reply, &reply.model)));
        let reply = Bytes::from(serde_json::to_vec(reply).ok()?);
        Some(Self { dialect, provider: provider.to_owned(), model: model.to_owned(), body, reply })
    }

    /// The canonical form, for another dialect or a stream.
    pub fn reply(&self) -> Option<ChatReply> {
        serde_json::from_slice(&self.reply).ok()
    }

    /// `[format][dialect][provider][model][body][reply]`, each text with its length as four bytes before it.
    pub fn encode(&self) -> Bytes {
        let name = self.dialect.name().as_bytes();
        let parts = [name, self.provider.as_bytes(), self.model.as_bytes(), &self.body, &self.reply];
        let mut out = BytesMut::with_capacity(1 + parts.iter().map(|part| 4 + part.len()).sum::<usize>());
        out.put_u8(FORMAT);
        for part in parts {
            out.put_u32(u32::try_from(part.len()).unwrap_or(u32::MAX));
            out.put_slice(part);
        }
        out.freeze()
    }

    /// Shares the bytes given. `None` for anything [`Answer::encode`] did not write.
    pub fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.is_empty() || bytes.split_to(1)[0] != FORMAT {
            return None;
        }
        let name = part(&mut bytes)?;
        let dialect = Dialect::from_name(std::str::from_utf8(&name).ok()?)?;
        let provider = String::from_utf8(part(&mut bytes)?.to_vec()).ok()?;
        let model = String::from_utf8(part(&mut bytes)?.to_vec()).ok()?;
        let body = part(&mut bytes)?;
        let reply = part(&mut bytes)?;
        bytes.is_empty().then_some(Self { dialect, provider, model, body, reply })
    }
}

fn part(bytes: &mut Bytes) -> Option<Bytes> {
    let length = bytes.split_at_checked(4)?.0;
    let length = usize::try_from(u32::from_be_bytes(length.try_into().ok()?)).ok()?;
    if bytes.len() < 4 + length {
        return None;
    }
    let mut whole = bytes.split_to(4 + length);
    Some(whole.split_off(4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm::chat::{Block, Choice, Finish};
    use proptest::prelude::*;

    fn reply(text: &str) -> ChatReply {
        let blocks = vec![Block::Text { text: text.to_owned(), cache_control: None }];
        let choice = Choice { blocks, finish: Some(Finish::Stop), stop_sequence: None };
        ChatReply { id: "a-1".into(), model: "m".into(), created: Some(7), choices: vec![choice], usage: None }
    }

    #[test]
    fn what_was_stored_comes_back() {
        let answer =
            Answer::new(Dialect::OpenAiChat, "openai", "gpt", Some(Bytes::from_static(b"{}")), &reply("hi")).unwrap();

        let back = Answer::decode(answer.encode()).unwrap();

        assert_eq!(back, answer);
        assert_eq!(back.reply().unwrap(), reply("hi"));
    }

    proptest! {
        /// Damaged bytes are a miss, never a panic.
        #[test]
        fn any_bytes_decode_or_do_not(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(answer) = Answer::decode(Bytes::from(bytes.clone())) {
                prop_assert_eq!(answer.encode(), Bytes::from(bytes));
            }
        }

        /// A cut answer is a miss.
        #[test]
        fn a_cut_answer_is_a_miss(cut in 0usize..100) {
            let whole = Answer::new(Dialect::OpenAiChat, "p", "m", None, &reply("some text here")).unwrap().encode();
            let at = cut.min(whole.len() - 1);
            prop_assert!(Answer::decode(whole.slice(..at)).is_none());
        }
    }
}

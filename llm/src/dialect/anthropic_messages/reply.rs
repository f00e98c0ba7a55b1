//! Whole answers.

use serde_json::{Value, json};

use super::block::{Fields, decode_block, each, encode_block};
use super::{Counts, finish_of, stop_reason};
use crate::chat::{Block, ChatReply, Choice, Finish};
use crate::dialect::{BadRequest, BadRequestKind};
use crate::fault::Fault;
use crate::json::Raw;

pub fn decode_reply(body: &[u8]) -> Result<ChatReply, Fault> {
    decode(body).map_err(|error| Fault::malformed(error.named().message))
}

fn decode(body: &[u8]) -> Result<ChatReply, BadRequest> {
    let fields = Fields::of(Raw::parse(body)?)?;
    let kind = fields.string("type")?;
    if kind != "message" {
        let kind = crate::fault::shortened(&kind, 64);
        return Err(BadRequest::invalid("type", format!("expected `message`, got `{kind}`")));
    }
    let finish = fields.read("stop_reason", Raw::string)?.map(|reason| finish_of(&reason));
    let stop_sequence = fields.read("stop_sequence", Raw::string)?.map(std::borrow::Cow::into_owned);
    let content = fields.required("content")?;
    let blocks = each(content, decode_block).map_err(|error| error.within("content"))?;
    Ok(ChatReply {
        id: fields.string("id")?.into_owned(),
        model: fields.string("model")?.into_owned(),
        created: None,
        choices: vec![Choice { blocks, finish, stop_sequence }],
        usage: fields.read("usage", decode_counts)?.map(Counts::usage),
    })
}

fn decode_counts(raw: Raw) -> Result<Counts, BadRequest> {
    serde_json::from_str(raw.text()).map_err(|cause| BadRequest {
        message: format!("cannot be read: {cause}"),
        param: None,
        kind: BadRequestKind::Invalid,
    })
}

/// The first choice: this API knows one. What is not known of the usage counts as 0, for clients rely on its being there.
pub fn encode_reply(reply: &ChatReply, shown_model: &str) -> Vec<u8> {
    let first = reply.choices.first();
    let blocks = first.map_or(&[][..], |choice| &choice.blocks);
    let content: Vec<Value> = blocks.iter().filter_map(|block| encode_answered(block).ok().flatten()).collect();
    let calls_tool = blocks.iter().any(|block| matches!(block, Block::ToolUse { .. }));
    let stop_sequence = first.and_then(|choice| choice.stop_sequence.as_deref());
    let finish: Option<&Finish> = first.and_then(|choice| choice.finish.as_ref());
    let body = json!({
        "id": reply.id,
        "type": "message",
        "role": "assistant",
        "model": shown_model,
        "content": content,
        "stop_reason": finish.map(|finish| stop_reason(finish, stop_sequence, calls_tool)),
        "stop_sequence": stop_sequence,
        "usage": Counts::of(&reply.usage.unwrap_or_default()),
    });
    body.to_string().into_bytes()
}

/// An answer may hold reasoning without a signature, which a request may not.
fn encode_answered(block: &Block) -> Result<Option<Value>, &str> {
    match block {
        Block::Thinking { text, signature: None } => {
            Ok(Some(json!({ "type": "thinking", "thinking": text, "signature": "" })))
        }
        Block::Text { .. }
        | Block::Refusal { .. }
        | Block::Image { .. }
        | Block::ToolUse { .. }
        | Block::ToolResult { .. }
        | Block::Thinking { .. }
        | Block::Other { .. } => encode_block(block),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultKind;

    #[test]
    fn what_is_no_message_is_malformed() {
        for body in [
            &b""[..],
            b"<html></html>",
            b"{}",
            b"{\"type\": \"error\", \"error\": {}}",
            b"{\"type\": \"message\", \"id\": \"a\", \"model\": \"m\", \"content\": \"text\"}",
            b"{\"type\": \"message\", \"id\": \"a\", \"model\": \"m\", \"content\": [{}]}",
            b"{\"type\": \"message\", \"id\": \"a\", \"model\": \"m\", \"content\": [], \"usage\": {\"input_tokens\": -1}}",
        ] {
            let fault = decode_reply(body).unwrap_err();
            assert_eq!(fault.kind, FaultKind::Malformed);
            assert!(!fault.message.is_empty());
        }
    }

    #[test]
    fn an_answer_without_a_reason_to_stop_is_not_whole() {
        let body = b"{\"type\": \"message\", \"id\": \"a\", \"model\": \"m\", \"content\": [], \"stop_reason\": null}";
        assert_eq!(decode_reply(body).unwrap().choices[0].finish, None);
    }
}

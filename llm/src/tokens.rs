//! Tokens counted without a tokenizer: a bound that holds, and a guess that is near.

use std::io;

use serde::Serialize;
use serde_json::Value;

use crate::chat::{Block, ChatRequest, Tool};

/// What chat templates put round a conversation.
const REQUEST_OVERHEAD: u64 = 32;
/// Round each message: markers, the role, a separator.
const MESSAGE_OVERHEAD: u64 = 16;
/// The instructions a provider adds once there are tools (Anthropic documents up to 530 tokens, by model and choice).
const TOOLS_OVERHEAD: u64 = 1024;
/// Round each tool.
const TOOL_OVERHEAD: u64 = 64;
/// The most a documented model takes for one image: 2,833 + 8 tiles × 5,667 (OpenAI's gpt-4o-mini at high detail).
const IMAGE_MAX: u64 = 48_169;
/// At low detail, or where the detail is not heeded but the most is smaller (Anthropic: 4,784).
const IMAGE_LOW_MAX: u64 = 4_784;
/// An image of a usual size.
const IMAGE_USUAL: u64 = 1_000;
/// What cannot be measured here (a document behind a URL, what a search of the provider's finds) fills a context window.
/// Callers who know the model's window may take that where it is less.
const WINDOW_MAX: u64 = 2_097_152;

/// Never fewer than the provider will count.
///
/// A token of a byte-level tokenizer (BPE, or `SentencePiece` with byte fallback) stands for at least one byte of the
/// text. Schemas and unknown fields count twice, as some templates print them with indentation.
pub fn input_upper_bound(request: &ChatRequest) -> u64 {
    let mut bound = Sum(REQUEST_OVERHEAD);
    bound.add(MESSAGE_OVERHEAD);
    bound.blocks(&request.system);
    for message in &request.messages {
        bound.add(MESSAGE_OVERHEAD);
        bound.add(bytes_of(message.name.as_deref().unwrap_or_default()));
        bound.blocks(&message.blocks);
    }
    if !request.tools.is_empty() {
        bound.add(TOOLS_OVERHEAD);
    }
    for tool in &request.tools {
        bound.tool(tool);
    }
    for (name, value) in &request.extra {
        bound.add(bytes_of(name).saturating_add(json_bytes(value).saturating_mul(2)));
    }
    bound.0
}

/// Near the truth for most languages: a token is some four bytes of text.
pub fn input_estimate(request: &ChatRequest) -> u64 {
    let (mut bytes, mut images) = (0_u64, 0_u64);
    let messages = request.messages.iter().flat_map(|message| &message.blocks);
    for block in request.system.iter().chain(messages) {
        let (block_bytes, block_images) = measure(block);
        bytes = bytes.saturating_add(block_bytes);
        images = images.saturating_add(block_images);
    }
    for tool in &request.tools {
        bytes = bytes.saturating_add(json_bytes(tool));
    }
    let messages = u64::try_from(request.messages.len()).unwrap_or(u64::MAX);
    bytes
        .div_ceil(4)
        .saturating_add(images.saturating_mul(IMAGE_USUAL))
        .saturating_add(messages.saturating_mul(4))
        .max(1)
}

/// Tokens of text a provider has streamed, where it was cut off before it told: rather too many than too few. Scripts with
/// a token for each byte exist, but no model writes them at length.
pub fn output_estimate(bytes: u64) -> u64 {
    bytes.div_ceil(2)
}

struct Sum(u64);

impl Sum {
    fn add(&mut self, tokens: u64) {
        self.0 = self.0.saturating_add(tokens);
    }

    fn blocks(&mut self, blocks: &[Block]) {
        for block in blocks {
            self.block(block);
        }
    }

    fn block(&mut self, block: &Block) {
        // A separator, at most.
        self.add(4);
        match block {
            Block::Text { text, .. } | Block::Refusal { text } => self.add(bytes_of(text)),
            Block::Thinking { text, signature } => {
                self.add(bytes_of(text));
                self.add(signature.as_deref().map_or(0, bytes_of));
            }
            Block::Image { detail, .. } => {
                self.add(if detail.as_deref() == Some("low") { IMAGE_LOW_MAX } else { IMAGE_MAX });
            }
            Block::ToolUse { id, name, arguments } => {
                self.add(TOOL_OVERHEAD);
                self.add(bytes_of(id));
                self.add(bytes_of(name));
                self.add(bytes_of(arguments).saturating_mul(2));
            }
            Block::ToolResult { id, content, .. } => {
                self.add(TOOL_OVERHEAD);
                self.add(bytes_of(id));
                self.blocks(content);
            }
            Block::Other { value, .. } => {
                self.add(json_bytes(value).saturating_mul(2));
                if is_immeasurable(value) {
                    self.add(WINDOW_MAX);
                }
            }
        }
    }

    fn tool(&mut self, tool: &Tool) {
        self.add(TOOL_OVERHEAD);
        self.add(json_bytes(tool).saturating_mul(2));
        // A tool the provider runs itself puts what it finds into the conversation.
        let runs_here = tool.raw.as_ref().is_none_or(|raw| raw["type"] == "custom" || raw["type"] == "function");
        if !runs_here {
            self.add(WINDOW_MAX);
        }
    }
}

/// A block whose tokens do not follow from its bytes: a PDF is drawn page by page, a file or URL is fetched.
fn is_immeasurable(value: &Value) -> bool {
    match value["type"].as_str() {
        Some("document") => value["source"]["type"] != "text",
        Some("file" | "container_upload" | "video_url" | "image") => true,
        Some(_) | None => false,
    }
}

/// Bytes of text, and how many images.
fn measure(block: &Block) -> (u64, u64) {
    match block {
        Block::Text { text, .. } | Block::Refusal { text } | Block::Thinking { text, .. } => (bytes_of(text), 0),
        Block::Image { .. } => (0, 1),
        Block::ToolUse { name, arguments, .. } => (bytes_of(name).saturating_add(bytes_of(arguments)), 0),
        Block::ToolResult { content, .. } => content
            .iter()
            .map(measure)
            .fold((0, 0), |sum, next| (u64::saturating_add(sum.0, next.0), u64::saturating_add(sum.1, next.1))),
        Block::Other { value, .. } => (json_bytes(value), 0),
    }
}

fn bytes_of(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

fn json_bytes<T: Serialize>(value: &T) -> u64 {
    let mut counter = Counter(0);
    match serde_json::to_writer(&mut counter, value) {
        Ok(()) => counter.0,
        Err(_) => u64::MAX,
    }
}

/// Counts what is written to it.
struct Counter(u64);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::dialect::Dialect;

    fn request(body: &Value) -> ChatRequest {
        Dialect::OpenAiChat.decode_request(&serde_json::to_vec(body).unwrap()).unwrap()
    }

    proptest! {
        /// A byte-level tokenizer cannot make more tokens than there are bytes, and every byte of text is counted.
        #[test]
        fn no_text_has_more_tokens_than_its_bound(system in ".*", texts in prop::collection::vec(".*", 1..8)) {
            let mut messages = vec![json!({"role": "system", "content": system})];
            messages.extend(texts.iter().map(|text| json!({"role": "user", "content": text})));
            let request = request(&json!({"model": "m", "messages": messages}));

            let bytes: usize = system.len() + texts.iter().map(String::len).sum::<usize>();

            prop_assert!(input_upper_bound(&request) >= bytes as u64 + 16 * (texts.len() as u64 + 1));
            prop_assert!(input_estimate(&request) <= input_upper_bound(&request));
        }
    }

    #[test]
    fn an_image_counts_by_its_documented_most_and_not_by_its_bytes() {
        let image = |detail: &str, data: &str| {
            let url = format!("data:image/png;base64,{data}");
            let part = json!({"type": "image_url", "image_url": {"url": url, "detail": detail}});
            input_upper_bound(&request(&json!({"model": "m", "messages": [{"role": "user", "content": [part]}]})))
        };

        assert!(image("high", "AAAA") >= 2_833 + 8 * 5_667);
        assert!(image("low", "AAAA") >= 2_833);
        assert!(image("low", "AAAA") < image("high", "AAAA"));
        assert_eq!(image("high", "AAAA"), image("high", &"A".repeat(4_000)));
    }

    #[test]
    fn a_file_may_fill_the_window() {
        let part = json!({"type": "file", "file": {"file_id": "f"}});
        let request = request(&json!({"model": "m", "messages": [{"role": "user", "content": [part]}]}));

        assert!(input_upper_bound(&request) >= 1_000_000);
    }

    #[test]
    fn a_schema_counts_with_the_indentation_a_template_may_give_it() {
        let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
        let pretty = serde_json::to_string_pretty(&schema).unwrap();
        let tool = json!({"type": "function", "function": {"name": "weather", "parameters": schema}});
        let base = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        let mut with_tool = base.clone();
        with_tool["tools"] = json!([tool]);

        let added = input_upper_bound(&request(&with_tool)) - input_upper_bound(&request(&base));

        assert!(added >= pretty.len() as u64 + 530);
    }

    #[test]
    fn half_a_token_is_a_token() {
        assert_eq!((output_estimate(0), output_estimate(1), output_estimate(2), output_estimate(3)), (0, 1, 1, 2));
    }
}

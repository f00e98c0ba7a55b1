//! OpenAI's Chat Completions, as OpenAI and the vendors that follow it speak it.

mod decode_request;
mod decode_stream;
mod encode_request;
mod encode_stream;
mod error;
mod reply;
mod wire;

pub use decode_request::decode_request;
pub use decode_stream::Decoder;
pub use encode_request::encode_request;
pub use encode_stream::Encoder;
pub use error::{decode_error, encode_error, encode_stream_error};
pub use reply::{decode_reply, encode_reply};

/// As in [`crate::dialect::Dialect::name`].
const NAME: &str = "openai_chat";

#[cfg(test)]
mod tests;

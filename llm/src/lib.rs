//! What LLM APIs say: bytes to meaning and back. Pure: no tokio, no clock, no I/O.
//!
//! Hub and spoke: every codec in [`dialect`] translates between its wire form and the one canonical form in
//! [`chat`], so that n dialects need n codecs and not n².

pub mod chat;
pub mod dialect;
pub mod fault;
pub mod json;
pub mod splice;
pub mod sse;
pub mod tokens;
pub mod transcode;
pub mod usage;

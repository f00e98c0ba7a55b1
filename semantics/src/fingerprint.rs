//! A request's normal form as 32 bytes: what exact answers are found by.

use llm::chat::ChatRequest;
use llm::dialect::Dialect;

use crate::normal_form::normal_form;

/// The same in every process that has the same key and speaks the same [`crate::normal_form::FORMAT`]. Without the key
/// nobody can tell from outside which questions would share an answer.
///
/// `target_line` is the name of the route that the client's `model` led to.
pub fn fingerprint(key: &[u8; 32], request: &ChatRequest, dialect: Dialect, target_line: &str) -> [u8; 32] {
    *blake3::keyed_hash(key, &normal_form(request, dialect, target_line)).as_bytes()
}

//! What a provider's error means, and what an error of ours looks like before a dialect gives it its shape.

use std::time::Duration;

/// A failure a provider reported, or an answer of its that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    /// The provider's HTTP status; `None` for a failure told in the middle of a stream.
    pub status: Option<u16>,
    /// The provider's own words, at most 2,048 bytes, with nothing of ours in them.
    pub message: String,
    /// The provider's `code`, where it has one.
    pub code: Option<String>,
    /// The provider's `type`, where it has one.
    pub error_type: Option<String>,
    /// The parameter the provider complains of.
    pub param: Option<String>,
}

/// What to do about a failure follows from its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// 401, 402, 403: this credential is of no use.
    Credential,
    /// 429: come back later.
    Throttled,
    /// 503, 529 and their like: the provider has no room.
    Overloaded,
    /// Any other 5xx.
    Server,
    /// 408, 504: the provider gave up waiting.
    Timeout,
    /// The conversation does not fit the model.
    ContextLength,
    /// The provider's content filter refused the prompt.
    ContentFilter,
    /// 404: the provider does not know the model.
    NotFound,
    /// Any other 4xx: the request itself is wrong, everywhere.
    BadRequest,
    /// A 2xx whose body is not what the dialect promises.
    Malformed,
}

/// An error as a client will read it; [`crate::dialect::Dialect::encode_error`] gives it the shape of the API called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorBody {
    pub status: u16,
    /// OpenAI's `type`.
    pub error_type: &'static str,
    /// OpenAI's `code`.
    pub code: Option<&'static str>,
    pub message: String,
    pub param: Option<String>,
    pub request_id: String,
}

/// How long the provider asked us to wait (`retry-after`, `retry-after-ms`).
pub type RetryAfter = Option<Duration>;

/// A provider's words are cut here; a page of HTML or a stack trace helps nobody.
pub const MESSAGE_MAX: usize = 2048;

impl Fault {
    /// An answer that is not what its dialect promises.
    pub fn malformed(message: impl AsRef<str>) -> Self {
        Self {
            kind: FaultKind::Malformed,
            status: None,
            message: shortened(message.as_ref(), MESSAGE_MAX).to_owned(),
            code: None,
            error_type: None,
            param: None,
        }
    }
}

/// At most `max` bytes of `text`, cut between characters.
pub fn shortened(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or(text)
}

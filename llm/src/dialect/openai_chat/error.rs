//! What a vendor's error means, and ours in OpenAI's shape.

use serde::Serialize;
use serde_json::Value;

use crate::fault::{ErrorBody, Fault, FaultKind, MESSAGE_MAX, shortened};
use crate::json;

const WORD_MAX: usize = 128;

/// Beyond this a body is no error any API writes.
const BODY_MAX: usize = 1 << 20;

pub fn decode_error(status: u16, body: &[u8]) -> Fault {
    let body = body.get(..BODY_MAX).unwrap_or(body);
    if let Ok(value) = serde_json::from_slice::<Value>(body) {
        return fault_of(&value, Some(status));
    }
    let mut fault = Fault::malformed(words_of_page(&String::from_utf8_lossy(body)));
    fault.status = Some(status);
    fault.kind = kind_of(Some(status), "", &fault.message);
    fault
}

/// An error object, however deep the vendor packs it. Without a `status` it was told in the middle of a stream.
pub fn fault_of(value: &Value, status: Option<u16>) -> Fault {
    // Gemini answers a list of one.
    let outer = value.get(0).unwrap_or(value);
    let inner = match outer.get("error") {
        Some(error) if !error.is_null() => error,
        Some(_) | None => outer,
    };
    let words = |object: &Value, name: &str| match object.get(name) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) | None => None,
    };
    // FastAPI's `detail` and Mistral's `message` may be lists of objects.
    let message = inner.as_str().map(str::to_owned).or_else(|| {
        let found = ["message", "detail", "error"].iter().find_map(|name| inner.get(*name));
        found
            .filter(|found| !found.is_null())
            .map(|found| found.as_str().map_or_else(|| found.to_string(), str::to_owned))
    });
    let message = shortened(&message.unwrap_or_default(), MESSAGE_MAX).to_owned();
    let short = |text: String| shortened(&text, WORD_MAX).to_owned();
    let code = words(inner, "code").or_else(|| words(outer, "code")).map(short);
    let error_type = words(inner, "type").or_else(|| words(inner, "status")).map(short);
    // OpenRouter tells the status in the code, also where the stream's own was 200.
    let told = code.as_deref().and_then(|code| code.parse::<u16>().ok()).filter(|code| (400..600).contains(code));
    let words_of_kind =
        format!("{} {}", code.as_deref().unwrap_or_default(), error_type.as_deref().unwrap_or_default());
    Fault {
        kind: kind_of(status.or(told), &words_of_kind, &message),
        status,
        message,
        code,
        error_type,
        param: words(inner, "param").map(short),
    }
}

/// `words` are the vendor's code and type.
fn kind_of(status: Option<u16>, words: &str, message: &str) -> FaultKind {
    let says = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    let message = message.to_ascii_lowercase();
    let client_side = status.is_none_or(|status| (400..500).contains(&status));
    if client_side
        && (says(CONTEXT_WORDS) || status != Some(429) && CONTEXT_PHRASES.iter().any(|part| message.contains(part)))
    {
        return FaultKind::ContextLength;
    }
    if client_side && says(&["content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"]) {
        return FaultKind::ContentFilter;
    }
    // Gemini and xAI answer 400 to a bad key; OpenAI answers 429 to an empty purse. Only the vendor's first words count:
    // further on it may quote the client, who must not be able to put a credential out of use.
    let told = status == Some(400) && CREDENTIAL_PHRASES.iter().any(|phrase| message.starts_with(phrase));
    if client_side && (told || says(CREDENTIAL_WORDS)) {
        return FaultKind::Credential;
    }
    match status {
        Some(401..=403) => FaultKind::Credential,
        Some(404) => FaultKind::NotFound,
        Some(408 | 504) => FaultKind::Timeout,
        Some(429) => FaultKind::Throttled,
        // 498: Groq's flex tier is full.
        Some(498 | 503 | 529) => FaultKind::Overloaded,
        Some(400) if says(&["model_not_found"]) => FaultKind::NotFound,
        Some(400..500) => FaultKind::BadRequest,
        Some(..400) => FaultKind::Malformed,
        None if says(&["rate_limit", "RESOURCE_EXHAUSTED"]) => FaultKind::Throttled,
        None if says(&["overloaded", "UNAVAILABLE"]) => FaultKind::Overloaded,
        None if says(&["timeout", "DEADLINE_EXCEEDED"]) => FaultKind::Timeout,
        None if says(&["invalid_request", "INVALID_ARGUMENT"]) => FaultKind::BadRequest,
        Some(500..) | None => FaultKind::Server,
    }
}

const CONTEXT_WORDS: &[&str] = &["context_length_exceeded", "string_above_max_length", "exceed_context_size"];
const CONTEXT_PHRASES: &[&str] = &[
    "maximum context length",
    "context window",
    "context length exceeded",
    "prompt is too long",
    "too large for model",
    "exceeds the available context size",
];
const CREDENTIAL_WORDS: &[&str] = &["insufficient_quota", "invalid_api_key", "billing_hard_limit_reached"];
const CREDENTIAL_PHRASES: &[&str] = &["incorrect api key", "invalid api key", "api key not valid", "api key expired"];

/// Of a page of HTML the title, of other text its beginning.
fn words_of_page(text: &str) -> String {
    let text = text.trim();
    if !text.starts_with('<') {
        let printable = text.chars().filter(|letter| !letter.is_control() && *letter != char::REPLACEMENT_CHARACTER);
        return printable.take(MESSAGE_MAX).collect();
    }
    let lower = text.to_ascii_lowercase();
    let title = lower.find("<title>").map(|at| at + "<title>".len()).and_then(|start| {
        let end = start + lower.get(start..)?.find("</title>")?;
        text.get(start..end)
    });
    title.unwrap_or_default().trim().to_owned()
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: ErrorOut<'a>,
}

#[derive(Serialize)]
struct ErrorOut<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
    /// Not OpenAI's, but every other field of theirs gets lost on the way to a log.
    request_id: &'a str,
}

pub fn encode_error(error: &ErrorBody) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    write_error(error, &mut out);
    out
}

pub fn encode_stream_error(error: &ErrorBody) -> Vec<u8> {
    let mut out = b"data: ".to_vec();
    write_error(error, &mut out);
    out.extend_from_slice(b"\n\n");
    out
}

fn write_error(error: &ErrorBody, out: &mut Vec<u8>) {
    let envelope = Envelope {
        error: ErrorOut {
            message: &error.message,
            r#type: error.error_type,
            param: error.param.as_deref(),
            code: error.code,
            request_id: &error.request_id,
        },
    };
    json::write(&envelope, out);
}

//! Errors: the type follows from the status, and the other way round where a stream has no status left to tell.

use serde_json::{Value, json};

use crate::fault::{ErrorBody, Fault, FaultKind, MESSAGE_MAX, shortened};
use crate::sse;

/// Any bytes give a fault.
pub fn decode_error(status: u16, body: &[u8]) -> Fault {
    let value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let error = value.get("error").unwrap_or(&value);
    fault(Some(status), error)
}

/// What an `error` object means; `status` is `None` in the middle of a stream.
pub(super) fn fault(status: Option<u16>, error: &Value) -> Fault {
    let word = |name| error.get(name).and_then(Value::as_str);
    let message = word("message").or(error.as_str()).unwrap_or_default();
    let error_type = word("type").filter(|error_type| *error_type != "error");
    Fault {
        kind: kind(status, error_type.unwrap_or_default(), message),
        status,
        message: shortened(message, MESSAGE_MAX).to_owned(),
        code: None,
        error_type: error_type.map(|error_type| shortened(error_type, 128).to_owned()),
        param: None,
    }
}

/// The message decides where this API gives one type to failures that ask for different things.
fn kind(status: Option<u16>, error_type: &str, message: &str) -> FaultKind {
    if matches!(status, Some(400) | None) && error_type == "invalid_request_error" {
        return kind_of_refusal(message);
    }
    match status {
        Some(status) if error_type != "overloaded_error" => kind_of_status(status),
        Some(_) | None => kind_of_type(error_type),
    }
}

fn kind_of_refusal(message: &str) -> FaultKind {
    if message.contains("prompt is too long") || message.contains("exceed context limit") {
        FaultKind::ContextLength
    } else if message.contains("content filtering policy") {
        FaultKind::ContentFilter
    } else if message.contains("credit balance is too low") {
        FaultKind::Credential
    } else {
        FaultKind::BadRequest
    }
}

fn kind_of_status(status: u16) -> FaultKind {
    match status {
        401..=403 => FaultKind::Credential,
        404 => FaultKind::NotFound,
        408 | 504 => FaultKind::Timeout,
        429 => FaultKind::Throttled,
        503 | 529 => FaultKind::Overloaded,
        400..=499 => FaultKind::BadRequest,
        _ => FaultKind::Server,
    }
}

fn kind_of_type(error_type: &str) -> FaultKind {
    match error_type {
        "authentication_error" | "permission_error" | "billing_error" => FaultKind::Credential,
        "not_found_error" => FaultKind::NotFound,
        "timeout_error" => FaultKind::Timeout,
        "rate_limit_error" => FaultKind::Throttled,
        "overloaded_error" => FaultKind::Overloaded,
        "request_too_large" => FaultKind::BadRequest,
        _ => FaultKind::Server,
    }
}

pub fn encode_error(error: &ErrorBody) -> Vec<u8> {
    let body = json!({
        "type": "error",
        "error": { "type": error_type(error), "message": error.message },
        "request_id": error.request_id,
    });
    body.to_string().into_bytes()
}

pub fn encode_stream_error(error: &ErrorBody) -> Vec<u8> {
    let mut out = Vec::new();
    sse::write(&mut out, Some("error"), &encode_error(error));
    out
}

fn error_type(error: &ErrorBody) -> &'static str {
    match error.status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 | 504 => "timeout_error",
        413 => "request_too_large",
        429 if error.code == Some("budget_exceeded") => "billing_error",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(status: u16, error_type: &str, message: &str) -> FaultKind {
        let body = json!({ "type": "error", "error": { "type": error_type, "message": message } });
        decode_error(status, body.to_string().as_bytes()).kind
    }

    #[test]
    fn a_bad_request_is_told_apart_by_its_message() {
        let of = |message| decode(400, "invalid_request_error", message);
        assert_eq!(of("prompt is too long: 215303 tokens > 200000 maximum"), FaultKind::ContextLength);
        assert_eq!(of("Output blocked by content filtering policy"), FaultKind::ContentFilter);
        assert_eq!(of("Your credit balance is too low to access the Anthropic API."), FaultKind::Credential);
        assert_eq!(of("messages: field required"), FaultKind::BadRequest);
    }

    #[test]
    fn an_error_of_a_stream_is_told_by_its_type() {
        let of = |error_type: &str| fault(None, &json!({ "type": error_type, "message": "m" })).kind;
        assert_eq!(of("overloaded_error"), FaultKind::Overloaded);
        assert_eq!(of("rate_limit_error"), FaultKind::Throttled);
        assert_eq!(of("api_error"), FaultKind::Server);
        assert_eq!(of("never_heard_of"), FaultKind::Server);
    }

    #[test]
    fn any_body_is_a_fault() {
        for body in [&b""[..], b"<html>502</html>", b"\xFF\xFE", b"{\"error\": 3}", b"[[[[", b"null"] {
            let fault = decode_error(502, body);
            assert_eq!((fault.kind, fault.status, fault.message.as_str()), (FaultKind::Server, Some(502), ""));
        }
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let body = json!({ "error": { "type": "api_error", "message": "ä".repeat(1500) } });
        assert_eq!(decode_error(500, body.to_string().as_bytes()).message.len(), 2048);
        let body = json!({ "error": { "type": "api_error", "message": format!("a{}", "ä".repeat(1500)) } });
        assert_eq!(decode_error(500, body.to_string().as_bytes()).message.len(), 2047);
    }

    #[test]
    fn a_spent_budget_is_a_matter_of_billing() {
        let error = |status, code| ErrorBody {
            status,
            error_type: "rate_limit_error",
            code,
            message: "m".into(),
            param: None,
            request_id: "r".into(),
        };
        assert_eq!(error_type(&error(429, Some("budget_exceeded"))), "billing_error");
        assert_eq!(error_type(&error(429, Some("rate_limit_exceeded"))), "rate_limit_error");
        assert_eq!(error_type(&error(529, None)), "overloaded_error");
        assert_eq!(error_type(&error(502, None)), "api_error");
        assert_eq!(error_type(&error(422, None)), "invalid_request_error");
    }
}

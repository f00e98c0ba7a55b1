//! Method, path and headers → the operation asked for and the dialect to answer in. Pure.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method};
use llm::dialect::Dialect;

/// What a request asks for, and in which dialect it wants its answer, errors included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub dialect: Dialect,
    pub operation: Operation,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `POST /v1/chat/completions`, `POST /v1/messages`.
    Chat,
    /// `POST /v1/messages/count_tokens`.
    CountTokens,
    /// `GET /v1/models`.
    ListModels,
    /// `GET /v1/models/{id}`; the id may contain `/`, plain or percent-encoded.
    GetModel(String),
}

impl Operation {
    /// The value of the metric's label.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::CountTokens => "count_tokens",
            Self::ListModels => "list_models",
            Self::GetModel(_) => "get_model",
        }
    }
}

/// Why a request reaches no operation. Each says in which dialect to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    #[error("no such path")]
    NotFound { dialect: Dialect },
    #[error("this path answers `{allow}` only")]
    MethodNotAllowed { dialect: Dialect, allow: &'static str },
    #[error("the body must be JSON: send `content-type: application/json`")]
    NotJson { dialect: Dialect },
}

impl ApiError {
    pub fn dialect(self) -> Dialect {
        match self {
            Self::NotFound { dialect } | Self::MethodNotAllowed { dialect, .. } | Self::NotJson { dialect } => dialect,
        }
    }
}

/// The headers decide where paths collide: `GET /v1/models` is OpenAI's and Anthropic's, told apart by
/// `anthropic-version`.
pub fn endpoint(method: &Method, path: &str, headers: &HeaderMap) -> Result<Endpoint, ApiError> {
    let dialect = dialect_of(path, headers);
    let operation = match path {
        "/v1/chat/completions" | "/v1/messages" => posted(method, headers, dialect, Operation::Chat)?,
        "/v1/messages/count_tokens" => posted(method, headers, dialect, Operation::CountTokens)?,
        "/v1/models" => got(method, dialect, || Operation::ListModels)?,
        other => match other.strip_prefix("/v1/models/") {
            // `{model}:{verb}` is another API's way to say what to do with a model.
            Some(id) if id.is_empty() || (method == Method::POST && id.contains(':')) => {
                return Err(ApiError::NotFound { dialect });
            }
            Some(id) => got(method, dialect, || Operation::GetModel(percent_decoded(id)))?,
            None => return Err(ApiError::NotFound { dialect }),
        },
    };
    Ok(Endpoint { dialect, operation })
}

/// Whose shape an answer on this path has, an error on an unknown path included.
pub fn dialect_of(path: &str, headers: &HeaderMap) -> Dialect {
    let anthropic_path = path.strip_prefix("/v1/messages").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let openai_path = path == "/v1/chat/completions";
    if anthropic_path || (!openai_path && headers.contains_key("anthropic-version")) {
        Dialect::AnthropicMessages
    } else {
        Dialect::OpenAiChat
    }
}

fn posted(method: &Method, headers: &HeaderMap, dialect: Dialect, operation: Operation) -> Result<Operation, ApiError> {
    if method != Method::POST {
        return Err(ApiError::MethodNotAllowed { dialect, allow: "POST" });
    }
    if !says_json(headers) {
        return Err(ApiError::NotJson { dialect });
    }
    Ok(operation)
}

fn got(method: &Method, dialect: Dialect, operation: impl FnOnce() -> Operation) -> Result<Operation, ApiError> {
    if method == Method::GET { Ok(operation()) } else { Err(ApiError::MethodNotAllowed { dialect, allow: "GET" }) }
}

/// A missing content type is taken for JSON, as providers take it; a wrong one is refused before the body is read.
fn says_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return true };
    let Ok(value) = value.to_str() else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// A broken escape is left as it stands: it names no model either way.
fn percent_decoded(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match after {
            [high, low, ..] if first == b'%' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        if let Some((high, low)) = escaped {
            decoded.push(high << 4 | low);
            rest = after.get(2..).unwrap_or_default();
        } else {
            decoded.push(first);
            rest = after;
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_not_text| text.to_owned())
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn open_ai(operation: Operation) -> Endpoint {
        Endpoint { dialect: Dialect::OpenAiChat, operation }
    }

    fn anthropic(operation: Operation) -> Endpoint {
        Endpoint { dialect: Dialect::AnthropicMessages, operation }
    }

    #[test]
    fn every_path_leads_to_its_operation() {
        let none = HeaderMap::new();

        assert_eq!(endpoint(&Method::POST, "/v1/chat/completions", &none), Ok(open_ai(Operation::Chat)));
        assert_eq!(endpoint(&Method::POST, "/v1/messages", &none), Ok(anthropic(Operation::Chat)));
        assert_eq!(endpoint(&Method::POST, "/v1/messages/count_tokens", &none), Ok(anthropic(Operation::CountTokens)));
        assert_eq!(endpoint(&Method::GET, "/v1/models", &none), Ok(open_ai(Operation::ListModels)));
    }

    #[test]
    fn the_version_header_decides_whose_model_list_it_is() {
        let version = headers(&[("anthropic-version", "2023-06-01")]);

        assert_eq!(endpoint(&Method::GET, "/v1/models", &version), Ok(anthropic(Operation::ListModels)));
        assert_eq!(endpoint(&Method::POST, "/v1/chat/completions", &version), Ok(open_ai(Operation::Chat)));
    }

    #[test]
    fn a_model_id_may_hold_slashes_and_escapes() {
        let none = HeaderMap::new();
        let id = |path| endpoint(&Method::GET, path, &none);

        assert_eq!(id("/v1/models/openai/gpt-4o"), Ok(open_ai(Operation::GetModel("openai/gpt-4o".to_owned()))));
        assert_eq!(id("/v1/models/openai%2Fgpt-4o"), Ok(open_ai(Operation::GetModel("openai/gpt-4o".to_owned()))));
        assert_eq!(id("/v1/models/100%"), Ok(open_ai(Operation::GetModel("100%".to_owned()))));
        assert_eq!(id("/v1/models/%ff"), Ok(open_ai(Operation::GetModel("%ff".to_owned()))));
        assert_eq!(id("/v1/models/"), Err(ApiError::NotFound { dialect: Dialect::OpenAiChat }));
    }

    #[test]
    fn a_wrong_method_is_told_which_one_is_right() {
        let none = HeaderMap::new();

        assert_eq!(
            endpoint(&Method::GET, "/v1/messages", &none),
            Err(ApiError::MethodNotAllowed { dialect: Dialect::AnthropicMessages, allow: "POST" })
        );
        assert_eq!(
            endpoint(&Method::DELETE, "/v1/models/x", &none),
            Err(ApiError::MethodNotAllowed { dialect: Dialect::OpenAiChat, allow: "GET" })
        );
        assert_eq!(
            endpoint(&Method::POST, "/v1/models/gemini-pro:generateContent", &none),
            Err(ApiError::NotFound { dialect: Dialect::OpenAiChat })
        );
    }

    #[test]
    fn an_unknown_path_is_refused_in_the_callers_shape() {
        let version = headers(&[("anthropic-version", "2023-06-01")]);
        let refused = |path, headers: &HeaderMap| endpoint(&Method::POST, path, headers).unwrap_err().dialect();

        assert_eq!(refused("/v1/unknown", &HeaderMap::new()), Dialect::OpenAiChat);
        assert_eq!(refused("/v1/unknown", &version), Dialect::AnthropicMessages);
        assert_eq!(refused("/v1/messages/batches", &HeaderMap::new()), Dialect::AnthropicMessages);
        assert_eq!(refused("/v1/messagesx", &HeaderMap::new()), Dialect::OpenAiChat);
    }

    #[test]
    fn only_json_is_taken_and_no_content_type_counts_as_json() {
        let post = |value| endpoint(&Method::POST, "/v1/chat/completions", &headers(&[("content-type", value)]));
        let refused = Err(ApiError::NotJson { dialect: Dialect::OpenAiChat });

        assert_eq!(post("application/json"), Ok(open_ai(Operation::Chat)));
        assert_eq!(post("Application/JSON; charset=utf-8"), Ok(open_ai(Operation::Chat)));
        assert_eq!(post("application/vnd.api+json"), Ok(open_ai(Operation::Chat)));
        assert_eq!(post("application/x-www-form-urlencoded"), refused);
        assert_eq!(post("text/plain"), refused);
        assert_eq!(post(""), refused);
    }
}

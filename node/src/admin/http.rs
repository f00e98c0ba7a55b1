//! What the admin API needs of HTTP: bodies within bounds, preconditions, queries, answers.

use super::access::{Operator, Scope};
use super::control::{Context, Expected, Wait};
use super::endpoint::decode;
use super::error::ApiError;
use actors::ingress::connection::RequestId;
use bytes::Bytes;
use cluster::directory::role::Grant;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_MATCH, IF_NONE_MATCH, LOCATION};
use http::{HeaderName, Method, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body;
use serde_json::{Map, Value as Json};
use std::collections::BTreeSet;
use std::error::Error;
use std::time::Duration;

/// Bytes of a request's body. More than any resource needs; a larger one is refused unread.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// From the head of a request to the end of its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Items of a list, where the caller does not say.
pub const LIMIT: usize = 100;

/// Items of a list at most; `next` says where the rest begins.
pub const LIMIT_MAX: usize = 1_000;

/// A request, as far as its handler is concerned.
pub struct Call {
    pub method: Method,
    pub operator: Operator,
    pub request_id: RequestId,
    pub query: Query,
    pub precondition: Precondition,
    pub body: Bytes,
}

impl Call {
    /// Where the caller may do what needs `least`.
    pub fn scope(&self, least: Grant) -> Result<Scope, ApiError> {
        self.operator.scope(least).ok_or(ApiError::Forbidden(least))
    }

    /// For what belongs to no tenant.
    pub fn everywhere(&self, least: Grant, what: &'static str) -> Result<(), ApiError> {
        match self.scope(least)? {
            Scope::Everything => Ok(()),
            Scope::Tenants(_) => Err(ApiError::OutOfScope(what)),
        }
    }

    /// Of a change that needs `least`.
    pub fn context(&self, least: Grant) -> Context {
        Context {
            operator: self.operator.name.clone(),
            scope: self.operator.scope(least).unwrap_or_else(|| Scope::Tenants(BTreeSet::new())),
            request_id: self.request_id.as_str().to_owned(),
            wait: self.query.wait,
        }
    }

    pub fn object(&self) -> Result<Map<String, Json>, ApiError> {
        match serde_json::from_slice(&self.body) {
            Ok(Json::Object(object)) => Ok(object),
            Ok(Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_)) => {
                Err(ApiError::wrong("", "the body is JSON, but no object"))
            }
            Err(error) => Err(ApiError::wrong("", format!("the body is not JSON: {error}"))),
        }
    }

    /// As [`Call::object`]; a missing body is an empty object.
    pub fn object_if_any(&self) -> Result<Map<String, Json>, ApiError> {
        if self.body.is_empty() { Ok(Map::new()) } else { self.object() }
    }
}

/// What stands behind the `?`. Everything the API knows; what an endpoint does not use is ignored there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    pub limit: Option<usize>,
    pub after: Option<String>,
    pub from: Option<u64>,
    pub window: Option<u64>,
    pub end_user: Option<String>,
    pub wait: Wait,
}

impl Query {
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value).ok_or_else(|| ApiError::wrong(name, "is not percent-encoded text"))?;
            match name {
                "limit" => {
                    query.limit = Some(number(name, &value, 1, LIMIT_MAX as u64)?.try_into().unwrap_or(LIMIT_MAX));
                }
                "from" => query.from = Some(number(name, &value, 0, u64::MAX)?),
                "window" => query.window = Some(number(name, &value, 0, u64::MAX)?),
                "end_user" => query.end_user = Some(value),
                "after" => query.after = Some(value),
                "wait" if value == "none" => query.wait = Wait::None,
                "wait" if value == "barrier" => query.wait = Wait::Barrier,
                "wait" => return Err(ApiError::wrong(name, "is neither `barrier` nor `none`")),
                _ => {
                    let known = "known are `limit`, `after`, `from`, `window`, `end_user` and `wait`";
                    return Err(ApiError::wrong("", format!("the query has something unknown in it; {known}")));
                }
            }
        }
        Ok(query)
    }

    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(LIMIT)
    }
}

fn number(name: &str, value: &str, least: u64, most: u64) -> Result<u64, ApiError> {
    let number = value.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| ApiError::wrong(name, format!("is not a whole number from {least} to {most}")))
}

/// In which state the caller wants a thing to be, or nothing is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precondition {
    #[default]
    None,
    Absent,
    Present,
    Version(u64),
    /// Of a GET: answered without a body when it is still this one.
    Not(u64),
}

impl Precondition {
    pub fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let text = |name: HeaderName| match headers.get(&name) {
            None => Ok(None),
            Some(value) => {
                let text = value.to_str().map(str::trim);
                text.map(Some).map_err(|_not_ascii| ApiError::wrong(name.as_str(), "is no version"))
            }
        };
        match (text(IF_MATCH)?, text(IF_NONE_MATCH)?) {
            (None, None) => Ok(Self::None),
            (Some("*"), None) => Ok(Self::Present),
            (None, Some("*")) => Ok(Self::Absent),
            (Some(version), None) => version_of("if-match", version).map(Self::Version),
            (None, Some(version)) => version_of("if-none-match", version).map(Self::Not),
            (Some(_), Some(_)) => Err(ApiError::wrong("if-match", "stands beside `if-none-match`; give one of them")),
        }
    }

    /// What a change must find. `current` is what this node knows, and `pinned` says that it must still be so, because
    /// whether the caller may do this was judged by it.
    pub fn expected(self, current: Option<u64>, pinned: bool) -> Result<Expected, ApiError> {
        match (self, current) {
            (Self::Absent, _) => Ok(Expected::Absent),
            (Self::Version(wanted), Some(current)) if pinned && wanted != current => {
                Err(ApiError::Precondition { current: Some(current) })
            }
            (Self::Version(wanted), _) => Ok(Expected::Version(wanted)),
            (Self::Present, Some(version)) => Ok(Expected::Version(version)),
            (Self::Present, None) => Err(ApiError::Precondition { current: None }),
            (Self::Not(_), _) => Err(ApiError::wrong("if-none-match", "knows only `*` here")),
            (Self::None, Some(version)) if pinned => Ok(Expected::Version(version)),
            (Self::None, None) if pinned => Ok(Expected::Absent),
            (Self::None, _) => Ok(Expected::Any),
        }
    }
}

fn version_of(name: &str, text: &str) -> Result<u64, ApiError> {
    let digits = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let version = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let version = version.and_then(|digits| digits.parse().ok());
    version.ok_or_else(|| ApiError::wrong(name, "is no version; send the `etag` of an answer, like `\"17\"`, or `*`"))
}

/// As `etag` shows it.
pub fn version_tag(version: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{version}\"")).unwrap_or(HeaderValue::from_static("\"0\""))
}

pub fn no_store(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

/// Reads a body within its bounds.
pub async fn read<B>(body: B) -> Result<Bytes, ApiError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    match collected {
        Err(_elapsed) => Err(ApiError::Slow(BODY_TIMEOUT)),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::TooLarge { max: BODY_BYTES_MAX }),
        Ok(Err(_broken)) => Err(ApiError::Broken),
    }
}

/// What a handler answers when all went well.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Json,
    pub version: Option<u64>,
    pub location: Option<String>,
}

impl Answer {
    pub fn ok(body: Json) -> Self {
        Self { status: StatusCode::OK, body, version: None, location: None }
    }

    #[must_use]
    pub fn with_version(self, version: u64) -> Self {
        Self { version: Some(version), ..self }
    }

    pub fn response(self) -> Response<Full<Bytes>> {
        let bodiless = self.status == StatusCode::NOT_MODIFIED;
        // A value of JSON can always be written.
        let mut body = if bodiless { Vec::new() } else { serde_json::to_vec_pretty(&self.body).unwrap_or_default() };
        if !bodiless {
            body.push(b'\n');
        }
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        no_store(headers);
        if !bodiless {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(version) = self.version {
            headers.insert(ETAG, version_tag(version));
        }
        if let Some(location) = self.location.and_then(|location| HeaderValue::from_str(&location).ok()) {
            headers.insert(LOCATION, location);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn preconditions_are_versions_or_a_star() {
        let of = |pairs: &[_]| Precondition::of(&headers(pairs));
        assert_eq!(of(&[]), Ok(Precondition::None));
        assert_eq!(of(&[(IF_MATCH, "\"17\"")]), Ok(Precondition::Version(17)));
        assert_eq!(of(&[(IF_MATCH, "*")]), Ok(Precondition::Present));
        assert_eq!(of(&[(IF_NONE_MATCH, "*")]), Ok(Precondition::Absent));
        for wrong in ["17", "\"\"", "\"+1\"", "W/\"17\"", "\"1\", \"2\"", "\"99999999999999999999\""] {
            assert!(matches!(of(&[(IF_MATCH, wrong)]), Err(ApiError::Wrong(_))), "{wrong}");
        }
        assert!(matches!(of(&[(IF_MATCH, "*"), (IF_NONE_MATCH, "*")]), Err(ApiError::Wrong(_))));
    }

    #[test]
    fn a_pinned_change_expects_what_it_was_judged_by() {
        assert_eq!(Precondition::None.expected(Some(3), false), Ok(Expected::Any));
        assert_eq!(Precondition::None.expected(Some(3), true), Ok(Expected::Version(3)));
        assert_eq!(Precondition::None.expected(None, true), Ok(Expected::Absent));
        assert_eq!(Precondition::Version(2).expected(Some(3), false), Ok(Expected::Version(2)), "this node may lag");
        assert_eq!(Precondition::Version(2).expected(Some(3), true), Err(ApiError::Precondition { current: Some(3) }));
        assert_eq!(Precondition::Present.expected(None, false), Err(ApiError::Precondition { current: None }));
    }

    #[test]
    fn a_query_is_understood_or_refused() {
        let query = Query::parse("limit=5&after=a%2Fb&wait=none&from=7").unwrap();
        assert_eq!(
            (query.limit(), query.after.as_deref(), query.from, query.wait),
            (5, Some("a/b"), Some(7), Wait::None)
        );
        assert_eq!(Query::parse("").unwrap().limit(), LIMIT);
        for wrong in ["limit=0", "limit=1001", "limit=x", "from=-1", "wait=later", "after=%f", "unknown=1", "limit"] {
            assert!(matches!(Query::parse(wrong), Err(ApiError::Wrong(_))), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_bound() {
        let body = |bytes| Full::new(Bytes::from(vec![b' '; bytes]));
        assert_eq!(read(body(BODY_BYTES_MAX)).await.unwrap().len(), BODY_BYTES_MAX);
        assert_eq!(read(body(BODY_BYTES_MAX + 1)).await, Err(ApiError::TooLarge { max: BODY_BYTES_MAX }));
    }

    /// Someone who sends a head and no body does not hold a place for ever.
    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_given_up() {
        let never = http_body_util::StreamBody::new(futures_util::stream::pending::<
            Result<hyper::body::Frame<Bytes>, std::io::Error>,
        >());
        assert_eq!(read(never).await, Err(ApiError::Slow(BODY_TIMEOUT)));
    }
}

//! Every failure of the admin API becomes HTTP here.

use super::control::{AuthError, ChangeError, Wrong};
use super::http::{no_store, version_tag};
use bytes::Bytes;
use cluster::directory::role::Grant;
use http::header::{ALLOW, CONTENT_TYPE, ETAG, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    #[error("there is no such path; `/admin/v1/openapi.json` lists what there is")]
    NoPath,
    #[error("only {allow} is answered here{}", hinted(.hint.as_deref()))]
    Method { allow: &'static str, hint: Option<String> },
    #[error("a key with a role is needed: `authorization: Bearer lea-…`")]
    NoKey,
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error("this needs the role `{}`", .0.name())]
    Forbidden(Grant),
    #[error("your roles are limited to some tenants; {0}")]
    OutOfScope(&'static str),
    #[error("what was sent is not right")]
    Wrong(Vec<Wrong>),
    #[error("the body has more than {max} bytes")]
    TooLarge { max: usize },
    #[error("the body did not come within {0:?}")]
    Slow(Duration),
    #[error("the body broke off")]
    Broken,
    #[error("there is no such thing")]
    NotFound,
    #[error("there is no {0}")]
    NoSuch(String),
    #[error("{what} is there already, at version {current}")]
    Taken { what: String, current: u64 },
    #[error("this is the key that you call with; another admin key must do it: no one could call afterwards")]
    OwnKey,
    /// What the caller's `if-match` or `if-none-match` asked for is not so.
    #[error("it is not in the state that the request expects{}", now(*.current))]
    Precondition { current: Option<u64> },
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("the system gives no randomness")]
    Randomness,
}

fn hinted(hint: Option<&str>) -> String {
    hint.map_or_else(String::new, |hint| format!("; {hint}"))
}

fn now(current: Option<u64>) -> String {
    current.map_or_else(|| "; it does not exist".to_owned(), |version| format!("; it is at version {version}"))
}

impl ApiError {
    pub fn wrong(path: &str, message: impl Into<String>) -> Self {
        Self::Wrong(vec![Wrong { path: path.to_owned(), message: message.into() }])
    }

    /// The same with the name of what it is about.
    #[must_use]
    pub fn about(self, what: impl FnOnce() -> String) -> Self {
        if matches!(self, Self::NotFound | Self::Change(ChangeError::NotFound)) {
            return Self::NoSuch(what());
        }
        if let Self::Change(ChangeError::Exists { current }) = self {
            return Self::Taken { what: what(), current };
        }
        self
    }

    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoPath
            | Self::NotFound
            | Self::NoSuch(_)
            | Self::Change(ChangeError::NotFound | ChangeError::NoSuch { .. }) => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoKey | Self::Auth(AuthError::Unknown) => StatusCode::UNAUTHORIZED,
            Self::Auth(AuthError::NoRole)
            | Self::Forbidden(_)
            | Self::OutOfScope(_)
            | Self::Change(ChangeError::ForeignBudget { .. }) => StatusCode::FORBIDDEN,
            Self::Wrong(_) | Self::Broken | Self::Change(ChangeError::Invalid(_)) => StatusCode::BAD_REQUEST,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Precondition { .. } => StatusCode::PRECONDITION_FAILED,
            Self::Taken { .. }
            | Self::OwnKey
            | Self::Change(
                ChangeError::Exists { .. }
                | ChangeError::Changed { .. }
                | ChangeError::DeclaredInFile { .. }
                | ChangeError::Refused { .. },
            ) => StatusCode::CONFLICT,
            Self::Auth(AuthError::NotFresh) | Self::Change(ChangeError::Unavailable { .. }) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Change(ChangeError::Uncertain { .. } | ChangeError::NotEverywhere { .. }) => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::Randomness => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// For programs; never changes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoPath => "unknown_path",
            Self::Method { .. } => "method_not_allowed",
            Self::NoKey => "no_key",
            Self::Auth(AuthError::Unknown) => "invalid_key",
            Self::Auth(AuthError::NoRole) => "no_role",
            Self::Forbidden(_) => "role_needed",
            Self::OutOfScope(_) | Self::Change(ChangeError::ForeignBudget { .. }) => "out_of_scope",
            Self::Wrong(_) | Self::Change(ChangeError::Invalid(_)) => "invalid",
            Self::TooLarge { .. } => "too_large",
            Self::Slow(_) => "timeout",
            Self::Broken => "broken_body",
            Self::NotFound | Self::NoSuch(_) | Self::Change(ChangeError::NotFound | ChangeError::NoSuch { .. }) => {
                "not_found"
            }
            Self::OwnKey => "own_key",
            Self::Precondition { .. } => "precondition_failed",
            Self::Taken { .. } | Self::Change(ChangeError::Exists { .. }) => "exists",
            Self::Change(ChangeError::Changed { .. }) => "changed",
            Self::Change(ChangeError::DeclaredInFile { .. }) => "declared_in_file",
            Self::Change(ChangeError::Refused { code, .. }) => code,
            Self::Auth(AuthError::NotFresh) | Self::Change(ChangeError::Unavailable { .. }) => "cluster_unavailable",
            Self::Change(ChangeError::Uncertain { .. }) => "uncertain",
            Self::Change(ChangeError::NotEverywhere { .. }) => "not_everywhere",
            Self::Randomness => "internal",
        }
    }

    fn problems(&self) -> &[Wrong] {
        if let Self::Wrong(problems) | Self::Change(ChangeError::Invalid(problems)) = self { problems } else { &[] }
    }

    /// The version that there is, where the failure is about it.
    fn current(&self) -> Option<u64> {
        if let Self::Precondition { current } | Self::Change(ChangeError::Changed { current }) = self {
            return *current;
        }
        if let Self::Taken { current: version, .. }
        | Self::Change(ChangeError::Exists { current: version } | ChangeError::NotEverywhere { version, .. }) = self
        {
            return Some(*version);
        }
        None
    }

    fn retry_after(&self) -> Option<u64> {
        if let Self::Change(ChangeError::Unavailable { retry_after, .. }) = self {
            let rounded_up = retry_after.as_secs().saturating_add(u64::from(retry_after.subsec_nanos() > 0));
            return Some(rounded_up.max(1));
        }
        matches!(self, Self::Auth(AuthError::NotFresh)).then_some(1)
    }

    pub fn response(&self, request_id: &str) -> Response<Full<Bytes>> {
        #[derive(Serialize)]
        struct Body<'a> {
            error: Told<'a>,
        }
        #[derive(Serialize)]
        struct Told<'a> {
            code: &'a str,
            message: String,
            #[serde(skip_serializing_if = "<[Wrong]>::is_empty")]
            problems: &'a [Wrong],
            #[serde(skip_serializing_if = "Option::is_none")]
            current_version: Option<u64>,
            request_id: &'a str,
        }
        let told = Told {
            code: self.code(),
            message: self.to_string(),
            problems: self.problems(),
            current_version: self.current(),
            request_id,
        };
        // A struct of texts and numbers can always be written.
        let body = serde_json::to_vec_pretty(&Body { error: told }).unwrap_or_default();
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        no_store(headers);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(version) = self.current() {
            headers.insert(ETAG, version_tag(version));
        }
        if let Some(seconds) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Self::Method { allow, .. } = self {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if self.status() == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

//! What a failure must leave behind: an error in the shape of the API called, a line in the log, a count in the metrics.

use serde_json::Value;

use crate::{Event, Reply, TestNode, eventually};

/// One of the two APIs, as a client calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    OpenAi,
    Anthropic,
}

impl Api {
    pub const BOTH: [Self; 2] = [Self::OpenAi, Self::Anthropic];

    /// Where a conversation is posted.
    pub fn path(self) -> &'static str {
        match self {
            Self::OpenAi => "/v1/chat/completions",
            Self::Anthropic => "/v1/messages",
        }
    }

    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai_chat",
            Self::Anthropic => "anthropic_messages",
        }
    }
}

/// An error as a client reads it.
#[derive(Clone, Debug)]
pub struct Told {
    pub kind: String,
    /// Only `OpenAI`'s shape has one.
    pub code: Option<String>,
    pub param: Option<String>,
    pub message: String,
}

impl Told {
    /// Reads an error strictly: exactly the fields of the API called, nothing beside them.
    fn of(api: Api, json: &Value, request_id: Option<&str>) -> Self {
        let names = |value: &Value| -> Vec<String> {
            let mut names: Vec<_> = value.as_object().expect("an object").keys().cloned().collect();
            names.sort_unstable();
            names
        };
        match api {
            Api::OpenAi => {
                assert_eq!(names(json), ["error"], "{json}");
                assert_eq!(names(&json["error"]), ["code", "message", "param", "request_id", "type"], "{json}");
                assert!(request_id.is_none_or(|id| json["error"]["request_id"] == id), "{json}");
            }
            Api::Anthropic => {
                assert_eq!(names(json), ["error", "request_id", "type"], "{json}");
                assert_eq!(names(&json["error"]), ["message", "type"], "{json}");
                assert_eq!(json["type"], "error", "{json}");
                assert!(request_id.is_none_or(|id| json["request_id"] == id), "{json}");
            }
        }
        let text = |name: &str| json["error"][name].as_str().map(str::to_owned);
        let told = Self {
            kind: text("type").expect("a type"),
            code: text("code"),
            param: text("param"),
            message: text("message").expect("a message"),
        };
        assert!(!told.message.is_empty(), "{json}");
        told
    }
}

impl Reply {
    /// The error this answer is.
    pub fn error(&self, api: Api) -> Told {
        assert_eq!(self.header("content-type"), Some("application/json"), "{}", self.text());
        let request_id = self.header("x-request-id");
        if api == Api::Anthropic {
            assert_eq!(self.header("request-id"), request_id, "{}", self.text());
        }
        Told::of(api, &self.json(), request_id)
    }

    pub fn request_id(&self) -> &str {
        self.header("x-request-id").unwrap_or_else(|| panic!("no request id: {}", self.text()))
    }
}

impl Event {
    /// The error this event is.
    pub fn error(&self, api: Api) -> Told {
        assert_eq!(self.name.as_deref(), if api == Api::Anthropic { Some("error") } else { None });
        Told::of(api, &self.json(), None)
    }
}

impl TestNode {
    /// Asserts all that a refusal must be: status, typed error, log and metric.
    pub async fn assert_refused(&self, api: Api, reply: &Reply, status: u16, case: &str) -> Told {
        assert_eq!(reply.status, status, "{case}: {}", reply.text());
        let told = reply.error(api);
        if api == Api::OpenAi {
            assert_eq!(told.code.as_deref(), Some(case), "{}", reply.text());
        }
        self.told_of(api, reply.request_id(), case).await;
        told
    }

    /// Waits until the log has the cause of the failure `case` under its request's id, and the metrics have counted it.
    pub async fn told_of(&self, api: Api, request_id: &str, case: &str) {
        let of = |line: &str, what: &str| line.contains(request_id) && line.contains(case) && line.contains(what);
        eventually(&format!("the log has the cause of `{case}` under {request_id}"), async || {
            let printed = self.printed();
            let has_cause = printed.lines().any(|line| of(line, "request failed") && line.contains("cause"));
            let has_end = printed.lines().any(|line| of(line, "status"));
            has_cause && has_end
        })
        .await;
        self.counted(api, case).await;
    }

    /// Waits until the metrics have counted a request that ended with `case`.
    pub async fn counted(&self, api: Api, case: &str) {
        let labels = [("dialect", api.name()), ("case", case)];
        let count = async || self.metrics().await.count("lea_requests_total", &labels);
        eventually(&format!("`{case}` is counted"), async || count().await > 0.0).await;
    }

    /// Asserts that the node came to no harm: no panic, no secret printed.
    pub async fn assert_unharmed(&self, secrets: &[&str]) {
        let metrics = self.metrics().await;
        for counter in ["lea_task_panics_total", "lea_actor_restarts_total"] {
            assert!(metrics.count(counter, &[]) < 1.0, "{counter} was counted");
        }
        let printed = self.printed();
        let panicked = printed.lines().find(|line| line.contains("panic"));
        assert!(panicked.is_none(), "{panicked:?}");
        self.assert_never_printed(secrets);
    }
}

//! A client as an application has one: it knows an address and a key, and nothing of what is behind.

use std::net::SocketAddr;
use std::time::Duration;

use actors::supervisor::{Executor, Tasks};
use bytes::Bytes;
use cluster::clock;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

/// The cap every question of the demo has: it is part of the question.
const OUTPUT_MAX: u32 = 300;

pub type AskError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone)]
pub struct Client {
    http: legacy::Client<HttpConnector, Full<Bytes>>,
    address: SocketAddr,
}

/// The way a question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    OpenAi,
    OpenAiStream,
    Anthropic,
}

/// What came back.
pub struct Seen {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
    pub took: Duration,
}

impl Seen {
    /// A header as text; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// The answer's text, whatever the way it was asked.
    pub fn text(&self) -> String {
        let whole: Value = serde_json::from_str(&self.body).unwrap_or(Value::Null);
        if let Some(text) = whole.pointer("/choices/0/message/content").or_else(|| whole.pointer("/content/0/text")) {
            return text.as_str().unwrap_or("").to_owned();
        }
        let events = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        let chunks = events.filter_map(|data| serde_json::from_str::<Value>(data).ok());
        chunks.filter_map(|chunk| Some(chunk.pointer("/choices/0/delta/content")?.as_str()?.to_owned())).collect()
    }

    /// The `code` of an error.
    pub fn code(&self) -> String {
        let events = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        let bodies = std::iter::once(self.body.as_str()).chain(events);
        let mut errors = bodies.filter_map(|text| serde_json::from_str::<Value>(text).ok());
        errors.find_map(|body| Some(body.pointer("/error/code")?.as_str()?.to_owned())).unwrap_or_default()
    }
}

impl Client {
    pub fn new(address: SocketAddr, tasks: &Tasks) -> Self {
        let executor: Executor = tasks.executor("demo client");
        Self { http: legacy::Client::builder(executor).build(HttpConnector::new()), address }
    }

    /// Asks and reads the answer to its end.
    pub async fn ask(&self, key: &str, model: &str, way: Way, question: &str) -> Result<Seen, AskError> {
        let path = match way {
            Way::OpenAi | Way::OpenAiStream => "/v1/chat/completions",
            Way::Anthropic => "/v1/messages",
        };
        let body = json!({
            "model": model,
            "max_tokens": OUTPUT_MAX,
            "stream": way == Way::OpenAiStream,
            "messages": [{ "role": "user", "content": question }],
        });
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{}{path}", self.address))
            .header(AUTHORIZATION, format!("Bearer {key}"))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_string())))?;
        let asked = clock::now();
        let (head, body) = self.http.request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        let took = clock::now().saturating_duration_since(asked);
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(Seen { status: head.status.as_u16(), headers: head.headers, body, took })
    }
}

//! An HTTP client for tests: every wait has a deadline, and an answer is shown as it came.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::sse::{Decoder, Event};
use crate::{DEADLINE, in_time, in_time_of};

/// Speaks to one address. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    headers: HeaderMap,
    deadline: Duration,
    pool: Pool<HttpConnector, Full<Bytes>>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// An answer that is read event by event. Dropped, the client hangs up.
#[derive(Debug)]
pub struct Streamed {
    pub status: u16,
    pub headers: HeaderMap,
    body: Incoming,
    decoder: Decoder,
}

impl Client {
    /// Over HTTP/1.1.
    pub fn new(address: SocketAddr) -> Self {
        Self::of(address, false)
    }

    /// Over HTTP/2 from the first byte.
    pub fn http2(address: SocketAddr) -> Self {
        Self::of(address, true)
    }

    fn of(address: SocketAddr, http2: bool) -> Self {
        let pool = Pool::builder(TokioExecutor::new()).http2_only(http2).build_http();
        Self { address, headers: HeaderMap::new(), deadline: DEADLINE, pool }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits as long as this for the head of an answer, and as long again for the rest of it.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sends `name: value` with every request.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().expect("a header name");
        self.headers.insert(name, HeaderValue::from_str(value).expect("a header value"));
        self
    }

    /// Presents `key` as a bearer token.
    #[must_use]
    pub fn with_key(self, key: &str) -> Self {
        self.with_header("authorization", &format!("Bearer {key}"))
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// Posts JSON and reads the whole answer.
    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(Method::POST, path, body.to_string()).await
    }

    /// An `OpenAI` chat completion of one question.
    pub async fn chat(&self, model: &str, question: &str) -> Reply {
        self.post("/v1/chat/completions", &chat_body(model, question)).await
    }

    /// An Anthropic message of one question.
    pub async fn message(&self, model: &str, question: &str) -> Reply {
        self.post("/v1/messages", &chat_body(model, question)).await
    }

    /// The same as [`Client::chat`], streamed, with usage at the end.
    pub async fn chat_stream(&self, model: &str, question: &str) -> Streamed {
        let mut body = chat_body(model, question);
        body["stream"] = json!(true);
        body["stream_options"] = json!({ "include_usage": true });
        self.stream("/v1/chat/completions", &body).await
    }

    /// The same as [`Client::message`], streamed.
    pub async fn message_stream(&self, model: &str, question: &str) -> Streamed {
        let mut body = chat_body(model, question);
        body["stream"] = json!(true);
        self.stream("/v1/messages", &body).await
    }

    /// Sends any bytes and reads the whole answer.
    pub async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Reply {
        self.try_send(method, path, body).await.unwrap_or_else(|error| panic!("{path} was not answered: {error}"))
    }

    /// As [`Client::send`], for tests in which no answer is a right answer.
    pub async fn try_send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Reply, String> {
        let response = self.head(method, path, body.into()).await?;
        let (head, body) = response.into_parts();
        let body =
            in_time_of(self.deadline, "the whole answer", body.collect()).await.map_err(|error| error.to_string())?;
        Ok(Reply { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes() })
    }

    /// Posts JSON and returns when the head of the answer is there.
    pub async fn stream(&self, path: &str, body: &Value) -> Streamed {
        let response = self.head(Method::POST, path, Bytes::from(body.to_string())).await;
        let response = response.unwrap_or_else(|error| panic!("{path} was not answered: {error}"));
        let (head, body) = response.into_parts();
        Streamed { status: head.status.as_u16(), headers: head.headers, body, decoder: Decoder::default() }
    }

    async fn head(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, String> {
        let uri = format!("http://{}{path}", self.address);
        let mut request = Request::builder().method(method).uri(uri).body(Full::new(body)).expect("a request");
        if request.method() == Method::POST {
            request.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
        }
        for (name, value) in &self.headers {
            request.headers_mut().insert(name.clone(), value.clone());
        }
        in_time_of(self.deadline, "the head of an answer", self.pool.request(request)).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{error}: {cause}")
        })
    }
}

fn chat_body(model: &str, question: &str) -> Value {
    json!({ "model": model, "max_tokens": 512, "messages": [{ "role": "user", "content": question }] })
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().expect("a header of visible characters"))
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }

    /// What the assistant said, in either dialect.
    pub fn said(&self) -> String {
        let json = self.json();
        let openai = json["choices"][0]["message"]["content"].as_str();
        let anthropic = || json["content"].as_array()?.iter().find_map(|block| block["text"].as_str());
        openai.or_else(anthropic).unwrap_or_else(|| panic!("nobody said anything: {json}")).to_owned()
    }
}

impl Streamed {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The next event, `None` at a clean end. An error says how the stream broke.
    pub async fn try_next(&mut self) -> Result<Option<Event>, String> {
        loop {
            if let Some(event) = self.decoder.next() {
                return Ok(Some(event));
            }
            let next = in_time("the next event", pin!(self.body.frame())).await;
            match next {
                None if self.decoder.rest().is_empty() => return Ok(None),
                None => {
                    return Err(format!("ends within an event: {:?}", String::from_utf8_lossy(self.decoder.rest())));
                }
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.decoder.feed(bytes);
                    }
                }
                Some(Err(error)) => return Err(error.to_string()),
            }
        }
    }

    /// The next event; the test ends if there is none.
    pub async fn next(&mut self) -> Event {
        self.try_next().await.expect("a whole stream").expect("another event")
    }

    /// Reads on to the next piece of text, past pings and what has no text.
    pub async fn next_text(&mut self) -> String {
        loop {
            if let Some(text) = self.next().await.text().filter(|text| !text.is_empty()) {
                return text;
            }
        }
    }

    /// All that is left, up to a clean end.
    pub async fn rest(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.try_next().await.expect("a whole stream") {
            events.push(event);
        }
        events
    }
}

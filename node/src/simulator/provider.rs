//! A request from its head to its answer, top to bottom.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster::clock;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::answer::{self, Answer};
use super::attempt::{Attempt, Pace};
use super::bill::Payer;
use super::body::{AnswerBody, plan};
use super::connection::Line;
use super::journal::Entry;
use super::question::{Dialect, Question, Refusal};
use super::script::{Break, Fault, How, Place};
use super::wire::{self, Envelope, Usage};
use super::{State, control};

/// Bytes of a request's body; more is refused with 413.
const BODY_MAX: usize = 64 << 20;

/// The header whose value groups the bill.
const WINDOW: HeaderName = HeaderName::from_static("x-lea-window");

/// What is asked of the API.
enum Operation {
    Chat(Result<Box<Question>, Refusal>),
    Count(Result<u64, Refusal>),
    Models,
    Model(String),
    Unknown,
}

impl Operation {
    fn read(dialect: Dialect, head: &Parts, body: &Bytes) -> Self {
        let path = head.uri.path();
        match (head.method.as_str(), path) {
            ("POST", "/v1/chat/completions" | "/v1/messages") => {
                Self::Chat(Question::read(dialect, body).map(Box::new))
            }
            ("POST", "/v1/messages/count_tokens") => Self::Count(Question::count(body)),
            ("GET", "/v1/models") => Self::Models,
            ("GET", _) => path.strip_prefix("/v1/models/").map_or(Self::Unknown, |id| Self::Model(id.to_owned())),
            _other => Self::Unknown,
        }
    }

    fn model(&self) -> &str {
        match self {
            Self::Chat(Ok(question)) => &question.model,
            Self::Model(id) => id,
            Self::Chat(Err(_)) | Self::Count(_) | Self::Models | Self::Unknown => "",
        }
    }
}

/// What is known of a request besides its question.
struct Call {
    state: Arc<State>,
    line: Arc<Line>,
    id: u64,
    dialect: Dialect,
    key: String,
    fault: Option<Fault>,
    /// Resolves when a request that is held may go on. Taken before the request shows in the journal, so that a release sent
    /// after that is never missed.
    release: Option<BoxFuture<'static, ()>>,
    attempt: Attempt,
}

pub async fn answer(state: Arc<State>, line: Arc<Line>, request: Request<Incoming>) -> Response<AnswerBody> {
    let (head, body) = request.into_parts();
    let dialect = dialect_of(&head);
    let Ok(body) = Limited::new(body, BODY_MAX).collect().await.map(http_body_util::Collected::to_bytes) else {
        let error = wire::error(dialect, 413, "the request is too large or was cut off", None);
        return response(StatusCode::PAYLOAD_TOO_LARGE, "application/json", AnswerBody::whole(error));
    };
    if control::is_ours(head.uri.path()) {
        return control::answer(&state, &head, &body);
    }
    let operation = Operation::read(dialect, &head, &body);
    let call = Call::arrive(state, line, dialect, &operation, &head, &body);
    let id = call.id;
    let mut response = call.answer(operation, &head).await;
    let name = match dialect {
        Dialect::OpenAi => "x-request-id",
        Dialect::Anthropic => "request-id",
    };
    if let Ok(value) = HeaderValue::try_from(format!("req_sim{id:012}")) {
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
    response
}

/// Told by the path, and by a header where both APIs have the same path.
fn dialect_of(head: &Parts) -> Dialect {
    let is_anthropic = head.uri.path().starts_with("/v1/messages") || head.headers.contains_key("anthropic-version");
    if is_anthropic { Dialect::Anthropic } else { Dialect::OpenAi }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn key_of(headers: &HeaderMap) -> &str {
    let bearer = text(headers, &http::header::AUTHORIZATION).and_then(|value| value.split_once(' '));
    bearer
        .map(|(_scheme, key)| key)
        .or_else(|| text(headers, &HeaderName::from_static("x-api-key")))
        .unwrap_or_default()
}

impl Call {
    fn arrive(
        state: Arc<State>,
        line: Arc<Line>,
        dialect: Dialect,
        operation: &Operation,
        head: &Parts,
        body: &Bytes,
    ) -> Self {
        let id = state.next_id();
        let key = key_of(&head.headers).to_owned();
        let model = operation.model().to_owned();
        let fault = state.script.take(&model, &key, head.uri.path());
        let release = fault.as_ref().and_then(|fault| fault.hold).map(|_place| state.released().boxed());
        if state.config.record_requests {
            let (key, model, scripted) = (key.clone(), model.clone(), fault.is_some());
            state.journal.arrived(Entry { key, model, scripted, ..Entry::new(id, head, body) });
        }
        let window = text(&head.headers, &WINDOW).unwrap_or_default().to_owned();
        let attempt = Attempt::new(Arc::clone(&state), id, Payer { key: key.clone(), model, window });
        Self { state, line, id, dialect, key, fault, release, attempt }
    }

    async fn answer(self, operation: Operation, head: &Parts) -> Response<AnswerBody> {
        if let Some(response) = self.scripted(matches!(operation, Operation::Chat(_))) {
            let wait = self.fault.as_ref().and_then(|fault| fault.ttft).unwrap_or_default();
            if wait > Duration::ZERO {
                tokio::time::sleep(wait).await;
            }
            self.attempt.answered(response.status().as_u16());
            self.attempt.end();
            return response;
        }
        let keys = &self.state.config.api_keys;
        if !keys.is_empty() && !keys.contains(&self.key) {
            return self.refuse(StatusCode::UNAUTHORIZED, "incorrect API key provided", None);
        }
        match operation {
            Operation::Chat(Ok(question)) => self.chat(&question).await,
            Operation::Chat(Err(refusal)) | Operation::Count(Err(refusal)) => {
                self.refuse(StatusCode::BAD_REQUEST, &refusal.message, refusal.param)
            }
            Operation::Count(Ok(tokens)) => self.show(&json!({ "input_tokens": tokens })).await,
            Operation::Models => {
                let models = models(&self.state, head.headers.contains_key("anthropic-version"));
                self.show(&models).await
            }
            Operation::Model(id) if self.state.config.knows(&id) => {
                let model = model(&id, head.headers.contains_key("anthropic-version"));
                self.show(&model).await
            }
            Operation::Model(id) => {
                self.refuse(StatusCode::NOT_FOUND, &format!("the model `{id}` does not exist"), Some("model"))
            }
            Operation::Unknown => self.refuse(StatusCode::NOT_FOUND, "no such path", None),
        }
    }

    async fn chat(mut self, question: &Question) -> Response<AnswerBody> {
        if !self.state.config.knows(&question.model) {
            let message = format!("the model `{}` does not exist", question.model);
            return self.refuse(StatusCode::NOT_FOUND, &message, Some("model"));
        }
        if self.state.is_unlucky(self.id, "throttle", self.state.config.throttle_rate) {
            let mut response = self.refuse(StatusCode::TOO_MANY_REQUESTS, "rate limit reached", None);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            return response;
        }
        if self.state.is_unlucky(self.id, "error", self.state.config.error_rate) {
            return self.refuse(StatusCode::INTERNAL_SERVER_ERROR, "the simulator fails now and then", None);
        }
        let config = &self.state.config;
        let answer = answer::answer(config.seed, config.answer_tokens, question);
        let usage = self.state.usage(question, &answer);
        self.attempt.accept(usage);
        let pace = self.pace();
        self.before_head().await;
        self.generate(question.stream, pace, usage.output).await;
        self.answer_with(question, &answer, usage, pace)
    }

    fn pace(&self) -> Pace {
        let pace = self.state.config.pace();
        let fault = self.fault.as_ref();
        Pace {
            first: fault.and_then(|fault| fault.ttft).unwrap_or(pace.first),
            between: fault.and_then(|fault| fault.token_delay).unwrap_or(pace.between),
        }
    }

    /// Waits for the first token, or for all of an answer that is not streamed.
    async fn generate(&mut self, streams: bool, pace: Pace, tokens: u64) {
        let wait = if streams { pace.first } else { pace.whole(tokens) };
        if !streams {
            self.attempt.generate(clock::now(), pace);
        }
        if wait > Duration::ZERO {
            tokio::time::sleep(wait).await;
        }
        if !streams {
            self.attempt.generated();
        }
    }

    fn answer_with(self, question: &Question, answer: &Answer, usage: Usage, pace: Pace) -> Response<AnswerBody> {
        let fault = self.fault.as_ref();
        let tells_usage = !fault.is_some_and(|fault| fault.omit_usage);
        let created = clock::since_epoch();
        let envelope = Envelope { sequence: self.id, created, usage, tells_usage, question };
        let mut events = if question.stream {
            wire::stream(&envelope, answer).into_events()
        } else {
            vec![(wire::reply(&envelope, answer), 0)]
        };
        if let Some(body) = fault.and_then(|fault| fault.body.as_ref()) {
            events = vec![(said(body), if question.stream { usage.output } else { 0 })];
        }
        let whole = events.iter().map(|(bytes, _tokens)| bytes.len() as u64).sum();
        let pace = if question.stream { pace } else { Pace::default() };
        let steps = plan(self.dialect, question.stream, events, pace, fault);
        let shortens = matches!(
            fault.and_then(Fault::breaks),
            Some((_, Break::Cut(How::End | How::HalfEvent) | Break::ErrorEvent | Break::LongLine(_)))
        );
        let tells_length = !question.stream && !shortens;
        let usual = if question.stream { "text/event-stream; charset=utf-8" } else { "application/json" };
        self.attempt.answered(200);
        let body = AnswerBody::stepped(steps, tells_length, self.attempt)
            .released_by(self.release)
            .breaking(self.line, tells_length.then_some(whole));
        let mut response = response(StatusCode::OK, usual, body);
        if question.stream {
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        }
        if let Some(fault) = fault {
            decorate(&mut response, fault);
        }
        response
    }

    /// Hangs, holds or breaks the connection, if that is to happen before the head.
    async fn before_head(&mut self) {
        let Some((Place::BeforeHead, how)) = self.fault.as_ref().and_then(Fault::breaks) else { return };
        match how {
            Break::Hold => {
                if let Some(release) = self.release.take() {
                    release.await;
                }
                return;
            }
            Break::Cut(how) => self.line.end(how == How::Reset),
            Break::Hang | Break::ErrorEvent | Break::LongLine(_) => {}
        }
        std::future::pending::<()>().await;
    }

    /// What the script says in place of an answer. A chat that succeeds with a scripted body is billed, so it is not said here.
    fn scripted(&self, is_chat: bool) -> Option<Response<AnswerBody>> {
        let fault = self.fault.as_ref()?;
        if let Some(seconds) = fault.throttle {
            let error = wire::error(self.dialect, 429, "rate limit reached by order", None);
            let mut response = response(StatusCode::TOO_MANY_REQUESTS, "application/json", AnswerBody::whole(error));
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            return Some(response);
        }
        let status = fault.status.filter(|status| *status >= 300 || (!is_chat && fault.body.is_some()))?;
        let body = match &fault.body {
            Some(body) => said(body),
            None => wire::error(self.dialect, status, "the simulator was told to fail", None),
        };
        let status = StatusCode::from_u16(status).ok()?;
        let mut response = response(status, "application/json", AnswerBody::whole(body));
        decorate(&mut response, fault);
        Some(response)
    }

    fn refuse(self, status: StatusCode, message: &str, param: Option<&str>) -> Response<AnswerBody> {
        let error = wire::error(self.dialect, status.as_u16(), message, param);
        self.attempt.answered(status.as_u16());
        self.attempt.end();
        response(status, "application/json", AnswerBody::whole(error))
    }

    async fn show(mut self, value: &Value) -> Response<AnswerBody> {
        self.before_head().await;
        self.attempt.answered(200);
        self.attempt.end();
        json_response(StatusCode::OK, value)
    }
}

/// A scripted body: text as it is, all else as JSON.
fn said(body: &Value) -> Bytes {
    Bytes::from(body.as_str().map_or_else(|| body.to_string(), str::to_owned))
}

/// What a fault says about status and headers. Names and values that HTTP does not allow are left out.
fn decorate(response: &mut Response<AnswerBody>, fault: &Fault) {
    if let Some(status) = fault.status.and_then(|status| StatusCode::from_u16(status).ok()) {
        *response.status_mut() = status;
    }
    let content_type = fault.content_type.iter().map(|value| (CONTENT_TYPE.as_str(), value));
    for (name, value) in content_type.chain(fault.headers.iter().map(|(name, value)| (name.as_str(), value))) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
}

fn response(status: StatusCode, content_type: &'static str, body: AnswerBody) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub fn json_response(status: StatusCode, value: &impl Serialize) -> Response<AnswerBody> {
    let body = serde_json::to_vec(value).unwrap_or_default();
    response(status, "application/json", AnswerBody::whole(Bytes::from(body)))
}

fn model(id: &str, is_anthropic: bool) -> Value {
    if is_anthropic {
        json!({ "type": "model", "id": id, "display_name": id, "created_at": "2025-01-01T00:00:00Z" })
    } else {
        json!({ "id": id, "object": "model", "created": 1_735_689_600, "owned_by": "simulator" })
    }
}

fn models(state: &State, is_anthropic: bool) -> Value {
    let names = state.config.listed_models();
    let list: Vec<Value> = names.iter().map(|name| model(name, is_anthropic)).collect();
    if is_anthropic {
        json!({ "data": list, "has_more": false, "first_id": names.first(), "last_id": names.last() })
    } else {
        json!({ "object": "list", "data": list })
    }
}

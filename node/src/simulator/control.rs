//! `/simulator/*`: how a test scripts the simulator and reads what it saw.

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use hyper::Response;
use serde::Serialize;
use serde_json::json;

use super::State;
use super::body::AnswerBody;
use super::provider::json_response;
use super::script::Fault;

/// Whether a path is ours rather than the provider's.
pub fn is_ours(path: &str) -> bool {
    path == "/simulator" || path.starts_with("/simulator/")
}

pub fn answer(state: &State, head: &Parts, body: &Bytes) -> Response<AnswerBody> {
    match (head.method.as_str(), head.uri.path()) {
        ("GET", "/simulator/bill") => show(&state.bill.statement()),
        ("DELETE", "/simulator/bill") => done(|| state.bill.clear()),
        ("GET", "/simulator/requests") => show(&state.journal.entries()),
        ("DELETE", "/simulator/requests") => done(|| state.journal.clear()),
        ("GET", "/simulator/script") => show(&state.script.rest()),
        ("DELETE", "/simulator/script") => done(|| state.script.clear()),
        ("POST", "/simulator/script") => match read(body).and_then(|faults| state.script.add(faults)) {
            Ok(()) => done(|| ()),
            Err(problem) => json_response(StatusCode::BAD_REQUEST, &json!({ "error": problem })),
        },
        ("POST", "/simulator/release") => done(|| state.release()),
        ("DELETE", "/simulator") => done(|| state.reset()),
        _other => json_response(StatusCode::NOT_FOUND, &json!({ "error": "the simulator has no such path" })),
    }
}

fn read(body: &Bytes) -> Result<Vec<Fault>, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn show(value: &impl Serialize) -> Response<AnswerBody> {
    json_response(StatusCode::OK, value)
}

fn done(act: impl FnOnce()) -> Response<AnswerBody> {
    act();
    json_response(StatusCode::OK, &json!({ "ok": true }))
}

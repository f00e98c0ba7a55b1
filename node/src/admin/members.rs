//! The nodes: who they are, sending one away, and the memory of who changed what.

use super::control::Control;
use super::error::ApiError;
use super::http::{Answer, Call};
use super::resources::failed;
use cluster::directory::role::Grant;
use http::StatusCode;
use serde_json::json;

const EVERYONES: &str = "the nodes are everyone's";

pub fn list(control: &dyn Control, call: &Call) -> Result<Answer, ApiError> {
    call.everywhere(Grant::Viewer, EVERYONES)?;
    Ok(Answer::ok(json!({ "items": control.cluster().members })))
}

pub fn cluster(control: &dyn Control, call: &Call) -> Result<Answer, ApiError> {
    call.everywhere(Grant::Viewer, EVERYONES)?;
    Ok(Answer::ok(json!(control.cluster())))
}

pub fn audit(control: &dyn Control, call: &Call) -> Result<Answer, ApiError> {
    call.everywhere(Grant::Viewer, "the audit tells of everyone")?;
    let limit = call.query.limit();
    let mut found = control.audit(call.query.from.unwrap_or_default(), limit + 1);
    let next = found.get(limit).map(|beyond| beyond.index);
    found.truncate(limit);
    Ok(Answer::ok(json!({ "items": found, "next": next })))
}

pub async fn drain(control: &dyn Control, call: &Call, node: String) -> Result<Answer, ApiError> {
    call.everywhere(Grant::Operator, EVERYONES)?;
    control.drain(node.clone(), call.context(Grant::Admin)).await.map_err(|error| failed(call, error))?;
    Ok(Answer { status: StatusCode::ACCEPTED, ..Answer::ok(json!({ "node": node, "draining": true })) })
}

pub async fn remove(control: &dyn Control, call: &Call, node: String) -> Result<Answer, ApiError> {
    call.everywhere(Grant::Admin, EVERYONES)?;
    control.remove(node.clone(), call.context(Grant::Admin)).await.map_err(|error| failed(call, error))?;
    Ok(Answer::ok(json!({ "node": node, "removed": true })))
}

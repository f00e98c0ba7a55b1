//! What `admin …` prints for a person. Pure.

use super::{AdminCommand, KeyCommand, ProviderCommand, Which};
use crate::admin::status::cluster::{MemberStatus, table};
use cluster::directory::tenant::DEFAULT_TENANT;
use http::StatusCode;
use serde_json::Value as Json;
use std::fmt::Write;

pub fn shown(command: &AdminCommand, answer: &Json) -> String {
    match command {
        AdminCommand::Keys(KeyCommand::Create(_)) => created(answer),
        AdminCommand::Keys(KeyCommand::List) => list(Which::Keys, answer),
        AdminCommand::List { kind } => list(*kind, answer),
        AdminCommand::Keys(KeyCommand::Get { .. }) | AdminCommand::Get { .. } => format!("{answer:#}"),
        AdminCommand::Keys(KeyCommand::Revoke { name, cut, .. }) => {
            done(&format!("key {name} is revoked{}", if *cut { ", and its streams are cut" } else { "" }), answer)
        }
        AdminCommand::Keys(KeyCommand::Delete { name, .. }) => done(&format!("key {name} is deleted"), answer),
        AdminCommand::Delete { name, .. } => done(&format!("{name} is deleted"), answer),
        AdminCommand::Put { name, .. } => done(&format!("{name} is at version {}", field(answer, "version")), answer),
        AdminCommand::Providers(ProviderCommand::Off { name, .. }) => done(&format!("provider {name} is off"), answer),
        AdminCommand::Providers(ProviderCommand::On { name, .. }) => done(&format!("provider {name} is on"), answer),
        AdminCommand::Members => members(answer),
        AdminCommand::Drain { node } => format!("node {node} finishes its requests and ends"),
        AdminCommand::Remove { node } => format!("node {node} is no member any more"),
        AdminCommand::Audit { .. } => audit(answer),
    }
}

fn created(answer: &Json) -> String {
    format!("Key `{}`, for the caller. It is shown this once:\n\n  {}\n", field(answer, "name"), field(answer, "key"))
}

/// What was done, and what that means for the other nodes.
fn done(what: &str, answer: &Json) -> String {
    match answer.get("waited").and_then(Json::as_str) {
        Some("every_node") => format!("{what}, on every node"),
        Some("skipped") => format!("{what}; some nodes may not know yet"),
        Some(_) | None => what.to_owned(),
    }
}

/// A field as text; a dash where there is none.
fn field(of: &Json, name: &str) -> String {
    match of.get(name) {
        Some(Json::String(text)) => text.clone(),
        None | Some(Json::Null) => "-".to_owned(),
        Some(other @ (Json::Bool(_) | Json::Number(_) | Json::Array(_) | Json::Object(_))) => other.to_string(),
    }
}

fn items(answer: &Json) -> &[Json] {
    answer.get("items").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn lines(heading: &[&str], rows: impl Iterator<Item = Vec<String>>, answer: &Json) -> String {
    let heading = heading.iter().map(ToString::to_string).collect();
    let rows: Vec<Vec<String>> = std::iter::once(heading).chain(rows).collect();
    let mut text = table(&rows).join("\n");
    if answer.get("cut").is_some() {
        text.push_str("\nthere are more; these are as many as are listed at once");
    }
    text
}

fn list(kind: Which, answer: &Json) -> String {
    let heading: &[&str] = match kind {
        Which::Keys => &["name", "origin", "version", "tenant", "team", "roles", "state"],
        Which::Providers => &["name", "origin", "version", "kind", "state"],
        Which::Budgets => &["name", "origin", "version", "limit", "window"],
        Which::Models | Which::Prices | Which::Routes | Which::Tenants | Which::Teams | Which::Roles => {
            &["name", "origin", "version"]
        }
    };
    let rows = items(answer).iter().map(|item| {
        let spec = item.get("spec").unwrap_or(&Json::Null);
        let is = |name: &str| item.get(name) == Some(&Json::Bool(true));
        let mut row = vec![field(item, "name"), field(item, "origin"), field(item, "version")];
        match kind {
            Which::Keys => row.extend([
                spec.get("tenant").and_then(Json::as_str).unwrap_or(DEFAULT_TENANT).to_owned(),
                field(spec, "team"),
                roles(spec),
                if is("revoked") { "revoked" } else { "-" }.to_owned(),
            ]),
            Which::Providers => row.extend([
                spec.get("kind").and_then(Json::as_str).map_or_else(|| field(item, "name"), ToOwned::to_owned),
                if is("off") { "off" } else { "on" }.to_owned(),
            ]),
            Which::Budgets => row.extend([field(spec, "limit"), field(spec, "window")]),
            Which::Models | Which::Prices | Which::Routes | Which::Tenants | Which::Teams | Which::Roles => {}
        }
        row
    });
    lines(heading, rows, answer)
}

fn roles(spec: &Json) -> String {
    let roles: Vec<&str> =
        spec.get("roles").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect();
    if roles.is_empty() { "-".to_owned() } else { roles.join(",") }
}

fn members(answer: &Json) -> String {
    let rows = items(answer).iter().filter_map(|item| serde_json::from_value::<MemberStatus>(item.clone()).ok());
    lines(&MemberStatus::HEADING, rows.map(|member| member.row()), answer)
}

fn audit(answer: &Json) -> String {
    let fields = ["index", "at", "who", "action", "kind", "name", "outcome", "request_id"];
    let rows = items(answer).iter().map(|entry| fields.iter().map(|name| field(entry, name)).collect());
    lines(&fields, rows, answer)
}

/// What the node said, with everything that is wrong.
pub fn refusal(status: StatusCode, body: &Json) -> String {
    let Some(error) = body.get("error").filter(|error| error.is_object()) else {
        return format!("the node answered {status}; is this the admin address of a node of this version?");
    };
    let mut text = format!("{} ({})", field(error, "message"), field(error, "code"));
    for problem in error.get("problems").and_then(Json::as_array).into_iter().flatten() {
        let (path, message) = (field(problem, "path"), field(problem, "message"));
        let path = if path.is_empty() { path } else { format!("{path}: ") };
        // Writing to a String cannot fail.
        let _infallible = write!(text, "\n  {path}{message}");
    }
    text
}

//! Providers, models, prices, routes, tenants with their teams, roles and keys: looked at, put and deleted.

use super::access::{Scope, has_roles, needed_for};
use super::budgets::may_name;
use super::control::{Change, ChangeError, Changed, Control, Expected, Stored};
use super::endpoint::item;
use super::error::ApiError;
use super::http::{Answer, Call, Precondition};
use cluster::directory::kind::{Kind, Origin};
use cluster::directory::role::Grant;
use cluster::directory::tenant::DEFAULT_TENANT;
use http::StatusCode;
use serde_json::{Map, Value as Json, json};

/// Times a change of a team is tried again when its tenant changed meanwhile.
const TRIES_MAX: usize = 4;

const EVERYONES: &str = "this needs roles that are not";

pub fn list(control: &dyn Control, call: &Call, kind: Kind) -> Result<Answer, ApiError> {
    let scope = call.scope(Grant::Viewer)?;
    if !scope.knows(kind) {
        return Err(ApiError::OutOfScope(EVERYONES));
    }
    let limit = call.query.limit();
    let mut found = control.list(kind, call.query.after.as_deref(), limit + 1, &scope);
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|last| last.name.clone());
    let items: Vec<Json> = found.iter().map(|stored| shown(kind, stored)).collect();
    Ok(Answer::ok(json!({ "items": items, "next": next })))
}

pub fn get(control: &dyn Control, call: &Call, kind: Kind, name: &str) -> Result<Answer, ApiError> {
    let stored = seen(control, &call.scope(Grant::Viewer)?, kind, name)?.ok_or(ApiError::NotFound)?;
    Ok(found(call, stored.version, || shown(kind, &stored)))
}

/// What is there, as far as `scope` lets it be seen.
fn seen(control: &dyn Control, scope: &Scope, kind: Kind, name: &str) -> Result<Option<Stored>, ApiError> {
    if !scope.knows(kind) {
        return Err(ApiError::OutOfScope(EVERYONES));
    }
    Ok(control.get(kind, name).filter(|stored| scope.covers_stored(kind, stored)))
}

/// With its body, unless the caller has this version.
fn found(call: &Call, version: u64, body: impl FnOnce() -> Json) -> Answer {
    if call.precondition == Precondition::Not(version) {
        let unchanged = Answer { status: StatusCode::NOT_MODIFIED, ..Answer::ok(Json::Null) };
        return unchanged.with_version(version);
    }
    Answer::ok(body()).with_version(version)
}

pub fn shown(kind: Kind, stored: &Stored) -> Json {
    let origin = match stored.origin {
        Origin::File => "file",
        Origin::Api => "api",
    };
    let mut shown = json!({ "name": stored.name, "version": stored.version, "origin": origin });
    match kind {
        Kind::Keys => shown["revoked"] = stored.revoked.into(),
        Kind::Providers => shown["off"] = stored.off.into(),
        Kind::Models | Kind::Prices | Kind::Routes | Kind::Tenants | Kind::Roles | Kind::Budgets => {}
    }
    shown["spec"] = stored.spec.clone();
    shown
}

pub async fn put(control: &dyn Control, call: &Call, kind: Kind, name: String) -> Result<Answer, ApiError> {
    let mut spec = call.object()?;
    let before = control.get(kind, &name);
    let mut pinned = false;
    if kind == Kind::Keys {
        pinned = complete_key(&mut spec, before.as_ref())?;
    }
    let spec = Json::Object(spec);
    pinned |= judge(control, call, kind, &name, before.as_ref(), Some(&spec))?;
    let expected = call.precondition.expected(before.as_ref().map(|stored| stored.version), pinned)?;
    let change = Change::Put { kind, name: name.clone(), spec: spec.clone(), expected };
    let changed =
        control.change(change, call.context(needed_for(kind, false))).await.map_err(|error| failed(call, error))?;
    let (revoked, off) = before.as_ref().map_or((false, false), |before| (before.revoked, before.off));
    let stored = Stored { name, spec, version: changed.version, origin: Origin::Api, revoked, off };
    Ok(done(shown(kind, &stored), changed, before.is_none()))
}

/// A key is stored by its hash. Put without one, it keeps the one it has; then what was read must still be so.
fn complete_key(spec: &mut Map<String, Json>, before: Option<&Stored>) -> Result<bool, ApiError> {
    if spec.contains_key("secret") {
        let advice = "`POST /admin/v1/keys` makes a key; for one that exists give its `hash`, as `keys new` prints it";
        return Err(ApiError::wrong("secret", format!("is not sent to the cluster; {advice}")));
    }
    if spec.contains_key("hash") {
        return Ok(false);
    }
    match before.and_then(|before| before.spec.get("hash")) {
        Some(hash) => {
            spec.insert("hash".to_owned(), hash.clone());
            Ok(true)
        }
        None => Err(ApiError::wrong("hash", "is missing; `POST /admin/v1/keys` makes a key and its hash")),
    }
}

pub async fn delete(control: &dyn Control, call: &Call, kind: Kind, name: String) -> Result<Answer, ApiError> {
    let before = control.get(kind, &name);
    let pinned = judge(control, call, kind, &name, before.as_ref(), None)?;
    if pinned && before.is_none() {
        return Err(ApiError::NotFound);
    }
    if kind == Kind::Keys && name == call.operator.name {
        return Err(ApiError::OwnKey);
    }
    let expected = match (call.precondition, before) {
        (Precondition::Absent, _) => return Err(ApiError::wrong("if-none-match", "makes no sense here")),
        (precondition, before) => precondition.expected(before.map(|stored| stored.version), pinned)?,
    };
    let change = Change::Delete { kind, name: name.clone(), expected };
    let changed =
        control.change(change, call.context(needed_for(kind, false))).await.map_err(|error| failed(call, error))?;
    Ok(done(json!({ "name": name, "version": changed.version }), changed, false))
}

/// Whether the caller may turn `before` into `after`. True when that was judged by what `before` is, so that it must
/// still be that when the change is made.
fn judge(
    control: &dyn Control,
    call: &Call,
    kind: Kind,
    name: &str,
    before: Option<&Stored>,
    after: Option<&Json>,
) -> Result<bool, ApiError> {
    let is_admin_key = [before.map(|stored| &stored.spec), after].into_iter().flatten().any(has_roles);
    let needed = needed_for(kind, is_admin_key);
    let scope = call.scope(needed)?;
    // What needs an administrator here is everyone's.
    if needed == Grant::Admin && scope != Scope::Everything {
        return Err(ApiError::OutOfScope(EVERYONES));
    }
    let foreign = |spec: &Json| !scope.covers(kind, name, spec);
    if before.is_some_and(|stored| foreign(&stored.spec)) {
        // Whoever may not see it learns no more than that it is not there, or that the name is taken.
        return Err(if after.is_none() { ApiError::NotFound } else { ApiError::OutOfScope("this name is taken") });
    }
    if after.is_some_and(foreign) {
        return Err(ApiError::OutOfScope("give the key one of them as `tenant`"));
    }
    if let Some(after) = after {
        may_name(control, &scope, before.map(|stored| &stored.spec), after)?;
    }
    Ok(call.operator.scope(Grant::Admin) != Some(Scope::Everything))
}

pub async fn switch(control: &dyn Control, call: &Call, provider: String, off: bool) -> Result<Answer, ApiError> {
    call.everywhere(Grant::Operator, "providers are everyone's")?;
    let change = Change::SwitchProvider { name: provider.clone(), off };
    let changed = control.change(change, call.context(Grant::Operator)).await.map_err(|error| failed(call, error))?;
    Ok(done(json!({ "name": provider, "off": off, "version": changed.version }), changed, false))
}

/// The answer to a change.
pub fn done(mut body: Json, changed: Changed, made: bool) -> Answer {
    body["waited"] = json!(changed.waited);
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    Answer { status, ..Answer::ok(body) }.with_version(changed.version)
}

/// A precondition of the caller's that does not hold is told as such.
pub fn failed(call: &Call, error: ChangeError) -> ApiError {
    if call.precondition == Precondition::None {
        return error.into();
    }
    if let ChangeError::Exists { current } = error {
        return ApiError::Precondition { current: Some(current) };
    }
    if let ChangeError::Changed { current } = error {
        return ApiError::Precondition { current };
    }
    let must_exist = matches!(call.precondition, Precondition::Version(_) | Precondition::Present);
    if must_exist && error == ChangeError::NotFound {
        return ApiError::Precondition { current: None };
    }
    error.into()
}

pub fn teams(control: &dyn Control, call: &Call, tenant: &str) -> Result<Answer, ApiError> {
    let stored = tenant_for(control, &call.scope(Grant::Viewer)?, tenant)?;
    let (limit, after) = (call.query.limit(), call.query.after.as_deref());
    let mut names: Vec<&String> = teams_of(&stored.spec).map(|teams| teams.keys().collect()).unwrap_or_default();
    names.sort();
    let mut rest = names.into_iter().filter(|name| after.is_none_or(|after| name.as_str() > after));
    let page: Vec<&String> = rest.by_ref().take(limit).collect();
    let next = page.last().filter(|_| rest.next().is_some());
    let items: Vec<Json> = page.iter().map(|name| team_shown(&stored, name)).collect();
    Ok(Answer::ok(json!({ "items": items, "next": next })).with_version(stored.version))
}

pub fn team(control: &dyn Control, call: &Call, tenant: &str, name: &str) -> Result<Answer, ApiError> {
    let stored = tenant_for(control, &call.scope(Grant::Viewer)?, tenant)?;
    if !teams_of(&stored.spec).is_some_and(|teams| teams.contains_key(name)) {
        return Err(ApiError::NotFound);
    }
    Ok(found(call, stored.version, || team_shown(&stored, name)))
}

/// Puts the team, or with no spec deletes it. A team is a part of its tenant, whose version it has.
pub async fn change_team(
    control: &dyn Control,
    call: &Call,
    tenant: String,
    name: String,
    spec: Option<Map<String, Json>>,
) -> Result<Answer, ApiError> {
    let scope = call.scope(Grant::Admin)?;
    for tries in 1.. {
        let stored = tenant_for(control, &scope, &tenant)?;
        if let Some(spec) = &spec {
            may_name(control, &scope, Some(&stored.spec), &Json::Object(spec.clone()))?;
        }
        let there = teams_of(&stored.spec).is_some_and(|teams| teams.contains_key(&name));
        let whole = with_team(&stored.spec, &name, spec.clone()).ok_or(ApiError::NotFound)?;
        let expected = team_expected(call, &stored, there)?;
        let change = Change::Put { kind: Kind::Tenants, name: tenant.clone(), spec: whole.clone(), expected };
        match control.change(change, call.context(Grant::Admin)).await {
            Ok(changed) => {
                let stored = Stored { spec: whole, version: changed.version, origin: Origin::Api, ..stored };
                let body = match spec {
                    Some(_) => team_shown(&stored, &name),
                    None => json!({ "name": name, "tenant": tenant, "version": changed.version }),
                };
                return Ok(done(body, changed, spec.is_some() && !there));
            }
            Err(ChangeError::Changed { .. } | ChangeError::Exists { .. })
                if tries < TRIES_MAX && call.precondition == Precondition::None => {}
            Err(error) => return Err(failed(call, error)),
        }
    }
    // The loop has no end of its own.
    Err(ApiError::NotFound)
}

/// The tenant as it must be found, when the caller's precondition is about the team.
fn team_expected(call: &Call, tenant: &Stored, there: bool) -> Result<Expected, ApiError> {
    let held = (tenant.version > 0).then_some(tenant.version);
    match (call.precondition, there) {
        (Precondition::Absent, true) | (Precondition::Present, false) => {
            Err(ApiError::Precondition { current: held.filter(|_| there) })
        }
        (Precondition::Absent | Precondition::Present, _) => Precondition::None.expected(held, true),
        (Precondition::None | Precondition::Version(_) | Precondition::Not(_), _) => {
            call.precondition.expected(held, true)
        }
    }
}

/// The tenant `default` is there before anyone makes it; then its version is 0.
fn tenant_for(control: &dyn Control, scope: &Scope, tenant: &str) -> Result<Stored, ApiError> {
    let implicit = || Stored {
        name: tenant.to_owned(),
        spec: json!({}),
        version: 0,
        origin: Origin::Api,
        revoked: false,
        off: false,
    };
    let stored = control.get(Kind::Tenants, tenant).or_else(|| (tenant == DEFAULT_TENANT).then(implicit));
    let stored = stored.filter(|stored| scope.covers_stored(Kind::Tenants, stored));
    stored.ok_or_else(|| ApiError::NoSuch(item(Kind::Tenants, tenant)))
}

fn teams_of(tenant: &Json) -> Option<&Map<String, Json>> {
    tenant.get("teams").and_then(Json::as_object)
}

/// The tenant's spec with the team in it, or without. None when there is nothing to take out.
fn with_team(tenant: &Json, name: &str, spec: Option<Map<String, Json>>) -> Option<Json> {
    let mut whole = tenant.as_object().cloned().unwrap_or_default();
    let mut teams = teams_of(tenant).cloned().unwrap_or_default();
    match spec {
        Some(spec) => {
            teams.insert(name.to_owned(), Json::Object(spec));
        }
        None => {
            teams.shift_remove(name)?;
        }
    }
    whole.insert("teams".to_owned(), Json::Object(teams));
    Some(Json::Object(whole))
}

fn team_shown(tenant: &Stored, name: &str) -> Json {
    let spec = teams_of(&tenant.spec).and_then(|teams| teams.get(name)).cloned().unwrap_or_else(|| json!({}));
    let origin = match tenant.origin {
        Origin::File => "file",
        Origin::Api => "api",
    };
    json!({ "name": name, "tenant": tenant.name, "version": tenant.version, "origin": origin, "spec": spec })
}

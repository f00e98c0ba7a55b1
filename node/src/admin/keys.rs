//! Keys are made here, where their text is shown once, and revoked here.

use super::access::{Scope, has_roles};
use super::budgets::may_name;
use super::control::{Change, Control, Expected, KeyRef, Stored};
use super::endpoint::{PREFIX, encode, item};
use super::error::ApiError;
use super::http::{Answer, Call};
use super::key_text::new_key;
use super::resources::{done, failed, shown};
use cluster::directory::key::KeyHash;
use cluster::directory::kind::{Kind, Origin};
use cluster::directory::role::Grant;
use serde_json::{Map, Value as Json, json};

/// `{ "name": …, and what else a key's spec has }`. The key's text is in the answer and nowhere else.
pub async fn create(control: &dyn Control, call: &Call) -> Result<Answer, ApiError> {
    let mut spec = call.object()?;
    let name = match spec.shift_remove("name") {
        Some(Json::String(name)) => name,
        Some(Json::Null | Json::Bool(_) | Json::Number(_) | Json::Array(_) | Json::Object(_)) => {
            return Err(ApiError::wrong("name", "is no text"));
        }
        None => return Err(ApiError::wrong("name", "is missing; give the key a name")),
    };
    for made_here in ["secret", "hash"] {
        if spec.contains_key(made_here) {
            let advice = "a key is made here; to add one that exists, PUT it under its name";
            return Err(ApiError::wrong(made_here, advice));
        }
    }
    may_make(control, call, &spec)?;
    let text = new_key(&mut getrandom::fill).map_err(|_none| ApiError::Randomness)?;
    spec.insert("hash".to_owned(), KeyHash::of(&text).to_text().into());
    let spec = Json::Object(spec);
    let change = Change::Put { kind: Kind::Keys, name: name.clone(), spec: spec.clone(), expected: Expected::Absent };
    let changed = control.change(change, call.context(Grant::Operator)).await;
    let changed = changed.map_err(|error| failed(call, error).about(|| item(Kind::Keys, &name)))?;
    let location = format!("{PREFIX}keys/{}", encode(&name));
    let stored = Stored { name, spec, version: changed.version, origin: Origin::Api, revoked: false, off: false };
    let mut body = shown(Kind::Keys, &stored);
    body["key"] = text.into();
    Ok(Answer { location: Some(location), ..done(body, changed, true) })
}

fn may_make(control: &dyn Control, call: &Call, spec: &Map<String, Json>) -> Result<(), ApiError> {
    let spec = Json::Object(spec.clone());
    if has_roles(&spec) {
        return call.everywhere(Grant::Admin, "a key with roles needs an administrator of everything");
    }
    let scope = call.scope(Grant::Operator)?;
    if scope.covers(Kind::Keys, "", &spec) {
        return Ok(may_name(control, &scope, None, &spec)?);
    }
    Err(ApiError::OutOfScope("give the key one of them as `tenant`"))
}

/// `{ "cut": true }` ends streams that run with it, too. The key may be named by its hash as well.
pub async fn revoke(control: &dyn Control, call: &Call, key: String) -> Result<Answer, ApiError> {
    let mut wanted = call.object_if_any()?;
    let cut = match wanted.shift_remove("cut") {
        None => false,
        Some(Json::Bool(cut)) => cut,
        Some(Json::Null | Json::Number(_) | Json::String(_) | Json::Array(_) | Json::Object(_)) => {
            return Err(ApiError::wrong("cut", "is neither `true` nor `false`"));
        }
    };
    if let Some(unknown) = wanted.keys().next() {
        return Err(ApiError::wrong(unknown, "is not known; known is `cut`"));
    }
    let reference = reference(control, call, &key)?;
    if is_own(control, call, &reference) {
        return Err(ApiError::OwnKey);
    }
    let change = Change::Revoke { key: reference, cut };
    let changed = control.change(change, call.context(Grant::Operator)).await.map_err(|error| failed(call, error))?;
    Ok(done(json!({ "name": key, "revoked": true, "cut": cut, "version": changed.version }), changed, false))
}

/// Whether it is the key that the caller calls with. Without it he could not undo what he did.
fn is_own(control: &dyn Control, call: &Call, key: &KeyRef) -> bool {
    let own = &call.operator.name;
    match key {
        KeyRef::Name(name) => name == own,
        KeyRef::Hash(hash) => control.get(Kind::Keys, own).is_some_and(|stored| {
            stored.spec.get("hash").and_then(Json::as_str).and_then(KeyHash::parse).as_ref() == Some(hash)
        }),
    }
}

/// Whoever may revoke everything names the key, and the cluster finds it. Anyone else's right is judged by what the key
/// is here and now, and it is that key, by its hash, that is revoked.
fn reference(control: &dyn Control, call: &Call, key: &str) -> Result<KeyRef, ApiError> {
    let hash = KeyHash::parse(key);
    if call.operator.scope(Grant::Admin) == Some(Scope::Everything) {
        return Ok(hash.map_or_else(|| KeyRef::Name(key.to_owned()), KeyRef::Hash));
    }
    let scope = call.scope(Grant::Operator)?;
    if hash.is_some() {
        return Err(ApiError::Forbidden(Grant::Admin));
    }
    let stored = control.get(Kind::Keys, key).filter(|stored| scope.covers_stored(Kind::Keys, stored));
    let stored = stored.ok_or(ApiError::NotFound)?;
    if has_roles(&stored.spec) {
        return Err(ApiError::Forbidden(Grant::Admin));
    }
    let hash = stored.spec.get("hash").and_then(Json::as_str).and_then(KeyHash::parse);
    hash.map(KeyRef::Hash).ok_or(ApiError::NotFound)
}

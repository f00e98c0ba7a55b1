//! Resources as they travel between nodes and as the admin API shows them: canonical JSON.
//!
//! Canonical: fields sorted, and what is as by default left out, so that a program version that adds a field writes the
//! same text as the one before it. No secret stands in it. A credential is a reference: `"${NAME}"`, `{"file": PATH}`,
//! `"none"`, or `{"local": "provider/index"}` for a text in a node's own file.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::budget::BudgetSpec;
use super::key::{KeyHash, KeySpec, check_secret};
use super::kind::Kind;
use super::model::ModelSpec;
use super::price::PriceSpec;
use super::problems::{Problems, words_of};
use super::provider::ProviderSpec;
use super::resources::Resources;
use super::role::RoleSpec;
use super::route::RouteSpec;
use super::secret::{SecretRef, SecretSource};
use super::tenant::TenantSpec;

/// Where a text that could not be read went wrong. Read again, with an eye on that, as nearly all can be read.
fn wrong_at<T: DeserializeOwned>(text: &str) -> String {
    let read = serde_path_to_error::deserialize::<_, T>(&mut serde_json::Deserializer::from_str(text));
    let Err(error) = read else { return String::new() };
    words_of(error.path()).join(".")
}

/// One resource of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    Provider(Box<ProviderSpec>),
    Model(ModelSpec),
    Price(PriceSpec),
    Route(Box<RouteSpec>),
    Tenant(TenantSpec),
    Role(RoleSpec),
    Key(Box<KeySpec>),
    Budget(BudgetSpec),
}

/// Why a text is no resource.
#[derive(Debug, thiserror::Error)]
#[error("is not what one of the {kind} looks like")]
pub struct SpecError {
    pub kind: Kind,
    /// The words of the way to what is wrong, joined by dots; empty where that is the whole of it.
    pub path: String,
    #[source]
    pub cause: serde_json::Error,
}

impl SpecError {
    /// What is wrong there.
    pub fn message(&self) -> String {
        if self.path.is_empty() {
            return format!("{self}: {}", self.cause);
        }
        let cause = self.cause.to_string();
        // The lines are not those of whoever wrote it.
        cause.rsplit_once(" at line ").map_or(cause.as_str(), |(cause, _place)| cause).to_owned()
    }
}

impl Spec {
    /// Reads what [`Spec::write`] wrote, or what a client of the admin API sent.
    pub fn read(kind: Kind, text: &str) -> Result<Self, SpecError> {
        fn read<T: DeserializeOwned>(kind: Kind, text: &str) -> Result<T, SpecError> {
            // A list would be taken for the fields in their order.
            if !text.trim_start().starts_with('{') {
                let cause = serde::de::Error::custom("it is not an object");
                return Err(SpecError { kind, path: String::new(), cause });
            }
            serde_json::from_str(text).map_err(|cause| SpecError { kind, path: wrong_at::<T>(text), cause })
        }
        Ok(match kind {
            Kind::Providers => Self::Provider(read(kind, text)?),
            Kind::Models => Self::Model(read(kind, text)?),
            Kind::Prices => Self::Price(read(kind, text)?),
            Kind::Routes => Self::Route(read(kind, text)?),
            Kind::Tenants => Self::Tenant(read(kind, text)?),
            Kind::Roles => Self::Role(read(kind, text)?),
            Kind::Keys => Self::Key(read(kind, text)?),
            Kind::Budgets => Self::Budget(read(kind, text)?),
        })
    }

    pub const fn kind(&self) -> Kind {
        match self {
            Self::Provider(_) => Kind::Providers,
            Self::Model(_) => Kind::Models,
            Self::Price(_) => Kind::Prices,
            Self::Route(_) => Kind::Routes,
            Self::Tenant(_) => Kind::Tenants,
            Self::Role(_) => Kind::Roles,
            Self::Key(_) => Kind::Keys,
            Self::Budget(_) => Kind::Budgets,
        }
    }

    /// The same resource always gives the same text. A key must have its `hash` by now: a `secret` is left out.
    pub fn write(&self, name: &str) -> Result<String, SpecError> {
        let value = match self {
            Self::Provider(spec) => provider_value(name, spec),
            Self::Model(spec) => minimal(spec),
            Self::Price(spec) => minimal(spec),
            Self::Route(spec) => route_value(spec),
            Self::Tenant(spec) => minimal(spec),
            Self::Role(spec) => minimal(spec),
            Self::Budget(spec) => minimal(spec),
            Self::Key(spec) => minimal(&KeySpec { secret: None, ..(**spec).clone() }),
        };
        value.map(|value| value.to_string()).map_err(|cause| SpecError {
            kind: self.kind(),
            path: String::new(),
            cause,
        })
    }

    /// What can be said of the resource alone.
    pub fn check(&self, problems: &mut Problems) {
        match self {
            Self::Provider(spec) => spec.check(problems),
            Self::Model(spec) => spec.check(problems),
            Self::Price(spec) => spec.check(problems),
            Self::Route(spec) => spec.check(problems),
            Self::Tenant(spec) => spec.check(problems),
            Self::Role(spec) => spec.check(problems),
            Self::Key(spec) => spec.check(problems),
            Self::Budget(spec) => spec.check(problems),
        }
    }

    /// Puts it where it belongs, over what has the same name.
    pub fn put(self, name: &str, resources: &mut Resources) {
        let name = name.to_owned();
        match self {
            Self::Provider(spec) => drop(resources.providers.insert(name, *spec)),
            Self::Model(spec) => drop(resources.models.insert(name, spec)),
            Self::Price(spec) => drop(resources.prices.insert(name, spec)),
            Self::Route(spec) => drop(resources.routes.insert(name, *spec)),
            Self::Tenant(spec) => drop(resources.tenants.insert(name, spec)),
            Self::Role(spec) => drop(resources.roles.insert(name, spec)),
            Self::Key(spec) => drop(resources.keys.insert(name, *spec)),
            Self::Budget(spec) => drop(resources.budgets.insert(name, spec)),
        }
    }
}

/// Every resource but the keys, with its name.
pub fn shape_specs(resources: &Resources) -> impl Iterator<Item = (String, Spec)> {
    fn all<T: Clone>(
        entries: &std::collections::BTreeMap<String, T>,
        spec: fn(T) -> Spec,
    ) -> impl Iterator<Item = (String, Spec)> {
        entries.iter().map(move |(name, entry)| (name.clone(), spec(entry.clone())))
    }
    all(&resources.providers, |spec| Spec::Provider(Box::new(spec)))
        .chain(all(&resources.models, Spec::Model))
        .chain(all(&resources.prices, Spec::Price))
        .chain(all(&resources.routes, |spec| Spec::Route(Box::new(spec))))
        .chain(all(&resources.tenants, Spec::Tenant))
        .chain(all(&resources.roles, Spec::Role))
        .chain(all(&resources.budgets, Spec::Budget))
}

/// The hash a key is found by. Its secret, if it has one, is resolved and forgotten again.
pub(super) fn key_hash(
    spec: &KeySpec,
    secrets: &dyn Fn(&SecretRef) -> Option<String>,
    problems: &mut Problems,
) -> Option<KeyHash> {
    let Some(secret) = &spec.secret else {
        return spec.hash.as_deref().and_then(KeyHash::parse);
    };
    let Some(text) = secrets(secret) else {
        problems.add("secret", format!("{} gives no secret", secret.place()));
        return None;
    };
    // What stands in the file itself was checked there.
    if secret.literal().is_none() {
        check_secret("secret", &text, problems);
    }
    Some(KeyHash::of(&text))
}

/// The key as it travels: found by its hash, its secret gone.
pub fn hashed(
    spec: &KeySpec,
    secrets: &dyn Fn(&SecretRef) -> Option<String>,
    problems: &mut Problems,
) -> Option<KeySpec> {
    let hash = key_hash(spec, secrets, problems)?;
    Some(KeySpec { secret: None, hash: Some(hash.to_text()), ..spec.clone() })
}

/// What of a credential may leave the node whose file it stands in.
fn credential(provider: &str, index: usize, secret: &SecretRef) -> Value {
    let tag = |tag: &str, value: String| Value::Object(Map::from_iter([(tag.to_owned(), Value::String(value))]));
    match secret.source() {
        SecretSource::File(path) => match path.to_str() {
            Some(path) => tag("file", path.to_owned()),
            None => tag("local", format!("{provider}/{index}")),
        },
        SecretSource::Text(text) if secret.is_none() || secret.pure_variable().is_some() => Value::String(text.clone()),
        SecretSource::Text(_) => tag("local", format!("{provider}/{index}")),
        SecretSource::Local { provider, index } => tag("local", format!("{provider}/{index}")),
    }
}

fn provider_value(name: &str, spec: &ProviderSpec) -> Result<Value, serde_json::Error> {
    let mut value = minimal(spec)?;
    if let Value::Object(fields) = &mut value {
        if let Some(secret) = &spec.api_key {
            fields.insert("api_key".to_owned(), credential(name, 0, secret));
        }
        if !spec.api_keys.is_empty() {
            let before = usize::from(spec.api_key.is_some());
            let all = spec.api_keys.iter().enumerate().map(|(index, secret)| credential(name, before + index, secret));
            fields.insert("api_keys".to_owned(), all.collect());
        }
    }
    Ok(sorted(value))
}

/// A size is written in bytes: in words it would be rounded.
fn route_value(spec: &RouteSpec) -> Result<Value, serde_json::Error> {
    let mut value = minimal(spec)?;
    let answer_max = spec.cache.answer_max.as_u64();
    if let Value::Object(fields) = &mut value
        && answer_max != RouteSpec::default().cache.answer_max.as_u64()
    {
        let cache = fields.entry("cache").or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(cache) = cache {
            cache.insert("answer_max".to_owned(), answer_max.into());
        }
    }
    Ok(sorted(value))
}

/// Without what is as by default.
fn minimal<T: Serialize + Default>(spec: &T) -> Result<Value, serde_json::Error> {
    let value = serde_json::to_value(spec)?;
    let default = serde_json::to_value(T::default())?;
    Ok(sorted(without(value, &default)))
}

fn without(value: Value, default: &Value) -> Value {
    match (value, default) {
        (Value::Object(fields), Value::Object(defaults)) => {
            let kept = fields.into_iter().filter_map(|(name, field)| match defaults.get(&name) {
                Some(default) if *default == field => None,
                Some(default) => Some((name, without(field, default))),
                None => Some((name, field)),
            });
            Value::Object(kept.collect())
        }
        (value, _) => value,
    }
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.into_iter().map(|(name, field)| (name, sorted(field))).collect();
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        plain @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => plain,
    }
}

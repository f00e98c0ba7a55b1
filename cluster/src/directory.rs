//! Who exists, who may call and what is configured.
//!
//! [`resources::Resources`] is what people write, with everything checked; [`Directory`] is what requests read: built
//! whole, published whole, never changed. Its keys stand in [`shards`] shared with the register, everything else in one
//! [`shape::Shape`]: a change of a key copies one shard and nothing of the shape.

pub mod available;
pub mod budget;
mod catalog;
pub mod key;
pub mod kind;
pub mod model;
pub mod pattern;
pub mod price;
pub mod problems;
pub mod provider;
pub mod resources;
pub mod role;
pub mod route;
pub mod secret;
pub mod shape;
pub mod shards;
pub mod tenant;
pub mod wire;

use std::sync::Arc;

use budget::Budget;
use key::{Key, KeyHash};
use kind::Origin;
use model::ModelFacts;
use price::Price;
use problems::Problems;
use provider::Provider;
use resources::Resources;
use role::Role;
use route::Route;
use secret::SecretRef;
pub use shape::{ListedModel, ROUTE_OWNER, Shape, UnknownBudget};
use shards::{KeyRecord, KeyShards};

/// What requests read. Immutable, cheap to clone and to read from any thread.
#[derive(Clone)]
pub struct Directory {
    keys: KeyShards,
    shape: Arc<Shape>,
}

impl Directory {
    /// Checks everything first; a directory that is built from a file has no problem. `secrets` gives the text a
    /// reference stands for.
    pub fn build(resources: &Resources, secrets: &dyn Fn(&SecretRef) -> Option<String>) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        resources.check(&mut problems);
        let keys = build_keys(resources, secrets, &mut problems);
        check_credentials(resources, secrets, &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        let shape = Shape::new(resources, &|_provider| false, 0);
        if !shape.complaints().is_empty() {
            return Err(shape.complaints().clone());
        }
        Ok(Self { keys, shape: Arc::new(shape) })
    }

    /// Of what the register holds.
    pub fn new(keys: KeyShards, shape: Arc<Shape>) -> Self {
        Self { keys, shape }
    }

    /// On the path of every request: one look-up, nothing allocated. A revoked key is not found; whether one has
    /// expired is for who has a clock.
    pub fn key(&self, hash: &KeyHash) -> Option<&Arc<Key>> {
        self.keys.key(hash)
    }

    /// How many keys there are, revoked ones included.
    pub fn keys_len(&self) -> usize {
        self.keys.len()
    }

    /// What a client's `model` leads to. In this order: a route of that name; a route whose name ends in a star, the
    /// longest first; `provider/model`, split at the first slash; a model that exactly one provider has; the route `*`.
    ///
    /// The route has no target where an operator took all its providers out of use.
    pub fn resolve(&self, model: &str) -> Option<Arc<Route>> {
        self.shape.resolve(model)
    }

    pub fn provider(&self, name: &str) -> Option<&Arc<Provider>> {
        self.shape.provider(name)
    }

    /// Those that are out of use among them.
    pub fn providers(&self) -> impl Iterator<Item = &Arc<Provider>> {
        self.shape.providers()
    }

    /// `None` where neither the file nor the shipped table knows.
    pub fn price(&self, provider: &str, model: &str) -> Option<&Arc<Price>> {
        self.shape.price(provider, model)
    }

    pub fn budget(&self, name: &str) -> Option<&Arc<Budget>> {
        self.shape.budget(name)
    }

    /// As [`Shape::budgets_of`].
    pub fn budgets_of(&self, key: &Key, provider: &str, model: &str) -> Result<Vec<Arc<Budget>>, UnknownBudget> {
        self.shape.budgets_of(key, provider, model)
    }

    /// What is known about a provider's model besides its price.
    pub fn facts(&self, provider: &str, model: &str) -> ModelFacts {
        self.shape.facts(provider, model)
    }

    /// What a key may use, sorted: routes, and the providers' listed models as `provider/model`.
    pub fn models_for(&self, key: &Key) -> Vec<ListedModel> {
        self.shape.listed().filter(|model| key.models.allows(&model.id)).cloned().collect()
    }

    /// The routes as configured, without those whose name ends in a star.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.shape.routes()
    }

    /// A role, the built-in ones included.
    pub fn role(&self, name: &str) -> Option<&Arc<Role>> {
        self.shape.role(name)
    }

    /// What the register holds and this program had to leave out. Empty for a directory built from a file.
    pub fn complaints(&self) -> &Problems {
        self.shape.complaints()
    }

    /// Everything but the keys.
    pub fn shape(&self) -> &Arc<Shape> {
        &self.shape
    }

    pub fn keys(&self) -> &KeyShards {
        &self.keys
    }
}

/// No secret resolved here stays anywhere: only hashes are kept.
fn build_keys(
    resources: &Resources,
    secrets: &dyn Fn(&SecretRef) -> Option<String>,
    problems: &mut Problems,
) -> KeyShards {
    let mut keys = KeyShards::default();
    problems.within("keys", |problems| {
        for (name, spec) in &resources.keys {
            problems.within(name, |problems| {
                let Some(hash) = wire::key_hash(spec, secrets, problems) else { return };
                if let Some(other) = keys.get(&hash) {
                    let path = if spec.hash.is_some() { "hash" } else { "secret" };
                    return problems.add(path, format!("is the same as that of the key `{}`", other.name));
                }
                keys.insert(hash, record(name), Some(Arc::new(Key::new(name, spec))));
            });
        }
    });
    keys
}

fn record(name: &str) -> KeyRecord {
    KeyRecord { name: name.into(), spec: Box::default(), version: 0, origin: Origin::File, revoked: false }
}

fn check_credentials(resources: &Resources, secrets: &dyn Fn(&SecretRef) -> Option<String>, problems: &mut Problems) {
    let check = |path: &str, secret: &SecretRef, problems: &mut Problems| match secrets(secret).as_deref() {
        None | Some("") => problems.add(path, format!("{} gives no secret", secret.place())),
        Some(text) if !text.bytes().all(|byte| byte.is_ascii_graphic()) => {
            problems.add(path, format!("{} has characters that cannot stand in a header", secret.place()));
        }
        Some(_) => {}
    };
    problems.within("providers", |problems| {
        for (name, spec) in &resources.providers {
            problems.within(name, |problems| {
                if let Some(secret) = spec.api_key.as_ref().filter(|secret| !secret.is_none()) {
                    check("api_key", secret, problems);
                }
                problems.within("api_keys", |problems| {
                    for (index, secret) in spec.api_keys.iter().enumerate().filter(|(_, secret)| !secret.is_none()) {
                        check(&index.to_string(), secret, problems);
                    }
                });
            });
        }
    });
}

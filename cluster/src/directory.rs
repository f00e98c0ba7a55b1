//! Who exists, who may call and what is configured.
//!
//! [`resources::Resources`] is what people write, with everything checked; [`Directory`] is what requests read: built
//! whole, published whole, never changed.

pub mod available;
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
pub mod tenant;

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use catalog::Catalog;
use key::{Key, KeyHash, KeyHasher, KeySpec, check_secret};
use model::ModelFacts;
use pattern::Pattern;
use price::Price;
use problems::Problems;
use provider::Provider;
use resources::{Resources, is_name};
use route::{CacheSpec, Route, RouteSpec, Target};
use secret::SecretRef;

/// What requests read. Immutable and cheap to read from any thread.
pub struct Directory {
    keys: HashMap<KeyHash, Arc<Key>, BuildHasherDefault<KeyHasher>>,
    providers: HashMap<Arc<str>, Arc<Provider>>,
    catalog: Catalog,
    /// Every model name that is known beforehand: aliases, and listed models with and without their provider.
    named: HashMap<Box<str>, Arc<Route>>,
    /// Routes whose name ends in a star; the longest name first.
    wildcards: Vec<Wildcard>,
    listed: Vec<ListedModel>,
}

struct Wildcard {
    name: Arc<str>,
    pattern: Pattern,
    template: Route,
}

/// A model as a client may see it in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedModel {
    pub id: String,
    /// The provider; for a route, [`ROUTE_OWNER`].
    pub owned_by: String,
    /// Unix seconds. When a model was made is not known here; APIs want some time.
    pub created: u64,
}

/// Who a route belongs to in a list of models.
pub const ROUTE_OWNER: &str = "llm-edge-agent";

impl Directory {
    /// Checks everything first; a directory that exists has no problem. `secrets` gives the text a reference stands for.
    pub fn build(resources: &Resources, secrets: &dyn Fn(&SecretRef) -> Option<String>) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        resources.check(&mut problems);
        let catalog = Catalog::new(resources, &mut problems);
        let keys = build_keys(resources, secrets, &mut problems);
        check_credentials(resources, secrets, &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        let providers = resources.providers.iter().map(|(name, spec)| {
            let provider = Arc::new(Provider::new(name, spec));
            (Arc::clone(&provider.name), provider)
        });
        let mut directory = Self {
            keys,
            providers: providers.collect(),
            catalog,
            named: HashMap::new(),
            wildcards: Vec::new(),
            listed: Vec::new(),
        };
        directory.add_routes(resources);
        directory.add_models(resources);
        Ok(directory)
    }

    /// On the path of every request: one look-up, nothing allocated.
    pub fn key(&self, hash: &KeyHash) -> Option<&Arc<Key>> {
        self.keys.get(hash)
    }

    /// What a client's `model` leads to. In this order: a route of that name; a route whose name ends in a star, the
    /// longest first; `provider/model`, split at the first slash; a model that exactly one provider has; the route `*`.
    pub fn resolve(&self, model: &str) -> Option<Arc<Route>> {
        self.named.get(model).cloned().or_else(|| self.derive(model).map(Arc::new))
    }

    pub fn provider(&self, name: &str) -> Option<&Arc<Provider>> {
        self.providers.get(name)
    }

    pub fn providers(&self) -> impl Iterator<Item = &Arc<Provider>> {
        self.providers.values()
    }

    /// `None` where neither the file nor the shipped table knows.
    pub fn price(&self, provider: &str, model: &str) -> Option<&Arc<Price>> {
        self.catalog.price(provider, model)
    }

    /// What is known about a provider's model besides its price.
    pub fn facts(&self, provider: &str, model: &str) -> ModelFacts {
        self.catalog.facts(provider, model)
    }

    /// What a key may use, sorted: routes, and the providers' listed models as `provider/model`.
    pub fn models_for(&self, key: &Key) -> Vec<ListedModel> {
        self.listed.iter().filter(|model| key.models.allows(&model.id)).cloned().collect()
    }

    /// The routes as configured, without those whose name ends in a star.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.named.values().filter(|route| route.name == route.label)
    }

    /// What is not known beforehand.
    fn derive(&self, model: &str) -> Option<Route> {
        if !is_name(model) {
            return None;
        }
        let matching = |wildcard: &&Wildcard| wildcard.pattern.matches(model);
        let (all, some): (Vec<_>, Vec<_>) =
            self.wildcards.iter().filter(matching).partition(|wildcard| &*wildcard.name == "*");
        some.first()
            .map(|wildcard| wildcard.expand(model))
            .or_else(|| self.implicit(model))
            .or_else(|| all.first().map(|wildcard| wildcard.expand(model)))
    }

    /// A route nobody configured: `provider/model`, or a model that exactly one provider has.
    fn implicit(&self, model: &str) -> Option<Route> {
        let explicit = model.split_once('/').and_then(|(provider, model)| Some((self.providers.get(provider)?, model)));
        let (provider, model) = match explicit {
            Some((_, "")) => return None,
            Some(found) => found,
            None => (self.providers.get(self.catalog.owner(model)?)?, model),
        };
        Some(Route::implicit(Arc::clone(&provider.label), Arc::clone(&provider.name), model))
    }

    fn add_routes(&mut self, resources: &Resources) {
        for (name, spec) in &resources.routes {
            let route = build_route(name, spec, &self.providers);
            match Pattern::parse(name) {
                Ok(Pattern::Exact(_)) => {
                    self.listed.push(ListedModel::new(name, ROUTE_OWNER));
                    self.named.insert(name.as_str().into(), Arc::new(route));
                }
                Ok(pattern @ Pattern::Prefix(_)) => {
                    self.wildcards.push(Wildcard { name: name.as_str().into(), pattern, template: route });
                }
                Err(_) => {}
            }
        }
        self.wildcards.sort_by_key(|wildcard| std::cmp::Reverse(wildcard.name.len()));
    }

    /// Makes the routes of listed models, so that the common request finds its route ready.
    fn add_models(&mut self, resources: &Resources) {
        for provider in resources.providers.keys() {
            let models: Vec<String> = self.catalog.listed(provider).map(str::to_owned).collect();
            for model in models {
                let id = format!("{provider}/{model}");
                self.listed.push(ListedModel::new(&id, provider));
                for name in [id, model] {
                    if !self.named.contains_key(name.as_str())
                        && let Some(route) = self.derive(&name)
                    {
                        self.named.insert(name.into(), Arc::new(route));
                    }
                }
            }
        }
        self.listed.sort_by(|a, b| a.id.cmp(&b.id));
    }
}

impl ListedModel {
    fn new(id: &str, owned_by: &str) -> Self {
        Self { id: id.to_owned(), owned_by: owned_by.to_owned(), created: catalog::shipped_at() }
    }
}

impl Wildcard {
    /// The route for one name; what the star stands for takes the place of the targets' stars.
    fn expand(&self, model: &str) -> Route {
        let rest = self.pattern.rest(model).unwrap_or_default();
        let mut route = self.template.clone();
        route.name = model.into();
        for target in &mut route.targets {
            if let Some(start) = target.model.strip_suffix('*') {
                target.model = format!("{start}{rest}").into();
            }
        }
        route
    }
}

fn build_route(name: &str, spec: &RouteSpec, providers: &HashMap<Arc<str>, Arc<Provider>>) -> Route {
    let name: Arc<str> = name.into();
    let targets = spec.targets.iter().filter_map(|target| {
        let (provider, model) = target.target.split_once('/')?;
        let provider = Arc::clone(&providers.get(provider)?.name);
        Some(Target { provider, model: model.into(), weight: target.weight })
    });
    Route {
        label: Arc::clone(&name),
        name,
        targets: targets.collect(),
        strategy: spec.strategy.get(),
        cache: CacheSpec::from(&spec.cache),
        retries: spec.retries,
        disconnect: spec.disconnect,
        timeout: spec.timeout,
        first_token_timeout: spec.first_token_timeout,
    }
}

/// No secret resolved here stays anywhere: only hashes are kept.
fn build_keys(
    resources: &Resources,
    secrets: &dyn Fn(&SecretRef) -> Option<String>,
    problems: &mut Problems,
) -> HashMap<KeyHash, Arc<Key>, BuildHasherDefault<KeyHasher>> {
    let mut keys: HashMap<KeyHash, Arc<Key>, BuildHasherDefault<KeyHasher>> = HashMap::default();
    problems.within("keys", |problems| {
        for (name, spec) in &resources.keys {
            problems.within(name, |problems| {
                let Some(hash) = key_hash(spec, secrets, problems) else { return };
                if let Some(other) = keys.get(&hash) {
                    let path = if spec.hash.is_some() { "hash" } else { "secret" };
                    return problems.add(path, format!("is the same as that of the key `{}`", other.name));
                }
                keys.insert(hash, Arc::new(Key::new(name, spec)));
            });
        }
    });
    keys
}

fn key_hash(
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

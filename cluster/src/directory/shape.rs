//! Everything of the directory but the keys: providers, models and their prices, routes, roles.

use std::collections::HashMap;
use std::sync::Arc;

use super::budget::Budget;
use super::catalog::{self, Catalog};
use super::key::Key;
use super::kind::Kind;
use super::model::ModelFacts;
use super::pattern::Pattern;
use super::price::Price;
use super::problems::Problems;
use super::provider::Provider;
use super::resources::{Resources, is_name};
use super::role::{Grant, Role};
use super::route::{CacheSpec, Route, RouteSpec, Target};
use super::tenant::TenantSpec;
use super::wire::Spec;

/// Built whole; shared by all directories between two changes of it.
pub struct Shape {
    version: u64,
    providers: HashMap<Arc<str>, Arc<Provider>>,
    catalog: Catalog,
    /// Every model name that is known beforehand: aliases, and listed models with and without their provider.
    named: HashMap<Box<str>, Arc<Route>>,
    /// Routes whose name ends in a star; the longest name first.
    wildcards: Vec<Wildcard>,
    listed: Vec<ListedModel>,
    roles: HashMap<Box<str>, Arc<Role>>,
    budgets: HashMap<Box<str>, Arc<Budget>>,
    /// What tenants and their teams must fit in, of those that name any.
    owners: HashMap<Box<str>, Owner>,
    complaints: Problems,
}

/// Names of budgets.
#[derive(Default)]
struct Owner {
    own: Box<[String]>,
    teams: HashMap<Box<str>, Box<[String]>>,
}

/// A budget is named that is not known here: what must fit in it cannot be let through.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the budget `{name}` is not known")]
pub struct UnknownBudget {
    pub name: String,
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

impl Shape {
    /// Always succeeds: what refers to nothing is left out and complained about. `off` says which providers an operator
    /// took out of use.
    pub fn new(resources: &Resources, off: &dyn Fn(&str) -> bool, version: u64) -> Self {
        let mut complaints = Problems::new();
        let catalog = Catalog::new(resources, &mut complaints);
        let providers = resources.providers.iter().map(|(name, spec)| {
            let provider = Arc::new(Provider { off: off(name), ..Provider::new(name, spec) });
            (Arc::clone(&provider.name), provider)
        });
        let built_in = Grant::ALL.map(Role::built_in).into_iter();
        let roles = resources.roles.iter().map(|(name, spec)| Role::new(name, spec)).chain(built_in);
        let budgets = resources.budgets.iter().filter_map(|(name, spec)| spec.read(name));
        let mut shape = Self {
            version,
            providers: providers.collect(),
            catalog,
            named: HashMap::new(),
            wildcards: Vec::new(),
            listed: Vec::new(),
            roles: roles.map(|role| (role.name.as_str().into(), Arc::new(role))).collect(),
            budgets: budgets.map(|budget| ((*budget.name).into(), Arc::new(budget))).collect(),
            owners: resources
                .tenants
                .iter()
                .filter_map(|(name, spec)| Some((name.as_str().into(), owner(spec)?)))
                .collect(),
            complaints,
        };
        shape.add_routes(resources);
        shape.add_models(resources);
        shape
    }

    /// Of whatever the register holds: `(kind, name, JSON)`. What this program cannot read, or finds wrong in itself, is
    /// left out and complained about.
    pub fn total<'a>(
        entries: impl Iterator<Item = (Kind, &'a str, &'a str)>,
        off: &dyn Fn(&str) -> bool,
        version: u64,
    ) -> Self {
        let (resources, mut complaints) = read_all(entries);
        resources.check(&mut complaints);
        let mut shape = Self::new(&resources, off, version);
        complaints.append(std::mem::take(&mut shape.complaints));
        Self { complaints, ..shape }
    }

    /// The serial of the command that made it what it is; 0 for one that was built from a file alone.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn resolve(&self, model: &str) -> Option<Arc<Route>> {
        self.named.get(model).cloned().or_else(|| self.derive(model).map(Arc::new))
    }

    pub fn provider(&self, name: &str) -> Option<&Arc<Provider>> {
        self.providers.get(name)
    }

    pub fn providers(&self) -> impl Iterator<Item = &Arc<Provider>> {
        self.providers.values()
    }

    pub fn price(&self, provider: &str, model: &str) -> Option<&Arc<Price>> {
        self.catalog.price(provider, model)
    }

    pub fn facts(&self, provider: &str, model: &str) -> ModelFacts {
        self.catalog.facts(provider, model)
    }

    pub fn listed(&self) -> impl Iterator<Item = &ListedModel> {
        self.listed.iter()
    }

    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.named.values().filter(|route| route.name == route.label)
    }

    pub fn role(&self, name: &str) -> Option<&Arc<Role>> {
        self.roles.get(name)
    }

    pub fn budget(&self, name: &str) -> Option<&Arc<Budget>> {
        self.budgets.get(name)
    }

    pub fn budgets(&self) -> impl Iterator<Item = &Arc<Budget>> {
        self.budgets.values()
    }

    /// The budgets of the tenant, the team and the key.
    fn named_by_payer<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = &'a str> {
        let payer = self.owners.get(&*key.tenant);
        let team = payer.zip(key.team.as_deref()).and_then(|(payer, team)| payer.teams.get(team));
        let above = payer.into_iter().flat_map(|payer| payer.own.iter()).chain(team.into_iter().flatten());
        above.map(String::as_str).chain(key.budgets.iter().map(|name| &**name))
    }

    /// Whether a budget is of the key, its team or its tenant; else it is of what is called.
    pub fn is_of_payer(&self, key: &Key, budget: &str) -> bool {
        self.named_by_payer(key).any(|name| name == budget)
    }

    /// What a call of this key to this target must fit in, each once: of the provider, the model, the tenant, the team
    /// and the key.
    pub fn budgets_of(&self, key: &Key, provider: &str, model: &str) -> Result<Vec<Arc<Budget>>, UnknownBudget> {
        let to_target = self.providers.get(provider).into_iter().flat_map(|provider| provider.budgets.iter());
        let by_model = self.catalog.budgets(provider, model).iter().map(String::as_str);
        let mut found: Vec<Arc<Budget>> = Vec::new();
        for name in to_target.map(|name| &**name).chain(by_model).chain(self.named_by_payer(key)) {
            if found.iter().any(|budget| *budget.name == *name) {
                continue;
            }
            let budget = self.budgets.get(name).cloned();
            found.push(budget.ok_or_else(|| UnknownBudget { name: name.to_owned() })?);
        }
        Ok(found)
    }

    pub fn complaints(&self) -> &Problems {
        &self.complaints
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
        let mut route = Route::implicit(Arc::clone(&provider.label), Arc::clone(&provider.name), model);
        if provider.off {
            route.targets.clear();
        }
        Some(route)
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
                if self.providers.get(provider.as_str()).is_some_and(|provider| !provider.off) {
                    self.listed.push(ListedModel::new(&id, provider));
                }
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

fn owner(spec: &TenantSpec) -> Option<Owner> {
    let teams = spec.teams.iter().filter(|(_, team)| !team.budgets.is_empty());
    let teams: HashMap<_, _> =
        teams.map(|(name, team)| (name.as_str().into(), team.budgets.clone().into_boxed_slice())).collect();
    let any = !spec.budgets.is_empty() || !teams.is_empty();
    any.then(|| Owner { own: spec.budgets.clone().into_boxed_slice(), teams })
}

fn build_route(name: &str, spec: &RouteSpec, providers: &HashMap<Arc<str>, Arc<Provider>>) -> Route {
    let name: Arc<str> = name.into();
    let targets = spec.targets.iter().filter_map(|target| {
        let (provider, model) = target.target.split_once('/')?;
        let provider = providers.get(provider).filter(|provider| !provider.off)?;
        Some(Target { provider: Arc::clone(&provider.name), model: model.into(), weight: target.weight })
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

/// What can be read and is right in itself, and what is wrong with the rest.
fn read_all<'a>(entries: impl Iterator<Item = (Kind, &'a str, &'a str)>) -> (Resources, Problems) {
    let (mut resources, mut complaints) = (Resources::default(), Problems::new());
    for (kind, name, text) in entries {
        complaints.within(kind.name(), |complaints| {
            complaints.within(name, |complaints| match Spec::read(kind, text) {
                Err(error) => complaints.add(&error.path, error.message()),
                Ok(spec) => {
                    let before = complaints.len();
                    spec.check(complaints);
                    if complaints.len() == before {
                        spec.put(name, &mut resources);
                    }
                }
            });
        });
    }
    (resources, complaints)
}

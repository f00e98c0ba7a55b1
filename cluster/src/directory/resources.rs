//! The resources as they are written in a file, and what can be wrong between them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::budget::{self, BudgetSpec};
use super::catalog::Catalog;
use super::key::KeySpec;
use super::model::ModelSpec;
use super::pattern::Pattern;
use super::price::PriceSpec;
use super::problems::{Problems, nearest};
use super::provider::ProviderSpec;
use super::role::{Grant, RoleSpec, is_built_in};
use super::route::RouteSpec;
use super::tenant::{DEFAULT_TENANT, TeamSpec, TenantSpec};

/// Everything that has a name, keyed by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// LLM APIs that calls are sent to.
    pub providers: BTreeMap<String, ProviderSpec>,

    /// What models can do, where the table that comes with the program does not know it or is wrong.
    pub models: BTreeMap<String, ModelSpec>,

    /// What models cost, where the table that comes with the program does not know it or is wrong.
    pub prices: BTreeMap<String, PriceSpec>,

    /// Names that clients use for models. A client may also say `provider/model`.
    pub routes: BTreeMap<String, RouteSpec>,

    /// Who keys belong to. The tenant `default` always exists.
    pub tenants: BTreeMap<String, TenantSpec>,

    /// What operators may do through the admin API. `viewer`, `operator` and `admin` always exist.
    pub roles: BTreeMap<String, RoleSpec>,

    /// Keys that clients call with.
    pub keys: BTreeMap<String, KeySpec>,

    /// How much may be spent, by whoever names them.
    pub budgets: BTreeMap<String, BudgetSpec>,
}

/// Bytes of a name. Names stand in headers, metrics and logs.
pub const NAME_LENGTH_MAX: usize = 256;

impl Resources {
    /// Reports every problem with its path, not only the first.
    pub fn check(&self, problems: &mut Problems) {
        problems.within("providers", |problems| {
            for (name, provider) in &self.providers {
                problems.within(name, |problems| {
                    check_name(name, &['/', '*'], problems);
                    provider.check(problems);
                });
            }
        });
        problems.within("models", |problems| {
            for (name, model) in &self.models {
                problems.within(name, |problems| {
                    self.check_model_name(name, problems);
                    model.check(problems);
                });
            }
        });
        problems.within("prices", |problems| {
            for (name, price) in &self.prices {
                problems.within(name, |problems| {
                    self.check_model_name(name, problems);
                    price.check(problems);
                });
            }
        });
        problems.within("routes", |problems| {
            for (name, route) in &self.routes {
                problems.within(name, |problems| self.check_route(name, route, problems));
            }
        });
        problems.within("tenants", |problems| {
            for (name, tenant) in &self.tenants {
                problems.within(name, |problems| {
                    check_name(name, &['*'], problems);
                    tenant.check(problems);
                });
            }
        });
        self.check_roles(problems);
        self.check_keys(problems);
        self.check_budgets(problems);
    }

    /// Each alone, and that what names one names one that exists. Keys are looked at with their other references.
    fn check_budgets(&self, problems: &mut Problems) {
        problems.within("budgets", |problems| {
            for (name, spec) in &self.budgets {
                problems.within(name, |problems| {
                    check_name(name, &['*'], problems);
                    spec.check(problems);
                });
            }
        });
        let providers = self.providers.iter().map(|(name, spec)| ("providers", name, &spec.budgets));
        let models = self.models.iter().map(|(name, spec)| ("models", name, &spec.budgets));
        let tenants = self.tenants.iter().map(|(name, spec)| ("tenants", name, &spec.budgets));
        for (section, name, named) in providers.chain(models).chain(tenants).filter(|(_, _, named)| !named.is_empty()) {
            problems.within(section, |problems| {
                problems.within(name, |problems| budget::check_named(named, &self.budget_names(), problems));
            });
        }
        for (tenant, spec) in &self.tenants {
            for (team, TeamSpec { budgets, .. }) in spec.teams.iter().filter(|(_, team)| !team.budgets.is_empty()) {
                let check = |problems: &mut Problems| budget::check_named(budgets, &self.budget_names(), problems);
                let check = |problems: &mut Problems| problems.within("teams", |problems| problems.within(team, check));
                problems.within("tenants", |problems| problems.within(tenant, check));
            }
        }
    }

    fn budget_names(&self) -> impl Iterator<Item = &str> + Clone {
        self.budgets.keys().map(String::as_str)
    }

    fn check_roles(&self, problems: &mut Problems) {
        problems.within("roles", |problems| {
            for (name, role) in &self.roles {
                problems.within(name, |problems| {
                    check_name(name, &['*'], problems);
                    if is_built_in(name) {
                        problems.add("", "always exists and cannot be declared; give yours another name");
                    }
                    role.check(problems);
                    problems.within("tenants", |problems| {
                        for (index, tenant) in role.tenants.iter().enumerate() {
                            self.check_tenant(&index.to_string(), tenant, problems);
                        }
                    });
                });
            }
        });
    }

    fn check_tenant(&self, path: &str, tenant: &str, problems: &mut Problems) {
        if tenant != DEFAULT_TENANT && !self.tenants.contains_key(tenant) {
            let known = self.tenants.keys().map(String::as_str).chain([DEFAULT_TENANT]);
            problems.add_unknown(path, "tenant", tenant, known);
        }
    }

    /// The name of an entry in `prices` or `models`. A model's own name may have a slash in it, so a word before the
    /// first slash that is no provider is a mistake only if it looks like one.
    fn check_model_name(&self, name: &str, problems: &mut Problems) {
        check_name(name, &[], problems);
        if let Err(wrong) = Pattern::parse(name) {
            problems.add("", format!("`{name}` {wrong}"));
        }
        let Some((provider, _)) = name.split_once('/') else { return };
        let known = || self.providers.iter().flat_map(|(name, spec)| [name.as_str(), spec.kind(name)]);
        if known().all(|known| known != provider) && nearest(provider, known()).is_some() {
            problems.add_unknown("", "provider", provider, known());
        }
    }

    fn check_route(&self, name: &str, route: &RouteSpec, problems: &mut Problems) {
        check_name(name, &[], problems);
        let pattern = Pattern::parse(name);
        if let Err(wrong) = &pattern {
            problems.add("", format!("`{name}` {wrong}"));
        }
        let wildcard = matches!(pattern, Ok(Pattern::Prefix(_)));
        if let Some((provider, _)) = name.split_once('/')
            && !wildcard
            && self.providers.contains_key(provider)
        {
            problems.add("", format!("is named like a model of the provider `{provider}` and would hide it"));
        }
        route.check(problems);
        problems.within("targets", |problems| {
            for (index, target) in route.targets.iter().enumerate() {
                self.check_target(&index.to_string(), &target.target, wildcard, problems);
            }
        });
    }

    fn check_target(&self, path: &str, target: &str, wildcard: bool, problems: &mut Problems) {
        let Some((provider, model)) = target.split_once('/') else {
            let route = if self.routes.contains_key(target) { "; a route does not lead to a route" } else { "" };
            return problems.add(path, format!("`{target}` is not of the form `provider/model`{route}"));
        };
        if !self.providers.contains_key(provider) {
            problems.add_unknown(path, "provider", provider, self.provider_names());
        }
        if !is_name(model) {
            problems.add(path, format!("`{target}` names no model"));
        } else if let Err(wrong) = Pattern::parse(model) {
            problems.add(path, format!("`{target}` {wrong}"));
        } else if model.ends_with('*') && !wildcard {
            problems.add(path, format!("`{target}` has a star, but the name of its route has none to fill it with"));
        }
    }

    fn check_keys(&self, problems: &mut Problems) {
        let catalog = Catalog::new(self, &mut Problems::new());
        problems.within("keys", |problems| {
            for (name, key) in &self.keys {
                problems.within(name, |problems| {
                    check_name(name, &['*'], problems);
                    key.check(problems);
                    self.check_key(key, &catalog, problems);
                });
            }
        });
    }

    /// What a key refers to.
    fn check_key(&self, key: &KeySpec, catalog: &Catalog, problems: &mut Problems) {
        self.check_tenant("tenant", &key.tenant, problems);
        if let Some(team) = &key.team {
            let teams = self.tenants.get(&key.tenant).map(|tenant| &tenant.teams);
            if !teams.is_some_and(|teams| teams.contains_key(team)) {
                let what = format!("team of `{}`", key.tenant);
                problems.add_unknown("team", &what, team, teams.into_iter().flatten().map(|(name, _)| name.as_str()));
            }
        }
        problems.within("roles", |problems| {
            for (index, role) in key.roles.iter().enumerate() {
                if !is_built_in(role) && !self.roles.contains_key(role) {
                    let built_in = Grant::ALL.map(Grant::name);
                    let known = self.roles.keys().map(String::as_str).chain(built_in);
                    problems.add_unknown(&index.to_string(), "role", role, known);
                }
            }
        });
        budget::check_named(&key.budgets, &self.budget_names(), problems);
        problems.within("models", |problems| {
            for (index, model) in key.models.iter().enumerate() {
                self.check_allowed(&index.to_string(), model, catalog, problems);
            }
        });
    }

    /// A key may name what leads somewhere: a route, a provider's model, a model that one provider has. What is no
    /// pattern at all was told before.
    fn check_allowed(&self, path: &str, model: &str, catalog: &Catalog, problems: &mut Problems) {
        if Pattern::parse(model).is_err() {
            return;
        }
        let start = model.strip_suffix('*');
        let routed = self.routes.keys().any(|route| match (Pattern::parse(route), start) {
            (Ok(pattern), None) => pattern.matches(model),
            (Ok(pattern), Some(start)) => route.starts_with(start) || pattern.matches(start),
            (Err(_), _) => false,
        });
        if routed {
            return;
        }
        match (model.split_once('/'), start) {
            (Some((provider, _)), _) if !self.providers.contains_key(provider) => {
                problems.add_unknown(path, "provider or route", provider, self.names());
            }
            (None, None) if catalog.owner(model).is_none() => {
                problems.add_unknown(path, "route or model of one provider", model, self.names());
            }
            (Some(_) | None, _) => {}
        }
    }

    fn provider_names(&self) -> impl Iterator<Item = &str> {
        self.providers.keys().map(String::as_str)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.routes.keys().map(String::as_str).chain(self.provider_names())
    }
}

/// Whether a text can stand in a header, a metric and a log line as it is.
pub fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_LENGTH_MAX && text.bytes().all(|byte| byte.is_ascii_graphic())
}

pub(super) fn check_name(name: &str, forbidden: &[char], problems: &mut Problems) {
    if !is_name(name) {
        problems.add("", format!("is not a name; use up to {NAME_LENGTH_MAX} visible ASCII characters"));
    }
    if let Some(found) = name.chars().find(|letter| forbidden.contains(letter)) {
        problems.add("", format!("has a `{found}` in its name, which has a meaning where names are used"));
    }
}

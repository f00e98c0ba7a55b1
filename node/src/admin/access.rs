//! Who may do what through the admin API. Pure.

use super::control::Stored;
use cluster::directory::kind::Kind;
use cluster::directory::role::Grant;
use cluster::directory::tenant::DEFAULT_TENANT;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde_json::Value as Json;
use std::collections::BTreeSet;

/// Whoever presented an admin key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// The key's name.
    pub name: String,
    /// One for each of its roles. What any of them allows is allowed.
    pub roles: Vec<Granted>,
}

/// What one role allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    pub grant: Grant,
    /// Empty: everything.
    pub tenants: Vec<String>,
}

/// Whose resources someone sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    Everything,
    Tenants(BTreeSet<String>),
}

impl Scope {
    /// Whether a resource is in it. Only keys and tenants belong to a tenant; the rest belongs to all.
    pub fn covers(&self, kind: Kind, name: &str, spec: &Json) -> bool {
        match (self, kind) {
            (Self::Everything, _) => true,
            (Self::Tenants(tenants), Kind::Keys) => tenants.contains(tenant_of(spec)),
            (Self::Tenants(tenants), Kind::Tenants) => tenants.contains(name),
            (
                Self::Tenants(_),
                Kind::Providers | Kind::Models | Kind::Prices | Kind::Routes | Kind::Roles | Kind::Budgets,
            ) => false,
        }
    }

    pub fn covers_stored(&self, kind: Kind, stored: &Stored) -> bool {
        self.covers(kind, &stored.name, &stored.spec)
    }

    /// Whether there is anything of this kind in it at all.
    pub fn knows(&self, kind: Kind) -> bool {
        match (self, kind) {
            (Self::Everything, _) | (Self::Tenants(_), Kind::Keys | Kind::Tenants) => true,
            (
                Self::Tenants(_),
                Kind::Providers | Kind::Models | Kind::Prices | Kind::Routes | Kind::Roles | Kind::Budgets,
            ) => false,
        }
    }
}

/// The tenant that a key's spec names.
pub fn tenant_of(spec: &Json) -> &str {
    spec.get("tenant").and_then(Json::as_str).unwrap_or(DEFAULT_TENANT)
}

/// The budgets that the spec of a key, a team or a tenant with its teams names. Whoever names one that is not there is
/// refused elsewhere.
pub fn budgets_of(spec: &Json) -> impl Iterator<Item = &str> {
    let teams = spec.get("teams").and_then(Json::as_object).into_iter().flat_map(|teams| teams.values());
    let lists = std::iter::once(spec).chain(teams).filter_map(|spec| spec.get("budgets")?.as_array());
    lists.flatten().filter_map(Json::as_str)
}

/// Whether a key's spec makes it one for operators.
pub fn has_roles(spec: &Json) -> bool {
    match spec.get("roles") {
        None | Some(Json::Null) => false,
        Some(Json::Array(roles)) => !roles.is_empty(),
        // Not a list of roles; whatever it is, it is not for everyone to write.
        Some(Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Object(_)) => true,
    }
}

impl Operator {
    /// Where it may do what needs `least`; None when nowhere.
    pub fn scope(&self, least: Grant) -> Option<Scope> {
        let enough = || self.roles.iter().filter(|role| role.grant >= least);
        if enough().any(|role| role.tenants.is_empty()) {
            return Some(Scope::Everything);
        }
        let tenants: BTreeSet<String> = enough().flat_map(|role| role.tenants.iter().cloned()).collect();
        (!tenants.is_empty()).then_some(Scope::Tenants(tenants))
    }
}

/// What a change of a kind needs. A key that carries roles needs an administrator of everything, whoever it belongs
/// to: who could make one could give himself more than he has.
pub fn needed_for(kind: Kind, is_admin_key: bool) -> Grant {
    match kind {
        Kind::Keys if !is_admin_key => Grant::Operator,
        Kind::Keys
        | Kind::Providers
        | Kind::Models
        | Kind::Prices
        | Kind::Routes
        | Kind::Tenants
        | Kind::Roles
        | Kind::Budgets => Grant::Admin,
    }
}

/// The text of the key in `authorization: Bearer …`.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    let key = key.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty()).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use serde_json::json;

    fn operator(roles: &[(Grant, &[&str])]) -> Operator {
        let granted = |(grant, tenants): &(Grant, &[&str])| Granted {
            grant: *grant,
            tenants: tenants.iter().map(ToString::to_string).collect(),
        };
        Operator { name: "someone".to_owned(), roles: roles.iter().map(granted).collect() }
    }

    fn tenants(names: &[&str]) -> Scope {
        Scope::Tenants(names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn roles_add_up_and_none_lends_its_reach_to_another() {
        let mixed = operator(&[(Grant::Viewer, &[]), (Grant::Operator, &["acme"]), (Grant::Admin, &["beta"])]);

        assert_eq!(mixed.scope(Grant::Viewer), Some(Scope::Everything));
        assert_eq!(mixed.scope(Grant::Operator), Some(tenants(&["acme", "beta"])));
        assert_eq!(mixed.scope(Grant::Admin), Some(tenants(&["beta"])));
        assert_eq!(operator(&[(Grant::Viewer, &[])]).scope(Grant::Operator), None);
        assert_eq!(operator(&[]).scope(Grant::Viewer), None);
    }

    #[test]
    fn a_tenants_operator_sees_its_keys_and_nothing_of_others() {
        let scope = tenants(&["acme"]);

        assert!(scope.covers(Kind::Keys, "web", &json!({ "tenant": "acme" })));
        assert!(!scope.covers(Kind::Keys, "web", &json!({ "tenant": "beta" })));
        assert!(!scope.covers(Kind::Keys, "web", &json!({})), "it belongs to the default tenant");
        assert!(scope.covers(Kind::Tenants, "acme", &json!({})));
        assert!(!scope.covers(Kind::Tenants, "beta", &json!({})));
        for kind in [Kind::Providers, Kind::Models, Kind::Prices, Kind::Routes, Kind::Roles, Kind::Budgets] {
            assert!(!scope.covers(kind, "acme", &json!({})) && !scope.knows(kind));
            assert!(Scope::Everything.covers(kind, "acme", &json!({})));
        }
    }

    #[test]
    fn anything_that_is_not_an_empty_list_counts_as_roles() {
        assert!(!has_roles(&json!({})) && !has_roles(&json!({ "roles": [] })) && !has_roles(&json!({ "roles": null })));
        assert!(has_roles(&json!({ "roles": ["admin"] })) && has_roles(&json!({ "roles": "admin" })));
        assert_eq!(needed_for(Kind::Keys, false), Grant::Operator);
        assert_eq!(needed_for(Kind::Keys, true), Grant::Admin);
    }

    #[test]
    fn a_key_is_presented_as_a_bearer_token() {
        let found = |value: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
            bearer(&headers).map(ToOwned::to_owned)
        };
        assert_eq!(found(b"Bearer lea-x").as_deref(), Some("lea-x"));
        assert_eq!(found(b"bearer  lea-x ").as_deref(), Some("lea-x"));
        for wrong in [&b"Basic bGVh"[..], b"Bearer", b"Bearer ", b"lea-x", b"Bearer \xff"] {
            assert_eq!(found(wrong), None);
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}

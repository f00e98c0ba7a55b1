//! Which path of the admin API means what. Pure.
//!
//! A name in a path is percent-encoded, since names may have slashes in them. Where nothing follows the name, its
//! slashes may also stand as they are: `/admin/v1/models/openai/gpt-4o`.

use cluster::directory::kind::Kind;
use http::Method;
use std::fmt::Write;

/// What every path of the API begins with.
pub const PREFIX: &str = "/admin/v1/";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    List(Kind),
    Item {
        kind: Kind,
        name: String,
    },
    Teams {
        tenant: String,
    },
    Team {
        tenant: String,
        name: String,
    },
    /// `key` is a name or a hash.
    Revoke {
        key: String,
    },
    Switch {
        provider: String,
        off: bool,
    },
    Members,
    Drain {
        node: String,
    },
    Remove {
        node: String,
    },
    Audit,
    Cluster,
    /// Of all budgets. No word below `budgets`, where a budget may be called anything.
    Standings,
    Standing {
        budget: String,
    },
    Reconcile {
        budget: String,
    },
    OpenApi,
}

/// One resource, in words.
pub fn item(kind: Kind, name: &str) -> String {
    format!("{} `{name}`", kind.one())
}

impl Endpoint {
    /// None when there is nothing at this path.
    pub fn parse(path: &str) -> Option<Self> {
        let words: Vec<&str> = path.strip_prefix(PREFIX)?.split('/').collect();
        let decoded = |word: &str| decode(word).filter(|word| !word.is_empty());
        match words.as_slice() {
            ["members"] => Some(Self::Members),
            ["audit"] => Some(Self::Audit),
            ["cluster"] => Some(Self::Cluster),
            ["standings"] => Some(Self::Standings),
            ["openapi.json"] => Some(Self::OpenApi),
            ["budgets", name, "standing"] => Some(Self::Standing { budget: decoded(name)? }),
            ["budgets", name, "reconcile"] => Some(Self::Reconcile { budget: decoded(name)? }),
            ["members", node, "drain"] => Some(Self::Drain { node: decoded(node)? }),
            ["members", node, "remove"] => Some(Self::Remove { node: decoded(node)? }),
            ["keys", key, "revoke"] => Some(Self::Revoke { key: decoded(key)? }),
            ["providers", name, "off"] => Some(Self::Switch { provider: decoded(name)?, off: true }),
            ["providers", name, "on"] => Some(Self::Switch { provider: decoded(name)?, off: false }),
            ["tenants", tenant, "teams"] => Some(Self::Teams { tenant: decoded(tenant)? }),
            ["tenants", tenant, "teams", name] => Some(Self::Team { tenant: decoded(tenant)?, name: decoded(name)? }),
            [kind] => Kind::parse(kind).map(Self::List),
            [kind, name] => Some(Self::Item { kind: Kind::parse(kind)?, name: decoded(name)? }),
            [kind @ ("models" | "prices" | "routes"), rest @ ..] => {
                Some(Self::Item { kind: Kind::parse(kind)?, name: decoded(&rest.join("/"))? })
            }
            _ => None,
        }
    }

    /// As the header `allow` lists them.
    pub fn allowed(&self) -> &'static str {
        match self {
            Self::List(Kind::Keys) => "GET, HEAD, POST",
            Self::List(
                Kind::Providers
                | Kind::Models
                | Kind::Prices
                | Kind::Routes
                | Kind::Tenants
                | Kind::Roles
                | Kind::Budgets,
            )
            | Self::Teams { .. }
            | Self::Members
            | Self::Audit
            | Self::Cluster
            | Self::Standings
            | Self::Standing { .. }
            | Self::OpenApi => "GET, HEAD",
            Self::Item { .. } | Self::Team { .. } => "GET, HEAD, PUT, DELETE",
            Self::Revoke { .. }
            | Self::Switch { .. }
            | Self::Drain { .. }
            | Self::Remove { .. }
            | Self::Reconcile { .. } => "POST",
        }
    }

    pub fn allows(&self, method: &Method) -> bool {
        self.allowed().split(", ").any(|allowed| allowed == method.as_str())
    }

    /// Where what `method` is likely meant for is done, if it is not here.
    pub fn hint(&self, method: &Method) -> Option<String> {
        let one = match self {
            Self::List(kind) => Self::Item { kind: *kind, name: String::new() },
            Self::Teams { .. } => Self::Team { tenant: String::new(), name: String::new() },
            Self::Item { .. } | Self::Team { .. } => {
                let writes = method == Method::POST || method == Method::PATCH;
                return writes.then(|| format!("`PUT {}` makes it, or replaces it whole", self.template()));
            }
            Self::Revoke { .. }
            | Self::Switch { .. }
            | Self::Members
            | Self::Drain { .. }
            | Self::Remove { .. }
            | Self::Audit
            | Self::Cluster
            | Self::Standings
            | Self::Standing { .. }
            | Self::Reconcile { .. }
            | Self::OpenApi => return None,
        };
        if method == Method::DELETE {
            return Some(format!("`DELETE {}` deletes one", one.template()));
        }
        let writes = method == Method::POST || method == Method::PUT || method == Method::PATCH;
        writes.then(|| format!("`PUT {}` makes one, or replaces it whole", one.template()))
    }

    /// What it is about, in words.
    pub fn subject(&self) -> String {
        match self {
            Self::Item { kind, name } => item(*kind, name),
            Self::Team { tenant, name } => format!("team `{name}` of tenant `{tenant}`"),
            Self::Teams { tenant } => item(Kind::Tenants, tenant),
            Self::Revoke { key } => item(Kind::Keys, key),
            Self::Switch { provider, .. } => item(Kind::Providers, provider),
            Self::Drain { node } | Self::Remove { node } => format!("node `{node}`"),
            Self::Standing { budget } | Self::Reconcile { budget } => item(Kind::Budgets, budget),
            Self::List(_) | Self::Members | Self::Audit | Self::Cluster | Self::Standings | Self::OpenApi => {
                "such thing".to_owned()
            }
        }
    }

    /// With the names left out: few enough for a label.
    pub fn template(&self) -> &'static str {
        match self {
            Self::List(kind) => match kind {
                Kind::Providers => "/admin/v1/providers",
                Kind::Models => "/admin/v1/models",
                Kind::Prices => "/admin/v1/prices",
                Kind::Routes => "/admin/v1/routes",
                Kind::Tenants => "/admin/v1/tenants",
                Kind::Roles => "/admin/v1/roles",
                Kind::Keys => "/admin/v1/keys",
                Kind::Budgets => "/admin/v1/budgets",
            },
            Self::Item { kind, .. } => match kind {
                Kind::Providers => "/admin/v1/providers/{name}",
                Kind::Models => "/admin/v1/models/{name}",
                Kind::Prices => "/admin/v1/prices/{name}",
                Kind::Routes => "/admin/v1/routes/{name}",
                Kind::Tenants => "/admin/v1/tenants/{name}",
                Kind::Roles => "/admin/v1/roles/{name}",
                Kind::Keys => "/admin/v1/keys/{name}",
                Kind::Budgets => "/admin/v1/budgets/{name}",
            },
            Self::Teams { .. } => "/admin/v1/tenants/{tenant}/teams",
            Self::Team { .. } => "/admin/v1/tenants/{tenant}/teams/{name}",
            Self::Revoke { .. } => "/admin/v1/keys/{name}/revoke",
            Self::Switch { off: true, .. } => "/admin/v1/providers/{name}/off",
            Self::Switch { off: false, .. } => "/admin/v1/providers/{name}/on",
            Self::Members => "/admin/v1/members",
            Self::Drain { .. } => "/admin/v1/members/{node}/drain",
            Self::Remove { .. } => "/admin/v1/members/{node}/remove",
            Self::Audit => "/admin/v1/audit",
            Self::Cluster => "/admin/v1/cluster",
            Self::Standings => "/admin/v1/standings",
            Self::Standing { .. } => "/admin/v1/budgets/{name}/standing",
            Self::Reconcile { .. } => "/admin/v1/budgets/{name}/reconcile",
            Self::OpenApi => "/admin/v1/openapi.json",
        }
    }
}

/// `%41` becomes `A`. None when what comes out is no text or a `%` stands alone.
pub fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>()?;
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(digit(digits[0])? * 16 + digit(digits[1])?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

/// For a name as one word of a path, or as a value in a query.
pub fn encode(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _infallible = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(kind: Kind, name: &str) -> Endpoint {
        Endpoint::Item { kind, name: name.to_owned() }
    }

    #[test]
    fn paths_lead_where_they_say() {
        let found = |path: &str| Endpoint::parse(&format!("/admin/v1/{path}"));
        assert_eq!(found("keys"), Some(Endpoint::List(Kind::Keys)));
        assert_eq!(found("keys/app%2Fweb"), Some(item(Kind::Keys, "app/web")));
        assert_eq!(found("keys/app%2Fweb/revoke"), Some(Endpoint::Revoke { key: "app/web".to_owned() }));
        assert_eq!(found("models/openai%2Fgpt-4o"), Some(item(Kind::Models, "openai/gpt-4o")));
        assert_eq!(found("models/openai/gpt-4o"), Some(item(Kind::Models, "openai/gpt-4o")));
        assert_eq!(found("prices/openai/*"), Some(item(Kind::Prices, "openai/*")));
        assert_eq!(found("providers/openai/off"), Some(Endpoint::Switch { provider: "openai".to_owned(), off: true }));
        assert_eq!(found("budgets"), Some(Endpoint::List(Kind::Budgets)));
        assert_eq!(found("budgets/acme%2Fmonth"), Some(item(Kind::Budgets, "acme/month")));
        assert_eq!(found("standings"), Some(Endpoint::Standings));
        assert_eq!(found("budgets/standing"), Some(item(Kind::Budgets, "standing")), "a budget may be called so");
        assert_eq!(found("budgets/b/standing"), Some(Endpoint::Standing { budget: "b".to_owned() }));
        assert_eq!(found("budgets/a%2Fb/reconcile"), Some(Endpoint::Reconcile { budget: "a/b".to_owned() }));
        let team = Endpoint::Team { tenant: "acme".to_owned(), name: "support".to_owned() };
        assert_eq!(found("tenants/acme/teams/support"), Some(team));
        for nowhere in [
            "",
            "keys/",
            "keys/a/b",
            "keys/%zz",
            "keys/%ff",
            "keys/%4",
            "guards",
            "budgets/a/b",
            "members/a",
            "members//drain",
            "openapi",
        ] {
            assert_eq!(found(nowhere), None, "{nowhere}");
        }
        assert_eq!(Endpoint::parse("/admin/v2/keys"), None);
        assert_eq!(Endpoint::parse("/admin/v1"), None);
    }

    #[test]
    fn only_what_is_listed_is_allowed() {
        assert!(Endpoint::List(Kind::Keys).allows(&Method::POST));
        assert!(!Endpoint::List(Kind::Roles).allows(&Method::POST));
        assert!(!Endpoint::Audit.allows(&Method::DELETE) && Endpoint::Audit.allows(&Method::HEAD));
    }

    proptest! {
        #[test]
        fn every_name_comes_back_from_its_path(name in ".{1,40}") {
            prop_assert_eq!(decode(&encode(&name)), Some(name.clone()));
            prop_assert_eq!(Endpoint::parse(&format!("{PREFIX}keys/{}", encode(&name))), Some(item(Kind::Keys, &name)));
        }

        #[test]
        fn no_path_is_too_strange(path in ".{0,60}") {
            if let Some(endpoint) = Endpoint::parse(&format!("{PREFIX}{path}")) {
                prop_assert!(endpoint.template().starts_with(PREFIX));
            }
        }
    }
}

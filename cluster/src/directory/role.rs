//! What operators may do through the admin API.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problems::Problems;

/// What keys with this role may do through the admin API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RoleSpec {
    /// How much it may do.
    pub grants: Grant,

    /// The tenants whose keys and teams it may see and change, and nothing else then. Empty: everything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<String>,

    /// For people; nothing depends on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// How much a role may do; each includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// Look at everything.
    #[default]
    Viewer,
    /// Besides: make, change and revoke keys, switch providers off and on, drain nodes.
    Operator,
    /// Everything.
    Admin,
}

impl Grant {
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// Also the name of the role that always exists and grants this everywhere.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// Whether a role of this name always exists.
pub fn is_built_in(name: &str) -> bool {
    Grant::ALL.iter().any(|grant| grant.name() == name)
}

impl RoleSpec {
    /// What can be said of the role alone; [`super::resources::Resources::check`] looks at the tenants it names.
    pub fn check(&self, problems: &mut Problems) {
        problems.within("tenants", |problems| {
            for (index, tenant) in self.tenants.iter().enumerate() {
                if self.tenants[..index].contains(tenant) {
                    problems.add(&index.to_string(), format!("`{tenant}` is listed twice"));
                }
            }
        });
    }
}

/// A role as it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    pub name: String,
    pub grants: Grant,
    /// Empty: all.
    pub tenants: Vec<String>,
}

impl Role {
    pub fn new(name: &str, spec: &RoleSpec) -> Self {
        Self { name: name.to_owned(), grants: spec.grants, tenants: spec.tenants.clone() }
    }

    pub fn built_in(grant: Grant) -> Self {
        Self { name: grant.name().to_owned(), grants: grant, tenants: Vec::new() }
    }
}

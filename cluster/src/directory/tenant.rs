//! Who keys belong to.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problems::Problems;
use super::resources::check_name;

/// The tenant of keys that name none. Always exists.
pub const DEFAULT_TENANT: &str = "default";

/// A customer or a department: keys belong to it, and by default no cached answer leaves it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantSpec {
    /// For people; nothing depends on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,

    /// Parts of it that keys can belong to.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub teams: BTreeMap<String, TeamSpec>,

    /// Names of `budgets` that all calls of its keys must fit in. At most 8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<String>,
}

/// A part of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TeamSpec {
    /// For people; nothing depends on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,

    /// Names of `budgets` that all calls of its keys must fit in. At most 8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<String>,
}

impl TenantSpec {
    pub fn check(&self, problems: &mut Problems) {
        problems.within("teams", |problems| {
            for name in self.teams.keys() {
                problems.within(name, |problems| check_name(name, &['*'], problems));
            }
        });
    }
}

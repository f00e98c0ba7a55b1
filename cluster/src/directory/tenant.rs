//! Who keys belong to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::available::Later;
use super::problems::Problems;

/// The tenant of keys that name none. Always exists.
pub const DEFAULT_TENANT: &str = "default";

/// A customer or a department: keys belong to it, and by default no cached answer leaves it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantSpec {
    /// For people; nothing depends on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,

    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub budgets: Later,
    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub teams: Later,
}

impl TenantSpec {
    pub fn check(&self, problems: &mut Problems) {
        self.budgets.check("budgets", problems);
        self.teams.check("teams", problems);
    }
}

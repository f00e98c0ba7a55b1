//! The kinds of resources, and where a resource comes from.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kinds of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub enum Kind {
    Providers,
    Models,
    Prices,
    Routes,
    Tenants,
    Roles,
    Keys,
    Budgets,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Providers,
        Self::Models,
        Self::Prices,
        Self::Routes,
        Self::Tenants,
        Self::Roles,
        Self::Keys,
        Self::Budgets,
    ];

    /// The section of the file, and the last word of the path in the admin API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Providers => "providers",
            Self::Models => "models",
            Self::Prices => "prices",
            Self::Routes => "routes",
            Self::Tenants => "tenants",
            Self::Roles => "roles",
            Self::Keys => "keys",
            Self::Budgets => "budgets",
        }
    }

    /// The singular, for a person's ear.
    pub const fn one(self) -> &'static str {
        match self {
            Self::Providers => "provider",
            Self::Models => "model",
            Self::Prices => "price",
            Self::Routes => "route",
            Self::Tenants => "tenant",
            Self::Roles => "role",
            Self::Keys => "key",
            Self::Budgets => "budget",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who made a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub enum Origin {
    /// Declared in the configuration file: the API only reads it.
    File,
    Api,
}

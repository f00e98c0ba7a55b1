//! What the admin API asks of the cluster, whatever the cluster is.
//!
//! Reading is of this node's copy and never waits. A change returns when it is in force, and where it takes something
//! away, when it is in force on every node.

use super::access::{Operator, Scope};
use super::budgets::{BudgetStanding, Of, Reconcile, Reconciled};
use super::status::cluster::ClusterStatus;
use cluster::directory::kind::{Kind, Origin};
pub use cluster::register::{Expected, KeyRef};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::time::Duration;

pub trait Control: Send + Sync + 'static {
    /// Whose key this is. Refuses while this node may have missed that it was revoked.
    fn authenticate(&self, key: &str) -> Result<Operator, AuthError>;

    /// Up to `limit` resources that `scope` covers, ordered by name, those after `after`.
    fn list(&self, kind: Kind, after: Option<&str>, limit: usize, scope: &Scope) -> Vec<Stored>;

    fn get(&self, kind: Kind, name: &str) -> Option<Stored>;

    /// Checks the change against everything there is, makes it, and waits as `context` says.
    fn change(&self, change: Change, context: Context) -> BoxFuture<'_, Result<Changed, ChangeError>>;

    /// The node called so stops taking requests, finishes those it has, and ends its process. Returns when it has
    /// begun.
    fn drain(&self, node: String, context: Context) -> BoxFuture<'_, Result<(), ChangeError>>;

    /// The node called so is no member any more. Returns when that is decided.
    fn remove(&self, node: String, context: Context) -> BoxFuture<'_, Result<(), ChangeError>>;

    /// Up to `limit` records with an index of at least `from`, in order. Those too old to be kept are missing.
    fn audit(&self, from: u64, limit: usize) -> Vec<AuditEntry>;

    fn cluster(&self) -> ClusterStatus;

    /// What is left of the budget called so, in its present window or the one named. Linearizable: what was said before
    /// this call is in it.
    fn standing(&self, budget: String, of: Of) -> BoxFuture<'_, Result<BudgetStanding, ChangeError>>;

    /// As [`standing`](Self::standing) of up to `limit` budgets in their present windows, ordered by name, those after
    /// `after` that are seen in `scope`; without lines and records.
    fn standings(
        &self,
        after: Option<String>,
        limit: usize,
        scope: Scope,
    ) -> BoxFuture<'_, Result<Vec<BudgetStanding>, ChangeError>>;

    /// Whether one of these tenants, a team of theirs or a key of theirs names the budget: it is theirs then, and may be
    /// others' too.
    fn is_budget_of(&self, budget: &str, tenants: &BTreeSet<String>) -> bool;

    /// What a process that is over holds of a budget and did not use is given back, on an operator's word.
    fn reconcile(&self, asked: Reconcile, context: Context) -> BoxFuture<'_, Result<Reconciled, ChangeError>>;
}

/// A resource as the cluster holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub name: String,
    /// Without secrets; references to them are no secrets.
    pub spec: Json,
    /// Grows with each change; never the same for two states of a name.
    pub version: u64,
    pub origin: Origin,
    /// Of a key: refused for ever.
    pub revoked: bool,
    /// Of a provider: taken out of use by an operator.
    pub off: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Put {
        kind: Kind,
        name: String,
        spec: Json,
        expected: Expected,
    },
    Delete {
        kind: Kind,
        name: String,
        expected: Expected,
    },
    /// Works for keys of the file too. `cut`: streams that run with it end at once.
    Revoke {
        key: KeyRef,
        cut: bool,
    },
    /// Works for providers of the file too.
    SwitchProvider {
        name: String,
        off: bool,
    },
}

/// Who wants a change, and how long to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The name of the operator's key, for the audit.
    pub operator: String,
    /// Where the caller may make such a change, whose budgets it may name.
    pub scope: Scope,
    pub request_id: String,
    pub wait: Wait,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Until every node has it, where the change takes something away.
    #[default]
    Barrier,
    /// Until it is decided.
    None,
}

/// A change that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Of what was changed; of what is gone, the version at which it went.
    pub version: u64,
    pub waited: Waited,
}

/// What is known of the other nodes when a change returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Waited {
    /// Every node has it, or serves nobody until it has.
    EveryNode,
    /// It takes nothing away; the nodes get it in a moment.
    NotNeeded,
    /// The caller did not want to wait. Some nodes may still act as before, for `cluster.stale_max` at most.
    Skipped,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("this key is not known, has expired or was revoked")]
    Unknown,
    #[error("this key has no role; it is for calling models")]
    NoRole,
    #[error("this node is cut off from the cluster and cannot tell whether the key still holds")]
    NotFresh,
}

/// Why a change was not made; the last two say that it was, or may have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("what was sent is not right")]
    Invalid(Vec<Wrong>),
    #[error("there is no such thing")]
    NotFound,
    /// The same where it can be said what there is.
    #[error("there is no {what}")]
    NoSuch { what: String },
    #[error("it is there already, at version {current}")]
    Exists { current: u64 },
    /// `current` is None when it is gone.
    #[error("it has changed meanwhile")]
    Changed { current: Option<u64> },
    /// Whether there is such a budget he does not learn.
    #[error(
        "your roles are limited to some tenants; none of them, and no team of theirs, names the budget `{budget}`: only whose \
         roles are not limited puts something of theirs under it"
    )]
    ForeignBudget { budget: String },
    #[error("`{section}` in the configuration file declares it; change it there")]
    DeclaredInFile { section: String },
    /// Also: used by others, built in, too many of them, not possible without a quorum.
    #[error("{reason}")]
    Refused { code: &'static str, reason: String },
    #[error("{reason}")]
    Unavailable { reason: String, retry_after: Duration },
    #[error("the change may or may not have been made: {reason}; look before trying again")]
    Uncertain { reason: String },
    #[error("the change is made (version {version}), but not every node could be seen to have it within {waited:?}")]
    NotEverywhere { version: u64, waited: Duration },
}

/// One thing that is wrong with what was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Wrong {
    /// Words of the way there from the top of the spec, joined by dots.
    pub path: String,
    pub message: String,
}

/// A line of the cluster's memory of who changed what. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditEntry {
    /// Its place; the same on every node.
    pub index: u64,
    /// RFC 3339, by the clock of the node that was asked.
    pub at: String,
    pub who: String,
    pub node: String,
    pub request_id: String,
    pub action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    pub name: String,
    /// `done`, or why not.
    pub outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before_version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_version: Option<u64>,
}

//! What the admin API asks, done: checked against the register, proposed, and waited for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use actors::ingress::pipeline::Gateway;
use bytes::Bytes;
use cluster::clock;
use cluster::consensus::{Accepted, ChangeError as MemberChangeError, ChangeMember, ProposeError};
use cluster::directory::kind::Kind;
use cluster::directory::problems::Problems;
use cluster::directory::provider::ProviderSpec;
use cluster::id::NodeId;
use cluster::peer::{Caller, Handler, Lane, Refusal as PeerRefusal, Service};
use cluster::register::{self, Act, AuditRecord, Author, Policy, Register, Reply, validate};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tracing::warn;

use super::reconcile::Plan;
use super::{Member, budgets, secrets};
use crate::admin::access::{Operator, Scope};
use crate::admin::budgets::{BudgetStanding, Of, Reconcile, Reconciled, may_name};
use crate::admin::control::{
    AuditEntry, AuthError, Change, ChangeError, Changed, Context, Control, Expected, KeyRef, Stored, Wait, Waited,
};
use crate::admin::register as words;
use crate::admin::status::cluster::ClusterStatus;
use crate::config::check::check_kind;
use crate::config::reload::describe;

/// For a command to be applied.
const WITHIN: Duration = Duration::from_secs(10);

/// For a majority to say how far it is, and for this node to be as far.
const READ_WITHIN: Duration = Duration::from_secs(3);

/// For this node to publish what it asked for; later it is in force all the same.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(2);

/// Beyond the time in which a node that is cut off stops serving: elections, calls.
const BARRIER_SLACK: Duration = Duration::from_secs(10);

/// For a change of the members.
const MEMBERS_SLACK: Duration = Duration::from_secs(20);

/// For another node to hear that it is to drain.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// Between the answer to that and the end it brings: who ends at once tears the answer off.
const LEAVE_AFTER: Duration = Duration::from_millis(250);

/// How often a change is checked again because others came in between.
const TRIES_MAX: usize = 8;

/// Bytes of one record of the trail.
const RECORD_MAX: u64 = 64 * 1024;

const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The cluster, as the admin API of this node reaches it.
pub struct MemberControl {
    member: Member,
    gateway: Arc<Gateway>,
}

impl MemberControl {
    pub fn new(member: Member, gateway: Arc<Gateway>) -> Self {
        Self { member, gateway }
    }

    async fn make(&self, change: Change, context: Context) -> Result<Changed, ChangeError> {
        let takes_away = Self::takes_away(&change);
        let (version, accepted) = self.decide(change, &context).await?;
        let consensus = self.member.consensus();
        let mut published = self.member.0.published.subscribe();
        let index = accepted.index;
        // Late here is not lost: the answer does not depend on it.
        let _late = tokio::time::timeout(PUBLISHED_WITHIN, published.wait_for(|known| *known >= index)).await.is_err();
        if !takes_away {
            return Ok(Changed { version, waited: Waited::NotNeeded });
        }
        if context.wait == Wait::None {
            return Ok(Changed { version, waited: Waited::Skipped });
        }
        let held = self.grants_held();
        let within = held + held / 50 + BARRIER_SLACK;
        match consensus.barrier(index, within).await {
            Ok(()) => Ok(Changed { version, waited: Waited::EveryNode }),
            Err(error) => {
                warn!(error = describe(&error), index, "not every node could be seen to have a change");
                Err(ChangeError::NotEverywhere { version, waited: within })
            }
        }
    }

    /// Gets the change into the register, or says why not. Checked again as often as others came in between.
    async fn decide(&self, change: Change, context: &Context) -> Result<(u64, Accepted), ChangeError> {
        for _try in 0..TRIES_MAX {
            let act = self.checked(&change)?;
            self.may_make(&change, &context.scope)?;
            let accepted = self.propose(act, context).await?;
            let version = match accepted.reply.clone() {
                Reply::Put { version } => version,
                Reply::Revoked { first, .. } => first,
                Reply::Refused(register::Refusal::Moved { .. }) => {
                    let mut progress = self.member.consensus().progress();
                    let wait = progress.wait_for(|progress| progress.has(accepted.index));
                    // Not caught up in time: it is checked against what is here, and refused again.
                    let _late = tokio::time::timeout(PUBLISHED_WITHIN, wait).await.is_err();
                    continue;
                }
                Reply::Refused(refusal) => return Err(refusal.into()),
                Reply::Done
                | Reply::Deleted
                | Reply::Unchanged
                | Reply::Incarnation(_)
                | Reply::Staged
                | Reply::Reconciled { .. }
                | Reply::Older { .. }
                | Reply::Conflict { .. }
                | Reply::Told(_) => accepted.index,
            };
            return Ok((version, accepted));
        }
        let reason = format!("the resources changed {TRIES_MAX} times while this was checked");
        Err(ChangeError::Unavailable { reason, retry_after: RETRY_AFTER })
    }

    /// The caller's own node may have been behind when it was asked: looked at anew each time, after the shape that goes into
    /// the command was read.
    fn may_make(&self, change: &Change, scope: &Scope) -> Result<(), ChangeError> {
        let Change::Put { kind: kind @ (Kind::Keys | Kind::Tenants), name, spec, .. } = change else { return Ok(()) };
        let before = self.get(*kind, name).map(|stored| stored.spec);
        may_name(self, scope, before.as_ref(), spec)
    }

    async fn propose(&self, act: Act, context: &Context) -> Result<Accepted, ChangeError> {
        let author = Author {
            who: context.operator.clone(),
            node: self.member.0.introduction.me,
            request_id: context.request_id.clone(),
        };
        self.member.consensus().propose(act, author, WITHIN).await.map_err(|error| match error {
            ProposeError::Unknown { .. } => ChangeError::Uncertain { reason: describe(&error) },
            ProposeError::NotProposed { .. } | ProposeError::NoLeader { .. } => {
                ChangeError::Unavailable { reason: describe(&error), retry_after: RETRY_AFTER }
            }
        })
    }

    /// The change as a command, once it was checked against everything there is.
    fn checked(&self, change: &Change) -> Result<Act, ChangeError> {
        let loaded = self.member.0.loaded.load_full();
        let check_provider = |name: &str, spec: &ProviderSpec, problems: &mut Problems| {
            check_kind(name, spec, problems);
            secrets::check(&loaded.config, spec, problems);
        };
        let policy = Policy {
            allow_private_providers: loaded.config.admin.allow_private_providers,
            check_provider: &check_provider,
        };
        let consensus = self.member.consensus();
        match change {
            Change::Put { kind, name, spec, expected } => {
                let text = spec.to_string();
                let put = register::Change::Put { kind: *kind, name, spec: &text };
                let checked = consensus
                    .read(|register| validate(register, put, policy))
                    .map_err(|problems| words::invalid(*kind, name, problems))?;
                Ok(Act::Put {
                    kind: *kind,
                    name: name.clone(),
                    spec: checked.spec.unwrap_or(text),
                    expected: expected_as(*expected),
                    shape: Some(checked.shape),
                })
            }
            Change::Delete { kind, name, expected } => {
                let delete = register::Change::Delete { kind: *kind, name };
                let checked = consensus
                    .read(|register| validate(register, delete, policy))
                    .map_err(|problems| words::in_use(name, problems))?;
                let expected = expected_as(*expected);
                Ok(Act::Delete { kind: *kind, name: name.clone(), expected, shape: Some(checked.shape) })
            }
            Change::Revoke { key, cut } => Ok(Act::Revoke { key: key_as(key), cut: *cut }),
            Change::SwitchProvider { name, off } => Ok(Act::SwitchProvider { name: name.clone(), off: *off }),
        }
    }

    /// Whether someone may do less after it than before: then it returns when that is so everywhere.
    fn takes_away(change: &Change) -> bool {
        match change {
            Change::Delete { .. } | Change::Revoke { .. } => true,
            Change::SwitchProvider { off, .. } => *off,
            // Whether it is there already, this node may not know yet.
            Change::Put { kind, spec, expected, .. } => {
                let may_narrow =
                    matches!(kind, Kind::Keys | Kind::Roles | Kind::Routes | Kind::Tenants | Kind::Budgets);
                let caps = matches!(kind, Kind::Providers | Kind::Models) && names_budgets(spec);
                caps || (may_narrow && *expected != Expected::Absent)
            }
        }
    }

    /// For how long what a node was granted may run: by the longest `stale_max` there ever was.
    fn grants_held(&self) -> Duration {
        self.member.0.timing.stale_max.max(self.member.0.timing.stale_held)
    }

    fn node_called(&self, name: &str) -> Result<NodeId, ChangeError> {
        self.member.consensus().read(|register| {
            called(name, register.members().iter().map(|(node, member)| (node, member.info.name.as_str())))
        })
    }

    async fn change_member(&self, change: &ChangeMember) -> Result<(), ChangeError> {
        let within = self.grants_held() + MEMBERS_SLACK;
        self.member.consensus().change_member(change, within).await.map_err(|error| match error {
            MemberChangeError::Refused(refused) => {
                ChangeError::Refused { code: "members_stay", reason: refused.to_string() }
            }
            MemberChangeError::Unanswered(_) => {
                ChangeError::Unavailable { reason: describe(&error), retry_after: RETRY_AFTER }
            }
        })
    }

    /// Until this node has applied what was decided before this call.
    async fn catch_up(&self) -> Result<(), ChangeError> {
        let unavailable = |reason: String| ChangeError::Unavailable { reason, retry_after: RETRY_AFTER };
        let index = self.member.consensus().read_index(READ_WITHIN).await;
        let index = index.map_err(|error| unavailable(describe(&error)))?;
        if self.applies(index, READ_WITHIN).await {
            Ok(())
        } else {
            Err(unavailable("this node has not caught up".to_owned()))
        }
    }

    async fn applies(&self, index: u64, within: Duration) -> bool {
        let mut progress = self.member.consensus().progress();
        let applied = tokio::time::timeout(within, progress.wait_for(|progress| progress.has(index))).await;
        matches!(applied, Ok(Ok(_)))
    }

    /// What nobody can tell from the ledger, an operator answers for.
    async fn reconcile_budget(&self, asked: &Reconcile, context: &Context) -> Result<Reconciled, ChangeError> {
        self.catch_up().await?;
        let consensus = self.member.consensus();
        let plan = consensus.read(|register| Plan::new(register, asked))?;
        let Accepted { reply, index, .. } = self.propose(plan.act(), context).await?;
        done(reply)?;
        let unseen =
            || ChangeError::Uncertain { reason: "it was decided, and this node has not seen it yet".to_owned() };
        if !self.applies(index, READ_WITHIN).await {
            return Err(unseen());
        }
        consensus.read(|register| plan.outcome(register)).ok_or_else(unseen)
    }

    async fn drain_node(&self, node: String) -> Result<(), ChangeError> {
        let node = self.node_called(&node)?;
        self.change_member(&ChangeMember::Drain { node }).await?;
        if node == self.member.0.introduction.me {
            self.member.0.leave.notify_one();
            return Ok(());
        }
        let called = self.member.0.transport.call(node, Lane::Bodies, Service::DRAIN, Bytes::new(), DRAIN_WITHIN).await;
        called.map(drop).map_err(|error| ChangeError::Unavailable {
            reason: format!("the node has no vote any more, but could not be told to leave: {error}"),
            retry_after: RETRY_AFTER,
        })
    }

    async fn remove_node(&self, node: String, context: &Context) -> Result<(), ChangeError> {
        let node = self.node_called(&node)?;
        self.change_member(&ChangeMember::Remove { node }).await?;
        let reply = self.propose(Act::Remove { node }, context).await?.reply;
        // Removed before, and registered so: nothing is left to do.
        if matches!(reply, Reply::Refused(register::Refusal::NotMember { .. })) { Ok(()) } else { done(reply) }
    }
}

/// Of a command that is either done or refused.
fn done(reply: Reply) -> Result<(), ChangeError> {
    match reply {
        Reply::Done => Ok(()),
        Reply::Refused(refusal) => Err(refusal.into()),
        Reply::Put { .. }
        | Reply::Revoked { .. }
        | Reply::Deleted
        | Reply::Unchanged
        | Reply::Incarnation(_)
        | Reply::Staged
        | Reply::Reconciled { .. }
        | Reply::Older { .. }
        | Reply::Conflict { .. }
        | Reply::Told(_) => Err(ChangeError::Uncertain { reason: format!("the register answered {reply:?}") }),
    }
}

impl Control for MemberControl {
    fn authenticate(&self, key: &str) -> Result<Operator, AuthError> {
        if !self.gateway.gate.open(clock::since_boot()) {
            return Err(AuthError::NotFresh);
        }
        words::operator(&self.gateway.published.load().directory, key, clock::since_epoch())
    }

    fn list(&self, kind: Kind, after: Option<&str>, limit: usize, scope: &Scope) -> Vec<Stored> {
        self.member.consensus().read(|register| words::list(register, kind, after, limit, scope))
    }

    fn get(&self, kind: Kind, name: &str) -> Option<Stored> {
        self.member.consensus().read(|register| words::get(register, kind, name))
    }

    fn change(&self, change: Change, context: Context) -> BoxFuture<'_, Result<Changed, ChangeError>> {
        self.make(change, context).boxed()
    }

    fn drain(&self, node: String, _context: Context) -> BoxFuture<'_, Result<(), ChangeError>> {
        self.drain_node(node).boxed()
    }

    fn remove(&self, node: String, context: Context) -> BoxFuture<'_, Result<(), ChangeError>> {
        async move { self.remove_node(node, &context).await }.boxed()
    }

    fn audit(&self, from: u64, limit: usize) -> Vec<AuditEntry> {
        let records = match self.member.0.trail.range(from, limit) {
            Ok(records) => records,
            Err(error) => {
                warn!(error = describe(&error), "the audit trail cannot be read");
                return Vec::new();
            }
        };
        let read = records.iter().filter_map(|(_index, bytes)| {
            let (_format, record) = storage::codec::decode::<AuditRecord>(bytes, RECORD_MAX).ok()?;
            Some(AuditEntry::from(&record))
        });
        read.collect()
    }

    fn cluster(&self) -> ClusterStatus {
        self.member.status()
    }

    fn standing(&self, budget: String, of: Of) -> BoxFuture<'_, Result<BudgetStanding, ChangeError>> {
        async move {
            self.catch_up().await?;
            let escrow = self.gateway.quota.escrow();
            self.member.consensus().read(|register| {
                let standing = budgets::standing(register, &budget, &of)?;
                Ok(BudgetStanding { reserved_here: budgets::reserved_here(register, escrow, &budget, &of), ..standing })
            })
        }
        .boxed()
    }

    fn standings(
        &self,
        after: Option<String>,
        limit: usize,
        scope: Scope,
    ) -> BoxFuture<'_, Result<Vec<BudgetStanding>, ChangeError>> {
        async move {
            self.catch_up().await?;
            let read = |register: &Register| budgets::standings(register, after.as_deref(), limit, &scope);
            Ok(self.member.consensus().read(read))
        }
        .boxed()
    }

    fn is_budget_of(&self, budget: &str, tenants: &BTreeSet<String>) -> bool {
        self.member.consensus().read(|register| words::is_budget_of(register, budget, tenants))
    }

    fn reconcile(&self, asked: Reconcile, context: Context) -> BoxFuture<'_, Result<Reconciled, ChangeError>> {
        async move { self.reconcile_budget(&asked, &context).await }.boxed()
    }
}

/// By its name or its id. A node that lost its disk came back as a new one of the same name: then a name may mean the
/// one that lives, and is not enough.
fn called<'a>(name: &str, members: impl Iterator<Item = (NodeId, &'a str)>) -> Result<NodeId, ChangeError> {
    let mut named = Vec::new();
    for (node, its_name) in members {
        if node.to_string() == name {
            return Ok(node);
        }
        if its_name == name {
            named.push(node);
        }
    }
    match named[..] {
        [] => Err(ChangeError::NotFound),
        [node] => Ok(node),
        [..] => {
            let ids: Vec<String> = named.iter().map(ToString::to_string).collect();
            let count = ids.len();
            let reason = format!("{count} nodes are called `{name}`; say which by its id: {}", ids.join(", "));
            Err(ChangeError::Refused { code: "several_nodes", reason })
        }
    }
}

fn expected_as(expected: Expected) -> register::Expected {
    match expected {
        Expected::Any => register::Expected::Any,
        Expected::Absent => register::Expected::Absent,
        Expected::Version(version) => register::Expected::Version(version),
    }
}

fn key_as(key: &KeyRef) -> register::KeyRef {
    match key {
        KeyRef::Name(name) => register::KeyRef::Name(name.clone()),
        KeyRef::Hash(hash) => register::KeyRef::Hash(*hash),
    }
}

/// Another node passes on that an operator wants this one to leave.
pub fn asked_to_drain(member: &Member) -> Arc<dyn Handler> {
    Arc::new(AskedToDrain { member: Arc::downgrade(&member.0) })
}

struct AskedToDrain {
    member: std::sync::Weak<super::Inner>,
}

impl Handler for AskedToDrain {
    fn handle(&self, _from: Caller, _body: Bytes) -> BoxFuture<'static, Result<Bytes, PeerRefusal>> {
        let member = self.member.upgrade();
        async move {
            let member = member.ok_or(PeerRefusal::NoSuchService)?;
            let leaving = Arc::clone(&member);
            member.tasks.spawn("leaving", async move {
                tokio::time::sleep(LEAVE_AFTER).await;
                leaving.leave.notify_one();
            });
            Ok(Bytes::new())
        }
        .boxed()
    }
}

/// Whether calls must fit in more than before.
fn names_budgets(spec: &serde_json::Value) -> bool {
    spec.get("budgets").and_then(serde_json::Value::as_array).is_some_and(|budgets| !budgets.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another node waits for the answer; a process that ends at once would tear it off.
    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_told_to_leave_answers_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.yaml");
        let text = format!(
            "node: {{ data_dir: \"{}\" }}\nauth: none\nproviders: {{ openai: {{ api_key: none }} }}\n",
            folder.path().join("data").display()
        );
        std::fs::write(&path, text).unwrap();
        let loaded = Arc::new(crate::config::load::load(&path, &|_name| None).unwrap());
        let member = Member::open(&Arc::new(arc_swap::ArcSwap::new(loaded)), false).await.unwrap();
        let another = Caller {
            node: NodeId::new(2),
            incarnation: cluster::id::Incarnation::default(),
            cluster: cluster::id::ClusterId::NONE,
            epoch: cluster::id::Epoch::default(),
            address: None,
        };

        let told = asked_to_drain(&member).handle(another, Bytes::new()).await;

        assert_eq!(told.unwrap(), Bytes::new());
        let at_once = tokio::time::timeout(Duration::from_millis(100), member.told_to_leave()).await;
        assert!(at_once.is_err(), "the answer is still on its way");
        tokio::time::timeout(Duration::from_secs(1), member.told_to_leave()).await.expect("it leaves");
        assert!(member.stop().await);
    }

    /// A node that lags behind does not know yet what it changes: that there is nothing to take away would be a guess.
    #[test]
    fn what_may_take_something_away_is_waited_for_whatever_this_node_knows() {
        let put = |kind, expected| Change::Put { kind, name: "web".to_owned(), spec: serde_json::json!({}), expected };
        let capped = |kind, expected| {
            let (name, spec) = ("m".to_owned(), serde_json::json!({ "budgets": ["b"] }));
            Change::Put { kind, name, spec, expected }
        };
        let key = || KeyRef::Name("web".to_owned());
        let switch = |off| Change::SwitchProvider { name: "openai".to_owned(), off };

        for change in [
            put(Kind::Keys, Expected::Any),
            put(Kind::Keys, Expected::Version(3)),
            put(Kind::Roles, Expected::Any),
            put(Kind::Routes, Expected::Any),
            put(Kind::Tenants, Expected::Any),
            put(Kind::Budgets, Expected::Any),
            capped(Kind::Providers, Expected::Any),
            capped(Kind::Models, Expected::Any),
            capped(Kind::Models, Expected::Absent),
            Change::Delete { kind: Kind::Models, name: "m".to_owned(), expected: Expected::Any },
            Change::Revoke { key: key(), cut: false },
            Change::Revoke { key: key(), cut: true },
            switch(true),
        ] {
            assert!(MemberControl::takes_away(&change), "{change:?}");
        }
        for change in [
            put(Kind::Keys, Expected::Absent),
            put(Kind::Budgets, Expected::Absent),
            put(Kind::Providers, Expected::Any),
            put(Kind::Models, Expected::Any),
            switch(false),
        ] {
            assert!(!MemberControl::takes_away(&change), "{change:?}");
        }
    }

    /// Removing by name took the node that lives, and left the dead one.
    #[test]
    fn a_name_that_two_nodes_have_means_neither() {
        let (first, second, other) = (NodeId::new(1), NodeId::new(2), NodeId::new(3));
        let members = || [(first, "edge-2"), (other, "edge-0"), (second, "edge-2")].into_iter();

        assert_eq!(called("edge-0", members()), Ok(other));
        assert_eq!(called(&second.to_string(), members()), Ok(second));
        assert_eq!(called("edge-7", members()), Err(ChangeError::NotFound));
        let Err(ChangeError::Refused { code: "several_nodes", reason }) = called("edge-2", members()) else {
            panic!("a name of two nodes was taken for one");
        };
        assert!(reason.contains(&first.to_string()) && reason.contains(&second.to_string()), "{reason}");
    }
}

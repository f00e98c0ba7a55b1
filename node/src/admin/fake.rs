//! A cluster in memory, for the tests of the admin API: obeys versions and origins, remembers what it was asked.

use super::access::{Granted, Operator, Scope, budgets_of, tenant_of};
use super::budgets::{BudgetStanding, Of, Reconcile, Reconciled};
use super::control::{
    AuditEntry, AuthError, Change, ChangeError, Changed, Context, Control, Expected, KeyRef, Stored, Wait, Waited,
    Wrong,
};
use super::status::cluster::ClusterStatus;
use super::status::cluster::tests::cluster;
use cluster::directory::budget::{Period, Unit};
use cluster::directory::key::KeyHash;
use cluster::directory::kind::{Kind, Origin};
use cluster::directory::role::Grant;
use futures_util::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use tokio::sync::Notify;

/// The key of each operator is his name.
pub struct FakeCluster {
    operators: BTreeMap<&'static str, Vec<Granted>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    index: u64,
    stored: BTreeMap<(Kind, String), Stored>,
    audit: Vec<AuditEntry>,
    revoked: Vec<(KeyRef, bool)>,
    asked: Vec<(String, Context)>,
    /// What the next changes answer in place of being made.
    failures: VecDeque<ChangeError>,
    /// What draining waits for before it answers.
    held: Option<Arc<Notify>>,
    fresh: bool,
}

/// Of a key with this text.
pub fn hash(text: &str) -> String {
    KeyHash::of(text).to_text()
}

fn granted(grant: Grant, tenants: &[&str]) -> Granted {
    Granted { grant, tenants: tenants.iter().map(ToString::to_string).collect() }
}

impl FakeCluster {
    pub fn new() -> Self {
        let operators = BTreeMap::from([
            ("admin", vec![granted(Grant::Admin, &[])]),
            ("operator", vec![granted(Grant::Operator, &[])]),
            ("viewer", vec![granted(Grant::Viewer, &[])]),
            ("acme-admin", vec![granted(Grant::Admin, &["acme"])]),
            ("acme-operator", vec![granted(Grant::Operator, &["acme"])]),
            ("app", vec![]),
        ]);
        let fake = Self { operators, state: Mutex::new(State { fresh: true, index: 10, ..State::default() }) };
        fake.put(Kind::Tenants, "acme", json!({ "teams": { "support": {} } }), Origin::Api);
        fake.put(Kind::Tenants, "filed", json!({}), Origin::File);
        fake.put(Kind::Providers, "openai", json!({ "api_key": "${OPENAI_API_KEY}" }), Origin::File);
        fake.put(Kind::Keys, "web", json!({ "tenant": "acme", "hash": hash("web") }), Origin::Api);
        fake.put(Kind::Keys, "other", json!({ "tenant": "beta", "hash": hash("other") }), Origin::Api);
        fake.put(Kind::Keys, "root", json!({ "roles": ["admin"], "hash": hash("root") }), Origin::Api);
        fake
    }

    pub fn put(&self, kind: Kind, name: &str, spec: Json, origin: Origin) {
        let mut state = self.state.lock();
        state.index += 1;
        let stored = Stored { name: name.to_owned(), spec, version: state.index, origin, revoked: false, off: false };
        state.stored.insert((kind, name.to_owned()), stored);
    }

    pub fn fail_next(&self, error: ChangeError) {
        self.state.lock().failures.push_back(error);
    }

    /// Draining is answered once what this returns is notified.
    pub fn hold(&self) -> Arc<Notify> {
        Arc::clone(self.state.lock().held.get_or_insert_default())
    }

    pub fn cut_off(&self) {
        self.state.lock().fresh = false;
    }

    pub fn revoked(&self) -> Vec<(KeyRef, bool)> {
        self.state.lock().revoked.clone()
    }

    pub fn asked(&self) -> Vec<(String, Context)> {
        self.state.lock().asked.clone()
    }
}

impl State {
    fn change(&mut self, change: Change, context: &Context) -> Result<Changed, ChangeError> {
        if let Some(failure) = self.failures.pop_front() {
            return Err(failure);
        }
        let index = self.index + 1;
        let takes_away = !matches!(change, Change::Put { .. });
        match change {
            Change::Put { kind, name, spec, expected } => {
                if spec.get("rpm") == Some(&json!(0)) {
                    return Err(ChangeError::Invalid(vec![Wrong {
                        path: "rpm".to_owned(),
                        message: "is 0".to_owned(),
                    }]));
                }
                self.expect(kind, &name, expected)?;
                let off = self.stored.get(&(kind, name.clone())).is_some_and(|stored| stored.off);
                let stored =
                    Stored { name: name.clone(), spec, version: index, origin: Origin::Api, revoked: false, off };
                self.stored.insert((kind, name), stored);
            }
            Change::Delete { kind, name, expected } => {
                let there = self.stored.contains_key(&(kind, name.clone()));
                if !there {
                    return Err(ChangeError::NotFound);
                }
                self.expect(kind, &name, expected)?;
                self.stored.remove(&(kind, name));
            }
            Change::Revoke { key, cut } => {
                let found = self.stored.iter_mut().find(|((kind, name), stored)| {
                    *kind == Kind::Keys
                        && match &key {
                            KeyRef::Name(wanted) => name == wanted,
                            KeyRef::Hash(wanted) => stored.spec["hash"] == wanted.to_text(),
                        }
                });
                let (_, stored) = found.ok_or(ChangeError::NotFound)?;
                stored.revoked = true;
                self.revoked.push((key, cut));
            }
            Change::SwitchProvider { name, off } => {
                let stored = self.stored.get_mut(&(Kind::Providers, name)).ok_or(ChangeError::NotFound)?;
                stored.off = off;
            }
        }
        self.index = index;
        let waited = match (takes_away, context.wait) {
            (false, _) => Waited::NotNeeded,
            (true, Wait::Barrier) => Waited::EveryNode,
            (true, Wait::None) => Waited::Skipped,
        };
        Ok(Changed { version: index, waited })
    }

    fn expect(&self, kind: Kind, name: &str, expected: Expected) -> Result<(), ChangeError> {
        let stored = self.stored.get(&(kind, name.to_owned()));
        if stored.is_some_and(|stored| stored.origin == Origin::File) {
            return Err(ChangeError::DeclaredInFile { section: format!("{kind}.{name}") });
        }
        let current = stored.map(|stored| stored.version);
        match (expected, current) {
            (Expected::Absent, Some(current)) => Err(ChangeError::Exists { current }),
            // As the register says it.
            (Expected::Version(_), None) => Err(ChangeError::NotFound),
            (Expected::Version(wanted), current) if current != Some(wanted) => Err(ChangeError::Changed { current }),
            (Expected::Any | Expected::Absent | Expected::Version(_), _) => Ok(()),
        }
    }
}

impl Control for FakeCluster {
    fn authenticate(&self, key: &str) -> Result<Operator, AuthError> {
        if !self.state.lock().fresh {
            return Err(AuthError::NotFresh);
        }
        let roles = self.operators.get(key).ok_or(AuthError::Unknown)?;
        if roles.is_empty() {
            Err(AuthError::NoRole)
        } else {
            Ok(Operator { name: key.to_owned(), roles: roles.clone() })
        }
    }

    fn list(&self, kind: Kind, after: Option<&str>, limit: usize, scope: &Scope) -> Vec<Stored> {
        let state = self.state.lock();
        let of_kind = state.stored.values().zip(state.stored.keys()).filter(|(_, (found, _))| *found == kind);
        let later =
            of_kind.map(|(stored, _)| stored).filter(|stored| after.is_none_or(|after| stored.name.as_str() > after));
        later.filter(|stored| scope.covers_stored(kind, stored)).take(limit).cloned().collect()
    }

    fn get(&self, kind: Kind, name: &str) -> Option<Stored> {
        self.state.lock().stored.get(&(kind, name.to_owned())).cloned()
    }

    fn change(&self, change: Change, context: Context) -> BoxFuture<'_, Result<Changed, ChangeError>> {
        let action = format!("{change:?}");
        let result = self.state.lock().change(change, &context);
        let entry = AuditEntry {
            index: self.state.lock().index,
            at: "2026-01-01T00:00:00Z".to_owned(),
            who: context.operator,
            node: "edge-0".to_owned(),
            request_id: context.request_id,
            action,
            kind: None,
            name: String::new(),
            outcome: if result.is_ok() { "done" } else { "refused" }.to_owned(),
            before_version: None,
            after_version: None,
        };
        self.state.lock().audit.push(entry);
        async { result }.boxed()
    }

    fn drain(&self, node: String, context: Context) -> BoxFuture<'_, Result<(), ChangeError>> {
        let mut state = self.state.lock();
        state.asked.push((format!("drain {node}"), context));
        let held = state.held.clone();
        async move {
            if let Some(held) = held {
                held.notified().await;
            }
            Ok(())
        }
        .boxed()
    }

    fn remove(&self, node: String, context: Context) -> BoxFuture<'_, Result<(), ChangeError>> {
        let reason = "two of three nodes must stay".to_owned();
        let refused = Err(ChangeError::Refused { code: "no_quorum", reason });
        let result = if node == "edge-0" { refused } else { Ok(()) };
        self.state.lock().asked.push((format!("remove {node}"), context));
        async { result }.boxed()
    }

    fn audit(&self, from: u64, limit: usize) -> Vec<AuditEntry> {
        self.state.lock().audit.iter().filter(|entry| entry.index >= from).take(limit).cloned().collect()
    }

    fn cluster(&self) -> ClusterStatus {
        cluster()
    }

    fn standing(&self, _budget: String, _of: Of) -> BoxFuture<'_, Result<BudgetStanding, ChangeError>> {
        async { Err(ChangeError::NotFound) }.boxed()
    }

    fn standings(
        &self,
        after: Option<String>,
        limit: usize,
        scope: Scope,
    ) -> BoxFuture<'_, Result<Vec<BudgetStanding>, ChangeError>> {
        let seen = |name: &str| match &scope {
            Scope::Everything => true,
            Scope::Tenants(tenants) => self.is_budget_of(name, tenants),
        };
        let all = self.list(Kind::Budgets, after.as_deref(), usize::MAX, &Scope::Everything);
        let found = all.into_iter().filter(|stored| seen(&stored.name)).take(limit);
        let found =
            found.map(|stored| BudgetStanding::untouched(&stored.name, Unit::Requests, 9, Period::Day)).collect();
        async { Ok(found) }.boxed()
    }

    fn is_budget_of(&self, budget: &str, tenants: &BTreeSet<String>) -> bool {
        let state = self.state.lock();
        let mut theirs = state.stored.iter().filter(|((kind, name), stored)| match kind {
            Kind::Keys => tenants.contains(tenant_of(&stored.spec)),
            Kind::Tenants => tenants.contains(name),
            Kind::Providers | Kind::Models | Kind::Prices | Kind::Routes | Kind::Roles | Kind::Budgets => false,
        });
        theirs.any(|(_, stored)| budgets_of(&stored.spec).any(|name| name == budget))
    }

    fn reconcile(&self, asked: Reconcile, context: Context) -> BoxFuture<'_, Result<Reconciled, ChangeError>> {
        let mut state = self.state.lock();
        let known = state.stored.contains_key(&(Kind::Budgets, asked.budget.clone()));
        let result = match state.failures.pop_front() {
            Some(failure) => Err(failure),
            None if known => Ok(Reconciled {
                standing: BudgetStanding::untouched(&asked.budget, Unit::Requests, 9, Period::Day),
                given_back: 5,
                note: None,
            }),
            None => Err(ChangeError::NotFound),
        };
        state.asked.push((format!("reconcile {asked:?}"), context));
        async { result }.boxed()
    }
}

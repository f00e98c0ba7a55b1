//! What the replicated register holds and answers, in the admin API's words. Pure.

use super::access::{Granted, Operator, Scope, budgets_of};
use super::control::{AuditEntry, AuthError, ChangeError, Stored, Wrong};
use cluster::directory::Directory;
use cluster::directory::key::KeyHash;
use cluster::directory::kind::Kind;
use cluster::directory::problems::Problems;
use cluster::register::{self, AuditRecord, Refusal, Register};
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

/// After which a change that ran into others is worth sending again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Whose key this is, as `directory` knows it. `now` is since 1970. Whether the directory may be trusted to know is for
/// the caller to say, before.
pub fn operator(directory: &Directory, key: &str, now: Duration) -> Result<Operator, AuthError> {
    let key = directory.key(&KeyHash::of(key)).filter(|key| !key.is_expired(now)).ok_or(AuthError::Unknown)?;
    // A role that has gone lends nothing.
    let roles = key.roles.iter().filter_map(|name| directory.role(name));
    let roles: Vec<Granted> = roles.map(|role| Granted { grant: role.grants, tenants: role.tenants.clone() }).collect();
    if roles.is_empty() { Err(AuthError::NoRole) } else { Ok(Operator { name: key.name.clone(), roles }) }
}

impl From<register::Stored<'_>> for Stored {
    fn from(stored: register::Stored<'_>) -> Self {
        Self {
            name: stored.name.to_owned(),
            // What the register holds was JSON when it was taken in.
            spec: serde_json::from_str(stored.spec).unwrap_or(Json::Null),
            version: stored.version,
            origin: stored.origin,
            revoked: stored.revoked,
            off: stored.off,
        }
    }
}

/// Up to `limit` that `scope` covers, by name, those after `after`. A tenant's keys are found without looking at those
/// of others.
pub fn list(register: &Register, kind: Kind, after: Option<&str>, limit: usize, scope: &Scope) -> Vec<Stored> {
    if let (Scope::Tenants(tenants), Kind::Keys) = (scope, kind) {
        let each = tenants.iter().flat_map(|tenant| register.keys_of(tenant, after).take(limit));
        let mut found: Vec<Stored> = each.map(Stored::from).collect();
        found.sort_by(|one, other| one.name.cmp(&other.name));
        found.truncate(limit);
        return found;
    }
    let all = register.list(kind, after).map(Stored::from);
    all.filter(|stored| scope.covers_stored(kind, stored)).take(limit).collect()
}

pub fn get(register: &Register, kind: Kind, name: &str) -> Option<Stored> {
    register.get(kind, name).map(Stored::from)
}

/// Whether one of these tenants, a team or a key of theirs names the budget.
pub fn is_budget_of(register: &Register, budget: &str, tenants: &BTreeSet<String>) -> bool {
    tenants.iter().any(|tenant| {
        let by_key = register.is_budget_of_keys(budget, tenant);
        by_key || get(register, Kind::Tenants, tenant).is_some_and(|it| budgets_of(&it.spec).any(|name| name == budget))
    })
}

impl From<&AuditRecord> for AuditEntry {
    fn from(record: &AuditRecord) -> Self {
        let at = UNIX_EPOCH.checked_add(record.at).filter(|_| record.at < YEAR_9999).unwrap_or(UNIX_EPOCH);
        Self {
            index: record.index,
            at: humantime::format_rfc3339_seconds(at).to_string(),
            who: record.who.clone(),
            node: record.node.to_string(),
            request_id: record.request_id.clone(),
            action: record.action.clone(),
            kind: record.kind.map(|kind| kind.name().to_owned()),
            name: record.name.clone(),
            outcome: record.outcome.clone(),
            before_version: record.before_version,
            after_version: record.after_version,
        }
    }
}

/// The last second that can be written in four digits of a year.
const YEAR_9999: Duration = Duration::from_secs(253_402_300_799);

/// Paths begin at the spec: kind and name were in the path of the request.
pub fn invalid(kind: Kind, name: &str, problems: Problems) -> ChangeError {
    let wrong = problems.into_vec().into_iter().map(|problem| {
        let own = problem.path.strip_prefix(&[kind.name().to_owned(), name.to_owned()][..]);
        Wrong { path: own.unwrap_or(&problem.path).join("."), message: problem.message }
    });
    ChangeError::Invalid(wrong.collect())
}

/// Places that are named where something is in use; of the rest, how many there are.
const USES_MAX: usize = 5;

/// What would be wrong without it is what uses it.
pub fn in_use(name: &str, problems: Problems) -> ChangeError {
    let uses: Vec<String> = problems.into_vec().into_iter().map(|problem| problem.path.join(".")).collect();
    let more = match uses.len().saturating_sub(USES_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = uses.get(..USES_MAX).unwrap_or(&uses).join(", ");
    ChangeError::Refused { code: "in_use", reason: format!("`{name}` is used by {named}{more}") }
}

impl From<Refusal> for ChangeError {
    fn from(refusal: Refusal) -> Self {
        let reason = refusal.to_string();
        let code = refusal.code();
        match refusal {
            Refusal::NotFound { .. } | Refusal::NotMember { .. } => Self::NotFound,
            Refusal::Exists { current, .. } => Self::Exists { current },
            Refusal::Changed { current, .. } => Self::Changed { current: Some(current) },
            Refusal::DeclaredInFile { section, name } => Self::DeclaredInFile { section: format!("{section}.{name}") },
            Refusal::Malformed { why } => Self::Invalid(vec![Wrong { path: String::new(), message: why }]),
            Refusal::HashTaken { .. }
            | Refusal::Revoked
            | Refusal::InUse { .. }
            | Refusal::BuiltIn { .. }
            | Refusal::TooMany { .. }
            | Refusal::TooLarge { .. }
            | Refusal::PartMissing { .. }
            | Refusal::NotOver { .. }
            | Refusal::Damaged { .. } => Self::Refused { code, reason },
            // Nothing was done; the same request may be sent again.
            Refusal::Moved { .. } | Refusal::TooManyOpen { .. } | Refusal::NewerVersion { .. } => {
                Self::Unavailable { reason, retry_after: RETRY_AFTER }
            }
            // What became of an earlier try is not known any more.
            Refusal::Frozen { .. } | Refusal::Forgotten { .. } => Self::Uncertain { reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::directory::kind::Origin;
    use cluster::directory::role::Grant;
    use cluster::register::{Act, Author, Command, Expected, KeyRef, Reply};

    struct Held {
        register: Register,
        index: u64,
    }

    impl Held {
        fn new() -> Self {
            Self { register: Register::default(), index: 0 }
        }

        fn apply(&mut self, act: Act) -> Reply {
            self.index += 1;
            let author = Author { who: "root".to_owned(), request_id: "r-1".to_owned(), ..Author::default() };
            let at = Duration::from_hours(490_896);
            self.register.apply(self.index, &Command::new(author, at, act)).reply
        }

        fn put(&mut self, kind: Kind, name: &str, spec: &str) -> Reply {
            let (name, spec) = (name.to_owned(), spec.to_owned());
            self.apply(Act::Put { kind, name, spec, expected: Expected::Any, shape: None })
        }

        fn key(&mut self, name: &str, rest: &str) -> Reply {
            let hash = KeyHash::of(name).to_text();
            self.put(Kind::Keys, name, &format!(r#"{{ "hash": "{hash}"{rest} }}"#))
        }

        fn operator(&self, key: &str, now: u64) -> Result<Operator, AuthError> {
            operator(&self.register.directory(None), key, Duration::from_secs(now))
        }
    }

    #[test]
    fn a_key_is_as_much_as_its_roles_are() {
        let mut held = Held::new();
        held.put(Kind::Tenants, "acme", "{}");
        held.put(Kind::Roles, "acme-keys", r#"{ "grants": "operator", "tenants": ["acme"] }"#);
        held.key("both", r#", "roles": ["viewer", "acme-keys"], "expires": "2026-01-01""#);
        held.key("app", "");

        let both = held.operator("both", 0).unwrap();
        assert_eq!(both.name, "both");
        assert_eq!(both.scope(Grant::Viewer), Some(Scope::Everything));
        assert_eq!(both.scope(Grant::Operator), Some(Scope::Tenants(["acme".to_owned()].into())));
        assert_eq!(held.operator("both", 1_767_225_600), Err(AuthError::Unknown), "it has expired");
        assert_eq!(held.operator("app", 0), Err(AuthError::NoRole));
        assert_eq!(held.operator("nobody", 0), Err(AuthError::Unknown));
        held.apply(Act::Revoke { key: KeyRef::Name("both".to_owned()), cut: false });
        assert_eq!(held.operator("both", 0), Err(AuthError::Unknown), "it is revoked");
    }

    #[test]
    fn a_tenants_keys_are_listed_by_name_and_no_others() {
        let mut held = Held::new();
        for tenant in ["acme", "beta", "gamma"] {
            held.put(Kind::Tenants, tenant, "{}");
        }
        for (name, tenant) in [("d", "acme"), ("a", "beta"), ("c", "acme"), ("b", "gamma"), ("e", "beta")] {
            held.key(name, &format!(r#", "tenant": "{tenant}""#));
        }
        let scope = Scope::Tenants(["acme".to_owned(), "beta".to_owned()].into());
        let names = |after, limit, scope: &Scope| -> Vec<String> {
            list(&held.register, Kind::Keys, after, limit, scope).into_iter().map(|stored| stored.name).collect()
        };

        assert_eq!(names(None, 10, &scope), ["a", "c", "d", "e"]);
        assert_eq!(names(Some("a"), 2, &scope), ["c", "d"]);
        assert_eq!(names(None, 10, &Scope::Everything), ["a", "b", "c", "d", "e"]);
        let tenants = list(&held.register, Kind::Tenants, None, 10, &scope);
        assert_eq!(tenants.iter().map(|stored| stored.name.as_str()).collect::<Vec<_>>(), ["acme", "beta"]);
        let key = get(&held.register, Kind::Keys, "d").unwrap();
        assert_eq!((key.origin, &key.spec["tenant"], key.revoked), (Origin::Api, &Json::from("acme"), false));
    }

    #[test]
    fn a_budget_is_whose_tenant_team_or_key_names_it() {
        let mut held = Held::new();
        for budget in ["own", "team", "key", "free"] {
            held.put(Kind::Budgets, budget, r#"{ "limit": "$1", "window": "day" }"#);
        }
        held.put(Kind::Tenants, "acme", r#"{ "budgets": ["own"], "teams": { "t": { "budgets": ["team"] } } }"#);
        held.put(Kind::Tenants, "beta", "{}");
        held.key("web", r#", "tenant": "acme", "budgets": ["key"]"#);
        let of = |held: &Held, tenant: &str| -> Vec<&str> {
            let tenants = ["nosuch".to_owned(), tenant.to_owned()].into();
            let all = ["own", "team", "key", "free", "absent"].into_iter();
            all.filter(|budget| is_budget_of(&held.register, budget, &tenants)).collect()
        };

        assert_eq!((of(&held, "acme"), of(&held, "beta")), (vec!["own", "team", "key"], vec![]));
        held.key("other", r#", "tenant": "beta", "budgets": ["key"]"#);
        held.key("web", r#", "tenant": "acme""#);
        assert_eq!((of(&held, "acme"), of(&held, "beta")), (vec!["own", "team"], vec!["key"]));
        held.apply(Act::Delete { kind: Kind::Keys, name: "other".to_owned(), expected: Expected::Any, shape: None });
        assert_eq!(of(&held, "beta"), [""; 0]);
    }

    #[test]
    fn a_refusal_keeps_its_meaning() {
        let mut held = Held::new();
        held.key("web", "");
        let refused = |reply| {
            let Reply::Refused(refusal) = reply else { panic!("{reply:?}") };
            ChangeError::from(refusal)
        };

        let (kind, name, spec) = (Kind::Keys, "web".to_owned(), "{}".to_owned());
        let again = held.apply(Act::Put { kind, name, spec, expected: Expected::Absent, shape: None });
        assert_eq!(refused(again), ChangeError::Exists { current: 1 });
        let hash = KeyHash::of("web").to_text();
        let taken = refused(held.put(Kind::Keys, "other", &format!(r#"{{ "hash": "{hash}" }}"#)));
        assert!(matches!(taken, ChangeError::Refused { code: "hash_taken", .. }), "{taken:?}");
        let gone = Act::Delete { kind, name: "absent".to_owned(), expected: Expected::Any, shape: None };
        assert_eq!(refused(held.apply(gone)), ChangeError::NotFound);
    }

    #[test]
    fn the_audit_is_told_with_times_and_names() {
        let mut held = Held::new();
        held.key("web", "");

        let entries: Vec<AuditEntry> = held.register.audit(0).map(AuditEntry::from).collect();

        let entry = &entries[0];
        assert_eq!((entry.index, entry.at.as_str(), entry.who.as_str()), (1, "2026-01-01T00:00:00Z", "root"));
        assert_eq!((entry.kind.as_deref(), entry.name.as_str(), entry.after_version), (Some("keys"), "web", Some(1)));
        let far = AuditRecord { at: Duration::MAX, ..held.register.audit(0).next().unwrap().clone() };
        assert_eq!(AuditEntry::from(&far).at, "1970-01-01T00:00:00Z", "a clock may say anything");
    }

    #[test]
    fn problems_are_told_from_the_spec_on() {
        let mut problems = Problems::new();
        problems.within("prices", |problems| {
            problems.within("openai/gpt-4.1", |problems| problems.add("input", "is wrong"));
            problems.within("other", |problems| problems.add("input", "is wrong too"));
        });

        let ChangeError::Invalid(wrong) = invalid(Kind::Prices, "openai/gpt-4.1", problems) else { panic!() };

        assert_eq!(wrong.iter().map(|wrong| wrong.path.as_str()).collect::<Vec<_>>(), ["input", "prices.other.input"]);
    }
    /// Deleting what a route names read as if what was sent had a typo in it.
    #[test]
    fn what_is_in_use_is_said_to_be() {
        let told = |targets: usize| {
            let mut problems = Problems::new();
            problems.within("routes", |problems| {
                problems.within("r1", |problems| {
                    problems.within("targets", |problems| {
                        for target in 0..targets {
                            problems.add(&target.to_string(), "there is no provider `vend`");
                        }
                    });
                });
            });
            in_use("vend", problems)
        };
        let refused = |reason: &str| ChangeError::Refused { code: "in_use", reason: reason.to_owned() };

        assert_eq!(told(1), refused("`vend` is used by routes.r1.targets.0"));
        let ChangeError::Refused { reason, .. } = told(8) else { panic!("{:?}", told(8)) };
        assert!(reason.ends_with("routes.r1.targets.4 and 3 more"), "{reason}");
    }
}

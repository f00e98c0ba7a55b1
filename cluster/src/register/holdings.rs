//! The resources the register holds, and what follows from them: who uses what, which key is found by which hash.
//!
//! Checks here look at structure only, and at JSON loosely: they must come out the same in every program version. What a
//! resource means is checked before it is proposed, in [`super::validate`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::command::{Kind, Origin, Refusal};
use super::file::Declared;
use crate::directory::key::{Key, KeyHash};
use crate::directory::problems::Problems;
use crate::directory::resources::is_name;
use crate::directory::role::is_built_in;
use crate::directory::shards::{KeyRecord, KeyShards};
use crate::directory::tenant::DEFAULT_TENANT;
use crate::directory::wire::Spec;

/// Keys of a cluster; each costs some 600 bytes on every node.
pub const KEYS_MAX: usize = 1_000_000;

/// Resources of any other kind.
pub const ENTRIES_MAX: usize = 10_000;

/// Bytes of one resource.
pub const SPEC_BYTES_MAX: usize = 64 * 1024;

/// Keys that were ever revoked. They are never forgotten: a file might declare one again.
pub const REVOKED_MAX: usize = 1 << 20;

/// A resource that is no key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Entry {
    pub spec: Arc<str>,
    pub version: u64,
    pub origin: Origin,
}

pub type Entries = BTreeMap<Kind, BTreeMap<String, Entry>>;

/// A key that is never accepted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Tombstone {
    /// The serial of the command that revoked it.
    pub first: u64,
    /// Its running streams were to be cut.
    pub cut: bool,
}

/// What a key refers to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    Tenant(String),
    Team(String, String),
    Role(String),
    Budget(String),
    /// A budget, by a key of this tenant.
    BudgetBy(String, String),
}

/// What must be known of a key, whatever else its spec says.
struct KeyFacts {
    hash: KeyHash,
    tenant: String,
    uses: Vec<Use>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Holdings {
    pub entries: Entries,
    pub keys: KeyShards,
    pub revoked: BTreeMap<KeyHash, Tombstone>,
    /// Providers out of use, and the serial of the command that took them. May name one that a file no longer declares.
    pub off: BTreeMap<String, u64>,

    // What follows from the above; never written down.
    pub names: BTreeMap<Arc<str>, KeyHash>,
    pub by_tenant: BTreeSet<(Arc<str>, Arc<str>)>,
    teams: BTreeMap<String, BTreeSet<String>>,
    uses: BTreeMap<Use, u64>,
    pub unreadable: BTreeSet<Arc<str>>,
}

/// What a file changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub put: u32,
    pub removed: u32,
    /// `kind.name` of what was made through the API before.
    pub taken: Vec<String>,
    pub shape: bool,
}

impl Holdings {
    /// Of a snapshot.
    pub fn restore(
        entries: Entries,
        revoked: BTreeMap<KeyHash, Tombstone>,
        off: BTreeMap<String, u64>,
    ) -> Result<Self, Refusal> {
        let mut holdings = Self { entries, revoked, off, ..Self::default() };
        let tenants = holdings.entries.get(&Kind::Tenants).into_iter().flatten();
        let teams = tenants.map(|(name, entry)| Ok((name.clone(), teams_of(&entry.spec)?)));
        holdings.teams = teams.collect::<Result<_, Refusal>>()?;
        Ok(holdings)
    }

    pub fn entry(&self, kind: Kind, name: &str) -> Option<&Entry> {
        self.entries.get(&kind)?.get(name)
    }

    pub fn key(&self, name: &str) -> Option<(KeyHash, &Arc<KeyRecord>)> {
        let hash = self.names.get(name)?;
        Some((*hash, self.keys.get(hash)?))
    }

    /// Version and origin.
    pub fn standing(&self, kind: Kind, name: &str) -> Option<(u64, Origin)> {
        if kind == Kind::Keys {
            return self.key(name).map(|(_hash, record)| (record.version, record.origin));
        }
        self.entry(kind, name).map(|entry| (entry.version, entry.origin))
    }

    pub fn put(&mut self, kind: Kind, name: &str, spec: &str, version: u64, origin: Origin) -> Result<(), Refusal> {
        check_size(kind, name, spec)?;
        match kind {
            Kind::Keys => {
                let facts = KeyFacts::read(spec)?;
                if origin == Origin::Api && self.revoked.contains_key(&facts.hash) {
                    return Err(Refusal::Revoked);
                }
                facts.uses.iter().try_for_each(|used| self.check_exists(used))?;
                self.put_key(name, spec, version, origin, &facts)
            }
            Kind::Tenants => {
                let teams = teams_of(spec)?;
                let before = self.teams.get(name).into_iter().flatten();
                for team in before.filter(|team| !teams.contains(*team)) {
                    self.check_unused(&Use::Team(name.to_owned(), team.clone()))?;
                }
                self.put_entry(kind, name, spec, version, origin)?;
                self.teams.insert(name.to_owned(), teams);
                Ok(())
            }
            Kind::Providers | Kind::Models | Kind::Prices | Kind::Routes | Kind::Roles | Kind::Budgets => {
                self.put_entry(kind, name, spec, version, origin)
            }
        }
    }

    /// What is not there is removed already.
    pub fn remove(&mut self, kind: Kind, name: &str) -> Result<(), Refusal> {
        match kind {
            Kind::Keys => self.remove_key(name),
            Kind::Tenants => {
                if name != DEFAULT_TENANT {
                    self.check_unused(&Use::Tenant(name.to_owned()))?;
                }
                for team in self.teams.get(name).into_iter().flatten() {
                    self.check_unused(&Use::Team(name.to_owned(), team.clone()))?;
                }
                self.teams.remove(name);
                self.remove_entry(kind, name);
            }
            Kind::Roles => {
                self.check_unused(&Use::Role(name.to_owned()))?;
                self.remove_entry(kind, name);
            }
            Kind::Budgets => {
                self.check_unused(&Use::Budget(name.to_owned()))?;
                self.remove_entry(kind, name);
            }
            Kind::Providers | Kind::Models | Kind::Prices | Kind::Routes => self.remove_entry(kind, name),
        }
        Ok(())
    }

    /// For good. Answers since when, and whether a key that was accepted no longer is.
    pub fn revoke(&mut self, hash: KeyHash, cut: bool, serial: u64) -> Result<(u64, bool), Refusal> {
        if let Some(tombstone) = self.revoked.get_mut(&hash) {
            tombstone.cut |= cut;
            return Ok((tombstone.first, false));
        }
        if self.revoked.len() >= REVOKED_MAX {
            return Err(Refusal::TooMany { what: "revoked keys".to_owned(), max: REVOKED_MAX as u64 });
        }
        self.revoked.insert(hash, Tombstone { first: serial, cut });
        let Some(record) = self.keys.get(&hash) else { return Ok((serial, false)) };
        let record = KeyRecord { revoked: true, version: serial, ..(**record).clone() };
        self.keys.insert(hash, record, None);
        Ok((serial, true))
    }

    /// `false`: it was so already.
    pub fn switch(&mut self, provider: &str, off: bool, serial: u64) -> Result<bool, Refusal> {
        let known = self.entry(Kind::Providers, provider).is_some();
        if !known && (off || !self.off.contains_key(provider)) {
            return Err(Refusal::NotFound { what: "provider".to_owned(), name: provider.to_owned() });
        }
        if !off {
            return Ok(self.off.remove(provider).is_some());
        }
        if self.off.contains_key(provider) {
            return Ok(false);
        }
        if self.off.len() >= ENTRIES_MAX {
            let providers = self.entries.get(&Kind::Providers);
            self.off.retain(|name, _serial| providers.is_some_and(|providers| providers.contains_key(name)));
        }
        self.off.insert(provider.to_owned(), serial);
        Ok(true)
    }

    /// What this would be with exactly `declared` of a file in it.
    pub fn reconciled(&self, declared: &Declared, serial: u64) -> Result<(Self, Tally), Refusal> {
        let (mut next, mut tally) = (self.clone(), Tally::default());
        next.remove_undeclared(declared, &mut tally);
        for ((kind, name), spec) in declared {
            let (kind, name) = (*kind, name.as_str());
            if next.declares(kind, name, spec) {
                continue;
            }
            check_size(kind, name, spec)?;
            if let Some((_version, Origin::Api)) = next.standing(kind, name) {
                tally.taken.push(format!("{kind}.{name}"));
            }
            if kind == Kind::Keys {
                next.put_key(name, spec, serial, Origin::File, &KeyFacts::read(spec)?)?;
            } else {
                if kind == Kind::Tenants {
                    next.teams.insert(name.to_owned(), teams_of(spec)?);
                }
                next.put_entry(kind, name, spec, serial, Origin::File)?;
                tally.shape = true;
            }
            tally.put += 1;
        }
        next.uses.keys().try_for_each(|used| next.check_exists(used).map_err(|_absent| next.in_use(used)))?;
        Ok((next, tally))
    }

    /// Keys that change go too: two of them may have changed places.
    fn remove_undeclared(&mut self, declared: &Declared, tally: &mut Tally) {
        let entries =
            self.entries.iter().flat_map(|(kind, entries)| entries.iter().map(|(name, entry)| (*kind, name, entry)));
        let gone =
            entries.filter(|(_, _, entry)| entry.origin == Origin::File).map(|(kind, name, _)| (kind, name.clone()));
        let gone: Vec<_> = gone.filter(|key| !declared.contains_key(key)).collect();
        for (kind, name) in gone {
            if kind == Kind::Tenants {
                self.teams.remove(&name);
            }
            // The mark of a provider that is out of use stays: the next file may declare it again.
            self.entries.entry(kind).or_default().remove(&name);
            tally.removed += 1;
            tally.shape = true;
        }
        let keys = self.names.iter().filter_map(|(name, hash)| Some((name, self.keys.get(hash)?)));
        let stale = keys.filter(|(_, record)| record.origin == Origin::File).filter_map(|(name, record)| {
            let spec = declared.get(&(Kind::Keys, name.to_string()));
            let changed = spec.is_none_or(|spec| **spec != *record.spec);
            changed.then(|| (Arc::clone(name), spec.is_none()))
        });
        for (name, gone) in stale.collect::<Vec<_>>() {
            self.remove_key(&name);
            tally.removed += u32::from(gone);
        }
    }

    /// Exactly this already.
    fn declares(&self, kind: Kind, name: &str, spec: &str) -> bool {
        if kind == Kind::Keys {
            return self.key(name).is_some_and(|(_, record)| record.origin == Origin::File && *record.spec == *spec);
        }
        self.entry(kind, name).is_some_and(|entry| entry.origin == Origin::File && *entry.spec == *spec)
    }

    fn put_entry(&mut self, kind: Kind, name: &str, spec: &str, version: u64, origin: Origin) -> Result<(), Refusal> {
        if kind == Kind::Roles && is_built_in(name) {
            return Err(Refusal::BuiltIn { name: name.to_owned() });
        }
        let entries = self.entries.entry(kind).or_default();
        if entries.len() >= ENTRIES_MAX && !entries.contains_key(name) {
            return Err(Refusal::TooMany { what: kind.name().to_owned(), max: ENTRIES_MAX as u64 });
        }
        entries.insert(name.to_owned(), Entry { spec: spec.into(), version, origin });
        Ok(())
    }

    fn remove_entry(&mut self, kind: Kind, name: &str) {
        let removed = self.entries.get_mut(&kind).and_then(|entries| entries.remove(name));
        if removed.is_some() && kind == Kind::Providers {
            self.off.remove(name);
        }
    }

    /// A key of a snapshot, which is what it was when it was put.
    pub fn restore_key(&mut self, name: &str, spec: &str, version: u64, origin: Origin) -> Result<(), Refusal> {
        let facts = KeyFacts::read(spec)?;
        self.put_key(name, spec, version, origin, &facts)
    }

    fn put_key(
        &mut self,
        name: &str,
        spec: &str,
        version: u64,
        origin: Origin,
        facts: &KeyFacts,
    ) -> Result<(), Refusal> {
        if let Some(other) = self.keys.get(&facts.hash)
            && *other.name != *name
        {
            return Err(Refusal::HashTaken { by: other.name.to_string() });
        }
        if self.names.len() >= KEYS_MAX && !self.names.contains_key(name) {
            return Err(Refusal::TooMany { what: "keys".to_owned(), max: KEYS_MAX as u64 });
        }
        self.remove_key(name);
        let (name, tenant): (Arc<str>, Arc<str>) = (name.into(), self.shared_tenant(&facts.tenant));
        for used in &facts.uses {
            *self.uses.entry(used.clone()).or_default() += 1;
        }
        let key = readable(&name, spec).map(|key| Arc::new(Key { tenant: Arc::clone(&tenant), ..key }));
        if key.is_none() {
            self.unreadable.insert(Arc::clone(&name));
        }
        self.names.insert(Arc::clone(&name), facts.hash);
        self.by_tenant.insert((tenant, Arc::clone(&name)));
        let revoked = self.revoked.contains_key(&facts.hash);
        self.keys.insert(facts.hash, KeyRecord { name, spec: spec.into(), version, origin, revoked }, key);
        Ok(())
    }

    /// The text that the tenant's other keys have already.
    fn shared_tenant(&self, tenant: &str) -> Arc<str> {
        let start: (Arc<str>, Arc<str>) = (tenant.into(), "".into());
        match self.by_tenant.range(&start..).next() {
            Some((known, _name)) if **known == *tenant => Arc::clone(known),
            Some(_) | None => start.0,
        }
    }

    fn remove_key(&mut self, name: &str) {
        let Some((name, hash)) = self.names.remove_entry(name) else { return };
        self.unreadable.remove(&name);
        let Some(record) = self.keys.remove(&hash) else { return };
        let Ok(facts) = KeyFacts::read(&record.spec) else { return };
        self.by_tenant.remove(&(facts.tenant.as_str().into(), name));
        for used in facts.uses {
            if let Some(count) = self.uses.get_mut(&used) {
                *count -= 1;
                if *count == 0 {
                    self.uses.remove(&used);
                }
            }
        }
    }

    /// Whether a key of the tenant does.
    pub fn key_names(&self, budget: &str, tenant: &str) -> bool {
        self.uses.contains_key(&Use::BudgetBy(budget.to_owned(), tenant.to_owned()))
    }

    fn check_exists(&self, used: &Use) -> Result<(), Refusal> {
        let exists = match used {
            Use::Tenant(name) => name == DEFAULT_TENANT || self.entry(Kind::Tenants, name).is_some(),
            Use::Team(tenant, team) => self.teams.get(tenant).is_some_and(|teams| teams.contains(team)),
            Use::Role(name) => is_built_in(name) || self.entry(Kind::Roles, name).is_some(),
            Use::Budget(name) | Use::BudgetBy(name, _) => self.entry(Kind::Budgets, name).is_some(),
        };
        let (what, name) = used.words();
        if exists { Ok(()) } else { Err(Refusal::NotFound { what, name }) }
    }

    fn check_unused(&self, used: &Use) -> Result<(), Refusal> {
        if self.uses.contains_key(used) { Err(self.in_use(used)) } else { Ok(()) }
    }

    fn in_use(&self, used: &Use) -> Refusal {
        let (what, name) = used.words();
        Refusal::InUse { what, name, by: self.uses.get(used).copied().unwrap_or_default() }
    }
}

impl Use {
    fn words(&self) -> (String, String) {
        match self {
            Self::Tenant(name) => ("tenant".to_owned(), name.clone()),
            Self::Team(tenant, team) => ("team".to_owned(), format!("{tenant}/{team}")),
            Self::Role(name) => ("role".to_owned(), name.clone()),
            Self::Budget(name) | Self::BudgetBy(name, _) => ("budget".to_owned(), name.clone()),
        }
    }
}

impl KeyFacts {
    fn read(spec: &str) -> Result<Self, Refusal> {
        let LooseKey { hash, secret, tenant, team, roles, budgets } = read(
            spec,
            "a key has a `hash`, a `tenant` and a `team` that are texts, and lists of `roles` and `budgets`",
        )?;
        if secret.is_some() {
            return Err(malformed("a key's secret never comes here, only its hash"));
        }
        let hash = hash.as_deref().and_then(KeyHash::parse);
        let hash = hash.ok_or_else(|| malformed("a key has a `hash`: `b3:` and 64 hexadecimal digits"))?;
        let tenant = tenant.unwrap_or_else(|| DEFAULT_TENANT.to_owned());
        let team = team.map(|team| Use::Team(tenant.clone(), team));
        let roles = roles.into_iter().map(Use::Role);
        let by = |name: String| [Use::BudgetBy(name.clone(), tenant.clone()), Use::Budget(name)];
        let budgets = budgets.into_iter().flat_map(by);
        let uses = std::iter::once(Use::Tenant(tenant.clone())).chain(team).chain(roles).chain(budgets).collect();
        Ok(Self { hash, tenant, uses })
    }
}

/// The few fields of a key that are looked at here.
#[derive(Deserialize)]
struct LooseKey {
    hash: Option<String>,
    secret: Option<IgnoredAny>,
    tenant: Option<String>,
    team: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    budgets: Vec<String>,
}

/// Of a tenant.
#[derive(Deserialize)]
#[expect(clippy::zero_sized_map_values, reason = "a set is read from a list, and this is a map")]
struct LooseTenant {
    #[serde(default)]
    teams: BTreeMap<String, IgnoredAny>,
}

fn malformed(why: &str) -> Refusal {
    Refusal::Malformed { why: why.to_owned() }
}

/// `why` says what was wanted. A list would be taken for the fields in their order, so it is none.
fn read<'a, T: Deserialize<'a>>(spec: &'a str, why: &str) -> Result<T, Refusal> {
    if !spec.starts_with('{') {
        return Err(malformed("it is not a JSON object"));
    }
    serde_json::from_str(spec).map_err(|_error| malformed(why))
}

fn check_size(kind: Kind, name: &str, spec: &str) -> Result<(), Refusal> {
    if !is_name(name) {
        return Err(malformed("its name is not up to 256 visible ASCII characters"));
    }
    if spec.len() > SPEC_BYTES_MAX {
        let (bytes, max) = (spec.len() as u64, SPEC_BYTES_MAX as u64);
        return Err(Refusal::TooLarge { what: format!("{kind}.{name}"), bytes, max });
    }
    read::<IgnoredAny>(spec, "it is not JSON").map(drop)
}

fn teams_of(spec: &str) -> Result<BTreeSet<String>, Refusal> {
    let LooseTenant { teams } = read(spec, "`teams` of a tenant is a map")?;
    Ok(teams.into_keys().collect())
}

/// The key as requests find it, if this program can read all of it.
fn readable(name: &str, spec: &str) -> Option<Key> {
    let Ok(Spec::Key(spec)) = Spec::read(Kind::Keys, spec) else { return None };
    let mut problems = Problems::new();
    spec.check(&mut problems);
    problems.is_empty().then(|| Key::new(name, &spec))
}

//! Reading the register: by name, by tenant, as the directory that requests read.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::command::{AuditRecord, Kind, Origin};
use super::holdings::{Entry, Holdings, Tombstone};
use super::members::Members;
use super::{FileState, Register};
use crate::directory::key::KeyHash;
use crate::directory::{Directory, Shape};
use crate::ledger::accounts::Accounts;

/// A resource as the register holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored<'a> {
    pub name: &'a str,
    /// JSON.
    pub spec: &'a str,
    pub version: u64,
    pub origin: Origin,
    /// Of a key.
    pub revoked: bool,
    /// Of a provider: out of use.
    pub off: bool,
}

impl Register {
    /// Of the last command.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// The serial of the last command that changed a resource other than a key: what validation is against.
    pub fn shape_version(&self) -> u64 {
        self.shape_version
    }

    /// The cluster's time since 1970, as of the last tick.
    pub fn tick(&self) -> Duration {
        self.tick
    }

    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    pub fn members(&self) -> &Members {
        &self.members
    }

    pub fn file(&self) -> FileState {
        self.file
    }

    pub fn get<'a>(&'a self, kind: Kind, name: &str) -> Option<Stored<'a>> {
        self.list(kind, None).at(name)
    }

    /// All of a kind by name, those after `after`.
    pub fn list<'a>(&'a self, kind: Kind, after: Option<&str>) -> Listing<'a> {
        Listing::new(&self.holdings, kind, after)
    }

    /// Everything but the keys. There can be a hundred thousand of those, and no other resource refers to one.
    pub fn shape(&self) -> impl Iterator<Item = (Kind, Stored<'_>)> {
        let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Keys);
        kinds.flat_map(|kind| self.list(kind, None).map(move |stored| (kind, stored)))
    }

    /// Every resource, with its kind.
    pub fn all(&self) -> impl Iterator<Item = (Kind, Stored<'_>)> {
        Kind::ALL.into_iter().flat_map(|kind| self.list(kind, None).map(move |stored| (kind, stored)))
    }

    /// How many there are of a kind.
    pub fn len(&self, kind: Kind) -> usize {
        if kind == Kind::Keys {
            return self.holdings.names.len();
        }
        self.holdings.entries.get(&kind).map_or(0, BTreeMap::len)
    }

    /// The keys of a tenant by name, those after `after`.
    pub fn keys_of<'a>(&'a self, tenant: &str, after: Option<&str>) -> impl Iterator<Item = Stored<'a>> + use<'a> {
        let tenant: Arc<str> = tenant.into();
        let start = match after {
            Some(after) => Bound::Excluded((Arc::clone(&tenant), Arc::from(after))),
            None => Bound::Included((Arc::clone(&tenant), Arc::from(""))),
        };
        let all = self.holdings.by_tenant.range((start, Bound::Unbounded));
        let its = all.take_while(move |(owner, _name)| *owner == tenant);
        its.filter_map(|(_owner, name)| self.get(Kind::Keys, name))
    }

    /// Whether a key of the tenant names the budget. Asks an index, whatever keys there are.
    pub fn is_budget_of_keys(&self, budget: &str, tenant: &str) -> bool {
        self.holdings.key_names(budget, tenant)
    }

    /// What was said of a key's hash, for good.
    pub fn revoked(&self, hash: &KeyHash) -> Option<&Tombstone> {
        self.holdings.revoked.get(hash)
    }

    /// Keys whose running streams are to be cut: for who missed the commands because it took over a snapshot.
    pub fn cut(&self) -> impl Iterator<Item = &KeyHash> {
        self.holdings.revoked.iter().filter(|(_hash, tombstone)| tombstone.cut).map(|(hash, _)| hash)
    }

    /// Keys whose spec this program cannot read; they are not accepted here.
    pub fn unreadable_keys(&self) -> impl Iterator<Item = &str> {
        self.holdings.unreadable.iter().map(|name| &**name)
    }

    /// The last [`AUDIT_RING`] records from serial `from` on, the oldest first.
    pub fn audit(&self, from: u64) -> impl Iterator<Item = &AuditRecord> {
        let start = self.audit.partition_point(|record| record.index < from);
        self.audit.range(start..)
    }

    /// What requests read. Everything but the keys is taken from `previous` where it is still the same; the keys are
    /// shared in any case. `previous` must be of this same register's past.
    pub fn directory(&self, previous: Option<&Directory>) -> Directory {
        let same =
            previous.map(Directory::shape).filter(|shape| shape.version() == self.shape_version && shape.version() > 0);
        let shape = same.cloned().unwrap_or_else(|| {
            let entries =
                self.holdings.entries.iter().flat_map(|(kind, entries)| {
                    entries.iter().map(|(name, entry)| (*kind, name.as_str(), &*entry.spec))
                });
            let off = |provider: &str| self.holdings.off.contains_key(provider);
            Arc::new(Shape::total(entries, &off, self.shape_version))
        });
        Directory::new(self.holdings.keys.clone(), shape)
    }
}

/// The resources of one kind, by name.
pub struct Listing<'a> {
    holdings: &'a Holdings,
    rest: Rest<'a>,
}

enum Rest<'a> {
    Entries(Option<Range<'a, String, Entry>>, Kind),
    Keys(Range<'a, Arc<str>, KeyHash>),
}

impl<'a> Listing<'a> {
    fn new(holdings: &'a Holdings, kind: Kind, after: Option<&str>) -> Self {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = if kind == Kind::Keys {
            Rest::Keys(holdings.names.range::<str, _>((start, Bound::Unbounded)))
        } else {
            let entries = holdings.entries.get(&kind);
            Rest::Entries(entries.map(|entries| entries.range::<str, _>((start, Bound::Unbounded))), kind)
        };
        Self { holdings, rest }
    }

    fn at(self, name: &str) -> Option<Stored<'a>> {
        match self.rest {
            Rest::Keys(_) => {
                let (name, hash) = self.holdings.names.get_key_value(name)?;
                key(self.holdings, name, *hash)
            }
            Rest::Entries(_, kind) => {
                let (name, entry) = self.holdings.entries.get(&kind)?.get_key_value(name)?;
                Some(stored(self.holdings, kind, name, entry))
            }
        }
    }
}

impl<'a> Iterator for Listing<'a> {
    type Item = Stored<'a>;

    fn next(&mut self) -> Option<Stored<'a>> {
        match &mut self.rest {
            Rest::Entries(entries, kind) => {
                let (name, entry) = entries.as_mut()?.next()?;
                Some(stored(self.holdings, *kind, name, entry))
            }
            Rest::Keys(names) => {
                let (name, hash) = names.next()?;
                key(self.holdings, name, *hash)
            }
        }
    }
}

fn key<'a>(holdings: &'a Holdings, name: &'a str, hash: KeyHash) -> Option<Stored<'a>> {
    let record = holdings.keys.get(&hash)?;
    let (version, origin, revoked) = (record.version, record.origin, record.revoked);
    Some(Stored { name, spec: &record.spec, version, origin, revoked, off: false })
}

fn stored<'a>(holdings: &'a Holdings, kind: Kind, name: &'a str, entry: &'a Entry) -> Stored<'a> {
    let off = kind == Kind::Providers && holdings.off.contains_key(name);
    Stored { name, spec: &entry.spec, version: entry.version, origin: entry.origin, revoked: false, off }
}

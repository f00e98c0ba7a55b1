//! The register as bytes: what a snapshot is made of. Equal registers give equal bytes.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bytes::{self, DecodeError};
use super::command::{AuditRecord, Origin, Refusal};
use super::holdings::{Entries, Holdings, Tombstone};
use super::members::Members;
use super::staging::Stagings;
use super::tokens::Tokens;
use super::{FileState, Register};
use crate::directory::key::KeyHash;
use crate::ledger::accounts::Accounts;

/// Bytes of a register that are read. A million keys come to some 300 MiB.
const IMAGE_BYTES_MAX: u64 = 1 << 31;

/// Of the layout below. A field more is a new version, and a reader for the old one.
const VERSION: u8 = 2;

/// The last version without accounts.
const WITHOUT_ACCOUNTS: u8 = 1;

/// `A`: the accounts, or `()`, which has no bytes, in [`WITHOUT_ACCOUNTS`].
#[derive(Deserialize, Serialize)]
struct Image<'a, A> {
    serial: u64,
    shape_version: u64,
    tick: Duration,
    members: Cow<'a, Members>,
    tokens: Cow<'a, Tokens>,
    entries: Cow<'a, Entries>,
    /// By name.
    keys: Vec<KeyImage<'a>>,
    revoked: Cow<'a, BTreeMap<KeyHash, Tombstone>>,
    off: Cow<'a, BTreeMap<String, u64>>,
    file: FileState,
    stagings: Cow<'a, Stagings>,
    audit: Cow<'a, VecDeque<AuditRecord>>,
    accounts: A,
}

/// The rest of a key follows from its spec and from what was revoked.
#[derive(Deserialize, Serialize)]
struct KeyImage<'a> {
    name: Cow<'a, str>,
    spec: Cow<'a, str>,
    version: u64,
    origin: Origin,
}

impl Register {
    /// Replay and snapshot give the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        let keys = self.holdings.names.iter().filter_map(|(name, hash)| {
            let record = self.holdings.keys.get(hash)?;
            let (name, spec) = (Cow::Borrowed(&**name), Cow::Borrowed(&*record.spec));
            Some(KeyImage { name, spec, version: record.version, origin: record.origin })
        });
        let image = Image {
            serial: self.serial,
            shape_version: self.shape_version,
            tick: self.tick,
            members: Cow::Borrowed(&self.members),
            tokens: Cow::Borrowed(&self.tokens),
            entries: Cow::Borrowed(&self.holdings.entries),
            keys: keys.collect(),
            revoked: Cow::Borrowed(&self.holdings.revoked),
            off: Cow::Borrowed(&self.holdings.off),
            file: self.file,
            stagings: Cow::Borrowed(&self.stagings),
            audit: Cow::Borrowed(&self.audit),
            accounts: Cow::<Accounts>::Borrowed(&self.accounts),
        };
        bytes::encode(VERSION, &image)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.first() == Some(&WITHOUT_ACCOUNTS) {
            let image: Image<'static, ()> = bytes::decode(VERSION, bytes, IMAGE_BYTES_MAX)?;
            return image.restore(|()| Accounts::default());
        }
        let image: Image<'static, Accounts> = bytes::decode(VERSION, bytes, IMAGE_BYTES_MAX)?;
        image.restore(|accounts| accounts)
    }
}

impl<A> Image<'static, A> {
    fn restore(self, accounts: impl FnOnce(A) -> Accounts) -> Result<Register, DecodeError> {
        let image = self;
        let inconsistent = |refusal: Refusal| DecodeError::Inconsistent { why: refusal.to_string() };
        let (entries, revoked, off) = (image.entries.into_owned(), image.revoked.into_owned(), image.off.into_owned());
        let mut holdings = Holdings::restore(entries, revoked, off).map_err(inconsistent)?;
        for KeyImage { name, spec, version, origin } in &image.keys {
            holdings.restore_key(name, spec, *version, *origin).map_err(inconsistent)?;
        }
        Ok(Register {
            serial: image.serial,
            shape_version: image.shape_version,
            tick: image.tick,
            members: image.members.into_owned(),
            tokens: image.tokens.into_owned(),
            holdings,
            file: image.file,
            stagings: image.stagings.into_owned(),
            audit: image.audit.into_owned(),
            accounts: accounts(image.accounts),
        })
    }
}

//! The replicated state: members, resources, and what was revoked. Every node applies the same commands in the same
//! order and holds the same register.
//!
//! Pure and deterministic: no clock, no chance, no hash order in anything written down. Commands are checked in full by
//! who proposes them ([`validate`]); [`Register::apply`] checks what must hold whatever was checked before, and only
//! what comes out the same in every program version.

mod bytes;
mod command;
mod file;
mod holdings;
mod image;
mod members;
mod read;
mod staging;
mod tokens;
mod validate;

use std::collections::VecDeque;
use std::time::Duration;

use crate::directory::budget::Unit;
use crate::directory::wire::Spec;
use crate::id::{Incarnation, NodeId};
use crate::ledger::accounts::{self, Place};
use crate::ledger::book::{Reconciled, Statement};
use serde::{Deserialize, Serialize};

pub use bytes::DecodeError;
pub use command::{
    Act, Applied, AuditRecord, Author, COMMAND_VERSION, Changed, Command, Expected, KeyRef, Kind, MemberInfo, Origin,
    QUOTA_MAX, Refusal, Reply, Token,
};
pub use file::{Declared, Digest, FILE_BYTES_MAX, FileResources, PART_BYTES_MAX};
pub use holdings::{ENTRIES_MAX, KEYS_MAX, REVOKED_MAX, SPEC_BYTES_MAX, Tombstone};
pub use members::{MEMBERS_MAX, Member, Members};
pub use read::{Listing, Stored};
pub use staging::STAGINGS_MAX;
pub use tokens::TOKENS_MAX;
pub use validate::{Change, Checked, Policy, difference, validate};

use holdings::{Holdings, Tally};
use staging::{Part, Stagings};
use tokens::Tokens;

/// Records kept here for who asks; the lasting audit is elsewhere.
pub const AUDIT_RING: usize = 1024;

/// Bytes of a text in an audit record. What is longer is cut.
const AUDIT_TEXT_MAX: usize = 512;

/// Names in an audit record of what a file took over. The rest is counted.
const TAKEN_NAMED_MAX: usize = 20;

/// What the nodes agree on. A clone shares the keys and copies the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Register {
    serial: u64,
    shape_version: u64,
    tick: Duration,
    members: Members,
    tokens: Tokens,
    holdings: Holdings,
    file: FileState,
    stagings: Stagings,
    audit: VecDeque<AuditRecord>,
    accounts: accounts::Accounts,
}

/// Which file's declarations are in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct FileState {
    pub revision: Option<u64>,
    /// `None`: no file was ever reconciled.
    pub digest: Option<Digest>,
}

/// What an act did, for the audit.
struct Note {
    action: &'static str,
    kind: Option<Kind>,
    name: String,
    before: Option<u64>,
    after: Option<u64>,
    outcome: Option<String>,
}

/// What an act came to.
struct Outcome {
    reply: Reply,
    changed: Changed,
    note: Option<Note>,
}

impl Outcome {
    fn quiet(reply: Reply, changed: Changed) -> Self {
        Self { reply, changed, note: None }
    }

    fn noted(result: Result<(Reply, Changed), Refusal>, note: Note) -> Self {
        let (reply, changed) = result.unwrap_or_else(|refusal| (Reply::Refused(refusal), Changed::default()));
        Self { reply, changed, note: Some(note) }
    }
}

impl Register {
    /// The next state. `index` is that of the log entry; where one carries several commands it is the same for all of
    /// them. Each command has a **serial** of its own: the index, or the next number free. Serials are what versions and
    /// incarnations are made of.
    ///
    /// A command of a version this program does not know is refused, which parts this register from the others':
    /// whoever feeds it stops at [`Command::is_known`] before.
    pub fn apply(&mut self, index: u64, command: &Command) -> Applied {
        self.serial = index.max(self.serial.saturating_add(1));
        let silent = |reply| Applied { reply, audit: None, changed: Changed::default() };
        if !command.is_known() {
            let (version, known) = (command.version, COMMAND_VERSION);
            return silent(Reply::Refused(Refusal::NewerVersion { version, known }));
        }
        if let Some(token) = command.token
            && let Err(reply) = self.tokens.admit(token)
        {
            return silent(reply);
        }
        let Outcome { reply, changed, note } = self.act(&command.act);
        if changed.shape {
            self.align_accounts();
        }
        if let Some(token) = command.token {
            self.tokens.keep(token, &reply);
        }
        let audit = note.map(|note| self.record(command, note, &reply));
        Applied { reply, audit, changed }
    }

    fn act(&mut self, act: &Act) -> Outcome {
        match act {
            Act::Started { node, nonce, member } => {
                let before = self.members.get(*node).map(|member| member.incarnation);
                match self.members.started(self.serial, *node, *nonce, member, &mut self.tokens) {
                    Ok((incarnation, members)) => {
                        if let Some(before) = before.filter(|before| *before != incarnation) {
                            self.accounts.end(before);
                        }
                        let changed = Changed { members, ..Changed::default() };
                        Outcome::quiet(Reply::Incarnation(incarnation), changed)
                    }
                    Err(refusal) => Outcome::quiet(Reply::Refused(refusal), Changed::default()),
                }
            }
            Act::Admit { node, member } => {
                let admitted = self.members.admit(self.serial, *node, member);
                let changed = admitted.map(|members| (Reply::Done, Changed { members, ..Changed::default() }));
                Outcome::noted(changed, Note::of_node("admit", node.to_string()))
            }
            Act::Remove { node } => {
                if let Some(member) = self.members.get(*node) {
                    self.accounts.end(member.incarnation);
                }
                let members = self.members.remove(*node, &mut self.tokens);
                let removed = if members { Ok(()) } else { Err(Refusal::NotMember { node: *node }) };
                let changed = removed.map(|()| (Reply::Done, Changed { members, ..Changed::default() }));
                Outcome::noted(changed, Note::of_node("remove", node.to_string()))
            }
            Act::Put { kind, name, spec, expected, shape } => {
                let before = self.holdings.standing(*kind, name).map(|(version, _origin)| version);
                let put = self.put(*kind, name, spec, *expected, *shape);
                let after = if put.is_ok() { Some(self.serial) } else { before };
                Outcome::noted(put, Note::of("put", *kind, name, before, after))
            }
            Act::Delete { kind, name, expected, shape } => {
                let before = self.holdings.standing(*kind, name).map(|(version, _origin)| version);
                let deleted = self.delete(*kind, name, *expected, *shape);
                let after = if deleted.is_ok() { None } else { before };
                Outcome::noted(deleted, Note::of("delete", *kind, name, before, after))
            }
            Act::Revoke { key, cut } => self.revoke(key, *cut),
            Act::SwitchProvider { name, off } => self.switch(name, *off),
            Act::ReconcilePart { digest, revision, part, of, bytes, shape, by: _ } => {
                self.reconcile(Part { digest: *digest, number: *part, of: *of, bytes }, *revision, *shape)
            }
            Act::Tick { now } => {
                let time = *now > self.tick;
                self.tick = self.tick.max(*now);
                Outcome::quiet(Reply::Done, Changed { time, ..Changed::default() })
            }
            Act::Quota { .. } | Act::Roll { .. } | Act::Settle { .. } | Act::Unspent { .. } => self.account(act),
        }
    }

    /// Makes the accounts those of the budgets there are now. One that cannot be read is none, and closed: who names it is
    /// refused, since no request finds it. What a budget's spec means is part of what [`COMMAND_VERSION`] stands for:
    /// programs that read it differently would part.
    fn align_accounts(&mut self) {
        let declared = self.holdings.entries.get(&Kind::Budgets).into_iter().flatten();
        let read = |(name, entry): (&String, &holdings::Entry)| match Spec::read(Kind::Budgets, &entry.spec) {
            Ok(Spec::Budget(spec)) => spec.declared(name),
            Ok(_) | Err(_) => None,
        };
        let declared: Vec<accounts::Declared> = declared.filter_map(read).collect();
        self.accounts.align(&declared);
    }

    /// What is granted, used and given back.
    fn account(&mut self, act: &Act) -> Outcome {
        let changed = Changed { accounts: true, ..Changed::default() };
        match act {
            Act::Quota { node, incarnation, said } => {
                let over = self.is_over(*node, *incarnation);
                let told =
                    |(place, said): &(Place, Statement)| self.accounts.state(*place, *incarnation, *node, *said, over);
                Outcome::quiet(Reply::Told(said.iter().map(told).collect()), changed)
            }
            Act::Roll { rolls } => {
                let news = rolls.iter().filter(|roll| self.accounts.roll(roll)).count() > 0;
                Outcome::quiet(Reply::Done, Changed { accounts: news, ..changed })
            }
            Act::Settle { node, incarnation, marks, whole, last } => {
                if *last || self.is_over(*node, *incarnation) {
                    self.accounts.settle(*node, *incarnation, &marks.iter().copied().collect(), *whole);
                }
                Outcome::quiet(Reply::Done, changed)
            }
            Act::Unspent { place, incarnation, used } => self.unspent(*place, *incarnation, *used),
            Act::Started { .. }
            | Act::Admit { .. }
            | Act::Remove { .. }
            | Act::Put { .. }
            | Act::Delete { .. }
            | Act::Revoke { .. }
            | Act::SwitchProvider { .. }
            | Act::ReconcilePart { .. }
            | Act::Tick { .. } => Outcome::quiet(Reply::Done, Changed::default()),
        }
    }

    /// An operator answers for what a life that is over has used.
    fn unspent(&mut self, place: Place, incarnation: Incarnation, used: u64) -> Outcome {
        let account = self.accounts.get(place.budget);
        let name = account.map_or_else(String::new, |account| account.name.clone());
        let unit = account.and_then(|account| Unit::named(account.unit()));
        let line = self.accounts.book(place).and_then(|book| book.line(incarnation));
        // One that has settled for the last time may still have calls under way.
        let is_over = line.is_none_or(|line| self.is_over(line.node, incarnation));
        let done = if is_over { self.accounts.reconcile(place, incarnation, used) } else { None };
        let outcome = done.as_ref().map(|Reconciled { before, after }| {
            let show = |amount: u64| unit.map_or_else(|| amount.to_string(), |unit| unit.show(amount));
            let change = |before: u64, after: u64| format!("{}, before {}", show(after), show(before));
            format!(
                "done: budget `{name}`, window {}, node {}, incarnation {incarnation}: {} said to be used; used {}; burned {}; \
                 returned {}",
                place.window,
                after.node,
                show(used),
                change(before.used, after.used),
                change(before.burned(), after.burned()),
                change(before.returned, after.returned),
            )
        });
        let note = Note { outcome, ..Note::of("reconcile", Kind::Budgets, &name, None, None) };
        let changed = Changed { accounts: true, ..Changed::default() };
        let done = done.ok_or(Refusal::NotOver { incarnation: incarnation.get() });
        Outcome::noted(done.map(|_reconciled| (Reply::Done, changed)), note)
    }

    /// Whether a life of a node is not the one it lives.
    pub fn is_over(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.members.get(node).is_none_or(|member| member.incarnation != incarnation)
    }

    fn put(
        &mut self,
        kind: Kind,
        name: &str,
        spec: &str,
        expected: Expected,
        shape: Option<u64>,
    ) -> Result<(Reply, Changed), Refusal> {
        self.check_shape(shape)?;
        let standing = self.holdings.standing(kind, name);
        check_expected(kind, name, standing, expected)?;
        self.holdings.put(kind, name, spec, self.serial, Origin::Api)?;
        Ok((Reply::Put { version: self.serial }, self.resource_changed(kind)))
    }

    fn delete(
        &mut self,
        kind: Kind,
        name: &str,
        expected: Expected,
        shape: Option<u64>,
    ) -> Result<(Reply, Changed), Refusal> {
        self.check_shape(shape)?;
        let standing = self.holdings.standing(kind, name);
        check_expected(kind, name, standing, expected)?;
        if standing.is_none() {
            return Err(Refusal::NotFound { what: kind.name().to_owned(), name: name.to_owned() });
        }
        self.holdings.remove(kind, name)?;
        Ok((Reply::Deleted, self.resource_changed(kind)))
    }

    fn revoke(&mut self, key: &KeyRef, cut: bool) -> Outcome {
        let found = match key {
            KeyRef::Name(name) => self.holdings.key(name).map(|(hash, _record)| hash),
            KeyRef::Hash(hash) => Some(*hash),
        };
        let named = found.and_then(|hash| self.holdings.keys.get(&hash));
        let name = match (named, key) {
            (Some(record), _) => record.name.to_string(),
            (None, KeyRef::Name(name)) => name.clone(),
            (None, KeyRef::Hash(hash)) => format!("{hash:?}"),
        };
        let before = named.map(|record| record.version);
        let revoked = found
            .ok_or_else(|| Refusal::NotFound { what: "key".to_owned(), name: name.clone() })
            .and_then(|hash| self.holdings.revoke(hash, cut, self.serial).map(|(first, news)| (hash, first, news)));
        let after = found.and_then(|hash| self.holdings.keys.get(&hash)).map(|record| record.version);
        let note = Note::of(if cut { "revoke --cut" } else { "revoke" }, Kind::Keys, &name, before, after);
        let changed = revoked.map(|(hash, first, directory)| {
            let changed = Changed { directory, cut: cut.then_some(hash), ..Changed::default() };
            (Reply::Revoked { hash, first }, changed)
        });
        Outcome::noted(changed, note)
    }

    fn switch(&mut self, name: &str, off: bool) -> Outcome {
        let version = self.holdings.standing(Kind::Providers, name).map(|(version, _origin)| version);
        let note = Note::of(if off { "off" } else { "on" }, Kind::Providers, name, version, version);
        let switched = self.holdings.switch(name, off, self.serial);
        let changed = switched.map(|news| {
            let changed = if news { self.resource_changed(Kind::Providers) } else { Changed::default() };
            (Reply::Done, changed)
        });
        Outcome::noted(changed, note)
    }

    fn reconcile(&mut self, part: Part<'_>, revision: Option<u64>, shape: u64) -> Outcome {
        let before = self.file.revision;
        let note = |outcome| Note {
            action: "reconcile",
            kind: None,
            name: part.digest.to_string(),
            before,
            after: revision,
            outcome,
        };
        if let Some(reply) = self.weigh(revision, part.digest) {
            let told = match &reply {
                Reply::Older { current } => Some(format!("refused: revision {current} is in force")),
                Reply::Conflict { current } => Some(format!("refused: the same revision is in force as {current}")),
                Reply::Unchanged
                | Reply::Done
                | Reply::Incarnation(_)
                | Reply::Put { .. }
                | Reply::Deleted
                | Reply::Revoked { .. }
                | Reply::Staged
                | Reply::Reconciled { .. }
                | Reply::Told(_)
                | Reply::Refused(_) => None,
            };
            let note = told.filter(|_| part.number == 0).map(|told| note(Some(told)));
            return Outcome { reply, changed: Changed::default(), note };
        }
        match self.reconciled(part, shape) {
            Ok(None) => Outcome::quiet(Reply::Staged, Changed::default()),
            Ok(Some((holdings, tally))) => {
                let note = note(Some(tally.words()));
                self.holdings = holdings;
                self.file = FileState { revision, digest: Some(part.digest) };
                self.stagings.forget(part.digest);
                let changed =
                    Changed { directory: tally.put > 0 || tally.removed > 0, shape: tally.shape, ..Changed::default() };
                if tally.shape {
                    self.shape_version = self.serial;
                }
                let taken = u32::try_from(tally.taken.len()).unwrap_or(u32::MAX);
                let reply = Reply::Reconciled { put: tally.put, removed: tally.removed, taken };
                Outcome { reply, changed, note: Some(note) }
            }
            Err(refusal) => {
                let note = note(None);
                if !matches!(refusal, Refusal::Moved { .. } | Refusal::PartMissing { .. }) {
                    self.stagings.forget(part.digest);
                }
                Outcome::noted(Err(refusal), note)
            }
        }
    }

    /// What is to be said of a file before any of it is looked at.
    fn weigh(&self, revision: Option<u64>, digest: Digest) -> Option<Reply> {
        let same = self.file.digest == Some(digest);
        match (revision, self.file.revision) {
            (Some(new), Some(current)) if new < current => Some(Reply::Older { current }),
            (Some(new), Some(current)) if new == current && same => Some(Reply::Unchanged),
            (Some(new), Some(current)) if new == current => self.file.digest.map(|current| Reply::Conflict { current }),
            (None, _) if same => Some(Reply::Unchanged),
            (Some(_) | None, Some(_) | None) => None,
        }
    }

    /// `None`: parts are missing.
    fn reconciled(&mut self, part: Part<'_>, shape: u64) -> Result<Option<(Holdings, Tally)>, Refusal> {
        match self.stagings.take(part, self.serial)? {
            None => Ok(None),
            Some(declared) => {
                self.check_shape(Some(shape))?;
                self.holdings.reconciled(&declared, self.serial).map(Some)
            }
        }
    }

    fn check_shape(&self, wanted: Option<u64>) -> Result<(), Refusal> {
        match wanted {
            Some(wanted) if wanted != self.shape_version => Err(Refusal::Moved { wanted, current: self.shape_version }),
            Some(_) | None => Ok(()),
        }
    }

    /// Notes that a resource of this kind is another now.
    fn resource_changed(&mut self, kind: Kind) -> Changed {
        let shape = kind != Kind::Keys;
        if shape {
            self.shape_version = self.serial;
        }
        Changed { directory: true, shape, ..Changed::default() }
    }

    fn record(&mut self, command: &Command, note: Note, reply: &Reply) -> AuditRecord {
        let told = note.outcome.unwrap_or_else(|| match reply {
            Reply::Refused(refusal) => format!("refused: {refusal}"),
            Reply::Done
            | Reply::Incarnation(_)
            | Reply::Put { .. }
            | Reply::Deleted
            | Reply::Revoked { .. }
            | Reply::Staged
            | Reply::Reconciled { .. }
            | Reply::Older { .. }
            | Reply::Unchanged
            | Reply::Conflict { .. }
            | Reply::Told(_) => "done".to_owned(),
        });
        let Author { who, node, request_id } = &command.author;
        let record = AuditRecord {
            index: self.serial,
            at: command.at,
            who: cut(who),
            node: *node,
            request_id: cut(request_id),
            action: note.action.to_owned(),
            kind: note.kind,
            name: cut(&note.name),
            outcome: cut(&told),
            before_version: note.before,
            after_version: note.after,
        };
        if self.audit.len() >= AUDIT_RING {
            self.audit.pop_front();
        }
        self.audit.push_back(record.clone());
        record
    }
}

impl Note {
    fn of(action: &'static str, kind: Kind, name: &str, before: Option<u64>, after: Option<u64>) -> Self {
        Self { action, kind: Some(kind), name: name.to_owned(), before, after, outcome: None }
    }

    fn of_node(action: &'static str, name: String) -> Self {
        Self { action, kind: None, name, before: None, after: None, outcome: None }
    }
}

impl Tally {
    fn words(&self) -> String {
        let mut words = format!("done: {} put, {} removed", self.put, self.removed);
        if let Some((first, rest)) = self.taken.split_first() {
            let named = rest.iter().take(TAKEN_NAMED_MAX - 1).fold(first.clone(), |all, name| all + ", " + name);
            let more = self.taken.len().saturating_sub(TAKEN_NAMED_MAX);
            words = words + "; taken over from the API: " + &named;
            if more > 0 {
                words = words + " and " + &more.to_string() + " more";
            }
        }
        words
    }
}

/// A file's resources are read-only here; the rest is for who has seen the last version.
fn check_expected(kind: Kind, name: &str, standing: Option<(u64, Origin)>, expected: Expected) -> Result<(), Refusal> {
    let name = || name.to_owned();
    match (standing, expected) {
        (Some((_, Origin::File)), _) => Err(Refusal::DeclaredInFile { section: kind.name().to_owned(), name: name() }),
        (Some((current, Origin::Api)), Expected::Absent) => Err(Refusal::Exists { name: name(), current }),
        (Some((current, Origin::Api)), Expected::Version(wanted)) if wanted != current => {
            Err(Refusal::Changed { name: name(), wanted, current })
        }
        (None, Expected::Version(_)) => Err(Refusal::NotFound { what: kind.name().to_owned(), name: name() }),
        (Some((_, Origin::Api)), Expected::Any | Expected::Version(_)) | (None, Expected::Any | Expected::Absent) => {
            Ok(())
        }
    }
}

/// The start of a text, at most [`AUDIT_TEXT_MAX`] bytes of it.
fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(AUDIT_TEXT_MAX)].to_owned()
}

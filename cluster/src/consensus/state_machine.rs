//! The replicated register behind openraft: applies what is committed, publishes what came of it, keeps snapshots.

use std::collections::HashSet;
use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder};
use parking_lot::RwLock;
use storage::snapshot::Snapshots;
use storage::trail::Trail;
use tokio::sync::watch;

use super::log_store::{blocking, decode, encode, failed};
use super::types::{Entry, LogId, Replies, Snapshot, SnapshotMeta, StorageError, StoredMembership, TypeConfig};
use crate::directory::key::KeyHash;
use crate::register::{AuditRecord, Command, Register};

/// What readers of the register are told after every step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Log index of the last applied entry; `None` before the first.
    pub applied: Option<u64>,
    /// Its term.
    pub term: u64,
}

impl Progress {
    pub fn has(&self, index: u64) -> bool {
        self.applied.is_some_and(|applied| applied >= index)
    }
}

/// Told of every applied entry, before anyone hears that it was applied. Must be quick.
pub trait Observer: Send + Sync + 'static {
    fn applied(&self, index: u64, register: &Register);

    /// The streams that run with this key are to end now.
    fn cut(&self, key: KeyHash);
}

/// The register as this node has it.
pub struct Shared {
    register: RwLock<Register>,
    state: parking_lot::Mutex<Applied>,
    progress: watch::Sender<Progress>,
    observer: Box<dyn Observer>,
}

#[derive(Clone, Default)]
struct Applied {
    last: Option<LogId>,
    membership: StoredMembership,
}

impl Shared {
    /// Looks at the register; what it blocks is the next commit, so not for long.
    pub fn read<T>(&self, look: impl FnOnce(&Register) -> T) -> T {
        look(&self.register.read())
    }

    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    fn told(&self) {
        let last = self.state.lock().last;
        let now = Progress { applied: last.map(|id| id.index), term: last.map_or(0, |id| id.leader_id.term) };
        self.progress.send_replace(now);
    }
}

/// What is kept of the past, besides the log: snapshots, and the audit trail.
#[derive(Clone)]
pub struct Kept {
    pub snapshots: Snapshots,
    pub trail: Option<Arc<Trail>>,
}

pub struct StateMachine {
    shared: Arc<Shared>,
    kept: Kept,
}

/// What a snapshot's file holds.
struct Saved {
    meta: SnapshotMeta,
    register: Vec<u8>,
}

impl StateMachine {
    /// Starts from the newest snapshot, or from nothing. Blocks on the disk.
    pub fn open(kept: Kept, observer: Box<dyn Observer>) -> Result<Self, StorageError> {
        let shared = Shared {
            register: RwLock::default(),
            state: parking_lot::Mutex::default(),
            progress: watch::channel(Progress::default()).0,
            observer,
        };
        let machine = Self { shared: Arc::new(shared), kept };
        if let Some(saved) = machine.kept.latest()? {
            machine.take(&saved)?;
        }
        Ok(machine)
    }

    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    fn take(&self, saved: &Saved) -> Result<(), StorageError> {
        let register = Register::decode(&saved.register)
            .map_err(|error| failed(ErrorSubject::StateMachine, ErrorVerb::Read, &error))?;
        // What the snapshot was made of is not replayed, so the trail must have it; a new node's trail begins here.
        if let (Some(trail), Some(newest)) = (&self.kept.trail, register.audit(0).last()) {
            let reaches = match trail.last() {
                Ok(Some(_)) => trail.check_reaches(newest.index),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            reaches.map_err(|error| failed(ErrorSubject::StateMachine, ErrorVerb::Read, &error))?;
        }
        let last = saved.meta.last_log_id;
        *self.shared.state.lock() = Applied { last, membership: saved.meta.last_membership.clone() };
        // The commands that said so are in the snapshot, and perhaps nowhere else. What was applied here was told.
        let cut: Vec<KeyHash> = {
            let before = self.shared.register.read();
            let told: HashSet<&KeyHash> = before.cut().collect();
            register.cut().filter(|key| !told.contains(key)).copied().collect()
        };
        if let Some(last) = last {
            self.shared.observer.applied(last.index, &register);
        }
        *self.shared.register.write() = register;
        for key in cut {
            self.shared.observer.cut(key);
        }
        self.shared.told();
        Ok(())
    }

    /// Applies the entries and returns a reply for each, and what the audit trail gets.
    fn apply_all(&self, entries: impl IntoIterator<Item = Entry>) -> (Vec<Replies>, Vec<AuditRecord>) {
        let mut replies = Vec::new();
        let mut audited = Vec::new();
        for entry in entries {
            let index = entry.log_id.index;
            let mut register = self.shared.register.write();
            let mut answers = Vec::new();
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(batch) => {
                    for command in &batch.commands {
                        stop_if_unknown(command);
                        let applied = register.apply(index, command);
                        if let Some(key) = applied.changed.cut {
                            self.shared.observer.cut(key);
                        }
                        answers.push(applied.reply);
                        audited.extend(applied.audit);
                    }
                }
                EntryPayload::Membership(membership) => {
                    self.shared.state.lock().membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
            self.shared.state.lock().last = Some(entry.log_id);
            self.shared.observer.applied(index, &register);
            replies.push(Replies(answers));
        }
        self.shared.told();
        (replies, audited)
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let Applied { last, membership } = self.shared.state.lock().clone();
        Ok((last, membership))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Replies>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (replies, audited) = self.apply_all(entries);
        if let Some(trail) = &self.kept.trail
            && !audited.is_empty()
        {
            let trail = Arc::clone(trail);
            blocking(ErrorSubject::StateMachine, move || write_down(&trail, &audited)).await?;
        }
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let register = self.shared.register.read().clone();
        let applied = self.shared.state.lock().clone();
        SnapshotBuilder { register, applied, kept: self.kept.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let saved = Saved { meta: meta.clone(), register: snapshot.into_inner() };
        let kept = self.kept.clone();
        let saved = blocking(ErrorSubject::StateMachine, move || kept.save(saved)).await?;
        self.take(&saved)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let kept = self.kept.clone();
        let saved = blocking(ErrorSubject::StateMachine, move || kept.latest()).await?;
        Ok(saved.map(|saved| Snapshot { meta: saved.meta, snapshot: Box::new(Cursor::new(saved.register)) }))
    }
}

/// Holds the register as it was when the snapshot was asked for.
pub struct SnapshotBuilder {
    register: Register,
    applied: Applied,
    kept: Kept,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let register = std::mem::take(&mut self.register);
        let Applied { last, membership } = self.applied.clone();
        let snapshot_id = last.map_or_else(|| "empty".to_owned(), |id| format!("{}-{}", id.leader_id.term, id.index));
        let meta = SnapshotMeta { last_log_id: last, last_membership: membership, snapshot_id };
        let kept = self.kept.clone();
        let saved =
            blocking(ErrorSubject::StateMachine, move || kept.save(Saved { meta, register: register.encode() }))
                .await?;
        Ok(Snapshot { meta: saved.meta, snapshot: Box::new(Cursor::new(saved.register)) })
    }
}

impl Kept {
    fn latest(&self) -> Result<Option<Saved>, StorageError> {
        let subject = || ErrorSubject::Snapshot(None);
        let found = self.snapshots.latest().map_err(|error| failed(subject(), ErrorVerb::Read, &error))?;
        let Some(found) = found else { return Ok(None) };
        Ok(Some(Saved { meta: decode(&found.meta, subject())?, register: found.data.to_vec() }))
    }

    /// After it, the log up to the snapshot may be purged: so what only the log had is made durable first.
    fn save(&self, saved: Saved) -> Result<Saved, StorageError> {
        let subject = || ErrorSubject::Snapshot(Some(saved.meta.signature()));
        if let Some(trail) = &self.trail {
            trail.flush().map_err(|error| failed(subject(), ErrorVerb::Write, &error))?;
        }
        let meta = encode(&saved.meta, subject())?;
        let saving = self.snapshots.save(&saved.meta.snapshot_id, &meta, &saved.register);
        saving.map_err(|error| failed(subject(), ErrorVerb::Write, &error))?;
        Ok(saved)
    }
}

fn write_down(trail: &Trail, audited: &[AuditRecord]) -> Result<(), StorageError> {
    let written = |record: &AuditRecord| Ok((record.index, encode(record, ErrorSubject::StateMachine)?));
    let records: Vec<_> = audited.iter().map(written).collect::<Result<_, StorageError>>()?;
    trail.append_all(&records).map_err(|error| failed(ErrorSubject::StateMachine, ErrorVerb::Write, &error))
}

/// A register that skipped what others applied would part from theirs. Members announce what they know and nothing newer
/// is proposed, so this is a program older than its cluster: it must be updated, and its log is whole.
fn stop_if_unknown(command: &Command) {
    if !command.is_known() {
        storage::fatal::abort("the log has commands of a newer version than this program knows; update it");
    }
}

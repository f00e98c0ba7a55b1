//! What the log carries: commands, and what they are answered with.
//!
//! Written and read by position: variants and fields are only ever added at the end of an enum, and a command that
//! gained a field is a new variant. Resources travel as JSON text, so their fields may change freely.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::file::Digest;
use crate::directory::key::KeyHash;
pub use crate::directory::kind::{Kind, Origin};
use crate::id::{Incarnation, NodeId};
use crate::ledger::accounts::{Place, Roll, Told};
use crate::ledger::book::Statement;
use crate::ledger::lease::Mark;

/// The newest version of [`Command`] that this program knows. A newer one is proposed only when every member says that
/// it knows it.
pub const COMMAND_VERSION: u16 = 2;

/// The first version that has budgets.
const WITH_BUDGETS: u16 = 2;

/// Statements, rolls or marks of one command. What is more goes into another.
pub const QUOTA_MAX: usize = 4_096;

/// One change of the register, as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Command {
    pub version: u16,
    /// What makes a repeated command the same one. Without it a repeated command is applied again.
    pub token: Option<Token>,
    pub author: Author,
    /// Since 1970, by the proposer's clock: a text for the audit, nothing is decided by it.
    pub at: Duration,
    pub act: Act,
}

impl Command {
    /// In the oldest version that has the act, so that members which know less can apply what they know.
    pub fn new(author: Author, at: Duration, act: Act) -> Self {
        Self { version: act.version(), token: None, author, at, act }
    }

    #[must_use]
    pub fn with_token(self, token: Token) -> Self {
        Self { token: Some(token), ..self }
    }

    /// Whether this program can apply it. Who cannot must stop: its register would part from the others'.
    pub fn is_known(&self) -> bool {
        self.version <= COMMAND_VERSION
    }
}

/// Names one command of one life of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Token {
    /// [`Incarnation`] of the node that made the command.
    pub incarnation: u64,
    pub seq: u64,
    /// Every earlier number has been answered and is never asked about again.
    pub floor: u64,
}

/// Who wanted it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Author {
    /// The name of the operator's key; for what a node does by itself, the node's name.
    pub who: String,
    pub node: NodeId,
    pub request_id: String,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Act {
    /// A life of a process begins. Answered with [`Reply::Incarnation`].
    Started { node: NodeId, nonce: [u8; 16], member: MemberInfo },
    /// A node belongs to the cluster from now on.
    Admit { node: NodeId, member: MemberInfo },
    /// A node no longer belongs to it.
    Remove { node: NodeId },
    /// Makes or changes a resource. `spec` is JSON as [`crate::directory::wire`] writes it.
    Put { kind: Kind, name: String, spec: String, expected: Expected, shape: Option<u64> },
    /// Removes a resource.
    Delete { kind: Kind, name: String, expected: Expected, shape: Option<u64> },
    /// Ends a key for good. `cut`: its running streams too.
    Revoke { key: KeyRef, cut: bool },
    /// An operator takes a provider out of use, or lets it back.
    SwitchProvider { name: String, off: bool },
    /// A part of what a file declares; applied with the last part. `shape` and `revision` are the same in every part.
    ReconcilePart { digest: Digest, revision: Option<u64>, part: u32, of: u32, bytes: Vec<u8>, shape: u64, by: NodeId },
    /// The cluster's time, since 1970.
    Tick { now: Duration },
    /// What one life of a node says of what it was granted. Answered with [`Reply::Told`], one for each.
    Quota { node: NodeId, incarnation: Incarnation, said: Vec<(Place, Statement)> },
    /// Windows of budgets begin.
    Roll { rolls: Vec<Roll> },
    /// What a life of a node that is over has used at most; nothing, where no mark is named. `last`: the life ends itself.
    Settle { node: NodeId, incarnation: Incarnation, marks: Vec<(Place, Mark)>, whole: bool, last: bool },
    /// An operator says what a life that is over has really used of a budget.
    Unspent { place: Place, incarnation: Incarnation, used: u64 },
}

impl Act {
    /// The first version of commands that has it.
    const fn version(&self) -> u16 {
        match self {
            Self::Put { kind: Kind::Budgets, .. }
            | Self::Delete { kind: Kind::Budgets, .. }
            | Self::Quota { .. }
            | Self::Roll { .. }
            | Self::Settle { .. }
            | Self::Unspent { .. } => WITH_BUDGETS,
            Self::Started { .. }
            | Self::Admit { .. }
            | Self::Remove { .. }
            | Self::Put { .. }
            | Self::Delete { .. }
            | Self::Revoke { .. }
            | Self::SwitchProvider { .. }
            | Self::ReconcilePart { .. }
            | Self::Tick { .. } => 1,
        }
    }
}

/// What a member says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct MemberInfo {
    pub name: String,
    pub zone: Option<String>,
    /// `host:port` of its peer listener.
    pub peer: String,
    /// The newest [`Command::version`] it can apply.
    pub format: u32,
    /// Of the program.
    pub version: String,
}

/// What must be there for a change to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Expected {
    Any,
    Absent,
    Version(u64),
}

/// A key by its name, or by what it is found by.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum KeyRef {
    Name(String),
    Hash(KeyHash),
}

/// What a command is answered with.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Reply {
    /// Nothing more to say.
    Done,
    /// To [`Act::Started`]: of this life.
    Incarnation(Incarnation),
    Put {
        version: u64,
    },
    Deleted,
    /// `first` is the serial of the command that revoked it: an earlier one where this one was a repetition.
    Revoked {
        hash: KeyHash,
        first: u64,
    },
    /// A part was taken; others are to come.
    Staged,
    /// What the file declares is in force now.
    Reconciled {
        put: u32,
        removed: u32,
        /// Resources made through the API that the file has taken over.
        taken: u32,
    },
    /// The register holds a higher revision: the node uses that.
    Older {
        current: u64,
    },
    /// The register holds exactly this already.
    Unchanged,
    /// The same revision with other contents; [`super::difference`] names what differs.
    Conflict {
        current: Digest,
    },
    Refused(Refusal),
    /// To [`Act::Quota`], in its order.
    Told(Vec<Told>),
}

/// Why a command changed nothing. The same for every node and every program version.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, thiserror::Error)]
pub enum Refusal {
    #[error("the resources have changed since this was checked (at {wanted}, now {current}); check it again")]
    Moved { wanted: u64, current: u64 },
    #[error("there is no {what} `{name}`")]
    NotFound { what: String, name: String },
    #[error("`{name}` is there already, at version {current}")]
    Exists { name: String, current: u64 },
    #[error("version {wanted} was expected and `{name}` is at version {current}")]
    Changed { name: String, wanted: u64, current: u64 },
    #[error("`{section}.{name}` is declared in the configuration file; change it there")]
    DeclaredInFile { section: String, name: String },
    #[error("the key `{by}` has the same hash")]
    HashTaken { by: String },
    #[error("the key was revoked, which nothing lifts; make another")]
    Revoked,
    #[error("{what} `{name}` is used by {by} keys")]
    InUse { what: String, name: String, by: u64 },
    #[error("`{name}` is built in")]
    BuiltIn { name: String },
    #[error("is not what a resource looks like: {why}")]
    Malformed { why: String },
    #[error("there are {max} {what} already, which is as many as can be")]
    TooMany { what: String, max: u64 },
    #[error("{what} has {bytes} bytes; {max} are allowed")]
    TooLarge { what: String, bytes: u64, max: u64 },
    #[error("the node `{node}` is not a member")]
    NotMember { node: NodeId },
    #[error("incarnation {incarnation} has ended or never was")]
    Frozen { incarnation: u64 },
    #[error("{max} commands of this node wait to be acknowledged")]
    TooManyOpen { max: u64 },
    #[error("command {seq} was answered and forgotten; the floor is {floor}")]
    Forgotten { seq: u64, floor: u64 },
    #[error("part {wanted} is next, not {part}")]
    PartMissing { wanted: u32, part: u32 },
    #[error("the parts do not add up to what was announced: {why}")]
    Damaged { why: String },
    #[error("version {version} of commands is not known here; {known} is")]
    NewerVersion { version: u16, known: u16 },
    #[error("incarnation {incarnation} has no part of that budget, or is not over")]
    NotOver { incarnation: u64 },
}

impl Refusal {
    /// For labels and error bodies.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Moved { .. } => "moved",
            Self::NotFound { .. } => "not_found",
            Self::Exists { .. } => "exists",
            Self::Changed { .. } => "changed",
            Self::DeclaredInFile { .. } => "declared_in_file",
            Self::HashTaken { .. } => "hash_taken",
            Self::Revoked => "revoked",
            Self::InUse { .. } => "in_use",
            Self::BuiltIn { .. } => "built_in",
            Self::Malformed { .. } => "malformed",
            Self::TooMany { .. } => "too_many",
            Self::TooLarge { .. } => "too_large",
            Self::NotMember { .. } => "not_member",
            Self::Frozen { .. } => "frozen",
            Self::TooManyOpen { .. } => "too_many_open",
            Self::Forgotten { .. } => "forgotten",
            Self::PartMissing { .. } => "part_missing",
            Self::Damaged { .. } => "damaged",
            Self::NewerVersion { .. } => "newer_version",
            Self::NotOver { .. } => "not_over",
        }
    }
}

/// What applying a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub reply: Reply,
    /// Of a change that an operator made or was refused, or that a file brought.
    pub audit: Option<AuditRecord>,
    pub changed: Changed,
}

/// What readers of the register must look at anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a question of its own")]
pub struct Changed {
    /// The directory: publish it again.
    pub directory: bool,
    /// Resources besides keys among it.
    pub shape: bool,
    pub members: bool,
    pub time: bool,
    /// What anyone was granted, or may be.
    pub accounts: bool,
    /// Streams that run with this key are to be cut now.
    pub cut: Option<KeyHash>,
}

/// What someone changed, or was refused. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct AuditRecord {
    /// The command's serial: see [`super::Register::apply`].
    pub index: u64,
    pub at: Duration,
    pub who: String,
    pub node: NodeId,
    pub request_id: String,
    pub action: String,
    pub kind: Option<Kind>,
    pub name: String,
    /// `done`, or why not, or what a file changed.
    pub outcome: String,
    pub before_version: Option<u64>,
    pub after_version: Option<u64>,
}

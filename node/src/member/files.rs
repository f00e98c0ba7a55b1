//! What this node's file declares, brought into the register.

use std::time::Duration;

use cluster::consensus::ProposeError;
use cluster::directory::problems::Problems;
use cluster::directory::secret::SecretRef;
use cluster::register::{Act, Change, Checked, FileResources, Policy, Refusal, Reply, difference, validate};
use tracing::{info, warn};

use super::Member;
use crate::config::load::Loaded;

/// For one command.
const WITHIN: Duration = Duration::from_secs(10);

/// How often it is checked again because the resources changed in between.
const TRIES_MAX: usize = 8;

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileOutcome {
    /// What it declares is in force.
    InForce,
    /// The cluster has a higher revision, and this node uses that.
    Older { own: u64, cluster: u64 },
    /// It declares nothing, and leaves the cluster's resources as they are.
    Nothing,
}

/// Why what the file declares is not in force.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("the file and what the cluster holds do not go together: {0}")]
    Problems(Problems),
    #[error(
        "the file has `resources_revision: {revision}` as the cluster, but `{differs}` differs; give the changed file a higher revision"
    )]
    Conflict { revision: u64, differs: String },
    #[error("the register refuses the file")]
    Refused(#[source] Refusal),
    #[error("the register answered out of turn: {reply}")]
    Unexpected { reply: String },
    #[error("the resources changed {TRIES_MAX} times while the file was checked; it is tried again")]
    Restless,
    #[error("what the file declares could not be proposed")]
    Propose(#[from] ProposeError),
}

/// Brings it in as a whole, or changes nothing.
pub async fn declare(member: &Member, loaded: &Loaded) -> Result<FileOutcome, FileError> {
    let config = &loaded.config;
    // Alone, every file is newer than the one before; with others, the revision says so.
    let revision = config.resources_revision.filter(|_| member.is_shared());
    if member.is_shared() && revision.is_none() && config.cluster.names_others() {
        return Ok(FileOutcome::Nothing);
    }
    let secrets = |reference: &SecretRef| loaded.secrets.get(reference).map(|secret| secret.reveal().to_owned());
    let file = FileResources::new(&config.resources, &secrets).map_err(FileError::Problems)?;
    for _try in 0..TRIES_MAX {
        let Checked { shape, .. } = match check(member, &file) {
            Ok(checked) => checked,
            Err(problems) => {
                // A file that is older need not go together with what came after it.
                let current = member.0.consensus.read(|register| register.file().revision);
                match (revision, current) {
                    (Some(own), Some(cluster)) if own < cluster => return Ok(older(own, cluster)),
                    (_, _) => return Err(FileError::Problems(problems)),
                }
            }
        };
        let mut reply = Reply::Unchanged;
        for act in file.acts(revision, shape, member.0.introduction.me) {
            reply = propose(member, act).await?;
            if reply != Reply::Staged {
                break;
            }
        }
        match reply {
            Reply::Reconciled { put, removed, taken } => {
                info!(put, removed, taken, revision, "what the file declares is in force");
                return Ok(FileOutcome::InForce);
            }
            Reply::Unchanged => return Ok(FileOutcome::InForce),
            Reply::Older { current } => return Ok(older(revision.unwrap_or_default(), current)),
            Reply::Conflict { .. } => {
                let differs = member.0.consensus.read(|register| difference(register, &file));
                let differs = differs.unwrap_or_else(|| "a resource".to_owned());
                return Err(FileError::Conflict { revision: revision.unwrap_or_default(), differs });
            }
            Reply::Refused(Refusal::Moved { .. } | Refusal::PartMissing { .. }) => {}
            Reply::Refused(refusal) => return Err(FileError::Refused(refusal)),
            Reply::Done
            | Reply::Incarnation(_)
            | Reply::Put { .. }
            | Reply::Deleted
            | Reply::Revoked { .. }
            | Reply::Told(_)
            | Reply::Staged => return Err(FileError::Unexpected { reply: format!("{reply:?}") }),
        }
    }
    Err(FileError::Restless)
}

fn check(member: &Member, file: &FileResources) -> Result<Checked, Problems> {
    // Kinds and addresses were checked when the file was loaded.
    let policy = Policy { allow_private_providers: true, check_provider: &|_name, _spec, _problems| {} };
    member.0.consensus.read(|register| validate(register, Change::File(file), policy))
}

fn older(own: u64, cluster: u64) -> FileOutcome {
    warn!(own, cluster, "the cluster has a newer revision of the resources; this node uses it, and not its file");
    FileOutcome::Older { own, cluster }
}

/// Proposes, and waits until this node has applied it: what is checked next is checked against it.
async fn propose(member: &Member, act: Act) -> Result<Reply, FileError> {
    let consensus = &member.0.consensus;
    let accepted = consensus.propose(act, member.author("file"), WITHIN).await?;
    let mut progress = consensus.progress();
    let index = accepted.index;
    // Time over: the check against an older state is refused, and made again.
    let _late = tokio::time::timeout(WITHIN, progress.wait_for(|progress| progress.has(index))).await.is_err();
    Ok(accepted.reply)
}

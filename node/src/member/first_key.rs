//! The first key of the admin API, made when the cluster is, for whoever can read the founder's data directory.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster::directory::key::KeyHash;
use cluster::register::{Act, Expected, Kind, Reply};
use tracing::{info, warn};

use super::Member;
use crate::admin::key_text::new_key;
use crate::config::reload::describe;

/// In the data directory.
pub const FILE: &str = "admin.key";

/// The key's name, in the audit and everywhere else.
const NAME: &str = "first-admin";

const WITHIN: Duration = Duration::from_secs(10);

pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// The text is on the disk before the cluster knows the key: a crash in between leaves a file without a key, which the
/// next start mends.
pub async fn make(member: &Member) {
    let file = path(member.data_dir());
    let exists = member.0.consensus.read(|register| register.get(Kind::Keys, NAME).is_some());
    if exists {
        return;
    }
    let text = match written(&file) {
        Ok(text) => text,
        Err(error) => return warn!(file = %file.display(), %error, "the first admin key cannot be written"),
    };
    let hash = KeyHash::of(&text).to_text();
    let act = Act::Put {
        kind: Kind::Keys,
        name: NAME.to_owned(),
        spec: format!(r#"{{"hash":"{hash}","roles":["admin"]}}"#),
        expected: Expected::Absent,
        shape: None,
    };
    match member.0.consensus.propose(act, member.author("bootstrap"), WITHIN).await {
        Ok(accepted) if matches!(accepted.reply, Reply::Put { .. }) => {
            info!(file = %file.display(), "the first admin key is in this file");
        }
        Ok(accepted) => warn!(reply = ?accepted.reply, "the first admin key was not taken"),
        Err(error) => warn!(error = describe(&error), "the first admin key was not taken"),
    }
}

fn written(file: &Path) -> std::io::Result<String> {
    if let Ok(text) = std::fs::read_to_string(file)
        && !text.trim().is_empty()
    {
        return Ok(text.trim().to_owned());
    }
    let text = new_key(&mut getrandom::fill).map_err(|error| std::io::Error::other(error.to_string()))?;
    let mut opened = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    writeln!(opened, "{text}")?;
    opened.sync_all()?;
    Ok(text)
}

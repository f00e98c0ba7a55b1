//! One node: a process with its own file, data directory and addresses.

use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

/// Lines of a node's log that are shown when something went wrong.
const LAST_LINES: usize = 12;

/// Where a node listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub api: SocketAddr,
    pub admin: SocketAddr,
    pub peer: SocketAddr,
    pub gossip: SocketAddr,
}

/// Dropped, its process is killed.
pub struct Node {
    pub name: String,
    pub addresses: Addresses,
    folder: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// Writes its file: `config`, for nobody else to read, since a secret is in it.
    pub fn new(folder: PathBuf, name: String, addresses: Addresses, config: &str) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).create(&folder)?;
        let node = Self { name, addresses, folder, child: None };
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(node.config())?;
        file.write_all(config.as_bytes())?;
        Ok(node)
    }

    pub fn config(&self) -> PathBuf {
        self.folder.join("gateway.yaml")
    }

    pub fn data_dir(folder: &Path) -> PathBuf {
        folder.join("data")
    }

    /// The first key of the admin API, if this node made it.
    pub fn admin_key(&self) -> PathBuf {
        Self::data_dir(&self.folder).join("admin.key")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Starts this executable as a node. The process is in a group of its own, so that ctrl-C reaches only who started
    /// it; its standard input ends with that process, and it with its standard input.
    pub fn start(&mut self) -> io::Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let child = Command::new(std::env::current_exe()?)
            .args(["run", "--until-input-ends", "--config"])
            .arg(self.config())
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// As `kill -9`: the process does nothing more.
    pub async fn kill(&mut self) -> io::Result<()> {
        match self.child.take() {
            Some(mut child) => child.kill().await,
            None => Ok(()),
        }
    }

    /// Lets it finish what runs, and kills it if that takes longer than `within`.
    pub async fn stop(&mut self, within: Duration) {
        let Some(mut child) = self.child.take() else { return };
        drop(child.stdin.take());
        if !matches!(tokio::time::timeout(within, child.wait()).await, Ok(Ok(_ended))) {
            // It has ended meanwhile, or does now.
            let _gone = child.kill().await;
        }
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default();
        format!("the log of {} ends with:\n  {}", self.name, last.join("\n  "))
    }
}

//! A changed file becomes the running configuration: whole, or not at all.
//!
//! The files are looked at once a second rather than watched by the kernel: that sees editors' renames, Kubernetes'
//! swaps of a symbolic link, network file systems and containers alike. SIGHUP has them read at once.

use super::load::{LoadError, Loaded, load};
use crate::telemetry::metrics::CONFIG_RELOADS;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::{error, info, warn};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Finds out when the configuration has changed.
pub struct Reloader {
    path: PathBuf,
    lookup: fn(&str) -> Option<String>,
    running: Arc<Loaded>,
    looks: Interval,
    seen: Sight,
}

impl Reloader {
    /// `running` was loaded from `path` with `lookup` and is in force.
    pub fn new(path: PathBuf, lookup: fn(&str) -> Option<String>, running: Arc<Loaded>) -> Self {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { path, lookup, running, looks, seen: Sight::default() }
    }

    /// Returns when the files hold another configuration that passes every check. One that does not is logged, and the
    /// running one stays. Dropped early it forgets nothing but a reading under way.
    pub async fn changed(&mut self) -> Arc<Loaded> {
        loop {
            self.looks.tick().await;
            let files = self.running.files.clone();
            let Ok(now) = tokio::task::spawn_blocking(move || fingerprints(&files)).await else { continue };
            if self.seen.is_news(now)
                && let Read::Changed(loaded) = self.read().await
            {
                return loaded;
            }
        }
    }

    /// Reads the files now, because someone asked for it. None when nothing is to be put in force.
    pub async fn asked(&mut self) -> Option<Arc<Loaded>> {
        match self.read().await {
            Read::Changed(loaded) => Some(loaded),
            Read::Refused => None,
            Read::Unchanged => {
                metrics::counter!(CONFIG_RELOADS, "outcome" => "unchanged").increment(1);
                info!("configuration is unchanged");
                None
            }
        }
    }

    async fn read(&self) -> Read {
        let path = self.path.clone();
        let lookup = self.lookup;
        let Ok(read) = tokio::task::spawn_blocking(move || load(&path, &lookup)).await else { return Read::Refused };
        match read {
            Err(reason) => {
                metrics::counter!(CONFIG_RELOADS, "outcome" => "refused").increment(1);
                log_refusal(&reason);
                Read::Refused
            }
            Ok(loaded) if loaded.hash == self.running.hash && loaded.secrets == self.running.secrets => Read::Unchanged,
            Ok(mut loaded) => {
                for section in loaded.config.keep_running(&self.running.config) {
                    warn!(section, "configuration: this section changes at the next restart");
                }
                Read::Changed(Arc::new(loaded))
            }
        }
    }

    /// `loaded` is in force from now on.
    pub fn applied(&mut self, loaded: Arc<Loaded>) {
        metrics::counter!(CONFIG_RELOADS, "outcome" => "applied").increment(1);
        info!(hash = loaded.hash, revision = loaded.config.resources_revision, "configuration is in force");
        self.running = loaded;
        // It may name other files, and they may have changed since they were read.
        self.seen = Sight::default();
    }

    /// `loaded` passed the checks but could not be put in force; what ran still runs.
    pub fn refused(&self, reason: &dyn std::error::Error) {
        metrics::counter!(CONFIG_RELOADS, "outcome" => "refused").increment(1);
        error!(error = describe(reason), "configuration refused; the running one stays");
    }
}

enum Read {
    Changed(Arc<Loaded>),
    Unchanged,
    Refused,
}

fn log_refusal(reason: &LoadError) {
    match reason {
        LoadError::Invalid(report) => {
            for problem in &report.problems {
                let (line, column, path) = (problem.line, problem.column, &problem.path);
                error!(file = report.file, line, column, %path, "configuration: {}", problem.message);
            }
            error!(problems = report.problems.len(), "configuration refused; the running one stays");
        }
        LoadError::Unreadable { .. } | LoadError::TooLarge { .. } => {
            error!(error = describe(reason), "configuration refused; the running one stays");
        }
    }
}

/// An error with its causes, on one line.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What tells two states of a file apart without reading it. Links are followed, so that exchanging one is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

type Fingerprints = Vec<Option<Fingerprint>>;

fn fingerprints(files: &[PathBuf]) -> Fingerprints {
    files.iter().map(|file| fingerprint(file)).collect()
}

fn fingerprint(file: &Path) -> Option<Fingerprint> {
    let found = std::fs::metadata(file).ok()?;
    let changed = (found.mtime(), found.mtime_nsec());
    Some(Fingerprint { device: found.dev(), inode: found.ino(), bytes: found.size(), changed })
}

/// What the files looked like. A change counts once two looks in a row agree on it: until then someone is writing.
#[derive(Default)]
struct Sight {
    settled: Option<Fingerprints>,
    last: Option<Fingerprints>,
}

impl Sight {
    /// True once for each change, and at the first look: nobody saw what happened since the files were read.
    fn is_news(&mut self, now: Fingerprints) -> bool {
        let first = self.settled.is_none();
        let news = first || (self.settled.as_ref() != Some(&now) && self.last.as_ref() == Some(&now));
        if news {
            self.settled = Some(now.clone());
        }
        self.last = Some(now);
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const BEFORE: &str = "auth: none\nproviders: { openai: { api_key: none } }\n";

    fn lookup(_: &str) -> Option<String> {
        None
    }

    struct Files {
        folder: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            let files = Self { folder: tempfile::tempdir().unwrap() };
            files.write("gateway.yaml", BEFORE);
            files
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// As editors do it: beside, then renamed into place.
        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.path("beside"), text).unwrap();
            std::fs::rename(self.path("beside"), self.path(name)).unwrap();
        }

        fn reloader(&self, name: &str) -> Reloader {
            let loaded = Arc::new(load(&self.path(name), &lookup).unwrap());
            Reloader::new(self.path(name), lookup, loaded)
        }
    }

    fn providers(loaded: &Loaded) -> Vec<&str> {
        loaded.config.resources.providers.keys().map(String::as_str).collect()
    }

    const AFTER: &str = "auth: none\nproviders: { openai: { api_key: none }, groq: { api_key: none } }\n";

    #[tokio::test(start_paused = true)]
    async fn a_renamed_file_is_seen() {
        let files = Files::new();
        let mut reloader = files.reloader("gateway.yaml");

        files.write("gateway.yaml", AFTER);

        assert_eq!(providers(&*reloader.changed().await), ["groq", "openai"]);
    }

    /// Kubernetes mounts a link to a link to a folder, and exchanges the inner link.
    #[tokio::test(start_paused = true)]
    async fn an_exchanged_link_is_seen() {
        let files = Files::new();
        for (version, text) in [("v1", BEFORE), ("v2", AFTER)] {
            std::fs::create_dir(files.path(version)).unwrap();
            std::fs::write(files.path(version).join("gateway.yaml"), text).unwrap();
        }
        symlink("v1", files.path("..data")).unwrap();
        symlink("..data/gateway.yaml", files.path("mounted.yaml")).unwrap();
        let mut reloader = files.reloader("mounted.yaml");

        symlink("v2", files.path("..next")).unwrap();
        std::fs::rename(files.path("..next"), files.path("..data")).unwrap();

        assert_eq!(providers(&*reloader.changed().await), ["groq", "openai"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_secret_is_a_change() {
        let files = Files::new();
        files.write("key", "first\n");
        let text = format!(
            "auth: none\nproviders: {{ openai: {{ api_key: {{ file: {} }} }} }}\n",
            files.path("key").display()
        );
        files.write("gateway.yaml", &text);
        let mut reloader = files.reloader("gateway.yaml");

        files.write("key", "second\n");
        let loaded = reloader.changed().await;

        let reference = loaded.config.resources.providers["openai"].api_key.as_ref().unwrap();
        assert_eq!(loaded.secrets.get(reference).unwrap().reveal(), "second");
    }

    /// What is wrong is refused whole; the next right file is taken.
    #[tokio::test(start_paused = true)]
    async fn a_wrong_file_changes_nothing() {
        let files = Files::new();
        let mut reloader = files.reloader("gateway.yaml");

        files.write("gateway.yaml", "auth: none\nproviders: { openai: { api_kye: none } }\n");
        assert!(reloader.asked().await.is_none());
        std::fs::remove_file(files.path("gateway.yaml")).unwrap();
        assert!(reloader.asked().await.is_none());
        files.write("gateway.yaml", BEFORE);
        assert!(reloader.asked().await.is_none(), "this is what runs");
        files.write("gateway.yaml", AFTER);
        let loaded = reloader.asked().await.expect("another configuration");

        reloader.applied(loaded);
        assert!(reloader.asked().await.is_none(), "this is what runs now");
    }

    #[tokio::test(start_paused = true)]
    async fn what_needs_a_restart_keeps_its_running_value() {
        let files = Files::new();
        let mut reloader = files.reloader("gateway.yaml");

        files.write(
            "gateway.yaml",
            &format!("{AFTER}listen: {{ api: 127.0.0.1:9999 }}\ntelemetry: {{ level: debug }}\n"),
        );
        let loaded = reloader.changed().await;

        assert_eq!(loaded.config.listen.api.port(), 8080);
        assert_eq!(loaded.config.telemetry.level, "debug");
        assert_eq!(providers(&loaded), ["groq", "openai"]);
    }

    #[test]
    fn a_change_counts_when_nobody_is_writing_any_more() {
        let file = |bytes| vec![Some(Fingerprint { device: 1, inode: 2, bytes, changed: (3, 4) })];
        let mut sight = Sight::default();

        assert!(sight.is_news(file(10)), "the first look");
        assert!(!sight.is_news(file(10)));
        assert!(!sight.is_news(file(5)), "half a file, perhaps");
        assert!(!sight.is_news(file(12)));
        assert!(sight.is_news(file(12)));
        assert!(!sight.is_news(file(12)), "told once");
        assert!(!sight.is_news(vec![None]));
        assert!(sight.is_news(vec![None]), "a file that is gone is a change too");
    }
}

//! The register as its users see it: what commands do, what they are refused for, and what requests then read.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]
#![expect(clippy::wildcard_enum_match_arm, reason = "a test wants one answer and fails with any other")]

mod file;
mod keys;
mod lives;
mod publishing;
mod replay;
mod resources;
mod validation;

use std::time::Duration;

use cluster::directory::key::KeyHash;
use cluster::directory::problems::Problems;
use cluster::directory::resources::Resources;
use cluster::directory::secret::{SecretRef, SecretSource};
use cluster::id::NodeId;
use cluster::register::{
    Act, Applied, Author, Command, Expected, FileResources, KeyRef, Kind, MemberInfo, Policy, Refusal, Register, Reply,
    Token,
};

/// A register and the log that made it.
#[derive(Default)]
struct World {
    register: Register,
    index: u64,
}

fn node(number: u64) -> NodeId {
    NodeId::new(number)
}

fn author() -> Author {
    Author { who: "root".to_owned(), node: node(1), request_id: "req-1".to_owned() }
}

fn command(act: Act) -> Command {
    Command::new(author(), Duration::from_secs(7), act)
}

fn member(name: &str) -> MemberInfo {
    let peer = format!("{name}:7947");
    MemberInfo { name: name.to_owned(), zone: None, peer, format: 1, version: "0.1.0".to_owned() }
}

fn hash(text: &str) -> KeyHash {
    KeyHash::of(text)
}

/// A key's spec, found by the text; `more` are further fields.
fn key_spec(text: &str, more: &str) -> String {
    format!(r#"{{"hash":"{}"{more}}}"#, hash(text).to_text())
}

fn put(kind: Kind, name: &str, spec: &str) -> Act {
    let (name, spec) = (name.to_owned(), spec.to_owned());
    Act::Put { kind, name, spec, expected: Expected::Any, shape: None }
}

fn delete(kind: Kind, name: &str) -> Act {
    Act::Delete { kind, name: name.to_owned(), expected: Expected::Any, shape: None }
}

fn revoke(name: &str) -> Act {
    Act::Revoke { key: KeyRef::Name(name.to_owned()), cut: false }
}

/// Stands in for the node: knows one variable and takes texts as they are.
fn secrets(secret: &SecretRef) -> Option<String> {
    match secret.source() {
        SecretSource::Text(text) if text == "${WEB_KEY}" => Some("w".repeat(40)),
        SecretSource::Text(text) => Some(text.clone()),
        SecretSource::File(_) | SecretSource::Local { .. } => None,
    }
}

fn declared(yaml: &str) -> FileResources {
    let resources: Resources = serde_saphyr::from_str(yaml).unwrap();
    FileResources::new(&resources, &secrets).unwrap()
}

fn policy() -> Policy<'static> {
    Policy { allow_private_providers: false, check_provider: &|_name, _spec, _problems: &mut Problems| {} }
}

impl World {
    fn apply(&mut self, act: Act) -> Applied {
        self.apply_command(&command(act))
    }

    fn apply_command(&mut self, command: &Command) -> Applied {
        self.index += 1;
        self.register.apply(self.index, command)
    }

    fn reply(&mut self, act: Act) -> Reply {
        self.apply(act).reply
    }

    fn with_token(&mut self, act: Act, incarnation: u64, seq: u64, floor: u64) -> Reply {
        self.apply_command(&command(act).with_token(Token { incarnation, seq, floor })).reply
    }

    /// To be changed, and not refused.
    fn put(&mut self, kind: Kind, name: &str, spec: &str) -> u64 {
        match self.reply(put(kind, name, spec)) {
            Reply::Put { version } => version,
            other => panic!("{kind} {name}: {other:?}"),
        }
    }

    fn refusal(&mut self, act: Act) -> Refusal {
        match self.reply(act) {
            Reply::Refused(refusal) => refusal,
            other => panic!("wanted a refusal, found {other:?}"),
        }
    }

    /// All parts; the last reply.
    fn reconcile(&mut self, revision: Option<u64>, file: &FileResources) -> Reply {
        let acts: Vec<_> = file.acts(revision, self.register.shape_version(), node(1)).collect();
        acts.into_iter().map(|act| self.reply(act)).last().unwrap()
    }

    fn file(&mut self, revision: u64, yaml: &str) -> Reply {
        self.reconcile(Some(revision), &declared(yaml))
    }

    /// Whether requests find the key.
    fn accepts(&self, text: &str) -> bool {
        self.register.directory(None).key(&hash(text)).is_some()
    }
}

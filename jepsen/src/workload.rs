//! Clients that make keys and revoke them, at any node, and write down what came of it.

use std::time::Duration;

use cluster::consensus::{Consensus, ProposeError};
use cluster::directory::key::KeyHash;
use cluster::id::NodeId;
use cluster::register::{Act, Author, Expected, KeyRef, Kind, Reply};

use crate::history::Outcome;

/// How long a client waits for its command.
const WITHIN: Duration = Duration::from_secs(3);

/// How long for the barrier: it may have to wait until a node cut off serves no more.
const BARRIER_WITHIN: Duration = Duration::from_secs(12);

fn author(node: NodeId) -> Author {
    Author { who: "client".to_owned(), node, request_id: String::new() }
}

/// Makes a key. The same name is never used twice.
pub async fn create(consensus: &Consensus, key: &str) -> (Outcome, String) {
    let spec = format!(r#"{{"hash":"{}"}}"#, KeyHash::of(key).to_text());
    let act = Act::Put { kind: Kind::Keys, name: key.to_owned(), spec, expected: Expected::Absent, shape: None };
    match consensus.propose(act, author(consensus.me()), WITHIN).await {
        Ok(accepted) => {
            if let Reply::Put { version } = accepted.reply {
                return (Outcome::Ok, format!("version {version}"));
            }
            (Outcome::Fail, format!("{:?}", accepted.reply))
        }
        Err(error) => failed(&error),
    }
}

/// Revokes a key, and returns when nobody accepts it any more.
pub async fn revoke(consensus: &Consensus, key: &str) -> (Outcome, String) {
    let act = Act::Revoke { key: KeyRef::Name(key.to_owned()), cut: false };
    match consensus.propose(act, author(consensus.me()), WITHIN).await {
        Ok(accepted) if matches!(accepted.reply, Reply::Revoked { .. }) => {
            match consensus.barrier(accepted.index, BARRIER_WITHIN).await {
                Ok(()) => (Outcome::Ok, "revoked".to_owned()),
                // It is revoked, but someone may serve it yet.
                Err(error) => (Outcome::Info, error.to_string()),
            }
        }
        Ok(accepted) => (Outcome::Fail, format!("{:?}", accepted.reply)),
        Err(error) => failed(&error),
    }
}

fn failed(error: &ProposeError) -> (Outcome, String) {
    let outcome = match error {
        ProposeError::NotProposed { .. } | ProposeError::NoLeader { .. } => Outcome::Fail,
        ProposeError::Unknown { .. } => Outcome::Info,
    };
    (outcome, error.to_string())
}

//! What makes a repeated command answered once: the replies of each node's present life.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::command::{Refusal, Reply, Token};

/// Replies kept for one life of a node. Beyond it its commands are refused until it raises its floor.
pub const TOKENS_MAX: usize = 4096;

/// By incarnation, those that live.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Tokens(BTreeMap<u64, Window>);

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
struct Window {
    floor: u64,
    replies: BTreeMap<u64, Reply>,
}

impl Tokens {
    pub fn open(&mut self, incarnation: u64) {
        self.0.insert(incarnation, Window::default());
    }

    /// Every later command of this life is refused.
    pub fn freeze(&mut self, incarnation: u64) {
        self.0.remove(&incarnation);
    }

    /// `Ok`: the command is new and its reply is to be kept with [`Tokens::keep`]. `Err`: what to answer instead.
    pub fn admit(&mut self, token: Token) -> Result<(), Reply> {
        let Token { incarnation, seq, floor } = token;
        let Some(window) = self.0.get_mut(&incarnation) else {
            return Err(Reply::Refused(Refusal::Frozen { incarnation }));
        };
        if floor > window.floor {
            window.floor = floor;
            window.replies = window.replies.split_off(&floor);
        }
        if let Some(reply) = window.replies.get(&seq) {
            return Err(reply.clone());
        }
        if seq < window.floor {
            return Err(Reply::Refused(Refusal::Forgotten { seq, floor: window.floor }));
        }
        if window.replies.len() >= TOKENS_MAX {
            return Err(Reply::Refused(Refusal::TooManyOpen { max: TOKENS_MAX as u64 }));
        }
        Ok(())
    }

    pub fn keep(&mut self, token: Token, reply: &Reply) {
        if let Some(window) = self.0.get_mut(&token.incarnation) {
            window.replies.insert(token.seq, reply.clone());
        }
    }
}

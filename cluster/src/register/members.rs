//! Which nodes belong to the cluster, and which life of each is the present one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::command::{MemberInfo, Refusal};
use super::tokens::Tokens;
use crate::id::{Incarnation, NodeId};

/// Nodes of a cluster: each is asked before a revocation returns, and gossip grows with their square.
pub const MEMBERS_MAX: usize = 64;

/// A node that belongs to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Member {
    pub info: MemberInfo,
    /// Of its present life; [`Incarnation::default`] before the first.
    pub incarnation: Incarnation,
    nonce: [u8; 16],
    /// The serial of the command that admitted it.
    pub admitted: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Members(BTreeMap<NodeId, Member>);

impl Members {
    pub fn get(&self, node: NodeId) -> Option<&Member> {
        self.0.get(&node)
    }

    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.0.iter().map(|(node, member)| (*node, member))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `Ok(false)`: it was a member and said the same of itself.
    pub(super) fn admit(&mut self, serial: u64, node: NodeId, info: &MemberInfo) -> Result<bool, Refusal> {
        if let Some(member) = self.0.get_mut(&node) {
            let news = member.info != *info;
            member.info.clone_from(info);
            return Ok(news);
        }
        if self.0.len() >= MEMBERS_MAX {
            return Err(Refusal::TooMany { what: "members".to_owned(), max: MEMBERS_MAX as u64 });
        }
        let info = info.clone();
        self.0.insert(node, Member { info, incarnation: Incarnation::default(), nonce: [0; 16], admitted: serial });
        Ok(true)
    }

    /// `false`: it was none.
    pub(super) fn remove(&mut self, node: NodeId, tokens: &mut Tokens) -> bool {
        let removed = self.0.remove(&node);
        if let Some(member) = &removed {
            tokens.freeze(member.incarnation.get());
        }
        removed.is_some()
    }

    /// The same nonce is the same life, answered as before; another ends the life before it.
    pub(super) fn started(
        &mut self,
        serial: u64,
        node: NodeId,
        nonce: [u8; 16],
        info: &MemberInfo,
        tokens: &mut Tokens,
    ) -> Result<(Incarnation, bool), Refusal> {
        let member = self.0.get_mut(&node).ok_or(Refusal::NotMember { node })?;
        if member.incarnation != Incarnation::default() && member.nonce == nonce {
            return Ok((member.incarnation, false));
        }
        tokens.freeze(member.incarnation.get());
        *member =
            Member { info: info.clone(), incarnation: Incarnation::new(serial), nonce, admitted: member.admitted };
        tokens.open(serial);
        Ok((member.incarnation, true))
    }
}

//! What a member shows of its cluster.

use cluster::consensus::types::Metrics;
use cluster::id::NodeId;
use cluster::membership::{Members, Membership, NodeState};

use super::{Inner, Member, gossip};
use crate::admin::status::cluster::{ClusterRole, ClusterStatus, MemberState, MemberStatus};

impl Member {
    pub fn status(&self) -> ClusterStatus {
        let inner = &*self.0;
        let metrics = inner.consensus.metrics().borrow().clone();
        let progress = *inner.consensus.progress().borrow();
        let home = inner.bootstrap.home();
        let revision = inner.consensus.read(|register| register.file().revision);
        let fresh = gossip::fresh_age(inner);
        ClusterStatus {
            cluster: home.map(|home| home.cluster.to_string()),
            node: inner.introduction.me.to_string(),
            incarnation: inner.consensus.incarnation().get(),
            role: role(&metrics, inner.introduction.me, home.is_some()),
            leader: metrics.current_leader.map(|leader| name_of(inner, leader)),
            term: metrics.current_term,
            last_log: metrics.last_log_index.unwrap_or_default(),
            applied: progress.applied.unwrap_or_default(),
            fresh_millis: fresh.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            not_granted: inner.consensus.not_granted().map(|why| why.to_string()),
            resources_revision: revision,
            waits_for: self.waits_for(),
            members: members(inner, &metrics, progress.applied),
        }
    }
}

fn role(metrics: &Metrics, me: NodeId, at_home: bool) -> ClusterRole {
    use cluster::consensus::RaftRole;
    let member = metrics.membership_config.nodes().any(|(node, _place)| *node == me);
    match RaftRole::of(metrics) {
        _any if !at_home || !member => ClusterRole::Waiting,
        RaftRole::Leader => ClusterRole::Leader,
        RaftRole::Candidate => ClusterRole::Candidate,
        RaftRole::Learner => ClusterRole::Learner,
        RaftRole::Follower => ClusterRole::Follower,
    }
}

/// What it is called, or its id where nobody has said.
fn name_of(inner: &Inner, node: NodeId) -> String {
    let registered =
        inner.consensus.read(|register| register.members().get(node).map(|member| member.info.name.clone()));
    registered.unwrap_or_else(|| node.to_string())
}

fn members(inner: &Inner, metrics: &Metrics, applied_here: Option<u64>) -> Vec<MemberStatus> {
    let voters: Vec<NodeId> = metrics.membership_config.voter_ids().collect();
    let gossip = inner.gossip.get().map(Membership::members);
    let gossip = gossip.as_ref().map(|members| members.borrow().clone());
    let me = inner.introduction.me;
    let last = metrics.last_log_index.unwrap_or_default();
    let mut members: Vec<MemberStatus> = metrics
        .membership_config
        .nodes()
        .map(|(node, place)| {
            let heard = gossip.as_deref().and_then(|members: &Members| members.get(*node));
            let told = heard.map(|member| &member.told);
            let info = inner.consensus.read(|register| register.members().get(*node).map(|member| member.info.clone()));
            let info = info.unwrap_or_default();
            let applied = if *node == me { applied_here } else { told.map(|told| told.applied) };
            MemberStatus {
                name: if info.name.is_empty() { place.name.clone() } else { info.name },
                node: node.to_string(),
                state: told.map_or(alone_state(inner, *node), |told| state(told.state)),
                alive: *node == me || heard.is_some_and(|member| member.alive),
                voter: voters.contains(node),
                leader: metrics.current_leader == Some(*node),
                applied,
                lag: applied.map(|applied| last.saturating_sub(applied)),
                zone: info.zone.or_else(|| place.zone.clone()),
                version: info.version,
                peer: if info.peer.is_empty() { place.address.clone() } else { info.peer },
            }
        })
        .collect();
    members.sort_by(|one, other| one.name.cmp(&other.name));
    members
}

/// Of a member that nothing was heard of; a node that is alone hears nobody and is well.
fn alone_state(inner: &Inner, node: NodeId) -> MemberState {
    if node == inner.introduction.me && inner.phase.borrow().waits_for().is_none() {
        MemberState::Ready
    } else {
        MemberState::Unknown
    }
}

fn state(told: NodeState) -> MemberState {
    match told {
        NodeState::Joining => MemberState::Joining,
        NodeState::Ready => MemberState::Ready,
        NodeState::Draining | NodeState::Left => MemberState::Draining,
    }
}

//! What a node knows of its cluster, as operators see it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// The cluster as this node sees it at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterStatus {
    /// The same on every node. None while this node belongs to none yet.
    pub cluster: Option<String>,
    /// This node's id. Changes only with its data directory.
    pub node: String,
    /// Which life of this node's process it is; grows with each start. 0 before the cluster knows of it.
    pub incarnation: u64,
    pub role: ClusterRole,
    /// The name of the node that decides; None while one is being elected, or cannot be.
    pub leader: Option<String>,
    /// Grows with each election.
    pub term: u64,
    /// The last change this node has written down.
    pub last_log: u64,
    /// The last change that is in force here.
    pub applied: u64,
    /// Milliseconds since it was last certain that nothing newer is in force. Beyond `cluster.stale_max` this node
    /// answers 503. None: not yet.
    pub fresh_millis: Option<u64>,
    /// Why the leader does not grant this node to serve what it knows, while that is so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub not_granted: Option<String>,
    /// `resources_revision` of the file that is in force in the cluster.
    pub resources_revision: Option<u64>,
    /// What the node waits for, while it is not ready.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub waits_for: Option<String>,
    pub members: Vec<MemberStatus>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClusterRole {
    Leader,
    Follower,
    /// Stands for election.
    Candidate,
    /// Has everything and decides nothing.
    Learner,
    /// Belongs to no cluster yet.
    Waiting,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemberStatus {
    pub name: String,
    /// The node's id.
    pub node: String,
    pub state: MemberState,
    /// Whether it was heard of lately.
    pub alive: bool,
    /// Whether its word counts in elections and decisions.
    pub voter: bool,
    /// Whether it decides, as far as is known here. Two nodes may have one name; this is of one of them.
    #[serde(default)]
    pub leader: bool,
    /// The last change in force there, as far as is known here.
    pub applied: Option<u64>,
    /// How many changes it is behind, as far as is known here.
    pub lag: Option<u64>,
    pub zone: Option<String>,
    pub version: String,
    /// `host:port` for other nodes.
    pub peer: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Not ready yet.
    Joining,
    Ready,
    /// Takes no new requests and will end.
    Draining,
    /// Nothing was heard of it since this node started.
    Unknown,
}

impl ClusterRole {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Waiting => "waiting",
        }
    }
}

impl MemberState {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Unknown => "unknown",
        }
    }
}

impl MemberStatus {
    /// What stands above the rows.
    pub const HEADING: [&str; 8] = ["name", "state", "vote", "lag", "zone", "version", "peer", "node"];

    /// For a person.
    pub fn row(&self) -> Vec<String> {
        let vote = match (self.leader, self.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        vec![
            self.name.clone(),
            if self.alive { self.state.name() } else { "dead" }.to_owned(),
            vote.to_owned(),
            self.lag.map_or_else(|| "?".to_owned(), |lag| lag.to_string()),
            self.zone.clone().unwrap_or_else(|| "-".to_owned()),
            self.version.clone(),
            self.peer.clone(),
            self.node.clone(),
        ]
    }
}

impl ClusterStatus {
    /// What works worse than it could, one thing a line.
    pub fn degraded(&self) -> Vec<String> {
        let leader = self.leader.is_none().then(|| "the cluster has no leader".to_owned());
        let dead = self.members.iter().filter(|member| !member.alive);
        leader.into_iter().chain(dead.map(|member| format!("node {} is not heard of", member.name))).collect()
    }

    /// For a person: a name and a value a line.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = vec![("cluster", self.cluster_line()), ("log", self.log_line())];
        if let Some(what) = &self.waits_for {
            rows.push(("waits for", what.clone()));
        }
        let lines = table(&self.member_rows());
        rows.extend(lines.into_iter().enumerate().map(|(at, line)| (if at == 0 { "members" } else { "" }, line)));
        rows
    }

    fn cluster_line(&self) -> String {
        let short = |id: &str| id.get(..8).unwrap_or(id).to_owned();
        let cluster = self.cluster.as_deref().map_or_else(|| "none yet".to_owned(), short);
        let leader = self.leader.as_deref().unwrap_or("none");
        let role = self.role.name();
        format!(
            "{cluster}, {role} (leader {leader}, term {}), life {} of node {}",
            self.term, self.incarnation, self.node
        )
    }

    fn log_line(&self) -> String {
        let mut line = format!("{} written, {} in force", self.last_log, self.applied);
        let fresh = match self.fresh_millis {
            Some(millis) => format!(", certain {}.{:01}s ago", millis / 1_000, millis % 1_000 / 100),
            None => ", not certain yet".to_owned(),
        };
        line.push_str(&fresh);
        // Writing to a String cannot fail.
        if let Some(why) = &self.not_granted {
            let _infallible = write!(line, " ({why})");
        }
        if let Some(revision) = self.resources_revision {
            let _infallible = write!(line, ", resources revision {revision}");
        }
        line
    }

    /// A heading, and a row a member.
    pub fn member_rows(&self) -> Vec<Vec<String>> {
        let heading = MemberStatus::HEADING.map(ToOwned::to_owned).to_vec();
        std::iter::once(heading).chain(self.members.iter().map(MemberStatus::row)).collect()
    }
}

/// Columns as wide as what stands in them, two spaces apart.
pub fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn cluster() -> ClusterStatus {
        let member = |name: &str, voter: bool| MemberStatus {
            name: name.to_owned(),
            node: format!("00000000000000{}", name.len()),
            state: MemberState::Ready,
            alive: true,
            voter,
            leader: name == "edge-1",
            applied: Some(41),
            lag: Some(1),
            zone: Some("a".to_owned()),
            version: "0.1.0".to_owned(),
            peer: format!("{name}:7947"),
        };
        ClusterStatus {
            cluster: Some("0123456789abcdef0123456789abcdef".to_owned()),
            node: "0000000000000006".to_owned(),
            incarnation: 5,
            role: ClusterRole::Follower,
            leader: Some("edge-1".to_owned()),
            term: 3,
            last_log: 42,
            applied: 42,
            fresh_millis: Some(1_250),
            not_granted: None,
            resources_revision: Some(7),
            waits_for: None,
            members: vec![member("edge-0", true), member("edge-1", true), member("edge-twelve", false)],
        }
    }

    #[test]
    fn a_person_sees_who_leads_and_who_lags() {
        let mut status = cluster();
        status.members[2].alive = false;
        status.members[2].lag = None;

        let rows: Vec<_> = status.rows().into_iter().map(|(name, value)| format!("{name}: {value}")).collect();

        assert_eq!(
            rows,
            [
                "cluster: 01234567, follower (leader edge-1, term 3), life 5 of node 0000000000000006",
                "log: 42 written, 42 in force, certain 1.2s ago, resources revision 7",
                "members: name         state  vote     lag  zone  version  peer              node",
                ": edge-0       ready  voter    1    a     0.1.0    edge-0:7947       000000000000006",
                ": edge-1       ready  leader   1    a     0.1.0    edge-1:7947       000000000000006",
                ": edge-twelve  dead   learner  ?    a     0.1.0    edge-twelve:7947  0000000000000011",
            ]
        );
        assert_eq!(status.degraded(), ["node edge-twelve is not heard of"]);
    }

    /// A node that lost its disk came back as a new one of the same name: both were marked.
    #[test]
    fn of_two_nodes_of_one_name_one_leads() {
        let mut status = cluster();
        status.members[0].name = "edge-1".to_owned();

        let votes: Vec<_> = status.member_rows().into_iter().map(|row| row[2].clone()).collect();

        assert_eq!(votes, ["vote", "voter", "leader", "learner"]);
    }

    #[test]
    fn a_node_without_a_cluster_says_what_it_waits_for() {
        let status = ClusterStatus {
            cluster: None,
            role: ClusterRole::Waiting,
            leader: None,
            fresh_millis: None,
            resources_revision: None,
            waits_for: Some("a promise of edge-2".to_owned()),
            members: Vec::new(),
            ..cluster()
        };

        let rows = status.rows();

        assert!(rows[0].1.starts_with("none yet, waiting (leader none"), "{rows:?}");
        assert_eq!(rows[1].1, "42 written, 42 in force, not certain yet");
        let status = ClusterStatus { not_granted: Some("another `stale_max`".to_owned()), ..status };
        assert_eq!(status.rows()[1].1, "42 written, 42 in force, not certain yet (another `stale_max`)");
        assert_eq!(rows[2], ("waits for", "a promise of edge-2".to_owned()));
        assert_eq!(status.degraded(), ["the cluster has no leader"]);
    }
}

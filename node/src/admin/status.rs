//! What `/status` shows and `llm-edge-agent status` prints.

pub mod cluster;

use cluster::ClusterStatus;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

/// A node at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub node: NodeStatus,
    pub version: String,
    pub uptime_seconds: u64,
    pub draining: bool,
    pub config: ConfigStatus,
    pub requests_in_flight: u64,
    pub providers: Vec<ProviderStatus>,
    pub cache: CacheStatus,
    /// None where this node shares nothing and remembers nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub name: String,
    pub zone: Option<String>,
    pub api: SocketAddr,
    pub admin: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Tells two files apart.
    pub hash: String,
    /// `resources_revision` of the file.
    pub revision: Option<u64>,
    pub routes: usize,
    pub keys: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderStatus {
    pub name: String,
    pub kind: String,
    pub breaker: BreakerStatus,
}

/// Closed means that traffic flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum BreakerStatus {
    Closed,
    HalfOpen,
    Open {
        seconds_left: u64,
    },
    /// The provider asked not to be called for a while.
    Throttled {
        seconds_left: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    pub entries: u64,
    pub bytes: u64,
    pub bytes_max: u64,
}

impl Status {
    /// What works worse than it could, one thing a line.
    pub fn degraded(&self) -> Vec<String> {
        let providers = self.providers.iter().filter_map(|provider| match provider.breaker {
            BreakerStatus::Closed => None,
            BreakerStatus::HalfOpen => Some(format!("provider {} is being probed", provider.name)),
            BreakerStatus::Open { .. } => Some(format!("provider {} is out of rotation", provider.name)),
            BreakerStatus::Throttled { .. } => Some(format!("provider {} throttles us", provider.name)),
        });
        providers.chain(self.cluster.iter().flat_map(ClusterStatus::degraded)).collect()
    }

    /// For a person at a terminal.
    pub fn table(&self) -> String {
        let mut rows = vec![
            ("node", self.node_line()),
            ("version", self.version.clone()),
            ("api", self.node.api.to_string()),
            ("admin", self.node.admin.to_string()),
            ("config", self.config_line()),
            ("in flight", requests(self.requests_in_flight)),
            ("cache", self.cache_line()),
        ];
        for (index, provider) in self.providers.iter().enumerate() {
            rows.push((if index == 0 { "providers" } else { "" }, self.provider_line(provider)));
        }
        rows.extend(self.cluster.iter().flat_map(ClusterStatus::rows));
        let mut table = String::new();
        for (name, value) in rows {
            // Writing to a String cannot fail.
            let _infallible = writeln!(table, "{name:<10}  {value}");
        }
        table
    }

    fn node_line(&self) -> String {
        let zone = self.node.zone.as_deref().map(|zone| format!(" in {zone}")).unwrap_or_default();
        let up = humantime::format_duration(Duration::from_secs(self.uptime_seconds));
        let draining = if self.draining { ", draining" } else { "" };
        format!("{}{zone}, up {up}{draining}", self.node.name)
    }

    fn config_line(&self) -> String {
        let revision = self.config.revision.map(|revision| format!(", revision {revision}")).unwrap_or_default();
        let count = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
        let (routes, keys) = (count(self.config.routes, "route"), count(self.config.keys, "key"));
        format!("{}{revision}, {routes}, {keys}", self.config.hash)
    }

    fn cache_line(&self) -> String {
        let size = |bytes| bytesize::ByteSize(bytes).display().iec();
        format!("{} answers, {} of {}", self.cache.entries, size(self.cache.bytes), size(self.cache.bytes_max))
    }

    fn provider_line(&self, provider: &ProviderStatus) -> String {
        let width = self.providers.iter().map(|provider| provider.name.len()).max().unwrap_or_default();
        let breaker = match provider.breaker {
            BreakerStatus::Closed => "closed".to_owned(),
            BreakerStatus::HalfOpen => "half open".to_owned(),
            BreakerStatus::Open { seconds_left } => format!("open for {seconds_left}s"),
            BreakerStatus::Throttled { seconds_left } => format!("throttled for {seconds_left}s"),
        };
        format!("{:<width$}  {breaker}  ({})", provider.name, provider.kind)
    }
}

fn requests(number: u64) -> String {
    format!("{number} request{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn status() -> Status {
        let provider = |name: &str| ProviderStatus {
            name: name.to_owned(),
            kind: "openai".to_owned(),
            breaker: BreakerStatus::Closed,
        };
        Status {
            node: NodeStatus {
                name: "edge-0".to_owned(),
                zone: Some("a".to_owned()),
                api: ([127, 0, 0, 1], 8080).into(),
                admin: ([127, 0, 0, 1], 8081).into(),
            },
            version: "0.1.0".to_owned(),
            uptime_seconds: 3_725,
            draining: false,
            config: ConfigStatus { hash: "0123456789ab".to_owned(), revision: Some(7), routes: 2, keys: 1 },
            requests_in_flight: 1,
            providers: vec![provider("openai"), provider("a-longer-name")],
            cache: CacheStatus { entries: 12, bytes: 1_572_864, bytes_max: 268_435_456 },
            cluster: None,
        }
    }

    #[test]
    fn the_table_is_aligned_and_says_what_is_wrong() {
        let mut status = status();
        status.providers[1].breaker = BreakerStatus::Open { seconds_left: 4 };
        status.draining = true;

        let expected = "\
node        edge-0 in a, up 1h 2m 5s, draining
version     0.1.0
api         127.0.0.1:8080
admin       127.0.0.1:8081
config      0123456789ab, revision 7, 2 routes, 1 key
in flight   1 request
cache       12 answers, 1.5 MiB of 256.0 MiB
providers   openai         closed  (openai)
            a-longer-name  open for 4s  (openai)
";
        assert_eq!(status.table(), expected);
        assert_eq!(status.degraded(), ["provider a-longer-name is out of rotation"]);
    }

    #[test]
    fn a_member_shows_its_cluster_below() {
        let status = Status { cluster: Some(cluster::tests::cluster()), ..status() };

        assert!(
            status.table().contains("\ncluster     01234567, follower (leader edge-1, term 3)"),
            "{}",
            status.table()
        );
        assert!(status.table().contains("\nmembers     name "), "{}", status.table());
    }
}

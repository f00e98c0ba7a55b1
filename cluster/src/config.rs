//! How a node finds the others, and how patient it is with them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::directory::problems::Problems;
use crate::directory::secret::SecretRef;

/// Nodes of one cluster. A seed beyond it could never become a member.
pub const MEMBERS_MAX: usize = 64;

/// Addresses asked at a join. One that answers is enough; a name may stand for many.
pub const JOIN_MAX: usize = 64;

/// Secrets accepted at once: more than the old and the new one no rotation needs.
pub const SECRETS_MAX: usize = 2;

/// Nodes agree in round trips: a shorter heartbeat is lost in the scheduler's noise.
const HEARTBEAT_MIN: Duration = Duration::from_millis(10);

/// Below it, one election would take every node out of service.
const STALE_MIN: Duration = Duration::from_secs(2);

/// A longer one would keep a revoked key alive on a cut-off node for as long.
const STALE_MAX: Duration = Duration::from_hours(1);

/// Of a name in DNS.
const HOST_BYTES_MAX: usize = 253;

const GOSSIP_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// With a longer one, a dead node is taken for a living one for minutes.
const GOSSIP_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// The nodes this one shares keys, limits and configuration with. Without `secret` a node is alone: its peer ports
/// stay closed. Changes at a restart.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// What the nodes of this cluster know and nobody else does, as `cluster new-secret` prints it. Whoever has it can
    /// become a member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretRef>,

    /// In place of `secret` while it is exchanged: the first is used, both are accepted. Add the new one behind the
    /// old one on every node, then swap them, then remove the old one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretRef>,

    /// The first members, name to `host:port` of their `listen.peer`; this node is the one called `node.name`. The same
    /// on each of them. Leave it out on a node that comes later.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub seeds: BTreeMap<String, String>,

    /// Where a node that comes later asks to become a member: `host:port` of the `listen.peer` of one or more
    /// members. A name that stands for several addresses is fine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub join: Vec<String>,

    /// `host:port` under which the others reach this node's `listen.peer`. Left out: its address among `seeds`, else
    /// `listen.peer` itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,

    /// How long a node that is cut off from the others goes on serving. Afterwards it answers 503. A revoked key is
    /// refused everywhere after this time at the latest, and `revoke` waits for that.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub stale_max: Duration,

    /// How often the leader says that it is there.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub heartbeat: Duration,

    /// Without a word from the leader, another one is elected after a random time between this and `election_max`.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub election_min: Duration,

    /// See `election_min`.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub election_max: Duration,

    /// How often a node tells some others how it is. A dead node is noticed within about five of these.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub gossip_interval: Duration,

    /// Certificates of your own between nodes. Left out: they are made from the secret, which is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<PeerTlsConfig>,
}

/// Certificates of your own between nodes. The secret is needed besides: it protects gossip.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PeerTlsConfig {
    /// PEM file with the certificates of the authority that all nodes' certificates come from.
    pub ca: PathBuf,

    /// PEM file with this node's certificate, followed by its intermediates; for both client and server use.
    pub cert: PathBuf,

    /// PEM file with the certificate's private key, unencrypted.
    pub key: PathBuf,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            secret: None,
            secrets: Vec::new(),
            seeds: BTreeMap::new(),
            join: Vec::new(),
            advertise: None,
            stale_max: Duration::from_mins(1),
            heartbeat: Duration::from_millis(200),
            election_min: Duration::from_millis(600),
            election_max: Duration::from_secs(1),
            gossip_interval: Duration::from_millis(250),
            tls: None,
        }
    }
}

impl ClusterConfig {
    /// Whether there are others, or may be. Only then the peer ports open.
    pub fn is_shared(&self) -> bool {
        self.secret.is_some() || !self.secrets.is_empty()
    }

    /// Whether the file says where others are: then the resources in it are not this node's alone.
    pub fn names_others(&self) -> bool {
        self.seeds.len() > 1 || !self.join.is_empty()
    }

    /// The secrets in force, the one to use first.
    pub fn all_secrets(&self) -> impl Iterator<Item = &SecretRef> {
        self.secret.iter().chain(&self.secrets)
    }

    /// Under which address others reach this node; `peer` is where it listens. None when nothing says so: it listens
    /// everywhere, and everywhere is no address.
    pub fn advertised(&self, node_name: &str, peer: SocketAddr) -> Option<String> {
        let named = self.advertise.as_ref().or_else(|| self.seeds.get(node_name)).cloned();
        named.or_else(|| (!peer.ip().is_unspecified()).then(|| peer.to_string()))
    }

    /// What the types cannot say. `node_name` and `peer` come from the sections `node` and `listen`.
    pub fn check(&self, node_name: &str, peer: SocketAddr, problems: &mut Problems) {
        self.check_secrets(problems);
        self.check_seeds(node_name, problems);
        problems.within("join", |problems| {
            if self.join.len() > JOIN_MAX {
                problems.add("", format!("has {} addresses; up to {JOIN_MAX} are asked", self.join.len()));
            }
            for (index, address) in self.join.iter().enumerate() {
                check_address(&index.to_string(), address, problems);
            }
        });
        if let Some(address) = &self.advertise {
            check_address("advertise", address, problems);
        }
        self.check_reachable(node_name, peer, problems);
        self.check_times(problems);
    }

    fn check_secrets(&self, problems: &mut Problems) {
        if self.secret.is_some() && !self.secrets.is_empty() {
            problems.add("secrets", "stands beside `secret`; give one or the other");
        }
        if self.secrets.len() > SECRETS_MAX {
            let count = self.secrets.len();
            problems.add("secrets", format!("has {count} secrets; at most {SECRETS_MAX} are accepted at once"));
        }
        if let [first, second] = self.secrets.as_slice()
            && first == second
        {
            problems.add("secrets", "has the same secret twice");
        }
        for (index, _) in self.all_secrets().enumerate().filter(|(_, secret)| secret.is_none()) {
            let message = "is `none`; leave `cluster` out for a node that is alone";
            match self.secret {
                Some(_) => problems.add("secret", message),
                None => problems.within("secrets", |problems| problems.add(&index.to_string(), message)),
            }
        }
        if !self.is_shared() && (!self.seeds.is_empty() || !self.join.is_empty() || self.tls.is_some()) {
            problems.add("", "lacks `secret`; make one with `cluster new-secret` and give it to every node");
        }
    }

    fn check_seeds(&self, node_name: &str, problems: &mut Problems) {
        problems.within("seeds", |problems| {
            let mut first_with: BTreeMap<String, &str> = BTreeMap::new();
            for (name, address) in &self.seeds {
                check_address(name, address, problems);
                if let Some(other) = first_with.insert(address.to_ascii_lowercase(), name) {
                    problems.add(name, format!("has the address of `{other}`; each node has its own"));
                }
            }
            if self.seeds.len() > MEMBERS_MAX {
                problems.add("", format!("has {} nodes; a cluster has at most {MEMBERS_MAX}", self.seeds.len()));
            }
            if !self.seeds.is_empty() && !self.seeds.contains_key(node_name) {
                let names: Vec<&str> = self.seeds.keys().map(String::as_str).collect();
                let advice = "correct `node.name`, or give a node that comes later `join` in place of `seeds`";
                problems.add(
                    "",
                    format!("has {} and not this node, which is called `{node_name}`; {advice}", names.join(", ")),
                );
            }
        });
    }

    /// An address that others cannot use makes a node that waits for ever.
    fn check_reachable(&self, node_name: &str, peer: SocketAddr, problems: &mut Problems) {
        if !self.is_shared() {
            return;
        }
        let Some(advertised) = self.advertised(node_name, peer) else {
            let advice = "say under which `host:port` the others reach this node";
            return problems.add("advertise", format!("is missing, and `listen.peer` is {peer}; {advice}"));
        };
        let elsewhere = host_of(&advertised).is_some_and(|host| !is_loopback(host));
        if peer.ip().is_loopback() && elsewhere {
            let advice = "listen on 0.0.0.0 or on that address";
            let message = format!("others reach this node as `{advertised}`, and `listen.peer` is {peer}; {advice}");
            problems.add(if self.advertise.is_some() { "advertise" } else { "seeds" }, message);
        }
    }

    fn check_times(&self, problems: &mut Problems) {
        if self.heartbeat < HEARTBEAT_MIN {
            problems
                .add("heartbeat", format!("is {}; at least {} is expected", told(self.heartbeat), told(HEARTBEAT_MIN)));
        }
        let twice = self.heartbeat.saturating_mul(2);
        if self.election_min < twice {
            let (is, heartbeat) = (told(self.election_min), told(self.heartbeat));
            problems.add(
                "election_min",
                format!(
                    "is {is}; one lost heartbeat of {heartbeat} would elect another leader, so at least {} is expected",
                    told(twice)
                ),
            );
        }
        if self.election_max <= self.election_min {
            let (is, least) = (told(self.election_max), told(self.election_min));
            problems.add(
                "election_max",
                format!(
                    "is {is}; more than `election_min` ({least}) is expected, or all nodes stand for election at once"
                ),
            );
        }
        let least = STALE_MIN.max(self.election_max.saturating_mul(2));
        if self.stale_max < least || self.stale_max > STALE_MAX {
            let (is, most) = (told(self.stale_max), told(STALE_MAX));
            problems.add(
                "stale_max",
                format!(
                    "is {is}; {} to {most} is expected, so that an election takes no node out of service",
                    told(least)
                ),
            );
        }
        if self.gossip_interval < GOSSIP_INTERVAL_MIN || self.gossip_interval > GOSSIP_INTERVAL_MAX {
            let (is, least, most) = (self.gossip_interval, GOSSIP_INTERVAL_MIN, GOSSIP_INTERVAL_MAX);
            problems.add("gossip_interval", format!("is {}; {} to {} is expected", told(is), told(least), told(most)));
        }
    }
}

fn told(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(duration)
}

/// The host of `host:port`; None when it is not of that form.
pub fn host_of(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    let port_is_one = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let host_is_one = bracketed.map_or_else(
        || !host.is_empty() && host.len() <= HOST_BYTES_MAX && host.bytes().all(letter),
        |inner| inner.parse::<std::net::Ipv6Addr>().is_ok(),
    );
    (port_is_one && host_is_one).then(|| bracketed.unwrap_or(host))
}

fn check_address(path: &str, address: &str, problems: &mut Problems) {
    match host_of(address) {
        None => problems.add(path, format!("is `{address}`; expected `host:port`, like `edge-1:7947`")),
        Some(host) if host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified()) => {
            problems.add(path, format!("is `{address}`, which stands for every address of a machine; name one"));
        }
        Some(_) => {}
    }
}

fn is_loopback(host: &str) -> bool {
    host.parse::<IpAddr>().map_or(host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "127.0.0.1:7947";

    /// As `path: message`, for a node `edge-0`.
    fn problems_at(yaml: &str, peer: &str) -> Vec<String> {
        let config: ClusterConfig = serde_saphyr::from_str(yaml).unwrap();
        let mut problems = Problems::new();
        config.check("edge-0", peer.parse().unwrap(), &mut problems);
        problems.iter().map(ToString::to_string).collect()
    }

    fn problems(yaml: &str) -> Vec<String> {
        problems_at(yaml, PEER)
    }

    #[test]
    fn a_node_alone_and_three_seeds_are_right() {
        let three = "{ secret: s, seeds: { edge-0: 'edge-0:7947', edge-1: 'edge-1:7947', edge-2: '[::1]:7947' } }";
        assert_eq!(problems("{}"), Vec::<String>::new());
        assert_eq!(problems("{ secret: s }"), Vec::<String>::new(), "others may join it");
        assert_eq!(problems_at(three, "0.0.0.0:7947"), Vec::<String>::new());
        assert_eq!(problems("{ secrets: [a, b], join: ['edge:7947'] }"), Vec::<String>::new());
    }

    #[test]
    fn others_are_not_found_without_a_secret() {
        for lacking in ["{ join: ['edge:7947'] }", "{ seeds: { edge-0: 'localhost:1' } }"] {
            let told = problems(lacking);
            assert!(matches!(&told[..], [one] if one.contains("lacks `secret`")), "{told:?}");
        }
        assert!(problems("{ secret: a, secrets: [b] }")[0].starts_with("secrets: stands beside"));
        assert!(problems("{ secrets: [a, b, c] }")[0].starts_with("secrets: has 3 secrets"));
        assert!(problems("{ secrets: [a, a] }")[0].starts_with("secrets: has the same secret twice"));
        assert!(problems("{ secrets: [a, none] }")[0].starts_with("secrets.1: is `none`"));
    }

    #[test]
    fn the_seeds_have_this_node_and_an_address_each() {
        let told = problems("{ secret: s, seeds: { edge-1: 'a:1', edge-2: 'A:1' } }");
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("seeds.edge-2: has the address of `edge-1`"), "{told:?}");
        assert!(
            told[1].starts_with("seeds: has edge-1, edge-2 and not this node, which is called `edge-0`"),
            "{told:?}"
        );
        let many: Vec<_> = (0..65).map(|at| format!("edge-{at}: 'localhost:{}'", at + 1)).collect();
        let told = problems(&format!("{{ secret: s, seeds: {{ {} }} }}", many.join(", ")));
        assert!(matches!(&told[..], [one] if one.starts_with("seeds: has 65 nodes")), "{told:?}");
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for right in ["edge-0:7947", "10.0.0.1:1", "[fd00::1]:65535", "edge.lea.svc.cluster.local:7947"] {
            assert!(host_of(right).is_some(), "{right}");
        }
        for wrong in [
            "edge-0",
            "edge-0:",
            ":7947",
            "edge-0:0",
            "edge-0:65536",
            "edge-0:+1",
            "::1:7947",
            "[edge]:1",
            "a b:1",
            "http://edge:1",
            "",
        ] {
            assert_eq!(host_of(wrong), None, "{wrong}");
        }
        assert!(problems("{ secret: s, join: [edge] }")[0].starts_with("join.0: is `edge`; expected `host:port`"));
        assert!(problems("{ secret: s, join: ['0.0.0.0:7947'] }")[0].contains("every address of a machine"));
    }

    /// Listening on loopback and calling oneself something else is the commonest way to wait for ever.
    #[test]
    fn the_others_must_be_able_to_reach_it() {
        let seeds = "{ secret: s, seeds: { edge-0: 'edge-0:7947', edge-1: 'edge-1:7947' } }";
        assert!(
            problems(seeds)[0].starts_with("seeds: others reach this node as `edge-0:7947`, and `listen.peer` is 127")
        );
        assert!(
            problems("{ secret: s, advertise: 'x:1' }")[0].starts_with("advertise: others reach this node as `x:1`")
        );
        assert!(
            problems_at("{ secret: s, join: ['x:1'] }", "0.0.0.0:7947")[0]
                .starts_with("advertise: is missing, and `listen.peer` is 0")
        );
        let config = ClusterConfig::default();
        assert_eq!(config.advertised("edge-0", PEER.parse().unwrap()).as_deref(), Some(PEER));
        assert_eq!(config.advertised("edge-0", "[::]:7947".parse().unwrap()), None);
    }

    #[test]
    fn times_that_fight_one_another_are_refused() {
        let paths = |yaml| -> Vec<String> {
            problems(yaml).iter().map(|told| told.split(':').next().unwrap_or_default().to_owned()).collect()
        };
        assert_eq!(paths("{ heartbeat: 1ms }"), ["heartbeat"]);
        assert_eq!(paths("{ heartbeat: 400ms }"), ["election_min"]);
        assert_eq!(paths("{ election_min: 1s }"), ["election_max"]);
        assert_eq!(paths("{ stale_max: 1999ms }"), ["stale_max"]);
        assert_eq!(paths("{ stale_max: 2s }"), Vec::<String>::new());
        assert_eq!(paths("{ election_max: 5s, stale_max: 9s }"), ["stale_max"], "an election would stop every node");
        assert_eq!(paths("{ stale_max: 2h }"), ["stale_max"]);
        assert_eq!(paths("{ gossip_interval: 1m }"), ["gossip_interval"]);
    }
}

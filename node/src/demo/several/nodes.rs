//! The nodes of the demo, the provider behind them, and the folder they live in.

use std::collections::HashSet;
use std::fs::DirBuilder;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use actors::supervisor::Tasks;
use cluster::directory::secret::SecretRef;
use cluster::peer::trust::ClusterSecret;
use futures_util::future::join_all;
use http::{Method, Uri};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::balancer::Balancer;
use super::live::Live;
use super::node::{Addresses, Node};
use crate::admin::endpoint::PREFIX;
use crate::cli::client::{Answer, Ask, Client as Operator};
use crate::config::secret::resolve;
use crate::demo::client::AskError;
use crate::demo::world::{KEY, provider};
use crate::simulator::Handle;

/// Ports are drawn from below those that systems hand out by themselves: a node that is away finds its own free again.
const PORTS: std::ops::Range<u16> = 10_240..30_000;

/// Draws until enough of them are free.
const DRAWS_MAX: usize = 10_000;

/// How long nodes may take to finish what runs.
const STOP_MAX: Duration = Duration::from_secs(5);

/// For an answer of the admin API; a change waits for every node.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Nodes {
    pub all: Vec<Node>,
    pub live: Live,
    pub balancer: Arc<Balancer>,
    pub tasks: Tasks,
    pub provider: Handle,
    stop: CancellationToken,
    config: String,
    // Last: the nodes are gone before their folder is.
    _folder: Folder,
}

/// Removed with everything in it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed stays: it lies with other temporary files.
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

impl Nodes {
    /// Their files; none of them runs yet.
    pub async fn prepare(count: usize) -> Result<Self, AskError> {
        let (tasks, stop) = (Tasks::new(), CancellationToken::new());
        let provider = provider(1, &tasks, &stop).await?;
        let folder = folder()?;
        let secret = ClusterSecret::new_text()?;
        let addresses = free_addresses(count)?;
        let name = |number: usize| format!("edge-{number}");
        let seeds: Vec<String> =
            addresses.iter().enumerate().map(|(at, node)| format!("{}: \"{}\"", name(at), node.peer)).collect();
        let common = common(&secret, &seeds.join(", "), provider.address());
        let mut nodes = Vec::with_capacity(count);
        for (number, addresses) in addresses.into_iter().enumerate() {
            let own = folder.0.join(name(number));
            let config = format!("{}\n{common}", head(&name(number), &Node::data_dir(&own), addresses));
            nodes.push(Node::new(own, name(number), addresses, &config)?);
        }
        let live = Live::start(&nodes, &tasks, &stop);
        let balancer = Arc::new(Balancer::new(&nodes, live.views(), &tasks));
        let config = common.replace(&secret, "lea-cluster-…").replace(KEY, "lea-demodemodemo-…");
        Ok(Self { all: nodes, live, balancer, tasks, provider, stop, config, _folder: folder })
    }

    pub async fn stop(mut self) {
        self.live.hush();
        join_all(self.all.iter_mut().map(|node| node.stop(STOP_MAX))).await;
        self.stop.cancel();
        let _ended = self.tasks.shutdown(STOP_MAX).await;
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|node| node.name.as_str())
    }

    /// Asks the admin API of one node, with the key that was made with the cluster.
    pub async fn admin(&self, node: usize, method: Method, path: &str, body: Value) -> Result<Answer, AskError> {
        let key = self.admin_key().ok_or("no node has the first key of the admin API")?;
        let told = |errors: Vec<_>| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let key = resolve(&SecretRef::file(&key), &|_name| None).map_err(told)?;
        let url: Uri = format!("http://{}", self.all[node].addresses.admin).parse()?;
        let operator = Operator { url, key: Some(key) };
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let path = format!("{PREFIX}{path}");
        Ok(operator.ask(Ask { method, path, headers: Vec::new(), body: body.into(), patience: PATIENCE }).await?)
    }

    /// Makes a key through one node: its text, or what the node said.
    pub async fn make_key(&self, node: usize, name: &str) -> Result<Result<String, Answer>, AskError> {
        let answer = self.admin(node, Method::POST, "keys", json!({ "name": name })).await?;
        if !answer.status.is_success() {
            return Ok(Err(answer));
        }
        let made: Value = serde_json::from_slice(&answer.body)?;
        let text = made.get("key").and_then(Value::as_str).ok_or("the answer has no key in it")?;
        Ok(Ok(text.to_owned()))
    }

    fn admin_key(&self) -> Option<PathBuf> {
        self.all.iter().map(Node::admin_key).find(|file| file.is_file())
    }

    /// Before the first step.
    pub fn opening(&self) -> String {
        let rows: Vec<String> = self.config.lines().map(|line| format!("     {line}")).collect();
        let count = self.all.len();
        format!(
            "{count} processes of this executable on this machine, a simulated provider behind them. Each has a file \
             with\nits own name, addresses and data directory, and for the rest this:\n\n{}",
            rows.join("\n")
        )
    }

    /// The ends of all logs, for when something went wrong.
    pub fn last_words(&self) -> String {
        self.all.iter().map(Node::last_words).collect::<Vec<_>>().join("\n")
    }

    /// After the last step.
    pub fn invitation(&self) -> String {
        let api = |node: &Node| format!("  http://{}   {}", node.addresses.api, node.name);
        let apis: Vec<String> = self.all.iter().map(api).collect();
        let leader = self.live.now().leader().unwrap_or_default();
        let (first, leads) = (&self.all[0], &self.all[leader]);
        let key_file = self.admin_key().unwrap_or_default();
        format!(
            "\nThey stay up, and whatever changes is told here; ctrl-C ends it. Any of them answers:\n\n{}\n\nTry:\n
  curl http://{api}/v1/chat/completions -H 'authorization: Bearer {KEY}' \\
    -H 'content-type: application/json' \\
    -d '{{\"model\": \"support\", \"messages\": [{{\"role\": \"user\", \"content\": \"Where is my card?\"}}]}}'

  llm-edge-agent status --admin http://{admin}
  export LEA_ADMIN_KEY=$(cat {key_file})
  llm-edge-agent admin --admin http://{admin} keys create guest
  llm-edge-agent admin --admin http://{other} keys revoke guest
  kill -9 {pid}                       # {name}, which leads
  llm-edge-agent run -c {config}   # and it is back\n",
            apis.join("\n"),
            api = first.addresses.api,
            admin = first.addresses.admin,
            other = self.all[self.all.len() - 1].addresses.admin,
            key_file = key_file.display(),
            pid = leads.pid().unwrap_or_default(),
            name = leads.name,
            config = leads.config().display(),
        )
    }
}

fn head(name: &str, data_dir: &Path, addresses: Addresses) -> String {
    let Addresses { api, admin, peer, gossip } = addresses;
    format!(
        "node: {{ name: {name}, data_dir: \"{}\" }}\n\
         listen: {{ api: \"{api}\", admin: \"{admin}\", peer: \"{peer}\", gossip: \"{gossip}\" }}",
        data_dir.display()
    )
}

fn common(secret: &str, seeds: &str, provider: SocketAddr) -> String {
    format!(
        "cluster:
  secret: {secret}
  seeds: {{ {seeds} }}
  stale_max: 10s           # who is cut off for longer serves nothing
resources_revision: 1
providers:
  openai: {{ base_url: \"http://{provider}/v1\", api_key: sk-simulated-key-of-the-provider }}
prices:
  \"openai/*\": {{ input: $0.15, cached_input: $0.075, cache_write: $0.188, output: $0.60 }}
routes:
  support: {{ targets: [openai/gpt-4o-mini] }}
keys:
  desk: {{ secret: {KEY} }}
"
    )
}

fn folder() -> Result<Folder, AskError> {
    let path = std::env::temp_dir().join(format!("lea-demo-{:08x}", getrandom::u32()?));
    DirBuilder::new().mode(0o700).create(&path)?;
    Ok(Folder(path))
}

/// Addresses for so many nodes on which nobody listens.
fn free_addresses(count: usize) -> Result<Vec<Addresses>, AskError> {
    let mut drawn = HashSet::new();
    let mut ports = Vec::new();
    for _draw in 0..DRAWS_MAX {
        if ports.len() == count * 4 {
            break;
        }
        let span = u32::from(PORTS.end - PORTS.start);
        let port = PORTS.start + u16::try_from(getrandom::u32()? % span)?;
        if drawn.insert(port) && is_free(port) {
            ports.push(port);
        }
    }
    let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let addresses = |ports: &[u16]| match *ports {
        [api, admin, peer, gossip] => {
            Some(Addresses { api: at(api), admin: at(admin), peer: at(peer), gossip: at(gossip) })
        }
        _ => None,
    };
    let found: Vec<Addresses> = ports.chunks(4).filter_map(addresses).collect();
    if found.len() == count { Ok(found) } else { Err(io::Error::from(io::ErrorKind::AddrInUse).into()) }
}

fn is_free(port: u16) -> bool {
    let address = (Ipv4Addr::LOCALHOST, port);
    TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_get_addresses_of_their_own() {
        let found = free_addresses(7).unwrap();

        let all: HashSet<SocketAddr> =
            found.iter().flat_map(|node| [node.api, node.admin, node.peer, node.gossip]).collect();
        assert_eq!(all.len(), 28);
        assert!(all.iter().all(|address| PORTS.contains(&address.port())));
    }

    #[test]
    fn a_port_that_is_taken_is_not_free() {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();

        assert!(!is_free(tcp.local_addr().unwrap().port()));
        assert!(!is_free(udp.local_addr().unwrap().port()));
    }

    /// What the demo writes is a file that `run` takes.
    #[test]
    fn the_file_of_a_node_is_right() {
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let addresses = Addresses { api: address(1), admin: address(2), peer: address(3), gossip: address(4) };
        let secret = ClusterSecret::new_text().unwrap();
        let seeds = "edge-0: \"127.0.0.1:3\", edge-1: \"127.0.0.1:13\"";
        let head = head("edge-0", Path::new("/tmp/data"), addresses);
        let file = format!("{head}\n{}", common(&secret, seeds, address(5)));

        let loaded = crate::config::load::read("a node's file", file.as_bytes(), &|_name| None).unwrap();

        assert_eq!(loaded.config.cluster.seeds.len(), 2);
        assert_eq!(loaded.config.node.name, "edge-0");
    }
}

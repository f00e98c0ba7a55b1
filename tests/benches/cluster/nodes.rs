//! Nodes with all that agreeing takes: a log on this disk, and each other over mutual TLS on loopback.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster::clock::{self, Clock};
use cluster::consensus::{Consensus, Ground, Kept, Observer, Place, Timing};
use cluster::directory::key::KeyHash;
use cluster::id::{ClusterId, Epoch, NodeId, NodeKey};
use cluster::peer::client::{AddressBook, ClientLimits, PeerClient};
use cluster::peer::server::{Handlers, PeerServer, Policy, ServerLimits};
use cluster::peer::standing::Standing;
use cluster::peer::trust::{ClusterSecret, Trust};
use cluster::peer::{Caller, Handler, Refusal, Service, Transport};
use cluster::register::{Author, MemberInfo, Register};
use cluster::tasks::Tasks;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use storage::database::{Copies, DataDir};
use storage::log::LogOptions;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Answers with what it was asked. No service of the product has this number.
pub const ECHO: Service = Service(200);

/// More than a start takes.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Node {
    pub id: NodeId,
    pub consensus: Consensus,
    pub client: PeerClient,
    server: PeerServer,
    standing: Arc<Standing>,
    tasks: Tasks,
    /// Never moves: what a node would serve by is no part of this.
    _published: watch::Sender<u64>,
    _data: DataDir,
    _folder: TempDir,
}

/// Nodes that are one cluster; the first of them leads.
pub struct Nodes(pub Vec<Node>);

struct Nobody;

impl Observer for Nobody {
    fn applied(&self, _index: u64, _register: &Register) {}

    fn cut(&self, _key: KeyHash) {}
}

struct Echo;

impl Handler for Echo {
    fn handle(&self, _from: Caller, body: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        async { Ok(body) }.boxed()
    }
}

impl Nodes {
    pub async fn start(count: usize) -> Self {
        let secret = ClusterSecret::parse(&ClusterSecret::new_text().unwrap()).unwrap();
        let cluster = ClusterId::random().unwrap();
        let mut nodes = Vec::new();
        for _ in 0..count {
            nodes.push(Node::start(&secret, cluster).await);
        }
        for node in &nodes {
            for other in nodes.iter().filter(|other| other.id != node.id) {
                node.client.book().insert(other.id, other.address());
            }
        }
        let voters: BTreeMap<NodeId, Place> = nodes.iter().map(|node| (node.id, node.place())).collect();
        nodes[0].consensus.initialise(voters).await.unwrap();
        for node in &nodes {
            node.register().await;
        }
        let leader = nodes[0].consensus.leader().unwrap();
        nodes.sort_by_key(|node| node.id != leader);
        Self(nodes)
    }

    pub fn leader(&self) -> &Node {
        &self.0[0]
    }

    pub async fn stop(self) {
        for node in self.0 {
            node.consensus.stop().await;
            assert!(node.tasks.shutdown(PATIENCE).await);
        }
    }
}

impl Node {
    async fn start(secret: &ClusterSecret, cluster: ClusterId) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let data = DataDir::open(folder.path(), Copies::Refuse, storage::fatal::aborting()).unwrap();
        let key = NodeKey::generate().unwrap();
        let (id, tasks) = (key.node_id(), Tasks::new());
        let trust = Trust::new(std::slice::from_ref(secret), &key).unwrap().live();
        let standing = Arc::new(Standing::new(id));
        standing.join(cluster, Epoch::default());
        let limits = ClientLimits::default();
        let client = PeerClient::new(Arc::clone(&trust), Arc::clone(&standing), AddressBook::new(), limits, &tasks);
        let (publish, published) = watch::channel(0);
        let consensus = Consensus::start(Ground {
            me: id,
            log: data.open_log(LogOptions { now: Some(clock::now), ..LogOptions::default() }).unwrap(),
            cells: data.cells(),
            kept: Kept { snapshots: data.open_snapshots().unwrap(), trail: Some(Arc::new(data.open_trail().unwrap())) },
            transport: Arc::new(client.clone()) as Arc<dyn Transport>,
            observer: Box::new(Nobody),
            published,
            clock: Clock::Real,
            timing: Timing::default(),
            tasks: tasks.clone(),
        })
        .await
        .unwrap();
        let mut handlers = Handlers::new().with(ECHO, Policy::SameCluster, Arc::new(Echo));
        for (service, handler) in consensus.services() {
            handlers = handlers.with(service, Policy::SameCluster, handler);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let on = Arc::clone(&standing);
        let server = PeerServer::start(listener, trust, on, handlers, ServerLimits::default(), &tasks).unwrap();
        Self { id, consensus, client, server, standing, tasks, _published: publish, _data: data, _folder: folder }
    }

    fn address(&self) -> String {
        self.server.address().to_string()
    }

    fn place(&self) -> Place {
        Place { name: self.id.to_string(), address: self.address(), zone: None }
    }

    async fn register(&self) {
        let member = MemberInfo { name: self.id.to_string(), peer: self.address(), ..MemberInfo::default() };
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).unwrap();
        let incarnation = self.consensus.started(nonce, member, Author::default(), PATIENCE).await.unwrap();
        self.standing.start(incarnation);
    }
}

//! Client and server together, on loopback: who gets through, and what happens when things go wrong.

use super::*;
use crate::id::{ClusterId, Epoch, Incarnation, NodeId, NodeKey};
use crate::peer::client::{AddressBook, ClientLimits, PeerClient};
use crate::peer::trust::{ClusterSecret, OwnPki, Trust};
use crate::peer::{CallError, Transport};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;

/// Long enough for a machine that is busy with everything else.
const PATIENCE: Duration = Duration::from_secs(20);

const ECHO: Service = Service(200);
const STRANGERS: Service = Service(201);
const NEVER: Service = Service(202);
const WHO: Service = Service(203);
const CLUSTER: ClusterId = ClusterId::new([1; 16]);

fn secret() -> ClusterSecret {
    ClusterSecret::parse(&ClusterSecret::new_text().unwrap()).unwrap()
}

fn key() -> NodeKey {
    NodeKey::generate().unwrap()
}

struct Echo;

impl Handler for Echo {
    fn handle(&self, _from: Caller, body: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        async { Ok(body) }.boxed()
    }
}

/// Tells when it is called and never answers.
struct Never(mpsc::Sender<()>);

impl Handler for Never {
    fn handle(&self, _from: Caller, _body: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let called = self.0.clone();
        async move {
            called.send(()).await.unwrap();
            std::future::pending().await
        }
        .boxed()
    }
}

/// Answers who asked.
struct Who;

impl Handler for Who {
    fn handle(&self, from: Caller, _body: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        assert!(from.address.is_some());
        async move { Ok(frame::to_bytes(&(from.node, from.incarnation, from.cluster, from.epoch))?) }.boxed()
    }
}

/// A node that serves and calls.
struct Node {
    id: NodeId,
    server: PeerServer,
    client: PeerClient,
    standing: Arc<Standing>,
    trust: LiveTrust,
    called: mpsc::Receiver<()>,
    tasks: Tasks,
}

impl Node {
    async fn start(secrets: &[ClusterSecret]) -> Self {
        let key = key();
        Self::with(Trust::new(secrets, &key).unwrap(), ServerLimits::default(), ClientLimits::default()).await
    }

    async fn with(trust: Trust, limits: ServerLimits, client_limits: ClientLimits) -> Self {
        let id = trust.node_key().node_id();
        let trust = trust.live();
        let tasks = Tasks::new();
        let standing = Arc::new(Standing::new(id));
        standing.join(CLUSTER, Epoch::new(1));
        let (call, called) = mpsc::channel(16);
        let handlers = Handlers::new()
            .with(ECHO, Policy::SameCluster, Arc::new(Echo))
            .with(STRANGERS, Policy::AnyCluster, Arc::new(Echo))
            .with(NEVER, Policy::SameCluster, Arc::new(Never(call)))
            .with(WHO, Policy::SameCluster, Arc::new(Who));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (shared, on) = (Arc::clone(&trust), Arc::clone(&standing));
        let server = PeerServer::start(listener, shared, on, handlers, limits, &tasks).unwrap();
        let book = AddressBook::new();
        let client = PeerClient::new(Arc::clone(&trust), Arc::clone(&standing), book, client_limits, &tasks);
        Self { id, server, client, standing, trust, called, tasks }
    }

    fn knows(&self, other: &Node) {
        self.client.book().insert(other.id, other.server.address().to_string());
    }

    async fn call(&self, to: NodeId, service: Service, body: impl Into<Bytes>) -> Result<Bytes, CallError> {
        self.client.call(to, Lane::Bodies, service, body.into(), PATIENCE).await
    }

    /// Until it gets through: attempts to connect rest in between.
    async fn call_until(&self, to: NodeId, done: impl Fn(&Result<Bytes, CallError>) -> bool) {
        let attempts = async {
            while !done(&self.call(to, ECHO, "again").await) {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, attempts).await.expect("it comes to that");
    }

    async fn counts_garbage(&self, count: u64) {
        let counted = async {
            while self.server.garbage() < count {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, counted).await.unwrap_or_else(|_| panic!("{} of {count}", self.server.garbage()));
    }
}

async fn two(secrets: &[ClusterSecret]) -> (Node, Node) {
    let (a, b) = (Node::start(secrets).await, Node::start(secrets).await);
    a.knows(&b);
    b.knows(&a);
    (a, b)
}

#[tokio::test]
async fn a_call_is_answered_and_the_caller_is_known() {
    let (a, b) = two(&[secret()]).await;
    a.standing.start(Incarnation::new(9));

    for lane in Lane::ALL {
        let echo = a.client.call(b.id, lane, ECHO, "hello".into(), PATIENCE).await;
        assert_eq!(echo, Ok(Bytes::from("hello")));
    }
    let who = a.call(b.id, WHO, "").await.unwrap();
    assert_eq!(frame::from_bytes(&who), Ok((a.id, Incarnation::new(9), CLUSTER, Epoch::new(1))));
    let address = b.server.address().to_string();
    let by_address = a.client.call_address(&address, ECHO, "hello".into(), PATIENCE).await;
    assert_eq!(by_address, Ok((b.id, Bytes::from("hello"))));
    assert_eq!(a.call(b.id, Service(99), "").await, Err(CallError::Refused(Refusal::NoSuchService)));
    assert_eq!(b.server.garbage(), 0);
}

#[tokio::test]
async fn the_largest_body_passes_and_a_larger_one_is_not_sent() {
    let (a, b) = two(&[secret()]).await;
    let largest = Bytes::from(vec![7; FRAME_MAX]);

    assert_eq!(a.call(b.id, ECHO, largest.clone()).await, Ok(largest));
    assert!(matches!(a.call(b.id, ECHO, vec![7; FRAME_MAX + 1]).await, Err(CallError::Unsendable { .. })));
}

#[tokio::test]
async fn another_secret_does_not_get_through() {
    let (a, b) = (Node::start(&[secret()]).await, Node::start(&[secret()]).await);
    a.knows(&b);

    let refused = a.call(b.id, ECHO, "hello").await.unwrap_err();

    assert!(matches!(&refused, CallError::Unreachable { why, .. } if why.contains("secret")), "{refused}");
    assert!(!refused.may_have_arrived());
    b.counts_garbage(1).await;
}

/// The steps of a rotation: add, swap, remove. Once removed, the old secret opens no connection.
#[tokio::test]
async fn two_secrets_are_accepted_while_one_replaces_the_other() {
    let (old, new) = (secret(), secret());
    let server = Node::start(&[old.clone(), new.clone()]).await;
    for secrets in [vec![old.clone()], vec![new.clone()], vec![new.clone(), old.clone()]] {
        let client = Node::start(&secrets).await;
        client.knows(&server);
        // The server signs with the old one, so only who accepts that gets through.
        assert_eq!(client.call(server.id, ECHO, "hello").await.is_ok(), secrets.contains(&old));
    }

    let swapped = Trust::new(std::slice::from_ref(&new), server.trust.load().node_key()).unwrap();
    server.trust.store(Arc::new(swapped));

    for (secrets, passes) in [(vec![new], true), (vec![old], false)] {
        let client = Node::start(&secrets).await;
        client.knows(&server);
        assert_eq!(client.call(server.id, ECHO, "hello").await.is_ok(), passes);
    }
}

/// Who has the secret can make any certificate; whose key it cannot use, it cannot be.
#[tokio::test]
async fn nobody_is_another_node() {
    let secrets = [secret()];
    let server = Node::start(&secrets).await;
    let posing = Trust::new(&secrets, &key()).unwrap().posing(&key());
    let thief = Node::with(posing, ServerLimits::default(), ClientLimits::default()).await;
    thief.knows(&server);
    server.knows(&thief);

    assert!(matches!(thief.call(server.id, ECHO, "hello").await, Err(CallError::Unreachable { .. })));
    assert!(matches!(server.call(thief.id, ECHO, "hello").await, Err(CallError::Unreachable { .. })));
    server.counts_garbage(1).await;
}

#[tokio::test]
async fn a_node_that_lives_elsewhere_is_not_called() {
    let secrets = [secret()];
    let (a, b) = two(&secrets).await;
    let wanted = key().node_id();
    let address = b.server.address().to_string();
    a.client.book().insert(wanted, address.clone());

    let refused = a.call(wanted, ECHO, "hello").await;

    assert_eq!(refused, Err(CallError::WrongNode { address, wanted, found: b.id }));
    let nobody = key().node_id();
    assert_eq!(a.call(nobody, ECHO, "hello").await, Err(CallError::NoAddress { node: nobody }));
}

/// Certificates of the operators say who may speak; who it is, the node's key says.
#[tokio::test]
async fn own_certificates_carry_calls_too() {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem().into_bytes();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let secrets = [secret()];
    let node = |trusted: bool| {
        let leaf_key = rcgen::KeyPair::generate().unwrap();
        let mut leaf = rcgen::CertificateParams::new(vec!["edge".to_owned()]).unwrap();
        leaf.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let cert = if trusted { leaf.signed_by(&leaf_key, &issuer) } else { leaf.self_signed(&leaf_key) };
        let pki = OwnPki {
            ca: ca_pem.clone(),
            cert: cert.unwrap().pem().into_bytes(),
            key: leaf_key.serialize_pem().into_bytes(),
        };
        let trust = Trust::with_own_pki(&pki, &secrets, &key()).unwrap();
        Node::with(trust, ServerLimits::default(), ClientLimits::default())
    };
    let (a, b, stranger) = (node(true).await, node(true).await, node(false).await);
    a.knows(&b);
    stranger.knows(&b);

    assert_eq!(a.call(b.id, ECHO, "hello").await, Ok(Bytes::from("hello")));
    assert!(stranger.call(b.id, ECHO, "hello").await.is_err());
}

#[tokio::test]
async fn another_cluster_is_refused_but_where_strangers_are_heard() {
    let (a, b) = two(&[secret()]).await;

    for (cluster, epoch) in [(ClusterId::new([2; 16]), 1), (CLUSTER, 2), (ClusterId::NONE, 0)] {
        a.standing.join(cluster, Epoch::new(epoch));
        let refused = CallError::WrongCluster { cluster: CLUSTER, epoch: Epoch::new(1) };
        assert_eq!(a.call(b.id, ECHO, "hello").await, Err(refused));
        assert_eq!(a.call(b.id, STRANGERS, "hello").await, Ok(Bytes::from("hello")));
    }

    // Two nodes without a cluster have none in common.
    b.standing.join(ClusterId::NONE, Epoch::new(0));
    assert!(matches!(a.call(b.id, ECHO, "hello").await, Err(CallError::WrongCluster { .. })));
}

#[tokio::test]
async fn a_call_ends_with_its_deadline() {
    let (a, mut b) = two(&[secret()]).await;
    let deadline = Duration::from_millis(300);

    let late = a.client.call(b.id, Lane::Bodies, NEVER, Bytes::new(), deadline).await;

    assert_eq!(late, Err(CallError::Timeout { deadline }));
    assert!(late.unwrap_err().may_have_arrived());
    b.called.recv().await.unwrap();
    assert_eq!(a.call(b.id, ECHO, "hello").await, Ok(Bytes::from("hello")), "the connection is still good");
}

/// Connecting takes longer than the call may: the next call finds the connection made.
#[tokio::test]
async fn impatient_calls_do_not_keep_a_connection_from_being_made() {
    let (a, b) = two(&[secret()]).await;

    let at_once = Duration::from_nanos(1);
    let first = a.client.call(b.id, Lane::Consensus, ECHO, Bytes::new(), at_once).await;
    assert_eq!(first, Err(CallError::Timeout { deadline: at_once }));

    let connected = async { a.client.call(b.id, Lane::Consensus, ECHO, Bytes::new(), PATIENCE).await };
    assert_eq!(connected.await, Ok(Bytes::new()));
}

#[tokio::test]
async fn open_calls_are_bounded_on_both_sides() {
    let secrets = [secret()];
    let one_call = ClientLimits { inflight_max: 1, ..ClientLimits::default() };
    let trust = |key: &NodeKey| Trust::new(&secrets, key).unwrap();
    let a = Node::with(trust(&key()), ServerLimits::default(), one_call).await;
    let serves_one = ServerLimits { calls_max: 1, ..ServerLimits::default() };
    let mut b = Node::with(trust(&key()), serves_one, ClientLimits::default()).await;
    let c = Node::start(&secrets).await;
    a.knows(&b);
    c.knows(&b);

    let open = a.client.call(b.id, Lane::Bodies, NEVER, Bytes::new(), PATIENCE);
    let (done, mut ended) = watch::channel(());
    a.tasks.spawn("open call", async move {
        let _done = done;
        let _ = open.await;
    });
    b.called.recv().await.unwrap();

    assert_eq!(a.call(b.id, ECHO, "hello").await, Err(CallError::Busy { node: b.id }));
    assert_eq!(c.call(b.id, ECHO, "hello").await, Err(CallError::Refused(Refusal::Busy)));
    let large = c.call(b.id, ECHO, vec![7; FRAME_MAX]).await;
    assert!(large.is_err(), "and a large body is not read first");
    let other_lane = c.client.call(b.id, Lane::Consensus, ECHO, "hello".into(), PATIENCE).await;
    assert_eq!(other_lane, Ok(Bytes::from("hello")), "lanes do not wait for one another");

    // The caller gives up; its place is free again.
    a.tasks.stop();
    assert!(ended.changed().await.is_err());
    c.call_until(b.id, Result::is_ok).await;
}

#[tokio::test]
async fn a_node_that_returns_elsewhere_is_found_again() {
    let secrets = [secret()];
    let (a, b) = two(&secrets).await;
    assert!(a.call(b.id, ECHO, "hello").await.is_ok());

    let key = b.trust.load().node_key().clone();
    assert!(b.tasks.shutdown(PATIENCE).await);
    a.call_until(b.id, |outcome| matches!(outcome, Err(CallError::Unreachable { .. }))).await;
    let again = Trust::new(&secrets, &key).unwrap();
    let b = Node::with(again, ServerLimits::default(), ClientLimits::default()).await;
    a.knows(&b);

    a.call_until(b.id, Result::is_ok).await;
}

/// The network swallows everything and tells nobody: the pings find out, and the next connection works.
#[tokio::test]
async fn a_silent_connection_is_given_up() {
    let secrets = [secret()];
    let limits = ClientLimits { ping: Duration::from_millis(100), ..ClientLimits::default() };
    let a = Node::with(Trust::new(&secrets, &key()).unwrap(), ServerLimits::default(), limits).await;
    let b = Node::start(&secrets).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    a.client.book().insert(b.id, listener.local_addr().unwrap().to_string());
    let (freeze, frozen) = watch::channel(false);
    let behind = b.server.address();
    a.tasks.spawn("network", {
        let tasks = a.tasks.clone();
        async move {
            let mut first = true;
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut far = TcpStream::connect(behind).await.unwrap();
                let mut frozen = frozen.clone();
                let freezes = std::mem::take(&mut first);
                tasks.spawn("wire", async move {
                    let freezing = async {
                        if freezes {
                            let _ = frozen.wait_for(|frozen| *frozen).await;
                        } else {
                            std::future::pending::<()>().await;
                        }
                    };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => return,
                        () = freezing => {}
                    }
                    // Held open, and nothing is carried any more.
                    std::future::pending::<()>().await;
                });
            }
        }
    });
    assert!(a.call(b.id, ECHO, "hello").await.is_ok());

    freeze.send_replace(true);

    a.call_until(b.id, Result::is_ok).await;
}

#[tokio::test]
async fn garbage_is_counted_and_nothing_else() {
    let secrets = [secret()];
    let limits = ServerLimits { handshake_max: Duration::from_millis(300), ..ServerLimits::default() };
    let server = Node::with(Trust::new(&secrets, &key()).unwrap(), limits, ClientLimits::default()).await;
    let address = server.server.address();
    let member = Trust::new(&secrets, &key()).unwrap();
    let connect = async || {
        let socket = TcpStream::connect(address).await.unwrap();
        let name = ServerName::IpAddress(address.ip().into());
        TlsConnector::from(member.client()).connect(name, socket).await.unwrap()
    };

    let mut noise = TcpStream::connect(address).await.unwrap();
    noise.write_all(&[0x5a; 4000]).await.unwrap();
    let mut web = TcpStream::connect(address).await.unwrap();
    web.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    server.counts_garbage(2).await;
    let silent = TcpStream::connect(address).await.unwrap();
    server.counts_garbage(3).await;
    let mut rude = connect().await;
    rude.write_all(&[0x5a; 200]).await.unwrap();
    server.counts_garbage(4).await;
    let mut mute = connect().await;
    server.counts_garbage(5).await;
    let mut babbles = connect().await;
    hello::as_client(&mut babbles, &member, Lane::Bodies).await.unwrap();
    babbles.write_all(&[0x5a; 4000]).await.unwrap();
    // The server hangs up on each.
    for stream in [&mut rude, &mut mute, &mut babbles] {
        let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.unwrap();
    }
    drop((noise, web, silent));

    let client = Node::start(&secrets).await;
    client.knows(&server);
    assert_eq!(client.call(server.id, ECHO, "hello").await, Ok(Bytes::from("hello")));
    assert_eq!(server.server.garbage(), 5);
}

/// A member with a broken program.
#[tokio::test]
async fn requests_without_sense_are_no_calls() {
    let secrets = [secret()];
    let server = Node::start(&secrets).await;
    let member = Trust::new(&secrets, &key()).unwrap();
    let socket = TcpStream::connect(server.server.address()).await.unwrap();
    let name = ServerName::IpAddress(server.server.address().ip().into());
    let mut stream = TlsConnector::from(member.client()).connect(name, socket).await.unwrap();
    hello::as_client(&mut stream, &member, Lane::Bodies).await.unwrap();
    let tasks = Tasks::new();
    let http = hyper::client::conn::http2::handshake(tasks.executor("test"), TokioIo::new(stream));
    let (mut sender, connection) = http.await.unwrap();
    tasks.spawn("test", connection.map(drop));
    let header = |node| Header { node, cluster: CLUSTER, epoch: Epoch::new(1), ..Header::default() };
    let framed = |node| {
        let frame = Frame { kind: Kind::Request, service: ECHO, header: header(node), body: Bytes::from("hello") };
        frame.encode().unwrap()
    };
    let own = member.node_key().node_id();

    let mut expect = async |path: &str, body: Bytes, status: StatusCode| {
        let request = Request::post(format!("http://peer{path}")).body(Full::new(body)).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), status, "{path}");
    };
    expect("/200", framed(own), StatusCode::OK).await;
    expect("/", framed(own), StatusCode::NOT_FOUND).await;
    expect("/999", framed(own), StatusCode::NOT_FOUND).await;
    expect("/200", Bytes::from("junk"), StatusCode::BAD_REQUEST).await;
    expect("/201", framed(own), StatusCode::BAD_REQUEST).await;
    expect("/200", framed(server.id), StatusCode::BAD_REQUEST).await;
    assert_eq!(server.server.garbage(), 5);
}

/// A directory that was copied and started: the process that started first is told to end.
#[tokio::test]
async fn a_newer_life_of_this_node_is_noticed_on_both_sides() {
    let secrets = [secret()];
    let key = key();
    let node = async || {
        let trust = Trust::new(&secrets, &key).unwrap();
        Node::with(trust, ServerLimits::default(), ClientLimits::default()).await
    };
    let (older, newer) = (node().await, node().await);
    older.standing.start(Incarnation::new(5));
    newer.standing.start(Incarnation::new(8));
    let (tell, mut told) = mpsc::channel(4);
    older.standing.on_newer_self(move |newer| tell.try_send(newer).unwrap());

    newer.client.book().insert(older.id, older.server.address().to_string());
    let refused = newer.call(older.id, ECHO, "hello").await;
    assert_eq!(refused, Err(CallError::Refused(Refusal::OldSelf { newer: Incarnation::new(8) })));
    assert_eq!(told.try_recv(), Ok(Incarnation::new(8)));

    older.client.book().insert(newer.id, newer.server.address().to_string());
    assert_eq!(older.call(newer.id, ECHO, "hello").await, Ok(Bytes::from("hello")));
    assert_eq!(told.try_recv(), Ok(Incarnation::new(8)));
}

//! Calls to other nodes: HTTP/2 over mutual TLS, one connection for each node and lane.
//!
//! A connection is made when a call needs one, by a task of its own: calls with short deadlines wait for it and give up
//! one by one without starting it anew. After a failure calls fail at once until the next attempt is due.

mod connect;
mod link;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use metrics::{counter, histogram};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use connect::resolve;
use connect::{Connector, Sender};
use link::Link;

use super::frame::{self, FRAME_MAX, Frame, HEAD_LEN, Kind};
use super::metrics::{CALL_DURATION, CALLS};
use super::standing::Standing;
use super::trust::LiveTrust;
use super::{CallError, Lane, Refusal, Service, Transport};
use crate::clock;
use crate::id::NodeId;
use crate::tasks::Tasks;

/// Nodes with a connection, times lanes. A cluster has at most 64 nodes; beyond it calls to further nodes are `Busy`.
const LINKS_MAX: usize = 2 * 128;

/// Calls by address at once; they have a connection each. Beyond it they are `Busy`.
const BY_ADDRESS_MAX: usize = 16;

/// Times a call looks for a connection that works before it gives up within its deadline.
const TRIES_MAX: usize = 2;

/// How patient the client is.
#[derive(Clone, Debug)]
pub struct ClientLimits {
    /// To resolve, connect and prove, together.
    pub connect_max: Duration,
    /// Open calls to one node on one lane; one more is `Busy`.
    pub inflight_max: usize,
    /// A ping so often, and so long for its answer: a silent node is noticed within twice this.
    pub ping: Duration,
    /// After the first failure to connect; doubles with each, with jitter.
    pub retry_min: Duration,
    pub retry_max: Duration,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            connect_max: Duration::from_secs(3),
            inflight_max: 256,
            ping: Duration::from_secs(1),
            retry_min: Duration::from_millis(25),
            retry_max: Duration::from_millis(500),
        }
    }
}

/// Where nodes live: `host:port` each. Written by whoever learns it, read by every call. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct AddressBook {
    addresses: Arc<ArcSwap<HashMap<NodeId, String>>>,
}

impl AddressBook {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn get(&self, node: NodeId) -> Option<String> {
        self.addresses.load().get(&node).cloned()
    }

    pub fn contains(&self, node: NodeId) -> bool {
        self.addresses.load().contains_key(&node)
    }

    pub fn insert(&self, node: NodeId, address: impl Into<String>) {
        let address = address.into();
        self.addresses.rcu(|book| {
            let mut book = HashMap::clone(book);
            book.insert(node, address.clone());
            book
        });
    }

    pub fn remove(&self, node: NodeId) {
        self.addresses.rcu(|book| {
            let mut book = HashMap::clone(book);
            book.remove(&node);
            book
        });
    }

    /// Replaces the whole book.
    pub fn set(&self, addresses: HashMap<NodeId, String>) {
        self.addresses.store(Arc::new(addresses));
    }
}

/// Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub struct PeerClient {
    shared: Arc<Shared>,
}

struct Shared {
    connector: Connector,
    standing: Arc<Standing>,
    book: AddressBook,
    links: Mutex<HashMap<(NodeId, Lane), Arc<Link>>>,
    by_address: Semaphore,
    limits: ClientLimits,
    tasks: Tasks,
}

impl PeerClient {
    pub fn new(
        trust: LiveTrust,
        standing: Arc<Standing>,
        book: AddressBook,
        limits: ClientLimits,
        tasks: &Tasks,
    ) -> Self {
        let connector = Connector::new(trust, limits.clone(), tasks.clone());
        let shared = Shared {
            connector,
            standing,
            book,
            links: Mutex::default(),
            by_address: Semaphore::new(BY_ADDRESS_MAX),
            limits,
            tasks: tasks.clone(),
        };
        Self { shared: Arc::new(shared) }
    }

    pub fn book(&self) -> &AddressBook {
        &self.shared.book
    }
}

impl Transport for PeerClient {
    fn call(
        &self,
        to: NodeId,
        lane: Lane,
        service: Service,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let shared = Arc::clone(&self.shared);
        async move {
            let began = clock::now();
            let outcome = match timeout(deadline, shared.call(to, lane, service, body)).await {
                Ok(outcome) => outcome,
                Err(_elapsed) => Err(CallError::Timeout { deadline }),
            };
            let word = outcome.as_ref().map_or_else(CallError::name, |_| "ok");
            counter!(CALLS, "lane" => lane.name(), "outcome" => word).increment(1);
            if outcome.is_ok() {
                histogram!(CALL_DURATION, "lane" => lane.name()).record(began.elapsed().as_secs_f64());
            }
            outcome
        }
        .boxed()
    }

    fn call_address(
        &self,
        address: &str,
        service: Service,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<(NodeId, Bytes), CallError>> {
        let shared = Arc::clone(&self.shared);
        let address = address.to_owned();
        async move {
            match timeout(deadline, shared.call_address(&address, service, body)).await {
                Ok(outcome) => outcome,
                Err(_elapsed) => Err(CallError::Timeout { deadline }),
            }
        }
        .boxed()
    }
}

impl Shared {
    async fn call(self: &Arc<Self>, to: NodeId, lane: Lane, service: Service, body: Bytes) -> Result<Bytes, CallError> {
        let request = self.request(service, body)?;
        let link = self.link(to, lane)?;
        let _place = link.calls.try_acquire().map_err(|_full| CallError::Busy { node: to })?;
        let mut tries = 0;
        loop {
            tries += 1;
            let mut sender = link.sender(self).await?;
            match sender.ready().await {
                Ok(()) => return self.exchange(to, service, &mut sender, request).await,
                Err(closed) if tries == TRIES_MAX => {
                    return Err(CallError::Unreachable { address: to.to_string(), why: words(&closed) });
                }
                // It closed while nobody used it; nothing was sent. Looking again finds that, too.
                Err(_closed) => {}
            }
        }
    }

    async fn call_address(
        self: &Arc<Self>,
        address: &str,
        service: Service,
        body: Bytes,
    ) -> Result<(NodeId, Bytes), CallError> {
        let request = self.request(service, body)?;
        let unreachable = |why: String| CallError::Unreachable { address: address.to_owned(), why };
        let Ok(_place) = self.by_address.try_acquire() else {
            return Err(unreachable(format!("{BY_ADDRESS_MAX} calls by address are open already")));
        };
        let connected = self.connector.connect(address, Lane::Bodies).await;
        let (node, mut sender) = connected.map_err(|cause| unreachable(cause.to_string()))?;
        sender.ready().await.map_err(|closed| unreachable(words(&closed)))?;
        let reply = self.exchange(node, service, &mut sender, request).await?;
        Ok((node, reply))
    }

    fn request(&self, service: Service, body: Bytes) -> Result<Bytes, CallError> {
        let frame = Frame { kind: Kind::Request, service, header: self.standing.get(), body };
        frame.encode().map_err(|cause| CallError::Unsendable { why: cause.to_string() })
    }

    async fn exchange(
        &self,
        to: NodeId,
        service: Service,
        sender: &mut Sender,
        frame: Bytes,
    ) -> Result<Bytes, CallError> {
        let uri = format!("http://peer/{}", service.0);
        let request = Request::builder().method(Method::POST).uri(uri).body(Full::new(frame));
        let request = request.map_err(|cause| CallError::Unsendable { why: cause.to_string() })?;
        let broken = |cause: &dyn std::error::Error| CallError::Broken { why: words(cause) };
        let reply = sender.send_request(request).await.map_err(|cause| broken(&cause))?;
        if reply.status() != StatusCode::OK {
            return Err(CallError::Protocol { why: format!("status {}", reply.status()) });
        }
        let bytes = Limited::new(reply.into_body(), HEAD_LEN + FRAME_MAX).collect().await;
        let bytes = bytes.map_err(|cause| broken(&*cause))?.to_bytes();
        self.reply(to, service, &bytes)
    }

    fn reply(&self, to: NodeId, service: Service, bytes: &Bytes) -> Result<Bytes, CallError> {
        let frame = Frame::decode(bytes).map_err(|cause| CallError::Protocol { why: cause.to_string() })?;
        if frame.header.node != to || frame.service != service {
            let why = format!("service {} of {} answers", frame.service.0, frame.header.node);
            return Err(CallError::Protocol { why });
        }
        self.standing.observe(&frame.header);
        if let Some(newer) = self.standing.outlived(&frame.header) {
            return Err(CallError::Broken { why: format!("an earlier life of the node answers; it lives as {newer}") });
        }
        match frame.kind {
            Kind::Reply => Ok(frame.body),
            Kind::Request => Err(CallError::Protocol { why: "a request came back".to_owned() }),
            Kind::Refusal => {
                let refusal = frame::from_bytes(&frame.body)?;
                if let Refusal::OldSelf { newer } = refusal {
                    self.standing.told_of(newer);
                }
                Err(if let Refusal::WrongCluster { cluster, epoch } = refusal {
                    CallError::WrongCluster { cluster, epoch }
                } else {
                    CallError::Refused(refusal)
                })
            }
        }
    }

    fn link(&self, node: NodeId, lane: Lane) -> Result<Arc<Link>, CallError> {
        let mut links = self.links.lock();
        if let Some(link) = links.get(&(node, lane)) {
            return Ok(Arc::clone(link));
        }
        if links.len() >= LINKS_MAX {
            links.retain(|(node, _lane), _link| self.book.contains(*node));
        }
        if links.len() >= LINKS_MAX {
            return Err(CallError::Busy { node });
        }
        let link = Arc::new(Link::new(node, lane, self.limits.inflight_max));
        links.insert((node, lane), Arc::clone(&link));
        Ok(link)
    }
}

/// An error with what caused it: hyper's own words alone say little.
fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}

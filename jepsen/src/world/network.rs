//! A network in memory: calls are late, lost, blocked one way or both, and overtake each other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster::id::{ClusterId, Epoch, Incarnation, NodeId};
use cluster::peer::{CallError, Caller, Handler, Lane, Service, Transport};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::pause::Pause;
use crate::random::Random;

/// Cheap to clone; clones are the same network.
#[derive(Clone)]
pub struct Network(Arc<Mutex<Inner>>);

struct Inner {
    random: Random,
    alive: HashMap<NodeId, Alive>,
    /// From, to.
    blocked: HashSet<(NodeId, NodeId)>,
    loss_percent: u32,
    delay: (u64, u64),
    lost: u64,
    blocked_calls: u64,
}

#[derive(Clone)]
struct Alive {
    life: u64,
    services: Arc<HashMap<Service, Arc<dyn Handler>>>,
    pause: Pause,
}

/// What the network did to calls, for the coverage check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Harm {
    pub lost: u64,
    pub blocked: u64,
}

impl Network {
    pub fn new(random: Random) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            random,
            alive: HashMap::new(),
            blocked: HashSet::new(),
            loss_percent: 0,
            delay: (0, 3),
            lost: 0,
            blocked_calls: 0,
        })))
    }

    /// While it stands still, what it sends and what is sent to it waits.
    pub fn plug_in(&self, node: NodeId, life: u64, services: Vec<(Service, Arc<dyn Handler>)>, pause: Pause) {
        let services = Arc::new(services.into_iter().collect());
        self.0.lock().alive.insert(node, Alive { life, services, pause });
    }

    pub fn unplug(&self, node: NodeId) {
        self.0.lock().alive.remove(&node);
    }

    pub fn block(&self, from: NodeId, to: NodeId) {
        self.0.lock().blocked.insert((from, to));
    }

    pub fn lose(&self, percent: u32) {
        self.0.lock().loss_percent = percent;
    }

    pub fn delay(&self, from: u64, to: u64) {
        self.0.lock().delay = (from, to);
    }

    pub fn heal(&self) {
        let mut inner = self.0.lock();
        inner.blocked.clear();
        inner.loss_percent = 0;
        inner.delay = (0, 3);
    }

    pub fn harm(&self) -> Harm {
        let inner = self.0.lock();
        Harm { lost: inner.lost, blocked: inner.blocked_calls }
    }

    /// How `node` in its life `life` calls others.
    pub fn transport(&self, node: NodeId, life: u64) -> Arc<dyn Transport> {
        Arc::new(Plug { network: self.clone(), node, life })
    }

    /// How long one way takes; `None` when what is sent never arrives.
    fn way(&self, from: NodeId, to: NodeId) -> Option<Duration> {
        let mut inner = self.0.lock();
        if inner.blocked.contains(&(from, to)) {
            inner.blocked_calls += 1;
            return None;
        }
        let loss = inner.loss_percent;
        if inner.random.percent(loss) {
            inner.lost += 1;
            return None;
        }
        let (least, most) = inner.delay;
        Some(inner.random.milliseconds(least..most.max(least + 1)))
    }

    fn handler(&self, node: NodeId, service: Service) -> Option<Arc<dyn Handler>> {
        self.0.lock().alive.get(&node)?.services.get(&service).cloned()
    }

    /// One that is not there stands for nothing.
    fn pause(&self, node: NodeId) -> Pause {
        self.0.lock().alive.get(&node).map(|alive| alive.pause.clone()).unwrap_or_default()
    }

    fn lives(&self, node: NodeId, life: u64) -> bool {
        self.0.lock().alive.get(&node).is_some_and(|alive| alive.life == life)
    }
}

struct Plug {
    network: Network,
    node: NodeId,
    life: u64,
}

async fn never() -> Result<Bytes, CallError> {
    std::future::pending().await
}

async fn carry(
    network: Network,
    (from, life): (NodeId, u64),
    to: NodeId,
    service: Service,
    body: Bytes,
) -> Result<Bytes, CallError> {
    if !network.lives(from, life) {
        return never().await;
    }
    network.pause(from).over().await;
    let Some(there) = network.way(from, to) else { return never().await };
    tokio::time::sleep(there).await;
    let pause = network.pause(to);
    pause.over().await;
    let Some(handler) = network.handler(to, service) else {
        return Err(CallError::Unreachable { address: to.to_string(), why: "it is down".to_owned() });
    };
    let caller = Caller {
        node: from,
        incarnation: Incarnation::default(),
        cluster: ClusterId::NONE,
        epoch: Epoch::default(),
        address: None,
    };
    let answer = pause.hold(handler.handle(caller, body)).await.map_err(CallError::Refused);
    let Some(back) = network.way(to, from) else { return never().await };
    tokio::time::sleep(back).await;
    network.pause(from).over().await;
    if network.lives(from, life) { answer } else { never().await }
}

impl Transport for Plug {
    fn call(
        &self,
        to: NodeId,
        _lane: Lane,
        service: Service,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let carried = carry(self.network.clone(), (self.node, self.life), to, service, body);
        async move { tokio::time::timeout(deadline, carried).await.unwrap_or(Err(CallError::Timeout { deadline })) }
            .boxed()
    }

    fn call_address(
        &self,
        address: &str,
        service: Service,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<(NodeId, Bytes), CallError>> {
        let Ok(node) = address.parse::<NodeId>() else {
            let (address, why) = (address.to_owned(), "no such address".to_owned());
            return async move { Err(CallError::Unreachable { address, why }) }.boxed();
        };
        let called = self.call(node, Lane::Bodies, service, body, deadline);
        async move { Ok((node, called.await?)) }.boxed()
    }
}

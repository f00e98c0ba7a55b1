//! Requests a second of a key, on all nodes: the keys this node owns go by its clock, for the others it asks their owners.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::clock;
use cluster::id::NodeId;
use cluster::limits::pace::{ASKS_MAX, Answer, Ask, Frame, Given, Pacer};
use cluster::limits::{ASK_WITHIN, View};
use cluster::peer::frame::{from_bytes, to_bytes};
use cluster::peer::{CallError, Caller, Handler, Lane, Refusal, Service};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tracing::debug;

use super::{Inner, Member, rates};
use crate::config::reload::describe;

/// The pace of the keys that this node owns.
pub struct Pace {
    born: Instant,
    pacer: Mutex<Pacer>,
}

impl Pace {
    pub fn new() -> Self {
        Self { born: clock::now(), pacer: Mutex::default() }
    }

    fn time(&self) -> Duration {
        clock::now().saturating_duration_since(self.born)
    }

    /// As the owner of the key.
    fn give(&self, ask: &Ask, view: &View) -> Given {
        let leave = u32::try_from(view.leave(ask.per_second.into())).unwrap_or(ask.per_second);
        self.pacer.lock().give(&Ask { per_second: leave, ..*ask }, self.time())
    }

    /// What a request asks of the owner of its key.
    pub(super) async fn ask(&self, inner: Weak<Inner>, ask: Ask) -> Option<Given> {
        let inner = inner.upgrade()?;
        let view = rates::view(&inner);
        let owner = view.owner(ask.key)?;
        if owner == view.me {
            return Some(self.give(&ask, &view));
        }
        let answer = call(&inner, owner, &Frame { asks: vec![ask] }).await;
        let answer =
            answer.inspect_err(|error| debug!(%owner, error = describe(error), "a key's owner does not answer"));
        answer.ok()?.given.first().copied().flatten()
    }
}

async fn call(inner: &Inner, owner: NodeId, frame: &Frame) -> Result<Answer, CallError> {
    let body = to_bytes(frame)?;
    let answer = inner.transport.call(owner, Lane::Bodies, Service::PACE, body, ASK_WITHIN).await?;
    Ok(from_bytes(&answer)?)
}

/// Answers the asks of others.
pub fn answering(member: &Member) -> Arc<dyn Handler> {
    Arc::new(Answering { pace: Arc::clone(&member.0.pace), inner: Arc::downgrade(&member.0) })
}

/// Does not keep the node alive.
struct Answering {
    pace: Arc<Pace>,
    inner: Weak<Inner>,
}

impl Handler for Answering {
    fn handle(&self, _from: Caller, body: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let pace = Arc::clone(&self.pace);
        let view = self.inner.upgrade().map(|inner| rates::view(&inner));
        async move {
            let frame: Frame = from_bytes(&body)?;
            if frame.asks.len() > ASKS_MAX {
                let why = format!("a frame asks for at most {ASKS_MAX} keys; this asks for {}", frame.asks.len());
                return Err(Refusal::Malformed { why });
            }
            let view = view.as_ref();
            let own = |ask: &Ask| view.filter(|view| view.owner(ask.key) == Some(view.me));
            let given = frame.asks.iter().map(|ask| own(ask).map(|view| pace.give(ask, view)));
            Ok(to_bytes(&Answer { given: given.collect() })?)
        }
        .boxed()
    }
}

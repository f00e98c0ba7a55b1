//! Requests of a key at once, on all nodes: who lends the slots of which key, what this node lends, and what it tells the
//! others of those it uses.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use actors::ingress::pipeline::Gateway;
use arc_swap::ArcSwap;
use bytes::Bytes;
use cluster::clock;
use cluster::id::NodeId;
use cluster::limits::slots::lender::Lender;
use cluster::limits::slots::{ALL_EVERY, Answer, Frame, Lent, Roll, TOLD_MAX, Told};
use cluster::limits::{ASK_WITHIN, FRAME_EVERY};
use cluster::membership::Member as Peer;
use cluster::peer::frame::{from_bytes, to_bytes};
use cluster::peer::{CallError, Caller, Handler, Lane, Refusal, Service};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::{Inner, Member, rates};
use crate::config::reload::describe;

/// What this node lends, and whom it takes for the lenders of the rest.
pub struct Slots {
    born: Instant,
    roll: ArcSwap<Roll>,
    lender: Mutex<Lender>,
    /// Another for each life of this process.
    life: u64,
}

impl Slots {
    pub fn new() -> Result<Self, getrandom::Error> {
        let life = getrandom::u64()?;
        Ok(Self { born: clock::now(), roll: ArcSwap::default(), lender: Mutex::default(), life })
    }

    fn time(&self) -> Duration {
        clock::now().saturating_duration_since(self.born)
    }

    fn answer(&self, from: NodeId, frame: &Frame) -> Answer {
        self.lender.lock().hear(from, frame, self.time())
    }

    /// Who is there now: whoever asks and whoever is asked go by the same as soon as gossip has told both.
    fn look(&self, inner: &Inner) {
        // One at a time, so that the lender sees what is published, in that order.
        let mut lender = self.lender.lock();
        let roll = roll(inner);
        if **self.roll.load() != roll {
            lender.see(&roll, self.time());
            self.roll.store(Arc::new(roll));
        }
    }

    /// What a request asks of the owner of its key. What one says that is not the owner any more is void.
    pub(super) async fn ask(&self, inner: Weak<Inner>, told: Told) -> Option<Lent> {
        let inner = inner.upgrade()?;
        self.look(&inner);
        let roll = self.roll.load_full();
        let owner = roll.view.owner(told.key)?;
        let frame = Frame { life: self.life, stamp: roll.stamp(), sequence: 0, all: false, told: vec![told] };
        let answer = send(&inner, self, owner, &frame, ASK_WITHIN).await?;
        self.look(&inner);
        let is_owner = self.roll.load().view.owner(told.key) == Some(owner);
        answer.lent.into_iter().find(|lent| lent.key == told.key).filter(|_| is_owner)
    }
}

/// Answers the frames of others.
pub fn answering(member: &Member) -> Arc<dyn Handler> {
    Arc::new(Answering { slots: Arc::clone(&member.0.slots), inner: Arc::downgrade(&member.0) })
}

/// Does not keep the node alive.
struct Answering {
    slots: Arc<Slots>,
    inner: Weak<Inner>,
}

impl Handler for Answering {
    fn handle(&self, from: Caller, body: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let slots = Arc::clone(&self.slots);
        if let Some(inner) = self.inner.upgrade() {
            slots.look(&inner);
        }
        async move {
            let frame: Frame = from_bytes(&body)?;
            if frame.told.len() > TOLD_MAX {
                let why = format!("a frame tells of at most {TOLD_MAX} keys; this has {}", frame.told.len());
                return Err(Refusal::Malformed { why });
            }
            Ok(to_bytes(&slots.answer(from.node, &frame))?)
        }
        .boxed()
    }
}

/// By which members an owner was told all that is used here, and when.
#[derive(Clone, Copy)]
struct ToldAll {
    stamp: u64,
    at: Duration,
}

/// The owners are told what is used here, until the node ends: at once of what is free again, and of all now and then.
pub async fn tell(inner: Arc<Inner>, gateway: Arc<Gateway>) {
    let slots = Arc::clone(&inner.slots);
    let mut ticks = interval(FRAME_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut owners: BTreeMap<NodeId, ToldAll> = BTreeMap::new();
    loop {
        let only_spare = tokio::select! {
            biased;
            _at = ticks.tick() => false,
            () = gateway.queue.spare_slots() => true,
        };
        slots.look(&inner);
        let (roll, now) = (slots.roll.load_full(), slots.time());
        let stamp = roll.stamp();
        let is_due = |node: &&NodeId| {
            let known = owners.get(*node).is_some_and(|told| told.stamp == stamp && now < told.at + ALL_EVERY);
            !only_spare && !known
        };
        let due = roll.view.ready.iter().filter(is_due).map(|node| (*node, Vec::new()));
        let mut by_owner: BTreeMap<NodeId, Vec<Told>> = due.collect();
        let (sequence, told) = gateway.queue.tell_slots(only_spare, clock::now());
        for told in told {
            match roll.view.owner(told.key) {
                Some(owner) => by_owner.entry(owner).or_default().push(told),
                None => gateway.queue.hear_slots(&[told], None, clock::now()),
            }
        }
        let frame = |all, told| Frame { life: slots.life, stamp, sequence, all, told };
        let frames = by_owner.into_iter().flat_map(|(owner, told)| {
            if told.len() <= TOLD_MAX {
                return vec![(owner, frame(!only_spare, told))];
            }
            told.chunks(TOLD_MAX).map(|told| (owner, frame(false, told.to_vec()))).collect()
        });
        let answers = join_all(frames.map(|(owner, frame)| exchange(&inner, &gateway, owner, frame))).await;
        owners.retain(|node, _told| roll.view.ready.contains(node));
        owners.extend(answers.into_iter().flatten().map(|owner| (owner, ToldAll { stamp, at: now })));
    }
}

/// The owner, if it has been told all and goes by the same members.
async fn exchange(inner: &Inner, gateway: &Gateway, owner: NodeId, frame: Frame) -> Option<NodeId> {
    let answer = send(inner, &inner.slots, owner, &frame, FRAME_EVERY).await;
    let lent = answer.as_ref().map(|answer| answer.lent.as_slice());
    gateway.queue.hear_slots(&frame.told, lent, clock::now());
    answer.filter(|answer| frame.all && answer.stamp == frame.stamp).map(|_answer| owner)
}

async fn send(inner: &Inner, slots: &Slots, owner: NodeId, frame: &Frame, within: Duration) -> Option<Answer> {
    if owner == inner.introduction.me {
        return Some(slots.answer(owner, frame));
    }
    let answer = call(inner, owner, frame, within).await;
    answer.inspect_err(|error| debug!(%owner, error = describe(error), "an owner of slots does not answer")).ok()
}

async fn call(inner: &Inner, owner: NodeId, frame: &Frame, within: Duration) -> Result<Answer, CallError> {
    let body = to_bytes(frame)?;
    let answer = inner.transport.call(owner, Lane::Bodies, Service::SLOTS, body, within).await?;
    Ok(from_bytes(&answer)?)
}

fn roll(inner: &Inner) -> Roll {
    let view = rates::view(inner);
    let Some(membership) = inner.gossip.get() else { return Roll { view, ..Roll::default() } };
    let members = membership.members();
    let members = members.borrow();
    let ready: Vec<&Peer> = members.ready().collect();
    let lives = ready.iter().map(|member| member.generation).collect();
    let view = cluster::limits::View { ready: ready.iter().map(|member| member.node).collect(), ..view };
    Roll { view, lives, alive: members.alive().map(|member| member.node).collect() }
}

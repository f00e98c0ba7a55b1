//! Limits of requests and tokens that hold for all nodes: who owns which, what this node owns, and the frames in which it
//! tells other owners what was used here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actors::ingress::pipeline::Gateway;
use actors::queue::shared::Owners;
use arc_swap::ArcSwap;
use bytes::Bytes;
use cluster::clock;
use cluster::id::NodeId;
use cluster::limits::pace::{Ask, Given};
use cluster::limits::slots::{Lent, Told};
use cluster::limits::table::Table;
use cluster::limits::{ASK_WITHIN, Answer, FRAME_EVERY, Frame, REPORTS_MAX, Report, View};
use cluster::peer::frame::{from_bytes, to_bytes};
use cluster::peer::{CallError, Caller, Handler, Lane, Refusal, Service};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::pace::Pace;
use super::slots::{self, Slots};
use super::{Inner, Member};
use crate::config::reload::describe;

/// What this node owns, and whom it takes for the owners of the rest.
pub struct Rates {
    born: Instant,
    view: ArcSwap<View>,
    table: Mutex<Table>,
    /// Another for each life of this process.
    life: u64,
}

impl Rates {
    pub fn new(me: NodeId) -> Result<Self, getrandom::Error> {
        let life = getrandom::u64()?;
        Ok(Self {
            born: clock::now(),
            view: ArcSwap::from_pointee(View { me, ..View::default() }),
            table: Mutex::new(Table::new(life)),
            life,
        })
    }

    /// What this node says to reports about limits it owns, as far as it sees.
    fn answer(&self, from: NodeId, frame: &Frame) -> Answer {
        let view = self.view.load();
        let now = clock::now().saturating_duration_since(self.born);
        let mut table = self.table.lock();
        let own = frame.reports.iter().filter(|report| view.owner(report.limit.key) == Some(view.me));
        let shares = own.filter_map(|report| table.hear((from, frame.life), report, &view, now)).collect();
        Answer { life: self.life, shares }
    }

    /// Who is there now: whoever asks and whoever is asked go by the same as soon as gossip has told both.
    fn look(&self, inner: &std::sync::Weak<Inner>) {
        if let Some(inner) = inner.upgrade() {
            self.see(view(&inner));
        }
    }

    /// The members changed: who owned a limit before may still have told caps.
    fn see(&self, view: View) {
        if **self.view.load() != view {
            self.table.lock().settle(clock::now().saturating_duration_since(self.born));
            self.view.store(Arc::new(view));
        }
    }
}

/// Answers the frames of others.
pub fn answering(member: &Member) -> Arc<dyn Handler> {
    Arc::new(Answering { rates: Arc::clone(&member.0.rates), inner: Arc::downgrade(&member.0) })
}

/// Does not keep the node alive.
struct Answering {
    rates: Arc<Rates>,
    inner: std::sync::Weak<Inner>,
}

impl Handler for Answering {
    fn handle(&self, from: Caller, body: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let rates = Arc::clone(&self.rates);
        rates.look(&self.inner);
        async move {
            let frame: Frame = from_bytes(&body)?;
            if frame.reports.len() > REPORTS_MAX {
                let why = format!("a frame has at most {REPORTS_MAX} reports; this has {}", frame.reports.len());
                return Err(Refusal::Malformed { why });
            }
            Ok(to_bytes(&rates.answer(from.node, &frame))?)
        }
        .boxed()
    }
}

/// Reaches owners from this node. Does not keep it alive.
struct FromHere {
    rates: Arc<Rates>,
    slots: Arc<Slots>,
    pace: Arc<Pace>,
    inner: std::sync::Weak<Inner>,
}

impl Owners for FromHere {
    fn ask(&self, key: u64, reports: Vec<Report>) -> BoxFuture<'static, Option<Answer>> {
        self.rates.look(&self.inner);
        let view = self.rates.view.load();
        let Some(owner) = view.owner(key) else { return std::future::ready(None).boxed() };
        let frame = Frame { life: self.rates.life, reports };
        if owner == view.me {
            return std::future::ready(Some(self.rates.answer(owner, &frame))).boxed();
        }
        let Some(inner) = self.inner.upgrade() else { return std::future::ready(None).boxed() };
        async move { told(call(&inner, owner, &frame, ASK_WITHIN).await, owner) }.boxed()
    }

    fn ask_slots(&self, told: Told) -> BoxFuture<'static, Option<Lent>> {
        let (slots, inner) = (Arc::clone(&self.slots), std::sync::Weak::clone(&self.inner));
        async move { slots.ask(inner, told).await }.boxed()
    }

    fn ask_pace(&self, ask: Ask) -> BoxFuture<'static, Option<Given>> {
        let (pace, inner) = (Arc::clone(&self.pace), std::sync::Weak::clone(&self.inner));
        async move { pace.ask(inner, ask).await }.boxed()
    }

    fn part(&self, key: u64, limit: u64) -> u64 {
        self.rates.view.load().part(key, limit)
    }
}

/// From now on the limits of this node's keys are those of all nodes.
pub fn share(member: &Member, gateway: Arc<Gateway>) {
    let (rates, slots, pace) = (Arc::clone(&member.0.rates), Arc::clone(&member.0.slots), Arc::clone(&member.0.pace));
    gateway.queue.share(Arc::new(FromHere { rates, slots, pace, inner: Arc::downgrade(&member.0) }));
    member.0.tasks.spawn("slots", slots::tell(Arc::clone(&member.0), Arc::clone(&gateway)));
    member.0.tasks.spawn("rates", tell(Arc::clone(&member.0), gateway));
}

/// Who is there is looked at, and the owners are told, until the node ends.
async fn tell(inner: Arc<Inner>, gateway: Arc<Gateway>) {
    let mut ticks = interval(FRAME_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        inner.rates.see(view(&inner));
        let view = inner.rates.view.load_full();
        let mut by_owner: BTreeMap<Option<NodeId>, Vec<Report>> = BTreeMap::new();
        for report in gateway.queue.reports(clock::now()) {
            by_owner.entry(view.owner(report.limit.key)).or_default().push(report);
        }
        let frames = by_owner.into_iter().flat_map(|(owner, reports)| {
            let chunks: Vec<Vec<Report>> = reports.chunks(REPORTS_MAX).map(<[Report]>::to_vec).collect();
            chunks.into_iter().map(move |reports| (owner, reports))
        });
        join_all(frames.map(|(owner, reports)| exchange(&inner, &gateway, owner, reports))).await;
    }
}

async fn exchange(inner: &Inner, gateway: &Gateway, owner: Option<NodeId>, reports: Vec<Report>) {
    let sent = clock::now();
    let frame = Frame { life: inner.rates.life, reports };
    let answer = match owner {
        None => None,
        Some(owner) if owner == inner.introduction.me => Some(inner.rates.answer(owner, &frame)),
        Some(owner) => told(call(inner, owner, &frame, FRAME_EVERY).await, owner),
    };
    gateway.queue.hear(&frame.reports, answer.as_ref(), sent, clock::now());
}

async fn call(inner: &Inner, owner: NodeId, frame: &Frame, within: Duration) -> Result<Answer, CallError> {
    let body = to_bytes(frame)?;
    let answer = inner.transport.call(owner, Lane::Bodies, Service::RATES, body, within).await?;
    Ok(from_bytes(&answer)?)
}

fn told(answer: Result<Answer, CallError>, owner: NodeId) -> Option<Answer> {
    answer.inspect_err(|error| debug!(%owner, error = describe(error), "an owner of limits does not answer")).ok()
}

/// Who is there, by gossip; who belongs to the cluster and is not there may be serving elsewhere, and counts.
pub(super) fn view(inner: &Inner) -> View {
    let me = inner.introduction.me;
    let metrics = inner.consensus.metrics();
    let metrics = metrics.borrow();
    let voters = || metrics.membership_config.voter_ids();
    let many = |nodes: usize| u64::try_from(nodes).unwrap_or(u64::MAX);
    let Some(membership) = inner.gossip.get() else {
        return View { me, members: many(metrics.membership_config.nodes().count().max(1)), ..View::default() };
    };
    let members = membership.members();
    let members = members.borrow();
    let there = voters().filter(|voter| members.alive().any(|member| member.node == *voter)).count();
    let (alive, voters) = (members.alive().count(), voters().count());
    let all = metrics.membership_config.nodes().count();
    View {
        me,
        ready: members.ready().map(|member| member.node).collect(),
        members: many(alive.max(all)),
        cut_off: 2 * there <= voters,
    }
}

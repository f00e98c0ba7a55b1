//! One-for-one restarts with a limit; addresses that outlive an incarnation; bounded mailboxes; tracked tasks.
//!
//! Owns       its children: how to make each, when each died, where each is reached.
//! Told by    ractor: a child ended. A child is restarted after a pause that doubles; one that dies more than
//!            `restarts_max` times within `within` ends the supervisor, and the process leaves cleanly with the reason.
//! Publishes  every child's [`Address`], and its own failure.
//! Restarts   never: above it there is only the process.

pub mod metrics;
mod tasks;

pub use tasks::{Executor, Remaining, Tasks};

use crate::metrics::KeptCounter;
use arc_swap::ArcSwapOption;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tracing::{error, info, warn};

/// How long a child's `pre_start` may take. It only publishes a state; one that waits would hold up its siblings.
const START_MAX: Duration = Duration::from_secs(5);

/// How a child's death is answered.
#[derive(Clone, Copy, Debug)]
pub struct RestartPolicy {
    /// Deaths of one child within [`within`](Self::within) that are answered with a restart. One more is a failure.
    pub restarts_max: usize,
    pub within: Duration,
    /// The pause before the first restart within the window; each further one doubles it.
    pub pause: Duration,
    pub pause_max: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            restarts_max: 10,
            within: Duration::from_mins(1),
            pause: Duration::from_millis(10),
            pause_max: Duration::from_secs(1),
        }
    }
}

/// Where an actor is reached, whichever incarnation of it lives. Cheap to clone.
pub struct Address<M: Send + 'static>(Arc<ArcSwapOption<ActorRef<M>>>);

impl<M: Send + 'static> Address<M> {
    /// Puts the message into the actor's mailbox. Never waits. A message that cannot be delivered is dropped, and with
    /// it the permits it holds.
    pub fn cast(&self, message: M) -> Result<(), Gone> {
        match self.0.load().as_ref() {
            Some(actor) => actor.cast(message).map_err(|_closed| Gone),
            None => Err(Gone),
        }
    }

    fn nowhere() -> Self {
        Self(Arc::new(ArcSwapOption::empty()))
    }
}

impl<M: Send + 'static> Clone for Address<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// The actor is between two incarnations, or was retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the actor is not running")]
pub struct Gone;

/// The places in an actor's mailbox, which ractor does not bound. A place rides in the message, so that it is free
/// again when the message was handled, or dropped with its actor.
#[derive(Clone)]
pub struct Mailbox {
    places: Arc<Semaphore>,
    refused: KeptCounter,
}

impl Mailbox {
    pub fn new(room: &'static str, places_max: usize) -> Self {
        let refused = KeptCounter::new(::metrics::counter!(metrics::MAILBOX_FULL, "room" => room));
        Self { places: Arc::new(Semaphore::new(places_max)), refused }
    }

    /// A place for one message; `None`, counted, when all are taken. Never waits.
    pub fn place(&self) -> Option<Place> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok();
        if place.is_none() {
            self.refused.increment(1);
        }
        place
    }

    /// Places not taken.
    pub fn free(&self) -> usize {
        self.places.available_permits()
    }
}

/// One place; free again when dropped.
pub type Place = OwnedSemaphorePermit;

/// Why the whole tree ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("actor `{child}` of room `{room}` died {deaths} times within {within:?}, the last time because: {cause}")]
    TooManyRestarts { room: &'static str, child: Arc<str>, deaths: usize, within: Duration, cause: String },

    /// The supervisor itself died. Its children died with it.
    #[error("the supervisor died")]
    SupervisorDied,
}

/// Why a child is not running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("an actor of room `{room}` did not start")]
    Refused {
        room: &'static str,
        #[source]
        cause: SpawnErr,
    },
    #[error("an actor of room `{room}` did not start within {START_MAX:?}")]
    TooSlow { room: &'static str },
    #[error("an actor of room `{room}` panicked while it was made")]
    Panicked { room: &'static str },
    #[error("the supervisor is not running")]
    NoSupervisor,
}

/// The handle on the tree. Cheap to clone.
#[derive(Clone)]
pub struct Supervisor {
    root: ActorRef<Message>,
    standing: watch::Receiver<Standing>,
}

impl Supervisor {
    pub async fn start(policy: RestartPolicy, tasks: &Tasks) -> Result<Self, StartError> {
        let (publish, standing) = watch::channel(Standing::Running);
        let owned = Owned {
            policy,
            tasks: tasks.clone(),
            children: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            next: 0,
            publish,
        };
        match Actor::spawn(None, Root, owned).await {
            Ok((root, _ended)) => Ok(Self { root, standing }),
            Err(cause) => Err(StartError::Refused { room: "supervisor", cause }),
        }
    }

    /// Starts an actor and keeps it running. `make` is called again for every incarnation.
    ///
    /// The first start may fail, which is told here; a later one that fails counts as a death.
    pub async fn child<A, F>(&self, room: &'static str, name: Arc<str>, make: F) -> Result<Child<A::Msg>, StartError>
    where
        A: Actor,
        F: Fn() -> (A, A::Arguments) + Send + Sync + 'static,
    {
        let address = Address::nowhere();
        let maker: Arc<dyn Incarnate> = Arc::new(Maker { room, make, address: address.clone() });
        let (reply, answer) = oneshot::channel();
        self.root.cast(Message::Adopt { room, name, maker, reply }).map_err(|_closed| StartError::NoSupervisor)?;
        let key = answer.await.map_err(|_dropped| StartError::NoSupervisor)??;
        Ok(Child { address, key })
    }

    /// Stops a child for good, after the messages it already has. Its address answers [`Gone`] from then on.
    pub fn retire(&self, child: ChildKey) {
        if self.root.cast(Message::Retire { child }).is_err() {
            warn!("a child was retired after the supervisor had stopped");
        }
    }

    /// Resolves when the tree has failed; pending while all is well, and after an orderly [`stop`](Self::stop).
    pub async fn failed(&self) -> Failure {
        let mut standing = self.standing.clone();
        // An error says that the publisher is gone; what it said last stays readable.
        let _gone = standing.wait_for(|standing| !matches!(standing, Standing::Running)).await.is_err();
        let last = standing.borrow().clone();
        match last {
            Standing::Failed(failure) => failure,
            Standing::Running => Failure::SupervisorDied,
            Standing::Stopped => std::future::pending().await,
        }
    }

    /// Lets every child handle what it already has, then stops it, then itself; waits at most `deadline`.
    pub async fn stop(&self, deadline: Duration) -> Result<(), StillRunning> {
        if self.root.cast(Message::Stop { deadline }).is_err() {
            return Ok(());
        }
        self.root.wait(Some(deadline)).await.map_err(|_elapsed| StillRunning)
    }
}

/// Actors that had not stopped at the deadline.
#[derive(Debug, thiserror::Error)]
#[error("actors still ran at the deadline")]
pub struct StillRunning;

/// A running child: where to reach it, and what to [`retire`](Supervisor::retire) it by.
pub struct Child<M: Send + 'static> {
    pub address: Address<M>,
    pub key: ChildKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChildKey(u64);

/// Not bounded by permits: only composition, a reload and the restart timer send, one message a child.
enum Message {
    Adopt {
        room: &'static str,
        name: Arc<str>,
        maker: Arc<dyn Incarnate>,
        reply: oneshot::Sender<Result<ChildKey, StartError>>,
    },
    Restart {
        child: ChildKey,
    },
    Retire {
        child: ChildKey,
    },
    Stop {
        deadline: Duration,
    },
}

/// What makes a child again, whatever its type.
trait Incarnate: Send + Sync {
    /// Starts an incarnation and points the address at it.
    fn start(&self, supervisor: ActorCell) -> BoxFuture<'_, Result<ActorCell, StartError>>;
    /// Points the address nowhere.
    fn unpoint(&self);
}

struct Maker<A: Actor, F> {
    room: &'static str,
    make: F,
    address: Address<A::Msg>,
}

impl<A, F> Incarnate for Maker<A, F>
where
    A: Actor,
    F: Fn() -> (A, A::Arguments) + Send + Sync + 'static,
{
    fn start(&self, supervisor: ActorCell) -> BoxFuture<'_, Result<ActorCell, StartError>> {
        let room = self.room;
        async move {
            let made = async { (self.make)() };
            let (actor, arguments) =
                AssertUnwindSafe(made).catch_unwind().await.map_err(|_panic| StartError::Panicked { room })?;
            let started =
                tokio::time::timeout(START_MAX, Actor::spawn_linked(None, actor, arguments, supervisor)).await;
            match started {
                Ok(Ok((actor, _ended))) => {
                    let cell = actor.get_cell();
                    self.address.0.store(Some(Arc::new(actor)));
                    Ok(cell)
                }
                Ok(Err(cause)) => Err(StartError::Refused { room, cause }),
                Err(_elapsed) => Err(StartError::TooSlow { room }),
            }
        }
        .boxed()
    }

    fn unpoint(&self) {
        self.address.0.store(None);
    }
}

/// What the tree says of itself.
#[derive(Clone, Debug)]
enum Standing {
    Running,
    Stopped,
    Failed(Failure),
}

struct Root;

struct Owned {
    policy: RestartPolicy,
    tasks: Tasks,
    children: BTreeMap<ChildKey, Kept>,
    incarnations: BTreeMap<ActorId, ChildKey>,
    next: u64,
    publish: watch::Sender<Standing>,
}

struct Kept {
    room: &'static str,
    name: Arc<str>,
    maker: Arc<dyn Incarnate>,
    cell: Option<ActorCell>,
    deaths: VecDeque<Instant>,
}

impl Actor for Root {
    type Msg = Message;
    type State = Owned;
    type Arguments = Owned;

    async fn pre_start(&self, _me: ActorRef<Message>, owned: Owned) -> Result<Owned, ActorProcessingErr> {
        Ok(owned)
    }

    async fn handle(
        &self,
        me: ActorRef<Message>,
        message: Message,
        owned: &mut Owned,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Adopt { room, name, maker, reply } => {
                // Who asked may have given up; the child then runs without anyone who knows its address.
                let _asker_gone = reply.send(owned.adopt(&me, room, name, maker).await);
            }
            Message::Restart { child } => owned.restart(&me, child).await,
            Message::Retire { child } => owned.retire(child),
            Message::Stop { deadline } => owned.stop(&me, deadline).await,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<Message>,
        event: SupervisionEvent,
        owned: &mut Owned,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(actor, cause) => owned.died(&me, actor.get_id(), cause.to_string()),
            SupervisionEvent::ActorTerminated(actor, _state, reason) => {
                owned.died(&me, actor.get_id(), reason.unwrap_or_else(|| "it stopped by itself".to_owned()));
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }
}

impl Owned {
    async fn adopt(
        &mut self,
        me: &ActorRef<Message>,
        room: &'static str,
        name: Arc<str>,
        maker: Arc<dyn Incarnate>,
    ) -> Result<ChildKey, StartError> {
        let cell = maker.start(me.get_cell()).await?;
        let key = ChildKey(self.next);
        self.next += 1;
        self.incarnations.insert(cell.get_id(), key);
        self.children.insert(key, Kept { room, name, maker, cell: Some(cell), deaths: VecDeque::new() });
        Ok(key)
    }

    /// A child that is no longer in the table was retired; its end is no death.
    fn died(&mut self, me: &ActorRef<Message>, actor: ActorId, cause: String) {
        let Some(key) = self.incarnations.remove(&actor) else { return };
        let Some(child) = self.children.get_mut(&key) else { return };
        child.maker.unpoint();
        child.cell = None;
        self.answer_death(me, key, cause);
    }

    /// Restarts after a pause, or fails when this child died too often.
    fn answer_death(&mut self, me: &ActorRef<Message>, key: ChildKey, cause: String) {
        let Some(child) = self.children.get_mut(&key) else { return };
        match after_death(&mut child.deaths, cluster::clock::now(), &self.policy) {
            Answer::Restart { pause } => {
                warn!(room = child.room, child = %child.name, %cause, ?pause, "an actor died and will be restarted");
                let me = me.clone();
                self.tasks.spawn_cancellable("restart", move |token| async move {
                    let pause_over = token.run_until_cancelled(tokio::time::sleep(pause)).await.is_some();
                    if pause_over && me.cast(Message::Restart { child: key }).is_err() {
                        info!("the supervisor stopped before a restart");
                    }
                });
            }
            Answer::Fail { deaths } => {
                error!(room = child.room, child = %child.name, %cause, deaths, "an actor dies too often; the node will stop");
                let (room, child, within) = (child.room, Arc::clone(&child.name), self.policy.within);
                let failure = Failure::TooManyRestarts { room, child, deaths, within, cause };
                self.publish.send_replace(Standing::Failed(failure));
                me.stop(Some("too many restarts".to_owned()));
            }
        }
    }

    async fn restart(&mut self, me: &ActorRef<Message>, key: ChildKey) {
        let Some(child) = self.children.get_mut(&key) else { return };
        match child.maker.start(me.get_cell()).await {
            Ok(cell) => {
                ::metrics::counter!(metrics::RESTARTS, "room" => child.room).increment(1);
                self.incarnations.insert(cell.get_id(), key);
                child.cell = Some(cell);
            }
            Err(error) => {
                let cause = chain(&error);
                self.answer_death(me, key, cause);
            }
        }
    }

    fn retire(&mut self, key: ChildKey) {
        let Some(child) = self.children.remove(&key) else { return };
        child.maker.unpoint();
        if let Some(cell) = child.cell {
            self.incarnations.remove(&cell.get_id());
            if cell.drain().is_err() {
                info!(room = child.room, child = %child.name, "a retired actor had already ended");
            }
        }
    }

    async fn stop(&mut self, me: &ActorRef<Message>, deadline: Duration) {
        self.publish.send_if_modified(|standing| {
            let orderly = matches!(standing, Standing::Running);
            if orderly {
                *standing = Standing::Stopped;
            }
            orderly
        });
        self.incarnations.clear();
        let cells = std::mem::take(&mut self.children).into_values().filter_map(|child| {
            child.maker.unpoint();
            child.cell
        });
        futures_util::future::join_all(cells.map(|cell| async move {
            if cell.drain_and_wait(Some(deadline)).await.is_err() {
                cell.kill();
            }
        }))
        .await;
        me.stop(None);
    }
}

enum Answer {
    Restart { pause: Duration },
    Fail { deaths: usize },
}

/// Records a death and decides. `deaths` holds those within the window, oldest first, at most `restarts_max` + 1.
fn after_death(deaths: &mut VecDeque<Instant>, now: Instant, policy: &RestartPolicy) -> Answer {
    while deaths.front().is_some_and(|death| now.saturating_duration_since(*death) >= policy.within) {
        deaths.pop_front();
    }
    deaths.push_back(now);
    if deaths.len() > policy.restarts_max {
        return Answer::Fail { deaths: deaths.len() };
    }
    let doublings = u32::try_from(deaths.len() - 1).unwrap_or(u32::MAX).min(31);
    Answer::Restart { pause: policy.pause.saturating_mul(1 << doublings).min(policy.pause_max) }
}

/// An error and its causes in one line, for a log field.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;

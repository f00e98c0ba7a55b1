//! The exact cache of this node: one shard in memory, and the calls that are under way.
//!
//! Owns       the shard: how large it is, and that it is measured.
//! Told by    the composition: a new size. The path of a request reads and writes the published shard without a message.
//! Publishes  the [`Shard`].
//! Restarts   empty: a crash may lose answers, it may not serve one that it was told to forget.

pub mod answer;
pub mod directives;
pub mod flight;
pub mod metrics;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytesize::ByteSize;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use storage::cache::{Key, Scope, Shard, Stored};

use crate::supervisor::{Address, Child, Mailbox, Place, StartError, Supervisor};
use answer::Answer;
use directives::Directives;
use flight::{Pilot, Reader, Seat, Tower};

/// Places in the mailbox. A size that finds none is told again at the next reload.
const MAILBOX_MAX: usize = 16;

/// How often the gauges follow the shard.
const MEASURED_EVERY: Duration = Duration::from_secs(1);

/// How large the cache of this node may grow.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// The most the cached answers may weigh in memory, keys included. Beyond it those least worth keeping go.
    #[schemars(with = "String")]
    pub bytes_max: ByteSize,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { bytes_max: ByteSize::mib(256) }
    }
}

/// What the cache says to a request. `E` is what a failed call tells its readers.
pub enum Found<E> {
    /// The answer, and how old it is.
    Hit(Box<Answer>, Duration),
    /// Somebody asks the same right now.
    Joined(Reader<E>),
    /// Nobody does: whoever gets this makes the call.
    Leads(Pilot<E>, Reader<E>),
    /// Not there, and the caller wants nothing else.
    Absent,
}

/// How answers of a route are kept.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub fresh_for: Duration,
    /// A larger answer is neither stored nor shared.
    pub answer_max: usize,
    /// The call goes on when all its readers have left.
    pub runs_on: bool,
}

/// What the rest of the node holds. Cheap to clone; outlives the actor's restarts.
pub struct Cache<E> {
    shard: Arc<ArcSwap<Shard>>,
    tower: Arc<Tower<E>>,
    actor: Address<Message>,
    mailbox: Mailbox,
}

impl<E> Clone for Cache<E> {
    fn clone(&self) -> Self {
        Self {
            shard: Arc::clone(&self.shard),
            tower: Arc::clone(&self.tower),
            actor: self.actor.clone(),
            mailbox: self.mailbox.clone(),
        }
    }
}

impl<E: Clone> Cache<E> {
    /// Starts the shard's actor under `supervisor`.
    pub async fn start(config: &CacheConfig, supervisor: &Supervisor) -> Result<Self, StartError> {
        let bytes_max = Arc::new(ArcSwap::from_pointee(config.bytes_max.as_u64()));
        let shard = Arc::new(ArcSwap::from_pointee(Shard::new(config.bytes_max.as_u64())));
        let (published, size) = (Arc::clone(&shard), Arc::clone(&bytes_max));
        let make = move || (CacheShard, (Arc::clone(&size), Arc::clone(&published)));
        let Child { address: actor, .. } = supervisor.child("cache", Arc::from("shard 0"), make).await?;
        Ok(Self { shard, tower: Arc::default(), actor, mailbox: Mailbox::new("cache", MAILBOX_MAX) })
    }

    /// Looks up, joins, or gives leave to make the call.
    pub fn find(&self, scope: Scope, key: Key, asked: Directives, policy: Policy, now: Instant) -> Found<E> {
        if asked.no_cache {
            let (pilot, reader) = self.tower.alone(scope, key, policy.runs_on, policy.answer_max);
            return if asked.only_if_cached { Found::Absent } else { Found::Leads(pilot, reader) };
        }
        if let Some(hit) = self.hit(scope, key, asked.max_age, now) {
            return hit;
        }
        if asked.only_if_cached {
            return Found::Absent;
        }
        match self.tower.board(scope, key, policy.runs_on, policy.answer_max) {
            Seat::Joined(reader) => Found::Joined(reader),
            // A flight that landed between the look-up and here has stored its answer first.
            Seat::Leads(pilot, reader) => {
                self.hit(scope, key, asked.max_age, now).unwrap_or(Found::Leads(pilot, reader))
            }
        }
    }

    /// A call of its own: nobody may join it, and nothing of it is kept unless [`Cache::store`] is called.
    pub fn alone(&self, policy: Policy) -> (Pilot<E>, Reader<E>) {
        self.tower.alone(Scope([0; 16]), Key([0; 32]), policy.runs_on, policy.answer_max)
    }

    fn hit(&self, scope: Scope, key: Key, max_age: Option<Duration>, now: Instant) -> Option<Found<E>> {
        let entry = self.shard.load().get(scope, key, now)?;
        let age = now.saturating_duration_since(entry.stored_at);
        if max_age.is_some_and(|max| age > max) {
            return None;
        }
        Some(Found::Hit(Box::new(Answer::decode(entry.value)?), age))
    }

    /// Keeps an answer. `false` where it is too large to keep.
    pub fn store(&self, scope: Scope, key: Key, answer: &Answer, fresh_for: Duration, now: Instant) -> bool {
        let stored = self.shard.load().put(scope, key, answer.encode(), fresh_for, now);
        match stored {
            Stored::Yes => true,
            Stored::TooLarge => false,
        }
    }

    /// Bytes held now.
    pub fn bytes(&self) -> u64 {
        self.shard.load().bytes()
    }

    /// Answers held now.
    pub fn entries(&self) -> u64 {
        self.shard.load().len()
    }

    /// A new size empties the shard.
    pub fn resize(&self, config: &CacheConfig) {
        if let Some(place) = self.mailbox.place() {
            // Gone: the next incarnation is told at the next reload.
            let _gone = self.actor.cast(Message::Resize { bytes_max: config.bytes_max.as_u64(), place });
        }
    }
}

pub enum Message {
    /// The configuration has another size.
    Resize { bytes_max: u64, place: Place },
    /// Time to measure.
    Measure,
    /// A defect, for the test of what one costs: nothing else here can panic.
    #[cfg(test)]
    Panic,
}

/// Behaviour. Everything that changes is in [`Owned`].
pub struct CacheShard;

pub struct Owned {
    bytes_max: Arc<ArcSwap<u64>>,
    published: Arc<ArcSwap<Shard>>,
    evictions_seen: u64,
}

impl Owned {
    fn measure(&mut self) {
        let shard = self.published.load();
        metrics::measure(&shard, &mut self.evictions_seen);
    }
}

impl Actor for CacheShard {
    type Msg = Message;
    type State = Owned;
    type Arguments = (Arc<ArcSwap<u64>>, Arc<ArcSwap<Shard>>);

    async fn pre_start(
        &self,
        me: ActorRef<Message>,
        (bytes_max, published): Self::Arguments,
    ) -> Result<Owned, ActorProcessingErr> {
        published.store(Arc::new(Shard::new(**bytes_max.load())));
        me.send_interval(MEASURED_EVERY, || Message::Measure);
        Ok(Owned { bytes_max, published, evictions_seen: 0 })
    }

    async fn handle(
        &self,
        _me: ActorRef<Message>,
        message: Message,
        owned: &mut Owned,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Resize { bytes_max, place: _place } => {
                if **owned.bytes_max.load() != bytes_max {
                    owned.bytes_max.store(Arc::new(bytes_max));
                    owned.published.store(Arc::new(Shard::new(bytes_max)));
                    owned.evictions_seen = 0;
                }
            }
            Message::Measure => owned.measure(),
            #[cfg(test)]
            Message::Panic => panic!("as ordered"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

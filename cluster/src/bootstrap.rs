//! How a cluster begins, once, and how later nodes find it.
//!
//! `seeds` are the initial members. Only the one whose name sorts first may initialise, and only with a durable promise
//! of every other: so two of them can never each start a cluster, whatever is down, lost or misconfigured. Everybody
//! else looks for a node that knows a cluster, and waits, saying for what.

pub mod promise;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use storage::cell::{CellError, Cells};
use storage::codec;
use tracing::info;

use self::promise::{Answer, Asks, Founder, Promise, Seeds};
use crate::consensus::Place;
use crate::id::{ClusterId, Epoch, NodeId};
use crate::peer::frame::{from_bytes, to_bytes};
use crate::peer::{CallError, Caller, Handler, Refusal, Service, Transport};

/// One question to another node.
const ASK_MAX: Duration = Duration::from_secs(2);

/// Addresses of which is told what came of asking there.
const TOLD_MAX: usize = 3;

/// Between two rounds of questions.
const PAUSE: Duration = Duration::from_millis(200);

const CLUSTER: &str = "cluster";
const PROMISE: &str = "promise";
const FORMAT: u8 = 1;
const CELL_MAX: u64 = 64 * 1024;

/// The cluster a node belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    pub cluster: ClusterId,
    pub epoch: Epoch,
}

/// What a node says to whoever asks before they belong together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub node: NodeId,
    pub name: String,
    /// `host:port` on which it gossips; empty where it does not.
    pub gossip: String,
    pub home: Option<Home>,
    pub promised: Option<Promise>,
}

/// Who this node is and whom it asks.
#[derive(Clone, Debug)]
pub struct Introduction {
    pub me: NodeId,
    pub place: Place,
    /// The initial members, name → address. Empty for a later node, and for one that is alone.
    pub seeds: BTreeMap<String, String>,
    /// More addresses to ask.
    pub join: Vec<String>,
    /// `host:port` on which this node gossips.
    pub gossip: String,
}

/// How the search ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// This node makes the cluster, with these voters.
    Founder { home: Home, voters: BTreeMap<NodeId, Place> },
    /// There is a cluster; this node belongs to it, or asks to be admitted.
    Member { home: Home },
}

impl Found {
    pub fn home(&self) -> Home {
        match self {
            Self::Founder { home, .. } | Self::Member { home } => *home,
        }
    }
}

/// What cannot be waited out.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("what this node knows of its cluster cannot be read or written")]
    Cell(#[source] CellError),
    #[error("what this node wrote about its cluster is not readable")]
    Unreadable(#[source] codec::CodecError),
    #[error("the system gives no randomness")]
    Randomness(#[source] getrandom::Error),
}

/// What is durable of all this. Shared between the search and those who ask.
#[derive(Clone)]
pub struct Bootstrap {
    introduction: Arc<Introduction>,
    cells: Cells,
    known: Arc<Mutex<Known>>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    home: Option<Home>,
    promised: Option<Promise>,
}

impl Bootstrap {
    /// Reads what was promised and joined in earlier lives. Blocks on the disk.
    pub fn open(introduction: Introduction, cells: Cells) -> Result<Self, BootstrapError> {
        let known = Known { home: read_cell(&cells, CLUSTER)?, promised: read_cell(&cells, PROMISE)? };
        Ok(Self { introduction: Arc::new(introduction), cells, known: Arc::new(Mutex::new(known)) })
    }

    pub fn home(&self) -> Option<Home> {
        self.known.lock().home
    }

    /// Looks until a cluster is found, or may be founded. `say` is told what is waited for, whenever that changes.
    pub async fn find(&self, transport: &dyn Transport, say: impl Fn(&str)) -> Result<Found, BootstrapError> {
        if let Some(home) = self.home() {
            self.not_sent_elsewhere(home, transport, say).await;
            return Ok(self.again(home));
        }
        if self.introduction.seeds.is_empty() && self.introduction.join.is_empty() {
            if let Some(found) = self.alone().await? {
                return Ok(found);
            }
            // It promised another node, when it still had seeds: it founds nothing of its own.
            say(&self.promised_elsewhere());
            std::future::pending::<()>().await;
        }
        let mut said = String::new();
        loop {
            let missing = match self.round(transport).await? {
                Round::Found(found) => return Ok(found),
                Round::Waits(missing) => missing,
            };
            if missing != said {
                say(&missing);
                said = missing;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits as long as the addresses in the file lead to another cluster and to no node of this one: then whoever wrote
    /// the file wants this node to be somewhere else, and would take one that serves for a member there. Who answers
    /// nothing keeps nobody: this cluster may be about to start as a whole.
    async fn not_sent_elsewhere(&self, home: Home, transport: &dyn Transport, say: impl Fn(&str)) {
        let addresses = self.addresses();
        let mut said = String::new();
        loop {
            let mut asked: FuturesUnordered<_> = addresses
                .iter()
                .map(|(_name, address)| async move {
                    (address, ask::<_, Hello>(transport, address, Service::HELLO, &()).await)
                })
                .collect();
            let mut elsewhere = None;
            while let Some((address, answer)) = asked.next().await {
                let other = answer.ok().and_then(|(_node, hello)| Some((hello.name, hello.home?.cluster)));
                match other {
                    Some((_name, cluster)) if cluster == home.cluster => return,
                    Some((name, cluster)) => elsewhere = Some((name, address, cluster)),
                    None => {}
                }
            }
            let Some((name, address, cluster)) = elsewhere else { return };
            let waits = format!(
                "the data directory of this node belongs to cluster {}, and `{name}` at {address} belongs to {cluster}; to \
                 join that one, start this node with an empty data directory; to stay, correct `cluster.seeds` and \
                 `cluster.join`",
                home.cluster
            );
            if waits != said {
                say(&waits);
                said = waits;
            }
            drop(asked);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A life before knew the cluster. A founder that died before it could initialise does so now: its voters are those
    /// of the promise it gave itself.
    fn again(&self, home: Home) -> Found {
        let known = self.known.lock();
        match &known.promised {
            Some(promise) if promise.node == self.introduction.me && !promise.voters.is_empty() => {
                Found::Founder { home, voters: promise.voters.clone() }
            }
            Some(_) | None => Found::Member { home },
        }
    }

    fn promised_elsewhere(&self) -> String {
        let promised = self.known.lock().promised.clone();
        let promised = promised.map(|promise| format!("`{}` (node {})", promise.founder, promise.node));
        format!(
            "this node promised {} to found no cluster of its own; give it its seeds back, or start with an empty data \
             directory",
            promised.unwrap_or_else(|| "another node".to_owned())
        )
    }

    /// `None` when another was promised.
    async fn alone(&self) -> Result<Option<Found>, BootstrapError> {
        let home = Home { cluster: new_cluster()?, epoch: Epoch::default() };
        let Introduction { me, place, .. } = &*self.introduction;
        let voters = BTreeMap::from([(*me, place.clone())]);
        let promise = Promise {
            founder: place.name.clone(),
            node: *me,
            cluster: home.cluster,
            seeds: Seeds::default(),
            voters: voters.clone(),
        };
        if !self.keep_promise(promise).await? {
            let own = self.known.lock().promised.clone().filter(|promise| promise.node == *me);
            let Some(own) = own else { return Ok(None) };
            // A life before promised itself and died before it founded.
            let home = Home { cluster: own.cluster, epoch: Epoch::default() };
            let kept = self.keep_home(home).await?.is_none();
            return Ok(kept.then_some(Found::Founder { home, voters: own.voters }));
        }
        let kept = self.keep_home(home).await?.is_none();
        Ok(kept.then_some(Found::Founder { home, voters }))
    }

    async fn round(&self, transport: &dyn Transport) -> Result<Round, BootstrapError> {
        let addresses = self.addresses();
        let asked = addresses.iter().map(|(_name, address)| ask::<_, Hello>(transport, address, Service::HELLO, &()));
        let answers = join_all(asked).await;
        for (_node, hello) in answers.iter().flatten() {
            let Some(home) = hello.home else { continue };
            return Ok(match self.keep_home(home).await? {
                Some(promise) => Round::Waits(promise.elsewhere(&hello.name, home.cluster)),
                None => Round::Found(Found::Member { home }),
            });
        }
        let seeds = Seeds::of(&self.introduction.seeds);
        match seeds.founder() {
            Some(founder) if founder == self.introduction.place.name => {
                self.found(transport, seeds, &addresses, &answers).await
            }
            Some(founder) => Ok(Round::Waits(waits_for(founder, &addresses, &answers))),
            None => Ok(Round::Waits(nobody_knows(&addresses, &answers))),
        }
    }

    /// Asks everyone for the promise, once everyone is there. Its own comes first.
    async fn found(
        &self,
        transport: &dyn Transport,
        seeds: Seeds,
        addresses: &[(String, String)],
        answers: &[Result<(NodeId, Hello), CallError>],
    ) -> Result<Round, BootstrapError> {
        let mut others = BTreeMap::new();
        for ((name, address), answer) in addresses.iter().zip(answers) {
            if !self.introduction.seeds.contains_key(name) {
                continue;
            }
            match answer {
                Ok((node, hello)) if hello.name == *name => {
                    let place = Place { name: name.clone(), address: address.clone(), zone: None };
                    others.insert(*node, place);
                }
                Ok((_, hello)) => {
                    return Ok(Round::Waits(format!(
                        "the node at {address} is called `{}`, and the seeds call it `{name}`",
                        hello.name
                    )));
                }
                Err(error) => return Ok(Round::Waits(format!("`{name}` at {address} does not answer: {error}"))),
            }
        }
        let promise = self.own_promise(seeds, &others).await?;
        if let Some(wrong) = promise.is_not_mine(self.introduction.me, &others) {
            return Ok(Round::Waits(wrong));
        }
        let asks = Asks { promise: promise.clone() };
        let promised =
            join_all(others.values().map(|place| ask::<_, Answer>(transport, &place.address, Service::PROMISE, &asks)))
                .await;
        for (place, answer) in others.values().zip(promised) {
            match answer {
                Ok((_node, Answer::Promised)) => {}
                Ok((_node, Answer::Refused { why })) => {
                    return Ok(Round::Waits(format!("`{}` does not promise: {why}", place.name)));
                }
                Err(error) => return Ok(Round::Waits(format!("`{}` did not promise: {error}", place.name))),
            }
        }
        let home = Home { cluster: promise.cluster, epoch: Epoch::default() };
        if let Some(other) = self.keep_home(home).await? {
            return Ok(Round::Waits(other.elsewhere(&promise.founder, home.cluster)));
        }
        info!(cluster = %home.cluster, voters = promise.voters.len(), "a new cluster");
        Ok(Round::Found(Found::Founder { home, voters: promise.voters }))
    }

    /// The promise this node gives itself, made once and durable before anyone else is asked.
    async fn own_promise(&self, seeds: Seeds, others: &BTreeMap<NodeId, Place>) -> Result<Promise, BootstrapError> {
        if let Some(promise) = self.known.lock().promised.clone() {
            return Ok(promise);
        }
        let Introduction { me, place, .. } = &*self.introduction;
        let founder = Founder { node: *me, place: place.clone() };
        let promise = Promise::new(&founder, new_cluster()?, seeds, others);
        self.keep_promise(promise.clone()).await?;
        // Another may have asked for one meanwhile, and got it.
        Ok(self.known.lock().promised.clone().unwrap_or(promise))
    }

    /// Withdraws a promise, if it can be: not while its founder answers, nor once the cluster exists.
    pub async fn forget_promise(&self, transport: &dyn Transport) -> Result<(), NotForgotten> {
        let known = self.known.lock().clone();
        if let Some(home) = known.home {
            return Err(NotForgotten::Member { cluster: home.cluster });
        }
        let promise = known.promised.ok_or(NotForgotten::None)?;
        if let Some(address) = self.introduction.seeds.get(&promise.founder)
            && let Ok((node, _hello)) = ask::<_, Hello>(transport, address, Service::HELLO, &()).await
            && node == promise.node
            && node != self.introduction.me
        {
            return Err(NotForgotten::Answers { founder: promise.founder, node });
        }
        let (cells, known) = (self.cells.clone(), Arc::clone(&self.known));
        let forgotten = blocking(move || {
            let mut known = known.lock();
            // While the founder was asked, it may have founded, or another may have been promised.
            if known.home.is_some() || known.promised.as_ref() != Some(&promise) {
                return Ok(Err(NotForgotten::Changed));
            }
            cells.remove(PROMISE).map_err(BootstrapError::Cell)?;
            known.promised = None;
            Ok(Ok(()))
        });
        forgotten.await.map_err(NotForgotten::Disk)?
    }

    /// Where the nodes at these addresses, and those of the configuration, gossip: those that answer.
    pub async fn gossip_of(&self, transport: &dyn Transport, more: &[String]) -> Vec<String> {
        let own = self.introduction.place.address.as_str();
        let mut addresses: BTreeSet<String> = self.addresses().into_iter().map(|(_name, address)| address).collect();
        addresses.extend(more.iter().filter(|address| *address != own).cloned());
        let asked = addresses.iter().map(|address| ask::<_, Hello>(transport, address, Service::HELLO, &()));
        let answers = join_all(asked).await.into_iter().flatten();
        answers.map(|(_node, hello)| hello.gossip).filter(|gossip| !gossip.is_empty()).collect()
    }

    /// Everyone to ask for admission.
    pub fn doors(&self) -> Vec<String> {
        self.addresses().into_iter().map(|(_name, address)| address).collect()
    }

    /// What strangers may ask.
    pub fn services(&self) -> Vec<(Service, Arc<dyn Handler>)> {
        [Service::HELLO, Service::PROMISE]
            .into_iter()
            .map(|what| (what, Arc::new(Asked { bootstrap: self.clone(), what }) as Arc<dyn Handler>))
            .collect()
    }

    fn hello(&self) -> Hello {
        let Known { home, promised } = self.known.lock().clone();
        let Introduction { me, place, gossip, .. } = &*self.introduction;
        Hello { node: *me, name: place.name.clone(), gossip: gossip.clone(), home, promised }
    }

    /// Two may ask at once, and this node may find a cluster meanwhile: what it answers by is locked until it is written.
    async fn promise(&self, asks: Asks) -> Result<Answer, BootstrapError> {
        let own = Seeds::of(&self.introduction.seeds);
        let (cells, known) = (self.cells.clone(), Arc::clone(&self.known));
        blocking(move || {
            let mut known = known.lock();
            let answer = asks.answer(&own, known.promised.as_ref(), known.home.map(|home| home.cluster));
            if answer == Answer::Promised && known.promised.is_none() {
                let promise = Promise { voters: BTreeMap::new(), ..asks.promise };
                write_cell(&cells, PROMISE, &promise)?;
                known.promised = Some(promise);
            }
            Ok(answer)
        })
        .await
    }

    /// False when another promise was kept meanwhile.
    async fn keep_promise(&self, promise: Promise) -> Result<bool, BootstrapError> {
        let (cells, known) = (self.cells.clone(), Arc::clone(&self.known));
        blocking(move || {
            let mut known = known.lock();
            if let Some(earlier) = &known.promised {
                return Ok(earlier.node == promise.node && earlier.cluster == promise.cluster);
            }
            write_cell(&cells, PROMISE, &promise)?;
            known.promised = Some(promise);
            Ok(true)
        })
        .await
    }

    /// `Some`: it is not kept, since this node promised to join another and none but that.
    async fn keep_home(&self, home: Home) -> Result<Option<Promise>, BootstrapError> {
        let (cells, known) = (self.cells.clone(), Arc::clone(&self.known));
        blocking(move || {
            let mut known = known.lock();
            if let Some(promise) = known.promised.as_ref().filter(|promise| promise.cluster != home.cluster) {
                return Ok(Some(promise.clone()));
            }
            write_cell(&cells, CLUSTER, &home)?;
            known.home = Some(home);
            Ok(None)
        })
        .await
    }

    /// Everyone to ask, by what they are called; an address to join at has no name.
    fn addresses(&self) -> Vec<(String, String)> {
        let Introduction { place, seeds, join, .. } = &*self.introduction;
        let named = seeds.iter().filter(|(name, _)| **name != place.name);
        let mut seen = BTreeSet::new();
        named
            .map(|(name, address)| (name.clone(), address.clone()))
            .chain(join.iter().map(|address| (String::new(), address.clone())))
            .filter(|(_name, address)| seen.insert(address.clone()))
            .collect()
    }
}

enum Round {
    Found(Found),
    /// What is missing, in words.
    Waits(String),
}

/// Why a promise stays.
#[derive(Debug, thiserror::Error)]
pub enum NotForgotten {
    #[error("this node has promised nothing")]
    None,
    #[error("this node is a member of cluster {cluster} already")]
    Member { cluster: ClusterId },
    #[error("`{founder}` (node {node}), to whom it was given, answers; stop that node first")]
    Answers { founder: String, node: NodeId },
    #[error(
        "the promise, or what this node belongs to, changed while its founder was asked; look at `status`, then try again"
    )]
    Changed,
    #[error("the promise could not be removed")]
    Disk(#[source] BootstrapError),
}

fn waits_for(founder: &str, addresses: &[(String, String)], answers: &[Result<(NodeId, Hello), CallError>]) -> String {
    let asked = addresses.iter().zip(answers).find(|((name, _), _)| name == founder);
    match asked {
        Some(((_, address), Err(error))) => {
            format!("`{founder}`, the first of the seeds, initialises; at {address}: {error}")
        }
        Some((_, Ok(_))) => format!("`{founder}`, the first of the seeds, has not initialised yet"),
        None => format!("`{founder}`, the first of the seeds, initialises"),
    }
}

/// With what each of the first few said: a wrong secret, a wrong address and a cluster that is not there yet look alike
/// from afar.
fn nobody_knows(addresses: &[(String, String)], answers: &[Result<(NodeId, Hello), CallError>]) -> String {
    let told = addresses.iter().zip(answers).take(TOLD_MAX).map(|((_name, address), answer)| match answer {
        Ok((_node, hello)) => format!("`{}` at {address} knows none", hello.name),
        Err(error) => format!("at {address}: {error}"),
    });
    let mut told: Vec<String> = told.collect();
    let more = addresses.len().saturating_sub(TOLD_MAX);
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    format!("no node that is asked knows a cluster yet: {}", told.join("; "))
}

fn new_cluster() -> Result<ClusterId, BootstrapError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(BootstrapError::Randomness)?;
    Ok(ClusterId::new(id))
}

async fn ask<Q: Serialize, A: DeserializeOwned>(
    transport: &dyn Transport,
    address: &str,
    service: Service,
    question: &Q,
) -> Result<(NodeId, A), CallError> {
    let body = to_bytes(question)?;
    let (node, answer) = transport.call_address(address, service, body, ASK_MAX).await?;
    Ok((node, from_bytes(&answer)?))
}

fn read_cell<T: DeserializeOwned>(cells: &Cells, name: &str) -> Result<Option<T>, BootstrapError> {
    let Some(bytes) = cells.get(name).map_err(BootstrapError::Cell)? else { return Ok(None) };
    let (_format, value) = codec::decode(&bytes, CELL_MAX).map_err(BootstrapError::Unreadable)?;
    Ok(Some(value))
}

fn write_cell<T: Serialize>(cells: &Cells, name: &str, value: &T) -> Result<(), BootstrapError> {
    let bytes = codec::encode(FORMAT, value).map_err(BootstrapError::Unreadable)?;
    cells.set(name, &bytes).map_err(BootstrapError::Cell)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BootstrapError> + Send + 'static,
) -> Result<T, BootstrapError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(ended) => std::panic::resume_unwind(ended.into_panic()),
    }
}

#[derive(Clone)]
struct Asked {
    bootstrap: Bootstrap,
    what: Service,
}

impl Asked {
    async fn answer(self, body: Bytes) -> Result<Bytes, Refusal> {
        if self.what == Service::HELLO {
            return Ok(to_bytes(&self.bootstrap.hello())?);
        }
        let asks: Asks = from_bytes(&body)?;
        let answer = self.bootstrap.promise(asks).await;
        let answer = answer.map_err(|error| Refusal::Failed { why: error.to_string() })?;
        Ok(to_bytes(&answer)?)
    }
}

impl Handler for Asked {
    fn handle(&self, _from: Caller, body: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        self.clone().answer(body).boxed()
    }
}

#[cfg(test)]
mod tests;

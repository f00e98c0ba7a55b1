//! What the leader does for the others, and every member for the leader.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use openraft::ServerState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::voters::CannotGo;
use super::{Accepted, ChangeError, Consensus, NotProposed, NotRead, PAUSE, Place, remaining};
use crate::freshness::NotGranted;
use crate::id::NodeId;
use crate::peer::frame::{from_bytes, to_bytes};
use crate::peer::{Caller, Handler, Refusal, Service};
use crate::register::Command;

/// One look at whether a member publishes an entry. It answers at once when it does.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// How long a member looks for the leader on behalf of a node that wants to join.
const HAND_ON_MAX: Duration = Duration::from_secs(30);

/// A change of the members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeMember {
    /// Lets a node learn. A member stays what it is.
    Admit { node: NodeId, place: Place },
    /// Takes a member's vote, because it is about to leave.
    Drain { node: NodeId },
    /// It may vote again.
    Undrain { node: NodeId },
    /// Ends a membership, once the member serves nothing any more.
    Remove { node: NodeId },
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NotChanged {
    #[error("another node leads")]
    NotLeader { leader: Option<NodeId> },
    #[error(transparent)]
    CannotGo(CannotGo),
    #[error("the cluster has {members} members already, as many as it may have")]
    Full { members: usize },
    #[error("consensus did not take the change: {cause}")]
    Consensus { cause: String },
    #[error("the time for it is over")]
    TooLate,
}

impl NotChanged {
    pub fn may_try_again(&self) -> bool {
        matches!(self, Self::NotLeader { .. } | Self::Consensus { .. } | Self::TooLate)
    }
}

/// Why a barrier did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NotPassed {
    #[error("another node leads")]
    NotLeader { leader: Option<NodeId> },
    #[error("a member may still serve what it knew before")]
    TooLate,
}

impl Consensus {
    /// Whether this node leads by what Raft last said.
    fn leads(&self) -> Result<u64, Option<NodeId>> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow();
        let leads = metrics.state == ServerState::Leader && metrics.current_leader == Some(self.0.me);
        if leads { Ok(metrics.current_term) } else { Err(metrics.current_leader.filter(|leader| *leader != self.0.me)) }
    }

    /// A grant is noted before the index is taken; nothing is granted before this life and this term have committed an
    /// entry, because a leader that was restarted within its term would read at an index of the past.
    ///
    /// `stale_max` is the asker's: grants are counted by one measure, so who has another gets none.
    pub(super) async fn read_here(&self, asker: NodeId, stale_max: Duration) -> Result<Option<u64>, NotRead> {
        let leader = self.0.timing.stale_max;
        if stale_max != leader {
            return Err(NotRead::StaleMax { asker: stale_max, leader });
        }
        let term = self.leads().map_err(|leader| NotRead::NotLeader { leader })?;
        let own_life = self.incarnation().get() > 0;
        let own_term = self.0.shared.progress().borrow().term == term;
        if !own_life || !own_term {
            return Err(NotRead::TooSoon);
        }
        let member =
            |metrics: &super::types::Metrics| metrics.membership_config.nodes().any(|(node, _place)| *node == asker);
        if !member(&self.0.raft.metrics().borrow()) {
            return Err(NotRead::NotMember);
        }
        self.0.grants.note(asker, self.0.clock.now()).map_err(|why| match why {
            NotGranted::NotLeading => NotRead::TooSoon,
            NotGranted::Leaving => NotRead::Leaving,
        })?;
        self.0.reader.read_index().await
    }

    pub(super) async fn pass_here(&self, index: u64, until: Instant) -> Result<(), NotPassed> {
        let leader = || NotPassed::NotLeader { leader: self.leads().err().flatten() };
        self.leads().map_err(|leader| NotPassed::NotLeader { leader })?;
        let mut progress = self.0.shared.progress();
        let term = match tokio::time::timeout_at(until, progress.wait_for(|progress| progress.has(index))).await {
            Ok(Ok(progress)) => progress.term,
            Ok(Err(_)) | Err(_) => return Err(NotPassed::TooLate),
        };
        let members: Vec<NodeId> =
            self.0.raft.metrics().borrow().membership_config.nodes().map(|(node, _place)| *node).collect();
        let passed = join_all(members.into_iter().map(|member| self.member_passed(member, index, term, until))).await;
        if passed.into_iter().all(|passed| passed) {
            return Ok(());
        }
        if self.leads().is_ok() { Err(NotPassed::TooLate) } else { Err(leader()) }
    }

    /// Whether this member publishes the entry, or serves no more. Looks until `until`.
    async fn member_passed(&self, member: NodeId, index: u64, term: u64, until: Instant) -> bool {
        loop {
            let look = until.min(Instant::now() + LOOK_MAX);
            let publishes = if member == self.0.me {
                self.publishes(index, look).await
            } else {
                self.call_long::<_, bool>(member, Service::PUBLISHED, &(index, remaining(look)), look)
                    .await
                    .unwrap_or(false)
            };
            if publishes {
                return true;
            }
            let over = self.0.grants.expires(member, term).is_some_and(|expires| expires <= self.0.clock.now());
            if over && member != self.0.me {
                return true;
            }
            if Instant::now() + PAUSE >= until {
                return false;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn publishes(&self, index: u64, until: Instant) -> bool {
        let mut published = self.0.published.clone();
        matches!(tokio::time::timeout_at(until, published.wait_for(|known| *known >= index)).await, Ok(Ok(_)))
    }

    pub(super) async fn change_here(&self, change: ChangeMember, until: Instant) -> Result<(), NotChanged> {
        self.leads().map_err(|leader| NotChanged::NotLeader { leader })?;
        match tokio::time::timeout_at(until, self.0.controller.change(change)).await {
            Ok(done) => done,
            Err(_elapsed) => Err(NotChanged::TooLate),
        }
    }
}

impl Consensus {
    /// Who wants to join knows some member, not the leader.
    async fn hand_on(&self, change: &ChangeMember, within: Duration) -> Result<(), NotChanged> {
        match self.change_member(change, within.min(HAND_ON_MAX)).await {
            Ok(()) => Ok(()),
            Err(ChangeError::Refused(refused)) => Err(refused),
            Err(ChangeError::Unanswered(_)) => Err(NotChanged::NotLeader { leader: self.leader() }),
        }
    }
}

/// Every service of this file, with who answers it.
pub(super) fn services(consensus: &Consensus) -> Vec<(Service, Arc<dyn Handler>)> {
    [Service::PROPOSE, Service::READ_INDEX, Service::BARRIER, Service::PUBLISHED, Service::MEMBERSHIP]
        .into_iter()
        .map(|what| (what, Arc::new(Answering { consensus: consensus.clone(), what }) as Arc<dyn Handler>))
        .collect()
}

#[derive(Clone)]
struct Answering {
    consensus: Consensus,
    what: Service,
}

impl Answering {
    async fn answer(self, from: Caller, body: Bytes) -> Result<Bytes, Refusal> {
        let here = &self.consensus;
        match self.what {
            Service::PROPOSE => {
                let (command, within): (Command, Duration) = read(&body)?;
                let outcome: Result<Accepted, NotProposed> = match here.leads() {
                    Ok(_term) => here.propose_here(command, until(within)).await,
                    Err(leader) => Err(NotProposed::NotLeader { leader }),
                };
                told(&outcome)
            }
            Service::READ_INDEX => told(&here.read_here(from.node, read(&body)?).await),
            Service::BARRIER => {
                let (index, within) = read(&body)?;
                told(&here.pass_here(index, until(within)).await)
            }
            Service::PUBLISHED => {
                let (index, within) = read(&body)?;
                told(&here.publishes(index, until(within)).await)
            }
            _membership => {
                let (change, within, handed_on): (ChangeMember, Duration, bool) = read(&body)?;
                told(&match here.leads() {
                    Err(Some(_leader)) if !handed_on => here.hand_on(&change, within).await,
                    Ok(_) | Err(_) => here.change_here(change, until(within)).await,
                })
            }
        }
    }
}

/// Lifetimes travel as what is left of them: clocks differ.
fn until(within: Duration) -> Instant {
    Instant::now() + within.min(Duration::from_hours(1))
}

impl Handler for Answering {
    fn handle(&self, from: Caller, body: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        self.clone().answer(from, body).boxed()
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    Ok(from_bytes(body)?)
}

fn told<T: Serialize>(answer: &T) -> Result<Bytes, Refusal> {
    Ok(to_bytes(answer)?)
}

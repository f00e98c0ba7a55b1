//! Carries out changes of the members, one at a time, while this node leads: those asked for, and those that
//! [`plan`](super::voters::plan) finds due.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::ServerState;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use super::serve::{ChangeMember, NotChanged};
use super::types::{Metrics, Place, Raft};
use super::voters::{CannotGo, Known, LAG_MAX, Patience, Step, View, plan, without};
use crate::clock::Clock;
use crate::freshness::Grants;
use crate::id::NodeId;

/// Members of one cluster: every node has the whole directory, and the leader sends to all.
pub const MEMBERS_MAX: usize = 64;

/// Changes asked for that wait for the one under way.
const WAITING_MAX: usize = 64;

/// How long one change may take; whoever wants it asks again.
const CHANGE_MAX: Duration = Duration::from_secs(15);

/// Between two looks at whether something is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Between two looks at whether a leaving member's last grant has run out.
const GRANT_LOOK: Duration = Duration::from_millis(100);

/// Gossip may miss a node for a moment, and has to hear of one that starts before it takes it for alive.
const LOST_AFTER: Duration = Duration::from_secs(2);

type Asked = (ChangeMember, oneshot::Sender<Result<(), NotChanged>>);

/// The handle. Cheap to clone.
#[derive(Clone)]
pub struct Controller {
    queue: mpsc::Sender<Asked>,
    heard: Arc<Mutex<Heard>>,
}

/// What gossip says of the members.
#[derive(Debug, Default)]
struct Heard {
    alive: HashMap<NodeId, (bool, Instant)>,
    draining: HashSet<NodeId>,
}

impl Controller {
    /// The handle, and the loop to run.
    pub fn new(
        me: NodeId,
        raft: &Raft,
        grants: Arc<Grants>,
        clock: Clock,
        patience: Patience,
    ) -> (Self, impl Future<Output = ()> + use<>) {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let heard = Arc::<Mutex<Heard>>::default();
        let work = Work {
            me,
            raft: raft.clone(),
            grants,
            clock,
            patience,
            heard: Arc::clone(&heard),
            caught_up_since: HashMap::new(),
        };
        (Self { queue, heard }, work.run(waiting))
    }

    /// Tells who is alive, as gossip sees it. Who is not named was never heard of.
    pub fn hear(&self, alive: impl IntoIterator<Item = (NodeId, bool)>) {
        let now = Instant::now();
        let mut heard = self.heard.lock();
        for (node, is_alive) in alive {
            let known = heard.alive.entry(node).or_insert((is_alive, now));
            if known.0 != is_alive {
                *known = (is_alive, now);
            }
        }
    }

    /// Of those that were heard of, who has not been alive for [`LOST_AFTER`], as gossip sees it.
    pub fn lost(&self) -> BTreeSet<NodeId> {
        let (now, heard) = (Instant::now(), self.heard.lock());
        let is_lost = |(is_alive, since): &(bool, Instant)| !is_alive && now.duration_since(*since) >= LOST_AFTER;
        heard.alive.iter().filter(|(_node, heard)| is_lost(heard)).map(|(node, _heard)| *node).collect()
    }

    /// Asks for a change at this node, which should lead.
    pub(super) async fn change(&self, change: ChangeMember) -> Result<(), NotChanged> {
        let (answer, answered) = oneshot::channel();
        if self.queue.try_send((change, answer)).is_err() {
            return Err(NotChanged::Consensus { cause: format!("{WAITING_MAX} changes are waiting already") });
        }
        answered.await.unwrap_or(Err(NotChanged::Consensus { cause: "consensus has stopped".to_owned() }))
    }
}

struct Work {
    me: NodeId,
    raft: Raft,
    grants: Arc<Grants>,
    clock: Clock,
    patience: Patience,
    heard: Arc<Mutex<Heard>>,
    caught_up_since: HashMap<NodeId, Instant>,
}

impl Work {
    async fn run(mut self, mut queue: mpsc::Receiver<Asked>) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                asked = queue.recv() => {
                    let Some((change, answer)) = asked else { return };
                    if !answer.is_closed() {
                        // Who asked may have given up meanwhile; the change was made all the same.
                        let _gone = answer.send(self.carry_out(change).await);
                    }
                }
                _tick = looks.tick() => self.look().await,
            }
        }
    }

    async fn look(&mut self) {
        let Some(view) = self.view() else { return };
        let members: HashSet<NodeId> = view.members.keys().copied().collect();
        self.grants.forget(&|node| members.contains(&node), self.clock.now());
        let Some(step) = plan(&view, &self.patience) else { return };
        info!(?step, "the members change");
        let done = match step {
            Step::Vote(voters) => self.vote(voters).await,
            Step::Remove(node) => self.remove(node).await,
        };
        if let Err(error) = done {
            warn!(%error, "the members stay as they are for now");
        }
    }

    async fn carry_out(&mut self, change: ChangeMember) -> Result<(), NotChanged> {
        let Some(view) = self.view() else {
            let leader = self.raft.metrics().borrow().current_leader.filter(|leader| *leader != self.me);
            return Err(NotChanged::NotLeader { leader });
        };
        match change {
            ChangeMember::Admit { node, place } => self.admit(&view, node, place).await,
            ChangeMember::Drain { node } => {
                self.heard.lock().draining.insert(node);
                let voters = without(&view, node, &self.patience).map_err(NotChanged::CannotGo);
                if voters.is_err() {
                    self.heard.lock().draining.remove(&node);
                }
                let voters = voters?;
                if voters == view.voters { Ok(()) } else { self.vote(voters).await }
            }
            ChangeMember::Undrain { node } => {
                self.heard.lock().draining.remove(&node);
                Ok(())
            }
            ChangeMember::Remove { node } => {
                let voters = match without(&view, node, &self.patience) {
                    // Removed before: nothing is left to do.
                    Err(CannotGo::Unknown { .. }) => return Ok(()),
                    other => other.map_err(NotChanged::CannotGo)?,
                };
                if voters != view.voters {
                    self.vote(voters).await?;
                }
                self.remove(node).await
            }
        }
    }

    async fn admit(&self, view: &View, node: NodeId, place: Place) -> Result<(), NotChanged> {
        // Who asks has just started: whatever it left for is over.
        self.heard.lock().draining.remove(&node);
        if view.members.contains_key(&node) {
            self.grants.stays(node);
            return Ok(());
        }
        if view.members.len() >= MEMBERS_MAX {
            return Err(NotChanged::Full { members: view.members.len() });
        }
        self.grants.stays(node);
        in_time(self.raft.add_learner(node, place, false)).await
    }

    /// Who votes no longer stays a member.
    async fn vote(&self, voters: BTreeSet<NodeId>) -> Result<(), NotChanged> {
        in_time(self.raft.change_membership(voters, true)).await
    }

    /// Only once no grant of its runs: until then it may serve what it knows. From now on it gets none.
    async fn remove(&self, node: NodeId) -> Result<(), NotChanged> {
        let removed = self.remove_without_grant(node).await;
        if removed.is_err() {
            self.grants.stays(node);
        }
        removed
    }

    async fn remove_without_grant(&self, node: NodeId) -> Result<(), NotChanged> {
        loop {
            let term = match self.leading() {
                Some(metrics) => metrics.current_term,
                None => return Err(NotChanged::NotLeader { leader: None }),
            };
            // Each time: a new lead begins without anyone who leaves.
            self.grants.leaves(node);
            if self.grants.expires(node, term).is_some_and(|expires| expires <= self.clock.now()) {
                break;
            }
            tokio::time::sleep(GRANT_LOOK).await;
        }
        in_time(self.raft.change_membership(ChangeMembers::RemoveNodes(BTreeSet::from([node])), false)).await?;
        self.heard.lock().draining.remove(&node);
        self.heard.lock().alive.remove(&node);
        Ok(())
    }

    fn leading(&self) -> Option<Metrics> {
        let metrics = self.raft.metrics().borrow().clone();
        (metrics.state == ServerState::Leader && metrics.current_leader == Some(self.me)).then_some(metrics)
    }

    /// `None` while this node does not lead; it then also forgets how long learners have kept up.
    fn view(&mut self) -> Option<View> {
        let Some(metrics) = self.leading() else {
            self.caught_up_since.clear();
            return None;
        };
        let now = Instant::now();
        let last = metrics.last_log_index.unwrap_or_default();
        let replication = metrics.replication.as_ref();
        let membership = &metrics.membership_config;
        let mut members = BTreeMap::new();
        let heard = self.heard.lock();
        for (node, place) in membership.nodes() {
            let matched = replication.and_then(|all| all.get(node)).and_then(|id| *id).map(|id| id.index);
            let keeps_up = *node == self.me || matched.is_some_and(|matched| matched + LAG_MAX > last);
            if keeps_up {
                self.caught_up_since.entry(*node).or_insert(now);
            } else {
                self.caught_up_since.remove(node);
            }
            let dead_for = match heard.alive.get(node) {
                Some((false, since)) if *node != self.me => Some(now - *since),
                Some(_) | None => None,
            };
            let known = Known {
                zone: place.zone.clone(),
                caught_up_for: self.caught_up_since.get(node).map(|since| now - *since),
                dead_for,
                draining: heard.draining.contains(node),
            };
            members.insert(*node, known);
        }
        Some(View { me: self.me, voters: membership.voter_ids().collect(), members })
    }
}

/// A leader without a quorum may wait for ever, and one that was deposed meanwhile too; the next change does not.
async fn in_time<T>(
    change: impl Future<Output = Result<T, RaftError<NodeId, ClientWriteError<NodeId, Place>>>>,
) -> Result<(), NotChanged> {
    match tokio::time::timeout(CHANGE_MAX, change).await {
        Ok(done) => done.map(drop).map_err(refused),
        Err(_elapsed) => Err(NotChanged::Consensus { cause: format!("no majority took part within {CHANGE_MAX:?}") }),
    }
}

fn refused(error: RaftError<NodeId, ClientWriteError<NodeId, Place>>) -> NotChanged {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            NotChanged::NotLeader { leader: forward.leader_id }
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(
            cause @ (ChangeMembershipError::InProgress(_)
            | ChangeMembershipError::EmptyMembership(_)
            | ChangeMembershipError::LearnerNotFound(_)),
        )) => NotChanged::Consensus { cause: cause.to_string() },
        RaftError::Fatal(cause) => NotChanged::Consensus { cause: cause.to_string() },
    }
}

//! Nodes on loopback that find one another, and what keeps others out.

use super::*;
use crate::id::NodeKey;
use crate::peer::trust::{ClusterSecret, Trust};
use std::future::poll_fn;
use std::task::Poll;

/// Long enough for a machine that is busy with everything else.
const PATIENCE: Duration = Duration::from_secs(20);

fn secret() -> ClusterSecret {
    ClusterSecret::parse(&ClusterSecret::new_text().unwrap()).unwrap()
}

struct Node {
    id: NodeId,
    membership: Membership,
    trust: LiveTrust,
    tasks: Tasks,
}

impl Node {
    async fn start(secrets: &[ClusterSecret], seeds: &[String]) -> Self {
        Self::start_as(&NodeKey::generate().unwrap(), 1, secrets, seeds).await
    }

    async fn start_as(key: &NodeKey, generation: u64, secrets: &[ClusterSecret], seeds: &[String]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let trust = Trust::new(secrets, key).unwrap().live();
        let config = MembershipConfig {
            seeds: seeds.to_vec(),
            interval: Duration::from_millis(50),
            ..MembershipConfig::new(key.node_id(), ClusterId::new([1; 16]), Epoch::default(), generation)
        };
        let tasks = Tasks::new();
        let own = OwnState { name: format!("node-{generation}"), ..OwnState::default() };
        let membership = Membership::start(socket, Arc::clone(&trust), config, own, &tasks).unwrap();
        Self { id: key.node_id(), membership, trust, tasks }
    }

    fn address(&self) -> String {
        self.membership.address().to_string()
    }

    /// Waits until what this node has published is so.
    async fn sees(&self, what: &str, is_so: impl Fn(&Members) -> bool) {
        let mut members = self.membership.members();
        let seen = timeout(PATIENCE, members.wait_for(|members| is_so(members))).await;
        assert!(seen.is_ok(), "never seen: {what}; {:?}", self.membership.members().borrow());
    }

    async fn sees_alive(&self, others: &[&Node]) {
        let others: Vec<NodeId> = others.iter().map(|node| node.id).collect();
        let all = |members: &Members| others.iter().all(|id| members.get(*id).is_some_and(|member| member.alive));
        self.sees("the others alive", all).await;
    }

    /// Waits until everything heard so far is published: what this node tells now comes with it.
    async fn catches_up(&self) {
        let mut mark = 0;
        self.membership.set(|own| (own.applied, mark) = (own.applied + 1, own.applied + 1)).unwrap();
        let id = self.id;
        self.sees("what it told itself", |members| members.get(id).is_some_and(|own| own.told.applied >= mark)).await;
    }

    async fn drops_at_least(&self, count: u64) {
        let enough = poll_fn(|context| {
            context.waker().wake_by_ref();
            if self.membership.dropped() >= count { Poll::Ready(()) } else { Poll::Pending }
        });
        timeout(PATIENCE, enough).await.expect("it drops them");
    }

    async fn stop(&self) {
        assert!(self.tasks.shutdown(PATIENCE).await);
    }
}

/// Each knows the first alone. What one tells, all hear; one that falls silent is dead to the others.
#[tokio::test]
async fn nodes_find_one_another_and_miss_who_stops() {
    let secrets = [secret()];
    let a = Node::start(&secrets, &[]).await;
    let b = Node::start(&secrets, &[a.address()]).await;
    let c = Node::start(&secrets, &[a.address()]).await;
    for node in [&a, &b, &c] {
        node.sees_alive(&[&a, &b, &c]).await;
    }

    b.membership
        .set(|own| (own.state, own.applied, own.marks) = (NodeState::Ready, 77, "some marks".to_owned()))
        .unwrap();
    for node in [&a, &c] {
        let told = |members: &Members| members.ready().any(|it| it.told.applied == 77 && it.told.marks == "some marks");
        node.sees("what b told", told).await;
    }

    c.stop().await;
    for node in [&a, &b] {
        node.sees("c dead", |members| members.get(c.id).is_some_and(|member| !member.alive)).await;
        assert_eq!(node.membership.members().borrow().alive().count(), 2);
    }
}

#[tokio::test]
async fn who_leaves_says_so() {
    let secrets = [secret()];
    let a = Node::start(&secrets, &[]).await;
    let b = Node::start(&secrets, &[a.address()]).await;
    a.sees_alive(&[&b]).await;

    let id = b.id;
    b.membership.clone().leave().await;

    let left = |member: &Member| !member.alive && member.told.state == NodeState::Left;
    a.sees("b gone", |members| members.get(id).is_some_and(left)).await;
}

/// Whoever has not the secret neither learns nor tells anything.
#[tokio::test]
async fn another_secret_never_joins() {
    let ours = [secret()];
    let a = Node::start(&ours, &[]).await;
    let stranger = Node::start(&[secret()], &[a.address()]).await;
    let b = Node::start(&ours, &[a.address(), stranger.address()]).await;

    a.sees_alive(&[&b]).await;
    a.drops_at_least(5).await;
    stranger.drops_at_least(5).await;

    for node in [&a, &b] {
        node.catches_up().await;
        assert_eq!(node.membership.members().borrow().len(), 2);
    }
    stranger.catches_up().await;
    assert_eq!(stranger.membership.members().borrow().len(), 1);
}

/// The steps of a rotation: add, swap, remove. Nobody is lost at any of them.
#[tokio::test]
async fn two_secrets_are_accepted_while_one_replaces_the_other() {
    let (old, new) = (secret(), secret());
    let key = NodeKey::generate().unwrap();
    let a = Node::start_as(&key, 1, &[old.clone(), new.clone()], &[]).await;

    let b = Node::start(&[new.clone(), old], &[a.address()]).await;
    a.sees_alive(&[&b]).await;
    b.sees_alive(&[&a]).await;

    a.trust.store(Arc::new(Trust::new(std::slice::from_ref(&new), &key).unwrap()));
    let c = Node::start(&[new], &[a.address()]).await;
    a.sees_alive(&[&b, &c]).await;
    c.sees_alive(&[&a, &b]).await;
}

#[tokio::test]
async fn garbage_and_replayed_datagrams_change_nothing() {
    let secrets = [secret()];
    let recorder = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let a = Node::start(&secrets, &[]).await;
    let b = Node::start(&secrets, &[a.address(), recorder.local_addr().unwrap().to_string()]).await;
    a.sees_alive(&[&b]).await;
    let mut kept = Vec::new();
    let mut buffer = vec![0; 4096];
    while kept.len() < 10 {
        let (length, _) = timeout(PATIENCE, recorder.recv_from(&mut buffer)).await.unwrap().unwrap();
        kept.push(buffer[..length].to_vec());
    }
    // What was kept is old before it is sent again: a datagram that is merely late is no replay.
    b.membership.set(|own| own.applied = 5).unwrap();
    a.sees("what b told later", |members| members.get(b.id).is_some_and(|member| member.told.applied == 5)).await;
    b.stop().await;
    let dead = |members: &Members| members.get(b.id).is_some_and(|member| !member.alive);
    a.sees("b dead", dead).await;

    let dropped = a.membership.dropped();
    for garbage in [&b""[..], b"x", &[7; 100], &[7; 3000]] {
        recorder.send_to(garbage, a.membership.address()).await.unwrap();
    }
    for datagram in &kept {
        recorder.send_to(datagram, a.membership.address()).await.unwrap();
        // Its answer: the recording was opened and understood.
        timeout(PATIENCE, recorder.recv_from(&mut buffer)).await.unwrap().unwrap();
    }

    a.catches_up().await;
    assert_eq!(a.membership.dropped(), dropped + 4);
    assert!(dead(&a.membership.members().borrow()));
}

/// A node that was started again, while its old process is still heard.
#[tokio::test]
async fn of_two_lives_of_a_node_the_newer_one_counts() {
    let secrets = [secret()];
    let key = NodeKey::generate().unwrap();
    let a = Node::start(&secrets, &[]).await;
    let old = Node::start_as(&key, 1, &secrets, &[a.address()]).await;
    a.sees_alive(&[&old]).await;

    let new = Node::start_as(&key, 2, &secrets, &[a.address()]).await;

    let is_new = |member: &Member| member.alive && member.told.name == "node-2";
    a.sees("the new life", |members| members.get(key.node_id()).is_some_and(is_new)).await;
    a.catches_up().await;
    let members = a.membership.members().borrow().clone();
    assert_eq!(members.len(), 2);
    assert_eq!(members.get(key.node_id()).unwrap().gossip, new.membership.address());
}

#[tokio::test]
async fn what_cannot_be_told_is_refused_and_the_old_state_stays() {
    let node = Node::start(&[secret()], &[]).await;

    let refused = node.membership.set(|own| (own.load, own.zone) = (3, "z".repeat(64)));

    assert!(matches!(refused, Err(StateError::TooLong { field: "zone", .. })));
    assert_eq!(node.membership.own().load, 0);
}

#[tokio::test]
async fn an_address_that_is_everywhere_is_no_address() {
    let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    let key = NodeKey::generate().unwrap();
    let trust = Trust::new(&[secret()], &key).unwrap().live();
    let config = MembershipConfig::new(key.node_id(), ClusterId::new([1; 16]), Epoch::default(), 1);

    let refused = Membership::start(socket, trust, config, OwnState::default(), &Tasks::new());

    assert!(matches!(refused.err(), Some(MembershipError::Advertise { .. })));
}

//! A network that breaks: what a cluster promises while some of its nodes do not hear others, or live elsewhere.
//!
//! Each cluster has network namespaces of its own, see [`TestNetwork`]; tests that cannot have them say so and are skipped.
//! P-REVOKE is judged by requests that were **sent** after the change was answered: none of them may be accepted.

use std::sync::Arc;
use std::time::Duration;

use harness::{
    FakeProvider, LONG, Reply, TestCluster, TestNetwork, binary, eventually_some_within, eventually_within, skipped,
};
use http::Method;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

const CONFIG: &str = r#"
resources_revision: 1
providers: { openai: { base_url: "{provider}/v1", api_key: upstream } }
"#;

/// Short, so that a test sees the end of it.
const TIMES: &str = "stale_max: 2s, heartbeat: 100ms, election_min: 300ms, election_max: 600ms";

/// Who writes tries elsewhere after it.
const TRY_MAX: Duration = Duration::from_secs(2);

/// Between two requests of someone who asks all the time.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// Some nodes on a network, a provider they all reach, and an operator's key.
struct World {
    provider: FakeProvider,
    cluster: TestCluster,
    admin: String,
}

/// What a key's holder saw.
#[derive(Clone, Copy, Debug)]
struct Seen {
    node: usize,
    sent: Instant,
    /// 0: no answer.
    status: u16,
}

/// Someone who asks some nodes all the time, until dropped.
struct Asking {
    seen: Arc<Mutex<Vec<Seen>>>,
    tasks: JoinSet<()>,
}

/// Operators at every node who make keys all the time, and the names of those that were acknowledged.
struct Writing {
    acknowledged: Arc<Mutex<Vec<String>>>,
    tasks: JoinSet<()>,
}

impl World {
    /// `None` where there are no namespaces to be had.
    async fn start(test: &str, cluster_settings: &str) -> Option<Self> {
        let network = match TestNetwork::new() {
            Ok(network) => network,
            Err(why) => {
                skipped(&format!("partition::{test}"), &why);
                return None;
            }
        };
        let provider = FakeProvider::builder(binary!()).at(network.own_address()).start().await;
        let cluster = TestCluster::builder(binary!())
            .network(network)
            .provider("provider", &provider)
            .config(CONFIG)
            .cluster(cluster_settings)
            .start()
            .await;
        let admin = cluster.admin_key().await;
        Some(Self { provider, cluster, admin })
    }

    /// A change by an operator at one node. `None` when there is no answer in time.
    async fn try_change(&self, node: usize, method: Method, path: &str, body: Value) -> Option<Reply> {
        let operator = self.cluster[node].admin(&self.admin);
        timeout(TRY_MAX, operator.try_send(method, path, body.to_string())).await.ok()?.ok()
    }

    /// A new key, and its text, made at a node that can.
    async fn make_key(&self, node: usize, name: &str) -> String {
        let made = eventually_some_within(LONG, "a key is made", async || {
            let reply = self.try_change(node, Method::POST, "/admin/v1/keys", json!({ "name": name })).await?;
            (reply.status == 201).then(|| reply.json())
        });
        made.await["key"].as_str().unwrap_or_default().to_owned()
    }

    /// The same, and known to every node.
    async fn make_key_everywhere(&self, name: &str) -> String {
        let key = self.make_key(self.cluster.leader().await, name).await;
        for node in 0..self.cluster.len() {
            eventually_within(LONG, "the key is known", async || self.status_of(node, &key).await == 200).await;
        }
        key
    }

    async fn status_of(&self, node: usize, key: &str) -> u16 {
        ask(self.cluster[node].as_key(key)).await
    }

    /// A change that takes something away, made once a node can, and when it was answered. A leader of a moment ago may
    /// still be out of touch.
    async fn take_away(&self, node: usize, path: &str) -> Instant {
        let operator = self.cluster[node].admin(&self.admin);
        let (reply, answered) = eventually_some_within(LONG, "something is taken away", async || {
            let reply = operator.post(path, &json!({})).await;
            (reply.status != 503).then(|| (reply, Instant::now()))
        })
        .await;
        assert_eq!((reply.status, &reply.json()["waited"]), (200, &json!("every_node")), "{}", reply.text());
        answered
    }

    fn others(&self, than: &[usize]) -> Vec<usize> {
        (0..self.cluster.len()).filter(|node| !than.contains(node)).collect()
    }

    fn ask_all_the_time(&self, nodes: &[usize], key: &str) -> Asking {
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let mut tasks = JoinSet::new();
        for node in nodes.iter().copied() {
            let (client, seen) = (self.cluster[node].as_key(key), Arc::clone(&seen));
            tasks.spawn(async move {
                loop {
                    let sent = Instant::now();
                    let status = ask(client.clone()).await;
                    seen.lock().await.push(Seen { node, sent, status });
                    tokio::time::sleep(ASK_EVERY).await;
                }
            });
        }
        Asking { seen, tasks }
    }

    fn write_all_the_time(&self) -> Writing {
        let acknowledged = Arc::<Mutex<Vec<String>>>::default();
        let mut tasks = JoinSet::new();
        for node in 0..self.cluster.len() {
            let (operator, acknowledged) = (self.cluster[node].admin(&self.admin), Arc::clone(&acknowledged));
            tasks.spawn(async move {
                for number in 0_usize.. {
                    let name = format!("written-at-{node}-{number}");
                    let body = json!({ "name": name }).to_string();
                    let reply = timeout(TRY_MAX, operator.try_send(Method::POST, "/admin/v1/keys", body)).await;
                    if reply.is_ok_and(|reply| reply.is_ok_and(|reply| reply.status == 201)) {
                        acknowledged.lock().await.push(name);
                    }
                    tokio::time::sleep(ASK_EVERY).await;
                }
            });
        }
        Writing { acknowledged, tasks }
    }

    /// The node serves until its time is over, then says that it is out of touch: to requests and to operators.
    async fn goes_stale(&self, node: usize, key: &str) {
        let question = json!({ "model": "openai/m", "messages": [{ "role": "user", "content": "hi" }] });
        let client = self.cluster[node].as_key(key);
        eventually_within(LONG, "the node is out of touch and says so", async || {
            let reply = client.post("/v1/chat/completions", &question).await;
            assert!(matches!(reply.status, 200 | 503), "{}", reply.text());
            reply.status == 503 && reply.json()["error"]["code"] == "cluster_unavailable"
        })
        .await;
        let refused = self.try_change(node, Method::POST, "/admin/v1/keys", json!({ "name": "never" })).await;
        let refused = refused.map(|reply| (reply.status, reply.json()["error"]["code"].clone()));
        assert_eq!(refused, Some((503, json!("cluster_unavailable"))), "an answer, and at once");
    }

    /// After all is well again: one leader and one state, every node serving, and all that was acknowledged there. No node
    /// has called for anyone.
    async fn agrees_on(&self, acknowledged: &[String]) {
        for node in 0..self.cluster.len() {
            self.cluster.ready(node).await;
        }
        eventually_within(LONG, "all nodes say the same", async || {
            let mut said = Vec::new();
            for member in self.cluster.members() {
                let Some(status) = member.status().await else { return false };
                let cluster = &status["cluster"];
                said.push((cluster["leader"].clone(), cluster["term"].clone(), cluster["applied"].clone()));
            }
            said.windows(2).all(|two| two[0] == two[1]) && said[0].0.is_string()
        })
        .await;
        for member in self.cluster.members() {
            let operator = member.admin(&self.admin);
            for name in acknowledged {
                let found = eventually_some_within(LONG, "an operator is answered", async || {
                    let found = operator.get(&format!("/admin/v1/keys/{name}")).await;
                    (found.status != 503).then_some(found)
                })
                .await;
                assert_eq!(found.status, 200, "`{name}` was acknowledged, and {} lacks it", member.name);
            }
            let printed = member.printed();
            let errors: Vec<_> = printed.lines().filter(|line| line.contains(" ERROR ")).collect();
            assert!(errors.is_empty(), "nobody has to act when a network breaks: {errors:#?}");
        }
    }
}

impl Asking {
    /// Once the node has answered requests that were sent after `moment`: what became of all of those.
    async fn after(&self, node: usize, moment: Instant) -> Vec<u16> {
        eventually_some_within(LONG, "requests were sent and answered", async || {
            let seen = self.seen.lock().await;
            let later = seen.iter().filter(|seen| seen.node == node && seen.sent >= moment);
            let statuses: Vec<_> = later.map(|seen| seen.status).collect();
            (statuses.len() >= 3).then_some(statuses)
        })
        .await
    }

    async fn was_accepted(&self, node: usize) {
        eventually_within(LONG, "requests are accepted", async || {
            self.seen.lock().await.iter().any(|seen| seen.node == node && seen.status == 200)
        })
        .await;
    }

    /// The promise, over all that was ever seen.
    async fn stop_and_assert_nothing_accepted_since(mut self, moment: Instant) {
        self.tasks.shutdown().await;
        for seen in self.seen.lock().await.iter().filter(|seen| seen.sent >= moment) {
            let late = seen.sent - moment;
            assert_ne!(seen.status, 200, "node {} accepted what was sent {late:?} after the answer", seen.node);
        }
    }
}

impl Writing {
    /// Waits until so many more were acknowledged.
    async fn goes_on(&self) {
        let before = self.acknowledged.lock().await.len();
        eventually_within(LONG, "changes are acknowledged", async || {
            self.acknowledged.lock().await.len() >= before + 3
        })
        .await;
    }

    async fn stop(mut self) -> Vec<String> {
        self.tasks.shutdown().await;
        std::mem::take(&mut *self.acknowledged.lock().await)
    }
}

async fn ask(client: harness::Client) -> u16 {
    let question = json!({ "model": "openai/m", "messages": [{ "role": "user", "content": "hi" }] });
    let reply = client.try_send(Method::POST, "/v1/chat/completions", question.to_string()).await;
    reply.map_or(0, |reply| reply.status)
}

/// The majority goes on without its leader; the leader serves what it knows for a while and changes nothing.
#[tokio::test]
async fn the_majority_goes_on_and_a_minority_steps_aside() {
    let test = "the_majority_goes_on_and_a_minority_steps_aside";
    let Some(world) = World::start(test, TIMES).await else { return };
    let (cluster, key) = (&world.cluster, world.make_key_everywhere("web").await);
    let (writing, leader) = (world.write_all_the_time(), cluster.leader().await);
    writing.goes_on().await;

    cluster.network().cut(leader);
    assert_eq!(world.status_of(leader, &key).await, 200, "it is cut off and not yet out of date");
    world.goes_stale(leader, &key).await;
    let next = cluster.leader_but(leader).await;
    writing.goes_on().await;
    let key_of_the_majority = world.make_key(next, "of-the-majority").await;
    for node in world.others(&[leader]) {
        eventually_within(LONG, "the majority serves", async || {
            world.status_of(node, &key_of_the_majority).await == 200
        })
        .await;
    }
    assert!(!cluster[leader].is_ready().await);

    cluster.network().heal();
    cluster.ready(leader).await;
    writing.goes_on().await;
    world.agrees_on(&writing.stop().await).await;
    assert_eq!(world.status_of(leader, &key_of_the_majority).await, 200);
}

/// A leader that is cut off goes on talking to the learner that is cut off with it: neither takes that as a sign of being
/// up to date.
#[tokio::test]
async fn a_revoked_key_is_dead_at_an_old_leader_and_its_learner() {
    let test = "a_revoked_key_is_dead_at_an_old_leader_and_its_learner";
    let Some(mut world) = World::start(test, TIMES).await else { return };
    let learner = world.cluster.add();
    world.cluster.start_ready(learner).await;
    let leader = world.cluster.leader().await;
    let key = world.make_key_everywhere("web").await;
    let members = world.cluster[learner].status().await.expect("a status")["cluster"]["members"].clone();
    let voters: Vec<_> = members.as_array().expect("members").iter().map(|member| member["voter"] == true).collect();
    assert_eq!(voters, [true, true, true, false], "{members}");
    let cut_off = [leader, learner];
    let asking = world.ask_all_the_time(&cut_off, &key);
    for node in cut_off {
        asking.was_accepted(node).await;
    }

    let majority = world.others(&cut_off);
    world.cluster.network().split(&cut_off, &majority);
    let next = world.cluster.leader_but(leader).await;
    let revoked = world.take_away(next, "/admin/v1/keys/web/revoke").await;

    for node in cut_off {
        let statuses = asking.after(node, revoked).await;
        assert!(statuses.iter().all(|status| *status == 503), "they know that they are out of touch: {statuses:?}");
    }
    world.cluster.network().heal();
    for node in 0..world.cluster.len() {
        eventually_within(LONG, "the key is refused by name", async || world.status_of(node, &key).await == 401).await;
    }
    asking.stop_and_assert_nothing_accepted_since(revoked).await;
    world.agrees_on(&[]).await;
}

/// With `cut` between the leader and the others, in one direction only: another leads, and nothing that was acknowledged
/// is lost.
async fn a_leader_half_cut_off_is_replaced(test: &str, cut: impl Fn(&TestNetwork, usize, usize)) {
    let Some(world) = World::start(test, TIMES).await else { return };
    let (cluster, key) = (&world.cluster, world.make_key_everywhere("web").await);
    let (writing, leader) = (world.write_all_the_time(), cluster.leader().await);
    writing.goes_on().await;

    for other in world.others(&[leader]) {
        cut(cluster.network(), leader, other);
    }
    let next = cluster.leader_but(leader).await;
    world.make_key(next, "meanwhile").await;
    world.goes_stale(leader, &key).await;
    writing.goes_on().await;

    cluster.network().heal();
    cluster.ready(leader).await;
    writing.goes_on().await;
    world.agrees_on(&writing.stop().await).await;
}

#[tokio::test]
async fn a_leader_that_hears_and_is_not_heard_is_replaced() {
    let cut = |network: &TestNetwork, leader, other| network.cut_one_way(leader, other);
    a_leader_half_cut_off_is_replaced("a_leader_that_hears_and_is_not_heard_is_replaced", cut).await;
}

#[tokio::test]
async fn a_leader_that_is_heard_and_does_not_hear_is_replaced() {
    let cut = |network: &TestNetwork, leader, other| network.cut_one_way(other, leader);
    a_leader_half_cut_off_is_replaced("a_leader_that_is_heard_and_does_not_hear_is_replaced", cut).await;
}

/// One node does not hear the leader, and all others do: it stands for election again and again, and keeps nobody from work.
#[tokio::test]
async fn a_node_that_does_not_hear_the_leader_disturbs_nobody() {
    let test = "a_node_that_does_not_hear_the_leader_disturbs_nobody";
    let Some(world) = World::start(test, TIMES).await else { return };
    let (cluster, key) = (&world.cluster, world.make_key_everywhere("web").await);
    let (writing, leader) = (world.write_all_the_time(), cluster.leader().await);
    let deaf = world.others(&[leader])[0];

    cluster.network().cut_one_way(leader, deaf);
    for _round in 0..5 {
        writing.goes_on().await;
        let well = world.others(&[leader, deaf])[0];
        eventually_within(LONG, "who hears everyone serves", async || world.status_of(well, &key).await == 200).await;
    }
    world.goes_stale(deaf, &key).await;
    writing.goes_on().await;

    cluster.network().heal();
    cluster.ready(deaf).await;
    world.agrees_on(&writing.stop().await).await;
}

/// What is taken away while a node is cut off is gone there, too, once the answer is given.
#[tokio::test]
async fn what_is_taken_away_while_a_node_is_cut_off_is_gone_there_too() {
    let test = "what_is_taken_away_while_a_node_is_cut_off_is_gone_there_too";
    let Some(world) = World::start(test, TIMES).await else { return };
    let cluster = &world.cluster;
    let (revoked_key, kept_key) = (world.make_key_everywhere("revoked").await, world.make_key_everywhere("kept").await);
    let leader = cluster.leader().await;
    let cut_off = world.others(&[leader])[0];
    let everyone: Vec<_> = (0..cluster.len()).collect();
    let (with_revoked, with_kept) =
        (world.ask_all_the_time(&everyone, &revoked_key), world.ask_all_the_time(&everyone, &kept_key));
    for node in everyone {
        with_revoked.was_accepted(node).await;
        with_kept.was_accepted(node).await;
    }

    cluster.network().cut(cut_off);
    let revoked = world.take_away(leader, "/admin/v1/keys/revoked/revoke").await;
    with_revoked.after(cut_off, revoked).await;
    with_revoked.stop_and_assert_nothing_accepted_since(revoked).await;
    cluster.network().heal();
    cluster.ready(cut_off).await;
    eventually_within(LONG, "the cut-off node serves again", async || world.status_of(cut_off, &kept_key).await == 200)
        .await;

    cluster.network().cut(cut_off);
    let off = world.take_away(cluster.leader_but(cut_off).await, "/admin/v1/providers/openai/off").await;
    with_kept.after(cut_off, off).await;
    let sent_before = world.provider.requests().await.len();
    with_kept.after(cut_off, Instant::now()).await;
    assert_eq!(world.provider.requests().await.len(), sent_before, "nothing is sent to a provider that is off");

    cluster.network().heal();
    cluster.ready(cut_off).await;
    with_kept.after(cut_off, Instant::now()).await;
    with_kept.stop_and_assert_nothing_accepted_since(off).await;
    assert_eq!(world.provider.requests().await.len(), sent_before);
}

/// A machine that comes back elsewhere is found again, whoever it is, although the files of the others name its old place.
#[tokio::test]
async fn a_node_that_comes_back_elsewhere_is_found_again() {
    let test = "a_node_that_comes_back_elsewhere_is_found_again";
    let Some(mut world) = World::start(test, TIMES).await else { return };
    let learner = world.cluster.add();
    world.cluster.start_ready(learner).await;
    let leader = world.cluster.leader().await;
    let follower = world.others(&[leader, learner])[0];

    for (round, moved) in [leader, follower, learner].into_iter().enumerate() {
        let before = world.cluster[moved].address();
        world.cluster.kill(moved).await;
        world.cluster.move_node(moved);
        assert_ne!(world.cluster[moved].address(), before);
        world.cluster.start_ready(moved).await;

        let key = world.make_key_everywhere(&format!("made-in-round-{round}")).await;
        assert_eq!(world.status_of(moved, &key).await, 200);
        let peer = world.cluster[moved].peer_address().to_string();
        for other in world.others(&[moved]) {
            eventually_within(LONG, "the others know the new address and hear from there", async || {
                let Some(status) = world.cluster[other].status().await else { return false };
                let members = status["cluster"]["members"].as_array().cloned().unwrap_or_default();
                members.iter().any(|member| member["peer"] == peer.as_str() && member["alive"] == true)
            })
            .await;
        }
    }
    world.agrees_on(&[]).await;
}

/// All machines at once, and all files with them: nobody is where anybody remembers him.
#[tokio::test]
async fn a_cluster_that_moves_as_a_whole_is_the_same_cluster() {
    let test = "a_cluster_that_moves_as_a_whole_is_the_same_cluster";
    let Some(mut world) = World::start(test, TIMES).await else { return };
    let key = world.make_key_everywhere("made-before").await;
    let before = world.cluster[0].status().await.expect("a status")["cluster"]["cluster"].clone();

    let everyone = 0..world.cluster.len();
    for node in everyone.clone() {
        world.cluster.stop(node).await;
    }
    for node in everyone.clone() {
        world.cluster.move_node(node);
    }
    world.cluster.write_seeds_where_they_are();
    for node in everyone.clone() {
        world.cluster.start(node);
    }
    for node in everyone.clone() {
        world.cluster.ready(node).await;
        assert_eq!(world.cluster[node].status().await.expect("a status")["cluster"]["cluster"], before);
        assert_eq!(world.status_of(node, &key).await, 200);
    }
    world.make_key_everywhere("made-after").await;
    world.agrees_on(&["made-before".to_owned()]).await;
}

/// With the settings a cluster has without any: a dead node is noticed and an empty one let in. How long it takes is
/// printed, and judged by the benchmarks.
#[tokio::test]
async fn a_death_is_noticed_and_a_newcomer_let_in() {
    let Some(mut world) = World::start("a_death_is_noticed_and_a_newcomer_let_in", "").await else { return };
    let leader = world.cluster.leader().await;
    let (dying, watching) = (world.others(&[leader])[0], world.others(&[leader])[1]);
    let name = world.cluster[dying].name.clone();
    let alive = async |world: &World, wanted: bool| {
        let status = world.cluster[watching].status().await.unwrap_or_default();
        let members = status["cluster"]["members"].as_array().cloned().unwrap_or_default();
        members.iter().any(|member| member["name"] == name.as_str() && member["alive"] == wanted)
    };
    eventually_within(LONG, "it is known to be alive", async || alive(&world, true).await).await;

    world.cluster.kill(dying).await;
    let killed = Instant::now();
    eventually_within(LONG, "its death is noticed", async || alive(&world, false).await).await;
    println!("information: gossip noticed a death after {:?}", killed.elapsed());

    let newcomer = world.cluster.add();
    let started = Instant::now();
    world.cluster.start_ready(newcomer).await;
    println!("information: an empty node was ready {:?} after its start", started.elapsed());
}

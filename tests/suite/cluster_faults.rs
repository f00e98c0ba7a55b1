//! Nodes die, stop and come back, and what the cluster promised holds: no acknowledged change is lost (P-DURABLE), and
//! what was taken away stays so once the call that took it has returned (P-REVOKE).

#![expect(clippy::unwrap_used, reason = "helpers end the test where something failed")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use harness::{
    Client, FakeProvider, LONG, Operator, RawConnection, TestCluster, binary, eventually, eventually_some_within,
    eventually_within,
};
use http::Method;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::cluster::{WEB, all_answer, all_have_keys, asked, builder, one_leader, question, three};

/// Makes a key as soon as the cluster lets it. A try whose fate is unknown counts for nothing, so each has its own name.
async fn writes_again(cluster: &TestCluster, number: usize, name: &str) -> String {
    let operator = cluster.operator_now(number).await;
    let tries = AtomicU64::new(0);
    let made = async || {
        let name = format!("{name}-{}", tries.fetch_add(1, Ordering::Relaxed));
        operator.try_create_key(&name).await.ok().map(|_text| name)
    };
    eventually_some_within(LONG, "changes are made again", made).await
}

/// Whether the slow forms are wanted too.
fn is_long() -> bool {
    std::env::var_os("LEA_LONG").is_some()
}

fn others(not: usize) -> Vec<usize> {
    (0..3).filter(|number| *number != not).collect()
}

async fn make_keys(cluster: &TestCluster, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    for number in [0, 1, 2] {
        let name = format!("{prefix}-{number}");
        cluster.operator(number).await.create_key(&name).await;
        names.push(name);
    }
    names
}

#[tokio::test]
async fn killing_the_leader_loses_nothing_and_another_leads() {
    let (_provider, mut cluster) = three().await;
    let mut names = make_keys(&cluster, "before").await;
    let leader = cluster.leader().await;
    let left = others(leader);

    cluster.kill(leader).await;

    all_answer(&cluster, &left, WEB, 200).await;
    names.push(writes_again(&cluster, left[0], "after").await);
    all_have_keys(&cluster, &left, &names).await;
    assert_ne!(cluster.leader_but(leader).await, leader);
    cluster.start_ready(leader).await;
    all_have_keys(&cluster, &[0, 1, 2], &names).await;
    one_leader(&cluster, &[0, 1, 2]).await;
}

#[tokio::test]
async fn killing_a_follower_stops_nothing_and_it_catches_up() {
    let (_provider, mut cluster) = three().await;
    let mut names = make_keys(&cluster, "before").await;
    let leader = cluster.leader().await;
    let follower = others(leader)[0];

    cluster.kill(follower).await;

    names.push("while-away".to_owned());
    let key = cluster.operator_now(leader).await.create_key("while-away").await;
    assert_eq!(asked(&cluster[leader], &key).await, 200);
    cluster.start_ready(follower).await;
    assert_eq!(asked(&cluster[follower], &key).await, 200, "ready means caught up");
    all_have_keys(&cluster, &[0, 1, 2], &names).await;
}

/// One of three decides nothing. It serves what it knows until that is too old, then nobody.
#[tokio::test]
async fn without_a_majority_changes_are_refused_and_requests_served_until_stale() {
    let (_provider, mut cluster) = three().await;
    let names = make_keys(&cluster, "before").await;
    let last = cluster.leader().await;
    let gone = others(last);
    let operator = cluster.operator(last).await;

    for number in &gone {
        cluster.kill(*number).await;
    }
    assert_eq!(asked(&cluster[last], WEB).await, 200, "it goes on with what it knows");
    let (change, ()) = tokio::join!(operator.try_create_key("refused"), async {
        let member = &cluster[last];
        eventually("it is stale", async || asked(member, WEB).await == 503).await;
        let reply = member.as_key(WEB).chat("openai/m", "hi").await;
        assert_eq!(reply.json()["error"]["code"], "cluster_unavailable", "{}", reply.text());
        assert!(!member.is_ready().await);
    });
    let refused = change.unwrap_err();
    assert!(
        matches!((refused.status, refused.code.as_str()), (503, "cluster_unavailable") | (504, "uncertain")),
        "{refused:?}"
    );
    let refused = operator.try_create_key("refused-at-once").await.unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (503, "cluster_unavailable"), "{refused:?}");

    cluster.start_ready(gone[0]).await;
    cluster.ready(last).await;
    writes_again(&cluster, last, "after").await;
    cluster.start_ready(gone[1]).await;
    all_have_keys(&cluster, &[0, 1, 2], &names).await;
    all_answer(&cluster, &[0, 1, 2], WEB, 200).await;
}

#[tokio::test]
async fn killing_all_nodes_loses_nothing() {
    let (_provider, mut cluster) = three().await;
    let names = make_keys(&cluster, "before").await;
    let key = cluster.operator(1).await.create_key("used-afterwards").await;
    let id = cluster[0].cluster_id().await;

    for number in [0, 1, 2] {
        cluster.kill(number).await;
    }
    for number in [2, 0, 1] {
        cluster.start(number);
    }
    for number in [0, 1, 2] {
        cluster.ready(number).await;
    }

    all_have_keys(&cluster, &[0, 1, 2], &names).await;
    for number in [0, 1, 2] {
        assert_eq!(asked(&cluster[number], &key).await, 200);
        assert_eq!(cluster[number].cluster_id().await, id);
    }
    writes_again(&cluster, 0, "after").await;
}

/// Requests sent to a paused node: the system takes them in its place, and they are the first it sees when it goes on.
struct Waiting(Vec<RawConnection>);

impl Waiting {
    async fn at(cluster: &TestCluster, number: usize, key: &str) -> Self {
        let mut connections = Vec::new();
        for _request in 0..8 {
            let body = question().to_string();
            let head = format!("authorization: Bearer {key}\r\ncontent-type: application/json\r\nhost: edge");
            let length = body.len();
            let mut connection = RawConnection::open(cluster[number].client().address()).await;
            let request =
                format!("POST /v1/chat/completions HTTP/1.1\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}");
            connection.write(request).await;
            connections.push(connection);
        }
        Self(connections)
    }

    async fn answers(self) -> Vec<u16> {
        let mut statuses = Vec::new();
        for mut connection in self.0 {
            statuses.push(connection.status().await);
        }
        statuses
    }
}

/// The old leader thinks it leads still. It may serve nobody by what it knew. `LEA_LONG=1` leaves it asleep for ten
/// seconds at least.
#[tokio::test]
async fn a_paused_leader_wakes_to_another_and_accepts_no_key_revoked_meanwhile() {
    let (_provider, cluster) = three().await;
    let mut names = make_keys(&cluster, "before").await;
    let leader = cluster.leader().await;
    let left = others(leader);
    let revoked = cluster.operator(leader).await.create_key("revoked").await;
    all_answer(&cluster, &[0, 1, 2], &revoked, 200).await;

    cluster.pause(leader);
    let (paused_at, paused_for) = (Instant::now(), if is_long() { Duration::from_secs(10) } else { Duration::ZERO });
    let new = cluster.leader_but(leader).await;
    names.push(writes_again(&cluster, new, "meanwhile").await);
    let done = cluster.operator_now(new).await.revoke_key("revoked").await;
    assert_eq!(done["waited"], "every_node", "{done}");
    for number in &left {
        assert_eq!(asked(&cluster[*number], &revoked).await, 401);
    }
    let waiting = Waiting::at(&cluster, leader, &revoked).await;
    eventually_within(LONG, "it slept for long enough", async || paused_at.elapsed() >= paused_for).await;
    cluster.resume(leader);

    let statuses = waiting.answers().await;
    assert!(statuses.iter().all(|status| [401, 503].contains(status)), "{statuses:?}");
    let seen = async || {
        let status = asked(&cluster[leader], &revoked).await;
        assert_ne!(status, 200, "revoked");
        status == 401
    };
    eventually("it has caught up, and knows that the key is revoked", seen).await;
    one_leader(&cluster, &[0, 1, 2]).await;
    all_have_keys(&cluster, &[0, 1, 2], &names).await;
    all_answer(&cluster, &[0, 1, 2], WEB, 200).await;
}

#[tokio::test]
async fn a_provider_taken_off_while_a_node_is_paused_gets_nothing_afterwards() {
    let (provider, cluster) = three().await;
    let leader = cluster.leader().await;
    let follower = others(leader)[0];
    all_answer(&cluster, &[0, 1, 2], WEB, 200).await;

    cluster.pause(follower);
    let done = cluster.operator_now(leader).await.switch_provider_off("openai").await;
    assert_eq!(done["waited"], "every_node", "{done}");
    let sent = provider.requests().await.len();
    let waiting = Waiting::at(&cluster, follower, WEB).await;
    cluster.resume(follower);

    let statuses = waiting.answers().await;
    assert!(statuses.iter().all(|status| *status != 200 && *status != 0), "{statuses:?}");
    cluster.ready(follower).await;
    for number in [0, 1, 2] {
        assert_ne!(asked(&cluster[number], WEB).await, 200);
    }
    assert_eq!(provider.requests().await.len(), sent, "nothing was sent to it");
    cluster.operator(leader).await.post("/admin/v1/providers/openai/on", &Value::Null).await;
    all_answer(&cluster, &[0, 1, 2], WEB, 200).await;
}

/// What became of many keys.
#[derive(Default)]
struct Made {
    acknowledged: Vec<String>,
    /// Refused, or nobody knows.
    others: Vec<(String, u16, String)>,
}

async fn make_many(operator: Operator, worker: usize, count: usize, all: Arc<AtomicUsize>) -> Made {
    let mut made = Made::default();
    let mut next = 0;
    while made.acknowledged.len() < count {
        let name = format!("key-{worker}-{next}");
        next += 1;
        match operator.try_create_key(&name).await {
            Ok(_text) => {
                made.acknowledged.push(name);
                all.fetch_add(1, Ordering::Relaxed);
            }
            Err(refused) => made.others.push((name, refused.status, refused.code)),
        }
    }
    made
}

/// How often each key was made, by what the cluster remembers.
async fn audited(operator: &Operator) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    let mut from = 0;
    loop {
        let page = operator.get(&format!("/admin/v1/audit?limit=1000&from={from}")).await.json();
        let items = page["items"].as_array().unwrap();
        for record in items.iter().filter(|record| record["kind"] == "keys" && record["outcome"] == "done") {
            *times.entry(record["name"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        let Some(next) = page["next"].as_u64() else { return times };
        from = next;
    }
}

/// A command that is sent again because its leader died is made once: nothing is lost, nothing twice, and nobody is told
/// of a key of his own that it was there already. `LEA_LONG=1` makes ten thousand keys.
#[tokio::test]
async fn keys_made_through_a_follower_while_the_leader_dies_exist_exactly_once() {
    const WORKERS: usize = 16;
    let total = if is_long() { 10_000 } else { 2_000 };
    let (_provider, mut cluster) = three().await;
    let leader = cluster.leader().await;
    let follower = others(leader)[0];
    let operator = cluster.operator(follower).await;
    let all = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        workers.spawn(make_many(operator.clone(), worker, total / WORKERS, Arc::clone(&all)));
    }

    // At ten a second at least: a debug binary on a busy machine.
    let within = Duration::from_secs(total as u64 / 40);
    eventually_within(within, "a quarter is made", async || all.load(Ordering::Relaxed) >= total / 4).await;
    cluster.kill(leader).await;
    let at_the_kill = all.load(Ordering::Relaxed);
    let mut acknowledged = Vec::new();
    while let Some(made) = workers.join_next().await {
        let made = made.unwrap();
        acknowledged.extend(made.acknowledged);
        for (name, status, code) in made.others {
            assert!(status == 503 || (status, code.as_str()) == (504, "uncertain"), "{name}: {status} {code}");
        }
    }
    assert!(at_the_kill < total, "it died in the middle: {at_the_kill}");
    assert_eq!(acknowledged.len(), total);
    cluster.start_ready(leader).await;

    all_have_keys(&cluster, &[0, 1, 2], &acknowledged).await;
    for number in [0, 1, 2] {
        let times = audited(&cluster.operator(number).await).await;
        let wrong: Vec<_> = acknowledged.iter().filter(|name| times.get(*name) != Some(&1)).take(5).collect();
        assert!(wrong.is_empty(), "not made exactly once at edge-{number}: {wrong:?}");
    }
}

/// Faster back than anyone else stands for election, a leader goes on in its term. It must not read what it had then for
/// what there is now, and it has forgotten whom it granted to serve for how long.
#[tokio::test]
async fn a_leader_that_restarts_within_its_term_reads_nothing_stale_and_waits_for_old_grants() {
    let settings = "stale_max: 10s, heartbeat: 100ms, election_min: 4s, election_max: 5s, gossip_interval: 50ms";
    let provider = FakeProvider::start(binary!()).await;
    let mut cluster = builder(&provider).cluster(settings).start().await;
    let mut names = make_keys(&cluster, "before").await;
    let leader = cluster.leader().await;
    let cut_off = others(leader)[0];
    let operator = cluster.operator(leader).await;
    let gone = operator.create_key("gone").await;
    let lasting = operator.create_key("lasting").await;
    all_answer(&cluster, &[0, 1, 2], &lasting, 200).await;
    operator.revoke_key("gone").await;
    let term = async |cluster: &TestCluster| cluster[leader].status().await.unwrap()["cluster"]["term"].clone();
    let before = term(&cluster).await;
    names.push("last-before".to_owned());
    operator.create_key("last-before").await;

    cluster.pause(cut_off);
    cluster.kill(leader).await;
    cluster.start(leader);
    let member = &cluster[leader];
    eventually_within(LONG, "it serves again", async || {
        assert_ne!(asked(member, &gone).await, 200, "revoked before it died");
        asked(member, &lasting).await == 200
    })
    .await;
    assert_eq!((term(&cluster).await, cluster.leader().await), (before, leader), "it went on in its term");
    all_have_keys(&cluster, &[leader], &names).await;

    let done = operator.revoke_key("lasting").await;
    assert_eq!(done["waited"], "every_node", "{done}");
    let waiting = Waiting::at(&cluster, cut_off, &lasting).await;
    cluster.resume(cut_off);
    let statuses = waiting.answers().await;
    assert!(statuses.iter().all(|status| [401, 503].contains(status)), "{statuses:?}");
    all_answer(&cluster, &[0, 1, 2], &lasting, 401).await;
}

/// Whoever leads may have a shorter `stale_max` by now. What nodes were granted by the longer one runs on, and is waited
/// for.
#[tokio::test]
async fn grants_of_a_longer_stale_max_are_waited_out_after_all_others_have_a_shorter_one() {
    let longer = "stale_max: 15s, heartbeat: 150ms, election_min: 750ms, election_max: 1500ms, gossip_interval: 100ms";
    let provider = FakeProvider::start(binary!()).await;
    let mut cluster = builder(&provider).cluster(longer).start().await;
    let leader = cluster.leader().await;
    let key = cluster.operator(leader).await.create_key("revoked").await;
    all_answer(&cluster, &[0, 1, 2], &key, 200).await;
    let (paused, third) = (others(leader)[0], others(leader)[1]);

    cluster.pause(paused);
    for number in [leader, third] {
        cluster.kill(number).await;
        cluster.edit_file(number, |text| text.replace("stale_max: 15s", "stale_max: 3s"));
    }
    cluster.start(leader);
    cluster.start(third);
    let operator = cluster.operator(third).await;
    let done = operator.revoke_key("revoked").await;
    assert_eq!(done["waited"], "every_node", "{done}");
    let waiting = Waiting::at(&cluster, paused, &key).await;
    cluster.resume(paused);

    let statuses = waiting.answers().await;
    assert!(statuses.iter().all(|status| [401, 503].contains(status)), "{statuses:?}");
}

/// The file of a node that is alone still declares the key. Whoever connects while the node starts is served by what was
/// decided, never by what the file says.
#[tokio::test]
async fn a_lone_node_refuses_a_revoked_key_of_its_file_from_its_first_connection_on() {
    let provider = FakeProvider::start(binary!()).await;
    let mut cluster = builder(&provider).nodes(1).prepare().await;
    // Many providers, so that what was decided takes its time to be in force.
    let names = std::iter::once("openai".to_owned()).chain((0..40).map(|number| format!("more-{number}")));
    let url = provider.url();
    let providers = names.map(|name| format!("  {name}: {{ kind: openai, base_url: \"{url}/v1\", api_key: none }}"));
    let providers = providers.collect::<Vec<_>>().join("\n");
    let config = format!("providers:\n{providers}\nkeys: {{ web: {{ secret: {WEB} }} }}\n");
    cluster.write_config("edge-0", &config);
    cluster
        .edit_file(0, |text| text.lines().filter(|line| !line.starts_with("cluster:")).collect::<Vec<_>>().join("\n"));
    cluster.start_ready(0).await;
    all_answer(&cluster, &[0], WEB, 200).await;
    cluster.operator(0).await.revoke_key("web").await;

    for _life in 0..3 {
        cluster.kill(0).await;
        let mut callers = JoinSet::new();
        for _caller in 0..4 {
            callers.spawn(first_answer(cluster[0].as_key(WEB)));
        }
        cluster.start(0);

        while let Some(status) = callers.join_next().await {
            assert_eq!(status.unwrap(), 401);
        }
    }
}

/// Knocks until the listener is there; the system takes the connection before the node does. 0: nobody answers.
async fn first_answer(client: Client) -> u16 {
    let knocks = async {
        loop {
            let reply = client.try_send(Method::POST, "/v1/chat/completions", question().to_string()).await;
            if let Ok(reply) = reply {
                return reply.status;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, knocks).await.unwrap_or_default()
}

//! Several nodes that are one: they form, grow, shrink, roll, and anyone of them answers.
//!
//! What the files beside this one share is here too: three nodes that decide fast, and questions to all of them.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers end the test where something failed")]

use std::io::Write as _;
use std::net::{TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use harness::{
    Client, DEADLINE, FakeProvider, LONG, Member, TestCluster, TestClusterBuilder, binary, eventually,
    eventually_within, skipped,
};
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Elections within two seconds and promises that run out after three: short waits, on a machine that may be busy.
pub const FAST: &str =
    "stale_max: 3s, heartbeat: 150ms, election_min: 750ms, election_max: 1500ms, gossip_interval: 100ms";

pub const CONFIG: &str = r#"
resources_revision: 1
providers: { openai: { api_key: upstream, base_url: "{provider}/v1" } }
keys: { web: { secret: the-key-that-every-file-declares-0001 } }
"#;

/// [`CONFIG`] one revision later: another key.
const CHANGED: &str = r#"
resources_revision: 2
providers: { openai: { api_key: upstream, base_url: "{provider}/v1" } }
keys: { shop: { secret: the-key-that-comes-with-revision-2-02 } }
"#;

/// The same revision as [`CHANGED`], and something else.
const CONTRADICTING: &str = r#"
resources_revision: 2
providers: { openai: { api_key: upstream, base_url: "{provider}/v1" } }
keys: { shop: { secret: the-key-that-comes-with-revision-2-02, rpm: 9 } }
"#;

pub const WEB: &str = "the-key-that-every-file-declares-0001";
const SHOP: &str = "the-key-that-comes-with-revision-2-02";

pub fn builder(provider: &FakeProvider) -> TestClusterBuilder {
    TestCluster::builder(binary!()).config(CONFIG).cluster(FAST).provider("provider", provider)
}

/// Three nodes that serve, and the provider they call.
pub async fn three() -> (FakeProvider, TestCluster) {
    let provider = FakeProvider::start(binary!()).await;
    let cluster = builder(&provider).start().await;
    (provider, cluster)
}

/// What nodes take for the time of day, and a test moves. How long something lasts is not touched.
pub struct WallClock {
    library: String,
    folder: tempfile::TempDir,
}

impl WallClock {
    /// `None`, told by the test's name, where faketime is not installed.
    pub fn new(test: &str) -> Option<Self> {
        let of = |machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1");
        let library = ["x86_64", "aarch64"].map(of).into_iter().find(|path| std::fs::exists(path).unwrap_or_default());
        let Some(library) = library else {
            skipped(test, "faketime is not installed");
            return None;
        };
        let clock = Self { library, folder: tempfile::tempdir().unwrap() };
        clock.put("+0");
        Some(clock)
    }

    /// From now on it is this time, in seconds since 1970.
    #[expect(clippy::disallowed_methods, reason = "of the machine, which a clock that is put is told from")]
    pub fn put_at(&self, time: i64) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        self.put(&format!("{:+}", time - i64::try_from(now.as_secs()).unwrap()));
    }

    /// From now on it is as much later or earlier than it is: `-1h`, `+1d`.
    pub fn put(&self, by: &str) {
        std::fs::write(self.file(), format!("{by}\n")).unwrap();
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("clock")
    }

    /// Starts all nodes with it, and waits until they serve.
    pub async fn start(&self, cluster: &mut TestCluster) {
        Self::start_each(&vec![self; cluster.len()], cluster).await;
    }

    /// Each node has its own.
    pub async fn start_each(clocks: &[&Self], cluster: &mut TestCluster) {
        for (number, clock) in clocks.iter().enumerate() {
            cluster.set_env(number, "LD_PRELOAD", &clock.library);
            cluster.set_env(number, "FAKETIME_TIMESTAMP_FILE", &clock.file().display().to_string());
            cluster.set_env(number, "FAKETIME_NO_CACHE", "1");
            cluster.set_env(number, "FAKETIME_DONT_FAKE_MONOTONIC", "1");
            cluster.start(number);
        }
        for number in 0..cluster.len() {
            cluster.ready(number).await;
        }
    }
}

/// A question that no cache has the answer to.
pub fn question() -> Value {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    let content = format!("question {}", ASKED.fetch_add(1, Ordering::Relaxed));
    json!({ "model": "openai/m", "messages": [{ "role": "user", "content": content }] })
}

/// What a node answers who calls with this key; 0 when it does not answer.
pub async fn asked(member: &Member, key: &str) -> u16 {
    let reply = member.as_key(key).try_send(Method::POST, "/v1/chat/completions", question().to_string()).await;
    reply.map_or(0, |reply| reply.status)
}

/// Waits until each of these nodes answers so.
pub async fn all_answer(cluster: &TestCluster, numbers: &[usize], key: &str, status: u16) {
    for number in numbers {
        let member = &cluster[*number];
        let what = format!("{} answers {status}", member.name);
        eventually_within(LONG, &what, async || asked(member, key).await == status).await;
    }
}

/// Waits until these nodes agree on one leader among them, and on its term.
pub async fn one_leader(cluster: &TestCluster, numbers: &[usize]) {
    eventually_within(LONG, "all agree on one leader", async || {
        let mut told = Vec::new();
        for number in numbers {
            let Some(status) = cluster[*number].status().await else { return false };
            let status = &status["cluster"];
            told.push((status["leader"].clone(), status["term"].clone(), status["role"] == "leader"));
        }
        let agreed = told.iter().all(|one| !one.0.is_null() && (&one.0, &one.1) == (&told[0].0, &told[0].1));
        agreed && told.iter().filter(|one| one.2).count() == 1
    })
    .await;
}

/// Waits until each of these nodes lists every one of `names` among its keys.
pub async fn all_have_keys(cluster: &TestCluster, numbers: &[usize], names: &[String]) {
    for number in numbers {
        let operator = cluster.operator(*number).await;
        let has = async || {
            let found = operator.key_names().await;
            names.iter().all(|name| found.contains(name))
        };
        eventually_within(LONG, &format!("{} has every key", cluster[*number].name), has).await;
    }
}

/// Any node says who the members are and who leads; what is made through one is known to all.
#[tokio::test]
async fn three_seeds_form_one_cluster_and_any_node_answers() {
    let (_provider, cluster) = three().await;
    let all = [0, 1, 2];

    one_leader(&cluster, &all).await;
    let first = cluster[0].cluster_id().await;
    for number in all {
        let member = &cluster[number];
        assert!(member.cluster_id().await.is_some());
        assert_eq!(member.cluster_id().await, first, "one cluster");
        assert_eq!(asked(member, WEB).await, 200);
        eventually("the three hear each other", async || {
            let status = member.status().await.unwrap_or_default();
            let members = status["cluster"]["members"].as_array().cloned().unwrap_or_default();
            members.len() == 3 && members.iter().all(|one| one["alive"] == true && one["state"] == "ready")
        })
        .await;
        let status = member.status().await.unwrap();
        assert!(status["cluster"]["term"].as_u64() >= Some(1), "{status}");
        assert!(status["cluster"]["members"].as_array().unwrap().iter().all(|one| one["voter"] == true), "{status}");
    }
    for number in all {
        let key = cluster.operator(number).await.create_key(&format!("made-{number}")).await;
        assert_eq!(asked(&cluster[number], &key).await, 200, "where it was made it is known at once");
        all_answer(&cluster, &all, &key, 200).await;
    }
}

#[tokio::test]
async fn a_fourth_node_joins_drains_when_told_and_is_removed() {
    let (_provider, mut cluster) = three().await;
    let operator = cluster.operator(0).await;

    let fourth = cluster.add();
    cluster.start_ready(fourth).await;
    assert_eq!(asked(&cluster[fourth], WEB).await, 200);
    assert_eq!(cluster[fourth].cluster_id().await, cluster[0].cluster_id().await);
    eventually("it is listed", async || operator.members().await.len() == 4).await;

    operator.post("/admin/v1/members/edge-3/drain", &Value::Null).await;
    let status = cluster.gone(fourth).await;
    assert!(status.success(), "{status}\n{}", cluster[fourth].printed());

    operator.post("/admin/v1/members/edge-3/remove", &Value::Null).await;
    let names = operator.members().await;
    assert!(names.len() == 3 && names.iter().all(|member| member["name"] != "edge-3"), "{names:?}");
    all_answer(&cluster, &[0, 1, 2], WEB, 200).await;

    cluster.start_ready(fourth).await;
    eventually("who returns with its data is admitted again", async || operator.members().await.len() == 4).await;
}

/// Whoever starts again does not leave any more, whatever was asked of its life before.
#[tokio::test]
async fn a_drained_voter_that_starts_again_votes_again() {
    let (_provider, mut cluster) = three().await;
    let leader = cluster.leader().await;
    let drained = (leader + 1) % 3;
    let name = cluster[drained].name.clone();
    let operator = cluster.operator(leader).await;
    let votes =
        async || operator.members().await.iter().any(|one| one["name"] == name.as_str() && one["voter"] == true);

    operator.post(&format!("/admin/v1/members/{name}/drain"), &Value::Null).await;
    assert!(cluster.gone(drained).await.success());
    assert!(!votes().await, "who leaves gives its vote back first");

    cluster.start_ready(drained).await;
    eventually_within(LONG, "it votes again", votes).await;
}

/// A revision travels with whoever has it first; who has an older one uses the newer.
#[tokio::test]
async fn a_higher_revision_on_one_node_reaches_all_and_a_lower_one_changes_nothing() {
    let (_provider, mut cluster) = three().await;
    all_answer(&cluster, &[0, 1, 2], WEB, 200).await;

    cluster.write_config("edge-1", CHANGED);
    cluster.hang_up(1);

    all_answer(&cluster, &[0, 1, 2], SHOP, 200).await;
    all_answer(&cluster, &[0, 1, 2], WEB, 401).await;
    for number in [0, 1, 2] {
        let status = cluster[number].status().await.unwrap();
        assert_eq!(status["cluster"]["resources_revision"], 2, "{status}");
    }

    cluster.stop(2).await;
    cluster.start_ready(2).await;
    let statuses = (asked(&cluster[2], SHOP).await, asked(&cluster[2], WEB).await);
    assert_eq!(statuses, (200, 401), "its file is older, and not in force");
    let status = cluster[2].status().await.unwrap();
    assert_eq!((&status["config"]["revision"], &status["cluster"]["resources_revision"]), (&json!(1), &json!(2)));
    all_answer(&cluster, &[0, 1], SHOP, 200).await;
}

/// Two files of one revision that differ would take turns: the second is refused, and says in what it differs.
#[tokio::test]
async fn an_equal_revision_with_other_content_is_refused_and_named() {
    let (_provider, mut cluster) = three().await;
    cluster.write_config("edge-1", CHANGED);
    cluster.hang_up(1);
    all_answer(&cluster, &[0, 1, 2], SHOP, 200).await;

    cluster.write_config("edge-0", CONTRADICTING);
    cluster.hang_up(0);
    eventually("the file is refused", async || {
        let printed = cluster[0].printed();
        printed.lines().any(|line| line.contains("configuration refused") && line.contains("keys.shop"))
    })
    .await;
    assert_eq!(asked(&cluster[0], SHOP).await, 200, "what ran goes on");

    cluster.stop(0).await;
    cluster.start(0);
    cluster[0].says(&["resources_revision: 2", "keys.shop", "higher revision"]).await;
    assert_ne!(asked(&cluster[0], SHOP).await, 200, "not ready, so not serving");
    assert_eq!(asked(&cluster[1], SHOP).await, 200);

    cluster.write_config("edge-0", CHANGED);
    cluster.hang_up(0);
    cluster.ready(0).await;
    assert_eq!(asked(&cluster[0], SHOP).await, 200);
}

/// A client as a load balancer is one: it sends only to nodes whose `/readyz` said 200 lately, and when a node refuses
/// the connection, or answers 503, it sends the same request to the next. Nothing else is tried again.
struct Balanced {
    nodes: Vec<(Client, Client)>,
    ready: Vec<AtomicBool>,
    over: AtomicBool,
    answered: AtomicU64,
    retried: AtomicU64,
}

impl Balanced {
    fn over(cluster: &TestCluster) -> Arc<Self> {
        let nodes: Vec<_> = cluster.members().iter().map(|member| (member.as_key(WEB), member.operators())).collect();
        let ready = nodes.iter().map(|_| AtomicBool::new(true)).collect();
        let zero = AtomicU64::default;
        Arc::new(Self { nodes, ready, over: AtomicBool::new(false), answered: zero(), retried: zero() })
    }

    async fn follow_readiness(self: Arc<Self>) {
        while !self.over.load(Ordering::Relaxed) {
            for ((_api, admin), ready) in self.nodes.iter().zip(&self.ready) {
                let reply = admin.try_send(Method::GET, "/readyz", "").await;
                ready.store(reply.is_ok_and(|reply| reply.status == 200), Ordering::Relaxed);
            }
            tokio::task::yield_now().await;
        }
    }

    async fn ask(self: Arc<Self>, mut next: usize) {
        while !self.over.load(Ordering::Relaxed) {
            let body = question().to_string();
            let mut said = Vec::new();
            loop {
                next += 1;
                let number = next % self.nodes.len();
                if !self.ready[number].load(Ordering::Relaxed) {
                    tokio::task::yield_now().await;
                    continue;
                }
                let sent = self.nodes[number].0.try_send(Method::POST, "/v1/chat/completions", body.clone()).await;
                let (status, text) = sent.map_or_else(|error| (0, error), |reply| (reply.status, reply.text()));
                if status == 200 {
                    break;
                }
                said.push(format!("edge-{number}: {status} {text}"));
                let elsewhere = status == 503 || (status == 0 && text.contains("onnect"));
                assert!(elsewhere && said.len() < 20, "a request failed: {said:?}");
                self.retried.fetch_add(1, Ordering::Relaxed);
            }
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Rolling all nodes costs no request, as long as the balancer follows `/readyz` and goes on when a node hangs up
/// before it took anything.
#[tokio::test]
async fn restarting_one_node_after_the_other_under_load_fails_no_request() {
    let (provider, mut cluster) = three().await;
    let balanced = Balanced::over(&cluster);
    let mut clients = JoinSet::new();
    clients.spawn(Arc::clone(&balanced).follow_readiness());
    for number in 0..4 {
        clients.spawn(Arc::clone(&balanced).ask(number));
    }

    for number in [0, 1, 2] {
        let before = balanced.answered.load(Ordering::Relaxed);
        let status = cluster.stop(number).await;
        assert!(status.success(), "{status}\n{}", cluster[number].printed());
        cluster.start_ready(number).await;
        eventually("requests go on", async || balanced.answered.load(Ordering::Relaxed) > before + 20).await;
    }
    balanced.over.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }

    let answered = balanced.answered.load(Ordering::Relaxed);
    assert!(provider.requests().await.len() as u64 >= answered, "each was a request of its own");
    one_leader(&cluster, &[0, 1, 2]).await;
}

/// Ages are measured by the boot clock. A wall clock that jumps moves dates, and nothing else.
#[tokio::test]
async fn a_clock_that_goes_back_an_hour_breaks_no_promise() {
    let Some(clock) = WallClock::new("cluster::a_clock_that_goes_back_an_hour_breaks_no_promise") else { return };
    let provider = FakeProvider::start(binary!()).await;
    let mut cluster = builder(&provider).prepare().await;
    clock.start(&mut cluster).await;
    let operator = cluster.operator(0).await;
    let before = operator.create_key("before").await;
    all_answer(&cluster, &[0, 1, 2], &before, 200).await;

    clock.put("-1h");

    let after = operator.create_key("after").await;
    all_answer(&cluster, &[0, 1, 2], &after, 200).await;
    assert_eq!(operator.revoke_key("before").await["waited"], "every_node");
    for number in [0, 1, 2] {
        assert_eq!(asked(&cluster[number], &before).await, 401, "revoked, whatever the clock says");
    }
    let audit = operator.get("/admin/v1/audit?limit=1000").await.json();
    let at = |name: &str| {
        let found = audit["items"].as_array().unwrap().iter().find(|record| record["name"] == name);
        found.unwrap_or_else(|| panic!("{name} is missing: {audit}"))["at"].as_str().unwrap().to_owned()
    };
    assert!(at("after") < at("before"), "the clock did go back: {} and {}", at("after"), at("before"));

    cluster.kill(1).await;
    cluster.start_ready(1).await;
    assert_eq!((asked(&cluster[1], &after).await, asked(&cluster[1], &before).await), (200, 401));
}

/// What comes to the ports between nodes and is not of the cluster is counted, and changes nothing.
#[tokio::test]
async fn garbage_and_replayed_datagrams_change_nothing_and_are_counted() {
    let (_provider, mut cluster) = three().await;
    let key = cluster.operator(0).await.create_key("before").await;
    let recorded = datagrams_to_a_dead_node(&mut cluster, 2).await;
    let socket = UdpSocket::bind((cluster[2].address(), 0)).unwrap();
    let counted = async || {
        let metrics = cluster[0].metrics().await;
        (metrics.count("lea_gossip_dropped_total", &[]), metrics.count("lea_peer_garbage_total", &[]))
    };

    // A handful at a time, so that all of it fits into the socket's buffer.
    for round in 0..20_u8 {
        let before = counted().await;
        let noise: Vec<u8> = (0..=255_u8).map(|byte| byte.wrapping_mul(31).wrapping_add(round)).collect();
        socket.send_to(&noise[..=usize::from(round) * 12], cluster[0].gossip_address()).unwrap();
        for datagram in &recorded {
            socket.send_to(datagram, cluster[0].gossip_address()).unwrap();
        }
        let mut stream = TcpStream::connect(cluster[0].peer_address()).unwrap();
        // The node may hang up at once.
        let _refused = stream.write_all(&noise);
        drop(stream);
        let both = async || {
            let now = counted().await;
            now.0 > before.0 && now.1 > before.1
        };
        eventually("noise on both ports is counted", both).await;
    }

    one_leader(&cluster, &[0, 1, 2]).await;
    all_answer(&cluster, &[0, 1, 2], &key, 200).await;
    let operator = cluster.operator(0).await;
    eventually("all are alive", async || {
        let members = operator.members().await;
        members.len() == 3 && members.iter().all(|member| member["alive"] == true)
    })
    .await;
    for member in cluster.members() {
        let printed = member.printed();
        let error = printed.lines().find(|line| line.contains("ERROR"));
        assert!(error.is_none(), "{}: {error:?}", member.name);
    }
}

/// Sealed by the others for a node that does not live any more, until it is back.
async fn datagrams_to_a_dead_node(cluster: &mut TestCluster, number: usize) -> Vec<Vec<u8>> {
    cluster.kill(number).await;
    let socket = tokio::net::UdpSocket::bind(cluster[number].gossip_address()).await.unwrap();
    let mut recorded = Vec::new();
    while recorded.len() < 8 {
        let mut buffer = [0; 2048];
        let received = tokio::time::timeout(DEADLINE, socket.recv(&mut buffer)).await;
        let length = received.expect("the others go on looking for a dead node").unwrap();
        recorded.push(buffer[..length].to_vec());
    }
    drop(socket);
    cluster.start_ready(number).await;
    recorded
}

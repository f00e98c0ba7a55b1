//! Providers as all nodes see them: what one node learnt of them the others heed, and whose secrets they may have is for
//! each node to say.

use std::time::Duration;

use harness::{
    Client, FakeProvider, LONG, TestCluster, TestClusterBuilder, binary, eventually, eventually_some_within,
    eventually_within,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::{CONFIG, WEB, builder, question};

/// `lasting` stays open for longer than any test lasts, `brief` is soon probed.
const BREAKERS: &str = r#"
resources_revision: 1
providers:
  lasting: { kind: openai, base_url: "{provider}/v1", api_key: key-lasting, breaker: { failures_max: 3, open_for: 10m } }
  brief: { kind: openai, base_url: "{provider}/v1", api_key: key-brief, breaker: { failures_max: 3, open_for: 4s } }
  spare: { kind: openai, base_url: "{provider}/v1", api_key: key-spare, breaker: { failures_max: 3, open_for: 10m } }
routes:
  lasting: { targets: [lasting/m, spare/m], retries: { attempts_max: 2 } }
  brief: { targets: [brief/m, spare/m], retries: { attempts_max: 2 } }
auth: none
"#;

/// Longer than `open_for` and a turn of each node.
const TURNS: Duration = Duration::from_secs(8);

/// Between two requests of someone who asks all the time.
const ASK_EVERY: Duration = Duration::from_millis(50);

async fn gateways() -> (FakeProvider, TestCluster) {
    let provider = FakeProvider::start(binary!()).await;
    let cluster = builder(&provider).config(BREAKERS).start().await;
    (provider, cluster)
}

fn ask(route: &str) -> Value {
    let mut body = question();
    body["model"] = json!(route);
    body
}

/// What a node's `/status` says of a provider's breaker.
async fn breaker(cluster: &TestCluster, number: usize, name: &str) -> String {
    let status = cluster[number].status().await.unwrap_or_default();
    let providers = status["providers"].as_array().cloned().unwrap_or_default();
    let found = providers.iter().find(|provider| provider["name"] == name);
    found.and_then(|provider| provider["breaker"]["state"].as_str()).unwrap_or_default().to_owned()
}

async fn all_are(cluster: &TestCluster, numbers: &[usize], name: &str, state: &str) {
    for number in numbers {
        let what = format!("`{name}` is {state} at edge-{number}");
        eventually_within(LONG, &what, async || breaker(cluster, *number, name).await == state).await;
    }
}

async fn calls(provider: &FakeProvider, key: &str) -> usize {
    provider.requests().await.iter().filter(|seen| seen.key == key).count()
}

async fn fail_always(provider: &FakeProvider, name: &str) {
    provider.script(json!([{ "match": { "key": format!("key-{name}") }, "status": 500, "times": "always" }])).await;
}

/// Three failures at each of these nodes, each hidden by the spare.
async fn open_at(cluster: &TestCluster, numbers: &[usize], name: &str) {
    for number in numbers {
        let client = cluster[*number].client();
        eventually_within(LONG, &format!("edge-{number} has seen enough"), async || {
            let reply = client.post("/v1/chat/completions", &ask(name)).await;
            assert_eq!((reply.status, reply.header("x-lea-provider")), (200, Some("spare")), "{}", reply.text());
            breaker(cluster, *number, name).await == "open"
        })
        .await;
    }
}

/// One node may be the one that is broken. Two that saw the same are believed by the third, which then loses no request to
/// find out.
#[tokio::test]
async fn what_two_nodes_saw_of_a_provider_the_third_heeds() {
    let (provider, cluster) = gateways().await;
    fail_always(&provider, "lasting").await;

    open_at(&cluster, &[0, 1], "lasting").await;

    all_are(&cluster, &[2], "lasting", "open").await;
    let before = calls(&provider, "key-lasting").await;
    let reply = cluster[2].client().post("/v1/chat/completions", &ask("lasting")).await;
    assert_eq!((reply.status, reply.header("x-lea-attempts")), (200, Some("1")), "straight to the other");
    assert_eq!(calls(&provider, "key-lasting").await, before, "the third has never called it");
}

/// What the provider itself said needs no second witness.
#[tokio::test]
async fn a_provider_that_throttles_one_node_is_left_alone_by_all() {
    let (provider, cluster) = gateways().await;
    provider.script(json!([{ "match": { "key": "key-lasting" }, "throttle": 50 }])).await;

    let reply = cluster[0].client().post("/v1/chat/completions", &ask("lasting")).await;
    assert_eq!((reply.status, reply.header("x-lea-provider")), (200, Some("spare")), "{}", reply.text());

    all_are(&cluster, &[0, 1, 2], "lasting", "throttled").await;
    for number in [1, 2] {
        let reply = cluster[number].client().post("/v1/chat/completions", &ask("lasting")).await;
        assert_eq!((reply.status, reply.header("x-lea-provider")), (200, Some("spare")), "{}", reply.text());
    }
    assert_eq!(calls(&provider, "key-lasting").await, 1);
}

async fn ask_until(client: Client, until: Instant) {
    while Instant::now() < until {
        let reply = client.post("/v1/chat/completions", &ask("brief")).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Each node has requests to probe with, and they take turns: while one finds out, the others leave the provider alone,
/// and its success is a success for all. Turns are a second apart, and news that takes longer than that comes too late:
/// on a machine that is that busy, one round of three must still be as it should.
#[tokio::test]
async fn of_all_nodes_one_probes_and_its_success_closes_the_breaker_everywhere() {
    const ROUNDS: usize = 3;
    let (provider, cluster) = gateways().await;
    let mut probes = Vec::new();
    while probes.len() < ROUNDS && probes.last() != Some(&1) {
        probes.push(probes_of_all(&provider, &cluster).await);
    }
    assert_eq!(probes.last(), Some(&1), "one probe, of one node: {probes:?}");
    for number in [0, 1, 2] {
        let reply = cluster[number].client().post("/v1/chat/completions", &ask("brief")).await;
        assert_eq!((reply.header("x-lea-provider"), reply.header("x-lea-attempts")), (Some("brief"), Some("1")));
    }
}

/// How often a provider that has failed is called while the first that does it is held up. Then all find it well.
async fn probes_of_all(provider: &FakeProvider, cluster: &TestCluster) -> usize {
    fail_always(provider, "brief").await;
    open_at(cluster, &[0, 1, 2], "brief").await;
    provider.clear_script().await;
    provider.script(json!([{ "match": { "key": "key-brief" }, "hold": "before_head" }])).await;
    let failed = calls(provider, "key-brief").await;

    let until = Instant::now() + TURNS;
    let mut callers = JoinSet::new();
    for number in [0, 1, 2] {
        // One of them is held up by the probe.
        for _caller in 0..2 {
            callers.spawn(ask_until(cluster[number].client().with_deadline(LONG), until));
        }
    }
    eventually_within(LONG, "a probe is sent", async || calls(provider, "key-brief").await > failed).await;
    eventually_within(LONG, "each node had its turn", async || Instant::now() >= until).await;
    let probes = calls(provider, "key-brief").await - failed;
    provider.release().await;
    while let Some(ended) = callers.join_next().await {
        assert!(ended.is_ok(), "{ended:?}");
    }

    all_are(cluster, &[0, 1, 2], "brief", "closed").await;
    probes
}

/// Whoever may make providers chooses where their secrets go. A node gives away what its own file lists, whatever another
/// node's file says.
#[tokio::test]
async fn a_secret_goes_to_a_provider_only_from_nodes_whose_file_lists_it() {
    let listed = CONFIG.to_owned() + "admin: { allow_private_providers: true, provider_secrets: [GIVEN_KEY] }\n";
    let unlisted = CONFIG.to_owned() + "admin: { allow_private_providers: true }\n";
    let provider = FakeProvider::start(binary!()).await;
    let environment =
        |builder: TestClusterBuilder| builder.env("GIVEN_KEY", "key-that-is-given").env("KEPT_KEY", "key-that-is-kept");
    let mut cluster = environment(builder(&provider).config(&listed)).prepare().await;
    cluster.write_config("edge-2", &unlisted);
    for number in [0, 1, 2] {
        cluster.start(number);
    }
    for number in [0, 1, 2] {
        cluster.ready(number).await;
    }
    let made = async |number: usize, name: &str, secret: &str| {
        let operator = cluster.operator(number).await;
        let spec = json!({ "kind": "openai", "base_url": format!("{}/v1", provider.url()), "api_key": secret });
        operator.client().send(http::Method::PUT, &format!("/admin/v1/providers/{name}"), spec.to_string()).await
    };

    for (number, secret) in [(0, "${KEPT_KEY}"), (2, "${GIVEN_KEY}")] {
        let refused = made(number, "refused", secret).await;
        assert_eq!(refused.status, 400, "{}", refused.text());
        assert!(refused.text().contains("admin.provider_secrets"), "{}", refused.text());
    }
    let made = made(0, "extra", "${GIVEN_KEY}").await;
    assert!([200, 201].contains(&made.status), "{}", made.text());

    for number in [0, 1] {
        let client = cluster[number].as_key(WEB);
        let answered = eventually_some_within(LONG, "the provider is called", async || {
            let reply = client.post("/v1/chat/completions", &ask("extra/m")).await;
            (reply.status == 200).then_some(reply)
        });
        assert_eq!(answered.await.header("x-lea-provider"), Some("extra"));
    }
    eventually("the third says that it does not", async || {
        let printed = cluster[2].printed();
        printed.lines().any(|line| line.contains("admin.provider_secrets") && line.contains("GIVEN_KEY"))
    })
    .await;
    let before = provider.requests().await.len();
    let reply = cluster[2].as_key(WEB).post("/v1/chat/completions", &ask("extra/m")).await;
    assert_ne!(reply.status, 200, "{}", reply.text());
    let seen = provider.requests().await;
    assert_eq!(seen.len(), before, "nothing was sent");
    assert_eq!(seen.iter().filter(|seen| seen.key == "key-that-is-given").count(), 2);
    assert_eq!(cluster[2].client().with_key(WEB).chat("openai/m", "hi").await.status, 200);
}

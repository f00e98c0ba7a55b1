//! A provider that fails is left alone, tried again with one request, and taken back; a hasty client breaks nothing.

use futures_util::future::join_all;
use harness::{FakeProvider, TestNode, binary, eventually};
use serde_json::{Value, json};

/// `first` stays open for longer than any test lasts, `brief` is soon probed.
const CONFIG: &str = r#"
providers:
  first: { kind: openai, base_url: "{provider}/v1", api_key: key-first, breaker: { failures_max: 3, open_for: 10m } }
  brief: { kind: openai, base_url: "{provider}/v1", api_key: key-brief, breaker: { failures_max: 3, open_for: 300ms } }
  spare: { kind: openai, base_url: "{provider}/v1", api_key: key-spare, breaker: { failures_max: 3, open_for: 10m } }
routes:
  lasting: { targets: [first/m, spare/m], retries: { attempts_max: 2 } }
  probed: { targets: [brief/m, spare/m], retries: { attempts_max: 2 } }
  alone: { targets: [first/m], retries: { attempts_max: 1 } }
auth: none
"#;

const QUESTION: &str = "repeat after me: one two three";

async fn gateway() -> (FakeProvider, TestNode) {
    let provider = FakeProvider::start(binary!()).await;
    let node = TestNode::builder(binary!()).provider("provider", &provider).config(CONFIG).start().await;
    (provider, node)
}

/// The breaker of `name` as `/status` tells.
async fn breaker(node: &TestNode, name: &str) -> String {
    let status = node.admin().get("/status").await.json();
    let providers = status["providers"].as_array().cloned().unwrap_or_default();
    let found = providers.iter().find(|provider| provider["name"] == name);
    found.and_then(|provider| provider["breaker"]["state"].as_str()).unwrap_or_default().to_owned()
}

async fn calls(provider: &FakeProvider, key: &str) -> usize {
    provider.requests().await.iter().filter(|seen| seen.key == key).count()
}

fn failing(key: &str) -> Value {
    json!([{ "match": { "key": key }, "status": 500, "times": "always" }])
}

/// Asks until the breaker of `name` is open: three failures, each hidden by the spare.
async fn open(provider: &FakeProvider, node: &TestNode, route: &str, name: &str) {
    provider.script(failing(&format!("key-{name}"))).await;
    for _ in 0..3 {
        assert_eq!(breaker(node, name).await, "closed");
        let reply = node.client().chat(route, QUESTION).await;
        assert_eq!((reply.status, reply.header("x-lea-provider")), (200, Some("spare")), "{}", reply.text());
    }
}

#[tokio::test]
async fn a_provider_that_failed_too_often_is_left_alone() {
    let (provider, node) = gateway().await;
    open(&provider, &node, "lasting", "first").await;
    eventually("the breaker opens", async || breaker(&node, "first").await == "open").await;
    assert_eq!((breaker(&node, "brief").await, breaker(&node, "spare").await), ("closed".into(), "closed".into()));
    provider.clear_script().await;

    for _ in 0..5 {
        let reply = node.client().chat("lasting", QUESTION).await;
        assert_eq!((reply.status, reply.header("x-lea-attempts")), (200, Some("1")), "straight to the other");
        assert_eq!(reply.header("x-lea-provider"), Some("spare"));
    }

    assert_eq!(calls(&provider, "key-first").await, 3);
    assert_eq!(breaker(&node, "first").await, "open");
}

#[tokio::test]
async fn one_request_probes_and_its_success_closes_the_breaker() {
    let (provider, node) = gateway().await;
    open(&provider, &node, "probed", "brief").await;
    eventually("the breaker is half open", async || breaker(&node, "brief").await == "half_open").await;
    provider.clear_script().await;
    provider.script(json!([{ "match": { "key": "key-brief" }, "hold": "before_head" }])).await;

    let probe = node.client();
    let probe = probe.chat("probed", QUESTION);
    let meanwhile = async {
        eventually("the probe is sent", async || calls(&provider, "key-brief").await == 4).await;
        let others = join_all((0..5).map(|_| {
            let client = node.client();
            async move { client.chat("probed", QUESTION).await }
        }))
        .await;
        let during = calls(&provider, "key-brief").await;
        provider.release().await;
        (others, during)
    };
    let (probe, (others, during)) = tokio::join!(probe, meanwhile);

    assert_eq!(during, 4, "only one probe at a time");
    for reply in others {
        assert_eq!((reply.status, reply.header("x-lea-provider")), (200, Some("spare")), "{}", reply.text());
    }
    assert_eq!((probe.status, probe.header("x-lea-provider")), (200, Some("brief")), "{}", probe.text());
    eventually("the breaker closes", async || breaker(&node, "brief").await == "closed").await;
    let reply = node.client().chat("probed", QUESTION).await;
    assert_eq!((reply.header("x-lea-provider"), reply.header("x-lea-attempts")), (Some("brief"), Some("1")));
}

#[tokio::test]
async fn a_probe_that_fails_opens_the_breaker_again_and_hurts_nobody() {
    let (provider, node) = gateway().await;
    open(&provider, &node, "probed", "brief").await;
    eventually("the breaker is half open", async || breaker(&node, "brief").await == "half_open").await;

    let probe = node.client().chat("probed", QUESTION).await;
    assert_eq!((probe.status, probe.header("x-lea-provider")), (200, Some("spare")), "{}", probe.text());
    assert_eq!((probe.header("x-lea-attempts"), calls(&provider, "key-brief").await), (Some("2"), 4));
    assert_ne!(breaker(&node, "brief").await, "closed");

    provider.clear_script().await;
    eventually("a later probe closes it", async || {
        node.client().chat("probed", QUESTION).await.header("x-lea-provider") == Some("brief")
    })
    .await;
}

#[tokio::test]
async fn when_all_are_open_one_call_is_made_all_the_same() {
    let (provider, node) = gateway().await;
    provider.script(failing("key-first")).await;
    for _ in 0..3 {
        assert_eq!(node.client().chat("alone", QUESTION).await.status, 502);
    }
    eventually("the breaker opens", async || breaker(&node, "first").await == "open").await;

    let still_down = node.client().chat("alone", QUESTION).await;
    assert_eq!((still_down.status, calls(&provider, "key-first").await), (502, 4), "{}", still_down.text());
    assert_eq!(breaker(&node, "first").await, "open");

    provider.clear_script().await;
    let back = node.client().chat("alone", QUESTION).await;
    assert_eq!((back.status, back.header("x-lea-provider")), (200, Some("first")), "{}", back.text());
    eventually("its success closes the breaker", async || breaker(&node, "first").await == "closed").await;
}

#[tokio::test]
async fn hasty_clients_do_not_open_the_breaker() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "match": { "key": "key-first" }, "hold": "before_head", "times": 30 }])).await;
    let hasty = node.client().with_header("x-lea-timeout", "200ms");

    let replies = join_all((0..30).map(|_| {
        let client = hasty.clone();
        async move { client.chat("lasting", QUESTION).await }
    }))
    .await;

    for reply in replies {
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (504, &json!("timeout")), "{}", reply.text());
    }
    provider.settled().await;
    assert!(calls(&provider, "key-first").await >= 3, "the provider was asked more often than may fail");
    assert_eq!(calls(&provider, "key-spare").await, 0, "there is no time left for another");
    assert_eq!(breaker(&node, "first").await, "closed");
    provider.clear_script().await;
    let reply = node.client().chat("lasting", QUESTION).await;
    assert_eq!((reply.status, reply.header("x-lea-provider")), (200, Some("first")), "{}", reply.text());
}

#[tokio::test]
async fn what_is_the_clients_own_fault_does_not_open_the_breaker() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "status": 400, "times": 10 }])).await;
    for _ in 0..10 {
        assert_eq!(node.client().chat("lasting", QUESTION).await.status, 400);
    }

    assert_eq!(breaker(&node, "first").await, "closed");
    assert_eq!(node.client().chat("lasting", QUESTION).await.header("x-lea-provider"), Some("first"));
}

#[tokio::test]
async fn a_throttled_provider_is_shown_as_such_and_not_as_broken() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "match": { "key": "key-first" }, "throttle": 50 }])).await;

    assert_eq!(node.client().chat("lasting", QUESTION).await.header("x-lea-provider"), Some("spare"));

    eventually("the status tells", async || breaker(&node, "first").await == "throttled").await;
}

//! Which provider a request goes to, and what follows each class of failure.

use harness::{Events as _, FakeProvider, Reply, TestNode, binary, eventually};
use serde_json::{Value, json};

const CONFIG: &str = r#"
providers:
  one: { kind: openai, base_url: "{provider}/v1", api_key: key-one }
  two: { kind: anthropic, base_url: "{provider}/v1", api_key: key-two }
  three: { kind: openai, base_url: "{provider}/v1", api_key: key-three }
  many: { kind: openai, base_url: "{provider}/v1", api_keys: [key-a, key-b] }
routes:
  alias: { targets: [one/m] }
  failover: { targets: [one/m, two/m, three/m] }
  turns: { targets: [one/m, two/m, three/m], strategy: round_robin }
  weighted: { targets: [{ target: one/m, weight: 8 }, { target: two/m, weight: 2 }, { target: three/m, weight: 0 }], strategy: weighted }
  credentials: { targets: [many/m, three/m] }
  only-many: { targets: [many/m] }
  once: { targets: [one/m, two/m], retries: { attempts_max: 1 } }
  quick: { targets: [one/m, two/m], first_token_timeout: 200ms }
  "wild-*": { targets: ["one/model-*"] }
auth: none
"#;

const QUESTION: &str = "repeat after me: one two three four";
const ANSWER: &str = "one two three four";

async fn gateway() -> (FakeProvider, TestNode) {
    let provider = FakeProvider::start(binary!()).await;
    let node = TestNode::builder(binary!()).provider("provider", &provider).config(CONFIG).start().await;
    (provider, node)
}

/// The credentials of the calls so far, in order: each provider has its own.
async fn keys(provider: &FakeProvider) -> Vec<String> {
    provider.requests().await.into_iter().map(|seen| seen.key).collect()
}

/// What a request under `route` meets while `faults` hold, and whom it called.
async fn called(provider: &FakeProvider, node: &TestNode, route: &str, faults: Value) -> (Reply, Vec<String>) {
    let before = keys(provider).await.len();
    provider.script(faults).await;
    let reply = node.client().chat(route, QUESTION).await;
    provider.clear_script().await;
    (reply, keys(provider).await.split_off(before))
}

fn assert_answered_by(reply: &Reply, provider: &str, attempts: &str) {
    assert_eq!((reply.status, reply.said().as_str()), (200, ANSWER), "{}", reply.text());
    assert_eq!((reply.header("x-lea-provider"), reply.header("x-lea-attempts")), (Some(provider), Some(attempts)));
}

fn always(key: &str, fault: &Value) -> Value {
    let mut fault = fault.clone();
    fault["match"] = json!({ "key": key });
    fault["times"] = json!("always");
    fault
}

#[tokio::test]
async fn a_route_is_a_name_for_its_target() {
    let (provider, node) = gateway().await;

    let alias = node.client().chat("alias", QUESTION).await;
    let wild = node.client().chat("wild-7b", QUESTION).await;

    assert_answered_by(&alias, "one", "1");
    assert_eq!((alias.header("x-lea-route"), alias.header("x-lea-model")), (Some("alias"), Some("m")));
    assert_answered_by(&wild, "one", "1");
    assert_eq!(wild.header("x-lea-model"), Some("model-7b"));
    let models: Vec<_> = provider.requests().await.into_iter().map(|seen| seen.model).collect();
    assert_eq!(models, ["m", "model-7b"]);
}

#[tokio::test]
async fn failover_uses_the_first_that_answers() {
    let (provider, node) = gateway().await;
    for _ in 0..3 {
        assert_answered_by(&node.client().chat("failover", QUESTION).await, "one", "1");
    }
    let down = json!([always("key-one", &json!({ "status": 500 })), always("key-two", &json!({ "status": 503 }))]);

    let (reply, called) = called(&provider, &node, "failover", down).await;

    assert_answered_by(&reply, "three", "3");
    assert_eq!(called, ["key-one", "key-two", "key-three"]);
}

#[tokio::test]
async fn round_robin_takes_turns() {
    let (provider, node) = gateway().await;
    for _ in 0..9 {
        assert_eq!(node.client().chat("turns", QUESTION).await.status, 200);
    }

    let keys = keys(&provider).await;
    for turn in keys.chunks(3) {
        let mut turn = turn.to_vec();
        turn.sort_unstable();
        assert_eq!(turn, ["key-one", "key-three", "key-two"], "{keys:?}");
    }
    assert_eq!(keys[..3], keys[3..6]);
}

/// Of 200 draws at 80 %, fewer than one run in a million leaves these bounds.
#[tokio::test]
async fn weights_are_shares_of_the_traffic() {
    let (provider, node) = gateway().await;
    for _ in 0..200 {
        assert_eq!(node.client().chat("weighted", "hi").await.status, 200);
    }

    let keys = keys(&provider).await;
    let count = |key: &str| keys.iter().filter(|is| *is == key).count();
    assert!((130..=190).contains(&count("key-one")), "{} of 200", count("key-one"));
    assert_eq!((count("key-one") + count("key-two"), count("key-three")), (200, 0), "weight 0 takes none");
}

#[tokio::test]
async fn a_refused_credential_is_replaced_at_once_and_not_used_again() {
    for status in [401, 402, 403] {
        let (provider, node) = gateway().await;
        let refusal = json!([always("key-a", &json!({ "status": status }))]);
        provider.script(refusal).await;

        let mut attempts = Vec::new();
        for _ in 0..4 {
            let reply = node.client().chat("credentials", QUESTION).await;
            assert_eq!((reply.status, reply.header("x-lea-provider")), (200, Some("many")), "{}", reply.text());
            attempts.push(reply.header("x-lea-attempts").unwrap().to_owned());
        }

        let keys = keys(&provider).await;
        assert_eq!(keys.iter().filter(|key| *key == "key-a").count(), 1, "{status}: {keys:?}");
        assert_eq!(keys.iter().filter(|key| *key == "key-b").count(), 4, "{status}: {keys:?}");
        assert_eq!(attempts.iter().filter(|attempts| *attempts == "2").count(), 1, "{status}: {attempts:?}");
        node.assert_never_printed(&["key-a", "key-b"]);
    }
}

#[tokio::test]
async fn when_every_credential_is_refused_the_next_target_answers_or_the_client_is_told() {
    let (provider, node) = gateway().await;
    let refused = json!([always("key-a", &json!({ "status": 401 })), always("key-b", &json!({ "status": 401 }))]);

    let (reply, mut tried) = called(&provider, &node, "credentials", refused.clone()).await;
    assert_answered_by(&reply, "three", "3");
    tried.sort_unstable();
    assert_eq!(tried, ["key-a", "key-b", "key-three"]);

    let (alone, tried) = called(&provider, &node, "only-many", refused).await;
    assert_eq!((alone.status, &alone.json()["error"]["code"]), (502, &json!("upstream_credentials_exhausted")));
    assert!(!tried.contains(&"key-three".to_owned()), "{tried:?}");
}

#[tokio::test]
async fn a_throttled_provider_is_skipped_as_long_as_it_asks() {
    let (provider, node) = gateway().await;
    let throttle = json!([{ "match": { "key": "key-one" }, "throttle": 50 }]);

    let (first, tried) = called(&provider, &node, "failover", throttle).await;
    assert_answered_by(&first, "two", "2");
    assert_eq!(tried, ["key-one", "key-two"]);
    for _ in 0..3 {
        let (later, tried) = called(&provider, &node, "failover", json!([])).await;
        assert_answered_by(&later, "two", "1");
        assert_eq!(tried, ["key-two"]);
    }
}

#[tokio::test]
async fn a_throttled_provider_is_back_when_its_time_is_over() {
    let (provider, node) = gateway().await;
    let (first, _tried) =
        called(&provider, &node, "failover", json!([{ "match": { "key": "key-one" }, "throttle": 1 }])).await;
    assert_answered_by(&first, "two", "2");

    eventually("the throttled provider is called again", async || {
        node.client().chat("failover", QUESTION).await.header("x-lea-provider") == Some("one")
    })
    .await;
}

#[tokio::test]
async fn a_throttled_credential_is_skipped_and_the_other_used() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "match": { "key": "key-a" }, "throttle": 50 }])).await;

    for _ in 0..4 {
        let reply = node.client().chat("only-many", QUESTION).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    let keys = keys(&provider).await;
    assert_eq!(keys.iter().filter(|key| *key == "key-a").count(), 1, "{keys:?}");
    assert_eq!(keys.iter().filter(|key| *key == "key-b").count(), 4, "{keys:?}");
}

#[tokio::test]
async fn throttled_everywhere_is_told_with_a_wait_of_at_most_a_minute() {
    let (provider, node) = gateway().await;
    let throttled = json!([{ "throttle": 3_000, "times": "always" }]);

    let (found, tried) = called(&provider, &node, "failover", throttled).await;
    let (known, untried) = called(&provider, &node, "failover", json!([])).await;
    let message = node.client().message("failover", QUESTION).await;

    assert_eq!(tried, ["key-one", "key-two", "key-three"]);
    assert!(untried.is_empty(), "nobody who asked to be left alone is called: {untried:?}");
    for reply in [&found, &known, &message] {
        assert_eq!(reply.status, 429, "{}", reply.text());
        assert_eq!(reply.header("retry-after"), Some("60"));
        assert_eq!(reply.json()["error"]["type"], "rate_limit_error");
    }
    assert_eq!(known.json()["error"]["code"], "upstream_throttled");
}

#[tokio::test]
async fn a_failing_provider_is_replaced_by_the_next_target() {
    let faults = [
        json!({ "status": 500 }),
        json!({ "status": 502, "body": "<html>bad gateway</html>" }),
        json!({ "status": 503 }),
        json!({ "status": 529 }),
        json!({ "status": 404 }),
        json!({ "cut": { "at": "before_head", "how": "reset" } }),
    ];
    for fault in faults {
        let (provider, node) = gateway().await;

        let (reply, tried) = called(&provider, &node, "failover", json!([always("key-one", &fault)])).await;

        assert_answered_by(&reply, "two", "2");
        assert_eq!(tried, ["key-one", "key-two"], "{fault}");
    }
}

#[tokio::test]
async fn a_request_that_is_wrong_is_asked_once() {
    let (provider, node) = gateway().await;
    for status in [400, 413, 422] {
        let (reply, tried) =
            called(&provider, &node, "failover", json!([{ "status": status, "times": "always" }])).await;

        assert_eq!((reply.status, reply.json()["error"]["type"].as_str()), (400, Some("invalid_request_error")));
        assert_eq!(tried, ["key-one"], "{status}");
    }
}

#[tokio::test]
async fn no_more_attempts_are_made_than_the_route_allows() {
    let (provider, node) = gateway().await;

    let (reply, tried) = called(&provider, &node, "once", json!([{ "status": 500, "times": "always" }])).await;

    assert_eq!((reply.status, reply.header("x-lea-upstream-status")), (502, Some("500")));
    assert_eq!(tried, ["key-one"]);
}

#[tokio::test]
async fn a_provider_that_is_slow_to_its_first_token_is_replaced() {
    for silence in [json!({ "hang": "before_head" }), json!({ "hang": "after_head" })] {
        let (provider, node) = gateway().await;
        provider.script(json!([always("key-one", &silence)])).await;

        let stream = node.client().chat_stream("quick", QUESTION).await;

        assert_eq!((stream.status, stream.header("x-lea-provider")), (200, Some("two")), "{silence}");
        assert_eq!(stream.rest().await.text(), ANSWER);
        assert_eq!(provider.saw_hang_up().await.key, "key-one", "the slow one is let go");
    }
}

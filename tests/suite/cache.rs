//! Repeated questions come back at once, to whom they may, and never half.

use futures_util::future::join_all;
use harness::{Client, Events as _, FakeProvider, Reply, TestNode, binary, eventually};
use serde_json::{Value, json};

const CONFIG: &str = r#"
providers:
  openai: { base_url: "{provider}/v1", api_key: key-openai, timeouts: { idle: 300ms } }
  anthropic: { base_url: "{provider}/v1", api_key: key-anthropic }
routes:
  kept: { targets: [openai/m], cache: { mode: exact } }
  other: { targets: [openai/m], cache: { mode: exact } }
  translated: { targets: [anthropic/m], cache: { mode: exact } }
  brief: { targets: [openai/m], cache: { mode: exact, ttl: 1s } }
  small: { targets: [openai/m], cache: { mode: exact, answer_max: 600 B } }
  tools: { targets: [openai/m], cache: { mode: exact, tool_calls: true } }
  alone: { targets: [openai/m], cache: { mode: exact, share: key } }
  plain: { targets: [openai/m] }
tenants: { acme: {}, globex: {} }
keys:
  a1: { secret: the-first-key-of-the-tenant-acme-0001, tenant: acme }
  a2: { secret: the-second-key-of-the-tenant-acme-002, tenant: acme }
  g1: { secret: the-only-key-of-the-tenant-globex-0003, tenant: globex }
"#;

const A1: &str = "the-first-key-of-the-tenant-acme-0001";
const A2: &str = "the-second-key-of-the-tenant-acme-002";
const G1: &str = "the-only-key-of-the-tenant-globex-0003";
const QUESTION: &str = "repeat after me: one two three four";
const ANSWER: &str = "one two three four";

async fn gateway() -> (FakeProvider, TestNode) {
    let provider = FakeProvider::start(binary!()).await;
    let node = TestNode::builder(binary!()).provider("provider", &provider).config(CONFIG).start().await;
    (provider, node)
}

async fn cache_says(client: &Client, model: &str) -> String {
    let reply = client.chat(model, QUESTION).await;
    assert_eq!((reply.status, reply.said().as_str()), (200, ANSWER), "{}", reply.text());
    outcome(&reply)
}

fn outcome(reply: &Reply) -> String {
    reply.header("x-lea-cache").unwrap_or("-").to_owned()
}

async fn calls(provider: &FakeProvider) -> usize {
    provider.requests().await.len()
}

#[tokio::test]
async fn a_repeated_question_is_a_hit_of_the_same_answer_for_nothing() {
    let (provider, node) = gateway().await;
    let client = node.as_key(A1);

    let miss = client.chat("kept", "where is my card?").await;
    let hit = client.chat("kept", "where is my card?").await;
    let other = client.chat("kept", "where is my card now?").await;

    assert_eq!([&miss, &hit, &other].map(outcome), ["MISS", "HIT", "MISS"]);
    assert_eq!(miss.body, hit.body);
    assert_eq!(
        (miss.header("age"), hit.header("x-lea-cost-usd"), hit.header("x-lea-attempts")),
        (None, Some("0"), Some("0"))
    );
    assert!(hit.header("age").unwrap().parse::<u64>().unwrap() < 60);
    assert_eq!(calls(&provider).await, 2);
}

#[tokio::test]
async fn a_route_without_a_cache_bypasses_it() {
    let (provider, node) = gateway().await;

    assert_eq!(cache_says(&node.as_key(A1), "plain").await, "BYPASS");
    assert_eq!(cache_says(&node.as_key(A1), "plain").await, "BYPASS");
    assert_eq!(calls(&provider).await, 2);
}

#[tokio::test]
async fn a_caller_may_be_stricter_than_the_route() {
    let (provider, node) = gateway().await;
    let with = |directive: &str| node.as_key(A1).with_header("cache-control", directive);

    let refused = with("only-if-cached").chat("kept", QUESTION).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (504, &json!("not_cached")));
    assert_eq!(calls(&provider).await, 0);
    assert_eq!(cache_says(&with("no-store"), "kept").await, "BYPASS");
    assert_eq!(cache_says(&with("no-cache"), "kept").await, "MISS");
    assert_eq!(cache_says(&with("only-if-cached"), "kept").await, "HIT");
    assert_eq!(cache_says(&with("max-age=60"), "kept").await, "HIT");
    assert_eq!(cache_says(&with("no-cache"), "kept").await, "MISS");
    assert_eq!(cache_says(&with("no-store"), "kept").await, "BYPASS");
    assert_eq!(calls(&provider).await, 4);
}

#[tokio::test]
async fn an_answer_is_given_no_longer_than_its_time() {
    let (_provider, node) = gateway().await;
    let client = node.as_key(A1);
    assert_eq!(cache_says(&client, "brief").await, "MISS");

    eventually("the answer is too old", async || cache_says(&client, "brief").await == "MISS").await;
}

#[tokio::test]
async fn an_answer_older_than_the_caller_takes_is_not_given() {
    let (_provider, node) = gateway().await;
    let client = node.as_key(A1);
    assert_eq!(cache_says(&client, "kept").await, "MISS");
    let picky = client.with_header("cache-control", "max-age=1");

    eventually("the answer is too old for this caller", async || cache_says(&picky, "kept").await == "MISS").await;
}

/// P-ISOLATE: no answer cached for one scope is ever given to another.
#[tokio::test]
async fn tenants_namespaces_routes_and_keys_never_share_what_they_should_not() {
    let (_provider, node) = gateway().await;
    let space = |name: &str| node.as_key(A1).with_header("x-lea-cache-namespace", name);

    assert_eq!(cache_says(&node.as_key(A1), "kept").await, "MISS");
    assert_eq!(cache_says(&node.as_key(A2), "kept").await, "HIT", "keys of a tenant share");
    assert_eq!(cache_says(&node.as_key(G1), "kept").await, "MISS", "tenants do not");
    assert_eq!(cache_says(&node.as_key(A1), "other").await, "MISS", "routes do not");
    assert_eq!(cache_says(&space("x"), "kept").await, "MISS", "namespaces do not");
    assert_eq!(cache_says(&space("x"), "kept").await, "HIT");
    assert_eq!(cache_says(&space("y"), "kept").await, "MISS");
    assert_eq!(cache_says(&node.as_key(A1), "alone").await, "MISS");
    assert_eq!(cache_says(&node.as_key(A2), "alone").await, "MISS", "with `share: key`, keys do not");
    assert_eq!(cache_says(&node.as_key(A1), "alone").await, "HIT");
}

#[tokio::test]
async fn a_kept_answer_is_replayed_in_every_form() {
    let (provider, node) = gateway().await;
    let client = node.as_key(A1);
    for (model, streamed_first) in [("kept", false), ("translated", false), ("kept", true), ("translated", true)] {
        let question = format!("repeat after me: one {model} {streamed_first}");
        let answer = format!("one {model} {streamed_first}");
        let before = calls(&provider).await;
        if streamed_first {
            assert_eq!(client.chat_stream(model, &question).await.rest().await.text(), answer);
        } else {
            assert_eq!(client.chat(model, &question).await.said(), answer);
        }

        let chat = client.chat(model, &question).await;
        let stream = client.chat_stream(model, &question).await;
        assert_eq!((chat.said(), outcome(&chat)), (answer.clone(), "HIT".to_owned()), "{model} {streamed_first}");
        assert_eq!(stream.header("x-lea-cache"), Some("HIT"));
        let events = stream.rest().await;
        assert_eq!((events.text(), events.finish_reason().as_deref()), (answer.clone(), Some("stop")));
        assert!(events.last().unwrap().is_done());
        assert_eq!(chat.json()["choices"][0]["finish_reason"], "stop");
        assert_eq!(calls(&provider).await, before + 1, "{model} {streamed_first}");
    }
}

#[tokio::test]
async fn what_must_not_be_kept_is_not() {
    let (provider, node) = gateway().await;
    let client = node.as_key(A1);
    let filtered = json!({ "id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [{ "index": 0,
        "message": { "role": "assistant", "content": "well" }, "finish_reason": "content_filter" }] });
    let faults = [json!({ "status": 400 }), json!({ "status": 200, "body": filtered })];
    for fault in faults {
        provider.reset().await;
        provider.script(json!([fault])).await;
        let question = format!("repeat after me: {fault}");
        client.chat("kept", &question).await;
        let again = client.chat("kept", &question).await;
        assert_eq!(outcome(&again), "MISS", "{fault}");
    }

    provider.script(json!([{ "cut": { "at": { "after_tokens": 2 }, "how": "end" } }])).await;
    let cut = client.chat_stream("kept", QUESTION).await.rest().await;
    assert!(cut.last().unwrap().is_error());
    assert_eq!(cache_says(&client, "kept").await, "MISS", "a cut stream");

    let long = format!("repeat after me: {}", "word ".repeat(300));
    client.chat("small", &long).await;
    assert_eq!(outcome(&client.chat("small", &long).await), "MISS", "too large");
}

#[tokio::test]
async fn an_answer_that_ended_on_a_cap_nobody_asked_for_is_not_kept() {
    let (_provider, node) = gateway().await;
    let client = node.as_key(A1);
    let ask = |model: &str, cap: Value| {
        let body =
            json!({ "model": model, "max_tokens": cap, "messages": [{ "role": "user", "content": "count to 6000" }] });
        let client = client.clone();
        async move { client.post("/v1/chat/completions", &body).await }
    };

    let injected = ask("translated", Value::Null).await;
    assert_eq!(injected.json()["choices"][0]["finish_reason"], "length");
    assert_eq!(outcome(&ask("translated", Value::Null).await), "MISS");
    ask("translated", json!(5)).await;
    assert_eq!(outcome(&ask("translated", json!(5)).await), "HIT", "the client's own cap is part of the question");
}

#[tokio::test]
async fn tool_calls_are_kept_only_where_the_route_says_so() {
    let (_provider, node) = gateway().await;
    let tool = json!({ "type": "function", "function": { "name": "block_card", "parameters": { "type": "object" } } });
    let body = |model: &str| json!({ "model": model, "tools": [tool], "messages": [{ "role": "user", "content": "block card" }] });
    for (model, expected) in [("kept", "MISS"), ("tools", "HIT")] {
        node.as_key(A1).post("/v1/chat/completions", &body(model)).await;
        let again = node.as_key(A1).post("/v1/chat/completions", &body(model)).await;
        assert_eq!(again.json()["choices"][0]["finish_reason"], "tool_calls");
        assert_eq!(outcome(&again), expected, "{model}");
    }
}

#[tokio::test]
async fn fifty_who_ask_the_same_at_once_cause_one_call() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "hold": { "after_tokens": 1 } }])).await;
    let client = node.as_key(A1);
    let streams = join_all((0..25).map(|_| client.chat_stream("kept", QUESTION))).await;
    let wholes = join_all((0..25).map(|_| client.chat("kept", QUESTION)));
    let in_flight = async {
        eventually("all are in", async || node.metrics().await.count("lea_requests_in_flight", &[]) >= 50.0).await;
        provider.release().await;
    };

    let (wholes, ()) = tokio::join!(wholes, in_flight);

    let mut outcomes: Vec<_> = wholes.iter().map(outcome).collect();
    for reply in &wholes {
        assert_eq!(reply.said(), ANSWER);
    }
    for stream in streams {
        outcomes.push(stream.header("x-lea-cache").unwrap().to_owned());
        assert_eq!(stream.rest().await.text(), ANSWER);
    }
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "MISS").count(), 1, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "COALESCED").count(), 49, "{outcomes:?}");
    assert_eq!(calls(&provider).await, 1);
}

#[tokio::test]
async fn a_leader_that_hangs_up_leaves_the_others_their_answer() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "hold": { "after_tokens": 1 } }])).await;
    let mut leader = node.as_key(A1).chat_stream("kept", QUESTION).await;
    leader.next_text().await;
    let mut follower = node.as_key(A2).message_stream("kept", QUESTION).await;
    assert_eq!(follower.header("x-lea-cache"), Some("COALESCED"));
    follower.next_text().await;

    drop(leader);
    eventually("the leader has left", async || node.printed().contains("client_closed")).await;
    provider.release().await;

    assert_eq!(follower.rest().await.text(), " two three four");
    assert_eq!(calls(&provider).await, 1);
    assert_eq!(cache_says(&node.as_key(A1), "kept").await, "HIT");
}

#[tokio::test]
async fn when_the_last_reader_leaves_the_provider_is_stopped() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "hold": { "after_tokens": 1 } }])).await;
    let mut one = node.as_key(A1).chat_stream("kept", QUESTION).await;
    let mut two = node.as_key(A2).chat_stream("kept", QUESTION).await;
    one.next_text().await;
    two.next_text().await;

    drop((one, two));

    assert_eq!(provider.saw_hang_up().await.output_tokens, 1);
    assert_eq!(cache_says(&node.as_key(A1), "kept").await, "MISS", "half an answer is not kept");
}

#[tokio::test]
async fn the_failure_of_a_shared_call_is_only_its_leaders() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "hold": "before_head" }])).await;
    let client = node.as_key(A1);
    let hasty = client.clone().with_header("x-lea-timeout", "300ms");
    let leader = hasty.chat("kept", QUESTION);
    let follower = async {
        provider.arrived(1).await;
        client.chat("kept", QUESTION).await
    };

    let (leader, follower) = tokio::join!(leader, follower);

    assert_eq!(leader.status, 504);
    assert_eq!((follower.status, follower.said().as_str()), (200, ANSWER));
    assert_eq!(calls(&provider).await, 2);
}

/// `anthropic-beta` reaches the provider and changes what it answers, so it is part of the question.
#[tokio::test]
async fn a_question_with_a_beta_header_is_not_answered_from_the_cache() {
    let (_provider, node) = gateway().await;
    let client = node.as_key(A1);
    client.chat("kept", QUESTION).await;

    let beta = client.clone().with_header("anthropic-beta", "context-1m-2025-08-07").chat("kept", QUESTION).await;

    assert_eq!(outcome(&beta), "BYPASS");
    assert_eq!(outcome(&client.chat("kept", QUESTION).await), "HIT");
}

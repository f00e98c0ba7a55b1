//! What comes from providers and should not: the client gets a typed error with a request id, never the provider's page, never a key.

use harness::{FakeProvider, TestNode, binary};
use serde_json::{Value, json};

const UPSTREAM_KEY: &str = "sk-upstream-0123456789abcdef0123456789";
const CONFIG: &str = r#"
limits: { reply_max: 1MiB }
providers:
  openai:
    base_url: "{provider}/v1"
    api_key: sk-upstream-0123456789abcdef0123456789
    timeouts: { connect: 300ms, first_token: 400ms, idle: 400ms, total: 1s }
    breaker: { failures_max: 1000, failure_share: 100 }
  nowhere: { kind: compatible, base_url: "http://127.0.0.1:1/v1", api_key: none }
  nameless: { kind: compatible, base_url: "http://no.such.host.invalid/v1", api_key: none }
  plain: { kind: compatible, base_url: "{secure}/v1", api_key: none }
  mute: { kind: compatible, base_url: "{mute}/v1", api_key: none, timeouts: { connect: 300ms } }
routes:
  once: { targets: [openai/m], retries: { attempts_max: 1 } }
  nowhere: { targets: [nowhere/m], retries: { attempts_max: 1 } }
  nameless: { targets: [nameless/m], retries: { attempts_max: 1 } }
  plain: { targets: [plain/m], retries: { attempts_max: 1 } }
  mute: { targets: [mute/m], retries: { attempts_max: 1 } }
auth: none
"#;
const QUESTION: &str = "repeat after me: one two three four";

#[expect(clippy::unwrap_used, reason = "a test without a port cannot go on")]
fn mute_listener() -> std::net::TcpListener {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap()
}

#[expect(clippy::unwrap_used, reason = "a bound listener has an address")]
fn address_of(listener: &std::net::TcpListener) -> std::net::SocketAddr {
    listener.local_addr().unwrap()
}

/// The listener accepts connections and never says a word: a TLS handshake with it hangs.
async fn gateway() -> (FakeProvider, TestNode, std::net::TcpListener) {
    let provider = FakeProvider::start(binary!()).await;
    let listener = mute_listener();
    let mute = format!("https://{}", address_of(&listener));
    let secure = provider.url().replace("http://", "https://");
    let node =
        TestNode::builder(binary!()).provider("provider", &provider).place("secure", &secure).place("mute", &mute);
    (provider, node.config(CONFIG).start().await, listener)
}

/// The error is typed, in the caller's shape, logged, counted, and gives nothing away.
async fn assert_typed(node: &TestNode, model: &str, case: &Value, status: u16, code: &str) {
    let chat = node.client().chat(model, QUESTION).await;
    assert_eq!((chat.status, &chat.json()["error"]["code"]), (status, &json!(code)), "{case}: {}", chat.text());
    let id = chat.header("x-request-id").unwrap_or_default().to_owned();
    assert_eq!(chat.json()["error"]["request_id"], json!(id), "{case}");
    assert!(!chat.text().contains(UPSTREAM_KEY) && !chat.text().contains("<html"), "{case}: {}", chat.text());
    harness::eventually("the log tells of it", async || {
        node.printed().lines().any(|line| line.contains(&id) && line.contains("request failed"))
    })
    .await;
    assert!(node.metrics().await.count("lea_requests_total", &[("case", code)]) > 0.0, "{case}");
}

async fn assert_unharmed(provider: &FakeProvider, node: &TestNode) {
    provider.clear_script().await;
    let reply = node.client().chat("once", QUESTION).await;
    assert_eq!((reply.status, reply.said()), (200, "one two three four".to_owned()));
    assert!(!node.printed().contains("panicked"), "{}", node.printed());
    node.assert_never_printed(&[UPSTREAM_KEY]);
}

#[tokio::test]
async fn an_answer_that_is_none_is_a_typed_error() {
    let (provider, node, _mute) = gateway().await;
    let page = "<html><body>Bad gateway</body></html>";
    let html = json!({ "content-type": "text/html" });
    let deep = "[".repeat(10_000);
    let huge = "x".repeat(2 << 20);
    let cases = [
        (json!({ "status": 200, "body": "{nonsense" }), 502, "upstream_error"),
        (json!({ "status": 200, "body": page, "headers": html }), 502, "upstream_error"),
        (json!({ "status": 502, "body": page, "headers": html }), 502, "upstream_error"),
        (json!({ "status": 200, "body": deep }), 502, "upstream_error"),
        (json!({ "status": 200, "body": huge }), 502, "reply_too_large"),
        (json!({ "status": 200, "body": "{}", "headers": { "content-encoding": "gzip" } }), 502, "upstream_error"),
        (json!({ "status": 302, "headers": { "location": "http://127.0.0.1:9/" } }), 502, "upstream_error"),
        (json!({ "status": 204 }), 502, "upstream_error"),
        (json!({ "hang": "after_head" }), 504, "upstream_timeout"),
        (json!({ "hang": "before_head" }), 504, "upstream_timeout"),
        (json!({ "cut": { "at": "before_head", "how": "reset" } }), 502, "upstream_error"),
        (
            json!({ "status": 401, "body": { "error": { "message": format!("Incorrect API key provided: {UPSTREAM_KEY}") } } }),
            502,
            "upstream_credentials_exhausted",
        ),
    ];
    for (fault, status, code) in cases {
        provider.script(json!([fault])).await;
        assert_typed(&node, "once", &json!(fault.to_string().chars().take(120).collect::<String>()), status, code)
            .await;
    }
    // The refused credential rests; everything else goes on.
    assert!(!node.printed().contains("panicked"), "{}", node.printed());
    node.assert_never_printed(&[UPSTREAM_KEY]);
}

#[tokio::test]
async fn a_provider_that_cannot_be_reached_is_a_typed_error() {
    let (provider, node, _mute) = gateway().await;

    assert_typed(&node, "nowhere", &json!("connection refused"), 502, "upstream_error").await;
    assert_typed(&node, "nameless", &json!("no such name"), 502, "upstream_error").await;
    assert_typed(&node, "plain", &json!("no TLS there"), 502, "upstream_error").await;
    assert_typed(&node, "mute", &json!("a handshake that hangs"), 504, "upstream_timeout").await;
    assert_unharmed(&provider, &node).await;
}

/// P-STREAM: what a stream can do wrong after it has begun ends it with a typed error.
#[tokio::test]
async fn a_stream_that_goes_wrong_ends_with_a_typed_error() {
    let (provider, node, _mute) = gateway().await;
    let cases = [
        json!({ "cut": { "at": { "after_tokens": 2 }, "how": "half_event" } }),
        json!({ "cut": { "at": { "after_tokens": 2 }, "how": "end" } }),
        json!({ "cut": { "at": { "after_tokens": 2 }, "how": "reset" } }),
        json!({ "hang": { "after_tokens": 2 } }),
        json!({ "error_event": { "after_tokens": 2 } }),
        json!({ "long_line": 50_000_000 }),
    ];
    for fault in cases {
        provider.script(json!([fault])).await;
        let events = node.client().chat_stream("once", QUESTION).await.rest().await;
        let last = events.last().expect("something came");
        assert!(last.is_error(), "{fault}: {last:?}");
        assert_eq!(last.json()["error"]["message"].as_str().map(str::is_empty), Some(false), "{fault}");
        assert!(!events.iter().any(harness::Event::is_done), "{fault}");
    }
    assert_unharmed(&provider, &node).await;
}

#[tokio::test]
async fn a_stream_of_single_bytes_is_a_stream() {
    let (provider, node, _mute) = gateway().await;
    provider.script(json!([{ "chunk_bytes": 1 }])).await;

    let events = node.client().chat_stream("once", QUESTION).await.rest().await;

    assert_eq!(harness::Events::text(events.as_slice()), "one two three four");
    assert!(events.last().is_some_and(harness::Event::is_done));
    assert_unharmed(&provider, &node).await;
}

/// A stream that calls itself something else is not taken for one; the client sees an error, not the bytes.
#[tokio::test]
async fn a_stream_of_the_wrong_content_type_is_refused() {
    let (provider, node, _mute) = gateway().await;
    provider.script(json!([{ "content_type": "text/plain" }])).await;

    let body = json!({ "model": "once", "stream": true, "messages": [{ "role": "user", "content": QUESTION }] });
    let reply = node.client().post("/v1/chat/completions", &body).await;

    assert_eq!((reply.status, &reply.json()["error"]["code"]), (502, &json!("upstream_error")), "{}", reply.text());
    assert_unharmed(&provider, &node).await;
}

/// Some vendors say a date where seconds are meant, some say nonsense: neither panics, nor takes the provider away for years.
#[tokio::test]
async fn a_nonsensical_retry_after_is_bounded() {
    let (provider, node, _mute) = gateway().await;
    for wait in ["10000000000000000000", "1763900000", "-5", "soon", "1e300"] {
        provider.script(json!([{ "status": 429, "headers": { "retry-after": wait } }])).await;
        let reply = node.client().chat("once", QUESTION).await;
        assert_eq!(reply.status, 429, "{wait}: {}", reply.text());
        let told: u64 = reply.header("retry-after").unwrap_or_default().parse().unwrap_or_default();
        assert!((1..=60).contains(&told), "{wait}: told {told}");
    }
    assert!(!node.printed().contains("panicked"), "{}", node.printed());
}

/// P-STREAM: an answer nobody finished is not passed off as a whole one.
#[tokio::test]
async fn an_answer_without_a_finish_reason_is_not_whole() {
    let (provider, node, _mute) = gateway().await;
    let unfinished = json!({ "id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [{ "index": 0,
        "message": { "role": "assistant", "content": "half" }, "finish_reason": null }] });
    for stream in [false, true] {
        provider.script(json!([{ "status": 200, "body": unfinished }])).await;
        let body = json!({ "model": "once", "stream": stream, "messages": [{ "role": "user", "content": QUESTION }] });
        let reply = node.client().post("/v1/chat/completions", &body).await;
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (502, &json!("upstream_cut")), "{}", reply.text());
    }
    assert_unharmed(&provider, &node).await;
}

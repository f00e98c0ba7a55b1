//! What comes from clients and should not: a typed error in the caller's shape, a log line, a metric, and the node goes on.

use harness::{FakeProvider, RawConnection, Reply, TestNode, binary};
use http::Method;
use serde_json::{Value, json};

const UPSTREAM_KEY: &str = "sk-upstream-0123456789abcdef0123456789";
const CONFIG: &str = r#"
limits: { header_timeout: 300ms, body_timeout: 300ms, body_max: 1MiB }
providers:
  openai: { base_url: "{provider}/v1", api_key: sk-upstream-0123456789abcdef0123456789 }
auth: none
"#;
const MESSAGES: &str = r#""messages":[{"role":"user","content":"hi"}]"#;

async fn gateway() -> (FakeProvider, TestNode) {
    let provider = FakeProvider::start(binary!()).await;
    let node = TestNode::builder(binary!()).provider("provider", &provider).config(CONFIG).start().await;
    (provider, node)
}

/// The error's shape is the caller's, with its request id, and the log and the metrics know of it.
async fn assert_refused(node: &TestNode, path: &str, reply: &Reply, status: u16, code: &str) {
    let text = reply.text();
    assert_eq!(reply.status, status, "{code}: {text}");
    let json = reply.json();
    let id = reply.header("x-request-id").unwrap_or_default().to_owned();
    assert_eq!(json["error"]["message"].as_str().map(str::is_empty), Some(false), "{text}");
    if path == "/v1/messages" {
        assert_eq!((&json["type"], &json["request_id"]), (&json!("error"), &json!(id)), "{text}");
    } else {
        assert_eq!((&json["error"]["code"], &json["error"]["request_id"]), (&json!(code), &json!(id)), "{text}");
    }
    harness::eventually("the log tells of it", async || {
        node.printed().lines().any(|line| line.contains(&id) && line.contains(code) && line.contains("request failed"))
    })
    .await;
    let count = node.metrics().await.count("lea_requests_total", &[("case", code)]);
    assert!(count > 0.0, "{code} is not counted");
}

/// Afterwards a good request is served, nothing panicked, and nobody learned the provider's key.
async fn assert_unharmed(node: &TestNode) {
    let reply = node.client().chat("openai/m", "repeat after me: still here").await;
    assert_eq!((reply.status, reply.said()), (200, "still here".to_owned()));
    assert!(!node.printed().contains("panicked"), "{}", node.printed());
    node.assert_never_printed(&[UPSTREAM_KEY]);
}

#[tokio::test]
async fn a_body_that_is_no_request_is_refused_where_it_is_wrong() {
    let (provider, node) = gateway().await;
    let deep = "[".repeat(10_000);
    let bad_utf8: &[u8] = b"{\"model\":\"\xff\"}";
    let cases: Vec<(Vec<u8>, &str, Option<&str>)> = vec![
        (b"".to_vec(), "invalid_request", None),
        (b"{\"model\":".to_vec(), "invalid_request", None),
        (br#"{"model":"openai/m","messages":[{"role":"us"#.to_vec(), "invalid_request", None),
        (deep.clone().into_bytes(), "too_deep", None),
        (format!("{{\"model\":\"openai/m\",{MESSAGES},\"x\":{deep}}}").into_bytes(), "too_deep", None),
        (
            format!("{{\"model\":\"a\",\"model\":\"openai/m\",{MESSAGES}}}").into_bytes(),
            "invalid_request",
            Some("model"),
        ),
        (bad_utf8.to_vec(), "invalid_request", None),
        (
            format!("{{\"model\":\"openai/m\",\"max_tokens\":-5,{MESSAGES}}}").into_bytes(),
            "invalid_request",
            Some("max_tokens"),
        ),
        (format!("{{\"model\":\"openai/m\",\"max_tokens\":1e400,{MESSAGES}}}").into_bytes(), "invalid_request", None),
        (
            format!("{{\"model\":\"openai/m\",\"max_tokens\":99999999999999999999,{MESSAGES}}}").into_bytes(),
            "invalid_request",
            Some("max_tokens"),
        ),
        (br#"{"model":"openai/m"}"#.to_vec(), "invalid_request", Some("messages")),
        (br#"{"model":"openai/m","messages":[]}"#.to_vec(), "invalid_request", Some("messages")),
        (br#"{"model":"openai/m","messages":"hi"}"#.to_vec(), "invalid_request", Some("messages")),
    ];
    for (body, code, param) in cases {
        for path in ["/v1/chat/completions", "/v1/messages"] {
            let reply = node.client().send(Method::POST, path, body.clone()).await;
            assert_refused(&node, path, &reply, 400, code).await;
            if let (Some(param), "/v1/chat/completions") = (param, path) {
                assert_eq!(reply.json()["error"]["param"], param);
            }
        }
    }
    assert!(provider.requests().await.is_empty(), "nothing wrong was sent on");
    assert_unharmed(&node).await;
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let (_provider, node) = gateway().await;
    let body = |model: &str| format!("{{\"model\":\"{model}\",\"max_tokens\":5,{MESSAGES}}}");

    for path in ["/v1/chat/completions", "/v1/messages"] {
        let unknown = node.client().send(Method::POST, path, body("nobody/m")).await;
        assert_refused(&node, path, &unknown, 404, "model_not_found").await;
    }
    let path = node.client().get("/v1/nowhere").await;
    assert_refused(&node, "/v1/nowhere", &path, 404, "unknown_route").await;
    let method = node.client().get("/v1/chat/completions").await;
    assert_refused(&node, "/v1/chat/completions", &method, 405, "method_not_allowed").await;
    assert_eq!(method.header("allow"), Some("POST"));
    // An unknown field is not ours to refuse: the provider gets it as it stands.
    let unknown: Value =
        serde_json::from_str(&body("openai/m").replace("\"max_tokens\"", "\"unheard_of\":1,\"max_tokens\""))
            .unwrap_or_default();
    assert_eq!(node.client().post("/v1/chat/completions", &unknown).await.status, 200);
    assert_unharmed(&node).await;
}

#[tokio::test]
async fn a_body_of_another_kind_is_refused() {
    let (_provider, node) = gateway().await;
    let mut typed = node.raw().await;
    typed
        .write(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\n{}",
        )
        .await;
    assert_eq!(typed.status().await, 415);
    let mut packed = node.raw().await;
    packed
        .write("POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}")
        .await;
    assert_eq!(packed.status().await, 415);
    assert_unharmed(&node).await;
}

/// Whoever announces or sends too much is told so before all of it was taken.
#[tokio::test]
async fn a_body_of_a_hundred_megabytes_is_refused() {
    let (_provider, node) = gateway().await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n";

    let mut announced = node.raw().await;
    announced.write(format!("{head}content-length: 104857600\r\n\r\n")).await;
    let text = announced.read_until("body_too_large").await;
    assert!(text.starts_with("HTTP/1.1 413"), "{text}");

    let mut chunked = node.raw().await;
    chunked.write(format!("{head}transfer-encoding: chunked\r\n\r\n")).await;
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    for _ in 0..1_600 {
        if chunked.try_write(&chunk).await.is_err() {
            break;
        }
    }
    assert_eq!(chunked.status().await, 413);
    assert!(node.metrics().await.count("lea_requests_total", &[("case", "body_too_large")]) >= 2.0);
    assert_unharmed(&node).await;
}

/// A request whose length can be read in two ways is how requests are smuggled past a proxy.
#[tokio::test]
async fn a_request_with_two_framings_is_refused_and_the_connection_closed() {
    let (provider, node) = gateway().await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n";
    let smuggled = "GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n";
    let bad = [
        format!("{head}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{head}transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{head}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}{smuggled}"),
        format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n{smuggled}"),
        format!("{head}content-length: -1\r\n\r\n{smuggled}"),
        format!("{head}transfer-encoding: gzip\r\n\r\n{smuggled}"),
    ];
    for request in bad {
        let mut connection = node.raw().await;
        connection.write(&request).await;
        let (text, _clean) = connection.read_to_end().await;
        assert!(text.starts_with("HTTP/1.1 400"), "{request}: {text}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "only one request was seen: {text}");
    }
    assert!(provider.requests().await.is_empty());
    assert_unharmed(&node).await;
}

#[tokio::test]
async fn a_flood_of_headers_is_refused() {
    let (_provider, node) = gateway().await;
    let many = "a: b\r\n".repeat(500);
    let long = format!("a: {}\r\n", "b".repeat(70_000));
    for headers in [many, long] {
        let mut connection = node.raw().await;
        let _cut = connection.try_write(format!("GET /v1/models HTTP/1.1\r\nhost: a\r\n{headers}\r\n")).await;
        assert_eq!(connection.status().await, 431);
    }
    assert_unharmed(&node).await;
}

/// Slow loris: neither half a head nor half a body holds a connection for long.
#[tokio::test]
async fn whoever_dawdles_is_cut_off() {
    let (_provider, node) = gateway().await;
    let mut head = node.raw().await;
    head.write("GET /v1/models HTTP/1.1\r\nhost: a\r\nx-a").await;
    let (text, _clean) = head.read_to_end().await;
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 408"), "{text}");

    let half = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{\"mod";
    let mut body = node.raw().await;
    body.write(half).await;
    assert_eq!(body.status().await, 408);

    let mut gone: RawConnection = node.raw().await;
    gone.write(half).await;
    gone.finish_writing().await;
    assert_eq!(gone.status().await, 400);
    assert_unharmed(&node).await;
}

/// CVE-2023-44487: streams opened and reset at once cost the server more than the client.
#[tokio::test]
async fn rapid_reset_ends_the_connection_and_nothing_else() {
    let (_provider, node) = gateway().await;
    let socket = tokio::net::TcpStream::connect(node.api_address()).await.unwrap();
    let (client, connection) = h2::client::handshake(socket).await.unwrap();
    let driven = tokio::task::JoinSet::from_iter([connection]);
    let mut client = client;
    let mut refused = false;
    for _ in 0..20_000 {
        let Ok(ready) = client.ready().await else {
            refused = true;
            break;
        };
        client = ready;
        let request = http::Request::get("http://a/v1/models").body(()).unwrap();
        match client.send_request(request, true) {
            Ok((_response, mut stream)) => {
                // The head goes out before its reset; unsent, both would be forgotten.
                tokio::task::yield_now().await;
                stream.send_reset(h2::Reason::CANCEL);
                tokio::task::yield_now().await;
            }
            Err(_closed) => {
                refused = true;
                break;
            }
        }
    }
    drop(driven);
    assert!(refused, "twenty thousand resets were taken");
    assert_unharmed(&node).await;
}

//! What a client may send that is wrong, and that it costs nobody but the client: a typed error in the shape of the API
//! called, a line in the log, a count in the metrics, no panic, and a node that serves on.

#![expect(clippy::expect_used, reason = "a test ends where something failed")]

use bytes::Bytes;
use harness::{Api, Client, FakeProvider, RawConnection, Reply, TestNode, binary, eventually};
use http::{Method, Request, Version};
use serde_json::{Value, json};

const KEY: &str = "lea-0123456789ab-0123456789abcdef0123456789abcdef";
const UPSTREAM_KEY: &str = "sk-upstream-5b1f0c9e7d3a4862";

const CONFIG: &str = r#"
providers:
  openai: { base_url: "{provider}/v1", api_key: sk-upstream-5b1f0c9e7d3a4862 }
  anthropic: { base_url: "{provider}/v1", api_key: sk-upstream-5b1f0c9e7d3a4862 }
routes:
  support: { targets: [openai/gpt-4o-mini] }
keys:
  web: { secret: lea-0123456789ab-0123456789abcdef0123456789abcdef }
  narrow: { secret: lea-narrow-narrow-narrow-narrow-narrow, models: [support] }
  old: { secret: lea-old-old-old-old-old-old-old-old-old, expires: 2020-01-01 }
"#;

/// A node, the provider behind it, and what must be true of both at the end of every test.
struct Gateway {
    node: TestNode,
    provider: FakeProvider,
}

impl Gateway {
    async fn start() -> Self {
        Self::with("").await
    }

    async fn with(limits: &str) -> Self {
        let provider = FakeProvider::start(binary!()).await;
        let config = format!("{CONFIG}limits: {{ {limits} }}\n");
        let node = TestNode::builder(binary!()).provider("provider", &provider).config(&config).start().await;
        Self { node, provider }
    }

    fn client(&self) -> Client {
        self.node.as_key(KEY)
    }

    async fn post(&self, api: Api, body: impl Into<Bytes>) -> Reply {
        self.client().send(Method::POST, api.path(), body).await
    }

    /// Nothing of what was refused reached the provider, the node is well and serves the next.
    async fn serves_on(&self) {
        assert_eq!(self.provider.requests().await.len(), 0, "refused requests reach no provider");
        let reply = self.client().chat("support", "repeat after me: still here").await;
        assert_eq!((reply.status, reply.said().as_str()), (200, "still here"));
        self.node.assert_unharmed(&[KEY, UPSTREAM_KEY]).await;
    }
}

/// A request of one question, changed by `change`.
fn asked(change: impl FnOnce(&mut Value)) -> String {
    let mut body = json!({ "model": "support", "max_tokens": 9, "messages": [{ "role": "user", "content": "hi" }] });
    change(&mut body);
    body.to_string()
}

/// The head of a request that has everything but its framing.
fn head(path: &str, more: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n{more}\r\n"
    )
}

#[tokio::test]
async fn what_is_no_json_is_refused_with_its_position() {
    let gateway = Gateway::start().await;
    let whole = asked(|_body| {});
    let mut not_text = whole.clone().into_bytes();
    let at = whole.find("hi").expect("the question");
    not_text[at] = 0xff;
    let cases: [(&str, Vec<u8>); 8] = [
        ("nothing", Vec::new()),
        ("a word", b"hello".to_vec()),
        ("cut in the middle", whole.as_bytes()[..whole.len() / 2].to_vec()),
        ("cut at the end", whole.as_bytes()[..whole.len() - 1].to_vec()),
        ("something after it", [whole.as_bytes(), b" {}"].concat()),
        ("a comma too many", whole.replace("\"hi\"", "\"hi\",").into_bytes()),
        ("invalid UTF-8", not_text),
        ("a control character in a string", whole.replace("hi", "h\u{1}i").into_bytes()),
    ];
    for api in Api::BOTH {
        for (case, body) in &cases {
            let reply = gateway.post(api, body.clone()).await;

            let told = gateway.node.assert_refused(api, &reply, 400, "invalid_request").await;
            assert_eq!(told.kind, "invalid_request_error", "{case}");
            assert!(told.message.contains("line 1"), "{case}: {}", told.message);
        }
    }
    gateway.serves_on().await;
}

#[tokio::test]
async fn json_deeper_than_anyone_needs_is_refused_in_every_place() {
    let gateway = Gateway::start().await;
    let deep = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    let objects = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let content = asked(|body| body["messages"][0]["content"] = json!("DEEP")).replace("\"DEEP\"", &deep(10_000));
    let unknown = asked(|body| body["novel"] = json!("DEEP")).replace("\"DEEP\"", &deep(10_000));
    for api in Api::BOTH {
        for body in [deep(10_000), "[".repeat(10_000), objects.clone(), content.clone(), unknown.clone()] {
            let reply = gateway.post(api, body).await;

            gateway.node.assert_refused(api, &reply, 400, "too_deep").await;
        }
    }
    gateway.serves_on().await;
}

/// Two readers of one body may take one of two equal fields each: whoever sends them is refused.
#[tokio::test]
async fn a_field_that_stands_twice_is_refused_by_name() {
    let gateway = Gateway::start().await;
    let twice =
        r#"{"model":"support","max_tokens":9,"messages":[{"role":"user","content":"hi"}],"model":"openai/gpt-4o"}"#;
    let escaped = twice.replacen("\"model\"", "\"mod\\u0065l\"", 1);
    let within = r#"{"model":"support","max_tokens":9,"messages":[{"role":"user","content":"hi","role":"assistant"}]}"#;
    for api in Api::BOTH {
        for (body, param) in [(twice, "model"), (&escaped, "model"), (within, "role")] {
            let reply = gateway.post(api, body.to_owned()).await;

            let told = gateway.node.assert_refused(api, &reply, 400, "invalid_request").await;
            assert!(told.message.contains("twice"), "{}", told.message);
            if api == Api::OpenAi {
                assert!(told.param.as_ref().is_some_and(|named| named.contains(param)), "{:?}", told.param);
            }
        }
    }
    gateway.serves_on().await;
}

#[tokio::test]
async fn fields_of_the_wrong_kind_or_size_are_refused_by_name() {
    let gateway = Gateway::start().await;
    let number = |text: &str| asked(|body| body["max_tokens"] = json!("N")).replace("\"N\"", text);
    let with = |name: &str, value: Value| asked(|body| body[name] = value);
    let without = |name: &str| asked(|body| drop(body.as_object_mut().expect("an object").remove(name)));
    let cases = [
        (number("-1"), "max_tokens"),
        (number("-9223372036854775809"), "max_tokens"),
        (number("1e999"), "max_tokens"),
        (number("1.5"), "max_tokens"),
        (number("99999999999999999999999999999999"), "max_tokens"),
        (number(&"9".repeat(100_000)), "max_tokens"),
        (with("max_tokens", json!("many")), "max_tokens"),
        (without("model"), "model"),
        (with("model", json!(null)), "model"),
        (with("model", json!(7)), "model"),
        (without("messages"), "messages"),
        (with("messages", json!([])), "messages"),
        (with("messages", json!("hi")), "messages"),
        (with("messages", json!([1])), "messages"),
        (with("messages", json!([{ "role": "wizard", "content": "hi" }])), "messages"),
        (with("messages", json!([{ "content": "hi" }])), "messages"),
        (with("stream", json!("yes")), "stream"),
        (with("temperature", json!("hot")), "temperature"),
        (with("tools", json!(3)), "tools"),
    ];
    for api in Api::BOTH {
        for (body, param) in &cases {
            let reply = gateway.post(api, body.clone()).await;

            let told = gateway.node.assert_refused(api, &reply, 400, "invalid_request").await;
            assert!(told.message.len() < 1024, "a message is not the place to repeat the request");
            match api {
                Api::OpenAi => {
                    // A number too large for any number is no JSON; that is told by position.
                    let named = told.param.as_ref().is_some_and(|named| named.starts_with(param));
                    assert!(named || told.message.contains("line 1"), "{param}: {told:?}");
                }
                Api::Anthropic => {
                    assert!(told.message.contains(param) || told.message.contains("line 1"), "{param}: {told:?}");
                }
            }
        }
        let reply = gateway.post(api, "[]").await;
        gateway.node.assert_refused(api, &reply, 400, "invalid_request").await;
    }
    gateway.serves_on().await;
}

/// A number that fits is the provider's to judge, and a field nobody here knows is the provider's to read.
#[tokio::test]
async fn what_only_the_provider_can_judge_reaches_it_as_it_was() {
    let gateway = Gateway::start().await;
    for (api, model) in [(Api::OpenAi, "openai/gpt-4o-mini"), (Api::Anthropic, "anthropic/claude-3-5-haiku-latest")] {
        let exact = r#""novel_field":{"a":[1e300,-0.0,12345678901234567890123,1.10]}"#;
        let body = asked(|body| body["model"] = json!(model)).replacen('{', &format!("{{{exact},"), 1);

        let reply = gateway.post(api, body).await;

        assert_eq!(reply.status, 200, "{}", reply.text());
        let seen = gateway.provider.requests().await;
        let seen = seen.last().expect("the request");
        assert!(seen.body.contains(exact), "{}", seen.body);
    }
    gateway.provider.reset().await;
    gateway.serves_on().await;
}

#[tokio::test]
async fn unknown_models_routes_and_keys_are_refused_in_the_callers_shape() {
    let gateway = Gateway::start().await;
    let (long, long_target) = ("x".repeat(100_000), format!("openai/{}", "x".repeat(100_000)));
    for api in Api::BOTH {
        for model in ["nobody", "nobody/gpt-4o", "", "/", "openai/", "öpenai/ä", &long, &long_target] {
            let reply = gateway.post(api, asked(|body| body["model"] = json!(model))).await;
            let case = if reply.status == 400 { "invalid_request" } else { "model_not_found" };
            let told = gateway.node.assert_refused(api, &reply, reply.status, case).await;
            assert!([400, 404].contains(&reply.status) && told.message.len() < 4096, "{model}: {}", reply.status);
        }
        let reply = gateway.post(api, asked(|body| body["model"] = json!("nobody"))).await;
        assert_eq!(gateway.node.assert_refused(api, &reply, 404, "model_not_found").await.kind, not_found(api));

        let reply = gateway.client().post(&format!("{}/nowhere", api.path()), &json!({})).await;
        gateway.node.assert_refused(api, &reply, 404, "unknown_route").await;
        let reply = gateway.client().send(Method::DELETE, api.path(), "").await;
        gateway.node.assert_refused(api, &reply, 405, "method_not_allowed").await;
        assert_eq!(reply.header("allow"), Some("POST"));

        let body = asked(|_body| {});
        let keys = [
            (gateway.node.client(), "missing_api_key"),
            (gateway.node.as_key("lea-nobody-nobody-nobody-nobody-nobody"), "invalid_api_key"),
            (gateway.node.as_key("lea-old-old-old-old-old-old-old-old-old"), "expired_api_key"),
        ];
        for (client, case) in keys {
            let reply = client.send(Method::POST, api.path(), body.clone()).await;
            gateway.node.assert_refused(api, &reply, 401, case).await;
        }
        let narrow = gateway.node.as_key("lea-narrow-narrow-narrow-narrow-narrow");
        let reply = narrow.send(Method::POST, api.path(), asked(|body| body["model"] = json!("openai/gpt-4o"))).await;
        gateway.node.assert_refused(api, &reply, 403, "model_not_allowed").await;
    }
    gateway.node.assert_never_printed(&["lea-nobody", "lea-narrow-", "lea-old-"]);
    gateway.serves_on().await;
}

fn not_found(api: Api) -> &'static str {
    match api {
        Api::OpenAi => "invalid_request_error",
        Api::Anthropic => "not_found_error",
    }
}

#[tokio::test]
async fn what_is_not_said_to_be_json_is_not_read_as_json() {
    let gateway = Gateway::start().await;
    for api in Api::BOTH {
        let headers = [
            ("content-type", "text/plain"),
            ("content-type", "application/x-www-form-urlencoded"),
            ("content-type", "application/jsonp"),
            ("content-type", ""),
            ("content-encoding", "gzip"),
        ];
        for (name, value) in headers {
            let client = gateway.client().with_header(name, value);
            let reply = client.send(Method::POST, api.path(), asked(|_body| {})).await;
            gateway.node.assert_refused(api, &reply, 415, "unsupported_media_type").await;
        }
    }
    gateway.serves_on().await;

    let client = gateway.client().with_header("content-type", "application/json; charset=utf-8");
    assert_eq!(client.send(Method::POST, Api::OpenAi.path(), asked(|_body| {})).await.status, 200);
}

/// An id that is not fit for a header or a line of the log is replaced, not repeated.
#[tokio::test]
async fn a_request_id_cannot_forge_a_log_line() {
    let gateway = Gateway::start().await;
    let long = "i".repeat(129);
    for (given, kept) in [("mine-1", true), ("two words", false), (long.as_str(), false), ("", false)] {
        let client = gateway.client().with_header("x-request-id", given);
        let reply = client.send(Method::POST, Api::Anthropic.path(), "{").await;

        gateway.node.assert_refused(Api::Anthropic, &reply, 400, "invalid_request").await;
        assert_eq!(reply.request_id() == given, kept, "{given}");
    }
    let forged = "a\nINFO request_id=forged case=ok";
    let reply = gateway.post(Api::OpenAi, asked(|body| body["model"] = json!(forged))).await;
    gateway.node.assert_refused(Api::OpenAi, &reply, 404, "model_not_found").await;
    assert!(!gateway.node.printed().lines().any(|line| line.starts_with("INFO request_id=forged")));
    gateway.serves_on().await;
}

const MIB: usize = 1 << 20;

/// The length says it: not one byte of the body has to be sent.
#[tokio::test]
async fn a_body_announced_too_large_is_refused_unread() {
    let gateway = Gateway::start().await;
    for api in Api::BOTH {
        let mut connection = gateway.node.raw().await;
        connection.write(head(api.path(), &format!("content-length: {}\r\n", 100 * MIB))).await;

        let reply = connection.reply().await;

        gateway.node.assert_refused(api, &reply, 413, "body_too_large").await;
        assert_eq!(reply.header("connection"), Some("close"));
        drop(connection);

        // A length no number can hold is no length.
        let mut connection = gateway.node.raw().await;
        connection.write(head(api.path(), "content-length: 99999999999999999999999999\r\n")).await;
        assert_eq!(connection.status().await, 400);
    }
    gateway.serves_on().await;
}

/// Sent whole or in chunks, 100 MiB cost the node no more memory than the bound, and whoever sends on anyway still reads
/// why he was refused.
#[tokio::test]
async fn a_body_of_100_mib_is_refused_and_not_kept() {
    let gateway = Gateway::with("body_max: 1MiB").await;
    let before = gateway.peak_memory();
    let piece = vec![b' '; MIB];
    for api in Api::BOTH {
        for chunked in [true, false] {
            let framing = if chunked {
                "transfer-encoding: chunked\r\n".to_owned()
            } else {
                format!("content-length: {}\r\n", 100 * MIB)
            };
            let mut connection = gateway.node.raw().await;
            connection.write(head(api.path(), &framing)).await;
            for _ in 0..100 {
                let piece = if chunked { [b"100000\r\n", piece.as_slice(), b"\r\n"].concat() } else { piece.clone() };
                if connection.try_write(piece).await.is_err() {
                    break;
                }
            }

            let reply = connection.reply().await;

            gateway.node.assert_refused(api, &reply, 413, "body_too_large").await;
        }
        let client = gateway.node.http2().with_key(KEY);
        let reply = client.try_send(Method::POST, api.path(), vec![b' '; 100 * MIB]).await;
        if let Ok(reply) = reply {
            gateway.node.assert_refused(api, &reply, 413, "body_too_large").await;
        }
    }
    let grown = gateway.peak_memory() - before;
    assert!(grown < 50 * MIB, "the node grew by {grown} bytes");
    gateway.serves_on().await;
}

impl Gateway {
    /// The most memory the node has held so far.
    fn peak_memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.node.process().id())).expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        let kib: usize = line.trim().trim_end_matches("kB").trim().parse().expect("a number");
        kib << 10
    }

    /// Writes `request` and returns all that comes back until the node closes.
    async fn exchange(&self, request: &str) -> String {
        let mut connection = self.node.raw().await;
        // The node may have refused and closed before it was sent all of it.
        let _sent = connection.try_write(request).await;
        connection.read_to_end().await.0
    }
}

/// hyper answers what is no HTTP head by itself, with a status and an empty body; the metrics count the connection.
#[tokio::test]
async fn header_floods_are_cut_short() {
    let gateway = Gateway::start().await;
    let many = "x: y\r\n".repeat(200);
    let endless = "x: y\r\n".repeat(20_000);
    let long = format!("x-long: {}\r\n", "y".repeat(40_000));
    for more in [&many, &endless, &long] {
        let answer = gateway.exchange(&head(Api::OpenAi.path(), more)).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    let path = format!("/v1/{}", "y".repeat(70_000));
    let answer = gateway.exchange(&head(&path, "")).await;
    assert!(answer.starts_with("HTTP/1.1 414 ") || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    eventually("four connections ended for what was sent on them", async || {
        gateway.node.metrics().await.count("lea_connections_closed_total", &[("reason", "protocol")]) >= 4.0
    })
    .await;

    // HTTP/2 brings many small headers to the handler, which refuses them in the caller's shape.
    for api in Api::BOTH {
        let mut client = gateway.node.http2().with_key(KEY);
        for index in 0..200 {
            client = client.with_header(&format!("x-{index}"), "y");
        }
        let reply = client.send(Method::POST, api.path(), asked(|_body| {})).await;
        gateway.node.assert_refused(api, &reply, 400, "bad_http").await;
    }
    gateway.serves_on().await;
}

/// Two readings of where a request ends let one client speak in the name of the next. Nothing with two is served, and
/// nothing after it on the same connection.
#[tokio::test]
async fn smuggling_pairs_are_refused_and_end_the_connection() {
    let gateway = Gateway::start().await;
    let body = asked(|_body| {});
    let smuggled = format!("{}{body}", head("/v1/chat/completions", &format!("content-length: {}\r\n", body.len())));
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let length = format!("content-length: {}\r\n", body.len());
    let pairs = [
        (format!("{length}transfer-encoding: chunked\r\n"), chunked.clone()),
        (format!("transfer-encoding: chunked\r\n{length}"), chunked.clone()),
        ("Transfer-Encoding: chunked\r\nCONTENT-LENGTH: 4\r\n".to_owned(), chunked.clone()),
        (format!("{length}{length}"), body.clone()),
        (format!("{length}content-length: 4\r\n"), body.clone()),
        ("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n".to_owned(), chunked.clone()),
        ("transfer-encoding: chunked, identity\r\n".to_owned(), chunked.clone()),
        ("transfer-encoding: gzip\r\n".to_owned(), body.clone()),
        (format!("content-length: +{}\r\n", body.len()), body.clone()),
        ("content-length: 4, 4\r\n".to_owned(), body.clone()),
        ("content-length: -1\r\n".to_owned(), body.clone()),
        (format!("content-length : {}\r\n", body.len()), body.clone()),
        (format!("x: a\r\n folded: b\r\n{length}"), body.clone()),
        (format!("x: a\r\n\ttransfer-encoding: chunked\r\n{length}"), body.clone()),
        (format!(" content-length: 4\r\n{length}"), body.clone()),
        (format!("x: a\0b\r\n{length}"), body.clone()),
    ];
    for api in Api::BOTH {
        for (framing, body) in &pairs {
            let answer = gateway.exchange(&format!("{}{body}{smuggled}", head(api.path(), framing))).await;

            assert!(answer.starts_with("HTTP/1.1 4"), "{framing:?}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{framing:?}: {answer}");
        }
        // What parses and is ambiguous is refused in the caller's shape.
        let mut connection = gateway.node.raw().await;
        connection.write(format!("{}{}", head(api.path(), &pairs[0].0), pairs[0].1)).await;
        let reply = connection.reply().await;
        gateway.node.assert_refused(api, &reply, 400, "bad_http").await;
    }
    gateway.serves_on().await;
}

#[tokio::test]
async fn bad_chunks_are_refused_and_end_the_connection() {
    // A size no body can have announces one all the same: that one is waited for.
    let gateway = Gateway::with("body_timeout: 500ms").await;
    let smuggled = format!("{}{{}}", head("/v1/chat/completions", "content-length: 2\r\n"));
    for api in Api::BOTH {
        let sizes = ["zz", "-1", "0x5", "", "ffffffffffffffff", "fffffffffffffffffffff", "5 5"];
        for size in sizes {
            let chunk = format!("{size}\r\n{{\"a\"}}\r\n0\r\n\r\n");
            let request = format!("{}{chunk}", head(api.path(), "transfer-encoding: chunked\r\n"));
            let mut connection = gateway.node.raw().await;
            connection.write(format!("{request}{smuggled}")).await;

            let reply = connection.reply().await;

            let case = match reply.status {
                408 => "body_timeout",
                413 => "body_too_large",
                _ => "body_incomplete",
            };
            gateway.node.assert_refused(api, &reply, reply.status, case).await;
            let (rest, _clean) = connection.read_to_end().await;
            assert!(!rest.contains("HTTP/1.1 "), "{size:?}: answered what came after: {rest}");
        }
    }
    gateway.serves_on().await;
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let gateway = Gateway::start().await;
    let nonsense = [
        "GET\r\n\r\n",
        "hello\r\n\r\n",
        "POST /v1/messages HTTP/9.9\r\n\r\n",
        "P\u{1}ST /v1/messages HTTP/1.1\r\nhost: a\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nthis is no frame at all, only words",
    ];
    for request in nonsense {
        let mut connection = gateway.node.raw().await;
        connection.write(request).await;
        connection.finish_writing().await;

        let (answer, _clean) = connection.read_to_end().await;

        assert!(!answer.contains("HTTP/1.1 2"), "{request:?}: {answer}");
    }
    gateway.serves_on().await;
}

/// Opening streams and resetting them costs a client nothing; here it costs the connection.
#[tokio::test]
async fn rapid_resets_cost_the_connection() {
    let gateway = Gateway::start().await;
    let stream = tokio::net::TcpStream::connect(gateway.node.api_address()).await.expect("a connection");
    let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let uri = format!("http://{}{}", gateway.node.api_address(), Api::OpenAi.path());
    let flood = async {
        for _ in 0..10_000 {
            let Ok(mut ready) = client.clone().ready().await else { return true };
            let request = Request::post(&uri).version(Version::HTTP_2).header("authorization", format!("Bearer {KEY}"));
            let request = request.header("content-type", "application/json").body(()).expect("a request");
            let Ok((_answer, mut body)) = ready.send_request(request, false) else { return true };
            body.send_reset(h2::Reason::CANCEL);
            tokio::task::yield_now().await;
        }
        false
    };

    let mut connection = std::pin::pin!(connection);
    let refused = tokio::select! {
        biased;
        _ended = &mut connection => true,
        refused = flood => refused,
    };

    assert!(refused, "ten thousand resets were taken");
    eventually("the connection ended for what was sent on it", async || {
        gateway.node.metrics().await.count("lea_connections_closed_total", &[("reason", "protocol")]) >= 1.0
    })
    .await;
    gateway.serves_on().await;
}

#[tokio::test]
async fn a_head_that_dawdles_is_cut() {
    let gateway = Gateway::with("header_timeout: 200ms").await;
    let mut connections = Vec::new();
    for part in ["P", "POST /v1/chat", &head(Api::OpenAi.path(), "")[..90], "PRI * HTTP/2.0\r\n"] {
        let mut connection = gateway.node.raw().await;
        connection.write(part).await;
        connections.push(connection);
    }

    for mut connection in connections {
        let (answer, _clean) = connection.read_to_end().await;
        assert_eq!(answer, "", "there is no request to answer");
    }
    eventually("all are counted", async || {
        gateway.node.metrics().await.count("lea_connections_closed_total", &[("reason", "header_timeout")]) >= 4.0
    })
    .await;
    gateway.serves_on().await;
}

#[tokio::test]
async fn a_body_that_dawdles_is_answered_and_cut() {
    let gateway = Gateway::with("body_timeout: 200ms").await;
    for api in Api::BOTH {
        for framing in ["content-length: 100\r\n", "transfer-encoding: chunked\r\n"] {
            let mut connection = gateway.node.raw().await;
            connection.write(head(api.path(), framing)).await;
            connection.write(if framing.starts_with('c') { "{\"model\":" } else { "9\r\n{\"model\":\r\n" }).await;

            let reply = connection.reply().await;

            let told = gateway.node.assert_refused(api, &reply, 408, "body_timeout").await;
            assert!(told.message.contains("200ms"), "{}", told.message);
            assert_eq!(connection.read_to_end().await, (String::new(), true));
        }
    }
    gateway.serves_on().await;
}

#[tokio::test]
async fn half_a_request_is_refused_if_anyone_still_listens() {
    let gateway = Gateway::start().await;
    for api in Api::BOTH {
        for framing in ["content-length: 100\r\n", "transfer-encoding: chunked\r\n"] {
            let half = if framing.starts_with('c') { "{\"model\":" } else { "9\r\n{\"model\":\r\n" };
            let open = async || {
                let mut connection = gateway.node.raw().await;
                connection.write(format!("{}{half}", head(api.path(), framing))).await;
                connection
            };
            let mut listens: RawConnection = open().await;
            listens.finish_writing().await;

            let reply = listens.reply().await;

            gateway.node.assert_refused(api, &reply, 400, "body_incomplete").await;
            drop(open().await);
        }
    }
    // Half a head is no request: nobody is answered, nothing is left.
    for part in ["POST /v1/messages HT", "POST /v1/messages HTTP/1.1\r\nhost: a\r\nx"] {
        let mut connection = gateway.node.raw().await;
        connection.write(part).await;
        drop(connection);
    }
    eventually("nothing is left of them", async || {
        let metrics = gateway.node.metrics().await;
        metrics.count("lea_connections", &[]) < 1.0 && metrics.count("lea_requests_in_flight", &[]) < 1.0
    })
    .await;
    gateway.serves_on().await;
}

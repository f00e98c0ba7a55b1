//! What a provider may do that is wrong: the client gets a typed error in the shape of the API it called, never the
//! provider's page, never half an answer as a whole one, never the provider's key; log and metrics tell; the node serves on.

#![expect(clippy::expect_used, clippy::panic, reason = "a test ends where something failed")]

use futures_util::future::join_all;
use harness::{Afterwards, Api, Client, Events as _, FakeProvider, RawProvider, TestNode, binary};
use serde_json::{Value, json};

const UPSTREAM_KEY: &str = "sk-upstream-5b1f0c9e7d3a4862";

/// Each dialect at its worst and one provider that is well. Breakers and retries are other tests' business.
const CONFIG: &str = r#"
limits: { reply_max: 1MiB }
providers:
  bad-openai:
    kind: compatible
    base_url: "{bad}/v1"
    api_key: sk-upstream-5b1f0c9e7d3a4862
    timeouts: { connect: {patience}, first_token: {patience}, idle: {patience}, total: {patience} }
    breaker: { failures_max: 1000000, requests_min: 1000000 }
  bad-anthropic:
    kind: anthropic
    base_url: "{bad}/v1"
    api_key: sk-upstream-5b1f0c9e7d3a4862
    timeouts: { connect: {patience}, first_token: {patience}, idle: {patience}, total: {patience} }
    breaker: { failures_max: 1000000, requests_min: 1000000 }
  good: { kind: compatible, base_url: "{good}/v1", api_key: sk-upstream-5b1f0c9e7d3a4862 }
routes:
  openai: { targets: [bad-openai/m], retries: { attempts_max: 1 } }
  anthropic: { targets: [bad-anthropic/m], retries: { attempts_max: 1 } }
  good: { targets: [good/m] }
auth: none
"#;

const ROUTES: [&str; 2] = ["openai", "anthropic"];

/// Far longer than anything takes here; tests of silence take a short one.
const PATIENT: &str = "20s";
const IMPATIENT: &str = "200ms";

struct Gateway {
    node: TestNode,
    bad: RawProvider,
    good: FakeProvider,
}

impl Gateway {
    async fn start(patience: &str) -> Self {
        let bad = RawProvider::start().await;
        let good = FakeProvider::start(binary!()).await;
        let node = TestNode::builder(binary!()).place("bad", &bad.url()).place("patience", patience);
        let node = node.provider("good", &good).config(CONFIG).start().await;
        Self { node, bad, good }
    }

    /// Every way to ask gets `status` and `case`: both APIs, both dialects behind, streamed and not.
    async fn assert_fails(&self, what: &str, status: u16, case: &str) {
        for route in ROUTES {
            self.assert_route_fails(route, what, status, case).await;
        }
    }

    async fn assert_route_fails(&self, route: &str, what: &str, status: u16, case: &str) {
        let asks = Api::BOTH.into_iter().flat_map(|api| [(api, false), (api, true)]);
        join_all(asks.map(async |(api, stream)| {
            let status = if (status, api) == (503, Api::Anthropic) { 529 } else { status };
            let reply = self.node.client().post(api.path(), &asked(route, stream)).await;

            assert_eq!(reply.status, status, "{what}, {api:?} by {route}, stream {stream}: {}", reply.text());
            assert!(!reply.text().contains(UPSTREAM_KEY) && !reply.text().contains("<h"), "{what}: {}", reply.text());
            let told = self.node.assert_refused(api, &reply, status, case).await;
            assert!(told.message.len() < 4096, "{what}");
        }))
        .await;
    }

    /// A stream that has begun by `route` ends with the error `case`, after all that came before it.
    async fn assert_cut(&self, route: &str, what: &str, case: &str) {
        for api in Api::BOTH {
            let mut stream = self.node.client().stream(api.path(), &asked(route, true)).await;
            assert_eq!(stream.status, 200, "{what}, {api:?} by {route}");
            let request_id = stream.header("x-request-id").expect("an id").to_owned();
            assert_eq!(stream.next_text().await, "one ", "{what}");
            let events = stream.rest().await;

            let last = events.last().unwrap_or_else(|| panic!("{what}, {api:?} by {route}: a silent end"));
            let told = last.error(api);
            if api == Api::OpenAi {
                assert_eq!(told.code.as_deref(), Some(case), "{what} by {route}: {told:?}");
            }
            assert!(last.data.contains(&request_id), "{what}: {}", last.data);
            for event in &events {
                assert!(!event.is_done() && event.json()["type"] != "message_stop", "{what}: called whole: {events:?}");
                assert!(!event.data.contains(UPSTREAM_KEY), "{what}: {}", event.data);
            }
            assert_eq!(events.as_slice().finish_reason(), None, "{what}: {events:?}");
            self.node.told_of(api, &request_id, case).await;
        }
    }

    async fn serves_on(&self) {
        let reply = self.node.client().chat("good", "repeat after me: still here").await;
        assert_eq!((reply.status, reply.said().as_str()), (200, "still here"));
        self.node.assert_unharmed(&[UPSTREAM_KEY]).await;
    }
}

fn asked(route: &str, stream: bool) -> Value {
    json!({ "model": route, "max_tokens": 99, "stream": stream, "messages": [{ "role": "user", "content": "hi" }] })
}

/// A response with its length.
fn response(status: u16, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = body.len();
    let head = format!("HTTP/1.1 {status} Whatever\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

const JSON: &str = "content-type: application/json\r\n";
const HTML: &str = "content-type: text/html\r\n";
const EVENTS: &str = "content-type: text/event-stream\r\n";
const PAGE: &str = "<html><body><h1>It works!</h1></body></html>";

/// A stream up to its first text, in the dialect of `route`.
fn begun(route: &str) -> String {
    if route == "openai" {
        let delta = json!({ "role": "assistant", "content": "one " });
        let choice = json!({ "index": 0, "delta": delta, "finish_reason": null });
        let chunk =
            json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice] });
        return format!("data: {chunk}\n\n");
    }
    let message = json!({ "id": "c", "type": "message", "role": "assistant", "model": "m", "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": { "input_tokens": 1, "output_tokens": 1 } });
    let events = [
        json!({ "type": "message_start", "message": message }),
        json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
        json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": "one " } }),
    ];
    events.map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default())).concat()
}

/// A stream of unknown length: it ends where the connection ends.
fn stream(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\n{EVENTS}connection: close\r\n\r\n").as_bytes(), bytes.as_ref()].concat()
}

#[tokio::test]
async fn a_whole_answer_that_is_none_is_a_typed_error() {
    let gateway = Gateway::start(PATIENT).await;
    let deep = "[".repeat(10_000);
    let deep_content = format!(r#"{{"choices":[{{"message":{{"content":{deep}"#);
    let cases: [(&str, Vec<u8>); 16] = [
        ("garbage", response(200, JSON, "{nonsense")),
        ("nothing", response(200, JSON, "")),
        ("null", response(200, JSON, "null")),
        ("a list", response(200, JSON, "[]")),
        ("an empty object", response(200, JSON, "{}")),
        ("no choice and no content", response(200, JSON, r#"{"id":"c","model":"m","choices":[]}"#)),
        ("half of it", response(200, JSON, r#"{"id":"c","model":"m","choices":[{"index":0,"mess"#)),
        ("deep", response(200, JSON, &deep)),
        ("deep within", response(200, JSON, deep_content)),
        ("invalid UTF-8", response(200, JSON, b"{\"id\":\"\xff\xfe\"}")),
        ("a page", response(200, HTML, PAGE)),
        ("events under the wrong name", response(200, JSON, begun("openai") + "data: [DONE]\n\n")),
        ("an error with status 200", response(200, JSON, r#"{"error":{"message":"no","type":"server_error"}}"#)),
        ("compressed", response(200, "content-encoding: gzip\r\ncontent-type: application/json\r\n", b"\x1f\x8b\x08")),
        ("no content", b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        ("created", response(201, JSON, "{}")),
    ];
    for (what, answer) in cases {
        gateway.bad.answers(answer, Afterwards::Closes);
        gateway.assert_fails(what, 502, "upstream_error").await;
    }
    gateway.bad.answers(response(200, JSON, " ".repeat(2 << 20)), Afterwards::Closes);
    gateway.assert_fails("too large", 502, "reply_too_large").await;
    // Without a length it is counted while it is read, and not read to its end.
    let endless = ["HTTP/1.1 200 OK\r\nconnection: close\r\n", JSON, "\r\n", &" ".repeat(2 << 20)].concat();
    gateway.bad.answers(endless, Afterwards::Hangs);
    gateway.assert_fails("too large, without a length", 502, "reply_too_large").await;
    gateway.serves_on().await;
}

#[tokio::test]
async fn what_is_no_answer_in_http_is_a_typed_error() {
    let gateway = Gateway::start(PATIENT).await;
    let long_head = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(300_000));
    let many_headers = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(10_000));
    let cases = [
        ("another protocol", "SSH-2.0-OpenSSH_9.6\r\n".to_owned()),
        ("no status", "HTTP/1.1 abc\r\n\r\n".to_owned()),
        ("a head without an end", long_head),
        ("more headers than anyone needs", many_headers),
        ("not a word", String::new()),
        ("half a head", "HTTP/1.1 200 OK\r\ncontent-ty".to_owned()),
    ];
    for (what, answer) in cases {
        gateway.bad.answers(answer, Afterwards::Closes);
        gateway.assert_fails(what, 502, "upstream_error").await;
    }
    // The head was good, and the answer never became whole.
    let cut = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{\"id\":";
    gateway.bad.answers(cut, Afterwards::Closes);
    gateway.assert_fails("less than was announced", 502, "upstream_cut").await;
    let bad_chunk = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}";
    gateway.bad.answers(bad_chunk, Afterwards::Closes);
    gateway.assert_fails("a chunk that is none", 502, "upstream_cut").await;
    gateway.serves_on().await;
}

/// The status says what to do; the page is nobody's to see.
#[tokio::test]
async fn an_error_page_is_a_typed_error_by_its_status() {
    let gateway = Gateway::start(PATIENT).await;
    let cases = [
        (500, 502, "upstream_error"),
        (502, 502, "upstream_error"),
        (503, 503, "upstream_overloaded"),
        (529, 503, "upstream_overloaded"),
        (504, 504, "upstream_timeout"),
        (404, 404, "upstream_model_not_found"),
        (400, 400, "upstream_rejected"),
        (413, 400, "upstream_rejected"),
        (422, 400, "upstream_rejected"),
        (599, 502, "upstream_error"),
    ];
    let deep = "{\"error\":".repeat(10_000);
    for (upstream, status, case) in cases {
        gateway.bad.answers(response(upstream, HTML, PAGE), Afterwards::Closes);
        gateway.assert_fails(&format!("{upstream} with a page"), status, case).await;
    }
    for body in [b"".as_slice(), b"\xff\xfe", b"{\"error\":null}", deep.as_bytes()] {
        for (upstream, status, case) in [(500, 502, "upstream_error"), (400, 400, "upstream_rejected")] {
            gateway.bad.answers(response(upstream, JSON, body), Afterwards::Closes);
            gateway.assert_fails(&format!("{upstream} with {} bytes", body.len()), status, case).await;
        }
    }
    gateway.serves_on().await;
}

/// A redirect would carry the question, and with some clients the key, to wherever the answer points.
#[tokio::test]
async fn a_redirect_is_not_followed() {
    let gateway = Gateway::start(PATIENT).await;
    for status in [301, 302, 303, 307, 308] {
        let location = format!("location: {}/v1/chat/completions\r\n", gateway.good.url());
        gateway.bad.answers(response(status, &location, ""), Afterwards::Closes);
        gateway.assert_fails("a redirect", 502, "upstream_error").await;

        let reply = gateway.node.client().chat("openai", "hi").await;
        assert_eq!(reply.header("x-lea-upstream-status"), Some(status.to_string().as_str()));
    }
    assert!(gateway.good.requests().await.is_empty(), "somebody followed");
    gateway.serves_on().await;
}

/// P-STREAM: while nothing was sent, a stream that breaks is an error with its status, like any other.
#[tokio::test]
async fn a_stream_that_breaks_before_content_is_a_typed_error() {
    let gateway = Gateway::start(PATIENT).await;
    let deep = format!("data: {}\n\n", "[".repeat(10_000));
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("nothing", stream(""), "upstream_cut"),
        ("half an event", stream("data: {\"id\":\"c\",\"cho"), "upstream_cut"),
        ("a whole event without its blank line", stream("data: {}"), "upstream_cut"),
        ("only pings", stream(": ping\n\n: ping\n\n"), "upstream_cut"),
        ("garbage", stream("data: {nonsense\n\n"), "upstream_error"),
        ("a page", stream(format!("data: {PAGE}\n\n")), "upstream_error"),
        ("deep", stream(deep), "upstream_error"),
        ("invalid UTF-8", stream(b"data: {\"id\":\"\xff\"}\n\n"), "upstream_error"),
    ];
    for (what, answer, case) in cases {
        gateway.bad.answers(answer, Afterwards::Closes);
        gateway.assert_fails(what, 502, case).await;
    }
    gateway.serves_on().await;
}

/// P-STREAM: after content was sent it ends with the dialect's error, never as if it were whole.
#[tokio::test]
async fn a_stream_that_breaks_after_content_ends_with_a_typed_error() {
    let gateway = Gateway::start(PATIENT).await;
    let deep = format!("data: {}\n\n", "[".repeat(10_000));
    let tails: [(&str, Vec<u8>, &str); 6] = [
        ("a clean end", Vec::new(), "upstream_cut"),
        ("half an event", b"data: {\"id\":\"c\",\"cho".to_vec(), "upstream_cut"),
        ("garbage", b"data: {nonsense\n\n".to_vec(), "upstream_error"),
        ("a page", format!("data: {PAGE}\n\n").into_bytes(), "upstream_error"),
        ("deep", deep.into_bytes(), "upstream_error"),
        ("invalid UTF-8", b"data: {\"id\":\"\xff\"}\n\n".to_vec(), "upstream_error"),
    ];
    for route in ROUTES {
        for (what, tail, case) in &tails {
            gateway.bad.answers(stream([begun(route).as_bytes(), tail].concat()), Afterwards::Closes);
            gateway.assert_cut(route, what, case).await;
        }
        // The connection breaks: less came than the chunk said.
        let body = begun(route);
        let head = format!("HTTP/1.1 200 OK\r\n{EVENTS}transfer-encoding: chunked\r\n\r\n");
        gateway.bad.answers(format!("{head}{:x}\r\n{body}\r\nffff\r\ndata:", body.len()), Afterwards::Closes);
        gateway.assert_cut(route, "a chunk cut short", "upstream_cut").await;
    }
    gateway.serves_on().await;
}

/// P-STREAM: an answer nobody finished is not passed off as a whole one.
#[tokio::test]
async fn an_answer_without_a_finish_reason_is_not_whole() {
    let gateway = Gateway::start(PATIENT).await;
    let choice = json!({ "index": 0, "message": { "role": "assistant", "content": "half" }, "finish_reason": null });
    let unfinished = json!({ "id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice] });
    gateway.bad.answers(response(200, JSON, unfinished.to_string()), Afterwards::Closes);

    gateway.assert_route_fails("openai", "without a finish reason", 502, "upstream_cut").await;

    gateway.serves_on().await;
}

/// Some say a date where seconds are meant, some say nonsense: neither panics, nor takes the provider away for years.
#[tokio::test]
async fn a_nonsensical_retry_after_is_bounded() {
    let gateway = Gateway::start(PATIENT).await;
    for wait in ["10000000000000000000", "1763900000", "-5", "soon", "1e300"] {
        gateway.bad.answers(response(429, &format!("retry-after: {wait}\r\n"), ""), Afterwards::Closes);
        let reply = gateway.node.client().chat("openai", "hi").await;

        gateway.node.assert_refused(Api::OpenAi, &reply, 429, "upstream_throttled").await;
        let told: u64 = reply.header("retry-after").and_then(|told| told.parse().ok()).expect("a number of seconds");
        assert!((1..=60).contains(&told), "{wait}: told {told}");
    }
    gateway.serves_on().await;
}

/// A line has a bound, and what is beyond it is neither kept nor read.
#[tokio::test]
async fn a_line_of_50_megabytes_ends_the_stream() {
    let gateway = Gateway::start(PATIENT).await;
    let before = peak_memory(&gateway.node);
    for route in ROUTES {
        let line = format!("{}data: \"{}\"\n\n", begun(route), "x".repeat(50_000_000));
        gateway.bad.answers(stream(line), Afterwards::Closes);
        gateway.assert_cut(route, "a line of 50 MB", "upstream_cut").await;
    }
    // Two hundred megabytes were offered. An allocator that grows by doubling holds a few times what it is asked for.
    let grown = peak_memory(&gateway.node) - before;
    assert!(grown < 100_000_000, "the node grew by {grown} bytes");
    gateway.serves_on().await;
}

/// The most memory the node has held so far, in bytes.
fn peak_memory(node: &TestNode) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.process().id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<usize>().ok());
    kib.map_or(0, |kib| kib << 10)
}

#[tokio::test]
async fn silence_is_a_timeout_wherever_it_begins() {
    let gateway = Gateway::start(IMPATIENT).await;
    let head = |kind: &str| format!("HTTP/1.1 200 OK\r\n{kind}content-length: 9999\r\n\r\n");
    let cases = [
        ("before a head", String::new()),
        ("within a head", "HTTP/1.1 200 OK\r\ncontent-ty".to_owned()),
        ("after the head of a whole answer", head(JSON)),
        ("within a whole answer", head(JSON) + "{\"id\":"),
        ("after the head of a stream", head(EVENTS)),
        ("within the first event", head(EVENTS) + "data: {\"id\""),
    ];
    for (what, answer) in cases {
        gateway.bad.answers(answer, Afterwards::Hangs);
        gateway.assert_route_fails("openai", what, 504, "upstream_timeout").await;
    }
    for route in ROUTES {
        gateway.bad.answers(stream(begun(route)), Afterwards::Hangs);
        gateway.assert_cut(route, "silence after content", "upstream_timeout").await;
    }
    gateway.serves_on().await;
}

/// Whatever pieces the network makes of it, an answer is an answer.
#[tokio::test]
async fn an_answer_in_single_bytes_is_an_answer() {
    let gateway = Gateway::start(PATIENT).await;
    let question = "repeat after me: one two three";
    for api in Api::BOTH {
        gateway.good.script(json!([{ "chunk_bytes": 1, "times": 2 }])).await;
        let client = gateway.node.client();
        let (whole, streamed) = match api {
            Api::OpenAi => (client.chat("good", question).await, client.chat_stream("good", question).await),
            Api::Anthropic => (client.message("good", question).await, client.message_stream("good", question).await),
        };
        assert_eq!((whole.status, whole.said().as_str()), (200, "one two three"));
        assert_eq!(streamed.rest().await.as_slice().text(), "one two three");
        assert_eq!(gateway.good.faults_left().await, 0);
    }
    gateway.serves_on().await;
}

/// Providers repeat what they were sent, keys included. The client and the log get it struck out.
#[tokio::test]
async fn a_key_the_provider_repeats_goes_no_further() {
    let gateway = Gateway::start(PATIENT).await;
    let message = format!("the header `authorization: Bearer {UPSTREAM_KEY}` is too long");
    let told = json!({ "type": "error", "error": { "type": "invalid_request_error", "message": message,
        "param": UPSTREAM_KEY, "code": UPSTREAM_KEY } });
    for status in [200, 400, 404, 413, 500, 503] {
        gateway.bad.answers(response(status, JSON, told.to_string()), Afterwards::Closes);
        for route in ROUTES {
            for api in Api::BOTH {
                let reply = gateway.node.client().post(api.path(), &asked(route, false)).await;
                assert!(reply.status >= 400 && !reply.text().contains(UPSTREAM_KEY), "{status}: {}", reply.text());
            }
        }
    }
    for route in ROUTES {
        let event = format!("{}event: error\ndata: {told}\n\n", begun(route));
        gateway.bad.answers(stream(event), Afterwards::Closes);
        gateway.assert_cut(route, "an error event", "upstream_rejected").await;
    }
    // Last, because a refused credential rests.
    gateway.bad.answers(response(401, JSON, told.to_string()), Afterwards::Closes);
    gateway.assert_fails("401", 502, "upstream_credentials_exhausted").await;
    gateway.serves_on().await;
}

/// Nothing was sent, and the error says why as far as it is the client's business.
#[tokio::test]
async fn a_provider_that_cannot_be_reached_is_a_typed_error() {
    let good = FakeProvider::start(binary!()).await;
    // Its backlog takes connections, and nobody ever speaks: a handshake hangs.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let stranger = Stranger::start().await;
    let config = r#"
providers:
  closed: { kind: compatible, base_url: "http://{closed}/v1", api_key: sk-upstream-5b1f0c9e7d3a4862 }
  nameless: { kind: compatible, base_url: "http://no-such-host.invalid/v1", api_key: sk-upstream-5b1f0c9e7d3a4862 }
  plain: { kind: compatible, base_url: "https://{plain}/v1", api_key: sk-upstream-5b1f0c9e7d3a4862 }
  stranger: { kind: compatible, base_url: "https://{stranger}/v1", api_key: sk-upstream-5b1f0c9e7d3a4862 }
  trusted: { kind: compatible, base_url: "https://{stranger}/v1", api_key: sk-upstream-5b1f0c9e7d3a4862, ca: "{ca}" }
  mute: { kind: compatible, base_url: "https://{mute}/v1", api_key: none, timeouts: { connect: 200ms } }
  good: { kind: compatible, base_url: "{good}/v1", api_key: none }
routes:
  closed: { targets: [closed/m], retries: { attempts_max: 1 } }
  nameless: { targets: [nameless/m], retries: { attempts_max: 1 } }
  plain: { targets: [plain/m], retries: { attempts_max: 1 } }
  stranger: { targets: [stranger/m], retries: { attempts_max: 1 } }
  mute: { targets: [mute/m], retries: { attempts_max: 1 } }
  survivor: { targets: [closed/m, good/m] }
auth: none
"#;
    let node = TestNode::builder(binary!())
        .provider("good", &good)
        .place("closed", &closed.to_string())
        .place("plain", &good.address().to_string())
        .place("stranger", &stranger.node.api_address().to_string())
        .place("ca", &stranger.certificate)
        .place("mute", &mute.local_addr().expect("an address").to_string())
        .config(config)
        .start()
        .await;
    let cases = [
        ("closed", 502, "upstream_error", "it cannot be reached"),
        ("nameless", 502, "upstream_error", "its name cannot be resolved"),
        ("plain", 502, "upstream_error", "no secure connection"),
        ("stranger", 502, "upstream_error", "no secure connection"),
        ("mute", 504, "upstream_timeout", "no connection to it in time"),
    ];
    for (route, status, case, why) in cases {
        for api in Api::BOTH {
            let reply = node.client().post(api.path(), &asked(route, api == Api::OpenAi)).await;
            let told = node.assert_refused(api, &reply, status, case).await;
            assert!(told.message.contains(why), "{route}: {}", told.message);
        }
    }
    assert_eq!(stranger.provider.requests().await.len(), 0, "nothing is said to a stranger");

    // The same address is reached by whoever knows its authority; and one dead target is no dead route.
    assert_eq!(node.client().chat("trusted/openai/m", "repeat after me: hi").await.status, 200);
    let survivor: Client = node.client();
    assert_eq!(survivor.chat("survivor", "repeat after me: hi").await.said(), "hi");
    node.assert_unharmed(&[UPSTREAM_KEY]).await;
}

/// A provider behind a certificate nobody knows: a second node, which speaks TLS.
struct Stranger {
    node: TestNode,
    provider: FakeProvider,
    certificate: String,
    _folder: tempfile::TempDir,
}

impl Stranger {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (certificate, key) = (path("certificate.pem"), path("key.pem"));
        std::fs::write(&certificate, made.cert.pem()).expect("a folder to write to");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("a folder to write to");
        let provider = FakeProvider::start(binary!()).await;
        let config = r#"
tls: { certificate: "{certificate}", key: "{key}" }
providers: { openai: { base_url: "{provider}/v1", api_key: none } }
auth: none
"#;
        let node = TestNode::builder(binary!()).provider("provider", &provider);
        let node = node.place("certificate", &certificate).place("key", &key).config(config).start().await;
        Self { node, provider, certificate, _folder: folder }
    }
}

//! The simulator over real connections, as tests and the demo use it.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser as _;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;

/// Far longer than anything here takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    handle: Handle,
    shutdown: CancellationToken,
    tracker: TaskTracker,
}

impl Running {
    async fn start(config: SimulatorConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shutdown = CancellationToken::new();
        let (handle, serving) = Simulator::start(config, listener, shutdown.clone()).unwrap();
        let tracker = TaskTracker::new();
        tracker.spawn(serving);
        tracker.close();
        Self { handle, shutdown, tracker }
    }

    async fn fast() -> Self {
        Self::start(fast()).await
    }

    fn script(&self, faults: Value) {
        self.handle.script(serde_json::from_value(faults).unwrap()).unwrap();
    }

    async fn send(&self, http2: bool, method: &str, path: &str, body: &str) -> Response<hyper::body::Incoming> {
        let client = Client::builder(TokioExecutor::new()).http2_only(http2).build_http::<Full<Bytes>>();
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.handle.address()))
            .header("authorization", "Bearer key-a")
            .header("x-lea-window", "w1")
            .body(Full::from(body.to_owned()))
            .unwrap();
        tokio::time::timeout(PATIENCE, client.request(request)).await.expect("an answer in time").unwrap()
    }

    async fn text(&self, method: &str, path: &str, body: &str) -> (StatusCode, String) {
        let response = self.send(false, method, path, body).await;
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn json(&self, method: &str, path: &str, body: &Value) -> (StatusCode, Value) {
        let (status, text) = self.text(method, path, &body.to_string()).await;
        (status, serde_json::from_str(&text).unwrap())
    }

    async fn chat(&self, body: &Value) -> Value {
        let (status, reply) = self.json("POST", "/v1/chat/completions", body).await;
        assert_eq!(status, 200, "{reply}");
        reply
    }

    /// Sends a request by hand; the socket is the test's to read and to close.
    async fn raw(&self, body: &Value) -> TcpStream {
        let mut socket = TcpStream::connect(self.handle.address()).await.unwrap();
        let body = body.to_string();
        let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        socket
    }

    async fn eventually(&self, what: &str, mut is_so: impl FnMut(&Handle) -> bool) {
        let waiting = async {
            while !is_so(&self.handle) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "never: {what}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn fast() -> SimulatorConfig {
    SimulatorConfig { ttft: Duration::ZERO, tokens_per_second: 0, ..SimulatorConfig::default() }
}

fn ask(text: &str) -> Value {
    json!({ "model": "m", "messages": [{ "role": "user", "content": text }] })
}

fn streamed(text: &str) -> Value {
    let mut body = ask(text);
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    body
}

/// The data of each event of a stream, `[DONE]` left out.
fn events(stream: &str) -> Vec<Value> {
    let data = stream.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// Reads until `socket` has sent `wanted`.
async fn read_until(socket: &mut TcpStream, wanted: &str) -> String {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(wanted) {
        let mut buffer = [0; 4096];
        let count = tokio::time::timeout(PATIENCE, socket.read(&mut buffer)).await.expect("bytes in time").unwrap();
        assert!(count > 0, "closed after {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8(seen).unwrap()
}

#[tokio::test]
async fn openai_streamed_and_whole_say_and_cost_the_same() {
    let simulator = Running::fast().await;
    let question = "Why was my card declined?";

    let whole = simulator.chat(&ask(question)).await;
    let (_status, stream) = simulator.text("POST", "/v1/chat/completions", &streamed(question).to_string()).await;

    assert!(stream.ends_with("data: [DONE]\n\n"));
    let events = events(&stream);
    let said: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(whole["choices"][0]["message"]["content"], said);
    let last = events.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"], whole["usage"]);
    let finish = &events[events.len() - 2];
    assert_eq!((&finish["choices"][0]["finish_reason"], &finish["usage"]), (&json!("stop"), &Value::Null));

    let bill = simulator.handle.bill();
    assert_eq!(bill.total.requests, 2);
    assert_eq!(json!(bill.total.output_tokens / 2), whole["usage"]["completion_tokens"]);
    assert_eq!(json!(bill.total.input_tokens / 2), whole["usage"]["prompt_tokens"]);
    assert_eq!(bill.total.cost_nano_usd, bill.total.input_tokens * 150 + bill.total.output_tokens * 600);
    assert_eq!((bill.by_key["key-a"].requests, bill.by_window["w1"].requests, bill.by_model["m"].requests), (2, 2, 2));
}

#[tokio::test]
async fn anthropic_streamed_and_whole_say_and_cost_the_same() {
    let simulator = Running::fast().await;
    let mut body = json!({ "model": "m", "max_tokens": 400, "thinking": { "type": "enabled", "budget_tokens": 1024 },
        "tools": [{ "name": "lookup", "input_schema": { "properties": { "city": { "type": "string" } } } }],
        "messages": [{ "role": "user", "content": "use lookup for Berlin" }] });

    let (_status, whole) = simulator.json("POST", "/v1/messages", &body).await;
    body["stream"] = json!(true);
    let (_status, stream) = simulator.text("POST", "/v1/messages", &body.to_string()).await;

    assert_eq!(whole["content"][0]["type"], "thinking");
    assert_eq!(whole["content"][1]["input"], json!({ "city": "Berlin" }));
    assert_eq!(whole["stop_reason"], "tool_use");
    let events = events(&stream);
    let arguments: String = events.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    assert_eq!(arguments, r#"{"city":"Berlin"}"#);
    let named: Vec<_> = stream.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let typed: Vec<_> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(named, typed);
    assert_eq!((named.first(), named.last()), (Some(&"message_start"), Some(&"message_stop")));
    let end = &events[events.len() - 2];
    assert_eq!(end["usage"]["output_tokens"], whole["usage"]["output_tokens"]);

    let rows = simulator.handle.bill().rows;
    assert_eq!(rows[0].sum, rows[1].sum);
    assert_eq!(json!(rows[1].sum.output_tokens), whole["usage"]["output_tokens"]);
}

#[tokio::test]
async fn choices_and_tool_calls_stream_whole() {
    let simulator = Running::fast().await;
    let mut body = streamed("get_weather and get_time, please");
    let tool = |name: &str| json!({ "type": "function", "function": { "name": name } });
    body["tools"] = json!([tool("get_weather"), tool("get_time")]);
    body["n"] = json!(2);

    let (_status, stream) = simulator.text("POST", "/v1/chat/completions", &body.to_string()).await;

    let events = events(&stream);
    let names =
        events.iter().filter_map(|event| event["choices"][0]["delta"]["tool_calls"][0]["function"]["name"].as_str());
    assert_eq!(names.collect::<Vec<_>>(), ["get_weather", "get_time", "get_weather", "get_time"]);
    let finishes = events.iter().filter(|event| event["choices"][0]["finish_reason"] == "tool_calls");
    assert_eq!(finishes.count(), 2);
    assert_eq!(
        json!(simulator.handle.bill().total.output_tokens),
        events.last().unwrap()["usage"]["completion_tokens"]
    );
}

#[tokio::test]
async fn both_versions_of_http_are_spoken_on_one_port() {
    let simulator = Running::fast().await;

    for http2 in [false, true] {
        let response = simulator.send(http2, "POST", "/v1/chat/completions", &streamed("count to 3").to_string()).await;
        assert_eq!(response.status(), 200);
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        assert!(bytes.ends_with(b"data: [DONE]\n\n"));
    }
}

#[tokio::test]
async fn scripted_replies_are_given_and_used_up() {
    let simulator = Running::fast().await;
    simulator.script(json!([
        { "status": 500 },
        { "throttle": 7 },
        { "status": 302, "headers": { "location": "http://elsewhere" }, "body": "" },
        { "status": 503, "headers": { "content-type": "text/html" }, "body": "<html>" },
        { "status": 200, "body": "{\"garbage" },
        { "content_type": "text/plain", "omit_usage": true },
    ]));
    let body = ask("hello").to_string();

    let mut seen = Vec::new();
    for _ in 0..7 {
        let response = simulator.send(false, "POST", "/v1/chat/completions", &body).await;
        let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let about = header("retry-after").or(header("location")).or(header("content-type")).unwrap();
        let status = response.status().as_u16();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        seen.push((status, about, text));
    }

    let about: Vec<_> = seen.iter().map(|(status, about, _text)| (*status, about.as_str())).collect();
    let json = "application/json";
    assert_eq!(
        about,
        [
            (500, json),
            (429, "7"),
            (302, "http://elsewhere"),
            (503, "text/html"),
            (200, json),
            (200, "text/plain"),
            (200, json)
        ]
    );
    assert_eq!((&seen[3].2[..], &seen[4].2[..]), (&b"<html>"[..], &b"{\"garbage"[..]));
    let usage = |index: usize| serde_json::from_slice::<Value>(&seen[index].2).unwrap()["usage"].is_object();
    assert_eq!((usage(5), usage(6)), (false, true));
    assert_eq!(simulator.handle.bill().total.requests, 3, "only what succeeded is billed");
}

#[tokio::test]
async fn streams_are_cut_in_each_way() {
    let simulator = Running::fast().await;
    let cut = |how: &str| json!([{ "cut": { "at": { "after_tokens": 2 }, "how": how } }]);
    let read_all = async |socket: &mut TcpStream| {
        let mut text = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut text)).await.expect("an end in time");
        (String::from_utf8(text).unwrap(), ended.err().map(|error| error.kind()))
    };
    let mut ends = Vec::new();

    for how in ["reset", "abrupt", "end", "half_event"] {
        simulator.script(cut(how));
        let mut socket = simulator.raw(&streamed("count to 5")).await;
        let start = read_until(&mut socket, "\" 2\"").await;
        if how == "end" || how == "half_event" {
            let rest =
                if start.ends_with("0\r\n\r\n") { String::new() } else { read_until(&mut socket, "0\r\n\r\n").await };
            ends.push((start + &rest, None));
        } else {
            let (rest, error) = read_all(&mut socket).await;
            ends.push((start + &rest, error));
        }
    }

    assert_eq!(ends[0].1, Some(ErrorKind::ConnectionReset));
    assert_eq!(ends[1].1, None);
    assert!(!ends[1].0.ends_with("0\r\n\r\n"), "no last chunk: {}", ends[1].0);
    assert!(ends[2].0.ends_with("\n\n\r\n0\r\n\r\n") && !ends[2].0.contains("[DONE]"));
    assert!(!ends[3].0.ends_with("\n\n\r\n0\r\n\r\n"), "half an event: {}", ends[3].0);
    let rows = simulator.handle.bill().rows;
    assert!(rows.iter().all(|row| row.sum.output_tokens == 2 && !row.hung_up), "{rows:?}");
}

#[tokio::test]
async fn a_connection_breaks_before_the_head() {
    let simulator = Running::fast().await;
    simulator.script(json!([
        { "cut": { "at": "before_head", "how": "reset" } },
        { "cut": { "at": "before_head", "how": "abrupt" } },
    ]));

    let mut kinds = Vec::new();
    for _ in 0..2 {
        let mut socket = simulator.raw(&ask("hello")).await;
        let mut byte = [0];
        let read = tokio::time::timeout(PATIENCE, socket.read(&mut byte)).await.expect("an end in time");
        kinds.push(read.map_err(|error| error.kind()));
    }

    assert_eq!(kinds, [Err(ErrorKind::ConnectionReset), Ok(0)]);
}

#[tokio::test]
async fn a_whole_answer_is_cut_short_of_its_length() {
    let simulator = Running::fast().await;
    simulator.script(json!([{ "cut": { "at": "mid_stream", "how": "abrupt" } }]));

    let response = simulator.send(false, "POST", "/v1/chat/completions", &ask("hello").to_string()).await;

    assert!(response.headers().contains_key("content-length"));
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_client_that_hangs_up_is_billed_for_what_was_generated() {
    let simulator = Running::fast().await;
    simulator.script(json!([{ "hang": { "after_tokens": 3 } }, { "hang": "before_head" }, { "hang": "after_head" }]));

    for wanted in ["\" 3\"", "", "HTTP/1.1 200"] {
        let mut socket = simulator.raw(&streamed("count to 50")).await;
        let seen = read_until(&mut socket, wanted).await;
        assert!(!seen.contains("\" 4\""));
        let arrived = |handle: &Handle| handle.requests().last().is_some_and(|entry| !entry.ended);
        simulator.eventually("the request has arrived and waits", arrived).await;
        drop(socket);
        simulator.eventually("the hang-up is seen", |handle| handle.requests().iter().all(|entry| entry.ended)).await;
    }

    let rows = simulator.handle.bill().rows;
    assert_eq!(rows.iter().map(|row| row.sum.output_tokens).collect::<Vec<_>>(), [3, 0, 0]);
    assert!(rows.iter().all(|row| row.hung_up && row.sum.input_tokens > 0));
    assert!(simulator.handle.requests().iter().all(|entry| entry.hung_up && entry.scripted));
}

#[tokio::test]
async fn a_whole_answer_nobody_waits_for_costs_what_was_generated() {
    let config =
        SimulatorConfig { ttft: Duration::from_millis(1), tokens_per_second: 10, ..SimulatorConfig::default() };
    let simulator = Running::start(config).await;

    let socket = simulator.raw(&ask("count to 1000")).await;
    simulator.eventually("the request arrives", |handle| !handle.requests().is_empty()).await;
    drop(socket);
    simulator.eventually("the hang-up is seen", |handle| handle.requests()[0].hung_up).await;

    let row = &simulator.handle.bill().rows[0];
    assert!(row.hung_up && row.sum.output_tokens < 900, "{row:?}");
}

#[tokio::test]
async fn what_is_held_goes_on_when_released() {
    let simulator = Running::fast().await;
    simulator.script(json!([{ "hold": { "after_tokens": 2 } }, { "hold": "before_head" }]));

    for shown in ["\" 2\"", ""] {
        let mut socket = simulator.raw(&streamed("count to 5")).await;
        let start = read_until(&mut socket, shown).await;
        assert!(!start.contains("\" 3\""));
        let waits = |handle: &Handle| handle.requests().last().is_some_and(|entry| !entry.ended);
        simulator.eventually("the request waits", waits).await;
        assert_eq!(simulator.text("POST", "/simulator/release", "").await.0, 200);
        read_until(&mut socket, "[DONE]").await;
    }

    assert_eq!(simulator.handle.bill().total.output_tokens, 10);
}

#[tokio::test]
async fn tokens_come_at_their_pace() {
    let simulator = Running::fast().await;
    simulator.script(json!([{ "ttft": "30ms", "token_delay": "5ms" }]));
    let started = clock_now();

    simulator.text("POST", "/v1/chat/completions", &streamed("count to 9").to_string()).await;

    assert!(clock_now() - started >= Duration::from_millis(30 + 8 * 5));
}

fn clock_now() -> std::time::Instant {
    cluster::clock::now()
}

#[tokio::test]
async fn keys_that_are_named_are_the_only_ones() {
    let simulator = Running::start(SimulatorConfig { api_keys: vec!["key-b".to_owned()], ..fast() }).await;

    let (status, error) = simulator.json("POST", "/v1/chat/completions", &ask("hello")).await;
    assert_eq!((status.as_u16(), &error["error"]["code"]), (401, &json!("invalid_api_key")));
    let (status, error) = simulator.json("POST", "/v1/messages", &ask("hello")).await;
    assert_eq!((status.as_u16(), &error["error"]["type"]), (401, &json!("authentication_error")));

    let entry = &simulator.handle.requests()[0];
    assert_eq!((entry.key.as_str(), entry.status, entry.id), ("key-a", Some(401), 0));
    assert!(entry.headers.contains(&("authorization".to_owned(), "Bearer key-a".to_owned())));
    assert_eq!(serde_json::from_str::<Value>(&entry.body).unwrap(), ask("hello"));
    assert_eq!(simulator.handle.bill().total.requests, 0);
}

#[tokio::test]
async fn a_prompt_seen_before_is_cached() {
    let simulator = Running::fast().await;
    let system = "You are the support of a bank and answer shortly. ".repeat(12);
    let openai = json!({ "model": "m", "messages": [{ "role": "system", "content": system }, { "role": "user", "content": "hi" }] });
    let block = json!([{ "type": "text", "text": system, "cache_control": { "type": "ephemeral" } }]);
    let anthropic =
        json!({ "model": "m", "max_tokens": 9, "system": block, "messages": [{ "role": "user", "content": "hi" }] });

    let mut cached = Vec::new();
    for _ in 0..2 {
        let reply = simulator.chat(&openai).await;
        cached.push(reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap());
    }
    assert_eq!(cached[0], 0);
    assert!(cached[1] > 100);
    let (_status, first) = simulator.json("POST", "/v1/messages", &anthropic).await;
    let (_status, second) = simulator.json("POST", "/v1/messages", &anthropic).await;
    assert!(first["usage"]["cache_creation_input_tokens"].as_u64().unwrap() > 100);
    assert_eq!(first["usage"]["cache_creation_input_tokens"], second["usage"]["cache_read_input_tokens"]);
    assert_eq!(first["usage"]["input_tokens"], second["usage"]["input_tokens"]);
}

#[tokio::test]
async fn models_are_listed_and_tokens_counted() {
    let simulator = Running::start(SimulatorConfig { models: vec!["only".to_owned()], ..fast() }).await;

    let (_status, list) = simulator.json("GET", "/v1/models", &json!(null)).await;
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("only")));
    assert_eq!(simulator.text("GET", "/v1/models/only", "").await.0, 200);
    assert_eq!(simulator.text("GET", "/v1/models/other", "").await.0, 404);
    assert_eq!(simulator.text("POST", "/v1/chat/completions", &ask("hi").to_string()).await.0, 404);
    let (_status, count) = simulator.json("POST", "/v1/messages/count_tokens", &ask("hello there")).await;
    assert_eq!(count["input_tokens"], 3 + 2 + 2);
}

#[tokio::test]
async fn two_simulators_in_one_process_are_strangers() {
    let (one, other) = (Running::fast().await, Running::start(SimulatorConfig { seed: 9, ..fast() }).await);
    one.script(json!([{ "status": 500, "times": "always" }]));

    let mut differs = false;
    for question in ["What is an IBAN?", "Where is my new card?", "Why was I charged a fee?"] {
        let reply = other.chat(&ask(question)).await;
        assert_eq!(reply["choices"], other.chat(&ask(question)).await["choices"], "the same seed, the same answer");
        assert_eq!(one.text("POST", "/v1/chat/completions", &ask(question).to_string()).await.0, 500);
        one.handle.reset();
        differs |= one.chat(&ask(question)).await["choices"] != reply["choices"];
        one.script(json!([{ "status": 500, "times": "always" }]));
    }
    assert!(differs, "another seed, other answers");
}

#[tokio::test]
async fn nonsense_is_refused_and_harms_nobody() {
    let simulator = Running::fast().await;
    let deep = "[".repeat(10_000);
    let bodies = [
        "",
        "{",
        "null",
        "[]",
        "{\"model\":1}",
        &deep,
        r#"{"model":"m","messages":[{"role":"nobody","content":"x"}]}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":-1}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":1e99}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"x"}],"n":1000000}"#,
    ];

    for body in bodies {
        for path in ["/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens", "/simulator/script"] {
            let (status, text) = simulator.text("POST", path, body).await;
            let is_empty_script = path == "/simulator/script" && body == "[]";
            assert_eq!(status, if is_empty_script { 200 } else { 400 }, "{path} {body} {text}");
        }
    }
    assert_eq!(simulator.text("PUT", "/v2/nothing", "").await.0, 404);
    assert_eq!(simulator.text("GET", "/simulator/nothing", "").await.0, 404);
    assert_eq!(simulator.handle.bill().total.requests, 0);
}

#[tokio::test]
async fn some_requests_fail_by_chance() {
    let simulator = Running::start(SimulatorConfig { error_rate: 0.5, throttle_rate: 0.2, ..fast() }).await;

    let mut statuses = Vec::new();
    for _ in 0..60 {
        statuses.push(simulator.text("POST", "/v1/chat/completions", &ask("hi").to_string()).await.0.as_u16());
    }

    assert!([200, 429, 500].iter().all(|status| statuses.contains(status)), "{statuses:?}");
}

#[tokio::test]
async fn a_simulator_stops_with_connections_open() {
    let simulator = Running::fast().await;
    simulator.script(json!([{ "hang": "after_head" }]));
    let mut socket = simulator.raw(&streamed("hello")).await;
    read_until(&mut socket, "HTTP/1.1 200").await;

    simulator.shutdown.cancel();

    assert!(tokio::time::timeout(PATIENCE, simulator.tracker.wait()).await.is_ok());
}

#[tokio::test]
async fn the_command_tells_where_it_listens() {
    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: SimulatorArgs,
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("addresses.json");
    let mut args = Command::parse_from(["simulate", "--listen", "127.0.0.1:0"]).args;
    assert_eq!(args.config, SimulatorConfig::default());
    args.addresses_file = Some(path.clone());
    let (shutdown, tracker) = (CancellationToken::new(), TaskTracker::new());
    let running = tracker.spawn(run(args, shutdown.clone()));

    let read = async {
        loop {
            if let Ok(text) = std::fs::read_to_string(&path) {
                return serde_json::from_str::<Value>(&text).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let addresses = tokio::time::timeout(PATIENCE, read).await.expect("the file in time");
    assert!(TcpStream::connect(addresses["api"].as_str().unwrap()).await.is_ok());

    shutdown.cancel();
    running.await.unwrap().unwrap();
}

//! What an operator sees of a node, and what nobody ever sees: a secret.

use harness::{Client, FakeProvider, TestNode, binary, eventually, run};
use serde_json::{Value, json};

const CONFIG: &str = r#"
node: { name: edge-7 }
providers:
  openai: { base_url: "{provider}/v1", api_key: upstream-secret-of-openai-01 }
  anthropic: { base_url: "{provider}/v1", api_key: upstream-secret-of-anthropic-02 }
routes:
  support: { targets: [openai/m] }
keys:
  web: { secret: client-secret-of-the-web-key-000003 }
"#;

const OPENAI: &str = "upstream-secret-of-openai-01";
const ANTHROPIC: &str = "upstream-secret-of-anthropic-02";
const WEB: &str = "client-secret-of-the-web-key-000003";
const NEXT: &str = "client-secret-after-the-reload-00004";
const WRONG: &str = "client-secret-that-nobody-knows-0005";
const SECRETS: [&str; 5] = [OPENAI, ANTHROPIC, WEB, NEXT, WRONG];
const QUESTION: &str = "repeat after me: one two three four";

async fn gateway() -> (FakeProvider, TestNode) {
    let provider = FakeProvider::start(binary!()).await;
    let node = TestNode::builder(binary!()).provider("provider", &provider).config(CONFIG).start().await;
    (provider, node)
}

async fn read(client: &Client, path: &str) -> (u16, Value) {
    let reply = client.get(path).await;
    (reply.status, reply.json())
}

#[tokio::test]
async fn a_node_says_that_it_lives_and_what_it_is_ready_for() {
    let (_provider, node) = gateway().await;
    let admin = node.admin();

    assert_eq!(read(&admin, "/livez").await, (200, json!({ "live": true })));
    let (status, ready) = read(&admin, "/readyz").await;
    assert_eq!((status, &ready["ready"]), (200, &json!(true)));
    let checks = ready["checks"].as_array().unwrap();
    assert!(!checks.is_empty());
    for check in checks {
        assert!(check["name"].as_str().is_some_and(|name| !name.is_empty()), "{check}");
        assert!(check["ok"] == true && check["detail"].is_string(), "{check}");
    }
    let (status, health) = read(&admin, "/health").await;
    assert_eq!((status, &health["status"], &health["node"]), (200, &json!("ok"), &json!("edge-7")));
}

#[tokio::test]
async fn a_node_that_stops_is_alive_and_not_ready() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "hold": { "after_tokens": 1 } }])).await;
    let mut stream = node.as_key(WEB).chat_stream("support", QUESTION).await;
    stream.next_text().await;

    node.terminate();
    eventually("it is not ready", async || node.admin().get("/readyz").await.status == 503).await;

    assert_eq!(node.admin().get("/livez").await.status, 200);
    let failing = node.admin().get("/health").await.json()["failing"].clone();
    assert!(failing[0]["name"].is_string(), "{failing}");
    provider.release().await;
    stream.rest().await;
}

#[tokio::test]
async fn metrics_are_described_and_requests_are_counted_by_how_they_ended() {
    let (provider, node) = gateway().await;
    node.as_key(WEB).chat("support", QUESTION).await;
    node.as_key(WEB).message("support", QUESTION).await;
    node.as_key(WRONG).chat("support", QUESTION).await;
    provider.script(json!([{ "status": 400 }])).await;
    node.as_key(WEB).chat("support", QUESTION).await;

    let counted = |labels: &[(&str, &str)], metrics: &harness::Metrics| metrics.count("lea_requests_total", labels);
    eventually("all are counted", async || counted(&[], &node.metrics().await) >= 4.0).await;
    let metrics = node.metrics().await;
    for (labels, count) in [
        (vec![("dialect", "openai_chat"), ("route", "support"), ("status", "200"), ("case", "ok")], 1.0),
        (vec![("dialect", "anthropic_messages"), ("route", "support"), ("status", "200"), ("case", "ok")], 1.0),
        (vec![("dialect", "openai_chat"), ("status", "401")], 1.0),
        (vec![("dialect", "openai_chat"), ("status", "400")], 1.0),
    ] {
        assert!((counted(&labels, &metrics) - count).abs() < f64::EPSILON, "{labels:?}: {metrics:?}");
    }
    let text = node.admin().get("/metrics").await.text();
    let families: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(families.contains(&"lea_requests_total") && families.contains(&"lea_overhead_seconds"), "{families:?}");
    for family in families {
        assert!(text.contains(&format!("# HELP {family} ")), "`{family}` is not described");
    }
}

/// Whoever asks for thousands of names must not fill the memory of whoever counts them.
#[tokio::test]
async fn models_that_vary_wildly_add_no_series() {
    let (_provider, node) = gateway().await;
    let client = node.as_key(WEB);
    let lines = async || node.admin().get("/metrics").await.text().lines().count();
    let ask = async |number: usize| {
        for name in [format!("unknown-{number}"), format!("openai/m-{number}"), format!("{number}/m")] {
            client.chat(&name, QUESTION).await;
            client.get(&format!("/v1/{name}")).await;
        }
    };
    ask(0).await;
    eventually("the first are counted", async || node.metrics().await.count("lea_requests_total", &[]) >= 3.0).await;
    let before = lines().await;

    for number in 1..=20 {
        ask(number).await;
    }
    eventually("all are counted", async || node.metrics().await.count("lea_requests_total", &[]) >= 63.0).await;

    let text = node.admin().get("/metrics").await.text();
    assert!(lines().await <= before + 40, "{before} lines became {}", lines().await);
    assert!(!text.contains("unknown-1") && !text.contains("m-17"), "{text}");
}

#[tokio::test]
async fn status_is_told_to_programs_and_people() {
    let (_provider, node) = gateway().await;

    let (status, told) = read(&node.admin(), "/status").await;
    let url = format!("http://{}", node.admin_address());
    let shown = run(binary!(), &["status", "--admin", &url], &[]).await;

    assert_eq!((status, &told["node"]["name"]), (200, &json!("edge-7")));
    assert_eq!(told["node"]["api"], node.api_address().to_string());
    assert_eq!(told["providers"].as_array().unwrap().len(), 2);
    assert_eq!(shown.status.code(), Some(0), "{}", shown.stderr);
    for word in ["edge-7", "openai", "anthropic", "closed", &node.api_address().to_string()] {
        assert!(shown.stdout.contains(word), "`{word}`: {}", shown.stdout);
    }
}

#[tokio::test]
async fn a_request_is_one_line_with_the_id_its_caller_got() {
    let (_provider, node) = gateway().await;
    let ok = node.as_key(WEB).chat("support", QUESTION).await;
    let id = ok.header("x-request-id").unwrap().to_owned();

    eventually("the line is there", async || node.printed().contains(&id)).await;

    let printed = node.printed();
    let lines: Vec<_> = printed.lines().filter(|line| line.contains(&id)).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    for word in [" INFO ", "status=200", "key=\"web\"", "model=\"support\"", "provider=\"openai\""] {
        assert!(lines[0].contains(word), "`{word}`: {}", lines[0]);
    }
}

#[tokio::test]
async fn the_trace_goes_on_to_the_provider_and_the_callers_credentials_do_not() {
    let (provider, node) = gateway().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let client = node.as_key(WEB).with_header("traceparent", trace).with_header("cookie", "session=of-the-caller");
    let keyed = node.client().with_header("x-api-key", WEB).with_header("traceparent", trace);
    for model in ["openai/m", "anthropic/m"] {
        assert_eq!(client.chat(model, QUESTION).await.status, 200);
        assert_eq!(keyed.message(model, QUESTION).await.status, 200);
    }

    let seen = provider.requests().await;
    assert_eq!(seen.len(), 4);
    for request in seen {
        assert_eq!(request.header("traceparent"), Some(trace));
        assert!([OPENAI, ANTHROPIC].contains(&request.key.as_str()));
        let all = format!("{:?} {} {}", request.headers, request.path, request.body);
        assert!(!all.contains(WEB) && !all.contains("of-the-caller"), "{all}");
    }
}

#[tokio::test]
async fn no_secret_is_in_anything_a_node_says() {
    let provider = FakeProvider::start(binary!()).await;
    let config = CONFIG.to_owned() + "telemetry: { level: debug }\n";
    let node = TestNode::builder(binary!()).provider("provider", &provider).config(&config).start().await;
    let mut said = Vec::new();

    said.push(node.as_key(WRONG).chat("support", QUESTION).await.text());
    for fault in [
        json!({ "status": 401 }),
        json!({ "status": 500 }),
        json!({ "throttle": 1 }),
        json!({ "status": 200, "body": "<html>" }),
    ] {
        provider.reset().await;
        provider.script(json!([fault])).await;
        let reply = node.as_key(WEB).chat("openai/m", QUESTION).await;
        said.push(format!("{:?} {}", reply.headers, reply.text()));
    }
    provider.reset().await;
    for how in ["reset", "end", "abrupt"] {
        provider.script(json!([{ "cut": { "at": { "after_tokens": 1 }, "how": how } }])).await;
        let stream = node.as_key(WEB).message_stream("anthropic/m", QUESTION).await;
        said.push(format!("{:?}", stream.headers));
        said.extend(stream.rest().await.into_iter().map(|event| event.data));
    }
    node.write_config(&config.replace(WEB, NEXT));
    node.reload();
    eventually("the next key is known", async || node.as_key(NEXT).get("/v1/models").await.status == 200).await;
    node.write_config(&config.replace("routes:", &format!("routez: {WEB}\nroutes:")));
    node.reload();
    eventually("the bad file is refused", async || node.printed().contains("configuration refused")).await;
    for path in ["/metrics", "/status", "/health", "/readyz"] {
        said.push(node.admin().get(path).await.text());
    }
    let finished = node.stop().await;
    said.extend([finished.stdout, finished.stderr]);

    for text in &said {
        for secret in SECRETS {
            assert!(!text.contains(secret), "`{secret}` is in: {text}");
        }
    }
}

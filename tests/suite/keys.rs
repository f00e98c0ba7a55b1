//! Who may call, with which models, and how often: keys and their limits, from outside.

use harness::{FakeProvider, Reply, TestNode, binary, eventually, run};
use serde_json::{Value, json};

const CONFIG: &str = r#"
providers:
  openai: { base_url: "{provider}/v1", api_key: the-credential-upstream }
routes: { support: { targets: [openai/m] } }
keys:
  web: { secret: the-key-that-may-do-everything-0001 }
  old: { secret: the-key-that-has-expired-long-ago-02, expires: 2020-01-01 }
  few: { secret: the-key-that-may-use-one-route-0003, models: [support] }
  slow: { secret: the-key-of-three-requests-a-minute-4, rpm: 3 }
  short: { secret: the-key-of-few-tokens-a-minute-00005, tpm: 600 }
"#;

const WEB: &str = "the-key-that-may-do-everything-0001";
const OLD: &str = "the-key-that-has-expired-long-ago-02";
const FEW: &str = "the-key-that-may-use-one-route-0003";
const SLOW: &str = "the-key-of-three-requests-a-minute-4";
const SHORT: &str = "the-key-of-few-tokens-a-minute-00005";
const UNKNOWN: &str = "a-key-that-nobody-has-ever-made-0006";

async fn gateway() -> (FakeProvider, TestNode) {
    let provider = FakeProvider::start(binary!()).await;
    let node = TestNode::builder(binary!()).provider("provider", &provider).config(CONFIG).start().await;
    (provider, node)
}

const PATHS: [&str; 2] = ["/v1/chat/completions", "/v1/messages"];

fn question(model: &str) -> Value {
    json!({ "model": model, "max_tokens": 9, "messages": [{ "role": "user", "content": "hi" }] })
}

/// A refusal in the shape of the API called, and in log and metrics under its code.
async fn assert_refused(node: &TestNode, reply: &Reply, status: u16, code: &str, kind: &str) {
    let (text, json) = (reply.text(), reply.json());
    assert_eq!(reply.status, status, "{code}: {text}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(json["error"]["type"], kind, "{text}");
    assert!(json["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{text}");
    let id = reply.header("x-request-id").unwrap_or_default();
    if json["type"] == "error" {
        assert_eq!((json["request_id"].as_str(), reply.header("request-id")), (Some(id), Some(id)), "{text}");
        assert!(json["error"].get("code").is_none(), "only OpenAI's errors have a code: {text}");
    } else {
        assert_eq!(json["error"]["code"], code, "{text}");
        assert!(json["error"].get("param").is_some(), "{text}");
    }
    eventually("the log tells of it", async || {
        node.printed().lines().any(|line| line.contains(id) && line.contains(code))
    })
    .await;
    assert!(node.metrics().await.count("lea_requests_total", &[("case", code)]) > 0.0, "{code} is not counted");
}

#[tokio::test]
async fn who_may_not_is_told_why_in_the_shape_of_the_api_called() {
    let (provider, node) = gateway().await;
    let cases = [
        (node.client(), 401, "missing_api_key", "invalid_request_error", "authentication_error"),
        (node.as_key(UNKNOWN), 401, "invalid_api_key", "invalid_request_error", "authentication_error"),
        (node.as_key(OLD), 401, "expired_api_key", "invalid_request_error", "authentication_error"),
        (node.as_key(FEW), 403, "model_not_allowed", "permission_denied", "permission_error"),
    ];
    for (client, status, code, openai, anthropic) in cases {
        for (path, kind) in PATHS.into_iter().zip([openai, anthropic]) {
            let reply = client.post(path, &question("openai/m")).await;
            assert_eq!(reply.json()["type"] == "error", path == "/v1/messages", "{}", reply.text());
            assert_refused(&node, &reply, status, code, kind).await;
        }
    }
    assert!(provider.requests().await.is_empty(), "nobody of them costs anything");
    node.assert_never_printed(&[WEB, OLD, FEW, SLOW, SHORT, UNKNOWN, "the-credential-upstream"]);
}

#[tokio::test]
async fn a_key_of_some_models_may_use_those() {
    let (_provider, node) = gateway().await;
    for path in PATHS {
        assert_eq!(node.as_key(FEW).post(path, &question("support")).await.status, 200);
        assert_eq!(node.as_key(WEB).post(path, &question("openai/m")).await.status, 200);
    }
}

#[tokio::test]
async fn a_key_is_taken_wherever_a_client_puts_it() {
    let (provider, node) = gateway().await;
    let client = node.client();
    for path in PATHS {
        let body = question("support");
        for header in ["x-api-key", "api-key", "x-goog-api-key"] {
            let good = client.clone().with_header(header, WEB).post(path, &body).await;
            let bad = client.clone().with_header(header, UNKNOWN).post(path, &body).await;
            assert_eq!((good.status, bad.status), (200, 401), "{header}");
        }
        let bearer = client.clone().with_header("authorization", &format!("bearer {WEB}")).post(path, &body).await;
        let good = client.post(&format!("{path}?key={WEB}"), &body).await;
        let bad = client.post(&format!("{path}?key={UNKNOWN}"), &body).await;
        assert_eq!((bearer.status, good.status, bad.status), (200, 200, 401));
    }
    for seen in provider.requests().await {
        let told = format!("{} {:?}", seen.path, seen.headers);
        assert_eq!(seen.key, "the-credential-upstream");
        assert!(!told.contains(WEB), "the client's key is not the provider's business: {told}");
    }
}

#[tokio::test]
async fn a_key_made_by_the_program_is_known_by_its_hash() {
    let made = run(binary!(), &["keys", "new", "--name", "made"], &[]).await;
    let said = made.stdout + &made.stderr;
    let words = || said.split(|character: char| character.is_whitespace() || "\"',{}".contains(character));
    let secret = words().find(|word| word.starts_with("lea-")).unwrap();
    let hash = words().find(|word| word.starts_with("b3:")).unwrap();
    let provider = FakeProvider::start(binary!()).await;
    let config = r#"
providers: { openai: { base_url: "{provider}/v1", api_key: the-credential-upstream } }
keys: { made: { hash: "{hash}" } }
"#;
    let node =
        TestNode::builder(binary!()).provider("provider", &provider).place("hash", hash).config(config).start().await;

    assert_eq!(node.as_key(secret).chat("openai/m", "hi").await.status, 200);
    assert_eq!(node.as_key(hash).chat("openai/m", "hi").await.status, 401, "the hash is no key");
    assert_eq!(node.as_key(&secret[..secret.len() - 1]).chat("openai/m", "hi").await.status, 401);
    node.assert_never_printed(&[secret]);
}

#[tokio::test]
async fn without_keys_anyone_may_call_and_any_key_will_do() {
    let provider = FakeProvider::start(binary!()).await;
    let config = r#"
providers: { openai: { base_url: "{provider}/v1", api_key: the-credential-upstream } }
auth: none
"#;
    let node = TestNode::builder(binary!()).provider("provider", &provider).config(config).start().await;
    for path in PATHS {
        assert_eq!(node.client().post(path, &question("openai/m")).await.status, 200);
        assert_eq!(node.as_key(UNKNOWN).post(path, &question("openai/m")).await.status, 200);
    }
    assert!(provider.requests().await.iter().all(|seen| seen.key == "the-credential-upstream"));
}

/// `retry-after` in both units, whole seconds from 1 to 60, and told as the true wait.
fn assert_true_wait(reply: &Reply) {
    let number = |name: &str| reply.header(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    let (seconds, milliseconds) = (number("retry-after"), number("retry-after-ms"));
    assert!((1..=60).contains(&seconds), "{:?}", reply.headers);
    assert!(milliseconds <= seconds * 1_000 && milliseconds > (seconds - 1) * 1_000, "{:?}", reply.headers);
}

#[tokio::test]
async fn requests_a_minute_are_counted_told_and_held() {
    let (provider, node) = gateway().await;
    let client = node.as_key(SLOW);
    for left in ["2", "1", "0"] {
        let reply = client.chat("support", "hi").await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.header("x-ratelimit-limit-requests"), Some("3"));
        assert_eq!(reply.header("x-ratelimit-remaining-requests"), Some(left));
        let reset = reply.header("x-ratelimit-reset-requests").and_then(|text| text.strip_suffix('s')).unwrap();
        assert!((1..=60).contains(&reset.parse::<u64>().unwrap()), "{reset}");
        assert_eq!(reply.header("x-ratelimit-limit-tokens"), None, "no limit, no header");
    }

    let chat = client.chat("support", "hi").await;
    let message = client.message("support", "hi").await;

    for reply in [&chat, &message] {
        assert_refused(&node, reply, 429, "rate_limit_exceeded", "rate_limit_error").await;
        assert_true_wait(reply);
    }
    let waits: u64 = chat.header("retry-after").unwrap().parse().unwrap();
    assert!(waits > 40, "three requests within seconds leave most of a minute to wait: {waits}");
    assert_eq!(chat.header("x-ratelimit-remaining-requests"), Some("0"));
    assert_eq!(message.header("anthropic-ratelimit-requests-limit"), Some("3"));
    assert_eq!(message.header("anthropic-ratelimit-requests-remaining"), Some("0"));
    let reset = message.header("anthropic-ratelimit-requests-reset").unwrap();
    assert!(reset.contains('T') && reset.ends_with('Z'), "a time: {reset}");
    assert_eq!(provider.requests().await.len(), 3);
    assert_eq!(node.as_key(WEB).chat("support", "hi").await.status, 200, "another key has its own limit");
}

#[tokio::test]
async fn tokens_a_minute_are_counted_as_they_were_used() {
    let (provider, node) = gateway().await;
    let client = node.as_key(SHORT);
    let remaining = |reply: &Reply| reply.header("x-ratelimit-remaining-tokens").unwrap().parse::<u64>().unwrap();

    let first = client.chat("support", "hi").await;
    assert_eq!((first.status, first.header("x-ratelimit-limit-tokens")), (200, Some("600")));
    let second = client.chat("support", "hi").await;
    assert_eq!(second.status, 200, "what was reserved and not used is given back: {}", second.text());
    assert!(remaining(&second) <= 600);
    let long = format!("repeat after me: {}", "word ".repeat(400));
    assert_eq!(client.chat("support", &long).await.status, 200, "one that is alone larger gets its turn");

    let refused = client.message("support", "hi").await;

    assert_refused(&node, &refused, 429, "rate_limit_exceeded", "rate_limit_error").await;
    assert_true_wait(&refused);
    assert_eq!(refused.header("anthropic-ratelimit-tokens-limit"), Some("600"));
    assert_eq!(refused.header("anthropic-ratelimit-tokens-remaining"), Some("0"));
    assert_eq!(provider.requests().await.len(), 3);
}

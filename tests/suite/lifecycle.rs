//! A node from its first line to its last: it starts or says why not, follows its file, and leaves without breaking what runs.

#![expect(clippy::expect_used, reason = "helpers end the test where something failed")]

use std::path::PathBuf;

use harness::{Client, Events as _, FakeProvider, Finished, TestNode, binary, eventually, run};
use serde_json::{Value, json};
use tempfile::TempDir;

const CONFIG: &str = r#"
providers:
  openai: { base_url: "{provider}/v1", api_key: key-openai }
keys:
  old: { secret: the-key-that-is-known-at-the-start-01 }
"#;

const CHANGED: &str = r#"
providers:
  openai: { base_url: "{provider}/v1", api_key: key-changed }
keys:
  new: { secret: the-key-that-replaces-the-old-one-02 }
"#;

/// Two mistakes, besides a key that would be new.
const BAD: &str = r#"
providers:
  openai: { base_url: "{provider}/v1", api_key: key-changed }
routes:
  support: { targets: [nobody/m] }
keyz:
  new: { secret: the-key-that-replaces-the-old-one-02 }
"#;

const OLD: &str = "the-key-that-is-known-at-the-start-01";
const NEW: &str = "the-key-that-replaces-the-old-one-02";
const QUESTION: &str = "repeat after me: one two three four";

async fn gateway() -> (FakeProvider, TestNode) {
    let provider = FakeProvider::start(binary!()).await;
    let node = TestNode::builder(binary!()).provider("provider", &provider).config(CONFIG).start().await;
    (provider, node)
}

async fn status_of(client: &Client) -> u16 {
    client.chat("openai/m", QUESTION).await.status
}

fn written(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, text).expect("a folder to write to");
    (folder, path)
}

async fn check(text: &str, more: &[&str]) -> Finished {
    let (_folder, path) = written(&text.replace("{provider}", "http://127.0.0.1:1"));
    let path = path.display().to_string();
    run(binary!(), &[&["check", "--config", &path], more].concat(), &[]).await
}

#[tokio::test]
async fn a_hang_up_signal_puts_the_changed_file_in_force() {
    let (provider, node) = gateway().await;
    assert_eq!((status_of(&node.as_key(OLD)).await, status_of(&node.as_key(NEW)).await), (200, 401));

    node.write_config(CHANGED);
    node.reload();

    eventually("the new key is known", async || status_of(&node.as_key(NEW)).await == 200).await;
    assert_eq!(status_of(&node.as_key(OLD)).await, 401);
    let seen = provider.requests().await;
    assert_eq!(seen.last().unwrap().key, "key-changed", "the provider's key changed with it");
    harness::eventually("the reload is counted", async || {
        node.metrics().await.count("lea_config_reloads_total", &[("outcome", "applied")]) >= 1.0
    })
    .await;
}

#[tokio::test]
async fn a_changed_file_is_noticed_without_being_told() {
    let (_provider, node) = gateway().await;

    node.write_config(CHANGED);

    eventually("the new key is known", async || status_of(&node.as_key(NEW)).await == 200).await;
    assert_eq!(status_of(&node.as_key(OLD)).await, 401);
}

#[tokio::test]
async fn a_stream_that_runs_while_the_file_changes_is_not_disturbed() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "hold": { "after_tokens": 1 } }])).await;
    let mut stream = node.as_key(OLD).chat_stream("openai/m", QUESTION).await;
    assert_eq!(stream.next_text().await, "one");

    node.write_config(CHANGED);
    node.reload();
    eventually("the new key is known", async || status_of(&node.as_key(NEW)).await == 200).await;
    provider.release().await;

    let events = stream.rest().await;
    assert_eq!((events.text().as_str(), events.last().unwrap().is_done()), (" two three four", true));
}

#[tokio::test]
async fn a_bad_file_is_refused_whole_and_the_old_one_stays() {
    let (provider, node) = gateway().await;

    node.write_config(BAD);
    node.reload();
    let refused = "configuration refused; the running one stays";
    eventually("the file is refused", async || node.printed().contains(refused)).await;

    assert_eq!((status_of(&node.as_key(OLD)).await, status_of(&node.as_key(NEW)).await), (200, 401));
    assert_eq!(provider.requests().await.last().unwrap().key, "key-openai", "nothing of the bad file is in force");
    let printed = node.printed();
    let about = |words: &str| printed.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{printed}"));
    // The harness writes one line of its own before the text.
    assert!(about("path=routes.support.targets[0]").contains("line=6"), "{printed}");
    assert!(about("path=keyz").contains("line=7"), "{printed}");
    assert!(about("path=keyz").contains("config.yaml"), "{printed}");
    harness::eventually("the reload is counted", async || {
        node.metrics().await.count("lea_config_reloads_total", &[("outcome", "refused")]) >= 1.0
    })
    .await;

    node.write_config(CHANGED);
    node.reload();
    eventually("the mended file is in force", async || status_of(&node.as_key(NEW)).await == 200).await;
}

#[tokio::test]
async fn a_node_that_is_told_to_stop_finishes_what_runs_and_takes_nothing_new() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "hold": { "after_tokens": 1 } }])).await;
    let mut stream = node.as_key(OLD).chat_stream("openai/m", QUESTION).await;
    assert_eq!(stream.next_text().await, "one");

    node.terminate();
    eventually("new connections are refused", async || {
        let fresh = node.as_key(OLD);
        fresh.try_send(http::Method::GET, "/v1/models", "").await.is_err()
    })
    .await;
    provider.release().await;

    let events = stream.rest().await;
    assert_eq!((events.text().as_str(), events.last().unwrap().is_done()), (" two three four", true));
    let finished = node.wait().await;
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    assert!(finished.stderr.contains("stopped"), "{}", finished.stderr);
}

#[tokio::test]
async fn an_idle_node_stops_at_once() {
    let (_provider, node) = gateway().await;
    let idle = node.raw().await;

    let finished = node.stop().await;

    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    drop(idle);
}

#[tokio::test]
async fn a_port_in_use_is_told_and_ends_the_start() {
    let (_provider, node) = gateway().await;
    let taken = node.api_address().to_string();
    let config = format!(
        "listen: {{ api: \"{taken}\", admin: 127.0.0.1:0 }}\nauth: none\nproviders: {{ openai: {{ api_key: none }} }}\n"
    );
    let (_folder, path) = written(&config);

    let finished = run(binary!(), &["run", "--config", &path.display().to_string()], &[]).await;

    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains(&taken), "the address is named: {}", finished.stderr);
    assert!(finished.stderr.to_lowercase().contains("in use"), "{}", finished.stderr);
    assert_eq!(status_of(&node.as_key(OLD)).await, 200, "the other is not disturbed");
}

#[tokio::test]
async fn check_says_everything_that_is_wrong_with_its_place() {
    let finished = check(BAD, &[]).await;

    assert_eq!(finished.status.code(), Some(1));
    let lines: Vec<_> = finished.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{}", finished.stdout);
    assert!(lines[0].contains("gateway.yaml:5:24: routes.support.targets[0]: "), "{}", lines[0]);
    assert!(lines[1].contains("gateway.yaml:6:1: keyz: ") && lines[1].contains("`keys`"), "{}", lines[1]);
    assert!(finished.stderr.contains("2 problems"), "{}", finished.stderr);
}

#[tokio::test]
async fn check_tells_programs_the_same() {
    let finished = check(BAD, &["--format", "json"]).await;

    assert_eq!(finished.status.code(), Some(1));
    let told: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(told["ok"], false);
    let places: Vec<_> =
        told["problems"].as_array().unwrap().iter().map(|one| (&one["line"], &one["column"])).collect();
    assert_eq!(places, [(&json!(5), &json!(24)), (&json!(6), &json!(1))]);
}

#[tokio::test]
async fn check_has_a_status_for_each_outcome() {
    let right = check(CONFIG, &[]).await;
    let not_yaml = check("providers: [", &[]).await;
    let missing = run(binary!(), &["check", "--config", "/nowhere/gateway.yaml"], &[]).await;
    let misused = run(binary!(), &["check", "--config"], &[]).await;

    assert_eq!(
        [&right, &not_yaml, &missing, &misused].map(|one| one.status.code()),
        [Some(0), Some(1), Some(1), Some(2)]
    );
    assert!(right.stdout.contains("ok: 1 provider, 0 routes, 0 tenants, 1 key, 0 budgets"), "{}", right.stdout);
    assert!(not_yaml.stdout.contains("gateway.yaml:1:"), "{}", not_yaml.stdout);
    assert!(missing.stdout.contains("/nowhere/gateway.yaml"), "{}", missing.stdout);
}

#[tokio::test]
async fn a_bad_file_does_not_start_a_node() {
    let error = TestNode::builder(binary!()).place("provider", "http://127.0.0.1:1").config(BAD).try_start().await;

    let error = error.unwrap_err();
    assert!(error.contains("exit status: 1"), "{error}");
    assert!(error.contains(":6:24: routes.support.targets[0]"), "{error}");
}

#[tokio::test]
async fn the_smallest_useful_file_starts_and_a_missing_variable_is_named() {
    let smallest = "providers:\n  openai: { api_key: \"${OPENAI_API_KEY}\" }\n  anthropic: { api_key: \"${ANTHROPIC_API_KEY}\" }\nkeys:\n  web: { secret: \"${WEB_KEY}\" }\n";
    let given = || {
        let node = TestNode::builder(binary!()).config(smallest);
        node.env("OPENAI_API_KEY", "key-openai").env("ANTHROPIC_API_KEY", "key-anthropic")
    };

    let node = given().env("WEB_KEY", OLD).start().await;
    assert_eq!(node.admin().get("/readyz").await.status, 200);
    assert_eq!(node.as_key(OLD).get("/v1/models").await.status, 200);
    assert_eq!(node.client().get("/v1/models").await.status, 401);

    let error = given().try_start().await.unwrap_err();
    assert!(error.contains("WEB_KEY") && error.contains("keys.web.secret"), "{error}");
}

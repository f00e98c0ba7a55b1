//! Limits of requests a minute, seen from outside: the provider's own bill says how many came through all nodes together.

use std::time::Duration;

use harness::{DEADLINE, FakeProvider, LONG, TestCluster, TestClusterBuilder, binary, eventually_within};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::{FAST, question};

const CONFIG: &str = r#"
resources_revision: 1
providers: { openai: { api_key: upstream, base_url: "{provider}/v1" } }
keys: { web: { secret: the-key-that-every-file-declares-0001, rpm: LIMIT } }
"#;

const WEB: &str = "the-key-that-every-file-declares-0001";

/// Counts are over a minute after they were made.
const MINUTE: Duration = Duration::from_mins(1);

fn builder(provider: &FakeProvider, rpm: u64) -> TestClusterBuilder {
    let config = CONFIG.replace("LIMIT", &rpm.to_string());
    TestCluster::builder(binary!()).config(&config).cluster(FAST).provider("provider", provider)
}

/// Once each node sees all of them ready: who owns a limit is the same for all then.
async fn start(provider: &FakeProvider, rpm: u64) -> TestCluster {
    let cluster = builder(provider, rpm).start().await;
    for number in 0..3 {
        eventually_within(LONG, "it sees all of them ready", async || {
            let status = cluster[number].status().await.unwrap_or_default();
            let members = status["cluster"]["members"].as_array().cloned().unwrap_or_default();
            members.len() == 3 && members.iter().all(|member| member["state"] == "ready" && member["alive"] == true)
        })
        .await;
    }
    cluster
}

/// Sixty a minute and five times as many asked for, over three nodes: sixty pass and no more, whoever asks where.
#[tokio::test]
async fn sixty_a_minute_are_sixty_on_three_nodes() {
    const LIMIT: u64 = 60;
    let provider = FakeProvider::start(binary!()).await;
    let cluster = start(&provider, LIMIT).await;
    let began = Instant::now();

    let mut clients = JoinSet::new();
    for number in 0..3 {
        let client = cluster[number].as_key(WEB).with_deadline(LONG);
        clients.spawn(async move {
            let mut refused = Vec::new();
            for _ in 0..100 {
                let answer = client.post("/v1/chat/completions", &question()).await;
                if answer.status != 200 {
                    refused.push(answer);
                }
            }
            refused
        });
    }
    let refused = clients.join_all().await.concat();

    let passed = provider.bill().await.total.requests;
    assert!(began.elapsed() < MINUTE, "too slow to say anything: {:?}", began.elapsed());
    assert!(passed <= LIMIT, "{passed}");
    assert!(passed >= LIMIT * 9 / 10, "{passed}");
    for answer in &refused {
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (429, &"rate_limit_exceeded".into()));
        assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("60"));
        let seconds: u64 = answer.header("retry-after").expect("it says when").parse().expect("in seconds");
        assert!((1..=60).contains(&seconds), "{seconds}");
    }
    // Nothing of it is lost: what passes is all there is, though nobody asked for it at the right node.
    for number in 0..3 {
        let client = cluster[number].as_key(WEB);
        eventually_within(DEADLINE, "the rest is used", async || {
            client.post("/v1/chat/completions", &question()).await.header("x-ratelimit-remaining-requests") == Some("0")
        })
        .await;
    }
    assert!(provider.bill().await.total.requests <= LIMIT || began.elapsed() >= MINUTE);
}

/// Two a minute on three nodes: the first two pass wherever they come, and no third.
#[tokio::test]
async fn two_a_minute_are_two_on_three_nodes() {
    let provider = FakeProvider::start(binary!()).await;
    let cluster = start(&provider, 2).await;
    let began = Instant::now();

    let mut statuses = Vec::new();
    for number in 0..9 {
        statuses.push(cluster[number % 3].as_key(WEB).post("/v1/chat/completions", &question()).await.status);
    }

    assert!(began.elapsed() < MINUTE, "too slow to say anything: {:?}", began.elapsed());
    assert_eq!(statuses, [200, 200, 429, 429, 429, 429, 429, 429, 429]);
    assert_eq!(provider.bill().await.total.requests, 2);
}

/// The owner of a limit is one of them: whichever is killed, the others go on within the limit.
#[tokio::test]
async fn a_limit_holds_when_a_node_is_killed() {
    const LIMIT: u64 = 60;
    let provider = FakeProvider::start(binary!()).await;
    let mut cluster = start(&provider, LIMIT).await;
    let began = Instant::now();
    for number in 0..30 {
        let client = cluster[number % 3].as_key(WEB).with_deadline(LONG);
        eventually_within(DEADLINE, "half of the limit is there for all", async || {
            client.post("/v1/chat/completions", &question()).await.status == 200
        })
        .await;
    }

    cluster.kill(1).await;
    let mut clients = JoinSet::new();
    for number in [0, 2] {
        let client = cluster[number].as_key(WEB).with_deadline(LONG);
        clients.spawn(async move {
            let until = Instant::now() + 2 * DEADLINE / 5;
            while Instant::now() < until {
                let _answer = client.post("/v1/chat/completions", &question()).await;
            }
        });
    }
    let _ended = clients.join_all().await;

    let passed = provider.settled().await.total.requests;
    assert!(began.elapsed() < MINUTE, "too slow to say anything: {:?}", began.elapsed());
    // What only the dead node knew that it used. Where each went by itself, it would be half as much again.
    assert!(passed <= LIMIT + LIMIT / 3, "{passed}");
    // What the dead one had leave for, its owner keeps for a minute.
    assert!(passed >= LIMIT * 2 / 3, "{passed}");
}

//! Limits of requests a minute and at once, seen from outside: the provider's own bill says how many came through all
//! nodes together.

use std::time::Duration;

use harness::{
    Client, DEADLINE, Event, FakeProvider, LONG, Reply, Streamed, TestCluster, TestClusterBuilder, TestNetwork,
    TestNode, binary, eventually, eventually_some_within, eventually_within, skipped,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::{FAST, question};

const CONFIG: &str = r#"
resources_revision: 1
providers: { openai: { api_key: upstream, base_url: "{provider}/v1" } }
routes: { kept: { targets: [openai/m], cache: { mode: exact } } }
keys: { web: { secret: the-key-that-every-file-declares-0001, LIMIT } }
"#;

const WEB: &str = "the-key-that-every-file-declares-0001";

const FAST_KEY: &str = "the-key-that-every-file-declares-0002";

/// Counts are over a minute after they were made.
const MINUTE: Duration = Duration::from_mins(1);

fn builder(provider: &FakeProvider, limit: &str) -> TestClusterBuilder {
    let config = CONFIG.replace("LIMIT", limit);
    TestCluster::builder(binary!()).config(&config).cluster(FAST).provider("provider", provider)
}

/// Once each node sees all of them ready: who owns a limit is the same for all then.
async fn start(provider: &FakeProvider, limit: &str) -> TestCluster {
    let cluster = builder(provider, limit).start().await;
    all_ready(&cluster).await;
    cluster
}

async fn all_ready(cluster: &TestCluster) {
    for number in 0..3 {
        eventually_within(LONG, "it sees all of them ready", async || {
            let status = cluster[number].status().await.unwrap_or_default();
            let members = status["cluster"]["members"].as_array().cloned().unwrap_or_default();
            members.len() == 3 && members.iter().all(|member| member["state"] == "ready" && member["alive"] == true)
        })
        .await;
    }
}

/// Sixty a minute and five times as many asked for, over three nodes: sixty pass and no more, whoever asks where.
#[tokio::test]
async fn sixty_a_minute_are_sixty_on_three_nodes() {
    const LIMIT: u64 = 60;
    let provider = FakeProvider::start(binary!()).await;
    let cluster = start(&provider, &format!("rpm: {LIMIT}")).await;
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

/// One call of an open loop.
struct Call {
    sent: Duration,
    answered: Duration,
    reply: Reply,
}

/// Five times as many as may pass, evenly for more than a minute and over three nodes: as many pass as the limit says, in
/// any minute, and who is refused is told when that changes.
#[tokio::test]
async fn no_minute_of_a_longer_time_has_more_than_sixty() {
    const LIMIT: usize = 60;
    let provider = FakeProvider::start(binary!()).await;
    let cluster = start(&provider, &format!("rpm: {LIMIT}")).await;
    let (began, mut paced) = (Instant::now(), tokio::time::interval(MINUTE / 300));

    let mut calls = JoinSet::new();
    for number in 0..360 {
        paced.tick().await;
        let client = cluster[number % 3].as_key(WEB).with_deadline(LONG);
        calls.spawn(async move {
            let sent = began.elapsed();
            let reply = client.post("/v1/chat/completions", &question()).await;
            Call { sent, answered: began.elapsed(), reply }
        });
    }
    let mut calls = calls.join_all().await;
    calls.sort_by_key(|call| call.sent);

    let (passed, refused): (Vec<Call>, Vec<Call>) = calls.into_iter().partition(|call| call.reply.status == 200);
    let first = passed.iter().filter(|call| call.answered < MINUTE).count();
    assert!((LIMIT * 95 / 100..=LIMIT).contains(&first), "{first} in the first minute");
    for some in passed.windows(LIMIT + 1) {
        assert!(some[LIMIT].answered.saturating_sub(some[0].sent) >= MINUTE, "{:?}", some[LIMIT].answered);
    }
    assert!(passed.len() > first, "and more after it");
    // Counts are kept by the second, and it is told in whole ones.
    let (from, until) = (passed[0].sent + MINUTE, passed[0].answered + MINUTE + Duration::from_secs(2));
    for call in refused.iter().filter(|call| call.answered < from) {
        assert_eq!((call.reply.status, &call.reply.json()["error"]["code"]), (429, &"rate_limit_exceeded".into()));
        let told = call.reply.header("retry-after").expect("it says when").parse().expect("in seconds");
        let told = Duration::from_secs(told);
        assert!(call.answered + told >= from && call.sent + told <= until, "{told:?} at {:?}", call.answered);
    }
}

/// Two a minute on three nodes: the first two pass wherever they come, and no third.
#[tokio::test]
async fn two_a_minute_are_two_on_three_nodes() {
    let provider = FakeProvider::start(binary!()).await;
    let cluster = start(&provider, "rpm: 2").await;
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
    let mut cluster = start(&provider, &format!("rpm: {LIMIT}")).await;
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

/// How many of those that ask some nodes all the time for so long come through.
async fn passed_within(cluster: &TestCluster, nodes: &[usize], key: &str, time: Duration) -> (u64, Vec<Reply>) {
    let mut clients = JoinSet::new();
    for number in nodes {
        let client = cluster[*number].as_key(key).with_deadline(LONG);
        clients.spawn(async move {
            let (mut passed, mut refused, until) = (0, Vec::new(), Instant::now() + time);
            while Instant::now() < until {
                let answer = client.post("/v1/chat/completions", &question()).await;
                if answer.status == 200 { passed += 1 } else { refused.push(answer) }
            }
            (passed, refused)
        });
    }
    let ends = clients.join_all().await;
    (ends.iter().map(|(passed, _)| passed).sum(), ends.into_iter().flat_map(|(_, refused)| refused).collect())
}

fn assert_too_fast(refused: &[Reply], limit: &str) {
    assert!(!refused.is_empty());
    for answer in refused {
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["code"]), (429, &"rate_limit_exceeded".into()), "{error}");
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert!(error["message"].as_str().is_some_and(|said| said.contains(limit)), "{error}");
    }
}

/// So many requests of a limit a second may pass in that time: a second's worth at once, and a part of one ahead.
fn most(per_second: u64, time: Duration) -> u64 {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).saturating_add(1_250);
    per_second.saturating_mul(millis).div_ceil(1_000)
}

/// What nodes let through by their even parts where a busy machine kept an owner from answering in time: each time for half
/// a second, and a second's worth at once.
async fn alone_at_times(cluster: &TestCluster, nodes: &[usize], part: u64) -> u64 {
    let mut times = 0.0;
    for number in nodes {
        let asked = [("limit", "pace"), ("answered", "no")];
        times += cluster[*number].metrics().await.count("lea_limit_owner_asked_total", &asked);
    }
    let mut most = 0;
    while times > 0.5 {
        (times, most) = (times - 1.0, most + 2 * (part + 1));
    }
    most
}

/// Twenty a second on three nodes, each asked all the time: a second's worth at once, and then as many as the seconds have.
#[tokio::test]
async fn twenty_a_second_are_twenty_on_three_nodes() {
    const LIMIT: u64 = 20;
    let provider = FakeProvider::start(binary!()).await;
    let cluster = start(&provider, &format!("rps: {LIMIT}")).await;
    let began = Instant::now();

    let (passed, refused) = passed_within(&cluster, &[0, 1, 2], WEB, Duration::from_secs(4)).await;

    let took = began.elapsed();
    assert_eq!(provider.bill().await.total.requests, passed);
    let alone = alone_at_times(&cluster, &[0, 1, 2], LIMIT / 3).await;
    assert!(passed <= most(LIMIT, took) + alone, "{passed} in {took:?}, {alone}");
    assert!(passed >= LIMIT * 4, "{passed} in {took:?}");
    assert_too_fast(&refused, "limit of 20 requests a second");
    let metrics = cluster[0].metrics().await;
    assert!(metrics.count("lea_queue_refused_total", &[("reason", "per_second")]) > 0.0);
}

/// A network that breaks in two: the majority shares out all of a limit, the rest no more than its even part of it.
#[tokio::test]
async fn limits_of_a_cluster_that_is_cut_in_two() {
    const RPS: u64 = 12;
    const RPM: u64 = 90;
    let network = match TestNetwork::new() {
        Ok(network) => network,
        Err(why) => return skipped("rates::limits_of_a_cluster_that_is_cut_in_two", &why),
    };
    let provider = FakeProvider::builder(binary!()).at(network.own_address()).start().await;
    let config = CONFIG.replace("web: {", &format!("fast: {{ secret: {FAST_KEY}, rps: {RPS} }}, web: {{"));
    let config = config.replace("LIMIT", &format!("rpm: {RPM}"));
    let cluster = TestCluster::builder(binary!())
        .config(&config)
        .cluster(&FAST.replace("stale_max: 3s", "stale_max: 1m"))
        .provider("provider", &provider)
        .network(network)
        .start()
        .await;
    all_ready(&cluster).await;

    cluster.network().cut(2);
    for (number, alive) in [(0, 2), (1, 2), (2, 1)] {
        eventually_within(LONG, "they take each other for dead", async || {
            let status = cluster[number].status().await.unwrap_or_default();
            let members = status["cluster"]["members"].as_array().cloned().unwrap_or_default();
            members.iter().filter(|member| member["alive"] == true).count() == alive
        })
        .await;
    }
    let (began, time) = (Instant::now(), Duration::from_secs(4));
    let (many, few, many_a_second, few_a_second) = tokio::join!(
        passed_within(&cluster, &[0, 1], WEB, time),
        passed_within(&cluster, &[2], WEB, time),
        passed_within(&cluster, &[0, 1], FAST_KEY, time),
        passed_within(&cluster, &[2], FAST_KEY, time),
    );

    let took = began.elapsed();
    assert!(took < MINUTE, "too slow to say anything: {took:?}");
    assert!((RPM / 6..=RPM / 3).contains(&few.0), "{}", few.0);
    assert!((RPM / 2..=RPM).contains(&many.0), "{}", many.0);
    assert!((RPS / 3 * 3..=most(RPS / 3, took)).contains(&few_a_second.0), "{} in {took:?}", few_a_second.0);
    let alone = alone_at_times(&cluster, &[0, 1], RPS / 3).await;
    assert!((RPS * 3..=most(RPS, took) + alone).contains(&many_a_second.0), "{} in {took:?}", many_a_second.0);
}

/// The next so many answers stay open until the provider is released.
async fn hold(provider: &FakeProvider, count: usize) {
    provider.script(Value::from(vec![json!({ "hold": { "after_tokens": 1 } }); count])).await;
}

async fn open(client: &Client) -> Streamed {
    let mut body = question();
    body["stream"] = true.into();
    client.stream("/v1/chat/completions", &body).await
}

/// One that is worked on, once there is a slot for it.
async fn opens(client: &Client) -> Streamed {
    eventually_some_within(LONG, "there is a slot", async || {
        Some(open(client).await).filter(|stream| stream.status == 200)
    })
    .await
}

async fn assert_refused_for_five_at_once(client: &Client) {
    for path in ["/v1/chat/completions", "/v1/messages"] {
        let mut body = question();
        body["max_tokens"] = 9.into();
        let refused = client.post(path, &body).await;
        let error = refused.json()["error"].clone();
        assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")), "{error}");
        assert!(error["message"].as_str().is_some_and(|said| said.contains("limit of 5 requests at once")), "{error}");
        if path == "/v1/chat/completions" {
            assert_eq!(error["code"], "rate_limit_exceeded");
        }
    }
}

/// Five at once on three nodes, wherever they come, and no sixth anywhere. Each that ends lets another one in.
#[tokio::test]
async fn five_at_once_are_five_on_three_nodes() {
    let provider = FakeProvider::start(binary!()).await;
    let cluster = start(&provider, "max_parallel: 5").await;
    let clients = [0, 1, 2].map(|number| cluster[number].as_key(WEB).with_deadline(LONG));
    hold(&provider, 5).await;
    let mut streams = Vec::new();
    for number in 0..5 {
        streams.push(opens(&clients[number % 3]).await);
    }
    for client in &clients {
        assert_refused_for_five_at_once(client).await;
    }
    let held: f64 = cluster[0].metrics().await.count("lea_key_slots_in_use", &[]);
    assert!((held - 2.0).abs() < f64::EPSILON, "{held}");

    provider.release().await;
    for stream in streams {
        assert!(stream.rest().await.last().is_some_and(Event::is_done));
    }
    hold(&provider, 5).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(opens(&clients[2]).await);
    }

    for client in &clients {
        assert_refused_for_five_at_once(client).await;
    }
    assert_eq!(provider.requests().await.len(), 10, "none that was refused came through");
}

/// A client that hangs up frees its slot, for whichever node is asked next.
#[tokio::test]
async fn who_hangs_up_frees_a_slot_for_another_node() {
    let provider = FakeProvider::start(binary!()).await;
    let cluster = start(&provider, "max_parallel: 5").await;
    let clients = [0, 1, 2].map(|number| cluster[number].as_key(WEB).with_deadline(LONG));
    hold(&provider, 6).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(opens(&clients[1]).await);
    }
    assert_refused_for_five_at_once(&clients[2]).await;

    drop(streams.pop());

    streams.push(opens(&clients[2]).await);
    assert_refused_for_five_at_once(&clients[0]).await;
    assert_eq!(streams.len(), 5);
}

/// The node that holds three of five is killed: these three come back, and no more. Who owns the key differs from run to
/// run.
async fn slots_of_a_killed_node_come_back(killed: usize) {
    let provider = FakeProvider::start(binary!()).await;
    let mut cluster = start(&provider, "max_parallel: 5").await;
    let clients = [0, 1, 2].map(|number| cluster[number].as_key(WEB).with_deadline(LONG));
    hold(&provider, 8).await;
    let (one, other) = ((killed + 1) % 3, (killed + 2) % 3);
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(opens(&clients[killed]).await);
    }
    let mut kept = [opens(&clients[one]).await, opens(&clients[other]).await].map(Some);
    assert_refused_for_five_at_once(&clients[one]).await;

    cluster.kill(killed).await;
    for number in [one, other, one] {
        streams.push(opens(&clients[number]).await);
    }

    for client in [&clients[one], &clients[other]] {
        assert_refused_for_five_at_once(client).await;
    }
    // Those that were there before have gone on.
    provider.release().await;
    for stream in kept.iter_mut().filter_map(Option::take) {
        assert!(stream.rest().await.last().is_some_and(Event::is_done));
    }
}

#[tokio::test]
async fn slots_of_a_killed_node_come_back_from_the_first() {
    slots_of_a_killed_node_come_back(0).await;
}

#[tokio::test]
async fn slots_of_a_killed_node_come_back_from_the_second() {
    slots_of_a_killed_node_come_back(1).await;
}

/// Alone a node asks nobody; who goes on one after the other is never refused, and what is cached counts too.
#[tokio::test]
async fn one_after_the_other_is_never_refused() {
    let provider = FakeProvider::start(binary!()).await;
    let config = CONFIG.replace("LIMIT", "max_parallel: 1");
    let node = TestNode::builder(binary!()).provider("provider", &provider).config(&config).start().await;
    let client = node.as_key(WEB);
    let mut same = question();
    same["model"] = "kept".into();
    for _ in 0..20 {
        assert_eq!(client.post("/v1/chat/completions", &same).await.status, 200);
        assert!(open(&client).await.rest().await.last().is_some_and(Event::is_done));
    }
    hold(&provider, 1).await;
    let stream = opens(&client).await;

    let refused = client.post("/v1/chat/completions", &same).await;
    assert_eq!((refused.status, refused.header("x-lea-cache")), (429, None), "{}", refused.text());
    drop(stream);

    eventually("its slot is free again", async || {
        client.post("/v1/chat/completions", &same).await.header("x-lea-cache") == Some("HIT")
    })
    .await;
}

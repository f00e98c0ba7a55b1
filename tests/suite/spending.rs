//! Who pays for what: each case ends with the provider's own bill beside what the budget says.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use harness::{
    FakeProvider, LONG, Member, TestCluster, TestClusterBuilder, binary, copy_folder, eventually, eventually_within,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cluster::{FAST, WallClock, question};

/// Every call is one of the provider's, so `b` pays for all of them.
const CONFIG: &str = r#"
resources_revision: 1
providers:
  openai: { api_key: upstream, base_url: "{provider}/v1", budgets: [b], timeouts: { first_token: 400ms, total: 20s } }
  spare: { kind: openai, api_key: spare, base_url: "{provider}/v1", budgets: [b] }
prices: { openai/m: { input: $0.15, output: $0.60 }, spare/m: { input: $0.15, output: $0.60 } }
routes:
  kept: { targets: [openai/m], cache: { mode: exact } }
  lasting: { targets: [openai/m, spare/m] }
keys: { web: { secret: the-key-that-every-file-declares-0001 } }
BUDGETS
"#;

const WEB: &str = "the-key-that-every-file-declares-0001";

const CHAT: &str = "/v1/chat/completions";

/// What a cut stream may be charged beyond what the provider bills for it.
const SLACK: u64 = 256;

fn config(revision: u64, budget: &str) -> String {
    let config = CONFIG.replace("resources_revision: 1", &format!("resources_revision: {revision}"));
    config.replace("BUDGETS", &format!("budgets: {{ b: {{ {budget} }} }}"))
}

fn builder(provider: &FakeProvider, budget: &str) -> TestClusterBuilder {
    TestCluster::builder(binary!()).config(&config(1, budget)).cluster(FAST).provider("provider", provider)
}

async fn provider(tokens: &str) -> FakeProvider {
    FakeProvider::builder(binary!()).arguments(&["--answer-tokens", tokens]).start().await
}

/// A node that is alone, on this budget.
async fn alone(budget: &str) -> (FakeProvider, TestCluster) {
    let provider = provider("8").await;
    let cluster = builder(&provider, budget).nodes(1).start().await;
    (provider, cluster)
}

fn asking(model: &str, content: &str) -> Value {
    json!({ "model": model, "max_tokens": 50, "messages": [{ "role": "user", "content": content }] })
}

fn streamed(mut body: Value) -> Value {
    body["stream"] = true.into();
    body
}

async fn standing(member: &Member, key: &str) -> Value {
    member.admin(key).get("/admin/v1/budgets/b/standing").await.json()
}

/// The file is another from now on.
fn change(cluster: &TestCluster, config: &str) {
    cluster.write_config("edge-0", config);
    cluster.hang_up(0);
}

/// The status of one call more.
async fn one_more(member: &Member) -> u16 {
    let mut question = question();
    question["max_tokens"] = 50.into();
    member.as_key(WEB).with_deadline(LONG).post(CHAT, &question).await.status
}

/// Calls until it is told no; how many passed.
async fn drain(member: &Member) -> u64 {
    let mut passed = 0;
    loop {
        let status = one_more(member).await;
        if status == 429 {
            return passed;
        }
        assert_eq!(status, 200);
        passed += 1;
    }
}

#[tokio::test]
async fn an_attempt_that_was_too_late_is_charged_beside_the_one_that_answered() {
    let (provider, cluster) = alone("limit: 9 requests, window: total").await;
    provider.script(json!([{ "match": { "key": "upstream" }, "hold": "before_head" }])).await;

    let answer = cluster[0].as_key(WEB).stream(CHAT, &streamed(asking("lasting", "who?"))).await;
    assert_eq!((answer.status, answer.header("x-lea-provider")), (200, Some("spare")));
    answer.rest().await;

    let admin = cluster.admin_key().await;
    eventually("both are charged", async || standing(&cluster[0], &admin).await["settled"] == 2).await;
    provider.release().await;
    assert_eq!(provider.settled().await.total.requests, 2);
}

/// A proxy on the way may have changed it: it is an answer all the same, and the provider bills it.
#[tokio::test]
async fn an_answer_with_another_status_of_success_is_an_answer_and_charged() {
    let (provider, cluster) = alone("limit: 9 requests, window: total").await;
    provider.script(json!([{ "status": 203 }])).await;

    let answer = cluster[0].as_key(WEB).post(CHAT, &asking("openai/m", "who?")).await;

    assert!(answer.status == 200 && answer.json()["usage"]["completion_tokens"] == 8, "{}", answer.text());
    let admin = cluster.admin_key().await;
    eventually("it is charged", async || standing(&cluster[0], &admin).await["settled"] == 1).await;
}

/// Who waits for another's call needs nothing himself; nor does who finds an answer that is kept.
#[tokio::test]
async fn a_hundred_identical_requests_pass_on_a_budget_for_one_and_its_answer_is_had_after_it() {
    let (provider, cluster) = alone("limit: 1 request, window: total").await;
    let client = cluster[0].as_key(WEB).with_deadline(LONG);

    let who = asking("kept", "who?");
    let answers = join_all((0..100).map(|_| client.post(CHAT, &who))).await;

    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    let refused = client.post(CHAT, &asking("kept", "who else?")).await;
    let told = refused.json()["error"]["message"].as_str().unwrap().to_owned();
    // It is the provider's, and perhaps others' too: how it stands is not for its callers.
    assert!(refused.status == 429 && told.contains("`b`, of the provider") && !told.contains("1 request"), "{told}");
    let again = client.post(CHAT, &asking("kept", "who?")).await;
    assert_eq!((again.status, again.header("x-lea-cache")), (200, Some("HIT")));
    assert_eq!(provider.settled().await.total.requests, 1);
}

/// Who has more does not get the short answer of who has less.
#[tokio::test]
async fn an_answer_that_is_capped_for_ones_budget_is_not_shared_with_another() {
    const OTHER: &str = "the-key-that-every-file-declares-0002";
    let provider = provider("2000").await;
    let config = format!(
        "resources_revision: 1\nproviders: {{ openai: {{ api_key: upstream, base_url: \"{{provider}}/v1\" }} }}\n\
         routes: {{ kept: {{ targets: [openai/m], cache: {{ mode: exact }} }} }}\n\
         keys: {{ web: {{ secret: {WEB}, budgets: [b] }}, other: {{ secret: {OTHER} }} }}\n\
         budgets: {{ b: {{ limit: 1500 tokens, window: total }} }}\n"
    );
    let cluster = TestCluster::builder(binary!()).config(&config).cluster(FAST).provider("provider", &provider);
    let cluster = cluster.nodes(1).start().await;
    provider.script(json!([{ "hold": { "after_tokens": 1 } }])).await;
    let ask = |key| {
        let client = cluster[0].as_key(key).with_deadline(LONG);
        let body = json!({ "model": "kept", "messages": [{ "role": "user", "content": "go on" }] });
        async move { client.post(CHAT, &body).await }
    };

    let others = async {
        provider.arrived(1).await;
        let other = ask(OTHER);
        let release = async {
            eventually("it waits for the same", async || {
                cluster[0].metrics().await.count("lea_requests_in_flight", &[]) >= 2.0
            })
            .await;
            provider.release().await;
        };
        tokio::join!(other, release).0
    };
    let (lead, other) = tokio::join!(ask(WEB), others);

    let finish = |answer: &harness::Reply| answer.json()["choices"][0]["finish_reason"].clone();
    assert_eq!((lead.status, finish(&lead)), (200, "length".into()));
    assert!(lead.header("x-lea-max-tokens").is_some());
    assert_eq!((other.status, finish(&other), other.header("x-lea-max-tokens")), (200, "stop".into(), None));
    assert_eq!(provider.settled().await.total.requests, 2);
}

#[tokio::test]
async fn a_stream_that_the_client_leaves_is_charged_what_was_seen_and_the_slack_at_most() {
    let provider = provider("500").await;
    let cluster = builder(&provider, "limit: 100000 tokens, window: total").nodes(1).start().await;
    provider.script(json!([{ "hold": { "after_tokens": 20 } }])).await;
    let body = json!({ "model": "lasting", "max_tokens": 5000, "stream": true,
        "messages": [{ "role": "user", "content": "count" }] });

    let mut stream = cluster[0].as_key(WEB).stream(CHAT, &body).await;
    stream.next_text().await;
    drop(stream);
    let seen = provider.saw_hang_up().await;
    provider.release().await;

    let admin = cluster.admin_key().await;
    let mut settled = 0;
    eventually("it is charged", async || {
        settled = standing(&cluster[0], &admin).await["settled"].as_u64().unwrap();
        settled > 0
    })
    .await;
    let bill = provider.settled().await.total;
    let billed = bill.input_tokens + bill.output_tokens;
    assert!((20..500).contains(&seen.output_tokens), "{seen:?}");
    assert!(billed <= settled, "{billed} billed, {settled} charged");
    // The input is charged by a bound of its bytes: some more than the provider counts.
    let input_max = u64::try_from(body.to_string().len()).unwrap();
    assert!(settled <= billed + SLACK + input_max, "{billed} billed, {settled} charged");
}

/// What a process had under way when it was killed is never given back.
#[tokio::test]
async fn streams_under_way_in_a_crash_stay_paid_for() {
    let (provider, mut cluster) = alone("limit: 1000 requests, window: total").await;
    provider.script(json!([{ "hold": { "after_tokens": 1 }, "times": 5 }])).await;
    let client = cluster[0].as_key(WEB);
    let streams = join_all((0..5).map(|_| {
        let client = client.clone();
        async move { client.stream(CHAT, &streamed(question())).await }
    }))
    .await;
    assert!(streams.iter().all(|stream| stream.status == 200));

    cluster.kill(0).await;
    drop(streams);
    provider.release().await;
    let billed = provider.settled().await.total.requests;
    assert_eq!(billed, 5);
    cluster.start_ready(0).await;

    let admin = cluster.admin_key().await;
    let mut now = Value::Null;
    eventually_within(LONG, "the life before is settled", async || {
        now = standing(&cluster[0], &admin).await;
        now["lines"][0]["stage"] == "settled"
    })
    .await;
    let paid = now["settled"].as_u64().unwrap() + now["burned"].as_u64().unwrap();
    assert!((5..100).contains(&paid), "{now}");
    assert_eq!(drain(&cluster[0]).await, 1_000 - paid, "and the rest can be spent");
    assert!(provider.settled().await.total.requests <= 1_000);
}

#[tokio::test]
async fn a_key_that_is_deleted_while_it_spends_is_charged_all_the_same() {
    let (provider, cluster) = alone("limit: 9 requests, window: total").await;
    let operator = cluster.operator(0).await;
    let key = operator.create_key("leaver").await;
    provider.script(json!([{ "hold": { "after_tokens": 1 } }])).await;
    let mut stream = cluster[0].as_key(&key).stream(CHAT, &streamed(question())).await;
    stream.next_text().await;

    operator.revoke_key("leaver").await;
    let path = "/admin/v1/keys/leaver";
    assert_eq!(operator.client().send(http::Method::DELETE, path, "").await.status, 200);

    // A request that had begun runs on.
    provider.release().await;
    stream.rest().await;
    let admin = cluster.admin_key().await;
    eventually("it is charged", async || standing(&cluster[0], &admin).await["settled"] == 1).await;
    assert_eq!(provider.settled().await.total.requests, 1);
}

#[tokio::test]
async fn a_limit_that_is_raised_lets_as_many_more_pass() {
    let provider = provider("8").await;
    let cluster = builder(&provider, "limit: 5 requests, window: total").start().await;
    let drained = async || join_all([0, 1, 2].map(|number| drain(&cluster[number]))).await.iter().sum::<u64>();
    assert_eq!(drained().await, 5);

    change(&cluster, &config(2, "limit: 8 requests, window: total"));

    eventually_within(LONG, "one more passes", async || one_more(&cluster[1]).await == 200).await;
    assert_eq!(drained().await, 2);
    assert_eq!(provider.settled().await.total.requests, 8);
}

/// Another budget of the same name, terms and limit, once the first has gone.
#[tokio::test]
async fn a_budget_deleted_and_made_again_begins_anew() {
    const BUDGET: &str = "limit: 3 requests, window: total";
    let (provider, cluster) = alone(BUDGET).await;
    let admin = cluster.admin_key().await;
    assert_eq!(drain(&cluster[0]).await, 3);

    change(&cluster, &config(2, "").replace("budgets: { b: {  } }", "").replace(", budgets: [b]", ""));
    eventually_within(LONG, "it has gone", async || standing(&cluster[0], &admin).await["settled"].is_null()).await;
    // A call that met it while it went is told to come again.
    eventually_within(LONG, "nobody pays", async || one_more(&cluster[0]).await == 200).await;
    change(&cluster, &config(3, BUDGET));
    // Before anyone spends of it.
    eventually_within(LONG, "it is another", async || standing(&cluster[0], &admin).await["settled"] == 0).await;

    eventually_within(LONG, "it is spent as the first was", async || {
        one_more(&cluster[0]).await == 429 && standing(&cluster[0], &admin).await["settled"] == 3
    })
    .await;
    assert!(provider.settled().await.total.requests >= 7);
}

/// What was settled stays as it was; what comes after costs ten times as much.
#[tokio::test]
async fn a_price_that_is_changed_changes_nothing_that_was_settled() {
    let (_provider, cluster) = alone("limit: $1, window: total").await;
    let (client, admin) = (cluster[0].as_key(WEB), cluster.admin_key().await);
    let settled = async || standing(&cluster[0], &admin).await["settled"].as_u64().unwrap_or_default();
    let (old, new) = ("{ input: $0.15, output: $0.60 }", "{ input: $1.50, output: $6 }");

    let first = client.post(CHAT, &asking("openai/m", "who?")).await;
    eventually("it is charged", async || settled().await > 0).await;
    let (cost, shown) = (settled().await, first.header("x-lea-cost-usd").map(str::to_owned));
    change(&cluster, &config(2, "limit: $1, window: total").replace(old, new));
    let calls = AtomicU64::new(1);
    eventually_within(LONG, "the price is another", async || {
        let answer = client.post(CHAT, &asking("openai/m", "who?")).await;
        calls.fetch_add(1, Ordering::Relaxed);
        answer.status == 200 && answer.header("x-lea-cost-usd") != shown.as_deref()
    })
    .await;

    // All but the last at the old price.
    let before = (calls.load(Ordering::Relaxed) - 1) * cost;
    eventually("one is charged at the new price", async || settled().await == before + 10 * cost).await;
}

/// The budget is the key's, which is told of it.
fn of_the_key(provider: &FakeProvider, budget: &str) -> TestClusterBuilder {
    let config =
        config(1, budget).replace("budgets: [b], timeouts", "timeouts").replace("0001 }", "0001, budgets: [b] }");
    TestCluster::builder(binary!()).config(&config).cluster(FAST).provider("provider", provider)
}

/// Answers of some 100 tokens that nobody capped, asked for by four clients of each node until each is told no; what it was
/// told then, and how much of `limit` the provider had not billed.
async fn spend_uncapped(provider: &FakeProvider, nodes: &[&Member], limit: u64) -> Vec<(String, u64)> {
    let body = || {
        let mut question = question();
        question.as_object_mut().map(|fields| fields.remove("max_tokens"));
        question
    };
    let clients = nodes.iter().flat_map(|node| std::iter::repeat_n(node, 4));
    let spending = clients.map(async |node| {
        let client = node.as_key(WEB).with_deadline(LONG);
        loop {
            let answer = client.post(CHAT, &body()).await;
            if answer.status != 200 {
                let told = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
                assert_eq!(answer.status, 429, "{told}");
                let bill = provider.bill().await.total;
                return (told, limit - bill.input_tokens - bill.output_tokens);
            }
        }
    });
    join_all(spending).await
}

/// What is less than that serves nobody: the shortest answer, and as many tokens of input as a question may have.
const LITTLE: u64 = 256 + 144;

#[tokio::test]
async fn nobody_who_names_no_length_is_refused_while_there_is_room_for_a_short_answer() {
    const LIMIT: u64 = 60_000;
    let provider = provider("100").await;
    let cluster = of_the_key(&provider, &format!("limit: {LIMIT} tokens, window: total"));
    let cluster = cluster.start().await;

    let nodes: Vec<&Member> = cluster.members().iter().collect();
    for (told, left) in spend_uncapped(&provider, &nodes, LIMIT).await {
        assert!(left < LITTLE, "{left}: {told}");
    }
}

/// It died with rights that it fetched ahead: nobody waits for them, and who is told no is told why.
#[tokio::test]
async fn what_a_dead_node_holds_keeps_nobody_from_what_else_there_is() {
    const LIMIT: u64 = 60_000;
    let provider = provider("100").await;
    let cluster = of_the_key(&provider, &format!("limit: {LIMIT} tokens, window: total"));
    let mut cluster = cluster.start().await;
    let (admin, dies) = (cluster.admin_key().await, (cluster.leader().await + 1) % 3);
    let client = cluster[dies].as_key(WEB).with_deadline(LONG);
    let mut capped = question();
    capped["max_tokens"] = 4_000.into();
    provider.script(json!([{ "hold": "before_head" }])).await;
    let mut held = JoinSet::new();
    held.spawn(async move { client.try_send(http::Method::POST, CHAT, capped.to_string()).await.is_ok() });
    provider.arrived(1).await;

    cluster.kill(dies).await;
    assert_eq!(held.join_all().await, [false], "its node is dead");
    provider.clear_script().await;
    let others: Vec<&Member> = [1, 2].map(|next| &cluster[(dies + next) % 3]).to_vec();
    let ends = spend_uncapped(&provider, &others, LIMIT).await;
    let lost = standing(others[0], &admin).await["leased"].as_u64().unwrap_or_default();
    assert!(lost >= 4_000, "{lost}");
    for (told, left) in ends {
        assert!(left < lost + LITTLE, "{left}: {told}");
        assert!(told.contains("left, of which nodes that do not answer hold"), "{told}");
    }
}

/// In Berlin, of twenty-five hours in autumn and of twenty-three in spring.
#[tokio::test]
async fn a_day_ends_at_midnight_however_many_hours_it_has() {
    const LIMIT: u64 = 3;
    const HOUR: i64 = 3_600;
    // 2026-10-25 and 2027-03-28, when clocks are changed: the hour at which each ends, in UTC, and how long it is.
    let days = [(1_792_969_200, 25, "2026-10-25T23:00:00Z"), (1_806_271_200, 23, "2027-03-28T22:00:00Z")];
    let Some(clock) = WallClock::new("spending::a_day_ends_at_midnight_however_many_hours_it_has") else { return };
    clock.put_at(days[0].0 - 12 * HOUR);
    let provider = provider("8").await;
    let budget = format!("limit: {LIMIT} requests, window: day, timezone: Europe/Berlin");
    let mut cluster = builder(&provider, &budget).nodes(1).prepare().await;
    clock.start(&mut cluster).await;
    let admin = cluster.admin_key().await;

    for (midnight, hours, ends) in days {
        clock.put_at(midnight - hours * HOUR + HOUR / 2);
        eventually_within(LONG, "the day has begun", async || {
            standing(&cluster[0], &admin).await["ends"] == ends && one_more(&cluster[0]).await == 200
        })
        .await;
        assert_eq!(1 + drain(&cluster[0]).await, LIMIT);

        clock.put_at(midnight - HOUR / 2);
        assert_eq!(one_more(&cluster[0]).await, 429, "{ends}: it is the same day");
        clock.put_at(midnight);
        eventually_within(LONG, "the next day has begun", async || one_more(&cluster[0]).await == 200).await;
        assert_eq!(1 + drain(&cluster[0]).await, LIMIT);
    }
    assert_eq!(provider.settled().await.total.requests, 4 * LIMIT);
}

/// It holds what it held, and wakes to a world that went on. `LEA_LONG=1` lets it sleep for a minute at least.
#[tokio::test]
async fn a_node_that_is_paused_neither_spends_more_than_it_holds_nor_stops_the_others() {
    const LIMIT: u64 = 120;
    let provider = provider("8").await;
    let cluster = builder(&provider, &format!("limit: {LIMIT} requests, window: total")).start().await;
    for number in 0..30 {
        assert_eq!(one_more(&cluster[number % 3]).await, 200);
    }
    let leader = cluster.leader().await;
    let asleep = (leader + 1) % 3;

    cluster.pause(asleep);
    let awake = [leader, (leader + 2) % 3];
    join_all(awake.map(|number| drain(&cluster[number]))).await;
    if std::env::var_os("LEA_LONG").is_some() {
        tokio::time::sleep(Duration::from_mins(1)).await;
    }
    cluster.resume(asleep);

    eventually_within(LONG, "it is awake, and spends what it holds", async || one_more(&cluster[asleep]).await == 429)
        .await;
    let spent = async || provider.settled().await.total.requests;
    eventually_within(LONG, "all of it is spent", async || {
        one_more(&cluster[leader]).await;
        spent().await == LIMIT
    })
    .await;
    // It may notice only now that it slept, and has to hear from the group before it serves again.
    eventually_within(LONG, "it says no, too", async || one_more(&cluster[asleep]).await == 429).await;
    assert_eq!(spent().await, LIMIT);
}

/// What the original spent since the copy was made is proved by no copy: it stays burned, and nothing is spent twice.
#[tokio::test]
async fn a_copied_data_directory_spends_nothing_twice() {
    const LIMIT: u64 = 60;
    let provider = provider("8").await;
    let mut cluster = builder(&provider, &format!("limit: {LIMIT} requests, window: total")).start().await;
    let copy = cluster.add();
    // Who led must not lead on beside its copy.
    let original = cluster.leader().await;
    for _ in 0..3 {
        assert_eq!(one_more(&cluster[original]).await, 200);
    }
    cluster.pause(original);
    copy_folder(&cluster[original].data_dir(), &cluster[copy].data_dir());
    cluster.resume(original);
    // All at once, so that most of it is not told yet.
    let since = join_all((0..30).map(|_| one_more(&cluster[original]))).await;
    assert_eq!(since, [200; 30]);
    cluster.pause(original);

    cluster.start_with(copy, &["--adopt-data-dir"]);
    cluster.ready(copy).await;
    cluster.resume(original);
    cluster.gone(original).await;
    for node in (0..cluster.len()).filter(|node| *node != original) {
        eventually_within(LONG, "it serves", async || one_more(&cluster[node]).await != 503).await;
        drain(&cluster[node]).await;
    }

    let spent = provider.settled().await.total.requests;
    let admin = cluster.admin_key().await;
    let standing = standing(&cluster[copy], &admin).await;
    let [settled, burned] = ["settled", "burned"].map(|part| standing[part].as_u64().unwrap());
    assert!(spent <= LIMIT && spent <= settled + burned, "{spent}: {standing}");
    assert_eq!(settled + burned, LIMIT, "nothing is left: {standing}");
}

/// The next day's money can be had a day early by such a clock; never twice.
#[tokio::test]
async fn a_clock_that_jumps_a_day_and_back_spends_no_day_twice() {
    const LIMIT: u64 = 10;
    let Some(clock) = WallClock::new("spending::a_clock_that_jumps_a_day_and_back_spends_no_day_twice") else { return };
    let provider = provider("8").await;
    let mut cluster = builder(&provider, &format!("limit: {LIMIT} requests, window: day")).prepare().await;
    clock.start(&mut cluster).await;
    let first = join_all([0, 1, 2].map(|number| drain(&cluster[number]))).await;
    assert_eq!(first.iter().sum::<u64>(), LIMIT);

    clock.put("+1d");
    eventually_within(LONG, "the next day has begun", async || one_more(&cluster[0]).await == 200).await;
    let second = join_all([0, 1, 2].map(|number| drain(&cluster[number]))).await;
    assert_eq!(1 + second.iter().sum::<u64>(), LIMIT);

    clock.put("+0");
    for number in [0, 1, 2] {
        assert_eq!(one_more(&cluster[number]).await, 429, "yesterday is over");
    }
    assert_eq!(provider.settled().await.total.requests, 2 * LIMIT);
}

/// Only who leads says when a window begins. Whoever leads next and thinks it is the day before begins none again.
#[tokio::test]
async fn a_leader_that_is_a_day_ahead_spends_no_day_twice() {
    const LIMIT: u64 = 10;
    const NAME: &str = "spending::a_leader_that_is_a_day_ahead_spends_no_day_twice";
    let clocks: Option<Vec<WallClock>> = (0..3).map(|_| WallClock::new(NAME)).collect();
    let Some(clocks) = clocks else { return };
    let provider = provider("8").await;
    let mut cluster = builder(&provider, &format!("limit: {LIMIT} requests, window: day")).prepare().await;
    WallClock::start_each(&clocks.iter().collect::<Vec<_>>(), &mut cluster).await;
    let first = join_all([0, 1, 2].map(|number| drain(&cluster[number]))).await;
    assert_eq!(first.iter().sum::<u64>(), LIMIT);

    let leader = cluster.leader().await;
    clocks[leader].put("+1d");
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    eventually_within(LONG, "the next day has begun", async || one_more(&cluster[others[0]]).await == 200).await;
    let second = join_all([0, 1, 2].map(|number| drain(&cluster[number]))).await;
    assert_eq!(1 + second.iter().sum::<u64>(), LIMIT);

    cluster.kill(leader).await;
    for other in others {
        eventually_within(LONG, "it is known that nothing is left", async || one_more(&cluster[other]).await == 429)
            .await;
    }
    assert_eq!(provider.settled().await.total.requests, 2 * LIMIT);
}

#[tokio::test]
async fn a_thousand_budgets_hold_beside_each_other_on_three_nodes() {
    const AT_ONCE: usize = 100;
    let count = 1_000;
    let budgets: Vec<String> =
        (0..count).map(|number| format!("b{number}: {{ limit: 2 requests, window: day }}")).collect();
    let keys = (0..count).map(|number| {
        format!("k{number}: {{ secret: a-key-that-has-a-budget-of-its-own-{number:04}, budgets: [b{number}] }}")
    });
    let config = format!(
        "resources_revision: 1\nproviders: {{ openai: {{ api_key: upstream, base_url: \"{{provider}}/v1\" }} }}\n\
         keys: {{ {} }}\nbudgets: {{ {} }}\n",
        keys.collect::<Vec<_>>().join(", "),
        budgets.join(", ")
    );
    let provider = provider("8").await;
    let cluster = TestCluster::builder(binary!()).config(&config).provider("provider", &provider).start().await;

    let calls = stream::iter((0..count).map(|number| {
        let key = format!("a-key-that-has-a-budget-of-its-own-{number:04}");
        let cluster = &cluster;
        async move {
            let mut each = join_all([0, 1, 2].map(|node| {
                let client = cluster[node].as_key(&key).with_deadline(LONG);
                async move {
                    let mut question = question();
                    question["max_tokens"] = 9.into();
                    client.post(CHAT, &question).await.status
                }
            }))
            .await;
            each.sort_unstable();
            each
        }
    }))
    .buffered(AT_ONCE)
    .collect::<Vec<_>>()
    .await;

    let odd: Vec<_> = calls.iter().enumerate().filter(|(_, statuses)| **statuses != [200, 200, 429]).collect();
    assert!(odd.is_empty(), "{} of {count}: {:?}", odd.len(), odd.iter().take(9).collect::<Vec<_>>());
    assert_eq!(provider.settled().await.total.requests, 2 * count);
}

/// A soft budget sets aside less than an answer may cost, and records all that it did.
#[tokio::test]
async fn a_soft_budget_records_what_it_was_exceeded_by() {
    let provider = provider("3000").await;
    let cluster = builder(&provider, "limit: 2000 tokens, window: total, mode: soft").nodes(1).start().await;
    let client = cluster[0].as_key(WEB).with_deadline(LONG);
    let long = json!({ "model": "lasting", "max_tokens": 9000, "messages": [{ "role": "user", "content": "go on" }] });

    assert_eq!(client.post(CHAT, &long).await.status, 200);
    assert_eq!(client.post(CHAT, &long).await.status, 429, "what was exceeded is known");

    let bill = provider.settled().await.total;
    let admin = cluster.admin_key().await;
    eventually("all is recorded", async || {
        standing(&cluster[0], &admin).await["settled"] == bill.input_tokens + bill.output_tokens
    })
    .await;
    assert!(bill.output_tokens > 2_000, "{bill:?}");
}

#[tokio::test]
async fn a_model_without_a_price_is_counted_at_the_one_that_is_assumed_or_refused() {
    let provider = provider("100").await;
    let unpriced = config(1, "limit: $1, window: total, on_unknown_price: { assume: { input: $1, output: $10 } }")
        .replace("prices:", "#prices:");
    let node = TestCluster::builder(binary!()).config(&unpriced).cluster(FAST).provider("provider", &provider);
    let cluster = node.nodes(1).start().await;
    let ask = async || cluster[0].as_key(WEB).post(CHAT, &asking("lasting", "who?")).await;

    assert_eq!(ask().await.status, 200);
    let bill = provider.settled().await.total;
    let assumed = bill.input_tokens * 1_000 + bill.output_tokens * 10_000;
    let admin = cluster.admin_key().await;
    eventually("it is counted", async || standing(&cluster[0], &admin).await["settled"] == assumed).await;

    let refusing = config(2, "limit: $1, window: total").replace("prices:", "#prices:");
    cluster.write_config("edge-0", &refusing);
    cluster.hang_up(0);
    eventually("it is refused", async || ask().await.status == 403).await;
    assert_eq!(ask().await.json()["error"]["code"], "model_not_priced");
}

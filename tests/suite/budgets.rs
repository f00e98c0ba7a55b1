//! Budgets, seen from outside: the provider's own bill says what was spent.

use harness::{
    DEADLINE, FakeProvider, LONG, Seen, TestCluster, TestClusterBuilder, TestNetwork, TestNode, binary,
    eventually_within, skipped,
};
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cluster::{FAST, one_leader, question};

/// What the simulator bills: a token of input 150 nano-dollars, one of output 600.
const CONFIG: &str = r#"
resources_revision: 1
providers: { openai: { api_key: upstream, base_url: "{provider}/v1" } }
prices: { openai/m: { input: $0.15, output: $0.60 } }
keys: { web: { secret: the-key-that-every-file-declares-0001, budgets: [b] } }
budgets: { b: { limit: LIMIT, window: total } }
"#;

const WEB: &str = "the-key-that-every-file-declares-0001";

const NANO: u64 = 1_000_000_000;

const STANDING: &str = "/admin/v1/budgets/b/standing";

/// Answers of as many tokens as are asked for at most, so that a call costs what was set aside for its output.
async fn provider(tokens: u64) -> FakeProvider {
    FakeProvider::builder(binary!()).arguments(&["--answer-tokens", &tokens.to_string()]).start().await
}

fn builder(provider: &FakeProvider, limit: &str) -> TestClusterBuilder {
    let config = CONFIG.replace("LIMIT", limit);
    TestCluster::builder(binary!()).config(&config).cluster(FAST).provider("provider", provider)
}

/// `None` where there are no namespaces to be had.
fn network() -> Option<TestNetwork> {
    let network = TestNetwork::new();
    network.map_err(|why| skipped("budgets::a_budget_holds_while_the_network_is_split", &why)).ok()
}

/// A question that no cache has the answer to, with at most so many tokens of answer.
fn asking(tokens: u64) -> Value {
    let mut question = question();
    question["max_tokens"] = tokens.into();
    question
}

/// Six calls of some $0.0006 over three nodes on a budget of $0.002: three pass, and who is refused need not try again.
#[tokio::test]
async fn six_calls_on_a_budget_for_three() {
    let provider = provider(1_000).await;
    let cluster = builder(&provider, "$0.002").start().await;

    let mut answers = Vec::new();
    for number in 0..6 {
        answers.push(cluster[number % 3].as_key(WEB).post("/v1/chat/completions", &asking(1_000)).await);
    }

    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429]);
    let refused = &answers[3];
    assert_eq!(refused.json()["error"]["code"], "budget_exceeded");
    let told = refused.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(told.contains("`b` ($0.002 in total, resets never) has $0.0001"), "{told}");
    assert!(told.contains("left, and this request may cost $0.0006"), "{told}");
    assert_eq!((refused.header("x-should-retry"), refused.header("retry-after")), (Some("false"), None));
    let bill = provider.settled().await;
    assert_eq!(bill.total.requests, 3);
    assert!(bill.total.cost_nano_usd <= NANO / 500, "{}", bill.total.cost_nano_usd);
    let operator = cluster[1].admin(&cluster.admin_key().await);
    eventually_within(DEADLINE, "every node has reported what it used", async || {
        let standing = operator.get(STANDING).await.json();
        standing["settled"] == bill.total.cost_nano_usd && standing["limit"] == NANO / 500 && standing["burned"] == 0
    })
    .await;
    let config = cluster[0].config_path().display().to_string();
    let shown = harness::run(cluster.binary(), &["budget", "show", "b", "-c", &config], &[]).await;
    assert!(shown.stdout.contains("settled    $0.0018"), "{shown:?}");
    let all = harness::run(cluster.binary(), &["budget", "show", "-c", &config], &[]).await;
    let line = all.stdout.lines().nth(1).unwrap();
    assert!(line.starts_with("b     $0.002 in total  $0.0018") && line.ends_with("never"), "{all:?}");
    assert_eq!(operator.get("/admin/v1/standings").await.json()["items"][0]["settled"], bill.total.cost_nano_usd);
}

/// In either dialect: which budget, of those of the key, how much it has and when it has that again.
#[tokio::test]
async fn who_is_over_a_budget_is_told_which_and_until_when() {
    let provider = provider(10).await;
    let config = CONFIG.replace("LIMIT, window: total", "1 request, window: month, timezone: Asia/Kathmandu");
    let config = config
        .replace("budgets: [b]", "budgets: [wide, b]")
        .replace("budgets: {", "budgets: { wide: { limit: $7, window: day },");
    let cluster = TestCluster::builder(binary!()).config(&config).cluster(FAST).provider("provider", &provider);
    let cluster = cluster.nodes(1).start().await;
    let client = cluster[0].as_key(WEB);
    assert_eq!(client.post("/v1/chat/completions", &asking(10)).await.status, 200);

    let ends = cluster[0].admin(&cluster.admin_key().await).get(STANDING).await.json()["ends"].clone();
    let terms = format!("`b` (1 requests a month, resets {}) is used up", ends.as_str().unwrap());
    let message = json!({ "model": "openai/m", "max_tokens": 10, "messages": [{ "role": "user", "content": "who?" }] });
    for (path, body) in [("/v1/chat/completions", asking(10)), ("/v1/messages", message)] {
        let refused = client.post(path, &body).await;
        assert_eq!((refused.status, refused.header("x-should-retry")), (429, Some("false")), "{path}");
        let told = refused.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(told.contains(&terms) && !told.contains("wide"), "{path}: {told}");
    }
}

/// Until each node has said no twenty times in a row: the provider's bill ends under the limit, and within a cent of it.
#[tokio::test]
async fn a_dollar_is_spent_to_the_cent_by_three_nodes() {
    let provider = provider(1_000).await;
    let cluster = builder(&provider, "$1").start().await;

    let mut loops = JoinSet::new();
    for number in 0..3 {
        let client = cluster[number].as_key(WEB).with_deadline(LONG);
        loops.spawn(async move {
            let mut denied = 0;
            while denied < 20 {
                let status = client.post("/v1/chat/completions", &asking(1_000)).await.status;
                assert!(status == 200 || status == 429, "{status}");
                denied = if status == 429 { denied + 1 } else { 0 };
            }
        });
    }
    loops.join_all().await;

    let bill = provider.settled().await.total.cost_nano_usd;
    assert!((NANO / 100 * 99..=NANO).contains(&bill), "{bill}");
    let operator = cluster[1].admin(&cluster.admin_key().await);
    eventually_within(DEADLINE, "what is charged is what is billed", async || {
        operator.get(STANDING).await.json()["settled"] == bill
    })
    .await;
}

/// Twice as many cents at once as there is room for, over three nodes: as many pass as there is room for, and no more.
#[tokio::test]
async fn as_many_pass_at_once_as_a_budget_has_room_for() {
    // A cent but for a thousandth, so that a few tokens of input fit beside a hundred tokens of output.
    let prices = ["--answer-tokens", "100", "--input-price", "1", "--output-price", "99900"];
    let provider = FakeProvider::builder(binary!()).arguments(&prices).start().await;
    let config = CONFIG.replace("input: $0.15, output: $0.60", "input: $0.001, output: $99.90");
    let cluster = TestCluster::builder(binary!()).config(&config.replace("LIMIT", "$1")).cluster(FAST);
    let cluster = cluster.provider("provider", &provider).start().await;

    let mut calls = JoinSet::new();
    for number in 0..200 {
        let client = cluster[number % 3].as_key(WEB).with_deadline(LONG);
        calls.spawn(async move { client.post("/v1/chat/completions", &asking(100)).await.status });
    }
    let statuses = calls.join_all().await;

    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 100);
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 100);
    let bill = provider.settled().await.total;
    assert_eq!(bill.requests, 100);
    assert!((NANO / 1_000 * 999..=NANO).contains(&bill.cost_nano_usd), "{bill:?}");
}

/// Until twenty denials in a row: the bill ends under the limit, and close to it. The leader is killed at half.
#[tokio::test]
async fn a_budget_holds_while_the_leader_is_killed() {
    const LIMIT: u64 = NANO / 20;
    let provider = provider(100).await;
    let mut cluster = builder(&provider, "$0.05").start().await;
    one_leader(&cluster, &[0, 1, 2]).await;
    let leader = cluster.leader().await;

    let mut loops = JoinSet::new();
    for number in (0..3).filter(|number| *number != leader) {
        let client = cluster[number].as_key(WEB).with_deadline(LONG);
        loops.spawn(async move {
            let (mut denied, mut others) = (0, Vec::new());
            while denied < 20 {
                let body = asking(100).to_string();
                match client.try_send(Method::POST, "/v1/chat/completions", body).await {
                    Ok(reply) if reply.status == 200 => denied = 0,
                    Ok(reply) if reply.status == 429 => denied += 1,
                    Ok(reply) => others.push(reply.status),
                    Err(error) => panic!("{error}"),
                }
            }
            others
        });
    }
    eventually_within(LONG, "half is spent", async || provider.bill().await.total.cost_nano_usd > LIMIT / 2).await;
    cluster.kill(leader).await;

    // While nobody leads, nobody says no: who cannot be served is told to come again, or waits until one leads.
    let others = loops.join_all().await.concat();
    assert!(others.iter().all(|status| *status == 503), "{others:?}");
    let spent = provider.settled().await.total.cost_nano_usd;
    assert!(spent <= LIMIT, "{spent}");
    assert!(spent >= LIMIT / 100 * 80, "{spent}: what the dead node holds is all that may be missing");

    cluster.start_ready(leader).await;
    let client = cluster[leader].as_key(WEB);
    eventually_within(LONG, "what the dead life held is given back", async || {
        let _answer = client.post("/v1/chat/completions", &asking(100)).await;
        provider.bill().await.total.cost_nano_usd >= LIMIT / 100 * 98
    })
    .await;
    assert!(provider.settled().await.total.cost_nano_usd <= LIMIT);
}

/// Two of three nodes die: the third spends what it holds and its overdraft, and then says that nobody can be asked, not that
/// nothing is left. When they are back what it overspent is known, and nobody spends more.
#[tokio::test]
async fn an_overdraft_is_spent_where_no_majority_can_be_asked() {
    const LIMIT: u64 = 12;
    const OVERDRAFT: u64 = 4;
    let provider = provider(10).await;
    let config = CONFIG.replace("limit: LIMIT", "limit: 12 requests, on_no_quorum: open, overdraft: 4 requests");
    let cluster = TestCluster::builder(binary!()).config(&config).provider("provider", &provider);
    let mut cluster = cluster.cluster(&FAST.replace("stale_max: 3s", "stale_max: 1m")).start().await;
    one_leader(&cluster, &[0, 1, 2]).await;
    let call = async |client: &harness::Client| client.post("/v1/chat/completions", &asking(10)).await;
    let clients: Vec<_> = (0..3).map(|number| cluster[number].as_key(WEB).with_deadline(LONG)).collect();
    for client in &clients {
        assert_eq!(call(client).await.status, 200);
    }

    cluster.kill(1).await;
    cluster.kill(2).await;
    let refused = loop {
        let answer = call(&clients[0]).await;
        if answer.status != 200 {
            break answer;
        }
    };
    let requests = async || provider.settled().await.total.requests;
    let spent = requests().await;
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (503, Some("cluster_unavailable")));
    assert!((3 + OVERDRAFT..=LIMIT + OVERDRAFT).contains(&spent), "{spent}");

    cluster.start(1);
    cluster.start_ready(2).await;
    cluster.ready(1).await;
    let operator = cluster[0].admin(&cluster.admin_key().await);
    eventually_within(LONG, "all of it is known", async || {
        let standing = operator.get(STANDING).await.json();
        standing["settled"].as_u64().unwrap_or_default() + standing["burned"].as_u64().unwrap_or_default() >= spent
    })
    .await;
    for client in &clients {
        while call(client).await.status == 200 {}
        assert_eq!(call(client).await.status, 429);
    }
    assert!(requests().await <= LIMIT.max(spent), "what was overspent is paid first");
}

/// Each end user has the limit for himself, on all nodes together, and in whichever dialect the request names him.
#[tokio::test]
async fn each_end_user_has_a_limit_of_his_own() {
    let provider = provider(10).await;
    let config = CONFIG.replace("limit: LIMIT", "limit: 3 requests, each: end_user");
    let cluster = TestCluster::builder(binary!()).config(&config).cluster(FAST).provider("provider", &provider);
    let cluster = cluster.start().await;
    let call = async |number: usize, user: Option<&str>| {
        let mut body = asking(10);
        if let Some(user) = user {
            body["user"] = user.into();
        }
        cluster[number % 3].as_key(WEB).with_deadline(LONG).post("/v1/chat/completions", &body).await.status
    };

    for user in [Some("anna"), Some("ben"), None] {
        for number in 0..3 {
            assert_eq!(call(number, user).await, 200, "{user:?}");
        }
        for number in 0..3 {
            assert_eq!(call(number, user).await, 429, "{user:?}");
        }
    }
    let mut message =
        json!({ "model": "openai/m", "max_tokens": 10, "messages": [{ "role": "user", "content": "who?" }] });
    for (user, status) in [("anna", 429), ("carl", 200)] {
        message["metadata"] = json!({ "user_id": user });
        assert_eq!(cluster[0].as_key(WEB).post("/v1/messages", &message).await.status, status, "{user}");
    }

    let operator = cluster[1].admin(&cluster.admin_key().await);
    let mut of = json!(null);
    eventually_within(DEADLINE, "all is reported", async || {
        of = operator.get(STANDING).await.json();
        of["settled"] == 10
    })
    .await;
    assert_eq!((&of["each"], &of["end_users"], &of["limit"]), (&json!("end_user"), &json!(3), &json!(3)), "{of}");
    assert_eq!(of["remaining_high"], 0, "who has the least: {of}");
    let third = operator.get(&format!("{STANDING}?end_user=carl")).await.json();
    assert_eq!((&third["settled"], &third["remaining_high"]), (&json!(1), &json!(2)), "{third}");
    assert_eq!(provider.settled().await.total.requests, 10);
}

/// What was granted to a process that was killed is given back by the next, but for what it may have spent.
#[tokio::test]
async fn a_restart_gives_back_what_was_not_spent() {
    const SPENT: u64 = 40;
    let provider = provider(10).await;
    let mut cluster = builder(&provider, "1000 requests").nodes(1).start().await;
    for _ in 0..SPENT {
        assert_eq!(cluster[0].as_key(WEB).post("/v1/chat/completions", &asking(10)).await.status, 200);
    }
    let line = |standing: &Value| standing["lines"][0].clone();
    let operator = cluster[0].admin(&cluster.admin_key().await);
    let before = line(&operator.get(STANDING).await.json());
    let granted = before["granted"].as_u64().unwrap();
    assert!(granted > SPENT, "it fetches ahead: {before}");

    cluster.kill(0).await;
    cluster.start_ready(0).await;

    let operator = cluster[0].admin(&cluster.admin_key().await);
    let mut standing = Value::Null;
    eventually_within(LONG, "the life before is settled", async || {
        standing = operator.get(STANDING).await.json();
        line(&standing)["stage"] == "settled"
    })
    .await;
    let held = granted - line(&standing)["returned"].as_u64().unwrap();
    assert!(held >= SPENT, "what was spent is not given back: {standing}");
    assert!(held < granted, "of {granted}: {standing}");
    assert_eq!(standing["remaining_high"], 1_000 - held, "{standing}");
}

/// Who names no length gets all that the model writes while the budget has room for that; then what is left, and is told so.
#[tokio::test]
async fn an_answer_that_nobody_capped_is_as_long_as_the_budget_allows() {
    let provider = provider(20_000).await;
    let cluster = builder(&provider, "600000 tokens").nodes(1).start().await;
    let client = cluster[0].as_key(WEB).with_deadline(LONG);
    let ask = async || {
        let mut body = question();
        body.as_object_mut().unwrap().remove("max_tokens");
        client.post("/v1/chat/completions", &body).await
    };

    let mut answers = vec![ask().await];
    assert_eq!((answers[0].status, answers[0].header("x-lea-max-tokens")), (200, None), "{}", answers[0].text());
    loop {
        let answer = ask().await;
        if answer.status == 429 {
            break;
        }
        answers.push(answer);
    }

    let seen = provider.requests().await;
    let cap = |seen: &Seen| serde_json::from_str::<Value>(&seen.body).unwrap()["max_completion_tokens"].clone();
    assert_eq!(cap(&seen[0]), Value::Null);
    let caps: Vec<u64> = answers.iter().filter_map(|answer| answer.header("x-lea-max-tokens")?.parse().ok()).collect();
    assert!(caps.is_sorted_by(|before, after| before >= after) && caps[0] > 8_192, "{caps:?}");
    assert!(caps.iter().filter(|cap| **cap < 4_096).count() <= 3, "only the last ones are short: {caps:?}");
    assert_eq!(cap(seen.last().unwrap()), caps[caps.len() - 1]);
    let bill = provider.settled().await.total;
    assert!(bill.input_tokens + bill.output_tokens <= 600_000, "{bill:?}");
    assert!(bill.input_tokens + bill.output_tokens >= 599_000, "{bill:?}");
}

/// Below what is spent already, every node says no.
#[tokio::test]
async fn a_limit_lowered_below_what_is_spent_stops_every_node() {
    let provider = provider(10).await;
    let cluster = builder(&provider, "1000 requests").start().await;
    for number in 0..9 {
        assert_eq!(cluster[number % 3].as_key(WEB).post("/v1/chat/completions", &asking(10)).await.status, 200);
    }

    let lowered = CONFIG.replace("LIMIT", "5 requests").replace("resources_revision: 1", "resources_revision: 2");
    cluster.write_config("edge-0", &lowered);
    cluster.hang_up(0);

    for number in 0..3 {
        let client = cluster[number].as_key(WEB).with_deadline(LONG);
        eventually_within(LONG, "it says no", async || {
            client.post("/v1/chat/completions", &asking(10)).await.status == 429
        })
        .await;
        assert_eq!(client.post("/v1/chat/completions", &asking(10)).await.status, 429, "and goes on to");
    }
    let over = provider.settled().await.total.requests - 5;
    let config = cluster[0].config_path().display().to_string();
    eventually_within(DEADLINE, "all is reported", async || {
        let shown = harness::run(cluster.binary(), &["budget", "show", "b", "-c", &config], &[]).await;
        shown.stdout.contains(&format!("remaining  over by {over} requests\n"))
    })
    .await;
    let operator = cluster[2].admin(&cluster.admin_key().await);
    assert_eq!(operator.get(STANDING).await.json()["over"], over);
}

/// Cut off, a node spends what it holds and no more; the others go on. All together stay within the limit.
#[tokio::test]
async fn a_budget_holds_while_the_network_is_split() {
    const LIMIT: u64 = 300;
    let Some(network) = network() else { return };
    let provider = FakeProvider::builder(binary!()).arguments(&["--answer-tokens", "10"]).at(network.own_address());
    let provider = provider.start().await;
    let cluster = builder(&provider, &format!("{LIMIT} requests")).network(network).start().await;
    let leader = cluster.leader().await;
    let (alone, others) = ((leader + 1) % 3, [leader, (leader + 2) % 3]);
    for number in 0..30 {
        assert_eq!(cluster[number % 3].as_key(WEB).post("/v1/chat/completions", &asking(10)).await.status, 200);
    }

    cluster.network().split(&[alone], &others);
    let mut loops = JoinSet::new();
    for number in 0..3 {
        let client = cluster[number].as_key(WEB).with_deadline(LONG);
        // Until it is told no, or, where nobody can say no, that nobody can be asked.
        loops.spawn(async move {
            loop {
                let status = client.post("/v1/chat/completions", &asking(10)).await.status;
                if status != 200 {
                    return (number, status);
                }
            }
        });
    }
    let ends = loops.join_all().await;

    for (number, status) in ends {
        assert_eq!(status, if number == alone { 503 } else { 429 }, "node {number}");
    }
    let spent = provider.settled().await.total.requests;
    assert!(spent <= LIMIT, "{spent}");
    cluster.network().heal();
    // What the one that was cut off holds and does not use comes back, and is spent by whoever asks.
    let client = cluster[leader].as_key(WEB).with_deadline(LONG);
    eventually_within(LONG, "all of it is spent", async || {
        let _answer = client.post("/v1/chat/completions", &asking(10)).await;
        provider.bill().await.total.requests == LIMIT
    })
    .await;
    assert_eq!(client.post("/v1/chat/completions", &asking(10)).await.status, 429);
    assert_eq!(provider.settled().await.total.requests, LIMIT);
    let operator = cluster[leader].admin(&cluster.admin_key().await);
    eventually_within(LONG, "the ledger has what the provider bills, and nothing was burned", async || {
        let standing = operator.get(STANDING).await.json();
        standing["settled"] == LIMIT && standing["burned"] == 0
    })
    .await;
}

/// A budget belongs to its name for as long as it is there: made again, it is another.
#[tokio::test]
async fn a_budget_made_again_begins_anew() {
    let provider = provider(10).await;
    let config = CONFIG.replace("LIMIT", "2 requests");
    let node = TestNode::builder(binary!()).config(&config).provider("provider", &provider).start().await;
    let web = node.as_key(WEB);
    let ask = async || web.post("/v1/chat/completions", &asking(10)).await.status;
    assert_eq!([ask().await, ask().await, ask().await], [200, 200, 429]);

    let raised = CONFIG.replace("LIMIT", "3 requests");
    node.write_config(&raised);
    node.reload();
    eventually_within(DEADLINE, "a higher limit lets one more pass", async || ask().await == 200).await;
    assert_eq!(ask().await, 429);
    node.write_config(&raised.replace("total", "month"));
    node.reload();
    eventually_within(DEADLINE, "other terms make another budget", async || ask().await == 200).await;

    assert!(provider.settled().await.total.requests >= 4);
}

/// A call that must not be made costs nothing: nothing is sent, and money that nobody can count is not spent.
#[tokio::test]
async fn a_budget_in_money_takes_no_model_without_a_price() {
    let provider = provider(10).await;
    let config = CONFIG.replace("LIMIT", "$1");
    let node = TestNode::builder(binary!()).config(&config).provider("provider", &provider).start().await;
    let mut unpriced = asking(10);
    unpriced["model"] = json!("openai/nobody-knows-this-one");

    let answer = node.as_key(WEB).post("/v1/chat/completions", &unpriced).await;

    assert_eq!((answer.status, &answer.json()["error"]["code"]), (403, &json!("model_not_priced")));
    assert_eq!(provider.bill().await.total.requests, 0);
}

/// Of two targets the budget has room for the cheaper one only. That the other is too dear is no last word while the cheaper
/// one may answer: not where it fails, and not where its breaker is open, when it gets a call all the same.
#[tokio::test]
async fn a_target_too_dear_does_not_hide_that_another_may_be_tried_again() {
    let provider = provider(10).await;
    let config = r#"
providers:
  cheap: { kind: openai, api_key: cheap, base_url: "{provider}/v1", breaker: { failures_max: 2, open_for: 10m } }
  dear: { kind: openai, api_key: dear, base_url: "{provider}/v1" }
prices: { cheap/m: { input: $0.15, output: $0.60 }, dear/m: { input: $1000, output: $1000 } }
routes: { both: { targets: [cheap/m, dear/m], retries: { attempts_max: 2 } } }
keys: { web: { secret: the-key-that-every-file-declares-0001, budgets: [b] } }
budgets: { b: { limit: $0.01, window: total } }
"#;
    let node = TestNode::builder(binary!()).config(config).provider("provider", &provider).start().await;
    let ask = async || {
        let mut question = asking(10);
        question["model"] = json!("both");
        node.as_key(WEB).post("/v1/chat/completions", &question).await
    };

    provider.script(json!([{ "status": 500, "times": 2 }])).await;
    for _ in 0..2 {
        let failed = ask().await;
        assert_eq!((failed.status, failed.header("x-should-retry")), (502, None), "{}", failed.text());
    }
    let asked = ask().await;
    assert_eq!((asked.status, asked.header("x-lea-provider")), (200, Some("cheap")), "{}", asked.text());

    let mut dear = asking(10);
    dear["model"] = json!("dear/m");
    let refused = node.as_key(WEB).post("/v1/chat/completions", &dear).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("budget_exceeded")));
    assert!(provider.requests().await.iter().all(|seen| seen.key != "dear"));
}

/// A disk that proves nothing any more burns what its process held, until an operator says what was really spent.
#[tokio::test]
async fn what_was_burned_is_given_back_on_an_operators_word() {
    const LIMIT: u64 = 60;
    const SPENT: u64 = 20;
    const RECONCILE: &str = "/admin/v1/budgets/b/reconcile";
    let provider = provider(10).await;
    let mut cluster = builder(&provider, &format!("{LIMIT} requests")).nodes(1).start().await;
    let client = cluster[0].as_key(WEB).with_deadline(LONG);
    let ask = async || client.post("/v1/chat/completions", &asking(10)).await.status;
    for _ in 0..SPENT {
        assert_eq!(ask().await, 200);
    }
    let operator = cluster.operator(0).await;
    let line = operator.get(STANDING).await.json()["lines"][0].clone();
    let said = |used: Value| json!({ "node": line["node"], "incarnation": line["incarnation"], "used": used });
    let lives = operator.try_post(RECONCILE, &said(json!(SPENT))).await.unwrap_err();
    assert_eq!((lives.status, lives.code.as_str()), (409, "not_over"), "{lives:?}");

    cluster.kill(0).await;
    cluster.start_with(0, &["--adopt-data-dir"]);
    cluster.ready(0).await;
    let standing = operator.get(STANDING).await.json();
    assert_eq!(standing["lines"][0]["stage"], "ended", "{standing}");
    assert!(standing["burned"].as_u64().unwrap() > 0, "{standing}");
    while ask().await == 200 {}
    let spent = provider.settled().await.total.requests;
    assert!(spent < LIMIT, "what is burned is not spent again: {spent}");

    let more = operator.try_post(RECONCILE, &said(json!(LIMIT + 1))).await.unwrap_err();
    assert_eq!((more.status, more.code.as_str()), (400, "invalid"), "{more:?}");
    let nobody = json!({ "node": "edge-7", "incarnation": 1, "used": 0 });
    let nobody = operator.try_post(RECONCILE, &nobody).await.unwrap_err();
    assert_eq!(nobody.status, 404);
    assert!(nobody.message.contains(line["node"].as_str().unwrap()), "{nobody:?}");
    let (node, incarnation) = (line["node"].as_str().unwrap(), line["incarnation"].to_string());
    let config = cluster[0].config_path().display().to_string();
    let command = ["budget", "reconcile", "b", "--node", node, "--incarnation", &incarnation, "-c", &config];
    let used = ["--used", &format!("{SPENT} requests")];
    let shown = harness::run(cluster.binary(), &[&command[..], &used[..]].concat(), &[]).await;

    assert!(shown.status.success() && shown.stdout.contains(" requests given back"), "{shown:?}");
    assert!(shown.stdout.contains("burned     0 requests"), "{shown:?}");
    eventually_within(LONG, "all of it is spent", async || {
        ask().await;
        provider.bill().await.total.requests == LIMIT
    })
    .await;
    assert_eq!(ask().await, 429);
    assert_eq!(provider.settled().await.total.requests, LIMIT);
    let audit = operator.get("/admin/v1/audit?limit=1000").await.json();
    let mut entries = audit["items"].as_array().unwrap().iter().filter(|entry| entry["kind"] == "budgets");
    let entry = entries.rfind(|entry| entry["action"] == "reconcile").expect("a line in the audit");
    assert_eq!((&entry["name"], &entry["who"]), (&json!("b"), &json!("first-admin")), "{entry}");
    let outcome = entry["outcome"].as_str().unwrap();
    assert!(outcome.starts_with("done: budget `b`, window 0, node "), "{entry}");
    assert!(outcome.contains(&format!("{SPENT} requests said to be used; used {SPENT} requests, before ")), "{entry}");
    assert!(outcome.contains("; burned 0 requests, before ") && outcome.contains("; returned "), "{entry}");
}

/// A node and its disk are lost for good: once it is taken out, what it held is given back the same way.
#[tokio::test]
async fn what_a_lost_node_held_is_given_back_once_it_is_taken_out() {
    let provider = provider(10).await;
    let mut cluster = builder(&provider, "1000 requests").start().await;
    let leader = cluster.leader().await;
    let (lost, left) = ((leader + 1) % 3, leader);
    for _ in 0..20 {
        assert_eq!(cluster[lost].as_key(WEB).post("/v1/chat/completions", &asking(10)).await.status, 200);
    }
    let operator = cluster.operator(left).await;
    let line = operator.get(STANDING).await.json()["lines"][0].clone();
    let id = line["node"].as_str().unwrap().to_owned();
    assert!(line["granted"].as_u64().unwrap() > 20, "it fetches ahead: {line}");
    cluster.kill(lost).await;
    cluster.wipe(lost);
    let said = json!({ "node": id, "incarnation": line["incarnation"], "used": "20 requests" });
    let early = operator.try_post("/admin/v1/budgets/b/reconcile", &said).await.unwrap_err();
    assert_eq!(early.status, 409, "nobody said that it is gone: {early:?}");
    assert!(early.message.contains(&format!("admin remove {id}")), "{early:?}");

    operator.post(&format!("/admin/v1/members/{id}/remove"), &Value::Null).await;
    let burned = operator.get(STANDING).await.json()["burned"].as_u64().unwrap();
    let after = operator.post("/admin/v1/budgets/b/reconcile", &said).await;

    assert!(burned > 0);
    assert_eq!((after["burned"].as_u64(), after["settled"].as_u64()), (Some(0), Some(20)), "{after}");
    assert!(after["given_back"].as_u64().unwrap() > 0, "{after}");
    assert_eq!(after["remaining_high"], 980, "{after}");
}

/// What its log holds of earlier lives was told when it was said.
#[tokio::test]
async fn a_threshold_is_not_told_again_after_a_restart() {
    let provider = provider(10).await;
    let mut cluster = builder(&provider, "10 requests").nodes(1).start().await;
    let told = async |cluster: &TestCluster, percent: &str| {
        let labels = [("budget", "b"), ("percent", percent)];
        cluster[0].metrics().await.count("lea_budget_threshold_total", &labels) > 0.5
    };
    let call = async |cluster: &TestCluster| {
        assert_eq!(cluster[0].as_key(WEB).post("/v1/chat/completions", &asking(10)).await.status, 200);
    };
    for _ in 0..9 {
        call(&cluster).await;
    }
    eventually_within(DEADLINE, "it is told", async || told(&cluster, "80").await).await;

    assert!(cluster.stop(0).await.success());
    cluster.start_ready(0).await;
    call(&cluster).await;

    eventually_within(DEADLINE, "the next is told", async || told(&cluster, "100").await).await;
    assert!(!told(&cluster, "50").await && !told(&cluster, "80").await);
}

/// What is left, what was denied and what is nearly spent is in the metrics of every node; a threshold is told once.
#[tokio::test]
async fn budgets_are_seen_in_the_metrics() {
    let provider = provider(10).await;
    let cluster = builder(&provider, "10 requests").start().await;
    one_leader(&cluster, &[0, 1, 2]).await;
    let b = ("budget", "b");
    let gauge = async |number: usize, name: &str| cluster[number].metrics().await.value(name, &[b]);
    let told = async |percent: &str| {
        let mut all = 0.0;
        for node in cluster.members() {
            all += node.metrics().await.count("lea_budget_threshold_total", &[b, ("percent", percent)]);
        }
        all
    };

    for number in 0..10 {
        assert_eq!(cluster[number % 3].as_key(WEB).post("/v1/chat/completions", &asking(10)).await.status, 200);
    }
    assert_eq!(cluster[1].as_key(WEB).post("/v1/chat/completions", &asking(10)).await.status, 429);

    for number in 0..3 {
        eventually_within(DEADLINE, "every node shows what is spent", async || {
            gauge(number, "lea_budget_settled").await == Some(10.0)
        })
        .await;
        assert_eq!(gauge(number, "lea_budget_limit").await, Some(10.0));
        for nothing in ["remaining", "leased", "reserved", "burned"] {
            assert_eq!(gauge(number, &format!("lea_budget_{nothing}")).await, Some(0.0), "{nothing}");
        }
    }
    let metrics = cluster[1].metrics().await;
    assert!((metrics.count("lea_budget_denied_total", &[b, ("reason", "exceeded")]) - 1.0).abs() < 0.1);
    assert!(metrics.count("lea_budget_refill_seconds_count", &[]) > 0.0);
    for percent in ["50", "80", "100"] {
        eventually_within(DEADLINE, "the threshold is told", async || told(percent).await > 0.5).await;
    }
    let printed: String = cluster.members().iter().map(harness::Member::printed).collect();
    assert_eq!(printed.matches("a budget has passed a threshold").count(), 3, "once each, by one node");

    let gone =
        CONFIG.replace("budgets: [b]", "budgets: []").replace("budgets: { b: { limit: LIMIT, window: total } }", "");
    cluster.write_config("edge-0", &gone.replace("resources_revision: 1", "resources_revision: 2"));
    cluster.hang_up(0);

    for number in 0..3 {
        eventually_within(LONG, "a budget that has gone is shown as nothing", async || {
            gauge(number, "lea_budget_limit").await == Some(0.0)
                && gauge(number, "lea_budget_settled").await == Some(0.0)
        })
        .await;
    }
    for percent in ["50", "80", "100"] {
        assert!((told(percent).await - 1.0).abs() < 0.1, "{percent}");
    }
}

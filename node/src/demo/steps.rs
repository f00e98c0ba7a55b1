//! The steps of the demo, in the order they are shown.

use std::time::Duration;

use cluster::clock;
use futures_util::future::try_join_all;
use serde::Deserialize;
use serde_json::json;

use super::client::{AskError, Seen, Way};
use super::report::{Report, median, milliseconds};
use super::world::{KEY, TRIAL_KEY, World};
use crate::run::Service;
use crate::simulator::script::Fault;

/// Questions as a bank's customers would ask them, written for this project.
const QUESTIONS: &str = include_str!("../../../tests/data/support_questions.json");

/// How many ask the same at once.
const AT_ONCE: usize = 10;

/// How long the breaker's way back may take.
const RECOVERY_MAX: Duration = Duration::from_secs(10);

/// How long the last charge may take to be settled.
const SETTLED_MAX: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
struct Questions {
    groups: Vec<Group>,
}

/// One question, the same in other words, and others that only look like it.
#[derive(Deserialize)]
struct Group {
    original: String,
    paraphrases: Vec<String>,
    near_misses: Vec<NearMiss>,
    repeats: usize,
}

#[derive(Deserialize)]
struct NearMiss {
    text: String,
    differs: String,
}

/// Shows every step.
pub async fn all<S: Service>(world: &World<S>, report: &mut Report) -> Result<(), AskError> {
    let questions: Questions = serde_json::from_str(QUESTIONS)?;
    let groups = &questions.groups;
    let missed = misses(world, report, groups).await?;
    hits(world, report, groups, missed).await?;
    other_ways(world, report, groups).await?;
    lookalikes(world, report, groups).await?;
    together(world, report).await?;
    bills(world, report).await?;
    failover(world, report).await?;
    breaker(world, report).await?;
    cut(world, report).await?;
    throttled(world, report).await?;
    refused(world, report).await
}

async fn ask<S: Service>(world: &World<S>, way: Way, question: &str) -> Result<Seen, AskError> {
    world.client.ask(KEY, "support", way, question).await
}

/// How many calls both providers were paid for.
fn calls<S>(world: &World<S>) -> u64 {
    world.north.bill().total.requests + world.south.bill().total.requests
}

fn fault(value: serde_json::Value) -> Result<Vec<Fault>, AskError> {
    Ok(vec![serde_json::from_value(value)?])
}

/// Enough of a text to recognise it.
fn short(text: &str) -> String {
    let mut start: String = text.chars().take(62).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    start
}

async fn misses<S: Service>(world: &World<S>, report: &mut Report, groups: &[Group]) -> Result<Duration, AskError> {
    report.step("Questions nobody has asked before go to a provider")?;
    let (mut times, mut missed) = (Vec::new(), 0);
    for (index, group) in groups.iter().enumerate() {
        let seen = ask(world, Way::OpenAi, &group.original).await?;
        missed += usize::from(seen.status == 200 && seen.header("x-lea-cache") == "MISS");
        if index < 3 {
            let (took, cost) = (milliseconds(seen.took), seen.header("x-lea-cost-usd"));
            Report::saw(&format!("{:<64} {} {took}, ${cost}", short(&group.original), seen.header("x-lea-cache")))?;
        }
        times.push(seen.took);
    }
    let middle = median(times);
    Report::saw(&format!("… {} in all, median {}", groups.len(), milliseconds(middle)))?;
    let claim = format!("{missed} of {} were misses, and the provider was paid for each once", groups.len());
    let paid = usize::try_from(calls(world)).unwrap_or(usize::MAX);
    report.claim(&claim, missed == groups.len() && paid == missed)?;
    Ok(middle)
}

async fn hits<S: Service>(
    world: &World<S>,
    report: &mut Report,
    groups: &[Group],
    missed: Duration,
) -> Result<(), AskError> {
    report.step("The same questions again come back at once")?;
    let before = calls(world);
    let (mut times, mut hit, mut asked) = (Vec::new(), 0, 0);
    for group in groups {
        for _ in 0..group.repeats {
            let seen = ask(world, Way::OpenAi, &group.original).await?;
            asked += 1;
            let free = seen.header("x-lea-cost-usd") == "0";
            hit += usize::from(seen.status == 200 && seen.header("x-lea-cache") == "HIT" && free);
            times.push(seen.took);
        }
    }
    Report::saw(&format!("median {} instead of {}", milliseconds(median(times)), milliseconds(missed)))?;
    let claim = format!("{hit} of {asked} were hits that cost nothing; no provider was called");
    report.claim(&claim, hit == asked && asked > 0 && calls(world) == before)?;
    Ok(())
}

async fn other_ways<S: Service>(world: &World<S>, report: &mut Report, groups: &[Group]) -> Result<(), AskError> {
    report.step("An answer is kept once, for every dialect, streamed or whole")?;
    let Some(group) = groups.first() else { return Ok(()) };
    let whole = ask(world, Way::OpenAi, &group.original).await?;
    let mut same = true;
    for (name, way) in [("OpenAI SDK, streamed", Way::OpenAiStream), ("Anthropic SDK", Way::Anthropic)] {
        let seen = ask(world, way, &group.original).await?;
        same &= seen.header("x-lea-cache") == "HIT" && seen.text() == whole.text() && !seen.text().is_empty();
        Report::saw(&format!("{name:<22} {} {}", seen.header("x-lea-cache"), short(&seen.text())))?;
    }
    report.claim("asked as a stream and in the other dialect, the same text was a hit", same)?;
    Ok(())
}

async fn lookalikes<S: Service>(world: &World<S>, report: &mut Report, groups: &[Group]) -> Result<(), AskError> {
    report.step("What only looks alike is not the same: this cache is exact")?;
    let before = calls(world);
    let (mut asked, mut missed) = (0, 0);
    for (index, group) in groups.iter().enumerate() {
        let paraphrases = group.paraphrases.iter().map(|text| (text, "reworded"));
        let near = group.near_misses.iter().map(|near| (&near.text, near.differs.as_str()));
        for (text, how) in paraphrases.chain(near) {
            let seen = ask(world, Way::OpenAi, text).await?;
            asked += 1;
            missed += u64::from(seen.header("x-lea-cache") == "MISS");
            if index == 0 {
                Report::saw(&format!("{:<64} {} ({how})", short(text), seen.header("x-lea-cache")))?;
            }
        }
    }
    let claim = format!("{missed} of {asked} rewordings and near misses got an answer of their own");
    report.claim(&claim, missed == asked && calls(world) == before + asked)?;
    Ok(())
}

async fn together<S: Service>(world: &World<S>, report: &mut Report) -> Result<(), AskError> {
    report.step("Many who ask the same at once share one call")?;
    let before = calls(world);
    let question = "Is the branch in the station open on Sundays?";
    let seen = try_join_all((0..AT_ONCE).map(|_| ask(world, Way::OpenAi, question))).await?;
    let count = |word: &str| seen.iter().filter(|seen| seen.header("x-lea-cache") == word).count();
    Report::saw(&format!("{} MISS, {} COALESCED, {} HIT", count("MISS"), count("COALESCED"), count("HIT")))?;
    let same = seen.iter().all(|one| one.status == 200 && one.text() == seen[0].text());
    let claim = format!("{AT_ONCE} clients got the same whole answer from one call");
    report.claim(&claim, same && count("MISS") == 1 && calls(world) == before + 1)?;
    Ok(())
}

/// What the gateway charged, from the provider's own usage, in nano-dollars.
fn charged<S: Service>(world: &World<S>) -> u64 {
    let text = world.telemetry.render();
    let exact = text.lines().filter(|line| line.starts_with("lea_cost_nanousd_total{") && line.contains("\"exact\""));
    exact.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

async fn bills<S: Service>(world: &World<S>, report: &mut Report) -> Result<(), AskError> {
    report.step("The books agree")?;
    let bill = world.north.bill().total.cost_nano_usd + world.south.bill().total.cost_nano_usd;
    // A charge is settled when its answer has ended, which the client may see first.
    let since = clock::now();
    while charged(world) != bill && clock::now().saturating_duration_since(since) < SETTLED_MAX {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let charged = charged(world);
    Report::saw(&format!("the providers' own bill {bill} nano-USD, the gateway charged {charged}"))?;
    report.claim("to the billionth of a dollar", bill == charged && bill > 0)?;
    Ok(())
}

async fn failover<S: Service>(world: &World<S>, report: &mut Report) -> Result<(), AskError> {
    report.step("A provider fails: the next one answers, and the client does not notice")?;
    world.north.script(fault(json!({ "status": 500, "times": 1 }))?)?;
    let seen = ask(world, Way::OpenAi, "Can I change my PIN in the app?").await?;
    let (provider, attempts) = (seen.header("x-lea-provider"), seen.header("x-lea-attempts"));
    Report::saw(&format!("status {}, answered by {provider} at attempt {attempts}", seen.status))?;
    let held = seen.status == 200 && provider == "anthropic" && attempts == "2" && !seen.text().is_empty();
    report.claim("one whole answer, from the other provider, in the client's own dialect", held)?;
    let next = ask(world, Way::OpenAi, "Can I choose my PIN myself?").await?;
    report.claim("the next request went to the first provider again", next.header("x-lea-provider") == "openai")?;
    Ok(())
}

async fn breaker<S: Service>(world: &World<S>, report: &mut Report) -> Result<(), AskError> {
    report.step("A provider that is down is left alone, probed, and taken back")?;
    world.north.script(fault(json!({ "status": 500, "times": 3 }))?)?;
    let mut answered = true;
    for number in 1..=3 {
        let seen = ask(world, Way::OpenAi, &format!("What is the limit of transfer number {number}?")).await?;
        answered &= seen.status == 200;
    }
    let seen = ask(world, Way::OpenAi, "What does a replacement card cost?").await?;
    let straight = seen.header("x-lea-provider") == "anthropic" && seen.header("x-lea-attempts") == "1";
    Report::saw(&format!(
        "after three failures: {} at attempt {}",
        seen.header("x-lea-provider"),
        seen.header("x-lea-attempts")
    ))?;
    let since = clock::now();
    let failed_before = world.north.requests().len();
    let mut back = false;
    let mut number = 0;
    while !back && clock::now().saturating_duration_since(since) < RECOVERY_MAX {
        tokio::time::sleep(Duration::from_millis(100)).await;
        number += 1;
        let seen = ask(world, Way::OpenAi, &format!("When was payment {number} booked?")).await?;
        answered &= seen.status == 200;
        back = seen.header("x-lea-provider") == "openai";
    }
    let took = clock::now().saturating_duration_since(since);
    let probes = world.north.requests().len() - failed_before;
    Report::saw(&format!("after {}: openai again, at the first of {probes} probes", milliseconds(took)))?;
    report.claim(
        "open: requests went straight to the other; then one probe closed it",
        straight && back && probes == 1,
    )?;
    report.claim("every client was answered meanwhile", answered)?;
    Ok(())
}

async fn cut<S: Service>(world: &World<S>, report: &mut Report) -> Result<(), AskError> {
    report.step("A stream that breaks after content says so")?;
    // Late enough that the client has some of it: what breaks before that is asked of the other provider.
    let broken = json!({ "cut": { "at": { "after_tokens": 20 }, "how": "end" }, "times": 1 });
    world.north.script(fault(broken)?)?;
    let seen = ask(world, Way::OpenAiStream, "How do I close my account?").await?;
    Report::saw(&format!("came: {:?}, then the error `{}`", seen.text(), seen.code()))?;
    let held = !seen.text().is_empty() && seen.code() == "upstream_cut" && !seen.body.contains("[DONE]");
    report.claim("no text twice, no silent end: a typed error SDKs raise", held)?;
    Ok(())
}

async fn throttled<S: Service>(world: &World<S>, report: &mut Report) -> Result<(), AskError> {
    report.step("A key over its limit is told when to come back")?;
    let mut statuses = Vec::new();
    let mut wait = String::new();
    for _ in 0..4 {
        let seen = world.client.ask(TRIAL_KEY, "support", Way::OpenAi, "Where is my card?").await?;
        statuses.push(seen.status);
        seen.header("retry-after").clone_into(&mut wait);
    }
    Report::saw(&format!("key `trial`, 3 requests a minute: {statuses:?}, retry-after {wait} s"))?;
    let held = statuses == [200, 200, 200, 429] && wait.parse().is_ok_and(|seconds: u64| (1..=60).contains(&seconds));
    report.claim("three answers, then 429 with a time", held)?;
    Ok(())
}

async fn refused<S: Service>(world: &World<S>, report: &mut Report) -> Result<(), AskError> {
    report.step("A wrong key, and a model a key may not use")?;
    let before = calls(world);
    let wrong = world.client.ask("lea-nobodynobody-0", "support", Way::OpenAi, "Where is my card?").await?;
    let model = world.client.ask(TRIAL_KEY, "openai/gpt-4o", Way::Anthropic, "Where is my card?").await?;
    Report::saw(&format!("wrong key: {} {}; model not allowed: {}", wrong.status, wrong.code(), model.status))?;
    let held = wrong.status == 401 && model.status == 403 && calls(world) == before;
    report.claim("401 and 403, in the shape of the API called; no provider was called", held)?;
    Ok(())
}

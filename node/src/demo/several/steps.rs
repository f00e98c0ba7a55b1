//! The steps of the demo of a cluster, in the order they are shown.

use std::time::Duration;

use cluster::clock;
use http::Method;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::live::View;
use super::nodes::Nodes;
use crate::admin::status::cluster::{MemberState, MemberStatus, table};
use crate::demo::client::AskError;
use crate::demo::report::{Report, milliseconds};
use crate::demo::world::KEY;

/// How long processes may take to become a cluster, or to come back to it.
const FORM_MAX: Duration = Duration::from_mins(1);

/// How long an election may take. What it takes is shown.
const ELECTION_MAX: Duration = Duration::from_secs(20);

/// From the death of a leader to the next change.
const WRITES_AGAIN_MAX: Duration = Duration::from_secs(10);

/// For a key that was made at one node to be known at the others.
const KNOWN_MAX: Duration = Duration::from_secs(2);

/// Requests that are answered before the next thing happens.
const WARM: u64 = 30;

/// How long requests may take to be so many.
const LOAD_MAX: Duration = Duration::from_secs(30);

const PAUSE: Duration = Duration::from_millis(20);

/// Shows every step.
pub async fn all(nodes: &mut Nodes, report: &mut Report) -> Result<(), AskError> {
    form(nodes, report).await?;
    any(nodes, report).await?;
    let key = key(nodes, report).await?;
    revoke(nodes, report, &key).await?;
    let stop = CancellationToken::new();
    let load = nodes.balancer.load(&nodes.tasks, &stop);
    let killed = kill(nodes, report).await?;
    let key = write(nodes, report, &killed).await?;
    back(nodes, report, &killed, &key).await?;
    stop.cancel();
    for client in load {
        client.await?;
    }
    requests(nodes, report, &killed)
}

/// What is known of the node that is killed.
struct Killed {
    node: usize,
    at: std::time::Instant,
    /// Of its life that ended.
    incarnation: u64,
    leader: usize,
}

/// Every node is ready, and knows the same of all.
fn whole(view: &View) -> bool {
    let count = view.nodes.len();
    let mut seen = (0..count).filter_map(|node| view.node(node));
    let Some(first) = view.node(0) else { return false };
    let agree = seen.all(|seen| {
        let same = seen.cluster.cluster == first.cluster.cluster && seen.cluster.leader == first.cluster.leader;
        let ready = |member: &&MemberStatus| member.alive && member.state == MemberState::Ready;
        let known = seen.cluster.members.iter().filter(ready).count();
        seen.ready && same && seen.cluster.cluster.is_some() && seen.cluster.leader.is_some() && known == count
    });
    agree && (0..count).all(|node| view.ready(node))
}

/// The table of members as one node's `status` has it.
fn members(nodes: &Nodes, node: usize) -> Result<(), AskError> {
    let view = nodes.live.now();
    let Some(seen) = view.node(node) else { return Ok(()) };
    for line in table(&seen.cluster.member_rows()) {
        Report::saw(&line)?;
    }
    Ok(())
}

async fn form(nodes: &mut Nodes, report: &mut Report) -> Result<(), AskError> {
    let count = nodes.all.len();
    report.step(&format!("{count} processes that share a secret become one cluster"))?;
    for node in &mut nodes.all {
        node.start()?;
    }
    let took = nodes.live.until("all nodes are ready in one cluster", FORM_MAX, whole).await?;
    members(nodes, 0)?;
    let pids: Vec<String> = nodes.all.iter().filter_map(|node| Some(node.pid()?.to_string())).collect();
    let claim = format!("after {} all are ready, and name the same leader", milliseconds(took));
    Report::saw(&format!("processes {}", pids.join(", ")))?;
    report.claim(&claim, pids.len() == count)?;
    Ok(())
}

async fn any(nodes: &Nodes, report: &mut Report) -> Result<(), AskError> {
    report.step("Requests go to any of them")?;
    let mut held = 0;
    for (number, name) in nodes.names().enumerate() {
        let seen = nodes.balancer.ask_node(number, KEY, &format!("What does account {number} cost?")).await?;
        held += usize::from(seen.status == 200 && seen.header("x-lea-node") == name && !seen.text().is_empty());
        Report::saw(&format!("{name}  {} in {}", seen.status, milliseconds(seen.took)))?;
    }
    let calls = nodes.provider.bill().total.requests;
    let count = nodes.all.len();
    report.claim(&format!("{held} of {count} answered, each by itself"), held == count && calls == count as u64)?;
    Ok(())
}

/// Asks one node until it knows the key, for so long at most. How long that took, which is nothing at the first try; `None`
/// when it was too long.
async fn known_at(nodes: &Nodes, node: usize, key: &str) -> Result<Option<Duration>, AskError> {
    let since = clock::now();
    for tries in 1.. {
        let asked = clock::now();
        let seen = nodes.balancer.ask_node(node, key, "What is my balance?").await?;
        let passed = asked.saturating_duration_since(since);
        if seen.status == 200 {
            return Ok(Some(if tries == 1 { Duration::ZERO } else { passed }));
        }
        if passed > KNOWN_MAX {
            return Ok(None);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(None)
}

async fn key(nodes: &Nodes, report: &mut Report) -> Result<String, AskError> {
    report.step("A key made through one node is good at every other at once")?;
    let leader = nodes.live.now().leader().unwrap_or_default();
    let through = (0..nodes.all.len()).find(|node| *node != leader).unwrap_or_default();
    let made = nodes.make_key(through, "visitor").await?;
    let text = made.map_err(|answer| String::from_utf8_lossy(&answer.body).into_owned())?;
    let mut known = 0;
    for (number, name) in nodes.names().enumerate() {
        let took = known_at(nodes, number, &text).await?;
        known += usize::from(took.is_some());
        let took = match took {
            Some(Duration::ZERO) => "known at once".to_owned(),
            Some(took) => format!("known after {}", milliseconds(took)),
            None => "not known".to_owned(),
        };
        Report::saw(&format!("{name}  {took}{}", if number == through { "  (made here)" } else { "" }))?;
    }
    let claim = format!("made through {}, which follows, and taken by all", nodes.all[through].name);
    report.claim(&claim, known == nodes.all.len())?;
    Ok(text)
}

async fn revoke(nodes: &Nodes, report: &mut Report, key: &str) -> Result<(), AskError> {
    report.step("Once `revoke` has returned, no node accepts the key")?;
    let last = nodes.all.len() - 1;
    let asked = clock::now();
    let answer = nodes.admin(last, Method::POST, "keys/visitor/revoke", json!({})).await?;
    let took = clock::now().saturating_duration_since(asked);
    Report::saw(&format!("asked of {}: {} in {}", nodes.all[last].name, answer.status, milliseconds(took)))?;
    let mut statuses = Vec::new();
    for number in 0..nodes.all.len() {
        statuses.push(nodes.balancer.ask_node(number, key, "What is my balance?").await?.status);
    }
    let held = answer.status.is_success() && statuses.iter().all(|status| *status == 401);
    report.claim(&format!("asked at once afterwards, the nodes say {statuses:?}"), held)?;
    Ok(())
}

/// Waits until so many more requests were answered.
async fn answered(nodes: &Nodes, more: u64, count: impl Fn(&Nodes) -> u64) -> Result<(), AskError> {
    let (since, before) = (clock::now(), count(nodes));
    while count(nodes) < before + more {
        if clock::now().saturating_duration_since(since) > LOAD_MAX {
            let (failed, failures) = nodes.balancer.failed();
            return Err(format!("requests come to nothing; {failed} failed: {}", failures.join("; ")).into());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn kill(nodes: &mut Nodes, report: &mut Report) -> Result<Killed, AskError> {
    report.step("The leader is killed while requests run")?;
    answered(nodes, WARM, |nodes| nodes.balancer.answered()).await?;
    let view = nodes.live.now();
    let node = view.leader().ok_or("nobody leads")?;
    let (term, incarnation) = view.node(node).map_or((0, 0), |seen| (seen.cluster.term, seen.cluster.incarnation));
    let at = clock::now();
    nodes.all[node].kill().await?;
    Report::saw(&format!("kill -9 {}", nodes.all[node].name))?;
    let other = |view: &View| {
        let leader = view.leader().filter(|leader| *leader != node);
        leader.is_some_and(|leader| view.node(leader).is_some_and(|seen| seen.cluster.term > term))
    };
    nodes.live.until("another node leads", ELECTION_MAX, other).await?;
    let took = clock::now().saturating_duration_since(at);
    let leader = nodes.live.now().leader().ok_or("nobody leads")?;
    report.claim(&format!("after {} {} leads", milliseconds(took), nodes.all[leader].name), leader != node)?;
    Ok(Killed { node, at, incarnation, leader })
}

/// As an operator's script would: what was not decided is asked for again.
async fn write(nodes: &Nodes, report: &mut Report, killed: &Killed) -> Result<String, AskError> {
    report.step("Those that are left go on: they answer, and they decide")?;
    let count = nodes.all.len();
    let through = (0..count).find(|node| *node != killed.node && *node != killed.leader).unwrap_or(killed.leader);
    let mut tries = 0;
    let text = loop {
        tries += 1;
        // Each try has a name of its own: one that went unanswered may have come to something.
        match nodes.make_key(through, &format!("meanwhile-{tries}")).await? {
            Ok(text) => break text,
            Err(answer) if clock::now().saturating_duration_since(killed.at) > WRITES_AGAIN_MAX => {
                return Err(String::from_utf8_lossy(&answer.body).into_owned().into());
            }
            Err(_not_yet) => tokio::time::sleep(PAUSE).await,
        }
    };
    let took = clock::now().saturating_duration_since(killed.at);
    answered(nodes, WARM, |nodes| nodes.balancer.answered()).await?;
    let name = &nodes.all[killed.node].name;
    let dead = |view: &View| {
        let seen = view.node(killed.leader);
        seen.is_some_and(|seen| seen.cluster.members.iter().any(|member| member.name == *name && !member.alive))
    };
    nodes.live.until("the others notice the death", ELECTION_MAX, dead).await?;
    members(nodes, killed.leader)?;
    let claim = format!("another key was made {} after the death of the leader", milliseconds(took));
    report.claim(&claim, took <= WRITES_AGAIN_MAX)?;
    Ok(text)
}

async fn back(nodes: &mut Nodes, report: &mut Report, killed: &Killed, key: &str) -> Result<(), AskError> {
    let node = killed.node;
    let name = nodes.all[node].name.clone();
    report.step(&format!("{name} is started again: it returns and catches up"))?;
    nodes.all[node].start()?;
    let caught_up = |view: &View| whole(view) && view.lag(node) == Some(0);
    let took = nodes.live.until("the node is back", FORM_MAX, caught_up).await?;
    let seen = nodes.balancer.ask_node(node, key, "What is my balance?").await?;
    members(nodes, node)?;
    let life = nodes.live.now().node(node).map(|seen| seen.cluster.incarnation).unwrap_or_default();
    let what = milliseconds(took);
    report.claim(&format!("ready after {what} with nothing left to catch up, in a new life of the same node"), {
        life > killed.incarnation
    })?;
    report.claim("it takes the key that was made while it was away", seen.status == 200)?;
    answered(nodes, WARM / 3, |nodes| nodes.balancer.answered_by(node)).await?;
    report.claim("and has its share of the requests again", true)?;
    Ok(())
}

fn requests(nodes: &Nodes, report: &mut Report, killed: &Killed) -> Result<(), AskError> {
    report.step("What the clients saw of all this")?;
    let balancer = &nodes.balancer;
    let (failed, failures) = balancer.failed();
    let (answered, cut, cut_there) = (balancer.answered(), balancer.cut(), balancer.cut_at(killed.node));
    let name = &nodes.all[killed.node].name;
    Report::saw(&format!("{answered} answered; {} times a node took none, and another was asked", balancer.refused()))?;
    Report::saw(&format!("{cut_there} in flight on {name} when it was killed: these failed"))?;
    for failure in failures {
        Report::saw(&failure)?;
    }
    report.claim("nothing else failed", failed == 0 && cut == cut_there)?;
    Ok(())
}

//! Commands that are agreed on, and reads that are certain, with some of them under way at once.

use std::io::Write;
use std::time::{Duration, Instant};

use cluster::consensus::Consensus;
use cluster::register::{Act, Author, Expected, Kind, Reply};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::task::JoinSet;

use crate::directory::spec;
use crate::nodes::Nodes;
use crate::report::{Report, Row};

const WITHIN: Duration = Duration::from_secs(30);
const OUTSTANDING: [usize; 3] = [1, 64, 512];

/// With each number of [`OUTSTANDING`].
type Rates = [f64; OUTSTANDING.len()];

/// Keys that are written over and over, so that the register does not grow with the speed.
const NAMES: usize = 4_096;

pub async fn measure(run: Duration, report: &mut Report) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let syncs = recorder.handle();
    metrics::set_global_recorder(recorder).unwrap();
    let disk = tokio::task::spawn_blocking(move || syncs_of_this_disk(run)).await.unwrap();
    let mut alone = Rates::default();
    for count in [1, 3] {
        let nodes = Nodes::start(count).await;
        let rates = commands(&nodes, run, &syncs, disk, alone, report).await;
        reads(&nodes, run, rates, report).await;
        if count == 1 {
            alone = rates;
        }
        nodes.stop().await;
    }
}

async fn commands(
    nodes: &Nodes,
    run: Duration,
    syncs: &PrometheusHandle,
    disk: f64,
    alone: Rates,
    report: &mut Report,
) -> Rates {
    let count = nodes.0.len();
    let mut rates = Rates::default();
    for (at, outstanding) in OUTSTANDING.into_iter().enumerate() {
        let before = syncs_so_far(syncs);
        let rate = rate(&nodes.leader().consensus, outstanding, run, propose).await;
        let syncs = (syncs_so_far(syncs) - before) / count as f64;
        let commands = rate * run.as_secs_f64();
        let (baseline, beside) = if count == 1 {
            (disk, "appends of 256 bytes to a file, each synced")
        } else {
            (alone[at], "the same on a node that is alone")
        };
        rates[at] = rate;
        report.row(Row {
            name: format!("commands, {count} node(s), {outstanding} outstanding"),
            value: rate,
            unit: "1/s",
            baseline,
            beside,
            more: format!("; {:.3} fsyncs a command and node", syncs / commands),
        });
    }
    rates
}

async fn reads(nodes: &Nodes, run: Duration, commands: Rates, report: &mut Report) {
    let count = nodes.0.len();
    for (outstanding, baseline) in OUTSTANDING.into_iter().zip(commands) {
        report.row(Row {
            name: format!("linearizable reads, {count} node(s), {outstanding} outstanding"),
            value: rate(&nodes.leader().consensus, outstanding, run, read).await,
            unit: "1/s",
            baseline,
            beside: "commands of the same nodes",
            more: String::new(),
        });
    }
}

/// How many a second, with so many under way at once.
async fn rate<F>(
    consensus: &Consensus,
    outstanding: usize,
    run: Duration,
    act: impl Fn(Consensus, usize) -> F + Clone + Send + 'static,
) -> f64
where
    F: Future<Output = ()> + Send,
{
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for first in 0..outstanding {
        let (consensus, act) = (consensus.clone(), act.clone());
        tasks.spawn(async move {
            let mut done = 0_u64;
            while began.elapsed() < run {
                act(consensus.clone(), (first + usize::try_from(done).unwrap() * outstanding) % NAMES).await;
                done += 1;
            }
            done
        });
    }
    let done: u64 = tasks.join_all().await.into_iter().sum();
    done as f64 / began.elapsed().as_secs_f64()
}

async fn propose(consensus: Consensus, number: usize) {
    let (name, expected) = (format!("key-{number}"), Expected::Any);
    let act = Act::Put { kind: Kind::Keys, name, spec: spec(number), expected, shape: None };
    let accepted = consensus.propose(act, Author::default(), WITHIN).await.unwrap();
    assert!(matches!(accepted.reply, Reply::Put { .. }), "{:?}", accepted.reply);
}

async fn read(consensus: Consensus, _number: usize) {
    assert!(consensus.read_index(WITHIN).await.unwrap() > 0);
}

/// Of the logs of all nodes in this process.
fn syncs_so_far(handle: &PrometheusHandle) -> f64 {
    let text = handle.render();
    let line = text.lines().find(|line| line.starts_with("lea_storage_syncs_total"));
    line.and_then(|line| line.split_whitespace().last()?.parse().ok()).unwrap_or(0.0)
}

/// Appends a second, each of them synced before the next.
fn syncs_of_this_disk(run: Duration) -> f64 {
    let mut file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (began, mut done) = (Instant::now(), 0_u64);
    while began.elapsed() < run {
        file.write_all(&[7; 256]).unwrap();
        file.sync_data().unwrap();
        done += 1;
    }
    done as f64 / began.elapsed().as_secs_f64()
}

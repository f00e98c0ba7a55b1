//! What the gateway costs in the path, as ratios against a bare hyper proxy in the same run.
//!
//! `cargo bench --bench overhead` prints a table and writes `tests/benches/results/overhead.json`. The simulator, the
//! proxy and the gateway are processes of their own; the load comes from this one. Pairs alternate, so that a machine
//! whose speed drifts spoils neither side; ratios are medians of pairs.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a benchmark, not the product"
)]

mod load;
mod processes;
mod proxy;
mod report;

use std::time::Duration;

use load::{Load, Shape};
use processes::{Fleet, Target};
use report::{Latency, Pair, Report};

/// What the command line may change.
struct Options {
    /// How long each measurement runs.
    run: Duration,
    pairs: usize,
    /// Requests of the soak, 0 for none.
    soak: u64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, role, upstream, ..] = arguments.as_slice()
        && role == "proxy"
    {
        return proxy::run(upstream.parse().unwrap());
    }
    let number = |name: &str, default: u64| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(default, |at| arguments[at + 1].parse().unwrap())
    };
    let options = Options {
        run: Duration::from_secs(number("--seconds", 4)),
        pairs: usize::try_from(number("--pairs", 5)).unwrap(),
        soak: number("--soak", 0),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(measure(&options));
}

async fn measure(options: &Options) {
    let fleet = Fleet::start().await;
    let mut report = Report::new(options.run, options.pairs);
    for connections in [32, 256] {
        report.pair(closed(&fleet, "whole, miss", Shape::Whole, connections, options).await);
    }
    report.pair(closed(&fleet, "stream, miss", Shape::Stream, 32, options).await);
    report.pair(closed(&fleet, "whole, exact hit", Shape::Hit, 32, options).await);
    for rate in [500, 1_000, 2_000, 4_000] {
        for shape in [Shape::Whole, Shape::Stream] {
            report.latency(open(&fleet, shape, rate, options).await);
        }
    }
    report.memory("idle, before load", fleet.idle_memory);
    report.memory("after load", fleet.gateway.memory());
    report.chunks(chunks(&fleet, options).await);
    if options.soak > 0 {
        soak(&fleet, options.soak, &mut report).await;
    }
    report.write();
}

/// Peak throughput and CPU per request, in alternating pairs.
async fn closed(fleet: &Fleet, name: &'static str, shape: Shape, connections: usize, options: &Options) -> Pair {
    let mut pair = Pair::new(name, connections);
    for target in [&fleet.proxy, &fleet.gateway] {
        run(target, shape, connections, options.run / 4).await;
    }
    for _ in 0..options.pairs {
        let proxy =
            run(&fleet.proxy, if shape == Shape::Hit { Shape::Whole } else { shape }, connections, options.run).await;
        let gateway = run(&fleet.gateway, shape, connections, options.run).await;
        pair.add(&proxy, &gateway);
    }
    pair
}

/// One closed-loop measurement of one target.
struct Run {
    requests: u64,
    failed: u64,
    took: Duration,
    cpu: Duration,
}

async fn run(target: &Target, shape: Shape, connections: usize, time: Duration) -> Run {
    let before = target.cpu();
    let load = Load::new(target.address, shape);
    let (done, took) = load.closed(connections, time).await;
    Run { requests: done.requests, failed: done.failed, took, cpu: target.cpu_since(before) }
}

/// Latency at a fixed rate, from the moment a request was due (no coordinated omission).
async fn open(fleet: &Fleet, shape: Shape, rate: u32, options: &Options) -> Latency {
    let mut latency = Latency::new(shape, rate);
    for _ in 0..options.pairs.min(3) {
        let direct = Load::new(fleet.simulator.address, shape).open(rate, options.run).await;
        let proxy = Load::new(fleet.proxy.address, shape).open(rate, options.run).await;
        let gateway = Load::new(fleet.gateway.address, shape).open(rate, options.run).await;
        latency.add(&direct, &proxy, &gateway);
    }
    latency
}

/// CPU of one streamed chunk: long streams against short ones.
async fn chunks(fleet: &Fleet, options: &Options) -> (f64, f64) {
    let mut medians = [0.0, 0.0];
    for (at, target) in [&fleet.proxy, &fleet.gateway].into_iter().enumerate() {
        let mut costs = Vec::new();
        for _ in 0..options.pairs {
            let before = target.cpu();
            let (done, _took) = Load::new(target.address, Shape::LongStream).closed(16, options.run).await;
            costs.push(target.cpu_since(before).as_secs_f64() * 1e6 / done.chunks.max(1) as f64);
        }
        medians[at] = report::median(&mut costs);
    }
    (medians[0], medians[1])
}

/// Memory over many requests: it must not grow with them.
async fn soak(fleet: &Fleet, requests: u64, report: &mut Report) {
    let mut done = 0;
    while done < requests {
        let (part, _took) = Load::new(fleet.gateway.address, Shape::Whole).closed(32, Duration::from_secs(10)).await;
        done += part.requests;
        report.memory(&format!("after {done} more requests"), fleet.gateway.memory());
    }
}

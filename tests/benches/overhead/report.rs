//! What was measured, for people and for programs.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Run;
use crate::load::{Done, Shape};

/// The middle of what was measured.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Throughput and CPU, proxy and gateway in turn.
pub struct Pair {
    name: &'static str,
    connections: usize,
    proxy_rate: Vec<f64>,
    gateway_rate: Vec<f64>,
    ratio: Vec<f64>,
    proxy_cpu: Vec<f64>,
    gateway_cpu: Vec<f64>,
    failed: u64,
}

impl Pair {
    pub fn new(name: &'static str, connections: usize) -> Self {
        Self {
            name,
            connections,
            proxy_rate: Vec::new(),
            gateway_rate: Vec::new(),
            ratio: Vec::new(),
            proxy_cpu: Vec::new(),
            gateway_cpu: Vec::new(),
            failed: 0,
        }
    }

    pub fn add(&mut self, proxy: &Run, gateway: &Run) {
        let rate = |run: &Run| run.requests as f64 / run.took.as_secs_f64();
        let cpu = |run: &Run| run.cpu.as_secs_f64() * 1e6 / run.requests.max(1) as f64;
        self.proxy_rate.push(rate(proxy));
        self.gateway_rate.push(rate(gateway));
        self.ratio.push(rate(gateway) / rate(proxy));
        self.proxy_cpu.push(cpu(proxy));
        self.gateway_cpu.push(cpu(gateway));
        self.failed += proxy.failed + gateway.failed;
    }
}

/// Latencies at one rate, in microseconds: medians of p50 and p99.
pub struct Latency {
    shape: Shape,
    rate: u32,
    /// Direct, proxy, gateway; each p50 and p99.
    values: [[Vec<f64>; 2]; 3],
    failed: u64,
}

impl Latency {
    pub fn new(shape: Shape, rate: u32) -> Self {
        Self { shape, rate, values: Default::default(), failed: 0 }
    }

    pub fn add(&mut self, direct: &Done, proxy: &Done, gateway: &Done) {
        for (values, done) in self.values.iter_mut().zip([direct, proxy, gateway]) {
            let mut sorted = done.latencies.clone();
            sorted.sort_unstable();
            for (values, share) in values.iter_mut().zip([50, 99]) {
                let at = (sorted.len() * share / 100).min(sorted.len().saturating_sub(1));
                values.push(sorted.get(at).copied().map_or(f64::NAN, f64::from));
            }
            self.failed += done.failed;
        }
    }
}

/// Everything, printed as it comes.
pub struct Report {
    rows: Vec<Value>,
}

impl Report {
    pub fn new(run: Duration, pairs: usize) -> Self {
        println!("each measurement {run:?}, {pairs} alternating pairs, medians; two cores carry everything\n");
        Self { rows: Vec::new() }
    }

    pub fn pair(&mut self, mut pair: Pair) {
        let proxy_rate = median(&mut pair.proxy_rate);
        let gateway_rate = median(&mut pair.gateway_rate);
        let ratio = median(&mut pair.ratio);
        let (proxy_cpu, gateway_cpu) = (median(&mut pair.proxy_cpu), median(&mut pair.gateway_cpu));
        let (name, connections, failed) = (pair.name, pair.connections, pair.failed);
        println!(
            "closed loop, {connections:>3} connections, {name:<17} ratio {ratio:.2}  ({gateway_rate:.0} against \
             {proxy_rate:.0} requests/s)  CPU {gateway_cpu:.1} against {proxy_cpu:.1} µs/request  failed {failed}"
        );
        self.rows.push(json!({
            "kind": "closed", "name": name, "connections": connections, "ratio": ratio, "failed": failed,
            "gateway_rps": gateway_rate, "proxy_rps": proxy_rate,
            "gateway_cpu_us": gateway_cpu, "proxy_cpu_us": proxy_cpu,
        }));
    }

    pub fn latency(&mut self, mut latency: Latency) {
        let [direct, proxy, gateway] = &mut latency.values;
        let both = |values: &mut [Vec<f64>; 2]| (median(&mut values[0]), median(&mut values[1]));
        let (direct, proxy, gateway) = (both(direct), both(proxy), both(gateway));
        let name = if latency.shape == Shape::Stream { "stream" } else { "whole" };
        println!(
            "open loop, {:>5}/s, {name:<6} gateway p50 {:.0} p99 {:.0} µs  proxy p50 {:.0} p99 {:.0}  direct p50 {:.0} \
             p99 {:.0}  added to the proxy: p50 {:+.0} µs, p99 × {:.2}  failed {}",
            latency.rate,
            gateway.0,
            gateway.1,
            proxy.0,
            proxy.1,
            direct.0,
            direct.1,
            gateway.0 - proxy.0,
            gateway.1 / proxy.1,
            latency.failed
        );
        self.rows.push(json!({
            "kind": "open", "rate": latency.rate, "name": name, "failed": latency.failed,
            "gateway_p50_us": gateway.0, "gateway_p99_us": gateway.1, "proxy_p50_us": proxy.0, "proxy_p99_us": proxy.1,
            "direct_p50_us": direct.0, "direct_p99_us": direct.1,
        }));
    }

    pub fn memory(&mut self, when: &str, bytes: u64) {
        println!("memory {when}: {:.1} MiB", bytes as f64 / 1_048_576.0);
        self.rows.push(json!({ "kind": "memory", "when": when, "bytes": bytes }));
    }

    pub fn chunks(&mut self, (proxy, gateway): (f64, f64)) {
        println!("a streamed chunk: CPU {gateway:.2} against {proxy:.2} µs");
        self.rows.push(json!({ "kind": "chunk", "gateway_cpu_us": gateway, "proxy_cpu_us": proxy }));
    }

    pub fn write(self) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/benches/results");
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("overhead.json");
        std::fs::write(&file, serde_json::to_vec_pretty(&self.rows).unwrap()).unwrap();
        println!("\nwritten: tests/benches/results/overhead.json");
    }
}

//! What agreeing costs: commands, reads and calls between nodes, and a directory of many keys.
//!
//! `cargo bench --bench cluster` prints a table and writes `tests/benches/results/cluster.json`. Each number stands beside
//! one of the same run that it is to be compared with, so that another machine moves both.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a benchmark, not the product"
)]

mod calls;
mod directory;
mod nodes;
mod proposals;
mod report;

use std::time::Duration;

use report::Report;

/// As in the product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: u64| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(default, |at| arguments[at + 1].parse().unwrap())
    };
    let run = Duration::from_millis(number("--milliseconds", 4_000));
    let keys = usize::try_from(number("--keys", 100_000)).unwrap();
    let mut report = Report::new(run, keys);
    // First, while the process has nothing else in memory.
    directory::measure(keys, &mut report);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        calls::measure(run, &mut report).await;
        proposals::measure(run, &mut report).await;
    });
    report.write();
}

//! `jepsen`: runs worlds by their seeds and says what broke, with the command that repeats it.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use jepsen::run::{Options, run};

/// Runs simulated clusters under faults.
#[derive(Debug, Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// How many seeds.
    #[arg(long, default_value_t = 1)]
    seeds: u64,

    /// Virtual seconds under faults.
    #[arg(long, default_value_t = 30)]
    seconds: u64,

    /// Break nothing.
    #[arg(long)]
    calm: bool,

    /// Print every operation.
    #[arg(long)]
    history: bool,
}

fn main() -> ExitCode {
    match all(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nowhere to say that standard error is closed.
            drop(writeln!(std::io::stderr(), "jepsen: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn all(arguments: &Arguments) -> std::io::Result<bool> {
    let mut out = std::io::stdout().lock();
    let mut sound = true;
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.seeds) {
        let options =
            Options { time: Duration::from_secs(arguments.seconds), faults: !arguments.calm, ..Options::new(seed) };
        let (verdict, history) = run(options)?;
        if arguments.history {
            for event in history.events() {
                writeln!(out, "{event:?}")?;
            }
        }
        let harms: Vec<String> = verdict.harms.iter().map(|(harm, count)| format!("{} {count}", harm.name())).collect();
        writeln!(
            out,
            "seed {seed}: {} ok, {} failed, {} unknown, {} revoked; {}; {} calls lost, {} blocked, {} gave up",
            verdict.ok,
            verdict.failed,
            verdict.unknown,
            verdict.revoked,
            harms.join(", "),
            verdict.lost_calls,
            verdict.blocked_calls,
            verdict.gave_up
        )?;
        writeln!(out, "  {:?}", verdict.money)?;
        for broken in &verdict.broken {
            sound = false;
            writeln!(out, "  BROKEN {broken}")?;
        }
        if !verdict.broken.is_empty() {
            writeln!(out, "  again: cargo run -p jepsen -- --seed {seed} --seconds {} --history", arguments.seconds)?;
        }
    }
    Ok(sound)
}

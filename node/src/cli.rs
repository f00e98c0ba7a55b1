//! The command line: what there is to say, and who does it.

pub mod admin;
pub mod check;
pub(crate) mod client;
pub mod cluster;
pub mod keys;
pub mod status;

use crate::config::reload::describe;
use crate::demo::{DemoArgs, demo};
use crate::run::{RunArgs, Service, run};
use crate::signals::Signals;
use crate::simulator::{self, SimulatorArgs};
use crate::{output, reference};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::error::Error;
use std::io;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

/// An LLM gateway in one binary: checks keys and limits, caches, routes to providers, survives their failures.
#[derive(Debug, Parser)]
#[command(name = "llm-edge-agent", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole gateway at work, with simulated providers; nothing else is needed.
    Demo(DemoArgs),
    /// Serve, as a configuration file says.
    Run(RunArgs),
    /// Say everything that is wrong with a configuration file, and change nothing.
    Check(check::CheckArgs),
    /// Print a generated reference.
    Reference(ReferenceArgs),
    /// Run the provider simulator alone.
    Simulate(SimulatorArgs),
    /// Make keys for callers.
    Keys(keys::KeysArgs),
    /// Show what a running node does.
    Status(status::StatusArgs),
    /// Make the secret that the nodes of a cluster share; begin anew a cluster that was never founded.
    Cluster(cluster::ClusterArgs),
    /// Look at and change what the nodes of a cluster share, through any of them.
    Admin(admin::AdminArgs),
    /// Show what is left of a budget, or give back what was burned of it.
    Budget(admin::BudgetArgs),
}

#[derive(Clone, Copy, Debug, Args)]
pub struct ReferenceArgs {
    pub of: Reference,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Reference {
    /// Every setting of the configuration file.
    Config,
    /// Every metric.
    Metrics,
    /// Every error a client can get.
    Errors,
    /// The admin API, as an `OpenAPI` document in JSON.
    Openapi,
}

/// 0 done; 1 refused or failed, and standard error says why; 2 not understood.
pub fn main<S: Service>() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are printed the same way, to standard output.
            let printed = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { exit(printed.map_err(Into::into)) };
        }
    };
    match cli.command {
        Command::Demo(args) => exit(with_runtime(demo::<S>(&args))),
        Command::Run(args) => exit(with_runtime(run::<S>(&args))),
        Command::Check(args) => exit(check::check(&args)),
        Command::Reference(args) => exit(output::line(&reference_of(args.of)).map_err(Into::into)),
        Command::Simulate(args) => exit(with_runtime(simulate(args))),
        Command::Keys(args) => exit(keys::keys(&args)),
        Command::Status(args) => exit(with_runtime(status::status(&args))),
        Command::Cluster(args) => exit(with_runtime(cluster::cluster(&args))),
        Command::Admin(args) => exit(with_runtime(admin::admin(&args))),
        Command::Budget(args) => exit(with_runtime(admin::budget(&args))),
    }
}

type Failure = Box<dyn Error + Send + Sync>;

fn reference_of(what: Reference) -> String {
    match what {
        Reference::Config => reference::config::markdown(),
        Reference::Metrics => reference::metrics::markdown(),
        Reference::Errors => reference::errors::markdown(),
        Reference::Openapi => format!("{:#}", crate::admin::openapi::document()),
    }
}

/// Until it is told to stop.
async fn simulate(args: SimulatorArgs) -> io::Result<()> {
    let mut signals = Signals::new()?;
    let stop = CancellationToken::new();
    let mut running = std::pin::pin!(simulator::run(args, stop.clone()));
    tokio::select! {
        ended = running.as_mut() => ended,
        () = signals.stop() => {
            stop.cancel();
            running.await
        }
    }
}

fn with_runtime<E: Into<Failure>>(work: impl Future<Output = Result<(), E>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(work).map_err(Into::into)
}

fn exit(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complaint(&describe(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_not_understood_is_a_usage_error() {
        for arguments in [vec!["run"], vec!["check", "-x"], vec!["referense", "config"], vec!["reference", "all"]] {
            let error = Cli::try_parse_from([&["llm-edge-agent"], &arguments[..]].concat()).unwrap_err();
            assert!(error.use_stderr(), "{arguments:?}");
        }
    }

    #[test]
    fn help_names_every_command_and_hides_what_is_for_tests() {
        let help = Cli::command().render_long_help().to_string();
        for command in ["demo", "run", "check", "reference", "simulate", "keys", "status", "cluster", "admin"] {
            assert!(help.contains(&format!("\n  {command}")), "{help}");
        }
        let mut cli = Cli::command();
        let run = cli.find_subcommand_mut("run").unwrap().render_long_help().to_string();
        assert!(!run.contains("addresses-file"), "{run}");
    }
}

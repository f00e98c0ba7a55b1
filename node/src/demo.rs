//! `demo`: the gateway in front of two simulated providers, asked what a bank's customers would ask.
//!
//! Every step says what it claims and checks it against what was really seen: by the client, and by the providers. The
//! gateway is the one `run` starts, with a configuration that is shown. `demo --nodes N` shows a [cluster](several).

mod client;
mod report;
mod several;
mod steps;
mod world;

use std::error::Error;

use crate::output;
use crate::run::Service;
use crate::signals::Signals;
use report::Report;
use world::World;

/// What `demo` is told on the command line.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct DemoArgs {
    /// Leave after the report: with status 0 only if every step did what it claims.
    #[arg(long)]
    pub once: bool,

    /// How many nodes: more than one are processes of their own that form a cluster, and its leader is killed while
    /// they are used.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = nodes)]
    pub nodes: usize,
}

/// More processes than this show nothing more.
const NODES_MAX: usize = 7;

/// Who survives the loss of a leader has a majority without it.
const NODES_OF_A_CLUSTER_MIN: usize = 3;

fn nodes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(1) => Ok(1),
        Ok(nodes) if (NODES_OF_A_CLUSTER_MIN..=NODES_MAX).contains(&nodes) => Ok(nodes),
        Ok(2) => Err("two nodes have one vote between them, and this demo kills who leads; try 3".to_owned()),
        _ => Err(format!("expected 1, or {NODES_OF_A_CLUSTER_MIN} to {NODES_MAX}")),
    }
}

/// Why the report is not one of success.
#[derive(Debug, thiserror::Error)]
pub enum NotHeld {
    #[error("{failed} claims did not hold; the report says which")]
    Claims { failed: usize },
    #[error("interrupted before the report was whole")]
    Interrupted,
}

/// Shows everything once, then stays up unless it is told not to.
pub async fn demo<S: Service>(args: &DemoArgs) -> Result<(), Box<dyn Error + Send + Sync>> {
    if args.nodes > 1 {
        return several::show(args).await;
    }
    let mut signals = Signals::new()?;
    let world = World::<S>::start().await?;
    let mut report = Report::default();
    output::line(&world.opening())?;
    let shown = tokio::select! {
        shown = steps::all(&world, &mut report) => shown,
        () = signals.stop() => Err(NotHeld::Interrupted.into()),
    };
    if let Err(error) = shown {
        world.stop().await;
        return Err(error);
    }
    let failed = report.close()?;
    if !args.once {
        output::line(&world.invitation())?;
        signals.stop().await;
    }
    world.stop().await;
    if failed > 0 { Err(NotHeld::Claims { failed }.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_could_not_lose_its_leader_is_refused() {
        assert_eq!(nodes("1"), Ok(1));
        assert_eq!(nodes("3"), Ok(3));
        assert_eq!(nodes("7"), Ok(7));
        assert!(nodes("2").unwrap_err().contains("try 3"));
        for wrong in ["0", "8", "-1", "three", ""] {
            assert!(nodes(wrong).unwrap_err().starts_with("expected"), "{wrong}");
        }
    }
}

//! `demo --nodes N`: a cluster of processes, used through any of them while its leader is killed.
//!
//! Each node is this same executable as `run` starts it, with a file and a data directory of its own. Here are only
//! what applications and operators have: a [load balancer](balancer) in front of the nodes, and the admin API.

mod balancer;
mod live;
mod node;
mod nodes;
mod steps;

use std::error::Error;

use super::report::Report;
use super::{DemoArgs, NotHeld};
use crate::output;
use crate::signals::Signals;
use nodes::Nodes;

/// Shows everything once, then stays up unless it is told not to.
pub async fn show(args: &DemoArgs) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut signals = Signals::new()?;
    let mut nodes = Nodes::prepare(args.nodes).await?;
    let mut report = Report::default();
    output::line(&nodes.opening())?;
    let shown = tokio::select! {
        shown = steps::all(&mut nodes, &mut report) => shown,
        () = signals.stop() => Err(NotHeld::Interrupted.into()),
    };
    if let Err(error) = shown {
        output::complaint(&nodes.last_words());
        nodes.stop().await;
        return Err(error);
    }
    let failed = report.close()?;
    if !args.once {
        output::line(&nodes.invitation())?;
        signals.stop().await;
    }
    nodes.stop().await;
    if failed > 0 { Err(NotHeld::Claims { failed }.into()) } else { Ok(()) }
}

//! `cluster new-secret`: what the nodes of a cluster know and nobody else does.

use crate::output;
use clap::{Args, Subcommand};
use cluster::peer::trust::ClusterSecret;
use std::error::Error;

#[derive(Clone, Debug, Args)]
pub struct ClusterArgs {
    #[command(subcommand)]
    pub command: ClusterCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub enum ClusterCommand {
    /// Print a new secret for `cluster.secret`, and nothing else. Give the same one to every node, by a file or an
    /// environment variable; whoever has it can become a member.
    NewSecret,
}

pub fn cluster(args: &ClusterArgs) -> Result<(), Box<dyn Error + Send + Sync>> {
    match args.command {
        ClusterCommand::NewSecret => Ok(output::line(&ClusterSecret::new_text()?)?),
    }
}

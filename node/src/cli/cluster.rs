//! `cluster new-secret`: what the nodes of a cluster know and nobody else does. `cluster forget-promise`: for a cluster that
//! was never founded.

use crate::config::environment;
use crate::config::load::load;
use crate::member::forget_promise;
use crate::output;
use clap::{Args, Subcommand};
use cluster::peer::trust::ClusterSecret;
use std::error::Error;
use std::path::PathBuf;

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
    /// Take back the promise that a stopped node gave to the founder of a cluster: when the founder's disk is lost, or the
    /// seeds were wrong. Refused while that founder answers, and once this node is a member.
    ForgetPromise {
        /// The node's configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
}

pub async fn cluster(args: &ClusterArgs) -> Result<(), Box<dyn Error + Send + Sync>> {
    match &args.command {
        ClusterCommand::NewSecret => Ok(output::line(&ClusterSecret::new_text()?)?),
        ClusterCommand::ForgetPromise { config } => {
            let loaded = load(config, &environment::process)?;
            forget_promise(&loaded).await?;
            Ok(output::line("the promise is taken back; start the node again")?)
        }
    }
}

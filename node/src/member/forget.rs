//! Takes back the promise of a node that is stopped: for a founder whose disk is lost, or a list of seeds that was wrong.

use std::sync::Arc;

use cluster::bootstrap::{Bootstrap, NotForgotten};
use cluster::peer::client::{AddressBook, ClientLimits, PeerClient};
use cluster::peer::standing::Standing;
use cluster::tasks::Tasks;

use super::{MemberError, STOP_MAX, introduction, node_key, open_data, trust};
use crate::config::load::Loaded;

/// Why the promise stays.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error("the promise stays")]
    NotForgotten(#[from] NotForgotten),
}

/// Refused while the node runs, once it belongs to a cluster, and while the node it promised answers.
pub async fn forget_promise(loaded: &Loaded) -> Result<(), ForgetError> {
    let data = open_data(loaded.config.node.data_dir.clone(), false).await?;
    let key = node_key(&data)?;
    let me = key.node_id();
    let tasks = Tasks::new();
    let standing = Arc::new(Standing::new(me));
    let trust = trust(loaded, &key)?.live();
    let client = PeerClient::new(trust, standing, AddressBook::new(), ClientLimits::default(), &tasks);
    let bootstrap = Bootstrap::open(introduction(loaded, me, None), data.cells()).map_err(MemberError::from)?;
    let forgotten = bootstrap.forget_promise(&client).await;
    let _late = tasks.shutdown(STOP_MAX).await;
    Ok(forgotten?)
}

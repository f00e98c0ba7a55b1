//! Raft's calls between nodes, over whatever carries calls between nodes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::log_store::Voted;
use super::types::{Place, Raft, TypeConfig};
use crate::id::NodeId;
use crate::peer::frame::{from_bytes, to_bytes};
use crate::peer::{CallError, Caller, Handler, Lane, Refusal, Service, Transport};

/// Between two tries to reach a member that could not be reached. Death is gossip's to tell; this only saves work.
const PAUSE: Duration = Duration::from_millis(200);

/// Makes a client for each member: cheap, since all share the transport's connections.
#[derive(Clone)]
pub struct Network {
    transport: Arc<dyn Transport>,
    voted: Voted,
}

impl Network {
    /// `voted`: what this node voted last.
    pub fn new(transport: Arc<dyn Transport>, voted: Voted) -> Self {
        Self { transport, voted }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Member;

    async fn new_client(&mut self, target: NodeId, _place: &Place) -> Member {
        Member { transport: Arc::clone(&self.transport), voted: Arc::clone(&self.voted), target }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("this node has voted for another leader since")]
struct Deposed;

/// One member, as the leader calls it.
pub struct Member {
    transport: Arc<dyn Transport>,
    voted: Voted,
    target: NodeId,
}

type Failed<E> = RPCError<NodeId, Place, RaftError<NodeId, E>>;

impl Member {
    async fn call<Q, A, E>(&self, service: Service, request: &Q, option: &RPCOption) -> Result<A, Failed<E>>
    where
        Q: Serialize,
        A: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let body = to_bytes(request).map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
        let answer = self.transport.call(self.target, Lane::Consensus, service, body, option.hard_ttl()).await;
        let answer = answer.map_err(|error| unreachable_or_broken(&error))?;
        let answer: Result<A, RaftError<NodeId, E>> =
            from_bytes(&answer).map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
        answer.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, error)))
    }
}

/// Who cannot be reached is left alone for [`PAUSE`]; a call that merely failed may be tried again at once.
fn unreachable_or_broken<E: std::error::Error>(error: &CallError) -> Failed<E> {
    if error.may_have_arrived() {
        RPCError::Network(NetworkError::new(error))
    } else {
        RPCError::Unreachable(Unreachable::new(error))
    }
}

impl RaftNetwork<TypeConfig> for Member {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RPCError<NodeId, Place, RaftError<NodeId>>> {
        // Openraft goes on sending for a leader that is none any more. What it has to say would only keep the other from
        // standing for election.
        if self.voted.lock().is_some_and(|own| request.vote < own) {
            return Err(RPCError::Unreachable(Unreachable::new(&Deposed)));
        }
        self.call(Service::RAFT_APPEND, &request, &option).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<NodeId>, RPCError<NodeId, Place, RaftError<NodeId, InstallSnapshotError>>> {
        self.call(Service::RAFT_SNAPSHOT, &request, &option).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, RPCError<NodeId, Place, RaftError<NodeId>>> {
        self.call(Service::RAFT_VOTE, &request, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(PAUSE))
    }
}

/// The other side: what members ask of this node's Raft.
#[derive(Clone)]
pub struct Inbound {
    raft: Raft,
    what: Service,
}

impl Inbound {
    /// Every service of Raft's, with who answers it.
    pub fn services(raft: &Raft) -> Vec<(Service, Arc<dyn Handler>)> {
        [Service::RAFT_APPEND, Service::RAFT_SNAPSHOT, Service::RAFT_VOTE]
            .into_iter()
            .map(|what| (what, Arc::new(Self { raft: raft.clone(), what }) as Arc<dyn Handler>))
            .collect()
    }

    async fn answer(self, body: Bytes) -> Result<Bytes, Refusal> {
        match self.what {
            Service::RAFT_APPEND => told(&self.raft.append_entries(read(&body)?).await),
            Service::RAFT_SNAPSHOT => told(&self.raft.install_snapshot(read(&body)?).await),
            _vote => told(&self.raft.vote(read(&body)?).await),
        }
    }
}

impl Handler for Inbound {
    fn handle(&self, _from: Caller, body: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        self.clone().answer(body).boxed()
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    Ok(from_bytes(body)?)
}

fn told<T: Serialize>(answer: &T) -> Result<Bytes, Refusal> {
    Ok(to_bytes(answer)?)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use openraft::Vote;
    use openraft::storage::RaftLogStorage;
    use storage::cell::Cells;
    use storage::disk::simulated::SimulatedDisk;
    use storage::log::{Log, LogOptions};

    use super::super::log_store::LogStore;
    use super::*;

    /// Carries everything to somebody who says yes.
    #[derive(Default)]
    struct Yes(AtomicUsize);

    impl Transport for Yes {
        fn call(
            &self,
            _to: NodeId,
            _lane: Lane,
            _service: Service,
            _body: Bytes,
            _deadline: Duration,
        ) -> BoxFuture<'static, Result<Bytes, CallError>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let yes: Result<AppendEntriesResponse<NodeId>, RaftError<NodeId>> = Ok(AppendEntriesResponse::Success);
            let answer = to_bytes(&yes).unwrap();
            async move { Ok(answer) }.boxed()
        }

        fn call_address(
            &self,
            _address: &str,
            _service: Service,
            _body: Bytes,
            deadline: Duration,
        ) -> BoxFuture<'static, Result<(NodeId, Bytes), CallError>> {
            async move { Err(CallError::Timeout { deadline }) }.boxed()
        }
    }

    /// A leader that has voted for another since, and replicates on.
    #[tokio::test]
    async fn who_has_voted_for_another_sends_nothing_as_the_leader_it_was() {
        let disk = SimulatedDisk::new().disk();
        let folder = |name| disk.within(name).unwrap();
        let log = Log::open(folder("log"), LogOptions { headroom_bytes: 0, ..LogOptions::default() }).unwrap();
        let mut store = LogStore::new(log, Cells::open(folder("cells"), storage::fatal::aborting()).unwrap());
        let (transport, here, there) = (Arc::new(Yes::default()), NodeId::new(1), NodeId::new(2));
        let carried: Arc<dyn Transport> = transport.clone();
        let place = Place { name: String::new(), address: String::new(), zone: None };
        let mut member = Network::new(carried, store.voted()).new_client(there, &place).await;
        let append = || AppendEntriesRequest {
            vote: Vote::new_committed(3, here),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        };
        let option = || RPCOption::new(Duration::from_secs(1));

        store.save_vote(&Vote::new_committed(3, here)).await.unwrap();
        assert!(member.append_entries(append(), option()).await.is_ok());
        store.save_vote(&Vote::new(4, there)).await.unwrap();
        let refused = member.append_entries(append(), option()).await;

        assert!(matches!(refused, Err(RPCError::Unreachable(_))), "{refused:?}");
        assert_eq!(transport.0.load(Ordering::Relaxed), 1, "nobody hears of it");
    }
}

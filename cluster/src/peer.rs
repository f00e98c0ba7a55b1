//! Calls from node to node: one request, one reply, over mutual TLS, each with its own deadline.
//!
//! [`Transport`] is what the rest of the room calls; [`client::PeerClient`] is the real one, a simulation has its own.
//! [`Handler`] is what answers; [`server::PeerServer`] checks who asks before it does.

pub mod client;
pub mod frame;
pub mod hello;
pub mod metrics;
pub mod nobody;
pub mod server;
mod services;
pub mod standing;
pub mod trust;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, Epoch, Incarnation, NodeId};

/// Calls of different lanes never wait for one another: each has its own connection to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Small and urgent: a body in front of a heartbeat would cost an election.
    Consensus,
    /// Everything that may be large or slow.
    Bodies,
}

impl Lane {
    pub const ALL: [Self; 2] = [Self::Consensus, Self::Bodies];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Consensus => "consensus",
            Self::Bodies => "bodies",
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::Consensus => 0,
            Self::Bodies => 1,
        }
    }

    const fn of_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Consensus),
            1 => Some(Self::Bodies),
            _ => None,
        }
    }
}

/// Who handles a call. The numbers are listed in `services`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service(pub u8);

/// Who asks: the node is proved, the rest is what it says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub cluster: ClusterId,
    pub epoch: Epoch,
    /// Where the call came from. A simulation has none.
    pub address: Option<SocketAddr>,
}

/// How this node calls others.
pub trait Transport: Send + Sync + 'static {
    /// Waits at most `deadline`, whatever happens. Does not repeat a call that may have arrived.
    fn call(
        &self,
        to: NodeId,
        lane: Lane,
        service: Service,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>>;

    /// For who does not know yet who lives there. Answers also who it was, proved.
    fn call_address(
        &self,
        address: &str,
        service: Service,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<(NodeId, Bytes), CallError>>;
}

/// What answers the calls of one [`Service`].
pub trait Handler: Send + Sync + 'static {
    /// Dropped where it waits when the caller gives up: what must not be half done is spawned.
    fn handle(&self, from: Caller, body: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>>;
}

/// Why a node did not do what it was asked. Variants are only appended: they travel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("it belongs to cluster {cluster}, epoch {epoch}")]
    WrongCluster { cluster: ClusterId, epoch: Epoch },

    #[error("it does not know this service")]
    NoSuchService,

    #[error("it has too much to do")]
    Busy,

    #[error("it does not understand the request: {why}")]
    Malformed { why: String },

    /// The caller is an old life of the very node it calls.
    #[error("it has been started again since, as incarnation {newer}")]
    OldSelf { newer: Incarnation },

    #[error("{why}")]
    Failed { why: String },

    #[error("it took longer than {after:?}")]
    Slow { after: Duration },
}

impl Refusal {
    /// The fixed word a metric has for it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::WrongCluster { .. } => "wrong_cluster",
            Self::NoSuchService => "no_such_service",
            Self::Busy => "busy",
            Self::Malformed { .. } => "malformed",
            Self::OldSelf { .. } => "old_self",
            Self::Failed { .. } => "failed",
            Self::Slow { .. } => "slow",
        }
    }
}

impl From<frame::BodyError> for Refusal {
    fn from(error: frame::BodyError) -> Self {
        Self::Malformed { why: error.to_string() }
    }
}

/// Why a call brought no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error("no address is known for node {node}")]
    NoAddress { node: NodeId },

    /// Nothing was sent.
    #[error("cannot connect to {address}: {why}")]
    Unreachable { address: String, why: String },

    /// The request may have arrived.
    #[error("no reply within {deadline:?}")]
    Timeout { deadline: Duration },

    /// This node has as many calls to that node open as it may. Nothing was sent.
    #[error("too many calls to {node} are open")]
    Busy { node: NodeId },

    /// Nothing was sent.
    #[error("node {wanted} is not at {address}: node {found} is")]
    WrongNode { address: String, wanted: NodeId, found: NodeId },

    #[error("the node belongs to cluster {cluster}, epoch {epoch}, this one to another")]
    WrongCluster { cluster: ClusterId, epoch: Epoch },

    #[error("the node refuses: {0}")]
    Refused(#[source] Refusal),

    /// The connection broke with the request on its way. It may have arrived.
    #[error("the connection broke: {why}")]
    Broken { why: String },

    #[error("the reply makes no sense: {why}")]
    Protocol { why: String },

    /// Nothing was sent.
    #[error("the request cannot be sent: {why}")]
    Unsendable { why: String },
}

impl CallError {
    /// Whether the other node may have done what it was asked. When false it certainly has not, by this call.
    pub const fn may_have_arrived(&self) -> bool {
        match self {
            Self::NoAddress { .. }
            | Self::Unreachable { .. }
            | Self::Busy { .. }
            | Self::WrongNode { .. }
            | Self::WrongCluster { .. }
            | Self::Unsendable { .. } => false,
            Self::Timeout { .. } | Self::Broken { .. } | Self::Protocol { .. } => true,
            Self::Refused(refusal) => match refusal {
                Refusal::WrongCluster { .. }
                | Refusal::NoSuchService
                | Refusal::Busy
                | Refusal::Malformed { .. }
                | Refusal::OldSelf { .. } => false,
                Refusal::Failed { .. } | Refusal::Slow { .. } => true,
            },
        }
    }

    /// The fixed word a metric has for it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NoAddress { .. } => "no_address",
            Self::Unreachable { .. } => "unreachable",
            Self::Timeout { .. } => "timeout",
            Self::Busy { .. } => "busy",
            Self::WrongNode { .. } => "wrong_node",
            Self::WrongCluster { .. } => "wrong_cluster",
            Self::Refused(_) => "refused",
            Self::Broken { .. } => "broken",
            Self::Protocol { .. } => "protocol",
            Self::Unsendable { .. } => "unsendable",
        }
    }
}

impl From<frame::BodyError> for CallError {
    fn from(error: frame::BodyError) -> Self {
        match error {
            frame::BodyError::Write { why } => Self::Unsendable { why },
            frame::BodyError::Read { why } => Self::Protocol { why },
        }
    }
}

/// How much may be under way on a connection before the other end has read it: a whole snapshot chunk on a stream.
const FLOW: Flow = Flow { stream: 1 << 20, connection: 4 << 20, frame: 64 * 1024 };

struct Flow {
    stream: u32,
    connection: u32,
    frame: u32,
}

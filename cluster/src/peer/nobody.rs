//! The transport of a node that is alone: it knows nobody, so nothing can be sent.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{CallError, Lane, Service, Transport};
use crate::id::NodeId;

pub struct Nobody;

impl Transport for Nobody {
    fn call(
        &self,
        to: NodeId,
        _lane: Lane,
        _service: Service,
        _body: Bytes,
        _deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        async move { Err(CallError::NoAddress { node: to }) }.boxed()
    }

    fn call_address(
        &self,
        address: &str,
        _service: Service,
        _body: Bytes,
        _deadline: Duration,
    ) -> BoxFuture<'static, Result<(NodeId, Bytes), CallError>> {
        let error = CallError::Unreachable { address: address.to_owned(), why: "this node is alone".to_owned() };
        async move { Err(error) }.boxed()
    }
}

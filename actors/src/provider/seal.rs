//! Whether anything of a request can have reached the provider: what decides between releasing and charging.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// What the caller has reserved, and what it becomes once it may be billed.
pub trait Spend {
    type Charge;

    /// From here on the provider may bill: dropping the result charges.
    fn dispatch(self) -> Self::Charge;
}

/// Broken once, by the connection when it begins to write or by the caller when it withdraws the request; whoever
/// comes second finds it so. A withdrawn request is never written whole, so no provider can bill it.
#[derive(Clone, Debug, Default)]
pub(super) struct Seal(Arc<AtomicU8>);

const WHOLE: u8 = 0;
const WRITING: u8 = 1;
const WITHDRAWN: u8 = 2;

impl Seal {
    /// True when the request may be written.
    fn write(&self) -> bool {
        self.0.compare_exchange(WHOLE, WRITING, Ordering::AcqRel, Ordering::Acquire) != Err(WITHDRAWN)
    }

    /// True when nothing was and nothing will be written.
    pub fn withdraw(&self) -> bool {
        self.0.compare_exchange(WHOLE, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire) != Err(WRITING)
    }
}

/// A reservation while its call is on the way. Dropped, as when the client hangs up, it is released if nothing was
/// written, else charged.
pub(super) struct Held<S: Spend> {
    /// There until the end.
    spend: Option<S>,
    seal: Seal,
}

impl<S: Spend> Held<S> {
    pub fn new(spend: S, seal: Seal) -> Self {
        Self { spend: Some(spend), seal }
    }

    pub fn dispatch(mut self) -> S::Charge {
        match self.spend.take() {
            Some(spend) => spend.dispatch(),
            None => unreachable!("only this, which consumes the holder, and its end take the reservation"),
        }
    }
}

impl<S: Spend> Drop for Held<S> {
    fn drop(&mut self) {
        if let Some(spend) = self.spend.take()
            && !self.seal.withdraw()
        {
            drop(spend.dispatch());
        }
    }
}

/// A request's body that tells when writing begins.
///
/// hyper asks [`Body::is_end_stream`] right before it writes the head, over HTTP/1.1 as over HTTP/2, and not earlier.
pub(super) struct Outgoing {
    bytes: Option<Bytes>,
    seal: Seal,
}

/// The caller withdrew the request before it was written.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the request was withdrawn")]
pub(super) struct Withdrawn;

impl Outgoing {
    pub fn new(bytes: Bytes, seal: Seal) -> Self {
        Self { bytes: Some(bytes), seal }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Withdrawn;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Withdrawn>>> {
        if !self.seal.write() {
            return Poll::Ready(Some(Err(Withdrawn)));
        }
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.seal.write();
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.bytes.as_ref().map_or(0, Bytes::len);
        SizeHint::with_exact(u64::try_from(length).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    /// Writes down what became of it.
    struct Purse<'a>(&'a std::cell::Cell<&'static str>);

    impl<'a> Spend for Purse<'a> {
        type Charge = &'a std::cell::Cell<&'static str>;

        fn dispatch(self) -> Self::Charge {
            self.0.set("dispatched");
            self.0
        }
    }

    #[test]
    fn a_call_dropped_before_it_was_written_releases() {
        let fate = std::cell::Cell::new("released");

        drop(Held::new(Purse(&fate), Seal::default()));

        assert_eq!(fate.get(), "released");
    }

    #[test]
    fn a_call_dropped_after_writing_began_is_charged() {
        let fate = std::cell::Cell::new("released");
        let seal = Seal::default();
        let held = Held::new(Purse(&fate), seal.clone());

        assert!(!Outgoing::new(Bytes::from_static(b"{}"), seal).is_end_stream());
        drop(held);

        assert_eq!(fate.get(), "dispatched");
    }

    /// Whatever races, a released request is never sent.
    #[tokio::test]
    async fn a_withdrawn_request_is_not_written() {
        let seal = Seal::default();
        let mut body = Outgoing::new(Bytes::from_static(b"{}"), seal.clone());

        assert!(seal.withdraw());

        assert!(!body.is_end_stream());
        assert!(body.frame().await.unwrap().is_err());
    }
}

//! How a call looks in bytes, and the one place of this room where values become bytes and back.
//!
//! ```text
//! 0 version · 1 kind · 2 service · 3..7 length of the body · 7..11 CRC32C of all the rest
//! 11..27 cluster · 27..31 epoch · 31..39 node · 39..47 incarnation · 47.. body
//! ```
//! Numbers are little-endian. Nothing here panics, whatever the bytes are.

use bincode::Options;
use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Service;
use crate::id::{ClusterId, Epoch, Incarnation, NodeId};

/// What this build writes and reads.
pub const VERSION: u8 = 1;

/// Bytes a body may have. Ordinary calls and snapshot chunks stay under 1 MiB; one consensus append may carry the 1 MiB
/// batches of several proposals. What is larger is refused by whoever would send it.
pub const FRAME_MAX: usize = 8 * 1024 * 1024;

/// Bytes in front of the body.
pub const HEAD_LEN: usize = 47;

/// Where the checksum stands; it covers everything before and after itself.
const SUM: std::ops::Range<usize> = 7..11;

/// Who speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub cluster: ClusterId,
    pub epoch: Epoch,
    pub node: NodeId,
    pub incarnation: Incarnation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request,
    Reply,
    /// The body is a [`Refusal`](super::Refusal).
    Refusal,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub service: Service,
    pub header: Header,
    pub body: Bytes,
}

impl Frame {
    pub fn encode(&self) -> Result<Bytes, FrameError> {
        let length = u32::try_from(self.body.len()).ok().filter(|_| self.body.len() <= FRAME_MAX);
        let length = length.ok_or(FrameError::TooLong { length: self.body.len() })?;
        let mut bytes = BytesMut::with_capacity(HEAD_LEN + self.body.len());
        bytes.put_u8(VERSION);
        bytes.put_u8(self.kind.code());
        bytes.put_u8(self.service.0);
        bytes.put_u32_le(length);
        bytes.put_u32_le(0);
        bytes.put_slice(self.header.cluster.bytes());
        bytes.put_u32_le(self.header.epoch.get());
        bytes.put_u64_le(self.header.node.get());
        bytes.put_u64_le(self.header.incarnation.get());
        bytes.put_slice(&self.body);
        let sum = checksum(&bytes);
        bytes[SUM].copy_from_slice(&sum.to_le_bytes());
        Ok(bytes.freeze())
    }

    /// The body shares the memory of `bytes`.
    pub fn decode(bytes: &Bytes) -> Result<Self, FrameError> {
        let Some((head, body)) = bytes.split_first_chunk::<HEAD_LEN>() else {
            return Err(FrameError::Short { length: bytes.len() });
        };
        if head[0] != VERSION {
            return Err(FrameError::Version { found: head[0] });
        }
        let announced = u32::from_le_bytes(part(head, 3)) as usize;
        if announced > FRAME_MAX {
            return Err(FrameError::TooLong { length: announced });
        }
        if announced != body.len() {
            return Err(FrameError::Length { announced, found: body.len() });
        }
        if checksum(bytes) != u32::from_le_bytes(part(head, SUM.start)) {
            return Err(FrameError::Checksum);
        }
        Ok(Self {
            kind: Kind::of_code(head[1]).ok_or(FrameError::Kind { found: head[1] })?,
            service: Service(head[2]),
            header: Header {
                cluster: ClusterId::new(part(head, 11)),
                epoch: Epoch::new(u32::from_le_bytes(part(head, 27))),
                node: NodeId::new(u64::from_le_bytes(part(head, 31))),
                incarnation: Incarnation::new(u64::from_le_bytes(part(head, 39))),
            },
            body: bytes.slice(HEAD_LEN..),
        })
    }
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Request => 0,
            Self::Reply => 1,
            Self::Refusal => 2,
        }
    }

    const fn of_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Request),
            1 => Some(Self::Reply),
            2 => Some(Self::Refusal),
            _ => None,
        }
    }
}

/// Why bytes are not a frame, or cannot become one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("a frame has at least {HEAD_LEN} bytes; these are {length}")]
    Short { length: usize },

    #[error("frame version {VERSION} is spoken here; this is {found}")]
    Version { found: u8 },

    #[error("there is no kind {found} of frame")]
    Kind { found: u8 },

    #[error("a body has at most {FRAME_MAX} bytes; this has {length}")]
    TooLong { length: usize },

    #[error("the frame announces {announced} bytes of body and has {found}")]
    Length { announced: usize, found: usize },

    #[error("the frame's checksum does not match its bytes")]
    Checksum,
}

/// A request or reply as the body of a frame.
pub fn to_bytes<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, BodyError> {
    codec().serialize(value).map(Bytes::from).map_err(|cause| BodyError::Write { why: cause.to_string() })
}

/// The whole of `bytes` is one `T`, or it is refused.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BodyError> {
    codec().deserialize(bytes).map_err(|cause| BodyError::Read { why: cause.to_string() })
}

/// Why a value is not a body, or a body not a value.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum BodyError {
    #[error("the value cannot be sent: {why}")]
    Write { why: String },

    #[error("the body is not what was expected: {why}")]
    Read { why: String },
}

fn codec() -> impl Options {
    bincode::DefaultOptions::new().with_limit(FRAME_MAX as u64).with_fixint_encoding().reject_trailing_bytes()
}

fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..SUM.start]), &frame[SUM.end..])
}

/// The `N` bytes from `start` on; every call is within the head.
fn part<const N: usize>(head: &[u8; HEAD_LEN], start: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&head[start..start + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn frame() -> impl Strategy<Value = Frame> {
        let kind = prop_oneof![Just(Kind::Request), Just(Kind::Reply), Just(Kind::Refusal)];
        (kind, any::<u8>(), any::<([u8; 16], u32, u64, u64)>(), vec(any::<u8>(), 0..300)).prop_map(
            |(kind, service, (cluster, epoch, node, incarnation), body)| Frame {
                kind,
                service: Service(service),
                header: Header {
                    cluster: ClusterId::new(cluster),
                    epoch: Epoch::new(epoch),
                    node: NodeId::new(node),
                    incarnation: Incarnation::new(incarnation),
                },
                body: body.into(),
            },
        )
    }

    proptest! {
        #[test]
        fn a_frame_arrives_as_it_was_sent(frame in frame()) {
            let bytes = frame.encode().unwrap();

            prop_assert_eq!(Frame::decode(&bytes), Ok(frame));
        }

        /// One bit changed on the way is noticed, wherever it is.
        #[test]
        fn a_damaged_frame_is_refused(frame in frame(), place: prop::sample::Index, bit in 0..8u32) {
            let mut bytes = frame.encode().unwrap().to_vec();
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;

            prop_assert!(Frame::decode(&bytes.into()).is_err());
        }

        #[test]
        fn a_cut_frame_is_refused(frame in frame(), length: prop::sample::Index) {
            let bytes = frame.encode().unwrap();

            prop_assert!(Frame::decode(&bytes.slice(..length.index(bytes.len()))).is_err());
        }

        #[test]
        fn no_bytes_panic(bytes in vec(any::<u8>(), 0..200)) {
            let _ = Frame::decode(&bytes.clone().into());
            let _ = from_bytes::<(String, Vec<u64>, Option<BTreeMap<u32, String>>)>(&bytes);
        }

        #[test]
        fn a_value_arrives_as_it_was_sent(text: String, numbers in vec(any::<u64>(), 0..50), node: u64) {
            let value = (text, numbers, NodeId::new(node), ClusterId::NONE);

            prop_assert_eq!(from_bytes(&to_bytes(&value).unwrap()), Ok(value));
        }
    }

    #[test]
    fn what_is_too_long_is_not_sent() {
        let body = Bytes::from(vec![0; FRAME_MAX + 1]);
        let frame = Frame { kind: Kind::Reply, service: Service(1), header: Header::default(), body };

        assert_eq!(frame.encode(), Err(FrameError::TooLong { length: FRAME_MAX + 1 }));
        assert!(matches!(to_bytes(&vec![0_u64; FRAME_MAX / 8]), Err(BodyError::Write { .. })));
    }

    /// A length without the bytes behind it must not make us reserve memory for it.
    #[test]
    fn an_announced_length_reserves_nothing() {
        let mut bytes = u64::MAX.to_le_bytes().to_vec();
        bytes.extend([1, 2, 3]);

        assert!(matches!(from_bytes::<Vec<u64>>(&bytes), Err(BodyError::Read { .. })));
        assert!(matches!(from_bytes::<u8>(&[1, 2]), Err(BodyError::Read { .. })));
    }
}

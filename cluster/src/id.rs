//! Who a node is, which cluster it belongs to and which life it lives.
//!
//! A node is its Ed25519 key: its [`NodeId`] is known before any log exists, is never an ordinal and is never reused.
//! Names are labels.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::de::{Deserializer, Error as _};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

/// The first 64 bits of the BLAKE3 hash of a node's public key. Shown as 16 hex digits; bare in binary.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u64);

impl NodeId {
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    pub fn of_public_key(key: &[u8]) -> Self {
        let mut first = [0; 8];
        first.copy_from_slice(&blake3::hash(key).as_bytes()[..8]);
        Self(u64::from_be_bytes(first))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl FromStr for NodeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Ok(Self(u64::from_be_bytes(from_hex(text)?)))
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_u64(self.0) }
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            u64::deserialize(deserializer).map(Self)
        }
    }
}

/// 128 random bits made when a cluster is born. Shown as 32 hex digits.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId([u8; 16]);

impl ClusterId {
    /// What a node says that is in no cluster yet.
    pub const NONE: Self = Self([0; 16]);

    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    pub fn random() -> Result<Self, IdError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|_| IdError::NoRandomness)?;
        Ok(Self(bytes))
    }

    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl FromStr for ClusterId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        from_hex(text).map(Self)
    }
}

impl Serialize for ClusterId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for ClusterId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            <[u8; 16]>::deserialize(deserializer).map(Self)
        }
    }
}

/// Counts forced recoveries of a cluster. What an older epoch cached or promised is not true in a newer one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u32);

impl Epoch {
    pub const fn new(epoch: u32) -> Self {
        Self(epoch)
    }

    pub const fn get(self) -> u32 {
        self.0
    }

    /// `None` after four billion recoveries.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One life of the process: the log index of its `Started` command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(u64);

impl Incarnation {
    /// A process whose `Started` is not applied yet.
    pub const NONE: Self = Self(0);

    pub const fn new(index: u64) -> Self {
        Self(index)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a node is: the key it signs with. Cheap to clone.
#[derive(Clone)]
pub struct NodeKey {
    pair: Arc<Ed25519KeyPair>,
    pkcs8: Arc<[u8]>,
    id: NodeId,
}

impl NodeKey {
    /// A new node. The caller stores [`pkcs8`](Self::pkcs8) before anybody hears of it.
    pub fn generate() -> Result<Self, IdError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| IdError::NoRandomness)?;
        Self::from_pkcs8(document.as_ref())
    }

    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, IdError> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|rejected| IdError::Key { why: rejected.to_string() })?;
        let id = NodeId::of_public_key(pair.public_key().as_ref());
        Ok(Self { pair: Arc::new(pair), pkcs8: pkcs8.into(), id })
    }

    /// The private key. For the data directory and for TLS, nowhere else.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    pub fn node_id(&self) -> NodeId {
        self.id
    }

    /// 32 bytes.
    pub fn public_key(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// 64 bytes.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({}, ***)", self.id)
    }
}

/// Why something is not an identity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdError {
    #[error("an id is {wanted} hex digits; this has {found} characters or other ones")]
    NotHex { wanted: usize, found: usize },

    #[error("the node's key is not an Ed25519 key in PKCS#8: {why}")]
    Key { why: String },

    #[error("the system gives no random bytes")]
    NoRandomness,
}

/// Lower case only, so that an id has one spelling.
fn from_hex<const N: usize>(text: &str) -> Result<[u8; N], IdError> {
    let refused = || IdError::NotHex { wanted: 2 * N, found: text.chars().count() };
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return Err(refused());
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = 16 * hex_digit(pair[0]).ok_or_else(refused)? + hex_digit(pair[1]).ok_or_else(refused)?;
    }
    Ok(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What `status` prints can be given to every command.
        #[test]
        fn what_is_shown_is_read_back(node: u64, cluster: [u8; 16]) {
            let (node, cluster) = (NodeId::new(node), ClusterId::new(cluster));

            prop_assert_eq!(node.to_string().parse(), Ok(node));
            prop_assert_eq!(cluster.to_string().parse(), Ok(cluster));
            prop_assert_eq!(serde_json::from_str::<NodeId>(&serde_json::to_string(&node).unwrap()).unwrap(), node);
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let node = text.parse::<NodeId>();

            prop_assert_eq!(node.is_ok(), text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
        }
    }

    #[test]
    fn an_id_in_json_is_text() {
        assert_eq!(serde_json::to_string(&NodeId::new(0xab)).unwrap(), r#""00000000000000ab""#);
        assert_eq!(serde_json::to_string(&ClusterId::NONE).unwrap(), format!("\"{}\"", "0".repeat(32)));
    }

    #[test]
    fn a_key_stored_is_the_same_node() {
        let key = NodeKey::generate().unwrap();

        let read = NodeKey::from_pkcs8(key.pkcs8()).unwrap();

        assert_eq!(read.node_id(), key.node_id());
        assert_eq!(read.node_id(), NodeId::of_public_key(key.public_key()));
        assert_ne!(NodeKey::generate().unwrap().node_id(), key.node_id());
        assert!(matches!(NodeKey::from_pkcs8(&key.pkcs8()[1..]), Err(IdError::Key { .. })));
    }

    #[test]
    fn a_key_is_not_shown() {
        let key = NodeKey::generate().unwrap();

        assert_eq!(format!("{key:?}"), format!("NodeKey({}, ***)", key.node_id()));
    }
}

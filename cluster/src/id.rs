//! Who is who between nodes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A node: the first 64 bits of BLAKE3 of its public key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct NodeId(u64);

/// A cluster, from its bootstrap on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct ClusterId([u8; 16]);

/// Counts forced recoveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct Epoch(u32);

/// One life of a process; 0: none yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct Incarnation(u64);

macro_rules! newtype {
    ($name:ident, $inner:ty) => {
        impl $name {
            pub const fn new(inner: $inner) -> Self {
                Self(inner)
            }

            pub const fn get(self) -> $inner {
                self.0
            }
        }
    };
}

newtype!(NodeId, u64);
newtype!(ClusterId, [u8; 16]);
newtype!(Epoch, u32);
newtype!(Incarnation, u64);

impl ClusterId {
    /// Not in a cluster yet.
    pub const NONE: Self = Self([0; 16]);
}

/// 16 hexadecimal digits.
impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Why a text is no [`NodeId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a node id; wanted 16 hexadecimal digits")]
pub struct NodeIdError {
    pub text: String,
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NodeIdError { text: text.to_owned() };
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !digits {
            return Err(wrong());
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_overflow| wrong())
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

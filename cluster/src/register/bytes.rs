//! Where values of the register become bytes and the other way round. The only caller of an encoder in this room.

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why bytes are not the value wanted.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("{bytes} bytes are more than the {max} allowed")]
    TooLarge { bytes: usize, max: u64 },
    #[error("the bytes are of version {version}; up to {known} is known")]
    Version { version: u8, known: u8 },
    #[error("there are no bytes")]
    Empty,
    #[error("the bytes hold what cannot be together: {why}")]
    Inconsistent { why: String },
    #[error("the bytes do not hold the value wanted")]
    Malformed(#[source] bincode::Error),
}

/// With `version` before it. Cannot fail for values that are whole in memory; if it did, nothing at all is returned,
/// which [`decode`] refuses.
pub fn encode<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
    let mut bytes = vec![version];
    match bincode::DefaultOptions::new().with_no_limit().with_fixint_encoding().serialize_into(&mut bytes, value) {
        Ok(()) => bytes,
        Err(error) => {
            tracing::error!(%error, "the register could not be written");
            Vec::new()
        }
    }
}

pub fn decode<T: DeserializeOwned>(known: u8, bytes: &[u8], max: u64) -> Result<T, DecodeError> {
    if u64::try_from(bytes.len()).map_or(true, |length| length > max) {
        return Err(DecodeError::TooLarge { bytes: bytes.len(), max });
    }
    let (version, rest) = bytes.split_first().ok_or(DecodeError::Empty)?;
    if *version > known {
        return Err(DecodeError::Version { version: *version, known });
    }
    bincode::DefaultOptions::new()
        .with_limit(max)
        .with_fixint_encoding()
        .reject_trailing_bytes()
        .deserialize(rest)
        .map_err(DecodeError::Malformed)
}

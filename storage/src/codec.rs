//! Bytes on disk: a version, a checksum, and what they guard. The only place where bytes become values.
//!
//! `version: u8 · CRC32C of version and payload: u32, little-endian · payload`. No version is 0, so that a stretch of zeros,
//! which is what a file system shows where data never arrived, is never taken for anything.

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 5;

/// Why bytes are not a value.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("{found} bytes are too few for a header of {HEADER_BYTES}")]
    Short { found: usize },

    #[error("checksum is {found:08x} and should be {wanted:08x}: the bytes are damaged")]
    Checksum { wanted: u32, found: u32 },

    #[error("{found} bytes where at most {limit} are allowed")]
    TooLarge { limit: u64, found: u64 },

    #[error("version 0 is never written")]
    NoVersion,

    #[error("the bytes are whole and not of the expected shape")]
    Shape(#[source] bincode::Error),
}

/// A value with its version and checksum. Fails only for what bincode cannot write, such as a sequence of unknown length.
pub fn encode<T: Serialize + ?Sized>(version: u8, value: &T) -> Result<Vec<u8>, CodecError> {
    let payload = options(u64::MAX).serialize(value).map_err(CodecError::Shape)?;
    Ok(seal(version, &[&payload]))
}

/// The version and the value. Where versions differ in shape, ask [`version`] first.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: u64) -> Result<(u8, T), CodecError> {
    let found = bytes.len() as u64;
    if found > limit.saturating_add(HEADER_BYTES as u64) {
        return Err(CodecError::TooLarge { limit, found });
    }
    let (version, payload) = unseal(bytes)?;
    let value = options(limit).deserialize(payload).map_err(CodecError::Shape)?;
    Ok((version, value))
}

/// The version of sealed bytes, unchecked.
pub fn version(bytes: &[u8]) -> Result<u8, CodecError> {
    match bytes.first() {
        None => Err(CodecError::Short { found: 0 }),
        Some(0) => Err(CodecError::NoVersion),
        Some(version) => Ok(*version),
    }
}

/// Guards raw bytes, one part after another, by a version and a checksum.
pub fn seal(version: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(HEADER_BYTES + parts.iter().map(|part| part.len()).sum::<usize>());
    sealed.extend_from_slice(&header(version, parts));
    for part in parts {
        sealed.extend_from_slice(part);
    }
    sealed
}

/// What stands before `parts`, for who writes them without copying them together.
pub fn header(version: u8, parts: &[&[u8]]) -> [u8; HEADER_BYTES] {
    let checksum = parts.iter().fold(crc32c::crc32c(&[version]), |sum, part| crc32c::crc32c_append(sum, part));
    let [a, b, c, d] = checksum.to_le_bytes();
    [version, a, b, c, d]
}

/// Version and payload of sealed bytes that are whole.
pub fn unseal(bytes: &[u8]) -> Result<(u8, &[u8]), CodecError> {
    let Some((&[version, a, b, c, d], payload)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(CodecError::Short { found: bytes.len() });
    };
    if version == 0 {
        return Err(CodecError::NoVersion);
    }
    let wanted = u32::from_le_bytes([a, b, c, d]);
    let found = crc32c::crc32c_append(crc32c::crc32c(&[version]), payload);
    if wanted != found {
        return Err(CodecError::Checksum { wanted, found });
    }
    Ok((version, payload))
}

fn options(limit: u64) -> impl Options {
    bincode::DefaultOptions::new().with_limit(limit).with_fixint_encoding().reject_trailing_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What was written comes back, with its version.
        #[test]
        fn values_survive(version in 1..=u8::MAX, value: (u64, String, Vec<Option<u16>>)) {
            let bytes = encode(version, &value).unwrap();

            prop_assert_eq!(super::version(&bytes).unwrap(), version);
            prop_assert_eq!(decode::<(u64, String, Vec<Option<u16>>)>(&bytes, 1 << 20).unwrap(), (version, value));
        }

        /// No single changed byte, nor a cut anywhere, is taken for a value.
        #[test]
        fn damage_is_seen(value: Vec<u8>, at: prop::sample::Index, flip in 1..=u8::MAX) {
            let bytes = encode(1, &value).unwrap();
            let mut changed = bytes.clone();
            changed[at.index(bytes.len())] ^= flip;

            prop_assert!(decode::<Vec<u8>>(&changed, 1 << 20).is_err());
            prop_assert!(decode::<Vec<u8>>(&bytes[..at.index(bytes.len())], 1 << 20).is_err());
        }

        /// Whatever is read from a disk, nothing panics.
        #[test]
        fn garbage_is_refused_politely(bytes: Vec<u8>) {
            prop_assert!(decode::<Vec<String>>(&bytes, 64).is_err());
        }
    }

    #[test]
    fn what_follows_the_value_is_an_error() {
        let bytes = seal(1, &[&7u32.to_le_bytes(), &[0]]);

        assert!(matches!(decode::<u32>(&bytes, 64), Err(CodecError::Shape(_))));
    }

    /// A length field cannot make the reader reserve more than the limit.
    #[test]
    fn a_claimed_length_is_held_to_the_limit() {
        let bytes = seal(1, &[&u64::MAX.to_le_bytes()]);

        assert!(matches!(decode::<Vec<u8>>(&bytes, 64), Err(CodecError::Shape(_))));
        assert!(matches!(decode::<Vec<u8>>(&[1; 100], 64), Err(CodecError::TooLarge { limit: 64, found: 100 })));
    }
}

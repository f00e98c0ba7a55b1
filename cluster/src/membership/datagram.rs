//! Gossip on the wire: messages cut into pieces that no network has to cut again, each sealed with the cluster's key.
//!
//! ```text
//! 0 version · 1..25 nonce · sealed: 0..8 message · 8 place · 9 pieces · 10.. bytes
//! ```
//! A datagram that is not of this cluster does not open, and nothing can be learnt from trying. One that was recorded
//! and sent again opens: what it says is old, and gossip goes by its own counters.

use std::collections::VecDeque;
use std::net::SocketAddr;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};

use crate::id::{ClusterId, Epoch};
use crate::peer::trust::GossipKey;

/// Bytes of a datagram: with the headers of UDP and IPv6 it fits the smallest packet every IPv6 network carries.
pub(super) const DATAGRAM_MAX: usize = 1232;

/// Bytes of a message: what chitchat fills at most.
pub(super) const MESSAGE_MAX: usize = 65_507;

/// Messages of which pieces are missing. The oldest makes room; gossip says everything again.
const INCOMPLETE_MAX: usize = 32;

const VERSION: u8 = 1;
const NONCE: usize = 24;
const TAG: usize = 16;
const HEAD: usize = 10;
const PIECE_MAX: usize = DATAGRAM_MAX - 1 - NONCE - TAG - HEAD;
const PIECES_MAX: usize = MESSAGE_MAX.div_ceil(PIECE_MAX);

/// What every datagram is bound to beside the key.
#[derive(Clone, Debug)]
pub(super) struct Bound(Vec<u8>);

impl Bound {
    pub fn to(cluster: ClusterId, epoch: Epoch) -> Self {
        Self([b"lea gossip ", cluster.bytes().as_slice(), &epoch.get().to_le_bytes()].concat())
    }
}

/// One message as datagrams.
pub(super) fn seal(key: &GossipKey, bound: &Bound, message: &[u8]) -> Result<Vec<Vec<u8>>, SealError> {
    let count = message.len().div_ceil(PIECE_MAX).max(1);
    let pieces = u8::try_from(count).ok().filter(|_| count <= PIECES_MAX);
    let pieces = pieces.ok_or(SealError::TooLong { length: message.len() })?;
    let cipher = XChaCha20Poly1305::new(Key::from_slice(&key.0));
    let id: [u8; 8] = random()?;
    let mut datagrams = Vec::with_capacity(count);
    for place in 0..pieces {
        let start = usize::from(place) * PIECE_MAX;
        let bytes = &message[start..message.len().min(start + PIECE_MAX)];
        let nonce: [u8; NONCE] = random()?;
        let plain = [&id, [place, pieces].as_slice(), bytes].concat();
        let sealed = cipher.encrypt(XNonce::from_slice(&nonce), Payload { msg: &plain, aad: &bound.0 });
        let sealed = sealed.map_err(|_| SealError::Cipher)?;
        datagrams.push([&[VERSION], nonce.as_slice(), &sealed].concat());
    }
    Ok(datagrams)
}

fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| SealError::NoRandomness)?;
    Ok(bytes)
}

/// Why a message is not sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum SealError {
    #[error("a message has at most {MESSAGE_MAX} bytes; this has {length}")]
    TooLong { length: usize },

    #[error("the cipher refuses")]
    Cipher,

    #[error("the system gives no random bytes")]
    NoRandomness,
}

/// A part of a message that was sealed by a member.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    message: [u8; 8],
    place: u8,
    pieces: u8,
    bytes: Vec<u8>,
}

/// `None` for whatever is not from this cluster.
pub(super) fn open(keys: &[GossipKey], bound: &Bound, datagram: &[u8]) -> Option<Piece> {
    let (version, rest) = datagram.split_first()?;
    let (nonce, sealed) = rest.split_at_checked(NONCE).filter(|_| *version == VERSION)?;
    let plain = keys.iter().find_map(|key| {
        let cipher = XChaCha20Poly1305::new(Key::from_slice(&key.0));
        cipher.decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: &bound.0 }).ok()
    })?;
    let (head, bytes) = plain.split_first_chunk::<HEAD>()?;
    let (place, pieces) = (head[8], head[9]);
    if place >= pieces || usize::from(pieces) > PIECES_MAX || bytes.len() > PIECE_MAX {
        return None;
    }
    let mut message = [0; 8];
    message.copy_from_slice(&head[..8]);
    Some(Piece { message, place, pieces, bytes: bytes.to_vec() })
}

/// Puts messages together again. Pieces may come in any order, twice or never.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    incomplete: VecDeque<Incomplete>,
}

#[derive(Debug)]
struct Incomplete {
    from: SocketAddr,
    message: [u8; 8],
    pieces: Vec<Option<Vec<u8>>>,
}

impl Assembly {
    /// The message, when this was its last missing piece.
    pub fn add(&mut self, from: SocketAddr, piece: Piece) -> Option<Vec<u8>> {
        if piece.pieces == 1 {
            return Some(piece.bytes);
        }
        let known = self.incomplete.iter().position(|known| known.from == from && known.message == piece.message);
        let at = known.unwrap_or_else(|| {
            if self.incomplete.len() >= INCOMPLETE_MAX {
                self.incomplete.pop_front();
            }
            let pieces = vec![None; usize::from(piece.pieces)];
            self.incomplete.push_back(Incomplete { from, message: piece.message, pieces });
            self.incomplete.len() - 1
        });
        let found = self.incomplete.get_mut(at)?;
        *found.pieces.get_mut(usize::from(piece.place))? = Some(piece.bytes);
        if found.pieces.iter().any(Option::is_none) {
            return None;
        }
        let whole = self.incomplete.remove(at)?;
        Some(whole.pieces.into_iter().flatten().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn key(byte: u8) -> GossipKey {
        GossipKey([byte; 32])
    }

    fn bound() -> Bound {
        Bound::to(ClusterId::new([1; 16]), Epoch::new(2))
    }

    fn from() -> SocketAddr {
        ([127, 0, 0, 1], 9).into()
    }

    fn arrive(assembly: &mut Assembly, datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let pieces = datagrams.iter().filter_map(|datagram| open(&[key(1)], &bound(), datagram));
        pieces.filter_map(|piece| assembly.add(from(), piece)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever the network does to the order, and if it brings pieces twice.
        #[test]
        fn a_message_arrives_once_as_it_was_sent(
            message in vec(any::<u8>(), 0..8000),
            order in vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut datagrams = seal(&key(1), &bound(), &message).unwrap();
            for place in order {
                let place = place.index(datagrams.len());
                datagrams.swap(0, place);
            }
            let twice = datagrams[0].clone();
            if datagrams.len() > 1 {
                datagrams.insert(0, twice);
            }

            prop_assert_eq!(arrive(&mut Assembly::default(), &datagrams), vec![message]);
        }

        #[test]
        fn no_bytes_open(bytes in vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(open(&[key(1), key(2)], &bound(), &bytes), None);
        }

        #[test]
        fn a_changed_datagram_does_not_open(place: prop::sample::Index, bit in 0..8_u32) {
            let mut datagram = seal(&key(1), &bound(), b"hello").unwrap().remove(0);
            let place = place.index(datagram.len());
            datagram[place] ^= 1 << bit;

            prop_assert_eq!(open(&[key(1)], &bound(), &datagram), None);
        }
    }

    #[test]
    fn only_the_key_and_the_cluster_open() {
        let datagram = seal(&key(1), &bound(), b"hello").unwrap().remove(0);

        assert!(open(&[key(1)], &bound(), &datagram).is_some());
        assert!(open(&[key(2), key(1)], &bound(), &datagram).is_some(), "while a secret is rotated");
        assert_eq!(open(&[key(2)], &bound(), &datagram), None);
        for other in
            [Bound::to(ClusterId::new([2; 16]), Epoch::new(2)), Bound::to(ClusterId::new([1; 16]), Epoch::new(3))]
        {
            assert_eq!(open(&[key(1)], &other, &datagram), None);
        }
    }

    /// chitchat fills 65,507 bytes, and that with a seal round it no socket takes.
    #[test]
    fn the_longest_message_fits() {
        let message = vec![7; MESSAGE_MAX];

        let datagrams = seal(&key(1), &bound(), &message).unwrap();

        assert!(datagrams.iter().all(|datagram| datagram.len() <= DATAGRAM_MAX));
        assert_eq!(arrive(&mut Assembly::default(), &datagrams), [message]);
        let longer = vec![7; PIECES_MAX * PIECE_MAX + 1];
        assert!(matches!(seal(&key(1), &bound(), &longer), Err(SealError::TooLong { .. })));
    }

    /// Lost pieces cost the message they belong to and no memory.
    #[test]
    fn what_never_completes_makes_room() {
        let mut assembly = Assembly::default();
        for _ in 0..3 * INCOMPLETE_MAX {
            let datagrams = seal(&key(1), &bound(), &[7; 3000]).unwrap();
            assert!(arrive(&mut assembly, &datagrams[1..]).is_empty());
        }

        assert_eq!(assembly.incomplete.len(), INCOMPLETE_MAX);
        let whole = seal(&key(1), &bound(), &[8; 3000]).unwrap();
        assert_eq!(arrive(&mut assembly, &whole), [vec![8; 3000]]);
    }
}

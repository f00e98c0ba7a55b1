//! The first exchange on a connection, before any call: each side proves which node it is.
//!
//! The node's key signs what only the two ends of this TLS session know, so a proof is worth nothing elsewhere.
//!
//! ```text
//! 0..4 "LEAP" · 4 version · 5 lane · 6..38 public key · 38..102 signature
//! ```
//! Then the server sends one byte more: it believes the client, who would otherwise learn of a refusal in its first call.

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Lane;
use super::trust::Trust;
use crate::id::{NodeId, NodeKey};

const MAGIC: &[u8; 4] = b"LEAP";
const VERSION: u8 = 1;
const KEY: std::ops::Range<usize> = 6..38;
const SIGNATURE: std::ops::Range<usize> = 38..102;
const LEN: usize = 102;

const WELCOME: u8 = 1;

const LABEL: &[u8] = b"EXPORTER-llm-edge-agent-node";

/// Which end of the session speaks; part of what is signed, so that a proof cannot be sent back as the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

/// Who is at the other end, proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub node: NodeId,
    /// What the connection is for; the client decides.
    pub lane: Lane,
}

/// The client's part. The caller bounds the time.
pub(super) async fn as_client(
    stream: &mut tokio_rustls::client::TlsStream<TcpStream>,
    trust: &Trust,
    lane: Lane,
) -> Result<Peer, HelloError> {
    let session = stream.get_ref().1;
    let secret = session.export_keying_material([0; 32], LABEL, None).map_err(|_| HelloError::Session)?;
    let leaf = leaf_key(trust, session.peer_certificates())?;
    exchange(stream, trust.node_key(), (Side::Client, lane), &secret, leaf.as_deref()).await
}

/// The server's part. The caller bounds the time.
pub(super) async fn as_server(
    stream: &mut tokio_rustls::server::TlsStream<TcpStream>,
    trust: &Trust,
) -> Result<Peer, HelloError> {
    let session = stream.get_ref().1;
    let secret = session.export_keying_material([0; 32], LABEL, None).map_err(|_| HelloError::Session)?;
    let leaf = leaf_key(trust, session.peer_certificates())?;
    exchange(stream, trust.node_key(), (Side::Server, Lane::Consensus), &secret, leaf.as_deref()).await
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    key: &NodeKey,
    (side, lane): (Side, Lane),
    secret: &[u8; 32],
    leaf: Option<&[u8]>,
) -> Result<Peer, HelloError> {
    stream.write_all(&write(key, side, lane, secret)).await.map_err(HelloError::Connection)?;
    stream.flush().await.map_err(HelloError::Connection)?;
    let mut theirs = [0; LEN];
    stream.read_exact(&mut theirs).await.map_err(HelloError::Connection)?;
    let other = match side {
        Side::Client => Side::Server,
        Side::Server => Side::Client,
    };
    let peer = read(&theirs, other, secret, leaf)?;
    match side {
        Side::Client => {
            let welcome = stream.read_u8().await.map_err(HelloError::Connection)?;
            if welcome == WELCOME { Ok(Peer { lane, ..peer }) } else { Err(HelloError::Stranger) }
        }
        Side::Server => {
            stream.write_u8(WELCOME).await.map_err(HelloError::Connection)?;
            stream.flush().await.map_err(HelloError::Connection)?;
            Ok(peer)
        }
    }
}

fn write(key: &NodeKey, side: Side, lane: Lane, secret: &[u8; 32]) -> [u8; LEN] {
    let mut hello = [0; LEN];
    hello[..4].copy_from_slice(MAGIC);
    hello[4] = VERSION;
    hello[5] = lane.code();
    hello[KEY].copy_from_slice(key.public_key());
    let signature = key.sign(&signed(&hello[..KEY.end], side, secret));
    hello[SIGNATURE].copy_from_slice(&signature);
    hello
}

fn read(hello: &[u8; LEN], side: Side, secret: &[u8; 32], leaf: Option<&[u8]>) -> Result<Peer, HelloError> {
    if &hello[..4] != MAGIC {
        return Err(HelloError::Stranger);
    }
    if hello[4] != VERSION {
        return Err(HelloError::Version { found: hello[4] });
    }
    let lane = Lane::of_code(hello[5]).ok_or(HelloError::Lane { found: hello[5] })?;
    let key = &hello[KEY];
    ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, key)
        .verify(&signed(&hello[..KEY.end], side, secret), &hello[SIGNATURE])
        .map_err(|_| HelloError::Unproved)?;
    if leaf.is_some_and(|leaf| leaf != key) {
        return Err(HelloError::OtherKey);
    }
    Ok(Peer { node: NodeId::of_public_key(key), lane })
}

fn signed(hello: &[u8], side: Side, secret: &[u8; 32]) -> Vec<u8> {
    let side: &[u8] = match side {
        Side::Client => b"client",
        Side::Server => b"server",
    };
    [b"llm-edge-agent hello ", side, b" ", secret, hello].concat()
}

/// The key in the peer's certificate, where it has to be the node's.
fn leaf_key(trust: &Trust, chain: Option<&[CertificateDer<'_>]>) -> Result<Option<Vec<u8>>, HelloError> {
    if !trust.leaf_is_node() {
        return Ok(None);
    }
    let leaf = chain.and_then(<[_]>::first).ok_or(HelloError::NoCertificate)?;
    let (_rest, certificate) = X509Certificate::from_der(leaf).map_err(|_| HelloError::NoCertificate)?;
    Ok(Some(certificate.public_key().subject_public_key.data.to_vec()))
}

/// Why the other end is nobody.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    #[error("the TLS session gives no secret to sign")]
    Session,

    #[error("the connection broke in the first exchange")]
    Connection(#[source] std::io::Error),

    #[error("the other end does not speak as a node")]
    Stranger,

    #[error("version {VERSION} of the first exchange is spoken here; this is {found}")]
    Version { found: u8 },

    #[error("there is no lane {found}")]
    Lane { found: u8 },

    #[error("the other end does not prove its key")]
    Unproved,

    #[error("the other end has no certificate that can be read")]
    NoCertificate,

    #[error("the other end proves another key than its certificate has")]
    OtherKey,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECRET: [u8; 32] = [7; 32];

    #[test]
    fn a_node_proves_itself() {
        let key = NodeKey::generate().unwrap();

        let hello = write(&key, Side::Client, Lane::Bodies, &SECRET);

        let peer = read(&hello, Side::Client, &SECRET, Some(key.public_key())).unwrap();
        assert_eq!(peer, Peer { node: key.node_id(), lane: Lane::Bodies });
    }

    /// A proof taken from another session, sent back, or made for another certificate proves nothing.
    #[test]
    fn a_borrowed_proof_is_worth_nothing() {
        let (key, other) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let hello = write(&key, Side::Client, Lane::Bodies, &SECRET);

        assert!(matches!(read(&hello, Side::Client, &[8; 32], None), Err(HelloError::Unproved)));
        assert!(matches!(read(&hello, Side::Server, &SECRET, None), Err(HelloError::Unproved)));
        assert!(matches!(read(&hello, Side::Client, &SECRET, Some(other.public_key())), Err(HelloError::OtherKey)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_prove(bytes in proptest::collection::vec(any::<u8>(), LEN)) {
            let mut hello: [u8; LEN] = bytes.try_into().unwrap();
            prop_assert!(read(&hello, Side::Client, &SECRET, None).is_err());

            hello[..6].copy_from_slice(&[b'L', b'E', b'A', b'P', VERSION, 0]);
            prop_assert!(read(&hello, Side::Client, &SECRET, None).is_err());
        }
    }
}

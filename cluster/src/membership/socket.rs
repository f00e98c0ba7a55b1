//! chitchat's socket, sealed: what it sends leaves as datagrams of the cluster, and only such reach it.
//!
//! chitchat keeps the bytes of its messages to itself; only its own UDP socket writes and reads them. So that one is
//! opened on loopback, where [`Translator`] talks to it alone, and what goes out is sealed on the way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chitchat::ChitchatEnvelope;
use chitchat::transport::{RecvOutcome, SendOutcome, Socket, Transport, UdpTransport};
use metrics::counter;
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::datagram::{self, Assembly, Bound, MESSAGE_MAX};
use super::metrics::{DATAGRAMS, DROPPED};
use crate::peer::trust::LiveTrust;

/// Loopback hands over at once; a message that takes longer made no sense to chitchat and was dropped by it.
const TRANSLATE_MAX: Duration = Duration::from_millis(100);

/// After an error of the socket: were it to last, trying at once would burn a core.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Larger than any datagram of ours; what is longer is cut by the system and does not open.
const RECEIVE_MAX: usize = 2048;

/// Opens sockets that share one port: gossip may be started again within the process.
pub(super) struct Sealed {
    outside: Arc<UdpSocket>,
    trust: LiveTrust,
    bound: Bound,
    dropped: Arc<AtomicU64>,
}

impl Sealed {
    pub fn new(outside: UdpSocket, trust: LiveTrust, bound: Bound) -> Self {
        Self { outside: Arc::new(outside), trust, bound, dropped: Arc::default() }
    }

    /// Counts what is dropped.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }
}

#[async_trait]
impl Transport for Sealed {
    /// The port is bound already; `listen` is where it is.
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(SealedSocket {
            outside: Arc::clone(&self.outside),
            translator: Translator::open().await?,
            trust: Arc::clone(&self.trust),
            bound: self.bound.clone(),
            assembly: Assembly::default(),
            buffer: vec![0; RECEIVE_MAX],
            handed_on: None,
            dropped: self.dropped(),
        }))
    }
}

struct SealedSocket {
    outside: Arc<UdpSocket>,
    translator: Translator,
    trust: LiveTrust,
    bound: Bound,
    assembly: Assembly,
    buffer: Vec<u8>,
    /// Who sent the message that the translator has and we have not read back: receiving may be interrupted.
    handed_on: Option<SocketAddr>,
    dropped: Arc<AtomicU64>,
}

#[async_trait]
impl Socket for SealedSocket {
    fn local_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.outside.local_addr()?)
    }

    /// Never fails: an error would end gossip for good, and whatever is wrong with this message or this address, the
    /// next may do. Gossip says everything again.
    async fn send(&mut self, to: SocketAddr, envelope: ChitchatEnvelope) -> anyhow::Result<SendOutcome> {
        let num_bytes_sent = self.try_send(to, envelope).await.unwrap_or_else(|reason| {
            self.drop(reason, to);
            0
        });
        Ok(SendOutcome { num_bytes_sent })
    }

    /// Never fails, for the same reason. May be dropped where it waits.
    async fn recv(&mut self) -> anyhow::Result<RecvOutcome> {
        loop {
            if let Some(from_addr) = self.handed_on {
                let read = self.translator.read().await;
                self.handed_on = None;
                if let Some((envelope, num_bytes_received)) = read {
                    return Ok(RecvOutcome { from_addr, envelope, num_bytes_received });
                }
                self.drop("message", from_addr);
            }
            match self.outside.recv_from(&mut self.buffer).await {
                Ok((length, from)) => self.take(length, from),
                Err(cause) => {
                    warn!(%cause, "gossip cannot receive");
                    counter!(DROPPED, "reason" => "receive").increment(1);
                    sleep(ERROR_PAUSE).await;
                }
            }
        }
    }
}

impl SealedSocket {
    async fn try_send(&mut self, to: SocketAddr, envelope: ChitchatEnvelope) -> Result<usize, &'static str> {
        let message = self.translator.write(envelope).await?;
        let trust = self.trust.load_full();
        let key = trust.gossip_keys().first().ok_or("key")?;
        let datagrams = datagram::seal(key, &self.bound, &message).map_err(|_| "seal")?;
        for datagram in datagrams {
            self.outside.send_to(&datagram, to).await.map_err(|_| "send")?;
            counter!(DATAGRAMS, "direction" => "sent").increment(1);
        }
        Ok(message.len())
    }

    /// Does not wait, so that nothing is lost between a datagram and its hand-over.
    fn take(&mut self, length: usize, from: SocketAddr) {
        let trust = self.trust.load();
        let Some(piece) = datagram::open(trust.gossip_keys(), &self.bound, &self.buffer[..length]) else {
            return self.drop("unsealed", from);
        };
        counter!(DATAGRAMS, "direction" => "received").increment(1);
        let Some(message) = self.assembly.add(from, piece) else { return };
        if self.translator.hand_on(&message) {
            self.handed_on = Some(from);
        } else {
            self.drop("translate", from);
        }
    }

    fn drop(&self, reason: &'static str, peer: SocketAddr) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        counter!(DROPPED, "reason" => reason).increment(1);
        debug!(%peer, reason, "a message of gossip is dropped");
    }
}

/// Turns messages into bytes and back by way of chitchat's own socket. One at a time.
struct Translator {
    inside: Box<dyn Socket>,
    /// Connected to `inside`, so it hears nobody else.
    relay: UdpSocket,
    relay_address: SocketAddr,
    buffer: Vec<u8>,
}

impl Translator {
    async fn open() -> anyhow::Result<Self> {
        let mut last = None;
        for loopback in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            match Self::open_on(loopback).await {
                Ok(translator) => return Ok(translator),
                Err(cause) => last = Some(cause),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("there is no loopback address")))
    }

    async fn open_on(loopback: IpAddr) -> anyhow::Result<Self> {
        let inside = UdpTransport.open(SocketAddr::new(loopback, 0)).await?;
        let relay = UdpSocket::bind(SocketAddr::new(loopback, 0)).await?;
        relay.connect(inside.local_addr()?).await?;
        let relay_address = relay.local_addr()?;
        Ok(Self { inside, relay, relay_address, buffer: vec![0; MESSAGE_MAX] })
    }

    /// A message as bytes.
    async fn write(&mut self, envelope: ChitchatEnvelope) -> Result<Vec<u8>, &'static str> {
        // What an interrupted call left behind.
        while self.relay.try_recv(&mut self.buffer).is_ok() {}
        self.inside.send(self.relay_address, envelope).await.map_err(|_| "translate")?;
        let received = timeout(TRANSLATE_MAX, self.relay.recv(&mut self.buffer)).await;
        let length = received.map_err(|_elapsed| "translate")?.map_err(|_| "translate")?;
        Ok(self.buffer[..length].to_vec())
    }

    /// Bytes for [`read`](Self::read) to return as a message. Whether they were taken.
    fn hand_on(&self, message: &[u8]) -> bool {
        self.relay.try_send(message).is_ok_and(|length| length == message.len())
    }

    /// The message handed on last, unless it made no sense.
    async fn read(&mut self) -> Option<(ChitchatEnvelope, usize)> {
        let ours = async {
            loop {
                let RecvOutcome { from_addr, envelope, num_bytes_received } = self.inside.recv().await.ok()?;
                // Other processes of this machine may send to `inside`; nothing of theirs was opened by us.
                if from_addr == self.relay_address {
                    return Some((envelope, num_bytes_received));
                }
                counter!(DROPPED, "reason" => "foreign").increment(1);
            }
        };
        timeout(TRANSLATE_MAX, ours).await.ok().flatten()
    }
}

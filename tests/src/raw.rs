//! Peers without manners: any bytes, cut anywhere, from a client or from a provider.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::{Reply, in_time};

/// A TCP connection to write anything to. Dropped, it closes.
#[derive(Debug)]
pub struct RawConnection {
    stream: TcpStream,
    seen: Vec<u8>,
}

impl RawConnection {
    pub async fn open(address: SocketAddr) -> Self {
        let stream = in_time("a connection", TcpStream::connect(address)).await.expect("a connection");
        Self { stream, seen: Vec::new() }
    }

    /// Writes all of `bytes`.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_write(bytes).await.expect("the peer reads on");
    }

    /// As [`RawConnection::write`], for peers that may have closed.
    pub async fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        in_time("room to write", self.stream.write_all(bytes.as_ref())).await
    }

    /// Says that nothing more will be written.
    pub async fn finish_writing(&mut self) {
        self.stream.shutdown().await.expect("an open connection");
    }

    /// Reads until `wanted` was seen; returns everything seen so far.
    pub async fn read_until(&mut self, wanted: &str) -> String {
        while !String::from_utf8_lossy(&self.seen).contains(wanted) {
            let count = self.read_some().await.expect("bytes");
            assert!(count > 0, "closed before `{wanted}`: {}", String::from_utf8_lossy(&self.seen));
        }
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Reads until the peer closes; returns everything seen, and whether the end was a clean one rather than a reset.
    pub async fn read_to_end(&mut self) -> (String, bool) {
        let ended = loop {
            match self.read_some().await {
                Ok(0) => break true,
                Ok(_count) => {}
                Err(_error) => break false,
            }
        };
        (String::from_utf8_lossy(&self.seen).into_owned(), ended)
    }

    /// The status of the first answer.
    pub async fn status(&mut self) -> u16 {
        let text = self.read_until("\r\n").await;
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.unwrap_or_else(|| panic!("not an answer: {text}"))
    }

    /// Reads one whole answer that has a `content-length`, and forgets it.
    pub async fn reply(&mut self) -> Reply {
        let text = self.read_until("\r\n\r\n").await;
        let (head, _rest) = text.split_once("\r\n\r\n").expect("a head");
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("not a header: {line}"));
            headers.append(
                name.parse::<HeaderName>().expect("a header's name"),
                value.parse::<HeaderValue>().expect("a header's value"),
            );
        }
        let length = headers.get("content-length").and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        let start = head.len() + 4;
        let end = start + length.unwrap_or_else(|| panic!("no length: {head}"));
        while self.seen.len() < end {
            let count = self.read_some().await.expect("bytes");
            assert!(count > 0, "closed within an answer: {}", String::from_utf8_lossy(&self.seen));
        }
        let rest = self.seen.split_off(end);
        let seen = std::mem::replace(&mut self.seen, rest);
        let body = Bytes::copy_from_slice(&seen[start..]);
        Reply { status: status.unwrap_or_else(|| panic!("not an answer: {head}")), headers, body }
    }

    async fn read_some(&mut self) -> std::io::Result<usize> {
        in_time("bytes or an end", self.stream.read_buf(&mut self.seen)).await
    }
}

/// A provider that answers every request with the same bytes, whatever they are. Dropped, it is gone.
#[derive(Debug)]
pub struct RawProvider {
    address: SocketAddr,
    answer: Arc<Mutex<(Bytes, Afterwards)>>,
    _accepting: JoinSet<()>,
}

/// What a [`RawProvider`] does after it has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    Closes,
    /// Keeps the connection open and silent.
    Hangs,
}

impl RawProvider {
    /// Closes every connection without a word until it is told what to answer.
    pub async fn start() -> Self {
        let answer = Arc::new(Mutex::new((Bytes::new(), Afterwards::Closes)));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut accepting = JoinSet::new();
        let shared = Arc::clone(&answer);
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _peer)) = listener.accept().await {
                connections.spawn(converse(stream, Arc::clone(&shared)));
            }
        });
        Self { address, answer, _accepting: accepting }
    }

    /// From now on writes `answer` when a request has arrived whole, then does as told.
    pub fn answers(&self, answer: impl Into<Bytes>, afterwards: Afterwards) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = (answer.into(), afterwards);
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Whatever fails here is seen by the other side, which the test watches.
async fn converse(mut stream: TcpStream, answer: Arc<Mutex<(Bytes, Afterwards)>>) {
    let mut seen = Vec::new();
    while !has_whole_request(&seen) {
        if !matches!(stream.read_buf(&mut seen).await, Ok(1..)) {
            return;
        }
    }
    let (answer, afterwards) = answer.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if stream.write_all(&answer).await.is_err() {
        return;
    }
    match afterwards {
        Afterwards::Closes => drop(stream.shutdown().await),
        Afterwards::Hangs => {}
    }
    // A close with bytes unread would be a reset, and what was written might be lost.
    while matches!(stream.read_buf(&mut seen).await, Ok(1..)) {}
}

fn has_whole_request(seen: &[u8]) -> bool {
    let text = String::from_utf8_lossy(seen);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

//! A connection without manners: any bytes, cut anywhere.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::in_time;

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

    async fn read_some(&mut self) -> std::io::Result<usize> {
        in_time("bytes or an end", self.stream.read_buf(&mut self.seen)).await
    }
}

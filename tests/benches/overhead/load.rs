//! The load: HTTP/1.1 clients that cost little, closed loop or at a fixed rate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::processes::KEY;

/// Connections of an open loop: enough that a late answer does not hold up the next request.
const OPEN_CONNECTIONS: u32 = 64;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Never the same twice, answered whole.
    Whole,
    /// Never the same twice, streamed.
    Stream,
    /// As [`Shape::Stream`], with a long answer.
    LongStream,
    /// Always the same, answered whole.
    Hit,
}

/// What came of a load.
#[derive(Default)]
pub struct Done {
    pub requests: u64,
    pub failed: u64,
    pub chunks: u64,
    /// In microseconds, unsorted.
    pub latencies: Vec<u32>,
}

impl Done {
    fn merge(&mut self, other: Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.chunks += other.chunks;
        self.latencies.extend(other.latencies);
    }
}

pub struct Load {
    address: SocketAddr,
    shape: Shape,
    /// Makes every request another one, over all loads of this run.
    serial: Arc<AtomicU64>,
}

static SERIAL: AtomicU64 = AtomicU64::new(0);

impl Load {
    pub fn new(address: SocketAddr, shape: Shape) -> Self {
        let serial = Arc::new(AtomicU64::new(SERIAL.fetch_add(1, Ordering::Relaxed) << 40));
        Self { address, shape, serial }
    }

    /// Each connection sends its next request when it has its answer.
    pub async fn closed(&self, connections: usize, time: Duration) -> (Done, Duration) {
        let started = Instant::now();
        let mut set = JoinSet::new();
        for _ in 0..connections {
            let mut client = Client::connect(self.address, self.shape, Arc::clone(&self.serial)).await;
            set.spawn(async move {
                let mut done = Done::default();
                while started.elapsed() < time {
                    client.ask(&mut done).await;
                }
                done
            });
        }
        let mut all = Done::default();
        while let Some(done) = set.join_next().await {
            all.merge(done.unwrap());
        }
        (all, started.elapsed())
    }

    /// Requests are due at fixed times, whether or not earlier ones were answered; latency counts from when one was due.
    pub async fn open(&self, rate: u32, time: Duration) -> Done {
        let count = u64::from(rate) * time.as_secs();
        let between = Duration::from_secs(1) / rate;
        let mut set = JoinSet::new();
        let started = Instant::now() + Duration::from_millis(50);
        for lane in 0..OPEN_CONNECTIONS {
            let mut client = Client::connect(self.address, self.shape, Arc::clone(&self.serial)).await;
            set.spawn(async move {
                let mut done = Done::default();
                for slot in (u64::from(lane)..count).step_by(OPEN_CONNECTIONS as usize) {
                    let due = started + between * u32::try_from(slot).unwrap();
                    tokio::time::sleep_until(due.into()).await;
                    // The timer is late by up to a millisecond, which is not the target's doing.
                    let from = Instant::now().min(due + Duration::from_millis(1));
                    client.ask(&mut done).await;
                    let took = from.elapsed().as_micros();
                    done.latencies.push(u32::try_from(took).unwrap_or(u32::MAX));
                }
                done
            });
        }
        let mut all = Done::default();
        while let Some(done) = set.join_next().await {
            all.merge(done.unwrap());
        }
        all
    }
}

struct Client {
    socket: TcpStream,
    shape: Shape,
    serial: Arc<AtomicU64>,
    buffer: Vec<u8>,
}

impl Client {
    async fn connect(address: SocketAddr, shape: Shape, serial: Arc<AtomicU64>) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, shape, serial, buffer: Vec::with_capacity(64 * 1024) }
    }

    async fn ask(&mut self, done: &mut Done) {
        let request = self.request();
        self.socket.write_all(request.as_bytes()).await.unwrap();
        let (ok, chunks) = self.answer().await;
        done.requests += 1;
        done.failed += u64::from(!ok);
        done.chunks += chunks;
    }

    fn request(&self) -> String {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let (stream, cap, serial) = match self.shape {
            Shape::Whole => (false, 64, serial),
            Shape::Stream => (true, 64, serial),
            Shape::LongStream => (true, 2_000, serial),
            Shape::Hit => (false, 64, 0),
        };
        let body = format!(
            "{{\"model\":\"bench\",\"stream\":{stream},\"max_tokens\":{cap},\"messages\":[{{\"role\":\"system\",\"content\":\
             \"You answer questions of a bank's customers. Be brief, be kind, and never guess: if you do not know, say so \
             and name whom to ask. Do not repeat the question.\"}},{{\"role\":\"user\",\"content\":\"My card has not arrived \
             although it was sent a week ago. Where is it, and what can I do? My reference is {serial:020}.\"}}]}}"
        );
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
             authorization: Bearer {KEY}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    /// Reads one answer to its end. Whether it was a success, and how many events it had.
    async fn answer(&mut self) -> (bool, u64) {
        self.buffer.clear();
        let head = loop {
            if let Some(at) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            self.read().await;
        };
        let text = std::str::from_utf8(&self.buffer[..head]).unwrap().to_ascii_lowercase();
        let ok = text.starts_with("http/1.1 200");
        if let Some(length) = text.split("\r\n").find_map(|line| line.strip_prefix("content-length: ")) {
            let end = head + length.parse::<usize>().unwrap();
            while self.buffer.len() < end {
                self.read().await;
            }
        } else {
            while !self.buffer.ends_with(b"0\r\n\r\n") {
                self.read().await;
            }
        }
        let events = memchr::memmem::find_iter(&self.buffer[head..], b"data: ").count();
        (ok, events as u64)
    }

    async fn read(&mut self) {
        let read = self.socket.read_buf(&mut self.buffer).await.unwrap();
        assert!(read > 0, "the connection was closed in the middle of an answer");
    }
}

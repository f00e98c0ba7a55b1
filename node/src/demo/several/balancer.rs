//! A load balancer as stands in front of nodes: it asks the next one that is ready, and when that refuses the
//! connection, or says that it is out of touch with its cluster, another. A request that may have got further is never
//! sent again: it may have cost something.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use actors::supervisor::Tasks;
use hyper_util::client::legacy;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::live::View;
use super::node::Node;
use crate::demo::client::{AskError, Client, Seen, Way};
use crate::demo::world::KEY;

/// Requests at once.
const CLIENTS: usize = 8;

/// Failures that are kept to be shown.
const FAILURES_MAX: usize = 10;

pub struct Balancer {
    clients: Vec<Client>,
    views: watch::Receiver<View>,
    turn: AtomicUsize,
    tally: Vec<Tally>,
    failures: Mutex<Vec<String>>,
    failed: AtomicU64,
    asked: AtomicU64,
}

/// Of one node.
#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    /// Requests that were sent to it and not answered.
    cut: AtomicU64,
    /// Requests it took nothing of: asked of another node instead.
    refused: AtomicU64,
}

/// What became of a request.
enum Fate {
    Answered(usize),
    Cut(usize),
    Failed(String),
}

impl Balancer {
    pub fn new(nodes: &[Node], views: watch::Receiver<View>, tasks: &Tasks) -> Self {
        Self {
            clients: nodes.iter().map(|node| Client::new(node.addresses.api, tasks)).collect(),
            views,
            turn: AtomicUsize::new(0),
            tally: nodes.iter().map(|_node| Tally::default()).collect(),
            failures: Mutex::default(),
            failed: AtomicU64::new(0),
            asked: AtomicU64::new(0),
        }
    }

    /// Asks one node, and no other.
    pub async fn ask_node(&self, node: usize, key: &str, question: &str) -> Result<Seen, AskError> {
        self.clients[node].ask(key, "support", Way::OpenAi, question).await
    }

    pub fn answered(&self) -> u64 {
        self.tally.iter().map(|tally| tally.answered.load(Ordering::Relaxed)).sum()
    }

    pub fn answered_by(&self, node: usize) -> u64 {
        self.tally[node].answered.load(Ordering::Relaxed)
    }

    pub fn cut_at(&self, node: usize) -> u64 {
        self.tally[node].cut.load(Ordering::Relaxed)
    }

    pub fn cut(&self) -> u64 {
        self.tally.iter().map(|tally| tally.cut.load(Ordering::Relaxed)).sum()
    }

    pub fn refused(&self) -> u64 {
        self.tally.iter().map(|tally| tally.refused.load(Ordering::Relaxed)).sum()
    }

    /// Everything else that went wrong, and the first of it.
    pub fn failed(&self) -> (u64, Vec<String>) {
        (self.failed.load(Ordering::Relaxed), self.failures.lock().clone())
    }

    /// Clients that ask one question after the other, each a new one, until `stop`; what is under way is finished.
    pub fn load(self: &Arc<Self>, tasks: &Tasks, stop: &CancellationToken) -> Vec<tokio::sync::oneshot::Receiver<()>> {
        let start = |_client| {
            let (done, ended) = tokio::sync::oneshot::channel();
            let (balancer, stop) = (Arc::clone(self), stop.clone());
            tasks.spawn("demo load", async move {
                while !stop.is_cancelled() {
                    let fate = balancer.ask().await;
                    balancer.count(fate);
                }
                // Nobody waits any more: then nobody must be told.
                let _unheard = done.send(());
            });
            ended
        };
        (0..CLIENTS).map(start).collect()
    }

    async fn ask(&self) -> Fate {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let question = format!("When was payment {number} booked?");
        let mut refused = vec![false; self.clients.len()];
        while let Some(node) = self.next(&refused) {
            match self.ask_node(node, KEY, &question).await {
                Ok(seen) if seen.status == 200 && !seen.text().is_empty() => return Fate::Answered(node),
                Ok(seen) if seen.status == 503 && seen.code() == "cluster_unavailable" => {
                    self.tally[node].refused.fetch_add(1, Ordering::Relaxed);
                    refused[node] = true;
                }
                Ok(seen) => return Fate::Failed(format!("node {node} answered {} {}", seen.status, seen.code())),
                Err(error) if is_refused(&error) => {
                    self.tally[node].refused.fetch_add(1, Ordering::Relaxed);
                    refused[node] = true;
                }
                Err(_broke_off) => return Fate::Cut(node),
            }
        }
        Fate::Failed("no node is ready".to_owned())
    }

    /// The next node that is ready and has not refused this request.
    fn next(&self, refused: &[bool]) -> Option<usize> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let view = self.views.borrow();
        let count = self.clients.len();
        (0..count).map(|at| (turn + at) % count).find(|node| !refused[*node] && view.ready(*node))
    }

    fn count(&self, fate: Fate) {
        match fate {
            Fate::Answered(node) => self.tally[node].answered.fetch_add(1, Ordering::Relaxed),
            Fate::Cut(node) => self.tally[node].cut.fetch_add(1, Ordering::Relaxed),
            Fate::Failed(why) => {
                let mut failures = self.failures.lock();
                if failures.len() < FAILURES_MAX {
                    failures.push(why);
                }
                self.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

/// Whether nothing of the request was sent: there was no connection.
fn is_refused(error: &AskError) -> bool {
    error.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpListener};

    async fn asked(address: SocketAddr) -> AskError {
        let tasks = Tasks::new();
        let asked = Client::new(address, &tasks).ask(KEY, "support", Way::OpenAi, "Where is my card?").await;
        asked.err().expect("nobody answers there")
    }

    /// Only what nobody has read may be sent again.
    #[tokio::test]
    async fn a_refused_connection_is_told_from_one_that_broke() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let breaking = std::thread::spawn(move || drop(listener.accept().unwrap()));

        let broke = asked(address).await;
        breaking.join().unwrap();
        let refused = asked(address).await;

        assert!(!is_refused(&broke), "{broke:?}");
        assert!(is_refused(&refused), "{refused:?}");
    }
}

//! Work that is not an actor: connections, streams, flights. This is the one place that spawns.

use super::metrics::TASK_PANICS;
use futures_util::FutureExt;
use parking_lot::RwLock;
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

/// Spawns tasks and remembers them until they end. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
    running: Arc<RwLock<BTreeMap<&'static str, Arc<AtomicUsize>>>>,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `future` to its end. Shutdown waits for it but does not interrupt it. Its panic is logged and counted.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let counted = Counted::enter(self.count(name));
        self.tracker.spawn(async move {
            let _counted = counted;
            if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
                metrics::counter!(TASK_PANICS, "task" => name).increment(1);
                error!(task = name, panic = words_of(panic.as_ref()), "a task panicked");
            }
        });
    }

    /// As [`spawn`](Self::spawn), for work that must know of a shutdown: the token is cancelled when one begins.
    pub fn spawn_cancellable<F>(&self, name: &'static str, make: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(name, make(self.token.child_token()));
    }

    /// Cancelled when the shutdown begins.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// For hyper, which spawns the streams of an HTTP/2 connection itself.
    pub fn executor(&self, name: &'static str) -> Executor {
        Executor { tasks: self.clone(), name }
    }

    /// Tells every task to end, then waits at most `deadline`. What still runs after it is reported, not killed: it
    /// ends with the runtime.
    pub async fn shutdown(&self, deadline: Duration) -> Result<(), Remaining> {
        self.token.cancel();
        self.tracker.close();
        match tokio::time::timeout(deadline, self.tracker.wait()).await {
            Ok(()) => Ok(()),
            Err(_elapsed) => Err(Remaining { tasks: self.running() }),
        }
    }

    /// How many tasks of each name run now.
    pub fn running(&self) -> BTreeMap<&'static str, usize> {
        let running = self.running.read();
        let counts = running.iter().map(|(name, count)| (*name, count.load(Ordering::Acquire)));
        counts.filter(|(_name, count)| *count > 0).collect()
    }

    /// Names are literals, so there are few.
    fn count(&self, name: &'static str) -> Arc<AtomicUsize> {
        if let Some(count) = self.running.read().get(name) {
            return Arc::clone(count);
        }
        Arc::clone(self.running.write().entry(name).or_default())
    }
}

/// Tasks that had not ended at the deadline.
#[derive(Debug, thiserror::Error)]
#[error("tasks still ran at the deadline: {tasks:?}")]
pub struct Remaining {
    pub tasks: BTreeMap<&'static str, usize>,
}

/// Gives what hyper spawns to [`Tasks`].
#[derive(Clone)]
pub struct Executor {
    tasks: Tasks,
    name: &'static str,
}

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        self.tasks.spawn(self.name, future.map(drop));
    }
}

/// One running task in the table of names; gone when the task is, however it ended.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn enter(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("not a text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_panic_ends_its_own_task_only() {
        let tasks = Tasks::new();
        let (send, receive) = oneshot::channel();

        tasks.spawn("broken", async { panic!("boom") });
        tasks.spawn("sound", async move { send.send(7).expect("someone listens") });

        assert_eq!(receive.await, Ok(7));
        tasks.shutdown(Duration::from_secs(5)).await.expect("both have ended");
        assert!(tasks.running().is_empty());
    }

    #[tokio::test]
    async fn shutdown_tells_and_waits() {
        let tasks = Tasks::new();
        let (send, mut receive) = oneshot::channel();
        tasks.spawn_cancellable("patient", |token| async move {
            token.cancelled().await;
            tokio::task::yield_now().await;
            send.send(()).expect("someone listens");
        });

        tasks.shutdown(Duration::from_secs(5)).await.expect("it ended when told");

        assert_eq!(receive.try_recv(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_names_what_remains() {
        let tasks = Tasks::new();
        tasks.spawn("deaf", std::future::pending());
        tasks.spawn("deaf", std::future::pending());
        tasks.spawn("brief", async {});

        let remaining = tasks.shutdown(Duration::from_secs(5)).await.expect_err("two never end");

        assert_eq!(remaining.tasks, BTreeMap::from([("deaf", 2)]));
    }

    #[tokio::test]
    async fn what_hyper_spawns_is_waited_for() {
        let tasks = Tasks::new();
        let (send, mut receive) = oneshot::channel();

        hyper::rt::Executor::execute(&tasks.executor("http2"), async move { send.send(3) });
        tasks.shutdown(Duration::from_secs(5)).await.expect("it ended");

        assert_eq!(receive.try_recv(), Ok(3));
    }

    #[test]
    fn a_panic_of_either_text_type_is_readable() {
        assert_eq!(words_of(&"plain"), "plain");
        assert_eq!(words_of(&String::from("made")), "made");
        assert_eq!(words_of(&7), "not a text");
    }
}

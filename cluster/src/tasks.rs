//! Work that goes on beside the caller: connections, loops, gossip. The one place of this room that spawns.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

/// Spawns tasks, remembers them until they end and ends them when told. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// A part that can be stopped by itself; stopped with the whole, and waited for by whoever stops the whole.
    #[must_use]
    pub fn part(&self) -> Self {
        Self { tracker: self.tracker.clone(), stop: self.stop.child_token() }
    }

    /// Runs `future` until it ends or [`stop`](Self::stop) is called; then it is dropped where it waits. Its panic is
    /// logged and ends nothing else.
    #[expect(clippy::disallowed_methods, reason = "this is the tracked spawn of the room")]
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        let watched = self.tracker.track_future(async move {
            let guarded = AssertUnwindSafe(future).catch_unwind();
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                ended = guarded => if let Err(panic) = ended {
                    error!(task = name, panic = words_of(panic.as_ref()), "a task panicked");
                },
            }
        });
        // Nobody joins it: the tracker waits for it.
        drop(tokio::spawn(watched));
    }

    /// Cancelled when the end begins, for what must say goodbye.
    pub fn token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// For hyper, which spawns the streams of a connection itself.
    pub fn executor(&self, name: &'static str) -> Executor {
        Executor { tasks: self.clone(), name }
    }

    /// Ends every task of this part.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Ends every task and waits for them, at most `deadline`. Tells whether all have ended.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok()
    }
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
        assert!(tasks.shutdown(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn a_part_ends_alone_and_the_whole_waits_for_it() {
        let tasks = Tasks::new();
        let part = tasks.part();
        let (in_part, part_ended) = oneshot::channel::<()>();
        let (in_whole, mut whole_ended) = oneshot::channel::<()>();
        part.spawn("part", async move {
            std::future::pending::<()>().await;
            drop(in_part);
        });
        tasks.spawn("whole", async move {
            std::future::pending::<()>().await;
            drop(in_whole);
        });

        part.stop();

        assert!(part_ended.await.is_err());
        assert_eq!(whole_ended.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert!(tasks.shutdown(Duration::from_secs(5)).await);
        assert!(whole_ended.await.is_err());
    }
}

//! A process that stands still while others go on.
//!
//! An approximation: all nodes share one runtime, and openraft spawns its own tasks there. So what stands still is all that
//! this program runs for the node (its disk, its network both ways, its budgets, the requests it works on), and the timers
//! of Raft alone go on: they are heard by nobody, and written to no log.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Cheap to clone; clones are the same process.
#[derive(Clone, Default)]
pub struct Pause(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    stands: bool,
    /// Whoever was polled meanwhile.
    woken: Vec<Waker>,
}

impl Pause {
    pub fn begin(&self) {
        self.0.lock().stands = true;
    }

    pub fn end(&self) {
        let woken = {
            let mut state = self.0.lock();
            state.stands = false;
            std::mem::take(&mut state.woken)
        };
        woken.into_iter().for_each(Waker::wake);
    }

    /// A part of the process: it does nothing while that stands still.
    pub async fn hold<F: Future>(self, part: F) -> F::Output {
        let mut part = std::pin::pin!(part);
        let step = |context: &mut Context<'_>| {
            if self.stands(context) { Poll::Pending } else { part.as_mut().poll(context) }
        };
        std::future::poll_fn(step).await
    }

    /// Returns once the process goes on.
    pub async fn over(&self) {
        let step = |context: &mut Context<'_>| if self.stands(context) { Poll::Pending } else { Poll::Ready(()) };
        std::future::poll_fn(step).await;
    }

    fn stands(&self, context: &Context<'_>) -> bool {
        let mut state = self.0.lock();
        if state.stands {
            state.woken.push(context.waker().clone());
        }
        state.stands
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_stands_still_goes_on_where_it_was() {
        let (pause, started) = (Pause::default(), tokio::time::Instant::now());
        let slept = || pause.clone().hold(tokio::time::sleep(Duration::from_secs(1)));
        slept().await;
        assert_eq!(started.elapsed(), Duration::from_secs(1));

        pause.begin();
        let later = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            pause.end();
        };
        tokio::join!(slept(), later);

        assert_eq!(started.elapsed(), Duration::from_secs(6));
    }
}

//! What the nodes say of themselves, asked again and again; whatever changes is a line of the report.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actors::supervisor::Tasks;
use cluster::clock;
use futures_util::future::join_all;
use http::{StatusCode, Uri};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::node::Node;
use crate::admin::status::Status;
use crate::admin::status::cluster::{ClusterRole, ClusterStatus};
use crate::cli::client::{Ask, Client as Operator};
use crate::demo::client::AskError;
use crate::output;

/// Between two questions to each node.
const EVERY: Duration = Duration::from_millis(50);

/// For one answer. A node that takes longer counts as gone.
const PATIENCE: Duration = Duration::from_secs(1);

/// What one node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// As load balancers ask.
    pub ready: bool,
    pub cluster: ClusterStatus,
}

/// All nodes at one moment; `None` for one that does not answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub nodes: Vec<(String, Option<Seen>)>,
}

/// Dropped, it goes on until the tasks end.
pub struct Live {
    views: watch::Receiver<View>,
    loud: Arc<AtomicBool>,
}

impl View {
    pub fn node(&self, number: usize) -> Option<&Seen> {
        self.nodes.get(number)?.1.as_ref()
    }

    pub fn ready(&self, number: usize) -> bool {
        self.node(number).is_some_and(|seen| seen.ready)
    }

    fn seen(&self) -> impl Iterator<Item = (usize, &Seen)> {
        self.nodes.iter().enumerate().filter_map(|(number, (_name, seen))| Some((number, seen.as_ref()?)))
    }

    /// Who leads by his own word, in the latest term.
    pub fn leader(&self) -> Option<usize> {
        let leaders = self.seen().filter(|(_number, seen)| seen.cluster.role == ClusterRole::Leader);
        leaders.max_by_key(|(_number, seen)| seen.cluster.term).map(|(number, _seen)| number)
    }

    fn term(&self) -> u64 {
        self.seen().map(|(_number, seen)| seen.cluster.term).max().unwrap_or_default()
    }

    /// Changes that are written somewhere and not in force at this node.
    pub fn lag(&self, number: usize) -> Option<u64> {
        let written = self.seen().map(|(_number, seen)| seen.cluster.last_log).max()?;
        Some(written.saturating_sub(self.node(number)?.cluster.applied))
    }

    /// What is worth a line when it changes: terms and roles, and who is there.
    fn gist(&self) -> (u64, Vec<&'static str>) {
        let word = |seen: &Option<Seen>| match seen {
            None => "gone",
            Some(seen) if !seen.ready => "not ready",
            Some(seen) => seen.cluster.role.name(),
        };
        (self.term(), self.nodes.iter().map(|(_name, seen)| word(seen)).collect())
    }

    /// `term 2   edge-0 gone   edge-1 leader, lag 0   …`
    fn line(&self) -> String {
        let (term, words) = self.gist();
        let mut line = format!("term {term}");
        for (number, ((name, _seen), word)) in self.nodes.iter().zip(words).enumerate() {
            let lag = self.lag(number).map(|lag| format!(", lag {lag}")).unwrap_or_default();
            let cell = format!("{name} {word}{lag}");
            // Writing to a String cannot fail.
            let _infallible = write!(line, "   {cell:<26}");
        }
        line.trim_end().to_owned()
    }
}

impl Live {
    pub fn start(nodes: &[Node], tasks: &Tasks, stop: &CancellationToken) -> Self {
        let unseen = View { nodes: nodes.iter().map(|node| (node.name.clone(), None)).collect() };
        let (tell, views) = watch::channel(unseen);
        let loud = Arc::new(AtomicBool::new(true));
        let places = nodes.iter().map(|node| (node.name.clone(), format!("http://{}", node.addresses.admin)));
        let (places, stop, talking) = (places.collect(), stop.clone(), Arc::clone(&loud));
        tasks.spawn("demo watch", async move {
            tokio::select! { () = stop.cancelled() => {}, () = watch_all(places, tell, talking) => {} }
        });
        Self { views, loud }
    }

    pub fn views(&self) -> watch::Receiver<View> {
        self.views.clone()
    }

    pub fn now(&self) -> View {
        self.views.borrow().clone()
    }

    /// From now on changes are no lines any more.
    pub fn hush(&self) {
        self.loud.store(false, Ordering::Relaxed);
    }

    /// Waits until the nodes are as wanted. How long that took.
    pub async fn until(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&View) -> bool,
    ) -> Result<Duration, AskError> {
        let since = clock::now();
        let mut views = self.views.clone();
        let seen = tokio::time::timeout(within, views.wait_for(wanted)).await;
        match seen {
            Ok(Ok(_view)) => Ok(clock::now().saturating_duration_since(since)),
            Ok(Err(_closed)) => Err("nobody looks at the nodes any more".into()),
            Err(_elapsed) => Err(format!("{within:?} were not enough: {what}; {}", self.now().line()).into()),
        }
    }
}

async fn watch_all(places: Vec<(String, String)>, tell: watch::Sender<View>, loud: Arc<AtomicBool>) {
    let began = clock::now();
    loop {
        let asked = places.iter().map(|(name, url)| async { (name.clone(), look(url).await) });
        let view = View { nodes: join_all(asked).await };
        let changed = view.gist() != tell.borrow().gist();
        if changed && loud.load(Ordering::Relaxed) {
            say(began, &view);
        }
        tell.send_replace(view);
        tokio::time::sleep(EVERY).await;
    }
}

fn say(began: Instant, view: &View) {
    let passed = clock::now().saturating_duration_since(began).as_secs_f64();
    // Who reads no more misses nothing that counts.
    let _unheard = output::line(&format!("     {passed:>6.2}s  {}", view.line()));
}

/// One node, if it answers.
async fn look(url: &str) -> Option<Seen> {
    let operator = Operator { url: url.parse::<Uri>().ok()?, key: None };
    let status = operator.ask(Ask { patience: PATIENCE, ..Ask::get("/status") }).await.ok()?;
    let status: Status = serde_json::from_slice(&status.body).ok()?;
    let ready = operator.ask(Ask { patience: PATIENCE, ..Ask::get("/readyz") }).await.ok()?;
    Some(Seen { ready: ready.status == StatusCode::OK, cluster: status.cluster? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::cluster::tests::cluster;

    fn seen(role: ClusterRole, term: u64, applied: u64) -> Seen {
        Seen { ready: true, cluster: ClusterStatus { role, term, applied, ..cluster() } }
    }

    fn view(nodes: Vec<Option<Seen>>) -> View {
        View { nodes: nodes.into_iter().enumerate().map(|(at, seen)| (format!("edge-{at}"), seen)).collect() }
    }

    /// A leader that does not know yet of the one after it still says that it leads.
    #[test]
    fn of_two_leaders_the_later_one_leads() {
        let both = view(vec![Some(seen(ClusterRole::Leader, 2, 42)), None, Some(seen(ClusterRole::Leader, 3, 42))]);

        assert_eq!(both.leader(), Some(2));
        assert_eq!(view(vec![None, Some(seen(ClusterRole::Follower, 3, 1))]).leader(), None);
    }

    #[test]
    fn a_line_says_term_roles_and_lag() {
        let now = view(vec![None, Some(seen(ClusterRole::Leader, 3, 42)), Some(seen(ClusterRole::Follower, 3, 40))]);

        assert_eq!(
            now.line(),
            "term 3   edge-0 gone                  edge-1 leader, lag 0         edge-2 follower, lag 2"
        );
        assert_eq!(now.lag(0), None);
    }
}

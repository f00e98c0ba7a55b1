use super::*;
use crate::peer::Lane;
use std::collections::HashMap;
use storage::disk::simulated::SimulatedDisk;

/// Nodes that can be taken off the net, reset and asked by address.
#[derive(Clone, Default)]
struct Net {
    nodes: Arc<Mutex<HashMap<String, Bootstrap>>>,
    /// Promised by this node the next time anyone is asked anything, before the answer.
    meanwhile: Arc<Mutex<Option<(Bootstrap, Promise)>>>,
}

impl Transport for Net {
    fn call(
        &self,
        to: NodeId,
        _lane: Lane,
        _service: Service,
        _body: Bytes,
        _deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        async move { Err(CallError::NoAddress { node: to }) }.boxed()
    }

    fn call_address(
        &self,
        address: &str,
        service: Service,
        body: Bytes,
        _deadline: Duration,
    ) -> BoxFuture<'static, Result<(NodeId, Bytes), CallError>> {
        let node = self.nodes.lock().get(address).cloned();
        let address = address.to_owned();
        let meanwhile = self.meanwhile.lock().take();
        async move {
            if let Some((bootstrap, promise)) = meanwhile {
                assert!(bootstrap.keep_promise(promise).await.unwrap());
            }
            let Some(bootstrap) = node else {
                return Err(CallError::Unreachable { address, why: "it is down".to_owned() });
            };
            let me = bootstrap.introduction.me;
            let answer = Asked { bootstrap, what: service }.answer(body).await.map_err(CallError::Refused)?;
            Ok((me, answer))
        }
        .boxed()
    }
}

fn cells() -> Cells {
    Cells::open(SimulatedDisk::new().disk(), Arc::new(|_reason| {})).unwrap()
}

fn node(id: u64, name: &str, seeds: &[&str], cells: &Cells) -> Bootstrap {
    let introduction = Introduction {
        me: NodeId::new(id),
        place: Place { name: name.to_owned(), address: name.to_owned(), zone: None },
        seeds: seeds.iter().map(|name| ((*name).to_owned(), (*name).to_owned())).collect(),
        join: Vec::new(),
        gossip: String::new(),
    };
    Bootstrap::open(introduction, cells.clone()).unwrap()
}

impl Net {
    fn up(&self, name: &str, bootstrap: &Bootstrap) {
        self.nodes.lock().insert(name.to_owned(), bootstrap.clone());
    }

    fn down(&self, name: &str) {
        self.nodes.lock().remove(name);
    }

    /// What a node waits for, at the end of a minute; or what it found.
    async fn outcome(&self, bootstrap: &Bootstrap) -> Result<Found, String> {
        let said = Mutex::new(String::new());
        let find = bootstrap.find(self, |words| words.clone_into(&mut said.lock()));
        match tokio::time::timeout(Duration::from_mins(1), find).await {
            Ok(found) => Ok(found.unwrap()),
            Err(_elapsed) => Err(said.into_inner()),
        }
    }
}

const ABC: [&str; 3] = ["a", "b", "c"];

/// Starts all three and returns them with their disks.
fn three(net: &Net) -> Vec<(Bootstrap, Cells)> {
    (1..)
        .zip(ABC)
        .map(|(id, name)| {
            let cells = cells();
            let bootstrap = node(id, name, &ABC, &cells);
            net.up(name, &bootstrap);
            (bootstrap, cells)
        })
        .collect()
}

fn promise_to(id: u64, name: &str, by: &Bootstrap) -> Promise {
    let founder = Founder { node: NodeId::new(id), place: Place { name: name.to_owned(), ..Place::default() } };
    Promise::new(&founder, ClusterId::new([7; 16]), Seeds::of(&by.introduction.seeds), &BTreeMap::new())
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_alone_founds_at_once_and_keeps_its_cluster() {
    let cells = cells();
    let net = Net::default();

    let first = net.outcome(&node(1, "a", &[], &cells)).await.unwrap();
    let again = net.outcome(&node(1, "a", &[], &cells)).await.unwrap();

    assert!(matches!(&first, Found::Founder { voters, .. } if voters.len() == 1));
    assert_eq!(first.home(), again.home());
}

#[tokio::test(start_paused = true)]
async fn three_seeds_make_one_cluster_of_three_voters() {
    let net = Net::default();
    let nodes = three(&net);

    let (a, b, c) = tokio::join!(net.outcome(&nodes[0].0), net.outcome(&nodes[1].0), net.outcome(&nodes[2].0));

    let a = a.unwrap();
    assert!(matches!(&a, Found::Founder { voters, .. } if voters.len() == 3), "{a:?}");
    assert_eq!(b.unwrap(), Found::Member { home: a.home() });
    assert_eq!(c.unwrap(), Found::Member { home: a.home() });
}

#[tokio::test(start_paused = true)]
async fn nobody_founds_while_one_is_missing_and_each_says_for_whom_it_waits() {
    let net = Net::default();
    let nodes = three(&net);
    net.down("c");

    let (a, b) = tokio::join!(net.outcome(&nodes[0].0), net.outcome(&nodes[1].0));

    assert!(a.unwrap_err().contains("`c` at c does not answer"));
    assert!(b.unwrap_err().contains("`a`, the first of the seeds, has not initialised yet"));
}

#[tokio::test(start_paused = true)]
async fn other_seeds_on_one_node_found_nothing() {
    let net = Net::default();
    let nodes = three(&net);
    let short = node(3, "c", &["a", "c"], &nodes[2].1);
    net.up("c", &short);

    let (a, c) = tokio::join!(net.outcome(&nodes[0].0), net.outcome(&short));

    assert!(a.unwrap_err().contains("`b` only in the founder's list"));
    assert!(c.is_err());
}

/// A founder that comes back with an empty disk is somebody else: what was promised to its former self is not its.
#[tokio::test(start_paused = true)]
async fn a_founder_that_lost_its_disk_before_founding_gets_nothing_until_the_promise_is_forgotten() {
    let net = Net::default();
    let nodes = three(&net);
    let promise = Promise::new(
        &Founder { node: NodeId::new(1), place: Place { name: "a".to_owned(), ..Place::default() } },
        ClusterId::new([7; 16]),
        Seeds::of(&nodes[0].0.introduction.seeds),
        &BTreeMap::new(),
    );
    assert!(nodes[1].0.keep_promise(promise).await.unwrap());
    let replaced = node(9, "a", &ABC, &cells());
    net.up("a", &replaced);

    let waits = net.outcome(&replaced).await.unwrap_err();
    assert!(waits.contains("`b` does not promise") && waits.contains("forget-promise"), "{waits}");

    nodes[1].0.forget_promise(&net).await.unwrap();
    assert!(net.outcome(&replaced).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_promise_is_not_forgotten_while_its_founder_answers() {
    let net = Net::default();
    let nodes = three(&net);
    net.down("c");
    let _waits = net.outcome(&nodes[0].0).await;
    assert!(
        matches!(nodes[1].0.forget_promise(&net).await, Err(NotForgotten::None)),
        "a asks all only once all are there"
    );
    net.up("c", &nodes[2].0);
    let promise = nodes[0].0.known.lock().promised.clone();
    assert!(promise.is_none());

    let promise = Promise::new(
        &Founder { node: NodeId::new(1), place: nodes[0].0.introduction.place.clone() },
        ClusterId::new([7; 16]),
        Seeds::of(&nodes[0].0.introduction.seeds),
        &BTreeMap::new(),
    );
    nodes[1].0.keep_promise(promise).await.unwrap();
    assert!(matches!(nodes[1].0.forget_promise(&net).await, Err(NotForgotten::Answers { .. })));
}

/// The cluster is there, and the first of the seeds comes back with an empty disk: it joins and founds nothing.
#[tokio::test(start_paused = true)]
async fn a_founder_that_lost_its_disk_later_joins_what_it_founded() {
    let net = Net::default();
    let nodes = three(&net);
    let (a, b) = tokio::join!(net.outcome(&nodes[0].0), net.outcome(&nodes[1].0));
    let replaced = node(9, "a", &ABC, &cells());
    net.up("a", &replaced);

    let found = net.outcome(&replaced).await.unwrap();

    assert_eq!(found, Found::Member { home: a.unwrap().home() });
    assert!(b.is_ok());
}

/// What was promised outlives the process.
#[tokio::test(start_paused = true)]
async fn who_promised_one_joins_no_other_cluster() {
    let net = Net::default();
    let disk = cells();
    let b = node(2, "b", &["a", "b"], &disk);
    let promise = promise_to(1, "a", &b);
    b.keep_promise(promise).await.unwrap();
    let elsewhere = node(5, "a", &[], &cells());
    net.outcome(&elsewhere).await.unwrap();
    net.up("a", &elsewhere);

    let waits = net.outcome(&node(2, "b", &["a", "b"], &disk)).await.unwrap_err();

    assert!(waits.contains("promised") && waits.contains("forget-promise"), "{waits}");
}

/// A file that leads to another cluster does not make a node of this one a member there, nor may it look like one.
#[tokio::test(start_paused = true)]
async fn a_node_of_another_cluster_waits_and_says_what_to_do() {
    let net = Net::default();
    let other = node(5, "x", &[], &cells());
    let theirs = net.outcome(&other).await.unwrap().home().cluster;
    let disk = cells();
    let ours = net.outcome(&node(1, "a", &[], &disk)).await.unwrap().home();
    net.up("x", &other);

    let sent = node(1, "a", &["a", "x"], &disk);
    let waits = net.outcome(&sent).await.unwrap_err();
    assert!(waits.contains(&ours.cluster.to_string()) && waits.contains(&theirs.to_string()), "{waits}");
    assert!(waits.contains("empty data directory"), "{waits}");

    let fellow = node(2, "b", &[], &cells());
    fellow.keep_home(ours).await.unwrap();
    net.up("b", &fellow);
    let found = net.outcome(&node(1, "a", &["a", "b", "x"], &disk)).await.unwrap();
    assert_eq!(found.home(), ours, "one of its own is enough");
    net.down("x");
    assert!(net.outcome(&sent).await.is_ok(), "nobody there, nothing to be mistaken about");
}

/// Whoever takes its seeds away must not make a founder of a node that promised another.
#[tokio::test(start_paused = true)]
async fn who_promised_another_founds_nothing_alone_either() {
    let disk = cells();
    let b = node(2, "b", &["a", "b"], &disk);
    let promise = promise_to(1, "a", &b);
    assert!(b.keep_promise(promise).await.unwrap());

    let waits = Net::default().outcome(&node(2, "b", &[], &disk)).await.unwrap_err();

    assert!(waits.contains("promised `a`"), "{waits}");
}

/// Between what a node knew when it asked and what it does with the answers, it may have promised.
#[tokio::test(start_paused = true)]
async fn a_promise_given_while_others_are_asked_binds() {
    let net = Net::default();
    let other = node(5, "x", &[], &cells());
    net.outcome(&other).await.unwrap();
    net.up("x", &other);
    let joins = node(2, "b", &["a", "b", "x"], &cells());
    *net.meanwhile.lock() = Some((joins.clone(), promise_to(1, "a", &joins)));

    let waits = net.outcome(&joins).await.unwrap_err();

    assert!(waits.contains("promised `a`"), "{waits}");

    let fellow = node(2, "b", &["a", "b"], &cells());
    net.up("b", &fellow);
    let founds = node(1, "a", &["a", "b"], &cells());
    *net.meanwhile.lock() = Some((founds.clone(), promise_to(9, "a", &founds)));

    let waits = net.outcome(&founds).await.unwrap_err();

    assert!(waits.contains("this node promised"), "{waits}");
    assert!(founds.known.lock().home.is_none() && fellow.known.lock().promised.is_none());
}

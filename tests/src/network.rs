//! A network of its own for a cluster: each node in a namespace, all on one bridge, the test beside them.
//!
//! ```text
//!   test process ── lea…          (this machine's namespace, 10.a.b.1)
//!                    │
//!             bridge in a namespace
//!              │      │      │
//!             eth0   eth0   eth0  (a namespace a node, 10.a.b.10, .11, …)
//! ```
//! What is cut is lost without a word, as in a network that is broken, and in one direction at a time: where `from` must
//! not reach `to`, it is told that `to` has a hardware address that nobody has. The test reaches every node all the time.
//!
//! Linux, root and iproute2 are needed. Dropped, also by a test that fails, it takes down all it made; what a test that
//! was killed has left, the next one takes down.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::random;

/// Whom nobody is: locally administered, and given to no interface here.
const NOBODY: &str = "02:00:00:00:00:01";

/// Of the interface in each node's namespace.
const PORT: &str = "eth0";

const FIRST_HOST: u8 = 10;

/// Where addresses begin that nodes move to.
const FIRST_HOST_AFTER_MOVES: u8 = 100;

const NODES_MAX: usize = 64;

/// How many subnets are tried before there seems to be none free.
const DRAWS_MAX: usize = 64;

/// A bridge with nodes on it.
#[derive(Debug)]
pub struct TestNetwork {
    /// Of the bridge's namespace and of the test's own interface; those of the nodes begin with it.
    name: String,
    subnet: [u8; 3],
    nodes: Vec<Ipv4Addr>,
    moves: u8,
    /// Who cannot send to whom.
    cuts: Mutex<BTreeSet<(usize, usize)>>,
}

impl TestNetwork {
    /// An empty network, or why there can be none here.
    pub fn new() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".to_owned());
        }
        ip("", "netns list").map_err(|why| format!("iproute2 is needed: {why}"))?;
        take_down_leftovers();
        let name = format!("lea{}x{:03x}", std::process::id(), random() & 0xfff);
        let network = Self { subnet: free_subnet()?, nodes: Vec::new(), moves: 0, cuts: Mutex::default(), name };
        network.lay().map_err(|why| format!("a bridge in a network namespace is needed: {why}"))?;
        Ok(network)
    }

    /// Where the test itself is, for what nodes are to reach.
    pub fn own_address(&self) -> IpAddr {
        self.host(1).into()
    }

    /// Adds a node. Its number, counted from 0, is what it is called by here.
    pub(crate) fn add(&mut self) -> IpAddr {
        assert!(self.nodes.len() < NODES_MAX, "a network has at most {NODES_MAX} nodes");
        let number = self.nodes.len();
        let address = self.host(FIRST_HOST + u8::try_from(number).expect("few nodes"));
        let (bridge, inside) = (&self.name, self.namespace(number));
        self.nodes.push(address);
        must("", &format!("netns add {inside}"));
        must("", &format!("link add node{number} netns {bridge} type veth peer name {PORT} netns {inside}"));
        must(bridge, &format!("link set node{number} master bridge up"));
        must(&inside, &format!("link set lo up\naddr add {address}/24 dev {PORT}\nlink set {PORT} up"));
        address.into()
    }

    /// The node's machine comes back elsewhere: its old address is gone.
    pub(crate) fn move_node(&mut self, number: usize) -> IpAddr {
        let next = self.host(FIRST_HOST_AFTER_MOVES + self.moves);
        self.moves += 1;
        let before = std::mem::replace(&mut self.nodes[number], next);
        let change = format!("addr del {before}/24 dev {PORT}\naddr add {next}/24 dev {PORT}");
        must(&self.namespace(number), &change);
        next.into()
    }

    /// `binary`, to be run where the node is.
    pub(crate) fn command(&self, number: usize, binary: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(number)]).arg(binary.as_ref());
        command
    }

    /// Nothing that `from` sends reaches `to`; the other way, all goes as it did.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        if self.cuts.lock().unwrap_or_else(PoisonError::into_inner).insert((from, to)) {
            let change = format!("neigh replace {} lladdr {NOBODY} nud permanent dev {PORT}", self.nodes[to]);
            must(&self.namespace(from), &change);
        }
    }

    /// Between those of `some` and those of `others` nothing passes.
    pub fn split(&self, some: &[usize], others: &[usize]) {
        for one in some {
            for other in others {
                self.cut_one_way(*one, *other);
                self.cut_one_way(*other, *one);
            }
        }
    }

    /// Between this node and all others nothing passes.
    pub fn cut(&self, number: usize) {
        let others: Vec<_> = (0..self.nodes.len()).filter(|other| *other != number).collect();
        self.split(&[number], &others);
    }

    /// Everyone reaches everyone.
    pub fn heal(&self) {
        let cuts = std::mem::take(&mut *self.cuts.lock().unwrap_or_else(PoisonError::into_inner));
        for (from, to) in cuts {
            must(&self.namespace(from), &format!("neigh del {} dev {PORT}", self.nodes[to]));
        }
    }

    fn lay(&self) -> Result<(), String> {
        let Self { name, .. } = self;
        ip("", &format!("netns add {name}"))?;
        ip(name, "link set lo up\nlink add bridge type bridge\nlink set bridge up")?;
        ip("", &format!("link add {name} type veth peer name test netns {name}"))?;
        ip(name, "link set test master bridge up")?;
        ip("", &format!("addr add {}/24 dev {name}\nlink set {name} up", self.host(1)))
    }

    fn namespace(&self, number: usize) -> String {
        format!("{}-{number}", self.name)
    }

    fn host(&self, host: u8) -> Ipv4Addr {
        let [one, two, three] = self.subnet;
        Ipv4Addr::new(one, two, three, host)
    }
}

impl Drop for TestNetwork {
    fn drop(&mut self) {
        // The test may have failed half-way: what was not made cannot be taken down.
        for number in 0..self.nodes.len() {
            let _gone = ip("", &format!("netns delete {}", self.namespace(number)));
        }
        let _gone = ip("", &format!("link delete {}", self.name));
        let _gone = ip("", &format!("netns delete {}", self.name));
    }
}

/// Namespaces named by a test process that is no more. Their interfaces go with them.
fn take_down_leftovers() {
    let listed = Command::new("ip").args(["netns", "list"]).output().map(|output| output.stdout).unwrap_or_default();
    for line in String::from_utf8_lossy(&listed).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let process = name.strip_prefix("lea").and_then(|rest| rest.split_once('x')).map(|(process, _random)| process);
        let Some(process) = process.and_then(|process| process.parse::<u32>().ok()) else { continue };
        if !Path::new("/proc").join(process.to_string()).exists() {
            // Another test may be faster.
            let _gone = ip("", &format!("netns delete {name}"));
        }
    }
}

/// Three bytes of a network that this machine has no route into.
fn free_subnet() -> Result<[u8; 3], String> {
    let routes = Command::new("ip").args(["-4", "route", "show", "table", "all"]).output();
    let routes = String::from_utf8_lossy(&routes.map_err(|why| why.to_string())?.stdout).into_owned();
    for _draw in 0..DRAWS_MAX {
        let [one, two, ..] = random().to_be_bytes();
        if !routes.contains(&format!(" 10.{one}.")) && !routes.contains(&format!("\n10.{one}.")) {
            return Ok([10, one, two]);
        }
    }
    Err("every network of 10.0.0.0/8 seems to be in use".to_owned())
}

/// Several commands of `ip`, one a line, in a namespace or, without a name, in this one's.
fn ip(namespace: &str, commands: &str) -> Result<(), String> {
    let mut command = Command::new("ip");
    if !namespace.is_empty() {
        command.args(["-n", namespace]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|why| format!("`ip`: {why}"))?;
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(format!("{commands}\n").as_bytes()).map_err(|why| format!("`ip`: {why}"))?;
    drop(input);
    let finished = child.wait_with_output().map_err(|why| format!("`ip`: {why}"))?;
    if finished.status.success() {
        return Ok(());
    }
    let mut why = String::from_utf8_lossy(&finished.stderr).trim().replace('\n', "; ");
    write!(why, " (ip {commands:?})").expect("a string takes everything");
    Err(why)
}

fn must(namespace: &str, commands: &str) {
    ip(namespace, commands).unwrap_or_else(|why| panic!("the network {namespace} does not do as told: {why}"));
}

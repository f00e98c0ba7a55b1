//! Several nodes of one cluster, each a process with its own address, configuration and data directory.
//!
//! Every node has a loopback address of its own (`127.x.y.z`), so all use the same ports, and two tests at once do not
//! meet. On a [`TestNetwork`] each has a network namespace instead, and can be cut off. What is done to a node (killed, paused, started again, its disk wiped) is done as an operator or a fault would.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Finished, Process};
use crate::{
    Client, FakeProvider, LONG, Metrics, Operator, TestNetwork, eventually_some_within, eventually_within, random, run,
};

const API: u16 = 8080;
const ADMIN: u16 = 8081;
const PEER: u16 = 7947;
const GOSSIP: u16 = 7946;

/// Some nodes of one cluster.
#[derive(Debug)]
pub struct TestCluster {
    members: Vec<Member>,
    plan: Plan,
    /// Goes after the nodes in it. Without one, nodes are on loopback.
    network: Option<TestNetwork>,
}

/// What all nodes share.
#[derive(Debug)]
struct Plan {
    binary: String,
    secret: String,
    config: String,
    cluster: String,
    places: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    seeds: Vec<(String, IpAddr)>,
    folder: TempDir,
}

/// One node, running or not.
#[derive(Debug)]
pub struct Member {
    pub name: String,
    address: IpAddr,
    process: Option<Process>,
    environment: Vec<(String, String)>,
    /// What it printed in earlier lives.
    printed: String,
    folder: PathBuf,
}

#[derive(Debug)]
pub struct TestClusterBuilder {
    binary: String,
    nodes: usize,
    config: String,
    cluster: String,
    places: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    network: Option<TestNetwork>,
}

impl TestClusterBuilder {
    /// Places the nodes on a network of their own.
    #[must_use]
    pub fn network(mut self, network: TestNetwork) -> Self {
        self.network = Some(network);
        self
    }

    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// What the files of all nodes have in common, in YAML: no `node`, `listen` or `cluster`.
    #[must_use]
    pub fn config(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.config);
        self
    }

    /// More settings of `cluster`, as members of a flow map: `stale_max: 2s, heartbeat: 50ms`.
    #[must_use]
    pub fn cluster(mut self, settings: &str) -> Self {
        settings.clone_into(&mut self.cluster);
        self
    }

    /// `{name}` in the configuration stands for the URL of `provider`, without a path.
    #[must_use]
    pub fn provider(mut self, name: &str, provider: &FakeProvider) -> Self {
        self.places.push((format!("{{{name}}}"), provider.url()));
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The nodes with their files, none of them running.
    pub async fn prepare(mut self) -> TestCluster {
        let made = run(&self.binary, &["cluster", "new-secret"], &[]).await;
        assert!(made.status.success(), "{}", made.stderr);
        let folder = tempfile::tempdir().expect("a folder");
        let seeds: Vec<_> =
            (0..self.nodes).map(|number| (format!("edge-{number}"), address_on(&mut self.network))).collect();
        let plan = Plan {
            binary: self.binary,
            secret: made.stdout.trim().to_owned(),
            config: self.config,
            cluster: self.cluster,
            places: self.places,
            environment: self.environment,
            seeds,
            folder,
        };
        let members = plan.seeds.iter().map(|(name, address)| plan.member(name, *address)).collect();
        let cluster = TestCluster { members, plan, network: self.network };
        for member in &cluster.members {
            cluster.write_config(&member.name, &cluster.plan.config);
        }
        cluster
    }

    /// Starts all nodes and waits until each is ready.
    pub async fn start(self) -> TestCluster {
        let mut cluster = self.prepare().await;
        for number in 0..cluster.members.len() {
            cluster.start(number);
        }
        for number in 0..cluster.members.len() {
            cluster.ready(number).await;
        }
        cluster
    }
}

impl Plan {
    fn member(&self, name: &str, address: IpAddr) -> Member {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).expect("a folder to write to");
        Member {
            name: name.to_owned(),
            address,
            process: None,
            environment: Vec::new(),
            printed: String::new(),
            folder,
        }
    }

    /// The whole file of one node.
    fn file(&self, member: &Member, config: &str, cluster: &str) -> String {
        let mut common = config.to_owned();
        for (place, value) in &self.places {
            common = common.replace(place, value);
        }
        let ip = member.address;
        let mut text = format!(
            "node: {{ name: {}, data_dir: \"{}\" }}\n\
             listen: {{ api: \"{ip}:{API}\", admin: \"{ip}:{ADMIN}\", peer: \"{ip}:{PEER}\", gossip: \"{ip}:{GOSSIP}\" }}\n",
            member.name,
            member.data_dir().display()
        );
        let settings = if self.cluster.is_empty() { String::new() } else { format!(", {}", self.cluster) };
        let written = writeln!(text, "cluster: {{ secret: \"{}\", {cluster}{settings} }}\n{common}", self.secret);
        written.expect("a string takes everything");
        text
    }

    /// The seeds as every first member knows them.
    fn seeds(&self) -> String {
        let seeds: Vec<_> = self.seeds.iter().map(|(name, ip)| format!("{name}: \"{ip}:{PEER}\"")).collect();
        format!("seeds: {{ {} }}", seeds.join(", "))
    }
}

impl Member {
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub fn config_path(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }

    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Where other nodes reach it.
    pub fn peer_address(&self) -> SocketAddr {
        (self.address, PEER).into()
    }

    pub fn gossip_address(&self) -> SocketAddr {
        (self.address, GOSSIP).into()
    }

    /// A client of its API, without a key.
    pub fn client(&self) -> Client {
        Client::new((self.address, API).into())
    }

    pub fn as_key(&self, key: &str) -> Client {
        self.client().with_key(key)
    }

    /// A client of its admin listener, without a key.
    pub fn operators(&self) -> Client {
        Client::new((self.address, ADMIN).into())
    }

    /// A client of its admin API with the key that was made when the cluster was.
    pub fn admin(&self, key: &str) -> Client {
        self.operators().with_key(key)
    }

    /// Everything it printed, in all its lives.
    pub fn printed(&self) -> String {
        let now = self.process.as_ref().map(Process::printed).unwrap_or_default();
        [self.printed.as_str(), &now].concat()
    }

    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("a node that was started")
    }

    /// `/status`, if the node answers.
    pub async fn status(&self) -> Option<Value> {
        let reply = self.operators().try_send(http::Method::GET, "/status", "").await.ok()?;
        (reply.status == 200).then(|| reply.json())
    }

    /// What `/readyz` says is missing, check by check; empty for a node that does not answer, or misses nothing.
    pub async fn waits_for(&self) -> String {
        let reply = self.operators().try_send(http::Method::GET, "/readyz", "").await;
        let Some(reply) = reply.ok().filter(|reply| reply.status != 200) else { return String::new() };
        let checks = reply.json()["checks"].as_array().cloned().unwrap_or_default();
        let missing = checks.iter().filter(|check| check["ok"] == false);
        missing.filter_map(|check| check["detail"].as_str().map(ToOwned::to_owned)).collect::<Vec<_>>().join("; ")
    }

    /// Waits until `/readyz` says that each of `words` is missing.
    pub async fn says(&self, words: &[&str]) {
        let mut last = String::new();
        let said = async || {
            last = self.waits_for().await;
            words.iter().all(|word| last.contains(word))
        };
        let name = &self.name;
        eventually_within(LONG, &format!("{name} says in /readyz: {words:?}"), said).await;
    }

    /// The cluster it belongs to, if it answers and belongs to one.
    pub async fn cluster_id(&self) -> Option<String> {
        self.status().await?["cluster"]["cluster"].as_str().map(ToOwned::to_owned)
    }

    pub async fn is_ready(&self) -> bool {
        let reply = self.operators().try_send(http::Method::GET, "/readyz", "").await;
        reply.is_ok_and(|reply| reply.status == 200)
    }

    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(&self.operators().get("/metrics").await.text())
    }
}

impl std::ops::Index<usize> for TestCluster {
    type Output = Member;

    fn index(&self, number: usize) -> &Member {
        &self.members[number]
    }
}

impl std::ops::IndexMut<usize> for TestCluster {
    fn index_mut(&mut self, number: usize) -> &mut Member {
        &mut self.members[number]
    }
}

impl TestCluster {
    pub fn builder(binary: &str) -> TestClusterBuilder {
        TestClusterBuilder {
            binary: binary.to_owned(),
            nodes: 3,
            config: String::new(),
            cluster: String::new(),
            places: Vec::new(),
            environment: Vec::new(),
            network: None,
        }
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    pub fn secret(&self) -> &str {
        &self.plan.secret
    }

    pub fn binary(&self) -> &str {
        &self.plan.binary
    }

    /// A node that comes later: it asks the others to be let in. Not running yet.
    pub fn add(&mut self) -> usize {
        let member = self.plan.member(&format!("edge-{}", self.members.len()), address_on(&mut self.network));
        self.members.push(member);
        let number = self.members.len() - 1;
        let name = self.members[number].name.clone();
        self.write_config(&name, &self.plan.config.clone());
        number
    }

    /// The network the nodes were placed on: what is cut there, and healed.
    pub fn network(&self) -> &TestNetwork {
        self.network.as_ref().expect("a cluster on a network")
    }

    /// A stopped node has another address when it is started again, and its file says so. The other files do not.
    pub fn move_node(&mut self, number: usize) {
        let network = self.network.as_mut().expect("a cluster on a network");
        self.members[number].address = network.move_node(number);
        let advertise = self.members[number].peer_address();
        let found_by = format!("{}, advertise: \"{advertise}\"", self.found_by(number));
        self.write_found_by(number, &found_by);
    }

    /// Gives every node a file with the seeds at the addresses they have now.
    pub fn write_seeds_where_they_are(&mut self) {
        for (name, address) in &mut self.plan.seeds {
            let member = self.members.iter().find(|member| member.name == *name).expect("a seed is a node");
            *address = member.address;
        }
        for member in &self.members {
            self.write_config(&member.name, &self.plan.config);
        }
    }

    /// Gives one node a file with other resources. A node that runs reads it when it is told to, or by itself.
    pub fn write_config(&self, name: &str, common: &str) {
        let number = self.members.iter().position(|member| member.name == name).expect("a node of that name");
        let member = &self.members[number];
        write_file(member, &self.plan.file(member, common, &self.found_by(number)));
    }

    fn found_by(&self, number: usize) -> String {
        let name = &self.members[number].name;
        let is_seed = self.plan.seeds.iter().any(|(seed, _)| seed == name);
        if is_seed { self.plan.seeds() } else { self.join() }
    }

    /// Gives one node a file in which `cluster` says how others are found: `seeds: {…}` or `join: […]`.
    pub fn write_found_by(&self, number: usize, found_by: &str) {
        let member = &self.members[number];
        write_file(member, &self.plan.file(member, &self.plan.config, found_by));
    }

    /// The text of a node's file, changed.
    pub fn edit_file(&self, number: usize, edit: impl FnOnce(String) -> String) {
        let member = &self.members[number];
        let text = std::fs::read_to_string(member.config_path()).expect("a file");
        write_file(member, &edit(text));
    }

    fn join(&self) -> String {
        let addresses: Vec<_> = self.plan.seeds.iter().map(|(_, ip)| format!("\"{ip}:{PEER}\"")).collect();
        format!("join: [{}]", addresses.join(", "))
    }

    /// Starts the process; does not wait for it.
    pub fn start(&mut self, number: usize) {
        self.start_with(number, &[]);
    }

    pub fn start_with(&mut self, number: usize, arguments: &[&str]) {
        let mut command = match &self.network {
            Some(network) => network.command(number, &self.plan.binary),
            None => Command::new(&self.plan.binary),
        };
        let member = &mut self.members[number];
        command.arg("run").arg("--config").arg(member.config_path()).args(arguments);
        command.env("TMPDIR", &member.folder);
        command.envs(self.plan.environment.iter().cloned()).current_dir(&member.folder);
        command.envs(member.environment.iter().cloned());
        member.retire();
        member.process = Some(Process::spawn(command));
    }

    /// One node's environment from its next start on, beside what all have.
    pub fn set_env(&mut self, number: usize, name: &str, value: &str) {
        self.members[number].environment.push((name.to_owned(), value.to_owned()));
    }

    /// Another process with the file of a node that may run. To be waited for.
    pub async fn run_beside(&self, number: usize, arguments: &[&str]) -> Finished {
        let path = self.members[number].config_path().display().to_string();
        run(&self.plan.binary, &[&["run", "--config", &path], arguments].concat(), &[]).await
    }

    /// `seeds: {…}` of some of the nodes, as [`TestCluster::write_found_by`] takes it.
    pub fn seeds_of(&self, numbers: &[usize]) -> String {
        let seeds: Vec<_> = numbers.iter().map(|number| &self.members[*number]).collect();
        let seeds: Vec<_> = seeds.iter().map(|seed| format!("{}: \"{}\"", seed.name, seed.peer_address())).collect();
        format!("seeds: {{ {} }}", seeds.join(", "))
    }

    /// Waits until the node serves.
    pub async fn ready(&self, number: usize) {
        let name = &self.members[number].name;
        eventually_within(LONG, &format!("{name} is ready"), async || self.members[number].is_ready().await).await;
    }

    /// Starts the process and waits until the node serves.
    pub async fn start_ready(&mut self, number: usize) {
        self.start(number);
        self.ready(number).await;
    }

    /// The end of a process without a word.
    pub async fn kill(&mut self, number: usize) {
        self.signal(number, Signal::KILL);
        self.gone(number).await;
    }

    /// Asks the node to leave, and waits until it has. Its exit status.
    pub async fn stop(&mut self, number: usize) -> std::process::ExitStatus {
        self.signal(number, Signal::TERM);
        self.gone(number).await
    }

    /// The process does nothing until it is resumed; its sockets stay open.
    pub fn pause(&self, number: usize) {
        self.signal(number, Signal::STOP);
    }

    pub fn resume(&self, number: usize) {
        self.signal(number, Signal::CONT);
    }

    pub fn hang_up(&self, number: usize) {
        self.signal(number, Signal::HUP);
    }

    /// Waits for the end of a process.
    pub async fn gone(&mut self, number: usize) -> std::process::ExitStatus {
        let member = &mut self.members[number];
        let process = member.process.take().expect("a node that was started");
        let finished = process.wait().await;
        member.printed += &(finished.stdout + &finished.stderr);
        finished.status
    }

    /// Removes all that a stopped node remembers.
    pub fn wipe(&self, number: usize) {
        std::fs::remove_dir_all(self.members[number].data_dir()).expect("a data directory");
    }

    /// The key of the admin API that was made with the cluster: one of the nodes has it.
    pub async fn admin_key(&self) -> String {
        eventually_some_within(LONG, "the first admin key is written", async || {
            self.members.iter().find_map(|member| std::fs::read_to_string(member.data_dir().join("admin.key")).ok())
        })
        .await
        .trim()
        .to_owned()
    }

    /// The operator of the cluster, at one of its nodes. Waits until that node knows the operator's key.
    pub async fn operator(&self, number: usize) -> Operator {
        let operator = self.operator_now(number).await;
        let name = &self.members[number].name;
        eventually_within(LONG, &format!("{name} knows the first admin key"), async || operator.is_known().await).await;
        operator
    }

    /// The same without waiting: for nodes that cannot know, or do not answer.
    pub async fn operator_now(&self, number: usize) -> Operator {
        Operator::new(self.members[number].admin(&self.admin_key().await))
    }

    /// Which node leads, by what a running node says. Waits until one does.
    pub async fn leader(&self) -> usize {
        eventually_some_within(LONG, "a leader is known", async || self.leader_now(&[]).await).await
    }

    /// Which node leads, other than `not`.
    pub async fn leader_but(&self, not: usize) -> usize {
        eventually_some_within(LONG, "another leader is known", async || {
            self.leader_now(&[not]).await.filter(|leader| *leader != not)
        })
        .await
    }

    async fn leader_now(&self, not_asked: &[usize]) -> Option<usize> {
        for (number, member) in self.members.iter().enumerate() {
            if not_asked.contains(&number) || member.process.is_none() {
                continue;
            }
            let asked = tokio::time::timeout(std::time::Duration::from_secs(1), member.status()).await;
            let Ok(Some(status)) = asked else { continue };
            let cluster = &status["cluster"];
            if cluster["role"] == "leader" {
                return Some(number);
            }
            let leader = cluster["leader"].as_str();
            if let Some(found) = self.members.iter().position(|member| Some(member.name.as_str()) == leader) {
                return Some(found);
            }
        }
        None
    }

    fn signal(&self, number: usize, signal: Signal) {
        self.members[number].process().signal(signal);
    }
}

impl Member {
    fn retire(&mut self) {
        if let Some(process) = self.process.take() {
            self.printed += &process.printed();
        }
    }
}

fn write_file(member: &Member, text: &str) {
    let next = member.folder.join("config.yaml.next");
    std::fs::write(&next, text).expect("a folder to write to");
    std::fs::rename(next, member.config_path()).expect("a folder to write to");
}

fn address_on(network: &mut Option<TestNetwork>) -> IpAddr {
    network.as_mut().map_or_else(free_address, TestNetwork::add)
}

/// A loopback address on which nobody listens. A hundred tests at once draw from sixteen million.
fn free_address() -> IpAddr {
    loop {
        let drawn = random().to_be_bytes();
        let address = Ipv4Addr::new(127, drawn[0].max(1), drawn[1], drawn[2].clamp(2, 250));
        let free = |port| TcpListener::bind((address, port)).is_ok();
        if [API, ADMIN, PEER].into_iter().all(free) {
            return address.into();
        }
    }
}

/// Copies a folder with all that is in it, as `cp -a` would, times and all, but into new files.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder to write to");
    for entry in std::fs::read_dir(from).expect("a folder to read") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("a file to copy");
        }
    }
}

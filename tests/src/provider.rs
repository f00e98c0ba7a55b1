//! The provider simulator as a process of its own, and what it saw.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use http::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::Process;
use crate::{Client, eventually, eventually_some};

/// A provider that does as told. It answers at once and takes any key unless it is built otherwise.
#[derive(Debug)]
pub struct FakeProvider {
    process: Process,
    client: Client,
    /// Holds the file with the address.
    _folder: TempDir,
}

#[derive(Debug)]
pub struct FakeProviderBuilder {
    binary: String,
    address: IpAddr,
    arguments: Vec<String>,
}

/// What was charged, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Sum {
    pub requests: u64,
    /// All input, cached and written to the cache included.
    pub input_tokens: u64,
    pub cached_tokens: u64,
    pub cache_write_tokens: u64,
    pub output_tokens: u64,
    pub cost_nano_usd: u64,
}

/// One charge.
#[derive(Clone, Debug, Deserialize)]
pub struct Charge {
    /// The [`Seen::id`] of the request.
    pub id: u64,
    pub key: String,
    pub model: String,
    pub window: String,
    #[serde(flatten)]
    pub sum: Sum,
    pub hung_up: bool,
}

/// The provider's own bill: the truth about what was spent.
#[derive(Clone, Debug, Deserialize)]
pub struct Bill {
    pub total: Sum,
    pub by_key: std::collections::BTreeMap<String, Sum>,
    pub by_model: std::collections::BTreeMap<String, Sum>,
    pub by_window: std::collections::BTreeMap<String, Sum>,
    pub rows: Vec<Charge>,
}

/// A request as it arrived at the provider.
#[derive(Clone, Debug, Deserialize)]
pub struct Seen {
    pub id: u64,
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    pub body_bytes: usize,
    pub key: String,
    pub model: String,
    pub status: Option<u16>,
    /// Whether a fault of the script was met.
    pub scripted: bool,
    pub ended: bool,
    pub hung_up: bool,
    pub output_tokens: u64,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(is, _value)| is == name).map(|(_name, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.body))
    }
}

impl FakeProviderBuilder {
    /// Adds arguments of the `simulate` command.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// Listens there instead of on loopback.
    #[must_use]
    pub fn at(mut self, address: IpAddr) -> Self {
        self.address = address;
        self
    }

    /// Accepts only `key`, and others added so.
    #[must_use]
    pub fn api_key(self, key: &str) -> Self {
        self.arguments(&["--api-key", key])
    }

    pub async fn start(self) -> FakeProvider {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("addresses.json");
        let mut command = Command::new(&self.binary);
        command.env("TMPDIR", folder.path());
        let listen = SocketAddr::from((self.address, 0)).to_string();
        command.args(["simulate", "--listen", &listen, "--addresses-file"]).arg(&file).args(&self.arguments);
        let mut process = Process::spawn(command);
        let addresses = process.addresses(&file).await.unwrap_or_else(|error| panic!("the provider {error}"));
        FakeProvider { process, client: Client::new(addresses.get("api")), _folder: folder }
    }
}

impl FakeProvider {
    pub async fn start(binary: &str) -> Self {
        Self::builder(binary).start().await
    }

    pub fn builder(binary: &str) -> FakeProviderBuilder {
        let at_once = ["--ttft", "0ms", "--tokens-per-second", "0"];
        FakeProviderBuilder {
            binary: binary.to_owned(),
            address: Ipv4Addr::LOCALHOST.into(),
            arguments: at_once.map(str::to_owned).to_vec(),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.client.address()
    }

    /// Where it is reached, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// A client that speaks to it directly.
    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Appends a list of faults; their form is told in `node/src/simulator/script.rs`.
    pub async fn script(&self, faults: Value) {
        let reply = self.client.post("/simulator/script", &faults).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    /// Takes back the faults not met yet.
    pub async fn clear_script(&self) {
        self.client.send(Method::DELETE, "/simulator/script", "").await;
    }

    /// How many faults of the script are not used up.
    pub async fn faults_left(&self) -> usize {
        self.read::<Vec<Value>>("/simulator/script").await.len()
    }

    pub async fn bill(&self) -> Bill {
        self.read("/simulator/bill").await
    }

    /// Everything that arrived, in order.
    pub async fn requests(&self) -> Vec<Seen> {
        self.read("/simulator/requests").await
    }

    /// Lets everything go on that arrived and is held.
    pub async fn release(&self) {
        self.client.post("/simulator/release", &Value::Null).await;
    }

    /// Forgets bill, journal, script and cached prompts.
    pub async fn reset(&self) {
        self.client.send(Method::DELETE, "/simulator", "").await;
    }

    /// Waits until at least `count` requests have arrived; returns them all.
    pub async fn arrived(&self, count: usize) -> Vec<Seen> {
        eventually_some(&format!("{count} requests arrive"), async || {
            Some(self.requests().await).filter(|seen| seen.len() >= count)
        })
        .await
    }

    /// Waits until everything that arrived has ended, so that the bill is final.
    pub async fn settled(&self) -> Bill {
        eventually("every request ends", async || self.requests().await.iter().all(|seen| seen.ended)).await;
        self.bill().await
    }

    /// Waits until a caller has hung up; returns its request.
    pub async fn saw_hang_up(&self) -> Seen {
        eventually_some("a caller hangs up", async || self.requests().await.into_iter().find(|seen| seen.hung_up)).await
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> T {
        serde_json::from_value(self.client.get(path).await.json()).expect("the simulator's own form")
    }
}

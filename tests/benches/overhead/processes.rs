//! The processes measured, and what the system says of them.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_llm-edge-agent");

/// A key of the length real ones have; the gateway checks it in every request.
pub const KEY: &str = "lea-benchmark000-0123456789abcdef0123456789abcdef";

/// A process under load.
pub struct Target {
    child: Child,
    pub address: SocketAddr,
}

impl Target {
    /// User and system time so far, of all threads.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        // Linux counts in hundredths of a second for user space, whatever the kernel's own tick.
        Duration::from_millis(ticks * 10)
    }

    /// User and system time since it was `before`.
    pub fn cpu_since(&self, before: Duration) -> Duration {
        self.cpu().saturating_sub(before)
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A simulator that answers at once, and the two that stand before it.
pub struct Fleet {
    pub gateway: Target,
    pub proxy: Target,
    pub simulator: Target,
    /// The gateway's memory before its first request.
    pub idle_memory: u64,
    _folder: tempfile::TempDir,
}

impl Fleet {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let simulator = simulator(folder.path());
        let proxy = proxy(simulator.address);
        let gateway = gateway(folder.path(), simulator.address);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let idle_memory = gateway.memory();
        Self { gateway, proxy, simulator, idle_memory, _folder: folder }
    }
}

fn simulator(folder: &Path) -> Target {
    let file = folder.join("simulator.json");
    let mut command = Command::new(BINARY);
    command.args(["simulate", "--listen", "127.0.0.1:0", "--ttft", "0s", "--tokens-per-second", "0"]);
    command.args(["--record-requests", "false", "--answer-tokens", "64", "--addresses-file"]).arg(&file);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    Target { child, address: address(&file, "api") }
}

fn proxy(upstream: SocketAddr) -> Target {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut child = command.args(["proxy", &upstream.to_string()]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    Target { child, address: line.trim().parse().unwrap() }
}

/// Everything on: keys, limits per key, budgets, breaker, metrics, log at its default level, cache.
fn gateway(folder: &Path, upstream: SocketAddr) -> Target {
    let config = folder.join("gateway.yaml");
    let mut file = std::fs::File::create(&config).unwrap();
    write!(
        file,
        "node: {{ name: bench }}\nlisten: {{ api: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
         providers:\n  sim: {{ kind: compatible, base_url: \"http://{upstream}/v1\", api_key: none, connections_max: 1024 }}\n\
         prices:\n  \"sim/*\": {{ input: $0.15, output: $0.60 }}\n\
         routes:\n  bench: {{ targets: [sim/model], cache: {{ mode: exact, ttl: 1h }} }}\n\
         keys:\n  bench: {{ secret: {KEY}, rpm: 4000000000, tpm: 1000000000000, budgets: [day, month] }}\n\
         budgets:\n  day: {{ limit: $1000000, window: day }}\n  month: {{ limit: $9000000, window: month }}\n"
    )
    .unwrap();
    let addresses = folder.join("gateway.json");
    let mut command = Command::new(BINARY);
    command.args(["run", "-c"]).arg(&config).arg("--addresses-file").arg(&addresses);
    let log = std::fs::File::create(folder.join("gateway.log")).unwrap();
    let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
    Target { child, address: address(&addresses, "api") }
}

/// Waits for the file that says where a process listens.
fn address(file: &Path, field: &str) -> SocketAddr {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(bytes) = std::fs::read(file)
            && let Ok(value) = serde_json::from_slice::<serde_json::Value>(&bytes)
        {
            return value[field].as_str().unwrap().parse().unwrap();
        }
        assert!(Instant::now() < deadline, "{} was not written", file.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

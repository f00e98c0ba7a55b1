//! What the demo runs: two simulated providers, and the gateway in front of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actors::supervisor::Tasks;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::client::{AskError, Client};
use crate::config::load::{Loaded, read};
use crate::run::Service;
use crate::simulator::{Handle, Simulator, SimulatorConfig};
use crate::telemetry::Telemetry;

/// Keys of the demo: nobody else's, and good for nothing else.
pub const KEY: &str = "lea-demodemodemo-support0desk0of0the0bank00000000";
pub const TRIAL_KEY: &str = "lea-demodemodemo-trial0account0three0a0minute0000";

/// Where it listens unless somebody else does.
const API_PORT: u16 = 8080;
const ADMIN_PORT: u16 = 8081;

/// How long the providers may take to end.
const STOP_MAX: Duration = Duration::from_secs(2);

pub struct World<S> {
    pub client: Client,
    /// Speaks `OpenAI`.
    pub north: Handle,
    /// Speaks Anthropic.
    pub south: Handle,
    pub telemetry: Telemetry,
    node: S,
    config: String,
    tasks: Tasks,
    stop: CancellationToken,
}

impl<S: Service> World<S> {
    pub async fn start() -> Result<Self, AskError> {
        let (tasks, stop) = (Tasks::new(), CancellationToken::new());
        let north = provider(1, &tasks, &stop).await?;
        let south = provider(2, &tasks, &stop).await?;
        let config = config(free(API_PORT).await, free(ADMIN_PORT).await, north.address(), south.address());
        let loaded: Loaded = read("the demo's configuration", config.as_bytes(), &|_name| None)?;
        let telemetry = Telemetry::start(&loaded.config.telemetry)?;
        let node = S::start(Arc::new(loaded), telemetry.clone(), false).await?;
        let client = Client::new(node.addresses().api, &tasks);
        Ok(Self { client, north, south, telemetry, node, config, tasks, stop })
    }

    pub async fn stop(self) {
        let _whole = self.node.drain().await;
        self.stop.cancel();
        let _ended = self.tasks.shutdown(STOP_MAX).await;
    }

    /// Before the first step.
    pub fn opening(&self) -> String {
        let api = self.node.addresses().api;
        let rows: Vec<String> = self.config.lines().map(|line| format!("     {line}")).collect();
        format!(
            "A gateway on http://{api} with two simulated providers behind it, and this configuration:\n\n{}",
            rows.join("\n")
        )
    }

    /// After the last.
    pub fn invitation(&self) -> String {
        let api = self.node.addresses().api;
        let admin = self.node.addresses().admin;
        format!(
            "\nIt stays up; ctrl-C ends it. Try:\n
  curl http://{api}/v1/chat/completions -H 'authorization: Bearer {KEY}' \\
    -H 'content-type: application/json' \\
    -d '{{\"model\": \"support\", \"messages\": [{{\"role\": \"user\", \"content\": \"Where is my card?\"}}]}}'

  from openai import OpenAI                                  # pip install openai
  client = OpenAI(base_url=\"http://{api}/v1\", api_key=\"{KEY}\")
  answer = client.chat.completions.create(
      model=\"support\", messages=[{{\"role\": \"user\", \"content\": \"Where is my card?\"}}])
  print(answer.choices[0].message.content)

  from anthropic import Anthropic                            # pip install anthropic
  client = Anthropic(base_url=\"http://{api}\", api_key=\"{KEY}\")
  answer = client.messages.create(
      model=\"support\", max_tokens=300, messages=[{{\"role\": \"user\", \"content\": \"Where is my card?\"}}])
  print(answer.content[0].text)

  llm-edge-agent status --admin http://{admin}         # or: curl http://{admin}/metrics"
        )
    }
}

/// A provider that takes its time as a real one does, only less of it.
pub async fn provider(seed: u64, tasks: &Tasks, stop: &CancellationToken) -> Result<Handle, AskError> {
    let ttft = Duration::from_millis(60);
    let config = SimulatorConfig { seed, ttft, tokens_per_second: 1_000, ..SimulatorConfig::default() };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let (handle, serving) = Simulator::start(config, listener, stop.clone())?;
    tasks.spawn("simulator", serving);
    Ok(handle)
}

/// The port if nobody has it, else any.
async fn free(port: u16) -> u16 {
    if TcpListener::bind(("127.0.0.1", port)).await.is_ok() { port } else { 0 }
}

fn config(api: u16, admin: u16, north: SocketAddr, south: SocketAddr) -> String {
    format!(
        "node: {{ name: demo }}
listen: {{ api: \"127.0.0.1:{api}\", admin: \"127.0.0.1:{admin}\" }}
telemetry: {{ level: \"off\" }}   # the log would stand between the lines of the report
providers:
  openai:
    base_url: http://{north}/v1
    api_key: sk-simulated-key-of-the-first-provider
    breaker: {{ failures_max: 3, open_for: 1s }}
  anthropic:
    base_url: http://{south}/v1
    api_key: sk-simulated-key-of-the-second-provider
prices:
  \"openai/*\": {{ input: $0.15, cached_input: $0.075, cache_write: $0.188, output: $0.60 }}
  \"anthropic/*\": {{ input: $0.15, cached_input: $0.075, cache_write: $0.188, output: $0.60 }}
routes:
  support:
    targets: [openai/gpt-4o-mini, anthropic/claude-3-5-haiku-latest]
    cache: {{ mode: exact, ttl: 1h }}
keys:
  desk: {{ secret: {KEY} }}
  trial: {{ secret: {TRIAL_KEY}, models: [support], rpm: 3 }}"
    )
}

//! A provider that answers by itself, for the demo, the benches and every test that needs one.
//!
//! It speaks `OpenAI` chat completions and Anthropic Messages, is seeded, fails as it is [scripted](script), keeps a [journal] of
//! what arrived and its own [bill], counted in its own way ([`tokens`]). It shares no code with the gateway's codecs and ledgers,
//! because tests hold it against them. Any key is taken unless some are named. Not for the open network: its journal shows keys.
//!
//! | path | |
//! |---|---|
//! | `POST /v1/chat/completions`, `POST /v1/messages` | [answers](answer), streamed or whole |
//! | `POST /v1/messages/count_tokens`, `GET /v1/models[/ID]` | |
//! | `GET, DELETE /simulator/bill` | [`bill::Statement`]: sums by key, model and `x-lea-window`, and rows |
//! | `GET, DELETE /simulator/requests` | a list of [`journal::Entry`] |
//! | `GET, POST, DELETE /simulator/script` | a list of [`script::Fault`] |
//! | `POST /simulator/release` | lets go on what is held |
//! | `DELETE /simulator` | forgets all of it |

mod answer;
mod attempt;
pub mod bill;
mod body;
mod connection;
mod control;
pub mod journal;
mod provider;
mod question;
pub mod script;
mod tokens;
mod wire;

use std::collections::HashSet;
use std::future::Future;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use answer::Answer;
use attempt::Pace;
use bill::{Bill, Prices, Statement};
use journal::{Entry, Journal};
use question::{Dialect, Question};
use script::{Fault, Script};
use wire::Usage;

/// Prompts remembered as cached; beyond it all are forgotten.
const PREFIXES_MAX: usize = 10_000;

/// The `simulate` command.
#[derive(Clone, Debug, clap::Args)]
pub struct SimulatorArgs {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:9090")]
    pub listen: SocketAddr,

    /// Write the address listened on to this file, as JSON, once connections are accepted.
    #[arg(long, hide = true)]
    pub addresses_file: Option<PathBuf>,

    #[command(flatten)]
    pub config: SimulatorConfig,
}

/// How the simulator answers.
#[derive(Clone, Debug, PartialEq, clap::Args)]
pub struct SimulatorConfig {
    /// Answers are drawn with this seed.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// Time to the first token.
    #[arg(long, default_value = "20ms", value_parser = humantime::parse_duration)]
    pub ttft: Duration,

    /// Tokens a second once the first is out; 0 is as fast as possible.
    #[arg(long, default_value_t = 200)]
    pub tokens_per_second: u32,

    /// Share of requests answered with 500, from 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    pub error_rate: f64,

    /// Share of requests answered with 429 and `retry-after: 1`, from 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    pub throttle_rate: f64,

    /// Make every plain answer exactly this many tokens long.
    #[arg(long)]
    pub answer_tokens: Option<u64>,

    /// A key that is accepted; may be repeated. Without it, any key is, and none.
    #[arg(long = "api-key")]
    pub api_keys: Vec<String>,

    /// A model that exists; may be repeated. Without it, all do.
    #[arg(long = "model")]
    pub models: Vec<String>,

    /// Keep what arrives, for `/simulator/requests`, and the single rows of the bill.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub record_requests: bool,

    #[command(flatten)]
    pub prices: Prices,
}

impl Default for SimulatorConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            ttft: Duration::from_millis(20),
            tokens_per_second: 200,
            error_rate: 0.0,
            throttle_rate: 0.0,
            answer_tokens: None,
            api_keys: Vec::new(),
            models: Vec::new(),
            record_requests: true,
            prices: Prices::default(),
        }
    }
}

impl SimulatorConfig {
    fn pace(&self) -> Pace {
        let between = 1_000_000_000_u64.checked_div(u64::from(self.tokens_per_second)).unwrap_or(0);
        Pace { first: self.ttft, between: Duration::from_nanos(between) }
    }

    fn knows(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|known| known == model)
    }

    fn listed_models(&self) -> Vec<&str> {
        if self.models.is_empty() {
            vec!["gpt-4o", "gpt-4o-mini", "claude-sonnet-4-5", "claude-haiku-4-5"]
        } else {
            self.models.iter().map(String::as_str).collect()
        }
    }
}

/// What a running simulator is asked without HTTP. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    address: SocketAddr,
    state: Arc<State>,
}

impl Handle {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Appends faults, all or none; says what is wrong with them.
    pub fn script(&self, faults: Vec<Fault>) -> Result<(), String> {
        self.state.script.add(faults)
    }

    pub fn bill(&self) -> Statement {
        self.state.bill.statement()
    }

    pub fn requests(&self) -> Vec<Entry> {
        self.state.journal.entries()
    }

    /// Lets everything go on that is held.
    pub fn release(&self) {
        self.state.release();
    }

    /// Forgets bill, journal, script and cached prompts.
    pub fn reset(&self) {
        self.state.reset();
    }
}

pub struct Simulator;

impl Simulator {
    /// A handle at once, and the future that serves until `shutdown` and every connection is closed.
    pub fn start(
        config: SimulatorConfig,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> io::Result<(Handle, impl Future<Output = ()> + Send + 'static)> {
        let address = listener.local_addr()?;
        let state = Arc::new(State::new(config));
        let handle = Handle { address, state: Arc::clone(&state) };
        Ok((handle, connection::serve(state, listener, shutdown)))
    }
}

/// The `simulate` command: listens and serves until `shutdown`.
pub async fn run(args: SimulatorArgs, shutdown: CancellationToken) -> io::Result<()> {
    let listener = TcpListener::bind(args.listen).await?;
    let (handle, serving) = Simulator::start(args.config, listener, shutdown)?;
    if let Some(path) = &args.addresses_file {
        write_addresses(path, handle.address())?;
    }
    tracing::info!(address = %handle.address(), "the provider simulator listens");
    // Whoever starts it by hand has no log.
    let _unheard = crate::output::line(&format!(
        "listening on http://{0}: base_url: http://{0}/v1, any api_key; GET /simulator/bill says what it billed, /simulator/requests \
         what arrived",
        handle.address()
    ));
    serving.await;
    Ok(())
}

/// Whole or not at all, so that who waits for the file never reads half of it.
fn write_addresses(path: &Path, address: SocketAddr) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    let mut file = std::fs::File::create(&unfinished)?;
    writeln!(file, "{}", json!({ "api": address.to_string() }))?;
    std::fs::rename(&unfinished, path)
}

/// What one simulator knows.
struct State {
    config: SimulatorConfig,
    script: Script,
    bill: Bill,
    journal: Journal,
    /// Starts of prompts seen before.
    prefixes: Mutex<HashSet<u64>>,
    ids: AtomicU64,
    releases: watch::Sender<u64>,
}

impl State {
    fn new(config: SimulatorConfig) -> Self {
        Self {
            script: Script::default(),
            bill: Bill::new(config.prices, config.record_requests),
            journal: Journal::default(),
            prefixes: Mutex::default(),
            ids: AtomicU64::new(0),
            releases: watch::Sender::new(0),
            config,
        }
    }

    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    fn record(&self, id: u64, change: impl FnOnce(&mut Entry)) {
        if self.config.record_requests {
            self.journal.update(id, change);
        }
    }

    /// Resolves with the first release after this call.
    fn released(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut releases = self.releases.subscribe();
        async move {
            // An error means the simulator is gone, and everything held with it.
            drop(releases.changed().await);
        }
    }

    fn release(&self) {
        self.releases.send_modify(|count| *count += 1);
    }

    fn reset(&self) {
        self.script.clear();
        self.bill.clear();
        self.journal.clear();
        self.prefixes.lock().clear();
    }

    /// Whether the request `id` is one of the share `rate` that fails. Drawn anew for each request, so a retry may succeed.
    fn is_unlucky(&self, id: u64, why: &str, rate: f64) -> bool {
        if rate <= 0.0 {
            return false;
        }
        let drawn = u32::try_from(answer::hash(self.config.seed ^ id, why) >> 32).unwrap_or(u32::MAX);
        f64::from(drawn) < rate * (f64::from(u32::MAX) + 1.0)
    }

    /// What `answer` to `question` uses, prompts seen before counted as cached.
    fn usage(&self, question: &Question, answer: &Answer) -> Usage {
        let mut usage = Usage {
            input: question.input_tokens,
            output: answer.output_tokens,
            reasoning: answer.reasoning_tokens,
            ..Usage::default()
        };
        if let Some(prefix) = question.prefix {
            let mut prefixes = self.prefixes.lock();
            if prefixes.len() >= PREFIXES_MAX {
                prefixes.clear();
            }
            match (prefixes.insert(prefix.hash), question.dialect) {
                (false, Dialect::OpenAi | Dialect::Anthropic) => usage.cached = prefix.tokens,
                (true, Dialect::Anthropic) => usage.cache_write = prefix.tokens,
                (true, Dialect::OpenAi) => {}
            }
        }
        usage
    }
}

#[cfg(test)]
mod tests;

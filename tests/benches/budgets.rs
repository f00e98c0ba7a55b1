//! What a budget costs a request, and how close to its limit it is spent.
//!
//! `cargo bench --bench budgets` prints a table and writes `tests/benches/results/budgets.json`. The first part is real
//! time: taking and settling rights, beside as many plain counters behind one lock. The second is virtual time: a trace of
//! requests over three nodes whose ledger takes five milliseconds an answer; with `LEA_EVAL_DATA`, a recorded one too.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a benchmark, not the product"
)]

use std::hint::black_box;
use std::io::Read;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actors::quota::escrow::{Escrow, Ledger, Marks, NotReserved, Now};
use actors::quota::held::{DOUBT_MAX, Demand, Patience};
use actors::quota::{Account, Bound, Payer, Quota, Waits};
use cluster::directory::budget::{Budget, Mode, Period, Unit};
use cluster::directory::price::TokenCounts;
use cluster::id::{Incarnation, NodeId};
use cluster::ledger::accounts::{Accounts, Declared, Place, Roll, Told};
use cluster::ledger::book::Statement;
use cluster::ledger::lease::Mark;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// As in the product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NODES: u64 = 3;

/// How long the ledger takes: a round to a majority, and its disks.
const COMMIT: Duration = Duration::from_millis(5);

/// What is timed alone is timed so many times, and the median told: other tenants of the machine come and go.
const BATCHES: u64 = 25;

/// Tokens of an answer at most, as clients say.
const OUTPUT: u64 = 1_000;

/// One ledger for all nodes.
#[derive(Clone, Default)]
struct Books {
    accounts: Arc<Mutex<Accounts>>,
    commands: Arc<AtomicU64>,
    statements: Arc<AtomicU64>,
}

struct Line {
    books: Books,
    number: u64,
}

impl Ledger for Line {
    fn say(&self, said: Vec<(Place, Statement)>) -> BoxFuture<'static, Result<Vec<Told>, String>> {
        let (books, number) = (self.books.clone(), self.number);
        async move {
            books.commands.fetch_add(1, Ordering::Relaxed);
            books.statements.fetch_add(said.len() as u64, Ordering::Relaxed);
            tokio::time::sleep(COMMIT).await;
            let (life, node) = (Incarnation::new(1 + number), NodeId::new(number));
            let mut accounts = books.accounts.lock();
            Ok(said.into_iter().map(|(place, said)| accounts.state(place, life, node, said, false)).collect())
        }
        .boxed()
    }

    fn debts(&self, _place: Place) -> Option<u64> {
        Some(0)
    }

    fn lost(&self, places: &[Place]) -> Vec<u64> {
        vec![0; places.len()]
    }
}

struct Disk;

impl Marks for Disk {
    fn write(&self, _marks: Vec<(Place, Mark)>) -> BoxFuture<'static, Result<(), String>> {
        tokio::time::sleep(Duration::from_millis(1)).map(Ok).boxed()
    }
}

/// Budgets of so many tokens each, and the nodes that spend them.
fn world(limits: &[u64], nodes: u64) -> (Books, Vec<Place>, Vec<Escrow>) {
    let books = Books::default();
    let declared: Vec<Declared> = limits
        .iter()
        .enumerate()
        .map(|(number, limit)| Declared {
            name: format!("b{number}"),
            terms: String::new(),
            limit: *limit,
            each: false,
        })
        .collect();
    let mut accounts = books.accounts.lock();
    accounts.align(&declared);
    let ids: Vec<_> = accounts.iter().map(|(id, _)| id).collect();
    for budget in &ids {
        accounts.roll(&Roll { budget: *budget, after: None, starts: Duration::ZERO, ends: None });
    }
    drop(accounts);
    let places: Vec<Place> = ids.into_iter().map(|budget| Place::new(budget, 0)).collect();
    let node = |number| {
        let (escrow, says, marking) = Escrow::new(Arc::new(Line { books: books.clone(), number }), Arc::new(Disk));
        let mut loops = JoinSet::new();
        loops.spawn(says);
        loops.spawn(marking);
        loops.detach_all();
        let now = |place: &Place| Now { place: *place, unit: Unit::Tokens, ends: None };
        let named = places.iter().enumerate().map(|(number, place)| (format!("b{number}").into(), now(place)));
        escrow.publish(named.collect());
        escrow
    };
    let escrows = (0..nodes).map(node).collect();
    (books, places, escrows)
}

#[derive(Default)]
struct Report(Vec<Value>);

impl Report {
    fn row(&mut self, name: &str, value: f64, unit: &str, baseline: f64, beside: &str) {
        let ratio = value / baseline;
        println!("{name:<58} {value:>12.1} {unit:<12} {ratio:>8.2}  {beside}: {baseline:.1}");
        self.0.push(json!({
            "name": name, "value": value, "unit": unit, "ratio": ratio, "beside": beside, "baseline": baseline,
        }));
    }

    fn write(self) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/benches/results");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("budgets.json"), serde_json::to_vec_pretty(&self.0).unwrap()).unwrap();
        println!("\nwritten: tests/benches/results/budgets.json");
    }
}

/// What one request does, on so many budgets.
async fn take_and_settle(quota: &Quota, account: &Account, budgets: &[Arc<Budget>], times: u64) {
    let bound = Bound { tokens: TokenCounts { input: 100, output: 400, ..TokenCounts::default() }, ..Bound::default() };
    let waits = Waits::new(Instant::now() + Duration::from_mins(10));
    for _ in 0..times {
        let reservation = quota.reserve(Payer { account, budgets, end_user: None }, bound, None, waits).await.unwrap();
        black_box(reservation.dispatch().settle(TokenCounts::default()));
    }
}

fn plain(levels: usize, times: u64) -> f64 {
    let counters = Mutex::new(vec![0u64; levels]);
    let batches = (0..BATCHES).map(|_| {
        let began = Instant::now();
        for _ in 0..times / BATCHES {
            counters.lock().iter_mut().for_each(|counter| *counter += 500);
            black_box(&counters);
            counters.lock().iter_mut().for_each(|counter| *counter -= 500);
        }
        began.elapsed()
    });
    median(batches.collect(), times)
}

/// Nanoseconds for one of so many `times` in all.
fn median(mut batches: Vec<Duration>, times: u64) -> f64 {
    batches.sort_unstable();
    batches[batches.len() / 2].as_nanos() as f64 / (times / BATCHES) as f64
}

fn account() -> Account {
    Account { tenant: "acme".into(), provider: "openai".into(), route: "support".into() }
}

fn budgets(levels: usize) -> Vec<Arc<Budget>> {
    let budget = |number| {
        let limit = "1000000000 tokens".parse().unwrap();
        Arc::new(Budget {
            name: format!("b{number}").into(),
            limit,
            period: Period::Total,
            timezone: None,
            mode: Mode::Hard,
            overdraft: 0,
            each: false,
            assumed: None,
        })
    };
    (0..levels).map(budget).collect()
}

fn in_the_path(report: &mut Report, times: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        for levels in [1, 5] {
            let (_books, _places, escrows) = world(&vec![1_000_000_000; levels], 1);
            let (quota, budgets) = (Quota::with(escrows[0].clone()), budgets(levels));
            let account = account();
            take_and_settle(&quota, &account, &budgets, times / 10).await;
            let mut batches = Vec::new();
            for _ in 0..BATCHES {
                let began = Instant::now();
                take_and_settle(&quota, &account, &budgets, times / BATCHES).await;
                batches.push(began.elapsed());
            }
            let each = median(batches, times);
            let name = format!("reserve and settle, {levels} budget(s), nobody else");
            report.row(&name, each, "ns", plain(levels, times), "counters behind a lock");

            let began = Instant::now();
            let mut tasks = JoinSet::new();
            for _ in 0..32 {
                let (quota, budgets, account) = (quota.clone(), budgets.clone(), account.clone());
                tasks.spawn(async move { take_and_settle(&quota, &account, &budgets, times / 32).await });
            }
            tasks.join_all().await;
            let together = times as f64 / began.elapsed().as_secs_f64();
            let name = format!("reserve and settle, {levels} budget(s), 32 tasks");
            report.row(&name, together, "a second", 1e9 / each, "one task");
        }
    });
}

/// Random, and the same in every run: `SplitMix64`.
struct Dice(u64);

impl Dice {
    /// Above 0, below 1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((mixed >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -self.unit().ln() * mean
    }

    /// Log-normal, of this median; `spread` is the deviation of the logarithm.
    fn tokens(&mut self, median: f64, spread: f64) -> u64 {
        let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        (median * (spread * normal).exp()).clamp(1.0, 4_000.0) as u64
    }
}

/// One call of a trace.
#[derive(Clone, Copy)]
struct Call {
    /// Since the first.
    at: Duration,
    input: u64,
    output: u64,
}

/// Like one of conversations: prompts of some 1,000 tokens and answers of some 130. Arrivals are random, and four times as
/// dense in every tenth second.
fn synthetic(per_second: f64, lasts: Duration) -> Vec<Call> {
    let (mut dice, mut at, mut calls) = (Dice(1), Duration::ZERO, Vec::new());
    while at < lasts {
        let dense = if at.as_secs().is_multiple_of(10) { 4.0 } else { 1.0 };
        at += Duration::from_secs_f64(dice.exponential(1.0 / per_second / dense));
        calls.push(Call { at, input: dice.tokens(1_000.0, 0.9), output: dice.tokens(130.0, 0.9) });
    }
    calls
}

/// The conversations of Azure's trace of 2023 (`TIMESTAMP,ContextTokens,GeneratedTokens`), in the folder that
/// `LEA_EVAL_DATA` names. `None`: it is not there.
fn recorded() -> Option<Vec<Call>> {
    let folder = std::env::var_os("LEA_EVAL_DATA")?;
    let file = std::fs::File::open(std::path::Path::new(&folder).join("azure_llm_2023_conv.csv.gz")).ok()?;
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let call = |line: &str| {
        let mut fields = line.split(',');
        let at = humantime::parse_rfc3339_weak(fields.next()?).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(Call { at, input: fields.next()?.parse().ok()?, output: fields.next()?.parse().ok()? })
    };
    let mut calls: Vec<Call> = text.lines().skip(1).map(|line| call(line).unwrap()).collect();
    let first = calls.first()?.at;
    for call in &mut calls {
        call.at -= first;
    }
    Some(calls)
}

#[derive(Default)]
struct Seen {
    passed: u64,
    /// Without waiting for anything.
    at_once: u64,
    /// Of the limit, when somebody was told no for the first time.
    first_denial: Option<f64>,
    denied: u64,
}

struct Load {
    limit: u64,
    budgets: usize,
    /// On all nodes together.
    calls: Vec<Call>,
}

/// Answers are set aside at [`OUTPUT`] tokens, and come at 50 a second.
async fn replay(load: Load) -> (Seen, Books) {
    let (books, places, escrows) = world(&vec![load.limit; load.budgets], NODES);
    let (seen, spent) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicU64::new(0)));
    let (mut calls, began) = (JoinSet::new(), tokio::time::Instant::now());
    for (number, call) in load.calls.into_iter().enumerate() {
        // Timers have milliseconds: those due within one come together.
        tokio::time::sleep_until(began + call.at).await;
        let (input, output) = (call.input, call.output.min(OUTPUT));
        let (escrow, place) = (escrows[number % escrows.len()].clone(), places[number % places.len()]);
        let (seen, spent) = (Arc::clone(&seen), Arc::clone(&spent));
        calls.spawn(async move {
            let until = tokio::time::Instant::now().into_std() + Duration::from_secs(30);
            let mut reserve = pin!(escrow.reserve(
                Arc::new([Demand { place, unit: Unit::Tokens, amount: input + OUTPUT, overdraft: 0 }]),
                Patience::all(DOUBT_MAX),
                until
            ));
            let at_once = (&mut reserve).now_or_never();
            let waited = at_once.is_none();
            let reserved = match at_once {
                Some(reserved) => reserved,
                None => reserve.await,
            };
            match reserved {
                Ok(hold) => {
                    {
                        let mut seen = seen.lock();
                        seen.passed += 1;
                        seen.at_once += u64::from(!waited);
                    }
                    tokio::time::sleep(Duration::from_millis(200 + 20 * output)).await;
                    spent.fetch_add(input + output, Ordering::Relaxed);
                    hold.settle([input + output]);
                }
                Err(NotReserved::Refused(_) | NotReserved::Unanswered { .. }) => {
                    let mut seen = seen.lock();
                    seen.denied += 1;
                    let share = spent.load(Ordering::Relaxed) as f64 / load.limit as f64;
                    seen.first_denial.get_or_insert(share);
                }
            }
        });
    }
    calls.join_all().await;
    let seen = std::mem::take(&mut *seen.lock());
    (seen, books)
}

fn over_the_trace(report: &mut Report) {
    let run = |load| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(replay(load))
    };
    let made = ("a synthetic trace", synthetic(10.0, Duration::from_mins(20)));
    let traces = std::iter::once(made).chain(recorded().map(|calls| ("Azure's trace", calls)));
    for (name, calls) in traces {
        let all: u64 = calls.iter().map(|call| call.input + call.output.min(OUTPUT)).sum();
        let (seen, _) = run(Load { limit: all * 2, budgets: 1, calls: calls.clone() });
        let share = seen.at_once as f64 / seen.passed as f64 * 100.0;
        report.row(&format!("admitted without a round trip, {name}"), share, "%", 99.0, "goal");

        let (seen, _) = run(Load { limit: all / 2, budgets: 1, calls });
        let first = seen.first_denial.map_or(f64::NAN, |share| share * 100.0);
        report.row(&format!("spent when first told no, {name}"), first, "% of limit", 98.0, "goal");
    }

    let lasts = Duration::from_secs(30);
    let load = Load { limit: 1_000_000_000, budgets: 1_000, calls: synthetic(1_667.0 / 1.3, lasts) };
    let (seen, books) = run(load);
    let seconds = lasts.as_secs_f64();
    let a_second = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64 / seconds;
    let passed = seen.passed as f64 / seconds;
    report.row(
        "commands, 1,000 budgets on three nodes",
        a_second(&books.commands),
        "a second",
        passed,
        "requests a second",
    );
    report.row("statements in them", a_second(&books.statements), "a second", passed, "requests a second");
    let share = seen.at_once as f64 / seen.passed as f64 * 100.0;
    report.row("admitted without a round trip, 1,000 budgets", share, "%", 99.0, "goal");
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == "--times");
    let times: u64 = at.map_or(2_000_000, |at| arguments[at + 1].parse().unwrap());
    println!("{:<58} {:>12} {:<12} {:>8}  beside\n", "", "", "", "ratio");
    // What is charged is counted as in the product.
    metrics::set_global_recorder(metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder()).unwrap();
    let mut report = Report::default();
    in_the_path(&mut report, times);
    over_the_trace(&mut report);
    report.write();
}

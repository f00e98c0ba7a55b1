//! What is left of a budget, as the whole cluster knows it at this moment.

use super::control::Control;
use super::error::ApiError;
use super::http::{Answer, Call};
use super::resources::failed;
use cluster::directory::budget::{Budget, Unit};
use cluster::directory::role::Grant;
use cluster::ledger::accounts::{Account, Record, Window};
use cluster::ledger::book::Stage;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fmt::Write;
use std::time::Duration;

/// A budget in its present window. Amounts are in the budget's unit: billionths of a US dollar, tokens or requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BudgetStanding {
    pub name: String,
    /// `usd` (in billionths), `tokens` or `requests`.
    pub unit: String,
    pub limit: u64,
    /// Of the present window, counted from 0; null before the first has begun.
    pub window: Option<u64>,
    pub starts: Option<String>,
    /// Null: never.
    pub ends: Option<String>,
    /// Of calls that have ended, as far as nodes have reported: each does every second.
    pub settled: u64,
    /// Granted to nodes that live, and not reported as used: for calls under way and calls to come.
    pub leased: u64,
    /// Held by processes that have ended, and not proved unspent.
    pub burned: u64,
    /// Nobody holds it.
    pub remaining_low: u64,
    /// If nothing of what is leased is spent.
    pub remaining_high: u64,
    pub lines: Vec<LineStanding>,
    /// Of windows that are over, the oldest first.
    pub records: Vec<WindowRecord>,
}

/// What one life of a node has of the window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LineStanding {
    pub node: String,
    pub incarnation: u64,
    /// `open` for a process that lives, `ended` for one that does not, `settled` once what it did not use is given back.
    pub stage: String,
    pub granted: u64,
    pub used: u64,
    pub returned: u64,
    pub burned: u64,
}

/// What a window came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WindowRecord {
    pub window: u64,
    pub starts: String,
    pub ends: Option<String>,
    pub limit: u64,
    pub used: u64,
    pub burned: u64,
}

impl BudgetStanding {
    pub fn new(budget: &Budget, account: &Account) -> Self {
        let mut standing = Self {
            name: account.name.clone(),
            unit: budget.limit.unit.name().to_owned(),
            limit: account.limit(),
            window: None,
            starts: None,
            ends: None,
            settled: 0,
            leased: 0,
            burned: 0,
            remaining_low: account.limit(),
            remaining_high: account.limit(),
            lines: Vec::new(),
            records: account.records().map(WindowRecord::from).collect(),
        };
        if let Some((number, window)) = account.current() {
            standing.fill(number, window);
        }
        standing
    }

    fn fill(&mut self, number: u64, window: &Window) {
        let book = &window.book;
        let (held, used, burned) = (book.held(), book.used(), book.burned());
        self.window = Some(number);
        self.starts = Some(time(window.starts));
        self.ends = window.ends.map(time);
        self.settled = used;
        self.burned = burned;
        self.leased = held.saturating_sub(used).saturating_sub(burned);
        self.remaining_low = self.limit.saturating_sub(held);
        self.remaining_high = self.limit.saturating_sub(used).saturating_sub(burned);
        self.lines = book
            .lines()
            .map(|(incarnation, line)| LineStanding {
                node: line.node.to_string(),
                incarnation: incarnation.get(),
                stage: match line.stage {
                    Stage::Open => "open",
                    Stage::Ended => "ended",
                    Stage::Settled => "settled",
                }
                .to_owned(),
                granted: line.granted,
                used: line.used,
                returned: line.returned,
                burned: line.burned(),
            })
            .collect();
    }

    /// For a person.
    pub fn words(&self) -> String {
        let unit = match self.unit.as_str() {
            "tokens" => Unit::Tokens,
            "requests" => Unit::Requests,
            _ => Unit::NanoUsd,
        };
        let show = |amount: u64| unit.show(amount);
        let resets = self.ends.as_deref().unwrap_or("never");
        let mut text = format!(
            "{}\n  limit      {}\n  settled    {}\n  leased     {}\n  burned     {}\n  remaining  {} to {}\n  resets     {resets}",
            self.name,
            show(self.limit),
            show(self.settled),
            show(self.leased),
            show(self.burned),
            show(self.remaining_low),
            show(self.remaining_high),
        );
        for line in &self.lines {
            let _infallible = write!(
                text,
                "\n  node {} incarnation {} ({}): granted {}, used {}, returned {}, burned {}",
                line.node,
                line.incarnation,
                line.stage,
                show(line.granted),
                show(line.used),
                show(line.returned),
                show(line.burned),
            );
        }
        text
    }
}

impl From<&Record> for WindowRecord {
    fn from(record: &Record) -> Self {
        let Record { window, starts, ends, limit, used, burned } = *record;
        Self { window, starts: time(starts), ends: ends.map(time), limit, used, burned }
    }
}

fn time(since_1970: Duration) -> String {
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since_1970).to_string()
}

pub async fn standing(control: &dyn Control, call: &Call, name: String) -> Result<Answer, ApiError> {
    call.everywhere(Grant::Viewer, "budgets are everyone's")?;
    let standing = control.standing(name).await.map_err(|error| failed(call, error))?;
    Ok(Answer::ok(json!(standing)))
}

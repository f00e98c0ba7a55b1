//! What the simulator charges: the ground truth that tests hold the gateway's figures against.
//!
//! It counts by itself and knows nothing of the gateway. A stream is billed for what was generated until the simulator saw the
//! connection close, a refused request not at all.

use std::collections::{BTreeMap, HashMap, VecDeque};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::wire::Usage;

/// Single rows kept; the sums go on without them.
const ROWS_MAX: usize = 100_000;

/// Combinations of key, model and window that are summed apart; what comes after is summed under empty names.
const GROUPS_MAX: usize = 100_000;

/// Nano-USD for one token each. The defaults are those of a small model: $0.15 and $0.60 for a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args, Serialize)]
pub struct Prices {
    /// Nano-USD for a token of input.
    #[arg(long = "input-price", default_value_t = 150)]
    pub input: u64,
    /// Nano-USD for a token of input that was cached.
    #[arg(long = "cached-price", default_value_t = 75)]
    pub cached: u64,
    /// Nano-USD for a token of input written to the cache.
    #[arg(long = "cache-write-price", default_value_t = 188)]
    pub cache_write: u64,
    /// Nano-USD for a token of output.
    #[arg(long = "output-price", default_value_t = 600)]
    pub output: u64,
}

impl Default for Prices {
    fn default() -> Self {
        Self { input: 150, cached: 75, cache_write: 188, output: 600 }
    }
}

impl Prices {
    /// Nano-USD for `usage`.
    pub fn cost(&self, usage: Usage) -> u64 {
        let plain = usage.input.saturating_sub(usage.cached).saturating_sub(usage.cache_write);
        [
            plain.saturating_mul(self.input),
            usage.cached.saturating_mul(self.cached),
            usage.cache_write.saturating_mul(self.cache_write),
            usage.output.saturating_mul(self.output),
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }
}

/// Who a charge is for. `window` is what the request carried as `x-lea-window`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct Payer {
    pub key: String,
    pub model: String,
    pub window: String,
}

/// One charge.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    /// The request's place in the order of arrival, as in the journal.
    pub id: u64,
    #[serde(flatten)]
    pub payer: Payer,
    #[serde(flatten)]
    pub sum: Sum,
    /// Whether the client left before the end.
    pub hung_up: bool,
}

/// Tokens and money. `input_tokens` includes what was cached and written to the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Sum {
    pub requests: u64,
    pub input_tokens: u64,
    pub cached_tokens: u64,
    pub cache_write_tokens: u64,
    pub output_tokens: u64,
    pub cost_nano_usd: u64,
}

impl Sum {
    fn of(usage: Usage, prices: &Prices) -> Self {
        Self {
            requests: 1,
            input_tokens: usage.input,
            cached_tokens: usage.cached,
            cache_write_tokens: usage.cache_write,
            output_tokens: usage.output,
            cost_nano_usd: prices.cost(usage),
        }
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.input_tokens += other.input_tokens;
        self.cached_tokens += other.cached_tokens;
        self.cache_write_tokens += other.cache_write_tokens;
        self.output_tokens += other.output_tokens;
        self.cost_nano_usd = self.cost_nano_usd.saturating_add(other.cost_nano_usd);
    }
}

/// The bill as `GET /simulator/bill` shows it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Statement {
    pub total: Sum,
    pub by_key: BTreeMap<String, Sum>,
    pub by_model: BTreeMap<String, Sum>,
    pub by_window: BTreeMap<String, Sum>,
    /// The newest charges; none where requests are not recorded.
    pub rows: Vec<Row>,
}

pub struct Bill {
    prices: Prices,
    keeps_rows: bool,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    groups: HashMap<Payer, Sum>,
    rows: VecDeque<Row>,
}

impl Bill {
    pub fn new(prices: Prices, keeps_rows: bool) -> Self {
        Self { prices, keeps_rows, book: Mutex::default() }
    }

    pub fn charge(&self, id: u64, payer: Payer, usage: Usage, hung_up: bool) {
        let sum = Sum::of(usage, &self.prices);
        let mut book = self.book.lock();
        if self.keeps_rows {
            if book.rows.len() == ROWS_MAX {
                book.rows.pop_front();
            }
            book.rows.push_back(Row { id, payer: payer.clone(), sum, hung_up });
        }
        let is_full = book.groups.len() >= GROUPS_MAX && !book.groups.contains_key(&payer);
        let payer = if is_full { Payer::default() } else { payer };
        book.groups.entry(payer).or_default().add(&sum);
    }

    pub fn clear(&self) {
        *self.book.lock() = Book::default();
    }

    pub fn statement(&self) -> Statement {
        let book = self.book.lock();
        let mut statement = Statement { rows: book.rows.iter().cloned().collect(), ..Statement::default() };
        for (payer, sum) in &book.groups {
            statement.total.add(sum);
            statement.by_key.entry(payer.key.clone()).or_default().add(sum);
            statement.by_model.entry(payer.model.clone()).or_default().add(sum);
            statement.by_window.entry(payer.window.clone()).or_default().add(sum);
        }
        statement
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_of_a_bill_agree() {
        let bill = Bill::new(Prices::default(), true);
        let payer = |key: &str, window: &str| Payer { key: key.into(), model: "m".into(), window: window.into() };
        let usage = Usage { input: 10, cached: 4, cache_write: 1, output: 2, reasoning: 0 };

        bill.charge(0, payer("a", "1"), usage, false);
        bill.charge(1, payer("a", "2"), usage, true);
        bill.charge(2, payer("b", "2"), usage, false);

        let one = 5 * 150 + 4 * 75 + 188 + 2 * 600;
        let statement = bill.statement();
        assert_eq!(statement.total.cost_nano_usd, 3 * one);
        assert_eq!(statement.by_key["a"].cost_nano_usd, 2 * one);
        assert_eq!(statement.by_window["2"].output_tokens, 4);
        assert_eq!(statement.by_model["m"].requests, 3);
        assert_eq!(statement.rows.iter().map(|row| row.hung_up).collect::<Vec<_>>(), [false, true, false]);
    }
}

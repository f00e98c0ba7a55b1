//! How much may be spent: what people write of a budget, and what requests read of it.

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::str::FromStr;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::price::{Price, PriceSpec};
use super::problems::Problems;
use crate::ledger::accounts::Declared;
use crate::ledger::money::{AmountError, NanoUsd};
use crate::ledger::window;

/// Budgets one resource may name.
pub const NAMED_MAX: usize = 8;

/// How much may be spent within a window of time, by everyone together who names it: tenants, their teams, keys, providers
/// and models. A call must fit in all of its budgets. What a call may cost at most is set aside before it is made, so
/// the limit holds on every node, whatever fails.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetSpec {
    /// `$50`, `100k tokens` or `5000 requests`. 0 refuses every call. Needed.
    ///
    /// Dollars are written `$50`, `50 USD` or `$50 USD`, with up to nine digits after a point: `$0.002`. Tokens and requests (or
    /// one `token`, one `request`) are whole numbers, `k` for thousands or `M` for millions behind the number, which then may
    /// have a point: `1.5M tokens`. Nothing separates thousands, and no number is `1e3`, has a sign or stands alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitText>,

    /// After what time it begins anew: `minute`, `hour`, `day`, `week` (from Monday), `month`, or `total` for never.
    /// Needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Period>,

    /// Whose days, weeks and months: a name such as `Europe/Berlin`. Defaults to UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,

    /// `hard`: the limit is never exceeded. `soft`: what a call is likely to cost is set aside for it, not the most it
    /// can, so calls under way may exceed the limit; whatever they cost is recorded.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: Mode,

    /// What happens where no majority of nodes can be asked, once what this node holds is spent: `closed`, calls fail;
    /// `open`, they go on until this node has spent `overdraft` beyond it.
    #[serde(skip_serializing_if = "is_default")]
    pub on_no_quorum: OnNoQuorum,

    /// With `on_no_quorum: open`: how much each node may spend beyond the limit in a window, counted as the limit is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overdraft: Option<LimitText>,
    /// `end_user`: each end user has the limit for himself, by the name that requests give in `user` or
    /// `metadata.user_id`. Calls that name nobody share one limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub each: Option<Each>,

    /// What a budget in dollars does with calls to models without a price: `refuse`, or `assume: { input: …, output: … }`
    /// as under `prices`. Defaults to `refuse`.
    #[serde(skip_serializing_if = "is_default")]
    pub on_unknown_price: OnUnknownPrice,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    #[default]
    Hard,
    Soft,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknownPrice {
    #[default]
    Refuse,
    Assume(Box<PriceSpec>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Each {
    EndUser,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnNoQuorum {
    #[default]
    Closed,
    Open,
}

/// After what time a budget begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    Total,
    Minute,
    Hour,
    Day,
    Week,
    Month,
}

impl Period {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }
}

/// In what a budget is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    NanoUsd,
    Tokens,
    Requests,
}

impl Unit {
    pub const fn name(self) -> &'static str {
        match self {
            Self::NanoUsd => "usd",
            Self::Tokens => "tokens",
            Self::Requests => "requests",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        [Self::NanoUsd, Self::Tokens, Self::Requests].into_iter().find(|unit| unit.name() == name)
    }

    /// As people write it.
    pub fn show(self, amount: u64) -> String {
        match self {
            Self::NanoUsd => NanoUsd(amount).to_string(),
            Self::Tokens | Self::Requests => format!("{amount} {}", self.name()),
        }
    }
}

/// A limit as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitText(pub String);

/// How much of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Amount {
    pub unit: Unit,
    pub amount: u64,
}

/// Why a text is no limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    #[error("`{text}` does not say of what; wanted something like `$50`, `100k tokens` or `5000 requests`")]
    NoUnit { text: String },
    #[error(
        "`{text}` is not a whole number of {unit}; wanted something like `100000`, `100k` or `2M` (a small k, a large M), \
         without a point, a comma or an exponent"
    )]
    NotWhole { text: String, unit: &'static str },
    #[error(transparent)]
    Money(AmountError),
}

impl FromStr for Amount {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let trimmed = text.trim();
        for unit in [Unit::Tokens, Unit::Requests] {
            let singular = unit.name().trim_end_matches('s');
            let number = trimmed.strip_suffix(unit.name()).or_else(|| trimmed.strip_suffix(singular));
            if let Some(number) = number {
                let amount = count(number.trim())
                    .ok_or_else(|| LimitError::NotWhole { text: text.to_owned(), unit: unit.name() })?;
                return Ok(Self { unit, amount });
            }
        }
        if trimmed.starts_with('$') || trimmed.ends_with("USD") || trimmed.starts_with('-') {
            let NanoUsd(amount) = trimmed.parse().map_err(LimitError::Money)?;
            return Ok(Self { unit: Unit::NanoUsd, amount });
        }
        Err(LimitError::NoUnit { text: text.to_owned() })
    }
}

/// `5000`, `100k`, `2M`, `1.5M`.
fn count(text: &str) -> Option<u64> {
    let (number, digits) = match text.strip_suffix('k') {
        Some(number) => (number, 3),
        None => text.strip_suffix('M').map_or((text, 0), |number| (number, 6)),
    };
    // `1.000` is one to some and a thousand to others.
    let point = |byte: u8| byte == b'.' && digits > 0;
    if !number.bytes().all(|byte| byte.is_ascii_digit() || point(byte)) {
        return None;
    }
    crate::ledger::money::parse_decimal(number, digits).ok()
}

impl Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.unit.show(self.amount))
    }
}

impl<'de> Deserialize<'de> for LimitText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LimitVisitor)
    }
}

/// Takes a number too, for `check` to say what it lacks.
struct LimitVisitor;

impl Visitor<'_> for LimitVisitor {
    type Value = LimitText;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a limit such as `$50`, `100k tokens` or `5000 requests`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<LimitText, E> {
        Ok(LimitText(text.to_owned()))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<LimitText, E> {
        Ok(LimitText(number.to_string()))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<LimitText, E> {
        Ok(LimitText(number.to_string()))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<LimitText, E> {
        Ok(LimitText(number.to_string()))
    }
}

impl Serialize for LimitText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl JsonSchema for LimitText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Limit".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "examples": ["$50", "100k tokens", "5000 requests"] })
    }
}

impl BudgetSpec {
    pub fn check(&self, problems: &mut Problems) {
        match &self.limit {
            None => problems.add("limit", "is missing; write `$50`, `100k tokens` or `5000 requests`"),
            Some(limit) => {
                if let Err(wrong) = limit.0.parse::<Amount>() {
                    problems.add("limit", wrong.to_string());
                }
            }
        }
        if self.window.is_none() {
            problems.add("window", "is missing; write `minute`, `hour`, `day`, `week`, `month` or `total`");
        }
        if let Some(name) = &self.timezone {
            if !window::is_timezone(name) {
                problems.add("timezone", format!("`{name}` is no time zone; wanted a name such as `Europe/Berlin`"));
            }
            if matches!(self.window, Some(Period::Minute | Period::Hour | Period::Total)) {
                problems.add("timezone", "says nothing for this `window`; leave it out");
            }
        }
        self.check_overdraft(problems);
        if let OnUnknownPrice::Assume(price) = &self.on_unknown_price {
            problems.within("on_unknown_price", |problems| problems.within("assume", |problems| price.check(problems)));
            let limit = self.limit.as_ref().and_then(|limit| limit.0.parse::<Amount>().ok());
            if limit.is_some_and(|limit| limit.unit != Unit::NanoUsd) {
                problems.add("on_unknown_price", "says nothing for a limit that is not in dollars; leave it out");
            }
        }
    }

    fn check_overdraft(&self, problems: &mut Problems) {
        match (self.on_no_quorum, &self.overdraft) {
            (OnNoQuorum::Closed, None) => {}
            (OnNoQuorum::Closed, Some(_)) => {
                problems.add("overdraft", "says nothing without `on_no_quorum: open`; leave it out");
            }
            (OnNoQuorum::Open, None) => {
                problems.add("overdraft", "is missing; `on_no_quorum: open` needs one, such as `$5`");
            }
            (OnNoQuorum::Open, Some(overdraft)) => match overdraft.0.parse::<Amount>() {
                Err(wrong) => problems.add("overdraft", wrong.to_string()),
                Ok(Amount { amount: 0, .. }) => {
                    problems.add("overdraft", "is 0, so `on_no_quorum: open` says nothing; leave both out");
                }
                Ok(amount) => {
                    let limit = self.limit.as_ref().and_then(|limit| limit.0.parse::<Amount>().ok());
                    if let Some(limit) = limit.filter(|limit| limit.unit != amount.unit) {
                        let (unit, wanted) = (amount.unit.name(), limit.unit.name());
                        problems.add("overdraft", format!("is in {unit}, and the limit in {wanted}"));
                    }
                }
            },
        }
    }

    /// `None` where [`check`](Self::check) finds something.
    pub fn read(&self, name: &str) -> Option<Budget> {
        Some(Budget {
            name: name.into(),
            limit: self.limit.as_ref()?.0.parse().ok()?,
            period: self.window?,
            timezone: self.timezone.as_deref().map(Into::into),
            mode: self.mode,
            overdraft: match &self.overdraft {
                Some(overdraft) => overdraft.0.parse::<Amount>().ok()?.amount,
                None => 0,
            },
            each: self.each.is_some(),
            assumed: match &self.on_unknown_price {
                OnUnknownPrice::Refuse => None,
                OnUnknownPrice::Assume(price) => Some(price.read(&mut Problems::new())),
            },
        })
    }

    /// What the ledger is told of it; `None` as for [`read`](Self::read).
    pub fn declared(&self, name: &str) -> Option<Declared> {
        let Budget { limit, period, timezone, each, .. } = self.read(name)?;
        let whose = if each { "each" } else { "all" };
        let timezone = timezone.as_deref().unwrap_or("UTC");
        let terms = format!("{} {} {timezone} {whose}", limit.unit.name(), period.name());
        Some(Declared { name: name.to_owned(), terms, limit: limit.amount, each })
    }
}

/// A budget as it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    pub name: Arc<str>,
    pub limit: Amount,
    pub period: Period,
    pub timezone: Option<Arc<str>>,
    pub mode: Mode,
    /// What each node may spend beyond the limit where no majority of nodes can be asked.
    pub overdraft: u64,
    /// Each end user has the limit for himself.
    pub each: bool,
    /// Of models without a price.
    pub assumed: Option<Price>,
}

/// Budgets that a resource names: each exists, none twice. `known` finds one.
pub(super) fn check_named<'a>(
    named: &[String],
    known: &(impl Iterator<Item = &'a str> + Clone),
    problems: &mut Problems,
) {
    problems.within("budgets", |problems| {
        if named.len() > NAMED_MAX {
            problems.add("", format!("are {}; {NAMED_MAX} are allowed", named.len()));
        }
        for (index, name) in named.iter().enumerate() {
            let path = index.to_string();
            if named[..index].contains(name) {
                problems.add(&path, format!("`{name}` is listed twice"));
            } else if known.clone().all(|known| known != name) {
                problems.add_unknown(&path, "budget", name, known.clone());
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    #[test]
    fn a_limit_says_how_much_of_what() {
        let read = |text: &str| text.parse::<Amount>().map(|it| (it.unit, it.amount));

        assert_eq!(read("$50"), Ok((Unit::NanoUsd, 50_000_000_000)));
        assert_eq!(read("$0.002"), Ok((Unit::NanoUsd, 2_000_000)));
        assert_eq!(read("50 USD"), Ok((Unit::NanoUsd, 50_000_000_000)));
        assert_eq!(read(" 50USD "), Ok((Unit::NanoUsd, 50_000_000_000)));
        assert_eq!(read("$50 USD"), Ok((Unit::NanoUsd, 50_000_000_000)));
        assert_eq!(read("$0"), Ok((Unit::NanoUsd, 0)));
        assert_eq!(read("2M requests"), Ok((Unit::Requests, 2_000_000)));
        assert_eq!(read("1token"), Ok((Unit::Tokens, 1)));
        assert_eq!(read("100k tokens"), Ok((Unit::Tokens, 100_000)));
        assert_eq!(read("1.5M tokens"), Ok((Unit::Tokens, 1_500_000)));
        assert_eq!(read("1 request"), Ok((Unit::Requests, 1)));
        for wrong in [
            "50",
            "$-1",
            "-5 tokens",
            "1.5 tokens",
            "tokens",
            "1.0005k tokens",
            "$50 requests",
            "5 USD tokens",
            "5USDk tokens",
            "1e3 tokens",
            "1,000 requests",
            "100kk tokens",
            "100K tokens",
            "18446744073709551616 tokens",
            "18446744073710M tokens",
            "$0.0000000001",
            "",
            "$",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        for (odd, form) in [
            ("$ 50", "`$25`"),
            ("50$", "`$50`"),
            ("50 usd", "`$50`"),
            ("50 dollars", "`$50`"),
            ("€50", "`$50`"),
            ("$1,000", "`$25`"),
            ("$50k", "`$25`"),
            ("+$50", "`$50`"),
            ("1e3 USD", "`$25`"),
            ("1e3 tokens", "without a point, a comma or an exponent"),
            ("1.000 tokens", "without a point"),
            ("1_000 tokens", "`100k`"),
            ("1,5M tokens", "`2M`"),
            ("100 k tokens", "`100k`"),
            ("2m tokens", "`2M`"),
            ("+5 requests", "`100000`"),
        ] {
            let told = read(odd).map_err(|wrong| wrong.to_string());
            assert!(told.as_ref().is_err_and(|told| told.contains(odd) && told.contains(form)), "{odd}: {told:?}");
        }
        assert_eq!(Amount { unit: Unit::NanoUsd, amount: 2_500_000_000 }.to_string(), "$2.5");
        assert_eq!(Amount { unit: Unit::Tokens, amount: 100 }.to_string(), "100 tokens");
    }

    proptest! {
        /// What is shown of an amount reads as that amount, to the last unit.
        #[test]
        fn an_amount_is_read_as_it_is_shown(amount: u64, unit in select(&[Unit::NanoUsd, Unit::Tokens, Unit::Requests][..])) {
            let amount = Amount { unit, amount };
            prop_assert_eq!(amount.to_string().parse(), Ok(amount));
        }

        /// `k` and `M` are thousands and millions, and nothing is rounded.
        #[test]
        fn thousands_and_millions_are_exact(whole in 0..1_000_000_000_u64, thousandths in 0..1_000_u64) {
            let read = |text: String| text.parse::<Amount>().map(|read| read.amount);
            prop_assert_eq!(read(format!("{whole}.{thousandths:03}k tokens")), Ok(whole * 1_000 + thousandths));
            prop_assert_eq!(read(format!("{whole}.{thousandths:03}M tokens")), Ok(whole * 1_000_000 + thousandths * 1_000));
        }

        /// Any text is an amount or an error, never a panic.
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,20}( tokens| requests|k tokens|USD)?") {
            let _ = text.parse::<Amount>();
        }
    }

    /// A number says how much, and not of what.
    #[test]
    fn a_limit_without_a_unit_is_told_what_it_lacks() {
        let read_json = |text: &str| serde_json::from_str::<BudgetSpec>(text).unwrap();
        let read_yaml = |text: &str| serde_saphyr::from_str::<BudgetSpec>(text).unwrap();
        for spec in [
            read_json(r#"{"limit":50,"window":"day"}"#),
            read_json(r#"{"limit":0.5,"window":"day"}"#),
            read_json(r#"{"limit":-1,"window":"day"}"#),
            read_yaml("{ limit: 50, window: day }"),
            read_yaml("{ limit: 1e3, window: day }"),
        ] {
            let mut problems = Problems::new();
            spec.check(&mut problems);
            let told = problems.to_string();
            let advice = told.starts_with("limit: `-1` is negative")
                || told.contains("wanted something like `$50`, `100k tokens`");
            assert!(told.starts_with("limit: ") && advice && spec.read("b").is_none(), "{told}");
        }
        assert!(
            serde_json::from_str::<BudgetSpec>(r#"{"limit":["$50"]}"#)
                .unwrap_err()
                .to_string()
                .contains("a limit such as")
        );
    }

    #[test]
    fn a_zone_is_for_days_weeks_and_months() {
        let found = |window: &str| {
            let text = format!(r#"{{"limit":"$1","window":"{window}","timezone":"Asia/Kathmandu"}}"#);
            let mut problems = Problems::new();
            serde_json::from_str::<BudgetSpec>(&text).unwrap().check(&mut problems);
            problems.to_string()
        };
        for window in ["day", "week", "month"] {
            assert_eq!(found(window), "", "{window}");
        }
        for window in ["total", "minute", "hour"] {
            assert_eq!(found(window), "timezone: says nothing for this `window`; leave it out", "{window}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_budget_is_said_where_it_is() {
        let spec: BudgetSpec =
            serde_json::from_str(r#"{"limit":"50","timezone":"Europe/Berlln","on_no_quorum":"open"}"#).unwrap();
        let mut problems = Problems::new();
        spec.check(&mut problems);
        for overdraft in ["$1", "$0", "1 tokens", "5"] {
            let text = format!(r#"{{"limit":"$1","window":"day","on_no_quorum":"open","overdraft":"{overdraft}"}}"#);
            serde_json::from_str::<BudgetSpec>(&text).unwrap().check(&mut problems);
        }
        let closed: BudgetSpec = serde_json::from_str(r#"{"limit":"$1","window":"day","overdraft":"$1"}"#).unwrap();
        closed.check(&mut problems);

        let said: Vec<String> = problems.iter().map(ToString::to_string).collect();

        for wanted in [
            "limit: `50` does not say of what",
            "window: is missing",
            "timezone: `Europe/Berlln`",
            "overdraft: is missing",
            "overdraft: is 0, so",
            "overdraft: is in tokens, and the limit in usd",
            "overdraft: `5` does not say of what",
            "overdraft: says nothing without",
        ] {
            assert!(said.iter().any(|said| said.contains(wanted)), "{wanted}: {said:?}");
        }
        assert_eq!(said.len(), 8, "{said:?}");
    }
}

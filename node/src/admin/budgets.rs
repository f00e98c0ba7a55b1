//! What is left of a budget, as the whole cluster knows it at this moment; and giving back by hand what a process that is
//! over holds of it.

use super::access::{Scope, budgets_of};
use super::control::{ChangeError, Control};
use super::error::ApiError;
use super::http::{Answer, Call};
use super::resources::failed;
use super::status::cluster::table;
use cluster::directory::budget::{Amount, Budget, LimitError, Period, Unit};
use cluster::directory::kind::Kind;
use cluster::directory::role::Grant;
use cluster::id::Incarnation;
use cluster::ledger::accounts::{Account, Record, Totals, Window};
use cluster::ledger::book::{Book, Line, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

/// Whether it is not there or another's, who is limited to some tenants does not learn.
const NOT_NAMED: &str = "no tenant, team or key of theirs names this budget";

/// A budget in its present window, or in the one asked for. Amounts are in the budget's unit: billionths of a US dollar, tokens or requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BudgetStanding {
    pub name: String,
    /// `usd` (in billionths), `tokens` or `requests`.
    pub unit: String,
    pub limit: u64,
    /// After what time it begins anew: `minute`, `hour`, `day`, `week`, `month`, or `total` for never.
    #[serde(default)]
    pub period: String,
    /// `end_user` where each end user has the limit for himself: then the amounts are those of all of them together, but
    /// for what remains, which is what the one has who has the least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub each: Option<String>,
    /// Those that have spent of it in the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_users: Option<u64>,
    /// The one whose share this is, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_user: Option<String>,
    /// Which window, counted from 0; null before the first has begun.
    pub window: Option<u64>,
    pub starts: Option<String>,
    /// Null: never.
    pub ends: Option<String>,
    /// Of calls that have ended, as far as nodes have reported: each does every second.
    pub settled: u64,
    /// Granted to nodes that live, and not reported as used: for calls under way and calls to come.
    pub leased: u64,
    /// Of what is leased, what calls under way have set aside on the node that was asked. Left out in a list, and for a
    /// window that was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved_here: Option<u64>,
    /// Held by processes that have ended, and not proved unspent.
    pub burned: u64,
    /// Nobody holds it.
    pub remaining_low: u64,
    /// If nothing of what is leased is spent.
    pub remaining_high: u64,
    /// By how much more is spent or burned than the limit, which was lowered since, or is exceeded by a soft budget or an
    /// overdraft. Left out: not at all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub over: u64,
    /// None to who is limited to some tenants, and none in a list.
    pub lines: Vec<LineStanding>,
    /// Of windows that are over, the oldest first. None in a list.
    pub records: Vec<WindowRecord>,
}

/// Budgets in their present windows, ordered by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Standings {
    pub items: Vec<BudgetStanding>,
    /// Where the rest begins: the next `after`.
    pub next: Option<String>,
    /// Said by the command line, of a list that it did not read to its end.
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub cut: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(amount: &u64) -> bool {
    *amount == 0
}

/// What is asked for of a budget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Of {
    /// `None`: the present one.
    pub window: Option<u64>,
    pub end_user: Option<String>,
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

/// What a process that is over has really used of a budget: whoever says it answers for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reconciliation {
    /// Its name or its id, as the budget's standing shows it.
    pub node: String,
    pub incarnation: u64,
    pub used: Used,
    /// Left out: the present one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u64>,
    /// Whose share, where each end user has the limit for himself. Left out: that of calls that named nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_user: Option<String>,
}

/// `$0.31`, `100k tokens`, `40 requests`; or a number in the budget's unit: billionths of a US dollar, tokens, requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "`used` is an amount such as `$0.31`, or a whole number in the budget's unit")]
pub enum Used {
    Number(u64),
    Text(String),
}

/// A [`Reconciliation`] of the budget called so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconcile {
    pub budget: String,
    pub said: Reconciliation,
}

/// What came of it: the budget as it stands then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reconciled {
    #[serde(flatten)]
    pub standing: BudgetStanding,
    /// By this: what nobody holds any more.
    pub given_back: u64,
    /// Where something was taken otherwise than it was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Used {
    /// In `unit`; else what is wrong with it.
    pub fn amount(&self, unit: Unit) -> Result<u64, String> {
        let text = match self {
            Self::Number(amount) => return Ok(*amount),
            Self::Text(text) => text.trim(),
        };
        // A bare number of dollars may be meant in dollars or in billionths, unless it is none.
        if let Ok(number) = text.parse::<u64>()
            && (number == 0 || unit != Unit::NanoUsd)
        {
            return Ok(number);
        }
        let amount: Amount = text.parse().map_err(|wrong: LimitError| wrong.to_string())?;
        if amount.unit == unit {
            return Ok(amount.amount);
        }
        Err(format!("`{text}` is in {}, and the budget in {}", amount.unit.name(), unit.name()))
    }
}

impl Reconciled {
    /// For a person.
    pub fn words(&self) -> String {
        let unit = self.standing.counted_in();
        let mut text = format!("{} given back", unit.show(self.given_back));
        if let Some(note) = &self.note {
            text = text + "; " + note;
        }
        text + "\n" + &self.standing.words()
    }
}

impl From<(Incarnation, &Line)> for LineStanding {
    fn from((incarnation, line): (Incarnation, &Line)) -> Self {
        let stage = match line.stage {
            Stage::Open => "open",
            Stage::Ended => "ended",
            Stage::Settled | Stage::Answered => "settled",
        };
        Self {
            node: line.node.to_string(),
            incarnation: incarnation.get(),
            stage: stage.to_owned(),
            granted: line.granted,
            used: line.used,
            returned: line.returned,
            burned: line.burned(),
        }
    }
}

impl BudgetStanding {
    /// Nobody has spent of it.
    pub fn untouched(name: &str, unit: Unit, limit: u64, period: Period) -> Self {
        Self {
            name: name.to_owned(),
            unit: unit.name().to_owned(),
            limit,
            period: period.name().to_owned(),
            each: None,
            end_users: None,
            end_user: None,
            window: None,
            starts: None,
            ends: None,
            settled: 0,
            leased: 0,
            reserved_here: None,
            burned: 0,
            remaining_low: limit,
            remaining_high: limit,
            over: 0,
            lines: Vec::new(),
            records: Vec::new(),
        }
    }

    pub fn new(budget: &Budget, account: &Account) -> Self {
        let records = account.records().map(WindowRecord::from).collect();
        let each = account.is_each().then(|| "end_user".to_owned());
        Self { each, records, ..Self::untouched(&account.name, budget.limit.unit, account.limit(), budget.period) }
    }

    /// In this window.
    pub fn show(&mut self, number: u64, window: &Window) {
        self.limit = window.book.limit();
        self.window = Some(number);
        self.starts = Some(time(window.starts));
        self.ends = window.ends.map(time);
        self.end_users = self.each.is_some().then_some(window.users.len() as u64);
        self.amounts(window.totals());
        self.remains(window.most_held(), window.most_spent());
        self.lines = window.book.lines().map(LineStanding::from).collect();
    }

    /// What this end user has of it. `None`: he has spent nothing.
    pub fn show_user(&mut self, name: Option<String>, book: Option<&Book>) {
        let empty = Book::new(self.limit);
        let book = book.unwrap_or(&empty);
        let (held, used, burned) = (book.held(), book.used(), book.burned());
        self.end_user = name;
        self.end_users = None;
        self.amounts(Totals { held, used, burned });
        self.remains(held, used.saturating_add(burned));
        self.lines = book.lines().map(LineStanding::from).collect();
    }

    /// As one of many.
    #[must_use]
    pub fn in_short(self) -> Self {
        Self { lines: Vec::new(), records: Vec::new(), ..self }
    }

    fn remains(&mut self, held: u64, spent: u64) {
        self.remaining_low = self.limit.saturating_sub(held);
        self.remaining_high = self.limit.saturating_sub(spent);
        self.over = spent.saturating_sub(self.limit);
    }

    fn amounts(&mut self, Totals { held, used, burned }: Totals) {
        self.settled = used;
        self.burned = burned;
        self.leased = held.saturating_sub(used).saturating_sub(burned);
    }

    fn counted_in(&self) -> Unit {
        Unit::named(&self.unit).unwrap_or(Unit::NanoUsd)
    }

    /// For a person, as a line of a table.
    fn row(&self) -> Vec<String> {
        let unit = self.counted_in();
        let show = |amount: u64| unit.show(amount);
        let window =
            if self.period == Period::Total.name() { "in total".to_owned() } else { format!("a {}", self.period) };
        let each = if self.each.is_some() { ", each end user" } else { "" };
        vec![
            self.name.clone(),
            format!("{} {window}{each}", show(self.limit)),
            show(self.settled),
            show(self.leased),
            show(self.burned),
            self.remaining(),
            self.ends.clone().unwrap_or_else(|| "never".to_owned()),
        ]
    }

    fn remaining(&self) -> String {
        let unit = self.counted_in();
        if self.over > 0 {
            return format!("over by {}", unit.show(self.over));
        }
        format!("{} to {}", unit.show(self.remaining_low), unit.show(self.remaining_high))
    }

    /// For a person.
    pub fn words(&self) -> String {
        let unit = self.counted_in();
        let show = |amount: u64| unit.show(amount);
        let reserved =
            self.reserved_here.map_or_else(String::new, |amount| format!(", {} of it by calls here", show(amount)));
        let whose = match (&self.end_user, self.end_users) {
            (Some(user), _) => format!(", end user `{user}`"),
            (None, Some(users)) => format!(", each end user; {users} that were named have spent of it"),
            (None, None) => String::new(),
        };
        let window = match self.window {
            Some(number) if self.period != Period::Total.name() => format!("\n  window     {number}"),
            Some(_) | None => String::new(),
        };
        let mut text = format!(
            "{}{whose}{window}\n  limit      {}\n  settled    {}\n  leased     {}{reserved}\n  burned     {}\n  remaining  {}\n  resets     {}",
            self.name,
            show(self.limit),
            show(self.settled),
            show(self.leased),
            show(self.burned),
            self.remaining(),
            resets(self.ends.as_deref(), cluster::clock::since_epoch()),
        );
        if self.end_users.is_some() && !self.lines.is_empty() {
            text.push_str("\n  of that, calls that name no end user:");
        }
        for line in &self.lines {
            let _infallible = write!(
                text,
                "\n  node {} incarnation {} ({}): granted {} and returned {} in all, used {}, burned {}",
                line.node,
                line.incarnation,
                line.stage,
                show(line.granted),
                show(line.returned),
                show(line.used),
                show(line.burned),
            );
        }
        text
    }
}

impl Standings {
    const HEADING: [&str; 7] = ["name", "limit", "settled", "leased", "burned", "remaining", "resets"];

    /// For a person.
    pub fn words(&self) -> String {
        let heading = Self::HEADING.iter().map(ToString::to_string).collect();
        let rows: Vec<Vec<String>> =
            std::iter::once(heading).chain(self.items.iter().map(BudgetStanding::row)).collect();
        let mut text = table(&rows).join("\n");
        if self.cut {
            text.push_str("\nthere are more; these are as many as are listed at once");
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

/// «in 3h 5m, at 2026-02-01T00:00:00Z».
fn resets(ends: Option<&str>, now: Duration) -> String {
    let Some(ends) = ends else { return "never".to_owned() };
    let at = humantime::parse_rfc3339(ends).ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    match at.and_then(|at| at.checked_sub(now)) {
        Some(left) => {
            let shown = if left < Duration::from_mins(2) { 1 } else { 60 };
            let left = Duration::from_secs(left.as_secs() / shown * shown);
            format!("in {}, at {ends}", humantime::format_duration(left))
        }
        None => ends.to_owned(),
    }
}

fn time(since_1970: Duration) -> String {
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since_1970).to_string()
}

/// Who is limited to some tenants names those budgets that the tenants and their teams name, or that what he writes named
/// `before`: with any other he would see how it stands, and spend what is others'. What keys name gives no leave: he writes
/// them himself.
pub fn may_name(control: &dyn Control, scope: &Scope, before: Option<&Json>, spec: &Json) -> Result<(), ChangeError> {
    let Scope::Tenants(tenants) = scope else { return Ok(()) };
    let owners: Vec<Json> =
        tenants.iter().filter_map(|tenant| Some(control.get(Kind::Tenants, tenant)?.spec)).collect();
    let known: BTreeSet<&str> = owners.iter().chain(before).flat_map(budgets_of).collect();
    match budgets_of(spec).find(|budget| !known.contains(budget)) {
        Some(budget) => Err(ChangeError::ForeignBudget { budget: budget.to_owned() }),
        None => Ok(()),
    }
}

pub async fn standing(control: &dyn Control, call: &Call, name: String) -> Result<Answer, ApiError> {
    let scope = call.scope(Grant::Viewer)?;
    let of = Of { window: call.query.window, end_user: call.query.end_user.clone() };
    let found = control.standing(name.clone(), of).await;
    // By what is known since: what this node knew before may be out of date.
    if let Scope::Tenants(tenants) = &scope
        && !control.is_budget_of(&name, tenants)
    {
        return Err(ApiError::OutOfScope(NOT_NAMED));
    }
    let mut standing = found.map_err(|error| failed(call, error))?;
    if scope != Scope::Everything {
        // They tell of the nodes, which are everyone's.
        standing.lines.clear();
    }
    Ok(Answer::ok(json!(standing)))
}

/// Of all budgets, or of those that are the caller's tenants'.
pub async fn standings(control: &dyn Control, call: &Call) -> Result<Answer, ApiError> {
    let (scope, limit) = (call.scope(Grant::Viewer)?, call.query.limit());
    let found = control.standings(call.query.after.clone(), limit + 1, scope).await;
    let mut items = found.map_err(|error| failed(call, error))?;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|last| last.name.clone());
    Ok(Answer::ok(json!(Standings { items, next, cut: false })))
}

pub async fn reconcile(control: &dyn Control, call: &Call, budget: String) -> Result<Answer, ApiError> {
    call.everywhere(Grant::Admin, "budgets are everyone's")?;
    let said = serde_json::from_value(Json::Object(call.object()?));
    let said = said.map_err(|error| ApiError::wrong("", error.to_string()))?;
    let asked = Reconcile { budget, said };
    let reconciled = control.reconcile(asked, call.context(Grant::Admin)).await.map_err(|error| failed(call, error))?;
    Ok(Answer::ok(json!(reconciled)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a bare 0 nobody saw how far it is to the next call.
    #[test]
    fn a_reset_is_told_by_how_long_it_is_and_when() {
        let ends = "2026-02-01T00:00:00Z";
        let at = humantime::parse_rfc3339(ends).unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
        let told = |before: u64| resets(Some(ends), at.saturating_sub(Duration::from_secs(before)));

        assert_eq!(told(3 * 3_600 + 5 * 60 + 7), "in 3h 5m, at 2026-02-01T00:00:00Z");
        assert_eq!(told(17), "in 17s, at 2026-02-01T00:00:00Z");
        assert_eq!(resets(Some(ends), at + Duration::from_secs(1)), ends, "another clock says that it is over");
        assert_eq!(resets(None, at), "never");
    }

    #[test]
    fn what_is_spent_beyond_the_limit_is_said() {
        let mut budget = BudgetStanding::untouched("b", Unit::NanoUsd, 600_000_000, Period::Day);

        budget.remains(1_100_000_000, 1_000_000_000);
        assert!(budget.words().contains("\n  remaining  over by $0.4\n"), "{}", budget.words());
        assert_eq!((json!(budget)["over"].as_u64(), budget.remaining_high), (Some(400_000_000), 0));
        assert_eq!(budget.row()[5], "over by $0.4");
        budget.remains(700_000_000, 600_000_000);
        assert!(budget.words().contains("remaining  $0 to $0\n") && json!(budget).get("over").is_none());
    }

    #[test]
    fn all_budgets_are_a_table() {
        let budget = |name: &str, unit, period| BudgetStanding {
            settled: 3,
            leased: 2,
            reserved_here: None,
            remaining_low: 4,
            remaining_high: 6,
            ..BudgetStanding::untouched(name, unit, 9, period)
        };
        let ends = Some("2026-02-01T00:00:00Z".to_owned());
        let items = vec![
            BudgetStanding { ends, each: Some("end_user".to_owned()), ..budget("a", Unit::Tokens, Period::Month) },
            budget("b", Unit::Requests, Period::Total),
        ];

        let words = Standings { items, next: None, cut: true }.words();

        let lines: Vec<&str> = words.lines().collect();
        let cells =
            |line: &str| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>().join("|");
        assert_eq!(cells(lines[0]), "name|limit|settled|leased|burned|remaining|resets");
        let first =
            "a|9 tokens a month, each end user|3 tokens|2 tokens|0 tokens|4 tokens to 6 tokens|2026-02-01T00:00:00Z";
        assert_eq!(cells(lines[1]), first);
        let second = "b|9 requests in total|3 requests|2 requests|0 requests|4 requests to 6 requests|never";
        assert_eq!(cells(lines[2]), second);
        assert!(lines[3].starts_with("there are more"), "{words}");
    }

    #[test]
    fn an_amount_is_taken_in_the_budgets_unit_alone() {
        let text = |text: &str| Used::Text(text.to_owned());

        assert_eq!(text("$0.31").amount(Unit::NanoUsd), Ok(310_000_000));
        assert_eq!(text("40 requests").amount(Unit::Requests), Ok(40));
        assert_eq!(text("40").amount(Unit::Requests), Ok(40));
        assert_eq!(text("1.5k tokens").amount(Unit::Tokens), Ok(1_500));
        assert_eq!(Used::Number(7).amount(Unit::NanoUsd), Ok(7));
        assert_eq!(text("0").amount(Unit::NanoUsd), Ok(0));
        for (wrong, unit, why) in [
            ("3", Unit::NanoUsd, "does not say of what"),
            ("$1", Unit::Tokens, "is in usd, and the budget in tokens"),
            ("-$1", Unit::NanoUsd, "is negative"),
        ] {
            let refused = text(wrong).amount(unit).unwrap_err();
            assert!(refused.contains(why), "{wrong}: {refused}");
        }
    }
}

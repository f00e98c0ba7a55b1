//! The accounts of all budgets, window by window. Part of the register: pure and deterministic.
//!
//! What a budget is called and what its limit is follows from the resources; what windows it has is said by the leader,
//! since a calendar is no fact that every program version agrees on. Whoever rolls a window too early or too late moves
//! spending from one window to another; within each the limit holds.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::book::{Book, Reconciled, Standing, Statement};
use crate::id::{Incarnation, NodeId};

/// Windows of a budget that are over and still take reports: the last two. Older ones become records.
pub const OVER_MAX: usize = 2;

/// Records of a budget that are kept.
pub const RECORDS_MAX: usize = 64;

/// Budgets whose calls may still be under way after they were deleted or replaced. The oldest go first.
pub const CLOSED_MAX: usize = 1_000;

/// A budget for as long as it is the same one: another of its name is another budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct BudgetId(pub u64);

impl fmt::Display for BudgetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One window of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct Place {
    pub budget: BudgetId,
    /// They are numbered from 0.
    pub window: u64,
}

/// What the resources say of a budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    pub name: String,
    /// What makes it another budget when it changes: its unit, its period, its calendar.
    pub terms: String,
    pub limit: u64,
}

/// A window begins, and the one before it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct Roll {
    pub budget: BudgetId,
    /// The window before. Said twice, it comes to the same.
    pub after: Option<u64>,
    /// Since 1970.
    pub starts: Duration,
    /// `None`: never.
    pub ends: Option<Duration>,
}

/// What is said to a [`Statement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum Told {
    Standing(Standing),
    /// The window, or the budget, is over: nothing more is granted of it. What was granted may be used up.
    Over(Standing),
    /// Long over, or never there: nothing is kept of it.
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Window {
    pub starts: Duration,
    pub ends: Option<Duration>,
    pub book: Book,
}

/// What a window came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Record {
    pub window: u64,
    pub starts: Duration,
    pub ends: Option<Duration>,
    pub limit: u64,
    pub used: u64,
    /// Not proved unspent.
    pub burned: u64,
}

/// One budget.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Account {
    pub name: String,
    terms: String,
    limit: u64,
    closed: bool,
    windows: BTreeMap<u64, Window>,
    records: VecDeque<Record>,
}

/// As the module says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Accounts {
    next: u64,
    by_id: BTreeMap<BudgetId, Account>,
    /// Those that are not closed.
    by_name: BTreeMap<String, BudgetId>,
    /// Counts what changed besides lines: budgets that came or went, windows that began.
    generation: u64,
}

impl Account {
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The last one that began, unless the budget is closed.
    pub fn current(&self) -> Option<(u64, &Window)> {
        self.windows.last_key_value().filter(|_| !self.closed).map(|(number, window)| (*number, window))
    }

    /// Those that still take reports, the oldest first.
    pub fn windows(&self) -> impl Iterator<Item = (u64, &Window)> {
        self.windows.iter().map(|(number, window)| (*number, window))
    }

    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter()
    }

    fn latest(&self) -> Option<u64> {
        self.windows.last_key_value().map(|(number, _window)| *number)
    }

    fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
        if let Some(mut window) = self.windows.last_entry() {
            window.get_mut().book.set_limit(limit);
        }
    }

    fn roll(&mut self, roll: &Roll) {
        let number = self.latest().map_or(0, |latest| latest + 1);
        let book = Book::new(self.limit);
        self.windows.insert(number, Window { starts: roll.starts, ends: roll.ends, book });
        while self.windows.len() > OVER_MAX + 1 {
            let Some((number, window)) = self.windows.pop_first() else { return };
            let Window { starts, ends, book } = window;
            let (limit, used, burned) = (book.limit(), book.used(), book.held() - book.used());
            if self.records.len() >= RECORDS_MAX {
                self.records.pop_front();
            }
            self.records.push_back(Record { window: number, starts, ends, limit, used, burned });
        }
    }
}

impl Accounts {
    /// Makes the accounts those of these budgets. One whose limit alone is another stays the same budget.
    pub fn align(&mut self, declared: &[Declared]) {
        let gone: Vec<String> = self
            .by_name
            .iter()
            .filter(|(name, id)| {
                let account = self.by_id.get(id);
                !declared.iter().any(|it| it.name == **name && account.is_some_and(|account| account.terms == it.terms))
            })
            .map(|(name, _id)| name.clone())
            .collect();
        for name in gone {
            self.close(&name);
        }
        for Declared { name, terms, limit } in declared {
            if let Some(account) = self.by_name.get(name).and_then(|id| self.by_id.get_mut(id)) {
                if account.limit != *limit {
                    self.generation += 1;
                    account.set_limit(*limit);
                }
                continue;
            }
            let id = BudgetId(self.next);
            self.next += 1;
            self.generation += 1;
            let account = Account {
                name: name.clone(),
                terms: terms.clone(),
                limit: *limit,
                closed: false,
                windows: BTreeMap::new(),
                records: VecDeque::new(),
            };
            self.by_id.insert(id, account);
            self.by_name.insert(name.clone(), id);
        }
    }

    fn close(&mut self, name: &str) {
        let Some(account) = self.by_name.remove(name).and_then(|id| self.by_id.get_mut(&id)) else { return };
        account.closed = true;
        self.generation += 1;
        let closed = self.by_id.values().filter(|account| account.closed).count();
        if closed > CLOSED_MAX {
            let oldest = self.by_id.iter().find(|(_, account)| account.closed).map(|(id, _)| *id);
            oldest.and_then(|id| self.by_id.remove(&id));
        }
    }

    /// `false`: the window before is another by now, or the budget is closed.
    pub fn roll(&mut self, roll: &Roll) -> bool {
        let account = self.by_id.get_mut(&roll.budget);
        let Some(account) = account.filter(|account| !account.closed && account.latest() == roll.after) else {
            return false;
        };
        account.roll(roll);
        self.generation += 1;
        true
    }

    /// What `node` says of its line. `over`: the life is not its present one.
    pub fn state(&mut self, place: Place, incarnation: Incarnation, node: NodeId, said: Statement, over: bool) -> Told {
        let Some(account) = self.by_id.get_mut(&place.budget) else { return Told::Gone };
        let grants = !account.closed && account.latest() == Some(place.window);
        let Some(window) = account.windows.get_mut(&place.window) else { return Told::Gone };
        if grants {
            return Told::Standing(window.book.state(incarnation, node, said, over));
        }
        if window.book.line(incarnation).is_none() {
            return Told::Over(window.book.standing(incarnation));
        }
        // Wanting nothing is granted nothing.
        let said = Statement { wants: 0, least: 0, ..said };
        Told::Over(window.book.state(incarnation, node, said, over))
    }

    /// What a life would be told of a place now.
    pub fn told(&self, place: Place, incarnation: Incarnation) -> Told {
        let Some(account) = self.by_id.get(&place.budget) else { return Told::Gone };
        let Some(window) = account.windows.get(&place.window) else { return Told::Gone };
        let standing = window.book.standing(incarnation);
        let grants = !account.closed && account.latest() == Some(place.window);
        if grants { Told::Standing(standing) } else { Told::Over(standing) }
    }

    /// This life is over.
    pub fn end(&mut self, incarnation: Incarnation) {
        self.books().for_each(|book| book.end(incarnation));
    }

    /// What a life of `node` that is over has used at most, place by place; nothing where none is named.
    pub fn settle(&mut self, node: NodeId, incarnation: Incarnation, marks: &BTreeMap<Place, u64>) {
        for (budget, account) in &mut self.by_id {
            for (window, Window { book, .. }) in &mut account.windows {
                let of_node = book.line(incarnation).is_some_and(|line| line.node == node);
                if of_node {
                    let place = Place { budget: *budget, window: *window };
                    book.settle(incarnation, marks.get(&place).copied().unwrap_or_default());
                }
            }
        }
    }

    /// As [`Book::reconcile`].
    pub fn reconcile(&mut self, place: Place, incarnation: Incarnation, used: u64) -> Option<Reconciled> {
        let window = self.by_id.get_mut(&place.budget)?.windows.get_mut(&place.window)?;
        window.book.reconcile(incarnation, used)
    }

    /// Another one: where budgets are spent, or how much, has changed.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn get(&self, id: BudgetId) -> Option<&Account> {
        self.by_id.get(&id)
    }

    /// Of the budget that has this name now.
    pub fn named(&self, name: &str) -> Option<(BudgetId, &Account)> {
        let id = *self.by_name.get(name)?;
        Some((id, self.by_id.get(&id)?))
    }

    /// By name, those that are not closed.
    pub fn iter(&self) -> impl Iterator<Item = (BudgetId, &Account)> {
        self.by_name.values().filter_map(|id| Some((*id, self.by_id.get(id)?)))
    }

    /// Whether nothing is kept of it any more, and never will be again. What is not known yet is not past: a register that
    /// is being replayed knows less than it did.
    pub fn is_past(&self, place: Place) -> bool {
        match self.by_id.get(&place.budget) {
            Some(account) => account.windows.first_key_value().is_some_and(|(first, _window)| place.window < *first),
            None => place.budget.0 < self.next,
        }
    }

    pub fn window(&self, place: Place) -> Option<&Window> {
        self.by_id.get(&place.budget)?.windows.get(&place.window)
    }

    fn books(&mut self) -> impl Iterator<Item = &mut Book> {
        self.by_id.values_mut().flat_map(|account| account.windows.values_mut()).map(|window| &mut window.book)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::new(7);

    fn declared(name: &str, terms: &str, limit: u64) -> Declared {
        Declared { name: name.to_owned(), terms: terms.to_owned(), limit }
    }

    fn place(accounts: &Accounts, name: &str) -> Place {
        let (budget, account) = accounts.named(name).unwrap();
        Place { budget, window: account.current().unwrap().0 }
    }

    fn rolled(accounts: &mut Accounts, name: &str) -> Place {
        let (budget, account) = accounts.named(name).unwrap();
        let roll = Roll { budget, after: account.latest(), starts: Duration::ZERO, ends: None };
        assert!(accounts.roll(&roll));
        assert!(!accounts.roll(&roll), "said twice");
        place(accounts, name)
    }

    fn ask(accounts: &mut Accounts, place: Place, said: Statement) -> Told {
        accounts.state(place, Incarnation::new(1), NODE, said, false)
    }

    fn wants(wants: u64) -> Statement {
        Statement { wants, least: 1, ..Statement::default() }
    }

    #[test]
    fn a_budget_of_the_same_name_with_other_terms_is_another() {
        let mut accounts = Accounts::default();
        accounts.align(&[declared("a", "usd month", 100)]);
        let first = rolled(&mut accounts, "a");
        ask(&mut accounts, first, wants(80));

        accounts.align(&[declared("a", "usd month", 50)]);
        assert_eq!(place(&accounts, "a"), first, "a limit alone makes no other budget");
        assert_eq!(accounts.window(first).unwrap().book.limit(), 50);

        accounts.align(&[declared("a", "usd day", 50)]);
        let second = rolled(&mut accounts, "a");

        assert_ne!(first.budget, second.budget);
        assert_eq!(accounts.window(second).unwrap().book.held(), 0);
        let told = ask(&mut accounts, first, Statement { used: 30, wants: 90, ..wants(0) });
        assert!(matches!(told, Told::Over(Standing { granted: 80, used: 30, .. })), "{told:?}");
    }

    #[test]
    fn deleted_and_made_again_it_begins_anew() {
        let mut accounts = Accounts::default();
        accounts.align(&[declared("a", "usd total", 100)]);
        let first = rolled(&mut accounts, "a");
        ask(&mut accounts, first, wants(100));

        accounts.align(&[]);
        accounts.align(&[declared("a", "usd total", 100)]);
        let second = rolled(&mut accounts, "a");

        assert!(matches!(ask(&mut accounts, second, wants(100)), Told::Standing(Standing { granted: 100, .. })));
    }

    #[test]
    fn a_window_that_is_over_grants_nothing_takes_reports_and_becomes_a_record() {
        let mut accounts = Accounts::default();
        accounts.align(&[declared("a", "usd minute", 100)]);
        let first = rolled(&mut accounts, "a");
        ask(&mut accounts, first, wants(60));

        rolled(&mut accounts, "a");
        let told = ask(&mut accounts, first, Statement { used: 40, returned: 10, ..wants(100) });
        assert!(matches!(told, Told::Over(Standing { granted: 60, used: 40, held: 50, .. })), "{told:?}");
        let stranger = accounts.state(first, Incarnation::new(2), NODE, wants(5), false);
        assert!(matches!(stranger, Told::Over(Standing { granted: 0, .. })), "{stranger:?}");
        rolled(&mut accounts, "a");
        rolled(&mut accounts, "a");

        assert_eq!(ask(&mut accounts, first, wants(1)), Told::Gone);
        assert!(accounts.is_past(first));
        let later = Place { window: first.window + 1, ..first };
        let unheard_of = [Place { window: 99, ..first }, Place { budget: BudgetId(99), ..first }];
        assert!(!accounts.is_past(later) && !unheard_of.into_iter().any(|place| accounts.is_past(place)));
        let (_, account) = accounts.named("a").unwrap();
        let records: Vec<&Record> = account.records().collect();
        assert_eq!((records[0].used, records[0].burned, records.len()), (40, 10, 1));
    }

    #[test]
    fn a_life_that_is_over_is_settled_at_its_marks_and_once() {
        let mut accounts = Accounts::default();
        accounts.align(&[declared("a", "usd total", 100), declared("b", "usd total", 100)]);
        let (a, b) = (rolled(&mut accounts, "a"), rolled(&mut accounts, "b"));
        ask(&mut accounts, a, Statement { used: 5, ..wants(60) });
        ask(&mut accounts, b, wants(60));
        let old = Incarnation::new(1);
        accounts.end(old);
        assert_eq!(accounts.window(a).unwrap().book.burned(), 55);

        accounts.settle(NodeId::new(8), old, &BTreeMap::new());
        assert_eq!(accounts.window(a).unwrap().book.held(), 60, "another node's word");
        accounts.settle(NODE, old, &BTreeMap::from([(a, 4)]));
        assert_eq!(accounts.window(a).unwrap().book.held(), 60, "a disk that went back proves nothing");
        accounts.settle(NODE, old, &BTreeMap::from([(a, 20)]));
        accounts.settle(NODE, old, &BTreeMap::from([(a, 10)]));

        let book = &accounts.window(a).unwrap().book;
        assert_eq!((book.held(), book.used(), book.burned()), (20, 5, 15));
        assert_eq!(accounts.window(b).unwrap().book.held(), 0);
        let reconciled = accounts.reconcile(a, old, 7).unwrap();
        assert_eq!((reconciled.before.burned(), reconciled.after.burned()), (15, 0));
        assert_eq!(accounts.window(a).unwrap().book.held(), 7);
    }

    #[test]
    fn what_was_given_back_is_not_taken_again_by_an_operators_word() {
        let mut accounts = Accounts::default();
        accounts.align(&[declared("a", "usd total", 100)]);
        let place = rolled(&mut accounts, "a");
        ask(&mut accounts, place, Statement { used: 5, ..wants(60) });
        let old = Incarnation::new(1);
        assert_eq!(accounts.reconcile(place, old, 5), None, "it lives");
        accounts.end(old);

        accounts.reconcile(place, old, 3).unwrap();
        assert_eq!(accounts.window(place).unwrap().book.used(), 5, "it said so itself");
        let again = accounts.reconcile(place, old, 9).unwrap();

        assert_eq!((again.before.returned, again.after.returned), (55, 55));
        assert_eq!(accounts.window(place).unwrap().book.held(), 9);
        assert_eq!(accounts.reconcile(place, Incarnation::new(2), 0), None, "nobody's");
    }
}

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
use super::lease::Mark;
use crate::id::{Incarnation, NodeId};

/// Windows of a budget that are over and still take reports: the last two. Older ones become records.
pub const OVER_MAX: usize = 2;

/// Records of a budget that are kept.
pub const RECORDS_MAX: usize = 64;

/// Budgets whose calls may still be under way after they were deleted or replaced. The oldest go first.
pub const CLOSED_MAX: usize = 1_000;

/// End users of one budget that have an account of their own in a window. Who comes after them is refused.
pub const USERS_MAX: usize = 10_000;

/// Of all budgets and windows together.
pub const USERS_ALL_MAX: usize = 100_000;

/// A budget for as long as it is the same one: another of its name is another budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct BudgetId(pub u64);

impl fmt::Display for BudgetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An end user of an application, as it names them: the first 64 bits of the name's BLAKE3. Should two names come to the
/// same, both spend of one account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct UserId(u64);

impl UserId {
    /// All calls that name nobody, as if they were one user's.
    pub const NOBODY: Self = Self(0);

    pub fn of(name: &str) -> Self {
        let mut first = [0; 8];
        first.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..8]);
        Self(u64::from_le_bytes(first).max(1))
    }
}

/// One window of a budget, or what an end user has of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct Place {
    pub budget: BudgetId,
    /// They are numbered from 0.
    pub window: u64,
    /// [`UserId::NOBODY`] where the budget is everyone's together.
    pub user: UserId,
}

impl Place {
    /// Everyone's, or of calls that name nobody.
    pub const fn new(budget: BudgetId, window: u64) -> Self {
        Self { budget, window, user: UserId::NOBODY }
    }

    #[must_use]
    pub const fn of(self, user: UserId) -> Self {
        Self { user, ..self }
    }
}

/// What the resources say of a budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    pub name: String,
    /// What makes it another budget when it changes: its unit, its period, its calendar. The unit's name first.
    pub terms: String,
    pub limit: u64,
    /// Each end user has the limit for himself.
    pub each: bool,
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
    /// There are too many end users to keep an account for another.
    Crowded,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Window {
    pub starts: Duration,
    pub ends: Option<Duration>,
    /// Everyone's, or of calls that name no end user.
    pub book: Book,
    pub users: BTreeMap<UserId, Book>,
}

/// Sums over all books of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub held: u64,
    pub used: u64,
    pub burned: u64,
}

impl Window {
    pub fn book(&self, user: UserId) -> Option<&Book> {
        if user == UserId::NOBODY { Some(&self.book) } else { self.users.get(&user) }
    }

    pub fn totals(&self) -> Totals {
        self.books().fold(Totals::default(), |sum, book| Totals {
            held: sum.held.saturating_add(book.held()),
            used: sum.used.saturating_add(book.used()),
            burned: sum.burned.saturating_add(book.burned()),
        })
    }

    /// By the one who holds the most, where each end user has the limit for himself.
    pub fn most_held(&self) -> u64 {
        self.books().map(Book::held).max().unwrap_or_default()
    }

    /// As [`most_held`](Self::most_held), without what may come back.
    pub fn most_spent(&self) -> u64 {
        self.books().map(|book| book.used().saturating_add(book.burned())).max().unwrap_or_default()
    }

    fn books(&self) -> impl Iterator<Item = &Book> {
        std::iter::once(&self.book).chain(self.users.values())
    }

    fn books_mut(&mut self) -> impl Iterator<Item = (UserId, &mut Book)> {
        let users = self.users.iter_mut().map(|(user, book)| (*user, book));
        std::iter::once((UserId::NOBODY, &mut self.book)).chain(users)
    }
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
    each: bool,
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

    /// In what it is counted, by its name: the first word of its terms.
    pub fn unit(&self) -> &str {
        self.terms.split(' ').next().unwrap_or_default()
    }

    /// Whether each end user has the limit for himself.
    pub fn is_each(&self) -> bool {
        self.each
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
            window.get_mut().books_mut().for_each(|(_user, book)| book.set_limit(limit));
        }
    }

    fn roll(&mut self, roll: &Roll) {
        let number = self.latest().map_or(0, |latest| latest + 1);
        let book = Book::new(self.limit);
        let window = Window { starts: roll.starts, ends: roll.ends, book, users: BTreeMap::new() };
        self.windows.insert(number, window);
        while self.windows.len() > OVER_MAX + 1 {
            let Some((number, window)) = self.windows.pop_first() else { return };
            let (Totals { held, used, .. }, limit) = (window.totals(), window.book.limit());
            let Window { starts, ends, .. } = window;
            let burned = held.saturating_sub(used);
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
        let terms: BTreeMap<&str, &str> = declared.iter().map(|it| (it.name.as_str(), it.terms.as_str())).collect();
        let gone: Vec<String> = self
            .by_name
            .iter()
            .filter(|(name, id)| {
                let account = self.by_id.get(id);
                account.is_none_or(|account| terms.get(name.as_str()) != Some(&account.terms.as_str()))
            })
            .map(|(name, _id)| name.clone())
            .collect();
        for name in gone {
            self.close(&name);
        }
        for Declared { name, terms, limit, each } in declared {
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
                each: *each,
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
        // Nothing more is granted of it: whose share was spent is of no use to anyone.
        account.windows.values_mut().for_each(|window| window.users.clear());
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
        let users =
            || self.by_id.values().flat_map(|account| account.windows.values()).map(|window| window.users.len());
        let is_new = self.window(place).is_some_and(|window| window.book(place.user).is_none());
        let room = !is_new || said.used > 0 || users().sum::<usize>() < USERS_ALL_MAX;
        let Some(account) = self.by_id.get_mut(&place.budget) else { return Told::Gone };
        let grants = !account.closed && account.latest() == Some(place.window);
        let (limit, each, closed) = (account.limit, account.each, account.closed);
        let Some(window) = account.windows.get_mut(&place.window) else { return Told::Gone };
        // What was spent is counted whatever there is room for: on credit, before anyone was asked. Of a budget that is closed
        // no end user is kept.
        let spent = said.used > 0 && each && !over && !closed;
        let full = !spent && (!room || window.users.len() >= USERS_MAX);
        let book = if place.user == UserId::NOBODY {
            &mut window.book
        } else if !is_new || spent || (grants && each && !full) {
            window.users.entry(place.user).or_insert_with(|| Book::new(limit))
        } else if grants && each {
            return Told::Crowded;
        } else {
            return Told::Gone;
        };
        if grants {
            return Told::Standing(book.state(incarnation, node, said, over));
        }
        if book.line(incarnation).is_none() && (said.used == 0 || over) {
            return Told::Over(book.standing(incarnation));
        }
        // Wanting nothing is granted nothing.
        let said = Statement { wants: 0, least: 0, ..said };
        Told::Over(book.state(incarnation, node, said, over))
    }

    /// What a life would be told of a place now.
    pub fn told(&self, place: Place, incarnation: Incarnation) -> Told {
        let Some(account) = self.by_id.get(&place.budget) else { return Told::Gone };
        let Some(window) = account.windows.get(&place.window) else { return Told::Gone };
        let grants = !account.closed && account.latest() == Some(place.window);
        let standing = match window.book(place.user) {
            Some(book) => book.standing(incarnation),
            // An end user whom this register has not heard of yet.
            None if grants && account.each => Book::new(account.limit).standing(incarnation),
            None => return Told::Gone,
        };
        if grants { Told::Standing(standing) } else { Told::Over(standing) }
    }

    /// What the lives of `node` before this one have spent of a place on credit, or may have. `None`: nobody knows.
    pub fn debts(&self, place: Place, node: NodeId, incarnation: Incarnation) -> Option<u64> {
        // Of an end user nobody has spent anything yet.
        self.window(place)?.book(place.user).map_or(Some(0), |book| book.debts(node, incarnation))
    }

    /// This life is over.
    pub fn end(&mut self, incarnation: Incarnation) {
        self.books().for_each(|book| book.end(incarnation));
    }

    /// What a life of `node` that is over has used at most, place by place. `whole`: nothing where none is named; else
    /// these places are but a part.
    pub fn settle(&mut self, node: NodeId, incarnation: Incarnation, marks: &BTreeMap<Place, Mark>, whole: bool) {
        for (budget, account) in &mut self.by_id {
            for (number, window) in &mut account.windows {
                let place = Place::new(*budget, *number);
                let last = Place { user: UserId(u64::MAX), ..place };
                for (Place { user, .. }, _) in marks.range(place..=last).filter(|(_, mark)| mark.lent > 0) {
                    if *user != UserId::NOBODY && account.each && !account.closed {
                        window.users.entry(*user).or_insert_with(|| Book::new(account.limit));
                    }
                }
                for (user, book) in window.books_mut() {
                    let mark = marks.get(&place.of(user)).copied().or(whole.then(Mark::default));
                    if let Some(mark) = mark {
                        book.settle(incarnation, node, mark);
                    }
                }
            }
        }
    }

    /// As [`Book::reconcile`].
    pub fn reconcile(&mut self, place: Place, incarnation: Incarnation, used: u64) -> Option<Reconciled> {
        let window = self.by_id.get_mut(&place.budget)?.windows.get_mut(&place.window)?;
        let book = if place.user == UserId::NOBODY { &mut window.book } else { window.users.get_mut(&place.user)? };
        book.reconcile(incarnation, used)
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

    pub fn book(&self, place: Place) -> Option<&Book> {
        self.window(place)?.book(place.user)
    }

    fn books(&mut self) -> impl Iterator<Item = &mut Book> {
        let windows = self.by_id.values_mut().flat_map(|account| account.windows.values_mut());
        windows.flat_map(Window::books_mut).map(|(_user, book)| book)
    }
}

#[cfg(test)]
mod tests {
    use super::super::book::LINES_MAX;
    use super::*;

    const NODE: NodeId = NodeId::new(7);

    fn declared(name: &str, terms: &str, limit: u64) -> Declared {
        Declared { name: name.to_owned(), terms: terms.to_owned(), limit, each: false }
    }

    fn place(accounts: &Accounts, name: &str) -> Place {
        let (budget, account) = accounts.named(name).unwrap();
        Place::new(budget, account.current().unwrap().0)
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

        accounts.settle(NodeId::new(8), old, &BTreeMap::new(), true);
        assert_eq!(accounts.window(a).unwrap().book.held(), 60, "another node's word");
        accounts.settle(NODE, old, &BTreeMap::from([(a, Mark::to(4))]), true);
        assert_eq!(accounts.window(a).unwrap().book.held(), 60, "a disk that went back proves nothing");
        accounts.settle(NODE, old, &BTreeMap::from([(a, Mark::to(20))]), true);
        accounts.settle(NODE, old, &BTreeMap::from([(a, Mark::to(10))]), true);

        let book = &accounts.window(a).unwrap().book;
        assert_eq!((book.held(), book.used(), book.burned()), (20, 5, 15));
        assert_eq!(accounts.window(b).unwrap().book.held(), 0);
        let reconciled = accounts.reconcile(a, old, 7).unwrap();
        assert_eq!((reconciled.before.burned(), reconciled.after.burned()), (15, 0));
        assert_eq!(accounts.window(a).unwrap().book.held(), 7);
    }

    #[test]
    fn each_end_user_has_the_limit_for_himself() {
        let mut accounts = Accounts::default();
        accounts.align(&[Declared { each: true, ..declared("a", "tokens day", 100) }]);
        let nobody = rolled(&mut accounts, "a");
        let (anna, ben) = (nobody.of(UserId::of("anna")), nobody.of(UserId::of("ben")));
        let granted = |told| if let Told::Standing(Standing { granted, .. }) = told { granted } else { 0 };
        for place in [nobody, anna, ben] {
            assert_eq!(granted(ask(&mut accounts, place, wants(100))), 100);
        }
        let other = Incarnation::new(2);
        assert_eq!(granted(accounts.state(anna, other, NODE, wants(1), false)), 0, "on every node together");
        ask(&mut accounts, ben, Statement { used: 70, ..wants(100) });

        accounts.align(&[Declared { each: true, ..declared("a", "tokens day", 60) }]);
        assert!(matches!(accounts.told(ben, other), Told::Standing(Standing { limit: 60, recall: true, .. })));
        accounts.end(Incarnation::new(1));
        // Said in parts: only the last of them settles what is not named.
        accounts.settle(NODE, Incarnation::new(1), &BTreeMap::from([(ben, Mark::to(80))]), false);
        assert_eq!((accounts.book(ben).unwrap().held(), accounts.book(anna).unwrap().held()), (80, 100));
        accounts.settle(NODE, Incarnation::new(1), &BTreeMap::new(), true);

        assert_eq!((accounts.book(ben).unwrap().held(), accounts.book(anna).unwrap().held()), (80, 0));
        assert_eq!(accounts.window(nobody).unwrap().totals(), Totals { held: 80, used: 70, burned: 10 });
        rolled(&mut accounts, "a");
        assert!(matches!(ask(&mut accounts, ben, wants(100)), Told::Over(_)));
        let carl = nobody.of(UserId::of("carl"));
        assert_eq!(ask(&mut accounts, carl, wants(1)), Told::Gone);
        // On credit, in a window that ended before anyone heard of it.
        let new = Incarnation::new(3);
        for place in [carl, nobody] {
            let told = accounts.state(place, new, NODE, Statement { used: 4, ..wants(9) }, false);
            assert!(matches!(told, Told::Over(Standing { granted: 0, .. })), "{told:?}");
            assert_eq!(accounts.book(place).unwrap().line(new).unwrap().held(), 4);
        }
        accounts.align(&[]);
        let late = Statement { used: 5, ..wants(0) };
        assert_eq!(accounts.state(carl, new, NODE, late, false), Told::Gone);
        accounts.settle(NODE, new, &BTreeMap::from([(carl, Mark { reach: 9, lent: 9 })]), true);
        assert!(accounts.book(carl).is_none(), "of a budget that is closed no end user is kept");
    }

    #[test]
    fn there_are_so_many_end_users_and_no_more() {
        let mut accounts = Accounts::default();
        accounts
            .align(&[Declared { each: true, ..declared("a", "tokens day", 100) }, declared("b", "tokens day", 100)]);
        let (nobody, shared) = (rolled(&mut accounts, "a"), rolled(&mut accounts, "b"));
        let user = |number: usize| nobody.of(UserId::of(&number.to_string()));
        for number in 0..USERS_MAX {
            assert!(matches!(ask(&mut accounts, user(number), wants(1)), Told::Standing(_)));
        }

        assert_eq!(ask(&mut accounts, user(USERS_MAX), wants(1)), Told::Crowded);
        assert!(matches!(ask(&mut accounts, user(7), wants(2)), Told::Standing(Standing { granted: 2, .. })));
        let on_credit = Statement { used: 5, ..wants(0) };
        ask(&mut accounts, user(USERS_MAX), on_credit);
        assert_eq!(accounts.book(user(USERS_MAX)).unwrap().held(), 5, "what was spent counts");
        assert!(matches!(ask(&mut accounts, nobody, wants(1)), Told::Standing(_)));
        assert_eq!(ask(&mut accounts, shared.of(UserId::of("x")), wants(1)), Told::Gone, "it is everyone's");
    }

    /// Of all budgets together, each of which has room for more.
    #[test]
    fn there_are_so_many_end_users_of_all_budgets_and_no_more() {
        let mut accounts = Accounts::default();
        let names: Vec<String> = (0..=USERS_ALL_MAX / USERS_MAX).map(|number| format!("b{number}")).collect();
        let each = |name: &String| Declared { each: true, ..declared(name, "tokens day", 100) };
        accounts.align(&names.iter().map(each).collect::<Vec<_>>());
        let nobodies: Vec<Place> = names.iter().map(|name| rolled(&mut accounts, name)).collect();
        let (last, full) = nobodies.split_last().unwrap();
        for nobody in full {
            for number in 0..USERS_MAX {
                let user = nobody.of(UserId::of(&number.to_string()));
                assert!(matches!(ask(&mut accounts, user, wants(1)), Told::Standing(_)));
            }
        }

        let new = last.of(UserId::of("new"));
        assert_eq!(ask(&mut accounts, new, wants(1)), Told::Crowded);
        assert!(matches!(ask(&mut accounts, *last, wants(1)), Told::Standing(_)), "who names nobody");
        let known = full[0].of(UserId::of("7"));
        assert!(matches!(ask(&mut accounts, known, wants(2)), Told::Standing(Standing { granted: 2, .. })));
        ask(&mut accounts, new, Statement { used: 5, ..wants(0) });
        assert_eq!(accounts.book(new).unwrap().held(), 5, "what was spent counts");
        rolled(&mut accounts, "b0");
        assert_eq!(
            ask(&mut accounts, last.of(UserId::of("newer")), wants(1)),
            Told::Crowded,
            "that window is still kept"
        );
    }

    /// What a life spent on credit, the next has less of; and until it is known what that was, it has none.
    #[test]
    fn an_overdraft_is_one_for_all_lives_of_a_node() {
        let mut accounts = Accounts::default();
        accounts.align(&[declared("a", "usd total", 100)]);
        let place = rolled(&mut accounts, "a");
        let (old, new) = (Incarnation::new(1), Incarnation::new(2));
        ask(&mut accounts, place, wants(60));
        ask(&mut accounts, place, Statement { returned: 50, ..wants(60) });
        assert_eq!(accounts.debts(place, NODE, old), Some(0));

        accounts.end(old);
        assert_eq!(accounts.debts(place, NODE, new), None);
        assert_eq!(accounts.debts(place, NodeId::new(8), new), Some(0), "another node's");
        // Marked before it gave back: only the credit may have gone beyond what it kept.
        accounts.settle(NODE, old, &BTreeMap::from([(place, Mark { reach: 40, lent: 15 })]), true);

        assert_eq!(accounts.debts(place, NODE, new), Some(15));
        let book = &accounts.window(place).unwrap().book;
        assert_eq!((book.held(), book.burned()), (25, 25));
        accounts.reconcile(place, old, 12).unwrap();
        assert_eq!(accounts.debts(place, NODE, new), Some(2), "by an operator's word");
        assert_eq!(accounts.window(place).unwrap().book.held(), 12);
    }

    /// Who answered for a life while its disk was not to be had did not know what it had spent on credit.
    #[test]
    fn what_was_spent_on_credit_is_known_though_an_operator_spoke_first() {
        let mut accounts = Accounts::default();
        accounts.align(&[declared("a", "usd total", 100)]);
        let place = rolled(&mut accounts, "a");
        let (old, new) = (Incarnation::new(1), Incarnation::new(2));
        ask(&mut accounts, place, wants(10));
        accounts.end(old);
        accounts.reconcile(place, old, 10).unwrap();
        assert_eq!(accounts.debts(place, NODE, new), Some(0), "as far as anyone knows");

        accounts.settle(NODE, old, &BTreeMap::from([(place, Mark { reach: 25, lent: 15 })]), true);

        assert_eq!(accounts.debts(place, NODE, new), Some(15));
        assert_eq!(accounts.book(place).unwrap().held(), 25);
        accounts.reconcile(place, old, 20).unwrap();
        assert_eq!(accounts.debts(place, NODE, new), Some(10), "by an operator who knows it");
        // The disk is heard of again: it was not forgotten there.
        accounts.settle(NODE, old, &BTreeMap::from([(place, Mark { reach: 25, lent: 15 })]), true);
        assert_eq!(accounts.debts(place, NODE, new), Some(10), "that was known");
    }

    /// Node by node, life after life, more of them than are kept apart: in all it is as much as before.
    #[test]
    fn lives_that_are_over_become_one_and_count_as_they_did() {
        let mut accounts = Accounts::default();
        accounts.align(&[declared("a", "usd total", 100_000)]);
        let place = rolled(&mut accounts, "a");
        let lives = 2 * LINES_MAX as u64;
        for life in (1..=lives).map(Incarnation::new) {
            let said = Statement { used: 3, wants: 10, ..wants(0) };
            let told = accounts.state(place, life, NODE, said, false);
            assert!(matches!(told, Told::Standing(Standing { granted: 10, .. })), "{told:?}");
            accounts.end(life);
            if life.get() % 2 == 0 {
                accounts.settle(NODE, life, &BTreeMap::from([(place, Mark::to(5))]), true);
            }
        }

        let book = accounts.book(place).unwrap();
        assert_eq!(book.lines().count(), LINES_MAX);
        assert_eq!((book.used(), book.held()), (3 * lives, (10 + 5) * lives / 2));
        assert_eq!(book.burned(), book.held() - book.used());
        assert_eq!(book.debts(NODE, Incarnation::new(lives + 1)), None, "nobody knows of the folded");
        let first = Incarnation::new(1);
        accounts.settle(NODE, first, &BTreeMap::new(), true);
        assert_eq!(accounts.reconcile(place, first, 3), None, "it is one of many");
        assert_eq!(accounts.book(place).unwrap().held(), (10 + 5) * lives / 2);
    }

    /// Another node died while it waited. Once there is what it waited for, nobody has to give back anything for it.
    #[test]
    fn nothing_is_called_back_for_who_finds_enough_when_he_asks_again() {
        let mut accounts = Accounts::default();
        accounts.align(&[declared("a", "usd total", 100)]);
        let place = rolled(&mut accounts, "a");
        ask(&mut accounts, place, wants(100));
        let (dead, other) = (Incarnation::new(2), NodeId::new(8));
        let waits = Statement { wants: 30, least: 10, ..Statement::default() };
        accounts.state(place, dead, other, waits, false);
        let recall = |accounts: &Accounts| {
            let told = accounts.told(place, Incarnation::new(1));
            matches!(told, Told::Standing(Standing { recall: true, .. }))
        };
        assert!(recall(&accounts));

        accounts.align(&[declared("a", "usd total", 109)]);
        assert!(recall(&accounts), "9 are free, and it needs 10");
        accounts.align(&[declared("a", "usd total", 110)]);

        assert!(!recall(&accounts));
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

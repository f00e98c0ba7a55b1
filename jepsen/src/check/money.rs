//! P-MONEY: what is billed, and may still be, stays within the limit, and what the nodes agree on always covers it.
//!
//! [`Bills`] stands outside of the world. It is told of each call that is dispatched, and looks at the accounts after each
//! entry, as whichever node applies that first has them. It looks into the nodes, too: none may believe that it holds more than
//! the accounts count, nor go further than its disk would prove.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use cluster::id::{Incarnation, NodeId};
use cluster::ledger::accounts::{Accounts, Place, UserId};
use cluster::ledger::book::{Book, Line, Stage, Standing};
use cluster::ledger::invariants::{within_budget, within_limit};
use cluster::ledger::lease::{Lease, Mark};
use tokio::sync::watch;

/// What really happened, since what never did was never tested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    pub calls: u64,
    /// Of end users who have a limit of their own.
    pub users: u64,
    /// Sent on credit.
    pub lent: u64,
    /// What was spent on credit, and got its rights later.
    pub paid: u64,
    pub refused: u64,
    pub unanswered: u64,
    /// Refused because the window was over, or the budget.
    pub over: u64,
    /// Windows that followed on one of the same budget.
    pub rolls: u64,
    pub raised: u64,
    pub lowered: u64,
    /// Budgets that were made, again or for the first time.
    pub made: u64,
    /// Of an earlier life and one window.
    pub settled: u64,
    /// Of those, some were burned.
    pub burned: u64,
    /// Windows whose leftover was spent at the end.
    pub emptied: u64,
}

impl Coverage {
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            users: self.users + other.users,
            lent: self.lent + other.lent,
            paid: self.paid + other.paid,
            refused: self.refused + other.refused,
            unanswered: self.unanswered + other.unanswered,
            over: self.over + other.over,
            rolls: self.rolls + other.rolls,
            raised: self.raised + other.raised,
            lowered: self.lowered + other.lowered,
            made: self.made + other.made,
            settled: self.settled + other.settled,
            burned: self.burned + other.burned,
            emptied: self.emptied + other.emptied,
        }
    }
}

/// A part of one budget that a life of a node has spent.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    /// By the provider.
    billed: u64,
    /// What it was told to have used, and the bounds of calls whose end it never heard of.
    liable: u64,
    /// What it was told.
    said: u64,
    /// So much credit its disk has told of when it was billed.
    lent: u64,
}

/// What the ledger says of a life.
#[derive(Clone, Copy, Debug, Default)]
struct Holds {
    held: u64,
    rights: u64,
    granted: u64,
    debt: u64,
}

impl Holds {
    fn of(line: &Line) -> Self {
        let rights = line.granted - line.returned;
        Self { held: line.held(), rights, granted: line.granted, debt: line.debt() }
    }
}

/// One window, or what an end user has of it.
#[derive(Clone, Debug, Default)]
struct Seen {
    billed: u64,
    limit: u64,
    /// The highest limit there was.
    most: u64,
    /// The lowest.
    least: u64,
    held: u64,
    rights: u64,
    granted: u64,
    current: bool,
    /// What each node may spend beyond the limit.
    overdraft: u64,
    /// What all may.
    credit: u64,
    lines: BTreeMap<Incarnation, Holds>,
    /// By entries: what at least was free for anyone while it was applied, and from then on until the next.
    free: Vec<(u64, u64, u64)>,
    settled: BTreeSet<Incarnation>,
    /// After the last entry.
    book: Book,
    /// Its budget is closed, and end users are not accounted for any more.
    dropped: bool,
}

/// A call that is dispatched now.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub place: Place,
    pub life: Incarnation,
    /// What the provider may bill.
    pub bound: u64,
    /// What it bills.
    pub bill: u64,
}

/// What a life that is lived holds, as it believes.
type Believes = Box<dyn Fn(Place) -> Option<Lease> + Send>;

/// As the module says.
#[derive(Default)]
pub struct Bills {
    applied: u64,
    lines: BTreeMap<(Place, Incarnation), Spent>,
    places: BTreeMap<Place, Seen>,
    broken: Vec<String>,
    pub coverage: Coverage,
    /// The life that was billed for the first time of a window.
    newly: watch::Sender<Option<Incarnation>>,
    living: BTreeMap<Incarnation, Believes>,
    /// Who lived each life.
    nodes: BTreeMap<Incarnation, NodeId>,
    members: u64,
    /// Of each node, by the budget's name.
    overdrafts: BTreeMap<String, u64>,
}

impl Bills {
    /// Of a world of so many nodes.
    pub fn new(members: u64, overdrafts: BTreeMap<String, u64>) -> Self {
        Self { members, overdrafts, ..Self::default() }
    }

    pub fn broken(&self) -> &[String] {
        &self.broken
    }

    /// The last entry that anyone has applied.
    pub fn applied_to(&self) -> u64 {
        self.applied
    }

    /// Changes when a life is billed for the first time of a window: of what it holds there nothing was proved before.
    pub fn newly(&self) -> watch::Receiver<Option<Incarnation>> {
        self.newly.subscribe()
    }

    /// A life may spend from now on.
    pub fn begun(
        &mut self,
        life: Incarnation,
        node: NodeId,
        believes: impl Fn(Place) -> Option<Lease> + Send + 'static,
    ) {
        self.nodes.insert(life, node);
        self.living.insert(life, Box::new(believes));
    }

    pub fn ended(&mut self, life: Incarnation) {
        self.living.remove(&life);
    }

    /// A node has applied an entry. Only the first of them is listened to.
    pub fn applied(&mut self, index: u64, accounts: &Accounts) {
        if index <= self.applied {
            return;
        }
        self.applied = index;
        let current = self.meet(accounts);
        for (place, seen) in &mut self.places {
            if place.user != UserId::NOBODY && is_closed(accounts, *place) {
                seen.dropped = true;
                continue;
            }
            let Some(book) = accounts.book(*place) else { continue };
            let current = current.contains(&place.of(UserId::NOBODY));
            // Each bill is looked at when it is made: where nothing was said there is nothing new.
            if seen.book == *book && seen.current == current {
                continue;
            }
            let spent = self.lines.range((*place, Incarnation::new(0))..=(*place, Incarnation::new(u64::MAX)));
            let spent = spent.map(|((_, life), spent)| (*life, *spent)).collect();
            let mut broken = seen.look(index, book, current, &spent, &mut self.coverage);
            let believers = self.living.iter().filter_map(|(life, believes)| Some((*life, believes(*place)?)));
            broken.extend(believers.filter_map(|(life, lease)| seen.is_held(life, &lease).err()));
            self.broken.extend(broken.into_iter().map(|why| format!("after entry {index}, {place:?}: {why}")));
        }
        for place in self.places.keys().filter(|place| place.user == UserId::NOBODY) {
            let all = self.places.range(*place..Place::new(place.budget, place.window + 1));
            // What was spent on credit may never have been heard of while it was kept.
            let spent = all.fold((0, 0), |(billed, credit), (_, seen)| (billed + seen.billed, credit + seen.credit));
            self.broken.extend(recorded(*place, spent, accounts));
        }
    }

    /// Takes note of windows and end users that are new. Those windows that budgets are spent of now.
    fn meet(&mut self, accounts: &Accounts) -> BTreeSet<Place> {
        let mut current = BTreeSet::new();
        for (budget, account) in accounts.iter() {
            for (window, now) in account.windows() {
                let place = Place::new(budget, window);
                if let Entry::Vacant(entry) = self.places.entry(place) {
                    let (limit, overdraft) = (now.book.limit(), self.overdrafts.get(&account.name).copied());
                    let mut seen = Seen::new(limit, limit, true);
                    seen.overdraft = overdraft.unwrap_or_default();
                    seen.credit = seen.overdraft * self.members;
                    entry.insert(seen);
                    self.coverage.rolls += u64::from(window > 0);
                    self.coverage.made += u64::from(window == 0);
                }
                for user in now.users.keys() {
                    self.seen(place.of(*user));
                }
            }
            current.extend(account.current().map(|(window, _)| Place::new(budget, window)));
        }
        current
    }

    /// An end user who is new has had all of what the limit was at any time.
    fn seen(&mut self, place: Place) -> &mut Seen {
        let window = self.places.get(&place.of(UserId::NOBODY));
        let of = |window: &Seen| {
            let new = Seen::new(window.limit, window.least, window.current);
            Seen { overdraft: window.overdraft, credit: window.credit, ..new }
        };
        let new = window.map(of).unwrap_or_default();
        self.places.entry(place).or_insert(new)
    }

    /// `proof`: the mark that the disk of that life would prove if the power went now, which should be as high as asked for;
    /// `None` where it does not know the life.
    pub fn billed(&mut self, call: Sent, proof: impl FnOnce(Mark) -> Option<Mark>) {
        let Sent { place, life, bound, bill } = call;
        self.coverage.calls += 1;
        if !self.lines.contains_key(&(place, life)) {
            self.newly.send_replace(Some(life));
        }
        let spent = self.lines.entry((place, life)).or_default();
        spent.billed += bill;
        spent.liable += bound;
        self.coverage.users += u64::from(place.user != UserId::NOBODY);
        let liable = spent.liable;
        let believes = self.living.get(&life).and_then(|believes| believes(place));
        let seen = self.seen(place);
        seen.billed += bill;
        let over = within_budget(seen.billed, seen.most + seen.credit).err();
        let (known, overdraft) = (seen.lines.get(&life).copied(), seen.overdraft);
        // A life that is told to end is forgotten once it is settled.
        let settled = seen.dropped || seen.settled.contains(&life) || known.is_none() && overdraft == 0;
        let Holds { held, rights, .. } = known.unwrap_or_default();
        let far = liable.max(believes.as_ref().map_or(0, Lease::busy));
        // What it gives back may be on its way: then it knows sooner than the ledger that it has no rights to this.
        let debt = believes.as_ref().map_or(0, Lease::debt);
        let wanted = if liable > held { debt.max(liable - rights) } else { debt };
        let unheld = believes.and_then(|lease| seen.is_held(life, &lease).err());
        self.broken
            .extend(over.into_iter().map(|why| why.to_string()).chain(unheld).map(|why| format!("{place:?}: {why}")));
        let proved = proof(Mark { reach: far, lent: wanted });
        let lent = proved.map_or(0, |mark| mark.lent);
        if liable > held.max(rights + lent.min(overdraft)) {
            let why = format!(
                "life {life} may be billed {liable}, and is known to hold {held}, with {lent} of {overdraft} lent"
            );
            self.broken.push(format!("{place:?}: {why}"));
        }
        if debt > overdraft || proved.map_or(!settled, |mark| mark.reach < far || mark.lent < debt) {
            self.broken.push(format!(
                "{place:?}: life {life} goes as far as {far}, {debt} on credit, and its disk would prove {proved:?}"
            ));
        }
        self.coverage.lent += u64::from(wanted > 0);
        if let Some(spent) = self.lines.get_mut(&(place, life)) {
            spent.lent = spent.lent.max(lent);
        }
        self.broken.extend(self.beyond(place, life).map(|why| format!("{place:?}: {why}")));
    }

    /// All lives of a node together overspend one overdraft.
    fn beyond(&self, place: Place, life: Incarnation) -> Option<String> {
        let (seen, node) = (self.places.get(&place)?, self.nodes.get(&life)?);
        let lives = self.lines.range((place, Incarnation::new(0))..=(place, Incarnation::new(u64::MAX)));
        let lives = lives.filter(|((_, life), _)| self.nodes.get(life) == Some(node));
        let rights = |life| seen.lines.get(life).map_or(0, |holds| holds.rights);
        let beyond: u64 = lives.map(|((_, life), spent)| spent.liable.saturating_sub(rights(life))).sum();
        let (overdraft, dropped) = (seen.overdraft, seen.dropped);
        (beyond > overdraft && !dropped)
            .then(|| format!("node {node} has spent {beyond} that it had no rights to, of {overdraft}"))
    }

    /// The node was told what the call used.
    pub fn settled(&mut self, place: Place, life: Incarnation, bound: u64, used: u64) {
        let spent = self.lines.entry((place, life)).or_default();
        spent.liable = (spent.liable + used).saturating_sub(bound);
        spent.said += used;
    }

    /// An attempt that began when entry `since` was the last one anyone had applied was told that too little is left.
    pub fn refused(&mut self, place: Place, amount: u64, since: u64, told: &Standing) {
        self.coverage.refused += 1;
        let seen = self.seen(place);
        // What was spent on credit, and nobody has heard of yet, is to be paid of it.
        let least = seen.least_free(since).saturating_sub(seen.credit);
        if least >= amount {
            let why =
                format!("{amount} were refused, and {least} were free all the time since entry {since}; told {told:?}");
            self.broken.push(format!("{place:?}: {why}"));
        }
    }

    /// Told that the window, or the budget, is over.
    pub fn over(&mut self, place: Place) {
        self.coverage.over += 1;
        if self.places.get(&place.of(UserId::NOBODY)).is_some_and(|seen| seen.current) {
            self.broken.push(format!("{place:?}: was said to be over"));
        }
    }

    /// What is in the way of the world having come to rest: rights that nobody uses and somebody holds, use that was not
    /// reported, earlier lives that are not settled. `lives`: those that are lived now.
    pub fn unrest(&self, accounts: &Accounts, lives: &BTreeSet<Incarnation>) -> Vec<String> {
        let mut unrest = Vec::new();
        for (place, _) in self.places.iter().filter(|(_, seen)| !seen.dropped) {
            let Some(book) = accounts.book(*place) else { continue };
            for (life, line) in book.lines() {
                let said = self.lines.get(&(*place, life)).map_or(0, |spent| spent.said);
                let rests = if lives.contains(&life) {
                    line.held() == line.used && line.used == said
                } else {
                    line.used <= said && (line.stage.is_settled() || line.held() == line.used)
                };
                if !rests {
                    unrest.push(format!("{place:?}: life {life}, told of {said}, has {line:?}"));
                }
            }
        }
        for ((place, life), spent) in &self.lines {
            let dropped = self.places.get(place).is_none_or(|seen| seen.dropped);
            let Some(book) = accounts.book(*place).filter(|_| !dropped) else { continue };
            if spent.liable > 0 && book.line(*life).is_none() {
                unrest.push(format!("{place:?}: nothing is known of life {life}, which had {spent:?}"));
            }
        }
        unrest
    }
}

impl Seen {
    /// Nobody has had anything of it.
    fn new(limit: u64, least: u64, current: bool) -> Self {
        Self { limit, most: limit, least, current, free: vec![(0, least, least)], ..Self::default() }
    }

    /// What does not hold of a window, after entry `index`.
    fn look(
        &mut self,
        index: u64,
        book: &Book,
        current: bool,
        spent: &BTreeMap<Incarnation, Spent>,
        coverage: &mut Coverage,
    ) -> Vec<String> {
        let (limit, held) = (book.limit(), book.held());
        let before = std::mem::take(&mut self.lines);
        self.lines = book.lines().map(|(life, line)| (life, Holds::of(line))).collect();
        let granted = self.lines.values().map(|line| line.granted).sum::<u64>();
        let rights = self.lines.values().map(|line| line.rights).sum::<u64>();
        let mut broken = Vec::new();
        (self.most, self.least) = (self.most.max(limit), self.least.min(limit));
        broken.extend(within_limit(book, self.most + self.credit).err().map(|why| why.to_string()));
        // A lowered limit: nothing more is granted until what is held is below it.
        let most = self.rights.max(self.limit).max(limit);
        broken.extend((rights > most).then(|| format!("rights to {rights} are granted, more than before, of {limit}")));
        let most = self.held.max(self.limit).max(limit);
        let lends = self.overdraft > 0;
        broken.extend((held > most && !lends).then(|| format!("{held} are held, more than before, of {limit}")));
        broken.extend(self.unpaid(&before, rights, limit));
        if !current && !self.current && granted > self.granted {
            broken.push(format!("it is over, and {granted} are granted of it, {} before", self.granted));
        }
        let settled = |life| book.line(life).is_some_and(|line| line.stage.is_settled());
        for (life, spent) in spent {
            let Holds { held, rights, .. } = self.lines.get(life).copied().unwrap_or_default();
            let lent = if settled(*life) { 0 } else { spent.lent.min(self.overdraft) };
            if spent.liable > held.max(rights + lent) {
                let Spent { billed, liable, .. } = spent;
                broken.push(format!(
                    "life {life} was billed {billed}, may be billed {liable}, and holds {held}, lent {lent}"
                ));
            }
        }
        let pays = |(life, line): (&Incarnation, &Holds)| {
            before.get(life).is_some_and(|before| before.debt > line.debt && line.granted > before.granted)
        };
        coverage.paid += self.lines.iter().filter(|line| pays(*line)).count() as u64;
        // Several commands may be one entry: between them no more was held than before and what they grant.
        let between = self.held.max(held).saturating_add(granted.saturating_sub(self.granted));
        let lowest = self.limit.min(limit).saturating_sub(between);
        let free = limit.saturating_sub(held);
        // Who waits for more than there is stands before others, who may be refused when they lose patience.
        let waits =
            book.lines().any(|(_, line)| line.stage == Stage::Open && line.least > line.granted + line.debt() + free);
        self.free.push(if waits { (index, 0, 0) } else { (index, lowest, free) });
        coverage.raised += u64::from(limit > self.limit);
        coverage.lowered += u64::from(limit < self.limit);
        for (life, line) in book.lines().filter(|(_, line)| line.stage.is_settled()) {
            if self.settled.insert(life) {
                coverage.settled += 1;
                coverage.burned += u64::from(line.burned() > 0);
            }
        }
        (self.limit, self.held, self.rights) = (limit, held, rights);
        (self.granted, self.current) = (granted, current);
        self.book.clone_from(book);
        broken
    }

    /// Something is granted while what others spent on credit is beyond the limit.
    fn unpaid(&self, before: &BTreeMap<Incarnation, Holds>, rights: u64, limit: u64) -> Option<String> {
        let of = |life: &Incarnation| before.get(life).copied().unwrap_or_default();
        // All the while it was applied.
        let debt = |(life, line): (&Incarnation, &Holds)| line.debt.min(of(life).debt);
        let debts: u64 = self.lines.iter().map(debt).sum();
        let granted = self.lines.iter().filter(|(life, line)| line.granted > of(life).granted);
        let counted = granted.map(|line| rights + debts - debt(line)).min()?;
        (counted > limit.max(self.limit))
            .then(|| format!("more is granted, and {debts} are to be paid of {limit} first"))
    }

    /// What a node believes to hold is counted as held: it learns of a grant when that is applied, and debits what it gives
    /// back before it says so.
    fn is_held(&self, life: Incarnation, believes: &Lease) -> Result<(), String> {
        let held = self.lines.get(&life).map_or(0, |holds| holds.rights);
        let over = self.book.line(life).is_some_and(|line| line.stage != Stage::Open);
        let rights = believes.rights();
        if over || self.dropped || rights <= held {
            Ok(())
        } else {
            Err(format!("life {life} believes to hold {rights}, and holds {held}"))
        }
    }

    /// What was free at every moment since entry `since` was the last.
    fn least_free(&self, since: u64) -> u64 {
        let later = self.free.partition_point(|(index, _, _)| *index <= since);
        let before = self.free[..later].last().map_or(0, |(_, _, after)| *after);
        let during = self.free[later..].iter().map(|(_, lowest, after)| *lowest.min(after));
        during.fold(before, u64::min)
    }
}

/// Of a budget that is closed no end user is kept.
fn is_closed(accounts: &Accounts, place: Place) -> bool {
    let named = accounts.get(place.budget).and_then(|account| accounts.named(&account.name));
    named.is_none_or(|(budget, _)| budget != place.budget)
}

/// A window of which only a record is left: it tells of all end users together.
fn recorded(place: Place, (billed, credit): (u64, u64), accounts: &Accounts) -> Option<String> {
    let record = accounts.get(place.budget)?.records().find(|record| record.window == place.window)?;
    let told = record.used + record.burned;
    (billed > told + credit).then(|| format!("{place:?}: {billed} were billed, and its record tells of {told}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cluster::ledger::accounts::{Declared, Roll};
    use cluster::ledger::book::Statement;

    use super::*;

    const LIFE: Incarnation = Incarnation::new(3);

    const NODE: NodeId = NodeId::new(1);

    struct World {
        accounts: Accounts,
        bills: Bills,
        place: Place,
        index: u64,
    }

    impl World {
        /// One budget of ten, of which a life was granted six.
        fn new() -> Self {
            let mut accounts = Accounts::default();
            accounts.align(&[Declared { name: "b".to_owned(), terms: String::new(), limit: 10, each: false }]);
            let (budget, _) = accounts.named("b").unwrap();
            let place = Place::new(budget, 0);
            let mut world = Self { accounts, bills: Bills::default(), place, index: 0 };
            world.roll(None);
            world.say(Statement { wants: 6, ..Statement::default() });
            world
        }

        fn roll(&mut self, after: Option<u64>) {
            let roll = Roll { budget: self.place.budget, after, starts: Duration::ZERO, ends: None };
            assert!(self.accounts.roll(&roll));
            self.apply();
        }

        fn say(&mut self, said: Statement) {
            self.accounts.state(self.place, LIFE, NODE, said, false);
            self.apply();
        }

        fn apply(&mut self) {
            self.index += 1;
            self.bills.applied(self.index, &self.accounts);
        }

        /// A call is sent by a life whose disk proves so much.
        fn send(&mut self, bound: u64, bill: u64, proved: u64) {
            let sent = Sent { place: self.place, life: LIFE, bound, bill };
            self.bills.billed(sent, |_least| Some(Mark::to(proved)));
        }

        fn broken(&self) -> usize {
            self.bills.broken().len()
        }
    }

    #[test]
    fn calls_within_what_a_life_holds_break_nothing() {
        let mut world = World::new();

        world.send(4, 3, 99);
        world.bills.settled(world.place, LIFE, 4, 3);
        world.send(3, 3, 99);
        world.say(Statement { used: 3, ..Statement::default() });

        assert_eq!(world.bills.broken(), [""; 0]);
    }

    #[test]
    fn a_call_beyond_what_a_life_holds_is_found_and_so_is_one_beyond_the_limit() {
        let mut world = World::new();
        world.send(7, 0, 99);
        assert_eq!(world.broken(), 1);

        world.send(0, 11, 99);
        assert_eq!(world.broken(), 3, "{:?}", world.bills.broken());
    }

    #[test]
    fn what_is_given_back_and_may_still_be_billed_is_found() {
        let mut world = World::new();
        world.send(4, 0, 99);

        world.say(Statement { returned: 3, ..Statement::default() });

        assert_eq!(world.broken(), 1);
    }

    #[test]
    fn who_goes_further_than_its_disk_would_prove_is_found() {
        let mut world = World::new();
        world.send(4, 3, 4);
        world.send(1, 1, 5);
        assert_eq!(world.broken(), 0);

        world.send(1, 1, 5);
        assert_eq!(world.broken(), 1);
        let sent = Sent { place: world.place, life: LIFE, bound: 0, bill: 0 };
        world.bills.billed(sent, |_least| None);
        assert_eq!(world.broken(), 2, "it was never written down");

        let mut lease = Lease::default();
        lease.grant(6);
        lease.marked(Mark::to(6));
        let mut world = World::new();
        assert_eq!(lease.reserve(6), Ok(()));
        world.bills.begun(LIFE, NODE, move |_place| Some(lease.clone()));
        world.send(1, 1, 5);
        assert_eq!(world.broken(), 1, "more is set aside already");
    }

    #[test]
    fn who_believes_to_hold_what_it_said_it_gave_back_is_found() {
        let mut world = World::new();
        let mut lease = Lease::default();
        lease.grant(6);
        world.bills.begun(LIFE, NODE, move |_place| Some(lease.clone()));
        world.say(Statement { wants: 6, ..Statement::default() });
        assert_eq!(world.broken(), 0);

        world.say(Statement { returned: 2, ..Statement::default() });
        assert_eq!(world.broken(), 1);
        world.bills.ended(LIFE);
        world.say(Statement { returned: 2, ..Statement::default() });
        assert_eq!(world.broken(), 1, "it is over");
    }

    /// Each node may spend three beyond ten, and there are two.
    fn open() -> World {
        let mut world = World::new();
        world.bills = Bills::new(2, BTreeMap::from([("b".to_owned(), 3)]));
        for (life, node) in [(3, 1), (4, 1), (5, 2)] {
            world.bills.begun(Incarnation::new(life), NodeId::new(node), |_place| None);
        }
        world.apply();
        world
    }

    #[test]
    fn on_credit_a_node_goes_as_far_as_its_disk_knows_and_its_overdraft() {
        let mut world = open();
        let send = |world: &mut World, life, bound, lent| {
            let sent = Sent { place: world.place, life: Incarnation::new(life), bound, bill: bound };
            world.bills.billed(sent, |least| Some(Mark { lent, ..least }));
            world.broken()
        };
        assert_eq!(send(&mut world, 3, 8, 3), 0, "six are granted");
        assert_eq!(send(&mut world, 5, 3, 3), 0, "nobody has heard of it");
        assert_eq!(send(&mut world, 4, 1, 3), 0, "the same node has one left");
        assert_eq!(world.bills.coverage.lent, 3);
        assert_eq!(send(&mut world, 4, 1, 3), 1, "and has it once");

        let mut world = open();
        assert_eq!(send(&mut world, 3, 8, 1), 1, "its disk knows of one");
        let mut world = open();
        let mut lease = Lease::default();
        lease.lend(3);
        lease.marked(Mark { reach: 9, lent: 3 });
        assert_eq!(lease.reserve(2), Ok(()));
        world.bills.begun(LIFE, NODE, move |_place| Some(lease.clone()));
        assert_eq!(send(&mut world, 3, 2, 1), 1, "it knows that it has no rights any more");
        let mut world = open();
        assert_eq!(send(&mut world, 3, 10, 9), 2, "it has no more than three");
    }

    #[test]
    fn what_is_granted_while_others_are_to_pay_is_found() {
        let granted = |wants| {
            let mut world = open();
            let other = Incarnation::new(5);
            let said = Statement { used: 2, ..Statement::default() };
            world.accounts.state(world.place, other, NodeId::new(2), said, false);
            world.apply();
            let before = world.bills.places.get(&world.place).map(|seen| seen.lines.clone())?;
            let mut seen = Seen { limit: 10, lines: before.clone(), ..Seen::default() };
            let holds = seen.lines.get_mut(&LIFE)?;
            (holds.granted, holds.rights) = (wants, wants);
            seen.unpaid(&before, wants, 10)
        };

        assert_eq!(granted(8), None);
        assert!(granted(9).is_some(), "two of ten are spent by who had no rights");
    }

    #[test]
    fn each_end_user_has_the_limit_for_himself() {
        let mut world = World::new();
        world.accounts.align(&[Declared { name: "u".to_owned(), terms: String::new(), limit: 10, each: true }]);
        let (budget, _) = world.accounts.named("u").unwrap();
        world.place = Place::new(budget, 0);
        world.roll(None);
        let users = [UserId::NOBODY, UserId::of("anna"), UserId::of("ben")];
        for user in users {
            world.place = Place::new(budget, 0).of(user);
            world.say(Statement { wants: 10, ..Statement::default() });
            world.send(10, 10, 10);
        }
        assert_eq!(world.bills.broken(), [""; 0]);

        world.send(0, 1, 10);
        assert_eq!(world.broken(), 1);
    }

    #[test]
    fn a_refusal_is_believed_only_where_that_much_was_not_free_all_the_time() {
        let mut world = World::new();
        world.bills.refused(world.place, 5, world.index, &Standing::default());
        assert_eq!(world.broken(), 0, "four are free");
        world.bills.refused(world.place, 4, world.index, &Standing::default());
        assert_eq!(world.broken(), 1);

        let since = world.index;
        world.say(Statement { wants: 10, ..Statement::default() });
        world.say(Statement { returned: 10, ..Statement::default() });
        world.bills.refused(world.place, 4, since, &Standing::default());
        assert_eq!(world.broken(), 1, "there was a moment when nothing was free");
    }

    #[test]
    fn a_window_is_over_when_the_next_has_begun_and_not_before() {
        let mut world = World::new();
        world.bills.over(world.place);
        assert_eq!(world.broken(), 1);

        world.roll(Some(0));
        world.bills.over(world.place);

        assert_eq!((world.broken(), world.bills.coverage.rolls), (1, 1));
    }

    #[test]
    fn what_somebody_holds_and_nobody_uses_is_no_rest() {
        let mut world = World::new();
        let lives = BTreeSet::from([LIFE]);
        assert_eq!(world.bills.unrest(&world.accounts, &lives).len(), 1);

        world.say(Statement { returned: 6, ..Statement::default() });
        assert_eq!(world.bills.unrest(&world.accounts, &lives), [""; 0]);

        world.bills.settled(world.place, LIFE, 0, 2);
        assert_eq!(world.bills.unrest(&world.accounts, &lives).len(), 1, "it was not reported");
    }
}

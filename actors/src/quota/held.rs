//! What this node holds of all budgets, and who waits for it. Pure: nothing here waits, writes or asks.
//!
//! An attempt takes its part of all its budgets or of none. Who finds too little stands in line at the first budget that
//! lacks, in an order that is the same on all nodes, holding nothing; whoever comes later to a budget with a line stands
//! behind. Whatever frees rights serves the line at once.

mod pace;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::directory::budget::Unit;
use cluster::ledger::accounts::{Place, Told, UserId};
use cluster::ledger::book::{Standing, Statement};
use cluster::ledger::lease::{Lease, Mark};
use foldhash::fast::RandomState;
use tokio::sync::oneshot;

use pace::Pace;

/// Attempts that stand in line. More are refused.
pub const WAITING_MAX: usize = 4_096;

/// Budgets, windows and end users this node holds something of, or did in a window that is not over. An end user it has
/// not heard of before is refused beyond that.
pub const PLACES_MAX: usize = 40_000;

/// A step of the mark is this part of what is fetched ahead: what a process that is killed burns is a step at most, and
/// each costs a write to the disk.
const MARKS_AHEAD: u64 = 4;

/// What is burned for the sake of speed is no more than this part of what a budget has left.
const SMALL_PART: u64 = 16;

/// Rights nobody used so long are given back.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// How often what was used is reported where nothing else is to be said.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// How long at most a «no» of the ledger is doubted while calls are under way that may use less than their bound.
pub const DOUBT_MAX: Duration = Duration::from_secs(10);

/// How long by whoever can do with less: what others hold and do not use is called back in that time.
pub const DOUBT_SHORT: Duration = Duration::from_millis(500);

/// How long who stands in line for one budget keeps what there is for it of those before: recalls come round in that time.
const KEPT_MAX: Duration = Duration::from_secs(2);

/// A life that has just ended is settled by the next one of its node within that, if at all soon.
const SETTLES_WITHIN: Duration = Duration::from_secs(3);

/// So long after somebody wanted something of a place he may still stand in another line for it: longer than anyone waits.
const LINGERS: Duration = Duration::from_mins(1);

/// What is kept of places for those in other lines, and since when each of them waits.
type Kept = HashMap<Place, Vec<(Instant, u64)>, RandomState>;

/// How an attempt waits where there is too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long a «no» of the ledger is doubted: calls under way may leave enough.
    doubt: Duration,
    /// It can do with less, and rather asks for that than wait long or stand behind others.
    or_less: bool,
    /// It has waited for more as long as anyone may: it stands before the others.
    before: bool,
}

impl Patience {
    pub fn all(doubt: Duration) -> Self {
        Self { doubt: doubt.min(DOUBT_MAX), or_less: false, before: false }
    }

    pub fn or_less(doubt: Duration) -> Self {
        Self { doubt: doubt.min(DOUBT_SHORT), or_less: true, before: false }
    }

    pub fn at_last() -> Self {
        Self { doubt: Duration::ZERO, or_less: true, before: true }
    }

    pub fn doubt(self) -> Duration {
        self.doubt
    }
}

/// A part of a budget that an attempt needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    pub place: Place,
    pub unit: Unit,
    pub amount: u64,
    /// What this node may spend beyond the limit while the ledger does not answer.
    pub overdraft: u64,
}

/// Why an attempt got nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The ledger said so.
    #[error("{amount} is more than is left")]
    Exceeded {
        place: Place,
        amount: u64,
        standing: Standing,
        /// So much of what is unused is held by nodes that are not heard of.
        lost: u64,
    },
    #[error("{WAITING_MAX} attempts wait for budgets already, or {PLACES_MAX} are spent of here")]
    Full,
    #[error("there are too many end users for an account for another")]
    Crowded { place: Place },
    #[error("the budget's window, or the budget, is over")]
    Over { place: Place },
}

pub type Answer = oneshot::Sender<Result<(), Refused>>;

struct Waiting {
    demands: Arc<[Demand]>,
    since: Instant,
    /// In this line.
    stands_since: Instant,
    patience: Patience,
    answer: Answer,
}

#[derive(Default)]
struct Spot {
    lease: Lease,
    line: VecDeque<Waiting>,
    standing: Option<Standing>,
    /// Held by nodes that were not heard of then.
    lost: u64,
    /// When more came to be burned than before.
    burned_at: Option<Instant>,
    said_at: Option<Instant>,
    /// What the ledger was told, as far as it has answered; `None`: nobody knows.
    said: Option<Statement>,
    /// Something was said that nobody answered: it may have been heard, and rights granted for it that are not known here.
    unheard: bool,
    over: bool,
    /// When somebody last wanted something of it, whether he got it or not.
    wanted_at: Option<Instant>,
    pace: Pace,
    /// A mark is on its way to the disk.
    marking: bool,
}

impl Spot {
    fn waits_for(&self, place: Place) -> u64 {
        self.line.iter().fold(0, |sum, waiting| sum.saturating_add(amount_at(&waiting.demands, place)))
    }

    fn first(&self, place: Place) -> Option<u64> {
        self.line.front().map(|waiting| amount_at(&waiting.demands, place))
    }
}

fn amount_at(demands: &[Demand], place: Place) -> u64 {
    demands.iter().find(|demand| demand.place == place).map_or(0, |demand| demand.amount)
}

/// As the module says.
#[derive(Default)]
pub struct Held {
    /// Looked up several times by every attempt. Nobody outside chooses places: end users are in them as a hash.
    spots: HashMap<Place, Spot, RandomState>,
    waiting: usize,
    /// When the ledger last answered.
    answered_at: Option<Instant>,
    /// Since when it has been spoken to without an answer.
    unanswered_since: Option<Instant>,
    /// When it was last told the time.
    now: Option<Instant>,
    /// Somewhere there is credit.
    lent: bool,
    /// Somewhere more was used than was set aside, and the disk is to hear of it.
    unmarked: bool,
    closed: bool,
}

/// What has to be done by whoever holds a [`Held`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Todo {
    /// Something is to be said to the ledger now.
    pub say: bool,
    /// A mark is to be written.
    pub mark: bool,
}

impl Todo {
    fn and(self, other: Self) -> Self {
        Self { say: self.say | other.say, mark: self.mark | other.mark }
    }
}

/// What became of an attempt, and what is to be done now.
pub enum Reserved {
    Taken(Todo),
    /// It stands in line, and is answered there.
    Waits(oneshot::Receiver<Result<(), Refused>>, Todo),
}

impl Held {
    /// Takes everything, or stands in line for it.
    pub fn reserve(&mut self, demands: &Arc<[Demand]>, patience: Patience, now: Instant) -> Result<Reserved, Refused> {
        if let Some(todo) = self.take_at_once(demands, now) {
            return Ok(Reserved::Taken(todo));
        }
        let is_new = |demand: &Demand| demand.place.user != UserId::NOBODY && !self.spots.contains_key(&demand.place);
        if self.spots.len() >= PLACES_MAX && demands.iter().any(is_new) {
            return Err(Refused::Full);
        }
        for demand in demands.iter() {
            self.spots.entry(demand.place).or_default().wanted_at = Some(now);
        }
        let places = demands.iter().map(|demand| demand.place);
        let has_line = |place: &Place| self.spots.get(place).is_some_and(|spot| !spot.line.is_empty());
        let behind = places.filter(|place| !patience.before && has_line(place)).min();
        let at = match behind {
            Some(place) => place,
            None => match self.take(demands) {
                Ok(()) => {
                    self.note(demands, now);
                    return Ok(Reserved::Taken(self.todo(demands, now)));
                }
                Err(place) => place,
            },
        };
        if let Some(demand) = demands.iter().find(|demand| self.spots.get(&demand.place).is_some_and(|spot| spot.over))
        {
            return Err(Refused::Over { place: demand.place });
        }
        if self.waiting >= WAITING_MAX || self.closed {
            return Err(Refused::Full);
        }
        let (answer, answered) = oneshot::channel();
        self.waiting += 1;
        let waiting = Waiting { demands: Arc::clone(demands), since: now, stands_since: now, patience, answer };
        let line = &mut self.spots.entry(at).or_default().line;
        if patience.before {
            line.push_front(waiting);
        } else {
            line.push_back(waiting);
        }
        Ok(Reserved::Waits(answered, self.todo(demands, now)))
    }

    /// What nearly every attempt finds: enough of everything, and nobody who waits for it. Otherwise nothing has changed.
    pub fn take_at_once(&mut self, demands: &[Demand], now: Instant) -> Option<Todo> {
        if self.closed {
            return None;
        }
        if let [demand] = demands {
            let spot = self.spots.get_mut(&demand.place)?;
            return spot.take_at_once(demand.amount).then(|| spot.wanted(demand, now));
        }
        for (index, demand) in demands.iter().enumerate() {
            let taken = self.spots.get_mut(&demand.place).is_some_and(|spot| spot.take_at_once(demand.amount));
            if !taken {
                self.put_back(&demands[..index]);
                return None;
            }
        }
        let mut todo = Todo::default();
        for demand in demands {
            let Some(spot) = self.spots.get_mut(&demand.place) else { continue };
            todo = todo.and(spot.wanted(demand, now));
        }
        Some(todo)
    }

    /// Without a look at who waits for it.
    fn put_back(&mut self, taken: &[Demand]) {
        for demand in taken {
            if let Some(spot) = self.spots.get_mut(&demand.place) {
                spot.lease.release(demand.amount);
            }
        }
    }

    /// What is really taken says how much will be: not what somebody asked for who then did with less.
    fn note(&mut self, demands: &[Demand], now: Instant) {
        for demand in demands {
            if let Some(spot) = self.spots.get_mut(&demand.place) {
                spot.pace.note(demand.amount, now);
            }
        }
    }

    /// All of them, or the first place that lacks: in the order of places, which is the same on all nodes, however budgets are
    /// named there.
    fn take(&mut self, demands: &[Demand]) -> Result<(), Place> {
        let lacks = |held: &Self, demand: &Demand| {
            // Who was taken into account already may go on; nothing new begins in a window that is over.
            let ready = |spot: &Spot| !spot.over && spot.lease.ready() >= demand.amount;
            held.closed || !held.spots.get(&demand.place).is_some_and(ready)
        };
        if let Some(place) = demands.iter().filter(|demand| lacks(self, demand)).map(|demand| demand.place).min() {
            self.spots.entry(place).or_default();
            return Err(place);
        }
        for (index, demand) in demands.iter().enumerate() {
            let taken = self.spots.get_mut(&demand.place).is_some_and(|spot| spot.lease.reserve(demand.amount).is_ok());
            if !taken {
                self.put_back(&demands[..index]);
                return Err(demand.place);
            }
        }
        Ok(())
    }

    /// What was taken is not used.
    pub fn release(&mut self, demands: &[Demand]) {
        self.put_back(demands);
        for demand in demands {
            self.serve(demand.place);
        }
    }

    /// Someone has left the line: who stood behind him may find enough.
    pub fn gone(&mut self, demands: &[Demand]) {
        for demand in demands {
            if let Some(spot) = self.spots.get_mut(&demand.place) {
                let before = spot.line.len();
                spot.line.retain(|waiting| !waiting.answer.is_closed());
                self.waiting -= before - spot.line.len();
            }
            self.serve(demand.place);
        }
    }

    /// What was taken has been used so far, in the order of the demands; the rest comes back.
    pub fn settle(&mut self, demands: &[Demand], used: impl IntoIterator<Item = u64>) {
        let mut waited_for = false;
        for (demand, used) in demands.iter().zip(used) {
            if let Some(spot) = self.spots.get_mut(&demand.place) {
                spot.lease.settle(demand.amount, used);
                waited_for |= !spot.line.is_empty();
                self.unmarked |= spot.lease.busy() > spot.lease.mark().reach;
            }
        }
        if waited_for {
            for demand in demands {
                self.serve(demand.place);
            }
        }
    }

    /// Lets those through who stand in line and now find enough.
    fn serve(&mut self, place: Place) {
        loop {
            let Some(spot) = self.spots.get_mut(&place) else { return };
            let Some(mut waiting) = spot.line.pop_front() else { return };
            if waiting.answer.is_closed() {
                self.waiting -= 1;
                continue;
            }
            match self.take(&waiting.demands) {
                Ok(()) => {
                    self.waiting -= 1;
                    if waiting.answer.send(Ok(())).is_ok() {
                        // When it came: that is when it was wanted.
                        self.note(&waiting.demands, waiting.since);
                        continue;
                    }
                    // It left between the two: nobody will release this but us.
                    self.put_back(&waiting.demands);
                }
                Err(lacking) if lacking == place => {
                    if let Some(spot) = self.spots.get_mut(&place) {
                        spot.line.push_front(waiting);
                    }
                    return;
                }
                Err(lacking) => {
                    waiting.stands_since = self.now.unwrap_or(waiting.since);
                    self.spots.entry(lacking).or_default().line.push_back(waiting);
                }
            }
        }
    }

    /// So much of a place is held by nodes that are not heard of. To be said before [`told`](Self::told).
    pub fn lost(&mut self, place: Place, lost: u64) {
        if let Some(spot) = self.spots.get_mut(&place) {
            spot.lost = lost;
        }
    }

    /// What the ledger said of a statement of `said_at`.
    pub fn told(&mut self, place: Place, told: Told, said_at: Instant, now: Instant) {
        (self.answered_at, self.now) = (Some(now), Some(now));
        self.unanswered_since = None;
        if std::mem::take(&mut self.lent) {
            self.spots.values_mut().for_each(|spot| spot.lease.lend(0));
        }
        let Some(spot) = self.spots.get_mut(&place) else { return };
        spot.unheard = false;
        let standing = match told {
            Told::Standing(standing) => standing,
            Told::Over(standing) => {
                spot.over = true;
                standing
            }
            Told::Gone => {
                spot.over = true;
                spot.standing.unwrap_or_default()
            }
            Told::Crowded => return self.crowded(place),
        };
        spot.lease.grant(standing.granted);
        spot.hear(standing, Some(now));
        self.serve(place);
        self.refuse(place, standing, said_at, now);
    }

    /// There is no account for this end user.
    fn crowded(&mut self, place: Place) {
        let Some(spot) = self.spots.get_mut(&place) else { return };
        let line = std::mem::take(&mut spot.line);
        // What was spent on credit is still to be heard.
        if spot.lease.busy() == 0 {
            self.spots.remove(&place);
        }
        self.waiting -= line.len();
        for waiting in line {
            // It may have left.
            let _gone = waiting.answer.send(Err(Refused::Crowded { place }));
        }
    }

    /// What the ledger says by now of places where rights are idle, whoever asked it; of all that are not over where windows
    /// may have begun: of a quiet one nothing else would tell that it is. Whether anything is to be said.
    pub fn look(&mut self, everywhere: bool, ledger: impl Fn(Place) -> Option<Told>) -> bool {
        let mut news = false;
        let seen = |spot: &Spot| spot.lease.idle() > 0 || (everywhere && !spot.over);
        for (place, spot) in self.spots.iter_mut().filter(|(_, spot)| seen(spot)) {
            match ledger(*place) {
                Some(Told::Standing(standing)) => {
                    news |= standing.recall && spot.lease.idle() > 0;
                    spot.hear(standing, self.now);
                }
                Some(Told::Over(_) | Told::Gone) => {
                    news |= !spot.over;
                    spot.over = true;
                }
                Some(Told::Crowded) | None => {}
            }
        }
        news
    }

    /// Tells those in line what the ledger's word means for them. An attempt that came after it was asked is not meant.
    fn refuse(&mut self, place: Place, standing: Standing, said_at: Instant, now: Instant) {
        let Some(spot) = self.spots.get_mut(&place) else { return };
        let over = spot.over;
        let free = standing.limit.saturating_sub(standing.held);
        let (mut kept, mut before) = (VecDeque::new(), 0_u64);
        for waiting in std::mem::take(&mut spot.line) {
            let amount = amount_at(&waiting.demands, place);
            // Nothing that is under way can make room for it: all of that is not used yet. Nor can the start of a node, which
            // gives back what the life before it held.
            let settles = spot.burned_at.is_some_and(|at| now.saturating_duration_since(at) < SETTLES_WITHIN);
            let never = !settles && amount > standing.unused().saturating_sub(spot.lost);
            let doubted = now.saturating_duration_since(waiting.since) < waiting.patience.doubt;
            // What is here is for who stands before it.
            let lacks = amount > spot.lease.idle() || (waiting.patience.or_less && !kept.is_empty());
            // The ledger has it, for those who stand before it too, and is asked for it next: that is no «no».
            let unheard = spot.lease.debt() - spot.lease.used().saturating_sub(spot.lease.rights());
            let wanted = before.saturating_add(amount).saturating_add(unheard);
            let has = wanted <= spot.lease.idle().saturating_add(free);
            let refused = if over {
                Some(Refused::Over { place })
            } else if waiting.since <= said_at && (never || !doubted) && lacks && !has {
                Some(Refused::Exceeded { place, amount, standing, lost: spot.lost })
            } else {
                None
            };
            if let Some(refused) = refused {
                self.waiting -= 1;
                // It may have left.
                let _gone = waiting.answer.send(Err(refused));
            } else {
                before = before.saturating_add(amount);
                kept.push_back(waiting);
            }
        }
        spot.line = kept;
        // Who stood behind one that was refused may find enough.
        self.serve(place);
    }

    /// Forgets windows that are over and of which nothing is left to be said, but for those where somebody may still begin to
    /// spend, as far as this node knows: he would be lent to as if nothing had been spent there, and what he spent would be
    /// taken for that.
    pub fn forget(&mut self, now: Instant, is_spent: impl Fn(Place) -> bool) {
        if !self.closed {
            self.spots.retain(|place, spot| !spot.is_done(now) || is_spent(*place));
        }
    }

    /// What is to be said to the ledger now, up to `most` of it; the rest is said the next time.
    pub fn statements(&mut self, now: Instant, most: usize) -> Vec<(Place, Statement)> {
        let mut said = Vec::new();
        if self.closed {
            return said;
        }
        self.now = Some(now);
        let kept = self.kept(now);
        for (place, spot) in &mut self.spots {
            if said.len() == most {
                break;
            }
            let statement = spot.statement(*place, now, kept.get(place).map_or(&[][..], Vec::as_slice));
            said.extend(statement.map(|statement| (*place, statement)));
        }
        said.sort_unstable_by_key(|(place, _)| *place);
        if !said.is_empty() {
            self.unanswered_since.get_or_insert(now);
        }
        said
    }

    /// What is kept of each place for those who are next in other lines, though it is called back: else two that need the
    /// same budgets might each get one of them, give it back for the other, and so on. Only who stands at the later of two
    /// places keeps the earlier: in that order, which is the same on all nodes, one of them goes on.
    fn kept(&self, now: Instant) -> Kept {
        let mut kept = Kept::default();
        if self.waiting == 0 {
            return kept;
        }
        let next = self.spots.iter().filter_map(|(at, spot)| Some((at, spot.line.front()?)));
        for (at, waiting) in next.filter(|(_, waiting)| now.saturating_duration_since(waiting.stands_since) < KEPT_MAX)
        {
            for demand in waiting.demands.iter().filter(|demand| demand.place < *at) {
                kept.entry(demand.place).or_default().push((waiting.since, demand.amount));
            }
        }
        // Where there is not enough for all of them, who came first keeps his part.
        for parts in kept.values_mut() {
            parts.sort_unstable();
        }
        kept
    }

    /// Whether the ledger has been spoken to for so long without an answer.
    pub fn is_silent(&self, now: Instant, so_long: Duration) -> bool {
        self.unanswered_since.is_some_and(|since| now.saturating_duration_since(since) >= so_long)
    }

    /// So much may be spent of a place beyond what is held, until the ledger answers.
    pub fn lend(&mut self, place: Place, credit: u64) {
        self.lent = true;
        self.spots.entry(place).or_default().lease.lend(credit);
        self.serve(place);
    }

    /// Nobody answered: perhaps it was heard, perhaps not, so it is said again.
    pub fn unanswered(&mut self, places: &[Place]) {
        for place in places {
            if let Some(spot) = self.spots.get_mut(place) {
                (spot.said, spot.unheard) = (None, true);
            }
        }
    }

    /// From now on nothing is reserved, and nothing said. How far each budget is used, calls under way included.
    pub fn close(&mut self) -> Vec<(Place, Mark)> {
        self.closed = true;
        let last = |lease: &Lease| Mark { reach: lease.busy(), lent: lease.debt() };
        self.spots.iter().map(|(place, spot)| (*place, last(&spot.lease))).collect()
    }

    /// Marks that are to be on the disk before more can be taken.
    pub fn marks(&mut self, now: Instant) -> Vec<(Place, Mark)> {
        let mut marks = Vec::new();
        for (place, spot) in &mut self.spots {
            // More was used than was set aside: else the next life's proof would say less than was reported.
            let behind = spot.lease.busy() > spot.lease.mark().reach;
            let ahead = spot.pace.ahead(now);
            if !spot.marking && (behind || spot.is_short(*place, ahead)) {
                spot.marking = true;
                marks.push((*place, spot.lease.wanted(spot.chunk(*place, ahead))));
            }
        }
        marks
    }

    /// They are on the disk, or are not.
    pub fn marked(&mut self, marks: &[(Place, Mark)], durable: bool) {
        for (place, mark) in marks {
            if let Some(spot) = self.spots.get_mut(place) {
                spot.marking = false;
                if durable {
                    spot.lease.marked(*mark);
                }
            }
            self.serve(*place);
        }
    }

    fn todo(&self, demands: &[Demand], now: Instant) -> Todo {
        let of = |demand: &Demand| self.spots.get(&demand.place).map(|spot| spot.todo(demand.place, now));
        demands.iter().filter_map(of).fold(Todo::default(), Todo::and)
    }

    /// Whether the ledger has answered within `lately`, whatever it was asked: it is one for all budgets, and says nothing
    /// of those of which there is nothing new.
    pub fn is_answered(&self, now: Instant, lately: Duration) -> bool {
        self.answered_at.is_some_and(|at| now.saturating_duration_since(at) < lately)
    }

    /// Whether the disk is to hear of anything since it was last asked: of who may stand in line for nothing else, or of what
    /// was used beyond what was set aside.
    pub fn take_unmarked(&mut self) -> bool {
        std::mem::take(&mut self.unmarked) || self.waiting > 0
    }

    /// Whether anyone stands in line.
    pub fn is_waited_for(&self) -> bool {
        self.waiting > 0
    }

    /// What could be taken of a place if nobody else did, as far as the ledger has said. `None`: it has said nothing.
    pub fn left(&self, place: Place) -> Option<u64> {
        let spot = self.spots.get(&place)?;
        if self.lent {
            return Some(spot.lease.room());
        }
        let standing = spot.standing?;
        Some(standing.limit.saturating_sub(standing.held).saturating_add(spot.lease.idle()))
    }

    /// What could be taken of a place if nobody who is heard of used what he holds, as far as the ledger has said. `None`: it
    /// has said nothing.
    pub fn most(&self, place: Place) -> Option<u64> {
        let spot = self.spots.get(&place)?;
        let unused = || spot.standing.map(|standing| standing.unused().saturating_sub(spot.lost));
        if self.lent { Some(spot.lease.room()) } else { unused() }
    }

    /// What is set aside of a window, for all its end users.
    pub fn reserved(&self, window: Place) -> u64 {
        let of_it = self.spots.iter().filter(|(place, _)| place.of(UserId::NOBODY) == window);
        of_it.fold(0, |sum, (_, spot)| sum.saturating_add(spot.lease.reserved()))
    }

    pub fn lease(&self, place: Place) -> Option<&Lease> {
        self.spots.get(&place).map(|spot| &spot.lease)
    }
}

impl Spot {
    fn take_at_once(&mut self, amount: u64) -> bool {
        !self.over && self.line.is_empty() && self.lease.reserve(amount).is_ok()
    }

    fn hear(&mut self, standing: Standing, now: Option<Instant>) {
        let before = self.standing.map_or(0, |before| before.burned);
        if before < standing.burned {
            // What it held is burned now, not lost.
            (self.burned_at, self.lost) = (now, 0);
        }
        self.standing = Some(standing);
    }

    /// It was wanted, and taken.
    fn wanted(&mut self, demand: &Demand, now: Instant) -> Todo {
        self.wanted_at = Some(now);
        self.pace.note(demand.amount, now);
        self.todo(demand.place, now)
    }

    fn todo(&self, place: Place, now: Instant) -> Todo {
        if !self.line.is_empty() {
            return Todo { say: true, mark: self.lease.ready() < self.lease.room() };
        }
        let ahead = self.pace.ahead(now);
        let wanted = self.wanted_ahead(false, ahead);
        // What was asked for already need not be asked for again at once.
        let wants = || self.lease.statement(wanted.saturating_sub(self.lease.idle()), 0).wants;
        let say = wanted > 0 && wants() > self.said.unwrap_or_default().wants;
        Todo { say, mark: !self.marking && self.is_short(place, ahead) }
    }

    /// What a mark is to leave room for; `ahead` as [`Pace::ahead`] says. A process that is killed burns it: two of the
    /// largest calls only where that is a small part of what is left.
    fn chunk(&self, place: Place, ahead: u64) -> u64 {
        let first = self.first(place).unwrap_or_default();
        let left = self.standing.as_ref().map_or(0, Standing::unused);
        let two = self.pace.largest.saturating_mul(2).min(left / SMALL_PART);
        (ahead / MARKS_AHEAD).max(self.pace.largest).max(two).max(first)
    }

    /// Whether the disk has to hear of more before it is needed.
    fn is_short(&self, place: Place, ahead: u64) -> bool {
        let (room, ready) = (self.lease.room(), self.lease.ready());
        ready < room && (ready < self.chunk(place, ahead) / 2 || ready < self.first(place).unwrap_or_default())
    }

    /// `kept`: as [`Held::kept`].
    fn statement(&mut self, place: Place, now: Instant, kept: &[(Instant, u64)]) -> Option<Statement> {
        let recalled = self.standing.is_some_and(|standing| standing.recall);
        let unused = self.wanted_at.is_none_or(|at| now.saturating_duration_since(at) >= IDLE_MAX);
        let first = self.first(place).unwrap_or_default();
        if recalled || unused || self.over {
            // What serves the first in line stays, if it is enough for that; so does what those in other lines need.
            let idle = if self.over { 0 } else { self.lease.idle() };
            let parts = std::iter::once(first).chain(kept.iter().map(|(_since, amount)| *amount));
            let keep = parts.fold(0, |keep: u64, part| if part > idle - keep { keep } else { keep + part });
            self.lease.give_back(keep);
        }
        let wanted =
            if self.over { 0 } else { self.waits_for(place).max(self.wanted_ahead(recalled, self.pace.ahead(now))) };
        let debt = self.lease.debt();
        let more = wanted.saturating_sub(self.lease.idle());
        let statement = self.lease.statement(more, first.saturating_sub(self.lease.idle()));
        let said = self.said.unwrap_or_default();
        let news = (statement.used, statement.returned) != (said.used, said.returned);
        let due = self.said_at.is_none_or(|at| now.saturating_duration_since(at) >= REPORT_EVERY);
        // Who waits elsewhere waits for what is known to be left.
        let asked = recalled && news;
        // Who is thought to wait calls back what others hold.
        let left = self.line.is_empty() && said.least > self.lease.granted();
        let urgent =
            asked || left || statement.returned != said.returned || !self.line.is_empty() || (more + debt > 0 && due);
        let low = more + debt > 0 && statement.wants > said.wants;
        if !(urgent || low || ((news || self.unheard) && due)) {
            return None;
        }
        self.said = Some(statement);
        self.said_at = Some(now);
        Some(statement)
    }

    /// Fetched ahead only where much is missing, and not while others go without.
    fn wanted_ahead(&self, recalled: bool, ahead: u64) -> u64 {
        if recalled || self.lease.idle() >= ahead / 2 { 0 } else { ahead }
    }

    fn is_done(&self, now: Instant) -> bool {
        let lingers = self.wanted_at.is_some_and(|at| now.saturating_duration_since(at) < LINGERS);
        let told = self.said.unwrap_or_default().used == self.lease.used() && self.lease.idle() == 0;
        // One that was lent to is remembered: it is lent to once.
        let heard = told && !self.unheard;
        self.over
            && !lingers
            && self.line.is_empty()
            && self.lease.reserved() == 0
            && heard
            && self.lease.mark().lent == 0
    }
}

#[cfg(test)]
mod tests;

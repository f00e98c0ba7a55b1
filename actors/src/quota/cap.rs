//! How long an answer may become that nobody capped: as long as the model can, unless the budgets have less.
//!
//! No answer sets aside more than a part of what is left, so that others can be written beside it: where the longest one
//! is more than that, the answer is capped. It waits for calls under way to end rather than be capped below [`CAP_FLOOR`];
//! only where the budgets themselves have less, or it waited in vain, it is capped at what there is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::directory::budget::{Budget, Mode, Unit};
use cluster::directory::price::{Price, TokenCounts};
use cluster::ledger::accounts::{Place, UserId};
use smallvec::SmallVec;

use super::escrow::{Escrow, Hold, NotReserved, Places, now};
use super::held::{Demand, Patience, Refused};
use super::{Bill, Bound, QuotaError, Waits, dearest, tokens_of, unreserved};

/// Tokens of an answer that are waited for as an answer that names its length would.
pub const CAP_FLOOR: u64 = 4_096;

/// Answers that are to be written beside each other: one sets aside no more than its part of what is left.
pub const BESIDE: u64 = 4;

/// A shorter answer serves nobody: the budget is exceeded.
pub const CAP_LEAST: u64 = 256;

/// How often what was left is gone when it is asked for.
const TRIES: usize = 3;

/// Tokens of an answer that a soft budget sets aside for it at most.
pub const SOFT_OUTPUT: u64 = 1_024;

/// One of each budget, of which a request has a few.
type Each<T> = SmallVec<[T; 8]>;

/// What an attempt took.
pub(super) struct Rights {
    hold: Hold,
    /// At what price those are counted that are in money, where the target has none: which of them, and the price.
    assumed: Box<[(usize, Price)]>,
}

impl Rights {
    /// An attempt has come to this.
    pub fn settle(&mut self, bill: &Bill, requests: u64) {
        let assumed = &self.assumed;
        self.hold.settle_each(|(index, demand)| match demand.unit {
            Unit::NanoUsd => {
                let assumed = || {
                    let (_index, price) = assumed.iter().find(|(at, _price)| *at == index)?;
                    Some(if bill.estimated { dearest(price, bill.tokens) } else { price.cost(bill.tokens) })
                };
                // Without any price nothing was reserved in money.
                bill.cost.or_else(assumed).unwrap_or_default().0
            }
            Unit::Tokens => tokens_of(bill.tokens),
            Unit::Requests => requests,
        });
    }
}

/// An attempt that needs rights.
pub(super) struct Asked<'a> {
    pub escrow: &'a Escrow,
    pub budgets: &'a [Arc<Budget>],
    /// For those that each end user has for himself.
    pub user: UserId,
    pub bound: Bound,
    pub price: Option<&'a Price>,
    /// Of all that is tried for it.
    pub waits: Waits,
}

/// Rights, and the cap that each answer needs.
type Taken = (Rights, Option<u64>);

/// Why nothing was taken.
enum Denied {
    /// A window ended, and the next has begun: all is to be looked at anew.
    Over,
    Because(QuotaError),
}

impl From<QuotaError> for Denied {
    fn from(error: QuotaError) -> Self {
        Self::Because(error)
    }
}

impl Asked<'_> {
    /// Of all budgets or of none.
    pub async fn take(&self) -> Result<Taken, QuotaError> {
        if let Some(taken) = self.take_at_once(now()) {
            return Ok(taken);
        }
        // Boxed, as it is rare.
        Box::pin(self.take_in_time()).await
    }

    /// What nearly every attempt finds: everything here, for the longest answer. Otherwise nothing was taken.
    fn take_at_once(&self, now: Instant) -> Option<Taken> {
        let may_cap = self.bound.may_cap > 0;
        if may_cap && self.budgets.iter().any(|budget| budget.overdraft > 0) {
            return None;
        }
        let demands = self.escrow.find_now(|places| self.demands_in(places))?;
        if may_cap {
            let most = self.escrow.most(demands.iter().map(|demand| demand.place));
            if !self.have_room(demands.iter().map(|demand| demand.amount), &most).ok()? {
                return None;
            }
        }
        let hold = self.escrow.take_at_once(demands, now)?;
        Some((self.rights(hold), None))
    }

    /// For the longest answer. `None`: a budget has no place yet, or the target no price. Written where it stays, in one pass.
    fn demands_in(&self, places: &Places) -> Option<Arc<[Demand]>> {
        let mut whole = true;
        let demand = |budget: &Arc<Budget>| {
            let (place, amount) = (places.of(budget, self.user), self.amount(budget, self.bound).ok());
            whole &= place.is_some() && amount.is_some();
            let (unit, overdraft) = (budget.limit.unit, budget.overdraft);
            Demand { place: place.unwrap_or_default(), unit, amount: amount.unwrap_or_default(), overdraft }
        };
        let demands = self.budgets.iter().map(demand).collect();
        whole.then_some(demands)
    }

    async fn take_in_time(&self) -> Result<Taken, QuotaError> {
        let doubted_until = now() + self.waits.doubt;
        loop {
            match self.take_now(doubted_until).await {
                Ok(taken) => return Ok(taken),
                Err(Denied::Because(error)) => return Err(error),
                Err(Denied::Over) => {}
            }
        }
    }

    async fn take_now(&self, doubted_until: Instant) -> Result<Taken, Denied> {
        let doubt = || doubted_until.saturating_duration_since(now());
        if self.bound.may_cap == 0 {
            return Ok((self.reserve(self.bound, Patience::all(doubt())).await?, None));
        }
        self.lend().await?;
        if self.has_room().await? {
            match self.reserve(self.bound, Patience::or_less(doubt())).await {
                Err(Denied::Because(QuotaError::Exceeded(_))) => {}
                taken => return Ok((taken?, None)),
            }
        }
        let floor = CAP_FLOOR.min(self.longest());
        for _ in 0..TRIES {
            let each = self.affordable().await?;
            if each < floor {
                break;
            }
            let each = floor.max(each / BESIDE);
            if let Some(taken) = self.reserve_capped(each, Patience::or_less(doubt())).await? {
                return Ok(taken);
            }
        }
        match self.reserve_capped(floor, Patience::all(doubt())).await? {
            Some(taken) => Ok(taken),
            None => self.shorter(floor, doubted_until).await,
        }
    }

    /// The budgets have less than `floor`, or it was waited for in vain: an answer as long as what they have, or what is free.
    /// Each «no» tells what the budgets have by then; where that is as much, others ask for it, too.
    async fn shorter(&self, floor: u64, doubted_until: Instant) -> Result<Taken, Denied> {
        let doubt = || doubted_until.saturating_duration_since(now());
        let patience = |otherwise: fn(Duration) -> Patience| {
            if doubt().is_zero() { Patience::at_last() } else { otherwise(doubt()) }
        };
        let least = CAP_LEAST.min(floor);
        let attainable = self.attainable().await?;
        let mut most = if attainable < floor { attainable } else { self.affordable().await?.min(floor) };
        for _ in 0..TRIES {
            if most < least {
                break;
            }
            if let Some(taken) = self.reserve_capped(most, patience(Patience::or_less)).await? {
                return Ok(taken);
            }
            let attainable = self.attainable().await?;
            most = if attainable < most { attainable } else { most / 2 };
        }
        // It is waited for in the end, as much as leaves room for others.
        let each = (self.attainable().await? / BESIDE).clamp(least, floor);
        if each > least
            && let Some(taken) = self.reserve_capped(each, patience(Patience::all)).await?
        {
            return Ok(taken);
        }
        // Its «no» is told: it is to be the ledger's, and not that others stand in line.
        Ok((self.reserve(self.bound.capped(least), patience(Patience::all)).await?, Some(least)))
    }

    /// With answers of so many tokens. `None`: the ledger has less.
    async fn reserve_capped(&self, each: u64, patience: Patience) -> Result<Option<Taken>, Denied> {
        match self.reserve(self.bound.capped(each), patience).await {
            Ok(rights) => Ok(Some((rights, Some(each)))),
            Err(Denied::Because(QuotaError::Exceeded(_))) => Ok(None),
            Err(denied) => Err(denied),
        }
    }

    /// Where the ledger is silent, what there is on credit counts as room.
    async fn lend(&self) -> Result<(), QuotaError> {
        if self.budgets.iter().all(|budget| budget.overdraft == 0) {
            return Ok(());
        }
        let places = self.places().await?;
        let nothing: Each<u64> = self.budgets.iter().map(|_budget| 0).collect();
        self.escrow.lend(&self.demands(&places, &nothing));
        Ok(())
    }

    /// Whether the longest answers are no more than their part of what is left, as far as anyone has said.
    async fn has_room(&self) -> Result<bool, QuotaError> {
        self.have_room(self.amounts(self.bound)?, &self.escrow.most(self.places().await?))
    }

    /// The same, where they are as long as `whole`, and each budget has at `most`. A budget that no cap saves anything of need
    /// only have room.
    fn have_room(&self, whole: impl IntoIterator<Item = u64>, most: &[Option<u64>]) -> Result<bool, QuotaError> {
        let capped = self.bound.capped(CAP_FLOOR);
        for ((budget, whole), most) in self.budgets.iter().zip(whole).zip(self.at_most(most)) {
            let saves = self.amount(budget, capped)? != whole;
            let part = if saves { whole.saturating_mul(BESIDE) } else { whole };
            if part > most {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What each budget has that is neither spent nor burned: where nobody has said, its limit.
    fn at_most(&self, most: &[Option<u64>]) -> impl Iterator<Item = u64> {
        let limits = self.budgets.iter().map(|budget| budget.limit.amount);
        most.iter().zip(limits).map(|(most, limit)| most.unwrap_or(limit))
    }

    async fn places(&self) -> Result<Each<Place>, QuotaError> {
        let places = self.escrow.find(|places| self.places_in(places), self.waits.until).await;
        places.map_err(|error| unreserved(&error, &[], self.budgets, self.escrow))
    }

    fn places_in(&self, places: &Places) -> Option<Each<Place>> {
        self.budgets.iter().map(|budget| places.of(budget, self.user)).collect()
    }

    /// Tokens of one answer where nothing caps it.
    fn longest(&self) -> u64 {
        self.bound.tokens.output / self.bound.may_cap.max(1)
    }

    /// The longest answers that all the budgets seem to have room for.
    async fn affordable(&self) -> Result<u64, QuotaError> {
        self.longest_in(&self.escrow.left(&self.places().await?))
    }

    /// The longest answers that all the budgets would have room for if nobody used what he holds.
    async fn attainable(&self) -> Result<u64, QuotaError> {
        let most = self.escrow.most(self.places().await?);
        self.longest_in(&self.at_most(&most).collect::<Each<u64>>())
    }

    /// The longest answers for which each budget has so much `left`.
    fn longest_in(&self, left: &[u64]) -> Result<u64, QuotaError> {
        let fits = |each: u64| {
            let amounts = self.amounts(self.bound.capped(each))?;
            Ok(amounts.iter().zip(left).all(|(amount, left)| amount <= left))
        };
        let (mut fit, mut beyond) = (0, self.longest().saturating_add(1));
        while beyond - fit > 1 {
            let middle = fit + (beyond - fit) / 2;
            if fits(middle)? {
                fit = middle;
            } else {
                beyond = middle;
            }
        }
        Ok(fit)
    }

    /// In each budget's unit.
    fn amounts(&self, bound: Bound) -> Result<Each<u64>, QuotaError> {
        self.budgets.iter().map(|budget| self.amount(budget, bound)).collect()
    }

    fn amount(&self, budget: &Budget, bound: Bound) -> Result<u64, QuotaError> {
        let tokens = match budget.mode {
            Mode::Hard => bound.tokens,
            // No cap saves anything of it.
            Mode::Soft => TokenCounts { output: self.bound.tokens.output.min(SOFT_OUTPUT), ..bound.tokens },
        };
        match budget.limit.unit {
            Unit::NanoUsd => match self.price.or(budget.assumed.as_ref()) {
                Some(price) => Ok(dearest(price, tokens).0),
                None => Err(QuotaError::Unpriced { budget: Arc::clone(&budget.name) }),
            },
            Unit::Tokens => Ok(tokens_of(tokens)),
            Unit::Requests => Ok(1),
        }
    }

    async fn reserve(&self, bound: Bound, patience: Patience) -> Result<Rights, Denied> {
        let Self { escrow, budgets, waits: Waits { until, .. }, .. } = *self;
        let amounts = self.amounts(bound)?;
        let demands = self.demands(&self.places().await?, &amounts);
        match escrow.reserve(Arc::clone(&demands), patience, until).await {
            Ok(hold) => Ok(self.rights(hold)),
            // Its next window is known here as soon as that is applied.
            Err(NotReserved::Refused(Refused::Over { place })) => {
                let next = escrow.next_after(place, until).await;
                next.map_err(|error| unreserved(&error, &demands, budgets, escrow))?;
                Err(Denied::Over)
            }
            Err(error) => Err(unreserved(&error, &demands, budgets, escrow).into()),
        }
    }

    fn demands(&self, places: &[Place], amounts: &[u64]) -> Arc<[Demand]> {
        let demand = |((place, amount), budget): ((&Place, &u64), &Arc<Budget>)| Demand {
            place: *place,
            unit: budget.limit.unit,
            amount: *amount,
            overdraft: budget.overdraft,
        };
        places.iter().zip(amounts).zip(self.budgets).map(demand).collect()
    }

    fn rights(&self, hold: Hold) -> Rights {
        let assumed = |(index, budget): (usize, &Arc<Budget>)| {
            let used = self.price.is_none() && budget.limit.unit == Unit::NanoUsd;
            Some((index, budget.assumed.filter(|_| used)?))
        };
        Rights { hold, assumed: self.budgets.iter().enumerate().filter_map(assumed).collect() }
    }
}

impl Bound {
    /// With so many tokens for each answer at most.
    pub(super) fn capped(self, each: u64) -> Self {
        let output = self.tokens.output.min(each.saturating_mul(self.may_cap));
        let tokens = TokenCounts { output, ..self.tokens };
        Self { tokens, ..self }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use cluster::directory::budget::Period;
    use tokio::task::JoinSet;

    use super::super::Ends;
    use super::super::escrow::Now;
    use super::super::escrow::tests::Books;
    use super::super::held::DOUBT_MAX;
    use super::super::{Account, Payer, Quota, Reservation};
    use super::*;

    /// What the model writes at most.
    const LONGEST: u64 = 131_072;

    const INPUT: u64 = 100;

    /// One node's quota, and the budgets that each call must fit in.
    #[derive(Clone)]
    struct Node {
        quota: Quota,
        budgets: Vec<Arc<Budget>>,
    }

    fn budget(number: usize, limit: &str, mode: Mode) -> Arc<Budget> {
        let (name, limit) = (format!("b{number}").into(), limit.parse().unwrap());
        Arc::new(Budget {
            name,
            limit,
            period: Period::Total,
            timezone: None,
            mode,
            overdraft: 0,
            each: false,
            assumed: None,
        })
    }

    fn nodes(count: u64, limits: &[(&str, Mode)]) -> Vec<Node> {
        world(count, limits).0
    }

    /// Some nodes on these budgets.
    fn world(count: u64, limits: &[(&str, Mode)]) -> (Vec<Node>, Books) {
        let named = limits.iter().enumerate();
        let budgets: Vec<_> = named.map(|(number, (limit, mode))| budget(number, limit, *mode)).collect();
        let (books, places) = Books::new(&budgets.iter().map(|budget| budget.limit.amount).collect::<Vec<_>>());
        let node = |number| {
            let (escrow, _answers) = books.node(number);
            let spots = places.iter().zip(&budgets);
            let spots = spots.map(|(place, budget)| {
                (Arc::clone(&budget.name), Now { place: *place, unit: budget.limit.unit, ends: None })
            });
            escrow.publish(spots.collect());
            Node { quota: Quota::with(escrow), budgets: budgets.clone() }
        };
        ((0..count).map(node).collect(), books)
    }

    /// One node on a hard budget of so many tokens.
    fn alone(tokens: u64) -> Node {
        nodes(1, &[(&format!("{tokens} tokens"), Mode::Hard)]).remove(0)
    }

    impl Node {
        /// For so many answers, which may be capped or name their length.
        async fn reserve(&self, choices: u64, may_cap: bool) -> Result<Reservation, QuotaError> {
            let account = Account { tenant: "acme".into(), provider: "openai".into(), route: "r".into() };
            let tokens = TokenCounts { input: INPUT, output: LONGEST * choices, ..TokenCounts::default() };
            let bound = Bound { tokens, may_cap: if may_cap { choices } else { 0 }, ..Bound::default() };
            let payer = Payer { account: &account, budgets: &self.budgets, end_user: None };
            self.quota.reserve(payer, bound, None, Waits::new(now() + Duration::from_mins(1))).await
        }

        async fn cap(&self) -> Result<Option<u64>, QuotaError> {
            self.reserve(1, true).await.map(|reservation| reservation.cap())
        }
    }

    fn used(output: u64) -> TokenCounts {
        TokenCounts { input: INPUT, output, ..TokenCounts::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn where_there_is_room_for_the_longest_answer_nothing_is_capped() {
        let node = alone(LONGEST * 100);

        let mut held = Vec::new();
        for _ in 0..50 {
            held.push(node.reserve(1, true).await.unwrap());
        }

        assert!(held.iter().all(|reservation| reservation.cap().is_none()));
    }

    /// What one call gives back is its own: nothing of what is set aside for the calls beside it.
    #[tokio::test(start_paused = true)]
    async fn what_is_set_aside_is_given_back_once() {
        let node = alone(LONGEST * 100);
        let escrow = node.quota.escrow().unwrap();
        let place = escrow.find_now(|places| places.of(&node.budgets[0], UserId::NOBODY)).unwrap();
        let each = INPUT + LONGEST;
        let mut calls = Vec::new();
        for _ in 0..6 {
            calls.push(node.reserve(1, false).await.unwrap());
        }
        assert_eq!(escrow.reserved(place), 6 * each);

        drop(calls.pop());
        assert_eq!(escrow.reserved(place), 5 * each, "no call was made");
        calls.pop().unwrap().dispatch().settle(used(100));
        assert_eq!(escrow.reserved(place), 4 * each, "the provider said what was used");
        drop(calls.pop().unwrap().dispatch());
        assert_eq!(escrow.reserved(place), 3 * each, "nobody knows what was used");
        let lease = escrow.lease(place).unwrap();
        assert_eq!(lease.used(), INPUT + 100 + each);
    }

    /// Another node holds most of it and does not use it: that is no reason to cap.
    #[tokio::test(start_paused = true)]
    async fn what_others_hold_and_do_not_use_is_called_back_rather_than_an_answer_capped() {
        let nodes = nodes(2, &[(&format!("{} tokens", LONGEST * 5), Mode::Hard)]);
        drop(nodes[0].reserve(4, false).await.unwrap());
        tokio::time::sleep(Duration::from_secs(1)).await;

        assert_eq!(nodes[1].cap().await, Ok(None));
    }

    /// The budget has less than an answer of the floor's length: what is left of it is had by whoever asks, wherever it is.
    #[tokio::test(start_paused = true)]
    async fn the_last_of_a_budget_is_called_back_from_who_does_not_use_it() {
        let nodes = nodes(3, &[(&format!("{CAP_FLOOR} tokens"), Mode::Hard)]);
        let mut left = CAP_FLOOR;
        for number in 0..9 {
            let reservation = nodes[number % 3].reserve(1, true).await.unwrap();
            assert_eq!(reservation.cap(), Some(left - INPUT), "call {number}");
            reservation.dispatch().settle(used(100));
            left -= INPUT + 100;
        }
    }

    /// One at a time may have all that is left.
    #[tokio::test(start_paused = true)]
    async fn the_last_of_a_budget_is_waited_for_while_a_call_under_way_has_it() {
        let nodes = nodes(2, &[(&format!("{CAP_FLOOR} tokens"), Mode::Hard)]);
        let first = nodes[0].reserve(1, true).await.unwrap().dispatch();
        let ends = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            first.settle(used(100));
        };

        let (second, third, _bill) = tokio::join!(nodes[0].cap(), nodes[1].cap(), ends);

        assert!(matches!((&second, &third), (Ok(Some(_)), Ok(Some(_)))), "{second:?}, {third:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_of_zero_refuses_every_call() {
        let node = alone(0);

        for may_cap in [true, false] {
            let refused = node.reserve(1, may_cap).await.err();
            let Some(QuotaError::Exceeded(exceeded)) = refused else { panic!("{refused:?}") };
            assert_eq!((&*exceeded.budget.name, exceeded.limit), ("b0", 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_capped_at_a_part_of_what_there_is_room_for() {
        let node = alone(100_000);

        let first = node.reserve(1, true).await.unwrap();
        // Nobody has said yet how much is left: its limit says how much that is at most.
        let cap = first.cap().unwrap();
        assert!((CAP_FLOOR..=100_000 / BESIDE).contains(&cap), "{cap}");
        first.dispatch().settle(used(79_900));
        tokio::time::sleep(Duration::from_secs(2)).await;

        assert_eq!(node.cap().await, Ok(Some((20_000 - INPUT) / BESIDE)));
        assert_eq!(node.reserve(4, true).await.unwrap().cap(), Some(CAP_FLOOR), "each of four");
        let refused = node.reserve(1, false).await.err();
        let Some(QuotaError::Exceeded(exceeded)) = refused else { panic!("it named its length: {refused:?}") };
        assert_eq!((&*exceeded.budget.name, exceeded.limit, exceeded.ends), ("b0", 100_000, Some(Ends::Never)));
        assert_eq!(exceeded.needed, INPUT + LONGEST);
    }

    /// A small budget is for more than one at a time.
    #[tokio::test(start_paused = true)]
    async fn answers_that_nobody_capped_are_written_beside_each_other() {
        let node = alone(100_000);

        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(node.reserve(1, true).await.unwrap());
        }

        assert!(held.iter().all(|reservation| reservation.cap().is_some_and(|cap| cap >= CAP_FLOOR)));
    }

    /// Requests are counted whatever their length, and a soft budget sets aside what is likely.
    #[tokio::test(start_paused = true)]
    async fn a_budget_that_no_cap_saves_anything_of_caps_nothing() {
        let large = format!("{} tokens", LONGEST * 100);
        let node = nodes(1, &[("2 requests", Mode::Hard), ("2000 tokens", Mode::Soft), (&large, Mode::Hard)]).remove(0);

        let first = node.reserve(1, true).await.unwrap();
        assert_eq!(first.cap(), None);
        first.dispatch().settle(used(700));
        tokio::time::sleep(Duration::from_secs(2)).await;

        assert_eq!(node.cap().await, Ok(None), "the last request, and 1,200 tokens");
    }

    #[tokio::test(start_paused = true)]
    async fn less_than_serves_anybody_is_refused() {
        assert_eq!(alone(INPUT + CAP_LEAST).cap().await, Ok(Some(CAP_LEAST)));
        let refused = alone(INPUT + CAP_LEAST - 1).cap().await;
        assert!(matches!(refused, Err(QuotaError::Exceeded(_))), "{refused:?}");
    }

    /// Calls under way have all of it: rather than with a word or two, an answer waits for what they leave.
    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_for_calls_under_way_rather_than_be_cut_short() {
        let node = Arc::new(alone(6_000));
        let first = node.reserve(1, true).await.unwrap().dispatch();
        let mut second = JoinSet::new();
        let other = Arc::clone(&node);
        second.spawn(async move { other.cap().await });
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(second.try_join_next().is_none());

        first.settle(used(900));

        assert_eq!(second.join_all().await, [Ok(Some(CAP_FLOOR))]);
    }

    /// They take longer than anyone waits: then an answer has to do with what they do not hold. All that is waited for is one
    /// time.
    #[tokio::test(start_paused = true)]
    async fn an_answer_is_cut_short_where_calls_under_way_leave_nothing_in_time() {
        let node = alone(6_000);
        let _under_way = node.reserve(1, true).await.unwrap().dispatch();
        let began = now();

        let cap = node.cap().await;

        assert_eq!(cap, Ok(Some(6_000 - (INPUT + CAP_FLOOR) - INPUT)));
        let waited = now() - began;
        assert!((DOUBT_MAX..DOUBT_MAX + Duration::from_secs(1)).contains(&waited), "{waited:?}");
    }

    /// Others came meanwhile, and stand behind it: for less than it waited for, it does not stand behind them.
    #[tokio::test(start_paused = true)]
    async fn who_waited_in_vain_has_what_is_free_before_who_came_later() {
        let node = alone(6_000);
        let _under_way = node.reserve(1, true).await.unwrap().dispatch();
        let later = async |seconds| {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            node.cap().await
        };

        let (first, second, third) = tokio::join!(later(0), later(5), later(9));

        for cap in [first, second, third] {
            assert_eq!(cap, Ok(Some(6_000 - (INPUT + CAP_FLOOR) - INPUT)));
        }
    }

    /// Nobody waits for what only a node holds that is not heard of; what else there is, is had.
    #[tokio::test(start_paused = true)]
    async fn what_a_dead_node_holds_is_not_waited_for() {
        let (nodes, books) = world(2, &[("6000 tokens", Mode::Hard)]);
        let _died_with_it = nodes[1].reserve(1, true).await.unwrap().dispatch();
        books.lose(1);
        let began = now();

        let cap = nodes[0].cap().await;
        assert_eq!(cap, Ok(Some(6_000 - (INPUT + CAP_FLOOR) - INPUT)));
        let refused = nodes[0].reserve(1, false).await.err();
        let Some(QuotaError::Exceeded(exceeded)) = refused else { panic!("it named its length: {refused:?}") };
        assert_eq!((exceeded.left, exceeded.lost), (6_000, INPUT + CAP_FLOOR));
        assert!(now() - began < Duration::from_secs(2), "{:?}", now() - began);
    }

    /// Short answers to many at once, all over the nodes: nobody is told no while the budget has room for the shortest.
    #[tokio::test(start_paused = true)]
    async fn nobody_is_refused_who_could_do_with_less_while_there_is_less() {
        const LIMIT: u64 = 60_000;
        let nodes = nodes(3, &[(&format!("{LIMIT} tokens"), Mode::Hard)]);
        let spent = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for number in 0..12 {
            let (node, spent) = (nodes[number % 3].clone(), Arc::clone(&spent));
            clients.spawn(async move {
                loop {
                    match node.reserve(1, true).await {
                        Ok(reservation) => {
                            tokio::time::sleep(Duration::from_millis(50 + 7 * number as u64)).await;
                            reservation.dispatch().settle(used(100));
                            spent.fetch_add(INPUT + 100, Ordering::Relaxed);
                        }
                        Err(error) => return (LIMIT - spent.load(Ordering::Relaxed), error),
                    }
                }
            });
        }

        for (left, error) in clients.join_all().await {
            assert!(matches!(error, QuotaError::Exceeded(_)), "{error:?}");
            assert!(left < INPUT + CAP_LEAST + 12 * (INPUT + 100), "{left} left, and told {error:?}");
        }
    }

    /// The ledger is silent, and the longest answer is more than there is on credit.
    #[tokio::test(start_paused = true)]
    async fn on_credit_an_answer_is_capped_at_a_part_of_what_may_be_overspent() {
        let budget = Arc::new(Budget { overdraft: 40_000, ..Budget::clone(&budget(0, "100 tokens", Mode::Hard)) });
        let (books, places) = Books::new(&[100, 100]);
        let (escrow, answers) = books.node(0);
        let held = Now { place: places[0], unit: budget.limit.unit, ends: None };
        escrow.publish([(Arc::clone(&budget.name), held)].into_iter().collect());
        let node = Node { quota: Quota::with(escrow), budgets: vec![budget] };
        answers.store(false, Ordering::Relaxed);

        // Another budget, of which nothing can be had meanwhile.
        let other: Arc<[Demand]> = Arc::new([Demand { place: places[1], unit: Unit::Tokens, amount: 1, overdraft: 0 }]);
        let until = now() + Duration::from_mins(1);
        let unanswered = node.quota.escrow().unwrap().reserve(other, Patience::all(Duration::ZERO), until).await.err();
        assert!(matches!(unanswered, Some(NotReserved::Unanswered { .. })), "{unanswered:?}");

        assert_eq!(node.cap().await, Ok(Some((40_000 - INPUT) / BESIDE)));
    }
}

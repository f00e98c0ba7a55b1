//! How long an answer may become that nobody capped: as long as the model can, unless the budgets have less.
//!
//! No answer sets aside more than a part of what is left, so that others can be written beside it: where the longest one
//! is more than that, the answer is capped. It waits for calls under way to end rather than be capped below [`CAP_FLOOR`];
//! and only where the budgets themselves have less it is capped at what they have.

use std::sync::Arc;
use std::time::Instant;

use cluster::directory::budget::{Budget, Mode, Unit};
use cluster::directory::price::{Price, TokenCounts};
use cluster::ledger::accounts::Place;

use super::escrow::{Escrow, Hold, NotReserved};
use super::held::{Demand, Refused};
use super::{Bill, Bound, QuotaError, dearest, tokens_of, unreserved};

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

/// What an attempt took.
pub(super) struct Rights {
    pub hold: Hold,
    /// In what each part is counted.
    counted: Vec<Counted>,
}

#[derive(Clone, Copy)]
struct Counted {
    unit: Unit,
    assumed: Option<Price>,
}

impl Rights {
    /// An attempt has come to this.
    pub fn settle(self, bill: &Bill, requests: u64) {
        let used = |counted: &Counted| match counted.unit {
            Unit::NanoUsd => {
                let assumed = || {
                    let price = counted.assumed?;
                    Some(if bill.estimated { dearest(&price, bill.tokens) } else { price.cost(bill.tokens) })
                };
                // Without any price nothing was reserved in money.
                bill.cost.or_else(assumed).unwrap_or_default().0
            }
            Unit::Tokens => tokens_of(bill.tokens),
            Unit::Requests => requests,
        };
        self.hold.settle(&self.counted.iter().map(used).collect::<Vec<_>>());
    }
}

/// An attempt that needs rights.
pub(super) struct Asked<'a> {
    pub escrow: &'a Escrow,
    pub budgets: &'a [Arc<Budget>],
    pub bound: Bound,
    pub price: Option<&'a Price>,
    pub until: Instant,
}

impl Asked<'_> {
    /// Of all budgets or of none; with the cap that each answer needs.
    pub async fn take(&self) -> Result<(Rights, Option<u64>), QuotaError> {
        if self.bound.may_cap == 0 {
            return Ok((self.rights(self.bound, false).await?, None));
        }
        if self.has_room().await? {
            match self.rights(self.bound, true).await {
                Err(QuotaError::Exceeded { .. }) => {}
                taken => return Ok((taken?, None)),
            }
        }
        let floor = CAP_FLOOR.min(self.longest());
        if let Some(taken) = self.take_of_what_is_left(floor, |each| floor.max(each / BESIDE)).await {
            return taken;
        }
        match self.rights(self.bound.capped(floor), false).await {
            Err(exceeded @ QuotaError::Exceeded { .. }) => {
                let least = CAP_LEAST.min(floor);
                self.take_of_what_is_left(least, |each| each).await.unwrap_or(Err(exceeded))
            }
            taken => Ok((taken?, Some(floor))),
        }
    }

    /// Whether the longest answers are no more than their part of what is left, as far as anyone has said.
    async fn has_room(&self) -> Result<bool, QuotaError> {
        let amounts = self.amounts(self.bound)?;
        let most = self.escrow.most(&self.places().await?);
        Ok(amounts.iter().zip(most).all(|(amount, most)| most.is_none_or(|most| amount.saturating_mul(BESIDE) <= most)))
    }

    async fn places(&self) -> Result<Vec<Place>, QuotaError> {
        let places = self.escrow.places(self.budgets, self.until).await;
        places.map_err(|error| unreserved(&error, &[], self.budgets))
    }

    /// `None`: less is left than answers of `least` tokens need. `cap`: of the longest answers that there is room for.
    async fn take_of_what_is_left(
        &self,
        least: u64,
        cap: impl Fn(u64) -> u64,
    ) -> Option<Result<(Rights, Option<u64>), QuotaError>> {
        for _ in 0..TRIES {
            let each = match self.affordable().await {
                Ok(each) if each < least => return None,
                Ok(each) => cap(each),
                Err(error) => return Some(Err(error)),
            };
            match self.rights(self.bound.capped(each), true).await {
                Err(QuotaError::Exceeded { .. }) => {}
                taken => return Some(taken.map(|rights| (rights, Some(each)))),
            }
        }
        None
    }

    /// Tokens of one answer where nothing caps it.
    fn longest(&self) -> u64 {
        self.bound.tokens.output / self.bound.may_cap.max(1)
    }

    /// The longest answers that all the budgets seem to have room for.
    async fn affordable(&self) -> Result<u64, QuotaError> {
        let left = self.escrow.left(&self.places().await?);
        let fits = |each: u64| {
            let amounts = self.amounts(self.bound.capped(each))?;
            Ok(amounts.iter().zip(&left).all(|(amount, left)| amount <= left))
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
    fn amounts(&self, bound: Bound) -> Result<Vec<u64>, QuotaError> {
        let amount = |budget: &Arc<Budget>| {
            let tokens = match budget.mode {
                Mode::Hard => bound.tokens,
                Mode::Soft => TokenCounts { output: bound.tokens.output.min(SOFT_OUTPUT), ..bound.tokens },
            };
            match budget.limit.unit {
                Unit::NanoUsd => match self.price.or(budget.assumed.as_ref()) {
                    Some(price) => Ok(dearest(price, tokens).0),
                    None => Err(QuotaError::Unpriced { budget: Arc::clone(&budget.name) }),
                },
                Unit::Tokens => Ok(tokens_of(tokens)),
                Unit::Requests => Ok(1),
            }
        };
        self.budgets.iter().map(amount).collect()
    }

    /// `or_less`: the caller can do with less, so a «no» is not doubted for long.
    async fn rights(&self, bound: Bound, or_less: bool) -> Result<Rights, QuotaError> {
        let Self { escrow, budgets, until, .. } = *self;
        let amounts = self.amounts(bound)?;
        let counted = |budget: &Arc<Budget>| Counted { unit: budget.limit.unit, assumed: budget.assumed };
        loop {
            let places = escrow.places(budgets, until).await.map_err(|error| unreserved(&error, &[], budgets))?;
            let demand = |(place, amount): (&Place, &u64)| Demand { place: *place, amount: *amount };
            let demands: Arc<[Demand]> = places.iter().zip(&amounts).map(demand).collect();
            let reserved = if or_less {
                escrow.reserve_or_less(demands, until).await
            } else {
                escrow.reserve(demands, until).await
            };
            match reserved {
                Ok(hold) => return Ok(Rights { hold, counted: budgets.iter().map(counted).collect() }),
                // Its next window has begun, and is known here as soon as that is applied.
                Err(NotReserved::Refused(Refused::Over { place })) => {
                    escrow.next_after(place, until).await.map_err(|error| unreserved(&error, &places, budgets))?;
                }
                Err(error) => return Err(unreserved(&error, &places, budgets)),
            }
        }
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
    use std::collections::HashMap;
    use std::time::Duration;

    use cluster::directory::budget::Period;
    use tokio::task::JoinSet;

    use super::super::escrow::tests::Books;
    use super::super::{Account, Quota, Reservation};
    use super::*;

    /// What the model writes at most.
    const LONGEST: u64 = 131_072;

    const INPUT: u64 = 100;

    /// Some nodes on a budget of so many tokens.
    fn nodes(limit: u64, count: u64) -> Vec<Quota> {
        let (books, places) = Books::new(&[limit]);
        let node = |number| {
            let (escrow, _answers) = books.node(number);
            escrow.publish(Arc::new(HashMap::from([("b".into(), (places[0], Unit::Tokens))])));
            Quota::with(escrow)
        };
        (0..count).map(node).collect()
    }

    async fn reserve(quota: &Quota, choices: u64, may_cap: bool) -> Result<Reservation, QuotaError> {
        let account = Account { tenant: "acme".into(), provider: "openai".into(), route: "r".into() };
        let budget = Budget {
            name: "b".into(),
            limit: "9 tokens".parse().unwrap(),
            period: Period::Total,
            timezone: None,
            mode: Mode::Hard,
            assumed: None,
        };
        let tokens = TokenCounts { input: INPUT, output: LONGEST * choices, ..TokenCounts::default() };
        let bound = Bound { tokens, may_cap: if may_cap { choices } else { 0 }, ..Bound::default() };
        let until = tokio::time::Instant::now().into_std() + Duration::from_mins(1);
        quota.reserve(&account, &[Arc::new(budget)], bound, None, until).await
    }

    #[tokio::test(start_paused = true)]
    async fn where_there_is_room_for_the_longest_answer_nothing_is_capped() {
        let quotas = nodes(LONGEST * 100, 1);

        let mut held = Vec::new();
        for _ in 0..50 {
            held.push(reserve(&quotas[0], 1, true).await.unwrap());
        }

        assert!(held.iter().all(|reservation| reservation.cap().is_none()));
    }

    /// Another node holds most of it and does not use it: that is no reason to cap.
    #[tokio::test(start_paused = true)]
    async fn what_others_hold_and_do_not_use_is_called_back_rather_than_an_answer_capped() {
        let quotas = nodes(LONGEST * 5, 2);
        let holds = reserve(&quotas[0], 4, false).await.unwrap();
        drop(holds);
        tokio::time::sleep(Duration::from_secs(1)).await;

        assert_eq!(reserve(&quotas[1], 1, true).await.unwrap().cap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_capped_at_a_part_of_what_there_is_room_for() {
        let quotas = nodes(100_000, 1);

        let first = reserve(&quotas[0], 1, true).await.unwrap();
        assert_eq!(first.cap(), Some((100_000 - INPUT) / BESIDE));
        let used = TokenCounts { input: INPUT, output: 79_900, ..TokenCounts::default() };
        assert_eq!(first.dispatch().settle(used).tokens, used);

        assert_eq!(reserve(&quotas[0], 1, true).await.unwrap().cap(), Some((20_000 - INPUT) / BESIDE));
        assert_eq!(reserve(&quotas[0], 4, true).await.unwrap().cap(), Some(CAP_FLOOR), "each of four");
        let refused = reserve(&quotas[0], 1, false).await.err();
        assert!(matches!(refused, Some(QuotaError::Exceeded { .. })), "it named its length: {refused:?}");
    }

    /// A small budget is for more than one at a time.
    #[tokio::test(start_paused = true)]
    async fn answers_that_nobody_capped_are_written_beside_each_other() {
        let quotas = nodes(100_000, 1);

        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(reserve(&quotas[0], 1, true).await.unwrap());
        }

        assert!(held.iter().all(|reservation| reservation.cap().is_some_and(|cap| cap >= CAP_FLOOR)));
    }

    #[tokio::test(start_paused = true)]
    async fn less_than_serves_anybody_is_refused() {
        let quotas = nodes(INPUT + CAP_LEAST, 1);

        assert_eq!(reserve(&quotas[0], 1, true).await.unwrap().cap(), Some(CAP_LEAST));
        let refused = reserve(&nodes(INPUT + CAP_LEAST - 1, 1)[0], 1, true).await.err();
        assert!(matches!(refused, Some(QuotaError::Exceeded { .. })), "{refused:?}");
    }

    /// Calls under way have all of it: rather than with a word or two, an answer waits for what they leave.
    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_for_calls_under_way_rather_than_be_cut_short() {
        let quotas = nodes(6_000, 1);
        let first = reserve(&quotas[0], 1, true).await.unwrap().dispatch();
        let mut second = JoinSet::new();
        let quota = quotas[0].clone();
        second.spawn(async move { reserve(&quota, 1, true).await.map(|reservation| reservation.cap()) });
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(second.try_join_next().is_none());

        first.settle(TokenCounts { input: INPUT, output: 900, ..TokenCounts::default() });

        assert_eq!(second.join_all().await, [Ok(Some(CAP_FLOOR))]);
    }
}

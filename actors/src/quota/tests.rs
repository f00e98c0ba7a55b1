use super::*;
use ::metrics::{Counter, CounterFn, GaugeFn, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString};
use cluster::ledger::money::PicoUsd;
use futures_util::FutureExt;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::BTreeMap;

const BOUND: Bound = Bound {
    tokens: TokenCounts {
        input: 1_000,
        cached_input: 0,
        cache_write: 0,
        output: 2_000,
        reasoning: 0,
        images: 1,
        calls: 1,
    },
    hidden_reasoning: false,
    may_cap: 0,
};

/// A nano-dollar for an input token, ten for an output token, and a thousand for the call.
fn price() -> Arc<Price> {
    let nano = |nano: u64| PicoUsd(nano * 1_000);
    Arc::new(Price {
        input: nano(1),
        cached_input: nano(1),
        cache_write: nano(1),
        output: nano(10),
        reasoning: nano(10),
        image: PicoUsd(0),
        call: nano(1_000),
    })
}

fn account() -> Account {
    Account { tenant: "acme".into(), provider: "openai".into(), route: "support".into() }
}

/// Without budgets nothing is waited for.
fn reserved(quota: &Quota, bound: Bound, price: Option<Arc<Price>>) -> Reservation {
    let payer = Payer { account: &account(), budgets: &[], end_user: None };
    quota.reserve(payer, bound, price, Waits::new(cluster::clock::now())).now_or_never().unwrap().unwrap()
}

fn charge(bound: Bound) -> Charge {
    reserved(&Quota::new(), bound, Some(price())).dispatch()
}

/// Sums every counter by its name and what distinguishes it.
#[derive(Clone, Default)]
struct Sums(Arc<Mutex<BTreeMap<String, u64>>>);

struct Sum(Sums, String);

impl CounterFn for Sum {
    fn increment(&self, value: u64) {
        *self.0.0.lock().entry(self.1.clone()).or_default() += value;
    }

    fn absolute(&self, value: u64) {
        self.0.0.lock().insert(self.1.clone(), value);
    }
}

impl Recorder for Sums {
    fn describe_counter(&self, _key: KeyName, _unit: Option<::metrics::Unit>, _description: SharedString) {}
    fn describe_gauge(&self, _key: KeyName, _unit: Option<::metrics::Unit>, _description: SharedString) {}
    fn describe_histogram(&self, _key: KeyName, _unit: Option<::metrics::Unit>, _description: SharedString) {}

    fn register_counter(&self, key: &Key, _metadata: &Metadata<'_>) -> Counter {
        let labels: Vec<_> = key.labels().map(::metrics::Label::value).collect();
        Counter::from_arc(Arc::new(Sum(self.clone(), format!("{} {}", key.name(), labels.join(" ")))))
    }

    fn register_gauge(&self, _key: &Key, _metadata: &Metadata<'_>) -> ::metrics::Gauge {
        ::metrics::Gauge::from_arc(Arc::new(Nothing))
    }

    fn register_histogram(&self, _key: &Key, _metadata: &Metadata<'_>) -> ::metrics::Histogram {
        ::metrics::Histogram::from_arc(Arc::new(Nothing))
    }
}

struct Nothing;

impl GaugeFn for Nothing {
    fn increment(&self, _value: f64) {}
    fn decrement(&self, _value: f64) {}
    fn set(&self, _value: f64) {}
}

impl HistogramFn for Nothing {
    fn record(&self, _value: f64) {}
}

/// What the counters say after `work`.
fn counted(work: impl FnOnce()) -> BTreeMap<String, u64> {
    let sums = Sums::default();
    ::metrics::with_local_recorder(&sums, work);
    let counted = sums.0.lock().clone();
    counted.into_iter().filter(|(_, sum)| *sum > 0).collect()
}

fn expected(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
    pairs.iter().map(|(name, sum)| ((*name).to_owned(), *sum)).collect()
}

#[test]
fn usage_seen_is_what_is_charged() {
    let used = TokenCounts { input: 600, output: 50, ..TokenCounts::default() };

    let bill = charge(BOUND).settle(used);

    let tokens = TokenCounts { images: 1, calls: 1, ..used };
    assert_eq!(bill, Bill { cost: Some(NanoUsd(600 + 500 + 1_000)), tokens, estimated: false });
}

#[test]
fn nothing_written_costs_nothing() {
    let bill = charge(BOUND).void();

    assert_eq!(bill, Bill { cost: Some(NanoUsd(0)), tokens: TokenCounts::default(), estimated: false });
}

#[test]
fn a_cut_costs_the_input_bound_what_was_seen_and_the_slack() {
    let bill = charge(BOUND).cut(100);

    let output = 100 + CANCEL_SLACK;
    assert_eq!(bill.cost, Some(NanoUsd(1_000 + output * 10 + 1_000)));
    assert_eq!((bill.tokens.input, bill.tokens.output, bill.estimated), (1_000, output, true));
}

#[test]
fn a_cut_never_costs_more_than_the_bound() {
    assert_eq!(charge(BOUND).cut(1_999).cost, Some(NanoUsd(1_000 + 20_000 + 1_000)));
    assert_eq!(charge(BOUND).cut(u64::MAX).cost, Some(NanoUsd(1_000 + 20_000 + 1_000)));
}

#[test]
fn a_cut_with_hidden_reasoning_costs_the_bound() {
    let bill = charge(Bound { hidden_reasoning: true, ..BOUND }).cut(1);

    assert_eq!(bill.cost, Some(NanoUsd(1_000 + 20_000 + 1_000)));
}

#[test]
fn without_a_price_tokens_are_metered_and_the_cost_is_unknown() {
    let used = TokenCounts { input: 5, output: 6, ..TokenCounts::default() };

    let bill = reserved(&Quota::new(), BOUND, None).dispatch().settle(used);

    assert_eq!((bill.cost, bill.tokens.input, bill.tokens.output), (None, 5, 6));
}

#[test]
fn dropped_before_dispatch_is_released() {
    let counted = counted(|| drop(reserved(&Quota::new(), BOUND, Some(price()))));

    assert_eq!(counted, expected(&[("lea_reservations_released_total ", 1)]));
}

#[test]
fn dropped_after_dispatch_costs_the_full_bound() {
    let counted = counted(|| drop(charge(BOUND)));

    assert_eq!(
        counted,
        expected(&[
            ("lea_charges_total acme openai support estimated", 1),
            ("lea_cost_nanousd_total acme openai support estimated", 1_000 + 20_000 + 1_000),
            ("lea_tokens_total acme openai support estimated input", 1_000),
            ("lea_tokens_total acme openai support estimated output", 2_000),
        ])
    );
}

#[test]
fn a_charge_is_counted_once() {
    let used = TokenCounts { input: 1, output: 2, ..TokenCounts::default() };

    let counted = counted(|| {
        let bill = charge(BOUND).settle(used);
        assert_eq!(bill.cost, Some(NanoUsd(1_021)));
    });

    assert_eq!(
        counted,
        expected(&[
            ("lea_charges_total acme openai support exact", 1),
            ("lea_cost_nanousd_total acme openai support exact", 1_021),
            ("lea_tokens_total acme openai support exact input", 1),
            ("lea_tokens_total acme openai support exact output", 2),
        ])
    );
}

/// A provider is paid what it bills; that the bound was too low is our defect, and seen.
#[test]
fn usage_beyond_the_bound_is_charged_and_counted() {
    let used = TokenCounts { input: 1_000, output: 2_001, ..TokenCounts::default() };

    let counted = counted(|| assert_eq!(charge(BOUND).settle(used).cost, Some(NanoUsd(1_000 + 20_010 + 1_000))));

    assert_eq!(counted.get("lea_bound_exceeded_total "), Some(&1));
    let unpriced = self::counted(|| {
        let reservation = reserved(&Quota::new(), BOUND, None);
        assert_eq!(reservation.dispatch().settle(used).cost, None);
    });
    assert_eq!(unpriced.get("lea_bound_exceeded_total "), Some(&1), "a budget may count tokens");
}

#[test]
fn every_attempt_has_its_own_number() {
    let quota = Quota::new();
    let seqs: Vec<_> = (0..3).map(|_| reserved(&quota, BOUND, None).seq()).collect();

    assert_eq!(seqs, [0, 1, 2]);
}

prop_compose! {
    fn any_price()(pico in proptest::array::uniform7(0..1_000_000_000u64)) -> Price {
        let [input, cached_input, cache_write, output, reasoning, image, call] = pico.map(PicoUsd);
        Price { input, cached_input, cache_write, output, reasoning, image, call }
    }
}

proptest! {
    /// However an attempt ends that stayed within its bound, it costs at least what was used and at most the bound,
    /// whatever part of it turns out to be cached, written to a cache, or reasoning.
    #[test]
    fn between_the_truth_and_the_bound(
        price in any_price(),
        input in 0..10_000u64, output in 0..10_000u64, images in 0..4u64,
        used in proptest::array::uniform5(0.0..=1.0f64),
    ) {
        let part = |whole: u64, share: f64| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "small counts")]
            let part = (whole as f64 * share) as u64;
            part.min(whole)
        };
        let bound = Bound { tokens: TokenCounts { input, output, images, calls: 1, ..TokenCounts::default() }, ..Bound::default() };
        let (seen_input, seen_output) = (part(input, used[0]), part(output, used[1]));
        let cached_input = part(seen_input, used[2]);
        let cache_write = part(seen_input - cached_input, used[3]);
        let truth = TokenCounts { input: seen_input, cached_input, cache_write, output: seen_output, reasoning: part(seen_output, used[4]), images, calls: 1 };
        let open = |price: Price| reserved(&Quota::new(), bound, Some(Arc::new(price))).dispatch();

        let exact = open(price).settle(truth).cost;
        let cut = open(price).cut(seen_output).cost;
        let most = Some(dearest(&price, bound.tokens));

        prop_assert_eq!(exact, Some(price.cost(truth)));
        prop_assert!(exact <= cut, "{exact:?} > {cut:?}");
        prop_assert!(cut <= most, "{cut:?} > {most:?}");
    }
}

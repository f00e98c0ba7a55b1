//! What tokens cost, and what a call comes to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problems::Problems;
use crate::ledger::money::{AmountError, AmountText, NanoUsd, PicoUsd, parse_decimal};

/// What a model costs, under `provider/model`, `model`, or a name that ends in `*`. Wins over the table that comes with
/// the program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PriceSpec {
    /// US dollars for a million input tokens. Needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<AmountText>,

    /// For a million input tokens read from the provider's prompt cache. Defaults to `input`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<AmountText>,

    /// For a million input tokens written to the provider's prompt cache. Defaults to `input`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<AmountText>,

    /// For a million output tokens. Needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<AmountText>,

    /// For a million output tokens spent on reasoning. Defaults to `output`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<AmountText>,

    /// For one image in the request, besides its tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<AmountText>,

    /// For one call, besides its tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call: Option<AmountText>,
}

/// A dollar a million tokens has this many digits after the point in whole pico-dollars a token.
const PER_MILLION_DIGITS: u32 = 6;
const PICO_DIGITS: u32 = 12;

/// Dollars a million tokens, as pico-dollars a token. Exact, or refused.
fn per_token(amount: &AmountText) -> Result<PicoUsd, AmountError> {
    parse_decimal(&amount.0, PER_MILLION_DIGITS).map(PicoUsd)
}

fn per_piece(amount: &AmountText) -> Result<PicoUsd, AmountError> {
    parse_decimal(&amount.0, PICO_DIGITS).map(PicoUsd)
}

impl PriceSpec {
    pub fn check(&self, problems: &mut Problems) {
        self.read(problems);
    }

    /// The price, and every problem on the way to it. What cannot be read counts as 0, and is a problem.
    pub(super) fn read(&self, problems: &mut Problems) -> Price {
        let mut amount =
            |field: &str, written: &Option<AmountText>, read: fn(&AmountText) -> Result<PicoUsd, AmountError>| {
                let amount = written.as_ref()?;
                match read(amount) {
                    Ok(amount) => Some(amount),
                    Err(wrong) => {
                        problems.add(field, wrong.to_string());
                        Some(PicoUsd::ZERO)
                    }
                }
            };
        let input = amount("input", &self.input, per_token);
        let cached_input = amount("cached_input", &self.cached_input, per_token);
        let cache_write = amount("cache_write", &self.cache_write, per_token);
        let output = amount("output", &self.output, per_token);
        let reasoning = amount("reasoning", &self.reasoning, per_token);
        let image = amount("image", &self.image, per_piece);
        let call = amount("call", &self.call, per_piece);
        for (field, value) in [("input", input), ("output", output)] {
            if value.is_none() {
                problems.add(field, "is missing; write `$0` where it costs nothing");
            }
        }
        let (input, output) = (input.unwrap_or_default(), output.unwrap_or_default());
        Price {
            input,
            cached_input: cached_input.unwrap_or(input),
            cache_write: cache_write.unwrap_or(input),
            output,
            reasoning: reasoning.unwrap_or(output),
            image: image.unwrap_or_default(),
            call: call.unwrap_or_default(),
        }
    }
}

/// What one model costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Price {
    /// A token, as are the next four.
    pub input: PicoUsd,
    pub cached_input: PicoUsd,
    pub cache_write: PicoUsd,
    pub output: PicoUsd,
    pub reasoning: PicoUsd,
    /// An image in the request.
    pub image: PicoUsd,
    pub call: PicoUsd,
}

/// What a call used, or may use at most. `cached_input` and `cache_write` are parts of `input`, `reasoning` of `output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenCounts {
    pub input: u64,
    pub cached_input: u64,
    pub cache_write: u64,
    pub output: u64,
    pub reasoning: u64,
    pub images: u64,
    pub calls: u64,
}

impl Price {
    /// Summed exactly and rounded up once; an amount too large to hold is the largest.
    ///
    /// Parts that exceed their whole are charged in full: a provider that counts oddly is never billed as less.
    pub fn cost(&self, tokens: TokenCounts) -> NanoUsd {
        let fresh_input = tokens.input.saturating_sub(tokens.cached_input.saturating_add(tokens.cache_write));
        let plain_output = tokens.output.saturating_sub(tokens.reasoning);
        let pico = [
            (self.input, fresh_input),
            (self.cached_input, tokens.cached_input),
            (self.cache_write, tokens.cache_write),
            (self.output, plain_output),
            (self.reasoning, tokens.reasoning),
            (self.image, tokens.images),
            (self.call, tokens.calls),
        ]
        .into_iter()
        .map(|(price, count)| u128::from(price.0) * u128::from(count))
        .fold(0, u128::saturating_add);
        NanoUsd(u64::try_from(pico.div_ceil(1_000)).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn price(spec: &str) -> Price {
        let mut problems = Problems::new();
        let price = serde_saphyr::from_str::<PriceSpec>(spec).unwrap().read(&mut problems);
        assert!(problems.is_empty(), "{problems}");
        price
    }

    #[test]
    fn dollars_a_million_become_pico_dollars_a_token_exactly() {
        let price = price("{ input: $0.15, cached_input: 0.075, output: $0.60, call: $0.01 }");
        assert_eq!(price.input, PicoUsd(150_000));
        assert_eq!(price.cached_input, PicoUsd(75_000));
        assert_eq!(price.cache_write, price.input);
        assert_eq!(price.output, PicoUsd(600_000));
        assert_eq!(price.reasoning, price.output);
        assert_eq!(price.call, PicoUsd(10_000_000_000));
    }

    #[test]
    fn a_call_costs_its_parts() {
        let price = price("{ input: $2.50, cached_input: $1.25, output: $10 }");
        let tokens =
            TokenCounts { input: 1_000, cached_input: 400, output: 200, reasoning: 150, ..TokenCounts::default() };
        assert_eq!(price.cost(tokens).to_string(), "$0.004");
    }

    #[test]
    fn every_problem_of_a_price_is_told() {
        let spec: PriceSpec =
            serde_saphyr::from_str("{ input: lots, cached_input: -1, image: $0.0000000000001 }").unwrap();
        let mut problems = Problems::new();
        spec.check(&mut problems);
        let paths: Vec<_> = problems.iter().map(|problem| problem.path.join(".")).collect();
        assert_eq!(paths, ["input", "cached_input", "image", "output"], "{problems}");
    }

    fn prices() -> impl Strategy<Value = Price> {
        prop::array::uniform7(any::<u64>()).prop_map(
            |[input, cached_input, cache_write, output, reasoning, image, call]| {
                let [input, cached_input, cache_write, output, reasoning, image, call] =
                    [input, cached_input, cache_write, output, reasoning, image, call].map(|pico| PicoUsd(pico >> 24));
                Price { input, cached_input, cache_write, output, reasoning, image, call }
            },
        )
    }

    /// Parts within their wholes, as providers report them.
    fn counts() -> impl Strategy<Value = TokenCounts> {
        prop::array::uniform7(0..1_000_000u64).prop_map(
            |[fresh, cached_input, cache_write, plain, reasoning, images, calls]| TokenCounts {
                input: fresh + cached_input + cache_write,
                cached_input,
                cache_write,
                output: plain + reasoning,
                reasoning,
                images,
                calls,
            },
        )
    }

    fn sum(a: TokenCounts, b: TokenCounts) -> TokenCounts {
        TokenCounts {
            input: a.input + b.input,
            cached_input: a.cached_input + b.cached_input,
            cache_write: a.cache_write + b.cache_write,
            output: a.output + b.output,
            reasoning: a.reasoning + b.reasoning,
            images: a.images + b.images,
            calls: a.calls + b.calls,
        }
    }

    proptest! {
        /// More is never cheaper, and two calls together cost what they cost apart but for one rounding.
        #[test]
        fn cost_grows_with_what_was_used(price in prices(), a in counts(), b in counts()) {
            let (first, second, both) = (price.cost(a), price.cost(b), price.cost(sum(a, b)));
            prop_assert!(both >= first && both >= second);
            prop_assert!(both <= first + second);
            prop_assert!(both.0.saturating_add(1) >= (first + second).0);
        }

        /// The cost is the exact sum, rounded up by less than one nano-dollar.
        #[test]
        fn cost_is_never_rounded_down(price in prices(), tokens in counts()) {
            let exact = u128::from(price.input.0) * u128::from(tokens.input - tokens.cached_input - tokens.cache_write)
                + u128::from(price.cached_input.0) * u128::from(tokens.cached_input)
                + u128::from(price.cache_write.0) * u128::from(tokens.cache_write)
                + u128::from(price.output.0) * u128::from(tokens.output - tokens.reasoning)
                + u128::from(price.reasoning.0) * u128::from(tokens.reasoning)
                + u128::from(price.image.0) * u128::from(tokens.images)
                + u128::from(price.call.0) * u128::from(tokens.calls);
            let charged = u128::from(price.cost(tokens).0) * 1_000;
            prop_assert!(charged >= exact.min(u128::from(u64::MAX) * 1_000));
            prop_assert!(charged < exact + 1_000);
        }

        /// Whatever a provider reports, the sum neither overflows nor wraps.
        #[test]
        fn any_counts_have_a_cost(pico: u64, count: u64) {
            let [input, cached_input, cache_write, output, reasoning, image, call] = [PicoUsd(pico); 7];
            let price = Price { input, cached_input, cache_write, output, reasoning, image, call };
            let tokens = TokenCounts {
                input: count, cached_input: count, cache_write: count, output: count, reasoning: count, images: count, calls: count,
            };
            let one = u64::try_from((u128::from(pico) * u128::from(count)).div_ceil(1_000)).unwrap_or(u64::MAX);
            prop_assert!(price.cost(tokens) >= NanoUsd(one));
        }
    }
}

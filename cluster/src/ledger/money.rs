//! Amounts of money as integers. No float touches money.

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Billionths of a US dollar: what calls cost and budgets hold. The largest amount is some 18 billion dollars.
///
/// Sums saturate: an amount too large to write stays the largest, it never wraps round to a small one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NanoUsd(pub u64);

/// Trillionths of a US dollar: what one token costs. The largest amount is some 18 million dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PicoUsd(pub u64);

const NANO_DIGITS: u32 = 9;
const PICO_DIGITS: u32 = 12;

/// Why a text is not an amount of money.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    #[error(
        "`{text}` is not an amount of money; wanted something like `$25` or `$0.002`, without a comma or an exponent"
    )]
    Malformed { text: String },
    #[error("`{text}` is negative; an amount of money is not")]
    Negative { text: String },
    #[error("`{text}` has more than {digits_max} digits after the point, and no amount is rounded silently")]
    TooFine { text: String, digits_max: u32 },
    #[error("`{text}` is more than can be held")]
    TooLarge { text: String },
}

/// A decimal text, with or without `$` or `USD`, as an integer of 10^-`digits`.
pub(crate) fn parse_decimal(text: &str, digits: u32) -> Result<u64, AmountError> {
    let malformed = || AmountError::Malformed { text: text.to_owned() };
    let trimmed = text.trim();
    let bare = trimmed.strip_suffix("USD").map_or(trimmed, str::trim_end);
    let bare = bare.strip_prefix('$').unwrap_or(bare);
    if trimmed.starts_with('-') || bare.starts_with('-') {
        return Err(AmountError::Negative { text: text.to_owned() });
    }
    let (whole, fraction) = bare.split_once('.').unwrap_or((bare, ""));
    let only_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !only_digits(whole) || !only_digits(fraction) || bare.ends_with('.') {
        return Err(malformed());
    }
    let fraction = fraction.trim_end_matches('0');
    let missing = usize::try_from(digits)
        .ok()
        .and_then(|digits| digits.checked_sub(fraction.len()))
        .ok_or_else(|| AmountError::TooFine { text: text.to_owned(), digits_max: digits })?;
    let zeros = std::iter::repeat_n(b'0', missing);
    whole
        .bytes()
        .chain(fraction.bytes())
        .chain(zeros)
        .try_fold(0u64, |sum, digit| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
        .ok_or_else(|| AmountError::TooLarge { text: text.to_owned() })
}

/// `$` and a decimal without trailing zeros.
fn write_decimal(f: &mut fmt::Formatter<'_>, amount: u64, digits: u32) -> fmt::Result {
    let unit = 10u64.pow(digits);
    let (whole, fraction) = (amount / unit, amount % unit);
    if fraction == 0 {
        return write!(f, "${whole}");
    }
    let width = usize::try_from(digits).unwrap_or_default();
    let padded = format!("{fraction:0width$}");
    write!(f, "${whole}.{}", padded.trim_end_matches('0'))
}

macro_rules! amount {
    ($name:ident, $digits:expr) => {
        impl $name {
            pub const ZERO: Self = Self(0);
            pub const MAX: Self = Self(u64::MAX);

            pub const fn is_zero(self) -> bool {
                self.0 == 0
            }

            #[must_use]
            pub const fn saturating_mul(self, times: u64) -> Self {
                Self(self.0.saturating_mul(times))
            }
        }

        /// Saturates.
        impl Add for $name {
            type Output = Self;

            fn add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        /// Saturates.
        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }

        /// Stops at zero.
        impl Sub for $name {
            type Output = Self;

            fn sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
        }

        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
                amounts.fold(Self::ZERO, Add::add)
            }
        }

        impl Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_decimal(f, self.0, $digits)
            }
        }

        impl FromStr for $name {
            type Err = AmountError;

            fn from_str(text: &str) -> Result<Self, AmountError> {
                parse_decimal(text, $digits).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = AmountText::deserialize(deserializer)?;
                text.0.parse().map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                amount_schema()
            }
        }
    };
}

amount!(NanoUsd, NANO_DIGITS);
amount!(PicoUsd, PICO_DIGITS);

impl From<NanoUsd> for PicoUsd {
    /// Saturates.
    fn from(amount: NanoUsd) -> Self {
        Self(amount.0.saturating_mul(1_000))
    }
}

impl PicoUsd {
    /// To the next whole nano-dollar: nobody is charged less than the sum.
    pub const fn rounded_up(self) -> NanoUsd {
        NanoUsd(self.0.div_ceil(1_000))
    }
}

/// An amount of money as it was written, not yet understood; so that `check` can tell what is wrong with all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmountText(pub String);

impl Serialize for AmountText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for AmountText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AmountVisitor)
    }
}

impl JsonSchema for AmountText {
    fn schema_name() -> Cow<'static, str> {
        "Amount".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        amount_schema()
    }
}

fn amount_schema() -> Schema {
    json_schema!({
        "type": ["string", "number"],
        "description": "US dollars, such as `$25` or `$0.002`.",
    })
}

struct AmountVisitor;

impl Visitor<'_> for AmountVisitor {
    type Value = AmountText;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an amount of money such as `$25` or `$0.002`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<AmountText, E> {
        Ok(AmountText(text.to_owned()))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<AmountText, E> {
        Ok(AmountText(number.to_string()))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<AmountText, E> {
        Ok(AmountText(number.to_string()))
    }

    /// A YAML number reads as the shortest decimal that means it: the one that was written.
    fn visit_f64<E: de::Error>(self, number: f64) -> Result<AmountText, E> {
        Ok(AmountText(number.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_read_as_people_write_them() {
        assert_eq!("$25".parse(), Ok(NanoUsd(25_000_000_000)));
        assert_eq!("25".parse(), Ok(NanoUsd(25_000_000_000)));
        assert_eq!("25 USD".parse(), Ok(NanoUsd(25_000_000_000)));
        assert_eq!("$0.002".parse(), Ok(NanoUsd(2_000_000)));
        assert_eq!("$0.1500000000000".parse(), Ok(NanoUsd(150_000_000)));
        assert_eq!("$0.000000000001".parse(), Ok(PicoUsd(1)));
    }

    #[test]
    fn what_is_no_amount_is_refused_with_its_reason() {
        for text in ["", "$", ".", "1.", ".5", "1,000", "1e3", "$$1", "twelve", "0x10", "NaN", "1.2.3", "+1", "€5"] {
            let refused = text.parse::<NanoUsd>();
            assert!(matches!(refused, Err(AmountError::Malformed { .. })), "{text}: {refused:?}");
        }
        assert!(matches!("-$1".parse::<NanoUsd>(), Err(AmountError::Negative { .. })));
        assert!(matches!("$0.0000000001".parse::<NanoUsd>(), Err(AmountError::TooFine { digits_max: 9, .. })));
        assert!(matches!("$18446744074".parse::<NanoUsd>(), Err(AmountError::TooLarge { .. })));
    }

    #[test]
    fn yaml_numbers_and_strings_are_both_amounts() {
        for text in ["0.15", "\"0.15\"", "$0.15"] {
            assert_eq!(serde_saphyr::from_str::<NanoUsd>(text).unwrap(), NanoUsd(150_000_000), "{text}");
        }
        assert_eq!(serde_saphyr::from_str::<NanoUsd>("3").unwrap(), NanoUsd(3_000_000_000));
    }

    #[test]
    fn display_is_trimmed() {
        assert_eq!(NanoUsd(633_000).to_string(), "$0.000633");
        assert_eq!(NanoUsd(25_000_000_000).to_string(), "$25");
        assert_eq!(NanoUsd::ZERO.to_string(), "$0");
        assert_eq!(NanoUsd::MAX.to_string(), "$18446744073.709551615");
        assert_eq!(PicoUsd(1).to_string(), "$0.000000000001");
    }

    proptest! {
        /// What is displayed, serialised and parsed again is the same amount, to the last unit.
        #[test]
        fn display_and_parse_round_trip(nano: u64, pico: u64) {
            prop_assert_eq!(NanoUsd(nano).to_string().parse::<NanoUsd>(), Ok(NanoUsd(nano)));
            prop_assert_eq!(PicoUsd(pico).to_string().parse::<PicoUsd>(), Ok(PicoUsd(pico)));
            let json = serde_json::to_string(&NanoUsd(nano)).unwrap();
            prop_assert_eq!(serde_json::from_str::<NanoUsd>(&json).unwrap(), NanoUsd(nano));
        }

        /// Any text is either an amount or an error, never a panic.
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = text.parse::<NanoUsd>();
        }

        /// Rounding up never charges less than the sum, nor a whole unit more.
        #[test]
        fn rounding_up_never_loses(pico: u64) {
            let nano = u128::from(PicoUsd(pico).rounded_up().0);
            prop_assert!(nano * 1_000 >= u128::from(pico));
            prop_assert!(nano * 1_000 < u128::from(pico) + 1_000);
        }

        #[test]
        fn sums_saturate(a: u64, b: u64) {
            prop_assert_eq!((NanoUsd(a) + NanoUsd(b)).0, a.saturating_add(b));
            prop_assert_eq!((NanoUsd(a) - NanoUsd(b)).0, a.saturating_sub(b));
        }
    }
}

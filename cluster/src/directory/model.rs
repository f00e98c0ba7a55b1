//! What is known about models besides their prices.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problems::Problems;

/// What a model can do, under `provider/model`, `model`, or a name that ends in `*`.
///
/// What is not said here is taken from the table that comes with the program, where that knows the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSpec {
    /// Tokens that input and output may have together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<u64>,

    /// Tokens that one answer may have. Bounds what a request without its own cap may cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_max: Option<u64>,

    /// Whether the provider bills reasoning that it does not show. A call cut short is then charged at its full bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_reasoning: Option<bool>,

    /// Names of `budgets` that all calls of the model must fit in. At most 8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<String>,
}

impl ModelSpec {
    pub fn check(&self, problems: &mut Problems) {
        for (field, value) in [("context", self.context), ("output_max", self.output_max)] {
            if value == Some(0) {
                problems.add(field, "is 0; leave it out where it is not known");
            }
        }
    }
}

/// What is known about one model of one provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelFacts {
    pub context: Option<u64>,
    pub output_max: Option<u64>,
    pub hidden_reasoning: bool,
}

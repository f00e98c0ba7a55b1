//! Whether a request may be sent on at all. Today: whether its key may use the model.

use cluster::directory::pattern::ModelFilter;

/// `model` as the client wrote it.
pub fn check(filter: &ModelFilter, model: &str) -> Result<Allowed, GuardError> {
    if filter.allows(model) { Ok(Allowed(())) } else { Err(GuardError::ModelNotAllowed { model: model.to_owned() }) }
}

/// The receipt of a request that passed.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Allowed(());

/// Why a request goes no further. The client's fault; the same request will be refused again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    #[error("this key may not use the model `{model}`")]
    ModelNotAllowed { model: String },
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::directory::pattern::Pattern;

    #[test]
    fn a_key_uses_what_its_patterns_name_and_nothing_else() {
        let patterns = ["support", "openai/*"].map(|text| Pattern::parse(text).expect("a pattern"));
        let filter = ModelFilter::new(patterns);

        assert!(check(&filter, "support").is_ok());
        assert!(check(&filter, "openai/gpt-4o").is_ok());
        for model in ["support2", "anthropic/claude", ""] {
            let refused = GuardError::ModelNotAllowed { model: model.to_owned() };
            assert_eq!(check(&filter, model).err(), Some(refused));
        }
    }

    #[test]
    fn a_key_without_patterns_uses_all() {
        assert!(check(&ModelFilter::all(), "anything").is_ok());
    }
}

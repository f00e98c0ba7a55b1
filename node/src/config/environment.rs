//! `${NAME}` in the values of the file. The only place that reads the process's environment.

/// What a variable holds, if it is set. A function, so that tests need not change the process.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Reads the process's own environment. A value that is not UTF-8 counts as not set.
#[expect(clippy::disallowed_methods, reason = "this is where the environment enters")]
pub fn process(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A text with its variables filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    pub text: String,
    /// Name and value of each variable used, so that a message can be kept from repeating a value.
    pub used: Vec<(String, String)>,
}

/// Why a text cannot be filled in. Never holds a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    #[error("environment variable `{name}` is not set; set it, or write `${{{name}:-default}}`")]
    Missing { name: String },

    #[error("`${{` is not closed; write `${{NAME}}`, or `$$` for a dollar sign")]
    Unclosed,

    #[error("`${{{name}}}` does not name an environment variable; write letters, digits and `_`")]
    Name { name: String },
}

/// Fills in `${NAME}` and `${NAME:-default}` (used when the variable is unset or empty); `$$` is a dollar sign. A `$`
/// before anything else stands for itself, so that `$25` is an amount. A value is not looked at again.
pub fn expand(text: &str, lookup: Lookup<'_>) -> Result<Expanded, Vec<ExpandError>> {
    let mut expanded = Expanded { text: String::with_capacity(text.len()), used: Vec::new() };
    let mut errors = Vec::new();
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        expanded.text.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        rest = if let Some(after) = after.strip_prefix('$') {
            expanded.text.push('$');
            after
        } else if let Some(inner) = after.strip_prefix('{') {
            let Some((reference, after)) = inner.split_once('}') else {
                errors.push(ExpandError::Unclosed);
                break;
            };
            match value_of(reference, lookup) {
                Ok((name, value)) => {
                    expanded.text.push_str(&value);
                    expanded.used.push((name, value));
                }
                Err(error) => errors.push(error),
            }
            after
        } else {
            expanded.text.push('$');
            after
        };
    }
    expanded.text.push_str(rest);
    if errors.is_empty() { Ok(expanded) } else { Err(errors) }
}

fn value_of(reference: &str, lookup: Lookup<'_>) -> Result<(String, String), ExpandError> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts_well || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(ExpandError::Name { name: name.to_owned() });
    }
    match (lookup(name), default) {
        (Some(value), Some(default)) if value.is_empty() => Ok((name.to_owned(), default.to_owned())),
        (Some(value), _) => Ok((name.to_owned(), value)),
        (None, Some(default)) => Ok((name.to_owned(), default.to_owned())),
        (None, None) => Err(ExpandError::Missing { name: name.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "PORT" => Some("8080".to_owned()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${PORT}".to_owned()),
            _ => None,
        }
    }

    fn text(of: &str) -> String {
        expand(of, &lookup).unwrap().text
    }

    #[test]
    fn variables_defaults_and_dollar_signs() {
        assert_eq!(text("0.0.0.0:${PORT}"), "0.0.0.0:8080");
        assert_eq!(text("${PORT:-1}-${ABSENT:-2}-${EMPTY:-3}-${EMPTY}"), "8080-2-3-");
        assert_eq!(text("${ABSENT:-}"), "");
        assert_eq!(text("$25 and $$5 and $${PORT} and $"), "$25 and $5 and ${PORT} and $");
    }

    #[test]
    fn a_value_is_not_expanded_again() {
        assert_eq!(text("${NESTED}"), "${PORT}");
    }

    #[test]
    fn every_mistake_is_told() {
        let errors = expand("${ABSENT} ${not a name} ${OTHER} ${PORT", &lookup).unwrap_err();

        assert_eq!(
            errors,
            [
                ExpandError::Missing { name: "ABSENT".to_owned() },
                ExpandError::Name { name: "not a name".to_owned() },
                ExpandError::Missing { name: "OTHER".to_owned() },
                ExpandError::Unclosed,
            ]
        );
        assert_eq!(
            errors[0].to_string(),
            "environment variable `ABSENT` is not set; set it, or write `${ABSENT:-default}`"
        );
    }
}

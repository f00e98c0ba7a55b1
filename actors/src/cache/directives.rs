//! What the caller says about caching (RFC 9111, request directives). A caller may only make it stricter.

use std::time::Duration;

use http::HeaderMap;
use http::header::CACHE_CONTROL;

/// The request's `cache-control`, as far as it means something to a cache of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Directives {
    /// Do not answer from the cache; the fresh answer may be stored.
    pub no_cache: bool,
    /// Do not store the answer, nor share the call.
    pub no_store: bool,
    /// Answer from the cache or not at all.
    pub only_if_cached: bool,
    /// No answer older than this.
    pub max_age: Option<Duration>,
}

impl Directives {
    /// Unknown directives are ignored, as the RFC asks; a `max-age` that is no number counts as 0.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for value in headers.get_all(CACHE_CONTROL) {
            let Ok(text) = value.to_str() else { continue };
            for directive in text.split(',').map(str::trim) {
                let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
                match name.trim().to_ascii_lowercase().as_str() {
                    "no-cache" => found.no_cache = true,
                    "no-store" => found.no_store = true,
                    "only-if-cached" => found.only_if_cached = true,
                    "max-age" => {
                        let seconds = argument.trim().trim_matches('"').parse().unwrap_or(0);
                        let age = Duration::from_secs(seconds);
                        found.max_age = Some(found.max_age.map_or(age, |earlier| earlier.min(age)));
                    }
                    _ => {}
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&'static str]) -> Directives {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CACHE_CONTROL, http::HeaderValue::from_static(value));
        }
        Directives::of(&headers)
    }

    #[test]
    fn directives_of_all_headers_count() {
        let found = of(&["no-cache, max-age=60", "No-Store, max-age=\"5\", immutable"]);

        assert!(found.no_cache && found.no_store && !found.only_if_cached);
        assert_eq!(found.max_age, Some(Duration::from_secs(5)));
    }

    #[test]
    fn a_max_age_that_is_no_number_is_the_strictest() {
        assert_eq!(of(&["max-age=soon"]).max_age, Some(Duration::ZERO));
        assert_eq!(of(&["max-age=-1"]).max_age, Some(Duration::ZERO));
    }
}

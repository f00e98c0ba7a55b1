//! Which models the configured providers have, what they cost and what they can do.
//!
//! Three sources, the first that knows wins: what the file says, exactly or by a name with a star; the table that comes
//! with the program; and for names with a date at their end, the same without it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use serde::Deserialize;

use super::key::parse_expiry;
use super::model::{ModelFacts, ModelSpec};
use super::pattern::Pattern;
use super::price::{Price, PriceSpec};
use super::problems::Problems;
use super::resources::Resources;

/// The table that comes with the program.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shipped {
    /// The day the prices were written down.
    as_of: String,
    /// Names that belong to a vendor even if the table does not list them: pattern → kind.
    families: BTreeMap<String, String>,
    /// `kind/model` → what is known.
    models: BTreeMap<String, ShippedModel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShippedModel {
    price: PriceSpec,
    #[serde(default)]
    facts: ModelSpec,
}

static SHIPPED: LazyLock<Result<Shipped, String>> =
    LazyLock::new(|| serde_saphyr::from_str(include_str!("prices.yaml")).map_err(|error| error.to_string()));

/// A test reads the table, so an error here is a build that was never tested; it is told as a problem all the same.
pub(super) fn shipped() -> Result<&'static Shipped, &'static str> {
    SHIPPED.as_ref().map_err(String::as_str)
}

/// Midnight of the day the table was written, in Unix seconds.
pub(super) fn shipped_at() -> u64 {
    shipped().ok().and_then(|shipped| parse_expiry(&shipped.as_of)).unwrap_or_default().as_secs()
}

/// Values for models: by exact name, or by the start of names.
struct ByModel<T> {
    exact: HashMap<Box<str>, T>,
    /// Longest first.
    starts: Vec<(Box<str>, T)>,
}

impl<T> Default for ByModel<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), starts: Vec::new() }
    }
}

impl<T> ByModel<T> {
    fn insert(&mut self, name: &str, value: T) {
        match Pattern::parse(name) {
            Ok(Pattern::Exact(name)) => {
                self.exact.insert(name, value);
            }
            Ok(Pattern::Prefix(start)) => {
                self.starts.retain(|(known, _)| *known != start);
                self.starts.push((start, value));
                self.starts.sort_by_key(|(start, _)| std::cmp::Reverse(start.len()));
            }
            Err(_) => {}
        }
    }

    fn get(&self, model: &str) -> Option<&T> {
        self.exact
            .get(model)
            .or_else(|| self.exact.get(undated(model)?))
            .or_else(|| self.starts.iter().find(|(start, _)| model.starts_with(&**start)).map(|(_, value)| value))
    }
}

/// The name without a date or `-latest` at its end: `gpt-4o-2024-08-06` and `claude-sonnet-4-20250514` cost what
/// `gpt-4o` and `claude-sonnet-4` cost, unless the table says otherwise.
fn undated(model: &str) -> Option<&str> {
    if let Some(start) = model.strip_suffix("-latest") {
        return Some(start);
    }
    let start = model.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '-');
    let tail = &model[start.len()..];
    [11, 9].into_iter().find_map(|length| {
        let date = tail.get(tail.len().checked_sub(length)?..)?;
        let shape = if length == 11 { "-dddd-dd-dd" } else { "-dddddddd" };
        let fits = date.bytes().zip(shape.bytes()).all(|(byte, wanted)| match wanted {
            b'd' => byte.is_ascii_digit(),
            _ => byte == b'-',
        });
        fits.then(|| &model[..model.len() - length])
    })
}

/// What is known of one provider's models.
#[derive(Default)]
struct Book {
    prices: ByModel<Arc<Price>>,
    facts: ByModel<ModelSpec>,
    shipped: ByModel<(Arc<Price>, ModelSpec)>,
    /// By its own names; sorted.
    listed: Vec<Box<str>>,
    /// The list was written by the operator.
    listed_in_file: bool,
    families: Vec<Pattern>,
}

/// What is known of every configured provider's models.
pub(super) struct Catalog {
    books: HashMap<Box<str>, Book>,
}

impl Catalog {
    pub fn new(resources: &Resources, problems: &mut Problems) -> Self {
        let shipped =
            shipped().map_err(|error| problems.add("prices", format!("the shipped table is damaged: {error}")));
        let names: BTreeSet<&str> =
            resources.providers.iter().flat_map(|(name, spec)| [name.as_str(), spec.kind(name)]).collect();
        let books = resources.providers.iter().map(|(name, spec)| {
            let kind = spec.kind(name);
            let mut book = shipped.map(|shipped| Book::shipped(shipped, kind, problems)).unwrap_or_default();
            if !spec.models.is_empty() {
                book.listed = spec.models.iter().map(|model| model.as_str().into()).collect();
                book.listed.sort();
                book.listed_in_file = true;
            }
            for (key, value) in ordered(&resources.prices, name, kind, &names) {
                book.prices.insert(key, Arc::new(value.read(&mut Problems::new())));
            }
            for (key, value) in ordered(&resources.models, name, kind, &names) {
                book.facts.insert(key, value.clone());
            }
            (name.as_str().into(), book)
        });
        Self { books: books.collect() }
    }

    pub fn price(&self, provider: &str, model: &str) -> Option<&Arc<Price>> {
        let book = self.books.get(provider)?;
        book.prices.get(model).or_else(|| book.shipped.get(model).map(|(price, _)| price))
    }

    pub fn facts(&self, provider: &str, model: &str) -> ModelFacts {
        let Some(book) = self.books.get(provider) else { return ModelFacts::default() };
        let written = book.facts.get(model);
        let shipped = book.shipped.get(model).map(|(_, facts)| facts);
        ModelFacts {
            context: written.and_then(|facts| facts.context).or_else(|| shipped?.context),
            output_max: written.and_then(|facts| facts.output_max).or_else(|| shipped?.output_max),
            hidden_reasoning: written
                .and_then(|facts| facts.hidden_reasoning)
                .or_else(|| shipped?.hidden_reasoning)
                .unwrap_or_default(),
        }
    }

    /// Names of the budgets that calls of this model must fit in.
    pub fn budgets(&self, provider: &str, model: &str) -> &[String] {
        let written = self.books.get(provider).and_then(|book| book.facts.get(model));
        written.map_or(&[], |spec| spec.budgets.as_slice())
    }

    /// The one provider that a model named without a provider belongs to. A list in the file outweighs the table.
    pub fn owner(&self, model: &str) -> Option<&str> {
        let having = |has: &dyn Fn(&Book) -> bool| {
            let mut having = self.books.iter().filter(|(_, book)| has(book)).map(|(name, _)| &**name);
            (having.next(), having.next())
        };
        match having(&|book| book.listed_in_file && book.lists(model)) {
            (Some(only), None) => return Some(only),
            (Some(_), Some(_)) => return None,
            (None, _) => {}
        }
        match having(&|book| !book.listed_in_file && book.knows(model)) {
            (only, None) => only,
            (_, Some(_)) => None,
        }
    }

    /// The models to show for a provider, by its own names.
    pub fn listed(&self, provider: &str) -> impl Iterator<Item = &str> {
        self.books.get(provider).into_iter().flat_map(|book| book.listed.iter().map(|name| &**name))
    }
}

impl Book {
    fn shipped(shipped: &Shipped, kind: &str, problems: &mut Problems) -> Self {
        let mut book = Self::default();
        for (name, model) in &shipped.models {
            if let Some((vendor, name)) = name.split_once('/')
                && vendor == kind
            {
                let price = Arc::new(model.price.read(problems));
                book.shipped.insert(name, (price, model.facts.clone()));
                book.listed.push(name.into());
            }
        }
        let families = shipped.families.iter().filter(|(_, vendor)| *vendor == kind);
        book.families = families.filter_map(|(pattern, _)| Pattern::parse(pattern).ok()).collect();
        book
    }

    fn lists(&self, model: &str) -> bool {
        self.listed.binary_search_by(|name| (**name).cmp(model)).is_ok()
    }

    fn knows(&self, model: &str) -> bool {
        self.shipped.get(model).is_some() || self.families.iter().any(|family| family.matches(model))
    }
}

/// The entries that say something about this provider, without its name before them; the more telling ones last.
fn ordered<'a, T>(
    entries: &'a BTreeMap<String, T>,
    provider: &'a str,
    kind: &'a str,
    names: &'a BTreeSet<&str>,
) -> impl Iterator<Item = (&'a str, &'a T)> {
    let bare = entries.iter().filter_map(|(key, value)| match key.split_once('/') {
        Some((owner, _)) if names.contains(owner) => None,
        Some(_) | None => Some((key.as_str(), value)),
    });
    let under = move |owner: &'a str| {
        entries.iter().filter_map(move |(key, value)| match key.split_once('/') {
            Some((first, model)) if first == owner => Some((model, value)),
            Some(_) | None => None,
        })
    };
    bare.chain(under(kind)).chain(under(provider))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_at_the_end_of_a_name_are_found() {
        assert_eq!(undated("gpt-4o-2024-08-06"), Some("gpt-4o"));
        assert_eq!(undated("claude-sonnet-4-20250514"), Some("claude-sonnet-4"));
        assert_eq!(undated("claude-sonnet-4-5-20250929"), Some("claude-sonnet-4-5"));
        assert_eq!(undated("mistral-large-latest"), Some("mistral-large"));
        for name in ["gpt-4", "gpt-4-0613", "o1", "", "20250514", "-", "llama-3.1-8b"] {
            assert_eq!(undated(name), None, "{name}");
        }
    }

    #[test]
    fn the_shipped_table_is_whole() {
        let shipped = shipped().unwrap();
        let mut problems = Problems::new();

        assert!(shipped_at() > 1_700_000_000, "{}", shipped.as_of);
        assert!(shipped.models.len() >= 40);
        for (name, model) in &shipped.models {
            problems.within(name, |problems| {
                assert!(name.contains('/'), "{name}");
                model.price.check(problems);
                model.facts.check(problems);
            });
        }
        for pattern in shipped.families.keys() {
            assert!(Pattern::parse(pattern).is_ok(), "{pattern}");
        }

        assert!(problems.is_empty(), "{problems}");
    }
}

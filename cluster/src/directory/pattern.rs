//! Names with a star at the end.

/// A name, the start of names (`openai/*`), or all names (`*`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pattern {
    Exact(Box<str>),
    /// What stands before the star; empty matches everything.
    Prefix(Box<str>),
}

impl Pattern {
    /// The error is the end of a sentence about the text.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (start, star) = match text.strip_suffix('*') {
            Some(start) => (start, true),
            None => (text, false),
        };
        if text.is_empty() {
            return Err("is empty");
        }
        if start.contains('*') {
            return Err("has a star that is not at its end");
        }
        Ok(if star { Self::Prefix(start.into()) } else { Self::Exact(start.into()) })
    }

    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *name,
            Self::Prefix(start) => name.starts_with(&**start),
        }
    }

    /// What the star stands for in `name`.
    pub fn rest<'a>(&self, name: &'a str) -> Option<&'a str> {
        match self {
            Self::Exact(_) => None,
            Self::Prefix(start) => name.strip_prefix(&**start),
        }
    }
}

/// Which models a key may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelFilter {
    /// Empty: all.
    patterns: Vec<Pattern>,
}

impl ModelFilter {
    /// No pattern at all allows everything.
    pub fn new(patterns: impl IntoIterator<Item = Pattern>) -> Self {
        Self { patterns: patterns.into_iter().collect() }
    }

    pub fn all() -> Self {
        Self::default()
    }

    /// `model` as the client wrote it, or the route it led to.
    pub fn allows(&self, model: &str) -> bool {
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| pattern.matches(model))
    }
}

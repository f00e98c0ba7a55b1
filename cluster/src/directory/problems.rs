//! Everything that is wrong with a configuration, each with the path that leads to it.

use std::fmt::{self, Display};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The way there from the top of the file; a place in a list is its number, from 0.
    pub path: Vec<String>,
    pub message: String,
}

impl Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.join("."), self.message)
    }
}

/// The way to where a value does not fit its type, as [`Problem::path`] has it.
pub fn words_of(path: &serde_path_to_error::Path) -> Vec<String> {
    use serde_path_to_error::Segment;

    let word = |segment: &Segment| match segment {
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Map { key } => Some(key.clone()),
        // A variant is not a level of what people write.
        Segment::Enum { variant: _ } | Segment::Unknown => None,
    };
    path.iter().filter_map(word).collect()
}

/// Collects problems; a check goes on after the first.
#[derive(Clone, Debug, Default)]
pub struct Problems {
    here: Vec<String>,
    found: Vec<Problem>,
}

impl Problems {
    pub fn new() -> Self {
        Self::default()
    }

    /// `path` is one segment below where the check stands; the empty text means right here. It is not split at dots:
    /// names have dots in them.
    pub fn add(&mut self, path: &str, message: impl Into<String>) {
        let mut whole = self.here.clone();
        if !path.is_empty() {
            whole.push(path.to_owned());
        }
        self.found.push(Problem { path: whole, message: message.into() });
    }

    /// One that another check found, with its whole path.
    pub(crate) fn push(&mut self, problem: Problem) {
        self.found.push(problem);
    }

    /// Takes over what another check found, as standing below here.
    pub fn append(&mut self, other: Self) {
        let here = &self.here;
        self.found.extend(other.found.into_iter().map(|mut problem| {
            problem.path.splice(0..0, here.iter().cloned());
            problem
        }));
    }

    /// Checks what stands under `segment`.
    pub fn within<T>(&mut self, segment: &str, check: impl FnOnce(&mut Self) -> T) -> T {
        self.here.push(segment.to_owned());
        let result = check(self);
        self.here.pop();
        result
    }

    /// Something whose name is known but that comes with a later version: refused by name, never ignored.
    pub fn add_unavailable(&mut self, path: &str, name: &str) {
        self.add(path, format!("`{name}` is not available in this version"));
    }

    /// A name that refers to nothing, with the nearest one that exists.
    pub fn add_unknown<'a>(&mut self, path: &str, what: &str, wanted: &str, known: impl IntoIterator<Item = &'a str>) {
        self.add(
            path,
            match nearest(wanted, known) {
                Some(near) => format!("there is no {what} `{wanted}`; did you mean `{near}`?"),
                None => format!("there is no {what} `{wanted}`"),
            },
        );
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub fn len(&self) -> usize {
        self.found.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.found.iter()
    }

    pub fn into_vec(self) -> Vec<Problem> {
        self.found
    }
}

/// One problem a line.
impl Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.found.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The known name a mistyped one was most likely meant to be: at most a third of its letters differ.
pub fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance_max = (wanted.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|name| (strsim::osa_distance(wanted, name), name))
        .filter(|(distance, _)| *distance <= distance_max)
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_the_problem_and_keep_dots_in_names() {
        let mut problems = Problems::new();

        problems.within("prices", |problems| {
            problems.within("openai/gpt-4.1", |problems| problems.add("input", "is wrong"));
            problems.add("", "is empty");
        });

        let found = problems.into_vec();
        assert_eq!(found[0].path, ["prices", "openai/gpt-4.1", "input"]);
        assert_eq!(found[1].path, ["prices"]);
    }

    #[test]
    fn the_nearest_name_is_near() {
        let known = ["openai", "anthropic", "local"];
        assert_eq!(nearest("opnai", known), Some("openai"));
        assert_eq!(nearest("antrhopic", known), Some("anthropic"));
        assert_eq!(nearest("mistral", known), None);
        assert_eq!(nearest("x", []), None);
    }
}

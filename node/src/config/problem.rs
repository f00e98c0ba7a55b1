//! What is wrong with a configuration file, all of it, each with its place.

use serde::Serialize;
use std::fmt;

/// Everything wrong with one file. Shown sorted by line; never empty where it is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub file: String,
    pub problems: Vec<Problem>,
}

impl Report {
    pub fn new(file: impl Into<String>, mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|a, b| (a.line, a.column, &a.path, &a.message).cmp(&(b.line, b.column, &b.path, &b.message)));
        problems.dedup();
        Self { file: file.into(), problems }
    }
}

/// One line a problem, as compilers write them, so that editors can jump to it.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:{}:{}: ", self.file, problem.line, problem.column)?;
            if !problem.path.is_empty() {
                write!(f, "{}: ", problem.path)?;
            }
            write!(f, "{}", problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// Dotted, as in `routes.support.targets[0]`; empty for the file as a whole.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(line: usize, column: usize, path: &str) -> Problem {
        Problem { line, column, path: path.to_owned(), message: "is wrong".to_owned() }
    }

    #[test]
    fn a_report_reads_from_top_to_bottom_and_says_nothing_twice() {
        let report = Report::new("g.yaml", vec![problem(9, 1, "b"), problem(2, 3, "a.x"), problem(9, 1, "b")]);

        assert_eq!(report.to_string(), "g.yaml:2:3: a.x: is wrong\ng.yaml:9:1: b: is wrong");
    }
}

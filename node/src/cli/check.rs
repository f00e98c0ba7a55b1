//! `check`: everything that is wrong with a file.

use crate::config::environment;
use crate::config::load::{LoadError, Loaded, load};
use crate::config::problem::{Problem, Report};
use crate::config::reload::describe;
use crate::output;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::error::Error;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,

    /// How to tell what was found.
    #[arg(long, value_enum, default_value = "human")]
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One line a problem: `file:line:column: path: what is wrong`.
    Human,
    /// One JSON object, with a list of problems.
    Json,
}

/// The file has problems; they have been printed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {count} problem{}", file.display(), if *count == 1 { "" } else { "s" })]
pub struct Problems {
    file: PathBuf,
    count: usize,
}

pub fn check(args: &CheckArgs) -> Result<(), Box<dyn Error + Send + Sync>> {
    let checked = load(&args.config, &environment::process).map_err(|error| report_of(&args.config, error));
    output::line(&tell(&args.config, &checked, args.format)?)?;
    match checked {
        Ok(_) => Ok(()),
        Err(report) => Err(Problems { file: args.config.clone(), count: report.problems.len() }.into()),
    }
}

fn tell(file: &Path, checked: &Result<Loaded, Report>, format: Format) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    struct Told<'a> {
        file: String,
        ok: bool,
        problems: &'a [Problem],
    }
    let problems = checked.as_ref().err().map(|report| report.problems.as_slice()).unwrap_or_default();
    match (format, checked) {
        (Format::Json, _) => {
            serde_json::to_string_pretty(&Told { file: file.display().to_string(), ok: checked.is_ok(), problems })
        }
        (Format::Human, Ok(loaded)) => Ok(format!("{}: ok: {}", file.display(), summary(loaded))),
        (Format::Human, Err(report)) => Ok(report.to_string()),
    }
}

/// So that whoever checks the wrong file sees it.
fn summary(loaded: &Loaded) -> String {
    let resources = &loaded.config.resources;
    let counts = [
        (resources.providers.len(), "provider"),
        (resources.routes.len(), "route"),
        (resources.tenants.len(), "tenant"),
        (resources.keys.len(), "key"),
        (resources.budgets.len(), "budget"),
    ];
    let counts = counts.map(|(count, noun)| format!("{count} {noun}{}", if count == 1 { "" } else { "s" }));
    counts.join(", ")
}

/// A file that cannot be read at all is one problem at its start.
fn report_of(file: &Path, error: LoadError) -> Report {
    match error {
        LoadError::Invalid(report) => report,
        error @ (LoadError::Unreadable { .. } | LoadError::TooLarge { .. }) => {
            let problem = Problem { line: 1, column: 1, path: String::new(), message: describe(&error) };
            Report::new(file.display().to_string(), vec![problem])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::read;

    fn told(text: &str, format: Format) -> String {
        tell(Path::new("g.yaml"), &read("g.yaml", text.as_bytes(), &|_| None), format).unwrap()
    }

    const RIGHT: &str = "auth: none\nproviders: { openai: { api_key: none } }\n";
    const WRONG: &str = "auth: nobody\nproviderz: {}\n";

    #[test]
    fn a_right_file_is_summed_up() {
        assert_eq!(told(RIGHT, Format::Human), "g.yaml: ok: 1 provider, 0 routes, 0 tenants, 0 keys, 0 budgets");
    }

    #[test]
    fn a_person_gets_a_line_a_problem() {
        let text = told(WRONG, Format::Human);

        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with("g.yaml:1:1: auth: `nobody` is not known here"), "{text}");
        assert!(
            lines[1].starts_with("g.yaml:2:1: providerz: `providerz` is not known; did you mean `providers`?"),
            "{text}"
        );
    }

    #[test]
    fn a_program_gets_places_as_numbers() {
        let told: serde_json::Value = serde_json::from_str(&told(WRONG, Format::Json)).unwrap();

        assert_eq!(told["ok"], false);
        assert_eq!(told["problems"][1]["line"], 2);
        assert_eq!(told["problems"][1]["path"], "providerz");
    }

    #[test]
    fn a_file_that_is_not_there_is_a_problem() {
        let args = CheckArgs { config: PathBuf::from("/nowhere/gateway.yaml"), format: Format::Human };

        let error = load(&args.config, &|_| None).map(|_| ()).unwrap_err();
        let report = report_of(&args.config, error);

        assert!(report.to_string().starts_with("/nowhere/gateway.yaml:1:1: cannot read"), "{report}");
    }
}

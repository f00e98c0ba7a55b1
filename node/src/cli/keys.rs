//! `keys new`: a key for a caller. The gateway needs only its hash.

use crate::admin::key_text::new_key;
use crate::output;
use clap::{Args, Subcommand};
use cluster::directory::key::{KeyHash, KeySpec};
use cluster::directory::problems::Problems;
use cluster::directory::resources::Resources;
use std::collections::BTreeMap;
use std::error::Error;

#[derive(Clone, Debug, Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    pub command: KeysCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key, and print the lines for the configuration file.
    New {
        /// What the key is called in the configuration, in logs and in metrics.
        #[arg(long, default_value = "web")]
        name: String,
    },
}

pub fn keys(args: &KeysArgs) -> Result<(), Box<dyn Error + Send + Sync>> {
    let KeysCommand::New { name } = &args.command;
    check_name(name)?;
    Ok(output::line(&told(name, &new_key(&mut getrandom::fill)?))?)
}

/// A name that the configuration would refuse makes lines that cannot be pasted.
fn check_name(name: &str) -> Result<(), Problems> {
    let key = KeySpec { hash: Some(KeyHash::of("").to_text()), ..KeySpec::default() };
    let resources = Resources { keys: BTreeMap::from([(name.to_owned(), key)]), ..Resources::default() };
    let mut problems = Problems::new();
    resources.check(&mut problems);
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

fn told(name: &str, key: &str) -> String {
    let hash = KeyHash::of(key).to_text();
    let name = serde_json::Value::from(name);
    format!(
        "Key, for the caller. It is shown this once:\n\n  {key}\n\n\
         Hash, for the gateway. These lines belong into the configuration file:\n\n  \
         keys:\n    {name}: {{ hash: \"{hash}\" }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::read;

    /// What is printed can be pasted, and lets the key in.
    #[test]
    fn the_lines_to_paste_are_a_configuration_that_knows_the_key() {
        let key = new_key(&mut getrandom::fill).unwrap();
        assert!(check_name("app:1").is_ok());
        let told = told("app:1", &key);

        let lines: Vec<_> = told.lines().skip_while(|line| *line != "  keys:").map(|line| &line[2..]).collect();
        let text = format!("providers: {{ openai: {{ api_key: none }} }}\n{}\n", lines.join("\n"));
        let loaded = read("g.yaml", text.as_bytes(), &|_| None).unwrap_or_else(|report| panic!("{report}"));

        assert_eq!(loaded.directory.key(&KeyHash::of(&key)).unwrap().name, "app:1");
    }

    #[test]
    fn a_name_that_cannot_be_one_is_refused() {
        for name in ["", "my app", "a*"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}

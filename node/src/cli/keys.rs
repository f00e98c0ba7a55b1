//! `keys new`: a key for a caller. The gateway needs only its hash.

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

/// Letters and digits only: a double click selects a whole part, and no shell or YAML needs quotes.
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// Tells keys apart, and may be shown.
const PUBLIC_LENGTH: usize = 12;

/// 62 possibilities each: 190 bits.
const SECRET_LENGTH: usize = 32;

/// `lea-<12 public>-<32 secret>`.
fn new_key<E>(random: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<String, E> {
    let public = letters(PUBLIC_LENGTH, random)?;
    let secret = letters(SECRET_LENGTH, random)?;
    Ok(format!("lea-{public}-{secret}"))
}

fn letters<E>(length: usize, random: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<String, E> {
    let mut text = String::with_capacity(length);
    let mut bytes = [0_u8; 64];
    while text.len() < length {
        random(&mut bytes)?;
        // Six bits each. The two values beyond the alphabet are passed over, so that every letter is equally likely.
        let fitting = bytes.iter().filter_map(|byte| ALPHABET.get(usize::from(byte & 63)));
        text.extend(fitting.take(length - text.len()).map(|letter| char::from(*letter)));
    }
    Ok(text)
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
    use std::convert::Infallible;

    fn counting() -> impl FnMut(&mut [u8]) -> Result<(), Infallible> {
        let mut next = 0_u8;
        move |bytes| {
            for byte in bytes {
                *byte = next;
                next = next.wrapping_add(1);
            }
            Ok(())
        }
    }

    #[test]
    fn a_key_has_its_two_parts_in_the_alphabet() {
        let key = new_key(&mut counting()).unwrap();

        let parts: Vec<_> = key.split('-').collect();
        assert_eq!((parts[0], parts[1].len(), parts[2].len()), ("lea", 12, 32));
        assert!(parts[1..].concat().bytes().all(|byte| byte.is_ascii_alphanumeric()), "{key}");
    }

    #[test]
    fn every_letter_is_equally_likely() {
        let text = letters(62 * 4, &mut counting()).unwrap();

        for letter in ALPHABET {
            assert_eq!(text.bytes().filter(|byte| byte == letter).count(), 4, "{}", char::from(*letter));
        }
    }

    #[test]
    fn two_keys_differ() {
        assert_ne!(new_key(&mut getrandom::fill).unwrap(), new_key(&mut getrandom::fill).unwrap());
    }

    /// What is printed can be pasted, and lets the key in.
    #[test]
    fn the_lines_to_paste_are_a_configuration_that_knows_the_key() {
        let key = new_key(&mut counting()).unwrap();
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

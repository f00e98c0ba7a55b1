//! Secrets: found where the configuration says, held without ever being printed.

use super::environment::{ExpandError, Lookup, expand};
use cluster::directory::secret::{SecretRef, SecretSource};
use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes of a file that holds a secret. A larger one is refused: it is the wrong file.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The text of a secret. Shown as `***` wherever it might be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// For the header it belongs in, and nowhere else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Every secret the configuration refers to, read once when it was loaded: a reload takes all of them anew or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secrets(HashMap<SecretRef, Secret>);

impl Secrets {
    pub fn get(&self, reference: &SecretRef) -> Option<&Secret> {
        self.0.get(reference)
    }

    pub fn insert(&mut self, reference: SecretRef, secret: Secret) {
        self.0.insert(reference, secret);
    }

    /// The files they came from; a change there is a change of the configuration.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().filter_map(|reference| reference.source().path())
    }
}

/// Why a secret cannot be had. Never holds one.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("{0}")]
    Variable(ExpandError),

    #[error("comes from {place}, which is empty; put the secret there")]
    Empty { place: String },

    #[error("comes from {place}, and is not to be found from here")]
    Elsewhere { place: String },

    #[error("comes from file `{}`, which cannot be read ({}); create it, or let this process read it", path.display(), source.kind())]
    Unreadable { path: PathBuf, source: std::io::Error },

    #[error("comes from file `{}`, which is larger than {FILE_BYTES_MAX} bytes; name the file that holds only the secret", path.display())]
    TooLarge { path: PathBuf },
}

/// Looks up what `reference` refers to. One line break at the end of a file is not part of the secret.
pub fn resolve(reference: &SecretRef, lookup: Lookup<'_>) -> Result<Secret, Vec<SecretError>> {
    let text = match (reference.literal(), reference.source()) {
        (Some(text), _) => text.to_owned(),
        (None, SecretSource::File(path)) => read(path).map_err(|error| vec![error])?,
        (None, SecretSource::Local { .. }) => return Err(vec![SecretError::Elsewhere { place: reference.place() }]),
        (None, SecretSource::Text(text)) => {
            let expanded = expand(text, lookup);
            expanded.map_err(|errors| errors.into_iter().map(SecretError::Variable).collect::<Vec<_>>())?.text
        }
    };
    if text.is_empty() {
        return Err(vec![SecretError::Empty { place: reference.place() }]);
    }
    Ok(Secret(text))
}

fn read(path: &Path) -> Result<String, SecretError> {
    let unreadable = |source| SecretError::Unreadable { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let bytes = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if u64::try_from(bytes).is_ok_and(|bytes| bytes > FILE_BYTES_MAX) {
        return Err(SecretError::TooLarge { path: path.to_owned() });
    }
    let end = text.strip_suffix('\n').map_or(text.len(), |line| line.strip_suffix('\r').unwrap_or(line).len());
    text.truncate(end);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        (name == "TOKEN").then(|| "sk-from-the-environment".to_owned())
    }

    fn message(reference: &SecretRef) -> String {
        resolve(reference, &lookup).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_secret_is_found_in_the_environment_in_a_file_and_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, "sk-from-a-file\r\n").unwrap();

        let found = |reference| resolve(&reference, &lookup).unwrap().reveal().to_owned();
        assert_eq!(found(SecretRef::text("${TOKEN}")), "sk-from-the-environment");
        assert_eq!(found(SecretRef::text("${ABSENT:-sk-default}")), "sk-default");
        assert_eq!(found(SecretRef::file(&file)), "sk-from-a-file");
        assert_eq!(found(SecretRef::text("cash$$and$25")), "cash$$and$25", "text without variables stays as it is");
    }

    #[test]
    fn a_secret_that_cannot_be_had_is_told_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let (empty, large) = (folder.path().join("empty"), folder.path().join("large"));
        std::fs::write(&empty, "\n").unwrap();
        std::fs::write(&large, "x".repeat(70_000)).unwrap();

        assert!(message(&SecretRef::text("${ABSENT}")).starts_with("environment variable `ABSENT` is not set"));
        assert!(message(&SecretRef::file(folder.path().join("absent"))).contains("cannot be read (entity not found)"));
        assert!(message(&SecretRef::file(&empty)).contains("which is empty"));
        assert!(message(&SecretRef::file(&large)).contains("larger than 65536 bytes"));
    }

    #[test]
    fn printing_a_secret_prints_stars() {
        let reference = SecretRef::text("sk-very-secret");
        let secret = resolve(&reference, &lookup).unwrap();
        let mut secrets = Secrets::default();
        secrets.insert(reference, secret.clone());

        assert_eq!(format!("{secret:?}"), "***");
        assert!(!format!("{secrets:?}").contains("very"));
    }
}

//! Where a secret is to be found. The directory holds references; the node that needs the secret resolves them.

use std::borrow::Cow;
use std::fmt::{self, Debug, Display};
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A reference to a secret: `"${ENV}"`, `"${ENV:-default}"`, `{ file: PATH }`, or the text itself.
///
/// Prints and serialises as `***`, because the text itself may stand in it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SecretRef(SecretSource);

#[derive(Clone, PartialEq, Eq, Hash)]
pub enum SecretSource {
    /// May have `${…}` in it, not yet expanded.
    Text(String),
    /// The file's content, without the line break at its end.
    File(PathBuf),
    /// A text that stands in a node's own configuration file and never leaves it: the credential at `index` of the
    /// provider of that name. Written by the directory only.
    Local { provider: String, index: usize },
}

/// What stands wherever a secret would be printed.
pub const HIDDEN: &str = "***";

/// The text that says that no credential is to be sent.
const NO_SECRET: &str = "none";

impl SecretRef {
    pub fn text(text: impl Into<String>) -> Self {
        Self(SecretSource::Text(text.into()))
    }

    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(SecretSource::File(path.into()))
    }

    pub fn local(provider: impl Into<String>, index: usize) -> Self {
        Self(SecretSource::Local { provider: provider.into(), index })
    }

    /// For who resolves it. Must not be printed.
    pub fn source(&self) -> &SecretSource {
        &self.0
    }

    /// `api_key: none`: nothing is to be sent.
    pub fn is_none(&self) -> bool {
        matches!(&self.0, SecretSource::Text(text) if text == NO_SECRET)
    }

    /// The secret, where it stands in the configuration itself and nothing in it needs expanding.
    pub fn literal(&self) -> Option<&str> {
        match &self.0 {
            SecretSource::Text(text) if !text.contains("${") => Some(text),
            SecretSource::Text(_) | SecretSource::File(_) | SecretSource::Local { .. } => None,
        }
    }

    /// The variable, where the whole text is `${NAME}`: nothing of the secret itself stands in it.
    pub fn pure_variable(&self) -> Option<&str> {
        match &self.0 {
            SecretSource::Text(text) => variable(text).filter(|name| *text == format!("${{{name}}}")),
            SecretSource::File(_) | SecretSource::Local { .. } => None,
        }
    }

    /// Where the secret should come from, in words that give nothing away.
    pub fn place(&self) -> String {
        match &self.0 {
            SecretSource::File(path) => format!("file `{}`", path.display()),
            SecretSource::Text(text) => match variable(text) {
                Some(name) => format!("environment variable `{name}`"),
                None => "the text given".to_owned(),
            },
            SecretSource::Local { provider, .. } => {
                format!("`api_key` or `api_keys` of the provider `{provider}` in this node's own file")
            }
        }
    }
}

/// The first variable's name in `${NAME}` or `${NAME:-default}`.
fn variable(text: &str) -> Option<&str> {
    let (_, after) = text.split_once("${")?;
    let end = after.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')?;
    (end > 0).then(|| &after[..end])
}

impl Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for SecretRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SecretVisitor)
    }
}

struct SecretVisitor;

const IS_NUMBER: &str = "is read as a number; put a secret in quotes";

impl<'de> Visitor<'de> for SecretVisitor {
    type Value = SecretRef;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret: \"${ENV}\", { file: PATH } or a text in quotes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretRef, E> {
        Ok(SecretRef::text(text))
    }

    /// Its digits are lost already. The number is not repeated: it may be the secret.
    fn visit_u64<E: de::Error>(self, _: u64) -> Result<SecretRef, E> {
        Err(E::custom(IS_NUMBER))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<SecretRef, E> {
        Err(E::custom(IS_NUMBER))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<SecretRef, E> {
        Err(E::custom(IS_NUMBER))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SecretRef, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if found.is_some() {
                return Err(de::Error::custom("a secret has one place, and this has several"));
            }
            found = Some(match key.as_str() {
                "file" => SecretRef::file(map.next_value::<PathBuf>()?),
                "local" => {
                    let text = map.next_value::<String>()?;
                    let parts =
                        text.split_once('/').and_then(|(provider, index)| Some((provider, index.parse().ok()?)));
                    let (provider, index) = parts.ok_or_else(|| de::Error::custom("`local` is `provider/index`"))?;
                    SecretRef::local(provider, index)
                }
                other => return Err(de::Error::unknown_field(other, &["file"])),
            });
        }
        found.ok_or_else(|| de::Error::missing_field("file"))
    }
}

impl JsonSchema for SecretRef {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A secret: `\"${ENV}\"`, `\"${ENV:-default}\"`, `{ file: PATH }`, or the text itself.",
            "anyOf": [
                { "type": "string" },
                {
                    "type": "object",
                    "properties": { "file": { "type": "string" } },
                    "required": ["file"],
                    "additionalProperties": false,
                },
            ],
        })
    }
}

/// The path of a secret kept in a file.
impl SecretSource {
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Text(_) | Self::Local { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_forms_are_read() {
        let read = |yaml| serde_saphyr::from_str::<SecretRef>(yaml).unwrap();
        assert!(read("\"${OPENAI_API_KEY}\"") == SecretRef::text("${OPENAI_API_KEY}"));
        assert!(read("{ file: /run/secrets/key }") == SecretRef::file("/run/secrets/key"));
        assert!(read("none").is_none());
        assert!(serde_saphyr::from_str::<SecretRef>("{ files: /x }").is_err());
        assert!(serde_saphyr::from_str::<SecretRef>("{}").is_err());
    }

    #[test]
    fn a_secret_that_looks_like_a_number_is_refused_unseen() {
        for number in ["12345678901234567890123456789012", "-1234567890123", "1234567890123"] {
            let error = serde_json::from_str::<SecretRef>(number).unwrap_err().to_string();
            assert!(error.contains("quotes") && !error.contains("12345"), "{error}");
        }
    }

    #[test]
    fn nothing_printed_gives_a_secret_away() {
        let secret = SecretRef::text("sk-very-secret");
        let fallback = SecretRef::text("${KEY:-sk-very-secret}");
        let json = serde_json::to_string(&secret).unwrap();
        for printed in [format!("{secret:?} {secret}"), json, secret.place(), fallback.place()] {
            assert!(!printed.contains("very-secret"), "{printed}");
        }
        assert_eq!(fallback.place(), "environment variable `KEY`");
    }
}

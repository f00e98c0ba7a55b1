//! What a later version will have: known by name, so that it is refused instead of ignored or called a typing mistake.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::StringDeserializer;
use serde::de::{Deserializer, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::problems::Problems;

/// A field of a later version. Holds only whether it was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Later {
    written: bool,
}

impl Later {
    pub fn check(self, name: &str, problems: &mut Problems) {
        if self.written {
            problems.add_unavailable(name, name);
        }
    }
}

impl<'de> Deserialize<'de> for Later {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer)?;
        Ok(Self { written: true })
    }
}

/// An enumeration of which some values come later.
pub trait HasLater {
    /// The values of later versions.
    const LATER: &'static [&'static str];
}

/// A value that this version has, or the name of one that a later version will have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Available<T> {
    Now(T),
    Later(String),
}

impl<T: Copy + Default> Available<T> {
    /// The value; the default stands in for one that `check` refuses.
    pub fn get(&self) -> T {
        match self {
            Self::Now(value) => *value,
            Self::Later(_) => T::default(),
        }
    }
}

impl<T> Available<T> {
    pub fn check(&self, field: &str, problems: &mut Problems) {
        if let Self::Later(name) = self {
            problems.add_unavailable(field, &format!("{field}: {name}"));
        }
    }
}

impl<T: Default> Default for Available<T> {
    fn default() -> Self {
        Self::Now(T::default())
    }
}

impl<'de, T: Deserialize<'de> + HasLater> Deserialize<'de> for Available<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        if T::LATER.contains(&name.as_str()) {
            return Ok(Self::Later(name));
        }
        T::deserialize(StringDeserializer::new(name)).map(Self::Now)
    }
}

/// Later values are not part of the reference.
impl<T: JsonSchema> JsonSchema for Available<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

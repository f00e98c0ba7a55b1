//! The keys clients present.

use std::fmt::{self, Debug};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pattern::{ModelFilter, Pattern};
use super::problems::Problems;
use super::secret::SecretRef;
use super::tenant::DEFAULT_TENANT;

/// A key that clients call with, and what it may do.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeySpec {
    /// The key's text, at least 32 characters: `"${ENV}"` or `{ file: PATH }`. Give this or `hash`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretRef>,

    /// `b3:` and the BLAKE3 hash of the key's text, as `keys new` prints it; so the text need not be kept here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,

    /// Who the key belongs to.
    pub tenant: String,

    /// Models and routes it may use: names, `openai/*`, or `*`. Empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,

    /// Requests it may make a second, on all nodes together; a second's worth may come at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rps: Option<u32>,

    /// Requests it may make within any 60 seconds, on all nodes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpm: Option<u32>,

    /// Tokens, in and out, it may use within any 60 seconds, on all nodes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpm: Option<u64>,

    /// Requests of it that are worked on at once, streams included, on all nodes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_parallel: Option<u32>,

    /// From when on it is refused: a date (`2027-01-01`, meaning 00:00 UTC) or a time (`2027-01-01T08:00:00Z`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,

    /// The team of the tenant it belongs to, one of the tenant's `teams`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,

    /// What it may do through the admin API: names of `roles`, or `viewer`, `operator`, `admin`. A key with roles calls
    /// the admin API only, never a model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,

    /// Names of `budgets` that all its calls must fit in. At most 8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<String>,
}

/// Characters a key's text must have: fewer could be guessed.
pub const SECRET_LENGTH_MIN: usize = 32;

impl Default for KeySpec {
    fn default() -> Self {
        Self {
            secret: None,
            hash: None,
            tenant: DEFAULT_TENANT.to_owned(),
            models: Vec::new(),
            rps: None,
            rpm: None,
            tpm: None,
            max_parallel: None,
            expires: None,
            team: None,
            roles: Vec::new(),
            budgets: Vec::new(),
        }
    }
}

impl KeySpec {
    /// What can be said of the key alone; [`super::resources::Resources::check`] looks at what it refers to.
    pub fn check(&self, problems: &mut Problems) {
        match (&self.secret, &self.hash) {
            (Some(_), Some(_)) => problems.add("hash", "stands beside `secret`; give one or the other"),
            (None, None) => problems.add("", "has neither `secret` nor `hash`"),
            (Some(_), None) | (None, Some(_)) => {}
        }
        if let Some(text) = self.secret.as_ref().and_then(SecretRef::literal) {
            check_secret("secret", text, problems);
        }
        if let Some(hash) = &self.hash
            && KeyHash::parse(hash).is_none()
        {
            problems.add("hash", "is not `b3:` and 64 hexadecimal digits; `keys new` prints one");
        }
        problems.within("models", |problems| {
            for (index, pattern) in self.models.iter().enumerate() {
                if let Err(wrong) = Pattern::parse(pattern) {
                    problems.add(&index.to_string(), format!("`{pattern}` {wrong}"));
                }
            }
        });
        if self.rps == Some(0) {
            problems.add("rps", "is 0; leave it out for no limit, or remove the key to refuse it");
        }
        if self.rpm == Some(0) {
            problems.add("rpm", "is 0; leave it out for no limit, or remove the key to refuse it");
        }
        if self.tpm == Some(0) {
            problems.add("tpm", "is 0; leave it out for no limit, or remove the key to refuse it");
        }
        if self.max_parallel == Some(0) {
            problems.add("max_parallel", "is 0; leave it out for no limit, or remove the key to refuse it");
        }
        if let Some(expires) = &self.expires
            && parse_expiry(expires).is_none()
        {
            let wanted = "wanted a date such as `2027-01-01` or a time such as `2027-01-01T08:00:00Z`";
            problems.add("expires", format!("`{expires}` is neither a date nor a time; {wanted}"));
        }
        problems.within("roles", |problems| {
            for (index, role) in self.roles.iter().enumerate() {
                if self.roles[..index].contains(role) {
                    problems.add(&index.to_string(), format!("`{role}` is listed twice"));
                }
            }
        });
    }
}

/// What is wrong with a key's text, without repeating it.
pub(super) fn check_secret(path: &str, text: &str, problems: &mut Problems) {
    let length = text.chars().count();
    if length < SECRET_LENGTH_MIN {
        problems.add(path, format!("has {length} characters; a key needs at least {SECRET_LENGTH_MIN}"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        problems.add(path, "has characters that cannot stand in a header; use visible ASCII");
    }
}

/// Since 1970. A date alone is its first moment in UTC.
pub fn parse_expiry(text: &str) -> Option<Duration> {
    let date_only = text.len() == "2027-01-01".len();
    let whole = if date_only { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let time = humantime::parse_rfc3339(&whole).ok()?;
    time.duration_since(std::time::UNIX_EPOCH).ok()
}

/// BLAKE3 of a key's whole text: what keys are found by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    pub fn of(text: &str) -> Self {
        Self(*blake3::hash(text.as_bytes()).as_bytes())
    }

    /// `b3:` and 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text.strip_prefix("b3:")?).ok().map(|hash| Self(*hash.as_bytes()))
    }

    /// As [`KeyHash::parse`] reads it.
    pub fn to_text(self) -> String {
        format!("b3:{}", blake3::Hash::from_bytes(self.0).to_hex())
    }

    /// Which of 256 parts it belongs to.
    pub(super) const fn first_byte(&self) -> u8 {
        self.0[0]
    }
}

/// Only the start: enough to tell two apart in a log.
impl Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", &self.to_text()[..11])
    }
}

/// Its last eight bytes; it is a hash already. Not the first: all keys of a shard have the first byte in common.
impl Hash for KeyHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.last_chunk().map_or(0, |word| u64::from_le_bytes(*word)));
    }
}

fn first_word(bytes: &[u8; 32]) -> u64 {
    bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

/// Passes a [`KeyHash`] through. Who cannot choose BLAKE3's output cannot choose collisions either.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

/// A key as it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    pub name: String,
    pub tenant: Arc<str>,
    pub team: Option<Arc<str>>,
    /// Not empty: a key of operators, for the admin API and for nothing else.
    pub roles: Box<[Box<str>]>,
    pub models: ModelFilter,
    pub rps: Option<u32>,
    pub rpm: Option<u32>,
    pub tpm: Option<u64>,
    pub max_parallel: Option<u32>,
    pub budgets: Box<[Box<str>]>,
    /// Since 1970; from then on it is refused.
    pub expires_at: Option<Duration>,
    /// The same for the same name, in every process.
    pub id: u64,
}

impl Key {
    pub fn new(name: &str, spec: &KeySpec) -> Self {
        Self {
            name: name.to_owned(),
            tenant: spec.tenant.as_str().into(),
            team: spec.team.as_deref().map(Into::into),
            roles: spec.roles.iter().map(|role| role.as_str().into()).collect(),
            models: ModelFilter::new(spec.models.iter().filter_map(|text| Pattern::parse(text).ok())),
            rps: spec.rps,
            rpm: spec.rpm,
            tpm: spec.tpm,
            max_parallel: spec.max_parallel,
            budgets: spec.budgets.iter().map(|budget| budget.as_str().into()).collect(),
            expires_at: spec.expires.as_deref().and_then(parse_expiry),
            id: first_word(&KeyHash::of(name).0),
        }
    }

    /// For `auth: none`: everyone, with everything allowed.
    pub fn anonymous() -> Self {
        Self::new("anonymous", &KeySpec::default())
    }

    /// `now` since 1970.
    pub fn is_expired(&self, now: Duration) -> bool {
        self.expires_at.is_some_and(|expires_at| now >= expires_at)
    }
}

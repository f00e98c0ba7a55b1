//! Where models are served.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problems::Problems;
use super::secret::SecretRef;

/// An LLM API that calls are sent to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProviderSpec {
    /// Which vendor's API it speaks: `openai`, `anthropic`, `compatible` (anything that speaks `openai`), or one of the
    /// known vendors. Defaults to the provider's own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,

    /// Where the API starts, with its version: `https://api.openai.com/v1`. Defaults to the vendor's own; `compatible`
    /// needs one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,

    /// The credential: `"${ENV}"`, `{ file: PATH }`, or `none` where the API wants no credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<SecretRef>,

    /// Several credentials, used in turn; one that is refused or throttled is left out for a while.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_keys: Vec<SecretRef>,

    /// The models it serves, by its own names: they are listed, and a model name without a provider finds the one
    /// provider that has it. Empty: those of the table that comes with the program, for this kind. Others may still be
    /// asked for as `provider/model`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,

    /// How long to wait for it.
    pub timeouts: TimeoutsConfig,

    /// When it is taken out of rotation.
    pub breaker: BreakerConfig,

    /// Connections open to it at most, from this node.
    pub connections_max: NonZeroU32,

    /// Whether HTTP/2 is offered. Off, every call in flight has its own connection, which is faster for most vendors.
    pub http2: bool,

    /// A file of PEM certificates to trust besides the usual ones, for an API behind a private authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,

    /// Headers sent with each call. Not the place for credentials: these values are shown.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,

    /// What happens to fields of a request that this provider's dialect cannot say.
    pub on_unknown_fields: OnUnknownFields,

    /// Names of `budgets` that all calls to it must fit in. At most 8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<String>,
}

/// What happens to fields that cannot be translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknownFields {
    /// They are left out.
    #[default]
    Drop,
    /// The request is refused.
    Refuse,
}

/// How long to wait for a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TimeoutsConfig {
    /// For a connection, TLS included.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub connect: Duration,

    /// From the request to the head of the response, and on a stream to its first content.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub first_token: Duration,

    /// Between two pieces of a stream.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub idle: Duration,

    /// For the whole answer.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub total: Duration,
}

/// When a provider is taken out of rotation, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// Failures in a row that open the breaker.
    pub failures_max: NonZeroU32,

    /// The share of failures within the window that opens it, in percent.
    pub failure_share: u8,

    /// How far back the share looks.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub window: Duration,

    /// Calls that must have ended within the window before the share counts.
    pub requests_min: NonZeroU32,

    /// How long it stays open before one request is let through as a probe.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub open_for: Duration,
}

const fn at_least_one(number: u32) -> NonZeroU32 {
    match NonZeroU32::new(number) {
        Some(number) => number,
        None => NonZeroU32::MIN,
    }
}

impl Default for ProviderSpec {
    fn default() -> Self {
        Self {
            kind: None,
            base_url: None,
            api_key: None,
            api_keys: Vec::new(),
            models: Vec::new(),
            timeouts: TimeoutsConfig::default(),
            breaker: BreakerConfig::default(),
            connections_max: at_least_one(1024),
            http2: false,
            ca: None,
            headers: BTreeMap::new(),
            on_unknown_fields: OnUnknownFields::default(),
            budgets: Vec::new(),
        }
    }
}

impl Default for TimeoutsConfig {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_token: Duration::from_secs(30),
            idle: Duration::from_mins(2),
            total: Duration::from_mins(10),
        }
    }
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures_max: at_least_one(5),
            failure_share: 50,
            window: Duration::from_secs(30),
            requests_min: at_least_one(20),
            open_for: Duration::from_secs(10),
        }
    }
}

impl ProviderSpec {
    /// The vendor whose API it speaks.
    pub fn kind<'a>(&'a self, name: &'a str) -> &'a str {
        self.kind.as_deref().unwrap_or(name)
    }

    /// Every credential, with the path it was written at.
    pub fn credentials(&self) -> impl Iterator<Item = &SecretRef> {
        self.api_key.iter().chain(&self.api_keys).filter(|secret| !secret.is_none())
    }

    /// What a [`super::secret::SecretSource::Local`] of this provider refers to, in the file it stands in.
    pub fn local_credential(&self, index: usize) -> Option<&SecretRef> {
        self.api_key.iter().chain(&self.api_keys).nth(index)
    }

    pub fn check(&self, problems: &mut Problems) {
        if let Some(base_url) = &self.base_url
            && let Err(wrong) = check_base_url(base_url)
        {
            problems.add("base_url", format!("`{base_url}` {wrong}"));
        }
        if self.api_key.is_some() && !self.api_keys.is_empty() {
            problems.add("api_keys", "stands beside `api_key`; give one or the other");
        }
        problems.within("api_keys", |problems| {
            for (index, secret) in self.api_keys.iter().enumerate() {
                if secret.is_none() {
                    problems.add(&index.to_string(), "is `none`, which only `api_key` may be");
                }
            }
        });
        problems.within("models", |problems| check_model_names(&self.models, problems));
        problems.within("headers", |problems| {
            for (name, value) in &self.headers {
                check_header(name, value, problems);
            }
        });
        problems.within("timeouts", |problems| self.timeouts.check(problems));
        problems.within("breaker", |problems| self.breaker.check(problems));
    }
}

impl TimeoutsConfig {
    pub fn check(&self, problems: &mut Problems) {
        let all =
            [("connect", self.connect), ("first_token", self.first_token), ("idle", self.idle), ("total", self.total)];
        for (field, duration) in all {
            if duration.is_zero() {
                problems.add(field, "is 0s; nothing answers in no time");
            }
        }
    }
}

impl BreakerConfig {
    pub fn check(&self, problems: &mut Problems) {
        if self.failure_share == 0 || self.failure_share > 100 {
            problems.add("failure_share", format!("is {}; wanted a percentage from 1 to 100", self.failure_share));
        }
        if self.window.is_zero() {
            problems.add("window", "is 0s; a share needs a time to look back over");
        }
        if self.open_for.is_zero() {
            problems.add("open_for", "is 0s; a breaker must stay open for a while");
        }
    }
}

fn check_model_names(models: &[String], problems: &mut Problems) {
    for (index, model) in models.iter().enumerate() {
        if model.is_empty() || model.contains('*') {
            problems.add(&index.to_string(), format!("`{model}` is not the name of a model"));
        }
        if models[..index].contains(model) {
            problems.add(&index.to_string(), format!("`{model}` is listed twice"));
        }
    }
}

/// Says what is wrong, as the end of a sentence about the URL.
fn check_base_url(url: &str) -> Result<(), &'static str> {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"))
        .ok_or("does not start with `https://` or `http://`")?;
    if rest.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
        return Err("has a space in it");
    }
    if rest.contains(['?', '#']) {
        return Err("has a query or a fragment; the path of a call is appended to it");
    }
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.contains('@') {
        return Err("has credentials in it; they belong into `api_key`");
    }
    // The port stands after the last colon, unless that colon is inside an IPv6 address.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
    };
    if host.is_empty() {
        return Err("has no host");
    }
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err("has a port that is no number up to 65535");
    }
    Ok(())
}

/// Whether a provider's address is plainly not on the public network: `localhost`, or an address written as a number
/// that is loopback, link-local, private or otherwise never routed. What cannot be judged counts as private. A name may
/// still lead to a private address: that is only known when it is resolved, on each node.
pub fn is_private(base_url: &str) -> bool {
    let rest = base_url.split_once("://").map_or(base_url, |(_scheme, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority.rsplit_once('@').map_or(authority, |(_user, host)| host);
    if let Some((address, _port)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let address = address.split('%').next().unwrap_or_default();
        return address.parse().map_or(true, is_private_v6);
    }
    let host = authority.split(':').next().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    let is_name = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if host.is_empty() || !is_name || host == "localhost" || host.ends_with(".localhost") {
        return true;
    }
    // A name whose last label begins with a digit is an address to resolvers, in one of its old spellings too.
    if host.rsplit('.').next().is_some_and(|label| label.starts_with(|letter: char| letter.is_ascii_digit())) {
        return old_spelling(&host).is_none_or(is_private_v4);
    }
    false
}

/// One to four numbers, the last of which fills what is left: `127.1`, `0x7f000001`, `017700000001`.
fn old_spelling(host: &str) -> Option<Ipv4Addr> {
    let number = |text: &str| match (text.strip_prefix("0x"), text.strip_prefix('0')) {
        (Some(hex), _) => u64::from_str_radix(hex, 16).ok(),
        (None, Some(octal)) if !octal.is_empty() => u64::from_str_radix(octal, 8).ok(),
        (None, Some(_) | None) => text.parse().ok(),
    };
    let numbers: Vec<u64> = host.split('.').map(number).collect::<Option<_>>()?;
    let (last, first) = numbers.split_last()?;
    let left = 4usize.checked_sub(first.len())?;
    let room = 1u64 << (8 * u32::try_from(left).ok()?);
    if left == 0 || *last >= room || first.iter().any(|number| *number > 255) {
        return None;
    }
    let head = first.iter().zip([24, 16, 8]).fold(0, |sum, (number, shift)| sum | (number << shift));
    u32::try_from(head | last).ok().map(Ipv4Addr::from)
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let special = a == 0 || a >= 224 || (a, b, c) == (192, 0, 0) || (a == 198 && (b == 18 || b == 19));
    address.is_loopback() || address.is_private() || address.is_link_local() || shared || special
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    let tail = u32::try_from(address.to_bits() & u128::from(u32::MAX)).map(Ipv4Addr::from);
    let embedded = match address.segments() {
        // Mapped, compatible, and translated.
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => tail.ok(),
        [0x2002, high, low, ..] => Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))),
        _ => None,
    };
    let unique_local = first & 0xfe00 == 0xfc00;
    let link_local = first & 0xffc0 == 0xfe80 || first & 0xffc0 == 0xfec0;
    let local_translation = first == 0x64 && second == 0xff9b && embedded.is_none();
    address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || unique_local
        || link_local
        || local_translation
        || embedded.is_some_and(is_private_v4)
}

/// Headers the gateway writes itself, or that say how one connection is used.
const RESERVED_HEADERS: [&str; 14] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
    "x-goog-api-key",
];

fn check_header(name: &str, value: &str, problems: &mut Problems) {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        problems.add(name, "is not a header's name");
    }
    if RESERVED_HEADERS.iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
        problems.add(name, "is written by the gateway itself");
    }
    if value.bytes().any(|byte| byte.is_ascii_control()) {
        problems.add(name, "has a control character in its value");
    }
}

/// A provider as it is published: what was left out is filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    pub name: Arc<str>,
    /// `name/*`: how routes nobody configured are called in metrics and logs.
    pub label: Arc<str>,
    pub kind: String,
    /// Without a slash at its end. `None`: the vendor's own, which the table of vendors knows.
    pub base_url: Option<String>,
    /// How many credentials it has; 0 sends none.
    pub credentials: usize,
    /// Where they are to be found, in order.
    pub credential_refs: Vec<SecretRef>,
    pub timeouts: TimeoutsConfig,
    pub breaker: BreakerConfig,
    pub connections_max: NonZeroU32,
    pub http2: bool,
    pub ca: Option<PathBuf>,
    pub headers: BTreeMap<String, String>,
    pub on_unknown_fields: OnUnknownFields,
    pub budgets: Box<[Box<str>]>,
    /// An operator took it out of use: no route leads to it.
    pub off: bool,
}

impl Provider {
    pub fn new(name: &str, spec: &ProviderSpec) -> Self {
        let credential_refs: Vec<SecretRef> = spec.credentials().cloned().collect();
        Self {
            name: name.into(),
            label: format!("{name}/*").into(),
            kind: spec.kind(name).to_owned(),
            base_url: spec.base_url.as_deref().map(|url| url.trim_end_matches('/').to_owned()),
            credentials: credential_refs.len(),
            credential_refs,
            timeouts: spec.timeouts,
            breaker: spec.breaker,
            connections_max: spec.connections_max,
            http2: spec.http2,
            ca: spec.ca.clone(),
            headers: spec.headers.clone(),
            on_unknown_fields: spec.on_unknown_fields,
            budgets: spec.budgets.iter().map(|budget| budget.as_str().into()).collect(),
            off: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_seen_in_every_spelling() {
        let hosts = [
            "localhost",
            "LOCALHOST.",
            "api.localhost",
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "10.1.2.3",
            "172.31.255.255",
            "192.168.0.1",
            "192.168.257",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "1.2.3.4.5",
            "256.1.1.1",
            "1.2.3.300",
            "09.1.1.1",
            "%6cocalhost",
            "[::1]",
            "[::]",
            "[fe80::1%eth0]",
            "[fd00::1]",
            "[::ffff:10.0.0.1]",
            "[::127.0.0.1]",
            "[64:ff9b::a00:1]",
            "[64:ff9b:1::1]",
            "[2002:a00:1::1]",
            "[nonsense]",
            "user@10.0.0.1",
            "",
        ];
        for host in hosts {
            assert!(is_private(&format!("https://{host}:8443/v1")), "{host}");
        }
    }

    #[test]
    fn public_addresses_and_names_are_not_private() {
        let hosts = [
            "api.openai.com",
            "api.openai.com.",
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "1.1",
            "[2606:4700::1111]",
            "[::ffff:8.8.8.8]",
            "[2002:808:808::1]",
            "10.example.com",
            "localhost.example.com",
        ];
        for host in hosts {
            assert!(!is_private(&format!("https://{host}:8443/v1")), "{host}");
        }
    }
}

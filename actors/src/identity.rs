//! Headers → [`Principal`]: who calls.

pub mod metrics;

use cluster::directory::Directory;
use cluster::directory::key::{Key, KeyHash};
use http::{HeaderMap, header};
use std::borrow::Cow;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// Finds the key a request presents. No await; nothing is allocated unless a key in the query is percent-encoded.
pub fn authenticate(
    directory: &Directory,
    identity: Identity,
    headers: &HeaderMap,
    query: Option<&str>,
    since_epoch: Duration,
) -> Result<Principal, IdentityError> {
    let found = match identity {
        Identity::Open => return Ok(Principal { key: Arc::clone(&ANONYMOUS), hash: None }),
        Identity::Keys => presented(headers, query).and_then(|text| lookup(directory, &text, since_epoch)),
    };
    found.inspect_err(|error| ::metrics::counter!(metrics::REFUSED, "reason" => error.reason()).increment(1))
}

/// Whether callers must show a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    Keys,
    /// `auth: none`: everyone is `anonymous` of the tenant `default`, whatever key is presented.
    Open,
}

/// Who calls. The receipt of this stage.
#[derive(Clone, Debug)]
#[must_use]
pub struct Principal {
    pub key: Arc<Key>,
    /// What the key was found by. `None`: none was asked for.
    pub hash: Option<KeyHash>,
}

/// Why a caller is not known. The caller's fault; the same request will be refused again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("no API key was presented; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`")]
    Missing,
    #[error("the API key is not known here")]
    Unknown,
    #[error("the API key `{key}` has expired")]
    Expired { key: String },
    /// Someone who administers by a key must not also spend by it.
    #[error("the API key `{key}` has roles, so it is for the admin API only")]
    AdminOnly { key: String },
}

impl IdentityError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Unknown => "unknown",
            Self::Expired { .. } => "expired",
            Self::AdminOnly { .. } => "admin_only",
        }
    }
}

/// The key as the client wrote it. Where several are presented the first counts, in this order: `Authorization:
/// Bearer`, `x-api-key`, `api-key`, `x-goog-api-key`, `?key=`. An empty one, or another `Authorization` scheme, is as
/// none.
pub fn presented<'a>(headers: &'a HeaderMap, query: Option<&'a str>) -> Result<Cow<'a, str>, IdentityError> {
    let header = |name: &str| headers.get(name).map(http::HeaderValue::as_bytes);
    let bearer = header(header::AUTHORIZATION.as_str()).and_then(bearer);
    let found = bearer
        .into_iter()
        .chain(["x-api-key", "api-key", "x-goog-api-key"].into_iter().filter_map(header))
        .map(<[u8]>::trim_ascii)
        .find(|key| !key.is_empty());
    match found {
        Some(key) => std::str::from_utf8(key).map(Cow::Borrowed).map_err(|_not_text| IdentityError::Unknown),
        None => query.and_then(key_in_query).ok_or(IdentityError::Missing),
    }
}

static ANONYMOUS: LazyLock<Arc<Key>> = LazyLock::new(|| Arc::new(Key::anonymous()));

fn lookup(directory: &Directory, text: &str, since_epoch: Duration) -> Result<Principal, IdentityError> {
    let hash = KeyHash::of(text);
    let key = directory.key(&hash).ok_or(IdentityError::Unknown)?;
    if key.is_expired(since_epoch) {
        return Err(IdentityError::Expired { key: key.name.clone() });
    }
    if !key.roles.is_empty() {
        return Err(IdentityError::AdminOnly { key: key.name.clone() });
    }
    Ok(Principal { key: Arc::clone(key), hash: Some(hash) })
}

/// What follows the scheme `Bearer`, in any case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let value = value.trim_ascii();
    let (scheme, rest) = value.split_at_checked("Bearer".len())?;
    let separated = rest.first().is_some_and(u8::is_ascii_whitespace);
    (scheme.eq_ignore_ascii_case(b"Bearer") && separated).then_some(rest)
}

fn key_in_query(query: &str) -> Option<Cow<'_, str>> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("key="))?;
    let key = percent_decoded(value)?;
    (!key.is_empty()).then_some(key)
}

/// `None` where the escapes are not what they should be, or not text.
fn percent_decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => (hex_digit(rest.next()?)? << 4) | hex_digit(rest.next()?)?,
            plain => plain,
        };
        decoded.push(byte);
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::directory::key::KeySpec;
    use cluster::directory::resources::Resources;
    use http::HeaderValue;
    use proptest::prelude::*;
    use std::fmt::Write;

    const TEXT: &str = "lea-0123456789ab-0123456789abcdef0123456789abcdef";
    /// 2027-01-01 in whole hours since 1970.
    const EXPIRES: Duration = Duration::from_hours(499_656);

    fn directory() -> Directory {
        let mut resources = Resources::default();
        let hash = Some(KeyHash::of(TEXT).to_text());
        let spec = KeySpec { hash, expires: Some("2027-01-01".to_owned()), ..KeySpec::default() };
        resources.keys.insert("web".to_owned(), spec);
        Directory::build(&resources, &|_secret| None).expect("no problem")
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().expect("a value")))
            .collect()
    }

    fn name_of(pairs: &[(&'static str, &str)], query: Option<&str>) -> Result<String, IdentityError> {
        let headers = headers(pairs);
        authenticate(&directory(), Identity::Keys, &headers, query, Duration::ZERO).map(|found| found.key.name.clone())
    }

    #[test]
    fn every_way_to_present_a_key_is_taken() {
        for scheme in ["Bearer", "bearer", "BEARER"] {
            assert_eq!(name_of(&[("authorization", &format!("{scheme}  {TEXT} "))], None).as_deref(), Ok("web"));
        }
        for name in ["x-api-key", "api-key", "x-goog-api-key"] {
            assert_eq!(name_of(&[(name, TEXT)], None).as_deref(), Ok("web"), "{name}");
        }
        assert_eq!(name_of(&[], Some(&format!("alt=sse&key={TEXT}"))).as_deref(), Ok("web"));
        let escaped = TEXT.replace('-', "%2D");
        assert_eq!(name_of(&[], Some(&format!("key={escaped}&alt=sse"))).as_deref(), Ok("web"));
    }

    #[test]
    fn the_first_presented_counts() {
        assert_eq!(
            name_of(&[("authorization", "Bearer wrong"), ("x-api-key", TEXT)], None),
            Err(IdentityError::Unknown)
        );
        assert_eq!(name_of(&[("x-api-key", "wrong"), ("api-key", TEXT)], None), Err(IdentityError::Unknown));
        assert_eq!(name_of(&[("x-goog-api-key", TEXT)], Some("key=wrong")).as_deref(), Ok("web"));
    }

    #[test]
    fn nothing_presented_is_told_apart_from_something_unknown() {
        for nothing in
            [&[][..], &[("authorization", "Bearer ")], &[("authorization", "Basic abc")], &[("x-api-key", " ")]]
        {
            assert_eq!(name_of(nothing, Some("key=&monkey=x")), Err(IdentityError::Missing), "{nothing:?}");
        }
        assert_eq!(name_of(&[("authorization", "Basic abc"), ("x-api-key", TEXT)], None).as_deref(), Ok("web"));
        assert_eq!(name_of(&[("x-api-key", &TEXT[1..])], None), Err(IdentityError::Unknown));
        let mut bytes = HeaderMap::new();
        bytes.insert("x-api-key", HeaderValue::from_bytes(&[0xff, 0xfe]).expect("allowed in a header"));
        assert_eq!(presented(&bytes, None), Err(IdentityError::Unknown));
    }

    #[test]
    fn a_key_ends_at_its_date() {
        let headers = headers(&[("x-api-key", TEXT)]);
        let at = |time| authenticate(&directory(), Identity::Keys, &headers, None, time).map(|_known| ());

        assert_eq!(at(EXPIRES.saturating_sub(Duration::from_nanos(1))), Ok(()));
        assert_eq!(at(EXPIRES), Err(IdentityError::Expired { key: "web".to_owned() }));
    }

    /// A key of operators is for the admin API alone: it is in more hands' scripts than one would like to pay for.
    #[test]
    fn a_key_with_roles_calls_no_model() {
        let mut resources = Resources::default();
        let hash = Some(KeyHash::of(TEXT).to_text());
        let spec = KeySpec { hash, roles: vec!["viewer".to_owned()], ..KeySpec::default() };
        resources.keys.insert("ops".to_owned(), spec);
        let directory = Directory::build(&resources, &|_secret| None).expect("no problem");

        let found = authenticate(&directory, Identity::Keys, &headers(&[("x-api-key", TEXT)]), None, Duration::ZERO);

        assert_eq!(found.map(|_known| ()), Err(IdentityError::AdminOnly { key: "ops".to_owned() }));
    }

    #[test]
    fn without_keys_everyone_is_anonymous() {
        let headers = headers(&[("x-api-key", "whatever")]);

        let found = authenticate(&directory(), Identity::Open, &headers, None, Duration::MAX).expect("anyone may");

        assert_eq!((found.key.name.as_str(), &*found.key.tenant), ("anonymous", "default"));
    }

    proptest! {
        /// Nothing that comes from outside may panic.
        #[test]
        fn anything_may_be_presented(value in proptest::collection::vec(any::<u8>(), 0..60), query in ".{0,60}") {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.insert(header::AUTHORIZATION, value);
            }
            let _any = presented(&headers, Some(&query));
        }

        #[test]
        fn escapes_are_undone(text in "\\PC{1,40}") {
            let mut query = String::from("key=");
            for byte in text.bytes() {
                write!(query, "%{byte:02x}").expect("a string takes everything");
            }
            let none = HeaderMap::new();
            prop_assert_eq!(presented(&none, Some(&query)), Ok(Cow::Owned(text)));
        }
    }
}

//! The credentials of one provider: used in turn, and left out for a while once the provider refused or throttled one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use llm::dialect::Dialect;
use llm::fault::Fault;
use parking_lot::Mutex;

/// How long a refused credential is left out before it is tried again: long enough not to spoil requests with it,
/// short enough that topping up an account needs no restart.
pub const DEAD_FOR: Duration = Duration::from_mins(1);

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A provider's secret. Prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    pub fn new(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// How the API wants to be shown it. `None` when it has characters no header may have.
    fn header(&self, dialect: Dialect) -> Option<(HeaderName, HeaderValue)> {
        let (name, value) = match dialect {
            Dialect::OpenAiChat => (AUTHORIZATION, HeaderValue::try_from(format!("Bearer {}", self.0))),
            Dialect::AnthropicMessages => (X_API_KEY, HeaderValue::from_str(&self.0)),
        };
        let mut value = value.ok()?;
        value.set_sensitive(true);
        Some((name, value))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// What a provider said of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// 401, 402, 403.
    Dead,
    /// 429.
    Throttled,
}

impl Flag {
    pub fn name(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Throttled => "throttled",
        }
    }
}

/// A flag as nodes tell each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flagged {
    /// Which of the provider's credentials: see `mark_of`.
    pub credential: u32,
    pub flag: Flag,
    pub until: Instant,
}

/// The credential of one call. Cheap to clone; a flag put on it is seen by every later pick.
#[derive(Clone, Debug)]
pub struct Credential {
    index: usize,
    slot: Arc<Slot>,
}

impl Credential {
    /// Its place in the configuration; what `tried` lists.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Leaves it out until `until`. An earlier flag that lasts longer stands.
    pub fn flag(&self, flag: Flag, until: Instant) {
        longer(&mut self.slot.flags.lock().here, flag, until);
    }

    /// Takes the secret out of what the provider said: some repeat the request's headers in their errors.
    pub fn strike_from(&self, fault: &mut Fault) {
        let Some(Secret(secret)) = &self.slot.secret else { return };
        for text in std::iter::once(&mut fault.message).chain(&mut fault.param) {
            if text.contains(&**secret) {
                *text = text.replace(&**secret, "***");
            }
        }
    }

    pub(super) fn header(&self) -> Option<&(HeaderName, HeaderValue)> {
        self.slot.header.as_ref()
    }
}

/// One credential and what is known of it.
struct Slot {
    /// `None`: nothing is sent.
    secret: Option<Secret>,
    header: Option<(HeaderName, HeaderValue)>,
    /// What other nodes call it by.
    mark: u32,
    flags: Mutex<Flags>,
}

/// What providers said of a credential. Only what they said to this node is told on.
#[derive(Clone, Copy, Debug, Default)]
struct Flags {
    here: Option<(Flag, Instant)>,
    elsewhere: Option<(Flag, Instant)>,
}

impl Flags {
    /// The one that lasts longest.
    fn at(&self, now: Instant) -> Option<(Flag, Instant)> {
        let standing = |flag: &(Flag, Instant)| flag.1 > now;
        self.here.into_iter().chain(self.elsewhere).filter(standing).max_by_key(|(_, until)| *until)
    }
}

fn longer(known: &mut Option<(Flag, Instant)>, flag: Flag, until: Instant) {
    if known.is_none_or(|(_, standing)| standing < until) {
        *known = Some((flag, until));
    }
}

/// A few bits of a hash for this purpose alone: enough to tell a provider's credentials apart on every node that has
/// them, wherever they stand in its file, and far too few to find one by.
fn mark_of(secret: Option<&Secret>) -> u32 {
    let mut hasher = blake3::Hasher::new_derive_key("llm-edge-agent: which credential of a provider");
    if let Some(Secret(secret)) = secret {
        hasher.update(secret.as_bytes());
    }
    hasher.finalize().as_bytes().first_chunk().map_or(0, |word| u32::from_be_bytes(*word))
}

impl Slot {
    fn new(secret: Option<Secret>, header: Option<(HeaderName, HeaderValue)>) -> Self {
        Self { mark: mark_of(secret.as_ref()), secret, header, flags: Mutex::default() }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Slot").field("flags", &self.flags).finish_non_exhaustive()
    }
}

/// Which credentials may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// At least one.
    Usable,
    /// None; the first is back then.
    Throttled { until: Instant },
    /// None, and every one was refused.
    Dead { until: Instant },
}

/// The credential at `index` cannot be sent in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("credential {index} has characters that no header may have")]
pub struct Unsendable {
    pub index: usize,
}

#[derive(Debug)]
pub struct Credentials {
    slots: Vec<Arc<Slot>>,
    turn: AtomicUsize,
}

impl Credentials {
    /// No secrets at all means that none is sent. What `before` knows of a secret that is still there is kept.
    pub fn new(secrets: &[Secret], dialect: Dialect, before: Option<&Self>) -> Result<Self, Unsendable> {
        let known = before.map(|before| before.slots.as_slice()).unwrap_or_default();
        let mut slots = Vec::with_capacity(secrets.len().max(1));
        for (index, secret) in secrets.iter().enumerate() {
            let header = secret.header(dialect).ok_or(Unsendable { index })?;
            let same =
                known.iter().find(|slot| slot.secret.as_ref() == Some(secret) && slot.header.as_ref() == Some(&header));
            slots.push(match same {
                Some(slot) => Arc::clone(slot),
                None => Arc::new(Slot::new(Some(secret.clone()), Some(header))),
            });
        }
        if slots.is_empty() {
            slots.push(Arc::new(Slot::new(None, None)));
        }
        Ok(Self { slots, turn: AtomicUsize::new(0) })
    }

    /// The next in turn that is neither flagged nor among those `tried`.
    pub fn pick(&self, tried: &[usize], now: Instant) -> Option<Credential> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        (0..self.slots.len())
            .map(|step| turn.wrapping_add(step) % self.slots.len())
            .filter(|index| !tried.contains(index))
            .filter_map(|index| Some(Credential { index, slot: Arc::clone(self.slots.get(index)?) }))
            .find(|credential| standing_flag(&credential.slot, now).is_none())
    }

    /// What the provider said to this node and still counts, by credential.
    pub fn flagged_here(&self, now: Instant) -> impl Iterator<Item = Flagged> {
        self.slots.iter().filter_map(move |slot| {
            let (flag, until) = slot.flags.lock().here.filter(|(_, until)| *until > now)?;
            Some(Flagged { credential: slot.mark, flag, until })
        })
    }

    /// What the provider said to another node. Whether this one has that credential.
    pub fn flag_elsewhere(&self, flagged: Flagged) -> bool {
        let slot = self.slots.iter().find(|slot| slot.mark == flagged.credential);
        if let Some(slot) = slot {
            longer(&mut slot.flags.lock().elsewhere, flagged.flag, flagged.until);
        }
        slot.is_some()
    }

    pub fn standing(&self, now: Instant) -> Standing {
        let mut throttled: Option<Instant> = None;
        let mut dead: Option<Instant> = None;
        for slot in &self.slots {
            let (kind, until) = match standing_flag(slot, now) {
                None => return Standing::Usable,
                Some((Flag::Throttled, until)) => (&mut throttled, until),
                Some((Flag::Dead, until)) => (&mut dead, until),
            };
            *kind = Some(kind.map_or(until, |earliest| earliest.min(until)));
        }
        match (throttled, dead) {
            (Some(until), _) => Standing::Throttled { until },
            (None, Some(until)) => Standing::Dead { until },
            (None, None) => Standing::Usable,
        }
    }
}

fn standing_flag(slot: &Slot, now: Instant) -> Option<(Flag, Instant)> {
    slot.flags.lock().at(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(secrets: &[&str]) -> Credentials {
        let secrets: Vec<_> = secrets.iter().map(|text| Secret::new(text)).collect();
        Credentials::new(&secrets, Dialect::OpenAiChat, None).unwrap()
    }

    fn picked(credentials: &Credentials, tried: &[usize], now: Instant) -> Option<usize> {
        credentials.pick(tried, now).map(|credential| credential.index())
    }

    #[test]
    fn credentials_take_turns() {
        let credentials = credentials(&["a", "b", "c"]);
        let now = cluster::clock::now();

        let order: Vec<_> = (0..6).filter_map(|_| picked(&credentials, &[], now)).collect();

        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_flagged_or_tried_credential_is_left_out_until_its_time() {
        let credentials = credentials(&["a", "b"]);
        let now = cluster::clock::now();
        let until = now + DEAD_FOR;

        credentials.pick(&[1], now).unwrap().flag(Flag::Dead, until);

        assert_eq!(picked(&credentials, &[], now), Some(1));
        assert_eq!(picked(&credentials, &[], now), Some(1));
        assert_eq!(picked(&credentials, &[1], now), None);
        assert_eq!(picked(&credentials, &[1], until), Some(0));
    }

    #[test]
    fn a_shorter_flag_does_not_end_a_longer_one() {
        let credentials = credentials(&["a"]);
        let now = cluster::clock::now();
        let credential = credentials.pick(&[], now).unwrap();

        credential.flag(Flag::Throttled, now + Duration::from_mins(1));
        credential.flag(Flag::Throttled, now + Duration::from_secs(1));

        assert_eq!(credentials.standing(now), Standing::Throttled { until: now + Duration::from_mins(1) });
    }

    #[test]
    fn the_standing_names_when_the_first_is_back() {
        let credentials = credentials(&["a", "b", "c"]);
        let now = cluster::clock::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(credentials.standing(now), Standing::Usable);

        credentials.pick(&[1, 2], now).unwrap().flag(Flag::Dead, at(5));
        credentials.pick(&[0, 2], now).unwrap().flag(Flag::Throttled, at(30));
        credentials.pick(&[0, 1], now).unwrap().flag(Flag::Throttled, at(20));

        assert_eq!(credentials.standing(now), Standing::Throttled { until: at(20) });
        assert_eq!(credentials.standing(at(6)), Standing::Usable);
    }

    #[test]
    fn all_refused_is_told_from_throttled() {
        let credentials = credentials(&["a"]);
        let now = cluster::clock::now();

        credentials.pick(&[], now).unwrap().flag(Flag::Dead, now + DEAD_FOR);

        assert_eq!(credentials.standing(now), Standing::Dead { until: now + DEAD_FOR });
    }

    /// A reload must not make a node use a credential again that was just refused.
    #[test]
    fn a_flag_survives_a_reload_that_keeps_the_secret() {
        let before = credentials(&["a", "b"]);
        let now = cluster::clock::now();
        before.pick(&[1], now).unwrap().flag(Flag::Dead, now + DEAD_FOR);

        let secrets = [Secret::new("new"), Secret::new("a")];
        let after = Credentials::new(&secrets, Dialect::OpenAiChat, Some(&before)).unwrap();

        assert_eq!(picked(&after, &[], now), Some(0));
        assert_eq!(picked(&after, &[0], now), None);
    }

    /// Nodes may list the same credentials in another order, while a change of the file rolls through the cluster.
    #[test]
    fn a_flag_told_by_another_node_finds_its_credential_and_is_not_told_on() {
        let (here, there) = (credentials(&["a", "b"]), credentials(&["new", "b", "a"]));
        let now = cluster::clock::now();
        here.pick(&[1], now).unwrap().flag(Flag::Dead, now + DEAD_FOR);

        let told: Vec<_> = here.flagged_here(now).collect();
        assert!(told.iter().all(|flagged| there.flag_elsewhere(*flagged)));

        assert_eq!(picked(&there, &[0, 1], now), None);
        assert_eq!(picked(&there, &[0, 2], now), Some(1));
        assert_eq!(picked(&there, &[0, 1], now + DEAD_FOR), Some(2));
        assert_eq!(there.flagged_here(now).count(), 0, "an echo would never end");
        assert_eq!(here.flagged_here(now + DEAD_FOR).count(), 0);
    }

    #[test]
    fn a_flag_of_a_credential_this_node_has_not_changes_nothing() {
        let credentials = credentials(&["a"]);
        let now = cluster::clock::now();

        let known = credentials.flag_elsewhere(Flagged { credential: 1, flag: Flag::Dead, until: now + DEAD_FOR });

        assert!(!known);
        assert_eq!(credentials.standing(now), Standing::Usable);
    }

    #[test]
    fn each_dialect_shows_its_credential_its_own_way() {
        let secret = Secret::new("sk-1");

        let (name, value) = secret.header(Dialect::OpenAiChat).unwrap();
        assert_eq!((name.as_str(), value.as_bytes()), ("authorization", b"Bearer sk-1".as_slice()));
        let (name, value) = secret.header(Dialect::AnthropicMessages).unwrap();
        assert_eq!((name.as_str(), value.as_bytes()), ("x-api-key", b"sk-1".as_slice()));
    }

    #[test]
    fn no_credential_sends_no_header() {
        let credentials = credentials(&[]);

        assert!(credentials.pick(&[], cluster::clock::now()).unwrap().header().is_none());
    }

    #[test]
    fn an_unsendable_secret_is_refused_without_being_shown() {
        let secrets = [Secret::new("fine"), Secret::new("two\nlines")];

        let error = Credentials::new(&secrets, Dialect::OpenAiChat, None).unwrap_err();

        assert_eq!(error, Unsendable { index: 1 });
        assert!(!error.to_string().contains("lines"));
    }

    #[test]
    fn nothing_printed_shows_a_secret() {
        let credentials = credentials(&["sk-very-secret"]);
        let credential = credentials.pick(&[], cluster::clock::now()).unwrap();

        let printed = format!(
            "{:?} {credentials:?} {credential:?} {}",
            Secret::new("sk-very-secret"),
            Secret::new("sk-very-secret")
        );

        assert!(!printed.contains("sk-very-secret"), "{printed}");
    }
    #[test]
    fn a_secret_the_provider_repeats_is_struck_out() {
        let credential = credentials(&["sk-very-secret"]).pick(&[], cluster::clock::now()).unwrap();
        let mut fault = Fault::malformed("`Bearer sk-very-secret` twice: sk-very-secret");
        fault.param = Some("sk-very-secret".to_owned());

        credential.strike_from(&mut fault);

        assert_eq!((fault.message.as_str(), fault.param.as_deref()), ("`Bearer ***` twice: ***", Some("***")));
    }
}

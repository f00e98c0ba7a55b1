//! What nodes tell each other of their breakers, as text for gossip, and what follows from it. Pure.
//!
//! A text begins with its version; then come items, each after a `;`. An item is the key of a provider and tokens: `u`
//! called lately, `o9` opened by own failures with 0.9 s to go, `f9` the same by following others, `s9` the outage
//! began 0.9 s ago, `t9` told by the provider to wait, `c9` closed by a success 0.9 s ago, `p` a probe is under way, `x`
//! and a credential's key before the `r9` refused or `t9` throttled that is said of it. A last item `+` says that not
//! everything fitted. Times are what remains or has passed, in tenths of a second: no two clocks need agree.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Bytes of a text. What does not fit is left out, the least urgent first.
pub const MARKS_MAX: usize = 512;

/// Whose turn it is to probe changes this often. The news of a probe needs less to reach everyone.
pub const TURN: Duration = Duration::from_secs(1);

/// A probe may begin only in the first part of a turn: the rest is for its news to arrive before the next turn.
const PROBE_BEGINS_WITHIN: Duration = Duration::from_millis(300);

/// By so much what is known of a moment may change without being another moment: news take longer now and then.
const MOMENT_MOVES_MAX: Duration = Duration::from_millis(250);

const VERSION: &str = "1";
const UNIT: Duration = Duration::from_millis(100);

/// The longest time a text can say. The breaker's own bounds are shorter.
const TIME_MAX: Duration = Duration::from_hours(24);

/// Names a provider, whose name may be long, by 32 bits of its hash. Two that collide share their marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u32);

impl Key {
    pub fn of(provider: &str) -> Self {
        Self(first_word(blake3::hash(provider.as_bytes())))
    }
}

fn first_word(hash: blake3::Hash) -> u32 {
    hash.as_bytes().first_chunk().map_or(0, |word| u32::from_be_bytes(*word))
}

/// What one node tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    pub providers: BTreeMap<Key, Mark>,
    pub credentials: Vec<CredentialMark>,
    /// Something was left out: the node may call providers it does not name.
    pub more: bool,
}

/// What one node tells of a provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// It called it lately.
    pub called: bool,
    pub open: Option<Open>,
    /// The provider asked it not to be called for so long.
    pub throttled: Option<Duration>,
    /// So long ago a call succeeded that closed its breaker.
    pub closed: Option<Duration>,
    pub probing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    pub why: Why,
    /// Until it may probe. Nothing: it may already.
    pub due: Duration,
    /// Since the first node opened, as far as this one knows.
    pub since: Duration,
}

/// Why a breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its own calls failed.
    Failures,
    /// Those of other nodes did. It is no evidence for anyone.
    Followed,
}

/// What a provider said of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CredentialMark {
    pub provider: Key,
    /// 32 bits of a hash. Never the secret.
    pub credential: u32,
    pub said: Said,
    pub remaining: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Refused,
    Throttled,
}

impl Marks {
    /// At most [`MARKS_MAX`] bytes.
    pub fn encode(&self) -> String {
        const MORE: &str = ";+";
        let mut items: Vec<(u8, String)> = Vec::with_capacity(self.providers.len() + self.credentials.len());
        items.extend(self.providers.iter().filter_map(|(key, mark)| Some((mark.urgency()?, mark.item(*key)))));
        items.extend(self.credentials.iter().map(|mark| (2, mark.item())));
        items.sort();
        let mut text = VERSION.to_owned();
        let mut more = self.more;
        for (_urgency, item) in items {
            if text.len() + 1 + item.len() + MORE.len() > MARKS_MAX {
                more = true;
                break;
            }
            text.push(';');
            text.push_str(&item);
        }
        if more {
            text.push_str(MORE);
        }
        text
    }

    /// What cannot be read is as if it were not there: another version's text wholly, a strange item alone.
    pub fn decode(text: &str) -> Self {
        let mut marks = Self::default();
        if text.len() > MARKS_MAX {
            return marks;
        }
        let mut items = text.split(';');
        if items.next() != Some(VERSION) {
            return marks;
        }
        for item in items {
            if item == "+" {
                marks.more = true;
            } else if let Some((key, tokens)) = key(item) {
                if let Some(tokens) = tokens.strip_prefix('x') {
                    marks.credentials.extend(CredentialMark::read(Key(key), tokens));
                } else if let Some(mark) = Mark::read(tokens) {
                    marks.providers.insert(Key(key), mark);
                }
            }
        }
        marks
    }
}

impl Mark {
    /// What ends an outage or keeps a second probe away comes first. `None`: there is nothing to tell.
    fn urgency(&self) -> Option<u8> {
        match self.open {
            _ if self.closed.is_some() || self.probing => Some(0),
            Some(Open { why: Why::Failures, .. }) => Some(1),
            _ if self.throttled.is_some() => Some(1),
            Some(Open { why: Why::Followed, .. }) => Some(3),
            None => self.called.then_some(4),
        }
    }

    fn item(&self, key: Key) -> String {
        let mut item = format!("{:08x}", key.0);
        if self.called {
            item.push('u');
        }
        if self.probing {
            item.push('p');
        }
        if let Some(Open { why, due, since }) = self.open {
            let tag = match why {
                Why::Failures => 'o',
                Why::Followed => 'f',
            };
            push(&mut item, tag, due);
            push(&mut item, 's', since);
        }
        if let Some(remaining) = self.throttled {
            push(&mut item, 't', remaining);
        }
        if let Some(ago) = self.closed {
            push(&mut item, 'c', ago);
        }
        item
    }

    fn read(mut tokens: &str) -> Option<Self> {
        let mut mark = Self::default();
        while let Some(tag) = tokens.chars().next() {
            tokens = tokens.get(tag.len_utf8()..)?;
            match tag {
                'u' => mark.called = true,
                'p' => mark.probing = true,
                'o' => mark.open = Some(Open { why: Why::Failures, due: time(&mut tokens)?, since: Duration::ZERO }),
                'f' => mark.open = Some(Open { why: Why::Followed, due: time(&mut tokens)?, since: Duration::ZERO }),
                's' => mark.open.as_mut()?.since = time(&mut tokens)?,
                't' => mark.throttled = Some(time(&mut tokens)?),
                'c' => mark.closed = Some(time(&mut tokens)?),
                _ => return None,
            }
        }
        Some(mark)
    }
}

impl CredentialMark {
    fn item(&self) -> String {
        let mut item = format!("{:08x}x{:08x}", self.provider.0, self.credential);
        let tag = match self.said {
            Said::Refused => 'r',
            Said::Throttled => 't',
        };
        push(&mut item, tag, self.remaining);
        item
    }

    fn read(provider: Key, tokens: &str) -> Option<Self> {
        let (credential, tokens) = key(tokens)?;
        let (said, mut rest) = if let Some(rest) = tokens.strip_prefix('r') {
            (Said::Refused, rest)
        } else {
            (Said::Throttled, tokens.strip_prefix('t')?)
        };
        let remaining = time(&mut rest)?;
        rest.is_empty().then_some(Self { provider, credential, said, remaining })
    }
}

/// Eight hexadecimal digits and what follows them.
fn key(text: &str) -> Option<(u32, &str)> {
    let (digits, rest) = text.split_at_checked(8)?;
    let plain = digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    Some((u32::from_str_radix(digits, 16).ok().filter(|_| plain)?, rest))
}

/// Rounded up: a provider is not called a moment too early.
fn push(item: &mut String, tag: char, time: Duration) {
    let units = time.min(TIME_MAX).as_millis().div_ceil(UNIT.as_millis());
    // Writing to a string cannot fail.
    let _written = write!(item, "{tag}{units}");
}

fn time(tokens: &mut &str) -> Option<Duration> {
    let end = tokens.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(tokens.len());
    let (digits, rest) = tokens.split_at_checked(end)?;
    *tokens = rest;
    let units: u32 = digits.parse().ok()?;
    Some((UNIT * units).min(TIME_MAX))
}

/// What one node's report says in the question whether a provider is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// It called the provider lately, so what it says counts.
    pub called: bool,
    /// Its own calls opened its breaker.
    pub open: bool,
}

/// Whether so many say that a provider is down that the others should follow: at least two, and at least half of
/// those who called it. One node with a broken resolver must not take a provider from all.
pub fn enough(reports: impl IntoIterator<Item = Report>) -> bool {
    let (mut called, mut open) = (0u32, 0u32);
    for report in reports.into_iter().filter(|report| report.called) {
        called += 1;
        open += u32::from(report.open);
    }
    open >= 2 && open * 2 >= called
}

/// When this node may probe, among all nodes whose breaker is open: they take turns of a [`TURN`], round and round, so
/// that no two begin at once, and one that is dead or has nobody to ask for it holds up nobody for longer than its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turns {
    /// When the first in rank had, or has, its first turn.
    from: Instant,
    rank: u32,
    of: u32,
}

impl Turns {
    /// `open`: the nodes whose breaker is open, this one included; `from`: what all of them take for the first moment
    /// one may probe. It must not move when a probe fails, or turns would begin anew before all had theirs. Ranked by
    /// rendezvous hash: another is first for each provider. `None`: this node is alone, every moment is its own.
    pub fn among(provider: Key, me: u64, open: impl IntoIterator<Item = u64>, from: Instant) -> Option<Self> {
        let mut ranked: Vec<(u64, u64)> = open.into_iter().map(|node| (weight(provider, node), node)).collect();
        ranked.sort_unstable();
        ranked.dedup();
        let rank = ranked.iter().position(|(_weight, node)| *node == me)?;
        let (rank, of) = (u32::try_from(rank).ok()?, u32::try_from(ranked.len()).ok()?);
        (of > 1).then_some(Self { from, rank, of })
    }

    /// Whether these are the same turns, told a little more exactly.
    pub fn same(&self, other: &Self) -> bool {
        let moved = self.from.max(other.from).saturating_duration_since(self.from.min(other.from));
        (self.rank, self.of) == (other.rank, other.of) && moved <= MOMENT_MOVES_MAX
    }

    /// When this node may next begin a probe: `now` itself where it may.
    pub fn next(&self, now: Instant) -> Instant {
        let round = i128::from(self.of) * nanos(TURN);
        let passed = nanos(now.saturating_duration_since(self.from)) - nanos(self.from.saturating_duration_since(now));
        let in_turn = (passed - i128::from(self.rank) * nanos(TURN)).rem_euclid(round.max(1));
        if in_turn < nanos(PROBE_BEGINS_WITHIN) {
            return now;
        }
        now + Duration::from_nanos(u64::try_from(round - in_turn).unwrap_or_default())
    }
}

fn nanos(time: Duration) -> i128 {
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX)
}

fn weight(provider: Key, node: u64) -> u64 {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&provider.0.to_be_bytes());
    bytes[4..].copy_from_slice(&node.to_be_bytes());
    blake3::hash(&bytes).as_bytes().first_chunk().map_or(0, |word| u64::from_be_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, btree_set, vec};
    use proptest::option;
    use proptest::prelude::*;

    fn tenths() -> impl Strategy<Value = Duration> {
        (0..36_000u32).prop_map(|units| UNIT * units)
    }

    fn mark() -> impl Strategy<Value = Mark> {
        let open = option::of((any::<bool>(), tenths(), tenths())).prop_map(|open| {
            open.map(|(own, due, since)| Open { why: if own { Why::Failures } else { Why::Followed }, due, since })
        });
        (any::<bool>(), open, option::of(tenths()), option::of(tenths()), any::<bool>())
            .prop_map(|(called, open, throttled, closed, probing)| Mark { called, open, throttled, closed, probing })
    }

    fn credential() -> impl Strategy<Value = CredentialMark> {
        (any::<u32>(), any::<u32>(), any::<bool>(), tenths()).prop_map(|(provider, credential, refused, remaining)| {
            let said = if refused { Said::Refused } else { Said::Throttled };
            CredentialMark { provider: Key(provider), credential, said, remaining }
        })
    }

    fn marks(providers: usize, credentials: usize) -> impl Strategy<Value = Marks> {
        let told = |mark: &Mark| *mark != Mark::default();
        let providers = btree_map(any::<u32>().prop_map(Key), mark().prop_filter("says something", told), 0..providers);
        (providers, vec(credential(), 0..credentials)).prop_map(|(providers, credentials)| Marks {
            providers,
            credentials,
            more: false,
        })
    }

    /// Another node, perhaps of another release, must read what this one writes.
    #[test]
    fn the_text_is_as_it_always_was() {
        let mark = Mark {
            called: true,
            open: Some(Open { why: Why::Failures, due: Duration::from_millis(8_020), since: Duration::from_secs(2) }),
            throttled: Some(Duration::from_mins(1)),
            closed: None,
            probing: true,
        };
        let followed = Mark {
            open: Some(Open { why: Why::Followed, due: Duration::ZERO, since: Duration::ZERO }),
            closed: Some(Duration::from_secs(3)),
            ..Mark::default()
        };
        let refused = CredentialMark {
            provider: Key(7),
            credential: 0xfedc_ba98,
            said: Said::Refused,
            remaining: Duration::from_mins(1),
        };
        let marks = Marks {
            providers: [(Key(0xabc), mark), (Key(7), followed)].into(),
            credentials: vec![refused],
            more: true,
        };

        assert_eq!(marks.encode(), "1;00000007f0s0c30;00000abcupo81s20t600;00000007xfedcba98r600;+");
        assert_eq!(Key::of("openai"), Key::of("openai"));
        assert_ne!(Key::of("openai"), Key::of("anthropic"));
    }

    #[test]
    fn what_cannot_be_read_is_ignored() {
        let readable =
            Marks { providers: [(Key(1), Mark { called: true, ..Mark::default() })].into(), ..Marks::default() };

        for text in ["", "2;00000001u", ";00000001u", "nonsense", &format!("1;00000001u;{}", "x".repeat(MARKS_MAX))] {
            assert_eq!(Marks::decode(text), Marks::default(), "{text}");
        }
        for strange in [
            "00000002q",
            "0000002u",
            "+0000002u",
            "00000002o",
            "00000002s1",
            "00000002o99999999999",
            "00000002xu",
            "é",
            "",
        ] {
            assert_eq!(Marks::decode(&format!("1;{strange};00000001u")), readable, "{strange}");
        }
    }

    /// A node that has more to tell than fits tells first what ends an outage, and that it has more.
    #[test]
    fn what_is_urgent_is_told_first() {
        let called = Mark { called: true, ..Mark::default() };
        let closed = Mark { closed: Some(Duration::ZERO), ..Mark::default() };
        let mut providers: BTreeMap<Key, Mark> = (0..100).map(|key| (Key(key), called)).collect();
        providers.insert(Key(u32::MAX), closed);
        let text = Marks { providers, ..Marks::default() }.encode();

        let told = Marks::decode(&text);

        assert!(text.len() <= MARKS_MAX && told.more);
        assert_eq!(told.providers.get(&Key(u32::MAX)), Some(&closed));
        assert!(told.providers.len() > 40);
    }

    #[test]
    fn two_and_half_of_those_who_called_are_enough() {
        let open = Report { called: true, open: true };
        let well = Report { called: true, open: false };
        let idle = Report { called: false, open: false };

        assert!(!enough([open]));
        assert!(!enough([open, idle, idle]), "one node alone is not believed");
        assert!(!enough([open, well]));
        assert!(enough([open, open]));
        assert!(enough([open, open, well, well, idle]));
        assert!(!enough([open, open, well, well, well]));
    }

    proptest! {
        #[test]
        fn what_fits_comes_back(marks in marks(10, 6)) {
            prop_assert_eq!(Marks::decode(&marks.encode()), marks_sorted(marks));
        }

        #[test]
        fn it_always_fits(marks in marks(200, 50)) {
            let text = marks.encode();
            prop_assert!(text.len() <= MARKS_MAX);
            let told = Marks::decode(&text);
            for (key, mark) in &told.providers {
                prop_assert_eq!(marks.providers.get(key), Some(mark));
            }
            let all = told.providers.len() == marks.providers.len() && told.credentials.len() == marks.credentials.len();
            prop_assert!(all || told.more);
        }

        /// Nothing that comes from outside may panic.
        #[test]
        fn anything_may_be_heard(text in "1;[0-9a-fuoxtcpr+;é]{0,80}|.{0,80}") {
            let again = Marks::decode(&text).encode();
            prop_assert_eq!(Marks::decode(&again).encode(), again);
        }

        /// At no moment two nodes that see the same have their turn, and every node has one in every round.
        #[test]
        fn one_turn_at_a_time_and_one_for_each_in_a_round(
            nodes in btree_set(any::<u64>(), 2..12),
            provider in any::<u32>(),
            moment in 0..120_000u64,
        ) {
            let born = cluster::clock::now();
            let from = born + Duration::from_mins(1);
            let now = born + Duration::from_millis(moment);
            let mut turns = 0;
            for node in &nodes {
                let mine = Turns::among(Key(provider), *node, nodes.iter().copied(), from).unwrap();
                let next = mine.next(now);
                turns += usize::from(next == now);
                prop_assert!(next - now <= TURN * u32::try_from(nodes.len()).unwrap());
                prop_assert_eq!(mine.next(next), next);
            }
            prop_assert!(turns <= 1);
        }

        /// Rank r may probe r seconds after the first may.
        #[test]
        fn turns_begin_in_the_order_of_ranks(nodes in btree_set(any::<u64>(), 2..12), provider in any::<u32>()) {
            let from = cluster::clock::now();
            let turns = |node: &u64| Turns::among(Key(provider), *node, nodes.iter().copied(), from).unwrap();
            let mut first: Vec<_> = nodes.iter().map(|node| turns(node).next(from) - from).collect();
            first.sort();
            let wanted: Vec<_> = (0..nodes.len()).map(|rank| TURN * u32::try_from(rank).unwrap()).collect();
            prop_assert_eq!(first, wanted);
        }
    }

    /// As they come back: credentials in the order of their text.
    fn marks_sorted(mut marks: Marks) -> Marks {
        marks.credentials.sort_by_key(CredentialMark::item);
        marks
    }
}

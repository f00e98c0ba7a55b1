//! Between nodes: what this node tells of its breakers, and what it makes of what the others tell.
//!
//! [`Ear`] is pure: texts and `now` in, [`Advice`] for each breaker out. A time that others tell as «so long from now»
//! is fixed when it is first heard; told again, it only becomes more exact. So a text that stays the same prolongs
//! nothing, and neither does the way it took.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::marks::{CredentialMark, Key, Mark, Marks, Open, Report, Said, Turns, Why, enough};
use super::state::{Advice, OPEN_FOR_MAX, State, THROTTLED_FOR_MAX};
use super::{Breakers, Handle, Message};

/// A call of so long ago still says that a node knows how the provider is.
pub const CALLED_WITHIN: Duration = Duration::from_secs(30);

/// A success that closed the breaker is told for so long. Whoever hears nothing for longer probes by itself.
const CLOSED_TOLD_FOR: Duration = Duration::from_secs(30);

/// A node is believed to be probing for so long. A probe that never ends must not keep everyone else from theirs.
const PROBING_BELIEVED_FOR: Duration = Duration::from_mins(1);

/// How long a probe elsewhere holds this node back after it was last heard of: should nothing be heard any more, it
/// goes its own way.
const HELD_FOR: Duration = Duration::from_secs(3);

/// A time heard again that is later by more than this is another event and not the same one, heard late.
const SAME_WITHIN: Duration = Duration::from_secs(2);

/// Nodes that are listened to. A cluster has no more.
pub const NODES_MAX: usize = 64;

/// What a provider told another node of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CredentialHeard {
    pub provider: Key,
    pub credential: u32,
    pub said: Said,
    pub until: Instant,
}

impl Breakers {
    /// Told when something happened that other nodes should hear of at once: a probe began, a breaker opened or closed.
    pub fn news(&self) -> Arc<Notify> {
        Arc::clone(&self.news)
    }

    /// What this node tells the others; `credentials` is what providers told it of theirs. To be told anew every
    /// few hundred milliseconds: times in it are what remains now.
    pub fn marks(&self, credentials: Vec<CredentialMark>, now: Instant) -> String {
        let known = self.by_provider.load();
        let told = known.values().map(|handle| (handle.0.board.key, handle.0.mark(now)));
        let providers = told.filter(|(_key, mark)| *mark != Mark::default()).collect();
        Marks { providers, credentials, more: false }.encode()
    }

    /// Takes what the other living nodes tell, each by its latest text: called when one changed, and every few hundred
    /// milliseconds. Returns what was newly heard of credentials.
    pub fn hear(&self, me: u64, others: &[(u64, &str)], now: Instant) -> Vec<CredentialHeard> {
        let mut ear = self.ear.lock();
        let credentials = ear.listen(me, others, now);
        for handle in self.by_provider.load().values() {
            let board = &handle.0.board;
            let advice = ear.advice(board.key, me, &handle.0.mine(now), now);
            // Given again while there is anything to say, since the actor may have restarted, or its mailbox been full.
            if advice != Advice::default() || heeds(&board.state.load()) {
                handle.advise(advice, now);
            }
        }
        credentials
    }
}

impl Handle {
    fn advise(&self, advice: Advice, at: Instant) {
        let Some(place) = self.0.mailbox.place() else { return };
        let _gone = self.0.child.address.cast(Message::Advised { advice, at, place });
    }
}

impl super::Shared {
    fn mark(&self, now: Instant) -> Mark {
        let state = **self.board.state.load();
        mark(&state, self.board.called_within(CALLED_WITHIN, now), self.probing(), now)
    }

    fn mine(&self, now: Instant) -> Mine {
        let open_for = self.board.policy.load().open_for.min(OPEN_FOR_MAX);
        Mine { called: self.board.called_within(CALLED_WITHIN, now), open_for, state: **self.board.state.load() }
    }

    fn probing(&self) -> bool {
        self.probes.available_permits() == 0
    }
}

/// Whether there is something in the state that advice put there and no advice may mean is over.
fn heeds(state: &State) -> bool {
    let State { followed_until, turns, held_until, .. } = state;
    followed_until.is_some() || turns.is_some() || held_until.is_some()
}

/// A state as it is told.
fn mark(state: &State, called: bool, probing: bool, now: Instant) -> Mark {
    let remaining = |until: Instant| until.saturating_duration_since(now);
    let ago = |at: Instant| now.saturating_duration_since(at);
    let since = state.down_since.map_or(Duration::ZERO, ago);
    let own = state.open_until.map(|until| Open { why: Why::Failures, due: remaining(until), since });
    let followed = state.followed_until.map(|until| Open { why: Why::Followed, due: remaining(until), since });
    let closed = state.closed_at.map(ago);
    Mark {
        called,
        open: own.or(followed),
        throttled: state.throttled_until.map(remaining).filter(|remaining| !remaining.is_zero()),
        closed: closed.filter(|ago| *ago < CLOSED_TOLD_FOR),
        probing: probing && state.open().is_some(),
    }
}

/// What this node knows of a provider by itself.
pub struct Mine {
    pub called: bool,
    /// Its policy's, as all nodes have it.
    pub open_for: Duration,
    pub state: State,
}

/// What was heard from the others.
#[derive(Debug, Default)]
pub struct Ear {
    nodes: BTreeMap<u64, Teller>,
}

#[derive(Debug, Default)]
struct Teller {
    text: String,
    /// It did not tell of all providers: it may call those it does not name.
    more: bool,
    providers: HashMap<Key, Told>,
}

/// A [`Mark`] with its times fixed.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    called: bool,
    open: Option<Opened>,
    throttled_until: Option<Instant>,
    closed_at: Option<Instant>,
    probing_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Opened {
    why: Why,
    due: Instant,
    since: Instant,
}

impl Ear {
    /// Takes the texts of all nodes there are; one that is not among them any more is forgotten.
    pub fn listen(&mut self, me: u64, others: &[(u64, &str)], now: Instant) -> Vec<CredentialHeard> {
        let others = others.iter().filter(|(node, _text)| *node != me).take(NODES_MAX);
        let mut nodes = BTreeMap::new();
        let mut credentials = Vec::new();
        for (node, text) in others {
            let before = self.nodes.remove(node).unwrap_or_default();
            let teller = if before.text == **text {
                before
            } else {
                let marks = Marks::decode(text);
                credentials.extend(marks.credentials.iter().map(|mark| heard(mark, now)));
                before.says(text, &marks, now)
            };
            nodes.insert(*node, teller);
        }
        self.nodes = nodes;
        credentials
    }

    /// What this node should make of it for one provider.
    pub fn advice(&self, provider: Key, me: u64, mine: &Mine, now: Instant) -> Advice {
        let told = || self.nodes.iter().filter_map(|(node, teller)| Some((*node, teller.providers.get(&provider)?)));
        let theirs = self.nodes.values().map(|teller| teller.report(provider, now));
        let evidence = enough(theirs.chain([mine.report(now)]));
        let failing = told().filter_map(|(_node, told)| told.fails(now));
        let open = || told().filter_map(|(node, told)| Some((node, told.open?)));
        let down_since = open().map(|(_node, open)| open.since).min();
        let turns = mine.state.open().and(mine.state.down_since).and_then(|since| {
            let from = down_since.map_or(since, |theirs| theirs.min(since)) + mine.open_for;
            Turns::among(provider, me, open().map(|(node, _open)| node).chain([me]), from)
        });
        let held = told().any(|(_node, told)| told.probes(now));
        Advice {
            follow: if evidence { failing.min() } else { None },
            down_since,
            closed_at: told().filter_map(|(_node, told)| told.closed_at).max(),
            throttled_until: told().filter_map(|(_node, told)| told.throttled_until).max().filter(|until| *until > now),
            turns,
            held_until: (held && mine.state.open().is_some()).then(|| now + HELD_FOR),
        }
    }
}

impl Mine {
    fn report(&self, now: Instant) -> Report {
        let open = self.state.open_until;
        Report { called: self.called || open.is_some_and(|until| now < until), open: open.is_some() }
    }
}

impl Teller {
    fn says(self, text: &str, marks: &Marks, now: Instant) -> Self {
        let told = |(key, mark): (&Key, &Mark)| {
            let before = self.providers.get(key).copied().unwrap_or_default();
            (*key, before.again(mark, now))
        };
        Self { text: text.to_owned(), more: marks.more, providers: marks.providers.iter().map(told).collect() }
    }

    fn report(&self, provider: Key, now: Instant) -> Report {
        match self.providers.get(&provider) {
            Some(told) => {
                let open = told.open.is_some_and(|open| open.why == Why::Failures);
                // It is open because calls failed lately; and once it may probe, only calls show that it does.
                Report { called: told.called || told.fails(now).is_some(), open }
            }
            None => Report { called: self.more, open: false },
        }
    }
}

impl Told {
    fn again(self, mark: &Mark, now: Instant) -> Self {
        let open = mark.open.map(|Open { why, due, since }| {
            let known = self.open.filter(|known| known.why == why);
            let due = fixed(known.map(|known| known.due), now + due.min(OPEN_FOR_MAX));
            let since = fixed(self.open.map(|known| known.since), now.checked_sub(since).unwrap_or(now));
            Opened { why, due, since }
        });
        Self {
            called: mark.called,
            open,
            throttled_until: mark.throttled.map(|wait| fixed(self.throttled_until, now + wait.min(THROTTLED_FOR_MAX))),
            closed_at: mark.closed.and_then(|ago| Some(fixed(self.closed_at, now.checked_sub(ago)?))),
            probing_since: mark.probing.then(|| self.probing_since.unwrap_or(now)),
        }
    }

    /// When it may probe, if its own calls failed and it has not been idle since.
    fn fails(&self, now: Instant) -> Option<Instant> {
        match self.open {
            Some(Opened { why: Why::Failures, due, .. }) if self.called || now < due => Some(due),
            Some(Opened { why: Why::Failures | Why::Followed, .. }) | None => None,
        }
    }

    fn probes(&self, now: Instant) -> bool {
        self.probing_since.is_some_and(|since| now < since + PROBING_BELIEVED_FOR)
    }
}

/// A time heard before and now. The same event heard twice was heard late, if at all: the earlier estimate is better.
fn fixed(known: Option<Instant>, heard: Instant) -> Instant {
    known.filter(|known| heard <= *known + SAME_WITHIN).map_or(heard, |known| known.min(heard))
}

fn heard(mark: &CredentialMark, now: Instant) -> CredentialHeard {
    let CredentialMark { provider, credential, said, remaining } = *mark;
    CredentialHeard { provider, credential, said, until: now + remaining.min(THROTTLED_FOR_MAX) }
}

#[cfg(test)]
mod tests;

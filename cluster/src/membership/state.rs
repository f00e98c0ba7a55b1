//! What a node tells of itself, and how that looks in gossip: three texts, each with its fields in a fixed order.
//!
//! A field unknown here stands behind the known ones and is ignored; one that is missing has its default: nodes of two
//! versions gossip with each other.

use std::time::Duration;

/// Bytes of gossip a node's own state may take, with what chitchat adds for each text.
pub const STATE_MAX: usize = 1024;

/// Bytes of a name or zone: a DNS label.
pub const NAME_MAX: usize = 63;

/// Bytes of a `host:port`.
pub const ADDRESS_MAX: usize = 128;

/// Bytes of a version.
pub const VERSION_MAX: usize = 32;

/// Bytes of marks; fewer where names and addresses are long, see [`OwnState::marks_room`].
pub const MARKS_MAX: usize = 512;

/// Who the node is: changes with a restart.
const WHO: &str = "w";
/// How it is: changes all the time.
const HOW: &str = "h";
/// The breaker marks.
const MARKS: &str = "m";

/// What chitchat adds to a text at most: lengths, version, status.
const TEXT_COST: usize = 16;

/// What cannot stand in a field.
const SEPARATOR: char = '\t';

/// Whether a node takes part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeState {
    /// Not ready yet: it catches up, or waits.
    #[default]
    Joining,
    Ready,
    /// About to leave: finishes what it has.
    Draining,
    /// Said goodbye. Counts as dead at once.
    Left,
}

impl NodeState {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Left => "left",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        [Self::Joining, Self::Ready, Self::Draining, Self::Left].into_iter().find(|state| state.name() == name)
    }
}

/// What a node tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnState {
    /// A label; who a node is, its id says.
    pub name: String,
    pub zone: String,
    /// `host:port` of the peer port, as others reach it.
    pub peer: String,
    pub api: String,
    pub admin: String,
    /// Of the program.
    pub version: String,
    /// The newest format of data and commands it can write.
    pub format: u32,
    pub state: NodeState,
    /// Open requests.
    pub load: u32,
    /// The last log index it has applied.
    pub applied: u64,
    /// How long ago its last confirmed freshness was when it said so. None: never.
    pub fresh_age: Option<Duration>,
    /// What its breakers tell, as they write it.
    pub marks: String,
}

impl OwnState {
    /// Whether it may be told. Every problem is one of configuration, but for the marks.
    pub fn check(&self) -> Result<(), StateError> {
        let limits = [
            ("name", &self.name, NAME_MAX),
            ("zone", &self.zone, NAME_MAX),
            ("peer", &self.peer, ADDRESS_MAX),
            ("api", &self.api, ADDRESS_MAX),
            ("admin", &self.admin, ADDRESS_MAX),
            ("version", &self.version, VERSION_MAX),
            ("marks", &self.marks, self.marks_room()),
        ];
        for (field, text, max) in limits {
            if text.len() > max {
                return Err(StateError::TooLong { field, length: text.len(), max });
            }
            if text.contains(|character: char| character.is_control()) {
                return Err(StateError::Control { field });
            }
        }
        Ok(())
    }

    /// Bytes of marks that can be told beside all the rest.
    pub fn marks_room(&self) -> usize {
        let rest = [WHO.len() + self.who().len(), HOW.len() + HOW_MAX, MARKS.len()];
        let rest: usize = rest.iter().map(|length| length + TEXT_COST).sum();
        STATE_MAX.saturating_sub(rest).min(MARKS_MAX)
    }

    pub(super) fn texts(&self) -> [(&'static str, String); 3] {
        [(WHO, self.who()), (HOW, self.how()), (MARKS, self.marks.clone())]
    }

    /// Whatever others sent: what cannot be read has its default, what is too long is left out.
    pub(super) fn read<'a>(text: impl Fn(&str) -> Option<&'a str>) -> Self {
        let mut who = text(WHO).unwrap_or_default().split(SEPARATOR);
        let mut how = text(HOW).unwrap_or_default().split(SEPARATOR);
        let mut word = |max: usize| who.next().filter(|word| word.len() <= max).unwrap_or_default().to_owned();
        let (name, zone) = (word(NAME_MAX), word(NAME_MAX));
        let (peer, api, admin) = (word(ADDRESS_MAX), word(ADDRESS_MAX), word(ADDRESS_MAX));
        let version = word(VERSION_MAX);
        let format = word(NAME_MAX).parse().unwrap_or_default();
        let mut next = || how.next().unwrap_or_default();
        Self {
            name,
            zone,
            peer,
            api,
            admin,
            version,
            format,
            state: NodeState::of_name(next()).unwrap_or_default(),
            load: next().parse().unwrap_or_default(),
            applied: next().parse().unwrap_or_default(),
            fresh_age: next().parse().ok().map(Duration::from_millis),
            marks: text(MARKS).filter(|marks| marks.len() <= MARKS_MAX).unwrap_or_default().to_owned(),
        }
    }

    fn who(&self) -> String {
        let Self { name, zone, peer, api, admin, version, format, .. } = self;
        format!("{name}\t{zone}\t{peer}\t{api}\t{admin}\t{version}\t{format}")
    }

    fn how(&self) -> String {
        let fresh = self.fresh_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX).to_string());
        format!("{}\t{}\t{}\t{}", self.state.name(), self.load, self.applied, fresh.unwrap_or_default())
    }
}

/// `draining`, a `u32` and two `u64` with their separators.
const HOW_MAX: usize = 8 + 10 + 20 + 20 + 3;

/// Why a state is not told.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    #[error("the node's `{field}` has {length} bytes; gossip takes {max}")]
    TooLong { field: &'static str, length: usize, max: usize },

    #[error("the node's `{field}` has a control character")]
    Control { field: &'static str },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn longest() -> OwnState {
        let mut state = OwnState {
            name: "n".repeat(NAME_MAX),
            zone: "z".repeat(NAME_MAX),
            peer: "p".repeat(ADDRESS_MAX),
            api: "a".repeat(ADDRESS_MAX),
            admin: "d".repeat(ADDRESS_MAX),
            version: "v".repeat(VERSION_MAX),
            format: u32::MAX,
            state: NodeState::Draining,
            load: u32::MAX,
            applied: u64::MAX,
            fresh_age: Some(Duration::MAX),
            marks: String::new(),
        };
        state.marks = "m".repeat(state.marks_room());
        state
    }

    fn told(state: &OwnState) -> usize {
        state.texts().iter().map(|(key, value)| key.len() + value.len() + TEXT_COST).sum()
    }

    fn read_back(state: &OwnState) -> OwnState {
        let texts = state.texts();
        OwnState::read(|key| texts.iter().find(|(known, _)| *known == key).map(|(_, text)| text.as_str()))
    }

    /// 64 nodes have to fit; this is what makes sure of it.
    #[test]
    fn the_longest_state_stays_within_its_bound() {
        let longest = longest();

        assert_eq!(longest.check(), Ok(()));
        assert!(told(&longest) <= STATE_MAX, "{}", told(&longest));
        assert!(longest.marks.len() >= 256, "{}", longest.marks.len());
        assert_eq!(OwnState::default().marks_room(), MARKS_MAX);
    }

    #[test]
    fn what_is_too_long_is_refused_by_name() {
        let state = OwnState { zone: "z".repeat(NAME_MAX + 1), ..OwnState::default() };
        assert_eq!(state.check(), Err(StateError::TooLong { field: "zone", length: 64, max: 63 }));

        let mut state = longest();
        state.marks.push('m');
        assert!(matches!(state.check(), Err(StateError::TooLong { field: "marks", .. })));

        let state = OwnState { name: "a\tb".to_owned(), ..OwnState::default() };
        assert_eq!(state.check(), Err(StateError::Control { field: "name" }));
    }

    /// A newer node tells more, an older one less.
    #[test]
    fn other_versions_are_understood() {
        let newer = OwnState::read(|key| match key {
            WHO => Some("n\tz\tp:1\ta:1\td:1\t2.0\t7\twhat is this"),
            HOW => Some("ready\t3\t9\t250\tand this"),
            _ => None,
        });
        let older = OwnState::read(|key| (key == WHO).then_some("n\tz"));

        assert_eq!((newer.format, newer.state, newer.applied), (7, NodeState::Ready, 9));
        assert_eq!(newer.fresh_age, Some(Duration::from_millis(250)));
        assert_eq!((older.name.as_str(), older.zone.as_str(), older.state), ("n", "z", NodeState::Joining));
        assert_eq!(older.fresh_age, None);
    }

    proptest! {
        #[test]
        fn a_state_arrives_as_it_was_told(
            words in proptest::array::uniform6("[a-z0-9.:é-]{0,15}"),
            format: u32, load: u32, applied: u64, fresh in proptest::option::of(any::<u64>()), marks in "[ -~]{0,300}",
        ) {
            let [name, zone, peer, api, admin, version] = words;
            let fresh_age = fresh.map(Duration::from_millis);
            let state = NodeState::Ready;
            let state =
                OwnState { name, zone, peer, api, admin, version, format, state, load, applied, fresh_age, marks };

            prop_assert_eq!(state.check(), Ok(()));
            prop_assert_eq!(read_back(&state), state);
        }

        #[test]
        fn no_text_panics(who: String, how: String, marks: String) {
            let _ = OwnState::read(|key| Some(match key { WHO => &who, HOW => &how, _ => &marks }));
        }
    }
}

//! What follows a failure. Pure.

use std::time::Duration;

/// What went wrong with one attempt, as far as it matters for the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// 401, 402, 403: the credential is of no use.
    Credential,
    /// 429.
    Throttled,
    /// 503, 529: the provider has no room.
    Overloaded,
    /// Any other 5xx.
    Server,
    /// No connection.
    Connect,
    /// Too slow, by our clock or the provider's.
    Timeout,
    /// The conversation does not fit the model.
    ContextLength,
    /// The provider does not know the model.
    NotFound,
    /// The request itself is wrong, everywhere.
    BadRequest,
    /// An answer that cannot be understood, or that broke off before any content.
    Malformed,
}

impl FailureClass {
    pub const ALL: [Self; 10] = [
        Self::Credential,
        Self::Throttled,
        Self::Overloaded,
        Self::Server,
        Self::Connect,
        Self::Timeout,
        Self::ContextLength,
        Self::NotFound,
        Self::BadRequest,
        Self::Malformed,
    ];

    /// For a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Credential => "credential",
            Self::Throttled => "throttled",
            Self::Overloaded => "overloaded",
            Self::Server => "server",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::ContextLength => "context_length",
            Self::NotFound => "not_found",
            Self::BadRequest => "bad_request",
            Self::Malformed => "malformed",
        }
    }
}

/// Where a request stands when an attempt has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// Attempts made, the failed one included.
    pub attempts: u32,
    pub attempts_max: u32,
    /// Content went to the client. From then on there is no other attempt: it would repeat text.
    pub content_sent: bool,
    /// The same provider has a credential that was not tried.
    pub credential_left: bool,
    /// What comes after the failed candidate in the plan.
    pub following: Following,
    /// What is left of the request's time.
    pub time_left: Duration,
    /// Any number; it spreads the pauses of many clients.
    pub random: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Following {
    OtherProvider,
    /// Another model of the provider that failed.
    SameProvider,
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The same candidate with another credential, at once.
    NextCredential,
    NextCandidate {
        after: Duration,
    },
    /// The plan is at its end: from its first candidate again.
    Again {
        after: Duration,
    },
    GiveUp,
}

/// A pause is for the provider that failed; another provider is called at once.
pub fn after(class: FailureClass, situation: &Situation) -> Next {
    if situation.content_sent || situation.attempts >= situation.attempts_max {
        return Next::GiveUp;
    }
    let next = match class {
        FailureClass::Credential | FailureClass::Throttled if situation.credential_left => Next::NextCredential,
        FailureClass::Credential | FailureClass::Throttled | FailureClass::NotFound => match situation.following {
            Following::OtherProvider | Following::SameProvider => Next::NextCandidate { after: Duration::ZERO },
            Following::Nothing => Next::GiveUp,
        },
        FailureClass::Overloaded
        | FailureClass::Server
        | FailureClass::Connect
        | FailureClass::Timeout
        | FailureClass::Malformed => {
            let pause = backoff(situation.attempts.saturating_sub(1), situation.random);
            match situation.following {
                Following::OtherProvider => Next::NextCandidate { after: Duration::ZERO },
                Following::SameProvider => Next::NextCandidate { after: pause },
                Following::Nothing => Next::Again { after: pause },
            }
        }
        FailureClass::ContextLength | FailureClass::BadRequest => Next::GiveUp,
    };
    if next.pause() < situation.time_left { next } else { Next::GiveUp }
}

impl Next {
    fn pause(self) -> Duration {
        match self {
            Self::NextCandidate { after } | Self::Again { after } => after,
            Self::NextCredential | Self::GiveUp => Duration::ZERO,
        }
    }
}

const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// min(0.5 s × 2ⁿ, 5 s) ± 20 %.
pub fn backoff(n: u32, random: u64) -> Duration {
    let whole = BACKOFF_MIN.saturating_mul(1 << n.min(10)).min(BACKOFF_MAX);
    let permille = 800 + u32::try_from(random % 401).unwrap_or(0);
    whole * permille / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SITUATION: Situation = Situation {
        attempts: 1,
        attempts_max: 4,
        content_sent: false,
        credential_left: false,
        following: Following::OtherProvider,
        time_left: Duration::from_mins(1),
        random: 200,
    };
    const AT_ONCE: Next = Next::NextCandidate { after: Duration::ZERO };
    /// `random: 200` is the middle: no deviation.
    const PAUSE: Duration = Duration::from_millis(500);

    /// By class: another provider follows; another model of the same; nothing; nothing, but another credential.
    const TABLE: [(FailureClass, [Next; 4]); 10] = {
        use FailureClass as Class;
        use Next::{Again, GiveUp, NextCandidate, NextCredential};
        const TRANSIENT: [Next; 4] =
            [AT_ONCE, NextCandidate { after: PAUSE }, Again { after: PAUSE }, Again { after: PAUSE }];
        [
            (Class::Credential, [AT_ONCE, AT_ONCE, GiveUp, NextCredential]),
            (Class::Throttled, [AT_ONCE, AT_ONCE, GiveUp, NextCredential]),
            (Class::Overloaded, TRANSIENT),
            (Class::Server, TRANSIENT),
            (Class::Connect, TRANSIENT),
            (Class::Timeout, TRANSIENT),
            (Class::ContextLength, [GiveUp; 4]),
            (Class::NotFound, [AT_ONCE, AT_ONCE, GiveUp, GiveUp]),
            (Class::BadRequest, [GiveUp; 4]),
            (Class::Malformed, TRANSIENT),
        ]
    };

    #[test]
    fn the_table() {
        assert_eq!(TABLE.map(|(class, _)| class), FailureClass::ALL);
        for (class, [other, same, nothing, credential]) in TABLE {
            let follows = |following| after(class, &Situation { following, ..SITUATION });
            assert_eq!(follows(Following::OtherProvider), other, "{class:?}");
            assert_eq!(follows(Following::SameProvider), same, "{class:?}");
            assert_eq!(follows(Following::Nothing), nothing, "{class:?}");
            let left = Situation { following: Following::Nothing, credential_left: true, ..SITUATION };
            assert_eq!(after(class, &left), credential, "{class:?}");
        }
    }

    #[test]
    fn a_credential_is_tried_before_another_provider() {
        let left = Situation { credential_left: true, ..SITUATION };

        assert_eq!(after(FailureClass::Credential, &left), Next::NextCredential);
        assert_eq!(after(FailureClass::Server, &left), AT_ONCE);
    }

    #[test]
    fn pauses_double_up_to_five_seconds() {
        let millis = [0, 1, 2, 3, 4, 5, u32::MAX].map(|n| backoff(n, 200).as_millis());

        assert_eq!(millis, [500, 1_000, 2_000, 4_000, 5_000, 5_000, 5_000]);
        assert_eq!((backoff(0, 0).as_millis(), backoff(0, 400).as_millis()), (400, 600));
    }

    fn situations() -> impl Strategy<Value = Situation> {
        let following =
            prop_oneof![Just(Following::OtherProvider), Just(Following::SameProvider), Just(Following::Nothing)];
        (1..6u32, 1..6u32, any::<bool>(), any::<bool>(), following, 0..10_000u64, any::<u64>()).prop_map(
            |(attempts, attempts_max, content_sent, credential_left, following, millis, random)| Situation {
                attempts,
                attempts_max,
                content_sent,
                credential_left,
                following,
                time_left: Duration::from_millis(millis),
                random,
            },
        )
    }

    proptest! {
        /// P-STREAM: nothing is tried again after content; nor past the deadline, nor more often than allowed.
        #[test]
        fn never_after_content_past_the_deadline_or_too_often(
            class in proptest::sample::select(&FailureClass::ALL[..]),
            situation in situations(),
        ) {
            let next = after(class, &situation);
            if next != Next::GiveUp {
                prop_assert!(!situation.content_sent);
                prop_assert!(situation.attempts < situation.attempts_max);
                prop_assert!(next.pause() < situation.time_left);
            }
        }

        #[test]
        fn a_pause_stays_within_a_fifth_of_its_value(n: u32, random: u64) {
            let middle = backoff(n, 200);
            let pause = backoff(n, random);
            prop_assert!(pause >= middle * 4 / 5 && pause <= middle * 6 / 5);
        }
    }
}

//! When a breaker opens and closes. Pure: verdicts and times in, state out.
//!
//! Closed, it counts. It opens when `failures_max` calls failed in a row, or when at least `requests_min` calls ended
//! within `window` and the share of failures among them reached `failure_share` percent. Open, it waits `open_for`;
//! then it is half-open until the probe's verdict: success closes it, failure opens it again.
//!
//! What other nodes tell comes in as [`Advice`]. It may open the breaker after theirs, close it after a success of
//! theirs, and say whose turn it is to probe. What this node was told by others it never tells on as its own.

pub use cluster::directory::provider::BreakerConfig as Policy;

use super::marks::{TURN, Turns};
use std::time::{Duration, Instant};

/// The longest a provider's own «come back later» is believed. A provider that answers nonsense must not vanish.
pub const THROTTLED_FOR_MAX: Duration = Duration::from_mins(10);

/// The longest a breaker stays open before a probe, whatever the configuration says.
pub const OPEN_FOR_MAX: Duration = Duration::from_hours(1);

/// After a success closed the breaker others are not followed for so long: they may not have heard of it yet. Two
/// successes closer together than this are taken for one.
const NEWS_WITHIN: Duration = Duration::from_secs(2);

/// The window is counted in this many parts; one part at a time is forgotten.
const PARTS: usize = 10;

/// What a finished call says about the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Success,
    Failure,
    /// It says nothing: the client's fault, or the client hung up.
    Neutral,
    /// The provider is well and asks not to be called for a while.
    Throttled {
        for_: Duration,
    },
}

/// On what ground the call was made. A verdict from before the breaker opened must not close it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// The breaker was closed.
    Closed,
    /// The one probe of a half-open breaker.
    Probe,
    /// Every candidate was unusable, and one attempt was made all the same.
    LastResort,
}

/// What readers see. Half-open is open whose time is over, so no timer is needed to reach it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Opened by the failures of this node's own calls.
    pub open_until: Option<Instant>,
    /// Opened because other nodes said so. Never while `open_until` is.
    pub followed_until: Option<Instant>,
    /// When the first node opened, as far as is known. While it is open.
    pub down_since: Option<Instant>,
    /// The provider told this node.
    pub throttled_until: Option<Instant>,
    /// The provider told another node.
    pub throttled_elsewhere_until: Option<Instant>,
    /// When a call of this node closed it last.
    pub closed_at: Option<Instant>,
    /// Among the nodes that have it open. `None`: there is no other.
    pub turns: Option<Turns>,
    /// No probe before: another node is probing, or who takes turns has just changed and not all may know.
    pub held_until: Option<Instant>,
}

/// Whether the provider may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Closed,
    HalfOpen,
    Open { until: Instant },
    Throttled { until: Instant },
}

impl State {
    pub fn at(&self, now: Instant) -> Standing {
        match (self.open(), self.throttled()) {
            (Some(until), _) if now < until => Standing::Open { until },
            (_, Some(until)) if now < until => Standing::Throttled { until },
            (Some(_over), _) => match self.next_probe(now) {
                next if next <= now => Standing::HalfOpen,
                until => Standing::Open { until },
            },
            (None, _) => Standing::Closed,
        }
    }

    /// Until when it is open, for whatever reason.
    pub fn open(&self) -> Option<Instant> {
        self.open_until.or(self.followed_until)
    }

    fn throttled(&self) -> Option<Instant> {
        self.throttled_until.max(self.throttled_elsewhere_until)
    }

    fn next_probe(&self, now: Instant) -> Instant {
        let free = self.held_until.map_or(now, |until| until.max(now));
        self.turns.map_or(free, |turns| turns.next(free))
    }
}

/// What follows for this breaker from what all nodes tell. It is given again and again while it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// Enough others say that the provider is down; when they will know more.
    pub follow: Option<Instant>,
    /// When the first of the nodes that have it open now did so.
    pub down_since: Option<Instant>,
    /// When a call of another node closed its breaker last.
    pub closed_at: Option<Instant>,
    pub throttled_until: Option<Instant>,
    pub turns: Option<Turns>,
    /// Another node is probing; to be asked again then.
    pub held_until: Option<Instant>,
}

/// The state and what it is decided from.
#[derive(Clone, Debug)]
pub struct Machine {
    state: State,
    /// When it opened last, for whatever reason.
    opened_at: Option<Instant>,
    /// The latest success of another node that was heard of.
    closed_elsewhere_at: Option<Instant>,
    failures_in_a_row: u32,
    window: Window,
}

impl Machine {
    pub fn closed(now: Instant) -> Self {
        Self {
            state: State::default(),
            opened_at: None,
            closed_elsewhere_at: None,
            failures_in_a_row: 0,
            window: Window::new(now),
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Takes a verdict. Whether it changed anything readers see is told by comparing [`state`](Self::state).
    pub fn take(&mut self, verdict: Verdict, ground: Ground, at: Instant, policy: &Policy) {
        match (verdict, self.state.open()) {
            (Verdict::Neutral, _) => {}
            (Verdict::Throttled { for_ }, _) => self.throttle(for_, at),
            (Verdict::Success | Verdict::Failure, None) => self.count(verdict == Verdict::Success, at, policy),
            (Verdict::Success, Some(_)) => match ground {
                Ground::Probe | Ground::LastResort => {
                    self.close(at);
                    self.state = State { closed_at: Some(at), ..State::default() };
                }
                Ground::Closed => {}
            },
            (Verdict::Failure, Some(_)) => match ground {
                Ground::Probe => self.open(at, policy),
                Ground::Closed | Ground::LastResort => {}
            },
        }
    }

    /// Takes what others say. The same advice twice is as once.
    pub fn heed(&mut self, advice: &Advice, at: Instant) {
        if let Some(closed_at) = advice.closed_at {
            self.hear_closed(closed_at, at);
        }
        match advice.follow {
            Some(until) => self.follow_open(until, at),
            None if self.state.open_until.is_none() => {
                self.state.followed_until = None;
                self.state.down_since = None;
            }
            None => {}
        }
        let told = advice.throttled_until.map(|until| until.min(at + THROTTLED_FOR_MAX));
        self.state.throttled_elsewhere_until = self.state.throttled_elsewhere_until.max(told);
        self.take_turns(advice, at);
    }

    fn take_turns(&mut self, advice: &Advice, at: Instant) {
        if self.state.open().is_some() {
            self.state.down_since = earlier(self.state.down_since, advice.down_since);
        }
        let same = match (self.state.turns, advice.turns) {
            (Some(known), Some(told)) => known.same(&told),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let settled = if same { self.state.held_until.filter(|until| at < *until) } else { Some(at + TURN) };
        self.state.turns = advice.turns;
        self.state.held_until = settled.max(advice.held_until);
    }

    /// Another node's call succeeded: what failed here before that is over.
    fn hear_closed(&mut self, closed_at: Instant, at: Instant) {
        if self.closed_elsewhere_at.is_some_and(|known| closed_at < known + NEWS_WITHIN) {
            return;
        }
        self.closed_elsewhere_at = Some(closed_at);
        if self.state.open().is_some() && self.opened_at.is_some_and(|opened_at| opened_at < closed_at) {
            self.close(at);
        }
    }

    /// Others found it down. When they will know more is taken from them once: they may fail again and again, each in
    /// its own time, and this node must come to its own probe.
    fn follow_open(&mut self, until: Instant, at: Instant) {
        let closed_at = self.state.closed_at.max(self.closed_elsewhere_at);
        if self.state.open().is_some() || closed_at.is_some_and(|closed_at| at < closed_at + NEWS_WITHIN) {
            return;
        }
        self.state.followed_until = Some(until.min(at + OPEN_FOR_MAX));
        self.opened(at);
    }

    fn opened(&mut self, at: Instant) {
        self.opened_at = Some(at);
        self.state.down_since = Some(self.state.down_since.unwrap_or(at));
    }

    fn close(&mut self, at: Instant) {
        self.state.open_until = None;
        self.state.followed_until = None;
        self.state.down_since = None;
        self.forget(at);
    }

    /// Calls from before count no more.
    fn forget(&mut self, at: Instant) {
        self.failures_in_a_row = 0;
        self.window = Window::new(at);
    }

    fn throttle(&mut self, for_: Duration, at: Instant) {
        let until = at + for_.min(THROTTLED_FOR_MAX);
        if !for_.is_zero() && self.state.throttled_until.is_none_or(|known| known < until) {
            self.state.throttled_until = Some(until);
        }
    }

    fn count(&mut self, success: bool, at: Instant, policy: &Policy) {
        self.window.add(success, at, policy.window);
        if success {
            self.failures_in_a_row = 0;
            return;
        }
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        let (ended, failed) = self.window.sums();
        let too_many =
            ended >= u64::from(policy.requests_min.get()) && failed * 100 >= ended * u64::from(policy.failure_share);
        if self.failures_in_a_row >= policy.failures_max.get() || too_many {
            self.open(at, policy);
        }
    }

    fn open(&mut self, at: Instant, policy: &Policy) {
        self.state.open_until = Some(at + policy.open_for.min(OPEN_FOR_MAX));
        self.state.followed_until = None;
        self.opened(at);
        self.forget(at);
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

/// How many calls ended lately, and how many of them failed. Between nine tenths of the window and all of it is seen.
#[derive(Clone, Debug)]
struct Window {
    born: Instant,
    /// The number of the newest part since `born`.
    newest: u64,
    parts: [Part; PARTS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    ended: u32,
    failed: u32,
}

impl Window {
    fn new(born: Instant) -> Self {
        Self { born, newest: 0, parts: [Part::default(); PARTS] }
    }

    /// A call that ended before the newest part is counted in the newest: verdicts come a little out of order.
    fn add(&mut self, success: bool, at: Instant, window: Duration) {
        let part_nanos = (window.as_nanos() / PARTS as u128).max(1);
        let number = at.saturating_duration_since(self.born).as_nanos() / part_nanos;
        let number = u64::try_from(number).unwrap_or(u64::MAX).max(self.newest);
        for stale in (self.newest + 1..=number).take(PARTS) {
            *self.part(stale) = Part::default();
        }
        if number - self.newest > PARTS as u64 {
            self.parts = [Part::default(); PARTS];
        }
        self.newest = number;
        let part = self.part(number);
        part.ended = part.ended.saturating_add(1);
        part.failed = part.failed.saturating_add(u32::from(!success));
    }

    fn part(&mut self, number: u64) -> &mut Part {
        let index = usize::try_from(number % PARTS as u64).unwrap_or(0);
        &mut self.parts[index]
    }

    fn sums(&self) -> (u64, u64) {
        self.parts
            .iter()
            .fold((0, 0), |(ended, failed), part| (ended + u64::from(part.ended), failed + u64::from(part.failed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::num::NonZeroU32;

    const POLICY: Policy = Policy {
        failures_max: NonZeroU32::new(5).expect("not zero"),
        failure_share: 50,
        window: Duration::from_secs(30),
        requests_min: NonZeroU32::new(20).expect("not zero"),
        open_for: Duration::from_secs(10),
    };

    struct Bench {
        machine: Machine,
        born: Instant,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let born = cluster::clock::now();
            Self { machine: Machine::closed(born), born, now: born }
        }

        fn wait(&mut self, time: Duration) {
            self.now += time;
        }

        fn take(&mut self, verdict: Verdict, ground: Ground) {
            self.machine.take(verdict, ground, self.now, &POLICY);
        }

        fn heed(&mut self, advice: Advice) {
            self.machine.heed(&advice, self.now);
        }

        fn standing(&self) -> Standing {
            self.machine.state().at(self.now)
        }

        fn opened() -> Self {
            let mut bench = Self::new();
            for _ in 0..5 {
                bench.take(Verdict::Failure, Ground::Closed);
            }
            assert_eq!(bench.standing(), Standing::Open { until: bench.born + POLICY.open_for });
            bench
        }
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_does_not() {
        let mut bench = Bench::new();
        for _ in 0..4 {
            bench.take(Verdict::Failure, Ground::Closed);
        }
        bench.take(Verdict::Success, Ground::Closed);
        for _ in 0..4 {
            bench.take(Verdict::Failure, Ground::Closed);
        }
        assert_eq!(bench.standing(), Standing::Closed);

        bench.take(Verdict::Failure, Ground::Closed);

        assert_eq!(bench.standing(), Standing::Open { until: bench.now + POLICY.open_for });
    }

    #[test]
    fn a_share_of_failures_opens_it_once_enough_calls_ended() {
        let mut bench = Bench::new();
        for _ in 0..9 {
            bench.take(Verdict::Success, Ground::Closed);
            bench.take(Verdict::Failure, Ground::Closed);
        }
        bench.take(Verdict::Success, Ground::Closed);
        assert_eq!(bench.standing(), Standing::Closed);

        bench.take(Verdict::Failure, Ground::Closed);

        assert!(matches!(bench.standing(), Standing::Open { .. }));
    }

    #[test]
    fn failures_outside_the_window_are_forgotten() {
        let mut bench = Bench::new();
        for _ in 0..9 {
            bench.take(Verdict::Success, Ground::Closed);
            bench.take(Verdict::Failure, Ground::Closed);
        }
        bench.wait(POLICY.window);
        bench.take(Verdict::Success, Ground::Closed);

        bench.take(Verdict::Failure, Ground::Closed);

        assert_eq!(bench.standing(), Standing::Closed);
    }

    #[test]
    fn the_probe_decides() {
        let mut bench = Bench::opened();
        bench.wait(POLICY.open_for);
        assert_eq!(bench.standing(), Standing::HalfOpen);

        bench.take(Verdict::Failure, Ground::Probe);
        assert_eq!(bench.standing(), Standing::Open { until: bench.now + POLICY.open_for });
        bench.wait(POLICY.open_for);
        bench.take(Verdict::Success, Ground::Probe);

        assert_eq!(bench.standing(), Standing::Closed);
    }

    /// A call from before the trip tells of a time that is over.
    #[test]
    fn late_verdicts_neither_close_nor_prolong() {
        let mut bench = Bench::opened();
        let opened = bench.standing();

        bench.take(Verdict::Success, Ground::Closed);
        bench.wait(Duration::from_secs(1));
        bench.take(Verdict::Failure, Ground::Closed);
        bench.take(Verdict::Failure, Ground::LastResort);

        assert_eq!(bench.standing(), opened);
    }

    #[test]
    fn a_last_resort_that_succeeds_closes() {
        let mut bench = Bench::opened();

        bench.take(Verdict::Success, Ground::LastResort);

        assert_eq!(bench.standing(), Standing::Closed);
    }

    #[test]
    fn throttling_is_no_failure_and_passes_by_itself() {
        let mut bench = Bench::new();
        for _ in 0..100 {
            bench.take(Verdict::Throttled { for_: Duration::from_secs(7) }, Ground::Closed);
        }
        assert_eq!(bench.standing(), Standing::Throttled { until: bench.now + Duration::from_secs(7) });

        bench.take(Verdict::Throttled { for_: Duration::from_secs(2) }, Ground::Closed);
        bench.wait(Duration::from_secs(7));

        assert_eq!(bench.standing(), Standing::Closed);
    }

    #[test]
    fn a_provider_cannot_ask_to_be_left_alone_for_ever() {
        let mut bench = Bench::new();

        bench.take(Verdict::Throttled { for_: Duration::MAX }, Ground::Closed);
        bench.wait(THROTTLED_FOR_MAX);

        assert_eq!(bench.standing(), Standing::Closed);
    }

    /// While others fail again and again it must come to its own probe all the same.
    #[test]
    fn it_follows_until_the_time_it_was_first_told() {
        let mut bench = Bench::new();
        let until = bench.now + Duration::from_secs(3);
        bench.heed(Advice { follow: Some(until), ..Advice::default() });
        assert_eq!(bench.standing(), Standing::Open { until });

        bench.heed(Advice { follow: Some(until + POLICY.open_for), ..Advice::default() });
        bench.wait(Duration::from_secs(3));

        assert_eq!(bench.standing(), Standing::HalfOpen);
        bench.take(Verdict::Failure, Ground::Probe);
        assert_eq!(bench.standing(), Standing::Open { until: bench.now + POLICY.open_for });
        bench.heed(Advice::default());
        assert!(matches!(bench.standing(), Standing::Open { .. }), "its own failures need nobody else's");
    }

    #[test]
    fn it_follows_nobody_who_takes_it_back() {
        let mut bench = Bench::new();
        bench.heed(Advice { follow: Some(bench.now + POLICY.open_for), ..Advice::default() });

        bench.heed(Advice::default());

        assert_eq!(bench.standing(), Standing::Closed);
    }

    #[test]
    fn a_success_elsewhere_closes_what_opened_before_it_and_nothing_later() {
        let mut bench = Bench::opened();
        bench.wait(Duration::from_secs(1));
        let advice = Advice { closed_at: Some(bench.now), ..Advice::default() };
        bench.heed(advice);
        assert_eq!(bench.standing(), Standing::Closed);
        assert_eq!(bench.machine.state().closed_at, None, "only whoever succeeded tells of it");

        bench.wait(Duration::from_secs(1));
        for _ in 0..5 {
            bench.take(Verdict::Failure, Ground::Closed);
        }
        bench.heed(advice);
        bench.heed(Advice { closed_at: Some(bench.born), ..Advice::default() });

        assert!(matches!(bench.standing(), Standing::Open { .. }));
    }

    /// They may not have heard yet that it is over.
    #[test]
    fn nobody_is_followed_right_after_a_success() {
        let mut bench = Bench::opened();
        bench.wait(POLICY.open_for);
        bench.take(Verdict::Success, Ground::Probe);
        let follow = Advice { follow: Some(bench.now + POLICY.open_for), ..Advice::default() };

        bench.heed(follow);
        assert_eq!(bench.standing(), Standing::Closed);
        bench.wait(NEWS_WITHIN);
        bench.heed(follow);

        assert!(matches!(bench.standing(), Standing::Open { .. }));
    }

    #[test]
    fn a_probe_elsewhere_holds_this_one_back_for_a_while_only() {
        let mut bench = Bench::opened();
        bench.wait(POLICY.open_for);
        let until = bench.now + Duration::from_secs(3);

        bench.heed(Advice { held_until: Some(until), ..Advice::default() });

        assert_eq!(bench.standing(), Standing::Open { until });
        bench.wait(Duration::from_secs(3));
        assert_eq!(bench.standing(), Standing::HalfOpen);
    }

    #[test]
    fn what_the_provider_told_another_node_counts_and_is_not_believed_for_ever() {
        let mut bench = Bench::new();

        bench.heed(Advice { throttled_until: Some(bench.now + Duration::from_hours(1)), ..Advice::default() });

        assert_eq!(bench.standing(), Standing::Throttled { until: bench.now + THROTTLED_FOR_MAX });
        assert_eq!(bench.machine.state().throttled_until, None, "only whoever was told tells of it");
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Wait(Duration),
        End(Verdict),
        LateEnd(Verdict),
        LastResort(Verdict),
    }

    fn verdict() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            3 => Just(Verdict::Success),
            5 => Just(Verdict::Failure),
            1 => Just(Verdict::Neutral),
            1 => (0..20_000u64).prop_map(|ms| Verdict::Throttled { for_: Duration::from_millis(ms) }),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => (0..15_000u64).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
            6 => verdict().prop_map(Step::End),
            1 => verdict().prop_map(Step::LateEnd),
            1 => verdict().prop_map(Step::LastResort),
        ]
    }

    fn run(bench: &mut Bench, step: Step) {
        match step {
            Step::Wait(time) => bench.wait(time),
            Step::End(verdict) => match bench.standing() {
                Standing::Closed => bench.take(verdict, Ground::Closed),
                Standing::HalfOpen => bench.take(verdict, Ground::Probe),
                Standing::Open { .. } | Standing::Throttled { .. } => {}
            },
            Step::LateEnd(verdict) => bench.take(verdict, Ground::Closed),
            Step::LastResort(verdict) => bench.take(verdict, Ground::LastResort),
        }
    }

    proptest! {
        /// Whatever happened, a provider is never out of rotation for longer than stated.
        #[test]
        fn never_open_for_ever(steps in vec(step(), 0..200)) {
            let mut bench = Bench::new();
            for step in steps {
                run(&mut bench, step);
                match bench.standing() {
                    Standing::Open { until } => prop_assert!(until - bench.now <= POLICY.open_for),
                    Standing::Throttled { until } => prop_assert!(until - bench.now <= THROTTLED_FOR_MAX),
                    Standing::Closed | Standing::HalfOpen => {}
                }
            }
            bench.wait(POLICY.open_for.max(THROTTLED_FOR_MAX));
            prop_assert!(matches!(bench.standing(), Standing::Closed | Standing::HalfOpen));
        }

        /// From any state, a provider that is well again is called again: one probe that succeeds is enough.
        #[test]
        fn a_success_heals(steps in vec(step(), 0..200)) {
            let mut bench = Bench::new();
            for step in steps {
                run(&mut bench, step);
            }
            bench.wait(POLICY.open_for.max(THROTTLED_FOR_MAX));
            run(&mut bench, Step::End(Verdict::Success));
            prop_assert_eq!(bench.standing(), Standing::Closed);
        }

        /// It opens for nothing but failures: not without `failures_max` of them since it last closed.
        #[test]
        fn a_few_failures_do_not_open_it(steps in vec(step(), 0..200)) {
            let mut bench = Bench::new();
            let mut failures = 0;
            for step in steps {
                let closed = bench.standing() == Standing::Closed;
                if closed && matches!(step, Step::End(Verdict::Failure)) {
                    failures += 1;
                }
                run(&mut bench, match step {
                    Step::LateEnd(Verdict::Failure) | Step::LastResort(Verdict::Failure) => Step::Wait(Duration::ZERO),
                    Step::Wait(_) | Step::End(_) | Step::LateEnd(_) | Step::LastResort(_) => step,
                });
                if closed && matches!(bench.standing(), Standing::Open { .. }) {
                    prop_assert!(failures >= 5, "opened after {failures} failures");
                    failures = 0;
                }
            }
        }

        /// The window agrees with a list of everything that ended, up to one part of it.
        #[test]
        fn the_window_forgets_what_is_old(calls in vec((0..9_000u64, any::<bool>()), 1..150)) {
            let born = cluster::clock::now();
            let mut window = Window::new(born);
            let mut now = born;
            let mut ended = Vec::new();
            for (pause, success) in calls {
                now += Duration::from_millis(pause);
                window.add(success, now, POLICY.window);
                ended.push(now);
                let within = |span: Duration| ended.iter().filter(|at| now - **at < span).count() as u64;
                let (counted, _failed) = window.sums();
                prop_assert!(counted <= within(POLICY.window), "{counted} > {}", within(POLICY.window));
                prop_assert!(counted >= within(POLICY.window * 9 / 10), "{counted} < {}", within(POLICY.window * 9 / 10));
            }
        }
    }
}

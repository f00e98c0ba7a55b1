//! Many nodes in virtual time, telling each other texts that take a while; and what a text may and may not do.

use super::*;
use crate::breaker::state::{Ground, Machine, Policy, Standing, Verdict};
use proptest::prelude::*;
use std::num::NonZeroU32;

const POLICY: Policy = Policy {
    failures_max: NonZeroU32::new(5).expect("not zero"),
    failure_share: 50,
    window: Duration::from_secs(30),
    requests_min: NonZeroU32::new(20).expect("not zero"),
    open_for: Duration::from_secs(10),
};

const STEP: Duration = Duration::from_millis(25);
const TELL_EVERY: Duration = Duration::from_millis(250);
/// The longest a text takes.
const NEWS_MAX: u64 = 350;
const PROBE_MAX: u64 = 3_000;
/// Until all others have noticed that a node is dead.
const DEATH_NOTICED: Duration = Duration::from_millis(1_700);

fn provider() -> Key {
    Key::of("p")
}

/// Numbers that look like chance and are the same for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

struct Node {
    id: u64,
    machine: Machine,
    ear: Ear,
    called: Option<Instant>,
    probe_ends: Option<Instant>,
    /// Its own way to the provider works.
    connected: bool,
    dies_at: Option<Instant>,
    tells_at: Instant,
    /// Or sooner, when a text arrives.
    hears_at: Instant,
    /// The others' latest texts, with when they were sent.
    texts: BTreeMap<u64, (Instant, String)>,
}

struct World {
    now: Instant,
    chance: Chance,
    nodes: Vec<Node>,
    /// When it arrives, from and to whom, when it was sent.
    under_way: Vec<(Instant, u64, u64, Instant, String)>,
    provider_works: bool,
    /// Of a thousand steps, those in which a node is asked for the provider.
    asked: u64,
    successes: usize,
}

impl World {
    fn new(nodes: u64, seed: u64) -> Self {
        let now = cluster::clock::now();
        let mut chance = Chance(seed);
        let node = |number: u64, tells_at| Node {
            id: number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed,
            machine: Machine::closed(now),
            ear: Ear::default(),
            called: None,
            probe_ends: None,
            connected: true,
            dies_at: None,
            tells_at,
            hears_at: now,
            texts: BTreeMap::new(),
        };
        let nodes = (1..=nodes).map(|number| node(number, now + Duration::from_millis(chance.below(250)))).collect();
        Self { now, chance, nodes, under_way: Vec::new(), provider_works: true, asked: 1_000, successes: 0 }
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        let died: Vec<(u64, Instant)> =
            self.nodes.iter().filter_map(|node| Some((node.id, node.dies_at.filter(|at| *at <= now)?))).collect();
        let (arrived, rest) = std::mem::take(&mut self.under_way).into_iter().partition(|text| text.0 <= now);
        self.under_way = rest;
        for (_at, from, to, sent, text) in arrived {
            let node = self.nodes.iter_mut().find(|node| node.id == to).expect("it was there at the start");
            if node.texts.get(&from).is_none_or(|(known, _text)| *known < sent) {
                node.texts.insert(from, (sent, text));
                node.hears_at = self.now;
            }
        }
        for index in 0..self.nodes.len() {
            if self.nodes[index].dead_for(now, Duration::ZERO) {
                self.nodes[index].probe_ends = None;
                continue;
            }
            let node = &mut self.nodes[index];
            // Each notices in its own time.
            let notices = DEATH_NOTICED.saturating_sub(Duration::from_millis(node.id % 500));
            let is_dead = |other: u64| died.iter().any(|(id, at)| *id == other && *at + notices <= now);
            node.texts.retain(|other, _text| !is_dead(*other));
            if node.hears_at <= now {
                node.hears_at = now + TELL_EVERY;
                node.hear(now);
            }
            let asked = self.chance.below(1_000) < self.asked;
            let takes = Duration::from_millis(20 + self.chance.below(PROBE_MAX - 20));
            let works = self.provider_works && node.connected;
            let (news, success) = node.work(works, asked, takes, now);
            self.successes += usize::from(success);
            if news || node.tells_at <= now {
                node.tells_at = now + TELL_EVERY;
                self.tell(index);
            }
        }
    }

    fn tell(&mut self, index: usize) {
        let (from, text) = (self.nodes[index].id, self.nodes[index].text(self.now));
        for other in self.nodes.iter().filter(|other| other.id != from) {
            let arrives = self.now + Duration::from_millis(self.chance.below(NEWS_MAX));
            self.under_way.push((arrives, from, other.id, self.now, text.clone()));
        }
    }

    fn run(&mut self, time: Duration) {
        self.run_looking(time, |_world| {});
    }

    fn run_looking(&mut self, time: Duration, mut look: impl FnMut(&Self)) {
        let until = self.now + time;
        while self.now < until {
            self.step();
            look(self);
        }
    }

    fn alive(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| !node.dead_for(self.now, Duration::ZERO))
    }

    fn probes(&self) -> usize {
        self.alive().filter(|node| node.probe_ends.is_some()).count()
    }

    fn all_closed(&self) -> bool {
        self.alive().all(|node| node.standing(self.now) == Standing::Closed)
    }
}

impl Node {
    fn dead_for(&self, now: Instant, time: Duration) -> bool {
        self.dies_at.is_some_and(|at| at + time <= now)
    }

    fn standing(&self, now: Instant) -> Standing {
        self.machine.state().at(now)
    }

    fn called(&self, now: Instant) -> bool {
        self.called.is_some_and(|at| now < at + CALLED_WITHIN)
    }

    fn hear(&mut self, now: Instant) {
        let others: Vec<_> = self.texts.iter().map(|(node, (_sent, text))| (*node, text.as_str())).collect();
        let _none = self.ear.listen(self.id, &others, now);
        let mine = Mine { called: self.called(now), open_for: POLICY.open_for, state: self.machine.state() };
        let advice = self.ear.advice(provider(), self.id, &mine, now);
        self.machine.heed(&advice, now);
    }

    /// Whether there is something to tell at once, and whether a call succeeded.
    fn work(&mut self, works: bool, asked: bool, takes: Duration, now: Instant) -> (bool, bool) {
        let verdict = if works { Verdict::Success } else { Verdict::Failure };
        let before = self.machine.state();
        if self.probe_ends.is_some_and(|ends| ends <= now) {
            self.probe_ends = None;
            self.machine.take(verdict, Ground::Probe, now, &POLICY);
            return (true, works);
        }
        match self.standing(now) {
            Standing::Closed if asked => {
                self.called = Some(now);
                self.machine.take(verdict, Ground::Closed, now, &POLICY);
                (self.machine.state() != before, works)
            }
            Standing::HalfOpen if asked && self.probe_ends.is_none() => {
                self.called = Some(now);
                self.probe_ends = Some(now + takes);
                (true, false)
            }
            Standing::Closed | Standing::HalfOpen | Standing::Open { .. } | Standing::Throttled { .. } => {
                (false, false)
            }
        }
    }

    fn text(&self, now: Instant) -> String {
        let mark = mark(&self.machine.state(), self.called(now), self.probe_ends.is_some(), now);
        let providers = [(provider(), mark)].into_iter().filter(|(_key, mark)| *mark != Mark::default()).collect();
        Marks { providers, ..Marks::default() }.encode()
    }
}

/// How many nodes probed at once, at most, while the provider was down and one of them died; and whether any did.
fn probes_of_an_outage(nodes: u64, seed: u64, asked: u64, dies_after: u64) -> (usize, bool) {
    let mut world = World::new(nodes, seed);
    world.asked = asked;
    world.nodes[0].dies_at = Some(world.now + Duration::from_millis(dies_after));
    world.run(Duration::from_secs(3));
    world.provider_works = false;
    let mut most = 0;
    world.run_looking(Duration::from_secs(50), |world| most = most.max(world.probes()));
    (most, most > 0)
}

/// Some learn sooner than others that one who took turns has died: meanwhile nobody begins.
#[test]
fn nobody_probes_while_not_all_know_who_takes_turns() {
    assert_eq!(probes_of_an_outage(6, 548_548_525_287_658_661, 825, 35_251), (1, true));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// However texts are delayed, whoever dies, and however much is asked: at most one node probes.
    #[test]
    fn never_two_probes_at_once(
        nodes in 2..7u64,
        seed in any::<u64>(),
        asked in prop_oneof![Just(1_000u64), 20..1_000u64],
        dies_after in 5_000..40_000u64,
    ) {
        let (most, probed) = probes_of_an_outage(nodes, seed, asked, dies_after);

        prop_assert!(most <= 1, "{} at once", most);
        prop_assert!(asked < 1_000 || probed);
    }

    /// A provider that is well again is called by every node after its time and a round of turns, whoever died.
    #[test]
    fn an_outage_that_is_over_is_over_everywhere(nodes in 2..7u64, seed in any::<u64>(), down_for in 2_000..60_000u64) {
        let mut world = World::new(nodes, seed);
        world.run(Duration::from_secs(3));
        world.provider_works = false;
        world.run(Duration::from_millis(down_for));
        prop_assert!(world.alive().all(|node| node.machine.state().open().is_some()));

        // The one whose turn is next.
        let state = |node: &Node| node.machine.state();
        let next = world.nodes.iter().enumerate().min_by_key(|(_index, node)| match state(node).at(world.now) {
            Standing::Open { until } | Standing::Throttled { until } => until,
            Standing::Closed | Standing::HalfOpen => world.now,
        });
        let next = next.map(|(index, _node)| index).expect("there are nodes");
        world.nodes[next].dies_at = Some(world.now);
        world.provider_works = true;
        let turns = u32::try_from(nodes + 1).expect("few");
        let until_closed = POLICY.open_for + super::super::marks::TURN * turns * 2 + Duration::from_millis(PROBE_MAX + NEWS_MAX);
        world.run(until_closed);

        prop_assert!(world.all_closed());
    }
}

/// One node with a broken resolver must not take the provider from the others.
#[test]
fn a_node_that_fails_alone_is_not_followed() {
    let mut world = World::new(5, 1);
    world.nodes[2].connected = false;

    let mut followed = false;
    world.run_looking(Duration::from_mins(1), |world| {
        followed |= world.nodes.iter().any(|node| node.connected && node.standing(world.now) != Standing::Closed);
    });

    assert!(!followed);
}

/// Two of six are not half; two of three are, and then the third finds out for itself.
#[test]
fn a_minority_of_callers_is_not_followed_and_a_majority_is_checked() {
    for (nodes, follows) in [(6, false), (3, true)] {
        let mut world = World::new(nodes, 7);
        world.nodes[0].connected = false;
        world.nodes[1].connected = false;

        let mut followed = 0usize;
        world.run_looking(Duration::from_mins(1), |world| {
            followed += usize::from(world.nodes[2].standing(world.now) != Standing::Closed);
        });

        assert_eq!(followed > 0, follows, "{nodes} nodes");
        assert!(world.successes > 100, "the one that reaches the provider goes on using it");
    }
}

/// A node nobody asks for the provider follows, and is no caller whose silence counts against those who fail.
#[test]
fn idle_nodes_follow_and_do_not_vote() {
    let mut world = World::new(6, 3);
    world.asked = 0;
    world.provider_works = false;
    let now = world.now;
    for node in &mut world.nodes[..2] {
        for _ in 0..5 {
            node.machine.take(Verdict::Failure, Ground::Closed, now, &POLICY);
        }
        node.called = Some(now);
    }

    world.run(Duration::from_secs(2));

    assert!(world.nodes.iter().all(|node| matches!(node.standing(world.now), Standing::Open { .. })));
}

/// Evidence that is gone is followed no more: a node must not stay shut for what dead nodes once said.
#[test]
fn who_followed_nodes_that_died_looks_for_itself() {
    let mut world = World::new(3, 5);
    world.nodes[0].connected = false;
    world.nodes[1].connected = false;
    let deadline = world.now + Duration::from_secs(30);
    while world.nodes[2].standing(world.now) == Standing::Closed && world.now < deadline {
        world.step();
    }
    assert!(matches!(world.nodes[2].standing(world.now), Standing::Open { .. }));

    for index in 0..2 {
        world.nodes[index].dies_at = Some(world.now);
    }
    world.run(DEATH_NOTICED + STEP);

    assert_eq!(world.nodes[2].standing(world.now), Standing::Closed);
}

/// What the provider told one node every node knows, for as long as it said and hardly longer, however often it is
/// told on.
#[test]
fn a_throttled_provider_is_left_alone_by_all_until_it_said() {
    let mut world = World::new(4, 11);
    world.run(Duration::from_secs(1));
    let until = world.now + Duration::from_secs(7);
    world.nodes[0].machine.take(
        Verdict::Throttled { for_: Duration::from_secs(7) },
        Ground::Closed,
        world.now,
        &POLICY,
    );
    world.run(TELL_EVERY * 3);

    while world.now + STEP < until {
        world.step();
        for node in &world.nodes {
            assert!(matches!(node.standing(world.now), Standing::Throttled { .. }));
        }
    }
    world.run(Duration::from_millis(NEWS_MAX) + TELL_EVERY);

    assert!(world.all_closed());
}

/// A node that hangs tells the same for ever.
#[test]
fn a_text_that_does_not_change_prolongs_nothing() {
    let (mut ear, now) = (Ear::default(), cluster::clock::now());
    let mark = Mark {
        called: true,
        throttled: Some(Duration::from_secs(5)),
        open: Some(Open { why: Why::Failures, due: Duration::from_secs(5), since: Duration::ZERO }),
        ..Mark::default()
    };
    let text = Marks { providers: [(provider(), mark)].into(), ..Marks::default() }.encode();
    let mine = Mine { called: true, open_for: POLICY.open_for, state: State::default() };

    for second in 0..5 {
        let now = now + Duration::from_secs(second);
        let _none = ear.listen(1, &[(2, &text), (3, &text)], now);
        let advice = ear.advice(provider(), 1, &mine, now);
        let in_five = Some(now + Duration::from_secs(5 - second));
        assert_eq!((advice.throttled_until, advice.follow), (in_five, in_five));
    }
}

/// Who is not told of all providers a node calls must not take its silence for idleness.
#[test]
fn a_node_that_could_not_tell_all_counts_as_one_that_calls() {
    let (mut ear, now) = (Ear::default(), cluster::clock::now());
    let open = Some(Open { why: Why::Failures, due: Duration::from_secs(5), since: Duration::ZERO });
    let failing = Mark { called: true, open, ..Mark::default() };
    let failing = Marks { providers: [(provider(), failing)].into(), ..Marks::default() }.encode();
    let full = Marks { more: true, ..Marks::default() }.encode();
    let mine = Mine { called: false, open_for: POLICY.open_for, state: State::default() };
    let mut follows = |others: &[(u64, &str)]| {
        let _none = ear.listen(1, others, now);
        ear.advice(provider(), 1, &mine, now).follow.is_some()
    };

    assert!(follows(&[(2, &failing), (3, &failing), (4, &full), (5, &full)]));
    assert!(!follows(&[(2, &failing), (3, &failing), (4, &full), (5, &full), (6, &full)]));
    assert!(!follows(&[(2, &failing), (1, &failing)]), "what is told of this node by itself is no other's word");
}

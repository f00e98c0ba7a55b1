//! Limits in a small world: nodes with exact counts, messages that are late, overtaken and lost, in time that is counted.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRng;

use super::holding::{Holding, Lack};
use super::table::Table;
use super::*;

const KEY: u64 = 7;
const LIMIT: LimitId = LimitId { key: KEY, unit: Unit::Requests };
const STEP: u64 = 10;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn view(me: u64, nodes: u64) -> View {
    View { me: NodeId::new(me), ready: (1..=nodes).map(NodeId::new).collect(), members: nodes, cut_off: false }
}

struct Node {
    view: View,
    table: Table,
    holding: Holding,
    /// When each unit was used.
    uses: Vec<Duration>,
    asking: bool,
    dead: bool,
}

impl Node {
    fn new(me: u64, nodes: u64) -> Self {
        let (view, table) = (view(me, nodes), Table::new(1_000 + me));
        Self { view, table, holding: Holding::default(), uses: Vec::new(), asking: false, dead: false }
    }

    fn falls(&self, now: Duration) -> Vec<(Duration, u64)> {
        self.uses.iter().filter(|at| **at + SPAN > now).map(|at| ((*at + SPAN).saturating_sub(now), 1)).collect()
    }

    fn used(&self, now: Duration) -> u64 {
        self.uses.iter().rev().take_while(|at| **at + SPAN > now).count() as u64
    }

    fn part(&self, per_minute: u64) -> u64 {
        self.view.part(KEY, per_minute)
    }

    fn use_one(&mut self, per_minute: u64, now: Duration) -> bool {
        let fits = self.used(now) < self.holding.cap(self.part(per_minute), now);
        if fits {
            self.uses.push(now);
        }
        fits
    }
}

enum Sent {
    Report { from: usize, report: Report, at: Duration, ask: bool },
    Share { to: usize, from: usize, share: Option<Share>, sent: Duration, ask: bool },
}

struct World {
    per_minute: u64,
    nodes: Vec<Node>,
    now: Duration,
    under_way: BTreeMap<(Duration, u64), Sent>,
    sent: u64,
    /// Milliseconds a message takes at most.
    late_max: u64,
    /// Of how many frames, asks and answers one is lost; 0 for none.
    lost_of: u64,
    rng: TestRng,
}

impl World {
    fn new(nodes: u64, per_minute: u64, late_max: u64, lost_of: u64) -> Self {
        let rng = TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha);
        let all = (1..=nodes).map(|me| Node::new(me, nodes)).collect();
        // Long after all have heard of one another.
        let now = Duration::from_secs(10);
        Self { per_minute, nodes: all, now, under_way: BTreeMap::new(), sent: 0, late_max, lost_of, rng }
    }

    fn owner(&self) -> usize {
        usize::try_from(self.nodes[0].view.owner(KEY).unwrap().get() - 1).unwrap()
    }

    fn random(&mut self, below: u64) -> u64 {
        self.rng.next_u64() % below.max(1)
    }

    fn send(&mut self, message: Sent) {
        let late = self.random(self.late_max);
        self.sent += 1;
        self.under_way.insert((self.now + ms(late), self.sent), message);
    }

    fn report(&mut self, node: usize, wanted: u64) {
        let (now, per_minute) = (self.now, self.per_minute);
        let this = &mut self.nodes[node];
        let (used, falls) = (this.used(now), this.falls(now));
        let part = this.part(per_minute);
        let report = this.holding.report(LIMIT, per_minute, part, used, wanted, falls, now);
        if self.is_lost() {
            return self.time_out(node, now, wanted > 0);
        }
        self.send(Sent::Report { from: node, report, at: now, ask: wanted > 0 });
    }

    fn is_lost(&mut self) -> bool {
        self.lost_of > 0 && self.random(self.lost_of) == 0
    }

    /// Who sent something at `sent` waits no longer for an answer.
    fn time_out(&mut self, node: usize, sent: Duration, ask: bool) {
        self.sent += 1;
        let message = Sent::Share { to: node, from: node, share: None, sent, ask };
        self.under_way.insert((sent + ASK_WITHIN, self.sent), message);
    }

    /// A client of the node wants one.
    fn request(&mut self, node: usize) {
        let (now, per_minute) = (self.now, self.per_minute);
        let this = &mut self.nodes[node];
        if this.dead {
            return;
        }
        this.holding.want(1);
        if !this.use_one(per_minute, now) && !this.asking && this.holding.lack(now) == Lack::Ask {
            this.asking = true;
            self.report(node, 1);
        }
    }

    fn deliver(&mut self, message: Sent) {
        let (now, per_minute) = (self.now, self.per_minute);
        match message {
            Sent::Report { from, report, at, ask } => {
                let (who, view) = (NodeId::new(from as u64 + 1), self.nodes[from].view.clone());
                let owner = view.owner(KEY).map(|owner| usize::try_from(owner.get() - 1).unwrap()).unwrap();
                let there = &mut self.nodes[owner];
                let is_owner = there.view.owner(KEY) == Some(there.view.me) && !there.dead;
                let share = is_owner.then(|| there.table.hear((who, 1), &report, &there.view.clone(), now)).flatten();
                if self.is_lost() {
                    return self.time_out(from, at, ask);
                }
                self.send(Sent::Share { to: from, from: owner, share, sent: at, ask });
            }
            Sent::Share { to, from, share, sent, ask } => {
                let life = self.nodes[from].table.life();
                let this = &mut self.nodes[to];
                match &share {
                    Some(share) => this.holding.hear(life, share, sent, now),
                    None => this.holding.unanswered(now),
                }
                if ask {
                    this.asking = false;
                    let used = this.used(now);
                    if share.is_some() {
                        this.holding.asked(used, 1, per_minute, now);
                    }
                    this.use_one(per_minute, now);
                }
            }
        }
    }

    fn frames(&mut self) {
        for node in 0..self.nodes.len() {
            let now = self.now;
            let this = &mut self.nodes[node];
            this.holding.fade();
            let live = this.holding.is_live(now) || this.used(now) > 0;
            if live && !this.dead {
                self.report(node, 0);
            }
        }
    }

    /// `requests` are the nodes that are asked for one each in this step.
    fn step(&mut self, requests: &[usize]) {
        self.now += ms(STEP);
        while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let message = entry.remove();
            self.deliver(message);
        }
        for node in requests {
            self.request(*node);
        }
        if self.now.as_millis().is_multiple_of(FRAME_EVERY.as_millis()) {
            self.frames();
        }
    }

    /// By all, in the last 60 s.
    fn used(&self) -> u64 {
        self.nodes.iter().map(|node| node.used(self.now)).sum()
    }

    /// Each node is asked so many times in a hundred steps.
    fn run(&mut self, seconds: u64, rates: &[u64], mut check: impl FnMut(&Self)) {
        for _ in 0..seconds * 1_000 / STEP {
            let mut requests = Vec::new();
            for (node, rate) in rates.iter().enumerate() {
                let times = rate / 100 + u64::from(self.random(100) < rate % 100);
                requests.extend((0..times).map(|_| node));
            }
            self.step(&requests);
            check(self);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever is wanted where and however messages are late or overtaken, never more than the limit in any 60 s.
    #[test]
    fn caps_of_one_owner_never_let_more_through_than_the_limit(
        nodes in 2..6u64,
        per_minute in prop_oneof![1..30u64, 30..600u64],
        late_max in 1..120u64,
        lost_of in prop_oneof![Just(0u64), Just(8)],
        phases in vec((1..25u64, vec(0..300u64, 6), prop_oneof![4 => Just(0u64), 1 => 58..66u64, 1 => 118..140u64]), 1..7),
    ) {
        let mut world = World::new(nodes, per_minute, late_max, lost_of);
        for (seconds, rates, idle) in phases {
            let rates = &rates[..usize::try_from(nodes).unwrap()];
            for (seconds, rates) in [(seconds, rates), (idle, &[])] {
                world.run(seconds, rates, |world| {
                    assert!(world.used() <= per_minute, "{} of {per_minute} at {:?}", world.used(), world.now);
                });
            }
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    /// With five times as much wanted as there is, what there is, is used: wherever it is wanted, and when that changes.
    #[test]
    fn under_overload_the_limit_is_used(
        per_minute in 60..1_200u64,
        before in vec(1..10u64, 3),
        after in vec(0..10u64, 3),
        late_max in 1..20u64,
    ) {
        prop_assume!(after.iter().sum::<u64>() > 0);
        let rates = |weights: &[u64]| -> Vec<u64> {
            let all: u64 = weights.iter().sum();
            // Five limits a minute are a twelfth of the limit in a hundred steps of 10 ms.
            weights.iter().map(|weight| (per_minute * weight).div_ceil(12 * all)).collect()
        };
        let mut world = World::new(3, per_minute, late_max, 0);
        world.run(20, &rates(&before), |_world| {});
        for _minute in 0..2 {
            let before: usize = world.nodes.iter().map(|node| node.uses.len()).sum();
            world.run(60, &rates(&after), |world| assert!(world.used() <= per_minute));
            let after: usize = world.nodes.iter().map(|node| node.uses.len()).sum();
            let used = (after - before) as u64;
            prop_assert!(used * 100 >= per_minute * 95, "{used} of {per_minute}");
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// An owner is lost: what is let through beyond the limit is at most what the others had leave for from it, and the
    /// even parts of those that have not heard yet who comes after it.
    #[test]
    fn a_new_owner_learns_what_was_used(
        per_minute in 30..600u64,
        rates in vec(0..60u64, 4),
        seconds in 1..40u64,
        hears_after in vec(0..150usize, 4),
    ) {
        let mut world = World::new(4, per_minute, 20, 0);
        let owner = world.owner();
        let mut rates = rates;
        rates[owner] = 0;
        world.run(seconds, &rates, |_world| {});
        let now = world.now;
        let leave: u64 = world.nodes.iter().map(|node| node.holding.cap(0, now).saturating_sub(node.used(now))).sum();

        let late = (0..4).filter(|node| *node != owner && hears_after[*node] > 0);
        let parts: u64 = late.map(|node| world.nodes[node].part(per_minute)).sum();

        world.nodes[owner].dead = true;
        for step in 0..3_000 {
            for node in (0..4).filter(|node| *node != owner && hears_after[*node] == step) {
                let now = world.now;
                let this = &mut world.nodes[node];
                this.view.ready.retain(|ready| ready.get() != owner as u64 + 1);
                this.view.members = 3;
                this.table.settle(now);
            }
            let requests: Vec<usize> = (0..4).filter(|node| world.random(100) < rates[*node]).collect();
            world.step(&requests);
            let most = per_minute + leave + parts;
            prop_assert!(world.used() <= most, "{} of {per_minute}, at most {most}", world.used());
        }
    }

    #[test]
    fn no_two_parts_of_a_cluster_share_out_more_than_the_limit(limit: u64, nodes in 1..12u64, few in 0..6u64) {
        let few = few.min(nodes.div_ceil(2) - 1);
        let whole = view(1, nodes);
        let cut_off = View { ready: (1..=few).map(NodeId::new).collect(), members: nodes, cut_off: true, ..whole.clone() };

        prop_assert_eq!(whole.leave(limit), limit);
        prop_assert!(cut_off.leave(limit) <= limit / 2);
        prop_assert!(u128::from(cut_off.leave(limit)) >= (u128::from(limit) * u128::from(few) / u128::from(nodes)));
    }

    #[test]
    fn even_parts_come_to_the_limit(per_minute in 0..1_000u64, nodes in 1..12u64, key: u64) {
        let parts: u64 = (1..=nodes).map(|me| view(me, nodes).part(key, per_minute)).sum();

        prop_assert_eq!(parts, per_minute);
    }

    /// Who goes leaves its limits to others; no other limit changes hands.
    #[test]
    fn only_the_limits_of_who_goes_change_hands(key: u64, nodes in 2..12u64, gone: prop::sample::Index) {
        let before = view(1, nodes);
        let gone = before.ready[gone.index(before.ready.len())];
        let after = View { ready: before.ready.iter().copied().filter(|node| *node != gone).collect(), ..before.clone() };

        prop_assert!(after.owner(key).is_some());
        prop_assert!(before.owner(key) == Some(gone) || before.owner(key) == after.owner(key));
    }

    /// However a count is told to fall, it has fallen by then.
    #[test]
    fn steps_are_never_early(mut falls in vec((0..60_000u64, 0..100u64), 0..70)) {
        let told = steps(falls.iter().map(|(within, amount)| (ms(*within), *amount)).collect());

        prop_assert!(told.len() <= STEPS_MAX);
        falls.sort_unstable();
        prop_assert_eq!(told.first().map(|step| u64::from(step.within_ms)), falls.first().map(|(within, _)| *within));
        for (index, step) in told.iter().enumerate() {
            let said: u64 = told[..=index].iter().map(|step| step.amount).sum();
            let fell: u64 = falls.iter().filter(|(at, _)| *at <= u64::from(step.within_ms)).map(|(_, amount)| *amount).sum();
            prop_assert!(said <= fell);
        }
        prop_assert_eq!(told.iter().map(|step| step.amount).sum::<u64>(), falls.iter().map(|fall| fall.1).sum::<u64>());
    }
}

/// Two a minute on three nodes: two pass, wherever they come, and the third waits until the first is a minute old.
#[test]
fn a_limit_smaller_than_the_cluster_is_given_one_by_one() {
    let mut world = World::new(3, 2, 5, 0);
    for node in [0, 1, 2, 0, 1, 2] {
        world.step(&[node]);
        world.run(1, &[], |_world| {});
    }
    assert_eq!(world.used(), 2);

    world.run(60, &[], |_world| {});
    world.step(&[2]);
    world.run(1, &[], |_world| {});

    assert_eq!((world.used(), world.nodes[2].uses.len()), (1, 1));
}

/// All of a limit can be used at one node at once, without a single refusal.
#[test]
fn a_burst_at_one_node_uses_all_of_the_limit() {
    let mut world = World::new(3, 60, 1, 0);
    for _ in 0..60 {
        world.step(&[1]);
        // The time of one answer, should it be asked.
        world.step(&[]);
        world.step(&[]);
    }

    assert_eq!(world.used(), 60);
}

/// One wants more than what is left beside what others have leave for: they give it back, and it gets it.
#[test]
fn what_others_do_not_use_is_collected_for_who_lacks_it() {
    let (view, mut table) = (view(1, 2), Table::new(9));
    let mut now = Duration::from_secs(10);
    let (mut idle, mut large) = (Holding::default(), Holding::default());
    idle.want(1_000);
    let mut exchange = |who: u64, holding: &mut Holding, wanted: u64, now: Duration| {
        let report = holding.report(LIMIT, 1_000, 0, 0, wanted, Vec::new(), now);
        let share = table.hear((NodeId::new(who), 1), &report, &view, now).unwrap();
        holding.hear(9, &share, now, now);
        holding.asked(0, wanted, 1_000, now);
        holding.cap(0, now)
    };
    assert_eq!(exchange(1, &mut idle, 0, now), 500);
    large.want(900);
    assert!(exchange(2, &mut large, 900, now) < 900);
    assert!(matches!(large.lack(now), Lack::Later(_)), "it is there, and will be given back");

    // Its cap is lowered with this frame, and it says with the next that it knows.
    for _ in 0..2 {
        now += FRAME_EVERY;
        assert!(exchange(1, &mut idle, 0, now) <= 100);
    }

    assert_eq!(exchange(2, &mut large, 900, now), 900);
}

/// Silent for two seconds, an owner gives no leave any more: each node goes by its even part, and asks again.
#[test]
fn without_an_owner_each_node_goes_by_its_even_part() {
    let mut world = World::new(3, 60, 1, 0);
    let owner = world.owner();
    let [one, other] = [(owner + 1) % 3, (owner + 2) % 3];
    let mut rates = [0; 3];
    (rates[one], rates[other]) = (5, 1);
    world.run(3, &rates, |_world| {});
    let caps = |world: &World| [one, other].map(|node| world.nodes[node].holding.cap(20, world.now));
    let before = caps(&world);
    assert!(before.iter().all(|cap| *cap != 20), "{before:?}");
    world.nodes[owner].dead = true;

    world.run(4, &[], |_world| {});

    assert_eq!(caps(&world), [20, 20]);
    (rates[one], rates[other]) = (200, 200);
    world.run(30, &rates, |_world| {});
    assert_eq!((world.nodes[one].uses.len(), world.nodes[other].uses.len()), (20, 20));
}

/// One answer that is lost, or late, is no silence.
#[test]
fn who_missed_one_answer_does_not_go_by_its_even_part() {
    let mut holding = Holding::default();
    let now = Duration::from_secs(100);

    holding.unanswered(now);
    assert_eq!(holding.cap(20, now + ms(1)), 0);
    assert!(matches!(holding.lack(now + ms(1)), Lack::Later(_)), "it is asked again");
    holding.unanswered(now + Duration::from_mins(5));
    assert_eq!(holding.cap(20, now + Duration::from_mins(5) + ms(1)), 0, "the other was long ago");
}

/// An owner forgets who is silent; who comes back after that is told as anybody else.
#[test]
fn a_limit_that_was_idle_for_long_is_there_at_once() {
    let mut world = World::new(3, 600, 5, 0);
    world.run(40, &[20, 20, 20], |_world| {});
    world.run(140, &[], |_world| {});
    assert_eq!(world.used(), 0);

    for node in 0..3 {
        world.step(&[node]);
        world.run(1, &[], |_world| {});
        assert_eq!(world.nodes[node].used(world.now), 1, "node {node}");
    }
}

/// What one that died used, and may have used of its leave, falls as any other count; nobody waits for it in vain.
#[test]
fn what_a_dead_node_had_falls_in_time() {
    let mut world = World::new(3, 60, 1, 0);
    let owner = world.owner();
    let [dead, other] = [(owner + 1) % 3, (owner + 2) % 3];
    let mut rates = [0; 3];
    rates[dead] = 20;
    world.run(1, &rates, |_world| {});
    let (used, cap) = (world.nodes[dead].used(world.now), world.nodes[dead].holding.cap(0, world.now));
    assert!(used > 0 && cap > used + 10, "it has leave for more: {used} of {cap}");
    world.nodes[dead].dead = true;

    // The others take what is left; then all is gone, and whoever asks is told so at once.
    rates = [0; 3];
    rates[other] = 100;
    world.run(40, &rates, |world| assert!(world.used() <= 60, "{}", world.used()));
    assert_eq!(world.nodes[other].holding.lack(world.now), Lack::Refuse);

    // A minute and two seconds after it died nothing of it is left.
    let before = world.nodes[other].uses.len();
    world.run(70, &rates, |world| assert!(world.used() <= 60, "{}", world.used()));
    assert!(world.nodes[other].used(world.now) >= 58, "{}", world.nodes[other].used(world.now));
    assert!(world.nodes[other].uses.len() > before);
}

/// A peer may say what it likes: what is kept of it is bounded.
#[test]
fn what_is_kept_of_a_report_is_bounded() {
    let (view, mut table) = (view(1, 2), Table::new(9));
    let now = Duration::from_secs(10);
    let falls = vec![Step { within_ms: 9, amount: 1 }; 10_000];
    let report = Report {
        limit: LIMIT,
        per_minute: 60,
        sequence: 1,
        used: 1,
        cap: 0,
        answered: (0, 0),
        demand: 1,
        wanted: 0,
        falls,
    };

    let answers = (0..9).filter(|life| table.hear((NodeId::new(2), *life), &report, &view, now).is_some());

    assert_eq!(answers.count(), 4, "lives of one node");
    let share = table.hear((NodeId::new(1), 1), &report, &view, now).unwrap();
    assert!(share.others_fall.len() <= STEPS_MAX);
}

/// A report that another overtook is answered as the other: the owner is not silent.
#[test]
fn who_was_overtaken_is_answered_all_the_same() {
    let (view, mut table) = (view(1, 2), Table::new(9));
    let (now, who) = (Duration::from_secs(10), (NodeId::new(2), 1));
    let mut holding = Holding::default();
    holding.want(10);
    let first = holding.report(LIMIT, 60, 0, 0, 1, Vec::new(), now);
    let second = holding.report(LIMIT, 60, 0, 0, 1, Vec::new(), now + ms(1));

    let newer = table.hear(who, &second, &view, now + ms(2)).unwrap();
    let older = table.hear(who, &first, &view, now + ms(3)).unwrap();

    assert_eq!((older.number, older.cap), (newer.number, newer.cap));
}

/// A retry is promised when enough of what counts, here and elsewhere, is over.
#[test]
fn a_wait_looks_at_all_counts() {
    let falls = vec![(ms(30_000), 5), (ms(10_000), 2), (ms(20_000), 1)];

    assert_eq!(fits_in(8, 2, 10, falls.clone()), Duration::ZERO);
    assert_eq!(fits_in(8, 4, 10, falls.clone()), ms(10_000));
    assert_eq!(fits_in(8, 5, 10, falls.clone()), ms(20_000));
    assert_eq!(fits_in(8, 10, 10, falls), ms(30_000));
}

//! Slots in a small world: nodes whose requests last, messages that are late, overtaken, doubled and lost, owners that
//! change and nodes that die, in time that is counted.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRng;

use super::borrower::Borrower;
use super::lender::Lender;
use super::*;
use crate::limits::{ASK_WITHIN, FRAME_EVERY};

const KEY: u64 = 7;
const STEP: u64 = 10;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What a node sees when these are there and it has learnt of it.
fn roll(me: usize, there: &BTreeSet<usize>, lives: &[u64]) -> Roll {
    let id = |node: &usize| NodeId::new(*node as u64 + 1);
    let ready: Vec<NodeId> = there.iter().map(id).collect();
    let view = View { me: id(&me), members: ready.len() as u64, ready: ready.clone(), cut_off: false };
    Roll { view, lives: there.iter().map(|node| lives[*node]).collect(), alive: ready }
}

struct Node {
    roll: Roll,
    lender: Lender,
    borrower: Borrower,
    /// When each of its requests ends.
    ends: Vec<Duration>,
    sequence: u64,
    /// What it asked, until it has heard.
    asking: Option<Told>,
    knows: BTreeMap<usize, (u64, Duration)>,
    /// In this life, and not dead.
    life: u64,
    dead: bool,
}

impl Node {
    fn new(roll: Roll, life: u64) -> Self {
        Self {
            roll,
            lender: Lender::default(),
            borrower: Borrower::default(),
            ends: Vec::new(),
            sequence: 0,
            asking: None,
            knows: BTreeMap::new(),
            life,
            dead: false,
        }
    }
}

#[derive(Clone)]
enum Sent {
    Frame { from: usize, to: usize, frame: Frame },
    Answer { to: usize, life: u64, from: usize, frame: Frame, answer: Option<Answer> },
}

struct World {
    max: u32,
    nodes: Vec<Node>,
    lives: Vec<u64>,
    there: BTreeSet<usize>,
    now: Duration,
    under_way: BTreeMap<(Duration, u64), Sent>,
    learns: Vec<(Duration, usize, Roll)>,
    sent: u64,
    /// What was answered, or is not waited for any more: node, life, number.
    closed: BTreeSet<(usize, u64, u64)>,
    late_max: u64,
    /// Of how many messages one is lost, and one comes twice; 0 for none.
    lost_of: u64,
    rng: TestRng,
}

impl World {
    fn new(nodes: usize, max: u32, late_max: u64, lost_of: u64) -> Self {
        let rng = TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha);
        let (there, lives) = ((0..nodes).collect(), vec![1; nodes]);
        let all = (0..nodes).map(|me| Node::new(roll(me, &there, &lives), 1)).collect();
        let now = Duration::from_secs(100);
        let under_way = BTreeMap::new();
        let mut world = Self {
            max,
            nodes: all,
            lives,
            there,
            now,
            under_way,
            learns: vec![],
            sent: 0,
            closed: BTreeSet::new(),
            late_max,
            lost_of,
            rng,
        };
        for node in &mut world.nodes {
            node.lender.see(&node.roll.clone(), now);
        }
        world.run(ms(4_000), &[], ms(1), |_world| {});
        world
    }

    fn random(&mut self, below: u64) -> u64 {
        self.rng.next_u64() % below.max(1)
    }

    fn owner(&self, node: usize) -> Option<usize> {
        self.nodes[node].roll.view.owner(KEY).map(|owner| usize::try_from(owner.get() - 1).unwrap())
    }

    fn is_hit(&mut self) -> bool {
        self.lost_of > 0 && self.random(self.lost_of) == 0
    }

    fn put(&mut self, message: Sent) {
        let at = self.now + ms(self.random(self.late_max));
        self.sent += 1;
        self.under_way.insert((at, self.sent), message);
    }

    /// Lost, late or doubled; whoever sent it gives up after a while.
    fn send(&mut self, from: usize, to: usize, frame: Frame) {
        self.sent += 1;
        let life = self.nodes[from].life;
        let void = Sent::Answer { to: from, life, from: to, frame: frame.clone(), answer: None };
        self.under_way.insert((self.now + ASK_WITHIN, self.sent), void);
        if self.is_hit() {
            return;
        }
        if self.is_hit() {
            self.put(Sent::Frame { from, to, frame: frame.clone() });
        }
        self.put(Sent::Frame { from, to, frame });
    }

    fn tell(&mut self, node: usize, wanted: u32) -> Told {
        let (max, now) = (self.max, self.now);
        let this = &mut self.nodes[node];
        this.sequence += 1;
        this.borrower.tell(KEY, max, this.sequence, wanted, now)
    }

    fn frame(&self, node: usize, sequence: u64, all: bool, told: Vec<Told>) -> Frame {
        let this = &self.nodes[node];
        Frame { life: this.life, stamp: this.roll.stamp(), sequence, all, told }
    }

    /// A client of the node wants one, for so long. Whether it got it at once.
    fn request(&mut self, node: usize, lasts: Duration) -> bool {
        let (max, now) = (self.max, self.now);
        let this = &mut self.nodes[node];
        if this.dead {
            return false;
        }
        let part = this.roll.part(KEY, max);
        let got = this.borrower.take(max, part, now);
        if got {
            this.ends.push(now + lasts);
        } else if this.asking.is_none() && this.borrower.pause(now).is_zero() {
            let told = self.tell(node, 1);
            match self.owner(node) {
                None => self.nodes[node].borrower.hear(&told, None, now),
                Some(owner) => {
                    self.nodes[node].asking = Some(told);
                    let frame = self.frame(node, 0, false, vec![told]);
                    self.send(node, owner, frame);
                }
            }
        }
        got
    }

    fn deliver(&mut self, message: Sent, lasts: Duration) {
        let now = self.now;
        match message {
            Sent::Frame { from, to, frame } => {
                let there = &mut self.nodes[to];
                if there.dead {
                    return;
                }
                let answer = Some(there.lender.hear(NodeId::new(from as u64 + 1), &frame, now));
                if !self.is_hit() {
                    let life = frame.life;
                    self.put(Sent::Answer { to: from, life, from: to, frame, answer });
                }
            }
            Sent::Answer { to, life, from, frame, answer } => {
                let is_owner = self.owner(to) == Some(from);
                let this = &mut self.nodes[to];
                if this.dead || this.life != life {
                    return;
                }
                let number = frame.told.first().map_or(frame.sequence, |told| told.sequence);
                if !self.closed.insert((to, life, number)) {
                    return;
                }
                if let Some(answer) = answer.as_ref().filter(|answer| frame.all && answer.stamp == frame.stamp) {
                    this.knows.insert(from, (answer.stamp, now));
                }
                let Some(told) = frame.told.first() else { return };
                let lent = answer.as_ref().and_then(|answer| answer.lent.first()).filter(|_| is_owner);
                if told.wanted == 0 {
                    this.borrower.hear(told, lent, now);
                } else if this.asking == Some(*told) {
                    this.asking = None;
                    this.borrower.hear(told, lent, now);
                    this.borrower.give_up(told.sequence);
                    let (max, part) = (self.max, this.roll.part(KEY, self.max));
                    if this.borrower.take(max, part, now) {
                        this.ends.push(now + lasts);
                    }
                }
            }
        }
    }

    fn frames(&mut self, node: usize, only_spare: bool) {
        let owner = self.owner(node);
        let this = &mut self.nodes[node];
        this.sequence += 1;
        let sequence = this.sequence;
        let wanted = if only_spare { this.borrower.has_spare() } else { this.borrower.is_live() };
        let told = wanted.then(|| self.tell(node, 0));
        let (stamp, now) = (self.nodes[node].roll.stamp(), self.now);
        for to in 0..self.nodes.len() {
            let this = &self.nodes[node];
            let is_due =
                this.knows.get(&to).is_none_or(|(known, at)| *known != stamp || now.saturating_sub(*at) >= ALL_EVERY);
            let is_there = this.roll.alive.contains(&NodeId::new(to as u64 + 1));
            let told: Vec<Told> = told.into_iter().filter(|_| owner == Some(to)).collect();
            if is_there && (!told.is_empty() || (is_due && !only_spare)) {
                let frame = self.frame(node, sequence, !only_spare, told);
                self.send(node, to, frame);
            }
        }
    }

    fn step(&mut self, requests: &[usize], lasts: Duration) {
        self.now += ms(STEP);
        let now = self.now;
        let (learn, later) = std::mem::take(&mut self.learns).into_iter().partition(|(at, ..)| *at <= now);
        self.learns = later;
        let learn: Vec<(Duration, usize, Roll)> = learn;
        for (_at, node, roll) in learn {
            self.nodes[node].lender.see(&roll, now);
            self.nodes[node].roll = roll;
        }
        while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= now) {
            let message = entry.remove();
            self.deliver(message, lasts);
        }
        for node in 0..self.nodes.len() {
            let this = &mut self.nodes[node];
            let before = this.ends.len();
            this.ends.retain(|end| *end > now);
            let over = before - this.ends.len();
            (0..over).for_each(|_| this.borrower.put_back());
            if this.dead {
                continue;
            }
            if now.as_millis().is_multiple_of(FRAME_EVERY.as_millis()) {
                self.frames(node, false);
            } else if over > 0 {
                self.frames(node, true);
            }
        }
        for node in requests {
            self.request(*node, lasts);
        }
    }

    /// Percents of a chance in each step that a node is asked for one.
    fn run(&mut self, how_long: Duration, rates: &[u64], lasts: Duration, mut check: impl FnMut(&Self)) {
        for _ in 0..how_long.as_millis() / u128::from(STEP) {
            let asked = rates.iter().enumerate().filter(|(_node, rate)| self.rng.next_u64() % 100 < **rate);
            let requests: Vec<usize> = asked.map(|(node, _rate)| node).collect();
            let lasts = lasts * (12 + u32::try_from(self.random(100)).unwrap()) / 60;
            self.step(&requests, lasts);
            check(self);
        }
    }

    /// Each learns of it within a second.
    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        change(self);
        for node in 0..self.nodes.len() {
            let at = self.now + ms(self.random(1_000));
            let roll = roll(node, &self.there, &self.lives);
            self.learns.push((at, node, roll));
        }
    }

    fn kill(&mut self, node: usize) {
        self.change(|world| {
            world.there.remove(&node);
            (world.nodes[node].dead, world.nodes[node].ends) = (true, Vec::new());
        });
    }

    fn start_again(&mut self, node: usize) {
        self.change(|world| {
            world.there.insert(node);
            world.lives[node] += 1;
            let life = world.lives[node];
            // It has yet to learn who is there.
            world.nodes[node] = Node::new(Roll::default(), life);
        });
    }

    fn used(&self) -> usize {
        self.nodes.iter().map(|node| node.ends.len()).sum()
    }

    fn assert_within(&self) {
        assert!(self.used() <= self.max as usize, "{} of {} at {:?}", self.used(), self.max, self.now);
    }

    /// All that there is can be had at any one node that is there.
    fn assert_all_free(&mut self) {
        self.run(ms(8_000), &[], ms(1), |_world| {});
        assert_eq!(self.used(), 0);
        let there: Vec<usize> = self.there.iter().copied().collect();
        for node in there {
            let owner = self.owner(node).unwrap();
            assert_eq!(self.nodes[owner].lender.used(KEY), 0, "believed at {:?}", self.now);
        }
        self.lost_of = 0;
        let node = *self.there.first().unwrap();
        for _ in 0..self.max * 150 {
            self.step(&[node], Duration::from_hours(1));
        }
        assert_eq!(self.used(), self.max as usize);
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Nothing,
    Kill(usize),
    StartAgain,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is wanted where, however messages are late, overtaken, doubled or lost, whoever dies or comes: never more
    /// than there are, and every slot comes back.
    #[test]
    fn never_more_than_there_are_and_all_come_back(
        nodes in 2..6usize,
        max in 1..12u32,
        late_max in 1..120u64,
        lost_of in prop_oneof![Just(0u64), Just(10)],
        phases in vec((1..6_000u64, vec(0..40u64, 6), 20..3_000u64, prop_oneof![
            2 => Just(Event::Nothing),
            2 => (0..6usize).prop_map(Event::Kill),
            1 => Just(Event::StartAgain),
        ]), 1..7),
    ) {
        let mut world = World::new(nodes, max, late_max, lost_of);
        for (how_long, rates, lasts, event) in phases {
            world.run(ms(how_long), &rates[..nodes], ms(lasts), World::assert_within);
            match event {
                Event::Kill(node) if node < nodes && !world.nodes[node].dead && world.there.len() > 1 => {
                    world.kill(node);
                }
                Event::StartAgain => {
                    let dead = (0..nodes).find(|node| world.nodes[*node].dead);
                    if let Some(node) = dead {
                        world.start_again(node);
                    }
                }
                Event::Nothing | Event::Kill(_) => {}
            }
            // Members are settled again before they change again.
            world.run(ms(4_500), &rates[..nodes], ms(lasts), World::assert_within);
        }
        world.assert_all_free();
    }
}

/// Five on three nodes, one after the other, and no sixth anywhere; the end of one lets one in, at another node.
#[test]
fn the_sixth_waits_for_the_end_of_one() {
    let mut world = World::new(3, 5, 5, 0);
    for _ in 0..100 {
        world.step(&[0, 1, 2], Duration::from_hours(1));
    }
    assert_eq!(world.used(), 5);

    let holder = (0..3).find(|node| !world.nodes[*node].ends.is_empty()).unwrap();
    let now = world.now;
    world.nodes[holder].ends[0] = now;
    let other = (holder + 1) % 3;
    let before = world.nodes[other].ends.len();
    for _ in 0..50 {
        world.step(&[other], Duration::from_hours(1));
    }

    assert_eq!((world.used(), world.nodes[other].ends.len()), (5, before + 1));
}

/// An answer that nobody heard: the next message says so, and the slot is free.
#[test]
fn what_was_lent_and_never_heard_of_comes_back() {
    let there: BTreeSet<usize> = (0..2).collect();
    let roll = roll(0, &there, &[1, 1]);
    let (mut lender, mut borrower) = (Lender::default(), Borrower::default());
    let key = (0..1_000).find(|key| roll.view.owner(*key) == Some(roll.view.me)).unwrap();
    lender.see(&roll, ms(0));
    let now = SETTLES_IN;
    let mut hear = |sequence, told: Told| {
        let frame = Frame { life: 4, stamp: roll.stamp(), sequence, all: false, told: vec![told] };
        lender.hear(NodeId::new(2), &frame, now).lent.first().map(|lent| lent.lent)
    };

    let asked = borrower.tell(key, 1, 1, 1, now);
    assert_eq!(hear(0, asked), Some(1));
    borrower.hear(&asked, None, now);
    assert!(!borrower.take(1, 0, now) && borrower.is_live());
    let told = borrower.tell(key, 1, 2, 0, now);
    assert_eq!(hear(0, told), Some(0));

    assert_eq!(hear(0, asked), None, "it was overtaken");
    let again = borrower.tell(key, 1, 3, 1, now);
    assert_eq!(hear(0, again), Some(1));
}

/// Of an owner that is silent for two seconds nothing is borrowed; a node then goes by its even part, not before.
#[test]
fn without_an_owner_a_node_goes_by_its_even_part() {
    let mut borrower = Borrower::default();
    let (mut now, mut taken) = (ms(0), Vec::new());
    for sequence in 1..=20 {
        let asked = borrower.tell(KEY, 7, sequence, 1, now);
        borrower.hear(&asked, None, now);
        if borrower.take(7, 2, now) {
            taken.push(now);
        }
        now += ms(250);
    }

    assert_eq!(taken, [ms(2_000), ms(2_250)]);
}

/// A new owner lends nothing before all have told, and then at once.
#[test]
fn a_new_owner_waits_for_all_and_no_longer() {
    let there: BTreeSet<usize> = (0..3).collect();
    let roll = roll(0, &there, &[1, 1, 1]);
    let mut lender = Lender::default();
    let key = (0..1_000).find(|key| roll.view.owner(*key) == Some(roll.view.me)).unwrap();
    lender.see(&roll, ms(0));
    let all = |told: Vec<Told>, stamp| Frame { life: 1, stamp, sequence: 1, all: true, told };
    let told = |used, wanted, sequence| Told { key, max: 5, sequence, used, wanted };
    let asked = |sequence| Frame { life: 1, stamp: 0, sequence: 0, all: false, told: vec![told(0, 3, sequence)] };
    let lent = |answer: Answer| answer.lent.iter().map(|lent| (lent.lent, lent.settled)).next().unwrap();

    lender.hear(NodeId::new(1), &all(vec![], roll.stamp()), ms(1));
    lender.hear(NodeId::new(2), &all(vec![], roll.stamp() + 1), ms(1));
    assert_eq!(lent(lender.hear(NodeId::new(1), &asked(5), ms(2))), (0, false));
    lender.hear(NodeId::new(3), &all(vec![told(4, 0, 2)], roll.stamp()), ms(3));
    assert_eq!(lent(lender.hear(NodeId::new(1), &asked(6), ms(4))), (0, false), "one went by other members");
    lender.hear(NodeId::new(2), &all(vec![], roll.stamp()), ms(5));

    assert_eq!(lent(lender.hear(NodeId::new(1), &asked(7), ms(6))), (1, true));
}

/// A node that is dead uses nothing, and neither does an old life of one that is back.
#[test]
fn what_the_dead_used_is_free() {
    let lives = [1, 1, 1];
    let roll_of = |there: &[usize]| roll(0, &there.iter().copied().collect(), &lives);
    let all = roll_of(&[0, 1, 2]);
    let mut lender = Lender::default();
    let key = (0..1_000).find(|key| all.view.owner(*key) == Some(all.view.me)).unwrap();
    lender.see(&all, ms(0));
    let now = SETTLES_IN;
    let asked = |life, wanted| {
        let told = Told { key, max: 5, sequence: 1, used: 0, wanted };
        Frame { life, stamp: all.stamp(), sequence: 0, all: false, told: vec![told] }
    };
    lender.hear(NodeId::new(2), &asked(1, 3), now);
    lender.hear(NodeId::new(3), &asked(1, 2), now);
    assert_eq!(lender.used(key), 5);

    lender.hear(NodeId::new(3), &asked(2, 0), now);
    assert_eq!(lender.used(key), 3);
    lender.see(&roll_of(&[0, 2]), now);

    assert_eq!(lender.used(key), 0);
}

/// When members change, a key that stays with its owner is lent on at once; one that comes to it waits for all.
#[test]
fn only_keys_that_change_hands_wait() {
    let lives = [1, 1, 1];
    let roll_of = |there: &[usize]| roll(0, &there.iter().copied().collect(), &lives);
    let (two, all) = (roll_of(&[0, 1]), roll_of(&[0, 1, 2]));
    let owned = |roll: &Roll, key: u64| roll.view.owner(key) == Some(roll.view.me);
    let stays = (0..1_000).find(|key| owned(&all, *key) && owned(&two, *key)).unwrap();
    let comes = (0..1_000).find(|key| !owned(&all, *key) && owned(&two, *key)).unwrap();
    let mut lender = Lender::default();
    lender.see(&all, ms(0));
    let lent = |lender: &mut Lender, key, sequence, now| {
        let told = vec![Told { key, max: 5, sequence, used: 0, wanted: 1 }];
        let frame = Frame { life: 1, stamp: 0, sequence: 0, all: false, told };
        lender.hear(NodeId::new(2), &frame, now).lent.first().map(|lent| (lent.lent, lent.settled))
    };
    assert_eq!(lent(&mut lender, stays, 1, SETTLES_IN), Some((1, true)));
    assert_eq!(lent(&mut lender, comes, 2, SETTLES_IN), None, "it is another's");

    lender.see(&two, SETTLES_IN);

    assert_eq!(lent(&mut lender, stays, 3, SETTLES_IN), Some((1, true)));
    assert_eq!(lent(&mut lender, comes, 4, SETTLES_IN), Some((0, false)));
    // It went and came back while not all had told: what was lent meanwhile is not known.
    lender.see(&all, SETTLES_IN);
    lender.see(&two, SETTLES_IN);
    assert_eq!(lent(&mut lender, comes, 5, SETTLES_IN), Some((0, false)));
    assert_eq!(lent(&mut lender, stays, 6, SETTLES_IN), Some((1, true)));
    assert_eq!(lent(&mut lender, comes, 7, 2 * SETTLES_IN), Some((1, true)));
}

/// It hears of the others one by one: until then it does not take itself for all there are, nor go on as if it had been.
#[test]
fn a_process_that_begins_lends_nothing_before_it_has_heard_of_the_others() {
    let lives = [1, 1, 1];
    let roll_of = |there: &[usize]| roll(0, &there.iter().copied().collect(), &lives);
    let (alone, all) = (roll_of(&[0]), roll_of(&[0, 1, 2]));
    let key = (0..1_000).find(|key| all.view.owner(*key) == Some(all.view.me)).unwrap();
    let tell = |lender: &mut Lender, roll: &Roll, who: NodeId, sequence, now| {
        let told = vec![Told { key, max: 5, sequence, used: 0, wanted: 1 }];
        let frame = Frame { life: 1, stamp: roll.stamp(), sequence, all: true, told };
        lender.hear(who, &frame, now).lent.first().map(|lent| (lent.lent, lent.settled))
    };
    let mut lender = Lender::default();

    let alone = Roll { view: View { members: 3, ..alone.view.clone() }, ..alone };
    let me = all.view.me;
    lender.see(&alone, ms(0));
    assert_eq!(tell(&mut lender, &alone, me, 1, ms(250)), Some((0, false)), "three vote");
    lender.see(&all, ms(500));
    assert_eq!(tell(&mut lender, &all, me, 2, ms(500)), Some((0, false)));
    for (sequence, other) in (3..).zip(all.alive.iter().filter(|node| **node != me)) {
        tell(&mut lender, &all, *other, sequence, ms(600));
    }
    assert_eq!(tell(&mut lender, &all, me, 9, ms(600)), Some((1, true)), "all have told");
}

/// Others may be lending the same slots, in the part of the cluster that has the majority.
#[test]
fn who_sees_no_majority_lends_no_more_than_the_even_parts_of_those_it_sees() {
    let seen = roll(0, &BTreeSet::from([0, 1]), &[1; 5]);
    let roll = Roll { view: View { members: 5, cut_off: true, ..seen.view.clone() }, ..seen };
    let me = roll.view.me;
    let key = (0..1_000).find(|key| roll.view.owner(*key) == Some(me)).unwrap();
    let mut lender = Lender::default();
    lender.see(&roll, ms(0));
    let mut lend = |max, sequence| {
        let told = vec![Told { key, max, sequence, used: 0, wanted: max }];
        let frame = Frame { life: 1, stamp: roll.stamp(), sequence, all: false, told };
        lender.hear(me, &frame, SETTLES_IN + ms(1)).lent[0]
    };

    assert_eq!(lend(10, 1), Lent { key, lent: 4, settled: true });
    assert_eq!(lend(2, 2), Lent { key, lent: 0, settled: true });
}

/// Nothing was asked between two questions that were lost two seconds apart, so nothing is known of the owner.
#[test]
fn two_lost_answers_far_apart_are_no_silence() {
    let mut borrower = Borrower::default();
    for (sequence, now) in [(1, ms(0)), (2, ms(1_900)), (3, ms(2_200))] {
        let asked = borrower.tell(KEY, 7, sequence, 1, now);
        borrower.hear(&asked, None, now);

        assert!(!borrower.take(7, 2, now), "{now:?}");
    }
}

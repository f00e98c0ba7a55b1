//! Lines, windows that are over, and bounds, without a clock or a ledger.

use cluster::id::{Incarnation, NodeId};
use cluster::ledger::accounts::{Accounts, BudgetId};
use proptest::prelude::*;
use tokio::sync::oneshot::error::TryRecvError;

use super::super::escrow::tests::accounts;
use super::*;

fn of(place: Place, amount: u64, overdraft: u64) -> Arc<[Demand]> {
    Arc::new([Demand { place, unit: Unit::Tokens, amount, overdraft }])
}

/// Nothing is granted yet, so whoever comes stands in line.
fn in_line(
    held: &mut Held,
    demands: &Arc<[Demand]>,
    patience: Patience,
    now: Instant,
) -> oneshot::Receiver<Result<(), Refused>> {
    match held.reserve(demands, patience, now) {
        Ok(Reserved::Waits(answer, _todo)) => answer,
        Ok(Reserved::Taken(_todo)) => panic!("something was granted"),
        Err(refused) => panic!("{refused}"),
    }
}

/// The ledger heard it, its answer was lost, and who wanted it has left: the node must hear what it holds, and give it back.
#[test]
fn what_nobody_answered_is_said_again_though_nobody_waits_any_more() {
    let place = Place::new(BudgetId(0), 0);
    let began = tokio::time::Instant::now().into_std();
    let at = |seconds| began + Duration::from_secs(seconds);
    let mut held = Held::default();
    let demands = of(place, 5, 0);
    let answer = in_line(&mut held, &demands, Patience::all(Duration::ZERO), at(0));
    assert_eq!(held.statements(at(0), 9)[0].1.wants, 5);
    drop(answer);
    held.gone(&demands);

    held.unanswered(&[place]);
    let said = held.statements(at(2), 9);
    assert_eq!(said.len(), 1, "it is said again");
    let standing = Standing { granted: 5, limit: 100, held: 5, ..Standing::default() };
    held.told(place, Told::Standing(standing), at(2), at(2));

    assert_eq!(held.statements(at(4), 9), [], "it is known");
    assert_eq!(held.statements(at(20), 9)[0].1.returned, 5, "nobody uses it");
}

/// The ledger said that the window is over, and is silent since: this node knows of no other, and is not to be lent to in
/// that one as if it had spent nothing there.
#[test]
fn a_window_that_is_over_is_remembered_while_it_may_be_spent_of_here() {
    let place = Place::new(BudgetId(0), 0);
    let now = tokio::time::Instant::now().into_std();
    let mut held = Held::default();
    let demands = of(place, 5, 9);
    let waits = held.reserve(&demands, Patience::all(Duration::ZERO), now);
    assert!(matches!(waits, Ok(Reserved::Waits(..))));
    let standing = Standing { granted: 5, limit: 100, held: 5, ..Standing::default() };
    held.told(place, Told::Standing(standing), now, now);
    let marks = held.marks(now);
    held.marked(&marks, true);
    held.settle(&demands, [5]);
    assert_eq!(held.statements(now, 9)[0].1.used, 5);
    held.told(place, Told::Over(Standing { used: 5, ..standing }), now, now);

    held.forget(now + LINGERS, |_| true);
    held.lend(place, 9);
    let late = held.reserve(&demands, Patience::all(Duration::ZERO), now).err();
    assert_eq!(late, Some(Refused::Over { place }));

    held.forget(now + LINGERS, |_| false);
    assert_eq!(held.lease(place), None);
}

/// What was granted for it went to an attempt of two budgets, say, that stood in the other one's line.
#[tokio::test(start_paused = true)]
async fn nobody_in_line_is_refused_what_the_ledger_says_is_free() {
    let place = Place::new(BudgetId(0), 0);
    let now = tokio::time::Instant::now().into_std();
    let later = now + DOUBT_MAX;
    let mut held = Held::default();
    let demands = of(place, 5, 0);
    let mut wait = || in_line(&mut held, &demands, Patience::all(Duration::ZERO), now);
    let (mut answer, mut second) = (wait(), wait());

    let some = Standing { granted: 3, limit: 100, held: 3, ..Standing::default() };
    held.told(place, Told::Standing(some), now, later);
    assert_eq!((answer.try_recv(), second.try_recv()), (Err(TryRecvError::Empty), Err(TryRecvError::Empty)));
    let less = Standing { held: 94, ..some };
    held.told(place, Told::Standing(less), now, later);
    assert_eq!(answer.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(
        second.try_recv(),
        Ok(Err(Refused::Exceeded { place, amount: 5, standing: less, lost: 0 })),
        "6 are free, and 3 here"
    );

    let nothing = Standing { held: 100, ..some };
    held.told(place, Told::Standing(nothing), now, later);
    let exceeded = Refused::Exceeded { place, amount: 5, standing: nothing, lost: 0 };
    assert_eq!(answer.try_recv(), Ok(Err(exceeded)));
}

/// A node starts again: between the end of its life before and what that gives back, all that it held seems to be burned.
#[test]
fn nobody_is_refused_what_a_node_that_starts_gives_back() {
    let (mut turns, places) = Turns::new(1, &[100]);
    let (place, began) = (places[0], turns.now);
    let held = &mut turns.nodes[0];
    let demands = of(place, 60, 0);
    let mut answer = in_line(held, &demands, Patience::all(DOUBT_MAX), began);
    let standing = Standing { limit: 100, held: 90, used: 10, ..Standing::default() };
    let mut told = |standing, at: Duration| {
        held.told(place, Told::Standing(standing), began + at, began + at);
        answer.try_recv()
    };

    assert_eq!(told(standing, Duration::from_secs(1)), Err(TryRecvError::Empty), "it is under way elsewhere");
    let ended = Standing { burned: 80, ..standing };
    assert_eq!(told(ended, Duration::from_secs(2)), Err(TryRecvError::Empty), "it may come back at once");
    assert_eq!(told(ended, Duration::from_secs(4)), Err(TryRecvError::Empty));
    let refused = Refused::Exceeded { place, amount: 60, standing: ended, lost: 0 };
    assert_eq!(told(ended, Duration::from_secs(6)), Ok(Err(refused)), "it did not");
}

/// A call used more than was set aside for it: should the process end now, the disk is to prove as much as was said.
#[test]
fn no_more_is_said_than_the_disk_knows() {
    let (mut turns, places) = Turns::new(1, &[100]);
    let demands = of(places[0], 10, 0);
    let now = turns.now;
    let _answer = in_line(&mut turns.nodes[0], &demands, Patience::all(DOUBT_MAX), now);
    turns.turn(0);
    let held = &mut turns.nodes[0];
    held.settle(&demands, [70]);

    let later = now + Duration::from_secs(2);
    let reach = held.lease(places[0]).unwrap().mark().reach;
    assert!(reach < 70 && held.take_unmarked(), "{reach}");
    assert!(held.statements(later, 9).iter().all(|(_, said)| said.used <= reach));
    let marks = held.marks(later);
    held.marked(&marks, true);

    assert_eq!(held.statements(later + Duration::from_secs(2), 9)[0].1.used, 70);
    assert!(!held.take_unmarked());
}

/// It goes on being the one that was lent to, however often the ledger has heard of all it did there.
#[test]
fn where_it_was_lent_to_is_remembered_though_all_is_said() {
    let (lent, not_lent) = (Place::new(BudgetId(0), 0), Place::new(BudgetId(1), 0));
    let now = tokio::time::Instant::now().into_std();
    let mut held = Held::default();
    for place in [lent, not_lent] {
        let demands = of(place, 5, 9);
        let mut answer = in_line(&mut held, &demands, Patience::all(Duration::ZERO), now);
        if place == lent {
            held.lend(place, 9);
        } else {
            let standing = Standing { granted: 5, limit: 100, held: 5, ..Standing::default() };
            held.told(place, Told::Standing(standing), now, now);
        }
        let marks = held.marks(now);
        held.marked(&marks, true);
        assert_eq!(answer.try_recv(), Ok(Ok(())));
        held.settle(&demands, [5]);
    }
    assert_eq!(held.statements(now, 9).len(), 2);
    for place in [lent, not_lent] {
        held.told(place, Told::Over(Standing { used: 5, limit: 100, ..Standing::default() }), now, now);
    }

    held.forget(now + LINGERS, |_| false);

    assert_eq!(held.lease(lent).map(Lease::mark), Some(Mark { reach: 5, lent: 9 }));
    assert_eq!(held.lease(not_lent), None);
}

/// Nodes that speak to the ledger by turns, each as soon as the one before was answered, and then mark what they were granted.
struct Turns {
    accounts: Accounts,
    nodes: Vec<Held>,
    now: Instant,
}

impl Turns {
    fn new(nodes: usize, limits: &[u64]) -> (Self, Vec<Place>) {
        let (accounts, places) = accounts(limits);
        let nodes = (0..nodes).map(|_| Held::default()).collect();
        (Self { accounts, nodes, now: tokio::time::Instant::now().into_std() }, places)
    }

    fn turn(&mut self, number: usize) {
        let (life, node) = (Incarnation::new(1 + number as u64), NodeId::new(number as u64));
        let held = &mut self.nodes[number];
        self.now += Duration::from_millis(25);
        held.look(false, |place| Some(self.accounts.told(place, life)));
        for (place, said) in held.statements(self.now, usize::MAX) {
            let told = self.accounts.state(place, life, node, said, false);
            held.told(place, told, self.now, self.now);
        }
        let marks = held.marks(self.now);
        held.marked(&marks, true);
    }
}

/// Some on each node need most of some budgets, named in whichever order: those of a mask's bits, on the node beside it. They
/// can have them one after the other. How many get them.
fn served(nodes: usize, budgets: usize, needs: &[(usize, u8)], turns_of: impl Iterator<Item = usize>) -> usize {
    let (mut turns, places) = Turns::new(nodes, &vec![100; budgets]);
    let now = turns.now;
    let mut waiting = Vec::new();
    for (number, (node, mask)) in needs.iter().enumerate() {
        let needed = places.iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0);
        let demand =
            |(_, place): (usize, &Place)| Demand { place: *place, unit: Unit::Tokens, amount: 60, overdraft: 0 };
        let mut demands: Vec<Demand> = needed.map(demand).collect();
        let first = number % demands.len();
        demands.rotate_left(first);
        let demands: Arc<[Demand]> = demands.into();
        let answer = in_line(&mut turns.nodes[*node], &demands, Patience::all(DOUBT_MAX), now);
        waiting.push((*node, demands, answer));
    }

    for number in turns_of {
        turns.turn(number);
        waiting.retain_mut(|(node, demands, answer)| match answer.try_recv() {
            Ok(answered) => {
                assert_eq!(answered, Ok(()));
                turns.nodes[*node].settle(demands, vec![1; demands.len()]);
                false
            }
            Err(wait) => {
                assert_eq!(wait, TryRecvError::Empty);
                true
            }
        });
    }
    needs.len() - waiting.len()
}

/// Each gets one of them before the other, and is to give it back for who waits elsewhere.
#[test]
fn who_needs_two_budgets_gets_them_one_after_the_other() {
    let turns = || [0, 1].into_iter().cycle().take(100);
    assert_eq!(served(2, 2, &[(0, 0b11), (1, 0b11)], turns()), 2);
    assert_eq!(served(2, 3, &[(0, 0b011), (0, 0b101), (1, 0b011), (1, 0b101)], turns()), 4, "two of each node");
}

proptest! {
    #[test]
    fn who_needs_several_budgets_gets_them_whoever_speaks_when(
        (nodes, needs, order) in (2..5_usize).prop_flat_map(|nodes| (
            Just(nodes),
            prop::collection::vec((0..nodes, 1..16_u8), 1..9),
            prop::collection::vec(0..nodes, 1..40),
        )),
    ) {
        // At random at first, and then by turns; ten seconds are a hundred turns of each of four.
        let turns = order.into_iter().chain((0..nodes).cycle().take(100 * nodes));
        prop_assert_eq!(served(nodes, 4, &needs, turns), needs.len());
    }
}

/// All it held was given back and all of it said, so nothing more is asked of it.
#[test]
fn a_window_that_was_quiet_when_it_ended_is_forgotten() {
    let place = Place::new(BudgetId(0), 0);
    let now = tokio::time::Instant::now().into_std();
    let mut held = Held::default();
    let demands = of(place, 5, 0);
    let _answer = in_line(&mut held, &demands, Patience::all(Duration::ZERO), now);
    let standing = |used, held| Standing { granted: 9, limit: 100, used, held, ..Standing::default() };
    held.told(place, Told::Standing(standing(0, 9)), now, now);
    let marks = held.marks(now);
    held.marked(&marks, true);
    held.settle(&demands, [5]);
    let quiet = now + IDLE_MAX;
    assert_eq!(held.statements(quiet, 9)[0].1.returned, 4);
    held.told(place, Told::Standing(standing(5, 5)), quiet, quiet);
    assert_eq!(held.statements(quiet, 9), []);

    let over = |_place| Some(Told::Over(standing(5, 5)));
    held.look(false, over);
    held.forget(now + LINGERS, |_| false);
    assert!(held.lease(place).is_some(), "nobody says that it is over");
    held.look(true, over);
    held.forget(now + LINGERS, |_| true);
    assert!(held.lease(place).is_some(), "somebody may still begin to spend there");
    held.forget(quiet, |_| false);
    assert!(held.lease(place).is_some(), "who wanted it may stand in another line");
    held.forget(now + LINGERS, |_| false);

    assert_eq!(held.lease(place), None);
}

#[test]
fn so_many_places_are_spent_of_here_and_no_more() {
    let nobody = Place::new(BudgetId(0), 0);
    let now = tokio::time::Instant::now().into_std();
    let mut held = Held::default();
    let mut reserve = |place| {
        let demands = of(place, 1, 0);
        match held.reserve(&demands, Patience::all(Duration::ZERO), now) {
            Ok(Reserved::Waits(answer, _todo)) => {
                drop(answer);
                held.gone(&demands);
                Ok(())
            }
            Ok(Reserved::Taken(_todo)) => panic!("nothing is granted"),
            Err(refused) => Err(refused),
        }
    };
    let user = |number: usize| nobody.of(UserId::of(&number.to_string()));
    for number in 0..PLACES_MAX {
        assert_eq!(reserve(user(number)), Ok(()));
    }

    assert_eq!(reserve(user(PLACES_MAX)), Err(Refused::Full));
    assert_eq!(reserve(user(7)), Ok(()), "it is known");
    assert_eq!(reserve(nobody), Ok(()), "budgets are not as many");
}

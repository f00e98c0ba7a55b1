//! Lines, windows that are over, and bounds, without a clock or a ledger.

use cluster::ledger::accounts::BudgetId;
use tokio::sync::oneshot::error::TryRecvError;

use super::*;

/// The ledger heard it, its answer was lost, and who wanted it has left: the node must hear what it holds, and give it back.
#[test]
fn what_nobody_answered_is_said_again_though_nobody_waits_any_more() {
    let place = Place::new(BudgetId(0), 0);
    let began = tokio::time::Instant::now().into_std();
    let at = |seconds| began + Duration::from_secs(seconds);
    let mut held = Held::default();
    let demands: Arc<[Demand]> = Arc::new([Demand { place, unit: Unit::Tokens, amount: 5, overdraft: 0 }]);
    let Ok(Reserved::Waits(answer, _todo)) = held.reserve(&demands, Patience::all(Duration::ZERO), at(0)) else {
        panic!("nothing is granted yet");
    };
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
    let demands: Arc<[Demand]> = Arc::new([Demand { place, unit: Unit::Tokens, amount: 5, overdraft: 9 }]);
    let waits = held.reserve(&demands, Patience::all(Duration::ZERO), now);
    assert!(matches!(waits, Ok(Reserved::Waits(..))));
    let standing = Standing { granted: 5, limit: 100, held: 5, ..Standing::default() };
    held.told(place, Told::Standing(standing), now, now);
    let marks = held.marks(now);
    held.marked(&marks, true);
    held.settle(&demands, [5]);
    assert_eq!(held.statements(now, 9)[0].1.used, 5);
    held.told(place, Told::Over(Standing { used: 5, ..standing }), now, now);

    held.forget(|_| true);
    held.lend(place, 9);
    let late = held.reserve(&demands, Patience::all(Duration::ZERO), now).err();
    assert_eq!(late, Some(Refused::Over { place }));

    held.forget(|_| false);
    assert_eq!(held.lease(place), None);
}

/// What was granted for it went to an attempt of two budgets, say, that stood in the other one's line.
#[tokio::test(start_paused = true)]
async fn nobody_in_line_is_refused_what_the_ledger_says_is_free() {
    let place = Place::new(BudgetId(0), 0);
    let now = tokio::time::Instant::now().into_std();
    let later = now + DOUBT_MAX;
    let mut held = Held::default();
    let demands: Arc<[Demand]> = Arc::new([Demand { place, unit: Unit::Tokens, amount: 5, overdraft: 0 }]);
    let mut wait = || match held.reserve(&demands, Patience::all(Duration::ZERO), now).unwrap() {
        Reserved::Waits(answer, _todo) => answer,
        Reserved::Taken(_todo) => panic!("nothing is granted yet"),
    };
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

/// It goes on being the one that was lent to, however often the ledger has heard of all it did there.
#[test]
fn where_it_was_lent_to_is_remembered_though_all_is_said() {
    let (lent, not_lent) = (Place::new(BudgetId(0), 0), Place::new(BudgetId(1), 0));
    let now = tokio::time::Instant::now().into_std();
    let mut held = Held::default();
    for place in [lent, not_lent] {
        let demands: Arc<[Demand]> = Arc::new([Demand { place, unit: Unit::Tokens, amount: 5, overdraft: 9 }]);
        let Ok(Reserved::Waits(mut answer, _todo)) = held.reserve(&demands, Patience::all(Duration::ZERO), now) else {
            panic!("nothing is granted yet");
        };
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

    held.forget(|_| false);

    assert_eq!(held.lease(lent).map(Lease::mark), Some(Mark { reach: 5, lent: 9 }));
    assert_eq!(held.lease(not_lent), None);
}

/// All it held was given back and all of it said, so nothing more is asked of it.
#[test]
fn a_window_that_was_quiet_when_it_ended_is_forgotten() {
    let place = Place::new(BudgetId(0), 0);
    let now = tokio::time::Instant::now().into_std();
    let mut held = Held::default();
    let demands: Arc<[Demand]> = Arc::new([Demand { place, unit: Unit::Tokens, amount: 5, overdraft: 0 }]);
    let Ok(Reserved::Waits(_answer, _todo)) = held.reserve(&demands, Patience::all(Duration::ZERO), now) else {
        panic!("nothing is granted yet");
    };
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
    held.forget(|_| false);
    assert!(held.lease(place).is_some(), "nobody says that it is over");
    held.look(true, over);
    held.forget(|_| true);
    assert!(held.lease(place).is_some(), "somebody may still begin to spend there");
    held.forget(|_| false);

    assert_eq!(held.lease(place), None);
}

#[test]
fn so_many_places_are_spent_of_here_and_no_more() {
    let nobody = Place::new(BudgetId(0), 0);
    let now = tokio::time::Instant::now().into_std();
    let mut held = Held::default();
    let mut reserve = |place| {
        let demands: Arc<[Demand]> = Arc::new([Demand { place, unit: Unit::Tokens, amount: 1, overdraft: 0 }]);
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

//! Clients that spend of budgets at any node, a provider that bills what it likes within the bound, and an operator who
//! makes, changes and deletes budgets.
//!
//! A call is billed when it is dispatched: after its reserve has returned, and only if the process still lives then. What
//! was billed is kept outside of the world.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use actors::quota::escrow::{Hold, NotReserved, Places};
use actors::quota::held::{DOUBT_MAX, Demand, Patience, Refused};
use actors::quota::shared::known;
use cluster::consensus::Consensus;
use cluster::directory::budget::{Budget, Unit};
use cluster::id::Incarnation;
use cluster::ledger::accounts::{Place, UserId};
use cluster::ledger::book::Book;
use cluster::register::{Act, Author, Expected, Kind, Reply};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::check::money::{Bills, Sent};
use crate::history::Outcome;
use crate::random::Random;
use crate::world::simulated::{Life, World};

/// What there is to spend. The operator makes all of them, and makes them again.
pub const BUDGETS: [Kept; 9] = [
    Kept { limits: (40_000_000, 400_000_000), ..Kept::new("total-usd", Unit::NanoUsd, "total") },
    Kept { limits: (20, 300), ..Kept::new("total-requests", Unit::Requests, "total") },
    Kept { limits: (5, 60), each: true, ..Kept::new("users-requests", Unit::Requests, "total") },
    Kept { limits: (10_000_000, 150_000_000), ..Kept::new("minute-usd", Unit::NanoUsd, "minute") },
    Kept { limits: (3, 150), ..Kept::new("minute-requests", Unit::Requests, "minute") },
    Kept { limits: (4_000_000, 60_000_000), each: true, ..Kept::new("users-minute-usd", Unit::NanoUsd, "minute") },
    Kept { limits: (8_000_000, 90_000_000), overdraft: 6_000_000, ..Kept::new("open-usd", Unit::NanoUsd, "total") },
    Kept { limits: (3, 50), overdraft: 4, ..Kept::new("open-minute-requests", Unit::Requests, "minute") },
    Kept { limits: (2, 15), overdraft: 3, each: true, ..Kept::new("open-users-requests", Unit::Requests, "total") },
];

/// End users whom clients name.
const USERS: [&str; 2] = ["anna", "ben"];

#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub name: &'static str,
    unit: Unit,
    window: &'static str,
    /// From and below.
    limits: (u64, u64),
    /// Every end user has the limit for himself.
    each: bool,
    /// What each node may spend beyond the limit where no majority can be asked.
    overdraft: u64,
}

impl Kept {
    const fn new(name: &'static str, unit: Unit, window: &'static str) -> Self {
        Self { name, unit, window, limits: (0, 0), each: false, overdraft: 0 }
    }

    fn spec(&self, limit: u64) -> String {
        let each = if self.each { r#","each":"end_user""# } else { "" };
        let open = match self.overdraft {
            0 => String::new(),
            amount => format!(r#","on_no_quorum":"open","overdraft":"{}""#, self.unit.show(amount)),
        };
        format!(r#"{{"limit":"{}","window":"{}"{each}{open}}}"#, self.unit.show(limit.max(1)), self.window)
    }
}

/// What each node may spend beyond the limit, by the budget's name.
pub fn overdrafts() -> BTreeMap<String, u64> {
    BUDGETS.map(|kept| (kept.name.to_owned(), kept.overdraft)).into()
}

/// Nobody, and those whom clients name.
fn users() -> impl Iterator<Item = UserId> {
    std::iter::once(UserId::NOBODY).chain(USERS.map(UserId::of))
}

/// Longest that a reserve may take: it doubts, then waits for the ledger; and the process may stand still meanwhile.
const RESERVE_MAX: Duration = Duration::from_secs(30);

/// How long a client wants to wait.
const WITHIN: Duration = Duration::from_secs(15);

/// For a change of a budget.
const CHANGE_WITHIN: Duration = Duration::from_secs(3);

/// In which a healed world must have come to rest: idle rights are given back after ten seconds.
const REST_MAX: Duration = Duration::from_mins(1);

/// How often the leftover of a budget is tried: its window may end meanwhile.
const TRIES: usize = 5;

const NANOUSD_MAX: usize = 3_000_000;

/// One call of one client, from before its reserve to after its settlement.
pub async fn call(life: &Life, bills: &Arc<Mutex<Bills>>, mut random: Random) -> (Outcome, String) {
    let count = if random.percent(25) { 2 } else { 1 };
    let first = random.below(BUDGETS.len());
    let names = (0..count).map(|step| BUDGETS[(first + step) % BUDGETS.len()].name);
    let find = |name| life.consensus.read(|register| known(register, name)).map(Arc::new);
    let Some(budgets) = names.map(find).collect::<Option<Vec<Arc<Budget>>>>() else {
        return (Outcome::Fail, "no such budget".to_owned());
    };
    let user = users().nth(random.below(1 + USERS.len())).unwrap_or_default();
    let since = bills.lock().applied_to();
    let until = (Instant::now() + WITHIN).into_std();
    let find = |places: &Places| {
        let place = |budget: &Arc<Budget>| places.of(budget, user);
        budgets.iter().map(place).collect::<Option<Vec<Place>>>()
    };
    let places = match life.escrow.find(find, until).await {
        Ok(places) => places,
        Err(error) => return (Outcome::Info, error.to_string()),
    };
    let demand = |(budget, place): (&Arc<Budget>, Place)| {
        let amount = match budget.limit.unit {
            Unit::Requests | Unit::Tokens => 1 + random.below(8) / 6,
            Unit::NanoUsd => 1 + random.below(NANOUSD_MAX),
        };
        Demand { place, unit: budget.limit.unit, amount: amount as u64, overdraft: budget.overdraft }
    };
    let demands: Arc<[Demand]> = budgets.iter().zip(places).map(demand).collect();
    // Who can do with less is refused where others stand before him, too: that is no word of the ledger.
    let (patience, is_word) = match random.below(4) {
        0 => (Patience::all(random.milliseconds(0..500)), true),
        1 => (Patience::or_less(DOUBT_MAX), false),
        _ => (Patience::all(DOUBT_MAX), true),
    };
    let reserve = life.escrow.reserve(Arc::clone(&demands), patience, until);
    let hold = match timeout(RESERVE_MAX, reserve).await {
        Ok(Ok(hold)) => hold,
        Ok(Err(error)) => return (refused(&error, bills, is_word.then_some(since)), error.to_string()),
        Err(_elapsed) => return (Outcome::Info, HUNG.to_owned()),
    };
    if random.percent(20) {
        // A breaker is asked, a connection made.
        sleep(random.milliseconds(0..2_500)).await;
    }
    if random.percent(5) {
        return (Outcome::Fail, "not dispatched".to_owned());
    }
    dispatch(life, bills, &demands, hold, random).await
}

/// What [`call`] says of a reserve that did not return.
pub const HUNG: &str = "a reserve hung";

async fn dispatch(
    life: &Life,
    bills: &Arc<Mutex<Bills>>,
    demands: &[Demand],
    hold: Hold,
    mut random: Random,
) -> (Outcome, String) {
    if !life.lives() {
        return (Outcome::Fail, "the process ended before it was dispatched".to_owned());
    }
    let incarnation = life.consensus.incarnation();
    let bill = |demand: &Demand| match random.below(10) {
        0 => 0,
        1 | 2 => demand.amount,
        _ if demand.unit == Unit::NanoUsd => random.below(usize::try_from(demand.amount).unwrap_or(usize::MAX)) as u64,
        _ => demand.amount,
    };
    let amounts: Vec<u64> = demands.iter().map(bill).collect();
    for (demand, bill) in demands.iter().zip(&amounts) {
        let Demand { place, amount, .. } = *demand;
        send(life, &mut bills.lock(), Sent { place, life: incarnation, bound: amount, bill: *bill });
    }
    sleep(if random.percent(70) { random.milliseconds(5..300) } else { random.milliseconds(300..4_000) }).await;
    if !life.lives() {
        return (Outcome::Ok, format!("billed {amounts:?}, and the process ended"));
    }
    // No head came: nobody knows what it used.
    let unknown = random.percent(15);
    let used: Vec<u64> =
        demands.iter().zip(&amounts).map(|(demand, bill)| if unknown { demand.amount } else { *bill }).collect();
    for (demand, used) in demands.iter().zip(&used) {
        bills.lock().settled(demand.place, incarnation, demand.amount, *used);
    }
    hold.settle(used.iter().copied());
    (Outcome::Ok, format!("billed {amounts:?}, settled {used:?}"))
}

fn send(life: &Life, bills: &mut Bills, sent: Sent) {
    bills.billed(sent, |least| life.proof.of(sent.life, sent.place, least));
}

/// `since`: when it began to ask, where only the ledger may have refused it.
fn refused(error: &NotReserved, bills: &Arc<Mutex<Bills>>, since: Option<u64>) -> Outcome {
    let mut bills = bills.lock();
    match error {
        NotReserved::Refused(Refused::Exceeded { place, amount, standing, .. }) => {
            if let Some(since) = since {
                bills.refused(*place, *amount, since, standing);
            }
            Outcome::Fail
        }
        NotReserved::Refused(Refused::Over { place }) => {
            bills.over(*place);
            Outcome::Fail
        }
        NotReserved::Refused(Refused::Full | Refused::Crowded { .. }) => Outcome::Fail,
        NotReserved::Unanswered { .. } => {
            bills.coverage.unanswered += 1;
            Outcome::Info
        }
    }
}

/// The operator does one thing to one budget. What he knows of it when he does it must still be so when it is applied,
/// so that no change of his is applied late.
pub async fn change(consensus: &Consensus, name: Option<&str>, random: &mut Random) -> (Outcome, String) {
    let chosen = BUDGETS[random.below(BUDGETS.len())];
    let kept = BUDGETS.into_iter().find(|kept| Some(kept.name) == name).unwrap_or(chosen);
    let standing = consensus.read(|register| {
        let version = register.get(Kind::Budgets, kept.name).map(|stored| stored.version)?;
        Some((version, known(register, kept.name)?.limit.amount))
    });
    let (kind, name, shape) = (Kind::Budgets, kept.name.to_owned(), None);
    let put = |limit: u64, expected| Act::Put { kind, name: name.clone(), spec: kept.spec(limit), expected, shape };
    let (least, most) = kept.limits;
    let act = match standing {
        None => put(least + random.draw() % (most - least), Expected::Absent),
        Some((version, _)) if random.percent(12) => {
            Act::Delete { kind, name: name.clone(), expected: Expected::Version(version), shape }
        }
        Some((version, limit)) if random.percent(40) => {
            put(limit * (20 + random.draw() % 75) / 100, Expected::Version(version))
        }
        Some((version, limit)) => {
            // Neither grows for ever.
            let raised = (limit * (110 + random.draw() % 120) / 100 + 1).min(most * 4);
            put(raised, Expected::Version(version))
        }
    };
    let words = format!("{act:?}");
    let author = Author { who: "operator".to_owned(), node: consensus.me(), request_id: String::new() };
    match consensus.propose(act, author, CHANGE_WITHIN).await {
        Ok(accepted) if matches!(accepted.reply, Reply::Put { .. } | Reply::Deleted) => (Outcome::Ok, words),
        Ok(accepted) => (Outcome::Fail, format!("{words}: {:?}", accepted.reply)),
        Err(error) => (Outcome::Info, format!("{words}: {error}")),
    }
}

/// The healed world comes to rest, and what nobody spent and nothing burned can be spent. What does not hold, in words.
pub async fn end(world: &World, random: &mut Random) -> Vec<String> {
    let Some(life) = world.life(0) else { return vec!["the first node is down".to_owned()] };
    let mut unrest = Vec::new();
    let rest = async {
        loop {
            sleep(Duration::from_millis(250)).await;
            let lives: Option<BTreeSet<Incarnation>> = (0..world.nodes.len()).map(|at| world.incarnation(at)).collect();
            let Some(lives) = lives else { continue };
            unrest = life.consensus.read(|register| world.bills.lock().unrest(register.accounts(), &lives));
            if unrest.is_empty() {
                return;
            }
        }
    };
    if timeout(REST_MAX, rest).await.is_err() {
        unrest.truncate(3);
        let stands = |at: usize| match world.life(at) {
            Some(life) => {
                let metrics = life.consensus.metrics();
                let metrics = metrics.borrow();
                format!(
                    "{:?} in term {}, follows {:?}, has {:?}, applied {:?}",
                    metrics.state,
                    metrics.current_term,
                    metrics.current_leader,
                    metrics.last_log_index,
                    metrics.last_applied
                )
            }
            None => "down".to_owned(),
        };
        let nodes: Vec<String> = (0..world.nodes.len()).map(stands).collect();
        return vec![format!("the healed world did not come to rest within {REST_MAX:?}: {unrest:#?}; {nodes:#?}")];
    }
    let whose = |kept: &Kept| users().take(if kept.each { usize::MAX } else { 1 });
    let all = BUDGETS.into_iter().flat_map(|kept| whose(&kept).map(move |user| (kept, user)));
    let spends = all.map(|whose| empty(world, whose, random.fork()));
    futures_util::future::join_all(spends).await.into_iter().flatten().collect()
}

/// Returns once this node has all that was decided before.
async fn fresh(life: &Life) {
    loop {
        if let Ok(index) = life.consensus.read_index(CHANGE_WITHIN).await {
            // It ends with the node.
            let _ended = life.consensus.progress().wait_for(|progress| progress.has(index)).await.is_err();
            return;
        }
    }
}

/// Spends what is left of a budget at two nodes, and asks a third for more.
async fn empty(world: &World, whose: (Kept, UserId), mut random: Random) -> Option<String> {
    let name = whose.0.name;
    for _ in 0..TRIES {
        match empty_now(world, whose, &mut random).await {
            Ok(emptied) => {
                world.bills.lock().coverage.emptied += u64::from(emptied);
                return None;
            }
            Err((NotReserved::Refused(Refused::Over { .. }), _)) => {}
            Err((error, what)) => return Some(format!("{name}: {what}: {error}")),
        }
    }
    Some(format!("{name}: its window ended again and again"))
}

async fn empty_now(
    world: &World,
    (kept, user): (Kept, UserId),
    random: &mut Random,
) -> Result<bool, (NotReserved, String)> {
    let mut lives = Vec::new();
    for _ in 0..3 {
        lives.extend(world.life(random.below(world.nodes.len())));
    }
    for life in &lives {
        fresh(life).await;
    }
    let left = lives.first().and_then(|life| {
        life.consensus.read(|register| {
            let (budget, account) = register.accounts().named(kept.name)?;
            let (window, now) = account.current()?;
            let held = now.book(user).map_or(0, Book::held);
            Some((Place::new(budget, window).of(user), account.limit().saturating_sub(held)))
        })
    });
    let Some((place, left)) = left else { return Ok(false) };
    for (life, (amount, fits)) in lives.iter().zip([(left / 2, true), (left - left / 2, true), (1, false)]) {
        if amount == 0 {
            continue;
        }
        let demands: Arc<[Demand]> = Arc::new([Demand { place, unit: kept.unit, amount, overdraft: kept.overdraft }]);
        let until = (Instant::now() + WITHIN).into_std();
        let reserved = life.escrow.reserve(demands, Patience::all(DOUBT_MAX), until).await;
        match reserved {
            Ok(hold) => {
                let incarnation = life.consensus.incarnation();
                let mut bills = world.bills.lock();
                send(life, &mut bills, Sent { place, life: incarnation, bound: amount, bill: amount });
                bills.settled(place, incarnation, amount, amount);
                drop(bills);
                hold.settle([amount]);
            }
            Err(error @ NotReserved::Refused(Refused::Exceeded { .. })) if !fits => {
                // The last one asks for what is not there.
                fresh(life).await;
                let at_end = life.consensus.read(|register| {
                    let book = register.accounts().book(place)?;
                    Some((book.limit(), book.used() + book.burned()))
                });
                match at_end {
                    Some((limit, spent)) if spent >= limit => return Ok(left > 0),
                    _ => return Err((error, format!("{amount} of {left}, and {at_end:?} are spent of it"))),
                }
            }
            Err(error) => return Err((error, format!("{amount} of {left}"))),
        }
    }
    Ok(false)
}

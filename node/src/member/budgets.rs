//! Budgets on this node: where grants come from, the marks on its disk, when windows begin, and what lives that are over
//! give back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actors::quota::escrow::{Escrow, Ledger, Marks, Places};
use cluster::directory::budget::{Budget, Unit};
use cluster::directory::wire::Spec;
use cluster::id::{Incarnation, NodeId};
use cluster::ledger::accounts::{Account, BudgetId, Place, Roll, Told};
use cluster::ledger::book::Statement;
use cluster::ledger::lease::Mark;
use cluster::ledger::window;
use cluster::marks::Marks as Kept;
use cluster::register::{Act, Kind, QUOTA_MAX, Register, Reply};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use storage::database::DataDir;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::{Member, MemberError, budget_metrics, reconcile};
use crate::admin::budgets::{BudgetStanding, Of};
use crate::admin::control::ChangeError;
use crate::config::reload::describe;

/// How long the ledger has to answer. What is said again comes to the same.
const SAY_WITHIN: Duration = Duration::from_secs(2);

/// How often the leader looks whether a window is over.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Recalls are looked for no more often.
const HEED_EVERY: Duration = Duration::from_millis(20);

/// How long a life that ends may take to give back what it holds.
const LAST_WITHIN: Duration = Duration::from_secs(2);

/// Places in one command that settles a life.
const SETTLED_MAX: usize = 8_192;

/// Between two tries to settle the lives before.
const PAUSE: Duration = Duration::from_millis(500);

struct FromRegister(Member);

impl Ledger for FromRegister {
    fn say(&self, said: Vec<(Place, Statement)>) -> BoxFuture<'static, Result<Vec<Told>, String>> {
        let member = self.0.clone();
        async move {
            let consensus = &member.0.consensus;
            let incarnation = consensus.incarnation();
            if incarnation.get() == 0 {
                return Err("this start is not registered yet".to_owned());
            }
            let act = Act::Quota { node: member.0.introduction.me, incarnation, said };
            let accepted = consensus.propose_idempotent(act, SAY_WITHIN).await.map_err(|error| describe(&error))?;
            if let Reply::Told(told) = accepted.reply {
                Ok(told)
            } else {
                Err(format!("the register answered {:?}", accepted.reply))
            }
        }
        .boxed()
    }

    fn debts(&self, place: Place) -> Option<u64> {
        let consensus = &self.0.0.consensus;
        let (me, incarnation) = (self.0.0.introduction.me, consensus.incarnation());
        // What earlier lives held is applied here once this one is registered; of a directory that may be another's copy
        // nobody knows.
        let known = incarnation.get() != 0 && !self.0.0.adopted && self.0.0.marks.is_alone(incarnation);
        known.then(|| consensus.read(|register| register.accounts().debts(place, me, incarnation)))?
    }
}

struct OnDisk(Member);

impl Marks for OnDisk {
    fn write(&self, marks: Vec<(Place, Mark)>) -> BoxFuture<'static, Result<(), String>> {
        let member = self.0.clone();
        async move {
            let (consensus, kept) = (&member.0.consensus, &member.0.marks);
            consensus.read(|register| kept.prune(|place| register.accounts().is_past(place)));
            kept.mark(consensus.incarnation(), marks).await.map_err(|error| describe(&error))
        }
        .boxed()
    }
}

/// How far earlier lives may have spent. A directory that may be another's copy proves nothing about what that one spent.
pub(super) async fn open_marks(data: &DataDir, adopt: bool) -> Result<Kept, MemberError> {
    let marks = Kept::open(data.open_marks()?).map_err(MemberError::Marks)?;
    if adopt {
        for (life, _marks) in marks.lives() {
            marks.forget(life).await.map_err(MemberError::Unmarked)?;
        }
    }
    Ok(marks)
}

/// What this node holds of budgets, kept going until the node ends.
pub fn start(member: &Member) -> Escrow {
    let (escrow, says, marking) = Escrow::new(Arc::new(FromRegister(member.clone())), Arc::new(OnDisk(member.clone())));
    let tasks = &member.0.tasks;
    tasks.spawn("grants", says);
    tasks.spawn("marks", marking);
    tasks.spawn("windows", keep_windows(member.clone()));
    tasks.spawn("recalls", heed_recalls(member.clone(), escrow.clone()));
    tasks.spawn("budget metrics", budget_metrics::keep(member.clone(), escrow.clone()));
    escrow
}

/// Where budgets are spent now; `None` where nothing has changed since `generation`.
pub fn places(register: &Register, generation: Option<u64>) -> Option<(u64, Places)> {
    let accounts = register.accounts();
    if generation == Some(accounts.generation()) {
        return None;
    }
    let place = |(budget, account): (BudgetId, &Account)| {
        let (window, _) = account.current()?;
        let unit = known(register, &account.name)?.limit.unit;
        Some((Arc::from(account.name.as_str()), (Place::new(budget, window), unit)))
    };
    let places: HashMap<Arc<str>, (Place, Unit)> = accounts.iter().filter_map(place).collect();
    Some((accounts.generation(), Arc::new(places)))
}

/// What the register says of a budget, in its present window or the one named; of all its end users, or of the one named.
pub fn standing(register: &Register, name: &str, of: &Of) -> Result<BudgetStanding, ChangeError> {
    let (_id, account) = register.accounts().named(name).ok_or(ChangeError::NotFound)?;
    let budget = known(register, name).ok_or(ChangeError::NotFound)?;
    let user = of.end_user.as_deref().map(|user| reconcile::user_of(name, account, user)).transpose()?;
    let mut standing = BudgetStanding::new(&budget, account);
    let shown = match of.window {
        Some(_) => Some(reconcile::window_of(name, account, of.window)?),
        None => account.current(),
    };
    match (shown, user) {
        (Some((number, window)), Some(user)) => {
            standing.show(number, window);
            standing.show_user(of.end_user.clone(), window.book(user));
        }
        (Some((number, window)), None) => standing.show(number, window),
        (None, _) => {}
    }
    Ok(standing)
}

pub(super) fn known(register: &Register, name: &str) -> Option<Budget> {
    let stored = register.get(Kind::Budgets, name)?;
    let Ok(Spec::Budget(spec)) = Spec::read(Kind::Budgets, stored.spec) else { return None };
    spec.read(name)
}

/// What others lack is seen in the register, whoever said it.
async fn heed_recalls(member: Member, escrow: Escrow) {
    let consensus = member.0.consensus.clone();
    let mut progress = consensus.progress();
    while progress.changed().await.is_ok() {
        let incarnation = consensus.incarnation();
        consensus.read(|register| escrow.look(|place| Some(register.accounts().told(place, incarnation))));
        tokio::time::sleep(HEED_EVERY).await;
    }
}

/// While this node leads, it says when windows begin: at once where a budget is new, else when the one before is over.
async fn keep_windows(member: Member) {
    let consensus = member.0.consensus.clone();
    let mut progress = consensus.progress();
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut generation = None;
    loop {
        tokio::select! {
            _at = looks.tick() => {}
            changed = progress.changed() => {
                if changed.is_err() {
                    return;
                }
                // A new budget is not to wait for the next look; other entries say nothing about windows.
                let now = consensus.read(|register| register.accounts().generation());
                if generation.replace(now) == Some(now) {
                    continue;
                }
            }
        }
        if consensus.leader() != Some(member.0.introduction.me) {
            continue;
        }
        let now = consensus.wall();
        let rolls = consensus.read(|register| due(register, now));
        for rolls in rolls.chunks(QUOTA_MAX) {
            let rolled = consensus.propose_idempotent(Act::Roll { rolls: rolls.to_vec() }, SAY_WITHIN).await;
            if let Err(error) = rolled {
                warn!(error = describe(&error), "windows of budgets could not begin");
            }
        }
    }
}

/// The windows that begin now. A clock that goes back begins none.
fn due(register: &Register, now: Duration) -> Vec<Roll> {
    let roll = |(budget, account): (BudgetId, &Account)| {
        let last = account.windows().last();
        if last.is_some_and(|(_, window)| window.ends.is_none_or(|ends| ends > now)) {
            return None;
        }
        let known = known(register, &account.name)?;
        let (starts, ends) = window::bounds(known.period, known.timezone.as_deref(), now).ok()?;
        Some(Roll { budget, after: last.map(|(number, _)| number), starts, ends })
    };
    register.accounts().iter().filter_map(roll).collect()
}

impl Member {
    /// Gives back what the lives before this one did not use, as the marks of this directory prove it.
    pub(super) async fn settle_lives(self) {
        let own = self.0.consensus.incarnation();
        for (incarnation, marks) in self.0.marks.lives() {
            if incarnation == own {
                continue;
            }
            let node = self.0.introduction.me;
            let marks: Vec<(Place, Mark)> = marks.into_iter().collect();
            for act in settlements(node, incarnation, &marks, false) {
                while let Err(error) = self.0.consensus.propose_idempotent(act.clone(), SAY_WITHIN).await {
                    tracing::debug!(error = describe(&error), %incarnation, "an earlier life is not settled yet");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            info!(%incarnation, "what an earlier life did not use is given back");
            if let Err(error) = self.0.marks.forget(incarnation).await {
                warn!(error = describe(&error), "an earlier life could not be forgotten");
            }
        }
    }

    /// Gives back everything this life holds and does not use. It spends nothing any more.
    pub async fn settle_last(&self, escrow: &Escrow) {
        let (node, incarnation) = (self.0.introduction.me, self.0.consensus.incarnation());
        let marks = escrow.close();
        if incarnation.get() == 0 || marks.is_empty() {
            return;
        }
        for act in settlements(node, incarnation, &marks, true) {
            if let Err(error) = self.0.consensus.propose_idempotent(act, LAST_WITHIN).await {
                warn!(error = describe(&error), "what this node holds of budgets is given back when it starts again");
                return;
            }
        }
        if let Err(error) = self.0.marks.forget(incarnation).await {
            warn!(error = describe(&error), "this life could not be forgotten");
        }
    }
}

/// All that is settled of a life, in commands of a size that fits. What none of them names was not used: only the last
/// says so, when all the others are settled.
fn settlements(
    node: NodeId,
    incarnation: Incarnation,
    marks: &[(Place, Mark)],
    last: bool,
) -> impl Iterator<Item = Act> + use<> {
    let mut parts: Vec<Vec<(Place, Mark)>> = marks.chunks(SETTLED_MAX).map(<[_]>::to_vec).collect();
    if parts.is_empty() {
        parts.push(Vec::new());
    }
    let whole = parts.len() - 1;
    let act = move |(number, marks)| Act::Settle { node, incarnation, marks, whole: number == whole, last };
    parts.into_iter().enumerate().map(act)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_part_of_a_settlement_speaks_of_what_is_not_named() {
        let (node, life) = (NodeId::new(7), Incarnation::new(1));
        let of = |marks: usize| {
            let place = |window| (Place::new(BudgetId(1), window), Mark::to(1));
            let marks: Vec<_> = (0..marks as u64).map(place).collect();
            let part = |act| if let Act::Settle { marks, whole, .. } = act { (marks.len(), whole) } else { (0, false) };
            settlements(node, life, &marks, false).map(part).collect::<Vec<_>>()
        };

        assert_eq!(of(0), [(0, true)]);
        assert_eq!(of(SETTLED_MAX), [(SETTLED_MAX, true)]);
        assert_eq!(of(SETTLED_MAX + 1), [(SETTLED_MAX, false), (1, true)]);
    }
}

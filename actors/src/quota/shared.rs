//! Budgets that all nodes share: where grants come from, the marks on this node's disk, when windows begin, and what lives
//! that are over give back.

use std::sync::Arc;
use std::time::Duration;

use cluster::consensus::Consensus;
use cluster::directory::budget::Budget;
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
use storage::log::Failed;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::escrow::{Escrow, Ledger, Marks, Now, Places};
use crate::supervisor::chain;

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

/// The accounts as this node knows them, and its marks. Cheap to clone.
#[derive(Clone)]
pub struct Books {
    consensus: Consensus,
    marks: Kept,
    /// The marks may be a copy of another's.
    adopted: bool,
}

/// What has to run as long as the node does, by its name.
pub type Loops = Vec<(&'static str, BoxFuture<'static, ()>)>;

impl Ledger for Books {
    fn say(&self, said: Vec<(Place, Statement)>) -> BoxFuture<'static, Result<Vec<Told>, String>> {
        let consensus = self.consensus.clone();
        async move {
            let incarnation = consensus.incarnation();
            if incarnation.get() == 0 {
                return Err("this start is not registered yet".to_owned());
            }
            let act = Act::Quota { node: consensus.me(), incarnation, said };
            let accepted = consensus.propose_idempotent(act, SAY_WITHIN).await.map_err(|error| chain(&error))?;
            if let Reply::Told(told) = accepted.reply {
                Ok(told)
            } else {
                Err(format!("the register answered {:?}", accepted.reply))
            }
        }
        .boxed()
    }

    fn debts(&self, place: Place) -> Option<u64> {
        let (me, incarnation) = (self.consensus.me(), self.consensus.incarnation());
        // What earlier lives held is applied here once this one is registered.
        let known = incarnation.get() != 0 && !self.adopted && self.marks.is_alone(incarnation);
        known.then(|| self.consensus.read(|register| register.accounts().debts(place, me, incarnation)))?
    }

    fn lost(&self, places: &[Place]) -> Vec<u64> {
        let lost = self.consensus.controller().lost();
        if lost.is_empty() {
            return vec![0; places.len()];
        }
        self.consensus.read(|register| {
            let of = |place: &Place| register.accounts().book(*place).map_or(0, |book| book.held_by(&lost));
            places.iter().map(of).collect()
        })
    }
}

impl Marks for Books {
    fn write(&self, marks: Vec<(Place, Mark)>) -> BoxFuture<'static, Result<(), String>> {
        let Self { consensus, marks: kept, .. } = self.clone();
        async move {
            consensus.read(|register| kept.prune(|place| register.accounts().is_past(place)));
            kept.mark(consensus.incarnation(), marks).await.map_err(|error| chain(&error))
        }
        .boxed()
    }
}

impl Books {
    /// `adopted`: the marks may be a copy of another's, and say nothing of what that one spent.
    pub fn new(consensus: Consensus, marks: Kept, adopted: bool) -> Self {
        Self { consensus, marks, adopted }
    }

    /// What this node holds of budgets, and what keeps it going.
    pub fn open(&self) -> (Escrow, Loops) {
        let (escrow, says, marking) = Escrow::new(Arc::new(self.clone()), Arc::new(self.clone()));
        let loops = vec![
            ("grants", says.boxed()),
            ("marks", marking.boxed()),
            ("windows", self.clone().keep_windows().boxed()),
            ("recalls", self.clone().heed_recalls(escrow.clone()).boxed()),
        ];
        (escrow, loops)
    }

    /// To be said of this life before it is granted anything. Durable when it returns.
    pub async fn begin(&self, incarnation: Incarnation) -> Result<(), Failed> {
        self.marks.begin(incarnation).await
    }

    /// What others lack is seen in the register, whoever said it.
    async fn heed_recalls(self, escrow: Escrow) {
        let consensus = self.consensus;
        let mut progress = consensus.progress();
        let mut seen = None;
        while progress.changed().await.is_ok() {
            let incarnation = consensus.incarnation();
            consensus.read(|register| {
                let accounts = register.accounts();
                let generation = accounts.generation();
                let have_begun = seen.replace(generation) != Some(generation);
                escrow.look(have_begun, |place| Some(accounts.told(place, incarnation)));
            });
            tokio::time::sleep(HEED_EVERY).await;
        }
    }

    /// While this node leads, it says when windows begin: at once where a budget is new, else when the one before is over.
    async fn keep_windows(self) {
        let consensus = self.consensus;
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
            if consensus.leader() != Some(consensus.me()) {
                continue;
            }
            let now = consensus.wall();
            let rolls = consensus.read(|register| due(register, now));
            for rolls in rolls.chunks(QUOTA_MAX) {
                let rolled = consensus.propose_idempotent(Act::Roll { rolls: rolls.to_vec() }, SAY_WITHIN).await;
                if let Err(error) = rolled {
                    warn!(error = chain(&error), "windows of budgets could not begin");
                }
            }
        }
    }

    /// Gives back what the lives before this one did not use, as the marks of this directory prove it.
    pub async fn settle_lives(self) {
        let own = self.consensus.incarnation();
        for (incarnation, marks) in self.marks.lives() {
            if incarnation == own {
                continue;
            }
            let node = self.consensus.me();
            let marks: Vec<(Place, Mark)> = marks.into_iter().collect();
            let mut settled = 0;
            for act in settlements(node, incarnation, &marks, false) {
                loop {
                    match self.consensus.propose_idempotent(act.clone(), SAY_WITHIN).await {
                        Ok(accepted) => break settled = accepted.index,
                        Err(error) => {
                            tracing::debug!(error = chain(&error), %incarnation, "an earlier life is not settled yet");
                            tokio::time::sleep(PAUSE).await;
                        }
                    }
                }
            }
            // Only the ledger remembers from then on what that life spent on credit: it must be known here.
            let mut progress = self.consensus.progress();
            if progress.wait_for(|progress| progress.has(settled)).await.is_err() {
                return;
            }
            info!(%incarnation, "what an earlier life did not use is given back");
            if let Err(error) = self.marks.forget(incarnation).await {
                warn!(error = chain(&error), "an earlier life could not be forgotten");
            }
        }
    }

    /// Gives back everything this life holds and does not use. It spends nothing any more.
    pub async fn settle_last(&self, escrow: &Escrow) {
        let (node, incarnation) = (self.consensus.me(), self.consensus.incarnation());
        let marks = escrow.close();
        if incarnation.get() == 0 || marks.is_empty() {
            return;
        }
        let heard_all = escrow.has_heard_all(LAST_WITHIN).await;
        for act in settlements(node, incarnation, &marks, true) {
            if let Err(error) = self.consensus.propose_idempotent(act, LAST_WITHIN).await {
                warn!(error = chain(&error), "what this node holds of budgets is given back when it starts again");
                return;
            }
        }
        // What it is granted after that, the next life gives back by these marks.
        if !heard_all {
            return;
        }
        if let Err(error) = self.marks.forget(incarnation).await {
            warn!(error = chain(&error), "this life could not be forgotten");
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

/// Where budgets are spent now; `None` where nothing has changed since `generation`.
pub fn places(register: &Register, generation: Option<u64>) -> Option<(u64, Places)> {
    let accounts = register.accounts();
    if generation == Some(accounts.generation()) {
        return None;
    }
    let place = |(budget, account): (BudgetId, &Account)| {
        let (number, window) = account.current()?;
        let unit = known(register, &account.name)?.limit.unit;
        let place = Place::new(budget, number);
        Some((Arc::from(account.name.as_str()), Now { place, unit, ends: window.ends }))
    };
    Some((accounts.generation(), accounts.iter().filter_map(place).collect()))
}

/// A budget as the register has it.
pub fn known(register: &Register, name: &str) -> Option<Budget> {
    let stored = register.get(Kind::Budgets, name)?;
    let Ok(Spec::Budget(spec)) = Spec::read(Kind::Budgets, stored.spec) else { return None };
    spec.read(name)
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

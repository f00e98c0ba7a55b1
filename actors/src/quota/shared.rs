//! Budgets that all nodes share: where grants come from, the marks on this node's disk, when windows begin, and what lives
//! that are over give back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cluster::consensus::Consensus;
use cluster::directory::budget::{Budget, Unit};
use cluster::directory::wire::Spec;
use cluster::id::Incarnation;
use cluster::ledger::accounts::{Account, BudgetId, Place, Roll, Told};
use cluster::ledger::book::Statement;
use cluster::ledger::window;
use cluster::marks::Marks as Kept;
use cluster::register::{Act, Kind, QUOTA_MAX, Register, Reply};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use storage::log::Failed;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::escrow::{Escrow, Ledger, Marks, Places};
use crate::supervisor::chain;

/// How long the ledger has to answer. What is said again comes to the same.
const SAY_WITHIN: Duration = Duration::from_secs(2);

/// How often the leader looks whether a window is over.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Recalls are looked for no more often.
const HEED_EVERY: Duration = Duration::from_millis(20);

/// How long a life that ends may take to give back what it holds.
const LAST_WITHIN: Duration = Duration::from_secs(2);

/// Between two tries to settle the lives before.
const PAUSE: Duration = Duration::from_millis(500);

/// The accounts as this node knows them, and its marks. Cheap to clone.
#[derive(Clone)]
pub struct Books {
    consensus: Consensus,
    marks: Kept,
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
}

impl Marks for Books {
    fn write(&self, marks: Vec<(Place, u64)>) -> BoxFuture<'static, Result<(), String>> {
        let Self { consensus, marks: kept } = self.clone();
        async move {
            consensus.read(|register| kept.prune(|place| register.accounts().is_past(place)));
            kept.mark(consensus.incarnation(), marks).await.map_err(|error| chain(&error))
        }
        .boxed()
    }
}

impl Books {
    pub fn new(consensus: Consensus, marks: Kept) -> Self {
        Self { consensus, marks }
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
        while progress.changed().await.is_ok() {
            let incarnation = consensus.incarnation();
            consensus.read(|register| escrow.look(|place| Some(register.accounts().told(place, incarnation))));
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
            let marks: Vec<(Place, u64)> = marks.into_iter().collect();
            let act = Act::Settle { node, incarnation, marks, last: false };
            while let Err(error) = self.consensus.propose_idempotent(act.clone(), SAY_WITHIN).await {
                tracing::debug!(error = chain(&error), %incarnation, "an earlier life is not settled yet");
                tokio::time::sleep(PAUSE).await;
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
        let act = Act::Settle { node, incarnation, marks, last: true };
        match self.consensus.propose_idempotent(act, LAST_WITHIN).await {
            Ok(_settled) => {
                if let Err(error) = self.marks.forget(incarnation).await {
                    warn!(error = chain(&error), "this life could not be forgotten");
                }
            }
            Err(error) => {
                warn!(error = chain(&error), "what this node holds of budgets is given back when it starts again");
            }
        }
    }
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
        Some((Arc::from(account.name.as_str()), (Place { budget, window }, unit)))
    };
    let places: HashMap<Arc<str>, (Place, Unit)> = accounts.iter().filter_map(place).collect();
    Some((accounts.generation(), Arc::new(places)))
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

//! Budgets on this node: what it holds of them, the marks in its data directory, and what is told of them to operators.

use actors::quota::escrow::Escrow;
use actors::quota::shared::{Books, known};
use cluster::directory::kind::Kind;
use cluster::ledger::accounts::{Place, UserId};
use cluster::marks::Marks as Kept;
use cluster::register::Register;
use storage::database::DataDir;

use super::{Member, MemberError, budget_metrics, reconcile};
use crate::admin::access::Scope;
use crate::admin::budgets::{BudgetStanding, Of};
use crate::admin::control::ChangeError;
use crate::admin::register::is_budget_of;

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
    let tasks = &member.0.tasks;
    let (escrow, loops) = member.books().open();
    for (name, part) in loops {
        tasks.spawn(name, part);
    }
    tasks.spawn("budget metrics", budget_metrics::keep(member.clone(), escrow.clone()));
    escrow
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

/// What calls under way on this node have set aside in the present window.
pub fn reserved_here(register: &Register, escrow: Option<&Escrow>, name: &str, of: &Of) -> Option<u64> {
    let (budget, account) = register.accounts().named(name)?;
    let (window, _) = account.current().filter(|_| of.window.is_none())?;
    let (escrow, place) = (escrow?, Place::new(budget, window));
    Some(match of.end_user.as_deref() {
        Some(user) => escrow.lease(place.of(UserId::of(user))).map_or(0, |lease| lease.reserved()),
        None => escrow.reserved(place),
    })
}

/// Of up to `limit` budgets that are seen in `scope`, by name, those after `after`: without what makes one long.
pub fn standings(register: &Register, after: Option<&str>, limit: usize, scope: &Scope) -> Vec<BudgetStanding> {
    let names = register.list(Kind::Budgets, after).map(|stored| stored.name);
    let seen = names.filter(|name| match scope {
        Scope::Everything => true,
        Scope::Tenants(tenants) => is_budget_of(register, name, tenants),
    });
    // One that this version cannot read has no standing.
    let found = seen.filter_map(|name| standing(register, name, &Of::default()).ok());
    found.take(limit).map(BudgetStanding::in_short).collect()
}

impl Member {
    pub(super) fn books(&self) -> Books {
        Books::new(self.0.consensus.clone(), self.0.marks.clone(), self.0.adopted)
    }

    /// Gives back everything this life holds and does not use. It spends nothing any more.
    pub async fn settle_last(&self, escrow: &Escrow) {
        self.books().settle_last(escrow).await;
    }
}

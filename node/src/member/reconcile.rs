//! Whether a budget can be reconciled as an operator says, and what is to be proposed for it. Pure.

use actors::quota::shared::known;
use cluster::directory::budget::Unit;
use cluster::id::Incarnation;
use cluster::ledger::accounts::{Account, Place, UserId, Window};
use cluster::ledger::book::{Book, Line, Stage};
use cluster::register::{Act, Register};

use super::budgets::standing;
use crate::admin::budgets::{Of, Reconcile, Reconciled, Reconciliation};
use crate::admin::control::{ChangeError, Wrong};

/// Things that are named where one is not there; of the rest, how many there are.
const NAMED_MAX: usize = 20;

/// What is to be proposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    budget: String,
    place: Place,
    end_user: Option<String>,
    incarnation: Incarnation,
    used: u64,
    /// What the life held before.
    held: u64,
    note: Option<String>,
}

impl Plan {
    pub fn new(register: &Register, asked: &Reconcile) -> Result<Self, ChangeError> {
        let Reconcile { budget: name, said } = asked;
        let accounts = register.accounts();
        let unknown = || no_such(&format!("budget `{name}`"), accounts.iter().map(|(_, account)| account.name.clone()));
        let (budget, account) = accounts.named(name).ok_or_else(unknown)?;
        let declared = known(register, name).ok_or(ChangeError::NotFound)?;
        let unit = declared.limit.unit;
        let (number, window) = window_of(name, account, said.window)?;
        let whose = said.end_user.as_deref().map(|user| user_of(name, account, user)).transpose()?.unwrap_or_default();
        let place = Place::new(budget, number).of(whose);
        let (incarnation, line) = line_of(register, name, number, window.book(whose), said)?;
        if line.stage == Stage::Open || !register.is_over(line.node, incarnation) {
            return Err(ChangeError::Refused { code: "not_over", reason: still_lives(line, incarnation) });
        }
        let used = said.used.amount(unit).map_err(wrong)?;
        if used > most(line, declared.overdraft) {
            return Err(wrong(too_much(line, used, declared.overdraft, unit)));
        }
        let note = (used < line.used).then(|| {
            let (said, reported) = (unit.show(used), unit.show(line.used));
            format!("{said} were said to be used, and {reported} had been reported: taken as those")
        });
        let (used, held) = (used.max(line.used), line.held());
        let end_user = said.end_user.clone();
        Ok(Self { budget: name.clone(), place, end_user, incarnation, used, held, note })
    }

    pub fn act(&self) -> Act {
        Act::Unspent { place: self.place, incarnation: self.incarnation, used: self.used }
    }

    /// Once that is applied. `None`: the budget has gone since.
    pub fn outcome(self, register: &Register) -> Option<Reconciled> {
        let of = Of { window: Some(self.place.window), end_user: self.end_user };
        let standing = standing(register, &self.budget, &of).ok()?;
        let book = register.accounts().book(self.place)?;
        let held = book.line(self.incarnation).map_or(self.held, Line::held);
        Some(Reconciled { standing, given_back: self.held.saturating_sub(held), note: self.note })
    }
}

/// The one named, or the present one.
pub fn window_of<'a>(name: &str, account: &'a Account, wanted: Option<u64>) -> Result<(u64, &'a Window), ChangeError> {
    let Some(wanted) = wanted else {
        let none = || ChangeError::NoSuch { what: format!("window of the budget `{name}` yet") };
        return account.current().ok_or_else(none);
    };
    let found = account.windows().find(|(number, _)| *number == wanted);
    found.ok_or_else(|| {
        let kept = account.windows().map(|(number, _)| number.to_string());
        no_such(&format!("window {wanted} of the budget `{name}` that still takes reports"), kept)
    })
}

/// In whose name an end user's calls are counted.
pub fn user_of(name: &str, account: &Account, user: &str) -> Result<UserId, ChangeError> {
    if account.is_each() {
        return Ok(UserId::of(user));
    }
    let message = format!("is `{user}`, and the budget `{name}` is everyone's together");
    Err(ChangeError::Invalid(vec![Wrong { path: "end_user".to_owned(), message }]))
}

fn line_of<'a>(
    register: &Register,
    name: &str,
    number: u64,
    book: Option<&'a Book>,
    said: &Reconciliation,
) -> Result<(Incarnation, &'a Line), ChangeError> {
    let incarnation = Incarnation::new(said.incarnation);
    let called = |line: &&Line| {
        let member = register.members().get(line.node);
        line.node.to_string() == said.node || member.is_some_and(|member| member.info.name == said.node)
    };
    let found = book.and_then(|book| book.line(incarnation)).filter(called).map(|line| (incarnation, line));
    found.ok_or_else(|| {
        let lines = book.into_iter().flat_map(Book::lines);
        let lines = lines.map(|(incarnation, line)| format!("{} {incarnation}", line.node));
        let what =
            format!("node `{}` with incarnation {incarnation} in window {number} of the budget `{name}`", said.node);
        no_such(&what, lines)
    })
}

/// What is not there, beside what is.
fn no_such(what: &str, there: impl Iterator<Item = String>) -> ChangeError {
    let all: Vec<String> = there.collect();
    let named = all.get(..NAMED_MAX).unwrap_or(&all).join(", ");
    let what = match all.len().saturating_sub(NAMED_MAX) {
        0 if all.is_empty() => format!("{what}, nor any other"),
        0 => format!("{what}; there are: {named}"),
        more => format!("{what}; there are: {named} and {more} more"),
    };
    ChangeError::NoSuch { what }
}

fn still_lives(line: &Line, incarnation: Incarnation) -> String {
    let node = line.node;
    format!(
        "incarnation {incarnation} of the node {node} lives, as far as the cluster knows, and may spend what it holds; end \
         the process, then start the node again (where its disk is lost, take it out with `admin remove {node}`), and try again"
    )
}

/// What a life can have used. Until it is settled nobody knows what it has spent on credit.
fn most(line: &Line, overdraft: u64) -> u64 {
    let credit = if line.stage.is_settled() { 0 } else { overdraft };
    line.held().max(line.granted.saturating_sub(line.returned).saturating_add(credit))
}

fn too_much(line: &Line, used: u64, overdraft: u64, unit: Unit) -> String {
    let Line { granted, returned, .. } = *line;
    let credit = if overdraft > 0 && !line.stage.is_settled() {
        format!(", and may have spent {} on credit", unit.show(overdraft))
    } else {
        String::new()
    };
    format!(
        "is {}, and it cannot have used more than {}: it was granted {} and has returned {}{credit}",
        unit.show(used),
        unit.show(most(line, overdraft)),
        unit.show(granted),
        unit.show(returned),
    )
}

fn wrong(message: String) -> ChangeError {
    ChangeError::Invalid(vec![Wrong { path: "used".to_owned(), message }])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cluster::directory::kind::Kind;
    use cluster::id::NodeId;
    use cluster::ledger::accounts::{BudgetId, Roll};
    use cluster::ledger::book::Statement;
    use cluster::ledger::lease::Mark;
    use cluster::register::{Author, Command, Expected, MemberInfo, Reply};

    use super::*;
    use crate::admin::budgets::Used;

    const NODE: NodeId = NodeId::new(0xa1);
    const PLACE: Place = Place::new(BudgetId(0), 0);

    struct World {
        register: Register,
        index: u64,
    }

    impl World {
        /// One node that was granted 60 of 100 requests and reported 5.
        fn new() -> (Self, Incarnation) {
            Self::with(r#"{"limit":"100 requests","window":"total"}"#)
        }

        fn with(spec: &str) -> (Self, Incarnation) {
            let mut world = Self { register: Register::default(), index: 0 };
            let spec = spec.to_owned();
            let put =
                Act::Put { kind: Kind::Budgets, name: "b".to_owned(), spec, expected: Expected::Any, shape: None };
            assert!(matches!(world.apply(put), Reply::Put { .. }));
            let member = MemberInfo { name: "edge-0".to_owned(), ..MemberInfo::default() };
            world.apply(Act::Admit { node: NODE, member: member.clone() });
            let life = world.starts(1, &member);
            let roll = Roll { budget: PLACE.budget, after: None, starts: Duration::ZERO, ends: None };
            world.apply(Act::Roll { rolls: vec![roll] });
            let said = Statement { used: 5, wants: 60, ..Statement::default() };
            world.apply(Act::Quota { node: NODE, incarnation: life, said: vec![(PLACE, said)] });
            (world, life)
        }

        fn apply(&mut self, act: Act) -> Reply {
            self.index += 1;
            self.register.apply(self.index, &Command::new(Author::default(), Duration::ZERO, act)).reply
        }

        fn starts(&mut self, nonce: u8, member: &MemberInfo) -> Incarnation {
            let reply = self.apply(Act::Started { node: NODE, nonce: [nonce; 16], member: member.clone() });
            let Reply::Incarnation(incarnation) = reply else { panic!("{reply:?}") };
            incarnation
        }

        fn plan(&self, node: &str, incarnation: Incarnation, used: u64) -> Result<Plan, ChangeError> {
            let said = Reconciliation {
                node: node.to_owned(),
                incarnation: incarnation.get(),
                used: Used::Number(used),
                window: None,
                end_user: None,
            };
            Plan::new(&self.register, &Reconcile { budget: "b".to_owned(), said })
        }
    }

    /// It drains: what it has set aside may still be spent.
    #[test]
    fn a_process_that_has_settled_for_the_last_time_may_still_live() {
        let (mut world, life) = World::new();
        let settle =
            Act::Settle { node: NODE, incarnation: life, marks: vec![(PLACE, Mark::to(40))], whole: true, last: true };
        assert!(matches!(world.apply(settle), Reply::Done), "it settles");

        assert!(matches!(world.plan("edge-0", life, 9), Err(ChangeError::Refused { code: "not_over", .. })));
        let act = Act::Unspent { place: PLACE, incarnation: life, used: 9 };
        assert!(matches!(world.apply(act), Reply::Refused(_)));

        world.starts(2, &MemberInfo { name: "edge-0".to_owned(), ..MemberInfo::default() });
        world.plan("edge-0", life, 9).unwrap();
    }

    #[test]
    fn what_a_life_that_is_over_did_not_use_is_given_back() {
        let (mut world, life) = World::new();
        assert!(matches!(world.plan("edge-0", life, 9), Err(ChangeError::Refused { code: "not_over", .. })));
        world.apply(Act::Remove { node: NODE });

        let plan = world.plan(&NODE.to_string(), life, 9).unwrap();
        assert_eq!(world.apply(plan.act()), Reply::Done);
        let reconciled = plan.outcome(&world.register).unwrap();

        assert_eq!((reconciled.given_back, reconciled.note), (51, None));
        let audit = world.register.audit(0).last().unwrap();
        let told = format!(
            "done: budget `b`, window 0, node {NODE}, incarnation {life}: 9 requests said to be used; used 9 requests, before 5 \
             requests; burned 0 requests, before 55 requests; returned 51 requests, before 0 requests"
        );
        assert_eq!((audit.name.as_str(), audit.outcome.as_str()), ("b", told.as_str()));
        let standing = reconciled.standing;
        assert_eq!((standing.settled, standing.burned, standing.remaining_low), (9, 0, 91));
        let less = world.plan(&NODE.to_string(), life, 2).unwrap();
        assert_eq!((less.used, less.held), (9, 9));
        assert!(less.note.is_some_and(|note| note.contains("2 requests") && note.contains("9 requests")));
    }

    #[test]
    fn a_life_whose_disk_nobody_has_seen_may_have_spent_its_overdraft() {
        let (mut world, life) =
            World::with(r#"{"limit":"100 requests","window":"total","on_no_quorum":"open","overdraft":"15 requests"}"#);
        world.apply(Act::Remove { node: NODE });
        let node = NODE.to_string();

        let Err(ChangeError::Invalid(problems)) = world.plan(&node, life, 76) else { panic!("it is too much") };
        let told = &problems[0].message;
        assert!(told.contains("more than 75 requests") && told.ends_with("spent 15 requests on credit"), "{told}");
        let plan = world.plan(&node, life, 75).unwrap();
        assert_eq!(world.apply(plan.act()), Reply::Done);
        assert_eq!(plan.outcome(&world.register).unwrap().standing.settled, 75);
        assert!(world.plan(&node, life, 76).is_err(), "it is settled");
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_there_is() {
        let (mut world, life) = World::new();
        let member = MemberInfo { name: "edge-0".to_owned(), ..MemberInfo::default() };
        let next = world.starts(2, &member);
        let words = |refused: Result<Plan, ChangeError>| match refused {
            Err(ChangeError::NoSuch { what }) => what,
            Err(ChangeError::Invalid(problems)) => problems[0].message.clone(),
            other => panic!("{other:?}"),
        };

        assert!(words(world.plan("edge-0", life, 61)).contains("more than 60 requests"));
        assert!(words(world.plan("edge-0", next, 1)).ends_with(&format!("there are: {NODE} {life}")));
        assert!(words(world.plan("edge-7", life, 1)).contains("node `edge-7`"));
        let said = Reconciliation {
            node: "edge-0".to_owned(),
            incarnation: life.get(),
            used: Used::Number(1),
            window: Some(3),
            end_user: None,
        };
        let elsewhere = Reconcile { budget: "b".to_owned(), said };
        assert!(words(Plan::new(&world.register, &elsewhere)).ends_with("there are: 0"));
        let other = Reconcile { budget: "c".to_owned(), ..elsewhere };
        assert_eq!(words(Plan::new(&world.register, &other)), "budget `c`; there are: b");
        assert!(world.plan("edge-0", life, 60).is_ok(), "by its name, and all of it");
    }
}

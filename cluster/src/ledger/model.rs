//! Nodes, their disks and a network that loses, repeats and reorders, round one account: small enough to search through
//! as a whole, and the same for random schedules.

use std::collections::BTreeSet;

use crate::id::{Incarnation, NodeId};

use super::book::{Book, Stage, Statement};
use super::invariants::{self, Broken};
use super::lease::{Lack, Lease, Mark};

/// Defects that are planted, to see that they are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    Nothing,
    /// The ledger takes rights back from who has been silent.
    TimedReclaim,
    /// The mark reaches the disk some time after the dispatch.
    MarkedLate,
    /// Rights are stated as returned and stay usable.
    ReturnedNotDebited,
    /// A node that was started again proves more unspent than its disk says: as much as it last reported.
    SettledAtReport,
    /// A life that comes after does not ask what the one before it spent on credit.
    LentAnew,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Message {
    Says { node: usize, incarnation: Incarnation, said: Words },
    Settles { incarnation: Incarnation, mark: Mark },
    Granted { node: usize, incarnation: Incarnation, granted: u64 },
}

/// A [`Statement`] with an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Words {
    used: u64,
    returned: u64,
    wants: u64,
    least: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    incarnation: Incarnation,
    lease: Lease,
    /// The mark of this life that is on the disk.
    disk: Mark,
    /// Amounts set aside for calls under way.
    calls: Vec<u64>,
    lives: u64,
}

/// One step anyone can take.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Ask {
        node: usize,
        more: u64,
    },
    GiveBack {
        node: usize,
        keep: u64,
    },
    Call {
        node: usize,
        amount: u64,
    },
    Mark {
        node: usize,
        chunk: u64,
    },
    Flush {
        node: usize,
    },
    End {
        node: usize,
        call: usize,
        used: u64,
    },
    Deliver {
        message: usize,
        again: bool,
    },
    Lose {
        message: usize,
    },
    Crash {
        node: usize,
    },
    Limit {
        to: u64,
    },
    /// No ledger answers there.
    Lend {
        node: usize,
    },
    Reclaim {
        line: usize,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    book: Book,
    most: u64,
    /// What each node may spend on credit.
    overdraft: u64,
    nodes: Vec<Node>,
    /// Lives that a disk knows and whose settlement has not been heard.
    unsettled: BTreeSet<Incarnation>,
    messages: Vec<Message>,
    /// What providers have billed, or may: every call from its dispatch on.
    spent: u64,
}

fn life(node: usize, number: u64) -> Incarnation {
    Incarnation::new(number * 100 + node as u64 + 1)
}

fn node_of(life: Incarnation) -> NodeId {
    NodeId::new((life.get() - 1) % 100)
}

impl World {
    pub fn new(nodes: usize, limit: u64, overdraft: u64) -> Self {
        let node = |number| Node {
            incarnation: life(number, 0),
            lease: Lease::default(),
            disk: Mark::default(),
            calls: Vec::new(),
            lives: 1,
        };
        Self {
            book: Book::new(limit),
            most: limit,
            overdraft,
            nodes: (0..nodes).map(node).collect(),
            unsettled: BTreeSet::new(),
            messages: Vec::new(),
            spent: 0,
        }
    }

    pub fn spent(&self) -> u64 {
        self.spent
    }

    /// Ever, to anyone.
    pub fn granted(&self) -> u64 {
        self.book.lines().map(|(_, line)| line.granted).sum()
    }

    pub fn messages(&self) -> usize {
        self.messages.len()
    }

    pub fn calls(&self, node: usize) -> &[u64] {
        &self.nodes[node].calls
    }

    pub fn lives(&self) -> u64 {
        self.nodes.iter().map(|node| node.lives).sum()
    }

    pub fn check(&self) -> Result<(), Broken> {
        self.audit()?;
        invariants::within_limit(&self.book, self.bound())?;
        for node in &self.nodes {
            invariants::within_rights(node.incarnation, &node.lease, node.disk, &self.book, self.overdraft)?;
        }
        Ok(())
    }

    fn bound(&self) -> u64 {
        self.most + self.overdraft * self.nodes.len() as u64
    }

    /// P-MONEY alone, as an auditor outside would see it.
    pub fn audit(&self) -> Result<(), Broken> {
        invariants::within_budget(self.spent, self.bound())
    }

    /// `false`: nothing came of it.
    pub fn take(&mut self, step: Step, planted: Planted) -> bool {
        match step {
            Step::Ask { node, more } => self.say(node, more),
            Step::GiveBack { node, keep } => {
                let lease = &mut self.nodes[node].lease;
                let before = lease.clone();
                let some = lease.give_back(keep) > 0;
                self.say(node, 0);
                if planted == Planted::ReturnedNotDebited {
                    self.nodes[node].lease = before;
                }
                some
            }
            Step::Call { node, amount } => self.call(node, amount, planted),
            Step::Mark { node, chunk } => {
                let node = &mut self.nodes[node];
                let mark = node.disk.and(node.lease.wanted(chunk));
                let news = mark != node.disk;
                node.disk = mark;
                node.lease.marked(mark);
                news
            }
            Step::Flush { node } => {
                let node = &mut self.nodes[node];
                let news = node.lease.mark() != node.disk;
                node.disk = node.lease.mark();
                news
            }
            Step::End { node, call, used } => {
                let node = &mut self.nodes[node];
                if call >= node.calls.len() {
                    return false;
                }
                let amount = node.calls.remove(call);
                let used = used.min(amount);
                node.lease.settle(amount, used);
                self.spent -= amount - used;
                true
            }
            Step::Deliver { message, again } => self.deliver(message, again),
            Step::Lose { message } => {
                message < self.messages.len() && {
                    self.messages.remove(message);
                    true
                }
            }
            Step::Crash { node } => {
                self.crash(node, planted);
                true
            }
            Step::Limit { to } => {
                self.book.set_limit(to);
                self.most = self.most.max(to);
                true
            }
            Step::Lend { node } => self.lend(node, planted),
            Step::Reclaim { line } => planted == Planted::TimedReclaim && self.reclaim(line),
        }
    }

    fn send(&mut self, message: Message) {
        self.messages.push(message);
        // The order means nothing: two worlds that differ in it alone are one.
        self.messages.sort_unstable();
    }

    fn say(&mut self, node: usize, more: u64) -> bool {
        let Node { lease, incarnation, .. } = &self.nodes[node];
        let Statement { used, returned, wants, least } = lease.statement(more, more.min(1));
        let message = Message::Says { node, incarnation: *incarnation, said: Words { used, returned, wants, least } };
        self.send(message);
        true
    }

    fn call(&mut self, node: usize, amount: u64, planted: Planted) -> bool {
        let node = &mut self.nodes[node];
        if let (Planted::MarkedLate, Err(Lack::Mark { wanted })) = (planted, node.lease.clone().reserve(amount)) {
            node.lease.marked(wanted);
        }
        let reserved = node.lease.reserve(amount).is_ok();
        if reserved {
            node.calls.push(amount);
            node.calls.sort_unstable();
            self.spent += amount;
        }
        reserved
    }

    fn deliver(&mut self, message: usize, again: bool) -> bool {
        let Some(what) = self.messages.get(message).copied() else { return false };
        if !again {
            self.messages.remove(message);
        }
        match what {
            Message::Says { node, incarnation, said: Words { used, returned, wants, least } } => {
                let over = self.nodes[node].incarnation != incarnation;
                let said = Statement { used, returned, wants, least };
                let standing = self.book.state(incarnation, NodeId::new(node as u64), said, over);
                self.send(Message::Granted { node, incarnation, granted: standing.granted });
            }
            Message::Settles { incarnation, mark } => {
                self.unsettled.remove(&incarnation);
                self.book.settle(incarnation, node_of(incarnation), mark);
            }
            Message::Granted { node, incarnation, granted } => {
                let node = &mut self.nodes[node];
                if node.incarnation == incarnation {
                    node.lease.lend(0);
                    node.lease.grant(granted);
                }
            }
        }
        true
    }

    /// The process ends, calls under way included, and the next begins: its first command ends the life before.
    fn crash(&mut self, number: usize, planted: Planted) {
        let node = &mut self.nodes[number];
        let (over, disk) = (node.incarnation, node.disk);
        node.incarnation = life(number, node.lives);
        node.lives += 1;
        node.lease = Lease::default();
        node.disk = Mark::default();
        node.calls.clear();
        self.book.end(over);
        self.unsettled.insert(over);
        let reported = self.book.line(over).map_or(0, |line| line.used);
        let mark = if planted == Planted::SettledAtReport { Mark { reach: reported, ..disk } } else { disk };
        self.send(Message::Settles { incarnation: over, mark });
    }

    fn lend(&mut self, number: usize, planted: Planted) -> bool {
        let node = &mut self.nodes[number];
        let me = NodeId::new(number as u64);
        let settled = !self.unsettled.iter().any(|life| node_of(*life) == me);
        let debts = self.book.debts(me, node.incarnation).filter(|_| settled);
        let debts = if planted == Planted::LentAnew { Some(0) } else { debts };
        let Some(debts) = debts.filter(|_| self.overdraft > 0) else { return false };
        node.lease.lend(self.overdraft.saturating_sub(debts));
        true
    }

    fn reclaim(&mut self, line: usize) -> bool {
        let found = self.book.lines().nth(line).map(|(incarnation, line)| (incarnation, line.clone()));
        let Some((incarnation, line)) = found.filter(|(_, line)| line.stage == Stage::Open && line.held() > line.used)
        else {
            return false;
        };
        self.book.state(
            incarnation,
            line.node,
            Statement { returned: line.granted - line.used, ..Statement::default() },
            false,
        );
        true
    }
}

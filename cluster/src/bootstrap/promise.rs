//! What is promised, to whom, and when it is refused. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::consensus::Place;
use crate::id::{ClusterId, NodeId};

/// The names of the initial members, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seeds(Vec<String>);

impl Seeds {
    pub fn of(seeds: &BTreeMap<String, String>) -> Self {
        Self(seeds.keys().cloned().collect())
    }

    /// Who may initialise: the first in order.
    pub fn founder(&self) -> Option<&str> {
        self.0.first().map(String::as_str)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What one list has and the other has not, in words; `None` when they are the same.
    fn difference(&self, theirs: &Self) -> Option<String> {
        let missing = |from: &Self, of: &Self| -> Vec<String> {
            of.0.iter().filter(|name| !from.0.contains(name)).map(|name| format!("`{name}`")).collect()
        };
        let (only_theirs, only_ours) = (missing(self, theirs), missing(theirs, self));
        let part = |names: Vec<String>, where_: &str| {
            (!names.is_empty()).then(|| format!("{} only in {where_}", names.join(", ")))
        };
        let parts: Vec<String> =
            [part(only_ours, "its own list"), part(only_theirs, "the founder's list")].into_iter().flatten().collect();
        (!parts.is_empty()).then(|| format!("the lists of seeds differ: {}", parts.join("; ")))
    }
}

/// Who founds.
pub struct Founder {
    pub node: NodeId,
    pub place: Place,
}

/// That one node, and no other, may initialise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// The founder's name.
    pub founder: String,
    pub node: NodeId,
    /// Of the cluster it makes.
    pub cluster: ClusterId,
    pub seeds: Seeds,
    /// Only in the promise that the founder gives itself: with whom it initialises.
    pub voters: BTreeMap<NodeId, Place>,
}

/// Asks for a promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asks {
    pub promise: Promise,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Durably.
    Promised,
    Refused {
        why: String,
    },
}

impl Promise {
    /// All promisers vote. Two nodes have one voter: with two, the loss of either would stop both.
    pub fn new(founder: &Founder, cluster: ClusterId, seeds: Seeds, others: &BTreeMap<NodeId, Place>) -> Self {
        let mut voters = BTreeMap::from([(founder.node, founder.place.clone())]);
        if seeds.len() > 2 {
            voters.extend(others.iter().map(|(node, place)| (*node, place.clone())));
        }
        Self { founder: founder.place.name.clone(), node: founder.node, cluster, seeds, voters }
    }

    /// Why this node cannot found with the promise it once gave, in words.
    pub fn is_not_mine(&self, me: NodeId, others: &BTreeMap<NodeId, Place>) -> Option<String> {
        if self.node != me {
            return Some(format!(
                "this node promised `{}` (node {}) to found no cluster of its own; `cluster forget-promise` takes it back",
                self.founder, self.node
            ));
        }
        let gone = self.voters.iter().find(|(node, _)| **node != me && !others.contains_key(node));
        gone.map(|(node, place)| {
            format!(
                "`{}` was node {node} when this cluster was first to be made, and is another now (its disk was lost?); \
                 `cluster forget-promise` here and on those that promised begins anew",
                place.name
            )
        })
    }

    /// Said of a cluster that is not the one promised.
    pub fn elsewhere(&self, name: &str, cluster: ClusterId) -> String {
        format!(
            "`{name}` belongs to cluster {cluster}, but this node promised `{}` (node {}) to join none but {}; \
             `cluster forget-promise` takes it back",
            self.founder, self.node, self.cluster
        )
    }
}

impl Asks {
    /// What a node with these seeds answers, that has promised `given` before and belongs to `home`.
    pub fn answer(&self, own: &Seeds, given: Option<&Promise>, home: Option<ClusterId>) -> Answer {
        let refused = |why: String| Answer::Refused { why };
        let wanted = &self.promise;
        if let Some(home) = home.filter(|home| *home != wanted.cluster) {
            return refused(format!("it belongs to cluster {home} already"));
        }
        if own.is_empty() {
            return refused("its configuration has no `cluster.seeds`".to_owned());
        }
        if let Some(difference) = own.difference(&wanted.seeds) {
            return refused(difference);
        }
        if own.founder() != Some(wanted.founder.as_str()) {
            return refused(format!("`{}` is not the first of the seeds", wanted.founder));
        }
        match given {
            Some(given) if given.node != wanted.node => refused(format!(
                "it has promised node {}, which was called `{}`, and this is node {}; if that node's disk is lost, run \
                 `cluster forget-promise` there",
                given.node, given.founder, wanted.node
            )),
            Some(given) if given.cluster != wanted.cluster => {
                refused(format!("it has promised cluster {}, and this is {}", given.cluster, wanted.cluster))
            }
            Some(_) | None => Answer::Promised,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeds(names: &[&str]) -> Seeds {
        Seeds::of(&names.iter().map(|name| ((*name).to_owned(), format!("{name}:7947"))).collect())
    }

    fn founder(id: u64) -> Founder {
        Founder { node: NodeId::new(id), place: Place { name: "a".to_owned(), ..Place::default() } }
    }

    fn cluster(id: u8) -> ClusterId {
        ClusterId::new([id; 16])
    }

    fn promise(id: u64, names: &[&str]) -> Promise {
        Promise::new(&founder(id), cluster(1), seeds(names), &BTreeMap::new())
    }

    fn answer(own: &[&str], given: Option<&Promise>, home: Option<ClusterId>, wanted: Promise) -> Option<String> {
        match (Asks { promise: wanted }).answer(&seeds(own), given, home) {
            Answer::Promised => None,
            Answer::Refused { why } => Some(why),
        }
    }

    #[test]
    fn a_promise_is_given_once_and_again_to_the_same_node() {
        let abc = ["a", "b", "c"];
        assert_eq!(answer(&abc, None, None, promise(1, &abc)), None);
        assert_eq!(answer(&abc, Some(&promise(1, &abc)), None, promise(1, &abc)), None);
        assert_eq!(answer(&abc, Some(&promise(1, &abc)), Some(cluster(1)), promise(1, &abc)), None);

        let other = answer(&abc, Some(&promise(1, &abc)), None, promise(2, &abc)).unwrap();
        assert!(other.contains("forget-promise"), "{other}");
        let another = Promise { cluster: cluster(9), ..promise(1, &abc) };
        assert!(answer(&abc, Some(&promise(1, &abc)), None, another).is_some());
    }

    #[test]
    fn other_seeds_are_refused_naming_the_difference() {
        let why = answer(&["a", "b", "c"], None, None, promise(1, &["a", "b"])).unwrap();
        assert_eq!(why, "the lists of seeds differ: `c` only in its own list");
        let why = answer(&["a", "b"], None, None, promise(1, &["a", "b", "d"])).unwrap();
        assert_eq!(why, "the lists of seeds differ: `d` only in the founder's list");
        assert!(answer(&[], None, None, promise(1, &["a", "b"])).unwrap().contains("no `cluster.seeds`"));
    }

    #[test]
    fn only_the_first_of_the_seeds_founds_and_members_of_another_cluster_refuse() {
        let late = Promise { founder: "b".to_owned(), ..promise(2, &["a", "b"]) };
        assert!(answer(&["a", "b"], None, None, late).unwrap().contains("not the first"));
        assert!(answer(&["a", "b"], None, Some(cluster(7)), promise(1, &["a", "b"])).unwrap().contains("already"));
    }

    #[test]
    fn all_promisers_vote_but_two_nodes_have_one_voter() {
        let place = |name: &str| Place { name: name.to_owned(), ..Place::default() };
        let others = |ids: &[u64]| ids.iter().map(|id| (NodeId::new(*id), place("x"))).collect::<BTreeMap<_, _>>();

        let three = Promise::new(&founder(1), cluster(1), seeds(&["a", "b", "c"]), &others(&[2, 3]));
        let two = Promise::new(&founder(1), cluster(1), seeds(&["a", "b"]), &others(&[2]));

        assert_eq!(three.voters.len(), 3);
        assert_eq!(two.voters.keys().copied().collect::<Vec<_>>(), [NodeId::new(1)]);
    }

    #[test]
    fn a_founder_whose_fellow_lost_its_disk_says_so() {
        let place = Place { name: "b".to_owned(), ..Place::default() };
        let others = BTreeMap::from([(NodeId::new(2), place.clone())]);
        let promise = Promise::new(&founder(1), cluster(1), seeds(&["a", "b", "c"]), &others);

        assert_eq!(promise.is_not_mine(NodeId::new(1), &others), None);
        let replaced = BTreeMap::from([(NodeId::new(3), place)]);
        assert!(promise.is_not_mine(NodeId::new(1), &replaced).unwrap().contains("node 0000000000000002"));
        assert!(promise.is_not_mine(NodeId::new(5), &others).unwrap().contains("forget-promise"));
    }
}

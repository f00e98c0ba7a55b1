use super::*;
use proptest::prelude::*;

const PATIENCE: Patience = Patience {
    caught_up_for: Duration::from_secs(10),
    dead_for: Duration::from_mins(10),
    silent_for: Duration::from_mins(10),
};

fn node(id: u64) -> NodeId {
    NodeId::new(id)
}

fn well() -> Known {
    Known { caught_up_for: Some(Duration::from_mins(1)), ..Known::default() }
}

fn dead(minutes: u64) -> Known {
    Known { dead_for: Some(Duration::from_mins(minutes)), ..Known::default() }
}

fn view(voters: &[u64], members: impl IntoIterator<Item = (u64, Known)>) -> View {
    View {
        me: node(1),
        voters: voters.iter().copied().map(node).collect(),
        members: members.into_iter().map(|(id, known)| (node(id), known)).collect(),
    }
}

fn votes(ids: &[u64]) -> Step {
    Step::Vote(ids.iter().copied().map(node).collect())
}

#[test]
fn two_nodes_have_one_voter() {
    assert_eq!(plan(&view(&[1], [(1, well()), (2, well())]), &PATIENCE), None);
}

#[test]
fn a_third_node_makes_three_voters_at_once() {
    let all = [(1, well()), (2, well()), (3, well())];
    assert_eq!(plan(&view(&[1], all.clone()), &PATIENCE), Some(votes(&[1, 2, 3])));
    assert_eq!(plan(&view(&[1, 2, 3], all), &PATIENCE), None);
}

#[test]
fn who_has_not_kept_up_does_not_vote() {
    let late = Known { caught_up_for: Some(Duration::from_secs(9)), ..Known::default() };
    assert_eq!(plan(&view(&[1], [(1, well()), (2, well()), (3, late)]), &PATIENCE), None);
    assert_eq!(plan(&view(&[1], [(1, well()), (2, well()), (3, Known::default())]), &PATIENCE), None);
}

#[test]
fn four_seeds_end_with_three_voters_and_six_nodes_with_five() {
    let members = |count| (1..=count).map(|id| (id, well()));
    assert_eq!(plan(&view(&[1, 2, 3, 4], members(4)), &PATIENCE), Some(votes(&[1, 2, 3])));
    assert_eq!(plan(&view(&[1, 2, 3], members(6)), &PATIENCE), Some(votes(&[1, 2, 3, 4, 5])));
    assert_eq!(plan(&view(&[1, 2, 3, 4, 5], members(6)), &PATIENCE), None);
}

#[test]
fn a_dead_voter_is_replaced_in_time_and_only_by_someone() {
    let members = |dead_for| vec![(1, well()), (2, well()), (3, dead(dead_for)), (4, well())];
    assert_eq!(plan(&view(&[1, 2, 3], members(9)), &PATIENCE), None);
    assert_eq!(plan(&view(&[1, 2, 3], members(10)), &PATIENCE), Some(votes(&[1, 2, 4])));
    assert_eq!(plan(&view(&[1, 2, 3], [(1, well()), (2, well()), (3, dead(60))]), &PATIENCE), None);
}

#[test]
fn zones_are_spread() {
    let zoned = |zone: &str| Known { zone: Some(zone.to_owned()), ..well() };
    let members = [(1, zoned("a")), (2, zoned("a")), (3, zoned("b")), (4, zoned("c")), (5, dead(1))];
    let Some(Step::Vote(voters)) = plan(&view(&[1], members), &PATIENCE) else { panic!("nobody was promoted") };
    assert_eq!(voters, [1, 3, 4].map(node).into());
}

#[test]
fn silent_learners_are_removed_in_time() {
    let members = |minutes| vec![(1, well()), (2, dead(minutes))];
    assert_eq!(plan(&view(&[1], members(9)), &PATIENCE), None);
    assert_eq!(plan(&view(&[1], members(10)), &PATIENCE), Some(Step::Remove(node(2))));
}

#[test]
fn nobody_goes_if_the_rest_is_no_majority() {
    let members = [(1, well()), (2, well()), (3, dead(1))];
    assert_eq!(
        without(&view(&[1, 2, 3], members), node(2), &PATIENCE),
        Err(CannotGo::Majority { node: node(2), alive: 1, voters: 2 })
    );
    assert_eq!(
        without(&view(&[1], [(1, well()), (2, Known::default())]), node(1), &PATIENCE),
        Err(CannotGo::LastVoter { node: node(1) })
    );
    assert_eq!(without(&view(&[1], [(1, well())]), node(9), &PATIENCE), Err(CannotGo::Unknown { node: node(9) }));
}

#[test]
fn who_goes_is_replaced_where_someone_can() {
    let members = [(1, well()), (2, well()), (3, well()), (4, well())];
    assert_eq!(without(&view(&[1, 2, 3], members), node(2), &PATIENCE), Ok([1, 3, 4].map(node).into()));
}

fn known() -> impl Strategy<Value = Known> {
    let minutes = proptest::option::of((0..20_u64).prop_map(Duration::from_mins));
    let seconds = proptest::option::of((0..20_u64).prop_map(Duration::from_secs));
    (proptest::option::of("[ab]"), seconds, minutes, any::<bool>())
        .prop_map(|(zone, caught_up_for, dead_for, draining)| Known { zone, caught_up_for, dead_for, draining })
}

proptest! {
    /// Whatever is known: whoever votes afterwards is a member, those alive are a majority, and no vote is lost at once.
    #[test]
    fn a_change_never_costs_the_majority(
        members in proptest::collection::btree_map(1..9_u64, known(), 1..9),
        voting in proptest::collection::vec(any::<bool>(), 9),
    ) {
        let voters: Vec<u64> = members.keys().copied().filter(|id| voting[usize::try_from(*id).unwrap()]).collect();
        prop_assume!(!voters.is_empty());
        let before = view(&voters, members);

        match plan(&before, &PATIENCE) {
            Some(Step::Vote(after)) => {
                prop_assert!(!after.is_empty() && after.len() <= VOTERS_MAX.max(before.voters.len()));
                prop_assert!(after.iter().all(|voter| before.members.contains_key(voter)));
                let gained = after.difference(&before.voters).count();
                let lost = before.voters.difference(&after).count();
                prop_assert!(gained + lost > 0 && lost <= 1);
                if lost > 0 {
                    prop_assert!(has_majority(alive(&before, &after), after.len()));
                }
            }
            Some(Step::Remove(gone)) => prop_assert!(!before.voters.contains(&gone)),
            None => {}
        }
    }
}

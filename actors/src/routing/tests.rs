use super::*;
use cluster::directory::route::Strategy;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use std::time::Duration;

fn route(strategy: Strategy, providers: &[&str]) -> Route {
    let mut route = Route::implicit("r".into(), "unused".into(), "m");
    route.strategy = strategy;
    route.targets = providers.iter().map(|provider| target(provider, 1)).collect();
    route
}

fn target(provider: &str, weight: u32) -> Target {
    Target { provider: provider.into(), model: "m".into(), weight }
}

fn down(route: &Route, providers: &[&str]) -> Health {
    Health::of(route, |provider| !providers.contains(&provider))
}

fn names(plan: &Plan<'_>) -> String {
    let mark =
        |candidate: &Candidate<'_>| format!("{}{}", candidate.target.provider, if candidate.usable { "" } else { "!" });
    plan.candidates.iter().map(mark).collect::<Vec<_>>().join(" ")
}

#[test]
fn failover_keeps_the_order_and_moves_the_unusable_behind() {
    let route = route(Strategy::Failover, &["a", "b", "c"]);

    assert_eq!(names(&choose(&route, 5, 5, &Health::default())), "a b c");
    assert_eq!(names(&choose(&route, 5, 5, &down(&route, &["a"]))), "b c a!");
    assert_eq!(names(&choose(&route, 5, 5, &down(&route, &["a", "b", "c"]))), "a! b! c!");
}

/// A provider that is down must not double the traffic of the one behind it.
#[test]
fn round_robin_shares_evenly_also_when_one_is_down() {
    let route = route(Strategy::RoundRobin, &["a", "b", "c"]);
    let plans: Vec<_> = (0..4).map(|turn| names(&choose(&route, turn, 0, &down(&route, &["b"])))).collect();

    assert_eq!(plans, ["a c b!", "c a b!", "a c b!", "c a b!"]);
}

#[test]
fn each_route_takes_its_own_turns() {
    let now = cluster::clock::now();
    let routing = Routing::new(1, now);
    let mut first = route(Strategy::RoundRobin, &["a", "b"]);
    let mut second = first.clone();
    (first.name, second.name) = ("first".into(), "second".into());

    for expected in ["a b", "b a", "a b"] {
        assert_eq!(names(&routing.plan(&first, &Health::default(), now)), expected);
        assert_eq!(names(&routing.plan(&second, &Health::default(), now)), expected);
    }
}

#[test]
fn chance_meets_every_target() {
    let now = cluster::clock::now();
    let routing = Routing::new(1, now);
    let route = route(Strategy::Weighted, &["a", "b", "c", "d"]);
    let first: std::collections::BTreeSet<_> =
        (0..200).map(|_| routing.plan(&route, &Health::default(), now).candidates[0].target.provider.clone()).collect();

    assert_eq!(first.len(), 4);
}

#[test]
fn what_follows_a_candidate() {
    let mut route = route(Strategy::Failover, &["a", "a", "b"]);
    route.targets[1].model = "other".into();
    let plan = choose(&route, 0, 0, &Health::default());

    let following: Vec<_> = (0..3).map(|index| plan.following(index)).collect();

    assert_eq!(following, [Following::SameProvider, Following::OtherProvider, Following::Nothing]);
}

#[test]
fn retries_end_when_they_are_too_much_of_the_traffic() {
    let now = cluster::clock::now();
    let routing = Routing::new(1, now);
    let route = route(Strategy::Failover, &["a", "b"]);
    for _ in 0..100 {
        routing.plan(&route, &Health::default(), now);
    }
    let situation = Situation {
        attempts: 1,
        attempts_max: 4,
        content_sent: false,
        credential_left: false,
        following: Following::OtherProvider,
        time_left: Duration::from_mins(1),
        random: 0,
    };

    // What is not retried anyway costs nothing of the budget.
    assert!((0..50).all(|_| routing.next(FailureClass::BadRequest, &situation, now) == Next::GiveUp));
    let retried = (0..50).filter(|_| routing.next(FailureClass::Server, &situation, now) != Next::GiveUp).count();

    assert_eq!(retried, 20);
}

proptest! {
    /// Whatever the strategy: every target that takes part is in the plan once, the usable before the others.
    #[test]
    fn a_plan_has_each_target_once_and_the_usable_first(
        weights in proptest::collection::vec(0..4u32, 1..8),
        strategy in proptest::sample::select(vec![Strategy::Failover, Strategy::RoundRobin, Strategy::Weighted]),
        down in any::<u8>(),
        turn: u64,
        random: u64,
    ) {
        let mut route = route(strategy, &[]);
        route.targets = weights.iter().enumerate().map(|(index, weight)| target(&index.to_string(), *weight)).collect();
        let is_up = |provider: &str| provider.parse::<u8>().is_ok_and(|index| down & (1 << index) == 0);

        let plan = choose(&route, turn, random, &Health::of(&route, is_up));

        let mut seen: Vec<_> = plan.candidates.iter().map(|candidate| candidate.target.provider.to_string()).collect();
        seen.sort();
        let takes_part = |target: &&Target| strategy != Strategy::Weighted || target.weight > 0;
        let expected: Vec<_> = route.targets.iter().filter(takes_part).map(|target| target.provider.to_string()).collect();
        prop_assert_eq!(seen, expected);
        prop_assert!(plan.candidates.is_sorted_by_key(|candidate| !candidate.usable));
        prop_assert!(plan.candidates.iter().all(|candidate| candidate.usable == is_up(&candidate.target.provider)));
    }
}

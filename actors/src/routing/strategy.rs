//! The order in which a route's targets are tried. Pure.

use cluster::directory::route::{Route, Strategy, Target};

/// Puts `targets`, all of them usable, into the order of the route's strategy.
pub fn order<'a>(route: &Route, mut targets: Vec<&'a Target>, turn: u64, random: u64) -> Vec<&'a Target> {
    match route.strategy {
        Strategy::Failover => targets,
        Strategy::RoundRobin => {
            rotate(&mut targets, turn);
            targets
        }
        Strategy::Weighted => draw_all(targets, random),
    }
}

fn rotate<T>(items: &mut [T], turn: u64) {
    if !items.is_empty() {
        let by = usize::try_from(turn % items.len() as u64).unwrap_or(0);
        items.rotate_left(by);
    }
}

/// Draws one after the other, each in proportion to its weight among those left. Weight 0 is never drawn.
fn draw_all(mut targets: Vec<&Target>, random: u64) -> Vec<&Target> {
    targets.retain(|target| target.weight > 0);
    let mut drawn = Vec::with_capacity(targets.len());
    let mut random = random;
    while !targets.is_empty() {
        let total = targets.iter().map(|target| u64::from(target.weight)).sum();
        let mut point = below(total, random);
        let index = targets.iter().position(|target| {
            let weight = u64::from(target.weight);
            let hit = point < weight;
            point = point.saturating_sub(weight);
            hit
        });
        drawn.push(targets.remove(index.unwrap_or(0)));
        random = mix(random);
    }
    drawn
}

/// An even number below `total` from an even 64-bit one: the high half of their product, which favours none by more
/// than `total` / 2⁶⁴.
fn below(total: u64, random: u64) -> u64 {
    u64::try_from((u128::from(total) * u128::from(random)) >> 64).unwrap_or(0)
}

/// `SplitMix64` (Steele, Lea, Flood 2014): the next even number after this one.
pub fn mix(state: u64) -> u64 {
    let mut mixed = state.wrapping_add(GOLDEN);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// 2⁶⁴ / φ, odd.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    fn target(provider: &str, weight: u32) -> Target {
        Target { provider: provider.into(), model: "m".into(), weight }
    }

    /// Every share is exact up to one in the number of evenly spaced draws.
    #[test]
    fn draws_follow_the_weights_without_bias() {
        const DRAWS: u64 = 6_000;
        let targets = [target("a", 1), target("b", 2), target("c", 3), target("never", 0)];
        let mut first = std::collections::BTreeMap::<&str, u64>::new();

        for draw in 0..DRAWS {
            let random = (u64::MAX / DRAWS) * draw;
            let order = draw_all(targets.iter().collect(), random);
            assert_eq!(order.len(), 3, "weight 0 takes nothing");
            *first.entry(&*order[0].provider).or_default() += 1;
        }

        for (name, weight) in [("a", 1), ("b", 2), ("c", 3)] {
            assert!(first[name].abs_diff(DRAWS * weight / 6) <= 1, "{first:?}");
        }
    }

    /// What comes second is drawn too, not merely the next in the list.
    #[test]
    fn the_rest_follow_their_weights_too() {
        let targets = [target("a", 1), target("b", 1), target("c", 3)];
        let mut second_after_a = std::collections::BTreeMap::<&str, u32>::new();
        let mut random = 1;

        for _ in 0..20_000 {
            random = mix(random);
            let order = draw_all(targets.iter().collect(), random);
            if &*order[0].provider == "a" {
                *second_after_a.entry(&*order[1].provider).or_default() += 1;
            }
        }

        let (b, c) = (f64::from(second_after_a["b"]), f64::from(second_after_a["c"]));
        assert!((0.70..0.80).contains(&(c / (b + c))), "{second_after_a:?}");
    }

    #[test]
    fn rotation_starts_with_each_in_turn() {
        let starts: Vec<_> = (0..5)
            .map(|turn| {
                let mut items = ['a', 'b', 'c'];
                rotate(&mut items, turn);
                items.iter().collect::<String>()
            })
            .collect();

        assert_eq!(starts, ["abc", "bca", "cab", "abc", "bca"]);
    }
}

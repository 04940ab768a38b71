//! The rows of patterns that choose blocks by content ([`Leaf::Routed`](crate::Leaf::Routed)).
//!
//! In:  the fixed bands of a row, and a score for each earlier block. Out: the bands of the row with
//! its chosen blocks.

use super::band::{Band, merge};

/// The blocks that row `b` may choose: those before it that not every query of `q0..=q1`, the queries
/// of the launch in the row, sees whole through `fixed`. Increasing.
pub fn candidates(fixed: &[Band], (q0, q1): (u32, u32), block: u32, b: u32) -> Vec<u32> {
    let (q0, q1, block) = (q0.cast_signed(), q1.cast_signed(), block.cast_signed());
    let all = fixed.iter().map(|band| band.seen_by_all(q0, q1));
    let whole = merge(all.filter(|range| range.0 < range.1).collect());
    let is_whole = |c: &u32| {
        let (start, stop) = (c.cast_signed() * block, (c.cast_signed() + 1) * block);
        let mut ranges = whole.iter();
        ranges.any(|range| range.0 <= start && stop <= range.1)
    };
    (0..b).filter(|c| !is_whole(c)).collect()
}

/// The `count` candidates of the largest scores, increasing; of equal scores the smaller block.
/// `scores` has one for each earlier block.
pub fn choose(candidates: &[u32], scores: &[f32], count: u32) -> Vec<u32> {
    let mut best = candidates.to_vec();
    let count = count as usize;
    let order = |a: &u32, b: &u32| {
        let score = |c: &u32| scores[*c as usize];
        score(b).total_cmp(&score(a)).then(a.cmp(b))
    };
    if count < best.len() {
        best.select_nth_unstable_by(count, order);
        best.truncate(count);
        best.sort_unstable();
    }
    best
}

/// The bands of a row with its chosen blocks.
pub fn with_blocks(fixed: &[Band], chosen: &[u32], block: u32) -> Vec<Band> {
    let start = |c: u32| (c * block).cast_signed();
    let blocks = chosen.iter().map(|c| Band::keys(start(*c), start(*c + 1)));
    fixed.iter().copied().chain(blocks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_not_seen_whole() {
        // A window of 9 tokens over blocks of 4: the queries 16..=19 all see 11 and later keys.
        let window = Band::relative(-8, 1, 20);
        let sink = Band::keys(0, 4);
        assert_eq!(candidates(&[window, sink], (16, 19), 4, 4), [1, 2]);
        // The query 17 alone sees 9 and later keys; 15 sees block 2 as well.
        assert_eq!(candidates(&[window, sink], (17, 17), 4, 4), [1, 2]);
        assert_eq!(candidates(&[window, sink], (16, 16), 4, 4), [1]);
        // Two bands can cover a block together.
        let halves = [Band::keys(4, 6), Band::keys(6, 8)];
        assert_eq!(candidates(&halves, (8, 11), 4, 2), [0]);
        assert_eq!(candidates(&[], (0, 3), 4, 0), [0u32; 0]);
    }

    #[test]
    fn the_best_are_chosen() {
        let scores = [0.5, 2.0, 1.0, 2.0, 2.0];
        assert_eq!(choose(&[0, 1, 2, 3, 4], &scores, 2), [1, 3]);
        assert_eq!(choose(&[0, 2, 4], &scores, 2), [2, 4]);
        assert_eq!(choose(&[0, 2], &scores, 5), [0, 2]);
        assert_eq!(with_blocks(&[], &[2], 16), [Band::keys(32, 48)]);
    }
}

//! What a stack of layers reaches.

use butterfly_compiler::prove;
use butterfly_ir::{Context, PartnerRule};
use butterfly_tests::butterfly;

/// ceil(log_radix N), by counting.
fn depth(radix: u32, blocks: u32) -> usize {
    (0..)
        .find(|layers| u64::from(radix).pow(*layers) >= u64::from(blocks))
        .expect("finite") as usize
}

fn covers_in_exactly_the_logarithm(radix: u32) {
    let pattern = butterfly(0, PartnerRule::CausalShift, radix, 1, 0);
    for blocks in 2..=4096 {
        let context = Context::new(1, blocks, 0);
        let layers = depth(radix, blocks);
        let proof = prove::lower(&pattern, &context, &(0..layers as u32).collect::<Vec<_>>())
            .expect("a proof");
        // `full_at` is the first depth with full coverage, so this also says that fewer layers do
        // not suffice.
        assert_eq!(
            proof.full_at,
            Some(layers),
            "radix {radix}, {blocks} blocks: {:?}",
            proof.coverage
        );
        assert!(
            proof.holds() && proof.max_degree <= radix,
            "radix {radix}, {blocks} blocks"
        );
    }
}

#[test]
fn causal_shift_radix_2() {
    covers_in_exactly_the_logarithm(2);
}

#[test]
fn causal_shift_radix_3() {
    covers_in_exactly_the_logarithm(3);
}

#[test]
fn causal_shift_radix_4() {
    covers_in_exactly_the_logarithm(4);
}

#[test]
fn every_fourth_layer_needs_the_swapped_index() {
    let pattern = butterfly(1, PartnerRule::CausalShift, 2, 1, 1);
    let context = Context::new(128, 32768, 0);
    let by_swapped_index =
        prove::lower(&pattern, &context, &(0..8).collect::<Vec<_>>()).expect("a proof");
    assert_eq!(by_swapped_index.coverage.last(), Some(&1.0));
    let by_layer_index = prove::lower(
        &pattern,
        &context,
        &(0..8).map(|i| 4 * i + 3).collect::<Vec<_>>(),
    )
    .expect("a proof");
    let reached = by_layer_index.coverage.last().copied().unwrap_or_default();
    assert!((reached - 0.3549).abs() < 5e-5, "{reached}");
    assert_eq!(by_layer_index.full_at, None);
}

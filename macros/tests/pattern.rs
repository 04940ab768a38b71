//! `pattern!` builds what the operators and pattern text build.

use butterfly_ir::{Indices, PartnerRule, Pattern, Sparsity, StageBy, build::*};
use butterfly_macros::pattern;

/// Checks tokens against their own text and a value.
macro_rules! check {
    ($($built:expr => { $($tokens:tt)* })*) => {$({
        let text = stringify!($($tokens)*);
        let parsed = Sparsity::parse("tokens", text).unwrap_or_else(|error| panic!("{error}"));
        let pattern: Pattern = pattern!($($tokens)*);
        assert_eq!(pattern, $built, "{text}");
        assert_eq!(pattern, parsed.pattern, "{text}");
    })*};
}

#[test]
#[expect(clippy::precedence, reason = "the precedence is what is tested")]
fn macro_equals_operators() {
    check! {
        causal() & window(128) => { causal & window(128) }
        causal() => { causal }
        local(1) => { local(1) }
        local_around(1, 2) => { local(1, after=2) }
        sink_tokens(3) | global(1) => { sink_tokens(3) | global(1) }
        table([vec![0], vec![], vec![0, 1]]) => { table([[0], [], [0, 1]]) }
        all() - none() => { all - none }
        all() - sink(1) - sink(2) => { all - sink(1) - sink(2) }
        all() - (sink(1) - sink(2)) => { all - (sink(1) - sink(2)) }
        causal() & all() - sink(1) | none() & local(1) => { causal & all - sink(1) | none & local(1) }
        partner(PartnerRule::Xor, 2, 1) => { partner(xor) }
        partner(PartnerRule::Benes, 2, 2) => { partner(benes, count=2) }
        partner(PartnerRule::BitReversal, 2, 1) => { partner(bit_reversal) }
        partner(PartnerRule::CausalShift, 4, 1) => { partner(causal_shift, 4) }
        partner(PartnerRule::FixedStride, 2, 1) => { partner(fixed_stride) }
        partner(PartnerRule::Random, 2, 1) => { partner(random) }
        causal() & tail(64) => { causal & tail(64) }
        per_head([(Indices::of([(0, 1), (2, 4)]), causal()), (Indices::All, window(3) | sink(1))])
            => { per_head { 0, 2..4 => causal; else => window(3) | sink(1) } }
        per_layer([(Indices::of([(3, 4)]), causal()), (Indices::All, causal() & local(1))])
            => { per_layer { 3 => causal; else => causal & local(1); } }
    }
}

#[test]
fn a_header_makes_a_sparsity() {
    let sparsity: Sparsity = pattern! {
        block 64 // tokens
        stage_by layer_index
        layers 3, 7
        stage 2
        causal
    };
    let built = Sparsity {
        block: 64,
        stage_by: StageBy::LayerIndex,
        swapped_layers: Some(vec![3, 7]),
        stage: Some(2),
        pattern: causal(),
    };
    assert_eq!(sparsity, built);
    let short: Sparsity = pattern!(block 128 all);
    assert_eq!(short, Sparsity::from(all()));
}

#[test]
fn macros_may_pass_their_tokens_on() {
    macro_rules! banded {
        ($tokens:literal, $rest:expr) => {
            pattern!(window($tokens) & $rest)
        };
    }
    let built = window(8) & (causal() | all());
    assert_eq!(banded!(8, causal | all), built);
}

#[test]
fn no_name_in_scope_matters() {
    #[expect(dead_code, non_camel_case_types)]
    struct causal;
    #[expect(dead_code)]
    enum Option {}
    #[expect(dead_code)]
    struct Box;
    let pattern = pattern!(causal & sink(1));
    assert_eq!(pattern.to_string(), "causal & sink(1)");
}

use super::*;
use butterfly_ir::{Indices, Leaf, PartnerRule, band, build::*, topology::queries};
use proptest::prelude::*;

fn leaf() -> impl Strategy<Value = Pattern> {
    let rule = proptest::sample::select(PartnerRule::ALL.to_vec());
    let partner = (rule, 2u32..5, 1u32..3).prop_map(|(rule, radix, count)| {
        let radix = if rule == PartnerRule::CausalShift {
            radix
        } else {
            2
        };
        partner(rule, radix, count)
    });
    prop_oneof![
        2 => Just(causal()),
        3 => (0u32..4, 0u32..3).prop_map(|(before, after)| local_around(before, after)),
        2 => (1u32..300).prop_map(window),
        5 => partner,
        2 => (0u32..4).prop_map(sink),
        1 => (0u32..90).prop_map(sink_tokens),
        1 => (0u32..4).prop_map(global),
        1 => Just(all()),
    ]
}

/// Patterns of the usual shape, and arbitrary ones.
fn pattern() -> impl Strategy<Value = Pattern> {
    let any = leaf().prop_recursive(3, 8, 2, |inner| {
        (0..3, inner.clone(), inner).prop_map(|(sign, a, b)| match sign {
            0 => a | b,
            1 => a & b,
            _ => a - b,
        })
    });
    let usual = (leaf(), leaf(), leaf()).prop_map(|(a, b, c)| causal() & (a | b | c));
    prop_oneof![any, usual]
}

fn context() -> impl Strategy<Value = Context> {
    (
        1u32..20,
        1u32..1200,
        0u32..12,
        prop_oneof![Just(0u32), 0u32..300],
    )
        .prop_map(|(block, kv_len, index, more)| Context {
            block,
            kv_len,
            capacity: kv_len + more,
            index,
            ..Context::new(block, kv_len, index)
        })
}

/// The number of pairs reached after each layer, from a table of which blocks each block reaches.
fn walked(pattern: &Pattern, context: &Context, indices: &[u32]) -> Vec<u64> {
    let rows = context.rows() as usize;
    let mut knows: Vec<Vec<bool>> = (0..rows)
        .map(|b| (0..rows).map(|c| b == c).collect())
        .collect();
    let layer = |index: &u32| {
        let context = at(context, *index);
        let read = |b: u32| classify::columns(&rows::row(pattern, &context, b), &context, b);
        let next = (0..rows).map(|b| {
            let mut row = knows[b].clone();
            for c in read(b as u32)
                .into_iter()
                .flat_map(|(start, stop)| start..stop)
            {
                (0..rows).for_each(|x| row[x] |= knows[c as usize][x]);
            }
            row
        });
        knows = next.collect();
        let reached = |b: usize| knows[b][..=b].iter().filter(|known| **known).count();
        (0..rows).map(reached).sum::<usize>() as u64
    };
    indices.iter().map(layer).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_way_to_compose_layers_says_what_a_walk_says(
        pattern in pattern(), context in context(), layers in 1u32..7, first in 0u32..9,
    ) {
        let indices: Vec<u32> = (first..first + layers).collect();
        let count = pattern.stage_count(context.blocks());
        let stages: BTreeSet<u32> = indices.iter().map(|index| index % count).collect();
        let stages: Vec<u32> = stages.into_iter().collect();
        let kinds: Vec<Kind<'_>> = stages.iter().map(|stage| (&pattern, *stage)).collect();
        let place = |index: &u32| stages.iter().position(|stage| *stage == index % count);
        let order: Vec<usize> = indices.iter().filter_map(place).collect();
        let by_pairs = by_pairs(&context, &kinds, &order);

        let all = all_pairs(context.rows());
        let walked = walked(&pattern, &context, &indices);
        let coverage: Vec<f64> = walked.iter().map(|reached| *reached as f64 / all as f64).collect();
        prop_assert_eq!(&by_pairs.coverage, &coverage);
        prop_assert_eq!(by_pairs.full_at, walked.iter().position(|x| *x == all).map(|x| x + 1));
        let (mut empty, mut causal, mut degree) = (0, true, 0);
        for index in &indices {
            let context = at(&context, *index);
            for b in 0..context.rows() {
                let bands = rows::row(&pattern, &context, b);
                let (q0, q1) = queries(&context, b);
                for q in q0..=q1 {
                    let keys = band::keys_of_query(&bands, q as i32);
                    empty += u64::from(keys.is_empty());
                    causal &= keys.iter().all(|x| x.1 <= q as i32 + 1);
                }
                let columns = classify::columns(&bands, &context, b);
                degree = degree.max(columns.iter().map(|x| x.1 - x.0).sum());
            }
        }
        prop_assert_eq!(
            (by_pairs.empty_queries, by_pairs.causal, by_pairs.max_degree),
            (empty, causal, degree)
        );

        if let Some(by_form) = by_form(&context, &kinds, &order) {
            prop_assert_eq!(by_form, by_pairs);
        }
        // The decision diagram also takes forms without bits.
        let forms = stages.iter().map(|stage| form::lower(&pattern, &at(&context, *stage)));
        if let Some(forms) = forms.collect::<Option<Vec<_>>>() {
            let forms: Vec<Form> = forms.into_iter().map(|(form, _)| form).collect();
            prop_assert_eq!(bits::pairs(&forms, &order, context.rows()), Some(walked));
        }
    }
}

#[test]
fn the_usual_patterns_have_forms() {
    let context = Context::new(64, 1 << 17, 5);
    for rule in PartnerRule::ALL {
        let pattern = causal() & (local(1) | partner(rule, 2, 1) | sink(1));
        let form = form::lower(&pattern, &context);
        assert_eq!(form.is_some(), rule != PartnerRule::Random, "{rule:?}");
    }
    for pattern in [
        causal(),
        causal() & all(),
        window(1000),
        window(1000) | causal() & sink_tokens(70),
        causal() & (partner(PartnerRule::CausalShift, 16, 1) | local(2) | global(3)),
        causal() & (partner(PartnerRule::Benes, 2, 3) | local(0)),
    ] {
        assert!(form::lower(&pattern, &context).is_some(), "{pattern}");
    }
}

/// Proofs at 2^28 tokens are exact and take seconds and megabytes.
#[test]
fn the_longest_sequences_are_proved() {
    let layers: Vec<u32> = (0..32).collect();
    for block in [1, 128] {
        let context = Context::new(block, 1 << 28, 0);
        let width = (1u32 << 28).div_ceil(block).ilog2() as usize;
        let shift = causal() & (local(1) | partner(PartnerRule::CausalShift, 2, 1) | sink(1));
        let proof = lower(&shift, &context, &layers).expect("a form");
        assert!(
            proof.full_at.is_some_and(|depth| depth <= width),
            "{:?}",
            proof.full_at
        );
        assert_eq!((proof.max_degree, proof.max_in_degree), (4, context.rows()));
        assert!(proof.holds() && proof.coverage[width..].iter().all(|x| *x == 1.0));
        for rule in [
            PartnerRule::Xor,
            PartnerRule::Benes,
            PartnerRule::BitReversal,
        ] {
            let pattern = causal() & (local(1) | partner(rule, 2, 1) | sink(1));
            let proof = lower(&pattern, &context, &layers).expect("a form");
            assert!(proof.holds() && proof.max_degree == 4, "{proof:?}");
            assert!(proof.coverage.windows(2).all(|pair| pair[0] <= pair[1]));
        }
    }
}

#[test]
fn what_is_too_long_names_what_is_not() {
    let random = causal() & (local(1) | partner(PartnerRule::Random, 2, 1));
    let indices: Vec<u32> = (0..8).collect();
    let error = lower(&random, &Context::new(128, 1 << 28, 0), &indices).expect_err("too long");
    let ProveError::TooLong { tokens, longest } = error;
    assert_eq!(tokens, 1 << 28);
    assert!((1 << 20..1 << 26).contains(&longest), "{longest}");
    let smaller = Context::new(128, 1 << 19, 0);
    assert!(lower(&random, &smaller, &indices).is_ok());
    let kinds: Vec<Kind<'_>> = (0..8).map(|stage| (&random, stage)).collect();
    assert!(is_short(&Context::new(128, longest, 0), &kinds, 8));
    // A table has no form, but a short one can be proved pair by pair.
    let leaf: Pattern = Leaf::Table {
        rows: vec![vec![0]; 4],
    }
    .into();
    assert!(lower(&(causal() & leaf), &Context::new(128, 512, 0), &indices).is_ok());
}

/// Layers of several heads: a block reaches what any head reads, and degrees are those of one head.
#[test]
fn heads_reach_together() {
    let context = Context::new(16, 16 * 40, 0);
    let near = causal() & local(1);
    let first = causal() & (local(0) | sink(1));
    let heads = per_head([
        (Indices::of([(1, 3)]), first.clone()),
        (Indices::All, near.clone()),
    ]);
    let both = near.clone() | first.clone();
    let layers = |pattern: &Pattern| vec![(pattern.clone(), 0), (near.clone(), 1)];
    let proof = stack(&layers(&heads), &context, 4).expect("short");
    let joined = stack(&layers(&both), &context, 1).expect("short");
    assert_eq!(
        (&proof.coverage, proof.full_at),
        (&joined.coverage, joined.full_at)
    );
    assert_eq!((joined.max_degree, proof.max_degree), (3, 2));
    assert_eq!((joined.max_in_degree, proof.max_in_degree), (40, 40));
    assert!(proof.holds());
    // One head of one layer sees nothing: in each of its 640 queries.
    let empty = per_head([(Indices::of([(0, 3)]), near.clone())]);
    let proof = stack(&layers(&empty), &context, 4).expect("short");
    assert_eq!((proof.empty_queries, proof.causal), (640, true));
}

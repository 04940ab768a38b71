//! Every lowering agrees with the definition, `sees`, on every pair of a query and a key.

use butterfly_compiler::{classify, resolve, work};
use butterfly_ir::build::{per_head, per_layer};
use butterfly_ir::rows::{self, Stream, chosen};
use butterfly_ir::{Class, Context, Indices, Leaf, PartnerRule, Pattern, band, sees};
use proptest::prelude::*;

fn leaf() -> impl Strategy<Value = Leaf> {
    let rule = proptest::sample::select(PartnerRule::ALL.to_vec());
    let partner = (rule, 2u32..5, 1u32..4).prop_map(|(rule, radix, count)| Leaf::Partner {
        rule,
        radix: if rule == PartnerRule::CausalShift {
            radix
        } else {
            2
        },
        count,
    });
    prop_oneof![
        2 => Just(Leaf::Causal),
        2 => (0u32..4, 0u32..3).prop_map(|(before, after)| Leaf::Local { before, after }),
        2 => (1u32..600).prop_map(|tokens| Leaf::Window { tokens }),
        3 => partner,
        1 => (0u32..4).prop_map(|blocks| Leaf::Sink { blocks }),
        1 => (0u32..300).prop_map(|tokens| Leaf::SinkTokens { tokens }),
        1 => (0u32..4).prop_map(|blocks| Leaf::Global { blocks }),
        1 => proptest::collection::vec(proptest::collection::vec(0u32..24, 0..5), 0..24)
            .prop_map(|rows| Leaf::Table { rows }),
        1 => (1u32..600).prop_map(|tokens| Leaf::Tail { tokens }),
        1 => Just(Leaf::All),
        1 => Just(Leaf::None),
    ]
}

/// Sets of heads or layers, of which contexts have [`INDICES`].
fn indices() -> impl Strategy<Value = Indices> {
    let run = (0..INDICES, 1..3u32).prop_map(|(first, count)| (first, first + count));
    prop_oneof![
        3 => proptest::collection::vec(run, 1..3).prop_map(Indices::of),
        1 => Just(Indices::All),
    ]
}

/// Kv heads, and layers, that contexts choose from.
const INDICES: u32 = 4;

fn pattern() -> impl Strategy<Value = Pattern> {
    let cases = [indices(), indices()].boxed();
    leaf()
        .prop_map(Pattern::from)
        .prop_recursive(4, 12, 2, move |inner| {
            prop_oneof![
                (inner.clone(), inner.clone()).prop_map(|(a, b)| a | b),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| a & b),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| a - b),
                (cases.clone(), inner.clone(), inner.clone())
                    .prop_map(|([x, y], a, b)| { per_head([(x, a), (y, b)]) }),
                (cases.clone(), inner.clone(), inner)
                    .prop_map(|([x, y], a, b)| { per_layer([(x, a), (y, b)]) }),
            ]
        })
}

fn context() -> impl Strategy<Value = Context> {
    let small = (1u32..40, 1u32..200);
    let large = (1u32..=256, 1u32..=2000);
    (
        prop_oneof![2 => small, 1 => large],
        0u32..20,
        prop_oneof![2 => Just(0u32), 1 => 0u32..500],
        prop_oneof![2 => Just(None), 1 => (0u32..2500).prop_map(Some)],
        (0..INDICES, 0..INDICES),
    )
        .prop_map(
            |((block, kv_len), index, more, prompt, (kv_head, layer))| Context {
                block,
                kv_len,
                capacity: kv_len + more,
                index,
                prompt: prompt.unwrap_or(kv_len),
                kv_head,
                layer,
            },
        )
}

/// The definition, by brute force.
fn mask(pattern: &Pattern, context: &Context) -> Vec<Vec<bool>> {
    let t = context.kv_len;
    (0..t)
        .map(|q| (0..t).map(|k| sees(pattern, context, q, k)).collect())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn lowerings_equal_the_definition(pattern in pattern(), context in context()) {
        let mask = mask(&pattern, &context);
        let topology = classify::lower(&pattern, &context);
        let closed = resolve::closed_form(&pattern.of_layer(context.layer));
        let of_head = pattern.of_layer(context.layer).of_head(context.kv_head);
        prop_assert_eq!(classify::lower(&of_head, &context), classify::lower(&pattern, &context));
        let t = context.kv_len as i32;
        for (b, row) in topology.rows.iter().enumerate() {
            let (q0, q1) = topology.queries(b as u32);
            let forms = [Some(row.bands.clone()), closed.as_ref().map(|p| p.bands(b as u32, context.kv_head, &context))];
            for bands in forms.into_iter().flatten() {
                for q in q0..=q1 {
                    let keys = band::keys_of_query(&bands, q as i32);
                    prop_assert!(keys.iter().all(|r| r.0 >= 0 && r.1 <= t));
                    let got = |k: i32| keys.iter().any(|r| r.0 <= k && k < r.1);
                    for k in 0..t {
                        prop_assert_eq!(got(k), mask[q as usize][k as usize], "q {} k {} {:?}", q, k, bands);
                    }
                }
            }
            let mut expected = Vec::new();
            for c in 0..context.rows() {
                let (k0, k1) = topology.queries(c);
                let pairs = (q0..=q1).flat_map(|q| (k0..=k1).map(move |k| (q, k)));
                let seen = pairs.filter(|(q, k)| mask[*q as usize][*k as usize]).count() as u32;
                if seen == (q1 - q0 + 1) * (k1 - k0 + 1) {
                    expected.push((c, Class::Full));
                } else if seen > 0 {
                    expected.push((c, Class::Partial));
                }
            }
            let got: Vec<_> = row.blocks.iter().map(|x| (x.block, x.class)).collect();
            prop_assert_eq!(got, expected, "row {}", b);
        }
        let pairs = mask.iter().flatten().filter(|seen| **seen).count() as u64;
        let work = work::count(&pattern, &context).expect("few rows");
        prop_assert_eq!(work.pairs, pairs);
        let full = topology.rows.iter().flat_map(|row| &row.blocks).filter(|x| x.class == Class::Full).count();
        prop_assert_eq!(work.full_blocks, full as u64);
        prop_assert_eq!(work.blocks, topology.rows.iter().map(|r| r.blocks.len() as u64).sum::<u64>());
        for (c, column) in topology.transposed().iter().enumerate() {
            let expected: Vec<_> = topology.rows.iter().enumerate()
                .filter_map(|(b, row)| row.blocks.iter().find(|x| x.block == c as u32).map(|x| (b as u32, x.class)))
                .collect();
            prop_assert_eq!(column.iter().map(|x| (x.block, x.class)).collect::<Vec<_>>(), expected);
        }
        let empty = mask.iter().position(|row| !row.contains(&true));
        let leak = (0..mask.len()).find(|q| mask[*q][q + 1..].contains(&true));
        match classify::check(&pattern, &context) {
            Ok(()) => prop_assert!(empty.is_none() && leak.is_none()),
            Err(classify::ClassifyError::EmptyQuery { query, .. }) => prop_assert!(!mask[query as usize].contains(&true)),
            Err(classify::ClassifyError::CausalLeak { query, key }) => {
                prop_assert!(key > query && mask[query as usize][key as usize])
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Columns hold the pairs of the rows, from the other side.
    #[test]
    fn columns_equal_the_definition(pattern in pattern(), context in context()) {
        let Some(program) = resolve::closed_form(&pattern.of_layer(context.layer)) else {
            return Ok(());
        };
        let Some(columns) = rows::transpose(&program, context.block) else {
            return Ok(());
        };
        for c in 0..context.rows() {
            let bands = columns.columns(c, context.kv_head, &context);
            let last = ((c + 1) * context.block).min(context.kv_len);
            for k in c * context.block..last {
                for q in 0..context.kv_len {
                    let seen = bands.iter().any(|band| band.contains(q as i32, k as i32));
                    prop_assert_eq!(seen, sees(&pattern, &context, q, k), "q {} k {} {:?}", q, k, bands);
                }
            }
        }
    }

    /// A key of several tokens is seen through a band exactly when all of its tokens are.
    #[test]
    fn streams_hold_whole_keys(pattern in pattern(), context in context(), stride in 1u32..70) {
        let Some(program) = resolve::closed_form(&pattern.of_layer(context.layer)) else {
            return Ok(());
        };
        let stream = Stream { stride };
        let strided = program.lower_stream(context.block, stream);
        let tokens = program.lower(context.block);
        for b in 0..context.rows() {
            let inputs = rows::Inputs {
                block: b,
                kv_head: context.kv_head,
                kv_len: context.kv_len,
                blocks: context.blocks(),
                index: context.index,
                prompt: context.prompt,
            };
            let (keys, tokens) = (strided.bands(&inputs), tokens.bands(&inputs));
            for q in b * context.block..((b + 1) * context.block).min(context.kv_len) {
                let q = q as i32;
                let mut got = vec![false; context.kv_len as usize];
                for band in &keys {
                    let (start, end) = stream.of_query(band, q);
                    (start..end).for_each(|key| got[key as usize] = true);
                }
                let whole = |key: i32| tokens.iter().any(|band| {
                    let (start, end) = band.of_query(q);
                    start <= key * stride as i32 && (key + 1) * stride as i32 <= end
                });
                for key in 0..context.kv_len as i32 {
                    prop_assert_eq!(got[key as usize], whole(key), "q {} key {}", q, key);
                }
            }
        }
    }

    /// Bands of some kv heads are those of the pattern there, and nothing elsewhere.
    #[test]
    fn heads_see_their_own_bands(pattern in pattern(), context in context(), first in 0u32..5, count in 0u32..5) {
        let Some(all) = resolve::closed_form(&pattern.of_layer(context.layer)) else {
            return Ok(());
        };
        let mut some = all.clone();
        for band in &mut some.bands {
            band.heads = band.heads.and(&Indices::of([(first, first + count), (7, 8)]));
        }
        let columns = [&all, &some].map(|program| rows::transpose(program, context.block));
        for kv_head in 0..9 {
            let inside = (first..first + count).contains(&kv_head) || kv_head == 7;
            for b in 0..context.rows() {
                let want = if inside { all.bands(b, kv_head, &context) } else { vec![] };
                prop_assert_eq!(some.bands(b, kv_head, &context), want);
                if let [Some(all), Some(some)] = &columns {
                    let want = if inside { all.columns(b, kv_head, &context) } else { vec![] };
                    prop_assert_eq!(some.columns(b, kv_head, &context), want);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A row that has chosen blocks sees them beside all that it sees without them; blocks that are seen
    /// whole are not chosen.
    #[test]
    fn chosen_blocks_are_seen(
        pattern in pattern(),
        context in context(),
        wanted in 1u32..5,
        seed in any::<u32>(),
    ) {
        let routed = Leaf::Routed { blocks: wanted, pool: 1, every: 1 };
        let pattern = Pattern::from(Leaf::Causal) & (pattern | routed.into());
        let block = context.block;
        let fixed = |b: u32| rows::row(&pattern, &context, b);
        let whole = |b: u32, c: u32| {
            let (q0, q1) = butterfly_ir::topology::queries(&context, b);
            let mut keys = (q0..=q1).flat_map(|q| (c * block..(c + 1) * block).map(move |k| (q, k)));
            keys.all(|(q, k)| sees(&pattern, &context, q, k))
        };
        let choice: Vec<Vec<u32>> = (0..context.rows())
            .map(|b| {
                let queries = butterfly_ir::topology::queries(&context, b);
                let candidates = chosen::candidates(&fixed(b), queries, block, b);
                for c in (0..b).filter(|c| !candidates.contains(c)) {
                    assert!(whole(b, c), "row {b}, block {c}");
                }
                let score = |c: u32| (c ^ seed).wrapping_mul(2_654_435_761) as f32;
                let scores: Vec<f32> = (0..b).map(score).collect();
                chosen::choose(&candidates, &scores, wanted)
            })
            .collect();
        let chosen_pattern = pattern.routed_to(&choice);
        let mask = mask(&chosen_pattern, &context);
        for (b, choice) in (0u32..).zip(&choice) {
            prop_assert!(choice.len() <= wanted as usize && choice.is_sorted());
            let bands = chosen::with_blocks(&fixed(b), choice, block);
            let (q0, q1) = butterfly_ir::topology::queries(&context, b);
            for q in q0..=q1 {
                let keys = band::keys_of_query(&bands, q as i32);
                for (k, seen) in (0i32..).zip(&mask[q as usize]) {
                    let got = keys.iter().any(|r| r.0 <= k && k < r.1);
                    prop_assert_eq!(got, *seen, "q {} k {}", q, k);
                }
            }
        }
    }

    /// A table has the rows of each head, or those that all heads share.
    #[test]
    fn tables_have_the_rows_of_each_head(pattern in pattern(), context in context()) {
        let table = rows::table(&pattern, &context, INDICES);
        prop_assert_eq!(table.rows(), context.rows() as usize);
        prop_assert!(pattern.is_by_head() || table.heads == 1);
        for head in 0..INDICES {
            for b in 0..context.rows() {
                let want = rows::row(&pattern, &context.of_head(head), b);
                prop_assert_eq!(table.row(head as usize, b as usize), want);
            }
        }
        let classes = pattern.head_classes(INDICES);
        let mut heads: Vec<u32> = classes.iter().flat_map(|(_, heads)| heads.clone()).collect();
        heads.sort_unstable();
        prop_assert_eq!(heads, (0..INDICES).collect::<Vec<_>>());
        for (of_head, heads) in classes {
            prop_assert!(heads.iter().all(|head| pattern.of_head(*head) == of_head));
        }
    }
}

/// The transposed form is there for all rules that have an inverse.
#[test]
fn every_rule_but_random_has_columns() {
    for rule in PartnerRule::ALL {
        let pattern = butterfly_tests::butterfly(1, rule, 2, 1, 1);
        let program = resolve::closed_form(&pattern).expect("closed form");
        let columns = rows::transpose(&program, 128);
        assert_eq!(columns.is_some(), rule != PartnerRule::Random, "{rule:?}");
    }
}

#[test]
fn closed_form_of_the_standard_pattern_is_small() {
    let pattern = butterfly_tests::butterfly(1, PartnerRule::CausalShift, 2, 1, 1);
    let program = resolve::closed_form(&pattern).expect("closed form");
    assert_eq!((program.atoms.len(), program.bands.len()), (3, 3));
}

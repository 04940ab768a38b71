//! The experts of a layer: what the conversion makes of them before it looks up their names in the table.
//!
//! In:  the tensors of a checkpoint, with experts in any layout. Out: the same, with one tensor
//! `[experts, out, in]` for each projection of a layer.

use super::{Weight, swapped};
use std::collections::BTreeMap;

/// Stacks and cuts the matrices of experts; other tensors stay as they are.
pub(super) fn stacked(architecture: &str, weights: Vec<Weight>) -> Vec<Weight> {
    let mut out = Vec::new();
    // By the name of all of them together, and the number of the expert.
    let mut alone: BTreeMap<String, BTreeMap<usize, Weight>> = BTreeMap::new();
    for weight in weights {
        let name = weight.name.clone();
        let Some((at, what)) = name.split_once(".experts.") else {
            out.push(weight);
            continue;
        };
        let at = format!("{at}.experts");
        match what.split_once('.') {
            Some((number, projection)) => {
                let number = number.parse().expect("the number of an expert");
                let of = alone.entry(format!("{at}.{projection}")).or_default();
                of.insert(number, weight);
            }
            None if architecture == "gpt-oss" => out.extend(in_turn(&at, what, weight)),
            None => out.extend(one_below_another(&at, what, weight)),
        }
    }
    out.extend(alone.into_iter().map(|(name, all)| together(name, all)));
    out
}

/// The matrices of all experts, which have a tensor each.
fn together(name: String, all: BTreeMap<usize, Weight>) -> Weight {
    let first = all.values().next().expect("an expert");
    let shape = [&[all.len()], first.shape.as_slice()].concat();
    let values = all.values().flat_map(|one| &one.values).copied().collect();
    Weight {
        name,
        shape,
        values,
    }
}

/// Qwen's: for each expert the rows of gate above those of up. In every second layer they stay together, as
/// with the conversion's option `--fuse-gate-up-exps`.
fn one_below_another(at: &str, what: &str, weight: Weight) -> Vec<Weight> {
    let layer: Option<usize> = at.split('.').find_map(|part| part.parse().ok());
    if what != "gate_up_proj" || layer.is_some_and(|layer| !layer.is_multiple_of(2)) {
        let name = format!("{at}.{what}.weight");
        return vec![Weight { name, ..weight }];
    }
    let half = weight.shape[1] / 2;
    let gate = rows(&weight, format!("{at}.gate_proj.weight"), |row| row < half);
    let up = rows(&weight, format!("{at}.up_proj.weight"), |row| row >= half);
    vec![gate, up]
}

/// Those of gpt-oss: matrices `[in, out]`, of which every second column is one of gate.
fn in_turn(at: &str, what: &str, weight: Weight) -> Vec<Weight> {
    let (projection, end, weight) = match what.strip_suffix("_bias") {
        Some(projection) => (projection, "bias", weight),
        None => (what, "weight", transposed(weight)),
    };
    let name = |projection: &str| format!("{at}.{projection}.{end}");
    if projection != "gate_up_proj" {
        let name = name(projection);
        return vec![Weight { name, ..weight }];
    }
    let gate = rows(&weight, name("gate_proj"), |row| row.is_multiple_of(2));
    let up = rows(&weight, name("up_proj"), |row| !row.is_multiple_of(2));
    vec![gate, up]
}

/// The half of every expert's rows for which `is` holds.
fn rows(weight: &Weight, name: String, is: impl Fn(usize) -> bool) -> Weight {
    let mut shape = weight.shape.clone();
    let (rows, columns) = (shape[1], shape[2..].iter().product());
    shape[1] = rows / 2;
    let all = weight.values.chunks(columns).enumerate();
    let some = all.filter(|(at, _)| is(at % rows));
    let values = some.flat_map(|(_, row)| row).copied().collect();
    Weight {
        name,
        shape,
        values,
    }
}

fn transposed(weight: Weight) -> Weight {
    let [experts, rows, columns] = weight.shape[..] else {
        panic!("{} is no stack of matrices", weight.name);
    };
    Weight {
        shape: vec![experts, columns, rows],
        values: swapped(&weight.values, [experts, rows, columns, 1]),
        ..weight
    }
}

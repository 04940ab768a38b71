//! GLM-4.7-Flash as mlx-lm stores it: of the weight that makes keys and values of latents, a tensor with the transposed
//! matrix of each head for keys, `embed_q`, and one for values, `unembed_out` (`mlx_lm/models/glm4_moe_lite.py`).

use crate::folders::{Shape, Stored, Tensors, bytes, named, ones, read, save, stacked};
use crate::formats::{Random, random, unpacked};
use crate::support::{cases, farthest, folder, logits, policy};
use butterfly::Dtype;
use butterfly::ops::Packed;
use butterfly_models::{Checkpoint, Model};
use std::path::Path;

/// Heads, and rows of each head for keys and for values.
type Heads = [usize; 3];

/// Those of the fixture.
const FIXTURE: Heads = [4, 24, 40];
/// Those of [`Shape::Latent`], and the length of its latents.
const HEADS: Heads = [4, 64, 128];
const RANK: usize = 128;

/// The weight of layer `at` of [`Shape::Latent`] in two parts, packed where rows have whole groups, as mlx-lm does it;
/// and the elements of the whole weight.
pub(crate) fn packed(at: &str, packed: Packed, numbers: &mut Random) -> (Tensors, Vec<f32>) {
    let Packed::Affine { group, .. } = packed else {
        panic!("{packed} is no format of MLX");
    };
    let [heads, nope, v] = HEADS;
    let mut tensors = Tensors::new();
    let mut part = |name: &str, rows: usize, columns: usize| {
        let (name, shape) = (format!("{at}.{name}.weight"), [heads, rows, columns]);
        let all = [heads * rows, columns];
        if columns.is_multiple_of(group as usize) {
            let stored = random(packed, all, numbers);
            let values = unpacked(packed, all, &stored);
            tensors.extend(named(&name, packed, &shape, stored));
            return values;
        }
        let values: Vec<f32> = (0..all[0] * columns)
            .map(|_| numbers.float() * 0.1)
            .collect();
        tensors.insert(name, (Stored::F32, shape.to_vec(), bytes(&values)));
        values
    };
    let keys = part("embed_q", RANK, nope);
    let values = part("unembed_out", v, RANK);
    let mut whole = Vec::new();
    for (keys, values) in keys.chunks(RANK * nope).zip(values.chunks(v * RANK)) {
        whole.extend(turned(keys, [RANK, nope]));
        whole.extend(values);
    }
    (tensors, whole)
}

/// A matrix transposed.
fn turned<T: Copy>(matrix: &[T], [rows, columns]: [usize; 2]) -> Vec<T> {
    let column = |at: usize| (0..rows).map(move |row| matrix[row * columns + at]);
    (0..columns).flat_map(column).collect()
}

/// The tensors of a folder as mlx-lm converts them: experts together, and the weights of latents in two parts.
fn converted(tensors: Tensors, [heads, nope, v]: Heads) -> Tensors {
    let mut out = Tensors::new();
    for (name, (dtype, shape, data)) in stacked(tensors) {
        let Some(at) = name.strip_suffix(".kv_b_proj.weight") else {
            out.insert(name, (dtype, shape, data));
            continue;
        };
        assert_eq!((dtype, shape[0]), (Stored::BF16, heads * (nope + v)));
        let rank = shape[1];
        let (elements, _) = data.as_chunks::<2>();
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for head in elements.chunks((nope + v) * rank) {
            let (of_keys, of_values) = head.split_at(nope * rank);
            keys.extend(turned(of_keys, [nope, rank]).concat());
            values.extend(of_values.concat());
        }
        let keys = (dtype, vec![heads, rank, nope], keys);
        let values = (dtype, vec![heads, v, rank], values);
        out.insert(format!("{at}.embed_q.weight"), keys);
        out.insert(format!("{at}.unembed_out.weight"), values);
    }
    out
}

/// Writes the fixture as mlx-lm has it, after `change`.
fn write(dir: &Path, change: impl Fn(&mut Tensors)) {
    let from = folder("glm4_moe_lite");
    std::fs::copy(from.join("config.json"), dir.join("config.json")).expect("copied");
    let mut tensors = converted(read(&from), FIXTURE);
    change(&mut tensors);
    save(dir, &tensors);
}

#[test]
fn glm4_moe_lite_of_mlx() {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), |tensors| {
        let names: Vec<&String> = tensors.keys().collect();
        assert!(names.iter().any(|name| name.contains(".switch_mlp.")));
        assert!(names.iter().all(|name| !name.contains("kv_b_proj")));
    });
    let checkpoint = Checkpoint::open(dir.path()).expect("a model");
    let device = Default::default();
    let (model, unused) =
        Model::<burn_flex::Flex>::load(&checkpoint, Dtype::F32, &device).expect("weights");
    assert_eq!(unused, Vec::<String>::new());
    for case in cases("glm4_moe_lite") {
        let policy = policy(&model, &case);
        for chunk in [case.tokens.len(), 7] {
            let got = logits(&model, &policy, &case.tokens, &[chunk]).expect("runs");
            let off = farthest(&got, &case.expected);
            assert!(off <= 1e-3, "{} by {chunk}: {off}", case.name);
        }
    }
}

/// The error of the fixture after `change`.
fn refused(change: impl Fn(&mut Tensors)) -> String {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), change);
    let checkpoint = Checkpoint::open(dir.path()).expect("a model");
    let device = Default::default();
    let loaded = Model::<burn_flex::Flex>::load(&checkpoint, Dtype::F32, &device);
    loaded.expect_err("refused").to_string()
}

/// What is wrong with a tensor for all heads is said once, not for each head.
#[test]
fn what_is_wrong_is_named_once() {
    let at = "model.layers.1.self_attn";
    let error = refused(|tensors| {
        let keys = tensors.get_mut(&format!("{at}.embed_q.weight"));
        let (_, shape, _) = keys.expect("a tensor");
        shape.swap(1, 2);
    });
    let expected = format!("{at}.embed_q.weight: has shape [24, 32], expected [32, 24]");
    assert_eq!(error.matches(&expected).count(), 1, "{error}");
    let error = refused(|tensors| {
        tensors.remove(&format!("{at}.unembed_out.weight"));
    });
    let expected = format!("{at}.unembed_out.weight: missing, expected [40, 32]");
    assert_eq!(error.matches(&expected).count(), 1, "{error}");
    // Without either, the checkpoint's own name is the one that is missed.
    let error = refused(|tensors| {
        for name in ["embed_q", "unembed_out"] {
            tensors.remove(&format!("{at}.{name}.weight"));
        }
    });
    let expected = format!("{at}.kv_b_proj.weight: missing, expected [256, 32]");
    assert_eq!(error.matches(&expected).count(), 1, "{error}");
}

/// The sizes here are those of the folder that is written there.
#[test]
fn sizes_are_those_of_the_shape() {
    let dir = tempfile::tempdir().expect("a folder");
    ones(dir.path(), Shape::Latent);
    let tensors = read(dir.path());
    let (_, shape, _) = &tensors["model.layers.1.self_attn.kv_b_proj.weight"];
    let [heads, nope, v] = HEADS;
    assert_eq!(shape.as_slice(), [heads * (nope + v), RANK]);
}

//! Helpers of the integration tests: paths of fixtures, their patterns, and comparing numbers.

pub mod gguf;

use butterfly_ir::{Leaf, PartnerRule, Pattern};
use std::path::PathBuf;

/// The path of a file below `tests/fixtures`.
pub fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(path)
}

/// The pattern `causal & (local(local) | partner(rule, radix, count) | sink(sink))`.
pub fn butterfly(local: u32, rule: PartnerRule, radix: u32, count: u32, sink: u32) -> Pattern {
    let far = Pattern::from(Leaf::Partner { rule, radix, count });
    let near = Pattern::from(Leaf::Local {
        before: local,
        after: 0,
    });
    Pattern::from(Leaf::Causal) & (near | far | Leaf::Sink { blocks: sink }.into())
}

/// The values of an f32 or bf16 tensor in a safetensors file.
pub fn floats(path: &std::path::Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(path).expect("file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensor = file.tensor(name).expect("tensor");
    let data = tensor.data();
    let words = data.as_chunks::<4>().0.iter();
    let halves = data.as_chunks::<2>().0.iter();
    match tensor.dtype() {
        safetensors::Dtype::F32 => words.map(|b| f32::from_le_bytes(*b)).collect(),
        // bf16 is the upper half of f32.
        safetensors::Dtype::BF16 => halves
            .map(|[low, high]| f32::from_le_bytes([0, 0, *low, *high]))
            .collect(),
        other => panic!("{name} is {other:?}"),
    }
}

/// Checks that `|got - want| <= atol + rtol * |want|` for all values; equal infinities agree.
///
/// # Errors
/// A message with the first value that is off, or with the lengths if they differ.
pub fn close(got: &[f32], want: &[f32], atol: f32, rtol: f32) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{} values, expected {}", got.len(), want.len()));
    }
    let near = |g: f32, w: f32| g == w || (g - w).abs() <= atol + rtol * w.abs();
    match got.iter().zip(want).position(|(g, w)| !near(*g, *w)) {
        None => Ok(()),
        Some(i) => Err(format!("value {i} is {}, expected {}", got[i], want[i])),
    }
}

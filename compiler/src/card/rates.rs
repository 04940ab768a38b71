//! What the kernels of a whole model reach on the cards that were measured.
//!
//! In:  a kind of step. Out: its [`Rates`], and the [`Roof`] of a card, beside which they are seen. Kernels of
//! attention have rates of their own ([`Card::machine`]). Each constant says which results in `bench/results` it is
//! from. Rates hold for both cards, which have the same SMs; those of memory are shares of the bandwidth of a copy.

use super::Card;
use crate::parts::{FEW_PAIRS, Kind};
use butterfly_ir::model::Part;
use serde::Serialize;

/// What a device can do at most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Roof {
    /// FLOP per second of matrix products of 16-bit floats.
    pub flop_per_second: f64,
    /// FLOP per second of matrix products of 8-bit floats.
    pub float8_flop_per_second: f64,
    /// FLOP per second in f32.
    pub f32_flop_per_second: f64,
    /// Bytes per second of a large copy, reads plus writes.
    pub bytes_per_second: f64,
}

/// What the kernels of a step reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rates {
    /// FLOP per second; infinite where they are never the bound.
    pub(crate) flop_per_second: f64,
    /// The memory bandwidth that is reached, as a share of that of a copy.
    pub(crate) of_copy: f64,
}

impl Card {
    /// The dense products of bf16 and FP8, and the f32 arithmetic that NVIDIA states for the SXM5 cards, and the copy that
    /// was measured.
    pub fn roof(self) -> Roof {
        Roof {
            flop_per_second: 989.4e12,
            float8_flop_per_second: 1978.9e12,
            f32_flop_per_second: 66.9e12,
            bytes_per_second: self.bytes_per_second(),
        }
    }
}

/// Seconds by which each kernel of a model is longer than its work: the launch, and what it takes until all of the
/// device is busy. From the decode of Qwen3-8B in bf16, 291 kernels a token (`model_nvidia_h200.md`).
pub(crate) const GAP_SECONDS: f64 = 4.8e-6;

/// Most rows of a product that reads the weight once, without matrix units (`ops/src/linear/cube.rs`).
const FEW_ROWS: f64 = 8.0;

/// The rates of steps in 16-bit floats; `None` where they were not measured.
pub(crate) fn rates(part: Part, kind: &Kind) -> Option<Rates> {
    let memory = |of_copy| Rates {
        flop_per_second: f64::INFINITY,
        of_copy,
    };
    Some(match (kind, part) {
        (
            Kind::Product {
                rows,
                stored,
                packed: true,
                ..
            },
            _,
        ) if *rows <= FEW_ROWS => match *stored < 0.8 {
            // 4 and 8 bits: decode of Qwen3.5-9B, without the gaps (`packed_nvidia_h200.md`).
            true => memory(0.65),
            false => memory(0.75),
        },
        // The last token of each prompt, `output projection` in `model_qwen3.5-9b_nvidia_h100_80gb_hbm3.json`.
        (Kind::Product { rows, .. }, _) if *rows <= FEW_ROWS => memory(0.9),
        // `projections` of Qwen3.5-9B in FP8 with `--activations fp8`, which quantise their rows too
        // (`packed_nvidia_h200.md`).
        (
            Kind::Product {
                quantised: true, ..
            },
            _,
        ) => Rates {
            flop_per_second: 950e12,
            of_copy: 0.9,
        },
        // What unpacking adds to the prefill of Qwen3.5-9B (`packed_nvidia_h200.md`).
        (Kind::Product { packed: true, .. }, _) => Rates {
            flop_per_second: 550e12,
            of_copy: 0.9,
        },
        // Between the 745 TFLOP/s that `projections` have in `model_qwen3.5-9b_nvidia_h100_80gb_hbm3.json`, and the 660
        // that the other parts leave for them in the prefill of Qwen3-8B (`packed_nvidia_h200.md`), where nearly all
        // of the time is products, at lower clocks.
        (Kind::Product { packed: false, .. }, _) => Rates {
            flop_per_second: 700e12,
            of_copy: 0.9,
        },
        // `latents` of GLM-4.7-Flash, by a pattern and dense (`model_nvidia_h200.md`).
        (Kind::OfHeads { expanded: false }, _) => Rates {
            flop_per_second: 270e12,
            of_copy: 0.9,
        },
        (Kind::OfHeads { expanded: true }, _) => Rates {
            flop_per_second: 290e12,
            of_copy: 0.9,
        },
        // `norms`, `gates` and `heads and cache` in `model_qwen3.5-9b_nvidia_h100_80gb_hbm3.json`.
        (Kind::Rows, Part::Norms) => memory(0.8),
        (Kind::Rows, Part::Gates) => memory(0.75),
        (Kind::Rows, Part::Heads) => memory(0.33),
        // 8 ns for each token and layer of GLM-4.7-Flash (`model_nvidia_h200.md`).
        (Kind::Rows, Part::Router) => memory(0.14),
        // `linear attention` in the prefills of Qwen3.5-9B and Qwen3.5-35B-A3B (`packed_nvidia_h200.md`).
        (Kind::Other, Part::LinearAttention) => Rates {
            flop_per_second: 68e12,
            of_copy: 0.75,
        },
        // What the other parts leave for them in the decode of Qwen3.5-35B-A3B (`packed_nvidia_h200.md`), whose experts have
        // a few MB each.
        (
            Kind::Experts {
                pairs,
                packed: true,
                ..
            },
            _,
        ) if *pairs <= FEW_PAIRS => memory(0.4),
        // `experts` of Qwen3.5-35B-A3B (inner vectors of 512 elements) and GLM-4.7-Flash (1536) with sorted pairs, gates
        // and sums (`experts_nvidia_h200.md`): tiles begin and end as if the vectors were 169 elements longer. In FP8
        // only the former was measured.
        (
            Kind::Experts {
                size,
                packed: true,
                quantised,
                ..
            },
            _,
        ) => Rates {
            flop_per_second: size / (size + 169.0) * if *quantised { 577e12 } else { 368e12 },
            of_copy: 0.9,
        },
        // As gates: additions of biases, and vectors of tokens.
        (Kind::Rows, _) => memory(0.75),
        (Kind::Attention(_) | Kind::Experts { .. } | Kind::Other, _) => return None,
    })
}

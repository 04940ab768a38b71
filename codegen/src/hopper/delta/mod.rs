//! The gated delta rule in chunks of 64 tokens (Yang, Kautz, Hatamizadeh: Gated Delta Networks, arXiv:2412.06464,
//! section 3.3; Yang et al.: DeltaNet, arXiv:2406.06484), for heads of 128 elements.
//!
//! Four kernels in one text, launched one after the other. `prepare` convolves and normalises all tokens, with
//! channels in the lanes, so that a token is read once for all of its taps. `chunk` needs no state, so all chunks run
//! at once: it multiplies the keys of a chunk by themselves and by its queries (wgmma m64n64k16), and inverts a unit
//! triangular matrix for each v head by forward substitution, a column a thread. `walk` takes the chunks of half a v
//! head in order: a producer warp fills a ring by TMA, a warpgroup holds the state, transposed, in the registers of
//! a wgmma accumulator, so that the state and the new values are left operands without a way through shared memory.
//! `finish` norms and gates the result in place. All sums have a fixed order.
//!
//! Decays are base-2 logarithms, summed within a chunk: differences of these sums are never positive where they are
//! used, so that no power overflows.

use super::prefill::{instruction, register_instruction};
use super::source;
use butterfly_ir::{DeltaRule, DeltaStage, Dtype};

/// Chunks in the ring of `walk`.
const SLOTS: u32 = 3;
/// Bytes of a slot of the ring: k and q [64, 128], solved and scores [64, 64], half a head of v [64, 64].
const SLOT_BYTES: u32 = 7 * BOX_BYTES;
/// Bytes of a box of 64 tokens by 64 columns.
const BOX_BYTES: u32 = 64 * 64 * 2;
/// Elements from one column of a matrix that `chunk` inverts to the next: columns start in different banks.
const PITCH: u32 = 68;
/// Bytes of the two matrices that `chunk` inverts at a time.
const MATRIX_BYTES: u32 = 2 * 64 * PITCH * 4;
/// Bytes for alignment, at most.
const ALIGNMENT: u32 = 1024;

/// Fills in how the kernels of `rule` are launched.
pub(crate) fn launched(rule: DeltaRule) -> DeltaRule {
    let stage = |name: &str, threads, shared_bytes| DeltaStage {
        entry: format!("butterfly_delta_{name}"),
        threads,
        shared_bytes,
    };
    // Sums and betas of two heads, and a barrier.
    let chunk = MATRIX_BYTES + 1024 + 64;
    // The box that o leaves from; sums and two barriers for each slot.
    let walk = SLOTS * SLOT_BYTES + BOX_BYTES + SLOTS * (256 + 16);
    DeltaRule {
        prepare: stage("prepare", 128, 0),
        chunk: stage("chunk", 128, chunk + ALIGNMENT),
        walk: stage("walk", 160, walk + ALIGNMENT),
        finish: stage("finish", 256, 0),
        ..rule
    }
}

/// Workgroups of `chunk` on an SM: with a loop over more than two heads, products stay in registers for longer.
fn chunk_workgroups(rule: &DeltaRule) -> u32 {
    match rule.v_heads / rule.k_heads {
        1 | 2 => 3,
        _ => 2,
    }
}

/// The text of the kernels.
pub(crate) fn text(rule: &DeltaRule) -> String {
    let DeltaRule { dtype, .. } = *rule;
    let mut constants = source::Constants::new("The gated delta rule in chunks, sm_90a.", dtype);
    for (name, value) in [
        ("CLUSTER", 1),
        ("DIM", DeltaRule::HEAD_DIM),
        ("K_HEADS", rule.k_heads),
        ("V_HEADS", rule.v_heads),
        ("RATIO", rule.v_heads / rule.k_heads),
        ("TILED", rule.tiled.into()),
        ("TAPS", rule.taps),
        ("CHANNELS", rule.channels()),
        ("PREPARE_TOKENS", DeltaRule::PREPARE_TOKENS),
        ("FINISH_TOKENS", DeltaRule::FINISH_TOKENS),
        ("CHUNK_WORKGROUPS", chunk_workgroups(rule)),
        ("PITCH", PITCH),
        ("MATRIX_BYTES", MATRIX_BYTES),
        ("SLOTS", SLOTS),
        ("SLOT_BYTES", SLOT_BYTES),
    ] {
        constants.add(name, value);
    }
    // As `Delta::LENGTH_EPSILON` of the operation, and 1 / sqrt(DIM).
    let floats = "constexpr float LENGTH_EPSILON = 1e-6f;\nconstexpr float Q_SCALE = 0.08838834764831845f;\n";
    let kernels = [
        include_str!("prepare.cuh"),
        include_str!("chunk.cuh"),
        include_str!("walk.cuh"),
        include_str!("finish.cuh"),
    ];
    let chosen = |(number, kernel): (usize, &str)| {
        let only = DeltaRule::ONLY;
        format!("#if !defined({only}) || {only} == {number}\n{kernel}#endif\n")
    };
    let kernels: Vec<String> = kernels.into_iter().enumerate().map(chosen).collect();
    let parts = [
        constants.finish(floats),
        halves(dtype).to_string(),
        source::ARITHMETIC.to_string(),
        source::COPIES.to_string(),
        source::INSTRUCTIONS.to_string(),
        source::STORES.to_string(),
        source::SILU.to_string(),
        instruction("mma_rows", dtype, 64),
        register_instruction("mma_tokens", dtype, 64, false),
        register_instruction("mma_state", dtype, DeltaRule::HEAD_DIM, true),
        include_str!("pieces.cuh").to_string(),
        kernels.join("\n"),
    ];
    parts.join("\n")
}

/// The inverse of `pack`: the two elements in a register.
fn halves(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => {
            "\
// The two elements in a register.
__device__ __forceinline__ float low(unsigned x) { return __uint_as_float(x << 16); }
__device__ __forceinline__ float high(unsigned x) { return __uint_as_float(x & 0xffff0000u); }
"
        }
        Dtype::F16 | Dtype::F32 => {
            "\
// The two elements in a register.
__device__ __forceinline__ float low(unsigned x) {
  float y;
  asm(\"{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}\" : \"=f\"(y) : \"r\"(x));
  return y;
}
__device__ __forceinline__ float high(unsigned x) {
  float y;
  asm(\"{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}\" : \"=f\"(y) : \"r\"(x));
  return y;
}
"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use butterfly_ir::model::LinearShape;

    fn rule(dtype: Dtype) -> DeltaRule {
        let shape = LinearShape {
            k_heads: 16,
            v_heads: 32,
            k_dim: 128,
            v_dim: 128,
            taps: 4,
            tiled: false,
        };
        launched(DeltaRule::of(dtype, &shape).expect("heads of 128 elements"))
    }

    #[test]
    fn a_workgroup_of_each_stage_fits_the_device() {
        let rule = rule(Dtype::Bf16);
        rule.check().expect("valid");
        let shared = rule.stages().map(|(_, stage)| stage.shared_bytes);
        assert_eq!(shared, [0, 36_928, 182_064, 0]);
        assert!(shared.iter().all(|bytes| *bytes <= source::SHARED_LIMIT));
    }

    /// Every entry point takes the same values, declared once.
    #[test]
    fn four_entry_points_in_one_text() {
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let rule = rule(dtype);
            let text = text(&rule);
            for (_, stage) in rule.stages() {
                let entry = format!("    {}(", stage.entry);
                assert_eq!(text.matches(&entry).count(), 1, "{entry}");
            }
            assert_eq!(text.matches("struct alignas(8) Shape").count(), 1);
            let last = "const __grid_constant__ Shape shape) {";
            assert_eq!(text.matches(last).count(), 4);
        }
    }
}

//! A few rows of x times a weight that is read once, at the speed of memory.
//!
//! Two warps fill a ring of stages by bulk copies, which need neither registers nor instructions of those that multiply
//! (`stages.cuh`). These multiply 16 rows of the weight with up to 8 rows of x (mma m16n8k16); of a row, a lane takes 16
//! bytes at a time. What it takes is its part of the left factors: the order of elements within a product is free, so
//! that rows of x lie in shared memory in the order in which a weight is unpacked. Unpacking takes one or two logical
//! instructions for two elements (the bits of integers below an exponent, after Kim et al., arXiv:2211.10017; those of
//! small floats at the place of larger ones), and scales are applied to sums in f32. Where a step has parts with scales
//! of their own, each row of x has a column for every part, with zeros for the others. Integers have an offset then,
//! which is taken off together with the bias by sums of x. Where half of the rows gate the others, a workgroup multiplies
//! a tile of gates and then what they gate.
//!
//! Warps share rows of the weight and add up their sums in shared memory, in a fixed order. `instructions.cuh` and
//! `rows.cuh` are what all formats share, one of `affine4.cuh`, `float8.cuh`, `microscaled.cuh` and `dense.cuh` unpacks.
//!
//! There are two entry points: `entry.cuh` reads rows of x, `normed.cuh` makes them, the norms of sums. There, each
//! workgroup makes them for itself while the first stages of its ring are on their way, which costs less than the launch of
//! a kernel that makes them once.
//! [`FewLayout`] says where what is in shared memory.

use super::super::source;
use super::chosen;
use butterfly_ir::{Dtype, FewLayout, Grouped, GroupedFormat, GroupedStage};

/// 2^64 twice, in bf16: floats of a few bits are unpacked to numbers that are smaller by up to 2^126, whose products with
/// x would leave the range of f32 else.
const X_POWER: u32 = 0x5f80_5f80;

/// How the kernel for rows of x is launched; without shared memory where it has no form.
pub(super) fn stage(grouped: &Grouped) -> GroupedStage {
    launched("butterfly_grouped_few", grouped)
}

/// How the kernel for norms of rows is launched.
pub(super) fn normed_stage(grouped: &Grouped) -> GroupedStage {
    launched("butterfly_grouped_normed", grouped)
}

fn launched(entry: &str, grouped: &Grouped) -> GroupedStage {
    GroupedStage {
        entry: entry.into(),
        threads: Grouped::FEW_THREADS,
        shared_bytes: FewLayout::of(grouped).map_or(0, |layout| layout.shared_bytes),
    }
}

/// The text of the kernels, which refers to constants of the kernel for tiles too; empty where rows of x are too long for
/// them.
pub(super) fn text(grouped: &Grouped) -> String {
    let Grouped { dtype, format, .. } = *grouped;
    let Some(layout) = FewLayout::of(grouped) else {
        return String::new();
    };
    let affine = matches!(format, GroupedFormat::Affine4 { .. });
    let shape = [
        ("WARPS", Grouped::FEW_WARPS),
        ("MOST_STAGES", Grouped::FEW_STAGES),
        ("SPLIT", layout.split),
        ("TILES", Grouped::FEW_WARPS / layout.split),
        ("SPAN", layout.span),
        ("PARTS", layout.parts),
        ("CHUNK", layout.chunk),
        ("BIASED", affine.into()),
        ("KEPT_BYTES", layout.kept_bytes),
        ("ONES_BYTES", layout.ones_bytes),
        ("WORDS_PITCH", layout.words_pitch),
        ("SCALE_BYTES", layout.scale_bytes),
        ("SLICED", layout.sliced.into()),
        ("SCALES_PITCH", layout.scales_pitch),
        ("SCALES_OF_STAGE", layout.scales_of_stage),
        ("STAGE_BYTES", layout.stage_bytes),
        ("SHARED_BYTES", layout.shared_bytes),
    ];
    let constants = shape.into_iter().chain(numbers(dtype, format));
    let constants: String = constants
        .map(|(name, value)| source::constant(name, value))
        .collect();
    let kind = match dtype {
        Dtype::Bf16 => "bf16",
        Dtype::F16 | Dtype::F32 => "f16",
    };
    let of_scales = match format {
        GroupedFormat::Affine4 { scales, .. } => shared_number(scales),
        _ => String::new(),
    };
    let parts = [
        constants,
        include_str!("instructions.cuh").replace("@kind", kind),
        include_str!("stages.cuh").to_string(),
        of_scales,
        unpacking(format).to_string(),
        include_str!("rows.cuh").to_string(),
        include_str!("few.cuh").to_string(),
        chosen(&[1], include_str!("entry.cuh")),
        chosen(&[2], &[wide(dtype), include_str!("normed.cuh")].concat()),
    ];
    parts.join("\n")
}

/// Two elements of this type as f32.
fn wide(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => {
            "// Two elements as f32.
__device__ __forceinline__ float2 wide(unsigned two) {
  return {__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000)};
}

"
        }
        Dtype::F16 | Dtype::F32 => {
            "// Two elements as f32.
__device__ __forceinline__ float2 wide(unsigned two) {
  float2 x;
  asm(\"{ .reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }\"
      : \"=f\"(x.x), \"=f\"(x.y)
      : \"r\"(two));
  return x;
}

"
        }
    }
}

/// Reads scales of this type from shared memory.
fn shared_number(scales: Dtype) -> String {
    let half = "  unsigned short bits;
  asm volatile(\"ld.shared.u16 %0, [%1];\" : \"=h\"(bits) : \"r\"(address) : \"memory\");
";
    let body = match scales {
        Dtype::F32 => "  float x;
  asm volatile(\"ld.shared.f32 %0, [%1];\" : \"=f\"(x) : \"r\"(address) : \"memory\");
  return x;
"
        .to_string(),
        Dtype::Bf16 => {
            format!("{half}  return __uint_as_float(static_cast<unsigned>(bits) << 16);\n")
        }
        Dtype::F16 => format!(
            "{half}  float x;
  asm(\"cvt.f32.f16 %0, %1;\" : \"=f\"(x) : \"h\"(bits));
  return x;
"
        ),
    };
    format!(
        "// The scale at an address.
__device__ __forceinline__ float shared_number(unsigned address) {{
{body}}}
"
    )
}

/// What unpacking depends on: 1 as an element, twice; bits that stand for numbers, and by which powers of two these differ
/// from those of the weight: x is multiplied by X_POWER, unless it is 0, and sums by FACTOR, the bits of an f32.
fn numbers(dtype: Dtype, format: GroupedFormat) -> Vec<(&'static str, u32)> {
    let is_bf16 = dtype == Dtype::Bf16;
    let by_type = |bf16: u32, f16: u32| if is_bf16 { bf16 } else { f16 };
    let power = |exponent: u32| (127 + exponent) << 23;
    // Exponents of e4m3 have a bias of 7, those of e2m1 of 1, of f16 of 15, and of bf16 of 127.
    let (own, factor, x_power) = match format {
        GroupedFormat::Dense => (Vec::new(), 0, 0),
        GroupedFormat::Affine4 { .. } => (
            vec![
                ("MAGIC", by_type(0x4300_4300, 0x6400_6400)),
                ("OFFSET", by_type(128, 1024)),
            ],
            0,
            0,
        ),
        GroupedFormat::Float8 { .. } => (
            vec![
                ("FLOAT_SHIFT", by_type(4, 7)),
                ("FLOAT_MASK", by_type(0x07f0_07f0, 0x3f80_3f80)),
            ],
            by_type(120 - 64, 8),
            by_type(X_POWER, 0),
        ),
        GroupedFormat::Microscaled => (
            vec![
                ("FLOAT_SHIFT", by_type(6, 9)),
                ("FLOAT_MASK", by_type(0x01c0_01c0, 0x0e00_0e00)),
            ],
            by_type(126 - 64, 14),
            by_type(X_POWER, 0),
        ),
    };
    let all = [
        ("ONES", by_type(0x3f80_3f80, 0x3c00_3c00)),
        ("X_POWER", x_power),
        ("FACTOR", power(factor)),
    ];
    own.into_iter().chain(all).collect()
}

/// The text that unpacks weights of this format.
fn unpacking(format: GroupedFormat) -> &'static str {
    match format {
        GroupedFormat::Dense => include_str!("dense.cuh"),
        GroupedFormat::Affine4 { .. } => include_str!("affine4.cuh"),
        GroupedFormat::Float8 { .. } => include_str!("float8.cuh"),
        GroupedFormat::Microscaled => include_str!("microscaled.cuh"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grouped(dtype: Dtype, format: GroupedFormat) -> Grouped {
        Grouped::of(dtype, format, 4096).expect("whole steps")
    }

    #[test]
    fn no_text_for_rows_that_are_too_long() {
        let format = GroupedFormat::Affine4 {
            group: 64,
            scales: Dtype::Bf16,
        };
        let short = grouped(Dtype::Bf16, format);
        assert_eq!(stage(&short).shared_bytes, source::SHARED_LIMIT);
        assert!(text(&short).contains("butterfly_grouped_few"));
        let long = Grouped::of(Dtype::Bf16, GroupedFormat::Dense, 1 << 20).expect("whole steps");
        assert_eq!(stage(&long).shared_bytes, 0);
        assert_eq!(text(&long), "");
    }

    /// Only floats of a few bits beside bf16 need larger numbers of x.
    #[test]
    fn powers_of_two() {
        let float8 = GroupedFormat::Float8 { scales: Dtype::F32 };
        for (dtype, format, x_power, factor) in [
            (Dtype::Bf16, float8, X_POWER, 183 << 23),
            (Dtype::F16, float8, 0, 135 << 23),
            (Dtype::Bf16, GroupedFormat::Microscaled, X_POWER, 189 << 23),
            (Dtype::F16, GroupedFormat::Microscaled, 0, 141 << 23),
            (Dtype::Bf16, GroupedFormat::Dense, 0, 127 << 23),
        ] {
            let text = text(&grouped(dtype, format));
            for (name, value) in [("X_POWER", x_power), ("FACTOR", factor)] {
                let line = format!("constexpr int {name} = {value};\n");
                assert!(text.contains(&line), "{format} {line}");
            }
        }
    }
}

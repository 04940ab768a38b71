//! Products of rows with the weights of their experts, `y[pair] = W[expert(pair)] x[row(pair)]`, the weights packed or
//! dense: in tiles of many pairs, and (`few`) of a few rows, also with weights that all rows share, and of norms of rows;
//! in FP8, also of many rows that are FP8 themselves (`quantised`).
//!
//! In tiles, a workgroup multiplies 128 pairs of one expert with 256 rows of its weight (wgmma m64n128k16). Two
//! producer warpgroups fill a ring: they gather rows of x by `cp.async`, since pairs of an expert are rows anywhere in x,
//! and unpack rows of the weight through registers into the layout that the instruction reads, swizzled rows of 128
//! bytes; weights of 16 bits are copied as they are. Unpacking takes about as long as the products, hence two warpgroups:
//! one alone waits for its own results too often. Two consumer warpgroups each hold 64 pairs' sums. The kernel is
//! persistent: workgroups take tiles in turn, and producers are already at the next one while consumers store. Every
//! sum has a fixed order.
//!
//! `lists.cuh` says which tiles there are, `weight.cuh` and one of `affine4.cuh`, `affine4_pairs.cuh`, `float8.cuh`,
//! `microscaled.cuh` and `dense.cuh` how a piece of 16 bytes of the weight is read and unpacked. A step of 64 elements of
//! a row has one or several pieces; their elements share scales.

mod few;
mod quantised;

use super::prefill::instruction;
use super::source;
use butterfly_ir::{Dtype, Grouped, GroupedFormat, GroupedStage};

/// Slots of the ring, each for a step of 128 rows of x and 256 rows of the weight.
const SLOTS: u32 = 4;
/// Bytes of a slot.
const SLOT_BYTES: u32 = (Grouped::PAIRS + Grouped::ROWS) * Grouped::K_TILE * 2;
/// Bytes for alignment, at most, and for two barriers a slot.
const REST: u32 = 1024 + 2 * SLOTS * 8;
/// Threads of the producers.
const PRODUCERS: u32 = 256;
/// Bits of a piece: what a thread reads of a weight at once.
const PIECE: u32 = 128;

/// Fills in how the kernels are launched.
pub(crate) fn launched(grouped: Grouped) -> Grouped {
    Grouped {
        tiles: GroupedStage {
            entry: "butterfly_grouped".into(),
            threads: PRODUCERS + 2 * 128,
            shared_bytes: SLOTS * SLOT_BYTES + REST,
        },
        few: few::stage(&grouped),
        normed: few::normed_stage(&grouped),
        quantised: grouped.has_quantised().then(quantised::stage),
        ..grouped
    }
}

/// The text of the kernels.
pub(crate) fn text(grouped: &Grouped) -> String {
    let Grouped { dtype, format, .. } = *grouped;
    let mut constants = source::Constants::new("Products with packed weights, sm_90a.", dtype);
    let bits = format.bits();
    let of_row = Grouped::K_TILE * bits / PIECE;
    let pieces = Grouped::ROWS * of_row / PRODUCERS;
    for (name, value) in [
        ("CLUSTER", 1),
        ("M_TILE", Grouped::PAIRS),
        ("N_TILE", Grouped::ROWS),
        ("K_TILE", Grouped::K_TILE),
        ("SLOTS", SLOTS),
        ("SLOT_BYTES", SLOT_BYTES),
        ("PRODUCERS", PRODUCERS),
        ("COLUMNS", grouped.columns),
        ("ROW_BYTES", grouped.row_bytes()),
        ("GROUP", format.group()),
        ("ELEMENTS", PIECE / bits),
        ("PIECES_OF_ROW", of_row),
        ("PIECES", pieces),
        ("SCALES", scales(format, pieces)),
        ("DENSE", (format == GroupedFormat::Dense).into()),
    ] {
        constants.add(name, value);
    }
    let warpgroups = [source::INSTRUCTIONS, source::STORES].join("\n");
    let tiles = [
        source::RING.to_string(),
        instruction("mma_rows", dtype, Grouped::ROWS / 2),
        include_str!("lists.cuh").to_string(),
        unpacking(dtype, format),
        include_str!("producer.cuh").to_string(),
        include_str!("consumer.cuh").to_string(),
        include_str!("entry.cuh").to_string(),
    ];
    let parts = [
        constants.finish(""),
        source::ARITHMETIC.to_string(),
        source::COPIES.to_string(),
        include_str!("weight.cuh").to_string(),
        format.scales().map(number).unwrap_or_default(),
        chosen(&[0, 3], &warpgroups),
        chosen(&[1, 2, 3], source::SILU),
        chosen(&[0], &tiles.join("\n")),
        chosen(&[1, 2], &few::text(grouped)),
        match grouped.quantised {
            Some(_) => chosen(&[3], &quantised::text(grouped.columns)),
            None => String::new(),
        },
    ];
    parts.join("\n")
}

/// Text that is left out where only a kernel with another number is compiled.
fn chosen(numbers: &[u32], text: &str) -> String {
    let only = Grouped::ONLY;
    let one_of = numbers.iter().map(|n| format!(" || {only} == {n}"));
    let one_of: String = one_of.collect();
    format!("#if !defined({only}){one_of}\n{text}#endif\n")
}

/// How many different scales a thread's pieces of a step have.
fn scales(format: GroupedFormat, pieces: u32) -> u32 {
    match format {
        // Each piece is of another row.
        GroupedFormat::Affine4 { .. } | GroupedFormat::Microscaled => pieces,
        // A tile has two squares, one below the other, and the first half of the pieces lies in the upper one.
        GroupedFormat::Float8 { .. } => Grouped::ROWS / format.group(),
        GroupedFormat::Dense => 1,
    }
}

/// The text that unpacks weights of this format to elements of type `dtype` for tiles.
fn unpacking(dtype: Dtype, format: GroupedFormat) -> String {
    match format {
        GroupedFormat::Dense => include_str!("dense.cuh").into(),
        GroupedFormat::Affine4 { scales, .. } if scales == dtype => {
            // 128 in bf16, and 1024 in f16: floats whose last bit counts 1.
            let (pair, base) = match dtype {
                Dtype::Bf16 => ("bf16x2", "0x43004300"),
                Dtype::F16 | Dtype::F32 => ("f16x2", "0x64006400"),
            };
            format!(
                "#define PAIR \"{pair}\"\nconstexpr unsigned BASE = {base};\n\n{}",
                include_str!("affine4_pairs.cuh")
            )
        }
        GroupedFormat::Affine4 { .. } => include_str!("affine4.cuh").into(),
        GroupedFormat::Float8 { .. } => include_str!("float8.cuh").into(),
        GroupedFormat::Microscaled => include_str!("microscaled.cuh").into(),
    }
}

/// Reads scales of this type.
fn number(scales: Dtype) -> String {
    let body = match scales {
        Dtype::F32 => "  return __ldg(reinterpret_cast<const float*>(from) + at);\n",
        Dtype::Bf16 => {
            "  const unsigned bits = __ldg(reinterpret_cast<const unsigned short*>(from) + at);
  return __uint_as_float(bits << 16);
"
        }
        Dtype::F16 => {
            "  const unsigned short bits = __ldg(reinterpret_cast<const unsigned short*>(from) + at);
  float x;
  asm(\"cvt.f32.f16 %0, %1;\" : \"=f\"(x) : \"h\"(bits));
  return x;
"
        }
    };
    format!(
        "// Number `at` of a tensor of scales.
__device__ __forceinline__ float number(const unsigned char* from, long long at) {{
{body}}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [GroupedFormat; 4] = [
        GroupedFormat::Dense,
        GroupedFormat::Affine4 {
            group: 64,
            scales: Dtype::Bf16,
        },
        GroupedFormat::Float8 { scales: Dtype::F32 },
        GroupedFormat::Microscaled,
    ];

    fn grouped(format: GroupedFormat) -> Grouped {
        launched(Grouped::of(Dtype::Bf16, format, 2048).expect("whole steps"))
    }

    #[test]
    fn a_workgroup_fits_the_device() {
        for format in FORMATS {
            let grouped = grouped(format);
            grouped.check().expect("valid");
            assert_eq!(grouped.tiles.shared_bytes, 197_696);
            for (name, stage) in grouped.stages() {
                assert!(stage.shared_bytes <= source::SHARED_LIMIT, "{name}");
            }
        }
    }

    /// No text has what only another format needs.
    #[test]
    fn constants_of_formats() {
        let has = |format, line: &str| text(&grouped(format)).contains(line);
        let [dense, affine, float8, microscaled] = FORMATS;
        for (format, pieces, scales, elements) in [
            (dense, 8, 1, 8),
            (affine, 2, 2, 32),
            (float8, 4, 2, 16),
            (microscaled, 2, 2, 32),
        ] {
            for (name, value) in [
                ("PIECES", pieces),
                ("SCALES", scales),
                ("ELEMENTS", elements),
            ] {
                assert!(has(format, &format!("constexpr int {name} = {value};\n")));
            }
            assert_eq!(has(format, "constexpr int DENSE = 1;"), format == dense);
            assert_eq!(has(format, "float e2m1("), format == microscaled);
            let scaled = [affine, float8].contains(&format);
            assert_eq!(has(format, "float number("), scaled);
            assert_eq!(has(format, "constexpr unsigned BASE"), format == affine);
        }
        // Scales of another type than x are computed with in f32.
        let scales = Dtype::F32;
        let other = GroupedFormat::Affine4 { group: 64, scales };
        assert!(!has(other, "constexpr unsigned BASE"));
    }
}

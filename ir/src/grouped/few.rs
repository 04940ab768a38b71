//! Where the kernel for a few rows keeps what in shared memory.

use super::{Grouped, GroupedFormat};
use crate::contract::MOST_SHARED;

/// Steps of a row that are copied at once: whole rows of up to so many, else two for each warp.
const MOST_WHOLE_STEPS: u64 = 32;
/// Rows of so many bytes are copied one by one.
const LONG_ROW: u64 = 2048;
/// Bytes of a row in a step: four lanes have 16 each.
const STEP_BYTES: u64 = 64;
/// Bytes for sums: 8 columns of 16, with a pitch of 20, in two places for each warp.
const KEPT_BYTES: u64 = 2 * Grouped::FEW_WARPS as u64 * 8 * 20 * 4;
/// Bytes for two barriers a stage.
const BARRIERS: u64 = 16 * Grouped::FEW_STAGES as u64;
/// Stages that there have to be: one is multiplied while another is on its way.
const FEWEST_STAGES: u64 = 2;

/// Shared memory of the kernel for a few rows, in this order: sums of warps (`kept`), zeros for lanes that multiply
/// nothing, barriers, sums of x (`ones`), rows of x, and as many stages as fit.
///
/// A *step* is what a warp multiplies at a time, of 16 rows. A *stage* has a *chunk* of so many steps of as many rows as
/// the workgroup's warps share: their words, then their scales and biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FewLayout {
    /// Elements of a row in a step.
    pub span: u32,
    /// Parts of a step that have scales of their own.
    pub parts: u32,
    /// Warps that share 16 rows: as many as have at least two steps of them.
    pub split: u32,
    /// Steps of a row in a stage.
    pub chunk: u32,
    /// Bytes of sums of warps.
    pub kept_bytes: u32,
    /// Bytes of zeros.
    pub zeros_bytes: u32,
    /// Bytes of sums of x.
    pub ones_bytes: u32,
    /// Bytes from one row of x to the next.
    pub pitch: u32,
    /// Bytes from one row's words in a stage to the next one's.
    pub words_pitch: u32,
    /// Bytes of a scale, where scales are in stages; else 0.
    pub scale_bytes: u32,
    /// Whether a stage has of each row only the scales of its steps.
    pub sliced: bool,
    /// Bytes from one row's scales in a stage to the next one's.
    pub scales_pitch: u32,
    /// Bytes of scales, or of biases, in a stage.
    pub scales_of_stage: u32,
    /// Bytes of a stage.
    pub stage_bytes: u32,
    /// Rows of x that there is room for: up to 8, and up to 4 where 32 elements share a scale.
    pub rows: u32,
    /// Bytes of all that.
    pub shared_bytes: u32,
}

impl FewLayout {
    /// The layout for such weights; `None` if not one row of x has room beside two stages.
    pub fn of(grouped: &Grouped) -> Option<Self> {
        let Grouped { format, .. } = *grouped;
        let [columns, row_bytes, group] =
            [grouped.columns, grouped.row_bytes(), format.group()].map(u64::from);
        let span = STEP_BYTES * 8 / u64::from(format.bits());
        let scale_bytes = match format {
            GroupedFormat::Affine4 { scales, .. } => scales.bytes() as u64,
            GroupedFormat::Microscaled => 1,
            GroupedFormat::Dense | GroupedFormat::Float8 { .. } => 0,
        };
        let (tensors, parts) = match format {
            GroupedFormat::Affine4 { .. } => (2, (span / group).max(1)),
            GroupedFormat::Microscaled => (1, span / group),
            GroupedFormat::Dense | GroupedFormat::Float8 { .. } => (0, 1),
        };
        let steps = columns.div_ceil(span);
        let split = 1 << (steps / 2).clamp(1, Grouped::FEW_WARPS.into()).ilog2();
        let chunks = match steps <= MOST_WHOLE_STEPS {
            true => 1,
            false => steps.div_ceil(2 * split),
        };
        let chunk = steps.div_ceil(chunks);
        let stage_rows = u64::from(Grouped::FEW_WARPS) / split * u64::from(Grouped::FEW_TILE);
        let words_pitch = match row_bytes < LONG_ROW {
            true => row_bytes,
            false => pitch(chunk * STEP_BYTES, 128, 64),
        };
        let [row_scales, slice] = [columns / group, chunk * parts].map(|n| n * scale_bytes);
        let sliced = scale_bytes > 0 && row_scales % 16 == 0 && slice % 16 == 0;
        let scales_pitch = if sliced {
            pitch(slice, 32, 16)
        } else {
            row_scales
        };
        let scales_of_stage = (stage_rows * scales_pitch).next_multiple_of(16);
        let stage = stage_rows * words_pitch + tensors * scales_of_stage;
        let stage = stage.next_multiple_of(128);
        let zeros = (span * 2 + 64).next_multiple_of(128);
        let sets = if parts == 1 { 1 } else { 2 };
        let ones = match format {
            GroupedFormat::Affine4 { .. } => (sets * steps * 32).next_multiple_of(128),
            _ => 0,
        };
        let of_x = steps * span * 2 + 64;
        let rest = KEPT_BYTES + zeros + BARRIERS + ones;
        let most = u64::from(MOST_SHARED);
        let room = most.checked_sub(rest + FEWEST_STAGES * stage)?;
        let rows = (room / of_x.next_multiple_of(128)).min(8).min(16 / parts);
        if rows == 0 {
            return None;
        }
        let stages = u64::from(Grouped::FEW_STAGES) * stage;
        let shared = most.min(rest + (rows * of_x).next_multiple_of(128) + stages);
        // All of them are less than the most bytes of shared memory.
        let small = |n: u64| n as u32;
        Some(Self {
            span: small(span),
            parts: small(parts),
            split: small(split),
            chunk: small(chunk),
            kept_bytes: small(KEPT_BYTES),
            zeros_bytes: small(zeros),
            ones_bytes: small(ones),
            pitch: small(of_x),
            words_pitch: small(words_pitch),
            scale_bytes: small(scale_bytes),
            sliced,
            scales_pitch: small(scales_pitch),
            scales_of_stage: small(scales_of_stage),
            stage_bytes: small(stage),
            rows: small(rows),
            shared_bytes: small(shared),
        })
    }
}

/// The fewest bytes, from these on, that are `rest` more than a multiple of `of`.
fn pitch(bytes: u64, of: u64, rest: u64) -> u64 {
    (bytes + of - rest).next_multiple_of(of) + rest - of
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    const FLOAT8: GroupedFormat = GroupedFormat::Float8 { scales: Dtype::F32 };

    fn affine(group: u32) -> GroupedFormat {
        GroupedFormat::Affine4 {
            group,
            scales: Dtype::F16,
        }
    }

    fn layout(format: GroupedFormat, columns: u32) -> Option<FewLayout> {
        FewLayout::of(&Grouped::of(Dtype::Bf16, format, columns).expect("whole groups"))
    }

    #[test]
    fn pitches_are_odd_multiples() {
        for (bytes, want) in [(2048, 2112), (2112, 2112), (64, 64), (65, 192)] {
            assert_eq!(pitch(bytes, 128, 64), want, "{bytes}");
        }
        assert_eq!([128, 48].map(|bytes| pitch(bytes, 32, 16)), [144, 48]);
    }

    /// Elements of a step, parts with scales of their own, warps that share rows, steps of a stage, and rows of x.
    #[test]
    fn shapes() {
        for (format, columns, shape) in [
            (GroupedFormat::Dense, 64, [32, 1, 1, 2, 8]),
            (affine(64), 4096, [128, 2, 16, 32, 8]),
            (affine(64), 320, [128, 2, 1, 3, 8]),
            (affine(32), 768, [128, 4, 2, 6, 4]),
            (affine(128), 12_288, [128, 1, 16, 32, 5]),
            (FLOAT8, 17_408, [64, 1, 16, 31, 4]),
            (GroupedFormat::Microscaled, 2880, [128, 4, 8, 23, 4]),
        ] {
            let one = layout(format, columns).expect("room");
            let got = [one.span, one.parts, one.split, one.chunk, one.rows];
            assert_eq!(got, shape, "{format} {columns}");
        }
        assert_eq!(layout(GroupedFormat::Dense, 131_072), None);
        assert_eq!(layout(affine(64), 1 << 24), None);
    }

    /// What kernels rely on: copies of 16 bytes, a stage that holds its rows, and two stages beside all rows of x.
    #[test]
    fn stages_hold_what_is_copied() {
        let formats = [GroupedFormat::Dense, FLOAT8, GroupedFormat::Microscaled];
        let all = formats.into_iter().chain([32, 64, 128].map(affine));
        for format in all {
            for columns in (64..20_000).step_by(64) {
                let Some(grouped) = Grouped::of(Dtype::Bf16, format, columns) else {
                    continue;
                };
                let Some(one) = FewLayout::of(&grouped) else {
                    continue;
                };
                let rows = Grouped::FEW_WARPS / one.split * Grouped::FEW_TILE;
                let name = format!("{format} {columns}");
                let of_words = (one.chunk * 64).min(grouped.row_bytes());
                assert!(
                    one.words_pitch >= of_words && one.words_pitch % 16 == 0,
                    "{name}"
                );
                let tensors = match format {
                    GroupedFormat::Affine4 { .. } => 2,
                    GroupedFormat::Microscaled => 1,
                    GroupedFormat::Dense | GroupedFormat::Float8 { .. } => 0,
                };
                let held = rows * one.words_pitch + tensors * one.scales_of_stage;
                assert!(one.stage_bytes >= held, "{name}");
                let beside = one.kept_bytes + one.zeros_bytes + BARRIERS as u32 + one.ones_bytes;
                let of_x = (one.rows * one.pitch).next_multiple_of(128);
                let stages = (one.shared_bytes - beside - of_x) / one.stage_bytes;
                assert!(
                    stages >= 2 && one.shared_bytes <= MOST_SHARED,
                    "{name}: {stages}"
                );
            }
        }
    }
}

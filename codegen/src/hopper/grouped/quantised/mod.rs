//! Many rows of floats of 8 bits times a weight of such floats, by matrix instructions for them.
//!
//! A workgroup multiplies 128 rows with 128 rows of the weight. A thread fills a ring by TMA; two warpgroups multiply 64
//! rows each (wgmma m64n128k32). Every 128 elements have factors of their own, so that products of such a step are added
//! to sums in f32 outside of the matrix units, which also adds up more precisely than these do (DeepSeek-V3 technical
//! report, arXiv:2412.19437, section 3.3.2; DeepGEMM). While products of a step are added up, those of the next one are in
//! flight, in registers of their own. Reading them and adding competes for registers with the matrix units, which is
//! what bounds the kernel: without these additions the same loop is 1.4 times as fast.
//!
//! The kernel is persistent. Tiles are those of pairs of an expert, sorted, or those of rows with the one weight that
//! there is (`tiles.cuh`).

use super::super::prefill::float8_instruction;
use super::super::source;
use butterfly_ir::{Grouped, GroupedStage};

/// Slots of the ring, each for 128 bytes of 128 rows of x and of the weight.
const SLOTS: u32 = 6;
/// Bytes of a box of 64 rows.
const BOX_BYTES: u32 = 64 * Grouped::GROUP;
/// Bytes of a slot.
const SLOT_BYTES: u32 = (Grouped::PAIRS + Grouped::QUANTISED_ROWS) * Grouped::GROUP;
/// Bytes for alignment, at most, and for two barriers a slot.
const REST: u32 = 1024 + 2 * SLOTS * 8;
/// Steps of which the code is written out, one after another.
const RUN: u32 = 8;

/// How the kernel is launched.
pub(super) fn stage() -> GroupedStage {
    GroupedStage {
        entry: "butterfly_grouped_quantised".into(),
        threads: 384,
        shared_bytes: SLOTS * SLOT_BYTES + REST,
    }
}

/// The text of the kernel for rows of so many elements, a multiple of those that share a factor.
pub(super) fn text(columns: u32) -> String {
    let constants = [
        ("M_TILE", Grouped::PAIRS),
        ("N_TILE", Grouped::QUANTISED_ROWS),
        ("STEPS", columns / Grouped::GROUP),
        ("RUN", RUN),
        ("SLOTS", SLOTS),
        ("SLOT_BYTES", SLOT_BYTES),
        ("BOX_BYTES", BOX_BYTES),
        ("TILES_IN_A_BAND", 16),
    ];
    let constants = constants.map(|(name, value)| source::constant(name, value));
    let parts = [
        constants.concat(),
        source::GATED.to_string(),
        source::RING.to_string(),
        float8_instruction("mma_rows", Grouped::QUANTISED_ROWS),
        include_str!("tiles.cuh").to_string(),
        include_str!("roles.cuh").to_string(),
        include_str!("entry.cuh").to_string(),
    ];
    format!("namespace quantised {{\n{}}}\n", parts.join("\n"))
}

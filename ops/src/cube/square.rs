//! Products of square tiles without matrix units.

#![expect(missing_docs, reason = "the items that `cube` makes have none")]

use ::cubecl::prelude::*;

/// Adds the products of a step of terms to the 4 by 4 sums of a unit, those of rows `4 * UNIT_POS_Y + i` and columns
/// `4 * UNIT_POS_X + j` of a square at `4 * i + j`. For each of `step` terms, `shared` holds `tile` numbers of the left
/// factor; behind all of these, as many of the right.
#[cube]
pub fn multiply_square(
    shared: &SharedMemory<f32>,
    s: &mut Array<f32>,
    #[comptime] step: u32,
    #[comptime] tile: u32,
) {
    for term in 0..step {
        let left = term * tile + 4u32 * UNIT_POS_Y;
        let right = comptime!(step * tile) + term * tile + 4u32 * UNIT_POS_X;
        #[unroll]
        for i in 0..4u32 {
            let x = shared[(left + i) as usize];
            #[unroll]
            for j in 0..4u32 {
                let at = comptime!((4 * i + j) as usize);
                s[at] += x * shared[(right + j) as usize];
            }
        }
    }
}

//! Composes layers of any kind, pair of blocks by pair.
//!
//! In:  the columns of every row of every layer. Out: the number of pairs reached after each layer.
//!
//! The blocks `c` are divided into strips of `STRIP` blocks. For one strip, every block `b` holds a
//! bit for each block of the strip: whether `b` reaches it. Strips do not depend on one another and
//! are computed in parallel.

use rayon::prelude::*;

/// 64-bit words that a block holds for a strip.
const WORDS: usize = 8;
/// Blocks in a strip.
const STRIP: u32 = 64 * WORDS as u32;

/// The columns of every row, as half-open ranges of blocks.
pub(super) struct Layer {
    /// Where the ranges of each row start, then the end of the last row's.
    pub(super) offsets: Vec<usize>,
    pub(super) ranges: Vec<(u32, u32)>,
}

impl Layer {
    fn row(&self, b: usize) -> &[(u32, u32)] {
        &self.ranges[self.offsets[b]..self.offsets[b + 1]]
    }
}

/// The number of pairs `c <= b` reached after each layer; `order` holds each layer's index in
/// `layers`.
///
/// `causal` says that no row reads a later block. Rows before a strip are then skipped, because
/// they never reach it.
pub(super) fn pairs(layers: &[Layer], order: &[usize], rows: u32, causal: bool) -> Vec<u64> {
    let strips = (0..rows.div_ceil(STRIP)).into_par_iter();
    let strips = strips.map(|strip| {
        let columns = strip * STRIP..rows.min((strip + 1) * STRIP);
        let from = if causal { columns.start } else { 0 };
        reached(layers, order, columns, from..rows)
    });
    let sum = |a: Vec<u64>, b: Vec<u64>| a.iter().zip(&b).map(|(a, b)| a + b).collect();
    strips.reduce(|| vec![0; order.len()], sum)
}

type Bits = [u64; WORDS];

/// The same for the pairs of one strip, `columns`. Only `rows` are computed: rows before them must
/// not reach the strip.
fn reached(
    layers: &[Layer],
    order: &[usize],
    columns: std::ops::Range<u32>,
    rows: std::ops::Range<u32>,
) -> Vec<u64> {
    let mut state = vec![Bits::default(); rows.len()];
    for c in columns.clone() {
        let bit = c - columns.start;
        state[(c - rows.start) as usize][bit as usize / 64] |= 1 << (bit % 64);
    }
    let mut next = state.clone();
    let all = columns.clone().map(|c| u64::from(rows.end - c)).sum();
    let composed = super::compose(order, all, |stage| {
        let (mut pairs, mut changed) = (0, false);
        for (b, bits) in (rows.clone()).zip(&mut next) {
            for (start, stop) in layers[stage].row(b as usize) {
                let from = start.saturating_sub(rows.start) as usize;
                let to = stop.saturating_sub(rows.start) as usize;
                for source in &state[from..to] {
                    bits.iter_mut()
                        .zip(source)
                        .for_each(|(bits, source)| *bits |= source);
                }
            }
            changed |= *bits != state[(b - rows.start) as usize];
            pairs += heard(bits, b, &columns);
        }
        state.copy_from_slice(&next);
        Some((pairs, changed))
    });
    composed.unwrap_or_default()
}

/// How many blocks of the strip, up to block `b`, are set in the bits of block `b`.
fn heard(bits: &Bits, b: u32, columns: &std::ops::Range<u32>) -> u64 {
    if b < columns.start {
        return 0;
    }
    let last = (b - columns.start) as usize;
    let words = bits
        .iter()
        .enumerate()
        .map(|(word, bits)| match last.checked_sub(64 * word) {
            None => 0,
            Some(63..) => bits.count_ones(),
            Some(last) => (bits << (63 - last)).count_ones(),
        });
    words.map(u64::from).sum()
}

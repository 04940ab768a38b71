//! Between rows of the caller's arrays and panels whose lanes are rows.
//!
//! In:  rows of one length, or lanes of a panel `[len, lanes]`. Out: the other.
//!
//! Four by four: one number at a time, these copies take a tenth of a sparse layer.

/// Rows that are moved together; panels have a multiple of it as lanes.
pub(crate) const ROWS: usize = 4;

type Block = [[f32; ROWS]; ROWS];

/// Writes four rows of one length to the lanes `lane..lane + 4` of a panel.
pub(crate) fn to_lanes(rows: [&[f32]; ROWS], panel: &mut [f32], lanes: usize, lane: usize) {
    let blocks = rows.map(|row| row.as_chunks::<ROWS>());
    let mut columns = panel.chunks_exact_mut(lanes);
    for i in 0..blocks[0].0.len() {
        let block = transposed(blocks.map(|(whole, _)| whole[i]));
        for (part, column) in block.iter().zip(&mut columns) {
            column[lane..lane + ROWS].copy_from_slice(part);
        }
    }
    for (i, column) in columns.enumerate().take(blocks[0].1.len()) {
        column[lane..lane + ROWS].copy_from_slice(&blocks.map(|(_, rest)| rest[i]));
    }
}

/// Reads the lanes `lane..lane + 4` of a panel into four rows of `len`, one after another.
pub(crate) fn from_lanes(panel: &[f32], lanes: usize, lane: usize, rows: &mut [f32], len: usize) {
    let column = |i: usize| -> [f32; ROWS] {
        let lanes = &panel[i * lanes + lane..][..ROWS];
        [lanes[0], lanes[1], lanes[2], lanes[3]]
    };
    let whole = len - len % ROWS;
    for i in (0..whole).step_by(ROWS) {
        let block = transposed([column(i), column(i + 1), column(i + 2), column(i + 3)]);
        for (row, part) in block.iter().enumerate() {
            rows[row * len + i..][..ROWS].copy_from_slice(part);
        }
    }
    for i in whole..len {
        for (row, &number) in column(i).iter().enumerate() {
            rows[row * len + i] = number;
        }
    }
}

#[inline(always)]
fn transposed(block: Block) -> Block {
    std::array::from_fn(|i| std::array::from_fn(|j| block[j][i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for len in [1, 3, 4, 5, 8, 11] {
            let rows: Vec<f32> = (0..4 * len).map(|i| i as f32).collect();
            let mut panel = vec![-1.0; len * 8];
            let row = |r: usize| &rows[r * len..][..len];
            to_lanes([row(0), row(1), row(2), row(3)], &mut panel, 8, 4);
            assert_eq!(panel[(len - 1) * 8 + 6], rows[3 * len - 1]);
            assert_eq!(panel[0], -1.0);
            let mut back = vec![0.0; 4 * len];
            from_lanes(&panel, 8, 4, &mut back, len);
            assert_eq!(back, rows);
        }
    }
}

//! Transposes rows of the caller's arrays into panels, in which each lane is a row, and back.
//!
//! In:  rows of one length, or lanes of a panel `[len, lanes]`. Out: the other of the two.
//!
//! Works on blocks of four by four numbers; copying one number at a time would take a tenth of
//! the time of a sparse layer.

/// Rows that are moved together; the number of lanes of a panel is a multiple of it.
pub(crate) const ROWS: usize = 4;

type Block = [[f32; ROWS]; ROWS];

/// Writes four rows, one after another, to the lanes `lane..lane + 4` of a panel.
pub(crate) fn to_lanes(rows: &[f32], panel: &mut [f32], lanes: usize, lane: usize) {
    let len = rows.len() / ROWS;
    let blocks = [0, 1, 2, 3].map(|i| rows[i * len..][..len].as_chunks::<ROWS>());
    let mut columns = panel.chunks_exact_mut(lanes);
    for i in 0..len / ROWS {
        let block = transposed(blocks.map(|(whole, _)| whole[i]));
        for (part, column) in block.iter().zip(&mut columns) {
            column[lane..lane + ROWS].copy_from_slice(part);
        }
    }
    for (i, column) in columns.enumerate().take(len % ROWS) {
        column[lane..lane + ROWS].copy_from_slice(&blocks.map(|(_, rest)| rest[i]));
    }
}

/// Reads the lanes `lane..lane + 4` of a panel into four rows of `len`, one after another.
pub(crate) fn from_lanes(panel: &[f32], lanes: usize, lane: usize, rows: &mut [f32], len: usize) {
    let column = |i: usize| -> [f32; ROWS] {
        let lanes = &panel[i * lanes + lane..][..ROWS];
        [lanes[0], lanes[1], lanes[2], lanes[3]]
    };
    let (first, others) = rows[..ROWS * len].split_at_mut(len);
    let (second, others) = others.split_at_mut(len);
    let (third, fourth) = others.split_at_mut(len);
    let mut rows = [first, second, third, fourth].map(|row| row.as_chunks_mut::<ROWS>());
    let whole = rows[0].0.len();
    for i in 0..whole {
        let at = ROWS * i;
        let columns = [column(at), column(at + 1), column(at + 2), column(at + 3)];
        for (row, part) in rows.iter_mut().zip(transposed(columns)) {
            row.0[i] = part;
        }
    }
    for i in 0..len % ROWS {
        for (row, number) in rows.iter_mut().zip(column(ROWS * whole + i)) {
            row.1[i] = number;
        }
    }
}

/// Uses intrinsics, since the compiler would move the block one number at a time.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transposed(block: Block) -> Block {
    use std::arch::x86_64::{__m128, _MM_TRANSPOSE4_PS};
    // SAFETY: both types are sixteen f32; SSE is part of x86-64.
    unsafe {
        let [mut a, mut b, mut c, mut d] = std::mem::transmute::<Block, [__m128; ROWS]>(block);
        _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
        std::mem::transmute([a, b, c, d])
    }
}

#[cfg(not(target_arch = "x86_64"))]
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
            to_lanes(&rows, &mut panel, 8, 4);
            assert_eq!(panel[(len - 1) * 8 + 6], rows[3 * len - 1]);
            assert_eq!(panel[0], -1.0);
            let mut back = vec![0.0; 4 * len];
            from_lanes(&panel, 8, 4, &mut back, len);
            assert_eq!(back, rows);
        }
    }
}

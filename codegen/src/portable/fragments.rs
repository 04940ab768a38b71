//! Parts of the prefill on matrix units: products of fragments, and copies of tiles to shared
//! memory and back.

use butterfly_ir::band::UNBOUNDED;
use cubecl_core as cubecl;
use cubecl_core::prelude::*;

/// Elements copied by one instruction: 16 bytes.
const CHUNK: u32 = 8;

/// Zero sums of 16 rows by 8 columns.
#[cube]
pub(crate) fn zeros<N: Size>() -> Array<Vector<f32, N>> {
    let mut tile = Array::<Vector<f32, N>>::new(2usize);
    #[unroll]
    for h in 0..2usize {
        tile[h] = Vector::new(0.0f32);
    }
    tile
}

/// Adds the product of `left` and one of the two right factors in `pair`, which starts at index
/// `first`.
#[cube]
pub(crate) fn multiply<F: Float, N: Size>(
    mma: &cmma::MmaDefinition<F, F, f32>,
    left: &Array<Vector<F, N>>,
    pair: &Array<Vector<F, N>>,
    sums: &mut Array<Vector<f32, N>>,
    #[comptime] first: usize,
) {
    let mut right = Array::<Vector<F, N>>::new(2usize);
    #[unroll]
    for i in 0..2usize {
        right[i] = pair[comptime!(first + i)];
    }
    mma.execute_inplace::<N, N, N>(left, &right, sums);
}

/// The sizes of a tile of rows that is copied to or from shared memory, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) rows: u32,
    pub(crate) dim: u32,
    /// Columns including padding, which is filled with zeros.
    pub(crate) pad: u32,
    pub(crate) pitch: u32,
    pub(crate) threads: u32,
}

/// Copies the rows `first..first + rows` to shared memory. Rows outside `low..high` are filled with
/// zeros, and are not read.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn copy<F: Float>(
    from: &Array<F>,
    to: &mut SharedMemory<F>,
    to_at: u32,
    base: u32,
    stride: u32,
    first: u32,
    low: u32,
    high: u32,
    #[comptime] shape: Shape,
) {
    let size!(N) = comptime!(CHUNK as usize);
    let size!(Words) = comptime!(CHUNK as usize / 2);
    let chunks = comptime!(shape.pad / CHUNK);
    let work = comptime!(shape.rows * chunks);
    // The slice gets a nominal length, which is never checked: the real one would need a buffer of
    // lengths.
    let source = from
        .slice(0usize, comptime!(UNBOUNDED as usize))
        .into_vectorized()
        .with_vector_size::<N>();
    let mut sink = to.to_slice_mut().into_vectorized().with_vector_size::<N>();
    // Copies whole chunks where rows start at multiples of a chunk, else single elements.
    #[allow(clippy::manual_is_multiple_of)] // not a function on the device
    if (base | stride) % CHUNK == 0u32 {
        #[unroll]
        for step in 0..comptime!(work.div_ceil(shape.threads)) {
            let i = UNIT_POS + comptime!(step * shape.threads);
            if comptime!((step + 1) * shape.threads <= work) || i < work {
                let at = first + i / chunks;
                let column = i % chunks;
                let inside = at >= low && at < high && column < comptime!(shape.dim / CHUNK);
                let near = max(min(at, high - 1u32), low);
                let near_column = min(column, comptime!(shape.dim / CHUNK - 1));
                let x = source[((base + near * stride) / CHUNK + near_column) as usize];
                // Select by 32-bit words: half as many selections, and zero is zero in every type.
                let mut words = Vector::<u32, Words>::new(0u32);
                if inside {
                    words = Vector::<u32, Words>::reinterpret(x);
                }
                sink[((to_at + i / chunks * comptime!(shape.pitch)) / CHUNK + column) as usize] =
                    Vector::<F, N>::reinterpret(words);
            }
        }
    } else {
        for i in range_stepped(
            UNIT_POS,
            comptime!(shape.rows * shape.pad),
            comptime!(shape.threads),
        ) {
            let r = i / comptime!(shape.pad);
            let column = i % comptime!(shape.pad);
            let at = first + r;
            let mut x = F::new(0.0);
            if at >= low && at < high && column < comptime!(shape.dim) {
                x = from[(base + at * stride + column) as usize];
            }
            to[(to_at + r * comptime!(shape.pitch) + column) as usize] = x;
        }
    }
}

/// Writes the rows `first..first + rows` from the start of shared memory to a buffer; rows outside
/// `low..high` are left out.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn store<F: Float>(
    from: &SharedMemory<F>,
    to: &mut Array<F>,
    base: u32,
    stride: u32,
    first: u32,
    low: u32,
    high: u32,
    #[comptime] shape: Shape,
) {
    let size!(N) = comptime!(CHUNK as usize);
    let chunks = comptime!(shape.dim / CHUNK);
    let work = comptime!(shape.rows * chunks);
    let source = from.to_slice().into_vectorized().with_vector_size::<N>();
    let mut sink = to
        .slice_mut(0usize, comptime!(UNBOUNDED as usize))
        .into_vectorized()
        .with_vector_size::<N>();
    #[allow(clippy::manual_is_multiple_of)] // not a function on the device
    let whole = (base | stride) % CHUNK == 0u32;
    for i in range_stepped(UNIT_POS, work, comptime!(shape.threads)) {
        let r = i / chunks;
        let at = first + r;
        if at >= low && at < high {
            let piece = r * comptime!(shape.pitch / CHUNK) + i % chunks;
            let place = base + at * stride + i % chunks * CHUNK;
            if whole {
                sink[(place / CHUNK) as usize] = source[piece as usize];
            } else {
                let x = source[piece as usize];
                #[unroll]
                for c in 0..comptime!(CHUNK as usize) {
                    to[(place + comptime!(c as u32)) as usize] = x[c];
                }
            }
        }
    }
}

//! Parts of the kernels on matrix units: fragments, and tiles on their way to shared memory.

use butterfly_ir::band::UNBOUNDED;
use cubecl_core as cubecl;
use cubecl_core::prelude::*;

/// Side of a matrix product.
pub(crate) const SIDE: usize = 16;

/// Elements copied at once: 16 bytes.
const CHUNK: u32 = 8;

/// An accumulator of zeros.
#[cube]
pub(crate) fn zeros() -> cmma::Matrix<f32> {
    cmma::Matrix::<f32>::from_value(
        cmma::MatrixIdent::Accumulator,
        SIDE,
        SIDE,
        SIDE,
        cmma::MatrixLayout::Undefined,
        0.0f32,
    )
}

/// A factor whose first element is `operands[at]`, with rows `pitch` apart.
#[cube]
pub(crate) fn operand<F: Float>(
    operands: &SharedMemory<F>,
    at: u32,
    #[comptime] pitch: u32,
    #[comptime] ident: cmma::MatrixIdent,
    #[comptime] layout: cmma::MatrixLayout,
) -> cmma::Matrix<F> {
    cmma::Matrix::<F>::from_slice(
        ident,
        SIDE,
        SIDE,
        SIDE,
        layout,
        &operands.slice(at as usize, (at + 256u32) as usize),
        pitch,
    )
}

/// Stores an accumulator at `scores[at]`, with rows `pitch` apart.
#[cube]
pub(crate) fn put(
    scores: &mut SharedMemory<f32>,
    at: u32,
    matrix: &cmma::Matrix<f32>,
    #[comptime] pitch: u32,
) {
    cmma::store::<f32, f32>(
        &mut scores.slice_mut(at as usize, (at + 256u32) as usize),
        matrix,
        pitch,
        cmma::MatrixLayout::RowMajor,
    );
}

/// A tile of rows on its way to shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) rows: u32,
    pub(crate) dim: u32,
    /// Columns with the padding, which becomes zero.
    pub(crate) pad: u32,
    pub(crate) pitch: u32,
    pub(crate) threads: u32,
}

/// Copies rows `first..first + rows`, those outside `low..high` as zeros without reading.
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
    // Its length would need a buffer of its own; nothing reads it.
    let source = from
        .slice(0usize, comptime!(UNBOUNDED as usize))
        .into_vectorized()
        .with_vector_size::<N>();
    let mut sink = to.to_slice_mut().into_vectorized().with_vector_size::<N>();
    // Whole chunks, where rows start at multiples of one.
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
                // As words: half as many to choose, and a zero is one in every type.
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

//! Vectors that are joined of two parts, of which the second may be rotated.

#![expect(
    clippy::cast_possible_truncation,
    reason = "`limits.rs` holds every count to what kernels index"
)]

use super::launch::{array, empty, grid};
use super::unit::turned;
use ::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};

/// Units of a workgroup.
const UNITS: u32 = 256;

/// Vectors in a tensor whose last dimension is contiguous.
pub(crate) struct Part<'a, R: CubeRuntime> {
    pub(crate) tensor: &'a CubeTensor<R>,
    /// First element of the first vector.
    pub(crate) first: usize,
    /// Elements from one sequence, head and token to the next; 0 where they share vectors.
    pub(crate) steps: [usize; 3],
    /// Elements of a vector.
    pub(crate) length: usize,
}

/// The rotation of the first elements of the second part.
pub(crate) struct Turn<'a, R: CubeRuntime> {
    /// Cosines, then sines of each token, [T, rotated] in f32; any tensor if nothing is rotated.
    pub(crate) table: &'a CubeTensor<R>,
    pub(crate) rotated: usize,
    pub(crate) interleaved: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    heads: u32,
    length: u32,
    rest: u32,
    rotated: u32,
    interleaved: bool,
    /// Whether only the second part is written.
    second: bool,
}

/// Joins the parts of each vector: [B, H, T, D], where D is the length of both together.
pub(crate) fn join<R: CubeRuntime, F: FloatElement>(
    [batch, heads, tokens]: [usize; 3],
    parts: [Part<'_, R>; 2],
    turn: &Turn<'_, R>,
) -> CubeTensor<R> {
    let shape = [batch, heads, tokens, parts[0].length + parts[1].length];
    let out = empty(parts[0].tensor, shape, F::dtype());
    write::<R, F>(&out, parts, turn, false);
    out
}

/// Writes the last elements of each vector of `out` [B, H, T, D].
pub(crate) fn last<R: CubeRuntime, F: FloatElement>(
    out: &CubeTensor<R>,
    part: Part<'_, R>,
    turn: &Turn<'_, R>,
) {
    let first = Part {
        tensor: part.tensor,
        first: 0,
        steps: [0; 3],
        length: out.meta.shape()[3] - part.length,
    };
    write::<R, F>(out, [first, part], turn, true);
}

/// Writes both parts of each vector of `out`, or only the second.
fn write<R: CubeRuntime, F: FloatElement>(
    out: &CubeTensor<R>,
    [a, b]: [Part<'_, R>; 2],
    turn: &Turn<'_, R>,
    second: bool,
) {
    let [_, heads, tokens, width] = out.meta.shape().dims();
    let vectors = out.meta.num_elements() / width.max(1);
    let count = match second {
        true => vectors * b.length,
        false => vectors * width,
    } as u32;
    if count == 0 {
        return;
    }
    let shape = Shape {
        heads: heads as u32,
        length: a.length as u32,
        rest: b.length as u32,
        rotated: turn.rotated as u32,
        interleaved: turn.interleaved,
        second,
    };
    let [a_steps, b_steps] = [a.steps, b.steps].map(|steps| steps.map(|step| step as u32));
    // SAFETY: units beyond the last element do nothing; the vectors of the parts that are read are in their tensors.
    unsafe {
        join_kernel::launch_unchecked::<F, R>(
            &out.client,
            grid(count.div_ceil(UNITS)),
            CubeDim::new_1d(UNITS),
            array(a.tensor),
            array(b.tensor),
            array(turn.table),
            array(out),
            count,
            tokens as u32,
            a.first as u32,
            a_steps[0],
            a_steps[1],
            a_steps[2],
            b.first as u32,
            b_steps[0],
            b_steps[1],
            b_steps[2],
            shape,
        );
    }
}

/// Each unit writes one element.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)] // Kernels have no methods.
fn join_kernel<F: Float>(
    a: &Array<F>,
    b: &Array<F>,
    rotation: &Array<f32>,
    out: &mut Array<F>,
    count: u32,
    tokens: u32,
    a_first: u32,
    a_sequence: u32,
    a_head: u32,
    a_token: u32,
    b_first: u32,
    b_sequence: u32,
    b_head: u32,
    b_token: u32,
    #[comptime] shape: Shape,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if at < count {
        let length = comptime!(shape.length);
        let width = comptime!(shape.length + shape.rest);
        let skipped = comptime!(if shape.second { shape.length } else { 0 });
        let written = comptime!(width - skipped);
        let heads = comptime!(shape.heads);
        let element = skipped + at % written;
        let vector = at / written;
        let to = vector * width + element;
        let token = vector % tokens;
        let head = vector / tokens % heads;
        let sequence = vector / tokens / heads;
        if element < length {
            let start = a_first + sequence * a_sequence + head * a_head + token * a_token;
            out[to as usize] = a[(start + element) as usize];
        } else {
            let start = b_first + sequence * b_sequence + head * b_head + token * b_token;
            let x = turned(
                b,
                rotation,
                start,
                element - length,
                token,
                comptime!(shape.rotated),
                comptime!(shape.interleaved),
            );
            out[to as usize] = F::cast_from(x);
        }
    }
}

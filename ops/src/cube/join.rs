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
}

/// Where the vectors of some tokens lie in a tensor.
pub(crate) struct Place<'a, R: CubeRuntime> {
    pub(crate) tensor: &'a CubeTensor<R>,
    /// Sequences, heads and tokens.
    pub(crate) counts: [usize; 3],
    /// First element of the first vector.
    pub(crate) first: usize,
    /// Elements from one sequence, head and token to the next.
    pub(crate) steps: [usize; 3],
}

/// Joins the parts of each vector: [B, H, T, D], where D is the length of both together.
pub(crate) fn join<R: CubeRuntime, F: FloatElement>(
    counts: [usize; 3],
    parts: [Part<'_, R>; 2],
    turn: &Turn<'_, R>,
) -> CubeTensor<R> {
    let [batch, heads, tokens] = counts;
    let width = parts[0].length + parts[1].length;
    let out = empty(parts[0].tensor, [batch, heads, tokens, width], F::dtype());
    let place = Place {
        tensor: &out,
        counts,
        first: 0,
        steps: [heads * tokens * width, tokens * width, width],
    };
    write::<R, F>(&place, parts, turn);
    out
}

/// Writes one part of each vector.
pub(crate) fn place<R: CubeRuntime, F: FloatElement>(
    to: &Place<'_, R>,
    part: Part<'_, R>,
    turn: &Turn<'_, R>,
) {
    let none = Part {
        tensor: part.tensor,
        first: 0,
        steps: [0; 3],
        length: 0,
    };
    write::<R, F>(to, [none, part], turn);
}

/// Writes both parts of each vector, one behind the other.
pub(crate) fn write<R: CubeRuntime, F: FloatElement>(
    to: &Place<'_, R>,
    [a, b]: [Part<'_, R>; 2],
    turn: &Turn<'_, R>,
) {
    let [batch, heads, tokens] = to.counts;
    let count = (batch * heads * tokens * (a.length + b.length)) as u32;
    if count == 0 {
        return;
    }
    let shape = Shape {
        heads: heads as u32,
        length: a.length as u32,
        rest: b.length as u32,
        rotated: turn.rotated as u32,
        interleaved: turn.interleaved,
    };
    let steps = |steps: [usize; 3]| {
        let [sequence, head, token] = steps.map(|step| step as u32);
        StepsLaunch::new(sequence, head, token)
    };
    // SAFETY: units beyond the last element do nothing; the vectors are in their tensors.
    unsafe {
        join_kernel::launch_unchecked::<F, R>(
            &to.tensor.client,
            grid(count.div_ceil(UNITS)),
            CubeDim::new_1d(UNITS),
            array(a.tensor),
            array(b.tensor),
            array(turn.table),
            array(to.tensor),
            count,
            tokens as u32,
            a.first as u32,
            steps(a.steps),
            b.first as u32,
            steps(b.steps),
            to.first as u32,
            steps(to.steps),
            shape,
        );
    }
}

/// Elements from one sequence, head and token to the next.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Steps {
    sequence: u32,
    head: u32,
    token: u32,
}

#[cube]
fn start(first: u32, steps: &Steps, sequence: u32, head: u32, token: u32) -> u32 {
    first + sequence * steps.sequence + head * steps.head + token * steps.token
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
    a_steps: Steps,
    b_first: u32,
    b_steps: Steps,
    out_first: u32,
    out_steps: Steps,
    #[comptime] shape: Shape,
) {
    let at = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if at < count {
        let length = comptime!(shape.length);
        let width = comptime!(shape.length + shape.rest);
        let heads = comptime!(shape.heads);
        let element = at % width;
        let vector = at / width;
        let token = vector % tokens;
        let head = vector / tokens % heads;
        let sequence = vector / tokens / heads;
        let to = start(out_first, &out_steps, sequence, head, token) + element;
        if element < length {
            let from = start(a_first, &a_steps, sequence, head, token);
            out[to as usize] = a[(from + element) as usize];
        } else {
            let from = start(b_first, &b_steps, sequence, head, token);
            let x = turned(
                b,
                rotation,
                from,
                element - length,
                token,
                comptime!(shape.rotated),
                comptime!(shape.interleaved),
            );
            out[to as usize] = F::cast_from(x);
        }
    }
}

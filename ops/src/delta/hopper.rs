//! The gated delta rule in chunks of tokens, by generated kernels with Hopper's matrix instructions.

use crate::{Delta, OperationError};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::Launches;

/// Without CUDA there is no Hopper.
#[cfg(not(feature = "cuda"))]
pub(super) fn delta<R: CubeRuntime + Launches, F: FloatElement>(
    _: &Delta,
    _: &[CubeTensor<R>; 7],
) -> Result<Option<Vec<CubeTensor<R>>>, OperationError> {
    Ok(None)
}

/// The outputs for `inputs`, which are contiguous, except for the rows of projections.
///
/// `None` if the device is no Hopper GPU, for a single token, or if the kernels do not take the types, the heads or
/// the rows, which have to start at multiples of 16 bytes.
#[cfg(feature = "cuda")]
pub(super) fn delta<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Delta,
    inputs: &[CubeTensor<R>; 7],
) -> Result<Option<Vec<CubeTensor<R>>>, OperationError> {
    use crate::cube::launch::empty;
    use burn::tensor::{DType, TensorMetadata};
    use butterfly_ir::DeltaRule;
    use butterfly_runtime::{DeltaTensors, DeltaTokens};

    let [rows, convolution, decays, biases, norm, last, state] = inputs;
    let (batch, tokens) = (rows.shape()[0], rows.shape()[1]);
    if tokens < 2 {
        return Ok(None);
    }
    let Some(dtype) = crate::linear::hopper::element::<R, F>(&rows.client)? else {
        return Ok(None);
    };
    // Views of a larger tensor may start anywhere.
    let starts = [rows, last].map(|x| x.handle.offset_start.unwrap_or_default());
    let [row_batch, row_token] = [0usize, 1].map(|i| rows.meta.strides()[i]);
    let counts = [batch, tokens, row_token].map(u32::try_from);
    let ([Ok(batch32), Ok(tokens32), Ok(row_token)], true) =
        (counts, starts.iter().all(|at| at.is_multiple_of(16)))
    else {
        return Ok(None);
    };
    let sizes = DeltaTokens {
        batch: batch32,
        tokens: tokens32,
        // The only sequence may have any stride.
        row_batch: if batch > 1 { row_batch as u64 } else { 0 },
        row_token,
        epsilon_bits: op.epsilon.to_bits(),
    };
    let wanted = op.shape().and_then(|shape| DeltaRule::of(dtype, &shape));
    let Some(wanted) = wanted else {
        return Ok(None);
    };
    let rule = op.rules.find(wanted)?;
    let Some(rule) = rule.filter(|rule| rule.takes(&sizes)) else {
        return Ok(None);
    };

    let (channels, heads) = (op.channels(), op.v_heads);
    let (chunk, dim) = (DeltaRule::CHUNK as usize, op.v_dim);
    let chunks = tokens.div_ceil(chunk);
    let f32 = DType::F32;
    let out = empty(rows, [batch, tokens, heads * dim], F::dtype());
    let kept = empty(rows, [batch, op.taps - 1, channels], F::dtype());
    let new_state = empty(rows, state.shape(), f32);
    let mixed = empty(rows, [batch, tokens, channels], F::dtype());
    let gates = empty(rows, [2, batch, heads, tokens], f32);
    let matrices = || empty(rows, [batch, heads, chunks * chunk, chunk], F::dtype());
    let [solved, scores] = [matrices(), matrices()];
    let cumulative = empty(rows, [batch, heads, chunks, chunk], f32);
    let tensors = DeltaTensors {
        rows: &rows.handle,
        convolution: &convolution.handle,
        decays: &decays.handle,
        biases: &biases.handle,
        norm: &norm.handle,
        last: &last.handle,
        state: &state.handle,
        out: &out.handle,
        kept: &kept.handle,
        new_state: &new_state.handle,
        mixed: &mixed.handle,
        gates: &gates.handle,
        solved: &solved.handle,
        scores: &scores.handle,
        cumulative: &cumulative.handle,
    };
    rule.launch(&rows.client, &sizes, &tensors)?;
    Ok(Some(vec![out, kept, new_state]))
}

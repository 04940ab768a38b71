//! Shape checks: whether the inputs of an operation fit, and the shapes of its outputs, in one
//! place for all backends.
//!
//! In:  an operation, and shape and element type of every input. Out: shape and element type of
//! every output, or an error that names the input that does not fit. Devices of inputs are checked
//! by [`Checked`](crate::Checked), the limits of a device by its backend.

use crate::operation::{DECODE_QUERIES, MOST_LAGS};
use crate::{Attend, Operation, OperationError};
use burn::tensor::{DType, Shape};
use butterfly_ir::ScoreValues;
use butterfly_ir::band::MAX_TOKENS;
use butterfly_ops::{Inputs, Names, Outputs};

impl Operation {
    /// Shape and element type of each output, if the inputs fit.
    ///
    /// # Errors
    /// [`OperationError::Shape`], [`OperationError::Argument`] or [`OperationError::Dtype`].
    pub fn outputs(&self, inputs: &[(Shape, DType)]) -> Outputs {
        match self {
            Self::Attend(op) => {
                let inputs = self.named(inputs);
                inputs.count()?;
                attend(&inputs, op)
            }
            Self::Layer(op) => op.outputs(inputs),
        }
    }

    /// The inputs with the names that errors call them.
    pub(crate) fn named<'a>(&self, inputs: &'a [(Shape, DType)]) -> Inputs<'a> {
        Inputs {
            operation: self.name(),
            names: self.inputs(),
            inputs,
        }
    }

    /// Names of the inputs, in order.
    pub(crate) fn inputs(&self) -> Names {
        match self {
            Self::Attend(attend) => Names::Borrowed(match (attend.v_in_k, attend.routing()) {
                (None, None) => &["q", "k", "v"],
                (None, Some(_)) => &["q", "k", "v", "means"],
                (Some(_), None) => &["q", "k"],
                (Some(_), Some(_)) => &["q", "k", "means"],
            }),
            Self::Layer(op) => op.inputs(),
        }
    }
}

fn attend(inputs: &Inputs<'_>, attend: &Attend) -> Outputs {
    let dtype = inputs.float(0)?;
    let [batch, q_heads, q_len, head_dim] = inputs.rank(0)?;
    let [sequences, kv_heads, room, _] = inputs.rank(1)?;
    let v_head_dim = match attend.v_in_k {
        None => inputs.rank::<4>(2)?[3],
        Some(length) if length <= head_dim => length,
        Some(length) => {
            return Err(inputs.argument(format!(
                "values of {length} elements are no part of keys of {head_dim}"
            )));
        }
    };
    inputs.positive([
        ("B", batch),
        ("Hq", q_heads),
        ("Hkv", kv_heads),
        ("D", head_dim),
        ("Dv", v_head_dim),
    ])?;
    inputs.is_at_least(1, &[batch, kv_heads, room, head_dim])?;
    if attend.v_in_k.is_none() {
        inputs.is(2, &[sequences, kv_heads, room, v_head_dim])?;
    }
    if !q_heads.is_multiple_of(kv_heads) {
        let expected = format!("a number of heads that is a multiple of the {kv_heads} of k");
        return Err(inputs.wrong(0, expected));
    }
    inputs.all_have(1..attend.means(), dtype)?;
    if attend.routing().is_some() && attend.kv_heads(inputs.inputs) != kv_heads {
        return Err(inputs.argument(format!(
            "heads that share keys choose blocks together, but the pattern tells {q_heads} of them apart"
        )));
    }
    let &Attend {
        q_offset,
        kv_len,
        capacity,
        ..
    } = attend;
    if kv_len > room {
        return Err(inputs.wrong(1, format!("room for the {kv_len} keys")));
    }
    if q_offset.saturating_add(q_len) > kv_len {
        return Err(inputs.argument(format!(
            "{q_len} queries from position {q_offset} on pass the {kv_len} keys"
        )));
    }
    if capacity < kv_len {
        return Err(inputs.argument(format!(
            "{kv_len} keys are more than the capacity of {capacity} tokens: plan for more"
        )));
    }
    if capacity > MAX_TOKENS as usize {
        return Err(inputs.argument(format!(
            "a capacity of {capacity} tokens is too large: at most {MAX_TOKENS} are counted"
        )));
    }
    lags(inputs, attend)?;
    score(inputs, attend, q_heads)?;
    means(inputs, attend)?;
    Ok(vec![
        ([batch, q_heads, q_len, v_head_dim].into(), dtype),
        ([batch, q_heads, q_len].into(), DType::F32),
    ])
}

/// Checks that sequences of different lengths have their queries, few enough, and a pattern that takes them.
fn lags(inputs: &Inputs<'_>, attend: &Attend) -> Result<(), OperationError> {
    let [batch, _, q_len, _] = inputs.rank(0)?;
    let Some(most) = attend.lags.iter().max() else {
        return Ok(());
    };
    let wrong = |what: String| Err(inputs.argument(what));
    if attend.lags.len() != batch {
        let given = attend.lags.len();
        return wrong(format!("there are {given} lags for {batch} sequences"));
    }
    if *most > attend.q_offset {
        return wrong(format!(
            "a sequence is {most} tokens behind, but the longest has only {} before its queries",
            attend.q_offset
        ));
    }
    if q_len > DECODE_QUERIES {
        return wrong(format!(
            "sequences of different lengths take at most {DECODE_QUERIES} queries at a time, not {q_len}"
        ));
    }
    if let Some(what) = attend.plan.takes_no_lags() {
        return wrong(format!("sequences of different lengths, but {what}"));
    }
    match batch > MOST_LAGS {
        false => Ok(()),
        true => wrong(format!(
            "{batch} sequences of different lengths are more than {MOST_LAGS}"
        )),
    }
}

/// Checks that there are means of all whole blocks before that of the last query, if rows choose by
/// them.
fn means(inputs: &Inputs<'_>, attend: &Attend) -> Result<(), OperationError> {
    let Some(routing) = attend.routing() else {
        return Ok(());
    };
    let at = attend.means();
    let [_, kv_heads, _, head_dim] = inputs.rank(1)?;
    let [batch, ..] = inputs.rank::<4>(0)?;
    let [_, _, pools, _] = inputs.rank(at)?;
    inputs.is(at, &[batch, kv_heads, pools, head_dim])?;
    inputs.has(at, DType::F32)?;
    let (block, pool) = (attend.plan.sparsity().block as usize, routing.pool as usize);
    let end = attend.q_offset + inputs.shape(0)[2];
    let needed = end.saturating_sub(1) / block * (block / pool);
    match pools < needed {
        true => Err(inputs.wrong(at, format!("at least {needed} means of {pool} keys"))),
        false => Ok(()),
    }
}

/// Checks the scale, the softcap and the sinks.
fn score(inputs: &Inputs<'_>, attend: &Attend, q_heads: usize) -> Result<(), OperationError> {
    if !attend.scale.is_finite() {
        return Err(inputs.argument(format!("the scale is {}", attend.scale)));
    }
    if let Some(cap) = attend.softcap
        && !ScoreValues::is_softcap(cap)
    {
        let what = format!("the softcap is {cap}, but must be positive and finite");
        return Err(inputs.argument(what));
    }
    let Some(sinks) = &attend.sinks else {
        return Ok(());
    };
    if sinks.len() != q_heads {
        let given = sinks.len();
        return Err(inputs.argument(format!("there are {given} sinks, but {q_heads} q heads")));
    }
    match sinks.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
        true => Err(inputs.argument("a sink is not a number below infinity".into())),
        false => Ok(()),
    }
}

//! Whether the inputs of an operation fit, and the shapes of its outputs: the one place for it,
//! whatever the backend.
//!
//! In:  an operation, and shape and element type of every input. Out: those of the outputs, or what
//! does not fit. Where the inputs lie is checked by [`Checked`](crate::Checked), what a device has
//! no room for by its backend.

use crate::{Append, Attend, Delta, Operation, OperationError};
use burn::tensor::{DType, Shape};
use butterfly_ir::ScoreValues;
use butterfly_ir::band::MAX_TOKENS;

/// Shape and element type of each output.
type Outputs = Result<Vec<(Shape, DType)>, OperationError>;

impl Operation {
    /// Shapes and element types of the outputs, if the inputs fit.
    ///
    /// # Errors
    /// [`OperationError::Shape`], [`OperationError::Argument`] or [`OperationError::Dtype`].
    pub fn outputs(&self, inputs: &[(Shape, DType)]) -> Outputs {
        let check = Check {
            operation: self.name(),
            names: self.inputs(),
            inputs,
        };
        check.count()?;
        match self {
            Self::Attend(attend) => check.attend(attend),
            Self::Append(append) => check.append(append),
            Self::Project | Self::ProjectBy(_) => check.project(),
            Self::Norm { epsilon, dtype } => check.norm(*epsilon, *dtype),
            Self::AddNorm { epsilon } => check.add_norm(*epsilon),
            Self::Gated(_) => check.gated(),
            Self::GateOutput { head_dim } => check.gate_output(*head_dim),
            Self::Delta(delta) => check.delta(delta),
        }
    }

    /// Names of the inputs, in order.
    pub(crate) fn inputs(&self) -> &'static [&'static str] {
        const APPEND: [&str; 8] = [
            "q",
            "k",
            "v",
            "k cache",
            "v cache",
            "norm of q",
            "norm of k",
            "rotation",
        ];
        match self {
            Self::Attend(_) => &["q", "k", "v"],
            Self::Append(append) => match (append.norm, append.rotated) {
                (None, 0) => &APPEND[..5],
                (None, _) => &["q", "k", "v", "k cache", "v cache", "rotation"],
                (Some(_), 0) => &APPEND[..7],
                (Some(_), _) => &APPEND,
            },
            Self::Project | Self::ProjectBy(_) | Self::Norm { .. } => &["x", "weight"],
            Self::AddNorm { .. } => &["x", "y", "weight"],
            Self::Gated(_) => &["x"],
            Self::GateOutput { .. } => &["o", "projections"],
            Self::Delta(_) => &[
                "projections",
                "convolution",
                "decay",
                "dt_bias",
                "norm",
                "last rows",
                "state",
            ],
        }
    }
}

struct Check<'a> {
    operation: &'static str,
    names: &'static [&'static str],
    inputs: &'a [(Shape, DType)],
}

impl Check<'_> {
    fn count(&self) -> Result<(), OperationError> {
        match self.inputs.len() == self.names.len() {
            true => Ok(()),
            false => Err(self.argument(format!(
                "takes {} tensors ({}), but {} are given",
                self.names.len(),
                self.names.join(", "),
                self.inputs.len()
            ))),
        }
    }

    fn shape(&self, i: usize) -> &[usize] {
        self.inputs[i].0.as_slice()
    }

    fn wrong(&self, i: usize, expected: String) -> OperationError {
        OperationError::Shape {
            operation: self.operation,
            tensor: self.names[i],
            given: self.shape(i).to_vec(),
            expected,
        }
    }

    fn argument(&self, what: String) -> OperationError {
        OperationError::Argument {
            operation: self.operation,
            what,
        }
    }

    /// The element type of an input, one that there are kernels for.
    fn float(&self, i: usize) -> Result<DType, OperationError> {
        self.kernels_for(self.inputs[i].1)
    }

    fn kernels_for(&self, dtype: DType) -> Result<DType, OperationError> {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 => Ok(dtype),
            other => Err(OperationError::Dtype {
                operation: self.operation,
                given: format!("{other:?}"),
            }),
        }
    }

    fn is(&self, i: usize, shape: &[usize]) -> Result<(), OperationError> {
        match self.shape(i) == shape {
            true => Ok(()),
            false => Err(self.wrong(i, format!("{shape:?}"))),
        }
    }

    fn has(&self, i: usize, dtype: DType) -> Result<(), OperationError> {
        let (name, given) = (self.names[i], self.inputs[i].1);
        match given == dtype {
            true => Ok(()),
            false => Err(self.argument(format!("`{name}` is {given:?}, expected {dtype:?}"))),
        }
    }

    fn all_have(
        &self,
        inputs: impl IntoIterator<Item = usize>,
        dtype: DType,
    ) -> Result<(), OperationError> {
        inputs.into_iter().try_for_each(|i| self.has(i, dtype))
    }

    /// The length of an input's rows, of which none is empty.
    fn row(&self, i: usize) -> Result<usize, OperationError> {
        match self.shape(i).last() {
            None | Some(0) => Err(self.wrong(i, "at least one element in a row".into())),
            Some(n) => Ok(*n),
        }
    }

    fn rank<const N: usize>(&self, i: usize) -> Result<[usize; N], OperationError> {
        let shape = <[usize; N]>::try_from(self.shape(i));
        shape.map_err(|_| self.wrong(i, format!("{N} dimensions")))
    }

    fn positive<const N: usize>(
        &self,
        numbers: [(&'static str, usize); N],
    ) -> Result<(), OperationError> {
        match numbers.iter().find(|(_, n)| *n == 0) {
            None => Ok(()),
            Some((what, _)) => Err(self.argument(format!("{what} is 0, but must be at least 1"))),
        }
    }

    fn epsilon(&self, epsilon: f32) -> Result<(), OperationError> {
        match epsilon.is_finite() && epsilon >= 0.0 {
            true => Ok(()),
            false => {
                let what = format!("epsilon is {epsilon}, but must be finite and not negative");
                Err(self.argument(what))
            }
        }
    }

    fn project(&self) -> Outputs {
        let (k, dtype) = (self.row(0)?, self.float(0)?);
        let [n, columns] = self.rank(1)?;
        if n == 0 || columns != k {
            return Err(self.wrong(1, format!("[N, {k}] with N at least 1")));
        }
        self.has(1, dtype)?;
        Ok(vec![(with_rows(self.shape(0), n), dtype)])
    }

    fn norm(&self, epsilon: f32, dtype: DType) -> Outputs {
        self.is(1, &[self.row(0)?])?;
        self.all_have([0, 1], DType::F32)?;
        self.epsilon(epsilon)?;
        Ok(vec![(self.inputs[0].0.clone(), self.kernels_for(dtype)?)])
    }

    fn add_norm(&self, epsilon: f32) -> Outputs {
        let (row, x) = (self.row(0)?, &self.inputs[0].0);
        self.is(1, x.as_slice())?;
        self.is(2, &[row])?;
        self.all_have([0, 2], DType::F32)?;
        self.epsilon(epsilon)?;
        Ok(vec![(x.clone(), DType::F32), (x.clone(), self.float(1)?)])
    }

    fn gated(&self) -> Outputs {
        let row = self.row(0)?;
        if !row.is_multiple_of(2) {
            return Err(self.wrong(0, "an even last dimension".into()));
        }
        Ok(vec![(with_rows(self.shape(0), row / 2), self.float(0)?)])
    }

    fn gate_output(&self, head_dim: usize) -> Outputs {
        let ([batch, tokens, n], dtype) = (self.rank(0)?, self.float(0)?);
        self.positive([("head_dim", head_dim)])?;
        if n == 0 || !n.is_multiple_of(head_dim) {
            return Err(self.wrong(0, format!("rows of a multiple of {head_dim} elements")));
        }
        let least = n.saturating_mul(2);
        let [_, _, row] = self.rank(1)?;
        if row < least {
            return Err(self.wrong(1, format!("rows of at least {least} elements")));
        }
        self.is(1, &[batch, tokens, row])?;
        self.has(1, dtype)?;
        Ok(vec![(self.inputs[0].0.clone(), dtype)])
    }

    fn attend(&self, attend: &Attend) -> Outputs {
        let dtype = self.float(0)?;
        let [batch, q_heads, q_len, head_dim] = self.rank(0)?;
        let [_, kv_heads, room, _] = self.rank(1)?;
        let [_, _, _, v_head_dim] = self.rank(2)?;
        self.positive([
            ("B", batch),
            ("Hq", q_heads),
            ("Hkv", kv_heads),
            ("D", head_dim),
            ("Dv", v_head_dim),
        ])?;
        self.is(1, &[batch, kv_heads, room, head_dim])?;
        self.is(2, &[batch, kv_heads, room, v_head_dim])?;
        if !q_heads.is_multiple_of(kv_heads) {
            let expected = format!("a number of heads that is a multiple of the {kv_heads} of k");
            return Err(self.wrong(0, expected));
        }
        self.all_have([1, 2], dtype)?;
        let &Attend {
            q_offset,
            kv_len,
            capacity,
            ..
        } = attend;
        if kv_len > room {
            return Err(self.wrong(1, format!("room for the {kv_len} keys")));
        }
        if q_offset.saturating_add(q_len) > kv_len {
            return Err(self.argument(format!(
                "{q_len} queries from position {q_offset} on pass the {kv_len} keys"
            )));
        }
        if capacity < kv_len {
            return Err(self.argument(format!(
                "{kv_len} keys are more than the capacity of {capacity} tokens: plan for more"
            )));
        }
        if capacity > MAX_TOKENS as usize {
            return Err(self.argument(format!(
                "a capacity of {capacity} tokens is too large: at most {MAX_TOKENS} are counted"
            )));
        }
        self.score(attend, q_heads)?;
        Ok(vec![
            ([batch, q_heads, q_len, v_head_dim].into(), dtype),
            ([batch, q_heads, q_len].into(), DType::F32),
        ])
    }

    /// What is done to logits.
    fn score(&self, attend: &Attend, q_heads: usize) -> Result<(), OperationError> {
        if !attend.scale.is_finite() {
            return Err(self.argument(format!("the scale is {}", attend.scale)));
        }
        if let Some(cap) = attend.softcap
            && !ScoreValues::is_softcap(cap)
        {
            let what = format!("the softcap is {cap}, but must be positive and finite");
            return Err(self.argument(what));
        }
        let Some(sinks) = &attend.sinks else {
            return Ok(());
        };
        if sinks.len() != q_heads {
            let given = sinks.len();
            return Err(self.argument(format!("there are {given} sinks, but {q_heads} q heads")));
        }
        match sinks.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
            true => Err(self.argument("a sink is not a number below infinity".into())),
            false => Ok(()),
        }
    }

    fn append(&self, append: &Append) -> Outputs {
        let dtype = self.float(0)?;
        let [batch, tokens, _] = self.rank(0)?;
        let [_, _, room, _] = self.rank(3)?;
        let (d, hq, hkv) = (append.head_dim, append.q_heads, append.kv_heads);
        self.positive([("q_heads", hq), ("kv_heads", hkv), ("head_dim", d)])?;
        if append.q_step < d {
            let step = append.q_step;
            return Err(self.argument(format!("heads of {d} elements overlap in steps of {step}")));
        }
        let q_end = (hq - 1).saturating_mul(append.q_step).saturating_add(d);
        let kv_end = hkv.saturating_mul(d);
        for (i, end) in [q_end, kv_end, kv_end].into_iter().enumerate() {
            let [_, _, row] = self.rank(i)?;
            self.is(i, &[batch, tokens, row])?;
            let end = append.starts[i].saturating_add(end);
            if row < end {
                return Err(self.wrong(i, format!("rows of at least {end} elements")));
            }
        }
        for i in [3, 4] {
            self.is(i, &[batch, hkv, room, d])?;
        }
        self.all_have(1..5, dtype)?;
        if append.position.saturating_add(tokens) > room {
            return Err(self.argument(format!(
                "{tokens} tokens from position {} on pass the cache's room for {room}",
                append.position
            )));
        }
        if let Some(epsilon) = append.norm {
            self.is(5, &[d])?;
            self.is(6, &[d])?;
            self.epsilon(epsilon)?;
        }
        if append.rotated > 0 {
            let rotated = append.rotated;
            if rotated > d || !rotated.is_multiple_of(2) {
                return Err(self.argument(format!("cannot rotate {rotated} of {d} elements")));
            }
            self.is(self.inputs.len() - 1, &[tokens, rotated])?;
        }
        self.all_have(5..self.inputs.len(), DType::F32)?;
        let cache: Shape = [batch, hkv, room, d].into();
        Ok(vec![
            ([batch, hq, tokens, d].into(), dtype),
            (cache.clone(), dtype),
            (cache, dtype),
        ])
    }

    fn delta(&self, delta: &Delta) -> Outputs {
        let dtype = self.float(0)?;
        let [batch, tokens, row] = self.rank(0)?;
        let &Delta {
            k_heads,
            v_heads,
            k_dim,
            v_dim,
            taps,
            epsilon,
        } = delta;
        self.positive([
            ("k_heads", k_heads),
            ("v_heads", v_heads),
            ("k_dim", k_dim),
            ("v_dim", v_dim),
        ])?;
        if !v_heads.is_multiple_of(k_heads) || taps < 2 {
            return Err(self.argument(format!(
                "{v_heads} heads of v on {k_heads} of k, {taps} taps"
            )));
        }
        self.epsilon(epsilon)?;
        if row < delta.width() {
            let expected = format!("rows of at least {} elements", delta.width());
            return Err(self.wrong(0, expected));
        }
        let channels = delta.channels();
        self.is(1, &[taps, channels])?;
        self.is(2, &[v_heads])?;
        self.is(3, &[v_heads])?;
        self.is(4, &[v_dim])?;
        self.is(5, &[batch, taps - 1, channels])?;
        self.is(6, &[batch, v_heads, k_dim, v_dim])?;
        self.all_have(1..5, DType::F32)?;
        self.has(5, dtype)?;
        self.has(6, DType::F32)?;
        Ok(vec![
            ([batch, tokens, v_heads * v_dim].into(), dtype),
            ([batch, taps - 1, channels].into(), dtype),
            ([batch, v_heads, k_dim, v_dim].into(), DType::F32),
        ])
    }
}

/// The shape with rows of `n` elements.
fn with_rows(shape: &[usize], n: usize) -> Shape {
    let mut shape = shape.to_vec();
    if let Some(last) = shape.last_mut() {
        *last = n;
    }
    shape.into()
}

//! Whether the inputs of an operation fit, and the shapes of its outputs.

use crate::{Append, Attend, Delta, Operation, OperationError};
use burn::tensor::{DType, Shape};

impl Operation {
    /// Shapes and element types of the outputs, if the inputs fit.
    ///
    /// # Errors
    /// [`OperationError::Shape`], [`OperationError::Argument`] or [`OperationError::Dtype`].
    pub fn outputs(
        &self,
        inputs: &[(Shape, DType)],
    ) -> Result<Vec<(Shape, DType)>, OperationError> {
        let check = Check {
            operation: self.name(),
            inputs,
        };
        let dtype = check.dtype()?;
        match self {
            Self::Attend(attend) => check.attend(attend, dtype),
            Self::Append(append) => check.append(append, dtype),
            Self::Project => {
                let [mut x, weight] = check.rows(["x", "weight"])?;
                let last = x.len() - 1;
                if weight.len() != 2 || weight[1] != x[last] {
                    let expected = format!("[N, {}]", x[last]);
                    return Err(check.wrong("weight", 1, expected));
                }
                check.has(1, "weight", dtype)?;
                x[last] = weight[0];
                Ok(vec![(x.into(), dtype)])
            }
            Self::Norm { dtype, .. } => {
                let [x] = check.rows(["x"])?;
                check.is(1, "weight", &[x[x.len() - 1]])?;
                check.has(0, "x", DType::F32)?;
                check.has(1, "weight", DType::F32)?;
                Ok(vec![(x.into(), *dtype)])
            }
            Self::AddNorm { .. } => {
                let [x, y] = check.rows(["x", "y"])?;
                check.is(2, "weight", &[x[x.len() - 1]])?;
                check.is(1, "y", &x)?;
                check.has(0, "x", DType::F32)?;
                check.has(2, "weight", DType::F32)?;
                Ok(vec![(x.into(), dtype), (y.into(), inputs[1].1)])
            }
            Self::Gated(_) => {
                let [mut x] = check.rows(["x"])?;
                let last = x.len() - 1;
                if !x[last].is_multiple_of(2) {
                    return Err(check.wrong("x", 0, "an even last dimension".into()));
                }
                x[last] /= 2;
                Ok(vec![(x.into(), dtype)])
            }
            Self::GateOutput { head_dim } => {
                let [o, rows] = check.rows(["o", "projections"])?;
                let n = o[o.len() - 1];
                if !n.is_multiple_of(*head_dim) || rows[rows.len() - 1] < 2 * n {
                    let expected = format!("rows of at least {} elements", 2 * n);
                    return Err(check.wrong("projections", 1, expected));
                }
                Ok(vec![(o.into(), dtype)])
            }
            Self::Delta(delta) => check.delta(delta, dtype),
        }
    }
}

struct Check<'a> {
    operation: &'static str,
    inputs: &'a [(Shape, DType)],
}

impl Check<'_> {
    fn shape(&self, i: usize) -> Vec<usize> {
        match self.inputs.get(i) {
            Some((shape, _)) => shape.to_vec(),
            None => Vec::new(),
        }
    }

    fn wrong(&self, tensor: &'static str, i: usize, expected: String) -> OperationError {
        OperationError::Shape {
            operation: self.operation,
            tensor,
            given: self.shape(i),
            expected,
        }
    }

    fn argument(&self, what: String) -> OperationError {
        OperationError::Argument {
            operation: self.operation,
            what,
        }
    }

    fn dtype(&self) -> Result<DType, OperationError> {
        let given = self.inputs.first().map(|(_, dtype)| *dtype);
        match given {
            Some(dtype @ (DType::F32 | DType::F16 | DType::BF16)) => Ok(dtype),
            other => Err(OperationError::Dtype {
                operation: self.operation,
                given: format!("{other:?}"),
            }),
        }
    }

    fn is(&self, i: usize, tensor: &'static str, shape: &[usize]) -> Result<(), OperationError> {
        match self.shape(i) == shape {
            true => Ok(()),
            false => Err(self.wrong(tensor, i, format!("{shape:?}"))),
        }
    }

    fn has(&self, i: usize, tensor: &'static str, dtype: DType) -> Result<(), OperationError> {
        let given = self.inputs[i].1;
        match given == dtype {
            true => Ok(()),
            false => Err(self.argument(format!("`{tensor}` is {given:?}, expected {dtype:?}"))),
        }
    }

    /// The first inputs, each with at least one dimension.
    fn rows<const N: usize>(
        &self,
        names: [&'static str; N],
    ) -> Result<[Vec<usize>; N], OperationError> {
        let mut shapes = [const { Vec::new() }; N];
        for (i, name) in names.into_iter().enumerate() {
            shapes[i] = self.shape(i);
            if shapes[i].last().is_none_or(|n| *n == 0) {
                return Err(self.wrong(name, i, "at least one element in a row".into()));
            }
        }
        Ok(shapes)
    }

    fn rank<const N: usize>(
        &self,
        i: usize,
        name: &'static str,
    ) -> Result<[usize; N], OperationError> {
        let shape = self.shape(i);
        <[usize; N]>::try_from(shape).map_err(|_| self.wrong(name, i, format!("{N} dimensions")))
    }

    fn attend(&self, attend: &Attend, dtype: DType) -> Result<Vec<(Shape, DType)>, OperationError> {
        let [batch, q_heads, q_len, head_dim] = self.rank(0, "q")?;
        let [_, kv_heads, room, _] = self.rank(1, "k")?;
        let [_, _, _, v_head_dim] = self.rank(2, "v")?;
        self.is(1, "k", &[batch, kv_heads, room, head_dim])?;
        self.is(2, "v", &[batch, kv_heads, room, v_head_dim])?;
        if kv_heads == 0 || !q_heads.is_multiple_of(kv_heads) {
            let expected = format!("a number of heads that is a multiple of the {kv_heads} of k");
            return Err(self.wrong("q", 0, expected));
        }
        if self.inputs[1..3].iter().any(|(_, other)| *other != dtype) {
            return Err(self.argument("q, k and v have different element types".into()));
        }
        let &Attend {
            q_offset,
            kv_len,
            capacity,
            ..
        } = attend;
        if kv_len > room {
            return Err(self.wrong("k", 1, format!("room for the {kv_len} keys")));
        }
        if q_offset + q_len > kv_len {
            return Err(self.argument(format!(
                "{q_len} queries from position {q_offset} on pass the {kv_len} keys"
            )));
        }
        if capacity < kv_len {
            return Err(self.argument(format!(
                "{kv_len} keys are more than the capacity of {capacity} tokens: plan for more"
            )));
        }
        if capacity > butterfly_ir::band::MAX_TOKENS as usize {
            return Err(self.argument(format!("a capacity of {capacity} tokens is too large")));
        }
        Ok(vec![
            ([batch, q_heads, q_len, v_head_dim].into(), dtype),
            ([batch, q_heads, q_len].into(), DType::F32),
        ])
    }

    fn append(&self, append: &Append, dtype: DType) -> Result<Vec<(Shape, DType)>, OperationError> {
        let [batch, tokens, _] = self.rank(0, "q")?;
        let [_, _, room, _] = self.rank(3, "k cache")?;
        let (d, hq, hkv) = (append.head_dim, append.q_heads, append.kv_heads);
        let row_ends = [(hq - 1) * append.q_step + d, hkv * d, hkv * d];
        for (i, name) in ["q", "k", "v"].into_iter().enumerate() {
            let [_, _, row] = self.rank(i, name)?;
            self.is(i, name, &[batch, tokens, row])?;
            let end = append.starts[i] + row_ends[i];
            if row < end {
                return Err(self.wrong(name, i, format!("rows of at least {end} elements")));
            }
        }
        for (i, name) in [(3, "k cache"), (4, "v cache")] {
            self.is(i, name, &[batch, hkv, room, d])?;
        }
        if append.position + tokens > room {
            return Err(self.argument(format!(
                "{tokens} tokens from position {} on pass the cache's room for {room}",
                append.position
            )));
        }
        let mut next = 5;
        if append.norm.is_some() {
            self.is(5, "norm of q", &[d])?;
            self.is(6, "norm of k", &[d])?;
            next = 7;
        }
        if append.rotated > 0 {
            if append.rotated > d || !append.rotated.is_multiple_of(2) {
                let rotated = append.rotated;
                return Err(self.argument(format!("cannot rotate {rotated} of {d} elements")));
            }
            self.is(next, "rotation", &[tokens, append.rotated])?;
        }
        let cache: Shape = [batch, hkv, room, d].into();
        Ok(vec![
            ([batch, hq, tokens, d].into(), dtype),
            (cache.clone(), dtype),
            (cache, dtype),
        ])
    }

    fn delta(&self, delta: &Delta, dtype: DType) -> Result<Vec<(Shape, DType)>, OperationError> {
        let [batch, tokens, row] = self.rank(0, "projections")?;
        let &Delta {
            k_heads,
            v_heads,
            k_dim,
            v_dim,
            taps,
            ..
        } = delta;
        if row < delta.width() {
            let expected = format!("rows of at least {} elements", delta.width());
            return Err(self.wrong("projections", 0, expected));
        }
        if k_heads == 0 || !v_heads.is_multiple_of(k_heads) || taps < 2 {
            return Err(self.argument(format!(
                "{v_heads} heads of v on {k_heads} of k, {taps} taps"
            )));
        }
        let channels = delta.channels();
        self.is(1, "convolution", &[taps, channels])?;
        self.is(2, "decay", &[v_heads])?;
        self.is(3, "dt_bias", &[v_heads])?;
        self.is(4, "norm", &[v_dim])?;
        self.is(5, "last rows", &[batch, taps - 1, channels])?;
        self.is(6, "state", &[batch, v_heads, k_dim, v_dim])?;
        Ok(vec![
            ([batch, tokens, v_heads * v_dim].into(), dtype),
            ([batch, taps - 1, channels].into(), dtype),
            ([batch, v_heads, k_dim, v_dim].into(), DType::F32),
        ])
    }
}

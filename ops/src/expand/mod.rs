//! Latent attention, expanded: each head gets q, keys and values of its own.

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod cube;
#[cfg(feature = "cpu")]
pub(crate) mod flex;

#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::Limits;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::OperationError;
use crate::inputs::{Inputs, Names, Outputs};
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::limits::{MOST, product};
use burn::tensor::DType;

/// Splits rows into heads, and rotates the last elements of each.
///
/// Inputs, in order: rows that hold the heads, [B, T, n]; if something is rotated, the cosines, then the
/// sines of each token, [T, rotated] in f32. Output: [B, heads, T, nope + rest].
#[derive(Clone, Debug, PartialEq)]
pub struct Rotate {
    /// Number of heads.
    pub heads: usize,
    /// The first element of the first head within a row; each has `nope + rest` elements.
    pub start: usize,
    /// Elements of a head that stay as they are.
    pub nope: usize,
    /// Elements behind them.
    pub rest: usize,
    /// Number of the first elements among the rest that are rotated, 0 for none: as in
    /// [`Latents`](crate::Latents).
    pub rotated: usize,
    /// Whether elements `2i` and `2i + 1` are rotated together.
    pub interleaved: bool,
}

/// Joins keys of what latents were projected to and what all heads share.
///
/// Inputs, in order: rows that hold of each head the first elements of the key, then the value,
/// [B, T, heads * (nope + v)]; latents with the shared elements behind them, [B, T, rank + rest]. Outputs:
/// keys [B, heads, T, nope + rest], and values [B, heads, T, v], which may share the memory of the rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Expand {
    /// Number of heads.
    pub heads: usize,
    /// Elements of a key that the rows hold.
    pub nope: usize,
    /// Elements of a value.
    pub v: usize,
    /// Elements of a latent.
    pub rank: usize,
    /// Elements of a key that all heads share.
    pub rest: usize,
}

impl Rotate {
    /// Names of the inputs.
    pub(crate) fn names(&self) -> Names {
        Names::Borrowed(match self.rotated {
            0 => &["q"],
            _ => &["q", "rotation"],
        })
    }

    /// Elements of a head.
    fn head(&self) -> usize {
        self.nope.saturating_add(self.rest)
    }

    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let dtype = inputs.float(0)?;
        let [batch, tokens, row] = inputs.rank(0)?;
        let (heads, rotated, rest) = (self.heads, self.rotated, self.rest);
        inputs.positive([("heads", heads), ("nope + rest", self.head())])?;
        let end = self.start.saturating_add(heads.saturating_mul(self.head()));
        if row < end {
            return Err(inputs.wrong(0, format!("rows of at least {end} elements")));
        }
        if rotated > rest || !rotated.is_multiple_of(2) {
            return Err(inputs.argument(format!("cannot rotate {rotated} of {rest} elements")));
        }
        if rotated > 0 {
            inputs.is(1, &[tokens, rotated])?;
            inputs.has(1, DType::F32)?;
        }
        Ok(vec![([batch, heads, tokens, self.head()].into(), dtype)])
    }

    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn limits(&self, limits: &Limits<'_>) -> Result<(), OperationError> {
        limits.counted(0..limits.inputs.inputs.len())
    }
}

impl Expand {
    /// Elements of a head in a row.
    fn head(&self) -> usize {
        self.nope.saturating_add(self.v)
    }

    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let dtype = inputs.float(0)?;
        let [batch, tokens, _] = inputs.rank(0)?;
        let Self {
            heads,
            nope,
            v,
            rank,
            rest,
        } = *self;
        inputs.positive([("heads", heads), ("nope", nope), ("v", v), ("rank", rank)])?;
        inputs.is(0, &[batch, tokens, heads.saturating_mul(self.head())])?;
        inputs.is(1, &[batch, tokens, rank.saturating_add(rest)])?;
        inputs.has(1, dtype)?;
        Ok(vec![
            ([batch, heads, tokens, nope + rest].into(), dtype),
            ([batch, heads, tokens, v].into(), dtype),
        ])
    }

    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn limits(&self, limits: &Limits<'_>) -> Result<(), OperationError> {
        limits.counted([0, 1])?;
        let [batch, tokens] = [limits.dims(0)[0], limits.dims(0)[1]];
        let keys = [batch, self.heads, tokens, self.nope + self.rest];
        limits.at_most("rows", "elements of keys", product(&keys), MOST)
    }
}

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
use crate::{Products, Up};
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

/// Makes keys and values of all heads from latents.
///
/// Inputs, in order: latents with the elements behind them that all heads share, [B, room, rank + rest]; the weight,
/// as [`Up`] says, of any float type. Outputs: keys [B, heads, room, nope + rest], of which the last elements are the
/// shared ones, and values [B, heads, room, v]. Of all three, only the first `tokens` tokens are meaningful: a cache
/// that is filled in chunks then takes the same memory for each.
#[derive(Clone, Debug)]
pub struct Expand {
    /// The weight.
    pub up: Up,
    /// Elements of a key that all heads share.
    pub rest: usize,
    /// Tokens whose keys and values are made.
    pub tokens: usize,
    /// Generated kernels for the products.
    pub products: Products,
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
    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let dtype = inputs.float(0)?;
        let [batch, room, _] = inputs.rank(0)?;
        self.up.check(inputs, 1)?;
        let Up {
            heads,
            nope,
            v,
            rank,
        } = self.up;
        inputs.is(0, &[batch, room, rank.saturating_add(self.rest)])?;
        if self.tokens > room {
            let tokens = self.tokens;
            return Err(inputs.wrong(0, format!("latents of at least {tokens} tokens")));
        }
        Ok(vec![
            ([batch, heads, room, nope + self.rest].into(), dtype),
            ([batch, heads, room, v].into(), dtype),
        ])
    }

    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn limits(&self, limits: &Limits<'_>) -> Result<(), OperationError> {
        limits.counted([0, 1])?;
        let [batch, room] = [limits.dims(0)[0], limits.dims(0)[1]];
        let widest = (self.up.nope + self.rest).max(self.up.v);
        let result = [batch, self.up.heads, room, widest];
        limits.at_most(
            "latents",
            "elements of keys or values",
            product(&result),
            MOST,
        )
    }
}

//! Latent attention, second part: the matrices that make keys and values of latents, applied to q and o.
//!
//! A head's key is `K c` and its value `V c`, where c is the latent of a token. With `q · K c = Kᵀ q · c`
//! and `Σ w V c = V Σ w c`, attention runs over latents alone (arXiv:2405.04434, section 2.1.2): [`Absorb`]
//! computes `Kᵀ q`, [`Unabsorb`] multiplies by `V`. Both read one weight, [`Up`], in the order in which
//! checkpoints store it.

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod cube;
#[cfg(feature = "cpu")]
pub(crate) mod flex;

#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::Limits;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::OperationError;
use crate::Products;
use crate::inputs::{Inputs, Names, Outputs};
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::limits::{MOST, product};
use burn::tensor::DType;

/// The shape of a weight [heads * (nope + v), rank] of floats: for each head K [nope, rank], then
/// V [v, rank].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Up {
    /// Number of heads.
    pub heads: usize,
    /// Rows of K: elements of a key that come from the latent vector.
    pub nope: usize,
    /// Rows of V: elements of a value.
    pub v: usize,
    /// Elements of a latent vector.
    pub rank: usize,
}

/// Multiplies the first elements of each q head by the head's Kᵀ, and rotates those behind them.
///
/// Inputs, in order: rows that hold the q heads, [B, T, n]; the weight, as [`Up`] says, of any float
/// type; if something is rotated, the cosines, then the sines of each token, [T, rotated] in f32.
/// Output: q [B, heads, T, rank + rest].
#[derive(Clone, Debug)]
pub struct Absorb {
    /// The weight.
    pub up: Up,
    /// The first element of the first q head within a row; each has `nope + rest` elements.
    pub start: usize,
    /// Elements of a q head behind those that are multiplied.
    pub rest: usize,
    /// Number of the first elements among the rest that are rotated, 0 for none: as in
    /// [`Latents`](crate::Latents).
    pub rotated: usize,
    /// Whether elements `2i` and `2i + 1` are rotated together.
    pub interleaved: bool,
    /// Generated kernels for the products.
    pub products: Products,
}

/// Multiplies the o of each head, which attention gives as a sum of latents, by the head's V.
///
/// Inputs, in order: o [B, heads, T, rank]; the weight, as [`Up`] says, of any float type. Output:
/// [B, T, heads * v].
#[derive(Clone, Debug)]
pub struct Unabsorb {
    /// The weight.
    pub up: Up,
    /// Generated kernels for the products.
    pub products: Products,
}

impl Up {
    /// Rows of the weight.
    pub fn rows(&self) -> usize {
        self.heads.saturating_mul(self.of_head())
    }

    /// Rows of a head.
    pub(crate) fn of_head(&self) -> usize {
        self.nope.saturating_add(self.v)
    }

    /// Checks the weight, which is input `i`.
    pub(crate) fn check(&self, inputs: &Inputs<'_>, i: usize) -> Result<(), crate::OperationError> {
        inputs.positive([
            ("heads", self.heads),
            ("nope", self.nope),
            ("v", self.v),
            ("rank", self.rank),
        ])?;
        inputs.float(i)?;
        inputs.is(i, &[self.rows(), self.rank])
    }
}

impl Absorb {
    /// Names of the inputs.
    pub(crate) fn names(&self) -> Names {
        Names::Borrowed(match self.rotated {
            0 => &["q", "weight"],
            _ => &["q", "weight", "rotation"],
        })
    }

    /// Elements of a q head.
    fn head(&self) -> usize {
        self.up.nope.saturating_add(self.rest)
    }

    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let dtype = inputs.float(0)?;
        let [batch, tokens, row] = inputs.rank(0)?;
        self.up.check(inputs, 1)?;
        let width = self.up.heads.saturating_mul(self.head());
        let end = self.start.saturating_add(width);
        if row < end {
            return Err(inputs.wrong(0, format!("rows of at least {end} elements")));
        }
        let (rotated, rest) = (self.rotated, self.rest);
        if rotated > rest || !rotated.is_multiple_of(2) {
            return Err(inputs.argument(format!("cannot rotate {rotated} of {rest} elements")));
        }
        if rotated > 0 {
            inputs.is(2, &[tokens, rotated])?;
            inputs.has(2, DType::F32)?;
        }
        let shape = [batch, self.up.heads, tokens, self.up.rank + rest];
        Ok(vec![(shape.into(), dtype)])
    }

    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn limits(&self, limits: &Limits<'_>) -> Result<(), OperationError> {
        limits.counted(0..limits.inputs.inputs.len())?;
        let [batch, tokens] = [limits.dims(0)[0], limits.dims(0)[1]];
        let result = [batch, self.up.heads, tokens, self.up.rank + self.rest];
        limits.at_most("q", "elements of results", product(&result), MOST)
    }
}

impl Unabsorb {
    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let dtype = inputs.float(0)?;
        let [batch, _, tokens, _] = inputs.rank(0)?;
        self.up.check(inputs, 1)?;
        let Up { heads, rank, v, .. } = self.up;
        inputs.is(0, &[batch, heads, tokens, rank])?;
        Ok(vec![([batch, tokens, heads * v].into(), dtype)])
    }

    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn limits(&self, limits: &Limits<'_>) -> Result<(), OperationError> {
        limits.counted([0, 1])?;
        let [batch, heads, tokens] = [0, 1, 2].map(|i| limits.dims(0)[i]);
        let result = [batch, tokens, heads, self.up.v];
        limits.at_most("o", "elements of results", product(&result), MOST)
    }
}

//! Latent attention, first part: from projections to latents, and to the cache.

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
use ::cubecl::ir::AddressType;
use burn::tensor::{DType, Shape};
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use butterfly_ir::band::UNBOUNDED;

/// Normalises the latents of new tokens and rotates what lies behind that of k and v, which is appended
/// to the cache (arXiv:2405.04434, section 2.1).
///
/// Inputs, in order: rows of projections that hold the q latent, if there is one, and the kv latent with
/// the part of k that all heads share behind it, [B, T, n]; the cache, [B, 1, room, rank + rest]; the
/// weights of the norms, of the q latent if there is one, and of the kv latent, `[rank]` each in f32; if
/// something is rotated, the cosines, then the sines of each token, [T, rotated] in f32. Outputs: the
/// normalised q latent [B, T, rank of q], if there is one, and the cache.
#[derive(Clone, Debug, PartialEq)]
pub struct Latents {
    /// The latent of q, if q has one.
    pub q: Option<Latent>,
    /// The latent of k and v.
    pub kv: Latent,
    /// Elements behind the latent of k and v.
    pub rest: usize,
    /// Number of the first elements among these that are rotated, 0 for none: element `i` of the first
    /// half with element `i` of the second, or neighbours if they are `interleaved`.
    pub rotated: usize,
    /// Whether elements `2i` and `2i + 1` are rotated together.
    pub interleaved: bool,
    /// Absolute position of the first token: where the cache is written.
    pub position: usize,
}

/// A latent vector within a row, and its norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latent {
    /// Its first element.
    pub start: usize,
    /// Its length.
    pub rank: usize,
    /// Added to the mean square.
    pub epsilon: f32,
}

impl Latents {
    /// Names of the inputs.
    pub(crate) fn names(&self) -> Names {
        let mut names = vec!["rows", "latent cache"];
        names.extend(self.q.map(|_| "norm of q"));
        names.push("norm of kv");
        if self.rotated > 0 {
            names.push("rotation");
        }
        Names::Owned(names)
    }

    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let dtype = inputs.float(0)?;
        let [batch, tokens, row] = inputs.rank(0)?;
        let [_, _, room, _] = inputs.rank(1)?;
        let width = self.kv.rank.saturating_add(self.rest);
        inputs.positive([("rank", self.kv.rank)])?;
        let ends = self.q.iter().map(|q| (q.start, q.rank));
        for (start, length) in ends.chain([(self.kv.start, width)]) {
            let end = start.saturating_add(length);
            if row < end {
                return Err(inputs.wrong(0, format!("rows of at least {end} elements")));
            }
        }
        inputs.is(1, &[batch, 1, room, width])?;
        inputs.has(1, dtype)?;
        if self.position.saturating_add(tokens) > room {
            return Err(inputs.argument(format!(
                "{tokens} tokens from position {} on pass the cache's room for {room}",
                self.position
            )));
        }
        for (i, latent) in (2..).zip(self.q.iter().chain([&self.kv])) {
            inputs.positive([("rank", latent.rank)])?;
            inputs.is(i, &[latent.rank])?;
            inputs.epsilon(latent.epsilon)?;
        }
        let (rotated, rest) = (self.rotated, self.rest);
        if rotated > rest || !rotated.is_multiple_of(2) {
            return Err(inputs.argument(format!("cannot rotate {rotated} of {rest} elements")));
        }
        if rotated > 0 {
            inputs.is(inputs.inputs.len() - 1, &[tokens, rotated])?;
        }
        inputs.all_have(2..inputs.inputs.len(), DType::F32)?;
        let of_q = self.q.iter().map(|q| Shape::from([batch, tokens, q.rank]));
        let cache: Shape = [batch, 1, room, width].into();
        Ok(of_q.chain([cache]).map(|shape| (shape, dtype)).collect())
    }

    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn limits(&self, limits: &Limits<'_>) -> Result<(), OperationError> {
        limits.counted([0].into_iter().chain(2..limits.inputs.inputs.len()))?;
        if !limits.device.supports_address(AddressType::U64) {
            limits.counted([1])?;
        }
        limits.at_most(
            "latent cache",
            "tokens of room",
            limits.dims(1)[2] as u64,
            UNBOUNDED as u64,
        )?;
        limits.grid(2)
    }
}

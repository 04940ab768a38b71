//! From projections to heads: norm, rotation, and append to the cache.

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

/// Splits projections into heads, normalises and rotates q and k, and appends keys and values to
/// the cache.
///
/// Inputs, in order: rows of projections that hold q, k and v, [B, T, n] each (they may be one
/// tensor); the k cache and the v cache, [B, Hkv, room, D] each, or of more sequences, of which those beyond B stay as
/// they are; if there is a norm, the weights of q and k, `[D]` each in f32; if heads are rotated, the cosines, then the
/// sines of each token, [T, rotated] in f32; if sequences lag, how many tokens each is behind, `[B]` in i32. The rotation
/// is then [B * T, rotated]. Outputs: q [B, Hq, T, D] and the two caches.
#[derive(Clone, Debug, PartialEq)]
pub struct Append {
    /// Hq, number of q heads.
    pub q_heads: usize,
    /// Hkv, number of kv heads.
    pub kv_heads: usize,
    /// D, elements of a head.
    pub head_dim: usize,
    /// Elements from the start of one q head to the next: `head_dim`, or more if a gate lies
    /// between them.
    pub q_step: usize,
    /// First elements of q, k and v within their rows.
    pub starts: [usize; 3],
    /// Absolute position of the first token: where the cache is written.
    pub position: usize,
    /// Whether sequences differ in length: a lag is subtracted from the position of each. One that passes the position
    /// writes at 0.
    pub lagging: bool,
    /// If set, each head of q and k is divided by its root mean square and multiplied by a weight;
    /// the number is added to the mean square.
    pub norm: Option<f32>,
    /// Number of leading elements of a head that are rotated, 0 for none: element `i` of the first
    /// half with element `i` of the second, or neighbours if they are `interleaved`.
    pub rotated: usize,
    /// Whether elements `2i` and `2i + 1` are rotated together.
    pub interleaved: bool,
}

impl Append {
    /// Names of the inputs.
    pub(crate) fn names(&self) -> Names {
        let mut names = vec!["q", "k", "v", "k cache", "v cache"];
        if self.norm.is_some() {
            names.extend(["norm of q", "norm of k"]);
        }
        if self.rotated > 0 {
            names.push("rotation");
        }
        if self.lagging {
            names.push("lags");
        }
        Names::Owned(names)
    }

    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let dtype = inputs.float(0)?;
        let [batch, tokens, _] = inputs.rank(0)?;
        let [sequences, _, room, _] = inputs.rank(3)?;
        let (d, hq, hkv) = (self.head_dim, self.q_heads, self.kv_heads);
        inputs.positive([("q_heads", hq), ("kv_heads", hkv), ("head_dim", d)])?;
        if self.q_step < d {
            let step = self.q_step;
            return Err(
                inputs.argument(format!("heads of {d} elements overlap in steps of {step}"))
            );
        }
        let q_end = (hq - 1).saturating_mul(self.q_step).saturating_add(d);
        let kv_end = hkv.saturating_mul(d);
        for (i, end) in [q_end, kv_end, kv_end].into_iter().enumerate() {
            let [_, _, row] = inputs.rank(i)?;
            inputs.is(i, &[batch, tokens, row])?;
            let end = self.starts[i].saturating_add(end);
            if row < end {
                return Err(inputs.wrong(i, format!("rows of at least {end} elements")));
            }
        }
        inputs.is_at_least(3, &[batch, hkv, room, d])?;
        inputs.is(4, &[sequences, hkv, room, d])?;
        inputs.all_have(1..5, dtype)?;
        if self.position.saturating_add(tokens) > room {
            return Err(inputs.argument(format!(
                "{tokens} tokens from position {} on pass the cache's room for {room}",
                self.position
            )));
        }
        if let Some(epsilon) = self.norm {
            inputs.is(5, &[d])?;
            inputs.is(6, &[d])?;
            inputs.epsilon(epsilon)?;
        }
        if self.rotated > 0 {
            let rotated = self.rotated;
            if rotated > d || !rotated.is_multiple_of(2) {
                return Err(inputs.argument(format!("cannot rotate {rotated} of {d} elements")));
            }
            let rows = if self.lagging { batch * tokens } else { tokens };
            inputs.is(5 + 2 * usize::from(self.norm.is_some()), &[rows, rotated])?;
        }
        let count = inputs.inputs.len();
        let floats = count - usize::from(self.lagging);
        inputs.all_have(5..floats, DType::F32)?;
        if self.lagging {
            inputs.is(floats, &[batch])?;
            inputs.has(floats, DType::I32)?;
        }
        let cache: Shape = [sequences, hkv, room, d].into();
        Ok(vec![
            ([batch, hq, tokens, d].into(), dtype),
            (cache.clone(), dtype),
            (cache, dtype),
        ])
    }

    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn limits(&self, limits: &Limits<'_>) -> Result<(), OperationError> {
        limits.counted((0..3).chain(5..limits.inputs.inputs.len()))?;
        let cache = limits.dims(3);
        if !limits.device.supports_address(AddressType::U64) {
            limits.counted([3, 4])?;
        }
        limits.at_most(
            "k cache",
            "tokens of room",
            cache[2] as u64,
            UNBOUNDED as u64,
        )?;
        limits.grid(self.q_heads.saturating_add(2 * self.kv_heads))
    }
}

//! Means of consecutive keys, by which rows choose blocks.

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod cube;
#[cfg(feature = "cpu")]
pub(crate) mod flex;

#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::Limits;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::OperationError;
use crate::inputs::{Inputs, Outputs};
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use ::cubecl::ir::AddressType;
use burn::tensor::DType;
use std::ops::Range;

/// Updates means of keys: k [B, Hkv, room, D] in any float type, means [B, Hkv, pools, D] in f32 →
/// the means, of which those numbered `pools` are those of `tokens` consecutive keys each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Keys of a mean; at least 1.
    pub tokens: usize,
    /// The means to write.
    pub pools: Range<usize>,
}

impl Pool {
    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        inputs.float(0)?;
        let [batch, heads, room, d] = inputs.rank(0)?;
        let [_, _, pools, _] = inputs.rank(1)?;
        inputs.positive([("B", batch), ("Hkv", heads), ("D", d)])?;
        inputs.is(1, &[batch, heads, pools, d])?;
        inputs.all_have([1], DType::F32)?;
        let Self { tokens, pools: of } = self;
        let keys = of.end.saturating_mul(*tokens);
        if *tokens == 0 || of.start > of.end || of.end > pools || keys > room {
            return Err(inputs.argument(format!(
                "means {of:?} of {tokens} keys: there are {room} keys, and room for {pools} means"
            )));
        }
        Ok(vec![(inputs.inputs[1].0.clone(), DType::F32)])
    }

    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn limits(&self, limits: &Limits<'_>) -> Result<(), OperationError> {
        limits.counted([1])?;
        if !limits.device.supports_address(AddressType::U64) {
            limits.counted([0])?;
        }
        let [batch, heads] = [limits.dims(0)[0], limits.dims(0)[1]];
        let (x, y, _) = limits.device.hardware.max_cube_count;
        let lists = (batch as u64).saturating_mul(heads as u64);
        limits.at_most("k", "heads of all sequences", lists, y.into())?;
        limits.at_most("means", "means to write", self.pools.len() as u64, x.into())
    }
}

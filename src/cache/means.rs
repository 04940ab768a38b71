//! Means of the keys of a cache, by which rows choose blocks.

use super::KvCache;
use crate::attention::pooled;
use crate::{AttentionBackend, OperationError};
use burn::prelude::*;
use burn::tensor::DType;

/// Means of consecutive keys, [B, Hkv, pools, D] in f32, by which rows choose blocks.
#[derive(Clone, Debug)]
pub(super) struct Means<B: Backend> {
    pub(super) tensor: Tensor<B, 4>,
    /// Keys of a mean.
    pub(super) pool: usize,
    /// Number of means that are those of the cache's keys.
    pub(super) known: usize,
}

impl<B: AttentionBackend> KvCache<B> {
    /// The means of `pool` keys each, up to date.
    pub(super) fn means(
        &mut self,
        k: &Tensor<B, 4>,
        pool: usize,
    ) -> Result<Tensor<B, 4>, OperationError> {
        let [batch, heads, dim] = self.sizes;
        // Room for one at least, since devices take no buffer without memory.
        let (pools, room) = (self.kept() / pool, (self.room() / pool).max(1));
        let fits = |means: &Means<B>| means.pool == pool && means.tensor.dims()[2] >= pools;
        let Means { tensor, known, .. } = match self.means.take().filter(fits) {
            Some(means) => means,
            None => Means {
                tensor: Tensor::empty([batch, heads, room, dim], (&self.device, DType::F32)),
                pool,
                known: 0,
            },
        };
        let tensor = match known < pools {
            true => pooled(k, tensor, pool, known..pools)?,
            false => tensor,
        };
        self.means = Some(Means {
            tensor: tensor.clone(),
            pool,
            known: pools,
        });
        Ok(tensor)
    }
}

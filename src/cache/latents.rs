//! KV caches of latent attention: one vector for each token, of which all heads read keys and values.

use super::{KvCache, others, whole_blocks};
use crate::{AttentionBackend, OperationError};
use burn::prelude::*;
use burn::tensor::{DType, TensorPrimitive};
use butterfly_ops::{Latents, Operation as LayerOperation};

impl<B: Backend> KvCache<B> {
    /// An empty cache of latent attention, which holds one vector of `width` elements for each token of
    /// `batch` sequences: the key of all heads, whose first `values` elements are the value too.
    ///
    /// With a `window`, as [`KvCache::with_window`], else as [`KvCache::new`].
    pub fn of_latents(
        [batch, width, values]: [usize; 3],
        capacity: usize,
        block: usize,
        window: Option<usize>,
        options: (&B::Device, DType),
    ) -> Self {
        let window = window.map(|window| window.max(1));
        let sizes = [batch, 1, width];
        let mut cache = Self::with(sizes, Some(values), [capacity, block], window, options);
        if window.is_none() {
            let room = whole_blocks(capacity, cache.block);
            cache.stored = Some(cache.allocated(room));
        }
        cache
    }
}

impl<B: AttentionBackend> KvCache<B> {
    /// Appends the latents in rows of projections [B, T, ...] as `latents` describes, and returns the
    /// normalised latent of q, [B, T, rank], if it has one.
    ///
    /// The position in `latents` is ignored: tokens are written after those so far. `norms` are the weights of
    /// the norms of q, if it has a latent, and of k and v; `rotation` holds the cosines, then the sines of
    /// each position, [T, rotated]. All of them are f32.
    ///
    /// # Errors
    /// As [`KvCache::append`].
    pub fn append_latents(
        &mut self,
        rows: Tensor<B, 3>,
        norms: &[Tensor<B, 1>],
        rotation: Option<&Tensor<B, 2>>,
        latents: Latents,
    ) -> Result<Option<Tensor<B, 3>>, OperationError> {
        let [sequences, tokens, _] = rows.dims();
        if sequences != self.sizes[0] || !self.lags().is_empty() {
            return Err(OperationError::Argument {
                operation: "latents",
                what: "latent attention takes sequences of equal length together".into(),
            });
        }
        let rows = vec![rows.into_primitive().tensor()];
        let operation = |position| {
            LayerOperation::Latents(Latents {
                position,
                ..latents
            })
        };
        let q = self.append_by(
            operation,
            rows,
            others(norms.iter(), rotation),
            [sequences, tokens],
        )?;
        let q = q.into_iter().next().map(TensorPrimitive::Float);
        Ok(q.map(Tensor::from_primitive))
    }
}

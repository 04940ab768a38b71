//! Keys and values of the tokens so far.

use crate::{Append, AttentionBackend, Operation, OperationError, run};
use burn::prelude::*;
use burn::tensor::{TensorCreationOptions, TensorPrimitive};

/// Keys and values of one attention layer, [B, Hkv, room, D] each, in place.
///
/// Room grows by whole blocks; give [`KvCache::new`] the capacity where it is known, and
/// nothing is ever copied.
#[derive(Clone, Debug)]
pub struct KvCache<B: Backend> {
    /// `None` only while an operation has them.
    stored: Option<[Tensor<B, 4>; 2]>,
    len: usize,
    block: usize,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache with room for `capacity` tokens, rounded up to blocks of `block`.
    pub fn new(
        [batch, kv_heads, head_dim]: [usize; 3],
        capacity: usize,
        block: usize,
        options: impl Into<TensorCreationOptions<B>>,
    ) -> Self {
        let options = options.into();
        let room = capacity.max(1).next_multiple_of(block.max(1));
        // Of exactly this size: it stays, and is most of what a long text takes.
        let device = options.device.clone();
        let stored = B::memory_persistent_allocations(&device, options, |options| {
            let empty = || Tensor::empty([batch, kv_heads, room, head_dim], options.clone());
            [empty(), empty()]
        });
        Self {
            stored: Some(stored),
            len: 0,
            block: block.max(1),
        }
    }

    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no token yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that there is room for.
    pub fn room(&self) -> usize {
        self.stored.as_ref().map_or(0, |[k, _]| k.dims()[2])
    }

    /// Keys and values, of which the first [`KvCache::len`] tokens are meaningful.
    ///
    /// # Panics
    /// After an operation on the cache failed.
    pub fn tensors(&self) -> [Tensor<B, 4>; 2] {
        self.stored.clone().expect("the cache was lost to an error")
    }

    /// Forgets all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes room for `tokens` more; what is there is copied when it does not suffice.
    fn reserve(&mut self, tokens: usize) {
        let needed = self.len + tokens;
        let Some([k, v]) = self.stored.take_if(|[k, _]| k.dims()[2] < needed) else {
            return;
        };
        // By half again, so that many small steps copy each token a few times only.
        let room = needed.max(self.len + self.len / 2);
        let room = room.next_multiple_of(self.block);
        let grown = |old: Tensor<B, 4>| {
            let [batch, heads, _, dim] = old.dims();
            let new = Tensor::empty([batch, heads, room, dim], (&old.device(), old.dtype()));
            let part = [0..batch, 0..heads, 0..self.len, 0..dim];
            new.slice_assign(part.clone(), old.slice(part))
        };
        self.stored = Some([grown(k), grown(v)]);
    }
}

impl<B: AttentionBackend> KvCache<B> {
    /// Takes the heads out of rows of projections q, k, v [B, T, …], as `append` says, and
    /// appends keys and values; returns q [B, Hq, T, D].
    ///
    /// `norms` are the weights of q and k `[D]`, `rotation` the cosines and sines of the
    /// positions [T, dims], all f32.
    ///
    /// # Errors
    /// [`OperationError`] when shapes do not fit.
    pub fn append(
        &mut self,
        [q, k, v]: [Tensor<B, 3>; 3],
        norms: Option<&[Tensor<B, 1>; 2]>,
        rotation: Option<&Tensor<B, 2>>,
        append: Append,
    ) -> Result<Tensor<B, 4>, OperationError> {
        let tokens = q.dims()[1];
        self.reserve(tokens);
        let [k_cache, v_cache] = self.stored.take().expect("the cache was lost to an error");
        let primitive = |x: TensorPrimitive<B>| x.tensor();
        let mut inputs = vec![
            primitive(q.into_primitive()),
            primitive(k.into_primitive()),
            primitive(v.into_primitive()),
            primitive(k_cache.into_primitive()),
            primitive(v_cache.into_primitive()),
        ];
        for weight in norms.into_iter().flatten() {
            inputs.push(primitive(weight.clone().into_primitive()));
        }
        if let Some(rotation) = rotation {
            inputs.push(primitive(rotation.clone().into_primitive()));
        }
        let append = Append {
            position: self.len,
            ..append
        };
        let outputs = run::<B>(&Operation::Append(append), inputs)?;
        let mut outputs = outputs.into_iter().map(TensorPrimitive::Float);
        let mut next = || Tensor::from_primitive(outputs.next().expect("three outputs"));
        let (q, k, v) = (next(), next(), next());
        self.stored = Some([k, v]);
        self.len += tokens;
        Ok(q)
    }
}

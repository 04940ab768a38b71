//! The KV cache: keys and values of the tokens so far.

use crate::{Append, AttentionBackend, Operation, OperationError, run};
use burn::prelude::*;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorCreationOptions, TensorMetadata, TensorPrimitive};
use butterfly_ops::Operation as LayerOperation;

/// Keys and values of one attention layer, [B, Hkv, room, D] each, appended to in place.
///
/// When the room does not suffice, it grows to a larger whole number of blocks, which copies the
/// tokens so far. Up to the capacity given to [`KvCache::new`] it never has to. A clone shares the
/// memory until one of the two appends; that append copies it first.
#[derive(Clone, Debug)]
pub struct KvCache<B: Backend> {
    /// `None` only while an operation owns the tensors, and after one that failed on the device.
    stored: Option<[Tensor<B, 4>; 2]>,
    len: usize,
    block: usize,
    /// [B, Hkv, D].
    sizes: [usize; 3],
    device: B::Device,
    dtype: DType,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache with room for `capacity` tokens, rounded up to whole blocks of `block`
    /// tokens.
    ///
    /// `sizes` are [B, Hkv, D]; `options` give the device and the element type.
    pub fn new(
        sizes: [usize; 3],
        capacity: usize,
        block: usize,
        options: impl Into<TensorCreationOptions<B>>,
    ) -> Self {
        let options = options.into();
        let block = block.max(1);
        let (room, device) = (whole_blocks(capacity, block), options.device.clone());
        // A persistent allocation has exactly this size: the cache lives long, and is most of the
        // memory that a long sequence takes.
        let stored = B::memory_persistent_allocations(&device, options, |options| {
            empty(sizes, room, options)
        });
        Self {
            len: 0,
            block,
            sizes,
            dtype: stored[0].dtype(),
            device,
            stored: Some(stored),
        }
    }

    /// Number of tokens so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no token yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of tokens that there is room for, those so far included.
    pub fn room(&self) -> usize {
        self.stored.as_ref().map_or(0, |[k, _]| k.dims()[2])
    }

    /// Keys and values, [B, Hkv, room, D] each; only the first [`KvCache::len`] tokens are
    /// meaningful.
    pub fn tensors(&self) -> [Tensor<B, 4>; 2] {
        let stored = self.stored.clone();
        stored.unwrap_or_else(|| self.empty(self.block))
    }

    /// Forgets all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn empty(&self, room: usize) -> [Tensor<B, 4>; 2] {
        empty(self.sizes, room, (&self.device, self.dtype))
    }

    /// The room that the cache needs for `tokens` more tokens.
    fn room_for(&self, tokens: usize) -> usize {
        let needed = self.len.saturating_add(tokens);
        match needed <= self.room() {
            true => self.room(),
            // Grows by half at least, so that many small appends copy each token only a few times.
            false => whole_blocks(needed.max(self.len + self.len / 2), self.block),
        }
    }

    /// Moves keys and values out, with at least this room; copies them if they have less.
    fn take(&mut self, room: usize) -> [Tensor<B, 4>; 2] {
        let Some([k, v]) = self.stored.take() else {
            return self.empty(room);
        };
        if k.dims()[2] >= room {
            return [k, v];
        }
        let [batch, heads, dim] = self.sizes;
        let part = [0..batch, 0..heads, 0..self.len, 0..dim];
        let [new_k, new_v] = self.empty(room);
        let grown = |new: Tensor<B, 4>, old: Tensor<B, 4>| {
            new.slice_assign(part.clone(), old.slice(part.clone()))
        };
        [grown(new_k, k), grown(new_v, v)]
    }
}

impl<B: AttentionBackend> KvCache<B> {
    /// Splits rows of the projections q, k and v [B, T, …] into heads as `append` describes,
    /// appends the keys and values, and returns q [B, Hq, T, D].
    ///
    /// The position in `append` is ignored: tokens are written from [`KvCache::len`] on. `norms`
    /// are the norm weights of q and k, `[D]` each; `rotation` holds the cosines, then the sines of
    /// each position, [T, rotated]. All of them are f32.
    ///
    /// # Errors
    /// [`OperationError`] when the inputs do not fit or exceed a limit of the device; the cache is
    /// unchanged then. If the device fails while the operation runs, the cache is empty
    /// afterwards.
    pub fn append(
        &mut self,
        [q, k, v]: [Tensor<B, 3>; 3],
        norms: Option<&[Tensor<B, 1>; 2]>,
        rotation: Option<&Tensor<B, 2>>,
        append: Append,
    ) -> Result<Tensor<B, 4>, OperationError> {
        let tokens = q.dims()[1];
        let room = self.room_for(tokens);
        let operation = Operation::Layer(LayerOperation::Append(Append {
            position: self.len,
            ..append
        }));
        let primitive = |x: TensorPrimitive<B>| x.tensor();
        let mut inputs = [q, k, v].map(|x| primitive(x.into_primitive())).to_vec();
        let norms = norms.into_iter().flatten();
        let mut others: Vec<_> = norms
            .map(|weight| primitive(weight.clone().into_primitive()))
            .collect();
        others.extend(rotation.map(|rotation| primitive(rotation.clone().into_primitive())));
        self.check(&operation, &inputs, room, &others)?;

        // A failure beyond this point leaves the cache empty.
        let caches = self.take(room);
        let len = std::mem::take(&mut self.len);
        inputs.extend(caches.map(|cache| primitive(cache.into_primitive())));
        inputs.extend(others);
        let outputs = run::<B>(&operation, inputs)?;
        let mut outputs = outputs.into_iter().map(TensorPrimitive::Float);
        let mut next = || Tensor::from_primitive(outputs.next().expect("three outputs"));
        let (q, k, v) = (next(), next(), next());
        self.stored = Some([k, v]);
        self.len = len + tokens;
        Ok(q)
    }

    /// Checks that the operation can run, before the tensors are moved out of the cache.
    fn check(
        &self,
        operation: &Operation,
        rows: &[FloatTensor<B>],
        room: usize,
        others: &[FloatTensor<B>],
    ) -> Result<(), OperationError> {
        let [batch, heads, dim] = self.sizes;
        let device = &self.device;
        let mut shapes = Vec::with_capacity(rows.len() + 2 + others.len());
        let shape = |x: &FloatTensor<B>| (x.shape(), x.dtype());
        shapes.extend(rows.iter().map(shape));
        let cache: Shape = [batch, heads, room, dim].into();
        shapes.extend([(cache.clone(), self.dtype), (cache, self.dtype)]);
        shapes.extend(others.iter().map(shape));
        operation.outputs(&shapes)?;
        let mut devices = rows.iter().chain(others).map(B::float_device);
        if let Some(other) = devices.find(|other| other != device) {
            return Err(OperationError::Argument {
                operation: operation.name(),
                what: format!("a tensor is on {other:?}, the cache on {device:?}"),
            });
        }
        B::prepare(operation, &shapes, device)
    }
}

/// Uninitialised keys and values.
fn empty<B: Backend>(
    [batch, heads, dim]: [usize; 3],
    room: usize,
    options: impl Into<TensorCreationOptions<B>>,
) -> [Tensor<B, 4>; 2] {
    let options = options.into();
    let empty = || Tensor::empty([batch, heads, room, dim], options.clone());
    [empty(), empty()]
}

/// The smallest whole number of blocks for `tokens` tokens, and for at least one, in tokens.
fn whole_blocks(tokens: usize, block: usize) -> usize {
    let tokens = tokens.max(1);
    tokens.checked_next_multiple_of(block).unwrap_or(tokens)
}

//! The KV cache: keys and values of the tokens so far.

mod lags;
mod latents;
mod means;
mod room;

pub use room::kept_at_most;

use crate::attention::{Values, attend};
use crate::{Append, AttentionBackend, Call, Operation, OperationError, Plan, run};
use burn::prelude::*;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorCreationOptions, TensorMetadata, TensorPrimitive};
use butterfly_ir::pattern::Routing;
use butterfly_ops::Operation as LayerOperation;
use lags::Lags;
use means::Means;
use room::whole_blocks;
use std::ops::Range;

/// Keys and values of one attention layer, [B, Hkv, room, D] each, appended to in place.
///
/// A cache with a window keeps only the tokens that are still seen: when there is no room, it drops
/// whole blocks of tokens from its front and moves the others to their place. Positions in
/// [`KvCache::tensors`] are therefore relative to [`KvCache::first`].
///
/// When the room does not suffice, it grows to a larger whole number of blocks, which copies the
/// tokens so far. Up to the capacity given to [`KvCache::new`] it never has to. A clone shares the
/// memory until one of the two appends; that append copies it first.
///
/// Rows of fewer sequences than there are belong to the first ones; the others then [lag](KvCache::lags).
#[derive(Clone, Debug)]
pub struct KvCache<B: Backend> {
    /// Keys, then values, unless they are part of the keys. `None` while an operation owns the tensors,
    /// after one that failed on the device, and in a cache with a window before the first token.
    stored: Option<Vec<Tensor<B, 4>>>,
    /// If set, the value of a key is so many of its first elements, as in latent attention.
    v_in_k: Option<usize>,
    /// Tokens that were dropped, a multiple of `block`.
    first: usize,
    /// Tokens of the longest sequence so far, those that were dropped included.
    len: usize,
    lags: Lags<B>,
    block: usize,
    /// Tokens that the cache was planned for.
    capacity: usize,
    /// Number of last tokens that a query sees, its own included; `None` for all.
    window: Option<usize>,
    /// [B, Hkv, D].
    sizes: [usize; 3],
    device: B::Device,
    dtype: DType,
    /// Means of keys, once a pattern has asked for them.
    means: Option<Means<B>>,
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
        let device = options.device.clone();
        // The type that a tensor of these options has.
        let dtype = Tensor::<B, 1>::empty([1], options).dtype();
        let mut cache = Self::with(sizes, None, [capacity, block], None, (&device, dtype));
        let room = whole_blocks(capacity, cache.block);
        cache.stored = Some(cache.allocated(room));
        cache
    }

    /// An empty cache for queries that see only the last `window` tokens, their own included, for a
    /// pattern that is the same from every whole block on
    /// ([`Pattern::lookback`](butterfly_ir::Pattern::lookback)).
    ///
    /// It gets memory with the first tokens: for no more than `capacity` of them, if they are so
    /// few, and for no more than are seen by the largest chunk that is appended
    /// ([`kept_at_most`]).
    pub fn with_window(
        sizes: [usize; 3],
        capacity: usize,
        block: usize,
        window: usize,
        (device, dtype): (&B::Device, DType),
    ) -> Self {
        let window = Some(window.max(1));
        Self::with(sizes, None, [capacity, block], window, (device, dtype))
    }

    /// A cache without memory.
    fn with(
        sizes: [usize; 3],
        v_in_k: Option<usize>,
        [capacity, block]: [usize; 2],
        window: Option<usize>,
        (device, dtype): (&B::Device, DType),
    ) -> Self {
        Self {
            stored: None,
            v_in_k,
            first: 0,
            len: 0,
            lags: Lags::default(),
            block: block.max(1),
            capacity,
            window,
            sizes,
            device: device.clone(),
            dtype,
            means: None,
        }
    }

    /// Number of tokens of the longest sequence so far, those that were dropped included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Position of the first token that is kept: 0, or in a cache with a window a whole number of
    /// blocks.
    pub fn first(&self) -> usize {
        self.first
    }

    /// Number of tokens that are kept.
    pub fn kept(&self) -> usize {
        self.len - self.first
    }

    /// Number of last tokens for which the cache is made; `None` for all.
    pub fn window(&self) -> Option<usize> {
        self.window
    }

    /// Tokens in a block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Whether there is no token yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of tokens that there is room for, those that are kept included.
    pub fn room(&self) -> usize {
        let keys = self.stored.as_ref().and_then(|stored| stored.first());
        keys.map_or(0, |k| k.dims()[2])
    }

    /// Keys and values, [B, Hkv, room, D] each, or Dv where values are part of the keys; only the first
    /// [`KvCache::kept`] tokens are meaningful, of which the first has position [`KvCache::first`].
    pub fn tensors(&self) -> [Tensor<B, 4>; 2] {
        let (k, values) = self.keys_and_values();
        match values {
            Values::Own(v) => [k, v],
            Values::InKeys(length) => {
                let v = k.clone().narrow(3, 0, length);
                [k, v]
            }
        }
    }

    fn keys_and_values(&self) -> (Tensor<B, 4>, Values<B>) {
        let stored = self.stored.clone();
        let mut stored = stored.unwrap_or_else(|| self.empty(self.block)).into_iter();
        let k = stored.next().expect("every cache has keys");
        match (self.v_in_k, stored.next()) {
            (None, Some(v)) => (k, Values::Own(v)),
            (Some(length), _) => (k, Values::InKeys(length)),
            (None, None) => unreachable!("values are part of the keys or have a tensor"),
        }
    }

    /// Forgets all tokens from `len` on. Returns whether all that a next token sees are still
    /// there; if not, since a cache with a window had dropped some of them, the cache is empty
    /// afterwards.
    ///
    /// Back to where the last append began is always possible.
    pub fn truncate(&mut self, len: usize) -> bool {
        let cut = self.len.saturating_sub(len);
        self.len -= cut;
        self.lags.shorten(cut);
        if let Some(means) = &mut self.means {
            means.known = means.known.min(self.len / means.pool);
        }
        let seen = self.window.map_or(self.len, |window| window - 1);
        let shortest = self.len - self.lags.most();
        let there = self.first == 0 || self.first + seen <= shortest;
        if !there {
            self.forget();
        }
        there
    }

    /// Makes a cache with a window keep all tokens from now on. One that has dropped tokens forgets
    /// the others.
    pub fn keep_all(&mut self) {
        self.window = None;
        if self.first > 0 {
            self.forget();
        }
    }

    fn forget(&mut self) {
        (self.first, self.len) = (0, 0);
        self.lags = Lags::default();
    }

    /// Uninitialised tensors with this room.
    fn empty(&self, room: usize) -> Vec<Tensor<B, 4>> {
        let count = self.tensor_count();
        let of_room = |_| one(self.sizes, room, (&self.device, self.dtype));
        (0..count).map(of_room).collect()
    }

    fn tensor_count(&self) -> usize {
        match self.v_in_k {
            None => 2,
            Some(_) => 1,
        }
    }

    /// As [`empty`](Self::empty), in memory of exactly their size: the cache lives long, and is most of the
    /// memory that a long sequence takes.
    fn allocated(&self, room: usize) -> Vec<Tensor<B, 4>> {
        let (count, sizes, dtype) = (self.tensor_count(), self.sizes, self.dtype);
        B::memory_persistent_allocations(&self.device, self.device.clone(), |device| {
            let tensors = (0..count).map(|_| one(sizes, room, (&device, dtype)));
            tensors.collect()
        })
    }

    /// Moves keys and values out, without the first `drop` of them and with at least this room;
    /// copies them if they have less.
    fn take(&mut self, drop: usize, room: usize) -> Vec<Tensor<B, 4>> {
        let roomy = self.room() >= room;
        let Some(stored) = self.stored.take() else {
            return self.allocated(room);
        };
        if roomy && drop == 0 {
            return stored;
        }
        let [batch, heads, dim] = self.sizes;
        let kept = self.kept();
        let part = |tokens: Range<usize>| [0..batch, 0..heads, tokens, 0..dim];
        let new = |room| one(self.sizes, room, (&self.device, self.dtype));
        let moved = |old: Tensor<B, 4>| {
            let left = kept - drop;
            let rest = old.clone().slice(part(drop..kept));
            match roomy {
                false => new(room).slice_assign(part(0..left), rest),
                // By way of a copy, since a slice may share the memory that is to be written, which
                // would then be copied as a whole.
                true => {
                    let rest = new(left).slice_assign(part(0..left), rest);
                    old.slice_assign(part(0..left), rest)
                }
            }
        };
        stored.into_iter().map(moved).collect()
    }
}

impl<B: AttentionBackend> KvCache<B> {
    /// Splits rows of the projections q, k and v [B, T, …] into heads as `append` describes,
    /// appends the keys and values, and returns q [B, Hq, T, D]. Rows may be those of the first sequences only.
    ///
    /// The position in `append` is ignored: tokens are written after those so far of each sequence. `norms`
    /// are the norm weights of q and k, `[D]` each; `rotation` holds the cosines, then the sines of
    /// each position, [T, rotated], or [B * T, rotated] if sequences lag. All of them are f32.
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
        let [sequences, tokens, _] = q.dims();
        let lags = self.lags.on(sequences, &self.device);
        let rows = [q, k, v].map(|x| x.into_primitive().tensor()).to_vec();
        let lagging = lags.is_some();
        let operation = |position| {
            LayerOperation::Append(Append {
                position,
                lagging,
                ..append
            })
        };
        let mut others = others(norms.into_iter().flatten(), rotation);
        others.extend(lags.map(|lags| B::integers(lags.into_primitive())));
        let q = self.append_by(operation, rows, others, [sequences, tokens])?;
        let q = q.into_iter().next().expect("q and two caches");
        Ok(Tensor::from_primitive(TensorPrimitive::Float(q)))
    }

    /// Appends `tokens` tokens by an operation that takes `rows`, the tensors of the cache, and `others`,
    /// and gives new tensors, which are returned, and then those of the cache. Its position is where the
    /// tokens are written.
    fn append_by(
        &mut self,
        operation: impl FnOnce(usize) -> LayerOperation,
        rows: Vec<FloatTensor<B>>,
        others: Vec<FloatTensor<B>>,
        [sequences, tokens]: [usize; 2],
    ) -> Result<Vec<FloatTensor<B>>, OperationError> {
        let (drop, room) = self.room_for(tokens);
        let operation = Operation::Layer(operation(self.kept() - drop));
        self.check(&operation, &rows, room, &others)?;

        // A failure beyond this point leaves the cache empty.
        let caches = self.take(drop, room);
        let means = self.means.take();
        let first = std::mem::take(&mut self.first) + drop;
        let len = std::mem::take(&mut self.len);
        let mut lags = std::mem::take(&mut self.lags);
        let mut inputs = rows;
        inputs.extend(
            caches
                .into_iter()
                .map(|cache| cache.into_primitive().tensor()),
        );
        inputs.extend(others);
        let mut outputs = run::<B>(&operation, inputs)?;
        let kept = outputs.split_off(outputs.len() - self.tensor_count());
        let kept = kept.into_iter().map(TensorPrimitive::Float);
        self.stored = Some(kept.map(Tensor::from_primitive).collect());
        // The positions of kept keys are counted from `first`.
        self.means = means.filter(|_| drop == 0);
        (self.first, self.len) = (first, len + tokens);
        lags.advance(sequences, self.sizes[0], tokens);
        self.lags = lags;
        Ok(outputs)
    }

    /// Attention of q [B, Hq, q_len, D], the queries of the last tokens of each sequence, or of the first sequences only,
    /// over the keys that are kept, by the pattern of `plan` → o [B, Hq, q_len, D]. `call.kv_len` and `call.lags` are ignored.
    ///
    /// Means of keys, if the pattern chooses blocks by them, are kept beside the keys: only those of new
    /// tokens are computed.
    ///
    /// # Errors
    /// As [`attention`](crate::attention()).
    pub fn attend(
        &mut self,
        q: Tensor<B, 4>,
        plan: &Plan,
        call: &Call,
    ) -> Result<Tensor<B, 4>, OperationError> {
        let (k, values) = self.keys_and_values();
        let means = match plan.routing() {
            None => None,
            Some(Routing { pool, .. }) => Some(self.means(&k, pool as usize)?),
        };
        let call = Call {
            kv_len: Some(self.kept()),
            lags: self.lags.of(q.dims()[0]).to_vec(),
            ..call.clone()
        };
        attend(q, (k, values), means, plan, &call).map(|(o, _)| o)
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
        let caches = (0..self.tensor_count()).map(|_| (cache.clone(), self.dtype));
        shapes.extend(caches);
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

/// Uninitialised keys or values.
fn one<B: Backend>(
    [batch, heads, dim]: [usize; 3],
    room: usize,
    (device, dtype): (&B::Device, DType),
) -> Tensor<B, 4> {
    // Rows of a tensor of several dimensions may be allocated with gaps, which kernels here do not take:
    // the first append would copy them, and 576 elements would take a third more memory until then.
    let all = Tensor::<B, 1>::empty([batch * heads * room * dim], (device, dtype));
    all.reshape([batch, heads, room, dim])
}

/// Weights of norms, then the table of a rotation, as operations take them.
fn others<'a, B: Backend>(
    norms: impl Iterator<Item = &'a Tensor<B, 1>>,
    rotation: Option<&Tensor<B, 2>>,
) -> Vec<FloatTensor<B>> {
    let norms = norms.map(|weight| weight.clone().into_primitive().tensor());
    let rotation = rotation.map(|rotation| rotation.clone().into_primitive().tensor());
    norms.chain(rotation).collect()
}

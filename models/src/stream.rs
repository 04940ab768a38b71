//! The residual stream of a model between two of its layers.

use burn::prelude::*;

/// The residual stream between two layers, for a chunk of each sequence.
#[derive(Clone, Debug)]
pub(crate) struct Stream<B: Backend> {
    /// [B, T, H] in f32.
    pub(crate) x: Tensor<B, 3>,
    /// The output of the last feed-forward layer, not yet added to the stream: the next norm adds
    /// it in the same kernel.
    pub(crate) pending: Option<Tensor<B, 3>>,
}

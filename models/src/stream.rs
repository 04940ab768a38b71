//! The residual stream of a model between two of its layers.

use burn::prelude::*;

/// The residual stream between two layers, for a chunk of each sequence.
#[derive(Clone, Debug)]
pub(crate) struct Stream<B: Backend> {
    /// [B, T, H] in f32.
    pub(crate) x: Tensor<B, 3>,
    /// What is not yet added to the stream: the next norm adds it in the same kernel.
    pub(crate) pending: Option<Pending<B>>,
}

/// What a layer adds to the residual stream.
#[derive(Clone, Debug)]
pub(crate) enum Pending<B: Backend> {
    /// Rows [B, T, H].
    Rows(Tensor<B, 3>),
    /// The sum of rows times weights: what experts give.
    Weighted {
        /// [B, T, k, H].
        rows: Tensor<B, 4>,
        /// [B, T, k] in f32.
        weights: Tensor<B, 3>,
    },
}

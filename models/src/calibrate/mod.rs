//! What each part of a model's attention is worth to its predictions, and which parts to replace.
//!
//! In:  a model, windows of text, and policies that replace some of its attention. Out: how far the
//! predictions move ([`Comparison`]), the order in which parts are replaced, and the pattern of a
//! choice.
//!
//! [`Reference`] is one dense pass over a window. [`Front`] is its residual stream before one layer:
//! what replacing that layer does is found by running only the layers from there on. `choice`,
//! `compose` and `divergence` are arithmetic without a model.

mod choice;
mod compose;
mod divergence;
mod front;
mod same;

pub use choice::{Site, Unit, count, grid, largest, ranked, sites};
pub use compose::compose;
pub use divergence::Comparison;
pub use front::{Front, Reading, Reference};
pub use same::same;

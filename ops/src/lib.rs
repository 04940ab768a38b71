//! The operations that models compute around attention, on the CPU and on every runtime of CubeCL.
//!
//! Owns: the operations (a folder each, with its definition, its shape checks and its kernels), and
//! [`OperationError`]. In: an [`Operation`] and tensors of a backend. Out: tensors of the same backend.
//!
//! Invariants: our kernels sum in f32 in a fixed order, so that the same inputs give the same bits;
//! kernels run only on inputs that [`Operation::outputs`] accepts, and within the limits of the
//! device. This crate knows neither attention nor patterns.

#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]
// Without any backend nothing calls the code that runs operations.
#![cfg_attr(
    not(any(feature = "cpu", feature = "cuda", feature = "vulkan")),
    allow(dead_code, unused_imports)
)]

mod absorb;
mod argmax;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub mod cube;
mod delta;
mod error;
mod expand;
mod experts;
#[cfg(feature = "cpu")]
pub mod flex;
mod gate;
mod heads;
mod inputs;
mod latents;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
mod limits;
mod linear;
mod norm;
mod normed;
mod operation;
mod pool;

pub use absorb::{Absorb, Unabsorb, Up};
pub use argmax::ArgMax;
#[cfg(feature = "cuda")]
pub use delta::MakeDeltaRule;
pub use delta::{Delta, DeltaRules};
pub use error::OperationError;
pub use expand::{Expand, Rotate};
#[cfg(feature = "cuda")]
pub use experts::MakeGrouped;
pub use experts::{Choose, Experts, GroupedProducts, Joined, Route, Section, Sections, Shared};
pub use gate::{Activation, GateOutput};
pub use heads::Append;
pub use inputs::{Inputs, Names, Outputs};
pub use latents::{Latent, Latents};
#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub use limits::{Limits, MOST, product};
#[cfg(feature = "cuda")]
pub use linear::MakeProduct;
#[cfg(feature = "cpu")]
pub use linear::Rows;
pub use linear::{Activations, Embed, Packed, Part, Parts, Products, Project, Storage};
pub use norm::{AddNorm, Norm};
pub use normed::{Added, Normed};
pub use operation::Operation;
pub use pool::Pool;

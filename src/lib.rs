//! Block-sparse attention for Burn models.
//!
//! Owns: passing Burn tensors to kernels. In: a [`Plan`] (a pattern, and kernels from an artifact
//! folder, from the program itself, or made at first use), and tensors of any backend that
//! implements [`AttentionBackend`]. Out: tensors of the same backend.
//!
//! Invariants: no call waits for a launch; launches keep the order of the backend's stream; inputs
//! that do not fit are an error before anything runs; a missing kernel is an error, never a silent
//! fallback to dense attention.
//!
//! Contiguous inputs are used in place. These are copied first:
//! - on CubeCL's backends, q, k and v of attention if their last dimension is not contiguous (as
//!   after a transpose). The rows of projections that [`Append`] and [`Delta`] read, for the same
//!   reason or if they span more elements than 32 bits count. Other views of these inputs, such as
//!   `swap_dims(1, 2)` of heads, are used in place. All other inputs (of norms, gates and matrix
//!   products, and the delta rule's state) if they are not contiguous;
//! - on the CPU, every input that is not contiguous, and f16 and bf16 inputs of attention, which
//!   are converted to f32;
//! - a [`KvCache`] that shares its memory with a clone, when one of the two appends, and one that
//!   has to grow or to drop tokens.
//!
//! ```
//! use burn::tensor::{Distribution, Tensor};
//! use butterfly::{Call, Plan, attention};
//! type B = burn_flex::Flex;
//!
//! let device = Default::default();
//! let random = |heads| Tensor::<B, 4>::random([1, heads, 300, 32], Distribution::Default, &device);
//! let plan = Plan::new(butterfly::Sparsity::parse(
//!     "mine",
//!     "block 32 causal & (local(1) | partner(causal_shift) | sink(1))",
//! )?)?;
//! let o = attention(random(4), random(2), random(2), &plan, &Call::default())?;
//! assert_eq!(o.dims(), [1, 4, 300, 32]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]
// Without any backend nothing calls the code that runs operations.
#![cfg_attr(
    not(any(feature = "cpu", feature = "cuda", feature = "vulkan")),
    allow(dead_code, unused_imports)
)]

mod attention;
#[cfg(feature = "autodiff")]
mod autodiff;
mod backend;
pub mod backends;
mod cache;
mod checked;
mod compiled;
mod counts;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
mod cube;
mod delta_rules;
#[cfg(feature = "cpu")]
mod flex;
#[cfg(feature = "fusion")]
mod fusion;
mod grouped;
mod operation;
mod plan;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
mod scorers;
mod shapes;
mod tables;

pub use attention::{Attention, AttentionConfig, Call, attention, attention_with_lse};
pub use backend::{AttentionBackend, run};
pub use butterfly_ir as ir;
pub use butterfly_ir::{Dtype, Sparsity, StageBy, Target};
pub use butterfly_macros::{include_artifacts, pattern};
pub use butterfly_ops as ops;
pub use butterfly_ops::{Append, Delta, OperationError};
pub use cache::{KvCache, kept_at_most};
pub use checked::Checked;
pub use compiled::compiled;
pub use counts::Counts;
pub use operation::{Attend, DECODE_QUERIES, MOST_LAGS, Operation};
pub use plan::{Embedded, Plan};

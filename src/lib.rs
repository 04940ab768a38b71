//! Block-sparse attention for Burn models.
//!
//! Owns: Burn tensors on their way to kernels. In: a [`Plan`] (a pattern, and kernels from
//! an artifact folder, from the program itself, or made at first use), and tensors of any
//! backend that is an [`AttentionBackend`]. Out: tensors of the same backend.
//!
//! Invariants: around a launch nothing is copied, laid out anew or waited for; launches are
//! in the order of the backend's stream; a kernel that is not there is an error, and nothing
//! becomes dense attention by itself.
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
//! )?);
//! let o = attention(random(4), random(2), random(2), &plan, &Call::default())?;
//! assert_eq!(o.dims(), [1, 4, 300, 32]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Without any backend there is nobody to run anything.
#![cfg_attr(
    not(any(feature = "cpu", feature = "cuda", feature = "vulkan")),
    allow(dead_code, unused_imports)
)]

mod attention;
#[cfg(feature = "autodiff")]
mod autodiff;
mod backend;
mod cache;
mod compiled;
mod counts;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
mod cube;
mod error;
#[cfg(feature = "cpu")]
mod flex;
#[cfg(feature = "fusion")]
mod fusion;
mod operation;
mod plan;
mod shapes;

pub use attention::{Attention, AttentionConfig, Call, attention, attention_with_lse};
pub use backend::{AttentionBackend, run};
pub use butterfly_ir as ir;
pub use butterfly_ir::{Dtype, Sparsity, StageBy, Target};
pub use butterfly_macros::{include_artifacts, pattern};
pub use cache::KvCache;
pub use compiled::compiled;
pub use counts::Counts;
pub use error::OperationError;
pub use operation::{Activation, Append, Attend, Delta, Operation};
pub use plan::{Embedded, Plan};

//! The native attention kernel and its f64 reference.
//!
//! Owns: block-sparse attention on the CPU, forward, in f32: tiles, online softmax,
//! vector instructions and threads.
//!
//! In:  contiguous q, k, v and, for each row of blocks, its [bands](butterfly_ir::Band).
//! Out: o and the log-sum-exp of the logits ([`Attention`]), or what does not fit
//! ([`ProblemError`]).
//!
//! Invariants: functions of their arguments only, without I/O; the same bits for any
//! number of threads; tiles that no query sees are never touched; patterns are unknown
//! here, bands are all there is.
//!
//! How it works: the lanes of a vector are queries, of all heads that share a kv head.
//! Both matrix products then read k and v in place (`product.rs`), and the softmax between
//! them has no reduction across lanes (`softmax.rs`). A tile whose keys every query of the
//! panel sees has no mask; elsewhere a mask is two comparisons for each band.

#![warn(unsafe_op_in_unsafe_fn)]
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

mod attend;
mod isa;
mod plan;
mod problem;
mod product;
pub mod reference;
mod scratch;
mod simd;
mod softmax;
mod tile;
mod transpose;

pub use attend::{attend, attend_into, attend_on, visited_pairs};
pub use isa::Isa;
pub use problem::{Attention, Problem, ProblemError};

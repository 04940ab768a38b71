//! The native attention kernel and its f64 reference.
//!
//! Owns: block-sparse attention on the CPU, forward, in f32: tiles, online softmax,
//! vector instructions and threads; the choice of blocks by content.
//!
//! In:  contiguous q in f32, k and v in f32 or 16 bits ([`Elements`]), and, for each row, its [bands](butterfly_ir::Band).
//! Out: o and the log-sum-exp of the logits ([`Attention`]), or the argument that does
//! not fit ([`ProblemError`]).
//!
//! Invariants: results depend on the arguments only, and there is no I/O; results are
//! bitwise the same for any number of threads; a tile of queries never reads a tile of keys
//! that none of its queries sees. This crate knows bands, but not patterns.
//!
//! How it works: each lane of a vector holds one query. The queries of all heads that
//! share a kv head are put side by side. Both matrix products then read k and v in place
//! (`product.rs`), and the softmax between them needs no reduction across lanes
//! (`softmax.rs`). *Panel* is the name for as many queries as one or two vectors have
//! lanes. A tile of keys that are all seen by every query of a panel needs no mask; in
//! other tiles, the mask takes two comparisons for each band.

#![warn(unsafe_op_in_unsafe_fn)]
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

mod attend;
mod elements;
mod few;
mod isa;
mod problem;
mod product;
mod query_tiles;
pub mod reference;
mod route;
mod scratch;
mod simd;
mod softmax;
mod tile;
mod transpose;

pub use attend::{attend, attend_into, attend_on, visited_pairs};
pub use elements::{Elements, Values};
pub use isa::Isa;
pub use problem::{Attention, Problem, ProblemError};
pub use route::{Route, route};

//! Passes from pattern, shape and model graph to plans.
//!
//! Owns: every decision that is taken before a kernel is emitted. In: a
//! [`Sparsity`](butterfly_ir::Sparsity) and a model's config. Out: a
//! [`Plan`](butterfly_ir::plan::Plan), what was proved about it, and what it will cost.
//!
//! Invariants: pure functions between the types of `butterfly-ir`, one pass a file,
//! [`pipeline`] in order; no pass makes a T×T mask; nothing here knows a device.

#![forbid(unsafe_code)]

pub mod card;
pub mod classify;
pub mod config;
pub mod cost;
pub mod family;
pub mod fuse;
pub mod graph;
pub mod lengths;
pub mod pipeline;
pub mod plan;
pub mod prove;
pub mod resolve;
pub mod schedule;
pub mod stretch;
pub mod verify;
pub mod work;

pub use butterfly_ir::key;

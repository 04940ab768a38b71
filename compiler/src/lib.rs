//! The compiler's passes: from a pattern and a model's config to a plan.
//!
//! Owns: every decision that is taken before a kernel is emitted. In: a
//! [`Sparsity`](butterfly_ir::Sparsity) and a model's config. Out: a
//! [`Plan`](butterfly_ir::plan::Plan), the proof of what its layers reach, and its predicted cost.
//!
//! Invariants: passes are pure functions between the types of `butterfly-ir`, one file each;
//! [`pipeline`] runs them in order. No pass builds a T×T mask, and nothing here accesses a device.

#![forbid(unsafe_code)]

pub mod card;
mod chosen;
pub mod classify;
pub mod config;
pub mod cost;
pub mod family;
pub mod form;
pub mod fuse;
pub mod graph;
pub mod lengths;
pub mod parts;
pub mod pipeline;
pub mod plan;
pub mod prove;
pub mod resolve;
pub mod schedule;
pub mod stretch;
pub mod verify;
pub mod work;

pub use butterfly_ir::key;

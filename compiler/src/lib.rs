//! Passes from pattern, shape and model graph to plans.

pub mod classify;
pub mod config;
pub mod cost;
pub mod fuse;
pub mod graph;
pub mod key;
pub mod lengths;
pub mod plan;
pub mod prove;
pub mod resolve;
pub mod work;

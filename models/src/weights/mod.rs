//! Weights as people hold them, in files other than safetensors.
//!
//! In:  the path of a GGUF file. Out: what a model is loaded from: a config as `config.json` has it
//! ([`metadata`]), and every tensor with its name in a Hugging Face checkpoint and what was changed
//! since ([`names`], [`change`]).

pub(crate) mod architecture;
pub(crate) mod change;
#[cfg(test)]
mod fuzz;
pub(crate) mod gguf;
pub(crate) mod metadata;
pub(crate) mod names;
#[cfg(test)]
mod twins;

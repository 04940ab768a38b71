//! Language models in Burn, from Hugging Face folders and GGUF files.
//!
//! This crate owns the weights, the layers around attention, KV caches and recurrent states,
//! tokenizers, chat templates and sampling. In: a folder with `config.json`, safetensors and
//! `tokenizer.json`, or a GGUF file, and a [`Policy`] that gives each attention layer its pattern and kernels.
//! Out: logits, and text.
//!
//! Invariants:
//! - A model is loaded completely or not at all. The error names every tensor that is missing or
//!   has a wrong shape; unused tensors are returned by name.
//! - Every attention layer runs the plan that its policy names, and counts its launches.
//! - With a fixed capacity, the logits of a prompt do not depend on how it is cut into chunks.

pub mod calibrate;
mod chat;
mod checkpoint;
mod chunks;
mod contents;
mod decoder;
mod defaults;
mod error;
mod finite;
mod footprint;
mod foreign;
mod generate;
mod gpt2;
mod guard;
mod layers;
mod loader;
mod logits;
mod model;
mod packing;
mod policy;
mod policy_file;
mod profile;
mod rotation;
mod special;
mod state;
mod stream;
mod template;
mod tokenizer;
mod vocabulary;
mod weights;

pub use chat::{Chat, Message};
pub use checkpoint::{Checkpoint, read_config};
pub use chunks::{PromptChunk, prompt_chunks};
pub use contents::{Contents, OfType};
pub use defaults::Defaults;
pub use error::ModelError;
pub use finite::NotFinite;
pub use footprint::{Extent, Footprint};
pub use generate::{Sampler, Sampling};
pub use loader::Unused;
pub use logits::{floats, greedy};
pub use model::{Logits, Model};
pub use packing::read_packing;
pub use policy::{LayerPolicy, Policy};
pub use policy_file::{Chosen, ModelShape, PolicyFile, Ranking};
pub use profile::Profile;
pub use state::State;
pub use tokenizer::Stream;
pub use weights::upload::Taken;

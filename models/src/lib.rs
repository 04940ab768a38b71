//! Language models in Burn, from Hugging Face folders.
//!
//! Owns: weights, the layers around attention, the caches of a running text, tokens and
//! their choice. In: a folder with `config.json`, safetensors and `tokenizer.json`, and a
//! [`Policy`] that says which layers follow a pattern. Out: logits, and text.
//!
//! Invariants: a model is loaded whole or not at all, with every tensor that is missing,
//! wrongly shaped or unused known by name; every attention layer runs what its policy says,
//! and counts it; logits of a prompt do not depend on how it is cut into chunks.

mod chat;
mod decoder;
mod defaults;
mod error;
mod finite;
mod folder;
mod footprint;
mod generate;
mod gpt2;
mod guard;
mod layers;
mod loader;
mod model;
mod policy;
mod profile;
mod rotation;
mod shards;
mod special;
mod state;
mod template;
mod tokenizer;

pub use chat::{Chat, Message};
pub use defaults::Defaults;
pub use error::ModelError;
pub use finite::NotFinite;
pub use folder::{Folder, read_config};
pub use footprint::{Extent, Footprint};
pub use generate::{Sampler, Sampling};
pub use loader::Unused;
pub use model::{Logits, Model};
pub use policy::{LayerPolicy, Policy};
pub use profile::Profile;
pub use state::State;
pub use tokenizer::Stream;

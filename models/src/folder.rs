//! A Hugging Face folder on disk.
//!
//! In:  a path. Out: its config, and every tensor of its safetensors by name.

use crate::loader;
use crate::shards::{Shards, View};
use crate::{Defaults, ModelError};
use butterfly_compiler::{config, family};
use butterfly_ir::model::{Family, ModelConfig, ModelSizes};
use std::path::{Path, PathBuf};

/// An opened folder.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    /// The attention layers.
    pub config: ModelConfig,
    /// All other sizes. Of tied embeddings and an output projection of its own, what the
    /// weights are: see [`own_output`](Self::own_output).
    pub sizes: ModelSizes,
    /// What `generation_config.json` says; the tokens that end a text are in `sizes` already.
    pub defaults: Defaults,
    shards: Shards,
    own_output: bool,
}

/// The output projection, which stands beside the model.
pub(crate) const OUTPUT: &str = "lm_head.weight";

impl Folder {
    /// Opens a folder: its config, and where each tensor lies.
    ///
    /// # Errors
    /// [`ModelError`] that names the file.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let (config, mut sizes) = read_config(&dir.join("config.json"))?;
        let defaults = Defaults::open(&dir.join("generation_config.json"))?;
        if let Some(ends) = &defaults.ends {
            sizes.ends.clone_from(ends);
        }
        let mut folder = Self {
            dir: dir.to_path_buf(),
            config,
            sizes,
            defaults,
            shards: Shards::open(dir)?,
            own_output: false,
        };
        let embedding = folder.tensor(&folder.embedding());
        let matrices = embedding.zip(folder.tensor(OUTPUT));
        if folder.sizes.tied && matrices.is_some_and(|(a, b)| !loader::same(a, b)) {
            folder.sizes.tied = false;
            folder.own_output = true;
        }
        Ok(folder)
    }

    /// Whether the weights have an output projection that is not the embedding, though the config
    /// ties the two. As in transformers from 5.0 on, the weights decide.
    pub fn own_output(&self) -> bool {
        self.own_output
    }

    /// What stands before the names of all tensors but the output projection.
    pub(crate) fn prefix(&self) -> &'static str {
        let any = |start: &str| self.names().any(|name| name.starts_with(start));
        let prefixes = family::of(self.config.family).prefixes;
        let first = prefixes.iter().find(|prefix| any(prefix));
        first.or(prefixes.last()).copied().unwrap_or_default()
    }

    /// The whole name of the embedding of tokens. Where it is tied and only the output projection
    /// is there, that is it.
    pub(crate) fn embedding(&self) -> String {
        let name = family::of(self.config.family).embedding;
        let name = format!("{}{name}", self.prefix());
        let has = |name: &str| self.tensor(name).is_some();
        match self.sizes.tied && !has(&name) && has(OUTPUT) {
            true => OUTPUT.to_string(),
            false => name,
        }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<View<'_>> {
        self.shards.get(name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.shards.names()
    }
}

/// Reads a `config.json`: the attention layers, and all other sizes.
///
/// # Errors
/// [`ModelError`] that names the file and the field.
pub fn read_config(path: &Path) -> Result<(ModelConfig, ModelSizes), ModelError> {
    let text = read(path, "; give a Hugging Face model folder")?;
    let name = path.display().to_string();
    let config = config::read(&name, &text)?;
    supported(config.family, path)?;
    let sizes = config::sizes(&name, &text, &config)?;
    Ok((config, sizes))
}

/// Whether the layers of a family are written.
fn supported(family: Family, path: &Path) -> Result<(), ModelError> {
    match family::of(family).runs {
        true => Ok(()),
        false => Err(ModelError::Family {
            path: path.to_path_buf(),
            family: family.name(),
        }),
    }
}

pub(crate) fn read(path: &Path, hint: &'static str) -> Result<String, ModelError> {
    std::fs::read_to_string(path).map_err(|error| ModelError::Io {
        path: path.to_path_buf(),
        error,
        hint,
    })
}

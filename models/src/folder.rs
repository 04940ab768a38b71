//! A Hugging Face folder on disk.
//!
//! In:  a path. Out: its config, and every tensor of its safetensors by name.

use crate::loader;
use crate::weights::View;
use crate::weights::safetensors::Shards;
use crate::{Defaults, ModelError};
use butterfly_compiler::{config, family};
use butterfly_ir::model::{Family, ModelConfig, ModelSizes};
use std::path::{Path, PathBuf};

/// An opened model folder: its config, and its memory-mapped weights.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    /// The attention layers.
    pub config: ModelConfig,
    /// All other sizes. Whether the output projection is tied to the embedding is decided by the
    /// weights, not by the config: see [`own_output`](Self::own_output). The tokens that end a
    /// text are those of `generation_config.json`, if it names them.
    pub sizes: ModelSizes,
    /// The settings of `generation_config.json`.
    pub defaults: Defaults,
    shards: Shards,
    own_output: bool,
}

/// The output projection; unlike all other tensors it has no prefix in its name.
pub(crate) const OUTPUT: &str = "lm_head.weight";

impl Folder {
    /// Opens a folder: reads its config and maps its weights.
    ///
    /// # Errors
    /// A [`ModelError`] that names the file which cannot be read or used.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        crate::foreign::check(dir)?;
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
        if folder.sizes.tied && matrices.is_some_and(|(a, b)| !loader::same(&a, &b)) {
            folder.sizes.tied = false;
            folder.own_output = true;
        }
        Ok(folder)
    }

    /// Whether the weights hold an output projection that differs from the embedding although the
    /// config ties the two. It is then used: as in transformers from 5.0 on, the weights decide.
    pub fn own_output(&self) -> bool {
        self.own_output
    }

    /// The prefix of the names of all tensors except the output projection.
    pub(crate) fn prefix(&self) -> &'static str {
        let any = |start: &str| self.names().any(|name| name.starts_with(start));
        let prefixes = family::of(self.config.family).prefixes;
        let first = prefixes.iter().find(|prefix| any(prefix));
        first.or(prefixes.last()).copied().unwrap_or_default()
    }

    /// The full name of the token embedding. If the two matrices are tied and the folder holds only
    /// the output projection, this is the name of the output projection.
    pub(crate) fn embedding(&self) -> String {
        let name = family::of(self.config.family).embedding;
        let name = format!("{}{name}", self.prefix());
        let has = |name: &str| self.tensor(name).is_some();
        match self.sizes.tied && !has(&name) && has(OUTPUT) {
            true => OUTPUT.to_string(),
            false => name,
        }
    }

    /// The path of the folder.
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
/// A [`ModelError`] that names the file and, where there is one, the field;
/// [`ModelError::Family`] for a model that can be compiled for but not run.
pub fn read_config(path: &Path) -> Result<(ModelConfig, ModelSizes), ModelError> {
    let text = read(path, "; give a Hugging Face model folder")?;
    let name = path.display().to_string();
    let config = config::read(&name, &text)?;
    supported(config.family, path)?;
    let sizes = config::sizes(&name, &text, &config)?;
    Ok((config, sizes))
}

/// Checks that this crate has the layers of a family.
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

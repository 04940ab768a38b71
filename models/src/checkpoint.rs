//! A model on disk: a Hugging Face folder, or a GGUF file.
//!
//! In:  a path. Out: its config, and every tensor by the name that Hugging Face gives it.

use crate::weights::gguf_model::GgufModel;
use crate::weights::safetensors::Shards;
use crate::weights::{Element, View, numbers};
use crate::{Defaults, ModelError};
use butterfly::ops::Activations;
use butterfly_compiler::{config, family};
use butterfly_ir::model::{ModelConfig, ModelSizes};
use std::path::{Path, PathBuf};

/// An opened model: its config, and its memory-mapped weights.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    /// The attention layers.
    pub config: ModelConfig,
    /// All other sizes. Whether the output projection is tied to the embedding is decided by the
    /// weights, not by the config: see [`own_output`](Self::own_output). The tokens that end a
    /// text are those of `generation_config.json`, if it names them.
    pub sizes: ModelSizes,
    /// The settings of `generation_config.json`.
    pub defaults: Defaults,
    files: Files,
    own_output: bool,
    activations: Activations,
}

/// The files that hold the weights.
#[derive(Debug)]
enum Files {
    Folder(Shards),
    Gguf(Box<GgufModel>),
}

/// The output projection; unlike all other tensors it has no prefix in its name.
pub(crate) const OUTPUT: &str = "lm_head.weight";

impl Checkpoint {
    /// Opens a model: reads its config and maps its weights. A path to a file is that of a GGUF file;
    /// a folder is one of Hugging Face's.
    ///
    /// # Errors
    /// A [`ModelError`] that names the file which cannot be read or used.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        crate::foreign::check(path)?;
        if path.is_file() {
            return Self::of_gguf(path);
        }
        let (config, mut sizes) = read_config(&path.join("config.json"))?;
        let defaults = Defaults::open(&path.join("generation_config.json"))?;
        if let Some(ends) = &defaults.ends {
            sizes.ends.clone_from(ends);
        }
        let mut checkpoint = Self {
            path: path.to_path_buf(),
            config,
            sizes,
            defaults,
            files: Files::Folder(Shards::open(path)?),
            own_output: false,
            activations: Activations::Kept,
        };
        let embedding = checkpoint.tensor(&checkpoint.embedding());
        let matrices = embedding.zip(checkpoint.tensor(OUTPUT));
        if checkpoint.sizes.tied && matrices.is_some_and(|(a, b)| !numbers::same(&a, &b)) {
            checkpoint.sizes.tied = false;
            checkpoint.own_output = true;
        }
        Ok(checkpoint)
    }

    fn of_gguf(path: &Path) -> Result<Self, ModelError> {
        let (model, config, sizes) = GgufModel::open(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            config,
            sizes,
            defaults: Defaults::default(),
            files: Files::Gguf(Box::new(model)),
            own_output: false,
            activations: Activations::Kept,
        })
    }

    /// Whether the weights hold an output projection that differs from the embedding although the
    /// config ties the two. It is then used: as in transformers from 5.0 on, the weights decide.
    pub fn own_output(&self) -> bool {
        self.own_output
    }

    /// The same weights; rows that are multiplied with those in FP8 become `activations`.
    pub fn with_activations(self, activations: Activations) -> Self {
        Self {
            activations,
            ..self
        }
    }

    pub(crate) fn activations(&self) -> Activations {
        self.activations
    }

    /// Whether any weights are in FP8.
    pub fn has_float8(&self) -> bool {
        let mut tensors = self.names().filter_map(|name| self.tensor(name));
        tensors.any(|tensor| tensor.element == Element::F8)
    }

    /// The prefix of the names of all tensors except the output projection.
    pub(crate) fn prefix(&self) -> &'static str {
        let any = |start: &str| self.names().any(|name| name.starts_with(start));
        let prefixes = family::of(self.config.family).prefixes;
        let first = prefixes.iter().find(|prefix| any(prefix));
        first.or(prefixes.last()).copied().unwrap_or_default()
    }

    /// The full name of the token embedding. If the two matrices are tied and only the output projection is
    /// stored, this is the name of the output projection.
    pub(crate) fn embedding(&self) -> String {
        let name = family::of(self.config.family).embedding;
        let name = format!("{}{name}", self.prefix());
        let has = |name: &str| self.tensor(name).is_some();
        match self.sizes.tied && !has(&name) && has(OUTPUT) {
            true => OUTPUT.to_string(),
            false => name,
        }
    }

    /// The path of the folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that says what the sizes of the model are.
    pub fn config_file(&self) -> PathBuf {
        match self.files {
            Files::Folder(_) => self.path.join("config.json"),
            Files::Gguf(_) => self.path.clone(),
        }
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<View<'_>> {
        match &self.files {
            Files::Folder(shards) => shards.get(name),
            Files::Gguf(model) => model.get(name),
        }
    }

    pub(crate) fn names(&self) -> Box<dyn Iterator<Item = &String> + '_> {
        match &self.files {
            Files::Folder(shards) => Box::new(shards.names()),
            Files::Gguf(model) => Box::new(model.names()),
        }
    }
}

/// Reads a `config.json`: the attention layers, and all other sizes.
///
/// # Errors
/// A [`ModelError`] that names the file and, where there is one, the field.
pub fn read_config(path: &Path) -> Result<(ModelConfig, ModelSizes), ModelError> {
    let text = read(path, "; give a Hugging Face model folder")?;
    let name = path.display().to_string();
    let config = config::read(&name, &text)?;
    let sizes = config::sizes(&name, &text, &config)?;
    Ok((config, sizes))
}

pub(crate) fn read(path: &Path, hint: &'static str) -> Result<String, ModelError> {
    std::fs::read_to_string(path).map_err(|error| ModelError::Io {
        path: path.to_path_buf(),
        error,
        hint,
    })
}

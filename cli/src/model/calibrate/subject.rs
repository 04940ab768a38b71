//! The model that is calibrated.
//!
//! In:  a folder or GGUF file, or a config and a seed. Out: its sizes, and where its weights are from.

use super::super::weights::Weights;
use super::super::{Place, open, packing};
use crate::args::Calibrate as Command;
use crate::failure::Failure;
use butterfly::AttentionBackend;
use butterfly_ir::model::{ModelConfig, ModelSizes};
use butterfly_models::{Checkpoint, Model, ModelShape, Taken, read_config};
use std::path::{Path, PathBuf};

pub(super) struct Subject {
    /// A folder or GGUF file; with random weights the config.
    pub(super) path: PathBuf,
    pub(super) config: ModelConfig,
    pub(super) sizes: ModelSizes,
    weights: Weights,
}

impl Subject {
    pub(super) fn open(command: &Command) -> Result<Self, Failure> {
        match (&command.model, &command.random_weights) {
            (Some(path), _) => {
                let folder = open(path, &command.run)?;
                Ok(Self {
                    path: path.clone(),
                    config: folder.config.clone(),
                    sizes: folder.sizes.clone(),
                    weights: Weights::Stored(Box::new(folder)),
                })
            }
            (None, Some(path)) => {
                let (config, sizes) = read_config(path).map_err(Failure::bad)?;
                let packed = packing(path, &command.run)?;
                let seed = Some(command.seed);
                Ok(Self {
                    path: path.clone(),
                    config,
                    sizes,
                    weights: Weights::Random { packed, seed },
                })
            }
            (None, None) => Err(Failure::Bad("give --model or --random-weights".into())),
        }
    }

    /// The seed of its weights, if they are random.
    pub(super) fn seed(&self) -> Option<u64> {
        match self.weights {
            Weights::Stored(_) => None,
            Weights::Random { seed, .. } => seed,
        }
    }

    pub(super) fn checkpoint(&self) -> Option<&Checkpoint> {
        self.weights.checkpoint()
    }

    pub(super) fn config_file(&self) -> PathBuf {
        let stored = self.checkpoint().map(Checkpoint::config_file);
        stored.unwrap_or_else(|| self.path.clone())
    }

    pub(super) fn shape(&self) -> ModelShape {
        ModelShape::new(&self.config, &self.sizes)
    }

    /// The memory of its weights.
    pub(super) fn taken<B: AttentionBackend>(&self, place: &Place<B>) -> Result<Taken, Failure> {
        self.weights.taken((&self.config, &self.sizes), place)
    }

    /// Its weights on a device, for which there is room.
    pub(super) fn load<B: AttentionBackend>(&self, place: &Place<B>) -> Result<Model<B>, Failure> {
        self.weights.load((&self.config, &self.sizes), place)
    }

    /// Its files, by which one that was changed is told from what it was: names, lengths and times.
    pub(super) fn files(&self) -> Result<Vec<(String, u64, u128)>, Failure> {
        let failed = |error| Failure::file(&self.path, format!("cannot read: {error}"));
        let entry = |path: &Path| {
            let meta = std::fs::metadata(path)?;
            let since = meta.modified()?.duration_since(std::time::UNIX_EPOCH);
            let time = since.map_or(0, |since| since.as_nanos());
            Ok((path.display().to_string(), meta.len(), time))
        };
        let path = self.path.canonicalize().map_err(failed)?;
        if path.is_file() {
            return Ok(vec![entry(&path).map_err(failed)?]);
        }
        let list = || -> std::io::Result<Vec<_>> {
            let entries = std::fs::read_dir(&path)?;
            let mut files = Vec::new();
            for found in entries {
                let path = found?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if name.ends_with(".safetensors")
                    || name == "config.json"
                    || name == "tokenizer.json"
                {
                    files.push(entry(&path)?);
                }
            }
            files.sort();
            Ok(files)
        };
        list().map_err(failed)
    }
}

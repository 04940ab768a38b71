//! A Hugging Face folder on disk.
//!
//! In:  a path. Out: its config, and every tensor of its safetensors by name, mapped and not
//! read; truncated and malformed files are found here.

use crate::ModelError;
use butterfly_compiler::config;
use butterfly_ir::model::{Family, ModelConfig, ModelSizes};
use safetensors::tensor::{Dtype, Metadata};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

/// An opened folder.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    /// The attention layers.
    pub config: ModelConfig,
    /// All other sizes.
    pub sizes: ModelSizes,
    tensors: HashMap<String, Stored>,
    maps: Vec<memmap2::Mmap>,
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
struct Stored {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: std::ops::Range<usize>,
}

/// A tensor in its file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) dtype: Dtype,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a [u8],
}

/// Largest header of a safetensors file, as the format's own library has it.
const MOST_HEADER: u64 = 100_000_000;

impl Folder {
    /// Opens a folder: its config, and where each tensor lies.
    ///
    /// # Errors
    /// [`ModelError`] that names the file.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let (config, sizes) = read_config(&dir.join("config.json"))?;
        let mut folder = Self {
            dir: dir.to_path_buf(),
            config,
            sizes,
            tensors: HashMap::new(),
            maps: Vec::new(),
        };
        for file in folder.files()? {
            folder.map(&file)?;
        }
        Ok(folder)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Files with weights: those of the index, else `model.safetensors`.
    fn files(&self) -> Result<Vec<PathBuf>, ModelError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let path = self.dir.join("model.safetensors.index.json");
        if !path.exists() {
            return Ok(vec![self.dir.join("model.safetensors")]);
        }
        let wrong = |what| ModelError::File {
            path: path.clone(),
            what,
        };
        let index: Index = serde_json::from_str(&read(&path, "")?)
            .map_err(|error| wrong(format!("is no index of safetensors: {error}")))?;
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        let file = |name: &String| match Path::new(name).file_name() {
            Some(plain) if plain == name.as_str() => Ok(self.dir.join(name)),
            _ => Err(wrong(format!("names `{name}` outside the folder"))),
        };
        names.into_iter().map(file).collect()
    }

    fn map(&mut self, path: &Path) -> Result<(), ModelError> {
        let io = |error| ModelError::Io {
            path: path.to_path_buf(),
            error,
            hint: "; give a folder with config.json and model.safetensors",
        };
        let wrong = |what: String| ModelError::File {
            path: path.to_path_buf(),
            what: format!("{what}; download it again"),
        };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the mapping is read only; a file that somebody changes meanwhile would give
        // other numbers, as reading it would.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        let length = map
            .first_chunk::<8>()
            .map(|bytes| u64::from_le_bytes(*bytes));
        let Some(header) = length.filter(|n| *n <= MOST_HEADER) else {
            return Err(wrong("is no safetensors file".into()));
        };
        let start = 8 + header as usize;
        let text = map.get(8..start);
        let text =
            text.ok_or_else(|| wrong(format!("ends within its header of {header} bytes")))?;
        let metadata: Metadata = serde_json::from_slice(text)
            .map_err(|error| wrong(format!("has a header that is none: {error}")))?;
        for (name, info) in metadata.tensors() {
            let (from, to) = info.data_offsets;
            let bytes = start + from..start + to;
            if map.get(bytes.clone()).is_none() {
                let missing = bytes.end - map.len();
                return Err(wrong(format!(
                    "is truncated: tensor `{name}` ends {missing} bytes after the file"
                )));
            }
            let stored = Stored {
                file: self.maps.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes,
            };
            self.tensors.insert(name, stored);
        }
        self.maps.push(map);
        Ok(())
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<View<'_>> {
        let stored = self.tensors.get(name)?;
        Some(View {
            dtype: stored.dtype,
            shape: &stored.shape,
            bytes: &self.maps[stored.file][stored.bytes.clone()],
        })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
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
    match family {
        Family::Gpt2 | Family::Llama | Family::Qwen3 | Family::Qwen35 => Ok(()),
        Family::Qwen35Moe | Family::Glm4MoeLite => Err(ModelError::Family {
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

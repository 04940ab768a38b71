//! GGUF files: metadata, and the tensors that they hold.
//!
//! In:  the path of a file, or of any part of a model in parts (`NAME-00001-of-00003.gguf`). Out:
//! every value of the metadata by key, and every tensor with its type, shape and place. Files are
//! mapped and not read; mappings are shared, so that a tensor may outlive what opened it.
//!
//! Errors name the file and, where there is one, the key or the tensor.

mod cursor;
mod getters;
mod parse;
mod parts;
#[cfg(test)]
mod tests;
mod types;
mod value;

pub(crate) use types::GgmlType;
pub(crate) use value::{Value, decimal};

use crate::ModelError;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An opened GGUF model.
#[derive(Debug)]
pub(crate) struct Gguf {
    /// The file with the metadata: the only one, or the first part.
    path: PathBuf,
    metadata: HashMap<String, Value>,
    tensors: Vec<Tensor>,
    /// Where each name is in `tensors`.
    index: HashMap<String, usize>,
    maps: Vec<Arc<memmap2::Mmap>>,
}

/// A tensor of a GGUF model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tensor {
    /// Its name in the file.
    pub(crate) name: String,
    /// The type of its elements.
    pub(crate) kind: GgmlType,
    /// Its shape, from the outermost dimension to the innermost: the reverse of ggml's `ne`.
    pub(crate) shape: Vec<usize>,
    /// Which of the files holds it, for [`Gguf::map`].
    pub(crate) file: usize,
    /// Where it lies in that file.
    pub(crate) bytes: Range<usize>,
}

impl Gguf {
    /// Opens a model; if it is in parts, all of them, whichever of them is given.
    ///
    /// # Errors
    /// A [`ModelError`] that names the file that cannot be read, and what is wrong with it.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        Self::read(path, map(path, "; give a .gguf file")?)
    }

    /// Reads the file at a path, which is mapped.
    fn read(path: &Path, map: Arc<memmap2::Mmap>) -> Result<Self, ModelError> {
        let parsed = parse::parse(path, &map)?;
        match parts::of(path, &parsed.metadata)? {
            None => {
                let mut model = Self::with(path, parsed.metadata);
                model.add(path, map, parsed.tensors)?;
                Ok(model)
            }
            Some(parts) => Self::joined(&parts),
        }
    }

    /// A model with metadata, and no tensors yet.
    fn with(path: &Path, metadata: HashMap<String, Value>) -> Self {
        Self {
            path: path.to_path_buf(),
            metadata,
            tensors: Vec::new(),
            index: HashMap::new(),
            maps: Vec::new(),
        }
    }

    /// The model of several files.
    fn joined(parts: &parts::Parts) -> Result<Self, ModelError> {
        let mut model = Self::with(&parts.path(0), HashMap::new());
        for part in 0..parts.count {
            let path = parts.path(part);
            let hint = "; the model is in parts: put all of them into one folder";
            let map = map(&path, hint)?;
            let parsed = parse::parse(&path, &map)?;
            parts.check(part, &path, &parsed.metadata)?;
            if part == 0 {
                model.metadata = parsed.metadata;
            }
            model.add(&path, map, parsed.tensors)?;
        }
        parts.check_tensors(&model)?;
        Ok(model)
    }

    /// Adds the tensors of a file.
    fn add(
        &mut self,
        path: &Path,
        map: Arc<memmap2::Mmap>,
        entries: Vec<parse::Entry>,
    ) -> Result<(), ModelError> {
        let file = self.maps.len();
        self.maps.push(map);
        for entry in entries {
            let at = self.tensors.len();
            if self.index.insert(entry.name.clone(), at).is_some() {
                return Err(ModelError::File {
                    path: path.to_path_buf(),
                    what: format!(
                        "has a second tensor `{}`; download all of the model again",
                        entry.name
                    ),
                });
            }
            self.tensors.push(Tensor {
                name: entry.name,
                kind: entry.kind,
                shape: entry.shape,
                file,
                bytes: entry.bytes,
            });
        }
        Ok(())
    }

    /// The file with the metadata: the only one, or the first part.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor, in the order of the files.
    pub(crate) fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor with this name.
    pub(crate) fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.index.get(name).map(|at| &self.tensors[*at])
    }

    /// The elements of one of this model's tensors, as they are stored.
    pub(crate) fn bytes(&self, tensor: &Tensor) -> &[u8] {
        &self.map(tensor)[tensor.bytes.clone()]
    }

    /// The mapping of the file that holds one of this model's tensors.
    pub(crate) fn map(&self, tensor: &Tensor) -> &Arc<memmap2::Mmap> {
        &self.maps[tensor.file]
    }

    /// An error of the file with the metadata.
    pub(crate) fn wrong(&self, what: String) -> ModelError {
        ModelError::File {
            path: self.path.clone(),
            what,
        }
    }
}

#[cfg(test)]
impl Gguf {
    /// The model of a file's bytes.
    pub(crate) fn of(bytes: &[u8]) -> Result<Self, ModelError> {
        let mut map = memmap2::MmapMut::map_anon(bytes.len().max(1)).expect("memory");
        map[..bytes.len()].copy_from_slice(bytes);
        // A mapping has at least one byte; a zero after the end changes nothing but a message.
        let map = map.make_read_only().expect("read only");
        Self::read(Path::new("model.gguf"), Arc::new(map))
    }
}

/// Maps a file; `hint` says what to do if it cannot be read.
fn map(path: &Path, hint: &'static str) -> Result<Arc<memmap2::Mmap>, ModelError> {
    let io = |error| ModelError::Io {
        path: path.to_path_buf(),
        error,
        hint,
    };
    let file = File::open(path).map_err(io)?;
    // SAFETY: the mapping is read-only. If another process writes to the file meanwhile, the
    // weights change, as they would if the file were read.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
    Ok(Arc::new(map))
}

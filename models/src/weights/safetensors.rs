//! The memory-mapped safetensors files of a folder.
//!
//! In:  a folder with `model.safetensors`, or with an index and the files it names.
//! Out: every tensor by name, mapped but not read. Errors here are files that are truncated, too
//! long or malformed, and disagreements between the index and the files.

use super::change::{Change, Values};
use super::{Element, Region, View};
use crate::ModelError;
use crate::checkpoint::read;
use butterfly::Dtype as Float;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The mapped files of a folder, and the tensors in them.
#[derive(Debug)]
pub(crate) struct Shards {
    tensors: HashMap<String, Stored>,
    maps: Vec<Arc<memmap2::Mmap>>,
    /// Whether convolutions and norms are stored as MLX needs them.
    mlx: bool,
}

/// The prefix of multimodal models whose language model is a model of its own, as MLX and older
/// versions of transformers store them: the rest of the name is that in a model of text alone.
const LANGUAGE_MODEL: &str = "language_model.";

/// Norms to whose weights mlx-lm adds one when it converts Qwen3.5 (`mlx_lm/models/qwen3_5.py`).
const PLUS_ONE: [&str; 5] = [
    ".input_layernorm.weight",
    ".post_attention_layernorm.weight",
    "model.norm.weight",
    ".q_norm.weight",
    ".k_norm.weight",
];

/// The location of a tensor; `bytes` are offsets in its file.
#[derive(Clone, Debug)]
struct Stored {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: std::ops::Range<usize>,
}

/// The tensors of an index: names by file.
type Assigned = BTreeMap<String, Vec<String>>;

/// Largest header of a safetensors file, in bytes: the limit of the `safetensors` crate.
const MOST_HEADER: u64 = 100_000_000;

impl Shards {
    /// Maps the files of a folder. With an index, each tensor is taken from the file that the index
    /// names for it; tensors of the files that the index does not name are ignored.
    ///
    /// # Errors
    /// A [`ModelError`] that names the file and, where there is one, the tensor.
    pub(crate) fn open(dir: &Path) -> Result<Self, ModelError> {
        let mut shards = Self {
            tensors: HashMap::new(),
            maps: Vec::new(),
            mlx: false,
        };
        let index = dir.join("model.safetensors.index.json");
        if !index.exists() {
            let path = dir.join("model.safetensors");
            let hint = "; give a folder with config.json and model.safetensors";
            let (map, start, metadata) = map(&path, hint)?;
            for (name, info) in metadata.tensors() {
                shards.add(name, info, start);
            }
            shards.maps.push(Arc::new(map));
            shards.undo_mlx();
            return Ok(shards);
        }
        for (file, names) in assigned(&index)? {
            let path = dir.join(&file);
            let hint = "; model.safetensors.index.json names this file: download it too";
            let (map, start, metadata) = map(&path, hint)?;
            for name in names {
                let Some(info) = metadata.info(&name) else {
                    let what = format!(
                        "puts `{name}` into {file}, which has no such tensor; download both again"
                    );
                    return Err(ModelError::File { path: index, what });
                };
                shards.add(name, info, start);
            }
            shards.maps.push(Arc::new(map));
        }
        shards.undo_mlx();
        Ok(shards)
    }

    /// Takes back that MLX stores a depthwise convolution `[channels, 1, taps]` as `[channels, taps,
    /// 1]`, which are the same bytes. It is only then that it also adds one to norms.
    fn undo_mlx(&mut self) {
        for (name, stored) in &mut self.tensors {
            if let [_, taps @ 2..=usize::MAX, last @ 1] = stored.shape.as_mut_slice()
                && name.ends_with(".conv1d.weight")
            {
                std::mem::swap(taps, last);
                self.mlx = true;
            }
        }
    }

    /// Adds a tensor of the file that will be pushed to `maps` next; the file's data begins at byte
    /// `start`.
    fn add(&mut self, name: String, info: &TensorInfo, start: usize) {
        let (from, to) = info.data_offsets;
        let stored = Stored {
            file: self.maps.len(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            bytes: start + from..start + to,
        };
        let short = name.strip_prefix(LANGUAGE_MODEL);
        let name = short.map_or_else(|| name.clone(), str::to_string);
        self.tensors.insert(name, stored);
    }

    pub(crate) fn get(&self, name: &str) -> Option<View<'_>> {
        let stored = self.tensors.get(name)?;
        Some(View {
            element: element(stored.dtype),
            shape: &stored.shape,
            bytes: Region::new(&self.maps[stored.file], stored.bytes.clone()),
            change: match self.mlx && PLUS_ONE.iter().any(|end| name.ends_with(end)) {
                true => Change {
                    values: Values::PlusOne,
                    ..Change::NONE
                },
                false => Change::NONE,
            },
        })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }
}

fn element(dtype: Dtype) -> Element {
    match dtype {
        Dtype::F32 => Element::Float(Float::F32),
        Dtype::F16 => Element::Float(Float::F16),
        Dtype::BF16 => Element::Float(Float::Bf16),
        Dtype::F8_E4M3 => Element::F8,
        Dtype::U32 => Element::Words,
        other => Element::Other(format!("{other:?}")),
    }
}

/// Reads an index.
fn assigned(path: &Path) -> Result<Assigned, ModelError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let wrong = |what| ModelError::File {
        path: path.to_path_buf(),
        what,
    };
    let index: Index = serde_json::from_str(&read(path, "")?)
        .map_err(|error| wrong(format!("is no index of safetensors: {error}")))?;
    let mut assigned = Assigned::new();
    for (tensor, file) in index.weight_map {
        if Path::new(&file).file_name() != Some(file.as_ref()) {
            return Err(wrong(format!(
                "puts `{tensor}` into `{file}`, outside the folder; give names of files, without a path"
            )));
        }
        assigned.entry(file).or_default().push(tensor);
    }
    match assigned.is_empty() {
        true => Err(wrong("names no tensors; download it again".into())),
        false => Ok(assigned),
    }
}

/// Maps a file. Returns the mapping, the byte at which its data begins, and its tensors, which fill
/// the rest of the file without gaps.
fn map(path: &Path, hint: &'static str) -> Result<(memmap2::Mmap, usize, Metadata), ModelError> {
    let io = |error| ModelError::Io {
        path: PathBuf::from(path),
        error,
        hint,
    };
    let wrong = |what: String| ModelError::File {
        path: PathBuf::from(path),
        what: format!("{what}; download it again"),
    };
    let file = File::open(path).map_err(io)?;
    // SAFETY: the mapping is read-only. If another process writes to the file meanwhile, the
    // weights change, as they would if the file were read.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
    let length = map
        .first_chunk::<8>()
        .map(|bytes| u64::from_le_bytes(*bytes));
    let Some(header) = length.filter(|n| *n <= MOST_HEADER) else {
        return Err(wrong("is no safetensors file".into()));
    };
    let start = 8 + header as usize;
    let text = map.get(8..start);
    let text = text.ok_or_else(|| wrong(format!("ends within its header of {header} bytes")))?;
    let metadata: Metadata = serde_json::from_slice(text)
        .map_err(|error| wrong(format!("has a header that is none: {error}")))?;
    let (given, expected) = (map.len() - start, metadata.data_len());
    if given > expected {
        let more = given - expected;
        return Err(wrong(format!("goes on for {more} bytes after its tensors")));
    }
    let ends_after = |name: &&String| {
        let end = metadata.info(name).map(|info| info.data_offsets.1);
        end.is_some_and(|end| end > given)
    };
    let names = metadata.offset_keys();
    match names.iter().find(ends_after) {
        None => Ok((map, start, metadata)),
        Some(name) => Err(wrong(format!(
            "is truncated: it ends within tensor `{name}`, {} bytes before its end",
            expected - given
        ))),
    }
}

//! Tensor names → tensors on the device; without a folder, random tensors of the same shapes.
//!
//! In:  a folder, or none. Out: weights in the model's element type, norms in f32. Tensors that
//! are missing or have a wrong shape are collected, so that one error names all of them. A first
//! pass only compares names, shapes and types, so that no weights of a refused folder are read.

mod floats;
mod parts;
mod sections;

use crate::layers::Weight;
use crate::weights::change::{Layout, Values};
use crate::weights::numbers::numbers;
use crate::weights::packed::Stored;
use crate::weights::upload::{Taken, Upload, WORD, convert, panel};
use crate::weights::{Element, packed, random};
use crate::{Checkpoint, ModelError};
use burn::prelude::*;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Bytes, DType, Distribution};
use butterfly::AttentionBackend;
use butterfly::ops::{Packed, Part, Storage};
use butterfly_ir::model::{self, ModelSizes};
use std::collections::{BTreeMap, HashSet};

/// The names of the folder's tensors that the model does not use, sorted.
pub type Unused = Vec<String>;

/// A matrix of a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    /// Name of the tensor, which [`Loader::full`] completes.
    pub(crate) name: String,
    /// Its number among the matrices of the tensor, and how many these are; `None` for all of a tensor.
    pub(crate) of: Option<(usize, usize)>,
    pub(crate) rows: usize,
}

/// What a pass over the model's tensors does with each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Compares name, shape and type with those in the folder. No weights are read or allocated:
    /// the model gets placeholders of one element.
    Check,
    /// Reads the tensor, or draws it at random if there is no folder.
    Load,
}

pub(crate) struct Loader<'a, B: Backend> {
    pass: Pass,
    checkpoint: Option<&'a Checkpoint>,
    /// How random weights are packed, where their shape allows it.
    packed: Option<Packed>,
    /// Prefix of each name, such as `model.`.
    prefix: &'a str,
    device: &'a B::Device,
    dtype: DType,
    taken: HashSet<String>,
    problems: Vec<String>,
    /// The memory of the weights so far.
    needed: Taken,
    /// The part of the model that reads the weights which are loaded now.
    part: model::Part,
    /// Bytes and elements of the matrices of each part so far.
    matrices: BTreeMap<model::Part, [u64; 2]>,
}

impl<'a, B: AttentionBackend> Loader<'a, B> {
    pub(crate) fn new(
        pass: Pass,
        checkpoint: Option<&'a Checkpoint>,
        device: &'a B::Device,
        dtype: DType,
    ) -> Self {
        let prefix = checkpoint.map_or("", Checkpoint::prefix);
        Self {
            pass,
            checkpoint,
            packed: None,
            prefix,
            device,
            dtype,
            taken: HashSet::new(),
            problems: Vec::new(),
            needed: Taken::default(),
            part: model::Part::Projections,
            matrices: BTreeMap::new(),
        }
    }

    pub(crate) fn device(&self) -> &'a B::Device {
        self.device
    }

    /// Whether the checkpoint has a tensor; without a checkpoint, none.
    pub(crate) fn has(&self, name: &str) -> bool {
        let full = self.full(name);
        self.checkpoint
            .is_some_and(|files| files.tensor(&full).is_some())
    }

    /// Whether this pass loads weights.
    pub(crate) fn loads(&self) -> bool {
        self.pass == Pass::Load
    }

    /// Whether weights are drawn at random.
    pub(crate) fn is_random(&self) -> bool {
        self.checkpoint.is_none()
    }

    /// Adds a problem to those that one error will name.
    pub(crate) fn problem(&mut self, what: String) {
        self.problems.push(what);
    }

    /// Loads what `load` asks for with f32 in the place of the model's element type.
    pub(crate) fn in_f32<T>(&mut self, load: impl FnOnce(&mut Self) -> T) -> T {
        let dtype = std::mem::replace(&mut self.dtype, DType::F32);
        let loaded = load(self);
        self.dtype = dtype;
        loaded
    }

    /// A matrix `[rows, columns]` whose products are wanted in f32: in f32, unless its file has it in the model's element
    /// type, which then is as exact. At random it is never packed, as checkpoints do not pack it.
    pub(crate) fn wide_weight(
        &mut self,
        (name, rows): (String, usize),
        columns: usize,
    ) -> Weight<B> {
        let full = self.full(&name);
        let same = self.checkpoint.is_none_or(|files| {
            let tensor = files.tensor(&full);
            tensor.is_some_and(|tensor| match tensor.element {
                Element::Float(dtype) => packed::dense(dtype) == self.dtype,
                _ => false,
            })
        });
        let random = self.packed.take();
        let parts = [(name, rows)];
        let weight = match same {
            true => self.weight(&parts, columns),
            false => self.in_f32(|loader| loader.weight(&parts, columns)),
        };
        self.packed = random;
        weight
    }

    /// Packs random weights.
    pub(crate) fn packed(self, packed: Option<Packed>) -> Self {
        Self { packed, ..self }
    }

    /// The model's element type.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// A weight of several matrices `[rows, columns]`, one below another. Each is stored as its file
    /// stores it, except that dense matrices get the model's element type. (Where that is f32 and
    /// tensors lie in the memory of the host, 16-bit floats stay what they are.)
    pub(crate) fn weight(&mut self, parts: &[(String, usize)], columns: usize) -> Weight<B> {
        let before = self.needed;
        let all: usize = parts.iter().map(|(_, rows)| rows).sum();
        if self.checkpoint.is_none() {
            let weight = self.random(all, columns);
            self.count(before, [all, columns]);
            return weight;
        }
        let mut upload = Upload::new(columns, self.dtype, B::ON_HOST);
        for (name, rows) in parts {
            let matrix = Matrix {
                name: name.clone(),
                of: None,
                rows: *rows,
            };
            match self.stored(&matrix, columns) {
                Ok(stored) => upload.add(stored, *rows),
                Err(problem) => self.problems.push(problem),
            }
        }
        self.needed += upload.taken();
        self.count(before, [all, columns]);
        Weight {
            parts: upload.parts().collect(),
            columns,
            tensors: self.tensors(&upload),
        }
    }

    /// How a matrix of the checkpoint is stored; marks its tensors as taken.
    fn stored(&mut self, matrix: &Matrix, columns: usize) -> Result<Stored<'a>, String> {
        let (checkpoint, name) = (self.checkpoint, self.full(&matrix.name));
        let taken = &mut self.taken;
        let stored = packed::stored(&name, [matrix.rows, columns], |name| {
            taken.insert(name.to_string());
            let tensor = checkpoint?.tensor(name)?;
            match matrix.of {
                None => Some(tensor),
                // One of another number of matrices is shown whole, so that the error tells its shape.
                Some((index, count)) => tensor.nth(index, count).or(Some(tensor)),
            }
        })?;
        let activations = checkpoint.map(Checkpoint::activations).unwrap_or_default();
        Ok(stored.with(activations))
    }

    /// The tensors of a weight on the device; none in the checking pass.
    fn tensors(&self, upload: &Upload<'_>) -> Vec<FloatTensor<B>> {
        match self.pass {
            Pass::Check => Vec::new(),
            Pass::Load => upload
                .tensors()
                .map(|(storage, data)| match storage {
                    Storage::Dense(_) => B::float_from_data(data, self.device),
                    Storage::Packed(_) => B::integers(B::int_from_data(data, self.device)),
                })
                .collect(),
        }
    }

    /// A weight of random numbers.
    fn random(&mut self, rows: usize, columns: usize) -> Weight<B> {
        // In that format checkpoints have nothing but experts.
        let packed = self.packed.filter(|packed| *packed != Packed::Microscaled);
        if let (Some(packed), Some(Ok(sizes))) = (packed, packed.map(|p| p.sizes(rows, columns))) {
            return self.random_packed(packed, [rows, columns], &sizes);
        }
        let tensor = self.matrix("", [rows, columns]);
        self.dense(tensor, [rows, columns])
    }

    fn random_packed(
        &mut self,
        packed: Packed,
        [rows, columns]: [usize; 2],
        sizes: &[usize],
    ) -> Weight<B> {
        let bytes = sizes
            .iter()
            .fold(0u64, |all, n| all.saturating_add(*n as u64));
        self.needed += Taken {
            allocated: bytes,
            panel: if B::ON_HOST { 0 } else { panel(self.dtype) },
            quantises: Storage::Packed(packed).quantises(),
            ..Taken::default()
        };
        let tensors = match self.pass {
            Pass::Check => Vec::new(),
            Pass::Load => random::tensors(packed, sizes),
        };
        let upload = |mut bytes: Vec<u8>| {
            if !B::ON_HOST {
                bytes.resize(bytes.len().next_multiple_of(WORD), 0);
            }
            let length = bytes.len();
            let data = TensorData::from_bytes_vec(bytes, [length], DType::U8);
            B::integers(B::int_from_data(data, self.device))
        };
        let storage = Storage::Packed(packed);
        Weight {
            parts: [Part { storage, rows }].into(),
            columns,
            tensors: tensors.into_iter().map(upload).collect(),
        }
    }

    /// The weight [rows, columns] in a tensor of the model's element type.
    fn dense(&self, tensor: Tensor<B, 2>, [rows, columns]: [usize; 2]) -> Weight<B> {
        let storage = Storage::Dense(self.dtype);
        Weight {
            parts: [Part { storage, rows }].into(),
            columns,
            tensors: vec![tensor.into_primitive().tensor()],
        }
    }

    /// The token embedding `[vocabulary, hidden]`.
    pub(crate) fn embedding(&mut self, sizes: &ModelSizes) -> Weight<B> {
        let name = self
            .checkpoint
            .map(Checkpoint::embedding)
            .unwrap_or_default();
        let part = (format!("/{name}"), sizes.vocabulary as usize);
        self.of_part(model::Part::Embedding, |loader| {
            loader.weight(&[part], sizes.hidden as usize)
        })
    }

    /// A matrix of floats in the model's element type.
    pub(crate) fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Tensor<B, 2> {
        let bytes = [shape[0], shape[1], self.dtype.size()];
        let bytes = bytes
            .iter()
            .fold(1u64, |all, n| all.saturating_mul(*n as u64));
        self.needed.allocated = self.needed.allocated.saturating_add(bytes);
        if self.checkpoint.is_none() && self.pass == Pass::Load {
            let normal = Distribution::Normal(0.0, random::DEVIATION.into());
            return Tensor::random(shape, normal, (self.device, self.dtype));
        }
        let mut bytes = Vec::new();
        self.read(name, &shape, self.dtype, &mut bytes);
        self.upload(bytes, shape, self.dtype)
    }

    /// A weight `[rows, columns]` that Hugging Face folders store as `[columns, rows]`; GGUF files
    /// hold it as it is.
    pub(crate) fn transposed(&mut self, name: &str, rows: usize, columns: usize) -> Weight<B> {
        let full = self.full(name);
        let view = self.checkpoint.and_then(|files| files.tensor(&full));
        if view.is_some_and(|view| view.change.layout == Layout::Transposed) {
            return self.weight(&[(format!("/{full}"), rows)], columns);
        }
        let stored = self.matrix(name, [columns, rows]);
        let tensor = match self.pass {
            Pass::Check => stored,
            // Copied once to be contiguous, so that kernels read every matrix the same way.
            Pass::Load => {
                let data = stored.transpose().into_data();
                Tensor::from_data(data, (self.device, self.dtype))
            }
        };
        self.dense(tensor, [rows, columns])
    }

    /// The weights of a depthwise convolution as `[taps, channels]` in f32; they are stored as
    /// `[channels, 1, taps]`.
    pub(crate) fn convolution(&mut self, name: &str, channels: usize, taps: usize) -> Tensor<B, 2> {
        let stored = self.vector(name, &[channels, 1, taps], 0.0);
        let at_tap = |tap| stored.iter().skip(tap).step_by(taps).copied();
        self.floats((0..taps).flat_map(at_tap).collect(), [taps, channels])
    }

    /// The elements of a tensor in f32, in the order of storage, with `plus` added to each; empty
    /// in the checking pass.
    pub(crate) fn vector(&mut self, name: &str, shape: &[usize], plus: f32) -> Vec<f32> {
        let length: usize = shape.iter().product();
        self.needed.allocated = self.needed.allocated.saturating_add(4 * length as u64);
        if self.checkpoint.is_none() && self.pass == Pass::Load {
            // As the weight of a norm this is the identity, so `plus` is not added.
            return vec![1.0; length];
        }
        let mut bytes = Vec::new();
        self.read(name, shape, DType::F32, &mut bytes);
        let numbers = bytes.as_chunks::<4>().0.iter();
        numbers.map(|b| f32::from_le_bytes(*b) + plus).collect()
    }

    /// The weight of a norm in f32, with `plus` added to each element.
    pub(crate) fn norm(&mut self, name: &str, length: usize, plus: f32) -> Tensor<B, 1> {
        let numbers = self.vector(name, &[length], plus);
        self.floats(numbers, [length])
    }

    /// Uploads numbers as an f32 tensor.
    pub(crate) fn floats<const D: usize>(
        &self,
        numbers: Vec<f32>,
        shape: [usize; D],
    ) -> Tensor<B, D> {
        if self.pass == Pass::Check {
            return self.placeholder();
        }
        Tensor::from_data(TensorData::new(numbers, shape), (self.device, DType::F32))
    }

    /// Several vectors, one after another, in the model's element type; zeros without a folder.
    pub(crate) fn bias(&mut self, parts: &[(String, usize)]) -> Tensor<B, 1> {
        self.rounded(parts, self.dtype)
    }

    /// As [`bias`](Self::bias): rounded to the model's element type, but stored as `dtype`.
    pub(crate) fn rounded(&mut self, parts: &[(String, usize)], dtype: DType) -> Tensor<B, 1> {
        let mut numbers = Vec::new();
        for (name, length) in parts {
            let stored = self.vector(name, &[*length], 0.0);
            match self.checkpoint {
                Some(_) => numbers.extend(stored),
                None => numbers.resize(numbers.len() + stored.len(), 0.0),
            }
        }
        if self.pass == Pass::Check {
            return self.placeholder();
        }
        let length = numbers.len();
        let data = TensorData::new(numbers, [length]).convert_dtype(self.dtype);
        Tensor::from_data(data.convert_dtype(dtype), (self.device, dtype))
    }

    /// The one-element tensor that stands for a weight in the checking pass.
    fn placeholder<const D: usize>(&self) -> Tensor<B, D> {
        let data = TensorData::new(vec![0.0f32], [1; D]).convert_dtype(self.dtype);
        Tensor::from_data(data, (self.device, self.dtype))
    }

    fn upload<const D: usize>(
        &self,
        bytes: Vec<u8>,
        shape: [usize; D],
        dtype: DType,
    ) -> Tensor<B, D> {
        if self.pass == Pass::Check {
            return self.placeholder();
        }
        let data = TensorData::from_bytes(Bytes::from_bytes_vec(bytes), shape, dtype);
        Tensor::from_data(data, (self.device, dtype))
    }

    /// The full name of a tensor: the prefix is put before `name`, unless it begins with a slash. The
    /// rest is then the full name.
    pub(crate) fn full(&self, name: &str) -> String {
        match name.strip_prefix('/') {
            Some(absolute) => absolute.to_string(),
            None => format!("{}{name}", self.prefix),
        }
    }

    /// Appends the bytes of a tensor of floats, converted to `dtype`; the checking pass only checks
    /// that this can be done.
    fn read(&mut self, name: &str, shape: &[usize], dtype: DType, into: &mut Vec<u8>) {
        let Some(checkpoint) = self.checkpoint else {
            return;
        };
        let whole = self.full(name);
        let Some(view) = checkpoint.tensor(&whole) else {
            self.problems
                .push(format!("{whole}: missing, expected {shape:?}"));
            return;
        };
        if view.shape != shape {
            let given = view.shape;
            self.problems
                .push(format!("{whole}: has shape {given:?}, expected {shape:?}"));
        } else if let Element::Float(stored) = view.element {
            if self.pass == Pass::Load {
                let stored = packed::dense(stored);
                match view.change.values {
                    Values::Same => convert(stored, &view.bytes, dtype, into),
                    Values::PlusOne | Values::NegExp => {
                        let numbers = numbers(&view).flatten();
                        let undone = numbers.flat_map(|x| view.change.values.undo(x).to_le_bytes());
                        convert(DType::F32, &undone.collect::<Vec<u8>>(), dtype, into);
                    }
                }
            }
        } else {
            self.problems.push(format!(
                "{whole}: is {}; only F32, F16 and BF16 can be read here",
                view.element
            ));
        }
        self.taken.insert(whole);
    }

    /// The memory of the weights so far.
    pub(crate) fn taken(&self) -> Taken {
        self.needed
    }

    /// The names that the model does not use, or an error with all problems found so far.
    pub(crate) fn finish(self) -> Result<Unused, ModelError> {
        let Some(checkpoint) = self.checkpoint else {
            return Ok(Vec::new());
        };
        let (problems, unused) = self.compared();
        match problems.is_empty() {
            true => Ok(unused),
            false => Err(ModelError::Tensors {
                path: checkpoint.path().to_path_buf(),
                problems,
            }),
        }
    }

    /// All problems found so far, and the names that the model does not use.
    pub(crate) fn compared(self) -> (Vec<String>, Unused) {
        let names = self.checkpoint.into_iter().flat_map(Checkpoint::names);
        let layers = self.checkpoint.map_or(0, |files| files.config.layers.len());
        let further = |name: &str| predicts_further(name.strip_prefix(self.prefix)?, layers);
        let expected = |name: &str| known(name) || further(name).is_some();
        let unused = names.filter(|name| !self.taken.contains(*name) && !expected(name));
        let mut unused: Unused = unused.cloned().collect();
        unused.sort();
        (self.problems, unused)
    }
}

/// Whether a tensor is expected to be unused: vision towers, multi-token prediction heads, masks
/// and rotary frequencies that are computed instead, a tied output projection.
fn known(name: &str) -> bool {
    let parts = [
        "visual.",
        "vision_tower.",
        "multi_modal_projector.",
        "mtp.",
        "rotary_emb.inv_freq",
        ".attn.masked_bias",
    ];
    parts.iter().any(|part| name.contains(part))
        || name.ends_with(".attn.bias")
        || name == "lm_head.weight"
}

/// The layer of a tensor, if it is behind the last one: those predict tokens after the next.
fn predicts_further(name: &str, layers: usize) -> Option<usize> {
    let (number, _) = name.strip_prefix("layers.")?.split_once('.')?;
    number.parse().ok().filter(|layer| *layer >= layers)
}

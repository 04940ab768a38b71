//! Tensor names → tensors on the device; without a folder, random tensors of the same shapes.
//!
//! In:  a folder, or none. Out: weights in the model's element type, norms in f32. Tensors that
//! are missing or have a wrong shape are collected, so that one error names all of them. A first
//! pass only compares names, shapes and types, so that no weights of a refused folder are read.

use crate::shards::View;
use crate::{Folder, ModelError};
use burn::prelude::*;
use burn::tensor::{Bytes, DType, Distribution};
use butterfly_ir::model::ModelSizes;
use half::{bf16, f16};
use safetensors::tensor::Dtype as StoredDtype;
use std::collections::HashSet;

/// The names of the folder's tensors that the model does not use, sorted.
pub type Unused = Vec<String>;

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
    folder: Option<&'a Folder>,
    /// Prefix of each name, such as `model.`.
    prefix: &'a str,
    device: &'a B::Device,
    dtype: DType,
    taken: HashSet<String>,
    problems: Vec<String>,
}

/// Standard deviation of random weights.
const DEVIATION: f64 = 0.02;

impl<'a, B: Backend> Loader<'a, B> {
    pub(crate) fn new(
        pass: Pass,
        folder: Option<&'a Folder>,
        device: &'a B::Device,
        dtype: DType,
    ) -> Self {
        let prefix = folder.map_or("", Folder::prefix);
        Self {
            pass,
            folder,
            prefix,
            device,
            dtype,
            taken: HashSet::new(),
            problems: Vec::new(),
        }
    }

    /// Several matrices `[rows, columns]`, stacked along their rows, in the model's element type.
    pub(crate) fn matrix(&mut self, parts: &[(String, usize)], columns: usize) -> Tensor<B, 2> {
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        if self.folder.is_none() && self.pass == Pass::Load {
            let normal = Distribution::Normal(0.0, DEVIATION);
            return Tensor::random([rows, columns], normal, (self.device, self.dtype));
        }
        let mut bytes = Vec::new();
        for (name, rows) in parts {
            self.read(name, &[*rows, columns], self.dtype, &mut bytes);
        }
        self.upload(bytes, [rows, columns], self.dtype)
    }

    /// The token embedding `[vocabulary, hidden]`.
    pub(crate) fn embedding(&mut self, sizes: &ModelSizes) -> Tensor<B, 2> {
        let name = self.folder.map(Folder::embedding).unwrap_or_default();
        let part = (format!("/{name}"), sizes.vocabulary as usize);
        self.matrix(&[part], sizes.hidden as usize)
    }

    /// A matrix `[rows, columns]` that is stored as `[columns, rows]`.
    pub(crate) fn transposed(&mut self, name: &str, rows: usize, columns: usize) -> Tensor<B, 2> {
        let stored = self.matrix(&[(name.to_string(), columns)], rows);
        match self.pass {
            Pass::Check => stored,
            // Copied once to be contiguous, so that kernels read every matrix the same way.
            Pass::Load => {
                let data = stored.transpose().into_data();
                Tensor::from_data(data, (self.device, self.dtype))
            }
        }
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
        if self.folder.is_none() && self.pass == Pass::Load {
            // As the weight of a norm this is the identity, so `plus` is not added.
            return vec![1.0; shape.iter().product()];
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
            numbers.extend(match self.folder {
                Some(_) => self.vector(name, &[*length], 0.0),
                None => vec![0.0; *length],
            });
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

    /// Appends the bytes of a tensor, converted to `dtype`; the checking pass only checks that this
    /// can be done. The prefix is put before `name`, unless it begins with a slash: the rest is
    /// then the full name.
    fn read(&mut self, name: &str, shape: &[usize], dtype: DType, into: &mut Vec<u8>) {
        let Some(folder) = self.folder else {
            return;
        };
        let whole = match name.strip_prefix('/') {
            Some(absolute) => absolute.to_string(),
            None => format!("{}{name}", self.prefix),
        };
        let Some(view) = folder.tensor(&whole) else {
            self.problems
                .push(format!("{whole}: missing, expected {shape:?}"));
            return;
        };
        if view.shape != shape {
            let given = view.shape;
            self.problems
                .push(format!("{whole}: has shape {given:?}, expected {shape:?}"));
        } else if !readable(view.dtype) {
            let given = view.dtype;
            self.problems.push(format!(
                "{whole}: is {given:?}; only F32, F16 and BF16 can be read"
            ));
        } else if self.pass == Pass::Load {
            convert(view.dtype, view.bytes, dtype, into);
        }
        self.taken.insert(whole);
    }

    /// The names that the model does not use, or an error with all problems found so far.
    pub(crate) fn finish(self) -> Result<Unused, ModelError> {
        let Some(folder) = self.folder else {
            return Ok(Vec::new());
        };
        if !self.problems.is_empty() {
            return Err(ModelError::Tensors {
                dir: folder.dir().to_path_buf(),
                problems: self.problems,
            });
        }
        let unused = folder.names().filter(|name| !self.taken.contains(*name));
        let mut unused: Unused = unused.filter(|name| !known(name)).cloned().collect();
        unused.sort();
        Ok(unused)
    }
}

/// Whether a tensor is expected to be unused: vision towers, multi-token prediction heads, masks
/// and rotary frequencies that are computed instead, a tied output projection.
fn known(name: &str) -> bool {
    let parts = [
        "visual.",
        "mtp.",
        "rotary_emb.inv_freq",
        ".attn.masked_bias",
    ];
    parts.iter().any(|part| name.contains(part))
        || name.ends_with(".attn.bias")
        || name == "lm_head.weight"
}

/// Whether two tensors have the same shape and elements, whatever the types they are stored in.
pub(crate) fn same(a: View<'_>, b: View<'_>) -> bool {
    if a.dtype == b.dtype || a.shape != b.shape {
        return a.shape == b.shape && a.bytes == b.bytes;
    }
    if !readable(a.dtype) || !readable(b.dtype) {
        return false;
    }
    numbers(a).eq(numbers(b))
}

/// The elements of a tensor in f32, in pieces, since it may be large; none if its type is not
/// [`readable`].
pub(crate) fn numbers(view: View<'_>) -> impl Iterator<Item = Vec<f32>> {
    const TOGETHER: usize = 4096;
    let bytes = if readable(view.dtype) {
        view.bytes
    } else {
        &[]
    };
    let parts = bytes.chunks(TOGETHER * view.dtype.bitsize() / 8);
    parts.map(move |part| {
        let mut bytes = Vec::new();
        convert(view.dtype, part, DType::F32, &mut bytes);
        let words = bytes.as_chunks::<4>().0.iter();
        words.map(|b| f32::from_le_bytes(*b)).collect()
    })
}

/// Whether [`convert`] takes this type.
fn readable(dtype: StoredDtype) -> bool {
    use StoredDtype::{BF16, F16, F32};
    [F32, F16, BF16].contains(&dtype)
}

/// Converts elements from a [`readable`] type and appends them to `into`.
fn convert(from: StoredDtype, bytes: &[u8], to: DType, into: &mut Vec<u8>) {
    let same = matches!(
        (from, to),
        (StoredDtype::F32, DType::F32)
            | (StoredDtype::F16, DType::F16)
            | (StoredDtype::BF16, DType::BF16)
    );
    if same {
        into.extend_from_slice(bytes);
        return;
    }
    into.reserve(bytes.len() * 8 / from.bitsize() * to.size());
    let mut push = |x: f32| match to {
        DType::F16 => into.extend(f16::from_f32(x).to_le_bytes()),
        DType::BF16 => into.extend(bf16::from_f32(x).to_le_bytes()),
        _ => into.extend(x.to_le_bytes()),
    };
    let halves = bytes.as_chunks::<2>().0.iter();
    match from {
        StoredDtype::F16 => halves.for_each(|b| push(f16::from_le_bytes(*b).to_f32())),
        StoredDtype::BF16 => halves.for_each(|b| push(bf16::from_le_bytes(*b).to_f32())),
        _ => {
            let words = bytes.as_chunks::<4>().0.iter();
            words.for_each(|b| push(f32::from_le_bytes(*b)));
        }
    }
}

//! Names → tensors on the device, or random ones of the same shapes.
//!
//! In:  a folder, or none. Out: weights in the model's element type, norms in f32. What is
//! missing or wrongly shaped is collected, so that one error names all of it.

use crate::{Folder, ModelError};
use burn::prelude::*;
use burn::tensor::{Bytes, DType, Distribution};
use half::{bf16, f16};
use safetensors::tensor::Dtype as StoredDtype;
use std::collections::HashSet;

/// Tensors of the folder that the model does not use, by name.
pub type Unused = Vec<String>;

pub(crate) struct Loader<'a, B: Backend> {
    folder: Option<&'a Folder>,
    /// Before each name, as in `model.`.
    prefix: &'a str,
    device: &'a B::Device,
    dtype: DType,
    taken: HashSet<String>,
    problems: Vec<String>,
}

/// Numbers that a random weight is drawn with.
const DEVIATION: f64 = 0.02;

impl<'a, B: Backend> Loader<'a, B> {
    pub(crate) fn new(
        folder: Option<&'a Folder>,
        prefix: &'a str,
        device: &'a B::Device,
        dtype: DType,
    ) -> Self {
        Self {
            folder,
            prefix,
            device,
            dtype,
            taken: HashSet::new(),
            problems: Vec::new(),
        }
    }

    /// The rows of several matrices [rows, columns] below one another, in the model's type.
    pub(crate) fn matrix(&mut self, parts: &[(String, usize)], columns: usize) -> Tensor<B, 2> {
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        if self.folder.is_none() {
            let normal = Distribution::Normal(0.0, DEVIATION);
            return Tensor::random([rows, columns], normal, (self.device, self.dtype));
        }
        let mut bytes = Vec::with_capacity(rows * columns * self.dtype.size());
        for (name, rows) in parts {
            self.read(name, &[*rows, columns], self.dtype, &mut bytes);
        }
        self.upload(bytes, [rows, columns], self.dtype)
    }

    /// A matrix that is stored as [columns, rows], as [rows, columns].
    pub(crate) fn transposed(&mut self, name: &str, rows: usize, columns: usize) -> Tensor<B, 2> {
        let stored = self.matrix(&[(name.to_string(), columns)], rows);
        // Laid out anew once, so that every matrix is read the same way.
        let data = stored.transpose().into_data();
        Tensor::from_data(data, (self.device, self.dtype))
    }

    /// A vector in f32, and `plus` on each of its numbers.
    pub(crate) fn vector(&mut self, name: &str, shape: &[usize], plus: f32) -> Vec<f32> {
        let length = shape.iter().product();
        if self.folder.is_none() {
            // A norm that keeps its input, whatever is stored.
            return vec![1.0; length];
        }
        let mut bytes = Vec::with_capacity(4 * length);
        self.read(name, shape, DType::F32, &mut bytes);
        let numbers = bytes.as_chunks::<4>().0.iter();
        let mut numbers: Vec<f32> = numbers.map(|b| f32::from_le_bytes(*b) + plus).collect();
        numbers.resize(length, 0.0);
        numbers
    }

    /// A vector in f32 on the device.
    pub(crate) fn norm(&mut self, name: &str, length: usize, plus: f32) -> Tensor<B, 1> {
        let numbers = self.vector(name, &[length], plus);
        self.floats(numbers, [length])
    }

    /// Numbers on the device, in f32.
    pub(crate) fn floats<const D: usize>(
        &self,
        numbers: Vec<f32>,
        shape: [usize; D],
    ) -> Tensor<B, D> {
        Tensor::from_data(TensorData::new(numbers, shape), (self.device, DType::F32))
    }

    /// A vector in the model's type.
    pub(crate) fn bias(&mut self, parts: &[(String, usize)]) -> Tensor<B, 1> {
        let mut numbers = Vec::new();
        for (name, length) in parts {
            numbers.extend(match self.folder {
                Some(_) => self.vector(name, &[*length], 0.0),
                None => vec![0.0; *length],
            });
        }
        let length = numbers.len();
        let data = TensorData::new(numbers, [length]);
        Tensor::from_data(data.convert_dtype(self.dtype), (self.device, self.dtype))
    }

    fn upload<const D: usize>(
        &self,
        mut bytes: Vec<u8>,
        shape: [usize; D],
        dtype: DType,
    ) -> Tensor<B, D> {
        // Short where a tensor had a problem: nobody sees this model.
        bytes.resize(shape.iter().product::<usize>() * dtype.size(), 0);
        let data = TensorData::from_bytes(Bytes::from_bytes_vec(bytes), shape, dtype);
        Tensor::from_data(data, (self.device, dtype))
    }

    /// Appends a tensor's bytes in `dtype`.
    fn read(&mut self, name: &str, shape: &[usize], dtype: DType, into: &mut Vec<u8>) {
        let Some(folder) = self.folder else {
            return;
        };
        let whole = format!("{}{name}", self.prefix);
        // The output projection stands beside the model.
        let whole = match name.strip_prefix('/') {
            Some(absolute) => absolute.to_string(),
            None => whole,
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
        } else if !convert(view.dtype, view.bytes, dtype, into) {
            let given = view.dtype;
            self.problems.push(format!(
                "{whole}: is {given:?}; only F32, F16 and BF16 can be read"
            ));
        }
        self.taken.insert(whole);
    }

    /// All names that the model does not use, if the rest was there.
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

/// Tensors that belong to other parts of a checkpoint: vision, further predicted tokens,
/// masks and frequencies that are computed, an output projection that is tied.
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

/// Appends numbers in another type; whether `from` can be read.
fn convert(from: StoredDtype, bytes: &[u8], to: DType, into: &mut Vec<u8>) -> bool {
    let same = matches!(
        (from, to),
        (StoredDtype::F32, DType::F32)
            | (StoredDtype::F16, DType::F16)
            | (StoredDtype::BF16, DType::BF16)
    );
    if same {
        into.extend_from_slice(bytes);
        return true;
    }
    let mut push = |x: f32| match to {
        DType::F16 => into.extend(f16::from_f32(x).to_le_bytes()),
        DType::BF16 => into.extend(bf16::from_f32(x).to_le_bytes()),
        _ => into.extend(x.to_le_bytes()),
    };
    let halves = bytes.as_chunks::<2>().0.iter();
    match from {
        StoredDtype::F32 => {
            let words = bytes.as_chunks::<4>().0.iter();
            words.for_each(|b| push(f32::from_le_bytes(*b)));
        }
        StoredDtype::F16 => halves.for_each(|b| push(f16::from_le_bytes(*b).to_f32())),
        StoredDtype::BF16 => halves.for_each(|b| push(bf16::from_le_bytes(*b).to_f32())),
        _ => return false,
    }
    true
}

//! Weights of floats, for operations that read no packed ones.
//!
//! In:  a matrix, or matrices of each head, however they are stored. Out: one matrix in the model's element type. What
//! is packed is unpacked by the device, and freed again.

use super::{Loader, Matrix, Pass};
use crate::layers::Weight;
use crate::weights::upload::Taken;
use burn::prelude::*;
use burn::tensor::{DType, TensorPrimitive};
use butterfly::AttentionBackend;
use butterfly::ops::{Part, Storage, Up};

impl<B: AttentionBackend> Loader<'_, B> {
    /// A matrix of floats, whatever it is stored as. Of a layer of GLM-4.7-Flash it takes 9 MB in 16 bits.
    pub(crate) fn unpacked(&mut self, name: &str, shape: [usize; 2]) -> Weight<B> {
        let [rows, columns] = shape;
        let before = self.needed;
        let stored = self.weight(&[(name.to_string(), rows)], columns);
        let part = stored.parts.first().map(|part| part.storage);
        if !matches!(part, Some(Storage::Packed(_))) {
            return stored;
        }
        self.instead(before, shape);
        let tensor = self.in_floats(&stored, rows, name);
        let tensor = tensor.unwrap_or_else(|| self.placeholder());
        self.dense(tensor, shape)
    }

    /// A single row of floats in f32, whatever it is stored as.
    pub(crate) fn row(&mut self, name: &str, columns: usize) -> Tensor<B, 1> {
        let stored = self.unpacked(name, [1, columns]);
        match (self.pass, stored.tensors.first()) {
            (Pass::Load, Some(row)) => {
                let row = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(row.clone()));
                row.reshape([columns]).cast(DType::F32)
            }
            (Pass::Check, _) | (_, None) => self.placeholder(),
        }
    }

    /// The weight of latent attention that makes keys and values, from two tensors with a matrix of each head: Kᵀ
    /// `[rank, nope]` and V `[v, rank]`, as mlx-lm and llama.cpp store them.
    pub(crate) fn of_heads(&mut self, [keys, values]: [&str; 2], up: Up) -> Weight<B> {
        let Up { nope, v, rank, .. } = up;
        let before = self.needed;
        let keys = self.of_each(keys, up.heads, [rank, nope]);
        let values = self.of_each(values, up.heads, [v, rank]);
        let shape = [up.rows(), rank];
        self.instead(before, shape);
        let whole = keys.zip(values).map(|(keys, values)| {
            let heads = Tensor::cat(vec![keys.swap_dims(1, 2), values], 1);
            heads.reshape(shape)
        });
        let whole = whole.unwrap_or_else(|| self.placeholder());
        self.dense(whole, shape)
    }

    /// The matrices of all heads, [heads, rows, columns]; none in the checking pass.
    fn of_each(
        &mut self,
        name: &str,
        heads: usize,
        [rows, columns]: [usize; 2],
    ) -> Option<Tensor<B, 3>> {
        let matrices = (0..heads).map(|head| Matrix {
            name: name.to_string(),
            of: Some((head, heads)),
            rows,
        });
        let (section, tensors) = self.section(&matrices.collect::<Vec<_>>(), &[], columns)?;
        let storage = section.storage;
        if let Storage::Packed(packed) = storage
            && !packed.joins_after(rows)
        {
            let name = self.full(name);
            let what = format!(
                "{name}: is {packed} with {rows} rows a head, of which no whole blocks can be made; give it as floats"
            );
            self.problem(what);
            return None;
        }
        let all = heads * rows;
        let weight = Weight {
            parts: [Part { storage, rows: all }].into(),
            columns,
            tensors,
        };
        let floats = self.in_floats(&weight, all, name)?;
        Some(floats.reshape([heads, rows, columns]))
    }

    /// All rows of a weight of one part in the model's element type; none in the checking pass, nor where they cannot
    /// be unpacked, which is a problem.
    fn in_floats(&mut self, weight: &Weight<B>, rows: usize, name: &str) -> Option<Tensor<B, 2>> {
        if self.pass == Pass::Check {
            return None;
        }
        let ids = Tensor::<B, 1, Int>::arange(0..rows as i64, self.device);
        match weight.rows(ids.reshape([1, rows]), self.dtype) {
            Ok(floats) => Some(floats.reshape([rows, weight.columns]).cast(self.dtype)),
            Err(error) => {
                let name = self.full(name);
                self.problem(format!("{name}: {error}"));
                None
            }
        }
    }

    /// Counts a matrix of floats instead of what was counted since `before`, which is freed again.
    fn instead(&mut self, before: Taken, [rows, columns]: [usize; 2]) {
        let bytes = [rows, columns, self.dtype.size()];
        let bytes = (bytes.iter()).fold(1u64, |all, n| all.saturating_mul(*n as u64));
        self.needed = before;
        self.needed += Taken {
            allocated: bytes,
            ..Taken::default()
        };
        let elements = (rows as u64).saturating_mul(columns as u64);
        self.matrices.insert(self.part, [bytes, elements]);
    }
}

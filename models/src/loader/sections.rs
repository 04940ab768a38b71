//! The weights of experts.
//!
//! In:  a matrix of each expert, or one tensor for all. Out: a [`Section`] of [`Experts`](butterfly::ops::Experts), and
//! its tensors.

use super::{Loader, Matrix};
use crate::weights::packed::{self, Stored};
use crate::weights::upload::{Upload, joins};
use burn::tensor::ops::FloatTensor;
use butterfly::AttentionBackend;
use butterfly::ops::{Packed, Section, Storage};

impl<B: AttentionBackend> Loader<'_, B> {
    /// Whether other matrices, together as many rows, can follow a matrix in one section. No tensors are taken.
    pub(crate) fn stores_alike(&self, first: &Matrix, others: &[Matrix], columns: usize) -> bool {
        let Some(checkpoint) = self.checkpoint else {
            // At random only experts are stored in that format.
            return self.packed != Some(Packed::Microscaled);
        };
        let upload = Upload::new(columns, self.dtype, B::ON_HOST);
        let storage = |matrix: &Matrix| {
            let name = self.full(&matrix.name);
            let stored = packed::stored(&name, [matrix.rows, columns], |name| {
                let tensor = checkpoint.tensor(name)?;
                match matrix.of {
                    None => Some(tensor),
                    Some((index, count)) => tensor.nth(index, count),
                }
            });
            stored.ok().map(|stored| upload.in_memory(stored.storage))
        };
        let Some(of_first) = storage(first) else {
            return false;
        };
        let all = [first].into_iter().chain(others);
        let mut all = all.map(|matrix| (storage(matrix), matrix.rows));
        all.all(|(storage, rows)| storage == Some(of_first) && joins(of_first, rows))
    }

    /// Some rows of every expert's weight, from a matrix of each expert, and as many rows of one more expert.
    pub(crate) fn section(
        &mut self,
        experts: &[Matrix],
        more: &[Matrix],
        columns: usize,
    ) -> Option<(Section, Vec<FloatTensor<B>>)> {
        let rows = experts.first()?.rows;
        let before = self.needed;
        if self.checkpoint.is_none() {
            let count = experts.len() + usize::from(!more.is_empty());
            let section = self.random_section(count, [rows, columns]);
            self.count(before, [rows * count, columns]);
            return Some(section);
        }
        let mut found = Vec::new();
        for matrix in experts.iter().chain(more) {
            match self.stored(matrix, columns) {
                Ok(stored) => found.push(stored),
                // Matrices of one tensor all have the same.
                Err(problem) if self.problems.last() == Some(&problem) => {}
                Err(problem) => self.problems.push(problem),
            }
        }
        let storage = found.first()?.storage;
        if let Some(other) = found.iter().position(|stored| stored.storage != storage) {
            let all: Vec<_> = experts.iter().chain(more).collect();
            let [first, other] = [0, other].map(|i| self.full(&all[i].name));
            self.problems.push(format!(
                "{other}: is stored in another way than {first}, but all experts of a layer have to be stored alike"
            ));
        }
        let mut upload = Upload::new(columns, self.dtype, B::ON_HOST);
        let storage = upload.in_memory(storage);
        let whole = Stored::span(&found);
        let joined = !B::ON_HOST || whole.is_some();
        let all = experts.iter().chain(more).map(|matrix| matrix.rows).sum();
        match whole {
            Some(whole) => upload.add_joined(vec![whole], all),
            None if joined => upload.add_joined(found, all),
            None => (found.into_iter()).for_each(|one| upload.add_joined(vec![one], rows)),
        }
        self.needed += upload.taken();
        self.count(before, [all, columns]);
        let section = Section {
            storage,
            rows,
            joined,
        };
        Some((section, self.tensors(&upload)))
    }

    /// The rows of every expert's weight, from one tensor of floats `[experts, columns, rows]`.
    pub(crate) fn section_transposed(
        &mut self,
        name: &str,
        [experts, rows, columns]: [usize; 3],
    ) -> (Section, FloatTensor<B>) {
        let all = [experts * rows, columns];
        let size = self.dtype.size();
        let bytes = [experts, rows, columns, size];
        let bytes = (bytes.iter()).fold(1u64, |all, n| all.saturating_mul(*n as u64));
        let before = self.needed;
        self.needed.allocated = self.needed.allocated.saturating_add(bytes);
        self.count(before, all);
        let mut stored = Vec::new();
        self.read(name, &[experts, columns, rows], self.dtype, &mut stored);
        let mut turned = vec![0; stored.len()];
        // Nothing was read in the checking pass, of whose sizes the product may not fit.
        let each = stored.len() / experts;
        let matrices = stored.chunks(each.max(1));
        for (from, to) in matrices.zip(turned.chunks_mut(each.max(1))) {
            for (row, to) in to.chunks_exact_mut(columns * size).enumerate() {
                for (column, to) in to.chunks_exact_mut(size).enumerate() {
                    to.copy_from_slice(&from[(column * rows + row) * size..][..size]);
                }
            }
        }
        let section = Section {
            storage: Storage::Dense(self.dtype),
            rows,
            joined: true,
        };
        let tensor = self.upload(turned, all, self.dtype);
        (section, tensor.into_primitive().tensor())
    }

    /// Rows of random numbers for every expert.
    fn random_section(
        &mut self,
        experts: usize,
        [rows, columns]: [usize; 2],
    ) -> (Section, Vec<FloatTensor<B>>) {
        let all = [experts * rows, columns];
        let sizes = self.packed.map(|packed| packed.sizes(rows, columns));
        let weight = match (self.packed, sizes) {
            (Some(packed), Some(Ok(sizes))) => {
                let sizes: Vec<usize> = sizes.iter().map(|n| n.saturating_mul(experts)).collect();
                self.random_packed(packed, all, &sizes)
            }
            _ => {
                let tensor = self.matrix("", all);
                self.dense(tensor, all)
            }
        };
        let section = Section {
            storage: weight.parts[0].storage,
            rows,
            joined: true,
        };
        (section, weight.tensors)
    }
}

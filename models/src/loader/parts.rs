//! How the matrices of each part of a model are stored.
//!
//! In:  matrices as they are loaded or checked. Out: the bytes that an element of those of each part takes.

use super::Loader;
use crate::weights::upload::Taken;
use burn::prelude::Backend;
use butterfly_ir::model::Part;
use std::collections::BTreeMap;

impl<B: Backend> Loader<'_, B> {
    /// Loads what `load` asks for as weights of a part of the model. Others are those of projections.
    pub(crate) fn of_part<T>(&mut self, part: Part, load: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.part, part);
        let loaded = load(self);
        self.part = before;
        loaded
    }

    /// Adds what was counted since `before` to the matrices of the part, as so many elements.
    pub(super) fn count(&mut self, before: Taken, elements: [usize; 2]) {
        let all = |taken: Taken| taken.allocated.saturating_add(taken.mapped);
        let elements = (elements.iter()).fold(1u64, |all, n| all.saturating_mul(*n as u64));
        let [bytes, sum] = self.matrices.entry(self.part).or_default();
        *bytes = bytes.saturating_add(all(self.needed).saturating_sub(all(before)));
        *sum = sum.saturating_add(elements);
    }

    /// Bytes of an element of the matrices of each part of the model so far, scales included.
    pub(crate) fn element_bytes(&self) -> BTreeMap<Part, f64> {
        let parts = self
            .matrices
            .iter()
            .filter(|(_, [_, elements])| *elements > 0);
        let each = parts.map(|(part, [bytes, elements])| (*part, *bytes as f64 / *elements as f64));
        each.collect()
    }
}

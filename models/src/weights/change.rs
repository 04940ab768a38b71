//! What llama.cpp's conversion does to tensors of a Hugging Face checkpoint, and how to undo it.
//!
//! A tensor's name says it all, together with the architecture and the sizes; see
//! [`names`](super::names) for which tensor is changed how.

/// How a stored tensor differs from the one in the Hugging Face checkpoint. The two parts are
/// independent of one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) values: Values,
    pub(crate) layout: Layout,
}

/// What was done to each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    /// Nothing.
    Same,
    /// One was added: the weights of norms that checkpoints store minus one. What is stored is the
    /// factor itself, to which a loader must not add one again.
    PlusOne,
    /// `-exp(x)`: of the logarithms of decays. What is stored is the decay itself, as layers use it.
    NegExp,
}

/// Where elements were moved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Nowhere; only dimensions of size 1 may be missing.
    Same,
    /// A matrix `[in, out]` became `[out, in]`.
    Transposed,
    /// The v heads of linear attention were moved.
    Tiled(Tiled),
}

/// The order of v heads. In the checkpoint, the `group` heads that share a k head are neighbours:
/// v head `k * group + g` is the `g`-th of k head `k`. In the file it is v head `g * k_heads + k`,
/// so that v head `v` belongs to k head `v % k_heads`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiled {
    /// The dimension along which heads lie.
    pub(crate) axis: Axis,
    /// Where the v heads begin along that dimension: q and k come before, and stay where they are.
    pub(crate) first: usize,
    pub(crate) k_heads: usize,
    pub(crate) group: usize,
    /// Neighbours along the dimension that one head has.
    pub(crate) dim: usize,
}

/// A dimension of a matrix; a vector has rows of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axis {
    Rows,
    Columns,
}

impl Values {
    /// The element of the checkpoint's tensor, from the stored one.
    pub(crate) fn undo(self, x: f32) -> f32 {
        match self {
            Self::Same => x,
            Self::PlusOne => x - 1.0,
            Self::NegExp => (-x).ln(),
        }
    }
}

impl Change {
    /// A tensor that is stored as it was.
    pub(crate) const NONE: Self = Self {
        values: Values::Same,
        layout: Layout::Same,
    };
}

/// The definition of each change. Models do not move anything back: they take transposed matrices as
/// they are, and linear attention takes its v heads in either order.
#[cfg(test)]
impl Change {
    /// The elements of the checkpoint's tensor, in its order, from those that are `stored` as
    /// `[rows, columns]`: `rows` is the outermost dimension, `columns` are all others together.
    ///
    /// # Panics
    /// If `stored` has other sizes than the model's, to which it is to be compared before.
    pub(crate) fn undo(&self, stored: &[f32], rows: usize, columns: usize) -> Vec<f32> {
        let value = |x: f32| self.values.undo(x);
        let at = |row: usize, column: usize| value(stored[row * columns + column]);
        let mut out = Vec::with_capacity(stored.len());
        match self.layout {
            Layout::Same => out.extend(stored.iter().copied().map(value)),
            Layout::Transposed => {
                out.extend((0..columns).flat_map(|c| (0..rows).map(move |r| at(r, c))));
            }
            Layout::Tiled(tiled) => match tiled.axis {
                Axis::Rows => {
                    let moved = (0..rows).map(|row| tiled.stored(row));
                    out.extend(moved.flat_map(|r| (0..columns).map(move |c| at(r, c))));
                }
                Axis::Columns => {
                    let moved = |c| tiled.stored(c);
                    out.extend((0..rows).flat_map(|r| (0..columns).map(move |c| at(r, moved(c)))));
                }
            },
        }
        out
    }
}

#[cfg(test)]
impl Tiled {
    /// Where the row or column `index` of the checkpoint's tensor is stored. Rows are packed one by
    /// one, so that they can be moved without unpacking them; columns can be moved in whole blocks
    /// where `dim` is a multiple of a block's elements.
    pub(crate) fn stored(&self, index: usize) -> usize {
        let Some(index) = index.checked_sub(self.first) else {
            return index;
        };
        let (head, within) = (index / self.dim, index % self.dim);
        let (k_head, of_group) = (head / self.group, head % self.group);
        self.first + (of_group * self.k_heads + k_head) * self.dim + within
    }
}

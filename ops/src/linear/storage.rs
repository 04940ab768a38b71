//! How weights are stored, apart from the element type of the activations.

use super::packed::Packed;
use crate::OperationError;
use crate::inputs::{Inputs, Names};
use burn::tensor::DType;
use std::sync::Arc;

/// How a weight matrix [N, K] is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// Contiguous elements in f32, f16 or bf16, as one tensor [N, K] of that type. If that is not
    /// the type of the activations, products are still summed in f32, and only the result is
    /// rounded to their type.
    Dense(DType),
    /// Numbers of fewer bits, unpacked within the product. Each of its tensors is given as the vector
    /// of its bytes, in u8; on a GPU as many more follow as make them a multiple of 4.
    Packed(Packed),
}

/// Some rows of a weight matrix, stored in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// How these rows are stored.
    pub storage: Storage,
    /// Number of rows.
    pub rows: usize,
}

/// The parts of a weight matrix, one below another. They have the same number of columns.
pub type Parts = Arc<[Part]>;

impl Storage {
    /// Whether many rows are quantised before they are multiplied.
    pub fn quantises(self) -> bool {
        matches!(self, Self::Packed(packed) if packed.quantises())
    }

    /// Names of the tensors of a part, in order.
    pub(crate) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Dense(_) => &["weight"],
            Self::Packed(packed) => packed.names(),
        }
    }
}

impl Part {
    /// Names of the part's tensors, in order.
    pub fn names(&self) -> &'static [&'static str] {
        self.storage.names()
    }

    /// Checks the part's tensors, which are the inputs from `at` on, for rows of `k` elements.
    pub(crate) fn check(
        &self,
        inputs: &Inputs<'_>,
        at: usize,
        k: usize,
    ) -> Result<(), OperationError> {
        let packed = match self.storage {
            Storage::Dense(stored) => {
                inputs.is(at, &[self.rows, k])?;
                return inputs.has(at, inputs.kernels_for(stored)?);
            }
            Storage::Packed(packed) => packed,
        };
        let sizes = packed.sizes(self.rows, k);
        let sizes = sizes.map_err(|what| inputs.argument(what))?;
        for (at, bytes) in (at..).zip(sizes) {
            self::bytes(inputs, at, bytes)?;
        }
        Ok(())
    }
}

/// Checks that input `at` holds `bytes` bytes, and at most as many more as make them whole words.
pub(crate) fn bytes(inputs: &Inputs<'_>, at: usize, bytes: usize) -> Result<(), OperationError> {
    inputs.has(at, DType::U8)?;
    let [given] = inputs.rank(at)?;
    match given >= bytes && given - bytes < WORD {
        true => Ok(()),
        false => Err(inputs.wrong(at, format!("the {bytes} bytes of the rows"))),
    }
}

/// Bytes of a word, as which kernels on a GPU read packed weights.
const WORD: usize = 4;

/// The names of an operation's inputs: `first`, then the tensors of each part.
pub(crate) fn names(first: &'static str, parts: &[Part]) -> Names {
    let plain = |part: &Part| matches!(part.storage, Storage::Dense(_));
    match (first, parts) {
        ("x", [part]) if plain(part) => Names::Borrowed(&["x", "weight"]),
        _ => {
            let parts = parts.iter().flat_map(|part| part.names());
            [&first].into_iter().chain(parts).copied().collect()
        }
    }
}

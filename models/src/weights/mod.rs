//! Weights on disk: tensors by name, mapped into memory and not read.
//!
//! A file's tensors are [`View`]s of its mapping. [`packed`] finds the tensors that together form one
//! packed weight.

pub(crate) mod architecture;
pub(crate) mod change;
#[cfg(test)]
mod fuzz;
pub(crate) mod gguf;
pub(crate) mod gguf_model;
pub(crate) mod metadata;
pub(crate) mod names;
pub(crate) mod numbers;
pub(crate) mod packed;
pub(crate) mod random;
pub(crate) mod safetensors;
#[cfg(test)]
mod twins;
pub(crate) mod upload;

use burn::tensor::{AllocationProperty, Bytes};
use butterfly::Dtype;
use butterfly::ops::Packed;
use change::Change;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// What the elements of a tensor are, as its file stores them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    /// Floats that are used as they are.
    Float(Dtype),
    /// Blocks that hold quants and their scales.
    Block(Packed),
    /// Floats of 8 bits (e4m3), whose scales are another tensor.
    F8,
    /// 32-bit words of small integers, whose scales and biases are other tensors.
    Words,
    /// Anything else, by the name that the file gives it.
    Other(String),
}

/// A tensor as it is stored in its file.
#[derive(Clone, Debug)]
pub(crate) struct View<'a> {
    pub(crate) element: Element,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: Region<'a>,
    /// How the file differs from a Hugging Face folder, whose shape is given.
    pub(crate) change: Change,
}

impl View<'_> {
    /// Matrix `index` of the `count` that a tensor holds, which has one dimension more than a matrix (or than the blocks
    /// of one); `None` if it is none of that kind.
    pub(crate) fn nth(&self, index: usize, count: usize) -> Option<Self> {
        let (first, shape) = self.shape.split_first()?;
        let each = self.bytes.len().checked_div(count)?;
        let fits =
            *first == count && [2, 3].contains(&shape.len()) && self.bytes.len() == each * count;
        (fits && index < count).then(|| Self {
            element: self.element.clone(),
            shape,
            bytes: self.bytes.part(index * each..(index + 1) * each),
            change: self.change,
        })
    }
}

/// Some bytes of a mapped file.
#[derive(Clone, Debug)]
pub(crate) struct Region<'a> {
    map: &'a Arc<memmap2::Mmap>,
    range: Range<usize>,
}

impl<'a> Region<'a> {
    /// # Panics
    /// If the file ends before `range` does.
    pub(crate) fn new(map: &'a Arc<memmap2::Mmap>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= map.len());
        Self { map, range }
    }

    /// The bytes as tensors hold them, without a copy: the mapping lives as long as they do.
    pub(crate) fn shared(&self) -> Bytes {
        struct Owner(Arc<memmap2::Mmap>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let whole = bytes::Bytes::from_owner(Owner(self.map.clone()));
        Bytes::from_shared(whole.slice(self.range.clone()), AllocationProperty::File)
    }

    /// Some of the bytes.
    ///
    /// # Panics
    /// If the region ends before `range` does.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        let start = self.range.start;
        assert!(range.end <= self.range.len());
        Self::new(self.map, start + range.start..start + range.end)
    }

    /// The region that these regions are together, if they lie one after another in one file.
    pub(crate) fn span(regions: &[Self]) -> Option<Self> {
        let first = regions.first()?;
        let mut range = first.range.clone();
        for region in &regions[1..] {
            if !Arc::ptr_eq(region.map, first.map) || region.range.start != range.end {
                return None;
            }
            range.end = region.range.end;
        }
        Some(Self::new(first.map, range))
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        &self.map[self.range.clone()]
    }
}

impl Deref for Region<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes()
    }
}

impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Float(Dtype::F32) => write!(f, "F32"),
            Self::Float(Dtype::F16) => write!(f, "F16"),
            Self::Float(Dtype::Bf16) => write!(f, "BF16"),
            Self::Block(packed) => write!(f, "{packed}"),
            Self::F8 => write!(f, "F8_E4M3"),
            Self::Words => write!(f, "U32"),
            Self::Other(name) => write!(f, "{name}"),
        }
    }
}

//! The largest element of rows, as greedy decoding takes it from logits.

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod cube;
#[cfg(feature = "cpu")]
pub(crate) mod flex;

#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::Limits;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::OperationError;
use crate::inputs::{Inputs, Outputs};
use burn::tensor::{DType, Shape};

/// Looks for the largest element of each part of rows: x [.., V] in any float type → [.., parts, 3] in i32, for each part
/// the index of its largest element in the row, of equal ones the first, the bits of that element as f32, and the number
/// of its elements that are not finite. If there are any, the first two mean nothing.
///
/// Parts are looked at independently, so that a device is busy with a single row; whoever reads the result compares them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArgMax {
    /// Elements of a part, at least 1; the last part of a row has what is left.
    pub part: usize,
}

/// Numbers that describe a part.
const NUMBERS: usize = 3;

impl ArgMax {
    /// Parts of a row of so many elements.
    fn parts(self, row: usize) -> usize {
        row.div_ceil(self.part)
    }

    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        inputs.float(0)?;
        let row = inputs.row(0)?;
        inputs.positive([("part", self.part)])?;
        if i32::try_from(row).is_err() {
            return Err(inputs.argument(format!(
                "rows of {row} elements, but their index has 32 bits"
            )));
        }
        let mut shape = inputs.shape(0).to_vec();
        shape.pop();
        shape.extend([self.parts(row), NUMBERS]);
        Ok(vec![(Shape::from(shape), DType::I32)])
    }

    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn limits(&self, limits: &Limits<'_>) -> Result<(), OperationError> {
        limits.counted([0])?;
        let (x, y, _) = limits.device.hardware.max_cube_count;
        let (row, rows) = limits.dims(0).split_last().map_or((1, 1), |(row, rest)| {
            (*row, rest.iter().map(|n| *n as u64).product())
        });
        limits.at_most("x", "parts of a row", self.parts(row) as u64, x.into())?;
        limits.at_most("x", "rows", rows, y.into())
    }
}

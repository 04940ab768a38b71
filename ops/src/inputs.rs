//! The inputs of an operation as shape checks see them: names, shapes and element types.

use crate::OperationError;
use burn::tensor::{DType, Shape};
use std::borrow::Cow;

/// Shape and element type of each output, or an error that names what does not fit.
pub type Outputs = Result<Vec<(Shape, DType)>, OperationError>;

/// Names of inputs, in order.
pub type Names = Cow<'static, [&'static str]>;

/// Shape, element type and name of every input of an operation.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// Name of the operation.
    pub operation: &'static str,
    /// Names of the inputs, in order.
    pub names: Names,
    /// Their shapes and element types.
    pub inputs: &'a [(Shape, DType)],
}

impl Inputs<'_> {
    /// Checks that there are as many inputs as names.
    ///
    /// # Errors
    /// [`OperationError::Argument`].
    pub fn count(&self) -> Result<(), OperationError> {
        match self.inputs.len() == self.names.len() {
            true => Ok(()),
            false => Err(self.argument(format!(
                "takes {} tensors ({}), but {} are given",
                self.names.len(),
                self.names.join(", "),
                self.inputs.len()
            ))),
        }
    }

    /// The shape of input `i`.
    pub fn shape(&self, i: usize) -> &[usize] {
        self.inputs[i].0.as_slice()
    }

    /// The error that input `i` does not have the `expected` shape.
    pub fn wrong(&self, i: usize, expected: String) -> OperationError {
        OperationError::Shape {
            operation: self.operation,
            tensor: self.names[i],
            given: self.shape(i).to_vec(),
            expected,
        }
    }

    /// The error that something other than a shape is wrong.
    pub fn argument(&self, what: String) -> OperationError {
        OperationError::Argument {
            operation: self.operation,
            what,
        }
    }

    /// The element type of input `i`, if there are kernels for it.
    ///
    /// # Errors
    /// [`OperationError::Dtype`].
    pub fn float(&self, i: usize) -> Result<DType, OperationError> {
        self.kernels_for(self.inputs[i].1)
    }

    /// Returns `dtype` if there are kernels for it: f32, f16 and bf16.
    ///
    /// # Errors
    /// [`OperationError::Dtype`].
    pub fn kernels_for(&self, dtype: DType) -> Result<DType, OperationError> {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 => Ok(dtype),
            other => Err(OperationError::Dtype {
                operation: self.operation,
                given: format!("{other:?}"),
            }),
        }
    }

    /// Checks that input `i` has this shape.
    ///
    /// # Errors
    /// [`OperationError::Shape`].
    pub fn is(&self, i: usize, shape: &[usize]) -> Result<(), OperationError> {
        match self.shape(i) == shape {
            true => Ok(()),
            false => Err(self.wrong(i, format!("{shape:?}"))),
        }
    }

    /// Checks that input `i` has this shape, or more in its first dimension.
    ///
    /// # Errors
    /// [`OperationError::Shape`].
    pub fn is_at_least(&self, i: usize, shape: &[usize]) -> Result<(), OperationError> {
        let given = self.shape(i);
        match (given, shape) {
            ([sequences, rest @ ..], [least, wanted @ ..])
                if sequences >= least && rest == wanted =>
            {
                Ok(())
            }
            _ => Err(self.wrong(i, format!("{shape:?}, or more in the first dimension"))),
        }
    }

    /// Checks that input `i` has this element type.
    ///
    /// # Errors
    /// [`OperationError::Argument`].
    pub fn has(&self, i: usize, dtype: DType) -> Result<(), OperationError> {
        let (name, given) = (self.names[i], self.inputs[i].1);
        match given == dtype {
            true => Ok(()),
            false => Err(self.argument(format!("`{name}` is {given:?}, expected {dtype:?}"))),
        }
    }

    /// Checks that these inputs all have this element type.
    ///
    /// # Errors
    /// [`OperationError::Argument`] for the first that has another.
    pub fn all_have(
        &self,
        inputs: impl IntoIterator<Item = usize>,
        dtype: DType,
    ) -> Result<(), OperationError> {
        inputs.into_iter().try_for_each(|i| self.has(i, dtype))
    }

    /// The size of the last dimension of input `i`, at least 1.
    ///
    /// # Errors
    /// [`OperationError::Shape`].
    pub fn row(&self, i: usize) -> Result<usize, OperationError> {
        match self.shape(i).last() {
            None | Some(0) => Err(self.wrong(i, "at least one element in a row".into())),
            Some(n) => Ok(*n),
        }
    }

    /// The shape of input `i`, if it has `N` dimensions.
    ///
    /// # Errors
    /// [`OperationError::Shape`].
    pub fn rank<const N: usize>(&self, i: usize) -> Result<[usize; N], OperationError> {
        let shape = <[usize; N]>::try_from(self.shape(i));
        shape.map_err(|_| self.wrong(i, format!("{N} dimensions")))
    }

    /// Checks that none of the named numbers is 0.
    ///
    /// # Errors
    /// [`OperationError::Argument`] for the first that is.
    pub fn positive<const N: usize>(
        &self,
        numbers: [(&'static str, usize); N],
    ) -> Result<(), OperationError> {
        match numbers.iter().find(|(_, n)| *n == 0) {
            None => Ok(()),
            Some((what, _)) => Err(self.argument(format!("{what} is 0, but must be at least 1"))),
        }
    }

    /// Checks that `epsilon` is finite and not negative.
    ///
    /// # Errors
    /// [`OperationError::Argument`].
    pub fn epsilon(&self, epsilon: f32) -> Result<(), OperationError> {
        match epsilon.is_finite() && epsilon >= 0.0 {
            true => Ok(()),
            false => {
                let what = format!("epsilon is {epsilon}, but must be finite and not negative");
                Err(self.argument(what))
            }
        }
    }
}

/// The shape with `n` in place of its last dimension.
pub(crate) fn with_rows(shape: &[usize], n: usize) -> Shape {
    let mut shape = shape.to_vec();
    if let Some(last) = shape.last_mut() {
        *last = n;
    }
    shape.into()
}

//! The inputs of an operation as far as they are checked before anything runs: names, shapes and
//! element types.

use crate::OperationError;
use burn::tensor::{DType, Shape};

/// Shape and element type of each output, or what does not fit.
pub type Outputs = Result<Vec<(Shape, DType)>, OperationError>;

/// Shape and element type of every input, with what errors call them.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Name of the operation.
    pub operation: &'static str,
    /// Names of the inputs, in order.
    pub names: &'static [&'static str],
    /// Their shapes and element types.
    pub inputs: &'a [(Shape, DType)],
}

impl Inputs<'_> {
    /// Whether there are as many as there are names.
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

    /// That input `i` has another shape than `expected`.
    pub fn wrong(&self, i: usize, expected: String) -> OperationError {
        OperationError::Shape {
            operation: self.operation,
            tensor: self.names[i],
            given: self.shape(i).to_vec(),
            expected,
        }
    }

    /// That something else than a shape is wrong.
    pub fn argument(&self, what: String) -> OperationError {
        OperationError::Argument {
            operation: self.operation,
            what,
        }
    }

    /// The element type of input `i`, one that there are kernels for.
    ///
    /// # Errors
    /// [`OperationError::Dtype`].
    pub fn float(&self, i: usize) -> Result<DType, OperationError> {
        self.kernels_for(self.inputs[i].1)
    }

    /// Whether there are kernels for an element type.
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

    /// Whether input `i` has this shape.
    ///
    /// # Errors
    /// [`OperationError::Shape`].
    pub fn is(&self, i: usize, shape: &[usize]) -> Result<(), OperationError> {
        match self.shape(i) == shape {
            true => Ok(()),
            false => Err(self.wrong(i, format!("{shape:?}"))),
        }
    }

    /// Whether input `i` has this element type.
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

    /// Whether these inputs have this element type.
    ///
    /// # Errors
    /// [`OperationError::Argument`] for the first that has not.
    pub fn all_have(
        &self,
        inputs: impl IntoIterator<Item = usize>,
        dtype: DType,
    ) -> Result<(), OperationError> {
        inputs.into_iter().try_for_each(|i| self.has(i, dtype))
    }

    /// The length of the rows of input `i`, at least 1.
    ///
    /// # Errors
    /// [`OperationError::Shape`].
    pub fn row(&self, i: usize) -> Result<usize, OperationError> {
        match self.shape(i).last() {
            None | Some(0) => Err(self.wrong(i, "at least one element in a row".into())),
            Some(n) => Ok(*n),
        }
    }

    /// The sizes of input `i`, which has `N` dimensions.
    ///
    /// # Errors
    /// [`OperationError::Shape`].
    pub fn rank<const N: usize>(&self, i: usize) -> Result<[usize; N], OperationError> {
        let shape = <[usize; N]>::try_from(self.shape(i));
        shape.map_err(|_| self.wrong(i, format!("{N} dimensions")))
    }

    /// Whether none of the numbers is 0.
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

    /// Whether `epsilon` can be added to a mean square.
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

/// The shape with rows of `n` elements.
pub(crate) fn with_rows(shape: &[usize], n: usize) -> Shape {
    let mut shape = shape.to_vec();
    if let Some(last) = shape.last_mut() {
        *last = n;
    }
    shape.into()
}

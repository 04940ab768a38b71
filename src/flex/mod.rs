//! Burn's CPU backend: attention runs the native kernel, other operations those of `ops`.

mod attend;

use crate::{AttentionBackend, Checked, Operation, OperationError};
use burn::tensor::{DType, Shape};
use burn_flex::{Flex, FlexDevice, FlexTensor};
use half::{bf16, f16};

impl AttentionBackend for Flex {
    const ON_HOST: bool = true;

    fn integers(x: FlexTensor) -> FlexTensor {
        x
    }

    fn on_threads<R: Send>(work: impl FnOnce() -> R + Send) -> R {
        rayon::scope(|_| work())
    }

    fn prepare(
        operation: &Operation,
        inputs: &[(Shape, DType)],
        _: &FlexDevice,
    ) -> Result<(), OperationError> {
        operation.outputs(inputs)?;
        match operation {
            Operation::Attend(op) => attend::kernel(op, inputs).map(|_| ()),
            Operation::Layer(_) => Ok(()),
        }
    }

    fn execute(checked: Checked<'_, Self>) -> Result<Vec<FlexTensor>, OperationError> {
        let Checked {
            operation, inputs, ..
        } = checked;
        match operation {
            Operation::Attend(op) => match inputs[0].dtype() {
                DType::F16 => attend::attend::<f16>(op, &inputs),
                DType::BF16 => attend::attend::<bf16>(op, &inputs),
                _ => attend::attend::<f32>(op, &inputs),
            },
            Operation::Layer(op) => Ok(butterfly_ops::flex::run(op, inputs)),
        }
    }
}

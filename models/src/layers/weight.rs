//! Weight matrices on a device, each part stored as its file stores it.

use super::{around, one, primitive};
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::ops::FloatTensor;
use butterfly::ops::{Activation, Embed, Operation, Parts, Project, Storage};
use butterfly::{AttentionBackend, OperationError, Plan};

/// A weight matrix [N, K] of one or more parts.
#[derive(Clone, Debug)]
pub(crate) struct Weight<B: Backend> {
    pub(crate) parts: Parts,
    /// K.
    pub(crate) columns: usize,
    /// The tensors of each part in turn.
    pub(crate) tensors: Vec<FloatTensor<B>>,
}

impl<B: AttentionBackend> Weight<B> {
    /// x [B, T, K] → [B, T, N], by the plan's kernels for products where it has any.
    pub(crate) fn times(
        &self,
        x: Tensor<B, 3>,
        plan: Option<&Plan>,
    ) -> Result<Tensor<B, 3>, OperationError> {
        self.project(x, self.operation(plan))
    }

    /// x [B, T, K] → [B, T, N / 2]: the second half of the products, gated by the first.
    pub(crate) fn times_gated(
        &self,
        x: Tensor<B, 3>,
        activation: Activation,
        plan: Option<&Plan>,
    ) -> Result<Tensor<B, 3>, OperationError> {
        let gate = Some(activation);
        let operation = Project {
            gate,
            ..self.operation(plan)
        };
        self.project(x, operation)
    }

    /// x [B, T, K] → [B, T, N] in f32.
    pub(crate) fn times_wide(
        &self,
        x: Tensor<B, 3>,
        plan: Option<&Plan>,
    ) -> Result<Tensor<B, 3>, OperationError> {
        let operation = Project {
            wide: true,
            ..self.operation(plan)
        };
        self.project(x, operation)
    }

    /// The product, in x's type and without a gate.
    pub(super) fn operation(&self, plan: Option<&Plan>) -> Project {
        Project {
            parts: self.parts.clone(),
            wide: false,
            gate: None,
            products: plan.map(Plan::products).unwrap_or_default(),
            grouped: plan.map(Plan::grouped).unwrap_or_default(),
        }
    }

    fn project(&self, x: Tensor<B, 3>, operation: Project) -> Result<Tensor<B, 3>, OperationError> {
        let inputs = [primitive(x)]
            .into_iter()
            .chain(self.tensors.iter().cloned());
        one(around::<B>(
            Operation::Project(operation),
            inputs.collect(),
        )?)
    }

    /// The rows that tokens [B, T] name, [B, T, K]: of `dtype` where the weight is packed, else of the
    /// type in which it is stored.
    pub(crate) fn rows(
        &self,
        ids: Tensor<B, 2, Int>,
        dtype: DType,
    ) -> Result<Tensor<B, 3>, OperationError> {
        let [part] = self.parts.as_ref() else {
            unreachable!("an embedding has one part");
        };
        match part.storage {
            Storage::Dense(_) => {
                let [batch, tokens] = ids.dims();
                let table = Tensor::<B, 2>::from_primitive(burn::tensor::TensorPrimitive::Float(
                    self.tensors[0].clone(),
                ));
                let rows = table.select(0, ids.reshape([batch * tokens]));
                Ok(rows.reshape([batch, tokens, self.columns]))
            }
            Storage::Packed(table) => {
                let operation = Operation::Embed(Embed {
                    table,
                    rows: part.rows,
                    columns: self.columns,
                    dtype,
                });
                let ids = B::integers(ids.into_primitive());
                let inputs = [ids].into_iter().chain(self.tensors.iter().cloned());
                one(around::<B>(operation, inputs.collect())?)
            }
        }
    }
}

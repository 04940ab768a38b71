//! The residual stream before the norm with which a layer begins.
//!
//! Of a few rows, the addition, the norm and the product that follows are one operation, which kernels can do at once; of
//! many, each is one of its own.

use super::{Projection, Weight, add_norm, around, combine, float, norm, primitive};
use crate::Profile;
use crate::stream::{Pending, Stream};
use burn::prelude::*;
use burn::tensor::DType;
use butterfly::ops::{Activation, Added, Normed, Operation, Project};
use butterfly::{AttentionBackend, OperationError, Plan};
use butterfly_ir::model::Part;

impl<B: AttentionBackend> Pending<B> {
    /// What is added, as rows [B, T, H].
    pub(crate) fn rows(self) -> Result<Tensor<B, 3>, OperationError> {
        match self {
            Self::Rows(rows) => Ok(rows),
            Self::Weighted { rows, weights } => combine(rows, weights),
        }
    }
}

/// A stream, and the norm that comes next.
#[derive(Clone, Debug)]
pub(crate) struct Unnormed<'a, B: Backend> {
    pub(crate) stream: Stream<B>,
    /// The norm's weight, [H].
    pub(crate) weight: &'a Tensor<B, 1>,
    pub(crate) epsilon: f32,
    /// Element type of the norm.
    pub(crate) dtype: DType,
}

impl<B: AttentionBackend> Unnormed<'_, B> {
    /// Whether there are so few rows that kernels make norms on the way to a product.
    pub(crate) fn is_few(&self) -> bool {
        let [batch, tokens, _] = self.stream.x.dims();
        (1..=Normed::FEW).contains(&(batch * tokens))
    }

    /// The stream with what is added to it, and its norm, [B, T, H] both.
    pub(crate) fn normed(self) -> Result<(Tensor<B, 3>, Tensor<B, 3>), OperationError> {
        let Stream { x, pending } = self.stream;
        match pending {
            None => Ok((x.clone(), norm(x, self.weight, self.epsilon, self.dtype)?)),
            Some(pending) => add_norm(x, pending.rows()?, self.weight, self.epsilon),
        }
    }

    /// The stream, and a projection of its norm [B, T, out].
    pub(crate) fn project(
        self,
        projection: &Projection<B>,
        plan: Option<&Plan>,
        profile: &Profile,
    ) -> Result<(Tensor<B, 3>, Tensor<B, 3>), OperationError> {
        let device = self.stream.x.device();
        let (x, rows) = match self.is_few() {
            true => profile.part::<B, _>(Part::Projections, &device, || {
                let weight = &projection.weight;
                let [x, _, rows] = self.at_once(weight, weight.operation(plan), false)?;
                Ok::<_, OperationError>((x, rows))
            })?,
            false => {
                let (x, normed) = profile.part::<B, _>(Part::Norms, &device, || self.normed())?;
                let weight = &projection.weight;
                let rows = profile
                    .part::<B, _>(Part::Projections, &device, || weight.times(normed, plan))?;
                (x, rows)
            }
        };
        Ok((x, projection.biased(rows)))
    }

    /// The stream, and products of its norm of which the first half gates the second, [B, T, out / 2].
    pub(crate) fn project_gated(
        self,
        weight: &Weight<B>,
        activation: Activation,
        plan: Option<&Plan>,
        profile: &Profile,
    ) -> Result<(Tensor<B, 3>, Tensor<B, 3>), OperationError> {
        let device = self.stream.x.device();
        if self.is_few() {
            return profile.part::<B, _>(Part::Projections, &device, || {
                let operation = Project {
                    gate: Some(activation),
                    ..weight.operation(plan)
                };
                let [x, _, rows] = self.at_once(weight, operation, false)?;
                Ok((x, rows))
            });
        }
        let (x, normed) = profile.part::<B, _>(Part::Norms, &device, || self.normed())?;
        let rows = profile.part::<B, _>(Part::Projections, &device, || {
            weight.times_gated(normed, activation, plan)
        })?;
        Ok((x, rows))
    }

    /// The stream, its norm, and products of the norm in f32.
    pub(crate) fn project_wide(
        self,
        projection: &Projection<B>,
        plan: Option<&Plan>,
    ) -> Result<[Tensor<B, 3>; 3], OperationError> {
        let weight = &projection.weight;
        let [x, normed, rows] = match self.is_few() {
            true => {
                let operation = Project {
                    wide: true,
                    ..weight.operation(plan)
                };
                self.at_once(weight, operation, true)?
            }
            false => {
                let (x, normed) = self.normed()?;
                let rows = weight.times_wide(normed.clone(), plan)?;
                [x, normed, rows]
            }
        };
        Ok([x, normed, projection.biased(rows)])
    }

    /// The stream, its norm if it is to be kept (else the stream again), and its products, by one operation.
    fn at_once(
        self,
        weight: &Weight<B>,
        project: Project,
        keep: bool,
    ) -> Result<[Tensor<B, 3>; 3], OperationError> {
        let Stream { x, pending } = self.stream;
        let mut inputs = vec![primitive(x.clone())];
        let added = match pending {
            None => Added::None,
            Some(Pending::Rows(rows)) => {
                inputs.push(primitive(rows));
                Added::Rows
            }
            Some(Pending::Weighted { rows, weights }) => {
                inputs.extend([primitive(rows), primitive(weights)]);
                Added::Weighted
            }
        };
        inputs.push(primitive(self.weight.clone()));
        inputs.extend(weight.tensors.iter().cloned());
        let operation = Operation::Normed(Normed {
            added,
            epsilon: self.epsilon,
            dtype: self.dtype,
            keep,
            project,
        });
        let outputs = around::<B>(operation, inputs)?;
        let mut outputs = outputs.into_iter().map(float);
        let mut next = || outputs.next().expect("as many outputs as are wanted");
        let x = match added {
            Added::None => x,
            Added::Rows | Added::Weighted => next(),
        };
        let normed = match keep {
            true => next(),
            false => x.clone(),
        };
        Ok([x, normed, next()])
    }
}

//! The residual stream before the norm with which a layer begins.
//!
//! Of a few rows, the addition, the norm and the product that follows are one operation, which kernels can do at once; of
//! many, each is one of its own.

use super::{Projection, Weight, add_norm, around, combine, float, norm, primitive};
use crate::Profile;
use crate::stream::{Pending, Stream};
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::ops::FloatTensor;
use butterfly::ops::{Activation, Added, Choose, Normed, Operation, Project, Route};
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

/// What a router gives.
pub(crate) struct Routed<B: Backend> {
    /// The stream with what was added to it, and its norm, [B, T, H] both.
    pub(crate) stream: Tensor<B, 3>,
    pub(crate) normed: Tensor<B, 3>,
    /// Ids and weights of experts.
    pub(crate) choice: Vec<FloatTensor<B>>,
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

    /// The stream, its norm, and the choice of experts by the products of the norm with a router: their ids and weights.
    pub(crate) fn choose(
        self,
        router: &Projection<B>,
        route: Route,
        bias: Option<&Tensor<B, 1>>,
        plan: Option<&Plan>,
    ) -> Result<Routed<B>, OperationError> {
        let weight = &router.weight;
        let project = Project {
            wide: true,
            ..weight.operation(plan)
        };
        let bias = bias.cloned().map(primitive);
        // The bias of logits is no part of that operation.
        if let Some(of_logits) = &router.bias {
            let [stream, normed, logits] = self.at_once(weight, project, true)?;
            let logits = logits + of_logits.clone().unsqueeze::<3>();
            let inputs = [primitive(logits)].into_iter().chain(bias).collect();
            let choice = around::<B>(Operation::Route(route), inputs)?;
            return Ok(Routed {
                stream,
                normed,
                choice,
            });
        }
        let x = self.stream.x.clone();
        let (normed, mut inputs) = self.given(weight, project, true);
        inputs.extend(bias);
        let added = normed.added;
        let operation = Operation::Choose(Choose { normed, route });
        let mut outputs = around::<B>(operation, inputs)?.into_iter();
        let stream = match added {
            Added::None => x,
            Added::Rows | Added::Weighted => float(outputs.next().expect("the sum")),
        };
        Ok(Routed {
            stream,
            normed: float(outputs.next().expect("the norm")),
            choice: outputs.collect(),
        })
    }

    /// The stream, its norm if it is to be kept (else the stream again), and its products, by one operation.
    fn at_once(
        self,
        weight: &Weight<B>,
        project: Project,
        keep: bool,
    ) -> Result<[Tensor<B, 3>; 3], OperationError> {
        let x = self.stream.x.clone();
        let (normed, inputs) = self.given(weight, project, keep);
        let added = normed.added;
        let outputs = around::<B>(Operation::Normed(normed), inputs)?;
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

    /// The operation that multiplies the norm with a weight, and its inputs.
    fn given(
        self,
        weight: &Weight<B>,
        project: Project,
        keep: bool,
    ) -> (Normed, Vec<FloatTensor<B>>) {
        let Stream { x, pending } = self.stream;
        let mut inputs = vec![primitive(x)];
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
        let normed = Normed {
            added,
            epsilon: self.epsilon,
            dtype: self.dtype,
            keep,
            project,
        };
        (normed, inputs)
    }
}

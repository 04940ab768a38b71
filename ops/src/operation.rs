//! All operations as one type: plain data, checked against the inputs before anything runs.

use crate::inputs::{Inputs, Names, Outputs};
use crate::{
    Absorb, Activation, AddNorm, Append, ArgMax, Choose, Delta, Embed, Expand, Experts, GateOutput,
    Latents, Norm, Normed, Pool, Project, Rotate, Route, Unabsorb,
};
use burn::tensor::{DType, Shape};

/// One operation; the type of each variant documents its inputs and outputs.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Rows of an embedding.
    Embed(Embed),
    /// The product of rows and a weight.
    Project(Project),
    /// The norm of rows.
    Norm(Norm),
    /// A sum and its norm.
    AddNorm(AddNorm),
    /// Splits projections into heads, and appends keys and values to the cache.
    Append(Append),
    /// Latents out of projections, into the cache.
    Latents(Latents),
    /// The key matrices of latent attention, applied to q.
    Absorb(Absorb),
    /// The value matrices of latent attention, applied to o.
    Unabsorb(Unabsorb),
    /// Heads of which a part is rotated.
    Rotate(Rotate),
    /// Keys and values of all heads of latent attention.
    Expand(Expand),
    /// Means of consecutive keys.
    Pool(Pool),
    /// The gate of a feed-forward layer.
    Gated(Activation),
    /// A gate on the output of attention.
    GateOutput(GateOutput),
    /// The gated delta rule.
    Delta(Delta),
    /// The choice of experts.
    Route(Route),
    /// The choice of experts by the logits of a norm.
    Choose(Choose),
    /// Rows through the experts that were chosen for them.
    Experts(Experts),
    /// The sums over k of factor * row: rows `[.., k, H]` and factors `[.., k]` in f32 → `[.., H]` in the rows' type.
    Combine,
    /// The product of a norm and a weight.
    Normed(Normed),
    /// The largest element of rows.
    ArgMax(ArgMax),
}

impl Operation {
    /// The name in errors and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embed(_) => "embed",
            Self::Project(_) => "project",
            Self::Norm(_) => "norm",
            Self::AddNorm(_) => "add_norm",
            Self::Append(_) => "append",
            Self::Latents(_) => "latents",
            Self::Absorb(_) => "absorb",
            Self::Unabsorb(_) => "unabsorb",
            Self::Rotate(_) => "rotate",
            Self::Expand(_) => "expand",
            Self::Pool(_) => "pool",
            Self::Gated(_) => "gated",
            Self::GateOutput(_) => "gate_output",
            Self::Delta(_) => "delta",
            Self::Route(_) => "route",
            Self::Choose(_) => "choose",
            Self::Experts(_) => "experts",
            Self::Combine => "combine",
            Self::Normed(_) => "normed",
            Self::ArgMax(_) => "argmax",
        }
    }

    /// Names of the inputs, in order.
    pub fn inputs(&self) -> Names {
        Names::Borrowed(match self {
            Self::Embed(embed) => return embed.names(),
            Self::Project(project) => return project.names(),
            Self::Norm(_) => &["x", "weight"],
            Self::AddNorm(_) => &["x", "y", "weight"],
            Self::Append(append) => return append.names(),
            Self::Latents(latents) => return latents.names(),
            Self::Absorb(absorb) => return absorb.names(),
            Self::Unabsorb(_) => &["o", "weight"],
            Self::Rotate(rotate) => return rotate.names(),
            Self::Expand(_) => &["latents", "weight"],
            Self::Pool(_) => &["k", "means"],
            Self::Gated(_) | Self::ArgMax(_) => &["x"],
            Self::GateOutput(_) => &["o", "projections"],
            Self::Delta(_) => &Delta::NAMES,
            Self::Route(route) => route.names(),
            Self::Choose(choose) => return choose.names(),
            Self::Experts(experts) => return experts.names(),
            Self::Combine => &["rows", "factors"],
            Self::Normed(normed) => return normed.names(),
        })
    }

    /// Shape and element type of each output, if the inputs fit.
    ///
    /// # Errors
    /// [`OperationError::Shape`](crate::OperationError::Shape),
    /// [`OperationError::Argument`](crate::OperationError::Argument) or
    /// [`OperationError::Dtype`](crate::OperationError::Dtype).
    pub fn outputs(&self, inputs: &[(Shape, DType)]) -> Outputs {
        let inputs = self.named(inputs);
        inputs.count()?;
        match self {
            Self::Embed(op) => op.outputs(&inputs),
            Self::Project(op) => op.outputs(&inputs),
            Self::Norm(op) => op.outputs(&inputs),
            Self::AddNorm(op) => op.outputs(&inputs),
            Self::Append(op) => op.outputs(&inputs),
            Self::Latents(op) => op.outputs(&inputs),
            Self::Absorb(op) => op.outputs(&inputs),
            Self::Unabsorb(op) => op.outputs(&inputs),
            Self::Rotate(op) => op.outputs(&inputs),
            Self::Expand(op) => op.outputs(&inputs),
            Self::Pool(op) => op.outputs(&inputs),
            Self::Gated(op) => op.outputs(&inputs),
            Self::GateOutput(op) => op.outputs(&inputs),
            Self::Delta(op) => op.outputs(&inputs),
            Self::Route(op) => op.outputs(&inputs),
            Self::Choose(op) => op.outputs(&inputs),
            Self::Experts(op) => op.outputs(&inputs),
            Self::Combine => crate::experts::combined(&inputs),
            Self::Normed(op) => op.outputs(&inputs),
            Self::ArgMax(op) => op.outputs(&inputs),
        }
    }

    /// The inputs with the names that errors call them.
    pub(crate) fn named<'a>(&self, inputs: &'a [(Shape, DType)]) -> Inputs<'a> {
        Inputs {
            operation: self.name(),
            names: self.inputs(),
            inputs,
        }
    }

    /// The element type that selects the kernel of the operation.
    pub(crate) fn element(&self, inputs: &[DType]) -> DType {
        match self {
            Self::Embed(embed) => embed.dtype,
            Self::Norm(norm) => norm.dtype,
            Self::AddNorm(_) => inputs[1],
            Self::Normed(normed) => normed.dtype,
            Self::Choose(choose) => choose.normed.dtype,
            Self::Project(_)
            | Self::Append(_)
            | Self::Latents(_)
            | Self::Absorb(_)
            | Self::Unabsorb(_)
            | Self::Rotate(_)
            | Self::Expand(_)
            | Self::Pool(_)
            | Self::Gated(_)
            | Self::GateOutput(_)
            | Self::Delta(_)
            | Self::Route(_)
            | Self::Experts(_)
            | Self::Combine
            | Self::ArgMax(_) => inputs[0],
        }
    }
}

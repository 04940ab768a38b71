//! Feed-forward layers of experts.

use super::unnormed::Routed;
use super::{GatedMlp, Projection, Unnormed, Weight, activation, around, float, one, primitive};
use crate::Profile;
use crate::loader::{Loader, Matrix};
use crate::stream::Pending;
use burn::prelude::*;
use burn::tensor::TensorPrimitive;
use burn::tensor::ops::FloatTensor;
use butterfly::ops::{
    Activation, Experts as Operands, Joined, Operation, Route, Sections, Shared as Beside, Storage,
};
use butterfly::{AttentionBackend, OperationError, Plan};
use butterfly_ir::model::{ExpertsShape, FeedForwardGate, ModelSizes, Part, SharedExpert};

/// A router, its experts, and the expert that computes for every token.
#[derive(Clone, Debug)]
pub(crate) struct Experts<B: Backend> {
    /// [E, H], its products in f32: which experts are chosen depends on small differences.
    router: Projection<B>,
    /// The router, and below it the gate of the expert that computes for every row: where the weights of experts have
    /// that one too, and it has a gate.
    gated_router: Option<Projection<B>>,
    /// [E], added to scores for the choice.
    bias: Option<Tensor<B, 1>>,
    route: Route,
    /// For each expert gate and up [2 I, H].
    inner: Weights<B>,
    /// For each expert down [H, I].
    outer: Weights<B>,
    /// In f32, [E, 2 I] and [E, H].
    biases: Option<[Tensor<B, 2>; 2]>,
    activation: Activation,
    shared: Option<Shared<B>>,
    /// How that expert is chosen where the weights of experts have it too, behind those of all others.
    joined: Joined,
    /// Experts of which the router chooses, and experts of which there are weights.
    count: usize,
    stored: usize,
    /// The layer's number.
    layer: usize,
}

/// The weights of all experts.
#[derive(Clone, Debug)]
struct Weights<B: Backend> {
    sections: Sections,
    /// The tensors of each section in turn.
    tensors: Vec<FloatTensor<B>>,
}

#[derive(Clone, Debug)]
struct Shared<B: Backend> {
    mlp: GatedMlp<B>,
    /// [H], in f32.
    gate: Option<Tensor<B, 1>>,
}

impl<B: AttentionBackend> Experts<B> {
    /// Loads those of a layer, whose weights begin with `at`.
    pub(crate) fn load(
        loader: &mut Loader<'_, B>,
        (layer, at): (usize, &str),
        shape: &ExpertsShape,
        sizes: &ModelSizes,
    ) -> Self {
        let (hidden, count) = (sizes.hidden as usize, shape.count as usize);
        // gpt-oss has other names, biases, and rows of gate and up in turn.
        let clamped = matches!(sizes.gate, FeedForwardGate::Clamped { .. });
        let gate = match clamped {
            true => format!("{at}.router"),
            false => format!("{at}.gate"),
        };
        let bias = |loader: &mut Loader<'_, B>| loader.bias(&[(format!("{gate}.bias"), count)]);
        let router = loader.of_part(Part::Router, |loader| Projection {
            weight: loader.wide_weight((format!("{gate}.weight"), count), hidden),
            bias: clamped.then(|| loader.in_f32(bias)),
        });
        let bias = shape.router.biased.then(|| {
            let name = format!("{gate}.e_score_correction_bias");
            loader.norm(&name, count, 0.0)
        });
        let whole = clamped && loader.has(&format!("{at}.experts.gate_up_proj"));
        let ([inner, outer], joins) = loader.of_part(Part::Experts, |loader| match whole {
            true => (transposed(loader, at, shape, hidden), false),
            false => weights(loader, at, shape, hidden),
        });
        // Where they are tensors of their own, gate and up lie side by side.
        let separate = loader.has(&format!("{at}.experts.gate_proj.bias"));
        let biases = clamped.then(|| biases(loader, at, shape, hidden, separate));
        let activation = match activation(sizes.gate) {
            Activation::Clamped { alpha, limit, .. } => Activation::Clamped {
                alpha,
                limit,
                alternate: !separate,
            },
            other => other,
        };
        let shared = shape.shared.map(|shared| {
            let name = &shared_name(at, &shared);
            let gate = format!("{at}.shared_expert_gate.weight");
            let gate = shared.gated.then(|| loader.row(&gate, hidden));
            let wide = shared.intermediate as usize;
            let names = ["gate_proj", "up_proj"];
            let mlp = GatedMlp::load(loader, name, &names, [hidden, wide], Activation::Silu);
            Shared { mlp, gate }
        });
        let gate = shared.as_ref().and_then(|shared| shared.gate.as_ref());
        let floats = |part: &butterfly::ops::Part| matches!(part.storage, Storage::Dense(_));
        let joined = match (joins, gate) {
            (true, None) => Joined::Plain,
            (true, Some(_)) if router.weight.parts.iter().all(floats) => Joined::Gated,
            (_, _) => Joined::None,
        };
        let gated_router = gate.filter(|_| joined == Joined::Gated && loader.loads());
        let gated_router = gated_router.map(|gate| below(&router, gate));
        Self {
            router,
            gated_router,
            joined,
            bias,
            route: Route {
                chosen: shape.chosen as usize,
                router: shape.router,
                shared: Joined::None,
            },
            inner,
            outer,
            biases,
            activation,
            shared,
            count,
            stored: count + usize::from(joins),
            layer,
        }
    }

    /// The stream before the layer's norm → the stream, and what is to be added to it.
    ///
    /// Of a few rows, the expert that computes for every row is one more of the chosen ones, where it is stored with
    /// them, and the next norm adds up what they give.
    pub(crate) fn forward(
        &self,
        x: Unnormed<'_, B>,
        plan: Option<&Plan>,
        profile: &Profile,
    ) -> Result<(Tensor<B, 3>, Pending<B>), OperationError> {
        let device = x.stream.x.device();
        let few = x.is_few();
        let apart =
            few && self.biases.is_none() && (self.shared.is_none() || self.joined != Joined::None);
        let (router, joined) = match (apart, &self.gated_router) {
            (false, _) => (&self.router, Joined::None),
            (true, None) => (&self.router, self.joined),
            (true, Some(router)) => (router, self.joined),
        };
        let route = Route {
            shared: joined,
            ..self.route
        };
        let bias = self.bias.as_ref();
        let routed = match few {
            true => profile.part::<B, _>(Part::Router, &device, || {
                x.choose(router, route, bias, plan)
            })?,
            false => {
                let (stream, normed) = profile.part::<B, _>(Part::Norms, &device, || x.normed())?;
                let choice = profile.part::<B, _>(Part::Router, &device, || {
                    let logits = router.forward_wide(normed.clone(), plan)?;
                    let bias = bias.cloned().map(primitive);
                    let inputs = [primitive(logits)].into_iter().chain(bias);
                    around::<B>(Operation::Route(route), inputs.collect())
                })?;
                Routed {
                    stream,
                    normed,
                    choice,
                }
            }
        };
        let Routed {
            stream,
            normed: x,
            choice,
        } = routed;
        if profile.is_on() {
            let ids: Tensor<B, 3> = float(choice[0].clone());
            let ids = ids.into_data().to_vec::<i32>();
            let mut ids = ids.unwrap_or_default();
            // The profile counts what the router chooses.
            ids.retain(|id| usize::try_from(*id).is_ok_and(|id| id < self.count));
            profile.chose(self.layer, self.count, &ids);
        }
        let shared = match &self.shared {
            Some(_) if apart => None,
            None => None,
            Some(Shared { mlp, gate }) => {
                Some((mlp.forward(x.clone(), plan, profile)?, gate.clone()))
            }
        };
        let weights = choice.get(1).cloned();
        let routed = profile.part::<B, _>(Part::Experts, &device, || {
            let operation = Operation::Experts(Operands {
                count: self.stored,
                inner: self.inner.sections.clone(),
                outer: self.outer.sections.clone(),
                activation: self.activation,
                biased: self.biases.is_some(),
                shared: match &shared {
                    None => Beside::None,
                    Some((_, None)) => Beside::Rows,
                    Some((_, Some(_))) => Beside::Gated,
                },
                apart,
                products: plan.map(Plan::grouped).unwrap_or_default(),
            });
            let weights = self.inner.tensors.iter().chain(&self.outer.tensors);
            let biases = self.biases.iter().flatten().cloned().map(primitive);
            let shared = shared
                .into_iter()
                .flat_map(|(rows, gate)| [primitive(rows)].into_iter().chain(gate.map(primitive)));
            let inputs = [primitive(x)].into_iter().chain(choice);
            let inputs = inputs.chain(weights.cloned()).chain(biases).chain(shared);
            around::<B>(operation, inputs.collect())
        })?;
        let pending = match weights {
            Some(weights) if apart => Pending::Weighted {
                rows: one(routed)?,
                weights: float(weights),
            },
            _ => Pending::Rows(one(routed)?),
        };
        Ok((stream, pending))
    }
}

/// What the names of the tensors of the expert that computes for every row begin with.
fn shared_name(at: &str, shared: &SharedExpert) -> String {
    match shared.gated {
        true => format!("{at}.shared_expert"),
        false => format!("{at}.shared_experts"),
    }
}

/// A router with one more row.
fn below<B: AttentionBackend>(router: &Projection<B>, row: &Tensor<B, 1>) -> Projection<B> {
    let weight = &router.weight;
    let rows = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(weight.tensors[0].clone()));
    let row = row.clone().unsqueeze::<2>().cast(rows.dtype());
    let rows = Tensor::cat(vec![rows, row], 0);
    let parts = weight.parts.iter().map(|part| butterfly::ops::Part {
        rows: part.rows + 1,
        ..*part
    });
    Projection::new(Weight {
        parts: parts.collect(),
        columns: weight.columns,
        tensors: vec![rows.into_primitive().tensor()],
    })
}

/// What is before and after the name of a projection in the name of a tensor that holds a matrix of every
/// expert: in Hugging Face's folders, in GGUF files, and in folders of mlx-lm.
const STACKED: [[&str; 2]; 3] = [
    ["experts.", ""],
    ["experts.", ".weight"],
    ["switch_mlp.", ".weight"],
];

/// The weights of all experts, inner and outer, in whichever layout the checkpoint has them: a tensor for each expert, or
/// one for all, with gate and up in one tensor or in two. The weights of the expert that computes for every row follow
/// if they are of the same shape and stored alike; also whether they do.
fn weights<B: AttentionBackend>(
    loader: &mut Loader<'_, B>,
    at: &str,
    shape: &ExpertsShape,
    hidden: usize,
) -> ([Weights<B>; 2], bool) {
    let (count, wide) = (shape.count as usize, shape.intermediate as usize);
    let alone = |expert: usize, name: &str| format!("{at}.experts.{expert}.{name}.weight");
    let first = alone(0, "gate_proj");
    let fused: &[(&str, usize)] = &[("gate_up_proj", 2 * wide)];
    let split: &[(&str, usize)] = &[("gate_proj", wide), ("up_proj", wide)];
    let mut layouts = STACKED
        .iter()
        .flat_map(|ends| [(fused, ends), (split, ends)]);
    let stacked = layouts.find(|(parts, [before, after])| {
        let name = format!("{at}.{before}{}{after}", parts[0].0);
        loader.has(&name) || loader.has(&format!("{name}_blocks"))
    });
    let (inner, ends) = match stacked {
        Some((parts, ends)) => (parts, Some(ends)),
        None => (split, None),
    };
    let name_of = |expert: usize, name: &str| match ends {
        Some([before, after]) => format!("{at}.{before}{name}{after}"),
        None => alone(expert, name),
    };
    if ends.is_none() && !loader.is_random() && !loader.has(&first) {
        // One line instead of one for each tensor of each expert.
        let all = format!("{at}.experts.gate_up_proj");
        let [first, all] = [first, all].map(|name| loader.full(&name));
        loader.problem(format!("{first}: missing, and so is {all}"));
        let none = || Weights {
            sections: Sections::from([]),
            tensors: Vec::new(),
        };
        return ([none(), none()], false);
    }
    let more = alone(count, "gate_proj");
    if loader.has(&more) {
        let more = loader.full(&more);
        loader.problem(format!(
            "{more}: is there, but the config has {count} experts"
        ));
    }
    let matrix = |expert: usize, (name, rows): (&str, usize)| Matrix {
        name: name_of(expert, name),
        of: ends.map(|_| (expert, count)),
        rows,
    };
    let outer = [("down_proj", hidden)];
    // The matrices that follow those of a part, in its order of rows.
    let name = shape.shared.as_ref().map(|shared| shared_name(at, shared));
    let more = |(part, rows): (&str, usize)| -> Vec<Matrix> {
        let pieces: &[&str] = match part {
            "gate_up_proj" => &["gate_proj", "up_proj"],
            _ => &[part],
        };
        let pieces = name
            .iter()
            .flat_map(|at| pieces.iter().map(move |piece| (at, piece)));
        let pieces = pieces.map(|(at, piece)| Matrix {
            name: format!("{at}.{piece}.weight"),
            of: None,
            rows: rows / if part == "gate_up_proj" { 2 } else { 1 },
        });
        pieces.collect()
    };
    let alike = |part: &(&str, usize), columns: usize| {
        loader.stores_alike(&matrix(0, *part), &more(*part), columns)
    };
    let same = shape.shared.as_ref();
    let same = same.is_some_and(|shared| shared.intermediate == shape.intermediate);
    let joins = same
        && !B::ON_HOST
        && inner.iter().all(|part| alike(part, hidden))
        && outer.iter().all(|part| alike(part, wide));
    let mut sections = |parts: &[(&str, usize)], columns| {
        let sections = parts.iter().filter_map(|part| {
            let matrices = (0..count).map(|expert| matrix(expert, *part));
            let more = if joins { more(*part) } else { Vec::new() };
            loader.section(&matrices.collect::<Vec<_>>(), &more, columns)
        });
        let (sections, tensors): (Vec<_>, Vec<_>) = sections.unzip();
        Weights {
            sections: sections.into(),
            tensors: tensors.concat(),
        }
    };
    ([sections(inner, hidden), sections(&outer, wide)], joins)
}

/// The biases of gpt-oss, [E, 2 I] and [E, H], each expert's in the order of its rows.
fn biases<B: AttentionBackend>(
    loader: &mut Loader<'_, B>,
    at: &str,
    shape: &ExpertsShape,
    hidden: usize,
    separate: bool,
) -> [Tensor<B, 2>; 2] {
    let (count, wide) = (shape.count as usize, shape.intermediate as usize);
    let mut read = |name: &str, width: usize| {
        let mut numbers = loader.vector(&format!("{at}.experts.{name}"), &[count, width], 0.0);
        if loader.is_random() {
            numbers.fill(0.0);
        }
        numbers
    };
    let [inner, outer] = match separate {
        false => [
            read("gate_up_proj_bias", 2 * wide),
            read("down_proj_bias", hidden),
        ],
        true => {
            let [gate, up] = ["gate_proj.bias", "up_proj.bias"].map(|name| read(name, wide));
            let experts = gate.chunks(wide).zip(up.chunks(wide));
            let inner = experts.flat_map(|(gate, up)| [gate, up].concat()).collect();
            [inner, read("down_proj.bias", hidden)]
        }
    };
    [
        loader.floats(inner, [count, 2 * wide]),
        loader.floats(outer, [count, hidden]),
    ]
}

/// The weights of gpt-oss as matrices of floats, which checkpoints hold as [E, H, 2 I] and [E, I, H].
fn transposed<B: AttentionBackend>(
    loader: &mut Loader<'_, B>,
    at: &str,
    shape: &ExpertsShape,
    hidden: usize,
) -> [Weights<B>; 2] {
    let (count, wide) = (shape.count as usize, shape.intermediate as usize);
    let mut weights = |name: &str, [rows, columns]: [usize; 2]| {
        let name = format!("{at}.experts.{name}");
        let (section, tensor) = loader.section_transposed(&name, [count, rows, columns]);
        Weights {
            sections: [section].into(),
            tensors: vec![tensor],
        }
    };
    let inner = weights("gate_up_proj", [2 * wide, hidden]);
    [inner, weights("down_proj", [hidden, wide])]
}

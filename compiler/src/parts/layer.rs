//! The steps of the layers that mix tokens: softmax, latent and linear attention.

use super::{Attending, Counter, Kind, Launched, PartsError, Step};
use crate::cost::{self, LayerShape};
use crate::{form, fuse, graph, plan, schedule, work};
use butterfly_ir::layer_graph::{LayerGraph, Node, Op};
use butterfly_ir::model::{Form, Part, Phase};
use butterfly_ir::{Context, Geometry, Pattern};

impl Counter<'_> {
    /// The steps of a layer with softmax attention, latent or not: the kernels of its fused graph, and the
    /// projections at both ends.
    pub(super) fn attention(
        &self,
        layer: u32,
        attending: &Attending,
    ) -> Result<Vec<Step>, PartsError> {
        let (config, call) = (self.subject.config, self.call);
        let phase = call.phase();
        let pattern = &attending.sparsity.pattern;
        let lengths = [call.q_len, call.kv_len].map(u64::from);
        let form = form::of(&config.attention, phase, pattern, lengths);
        let mut graph = fuse::lower(&graph::build(config, layer, phase, form)?);
        graph.dtype = self.subject.dtype;
        let projected = graph.nodes.iter().filter(|node| node.op == Op::Projection);
        let rows: f64 = projected.map(|node| width(&graph, node, 0)).sum();
        let mut steps = self.product([rows, self.hidden], config.biases.inputs());
        for node in &graph.nodes {
            match &node.op {
                Op::Projection | Op::Split(_) => {}
                Op::Norm(_)
                | Op::Rope(_)
                | Op::Scale { .. }
                | Op::Append
                | Op::Prologue { .. }
                | Op::Heads { .. }
                | Op::Latents { .. } => steps.push(self.moved(Part::Heads, &graph, node)),
                Op::Gate => steps.push(self.moved(Part::Gates, &graph, node)),
                Op::Up => {
                    let [k, n] = [read(&graph, node), width(&graph, node, 0)];
                    steps.extend(self.product([n, k], false));
                }
                Op::Absorb { .. } | Op::Unabsorb => {
                    steps.push(self.of_heads(&graph, node, call.q_len));
                }
                Op::Expand { .. } => steps.push(self.of_heads(&graph, node, call.kv_len)),
                Op::Attend(attend) => {
                    let v_in_k = attend.v_in_k;
                    steps.extend(self.attend((layer, attending), (phase, form), v_in_k)?);
                }
                Op::Output => {
                    let shape = [self.hidden, read(&graph, node)];
                    steps.extend(self.product(shape, config.biases.output()));
                }
            }
        }
        Ok(steps)
    }

    /// A node that reads and writes rows.
    fn moved(&self, part: Part, graph: &LayerGraph, node: &Node) -> Step {
        let traffic = graph.node_traffic(node);
        let call = self.call;
        let bytes = traffic.per_query as f64 * f64::from(call.q_len)
            + traffic.per_key as f64 * f64::from(call.kv_len);
        Step {
            part,
            kernels: 1,
            flop: 0.0,
            bytes: bytes * f64::from(call.batch) + traffic.fixed as f64,
            kind: Kind::Rows,
        }
    }

    /// A node that multiplies `tokens` tokens of each sequence by matrices of each head.
    fn of_heads(&self, graph: &LayerGraph, node: &Node, tokens: u32) -> Step {
        let elements = graph.node_traffic(node).fixed as f64 / self.bytes;
        Step {
            flop: 2.0 * elements * f64::from(tokens) * f64::from(self.call.batch),
            kind: Kind::OfHeads {
                expanded: matches!(node.op, Op::Expand { .. }),
            },
            ..self.moved(Part::Latents, graph, node)
        }
    }

    /// Attention, and before it the choice of blocks, if rows choose any.
    fn attend(
        &self,
        (layer, attending): (u32, &Attending),
        (phase, form): (Phase, Form),
        v_in_k: bool,
    ) -> Result<Vec<Step>, PartsError> {
        let (config, call) = (self.subject.config, self.call);
        let sparsity = &attending.sparsity;
        let pattern = &sparsity.pattern;
        let context = Context {
            capacity: call.capacity.max(call.kv_len),
            prompt: call.prompt,
            layer,
            ..Context::new(sparsity.block, call.kv_len, attending.index)
        };
        let shape = config.kernel_shape(form);
        let spec = plan::spec(config, sparsity, (phase, form), self.subject.dtype);
        let geometry = (self.choose)(&spec);
        // The pairs that are seen are the same in tiles of any size.
        let tiles = geometry.unwrap_or_else(|| Geometry::new([1; 3], [64; 2], 0));
        let from = call.kv_len.saturating_sub(call.q_len);
        let heads = (pattern, config.attention.kv_heads());
        let schedule = schedule::of_heads(heads, &context, phase.into(), &tiles, from)?;
        let of_layer = LayerShape {
            batch: call.batch,
            q_heads: shape.q_heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            v_head_dim: shape.v_head_dim,
            q_len: call.q_len,
            kv_len: call.kv_len,
            dtype: self.subject.dtype,
        };
        let mut cost = cost::count(&schedule, &of_layer, phase.into(), &tiles);
        if v_in_k {
            // The value is part of the key, which is read once.
            let keys = schedule.keys.min(call.kv_len.into()) * u64::from(shape.kv_heads);
            let values = keys * u64::from(call.batch) * u64::from(shape.v_head_dim);
            let read = values * u64::from(self.subject.dtype.bytes());
            cost.bytes = cost.bytes.saturating_sub(read);
        }
        let (flop, bytes) = (cost.exact_flop as f64, cost.bytes as f64);
        let kind = match geometry {
            None => Kind::Other,
            Some(geometry) => Kind::Attention(Box::new(Launched {
                spec,
                geometry,
                cost,
            })),
        };
        let attention = Step {
            part: Part::Attention,
            kernels: 1,
            flop,
            bytes,
            kind,
        };
        let chosen = self.choice((pattern, &context), from)?;
        Ok(chosen.into_iter().chain([attention]).collect())
    }

    /// The scores of blocks, of which rows choose the best.
    fn choice(
        &self,
        (pattern, context): (&Pattern, &Context),
        from: u32,
    ) -> Result<Option<Step>, PartsError> {
        let Some(routing) = pattern.routing() else {
            return Ok(None);
        };
        let shape = self.subject.config.kernel_shape(Form::Expanded);
        let mut products = 0.0;
        for (pattern, heads) in pattern.head_classes(shape.kv_heads) {
            let of_head = work::score_products(&pattern, context, from)?;
            products += heads.len() as f64 * of_head as f64;
        }
        let batch = f64::from(self.call.batch);
        let [group, dim] = [shape.group, shape.head_dim].map(f64::from);
        let means = f64::from(context.kv_len / routing.pool) * f64::from(shape.kv_heads);
        Ok(Some(Step {
            part: Part::Attention,
            // Weigh, score, pick.
            kernels: 3,
            // Logits are computed twice: for the sums of weights, and for the weights.
            flop: 4.0 * products * group * dim * batch,
            bytes: 4.0 * means * dim * batch,
            kind: Kind::Other,
        }))
    }

    /// The steps of a layer with linear attention; none if the model has no such layers.
    pub(super) fn linear(&self) -> Vec<Step> {
        let Some(shape) = self.subject.sizes.linear else {
            return Vec::new();
        };
        let [k_heads, v_heads] = [shape.k_heads, shape.v_heads].map(f64::from);
        let [k_dim, v_dim, taps] = [shape.k_dim, shape.v_dim, shape.taps].map(f64::from);
        let (keys, values) = (k_heads * k_dim, v_heads * v_dim);
        let channels = 2.0 * keys + values;
        let width = channels + values + 2.0 * v_heads;
        let state = v_heads * k_dim * v_dim;
        // The convolution, and three products with the state of each head.
        let flop = 2.0 * taps * channels + 6.0 * state;
        let rule = Step {
            // Of a single token one; in chunks convolution, matrices, rule, norm.
            kernels: if self.call.q_len == 1 { 1 } else { 4 },
            flop: self.rows * flop,
            // The state is f32, read and written once.
            bytes: self.rows * self.bytes * (width + values)
                + f64::from(self.call.batch) * 8.0 * state,
            kind: Kind::Other,
            ..self.over_rows(Part::LinearAttention, 0.0)
        };
        let mut steps = self.product([width, self.hidden], false);
        steps.push(rule);
        steps.extend(self.product([self.hidden, values], false));
        steps
    }
}

/// Elements of a token in result `i` of a node.
fn width(graph: &LayerGraph, node: &Node, i: usize) -> f64 {
    let value = node.outputs.get(i).map(|x| graph.value(*x));
    value.map_or(0.0, |value| value.shape.row() as f64)
}

/// Elements of a token in the first operand of a node.
fn read(graph: &LayerGraph, node: &Node) -> f64 {
    let value = node.inputs.first().map(|x| graph.value(*x));
    value.map_or(0.0, |value| value.shape.row() as f64)
}

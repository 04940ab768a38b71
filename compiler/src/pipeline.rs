//! Model config and pattern → plan: every pass, in order.
//!
//! In:  a checked config and pattern. Out: a [`Plan`], and the layer graphs that were made on the
//! way. Each graph is checked by [`layer_graph::verify`] right after the pass that made it; the
//! plan is checked by [`verify`] on request.

use crate::prove::ProveError;
use crate::{classify, config, form, fuse, graph, key, lengths, plan, prove, verify};
use butterfly_ir::band::MAX_TOKENS;
use butterfly_ir::layer_graph::{self, GraphError, LayerGraph};
use butterfly_ir::model::{ModelConfig, OwnAttention};
use butterfly_ir::plan::{Kept, Plan, PlannedKernel, SwappedLayer, Variant};
use butterfly_ir::{Context, Dtype, Pattern, Phase, Sparsity, Target};
use std::time::Instant;

/// What to compile for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Targets to make kernels for.
    pub targets: &'a [Target],
    /// Element types of the kernels; if empty, [`plan::dtypes`] chooses them.
    pub dtypes: &'a [Dtype],
    /// Longest sequence in tokens; if `None`, the model's own limit.
    pub capacity: Option<u32>,
    /// Whether to check the plan against its pattern ([`verify`]). With debug assertions it is
    /// always checked.
    pub verify: bool,
}

/// The results of all passes.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The kernels to emit, and the proof.
    pub plan: Plan,
    /// The graphs of the first swapped layer: in prefill, then in decode.
    pub graphs: [Graphs; 2],
    /// The name of each pass and the seconds that it took, in order of first run.
    pub timings: Vec<(&'static str, f64)>,
}

/// A layer graph before and after fusion.
#[derive(Clone, Debug, PartialEq)]
pub struct Graphs {
    /// Before fusion: one node for each step of the model's definition.
    pub before: LayerGraph,
    /// After fusion: the kernels that run.
    pub after: LayerGraph,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The pattern names a layer that cannot be replaced.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// At some length a query sees no key or a later key, a table does not fit, or the rows are
    /// too many to check.
    #[error("{error}")]
    Pattern {
        /// What is wrong.
        error: classify::ClassifyError,
        /// Index in the model of the first layer for which it is.
        layer: u32,
        /// The first of its kv heads.
        kv_head: u32,
    },
    /// The capacity exceeds the largest number of tokens that kernels take.
    #[error("{tokens} tokens: attention takes at most {MAX_TOKENS}; give `--capacity` with fewer")]
    Capacity {
        /// The requested capacity.
        tokens: u32,
    },
    /// The layers' reach cannot be proved, not even at a shorter length.
    #[error(transparent)]
    Prove(#[from] ProveError),
    /// The pattern names an empty list of layers, so no layer is swapped.
    #[error("the pattern replaces no layer: its list of swapped layers is empty")]
    NoLayers,
    /// No graph can be built for a layer.
    #[error(transparent)]
    Build(#[from] graph::BuildError),
    /// A pass made a graph that breaks an invariant: a bug of the compiler.
    #[error("the pass `{pass}` made a wrong graph, which is a bug: {error}")]
    Verify {
        /// The pass that made the graph.
        pass: &'static str,
        /// The broken invariant.
        error: GraphError,
    },
    /// The plan contradicts the pattern: a bug of the compiler.
    #[error("the plan is not what the pattern says, which is a bug: {0}")]
    Plan(String),
}

/// Runs all passes.
///
/// # Errors
/// The [`PipelineError`] of the first pass that fails. `Verify` and `Plan` are bugs of the
/// compiler; all others are faults of the model, the pattern or the request.
pub fn lower(
    model: &ModelConfig,
    sparsity: &Sparsity,
    request: &Request<'_>,
) -> Result<Lowered, PipelineError> {
    let mut clock = Clock(Vec::new());
    let capacity = request.capacity.unwrap_or(model.max_positions);
    if capacity > MAX_TOKENS {
        return Err(PipelineError::Capacity { tokens: capacity });
    }
    let layers = clock.time("swap", || config::swapped(model, sparsity))?;
    let first = layers.first().ok_or(PipelineError::NoLayers)?.layer;
    let variants = plan::variants(sparsity, &layers);
    let kv_heads = model.attention.kv_heads();
    clock.time("lengths", || check(sparsity, &layers, kv_heads, capacity))?;
    let proof = clock.time("prove", || {
        let at = |tokens| Context::new(sparsity.block, tokens, 0);
        let of = |layer: &SwappedLayer| (sparsity.pattern.of_layer(layer.layer), layer.index);
        let of_layers: Vec<_> = layers.iter().map(of).collect();
        let prove = |tokens| prove::stack(&of_layers, &at(tokens), kv_heads);
        // If the whole capacity is too long to prove, prove the longest length that is not.
        prove(capacity).or_else(|ProveError::TooLong { longest, .. }| prove(longest))
    })?;
    let pattern = sparsity.pattern.of_layer(first);
    let [prefill, decode] = [Phase::Prefill, Phase::Decode]
        .map(|phase| graphs(model, (first, &pattern), (phase, capacity), &mut clock));
    let kept = kept(model, &layers);
    let kernels = clock.time("plan", || {
        let mut kernels = Vec::new();
        for Variant { pattern, .. } in &variants {
            let of_variant = Sparsity {
                pattern: pattern.clone(),
                ..sparsity.clone()
            };
            kernels.extend(self::kernels(model, &of_variant, request));
        }
        for kept in &kept {
            kernels.extend(self::kernels(model, &kept.own.sparsity(), request));
        }
        kernels.sort_by(|a, b| (a.target, &a.key).cmp(&(b.target, &b.key)));
        kernels.dedup();
        kernels
    });
    let plan = Plan {
        sparsity: sparsity.clone(),
        layers,
        capacity,
        proof,
        variants,
        kept,
        kernels,
    };
    if request.verify || cfg!(debug_assertions) {
        let verified = clock.time("verify", || verify::plan(&plan));
        verified.map_err(PipelineError::Plan)?;
    }
    Ok(Lowered {
        plan,
        graphs: [prefill?, decode?],
        timings: clock.0,
    })
}

/// Checks the pattern of every layer and kv head at all lengths; equal ones once.
fn check(
    sparsity: &Sparsity,
    layers: &[SwappedLayer],
    kv_heads: u32,
    capacity: u32,
) -> Result<(), PipelineError> {
    let mut checked: Vec<Pattern> = Vec::new();
    for &SwappedLayer { layer, .. } in layers {
        for (pattern, heads) in sparsity.pattern.of_layer(layer).head_classes(kv_heads) {
            if checked.contains(&pattern) {
                continue;
            }
            let one = Sparsity {
                pattern: pattern.clone(),
                ..sparsity.clone()
            };
            lengths::check(&one, capacity).map_err(|error| PipelineError::Pattern {
                error,
                layer,
                kv_head: heads[0],
            })?;
            checked.push(pattern);
        }
    }
    Ok(())
}

/// The graphs of a layer, of the form that it has for a whole prompt of `capacity` tokens or the last of
/// so many.
fn graphs(
    model: &ModelConfig,
    (layer, pattern): (u32, &Pattern),
    (phase, capacity): (Phase, u32),
    clock: &mut Clock,
) -> Result<Graphs, PipelineError> {
    let verified = |pass, graph: LayerGraph| match layer_graph::verify(&graph) {
        Ok(()) => Ok(graph),
        Err(error) => Err(PipelineError::Verify { pass, error }),
    };
    let queries = match phase {
        Phase::Prefill => capacity,
        Phase::Decode => 1,
    };
    let form = form::of(
        &model.attention,
        phase,
        pattern,
        [queries, capacity].map(u64::from),
    );
    let before = clock.time("graph", || graph::build(model, layer, phase, form))?;
    let before = verified("graph", before)?;
    let after = clock.time("fuse", || fuse::lower(&before));
    let after = verified("fuse", after)?;
    Ok(Graphs { before, after })
}

/// The attention of the layers that are not swapped, each kind once, sorted.
fn kept(model: &ModelConfig, swapped: &[SwappedLayer]) -> Vec<Kept> {
    let layers = (0u32..).zip(&model.layers);
    let stay = layers.filter(|(layer, _)| swapped.iter().all(|one| one.layer != *layer));
    let mut kinds: Vec<OwnAttention> = stay.filter_map(|(_, kind)| kind.own()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let kept = kinds.into_iter().map(|own| Kept {
        own,
        rows: plan::rows(&own.sparsity().pattern),
    });
    kept.collect()
}

fn kernels(model: &ModelConfig, sparsity: &Sparsity, request: &Request<'_>) -> Vec<PlannedKernel> {
    let mut kernels = Vec::new();
    for &target in request.targets {
        for dtype in plan::dtypes(target, request.dtypes, model.dtype) {
            let specs = plan::lower(model, sparsity, dtype).into_iter();
            kernels.extend(specs.map(|spec| PlannedKernel {
                key: key::of(&spec, target),
                target,
                spec,
            }));
        }
    }
    kernels
}

struct Clock(Vec<(&'static str, f64)>);

impl Clock {
    fn time<T>(&mut self, pass: &'static str, run: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = run();
        let seconds = started.elapsed().as_secs_f64();
        match self.0.iter_mut().find(|(name, _)| *name == pass) {
            Some((_, total)) => *total += seconds,
            None => self.0.push((pass, seconds)),
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn the_plan_has_each_kernel_once_and_a_proof() {
        let text = r#"{"model_type": "llama", "dtype": "bfloat16", "num_hidden_layers": 9,
            "max_position_embeddings": 65536, "hidden_size": 64, "intermediate_size": 64,
            "vocab_size": 64, "rms_norm_eps": 1e-6, "num_attention_heads": 4, "head_dim": 16}"#;
        let model = config::read("config.json", text).expect("config");
        let pattern = "causal & (local(0) | partner(causal_shift))";
        let sparsity = Sparsity::parse("test", pattern).expect("pattern");
        let request = Request {
            targets: &[Target::Cpu, Target::Vulkan, Target::Cpu],
            dtypes: &[],
            capacity: None,
            verify: true,
        };
        let lowered = lower(&model, &sparsity, &request).expect("a plan");
        let Plan { proof, kernels, .. } = &lowered.plan;
        // CPU: bf16, the model's type, and f32, which it runs by default. Vulkan has no bf16, so
        // it gets f16 and f32.
        assert_eq!(kernels.len(), 4 + 4);
        assert_eq!((lowered.plan.capacity, proof.full_at), (65536, Some(9)));
        assert!(
            lowered
                .graphs
                .iter()
                .all(|g| g.after.kernels() < g.before.kernels())
        );
        let passes: Vec<_> = lowered.timings.iter().map(|(pass, _)| *pass).collect();
        assert_eq!(
            passes,
            [
                "swap", "lengths", "prove", "graph", "fuse", "plan", "verify"
            ]
        );
        let empty = Sparsity {
            swapped_layers: Some(vec![]),
            ..sparsity
        };
        let error = lower(&model, &empty, &request).expect_err("no layer");
        assert!(matches!(error, PipelineError::NoLayers));
    }
}

//! Which attention layers follow a pattern, and which keep their own attention.

use crate::ModelError;
use burn::prelude::Backend;
use butterfly::{Counts, KvCache, Plan, Sparsity, kept_at_most};
use butterfly_compiler::{config, form};
use butterfly_ir::Phase;
use butterfly_ir::model::{AttentionShape, Form, LayerKind, ModelConfig, OwnAttention};
use butterfly_ir::plan::SwappedLayer;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// The attention that each layer of a model runs.
#[derive(Clone, Debug)]
pub struct Policy {
    /// One entry for each layer of the model; `None` for layers without softmax attention.
    pub layers: Vec<Option<LayerPolicy>>,
}

/// The attention that one layer runs.
#[derive(Clone, Debug)]
pub struct LayerPolicy {
    /// The layer's pattern and kernels.
    pub plan: Plan,
    /// The index that picks the stage, unless the pattern fixes it: stage = index modulo the number
    /// of stages.
    pub index: u32,
    /// Whether a pattern replaces the layer's own attention.
    pub swapped: bool,
    /// Counts the launches of this layer's kernels.
    pub counts: Counts,
    /// The heads of the layer.
    pub attention: AttentionShape,
}

impl Policy {
    /// Every attention layer keeps its own attention, by kernels from the same source as those of
    /// `plan`, whose pattern does not matter.
    ///
    /// # Errors
    /// [`ModelError::Operation`] if `plan` is of artifacts without kernels for this attention.
    pub fn dense(model: &ModelConfig, plan: &Plan) -> Result<Self, ModelError> {
        Self::with(model, plan, &[])
    }

    /// The attention layers that `sparsity` names follow `plan`; if it names none, those that
    /// [`swapped`](config::swapped) says. The others keep their own attention, by kernels from the same source.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a layer that cannot be replaced; [`ModelError::Operation`] if
    /// `plan` is of artifacts without kernels for layers that keep their attention.
    pub fn new(model: &ModelConfig, plan: &Plan, sparsity: &Sparsity) -> Result<Self, ModelError> {
        Self::with(model, plan, &config::swapped(model, sparsity)?)
    }

    fn with(
        model: &ModelConfig,
        plan: &Plan,
        swapped: &[SwappedLayer],
    ) -> Result<Self, ModelError> {
        // Layers with the same attention share a plan, so that its kernels are prepared once.
        let mut kept: BTreeMap<OwnAttention, Plan> = BTreeMap::new();
        let mut variants: Vec<Plan> = Vec::new();
        let mut replaced = |layer| -> Result<Plan, ModelError> {
            let pattern = plan.sparsity().pattern.of_layer(layer);
            let same = |other: &&Plan| other.sparsity().pattern == pattern;
            if let Some(plan) = variants.iter().find(same) {
                return Ok(plan.clone());
            }
            let variant = plan.of_layer(layer)?;
            variants.push(variant.clone());
            Ok(variant)
        };
        let mut layer = |(layer, kind): (u32, &LayerKind)| {
            let Some(own) = kind.own() else {
                return Ok(None);
            };
            let swap = swapped.iter().find(|swapped| swapped.layer == layer);
            let plan = match (swap, kept.entry(own)) {
                (Some(_), _) => replaced(layer)?,
                (None, Entry::Occupied(kept)) => kept.get().clone(),
                (None, Entry::Vacant(kept)) => kept.insert(plan.keeping(own)?).clone(),
            };
            Ok(Some(LayerPolicy {
                plan,
                index: swap.map_or(0, |swap| swap.index),
                swapped: swap.is_some(),
                counts: Counts::default(),
                attention: model.attention,
            }))
        };
        let layers = (0..).zip(&model.layers).map(&mut layer);
        Ok(Self {
            layers: layers.collect::<Result<_, ModelError>>()?,
        })
    }

    /// Tokens that the KV caches of all layers hold of one sequence, together, and as many more as the
    /// means by which rows choose blocks take up, when at most
    /// `capacity` tokens are run in chunks of at most `chunk`.
    pub fn cached(&self, capacity: u64, chunk: u64) -> u64 {
        let layers = self.attention().map(|(_, layer)| layer);
        let tokens = layers.map(|layer| layer.cached(capacity, chunk));
        tokens.fold(0, u64::saturating_add)
    }

    /// The most tokens of one sequence for which a layer has room for keys and values that it makes of latents, when at
    /// most `capacity` tokens are run in chunks of at most `chunk`; 0 without latent attention.
    pub fn expanded(&self, capacity: u64, chunk: u64) -> u64 {
        let layers = self.attention().map(|(_, layer)| layer);
        let tokens = layers.map(|layer| layer.expanded(capacity, chunk));
        tokens.max().unwrap_or_default()
    }

    /// Why sequences of different lengths cannot run together; `None` if they can.
    pub fn takes_no_lags(&self) -> Option<&'static str> {
        self.attention().find_map(|(_, layer)| {
            let latent = matches!(layer.attention, AttentionShape::Mla { .. });
            let latent = latent.then_some("latent attention takes sequences of equal length");
            latent.or_else(|| layer.plan.takes_no_lags())
        })
    }

    /// The plan of the first attention layer. All layers share its artifacts, from which kernels
    /// for matrix products are taken.
    pub(crate) fn plan(&self) -> Option<&Plan> {
        let mut layers = self.attention();
        layers.next().map(|(_, layer)| &layer.plan)
    }

    /// The attention layers, each with its index in the model.
    pub fn attention(&self) -> impl Iterator<Item = (usize, &LayerPolicy)> {
        let layers = self.layers.iter().enumerate();
        layers.filter_map(|(i, layer)| Some((i, layer.as_ref()?)))
    }
}

impl LayerPolicy {
    /// The number of last tokens that the layer's queries see, if they see no others wherever they
    /// stand.
    pub fn lookback(&self) -> Option<u32> {
        let sparsity = self.plan.sparsity();
        sparsity.pattern.lookback(sparsity.block)
    }

    /// Whether a cache keeps all that the layer's queries see, from the start of a block on.
    pub(crate) fn fits<B: Backend>(&self, cache: &KvCache<B>) -> bool {
        let block = self.plan.sparsity().block as usize;
        let keeps = |kept| {
            let seen = self.lookback().is_some_and(|seen| seen as usize <= kept);
            seen && cache.block().is_multiple_of(block)
        };
        cache.window().is_none_or(keeps)
    }

    fn cached(&self, capacity: u64, chunk: u64) -> u64 {
        let most = self.lookback().map(|window| {
            let block = u64::from(self.plan.sparsity().block);
            kept_at_most(window.into(), chunk, block)
        });
        let tokens = most.unwrap_or(capacity).min(capacity);
        // A mean in f32 takes as much memory as key and value of a token in 16 bits or, where the value is part
        // of the key, as those of two.
        let of_mean = match self.attention {
            AttentionShape::Gqa { .. } => 1u64,
            AttentionShape::Mla { .. } => 2,
        };
        let means = self.plan.routing();
        let means = means.map_or(0, |routing| tokens / u64::from(routing.pool));
        tokens.saturating_add(of_mean.saturating_mul(means))
    }

    /// Keys and values that are made have the room of the cache, however many tokens it holds.
    fn expanded(&self, capacity: u64, chunk: u64) -> u64 {
        let pattern = &self.plan.sparsity().pattern;
        // The first chunk: more keys for the same queries only make it dearer to expand them.
        let lengths = [chunk.min(capacity); 2];
        match form::of(&self.attention, Phase::Prefill, pattern, lengths) {
            Form::Expanded if matches!(self.attention, AttentionShape::Mla { .. }) => capacity,
            Form::Expanded | Form::Absorbed | Form::AbsorbedByHead => 0,
        }
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::*;
    use butterfly_tests::fixture;

    #[test]
    fn caches_hold_what_layers_see() {
        let file = fixture("configs").join("mistral-7b-v0.1.json");
        let text = std::fs::read_to_string(&file).expect("a config");
        let model = config::read("config.json", &text).expect("a config");
        let dense = Policy::dense(&model, &Plan::dense()).expect("a policy");
        // 4095 tokens that the first of a chunk sees, the chunk, and the rest of a block of 128.
        let kept = (4095_u64 + 512 + 127).next_multiple_of(128);
        assert_eq!(dense.cached(32_768, 512), 32 * kept);
        assert_eq!(dense.cached(1000, 512), 32 * 1000);
        assert_eq!(dense.cached(u64::MAX, u64::MAX), u64::MAX);
        let swap = |text: &str| {
            let sparsity = Sparsity::parse("test", text).expect("a pattern");
            let plan = Plan::new(sparsity.clone()).expect("a plan");
            Policy::new(&model, &plan, &sparsity).expect("a policy")
        };
        let sinks = swap("layers 3,7 causal & (local(1) | sink(1))");
        assert_eq!(sinks.cached(32_768, 512), 30 * kept + 2 * 32_768);
        let near = swap("block 64 causal & local(1)");
        let kept = (127_u64 + 512 + 63).next_multiple_of(64);
        assert_eq!(near.cached(32_768, 512), 32 * kept);
        let layer = |policy: &Policy, layer: usize| {
            let layer = policy.layers[layer].clone().expect("softmax attention");
            (layer.swapped, layer.plan.sparsity().pattern.to_string())
        };
        assert_eq!(layer(&sinks, 0), (false, "causal & window(4096)".into()));
        assert_eq!(
            layer(&sinks, 3),
            (true, "causal & (local(1) | sink(1))".into())
        );
    }
}

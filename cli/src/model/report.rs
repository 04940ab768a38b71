//! Which kernels ran in which layers, and how busy experts were.

use butterfly_models::Policy;
use serde::Serialize;
use std::collections::BTreeMap;

/// One attention layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct LayerReport {
    pub(crate) layer: usize,
    /// Whether a pattern replaces its own attention.
    pub(crate) swapped: bool,
    /// Number of last tokens that its own attention sees, where that is kept and has a window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) window: Option<u32>,
    /// Index that picks the stage.
    pub(crate) index: u32,
    /// Number of launches of each kernel.
    pub(crate) kernels: Vec<(String, u64)>,
}

/// Every attention layer of a policy.
pub(crate) fn layers(policy: &Policy) -> Vec<LayerReport> {
    let layers = policy.attention();
    let report = layers.map(|(layer, policy)| LayerReport {
        layer,
        swapped: policy.swapped,
        window: policy.lookback().filter(|_| !policy.swapped),
        index: policy.index,
        kernels: policy.counts.get().into_iter().collect(),
    });
    report.collect()
}

/// The same as text, with one line for all layers that ran the same kernels equally often.
pub(crate) fn text(layers: &[LayerReport]) -> String {
    let what = |layer: &LayerReport| (layer.swapped, layer.window, layer.kernels.clone());
    let mut text = String::new();
    let mut rest: Vec<&LayerReport> = layers.iter().collect();
    while let Some(first) = rest.first().map(|layer| what(layer)) {
        let (same, other): (Vec<_>, Vec<_>) = rest.into_iter().partition(|l| what(l) == first);
        rest = other;
        let indices: Vec<String> = same.iter().map(|layer| layer.layer.to_string()).collect();
        let does = match (first.0, first.1) {
            (true, _) => "pattern".to_string(),
            (false, None) => "dense".to_string(),
            (false, Some(window)) => format!("dense in the last {window} tokens"),
        };
        let kernels = first.2.iter();
        let kernels: Vec<String> = kernels.map(|(name, n)| format!("{name} x {n}")).collect();
        text += &format!(
            "layers {}: {does}, {}\n",
            indices.join(","),
            kernels.join(", ")
        );
    }
    text
}

/// How unevenly the tokens of each layer spread over its experts: one line a layer.
pub(crate) fn expert_load(layers: &BTreeMap<usize, Vec<u64>>) -> String {
    let mut text = String::new();
    for (layer, load) in layers {
        let all: u64 = load.iter().sum();
        let most = load.iter().copied().max().unwrap_or_default();
        let busiest = load.iter().position(|n| *n == most).unwrap_or_default();
        let idle = load.iter().filter(|n| **n == 0).count();
        // 1 if all experts had equally much to do.
        let times = most as f64 * load.len() as f64 / all.max(1) as f64;
        text += &format!(
            "    expert load, layer {layer:<3} busiest {busiest} with {times:.2} x the mean, {idle} of {} idle\n",
            load.len()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_of_experts() {
        let loads = BTreeMap::from([(0, vec![2, 2, 2, 2]), (3, vec![0, 3, 1, 0]), (4, vec![0])]);
        assert_eq!(
            expert_load(&loads),
            "    expert load, layer 0   busiest 0 with 1.00 x the mean, 0 of 4 idle\n    \
             expert load, layer 3   busiest 1 with 3.00 x the mean, 2 of 4 idle\n    \
             expert load, layer 4   busiest 0 with 0.00 x the mean, 1 of 1 idle\n"
        );
    }
}

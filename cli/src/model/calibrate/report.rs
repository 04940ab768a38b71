//! What a calibration found, as JSON and as text.

use super::super::memory::Use;
use super::super::report::{self, LayerReport};
use super::recall::Recall;
use butterfly_ir::Dtype;
use butterfly_models::Ranking;
use butterfly_models::calibrate::{Comparison, Unit};
use serde::Serialize;

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) device: &'static str,
    pub(super) device_name: String,
    pub(super) dtype: Dtype,
    pub(super) model: String,
    /// The seed of weights and tokens, if they are random: only time and memory mean anything then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) random_weights: Option<u64>,
    pub(super) text: String,
    /// Tokens of the text.
    pub(super) tokens: usize,
    /// Tokens of a window.
    pub(super) window: usize,
    /// Windows on which the choice is made, and as many others on which it is verified.
    pub(super) windows: usize,
    /// Scored positions of a window.
    pub(super) scored: usize,
    /// First tokens of a window that see the same by the pattern.
    pub(super) same: usize,
    pub(super) skip: usize,
    pub(super) every: usize,
    pub(super) tail: u32,
    pub(super) by: Unit,
    /// The pattern that replaces.
    pub(super) replaces: String,
    /// Where the damages are from, if they were not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ranking: Option<Ranking>,
    /// Nats, for each layer and head that was measured.
    pub(super) damage: Vec<Vec<f64>>,
    /// Whether each of them is chosen.
    pub(super) replaced: Vec<Vec<bool>>,
    /// Sets measured together, on the windows of the choice.
    pub(super) curve: Vec<Point>,
    pub(super) chosen: Point,
    /// The chosen set, on the other windows.
    pub(super) verified: Cost,
    /// The policy's pattern.
    pub(super) pattern: String,
    pub(super) layers: Vec<LayerReport>,
    /// Measurements that an earlier start had made.
    pub(super) resumed: usize,
    pub(super) seconds: f64,
    /// That of the device, at its peak.
    #[serde(flatten)]
    pub(super) memory: Use,
    /// Bytes of logits on the host, as planned: dense ones of all scored positions of a window, and
    /// those of a policy that are compared at once.
    pub(super) logits_bytes: u64,
    pub(super) output: String,
}

impl Report {
    /// The chosen set on other text, where no prompts were put.
    pub(super) fn verified(&self) -> Point {
        Point {
            cost: self.verified,
            retrieval: None,
            ..self.chosen
        }
    }
}

/// A set of parts.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Point {
    pub(super) parts: usize,
    /// Of all parts.
    pub(super) share: f64,
    #[serde(flatten)]
    pub(super) cost: Cost,
    /// How often it finds what is hidden in prompts, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retrieval: Option<Recall>,
}

/// Predictions by a policy beside dense ones.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Cost {
    /// Positions that were compared.
    pub(super) scored: u64,
    pub(super) kl_nats: f64,
    pub(super) top1: f64,
    /// Tokens that were predicted.
    pub(super) predicted: u64,
    pub(super) dense_perplexity: f64,
    pub(super) perplexity: f64,
    pub(super) perplexity_ratio: f64,
}

impl From<Comparison> for Cost {
    fn from(sums: Comparison) -> Self {
        Self {
            scored: sums.scored,
            kl_nats: sums.kl_nats(),
            top1: sums.top1(),
            predicted: sums.predicted,
            dense_perplexity: sums.dense_perplexity(),
            perplexity: sums.perplexity(),
            perplexity_ratio: sums.perplexity_ratio(),
        }
    }
}

pub(super) fn text(report: &Report) -> String {
    let mut text = format!(
        "{} tokens of {}: {} windows of {} to choose on, {} to verify; {} positions of each compared, on {} ({}), {}\n",
        report.tokens,
        report.text,
        report.windows,
        report.window,
        report.windows,
        report.scored,
        report.device,
        report.device_name,
        report.dtype.name()
    );
    if report.resumed > 0 {
        text += &format!(
            "{} measurements are those of an earlier start\n",
            report.resumed
        );
    }
    if report.random_weights.is_some() {
        text += "weights and tokens are random: only time and memory mean anything\n";
    }
    text += &format!(
        "damage of each {} alone, 10^-4 nats; * is replaced\n",
        report.by.name()
    );
    if let Some(ranking) = &report.ranking {
        text += &format!("as measured for {}\n", ranking.policy);
    }
    let rows = report.damage.iter().zip(&report.replaced).enumerate();
    for (layer, (damage, replaced)) in rows {
        let cells = damage.iter().zip(replaced).map(|(damage, replaced)| {
            let mark = if *replaced { "*" } else { " " };
            format!(" {:>9.3}{mark}", damage * 1e4)
        });
        let cells: String = cells.collect();
        if !cells.is_empty() {
            text += &format!("layer {layer:>3}{cells}\n");
        }
    }
    text += "replaced together  share       KL    top-1  perplexity";
    let recalls = report.curve.iter().find_map(|point| point.retrieval);
    text += &recalls.map_or(String::new(), |recall| {
        format!("  found in {} prompts of {}", recall.prompts, recall.tokens)
    });
    text += "\n";
    for point in &report.curve {
        text += &line(&format!("{:<16}", point.parts), point);
    }
    text += &line(
        &format!("chosen {:<9}", report.chosen.parts),
        &report.chosen,
    );
    text += &line("on other text   ", &report.verified());
    text += &format!(
        "dense perplexity there {:.4}, with the policy {:.4}, over {} tokens\n",
        report.verified.dense_perplexity, report.verified.perplexity, report.verified.predicted
    );
    text += &report::text(&report.layers);
    text + &format!(
        "{} in {:.0} s{}, {:.2} GB of logits on the host\n",
        report.output,
        report.seconds,
        report.memory.text(),
        report.logits_bytes as f64 / 1e9
    )
}

fn line(name: &str, point: &Point) -> String {
    let found = point.retrieval.map_or(String::new(), |recall| {
        let [low, high] = recall.interval.map(|share| 100.0 * share);
        format!("  {:>5.1} % ({low:.1} to {high:.1})", 100.0 * recall.share)
    });
    format!(
        "{name} {:>6.1} % {:>8.5} {:>6.2} % {:>+9.2} %{found}\n",
        100.0 * point.share,
        point.cost.kl_nats,
        100.0 * point.cost.top1,
        100.0 * (point.cost.perplexity_ratio - 1.0)
    )
}

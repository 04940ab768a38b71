//! What `bench model` and `bench layer` print.

use super::super::memory::Use;
use super::super::report;
use super::profile::{self, Predictions};
use butterfly_ir::Dtype;
use butterfly_ir::model::Part;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) device: &'static str,
    pub(super) device_name: String,
    pub(super) dtype: Dtype,
    pub(super) model: String,
    pub(super) random_weights: bool,
    /// Tokens of all sequences that are taken at once.
    pub(super) chunk: u32,
    /// Whether batch sizes were given, which the table then shows.
    #[serde(skip)]
    pub(super) batched: bool,
    pub(super) load_seconds: f64,
    /// Bytes that the weights take on the device.
    pub(super) weights_bytes: Option<u64>,
    pub(super) rows: Vec<Row>,
    /// What is wrong with the logits, if not all are finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) not_finite: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Row {
    /// `dense`, `butterfly`, or what `--also` names.
    pub(super) attention: String,
    /// Sequences that run together.
    pub(super) batch: usize,
    /// Of each sequence, or of the longest.
    pub(super) prompt_tokens: usize,
    /// Of the shortest, if they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) shortest_prompt: Option<usize>,
    pub(super) prefill_seconds: f64,
    /// Over all sequences.
    pub(super) prefill_tokens_per_second: f64,
    /// Prefill and the choice of one token of each sequence.
    pub(super) first_token_seconds: f64,
    /// Of a step, which gives a token to each sequence.
    pub(super) decode_milliseconds: Option<f64>,
    /// Over all sequences.
    pub(super) decode_tokens_per_second: Option<f64>,
    #[serde(flatten)]
    pub(super) memory: Use,
    /// Bytes of the KV caches of all sequences, computed from their shapes.
    pub(super) cache_bytes: u64,
    /// Seconds of prefill by part, if asked for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) profile: BTreeMap<Part, f64>,
    /// Seconds of a token by part, if asked for: the mean of a few of those that are decoded.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) decode_profile: BTreeMap<Part, f64>,
    /// What is predicted for them, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) predicted: Option<Predictions>,
    /// How often each expert was chosen in this prefill, by layer, if asked for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) expert_load: BTreeMap<usize, Vec<u64>>,
    pub(super) layers: Vec<report::LayerReport>,
}

pub(super) fn text(report: &Report) -> String {
    let gigabytes = |bytes: Option<u64>| {
        bytes.map_or_else(
            || "-".to_string(),
            |bytes| format!("{:.2}", bytes as f64 / 1e9),
        )
    };
    let mut text = format!(
        "{} in {} on {} ({}), chunks of {}; weights {} GB, loaded in {:.1} s\n",
        report.model,
        report.dtype.name(),
        report.device,
        report.device_name,
        report.chunk,
        gigabytes(report.weights_bytes),
        report.load_seconds
    );
    let of_batch = |value: String, width: usize| match report.batched {
        true => format!(" {value:>width$}"),
        false => String::new(),
    };
    let names = report.rows.iter().map(|row| row.attention.chars().count());
    let width = names.max().unwrap_or(0).max(10);
    text += &format!(
        "{:<width$}{}     tokens   prefill s     tok/s   first s  decode ms{}   reserved GB  planned GB  cache GB\n",
        "attention",
        of_batch("batch".into(), 6),
        of_batch("decode tok/s".into(), 13)
    );
    for row in &report.rows {
        let tokens = match row.shortest_prompt {
            None => row.prompt_tokens.to_string(),
            Some(shortest) => format!("{shortest}-{}", row.prompt_tokens),
        };
        text += &format!(
            "{:<width$}{} {tokens:>10} {:>11.3} {:>9.0} {:>9.3} {:>10}{} {:>13} {:>11.2} {:>9.2}\n",
            row.attention,
            of_batch(row.batch.to_string(), 6),
            row.prefill_seconds,
            row.prefill_tokens_per_second,
            row.first_token_seconds,
            row.decode_milliseconds
                .map_or_else(|| "-".into(), |ms| format!("{ms:.2}")),
            of_batch(
                row.decode_tokens_per_second
                    .map_or_else(|| "-".into(), |rate| format!("{rate:.0}")),
                13
            ),
            gigabytes(row.memory.memory_bytes),
            row.memory.planned_bytes as f64 / 1e9,
            row.cache_bytes as f64 / 1e9
        );
        text += &profile::text(row);
        text += &report::expert_load(&row.expert_load);
    }
    for row in &report.rows {
        let batch = match report.batched {
            true => format!(", batch {}", row.batch),
            false => String::new(),
        };
        text += &format!(
            "{} at {}{batch}: {}",
            row.attention,
            row.prompt_tokens,
            report::text(&row.layers)
        );
    }
    text
}

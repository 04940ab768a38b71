//! `--profile`: what each part of a model takes, beside what is predicted for it.

use super::super::Place;
use super::Work;
use super::table::Row;
use crate::args::ActivationsArg;
use crate::failure::Failure;
use crate::output;
use crate::parts::{self, MEASURED, Predicted};
use butterfly::AttentionBackend;
use butterfly_compiler::card::{Card, Roof};
use butterfly_compiler::parts::{Attending, Call, Device, PartsError, Subject};
use butterfly_ir::Target;
use butterfly_ir::model::{ModelConfig, Part};
use butterfly_models::Policy;
use serde::Serialize;
use std::collections::BTreeMap;
use std::iter::once;

/// What is predicted for a prompt and for a token.
#[derive(Serialize)]
pub(super) struct Predictions {
    /// The most that the device can do, if it is known.
    roof: Option<Roof>,
    /// All chunks of the prompt.
    prefill: Predicted,
    /// The token in the middle of those that are profiled, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    decode: Option<Predicted>,
}

impl Work<'_> {
    /// Predicts the prompts of a batch of so many tokens each, in chunks, and the tokens after them.
    pub(super) fn predict<B: AttentionBackend>(
        &self,
        place: &Place<B>,
        (config, policy): (&ModelConfig, &Policy),
        lengths: [usize; 5],
    ) -> Result<Predictions, Failure> {
        let sizes = &self.subject.sizes;
        let stored = self.subject.weights.stored((config, sizes), place)?;
        let attending = policy.layers.iter().map(|layer| {
            let layer = layer.as_ref()?;
            Some(Attending {
                sparsity: layer.plan.sparsity().clone(),
                index: layer.index,
            })
        });
        let attention: Vec<_> = attending.collect();
        let subject = Subject {
            config,
            sizes,
            dtype: place.dtype,
            stored: &stored,
            quantised: self.run.activations == ActivationsArg::Fp8,
            attention: &attention,
        };
        let card = match place.kind {
            "cuda" => Card::of_device(&place.name),
            _ => None,
        };
        // Without a card only work is counted, which is the same for every target.
        let on = match card {
            Some(card) => (MEASURED, Some(Device::Card(card))),
            None => (Target::Cpu, None),
        };
        let [batch, tokens, chunk, capacity, decoded] =
            lengths.map(|length| u32::try_from(length).unwrap_or(u32::MAX));
        let prompt = Call::of_prompt(batch, [tokens, chunk, capacity]);
        let token = Call {
            kv_len: tokens.saturating_add(1 + decoded / 2),
            ..Call::after_prompt(batch, [tokens, capacity])
        };
        // What was measured is shown also where it cannot be counted.
        let none = |error: PartsError| {
            output::note(format_args!("note: nothing is predicted: {error}"));
            Predicted::default()
        };
        let prefill = parts::of_calls(&subject, prompt, on).unwrap_or_else(none);
        let decode = match decoded {
            0 => None,
            _ => Some(parts::of_calls(&subject, once(token), on).unwrap_or_else(none)),
        };
        Ok(Predictions {
            roof: card.map(Card::roof),
            prefill,
            decode,
        })
    }
}

/// The parts of prefill and of decode, if they were measured.
pub(super) fn text(row: &Row) -> String {
    let Some(predictions) = &row.predicted else {
        return String::new();
    };
    let of = |what: &str, ms: f64, seconds: &BTreeMap<Part, f64>, predicted: &Predicted| {
        let apart = 1e3 * seconds.values().sum::<f64>();
        let beside = match predicted.predicted_ms {
            None => String::new(),
            Some(predicted_ms) => format!(
                ", predicted {} ms ({:+.1} %)",
                parts::bound(Some(predicted_ms), predicted.lower_bound),
                100.0 * (predicted_ms / ms - 1.0)
            ),
        };
        let table = parts::measured_text(seconds, predicted);
        format!("    {what}: {ms:.3} ms{beside}; part by part {apart:.3} ms\n{table}")
    };
    let prefill = 1e3 * row.prefill_seconds;
    let mut text = of("prefill", prefill, &row.profile, &predictions.prefill);
    if let (Some(ms), Some(predicted)) = (row.decode_milliseconds, &predictions.decode) {
        text += &of("decode of a token", ms, &row.decode_profile, predicted);
    }
    text
}

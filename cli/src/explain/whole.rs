//! `explain --model`: the parts of the whole model, for a prompt and for the token after it.

use crate::args::{ActivationsArg, Explain as Command};
use crate::failure::Failure;
use crate::parts::{self, MEASURED, Predicted};
use crate::source;
use butterfly_compiler::card::Roof;
use butterfly_compiler::config;
use butterfly_compiler::parts::{Attending, Call, Device, Subject};
use butterfly_compiler::pipeline::Lowered;
use butterfly_ir::model::{LayerKind, ModelConfig};
use butterfly_ir::pattern::Parsed;
use butterfly_ir::{Context, Dtype};
use serde::Serialize;
use std::iter::once;

/// The whole model.
#[derive(Serialize)]
pub(super) struct Whole {
    dtype: Dtype,
    /// The card, or `given`.
    machine: String,
    roof: Roof,
    /// Whether many rows become FP8 before they are multiplied.
    quantised: bool,
    batch: u32,
    tokens: u32,
    chunk: u32,
    /// All chunks of the prompt.
    prefill: Predicted,
    /// One token of each sequence after it.
    decode: Predicted,
}

/// Predicts a prompt of `tokens` tokens of each sequence, and the token after it.
pub(super) fn predict(
    command: &Command,
    (model, text): (&ModelConfig, &str),
    (parsed, lowered): (&Parsed, &Lowered),
    tokens: u32,
) -> Result<Whole, Failure> {
    let name = command.config.display().to_string();
    let sizes = config::sizes(&name, text, model).map_err(Failure::bad)?;
    let stored = config::stored(&name, text, model).map_err(Failure::bad)?;
    let sparsity = &parsed.sparsity;
    let decode = Call::after_prompt(command.batch, [tokens, command.capacity(tokens)]);
    source::check_tables(parsed, &Context::new(sparsity.block, decode.kv_len, 0))?;
    let attending = |(layer, kind): (u32, &LayerKind)| {
        let own = kind.own()?;
        let swapped = lowered.plan.layers.iter().find(|one| one.layer == layer);
        Some(match swapped {
            Some(swapped) => Attending {
                sparsity: sparsity.of_layer(layer),
                index: swapped.index,
            },
            None => Attending {
                sparsity: own.sparsity(),
                index: 0,
            },
        })
    };
    let attention: Vec<_> = (0..).zip(&model.layers).map(attending).collect();
    let subject = Subject {
        config: model,
        sizes: &sizes,
        dtype: model.dtype,
        stored: &stored,
        quantised: command.activations == ActivationsArg::Fp8,
        attention: &attention,
    };
    let (device, machine) = match command.tflops.zip(command.bandwidth) {
        Some((tflops, bandwidth)) => {
            let roof = Roof {
                flop_per_second: tflops * 1e12,
                float8_flop_per_second: tflops * 1e12,
                f32_flop_per_second: tflops * 1e12,
                bytes_per_second: bandwidth * 1e9,
            };
            (Device::Given(roof), "given".to_string())
        }
        None => {
            let name = command.card.to_string().to_uppercase();
            (Device::Card(command.card), format!("NVIDIA {name}"))
        }
    };
    let chunk = command.chunk.min(tokens);
    let lengths = [tokens, chunk, command.capacity(tokens)];
    let on = (MEASURED, Some(device));
    let prompt = Call::of_prompt(command.batch, lengths);
    Ok(Whole {
        dtype: model.dtype,
        machine,
        roof: device.roof(),
        quantised: subject.quantised,
        batch: command.batch,
        tokens,
        chunk,
        prefill: parts::of_calls(&subject, prompt, on).map_err(Failure::bad)?,
        decode: parts::of_calls(&subject, once(decode), on).map_err(Failure::bad)?,
    })
}

impl Command {
    /// Tokens that fix the stages: room for the prompt and a token, unless it is given.
    fn capacity(&self, tokens: u32) -> u32 {
        self.pattern.capacity.unwrap_or(tokens.saturating_add(1))
    }
}

pub(super) fn text(whole: &Whole) -> String {
    let Roof {
        flop_per_second,
        float8_flop_per_second,
        f32_flop_per_second,
        bytes_per_second,
    } = whole.roof;
    let float8 = match whole.quantised {
        true => format!(", {:.0} in FP8", float8_flop_per_second / 1e12),
        false => String::new(),
    };
    format!(
        "\nthe whole model in {}, on {}, which does at most {:.0} TFLOP/s in products{float8}, {:.0} in f32, and copies {:.0} GB/s\na prompt of {} tokens in chunks of {}, batch {}:\n{}one token after it:\n{}",
        whole.dtype.name(),
        match whole.machine.as_str() {
            "given" => "a device as given",
            name => name,
        },
        flop_per_second / 1e12,
        f32_flop_per_second / 1e12,
        bytes_per_second / 1e9,
        whole.tokens,
        whole.chunk,
        whole.batch,
        parts::text(&whole.prefill),
        parts::text(&whole.decode)
    )
}

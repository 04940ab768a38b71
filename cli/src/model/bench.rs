//! `butterfly bench model`: prefill and decode of a whole model, dense beside a pattern.

use super::{Place, Sparse, Task, policy, report, run_on, sparse};
use crate::args::BenchModel as Command;
use crate::failure::Failure;
use butterfly::AttentionBackend;
use butterfly_ir::Dtype;
use butterfly_models::{Folder, Footprint, Logits, Model, Policy, Profile, read_config};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

#[derive(Serialize)]
struct Report {
    device: &'static str,
    device_name: String,
    dtype: Dtype,
    model: String,
    random_weights: bool,
    chunk: u32,
    load_seconds: f64,
    /// Bytes of the device that weights take.
    weights_bytes: Option<u64>,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    attention: &'static str,
    prompt_tokens: usize,
    prefill_seconds: f64,
    prefill_tokens_per_second: f64,
    /// Prefill and the choice of one token.
    first_token_seconds: f64,
    decode_milliseconds: Option<f64>,
    decode_tokens_per_second: Option<f64>,
    /// Bytes that the device has reserved so far.
    memory_bytes: Option<u64>,
    /// Keys and values, by their shapes.
    cache_bytes: u64,
    /// Seconds of prefill by part, where asked for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    profile: BTreeMap<&'static str, f64>,
    layers: Vec<report::LayerReport>,
}

pub(crate) fn run(command: &Command, json: bool) -> Result<(), Failure> {
    let most = command.prompt_tokens.iter().max().copied().unwrap_or(0) + command.decode;
    let capacity = command.run.capacity.unwrap_or(most);
    if capacity < most {
        return Err(Failure::Bad(format!(
            "--capacity {capacity} is less than the {most} tokens of prompt and decode; give at least {most}"
        )));
    }
    let sparse = sparse(&command.run, capacity as usize)?;
    if sparse.is_none() && command.no_dense {
        return Err(Failure::Bad(
            "--no-dense without a pattern leaves nothing to measure; give --pattern".into(),
        ));
    }
    let folder = match &command.model {
        Some(dir) => Some(Folder::open(dir).map_err(Failure::bad)?),
        None => None,
    };
    let path = command.random_weights.as_deref();
    let (config, sizes) = match (&folder, path) {
        (Some(folder), _) => (folder.config.clone(), folder.sizes.clone()),
        (None, Some(path)) => read_config(path).map_err(Failure::bad)?,
        (None, None) => return Err(Failure::Bad("give --model or --random-weights".into())),
    };
    let dtype = config.dtype;
    let size = [1, u64::from(capacity), u64::from(command.run.chunk)];
    let work = Work {
        command,
        folder: folder.as_ref(),
        config: path,
        sparse: sparse.as_ref(),
        needs: &|dtype| Footprint::new(&config, &sizes, dtype, size),
    };
    let report = run_on(&command.run, dtype, work)?;
    crate::print(json, &report, || text(&report))
}

fn text(report: &Report) -> String {
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
    text += "attention      tokens   prefill s     tok/s   first s  decode ms   reserved GB  cache GB\n";
    for row in &report.rows {
        text += &format!(
            "{:<10} {:>10} {:>11.3} {:>9.0} {:>9.3} {:>10} {:>13} {:>9.2}\n",
            row.attention,
            row.prompt_tokens,
            row.prefill_seconds,
            row.prefill_tokens_per_second,
            row.first_token_seconds,
            row.decode_milliseconds
                .map_or_else(|| "-".into(), |ms| format!("{ms:.2}")),
            gigabytes(row.memory_bytes),
            row.cache_bytes as f64 / 1e9
        );
        let total: f64 = row.profile.values().sum();
        for (part, seconds) in &row.profile {
            let share = 100.0 * seconds / total;
            text += &format!("    {part:<18} {:>9.1} ms {share:>5.1} %\n", seconds * 1e3);
        }
    }
    for row in &report.rows {
        text += &format!(
            "{} at {}: {}",
            row.attention,
            row.prompt_tokens,
            report::text(&row.layers)
        );
    }
    text
}

struct Work<'a> {
    command: &'a Command,
    folder: Option<&'a Folder>,
    config: Option<&'a Path>,
    sparse: Option<&'a Sparse>,
    needs: &'a dyn Fn(Dtype) -> Footprint,
}

impl Task for Work<'_> {
    type Output = Report;

    fn run<B: AttentionBackend>(self, place: Place<B>) -> Result<Report, Failure> {
        let command = self.command;
        place.check_room(&(self.needs)(place.dtype))?;
        let started = Instant::now();
        let model: Model<B> = match (self.folder, self.config) {
            (Some(folder), _) => {
                let loaded = Model::load(folder, place.dtype, &place.device);
                loaded.map_err(Failure::bad)?.0
            }
            (None, Some(config)) => {
                Model::random(config, place.dtype, &place.device).map_err(Failure::bad)?
            }
            (None, None) => return Err(Failure::Bad("no model".into())),
        };
        sync::<B>(&place)?;
        let load_seconds = started.elapsed().as_secs_f64();
        let weights_bytes = place.memory.taken();
        let path = command
            .model
            .as_deref()
            .or(self.config)
            .unwrap_or(Path::new("."));

        let mut rows = Vec::new();
        for &tokens in &command.prompt_tokens {
            for kind in ["dense", "butterfly"] {
                let sparse = match kind {
                    "dense" if command.no_dense => continue,
                    "dense" => None,
                    _ if self.sparse.is_none() => continue,
                    _ => self.sparse,
                };
                let make = || match (kind, self.sparse) {
                    // Dense kernels come from the same artifacts where there are such.
                    ("dense", Some(sparse)) if command.run.artifacts.is_some() => {
                        let dense = sparse.plan.dense_of().map_err(Failure::bad)?;
                        Ok(Policy::dense(&model.config, &dense))
                    }
                    _ => policy(&model.config, sparse, path),
                };
                rows.push(measure(
                    command,
                    &place,
                    &model,
                    &make()?,
                    kind,
                    tokens as usize,
                )?);
            }
        }
        Ok(Report {
            device: place.kind,
            dtype: place.dtype,
            model: path.display().to_string(),
            random_weights: self.folder.is_none(),
            chunk: command.run.chunk,
            load_seconds,
            weights_bytes,
            rows,
            device_name: place.name,
        })
    }
}

fn sync<B: AttentionBackend>(place: &Place<B>) -> Result<(), Failure> {
    B::sync(&place.device).map_err(|error| Failure::Bad(format!("the device failed: {error:?}")))
}

/// One prompt: once to make what is made at first use, then with the clock.
fn measure<B: AttentionBackend>(
    command: &Command,
    place: &Place<B>,
    model: &Model<B>,
    policy: &Policy,
    attention: &'static str,
    tokens: usize,
) -> Result<Row, Failure> {
    let decode = command.decode as usize;
    let capacity = command.run.capacity.map_or(tokens + decode, |n| n as usize);
    let chunk = command.run.chunk as usize;
    let vocabulary = model.sizes.vocabulary;
    let prompt: Vec<u32> = (0..tokens as u32)
        .map(|i| i.wrapping_mul(2_654_435_761) % vocabulary)
        .collect();
    let run = |length: usize, decode: usize, profile: Profile| -> Result<[f64; 3], Failure> {
        let mut state = model.state(1, Some(capacity), policy);
        state.profile = profile;
        sync(place)?;
        let started = Instant::now();
        let mut last = None;
        for chunk in prompt[..length].chunks(chunk) {
            let logits = model.forward(chunk, &mut state, policy, Logits::Last);
            last = Some(logits.map_err(Failure::bad)?);
        }
        sync(place)?;
        let prefill = started.elapsed().as_secs_f64();
        let mut sampler = butterfly_models::Sampler::new(Default::default());
        let Some(last) = last else {
            return Ok([0.0; 3]);
        };
        let mut token = sampler.next(&super::floats(last)?);
        let first = started.elapsed().as_secs_f64();
        let started = Instant::now();
        for _ in 0..decode {
            let logits = model.forward(&[token], &mut state, policy, Logits::Last);
            token = sampler.next(&super::floats(logits.map_err(Failure::bad)?)?);
        }
        Ok([prefill, first, started.elapsed().as_secs_f64()])
    };
    // Every length of chunk that comes.
    run(tokens.min(chunk), 2.min(decode), Profile::default())?;
    if !tokens.is_multiple_of(chunk) && tokens > chunk {
        run(tokens % chunk, 0, Profile::default())?;
    }
    let [prefill, first, decoded] = run(tokens, decode, Profile::default())?;
    let memory_bytes = place.memory.taken();
    let profile = match command.profile {
        false => BTreeMap::new(),
        true => {
            let profile = Profile::on();
            run(tokens, 0, profile.clone())?;
            profile.seconds()
        }
    };
    let heads = model
        .config
        .attention
        .kernel_shape(butterfly_ir::Phase::Prefill);
    let key = u64::from(heads.kv_heads * (heads.head_dim + heads.v_head_dim) * place.dtype.bytes());
    Ok(Row {
        attention,
        prompt_tokens: tokens,
        prefill_seconds: prefill,
        prefill_tokens_per_second: tokens as f64 / prefill,
        first_token_seconds: first,
        decode_milliseconds: (decode > 0).then(|| 1e3 * decoded / decode as f64),
        decode_tokens_per_second: (decode > 0).then(|| decode as f64 / decoded),
        memory_bytes,
        cache_bytes: key * capacity as u64 * policy.attention().count() as u64,
        profile,
        layers: report::layers(policy),
    })
}

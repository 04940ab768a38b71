//! `butterfly attend`: attention over tensors from a file.

use crate::args::Attend as Command;
use crate::call::{Call, Shape};
use crate::device;
use crate::failure::Failure;
use crate::source;
use crate::tensors::{self, Tensor};
use butterfly_compiler::{plan, work};
use butterfly_ir::band::MAX_TOKENS;
use butterfly_ir::{Context, Dtype, KernelSpec, Role, ScoreValues};
use butterfly_runtime::artifacts::{Artifacts, check_file};
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct Report {
    device: &'static str,
    device_name: String,
    kernel: Option<String>,
    batch: usize,
    q_heads: usize,
    kv_heads: usize,
    q_len: usize,
    kv_len: usize,
    head_dim: usize,
    v_head_dim: usize,
    dtype: Dtype,
    stage: u32,
    visible_pairs: u64,
    causal_pairs: u64,
    milliseconds: f64,
    first_milliseconds: f64,
    output: String,
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "`check_shapes` holds dimensions to 30 bits"
)]
pub(crate) fn run(command: &Command, json: bool) -> Result<(), Failure> {
    if command.backward {
        return Err(Failure::Bad(
            "--backward: gradients are not supported yet; leave the flag out for o and lse".into(),
        ));
    }
    let parsed = command.pattern.read()?;
    let sparsity = &parsed.sparsity;
    let index = command.stage.index(sparsity)?;
    let [q, k, v] = tensors::read(&command.inputs, ["q", "k", "v"])?;
    check_shapes(&q, &k, &v).map_err(|error| Failure::file(&command.inputs, error))?;
    if command.check {
        for (name, tensor) in [("q", &q), ("k", &k), ("v", &v)] {
            check_finite(name, tensor).map_err(|error| Failure::file(&command.inputs, error))?;
        }
    }
    let ([batch, q_heads, q_len, head_dim], [_, kv_heads, kv_len, v_head_dim]) = (q.shape, v.shape);
    let q_offset = match command.q_offset {
        None => kv_len - q_len,
        Some(offset) if offset as usize + q_len <= kv_len => offset as usize,
        Some(offset) => {
            let most = kv_len - q_len;
            return Err(Failure::Bad(format!(
                "--q-offset {offset}: {q_len} queries from there on pass the {kv_len} keys; give at most {most}"
            )));
        }
    };
    source::check_heads(&parsed, kv_heads as u32)?;
    let prompt = command.prompt.unwrap_or(kv_len as u32);
    source::check_tail(&sparsity.pattern, prompt as usize)?;
    let context = Context {
        layer: command.stage.layer(sparsity)?,
        prompt,
        ..command.pattern.context(&parsed, kv_len as u32, index)?
    };
    source::check(&parsed, &context, kv_heads as u32)?;
    let pattern = sparsity.pattern.of_layer(context.layer);
    let scale = command.scale.unwrap_or(1.0 / (head_dim as f32).sqrt());
    if !scale.is_finite() {
        return Err(Failure::Bad(format!(
            "--scale {scale}: give a finite number"
        )));
    }
    if let Some(cap) = command.softcap
        && !ScoreValues::is_softcap(cap)
    {
        return Err(Failure::Bad(format!(
            "--softcap {cap}: give a positive number"
        )));
    }
    let sinks = match command.sinks {
        true => Some(sinks(&command.inputs, q_heads)?),
        false => None,
    };
    let score = ScoreValues {
        softcap: command.softcap,
        sinks: sinks.as_deref(),
    };
    let artifacts = command
        .artifacts
        .as_deref()
        .map(Artifacts::open)
        .transpose()
        .map_err(Failure::bad)?;
    if let Some(artifacts) = &artifacts {
        device::check_pattern(artifacts, sparsity)?;
    }
    let spec = KernelSpec {
        score: score.kind(),
        // For few queries, the decode kernel is chosen: it has a workgroup for each query.
        role: if q_len <= 4 {
            Role::Decode
        } else {
            Role::Prefill
        },
        head_dim: head_dim as u32,
        v_head_dim: v_head_dim as u32,
        group: (q_heads / kv_heads) as u32,
        dtype: q.dtype,
        block: sparsity.block,
        rows: plan::rows(&pattern),
    };
    check_file(&command.output).map_err(Failure::bad)?;
    let chosen = device::choose(command.device, &|_| Ok(spec.clone()), artifacts.as_ref())?;
    let call = Call {
        pattern: &pattern,
        context,
        shape: Shape {
            batch,
            q_heads,
            kv_heads,
            q_len,
            kv_len,
            head_dim,
            v_head_dim,
        },
        dtype: q.dtype,
        q: &q.values,
        k: &k.values,
        v: &v.values,
        q_offset,
        scale,
        score,
        threads: command.threads,
        runs: 0,
    };
    let outcome = call.run(&chosen)?;
    tensors::write(
        &command.output,
        &[
            (
                "o",
                vec![batch, q_heads, q_len, v_head_dim],
                q.dtype,
                &outcome.o,
            ),
            ("lse", vec![batch, q_heads, q_len], Dtype::F32, &outcome.lse),
        ],
    )?;
    let finite = check_outputs([&q, &k, &v], &outcome.o, &outcome.lse);
    let work = work::of_heads(&pattern, &context, kv_heads as u32).map_err(Failure::bad)?;
    let stage = index % pattern.stage_count(context.blocks());
    let report = Report {
        device: chosen.device.name(),
        device_name: chosen.name,
        kernel: chosen.kernel.map(|(entry, _)| entry.key),
        batch,
        q_heads,
        kv_heads,
        q_len,
        kv_len,
        head_dim,
        v_head_dim,
        dtype: q.dtype,
        stage,
        visible_pairs: work.pairs,
        causal_pairs: work.causal_pairs,
        milliseconds: outcome.median(),
        first_milliseconds: outcome.first_milliseconds,
        output: command.output.display().to_string(),
    };
    crate::print(json, &report, || {
        let share = 100.0 * work.pairs as f64 / work.causal_pairs as f64;
        format!(
            "{} on {} ({}) in {:.3} ms: {q_len} queries, {kv_len} keys, stage {stage}, {share:.1} % of the causal pairs",
            report.output, report.device, report.device_name, report.milliseconds
        )
    })?;
    finite.map_err(|error| Failure::Check(format!("{}: {error}", report.output)))
}

/// The logits of sinks, one for each q head.
fn sinks(path: &Path, q_heads: usize) -> Result<Vec<f32>, Failure> {
    let sinks = tensors::vector(path, "sinks")?;
    let wrong = |what| Err(Failure::file(path, format!("`sinks` {what}")));
    if sinks.len() != q_heads {
        let count = sinks.len();
        return wrong(format!("has {count} numbers; q has {q_heads} heads"));
    }
    match sinks.iter().find(|x| !ScoreValues::is_sink(**x)) {
        Some(x) => wrong(format!("holds {x}; give numbers below infinity")),
        None => Ok(sinks),
    }
}

fn check_shapes(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(), String> {
    let shapes = format!("q {:?}, k {:?}, v {:?}", q.shape, k.shape, v.shape);
    if q.dtype != k.dtype || q.dtype != v.dtype {
        let [q, k, v] = [q, k, v].map(|t| t.dtype.name());
        return Err(format!(
            "dtypes disagree: q {q}, k {k}, v {v}; give all three the same"
        ));
    }
    if [q, k, v].iter().any(|t| t.shape.contains(&0)) {
        return Err(format!("a dimension is 0: {shapes}"));
    }
    let most = MAX_TOKENS as usize;
    if [q, k, v].iter().any(|t| t.shape.iter().any(|n| *n > most)) {
        return Err(format!("a dimension is above {most}: {shapes}"));
    }
    if q.shape[0] != k.shape[0] || k.shape[..3] != v.shape[..3] {
        return Err(format!(
            "shapes disagree: {shapes}; batch must be the same in all, heads and tokens in k and v"
        ));
    }
    if q.shape[3] != k.shape[3] {
        return Err(format!("head sizes of q and k disagree: {shapes}"));
    }
    if !q.shape[1].is_multiple_of(k.shape[1]) {
        return Err(format!(
            "{} q heads are no multiple of {} kv heads: {shapes}",
            q.shape[1], k.shape[1]
        ));
    }
    if q.shape[2] > k.shape[2] {
        return Err(format!("more queries than keys: {shapes}"));
    }
    Ok(())
}

fn check_finite(name: &str, tensor: &Tensor) -> Result<(), String> {
    match not_finite(name, tensor) {
        None => Ok(()),
        Some(found) => Err(format!("{found}; --check refuses them")),
    }
}

/// The values of a tensor that are not finite, in words.
fn not_finite(name: &str, tensor: &Tensor) -> Option<String> {
    let bad = tensor.values.iter().filter(|x| !x.is_finite()).count();
    let at = tensor.values.iter().position(|x| !x.is_finite())?;
    let [_, h, t, d] = tensor.shape;
    let index = [at / (h * t * d), at / (t * d) % h, at / d % t, at % d];
    let value = tensor.values[at];
    Some(format!(
        "`{name}` holds {bad} values that are not finite, the first ({value}) at {index:?}"
    ))
}

/// Checks that outputs are finite, except the LSE of a query that sees nothing, which is -infinity.
/// The error names the input that caused it.
fn check_outputs(inputs: [&Tensor; 3], o: &[f32], lse: &[f32]) -> Result<(), String> {
    let bad = o.iter().filter(|x| !x.is_finite()).count();
    let bad_lse = lse
        .iter()
        .filter(|x| x.is_nan() || **x == f32::INFINITY)
        .count();
    if bad + bad_lse == 0 {
        return Ok(());
    }
    let mut named = ["q", "k", "v"].into_iter().zip(inputs);
    let cause = named.find_map(|(name, tensor)| not_finite(name, tensor));
    let cause = cause.unwrap_or("the logits leave the range of f32; give a smaller --scale".into());
    Err(format!(
        "{bad} values of o and {bad_lse} of lse are not finite: {cause}"
    ))
}

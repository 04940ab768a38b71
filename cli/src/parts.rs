//! The parts of a model in `explain --model` and `bench --profile`: what is predicted for each, beside what was measured.

use crate::kernel;
use butterfly_compiler::parts::predict::predict;
use butterfly_compiler::parts::{Call, Device, Entry, PartsError, Subject, count};
use butterfly_ir::model::Part;
use butterfly_ir::{KernelSpec, Sm, Target};
use serde::Serialize;
use std::collections::BTreeMap;

/// The target of the cards that were measured.
pub(crate) const MEASURED: Target = Target::Cuda(Sm {
    version: 90,
    arch_specific: true,
});

/// What is predicted for some calls of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Predicted {
    pub(crate) parts: Vec<Entry>,
    /// The sum of all parts; `None` for a device that is not known.
    pub(crate) roofline_ms: Option<f64>,
    pub(crate) predicted_ms: Option<f64>,
    /// Whether the sum is a lower bound, since some rates were not measured.
    pub(crate) lower_bound: bool,
}

/// Predicts calls of a model by the kernels for `target`.
pub(crate) fn of_calls(
    subject: &Subject<'_>,
    calls: impl Iterator<Item = Call>,
    (target, device): (Target, Option<Device>),
) -> Result<Predicted, PartsError> {
    let choose = |spec: &KernelSpec| Some(kernel::choice(spec, target).ok()?.0);
    let mut steps = Vec::new();
    for call in calls {
        steps.extend(count(subject, &call, &choose)?);
    }
    let parts = predict(&steps, (subject.dtype, target), device);
    let sum =
        |of: fn(&Entry) -> Option<f64>| device.map(|_| parts.iter().filter_map(of).sum::<f64>());
    Ok(Predicted {
        roofline_ms: sum(|part| part.roofline_ms),
        predicted_ms: sum(|part| part.predicted_ms),
        lower_bound: parts.iter().any(|part| part.lower_bound),
        parts,
    })
}

/// One line for each part, and one for their sum.
pub(crate) fn text(predicted: &Predicted) -> String {
    let mut text = format!(
        "  {:<18} {:>8} {:>12} {:>11} {:>12} {:>13}\n",
        "part", "kernels", "GFLOP", "MB", "roofline ms", "predicted ms"
    );
    let mut line = |name: &str, [kernels, gigaflop, megabytes]: [f64; 3], times: [String; 2]| {
        let [roofline, predicted] = times;
        text += &format!(
            "  {name:<18} {kernels:>8.0} {gigaflop:>12.3} {megabytes:>11.1} {roofline:>12} {predicted:>13}\n"
        );
    };
    for part in &predicted.parts {
        let times = [
            milliseconds(part.roofline_ms),
            bound(part.predicted_ms, part.lower_bound),
        ];
        let counts = [part.kernels as f64, part.flop / 1e9, part.bytes / 1e6];
        line(part.part.name(), counts, times);
    }
    let sum = |of: fn(&Entry) -> f64| predicted.parts.iter().map(of).sum::<f64>();
    let counts = [
        sum(|part| part.kernels as f64),
        sum(|part| part.flop) / 1e9,
        sum(|part| part.bytes) / 1e6,
    ];
    let times = [
        milliseconds(predicted.roofline_ms),
        bound(predicted.predicted_ms, predicted.lower_bound),
    ];
    line("sum", counts, times);
    text
}

/// One line for each part that was measured, in seconds, and one for their sum, each beside what is predicted.
pub(crate) fn measured_text(seconds: &BTreeMap<Part, f64>, predicted: &Predicted) -> String {
    let mut text = format!(
        "    {:<18} {:>10} {:>8} {:>11} {:>9} {:>14} {:>13}\n",
        "part", "ms", "share %", "TFLOP/s", "GB/s", "% of roofline", "predicted ms"
    );
    let all: f64 = seconds.values().sum();
    for (part, of_part) in seconds {
        let entry = predicted.parts.iter().find(|entry| entry.part == *part);
        let rate = |of: fn(&Entry) -> f64| entry.map_or(0.0, |entry| of(entry) / of_part);
        let of_roof = entry.and_then(|entry| entry.roofline_ms);
        let of_roof = of_roof.map(|roofline| roofline / (1e3 * of_part));
        text += &format!(
            "    {:<18} {:>10.3} {:>8.1} {:>11.2} {:>9.1} {:>14} {:>13}\n",
            part.name(),
            1e3 * of_part,
            100.0 * of_part / all,
            rate(|entry| entry.flop) / 1e12,
            rate(|entry| entry.bytes) / 1e9,
            of_roof.map_or_else(|| "-".into(), |share| format!("{:.1}", 100.0 * share)),
            entry.map_or_else(
                || "-".into(),
                |entry| bound(entry.predicted_ms, entry.lower_bound)
            )
        );
    }
    text
}

fn milliseconds(time: Option<f64>) -> String {
    time.map_or_else(|| "-".into(), |ms| format!("{ms:.3}"))
}

/// A predicted time; `>=` where it is a lower bound.
pub(crate) fn bound(time: Option<f64>, lower_bound: bool) -> String {
    let mark = if lower_bound && time.is_some() {
        ">= "
    } else {
        ""
    };
    format!("{mark}{}", milliseconds(time))
}

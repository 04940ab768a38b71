//! Steps of a call → what a device takes for them, by part of the model.
//!
//! In:  counted steps, and a device. Out: an [`Entry`] for each part, in order. The roofline is the time of the
//! larger of FLOP and bytes at the most that the device can do. A prediction has the rates of each kind of kernel, and
//! the gaps between kernels; where no rates were measured it is the roofline and these gaps, a lower bound.

use super::{Kind, Step};
use crate::card::{self, Card, Roof};
use crate::cost;
use butterfly_ir::model::Part;
use butterfly_ir::{Dtype, Target};
use serde::Serialize;
use std::collections::BTreeMap;

/// A device whose time is predicted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Device {
    /// A card that was measured.
    Card(Card),
    /// Another one, with the most that it can do.
    Given(Roof),
}

impl Device {
    /// The most that it can do.
    pub fn roof(self) -> Roof {
        match self {
            Self::Card(card) => card.roof(),
            Self::Given(roof) => roof,
        }
    }
}

/// The work of a part of a model, and what a device takes for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// The part.
    pub part: Part,
    /// Number of kernels.
    pub kernels: u64,
    /// FLOP of products, and of the delta rule.
    pub flop: f64,
    /// Bytes that are read and written.
    pub bytes: f64,
    /// Milliseconds at the most that the device can do; `None` without a device.
    pub roofline_ms: Option<f64>,
    /// Milliseconds that are predicted; `None` without a device.
    pub predicted_ms: Option<f64>,
    /// Whether the prediction is a lower bound, since some of its rates were not measured.
    pub lower_bound: bool,
}

/// The parts of steps of element type `dtype`. Kernels of attention are those for `target`.
pub fn predict(
    steps: &[Step],
    (dtype, target): (Dtype, Target),
    device: Option<Device>,
) -> Vec<Entry> {
    let mut entries: BTreeMap<Part, Entry> = BTreeMap::new();
    for step in steps {
        let time = device.map(|device| time(step, (dtype, target), device));
        let entry = entries.entry(step.part).or_insert_with(|| Entry {
            part: step.part,
            kernels: 0,
            flop: 0.0,
            bytes: 0.0,
            roofline_ms: None,
            predicted_ms: None,
            lower_bound: false,
        });
        entry.kernels += u64::from(step.kernels);
        entry.flop += step.flop;
        entry.bytes += step.bytes;
        if let Some(time) = time {
            *entry.roofline_ms.get_or_insert_default() += 1e3 * time.roofline;
            *entry.predicted_ms.get_or_insert_default() += 1e3 * time.predicted;
            entry.lower_bound |= time.lower_bound;
        }
    }
    entries.into_values().collect()
}

/// Seconds of a step.
struct Time {
    roofline: f64,
    predicted: f64,
    lower_bound: bool,
}

fn time(step: &Step, (dtype, target): (Dtype, Target), device: Device) -> Time {
    let roof = device.roof();
    let flop_per_second = match dtype {
        Dtype::F32 => roof.f32_flop_per_second,
        _ if step.kind.quantised() => roof.float8_flop_per_second,
        Dtype::F16 | Dtype::Bf16 => roof.flop_per_second,
    };
    let roofline = (step.flop / flop_per_second).max(step.bytes / roof.bytes_per_second);
    let gaps = f64::from(step.kernels) * card::GAP_SECONDS;
    let at_least = Time {
        roofline,
        predicted: roofline + gaps,
        lower_bound: true,
    };
    let card = match device {
        Device::Card(card) if dtype != Dtype::F32 => card,
        Device::Card(_) | Device::Given(_) => return at_least,
    };
    if let Kind::Attention(launched) = &step.kind {
        let machine = card.machine(&launched.spec, target, &launched.geometry);
        return match machine {
            None => at_least,
            Some(machine) => Time {
                predicted: cost::predict(&launched.cost, &machine).seconds,
                lower_bound: false,
                ..at_least
            },
        };
    }
    match card::rates(step.part, &step.kind) {
        None => at_least,
        Some(rates) => {
            let bytes_per_second = rates.of_copy * roof.bytes_per_second;
            let busy = (step.flop / rates.flop_per_second).max(step.bytes / bytes_per_second);
            Time {
                predicted: busy + gaps,
                lower_bound: false,
                ..at_least
            }
        }
    }
}

//! A calibration as a page: damages by layer and head, and what sets of them cost together.

use super::recall::Recall;
use super::report::{Point, Report};
use crate::chart::{self, Axis, Curves, HeatMap, Line, Panel, Scale, Unit};
use crate::page::{Page, Part};
use butterfly_models::calibrate;

pub(super) fn page(report: &Report) -> Page {
    let verified = &report.verified;
    let mut facts = vec![
        ("model", report.model.clone()),
        ("text", report.text.clone()),
        (
            "windows",
            format!(
                "{} of {} tokens to choose on, as many to verify; {} positions of each compared",
                report.windows, report.window, report.scored
            ),
        ),
        ("replaced by", report.replaces.clone()),
        ("tail", format!("{} tokens", report.tail)),
        (
            "chosen",
            format!(
                "{} parts ({}) of a {} each",
                report.chosen.parts,
                Unit::Share.show(report.chosen.share),
                report.by.name()
            ),
        ),
        (
            "on other text",
            format!(
                "KL divergence {:.5} nats, same top token {:.2} %, perplexity {:.4} instead of {:.4} ({:+.2} %)",
                verified.kl_nats,
                100.0 * verified.top1,
                verified.perplexity,
                verified.dense_perplexity,
                100.0 * (verified.perplexity_ratio - 1.0)
            ),
        ),
        (
            "device",
            format!(
                "{} ({}), {}, {:.0} s",
                report.device,
                report.device_name,
                report.dtype.name(),
                report.seconds
            ),
        ),
        (
            "memory",
            format!(
                "{:.2} GB of logits on the host{}",
                report.logits_bytes as f64 / 1e9,
                report.memory.text()
            ),
        ),
        ("policy", report.pattern.clone()),
    ];
    if let Some(ranking) = &report.ranking {
        facts.push(("damages from", ranking.policy.clone()));
    }
    if let Some(seed) = report.random_weights {
        let said = format!("random (seed {seed}): only time and memory mean anything");
        facts.push(("weights", said));
    }
    let curves = [
        (
            "KL divergence of sets replaced together",
            "nats",
            kl as fn(&Point) -> f64,
        ),
        ("Perplexity of sets replaced together", "times dense", ratio),
    ];
    let curves = curves.map(|(title, y, of)| chart::curves(&curve(report, title, y, of)));
    let charts = std::iter::once(chart::heat_map(&damages(report))).chain(curves);
    let charts = charts.chain(found(report).as_ref().map(chart::curves));
    let parts = charts.map(Part::Chart).chain([table(report)]);
    Page {
        title: "Which heads a pattern can replace".into(),
        facts,
        parts: parts.collect(),
    }
}

fn kl(point: &Point) -> f64 {
    point.cost.kl_nats
}

fn ratio(point: &Point) -> f64 {
    point.cost.perplexity_ratio
}

fn damages(report: &Report) -> HeatMap {
    let measured = report.damage.iter().enumerate();
    let measured: Vec<_> = measured.filter(|(_, row)| !row.is_empty()).collect();
    let heads = measured.iter().map(|(_, row)| row.len()).max();
    let columns = match report.by {
        calibrate::Unit::Layer => vec!["all".into()],
        calibrate::Unit::Head => (0..heads.unwrap_or(0))
            .map(|head| head.to_string())
            .collect(),
    };
    let values = measured
        .iter()
        .map(|(_, row)| row.iter().copied().map(Some).collect());
    HeatMap {
        title: "Damage of each alone, nats".into(),
        rows: (
            "layer".into(),
            measured
                .iter()
                .map(|(layer, _)| layer.to_string())
                .collect(),
        ),
        columns: ("kv head".into(), columns),
        panels: vec![Panel {
            title: String::new(),
            values: values.collect(),
        }],
        across: 1,
        unit: Unit::Number,
        scale: Scale::Log,
        range: None,
    }
}

fn curve(report: &Report, title: &str, y: &str, of: fn(&Point) -> f64) -> Curves {
    let chosen_on = report.curve.iter().map(|point| [point.share, of(point)]);
    let verified = report.verified();
    let line = |name: &str, points| Line {
        name: name.into(),
        points,
    };
    Curves {
        title: title.into(),
        x: shares(),
        y: Axis {
            title: y.into(),
            unit: Unit::Number,
            scale: Scale::Linear,
        },
        lines: vec![
            line("text of the choice", chosen_on.collect()),
            line("other text", vec![[verified.share, of(&verified)]]),
        ],
    }
}

/// How often facts are found, with the ends of the intervals.
fn found(report: &Report) -> Option<Curves> {
    let points = report.curve.iter();
    let points = points.filter_map(|point| Some((point.share, point.retrieval?)));
    let points: Vec<(f64, Recall)> = points.collect();
    let (_, first) = points.first()?;
    let line = |name: &str, of: fn(&Recall) -> f64| Line {
        name: name.into(),
        points: points.iter().map(|(x, recall)| [*x, of(recall)]).collect(),
    };
    Some(Curves {
        title: format!(
            "Facts found in {} prompts of {} tokens",
            first.prompts, first.tokens
        ),
        x: shares(),
        y: Axis {
            title: "found".into(),
            unit: Unit::Share,
            scale: Scale::Linear,
        },
        lines: vec![
            line("found", |recall| recall.share),
            line("95 % interval, low", |recall| recall.interval[0]),
            line("95 % interval, high", |recall| recall.interval[1]),
        ],
    })
}

/// The axis of the share that is replaced.
fn shares() -> Axis {
    Axis {
        title: "share replaced".into(),
        unit: Unit::Share,
        scale: Scale::Linear,
    }
}

fn table(report: &Report) -> Part {
    let with_found = report.curve.iter().any(|point| point.retrieval.is_some());
    let row = |name: &str, point: &Point| {
        let found = point.retrieval.map(|recall| {
            let [low, high] = recall.interval.map(|share| 100.0 * share);
            format!("{:.1} % ({low:.1} to {high:.1})", 100.0 * recall.share)
        });
        let found = with_found.then(|| found.unwrap_or_default());
        let cells = [
            name.into(),
            point.parts.to_string(),
            format!("{:.1} %", 100.0 * point.share),
            format!("{:.5}", point.cost.kl_nats),
            format!("{:.2} %", 100.0 * point.cost.top1),
            format!("{:+.2} %", 100.0 * (point.cost.perplexity_ratio - 1.0)),
        ];
        cells.into_iter().chain(found).collect::<Vec<String>>()
    };
    let verified = report.verified();
    let sets = report.curve.iter().map(|point| row("", point));
    let last = [
        row("chosen", &report.chosen),
        row("on other text", &verified),
    ];
    let head = [
        "",
        "replaced",
        "share",
        "KL, nats",
        "same top token",
        "perplexity",
    ];
    let (head, found) = (head.into_iter(), with_found.then_some("found"));
    Part::Table {
        title: "Sets replaced together".into(),
        head: head.chain(found).map(String::from).collect(),
        rows: sets.chain(last).collect(),
    }
}

//! A calibration as a page: damages by layer and head, and what sets of them cost together.

use super::report::{Point, Report};
use crate::chart::{self, Axis, Curves, HeatMap, Line, Panel, Scale, Unit};
use crate::page::{Page, Part};
use butterfly_models::calibrate;

pub(super) fn page(report: &Report) -> Page {
    let verified = &report.verified;
    let facts = vec![
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
        ("policy", report.pattern.clone()),
    ];
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
    let verified = Point {
        cost: report.verified,
        ..report.chosen
    };
    let line = |name: &str, points| Line {
        name: name.into(),
        points,
    };
    Curves {
        title: title.into(),
        x: Axis {
            title: "share replaced".into(),
            unit: Unit::Share,
            scale: Scale::Linear,
        },
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

fn table(report: &Report) -> Part {
    let row = |name: &str, point: &Point| {
        vec![
            name.into(),
            point.parts.to_string(),
            format!("{:.1} %", 100.0 * point.share),
            format!("{:.5}", point.cost.kl_nats),
            format!("{:.2} %", 100.0 * point.cost.top1),
            format!("{:+.2} %", 100.0 * (point.cost.perplexity_ratio - 1.0)),
        ]
    };
    let verified = Point {
        cost: report.verified,
        ..report.chosen
    };
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
    Part::Table {
        title: "Sets replaced together".into(),
        head: head.map(String::from).into(),
        rows: sets.chain(last).collect(),
    }
}

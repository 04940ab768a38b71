//! What `butterfly eval` reports: as JSON, as text, as charts and as a page.

use super::compare::{Bucket, Difference, Means};
use super::contenders::DENSE;
use super::retrieval::Found;
use crate::args::{Eval as Command, Replace};
use crate::chart::{self, Axis, Curves, HeatMap, Line, Panel, Scale, Unit};
use crate::model::report::{self as of_layers, LayerReport};
use crate::page::{Page, Part};
use butterfly_ir::Dtype;
use serde::Serialize;

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) device: &'static str,
    pub(super) device_name: String,
    pub(super) dtype: Dtype,
    pub(super) tokens: usize,
    pub(super) window: usize,
    /// Positions of each window that were not scored.
    pub(super) from: usize,
    /// Dense attention, and the policy if there is one only; so are `by_position` and `layers`.
    #[serde(flatten)]
    pub(super) total: Means,
    pub(super) by_position: Vec<Bucket>,
    /// Each policy, in the order of the command line.
    pub(super) policies: Vec<Compared>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retrieval: Option<Retrieval>,
    /// What is wrong with the logits, if not all are finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) not_finite: Option<String>,
    pub(super) layers: Vec<LayerReport>,
}

/// A policy beside dense attention.
#[derive(Serialize)]
pub(super) struct Compared {
    pub(super) name: String,
    /// As it was given; nothing if it is the pattern of artifacts.
    #[serde(flatten)]
    pub(super) given: Option<Replace>,
    #[serde(flatten)]
    pub(super) total: Difference,
    /// Perplexity, divided by that of dense attention.
    pub(super) perplexity_ratio: f64,
    pub(super) by_position: Vec<Bucket>,
    pub(super) layers: Vec<LayerReport>,
}

#[derive(Serialize)]
pub(super) struct Retrieval {
    pub(super) seed: u64,
    pub(super) trials: u32,
    pub(super) by_depth: Vec<Found>,
    pub(super) by_length: Vec<Found>,
}

/// A table: its title, the names of its columns, its rows.
type Table = (String, Vec<String>, Vec<Vec<String>>);

/// All policies together.
fn totals(report: &Report) -> Table {
    let head = [
        "attention",
        "perplexity",
        "beside dense",
        "KL, nats",
        "same top token",
        "as given",
    ];
    let dense = format!("{:.4}", report.total.dense_perplexity);
    let mut rows = vec![vec![DENSE.into(), dense]];
    rows.extend(report.policies.iter().map(|policy| {
        vec![
            policy.name.clone(),
            format!("{:.4}", policy.total.perplexity),
            format!("{:+.2} %", 100.0 * (policy.perplexity_ratio - 1.0)),
            format!("{:.5}", policy.total.kl_divergence),
            format!("{:.2} %", 100.0 * policy.total.top1_agreement),
            policy.given.iter().map(ToString::to_string).collect(),
        ]
    }));
    rows[0].resize(head.len(), String::new());
    ("Perplexity".into(), head.map(String::from).into(), rows)
}

/// One figure by position, a column for each policy, after that of dense attention if it has one.
fn positions(
    report: &Report,
    title: &str,
    dense: bool,
    show: &dyn Fn(&Difference) -> String,
) -> Table {
    let mut head = vec!["positions".to_string(), "tokens".into()];
    head.extend(dense.then(|| DENSE.into()));
    head.extend(report.policies.iter().map(|policy| policy.name.clone()));
    let row = |(i, bucket): (usize, &Bucket)| {
        let mut row = vec![
            format!("{}..{}", bucket.from, bucket.end),
            bucket.means.predicted.to_string(),
        ];
        row.extend(dense.then(|| format!("{:.4}", bucket.means.dense_perplexity)));
        // All policies are scored at the same positions.
        let policies = report.policies.iter();
        let figures = policies.filter_map(|policy| policy.by_position[i].means.sparse.as_ref());
        row.extend(figures.map(show));
        row
    };
    let rows = report.by_position.iter().enumerate().map(row).collect();
    (title.into(), head, rows)
}

/// Dense attention beside the policies, a row for each task, length and depth.
fn retrieval(title: &str, all: &[Found]) -> Table {
    let mut attentions: Vec<&str> = Vec::new();
    for found in all {
        if !attentions.contains(&&*found.attention) {
            attentions.push(&found.attention);
        }
    }
    let mut head: Vec<String> = ["task", "tokens", "depth", "prompts"]
        .map(String::from)
        .into();
    for attention in &attentions {
        head.push(format!("{attention} found"));
        head.push("exact".into());
    }
    let share = |share: f64, [low, high]: [f64; 2]| {
        format!(
            "{:.0} % [{:.0}, {:.0}]",
            100.0 * share,
            100.0 * low,
            100.0 * high
        )
    };
    let key = |found: &Found| (found.task, found.tokens, found.depth);
    let mut rows = Vec::new();
    for first in all.iter().filter(|found| found.attention == attentions[0]) {
        let mut row = vec![
            first.task.name().into(),
            first.tokens.to_string(),
            first
                .depth
                .map_or("all".into(), |depth| format!("{depth:.2}")),
            first.prompts.to_string(),
        ];
        for attention in &attentions {
            let mut same = all.iter().filter(|found| key(found) == key(first));
            if let Some(found) = same.find(|found| found.attention == *attention) {
                row.push(share(found.found, found.found_interval));
                row.push(share(found.exact, found.exact_interval));
            }
        }
        rows.push(row);
    }
    (title.into(), head, rows)
}

fn tables(report: &Report) -> Vec<Table> {
    let mut tables = vec![positions(
        report,
        "By position: perplexity",
        true,
        &|sparse| format!("{:.4}", sparse.perplexity),
    )];
    if !report.policies.is_empty() {
        tables.insert(0, totals(report));
        tables.push(positions(
            report,
            "By position: KL divergence, nats",
            false,
            &|sparse| format!("{:.5}", sparse.kl_divergence),
        ));
        tables.push(positions(
            report,
            "By position: same top token",
            false,
            &|sparse| format!("{:.2} %", 100.0 * sparse.top1_agreement),
        ));
    }
    if let Some(all) = &report.retrieval {
        tables.push(retrieval(
            "Retrieval by length, with 95 % intervals",
            &all.by_length,
        ));
        tables.push(retrieval(
            "Retrieval by depth, with 95 % intervals",
            &all.by_depth,
        ));
    }
    tables
}

pub(super) fn text(report: &Report) -> String {
    let mut text = format!(
        "{} tokens in windows of {} on {} ({}), {}",
        report.tokens,
        report.window,
        report.device,
        report.device_name,
        report.dtype.name(),
    );
    if report.from > 0 {
        text += &format!(", scored from position {} on", report.from);
    }
    text += &format!("\ndense perplexity {:.4}\n", report.total.dense_perplexity);
    if let [only] = &report.policies[..] {
        text += &format!(
            "with the pattern {:.4}; same most likely token at {:.2} %, KL divergence {:.5} nats\n",
            only.total.perplexity,
            100.0 * only.total.top1_agreement,
            only.total.kl_divergence
        );
    }
    if let Some(retrieval) = &report.retrieval {
        text += &format!(
            "prompts of seed {}, {} of each kind\n",
            retrieval.seed, retrieval.trials
        );
    }
    for (title, head, rows) in tables(report) {
        let all: Vec<&Vec<String>> = [&head].into_iter().chain(&rows).collect();
        let width = |column: usize| {
            let cells = all.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        text += &format!("\n{title}\n");
        for row in &all {
            let cells = row.iter().enumerate();
            let cells = cells.map(|(column, cell)| format!("{cell:>0$}", width(column)));
            let line = cells.collect::<Vec<_>>().join("  ");
            text += &format!("{}\n", line.trim_end());
        }
    }
    text + "\n" + &layers(report)
}

/// The kernels of the policy, or of dense attention if there is none; of several each.
fn layers(report: &Report) -> String {
    match &report.policies[..] {
        [] | [_] => of_layers::text(&report.layers),
        several => {
            let of = |policy: &Compared| {
                let layers = of_layers::text(&policy.layers);
                format!("{}\n{layers}", policy.name)
            };
            let dense = format!("{DENSE}\n{}", of_layers::text(&report.layers));
            std::iter::once(dense)
                .chain(several.iter().map(of))
                .collect()
        }
    }
}

/// Shares that were found, length across and depth down, a panel for each task and attention.
pub(super) fn map(retrieval: &Retrieval) -> HeatMap {
    fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
        let mut all = Vec::new();
        values.for_each(|value| {
            if !all.contains(&value) {
                all.push(value);
            }
        });
        all
    }
    let all = || retrieval.by_depth.iter();
    let lengths = distinct(all().map(|found| found.tokens));
    let depths = distinct(all().map(|found| found.depth));
    let attentions = distinct(all().map(|found| &*found.attention));
    let tasks = distinct(all().map(|found| found.task));
    let mut panels = Vec::new();
    for task in tasks {
        for &attention in &attentions {
            let value = |depth: Option<f32>, tokens: usize| {
                let mut all =
                    all().filter(|found| (found.task, &*found.attention) == (task, attention));
                let cell = all.find(|found| (found.depth, found.tokens) == (depth, tokens));
                cell.map(|found| found.found)
            };
            let row = |depth: &Option<f32>| {
                lengths
                    .iter()
                    .map(|tokens| value(*depth, *tokens))
                    .collect()
            };
            panels.push(Panel {
                title: format!("{}, {attention}", task.name()),
                values: depths.iter().map(row).collect(),
            });
        }
    }
    HeatMap {
        title: "Share of the answer that was found".into(),
        rows: (
            "depth".into(),
            depths
                .iter()
                .flatten()
                .map(|depth| format!("{depth:.2}"))
                .collect(),
        ),
        columns: (
            "tokens".into(),
            lengths.iter().map(ToString::to_string).collect(),
        ),
        panels,
        across: attentions.len(),
        unit: Unit::Share,
        scale: Scale::Linear,
        range: Some([0.0, 1.0]),
    }
}

fn curves(report: &Report) -> Vec<Curves> {
    let line = |name: &str, buckets: &[Bucket], of: &dyn Fn(&Means) -> Option<f64>| Line {
        name: name.into(),
        points: buckets
            .iter()
            .filter_map(|bucket| Some([bucket.end as f64, of(&bucket.means)?]))
            .collect(),
    };
    let chart = |title: &str, y: &str, lines: Vec<Line>| Curves {
        title: title.into(),
        x: Axis {
            title: "positions up to".into(),
            unit: Unit::Count,
            scale: Scale::Log,
        },
        y: Axis {
            title: y.into(),
            unit: Unit::Number,
            scale: Scale::Linear,
        },
        lines,
    };
    let lines = |of: &dyn Fn(&Difference) -> f64| -> Vec<Line> {
        let of = |means: &Means| means.sparse.as_ref().map(of);
        let policies = report.policies.iter();
        policies
            .map(|policy| line(&policy.name, &policy.by_position, &of))
            .collect()
    };
    let dense = line(DENSE, &report.by_position, &|means| {
        Some(means.dense_perplexity)
    });
    let mut perplexities = vec![dense];
    perplexities.extend(lines(&|sparse| sparse.perplexity));
    let mut charts = vec![chart("Perplexity by position", "perplexity", perplexities)];
    if !report.policies.is_empty() {
        charts.push(chart(
            "KL divergence from dense attention by position",
            "nats",
            lines(&|sparse| sparse.kl_divergence),
        ));
    }
    charts
}

pub(super) fn page(command: &Command, report: &Report) -> Page {
    let mut facts = vec![
        ("model", command.model.display().to_string()),
        ("text", command.text.display().to_string()),
        (
            "tokens",
            format!(
                "{} in windows of {}, scored from position {}",
                report.tokens, report.window, report.from
            ),
        ),
        (
            "device",
            format!(
                "{} ({}), {}",
                report.device,
                report.device_name,
                report.dtype.name()
            ),
        ),
        (
            "dense perplexity",
            format!("{:.4}", report.total.dense_perplexity),
        ),
    ];
    if let Some(artifacts) = &command.several.run.artifacts {
        facts.push(("artifacts", artifacts.display().to_string()));
    }
    if let Some(retrieval) = &report.retrieval {
        facts.push((
            "prompts",
            format!("seed {}, {} of each kind", retrieval.seed, retrieval.trials),
        ));
    }
    facts.push(("layers", layers(report)));
    if let Some(wrong) = &report.not_finite {
        facts.push(("wrong", wrong.clone()));
    }
    let charts = curves(report).iter().map(chart::curves).collect::<Vec<_>>();
    let maps = report
        .retrieval
        .iter()
        .map(|all| chart::heat_map(&map(all)));
    let charts = charts.into_iter().chain(maps).map(Part::Chart);
    let tables = tables(report).into_iter();
    let tables = tables.map(|(title, head, rows)| Part::Table { title, head, rows });
    Page {
        title: "What a pattern costs".into(),
        facts,
        parts: charts.chain(tables).collect(),
    }
}

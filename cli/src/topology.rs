//! `butterfly topology`: the rows of one layer.

use crate::args::{Format, Topology as Command};
use crate::failure::Failure;
use crate::{output, source, svg};
use butterfly_ir::{Class, Context, Leaf, Pattern, Topology, stage};
use serde::Serialize;

#[derive(Serialize)]
struct Report {
    num_blocks: u32,
    width: u32,
    stage_count: u32,
    stage: u32,
    rows: Vec<Vec<u32>>,
}

pub(crate) fn run(command: &Command, json: bool) -> Result<(), Failure> {
    let parsed = command.pattern.read()?;
    let sparsity = &parsed.sparsity;
    let index = command.stage.index(sparsity)?;
    let kv_head = match command.kv_head {
        None if sparsity.pattern.is_by_head() => {
            return Err(Failure::Bad(
                "the pattern differs by kv head; say which head is meant: --kv-head H".into(),
            ));
        }
        head => head.unwrap_or_default(),
    };
    let context = Context {
        kv_head,
        layer: command.stage.layer(sparsity)?,
        ..command.pattern.context(&parsed, command.seq_len, index)?
    };
    let pattern = sparsity.pattern.of_layer(context.layer).of_head(kv_head);
    source::check_one(&parsed, &context)?;
    let most = match command.format {
        Format::Svg if !json => svg::DRAWN,
        Format::Svg | Format::Text | Format::Json => source::LISTED,
    };
    let topology = source::listed(&pattern, &context, most)?;
    if let Some(routing) = pattern.routing() {
        output::note(format_args!(
            "note: rows choose up to {} more blocks by content, which are not listed",
            routing.blocks
        ));
    }
    let stage_count = sparsity.pattern.stage_count(context.blocks());
    let report = Report {
        num_blocks: context.blocks(),
        width: stage::width(context.blocks(), radix(&sparsity.pattern)),
        stage_count,
        stage: index % stage_count,
        rows: topology
            .rows
            .iter()
            .map(|row| row.blocks.iter().map(|x| x.block).collect())
            .collect(),
    };
    match command.format {
        Format::Svg if !json => output::out(svg::draw(&topology))?,
        Format::Text => crate::print(json, &report, || text(&report, &topology))?,
        Format::Json | Format::Svg => crate::print(true, &report, String::new)?,
    }
    Ok(())
}

/// The radix of the first partner leaf, or 2 if there is none.
fn radix(pattern: &Pattern) -> u32 {
    let of = |leaf: &&Leaf| match leaf {
        Leaf::Partner { radix, .. } => Some(*radix),
        Leaf::Causal
        | Leaf::Local { .. }
        | Leaf::Window { .. }
        | Leaf::Sink { .. }
        | Leaf::SinkTokens { .. }
        | Leaf::Global { .. }
        | Leaf::Tail { .. }
        | Leaf::Routed { .. }
        | Leaf::Table { .. }
        | Leaf::All
        | Leaf::None => None,
    };
    pattern.leaves().iter().find_map(of).unwrap_or(2)
}

fn text(report: &Report, topology: &Topology) -> String {
    let (n, block) = (report.num_blocks, topology.context.block);
    let mut text = format!(
        "{n} blocks of {block} tokens, width {}, stage {} of {} (* = needs a mask)\n",
        report.width, report.stage, report.stage_count
    );
    text += &listing(topology);
    text
}

/// A line for each row: its blocks, with `*` behind those that need a mask.
pub(crate) fn listing(topology: &Topology) -> String {
    let mut text = String::new();
    for (b, row) in topology.rows.iter().enumerate() {
        let mark = |class| if class == Class::Partial { "*" } else { "" };
        let blocks: Vec<String> = row
            .blocks
            .iter()
            .map(|x| format!("{}{}", x.block, mark(x.class)))
            .collect();
        text += &format!("{b:>6}  {}\n", blocks.join(" "));
    }
    text
}

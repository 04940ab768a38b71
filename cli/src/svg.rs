//! Pictures as SVG: topologies (query blocks down, kv blocks across), and results of retrieval
//! tests.

use butterfly_ir::{Class, Topology};
use std::fmt::Write;

/// Length of a side of the picture of a topology, in SVG units. With more blocks a side than this,
/// squares overlap: none is drawn smaller than about a unit.
const SIDE: f64 = 640.0;

/// Most rows or blocks of a picture.
pub(crate) const DRAWN: u64 = 1 << 18;

/// One square for each block read: dark when full, light when it needs a mask.
pub(crate) fn draw(topology: &Topology) -> String {
    let n = topology.rows.len().max(1);
    let cell = SIDE / n as f64;
    let (margin, size) = (28.0, SIDE + 36.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {size} {size}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>{n} blocks of {} tokens, stage {}</title>\n\
         <rect width=\"{size}\" height=\"{size}\" fill=\"#ffffff\"/>\n\
         <path d=\"M{margin} {margin}V{}H{}Z\" fill=\"#eef1f6\"/>\n",
        topology.context.block,
        topology.context.index,
        margin + SIDE,
        margin + SIDE,
    );
    for (b, row) in topology.rows.iter().enumerate() {
        for entry in &row.blocks {
            let color = match entry.class {
                Class::Full => "#1f4e9e",
                Class::Partial => "#7fa6dd",
            };
            let (x, y) = (
                margin + f64::from(entry.block) * cell,
                margin + b as f64 * cell,
            );
            let side = cell.max(1.0) * 0.94;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{side:.2}\" height=\"{side:.2}\" fill=\"{color}\"/>"
            );
        }
    }
    let _ = writeln!(svg, "<text x=\"{margin}\" y=\"18\">kv block →</text>");
    let _ = writeln!(
        svg,
        "<text x=\"18\" y=\"{margin}\" transform=\"rotate(90 18 {margin})\" dy=\"4\">query block →</text>"
    );
    svg + "</svg>\n"
}

/// Kind of attention, length in tokens, depth from 0 to 1, and the share of the answer that was
/// found.
pub(crate) type Cell<'a> = (&'a str, usize, f32, f32);

/// Found shares by length and depth, one panel for each kind of attention.
pub(crate) fn needles(cells: &[Cell<'_>]) -> String {
    const CELL: usize = 56;
    let distinct = |of: &dyn Fn(&Cell<'_>) -> String| {
        let mut values: Vec<String> = Vec::new();
        for cell in cells {
            let value = of(cell);
            if !values.contains(&value) {
                values.push(value);
            }
        }
        values
    };
    let (kinds, lengths) = (distinct(&|c| c.0.into()), distinct(&|c| c.1.to_string()));
    let depths = distinct(&|c| format!("{:.2}", c.2));
    let panel = 90 + lengths.len() * CELL;
    let (width, height) = (kinds.len() * panel + 20, 70 + depths.len() * CELL);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>Share of a hidden fact that was found, by depth and length</title>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    for (i, kind) in kinds.iter().enumerate() {
        let left = i * panel + 60;
        let _ = writeln!(svg, "<text x=\"{left}\" y=\"18\">{kind}</text>");
        for (x, length) in lengths.iter().enumerate() {
            let at = left + x * CELL;
            let _ = writeln!(
                svg,
                "<text x=\"{at}\" y=\"{}\">{length}</text>",
                height - 12
            );
        }
        for (y, depth) in depths.iter().enumerate() {
            let (at, x) = (30 + y * CELL + CELL / 2, left - 40);
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"{at}\">{depth}</text>");
        }
    }
    let place = |values: &[String], value: String| values.iter().position(|v| *v == value);
    for (kind, length, depth, found) in cells {
        let of = (
            place(&kinds, kind.to_string()),
            place(&lengths, length.to_string()),
            place(&depths, format!("{depth:.2}")),
        );
        let (Some(i), Some(x), Some(y)) = of else {
            continue;
        };
        // From light to dark blue.
        #[expect(clippy::cast_possible_truncation, reason = "between the two")]
        let shade = |from: f32, to: f32| (from + (to - from) * found) as u8;
        let (red, green, blue) = (shade(238.0, 31.0), shade(241.0, 78.0), shade(246.0, 158.0));
        let (x, y, side) = (i * panel + 60 + x * CELL, 30 + y * CELL, CELL - 4);
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{side}\" height=\"{side}\" fill=\"#{red:02x}{green:02x}{blue:02x}\"><title>{:.0} %</title></rect>",
            100.0 * found
        );
    }
    svg + "</svg>\n"
}

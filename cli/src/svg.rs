//! Topologies as SVG: query blocks down, kv blocks across.

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

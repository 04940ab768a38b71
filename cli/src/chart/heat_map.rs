//! Values in rows and columns, as colours.

use super::{Scale, Unit, escaped, framed, label};
use std::fmt::Write;

/// Panels with the same rows and columns, and one scale of colours for all.
#[derive(Clone, Debug)]
pub(crate) struct HeatMap {
    pub(crate) title: String,
    /// What rows and columns are, and the name of each.
    pub(crate) rows: (String, Vec<String>),
    pub(crate) columns: (String, Vec<String>),
    pub(crate) panels: Vec<Panel>,
    /// Most panels beside one another.
    pub(crate) across: usize,
    pub(crate) unit: Unit,
    pub(crate) scale: Scale,
    /// The values of the lightest colour and the darkest; without them, the least and the largest.
    pub(crate) range: Option<[f64; 2]>,
}

/// One value, or none, for each row and column.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) values: Vec<Vec<Option<f64>>>,
}

/// Draws a map. A cell without a value stays empty; one beyond the range has the colour of its end,
/// and so has one that is not positive on a logarithmic scale.
pub(crate) fn heat_map(map: &HeatMap) -> String {
    let (rows, columns) = (&map.rows.1, &map.columns.1);
    let widest = |names: &[String]| {
        names
            .iter()
            .map(|name| name.chars().count())
            .max()
            .unwrap_or(0) as f64
            * 7.0
    };
    let height = (480.0 / rows.len().max(1) as f64).clamp(16.0, 48.0);
    let width = (480.0 / columns.len().max(1) as f64)
        .clamp(16.0, 56.0)
        .max(widest(columns) + 6.0);
    let left = widest(rows) + 34.0;
    let (panel_width, panel_height) = (
        left + width * columns.len() as f64 + 24.0,
        height * rows.len() as f64 + 74.0,
    );
    let across = map.across.clamp(1, map.panels.len().max(1));
    let down = map.panels.len().div_ceil(across);
    let values = || {
        map.panels
            .iter()
            .flat_map(|panel| panel.values.iter().flatten().flatten().copied())
    };
    let range = map
        .range
        .or_else(|| map.scale.range(values()))
        .unwrap_or([0.0, 1.0]);
    let mut svg = label(12.0, 20.0, "start", &map.title);
    for (i, panel) in map.panels.iter().enumerate() {
        let x = left + panel_width * (i % across) as f64;
        let y = 58.0 + panel_height * (i / across) as f64;
        let bottom = y + height * rows.len() as f64;
        svg += &label(x, y - 8.0, "start", &panel.title);
        for (row, name) in rows.iter().enumerate() {
            svg += &label(x - 6.0, y + height * (row as f64 + 0.5) + 4.0, "end", name);
        }
        for (column, name) in columns.iter().enumerate() {
            svg += &label(
                x + width * (column as f64 + 0.5),
                bottom + 15.0,
                "middle",
                name,
            );
        }
        svg += &label(
            x,
            bottom + 32.0,
            "start",
            &format!("{} across, {} down", map.columns.0, map.rows.0),
        );
        for (row, values) in panel.values.iter().enumerate() {
            for (column, value) in values.iter().enumerate() {
                let Some(value) = value else { continue };
                let shown = map.unit.show(*value);
                let share = map
                    .scale
                    .place(range, *value)
                    .unwrap_or(0.0)
                    .clamp(0.0, 1.0);
                let (x, y) = (x + width * column as f64, y + height * row as f64);
                let name = |names: &[String], i: usize| names.get(i).cloned().unwrap_or_default();
                let says = format!(
                    "{} {}, {} {}: {shown}",
                    map.rows.0,
                    name(rows, row),
                    map.columns.0,
                    name(columns, column)
                );
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"><title>{}</title></rect>",
                    width - 1.0,
                    height - 1.0,
                    colour(share),
                    escaped(&says)
                );
                if width >= 7.0 * shown.len() as f64 + 4.0 && height >= 16.0 {
                    let ink = if share > 0.5 { "#ffffff" } else { "#1b1f24" };
                    let _ = writeln!(
                        svg,
                        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{ink}\" pointer-events=\"none\">{}</text>",
                        x + width / 2.0,
                        y + height / 2.0 + 4.0,
                        escaped(&shown)
                    );
                }
            }
        }
    }
    let (x, y) = (left, 58.0 + panel_height * down as f64 - 28.0);
    for step in 0..20 {
        let _ = writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"8\" height=\"12\" fill=\"{}\"/>",
            x + 8.0 * f64::from(step),
            colour(f64::from(step) / 19.0)
        );
    }
    svg += &label(x - 4.0, y + 10.0, "end", &map.unit.show(range[0]));
    svg += &label(x + 166.0, y + 10.0, "start", &map.unit.show(range[1]));
    let width = (panel_width * across as f64)
        .max(left + 280.0)
        .max(24.0 + 7.0 * map.title.chars().count() as f64);
    framed(&map.title, width, y + 28.0, &svg)
}

/// From light to dark blue.
fn colour(share: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "between the two")]
    let shade = |from: f64, to: f64| (from + (to - from) * share).round() as u8;
    let (red, green, blue) = (shade(226.0, 24.0), shade(234.0, 70.0), shade(246.0, 150.0));
    format!("#{red:02x}{green:02x}{blue:02x}")
}

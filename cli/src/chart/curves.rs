//! Lines through points.

use super::{Scale, Unit, escaped, framed, label};
use std::fmt::Write;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 40.0;
/// Told apart on light and dark ground, and by most who see few colours; after Okabe and Ito.
const COLOURS: [&str; 6] = [
    "#3b82c4", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9",
];

/// Lines with the same axes.
#[derive(Clone, Debug)]
pub(crate) struct Curves {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: Vec<Line>,
}

#[derive(Clone, Debug)]
pub(crate) struct Axis {
    pub(crate) title: String,
    pub(crate) unit: Unit,
    pub(crate) scale: Scale,
}

#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    /// x and y, in the order in which they are joined.
    pub(crate) points: Vec<[f64; 2]>,
}

/// Draws lines. Points that have no place, as what is not positive on a logarithmic axis, are left
/// out.
pub(crate) fn curves(chart: &Curves) -> String {
    let points = || chart.lines.iter().flat_map(|line| &line.points);
    let range = |axis: &Axis, i: usize| {
        let range = axis.scale.range(points().map(|point| point[i]));
        let [low, high] = range.unwrap_or([1.0, 2.0]);
        match (axis.scale, low < high) {
            (_, true) => [low, high],
            (Scale::Linear, false) => [low - 0.5, high + 0.5],
            (Scale::Log, false) => [low / 2.0, high * 2.0],
        }
    };
    let ranges = [range(&chart.x, 0), range(&chart.y, 1)];
    let right = |x: f64| {
        chart
            .x
            .scale
            .place(ranges[0], x)
            .map(|at| LEFT + WIDTH * at)
    };
    let down = |y: f64| {
        chart
            .y
            .scale
            .place(ranges[1], y)
            .map(|at| TOP + HEIGHT * (1.0 - at))
    };
    let bottom = TOP + HEIGHT;
    let mut svg = label(12.0, 20.0, "start", &chart.title);
    for tick in ticks(chart.x.scale, ranges[0]) {
        let Some(x) = right(tick) else { continue };
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"currentColor\" stroke-opacity=\"0.15\"/>"
        );
        svg += &label(x, bottom + 16.0, "middle", &chart.x.unit.show(tick));
    }
    for tick in ticks(chart.y.scale, ranges[1]) {
        let Some(y) = down(tick) else { continue };
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{}\" stroke=\"currentColor\" stroke-opacity=\"0.15\"/>",
            LEFT + WIDTH
        );
        svg += &label(LEFT - 6.0, y + 4.0, "end", &chart.y.unit.show(tick));
    }
    svg += &label(LEFT + WIDTH / 2.0, bottom + 36.0, "middle", &chart.x.title);
    svg += &label(LEFT, TOP - 6.0, "start", &chart.y.title);
    for (i, line) in chart.lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let points = line.points.iter();
        let placed: Vec<_> = points
            .filter_map(|[x, y]| Some(([*x, *y], [right(*x)?, down(*y)?])))
            .collect();
        let path: Vec<String> = placed
            .iter()
            .map(|(_, [x, y])| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for ([x, y], [right, down]) in placed {
            let says = format!(
                "{}: {}, {}",
                line.name,
                chart.x.unit.show(x),
                chart.y.unit.show(y)
            );
            let _ = writeln!(
                svg,
                "<circle cx=\"{right:.1}\" cy=\"{down:.1}\" r=\"3.5\" fill=\"{colour}\"><title>{}</title></circle>",
                escaped(&says)
            );
        }
        let y = TOP + 12.0 + 18.0 * i as f64;
        let x = LEFT + WIDTH + 16.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>",
            y - 10.0
        );
        svg += &label(x + 18.0, y, "start", &line.name);
    }
    let names = chart
        .lines
        .iter()
        .map(|line| line.name.chars().count())
        .max();
    let width = LEFT + WIDTH + 52.0 + 7.0 * names.unwrap_or(0) as f64;
    let height = (bottom + 48.0).max(TOP + 18.0 * chart.lines.len() as f64 + 12.0);
    framed(&chart.title, width, height, &svg)
}

/// Some five round numbers in a range; on a logarithmic axis powers of two, or of ten if there are
/// many.
fn ticks(scale: Scale, [low, high]: [f64; 2]) -> Vec<f64> {
    match scale {
        Scale::Linear => {
            let about = (high - low) / 5.0;
            let power = 10_f64.powf(about.log10().floor());
            let steps = [1.0, 2.0, 5.0, 10.0].map(|n| n * power);
            let step = steps
                .into_iter()
                .find(|step| *step >= about)
                .unwrap_or(about);
            let ticks = (0..16).map(|i| ((low / step).ceil() + f64::from(i)) * step);
            ticks.filter(|tick| *tick <= high + step * 1e-9).collect()
        }
        Scale::Log => {
            let base = if high / low > 512.0 { 10_f64 } else { 2.0 };
            let [first, last] = [low, high].map(|end| end.ln() / base.ln());
            let ticks = (0..32).map(|i| (first - 1e-9).ceil() + f64::from(i));
            let ticks = ticks.take_while(|power| *power <= last + 1e-9);
            ticks.map(|power| base.powf(power)).collect()
        }
    }
}

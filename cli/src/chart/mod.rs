//! Charts as SVG.
//!
//! In:  values with their names. Out: the text of an `<svg>`, to be a file or a part of a page.
//! Invariants: the same chart is the same text; text in charts is escaped; what a chart says can be
//! read on light and dark ground.
//!
//! Not plotters: its colours are those of one ground, and it names no value under the pointer.

mod curves;
mod heat_map;

pub(crate) use curves::{Axis, Curves, Line, curves};
pub(crate) use heat_map::{HeatMap, Panel, heat_map};

use minijinja::HtmlEscape;
use std::fmt::Display;

/// How a number is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Up to four digits that count.
    Number,
    /// A whole number.
    Count,
    /// A share, in percent.
    Share,
}

/// How values are laid out: along an axis, or from the lightest colour to the darkest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    /// Values that are not positive have no place on it.
    Log,
}

impl Unit {
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::Share => format!("{:.0} %", 100.0 * value),
            Self::Count => format!("{value:.0}"),
            Self::Number if value == 0.0 => "0".into(),
            Self::Number => {
                let digits = 3.0 - value.abs().log10().floor();
                #[expect(clippy::cast_possible_truncation, reason = "from 0 to 12")]
                let digits = digits.clamp(0.0, 12.0) as usize;
                let text = format!("{value:.digits$}");
                match text.contains('.') {
                    true => text.trim_end_matches('0').trim_end_matches('.').into(),
                    false => text,
                }
            }
        }
    }
}

impl Scale {
    /// Where a value stands from `low`, 0, to `high`, 1.
    fn place(self, [low, high]: [f64; 2], value: f64) -> Option<f64> {
        let of = |x: f64| match self {
            Self::Linear => x,
            Self::Log => x.ln(),
        };
        let (low, high, value) = (of(low), of(high), of(value));
        let at = match high > low {
            true => (value - low) / (high - low),
            false => 0.5,
        };
        (value.is_finite() && at.is_finite()).then_some(at)
    }

    /// The least and largest of those values that have a place.
    fn range(self, values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
        let values = values.filter(|x| match self {
            Self::Linear => x.is_finite(),
            Self::Log => x.is_finite() && *x > 0.0,
        });
        values.fold(None, |range, x| match range {
            None => Some([x, x]),
            Some([low, high]) => Some([low.min(x), high.max(x)]),
        })
    }
}

/// An `<svg>` of this size with a title.
fn framed(title: &str, width: f64, height: f64, inner: &str) -> String {
    format!(
        "<svg class=\"chart\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"currentColor\">\n\
         <style>.chart{{background:#fff;color:#1b1f24}}@media(prefers-color-scheme:dark){{.chart{{background:#14181d;color:#e3e8ee}}}}</style>\n\
         <title>{}</title>\n{inner}</svg>\n",
        escaped(title)
    )
}

/// A line of text; `anchor` is start, middle or end.
fn label(x: f64, y: f64, anchor: &str, text: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>\n",
        escaped(text)
    )
}

fn escaped(text: &str) -> impl Display {
    HtmlEscape(text)
}

#[cfg(test)]
mod tests;

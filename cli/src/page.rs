//! A report as one self-contained HTML file: no scripts, and nothing from the network.
//!
//! In: a title, facts, tables and charts. Out: the text of the page, the same for the same input.

use crate::failure::Failure;
use minijinja::value::Serde;
use minijinja::{Environment, context};
use serde::Serialize;

/// A report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Page {
    pub(crate) title: String,
    /// What was run, each with its name.
    pub(crate) facts: Vec<(&'static str, String)>,
    pub(crate) parts: Vec<Part>,
}

/// A part of a report, in the order of the page.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Part {
    Table {
        title: String,
        head: Vec<String>,
        rows: Vec<Vec<String>>,
    },
    /// The text of an `<svg>`, as [`crate::chart`] makes it.
    Chart(String),
}

/// The page as HTML; all text is escaped.
///
/// # Errors
/// Those of the template, which are faults of this program.
pub(crate) fn html(page: &Page) -> Result<String, Failure> {
    let mut environment = Environment::new();
    // The name ends in `.html`, which turns escaping on.
    let added = environment.add_template("page.html", include_str!("page.html"));
    let template = added.and_then(|()| environment.get_template("page.html"));
    let text = template.and_then(|template| template.render(context! { page => Serde(page) }));
    text.map_err(|error| {
        Failure::Bad(format!(
            "a fault of butterfly: the report's template: {error:#}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_its_parts_in_order_and_escapes_text() {
        let page = Page {
            title: "a <b> & c".into(),
            facts: vec![("pattern", "causal & window(4) <script>".into())],
            parts: vec![
                Part::Chart("<svg><title>a chart</title></svg>".into()),
                Part::Table {
                    title: "figures".into(),
                    head: vec!["x".into()],
                    rows: vec![vec!["<1>".into()]],
                },
            ],
        };
        let text = html(&page).expect("a page");
        for part in [
            "<h1>a &lt;b&gt; &amp; c</h1>",
            "causal &amp; window(4) &lt;script&gt;",
            "<svg><title>a chart</title></svg>",
            "<td>&lt;1&gt;</td>",
            "prefers-color-scheme",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.find("<svg>") < text.find("<table"));
        for absent in ["http:", "https:", "<script", "<link", "@import"] {
            assert!(!text.contains(absent), "{absent}");
        }
        assert_eq!(text, html(&page).expect("a page"));
    }
}

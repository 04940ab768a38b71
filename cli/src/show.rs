//! `--emit`: the result of one step from pattern to kernel, as text.

use crate::args::Show;
use crate::failure::Failure;
use crate::kernel::Files;
use crate::source;
use butterfly_compiler::pipeline::Lowered;
use butterfly_ir::{Context, Indices};
use serde::Serialize;

impl Show {
    /// The name in flags and JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pattern => "pattern",
            Self::Topology => "topology",
            Self::Proof => "proof",
            Self::Graph => "graph",
            Self::Plan => "plan",
            Self::Cuda => "cuda",
            Self::Ptx => "ptx",
            Self::Wgsl => "wgsl",
            Self::Metal => "metal",
        }
    }
}

/// The result of this step as text.
pub(crate) fn text(show: Show, lowered: &Lowered, files: &Files) -> Result<String, Failure> {
    let plan = &lowered.plan;
    Ok(match show {
        Show::Pattern => plan.sparsity.to_string(),
        Show::Topology => {
            // The first replaced layer, at the longest length.
            let first = plan.layers.first();
            let (layer, index) = first.map_or((0, 0), |layer| (layer.layer, layer.index));
            let context = Context::new(plan.sparsity.block, plan.capacity, index);
            let pattern = plan.sparsity.pattern.of_layer(layer);
            let classes = pattern.head_classes(pattern.sample_heads());
            let mut text = String::new();
            for (of_heads, heads) in &classes {
                if classes.len() > 1 {
                    let named = Indices::of(heads.iter().map(|head| (*head, head + 1)));
                    text += &format!("kv heads {named}, {of_heads}\n");
                }
                let topology = source::listed(of_heads, &context, source::LISTED)?;
                text += &crate::topology::listing(&topology);
            }
            text
        }
        Show::Proof => pretty(&plan.proof),
        Show::Graph => {
            let graphs = lowered.graphs.iter();
            let graphs = graphs.map(|g| format!("{}\nfused:\n{}", g.before, g.after));
            graphs.collect::<Vec<_>>().join("\n")
        }
        Show::Plan => pretty(plan),
        Show::Cuda => with_extension(files, "cu"),
        Show::Ptx => with_extension(files, "ptx"),
        Show::Wgsl => with_extension(files, "wgsl"),
        Show::Metal => with_extension(files, "metal"),
    })
}

fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|error| error.to_string())
}

fn with_extension(files: &Files, extension: &str) -> String {
    let files = files
        .iter()
        .filter(|(path, _)| path.rsplit('.').next() == Some(extension));
    files
        .map(|(path, bytes)| format!("// {path}\n{}\n", String::from_utf8_lossy(bytes)))
        .collect()
}

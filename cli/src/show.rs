//! `--emit`: the result of one step from pattern to kernel, as text.

use crate::args::Show;
use crate::failure::Failure;
use crate::kernel::Files;
use crate::source;
use butterfly_compiler::pipeline::Lowered;
use butterfly_ir::Context;
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
            let index = plan.layers.first().map_or(0, |layer| layer.index);
            let context = Context::new(plan.sparsity.block, plan.capacity, index);
            let pattern = &plan.sparsity.pattern;
            crate::topology::listing(&source::listed(pattern, &context, source::LISTED)?)
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

//! Plan → the kernels that score blocks by content.

use crate::{BuildError, Files};
use butterfly_ir::manifest::ScorerEntry;
use butterfly_ir::plan::Plan;
use butterfly_ir::{Role, Rows, Scorer, ScorerPass, ScorerShape};

/// The scorers that a plan's prefill kernels for `cuda:sm_90a` need: both passes for each shape, sorted, each once.
/// Empty if no row of the plan chooses blocks by content.
pub fn wanted_scorers(plan: &Plan) -> Vec<Scorer> {
    let Some(routing) = plan.sparsity.pattern.routing() else {
        return Vec::new();
    };
    let kernels = plan.kernels.iter().filter(|kernel| {
        let spec = &kernel.spec;
        let chooses = spec.block == plan.sparsity.block && spec.rows == Rows::Table;
        kernel.target.to_string() == "cuda:sm_90a" && spec.role == Role::Prefill && chooses
    });
    let mut scorers: Vec<Scorer> = kernels
        .flat_map(|kernel| {
            let shape = ScorerShape {
                head_dim: kernel.spec.head_dim,
                group: kernel.spec.group,
                block: kernel.spec.block,
                pool: routing.pool,
                every: routing.every,
            };
            let passes = [ScorerPass::Weigh, ScorerPass::Score];
            passes.map(|pass| Scorer::of(pass, kernel.spec.dtype, shape))
        })
        .collect();
    scorers.sort_unstable();
    scorers.dedup();
    scorers
}

/// Makes the scorers for `cuda:sm_90a` that have a generated kernel; others run as portable kernels.
///
/// # Errors
/// [`BuildError::Kernel`] if NVRTC rejects the text of a kernel.
#[cfg(feature = "emitters")]
pub fn scorers(
    wanted: impl IntoIterator<Item = Scorer>,
) -> Result<(Vec<ScorerEntry>, Files), BuildError> {
    use crate::kernel::{HOPPER, beside_attention, file};
    let (mut entries, mut files) = (Vec::new(), Files::new());
    for scorer in wanted {
        let Ok((scorer, text)) = butterfly_codegen::scorer(scorer) else {
            continue;
        };
        let name = format!(
            "{}-{}-d{}-g{}-b{}-p{}-e{}",
            scorer.entry.trim_start_matches("butterfly_"),
            scorer.dtype.name(),
            scorer.head_dim,
            scorer.group,
            scorer.block,
            scorer.pool,
            scorer.every
        );
        let made = beside_attention(&name, text)?;
        entries.push(ScorerEntry {
            target: HOPPER,
            scorer,
            files: made.iter().map(file).collect(),
        });
        files.extend(made);
    }
    Ok((entries, files))
}

/// Returns no kernels: this build has no emitters.
#[cfg(not(feature = "emitters"))]
pub fn scorers(
    _: impl IntoIterator<Item = Scorer>,
) -> Result<(Vec<ScorerEntry>, Files), BuildError> {
    Ok((Vec::new(), Files::new()))
}

//! Plan and model → the kernels for products with packed weights and with experts.

use crate::{BuildError, Files, product_dtypes};
use butterfly_compiler::config::StoredWeights;
use butterfly_ir::Grouped;
use butterfly_ir::manifest::GroupedEntry;
use butterfly_ir::plan::Plan;

/// The kernels that a model with such weights needs where a plan has kernels for `cuda:sm_90a`, sorted, each once. None
/// for weights whose rows are no whole number of steps.
pub fn wanted_grouped(plan: &Plan, weights: &[StoredWeights]) -> Vec<Grouped> {
    let mut wanted = Vec::new();
    for dtype in product_dtypes(plan) {
        for StoredWeights { columns, formats } in weights {
            for format in formats {
                let of = |columns: &u32| Grouped::of(dtype, *format, *columns);
                wanted.extend(columns.iter().filter_map(of));
            }
        }
    }
    wanted.sort_unstable();
    wanted.dedup();
    wanted
}

/// Makes the kernels for `cuda:sm_90a` that can be generated; other products run as portable kernels.
///
/// # Errors
/// [`BuildError::Kernel`] if NVRTC rejects a text.
#[cfg(feature = "emitters")]
pub fn grouped(
    wanted: impl IntoIterator<Item = Grouped>,
) -> Result<(Vec<GroupedEntry>, Files), BuildError> {
    use crate::kernel::{HOPPER, beside_attention, file};
    let (mut entries, mut files) = (Vec::new(), Files::new());
    for grouped in wanted {
        let Ok((grouped, text)) = butterfly_codegen::grouped(grouped) else {
            continue;
        };
        let name = format!(
            "grouped-{}-{}-k{}",
            grouped.dtype.name(),
            grouped.format,
            grouped.columns
        );
        let made = beside_attention(&name, text)?;
        entries.push(GroupedEntry {
            target: HOPPER,
            grouped,
            files: made.iter().map(file).collect(),
        });
        files.extend(made);
    }
    Ok((entries, files))
}

/// Returns no kernels: this build has no emitters.
#[cfg(not(feature = "emitters"))]
pub fn grouped(
    _: impl IntoIterator<Item = Grouped>,
) -> Result<(Vec<GroupedEntry>, Files), BuildError> {
    Ok((Vec::new(), Files::new()))
}

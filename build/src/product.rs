//! Element types → the matrix products that linear layers run.

use crate::{BuildError, Files};
use butterfly_ir::Dtype;
use butterfly_ir::manifest::ProductEntry;
use butterfly_ir::plan::Plan;

/// Element types of a plan's kernels for Hopper.
pub fn product_dtypes(plan: &Plan) -> Vec<Dtype> {
    let kernels = plan.kernels.iter();
    let hopper = kernels.filter(|kernel| kernel.target.to_string() == "cuda:sm_90a");
    let mut dtypes: Vec<Dtype> = hopper.map(|kernel| kernel.spec.dtype).collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    dtypes
}

/// One product for Hopper for each element type that it has one for.
///
/// # Errors
/// [`BuildError::Kernel`] when NVRTC refuses a text.
#[cfg(feature = "emitters")]
pub fn products(
    dtypes: impl IntoIterator<Item = Dtype>,
) -> Result<(Vec<ProductEntry>, Files), BuildError> {
    use butterfly_ir::{Sm, Target};
    let hopper = Target::Cuda(Sm {
        version: 90,
        arch_specific: true,
    });
    let (mut entries, mut files) = (Vec::new(), Files::new());
    for dtype in dtypes {
        let Some((product, text)) = butterfly_codegen::product(dtype) else {
            continue;
        };
        let made = butterfly_codegen::assemble_product(text);
        let made = made.map_err(|error| BuildError::Kernel(error.to_string()))?;
        let path = |extension: &str| format!("kernels/product-{}.{extension}", dtype.name());
        let made: Files = made
            .into_iter()
            .map(|(extension, bytes)| (path(&extension), bytes))
            .collect();
        entries.push(ProductEntry {
            target: hopper,
            product,
            files: made.iter().map(crate::kernel::file).collect(),
        });
        files.extend(made);
    }
    Ok((entries, files))
}

/// None: this build has no emitters.
#[cfg(not(feature = "emitters"))]
pub fn products(
    _: impl IntoIterator<Item = Dtype>,
) -> Result<(Vec<ProductEntry>, Files), BuildError> {
    Ok((Vec::new(), Files::new()))
}

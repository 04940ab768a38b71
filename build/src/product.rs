//! Element types → the kernels for the matrix products of linear layers.

use crate::{BuildError, Files};
use butterfly_ir::Dtype;
use butterfly_ir::manifest::ProductEntry;
use butterfly_ir::plan::Plan;

/// The element types of a plan's kernels for `cuda:sm_90a`, sorted, each once.
pub fn product_dtypes(plan: &Plan) -> Vec<Dtype> {
    let kernels = plan.kernels.iter();
    let hopper = kernels.filter(|kernel| kernel.target.to_string() == "cuda:sm_90a");
    let mut dtypes: Vec<Dtype> = hopper.map(|kernel| kernel.spec.dtype).collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    dtypes
}

/// Makes a matrix product kernel for `cuda:sm_90a` for each of the element types that have one.
///
/// # Errors
/// [`BuildError::Kernel`] if NVRTC rejects the text of a kernel.
#[cfg(feature = "emitters")]
pub fn products(
    dtypes: impl IntoIterator<Item = Dtype>,
) -> Result<(Vec<ProductEntry>, Files), BuildError> {
    use crate::kernel::{HOPPER, beside_attention, file};
    let (mut entries, mut files) = (Vec::new(), Files::new());
    for dtype in dtypes {
        let Some((product, text)) = butterfly_codegen::product(dtype) else {
            continue;
        };
        let made = beside_attention(&format!("product-{}", dtype.name()), text)?;
        entries.push(ProductEntry {
            target: HOPPER,
            product,
            files: made.iter().map(file).collect(),
        });
        files.extend(made);
    }
    Ok((entries, files))
}

/// Returns no kernels: this build has no emitters.
#[cfg(not(feature = "emitters"))]
pub fn products(
    _: impl IntoIterator<Item = Dtype>,
) -> Result<(Vec<ProductEntry>, Files), BuildError> {
    Ok((Vec::new(), Files::new()))
}

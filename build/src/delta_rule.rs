//! Plan and model → the kernels of the gated delta rule.

use crate::{BuildError, Files, product_dtypes};
use butterfly_ir::DeltaRule;
use butterfly_ir::manifest::DeltaRuleEntry;
use butterfly_ir::model::LinearShape;
use butterfly_ir::plan::Plan;

/// The delta rules that a model with such linear attention needs where a plan has kernels for `cuda:sm_90a`, sorted,
/// each once. Empty without linear attention, or with heads for which there are no kernels.
///
/// A config does not say in which order a GGUF file has the heads of v: a folder holds kernels for both orders.
pub fn wanted_delta_rules(plan: &Plan, linear: Option<&LinearShape>) -> Vec<DeltaRule> {
    let Some(linear) = linear else {
        return Vec::new();
    };
    let mut rules: Vec<DeltaRule> = product_dtypes(plan)
        .into_iter()
        .flat_map(|dtype| {
            let of = move |tiled| DeltaRule::of(dtype, &LinearShape { tiled, ..*linear });
            [false, true].into_iter().filter_map(of)
        })
        .collect();
    rules.sort_unstable();
    rules.dedup();
    rules
}

/// Makes the delta rules for `cuda:sm_90a` that have generated kernels; others run as portable kernels.
///
/// # Errors
/// [`BuildError::Kernel`] if NVRTC rejects a text.
#[cfg(feature = "emitters")]
pub fn delta_rules(
    wanted: impl IntoIterator<Item = DeltaRule>,
) -> Result<(Vec<DeltaRuleEntry>, Files), BuildError> {
    use crate::kernel::{HOPPER, beside_attention, file};
    let (mut entries, mut files) = (Vec::new(), Files::new());
    for rule in wanted {
        let Ok((rule, text)) = butterfly_codegen::delta_rule(rule) else {
            continue;
        };
        let name = format!(
            "delta-{}-k{}-v{}-t{}{}",
            rule.dtype.name(),
            rule.k_heads,
            rule.v_heads,
            rule.taps,
            if rule.tiled { "-tiled" } else { "" }
        );
        let made = beside_attention(&name, text)?;
        entries.push(DeltaRuleEntry {
            target: HOPPER,
            rule,
            files: made.iter().map(file).collect(),
        });
        files.extend(made);
    }
    Ok((entries, files))
}

/// Returns no kernels: this build has no emitters.
#[cfg(not(feature = "emitters"))]
pub fn delta_rules(
    _: impl IntoIterator<Item = DeltaRule>,
) -> Result<(Vec<DeltaRuleEntry>, Files), BuildError> {
    Ok((Vec::new(), Files::new()))
}

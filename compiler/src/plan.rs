//! Model and sparsity → the specifications of the kernels to compile.
//!
//! In:  a checked config and pattern. Out: one specification for each phase and element
//! type, no two equal. Lengths, batch, stage and query offset are not part of a specification:
//! they are passed at launch.

use crate::{form, resolve};
use butterfly_ir::model::{Form, ModelConfig};
use butterfly_ir::plan::{SwappedLayer, Variant};
use butterfly_ir::{Dtype, KernelSpec, Pattern, Phase, Rows, Score, Sparsity, Target};

/// The kernels in `dtype` for layers of a model that have the same pattern: prefill, then decode, each
/// in every form that a call may run.
pub fn lower(config: &ModelConfig, sparsity: &Sparsity, dtype: Dtype) -> Vec<KernelSpec> {
    let of = |phase| {
        let forms = form::all(&config.attention, phase, &sparsity.pattern).iter();
        forms.map(move |form| spec(config, sparsity, (phase, *form), dtype))
    };
    of(Phase::Prefill).chain(of(Phase::Decode)).collect()
}

/// The specification of one kernel.
pub fn spec(
    config: &ModelConfig,
    sparsity: &Sparsity,
    (phase, form): (Phase, Form),
    dtype: Dtype,
) -> KernelSpec {
    let shape = config.kernel_shape(form);
    KernelSpec {
        score: Score {
            softcap: config.softcap.is_some(),
            sinks: config.sinks,
        },
        role: phase.into(),
        head_dim: shape.head_dim,
        v_head_dim: shape.v_head_dim,
        group: shape.group,
        dtype,
        block: sparsity.block,
        rows: rows(&sparsity.pattern),
    }
}

/// How kernels get the rows of a pattern: in closed form where the pattern has one, else from a
/// table, which is made on the device where rows choose by content.
pub fn rows(pattern: &Pattern) -> Rows {
    if pattern.routing().is_some() {
        return Rows::Table;
    }
    resolve::closed_form(pattern).map_or(Rows::Table, Rows::ClosedForm)
}

/// The patterns of the layers, each once, in the order in which layers first have them.
pub fn variants(sparsity: &Sparsity, layers: &[SwappedLayer]) -> Vec<Variant> {
    let mut variants: Vec<Variant> = Vec::new();
    for layer in layers {
        let pattern = sparsity.pattern.of_layer(layer.layer);
        if variants.iter().all(|variant| variant.pattern != pattern) {
            let rows = rows(&pattern);
            variants.push(Variant { pattern, rows });
        }
    }
    variants
}

/// The element type in which `target` runs a model whose weights are of type `model`, unless the
/// user asks for another. By default, [`dtypes`] includes it.
pub fn dtype(target: Target, model: Dtype) -> Dtype {
    match target {
        Target::Cuda(_) | Target::Metal => model,
        // Vulkan and WebGPU have no bf16, and not all of their devices have f16. The CPU kernel
        // computes in f32, whatever type it reads.
        Target::Vulkan | Target::Webgpu | Target::Cpu => Dtype::F32,
    }
}

/// The element types to compile kernels for on `target`, sorted and each once.
///
/// These are the types in `asked` or, if that is empty, `model` and the type that [`dtype`]
/// chooses. Where the target has no bf16, f16 and f32 replace it.
pub fn dtypes(target: Target, asked: &[Dtype], model: Dtype) -> Vec<Dtype> {
    let default = [model, dtype(target, model)];
    let wanted = if asked.is_empty() { &default } else { asked };
    let made = wanted.iter().flat_map(|wanted| match target.has(*wanted) {
        true => vec![*wanted],
        false => vec![Dtype::F32, Dtype::F16],
    });
    let mut made: Vec<Dtype> = made.collect();
    made.sort_unstable();
    made.dedup();
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The type that runs by default is among those compiled by default.
    #[test]
    fn kernels_are_made_for_the_type_that_runs() {
        let targets = ["cuda:sm_90a", "vulkan", "webgpu", "metal", "cpu"];
        for target in targets.map(|target| target.parse::<Target>().expect("a target")) {
            for model in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let made = dtypes(target, &[], model);
                assert!(made.contains(&dtype(target, model)), "{target} {model:?}");
                assert!(!target.has(model) || made.contains(&model));
                assert!(made.iter().all(|made| target.has(*made)));
                assert!(made.is_sorted_by(|a, b| a < b));
            }
        }
        let asked = [Dtype::Bf16, Dtype::F32, Dtype::Bf16];
        assert_eq!(
            dtypes(Target::Cpu, &asked, Dtype::F16),
            [Dtype::F32, Dtype::Bf16]
        );
        assert_eq!(
            dtypes(Target::Vulkan, &asked[..1], Dtype::F32),
            [Dtype::F32, Dtype::F16]
        );
    }
}

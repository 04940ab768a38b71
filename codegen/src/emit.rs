//! KernelSpec × Target → Kernel: checks, expansion, printing.
//!
//! In:  any spec. Out: a kernel with all of its files, or an error that says what to ask for
//! instead. CubeCL's printers panic on features that they do not support, so `choice` refuses those
//! beforehand; a panic after it is a bug of this crate and becomes an error.

use crate::EmitError;
use crate::choice::{self, Blueprint};
use crate::portable::{self, Definition};
use butterfly_ir::{Dtype, Kernel, KernelSpec, Target};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

/// Extension and contents of each file, from the text to the form that is launched.
type Files = Vec<(String, Vec<u8>)>;

/// Held during an expansion, because CubeCL numbers variables with counters of the whole process.
static EXPANSION: Mutex<()> = Mutex::new(());

/// Emits the kernel of `spec` for `target`: [`write()`], then [`assemble`].
///
/// # Errors
/// Those of [`write()`] and [`assemble`].
pub fn emit(spec: &KernelSpec, target: Target) -> Result<Kernel, EmitError> {
    write(spec, target).and_then(assemble)
}

/// Writes the kernel of `spec` in the language of `target`: text and, for Vulkan, SPIR-V too.
///
/// The same arguments give the same bytes, on any thread and whatever was written before. NVRTC is
/// not used.
///
/// # Errors
/// [`EmitError::Limit`] and [`EmitError::Unsupported`] for specs that the target cannot run;
/// [`EmitError::NotHere`] for [`Target::Cpu`]; [`EmitError::NotBuilt`] without the cargo feature of
/// the target; [`EmitError::Internal`] for a bug.
pub fn write(spec: &KernelSpec, target: Target) -> Result<Kernel, EmitError> {
    let blueprint = choice::blueprint(spec, target)?;
    let geometry = blueprint.geometry(spec);
    let heading = geometry.heading();
    let files: Files = match target {
        Target::Cuda(_) => {
            #[cfg(feature = "cuda")]
            {
                let text = match &blueprint {
                    Blueprint::Hopper(blueprint) => blueprint.text(spec),
                    Blueprint::Portable { blueprint, .. } => {
                        print(spec, target, blueprint, crate::cuda::print)?
                    }
                };
                vec![("cu".to_string(), (heading + &text).into_bytes())]
            }
            #[cfg(not(feature = "cuda"))]
            return Err(not_built(target, "cuda"));
        }
        Target::Vulkan | Target::Webgpu => {
            #[cfg(feature = "wgpu")]
            {
                let printer = |definition| crate::wgpu::print(definition, target);
                let text = print(spec, target, blueprint.portable(), printer)?;
                crate::wgpu::files(heading + &text, target)?
            }
            #[cfg(not(feature = "wgpu"))]
            return Err(not_built(target, "wgpu"));
        }
        Target::Metal => {
            #[cfg(feature = "metal")]
            {
                let text = print(spec, target, blueprint.portable(), crate::metal::print)?;
                vec![("metal".to_string(), (heading + &text).into_bytes())]
            }
            #[cfg(not(feature = "metal"))]
            return Err(not_built(target, "metal"));
        }
        Target::Cpu => return Err(EmitError::NotHere(target)),
    };
    Ok(Kernel {
        spec: spec.clone(),
        target,
        entry: portable::ENTRY.to_string(),
        geometry,
        resources: None,
        files,
    })
}

/// Compiles the text of a kernel, where a compiler is installed: adds `ptx` and `cubin` to a CUDA
/// kernel if NVRTC is found. Kernels for other targets are returned unchanged.
///
/// # Errors
/// [`EmitError::Nvrtc`] if NVRTC refuses the text.
pub fn assemble(kernel: Kernel) -> Result<Kernel, EmitError> {
    match kernel.target {
        #[cfg(feature = "cuda")]
        Target::Cuda(sm) => crate::cuda::assemble(kernel, sm),
        #[cfg(not(feature = "cuda"))]
        Target::Cuda(_) => Ok(kernel),
        Target::Vulkan | Target::Webgpu | Target::Metal | Target::Cpu => Ok(kernel),
    }
}

/// The files of kernels beside attention: their text and, where NVRTC is found, `ptx` and `cubin`.
///
/// # Errors
/// [`EmitError::Nvrtc`] if NVRTC refuses the text.
#[cfg(feature = "cuda")]
pub fn assemble_text(text: String) -> Result<Vec<(String, Vec<u8>)>, EmitError> {
    let Target::Cuda(sm) = crate::hopper::TARGET else {
        return Ok(Vec::new());
    };
    let compiled = crate::cuda::compile(&text, sm)?;
    let mut files = vec![("cu".to_string(), text.into_bytes())];
    if let Some(compiled) = compiled {
        files.push(("ptx".to_string(), compiled.ptx));
        files.push(("cubin".to_string(), compiled.cubin));
    }
    Ok(files)
}

/// The matrix product of linear layers on Hopper: how it is launched, and its text in CUDA C++.
/// `None` for f32, which it does not take.
#[cfg(feature = "cuda")]
pub fn product(dtype: Dtype) -> Option<(butterfly_ir::Product, String)> {
    use crate::hopper::product;
    let makes = matches!(dtype, Dtype::F16 | Dtype::Bf16);
    makes.then(|| {
        let launched = product::product(dtype);
        let text = launched.heading() + &product::text(dtype);
        (launched, text)
    })
}

/// A kernel that scores blocks by content on Hopper: how it is launched, and its text in CUDA C++. Entry
/// point, threads and shared memory of `scorer` are filled in.
///
/// # Errors
/// [`ContractError`](butterfly_ir::ContractError) for the first other field that the kernel does not take.
#[cfg(feature = "cuda")]
pub fn scorer(
    scorer: butterfly_ir::Scorer,
) -> Result<(butterfly_ir::Scorer, String), butterfly_ir::ContractError> {
    use crate::hopper::route;
    let launched = route::launched(scorer);
    launched.check()?;
    let text = launched.heading() + &route::text(&launched);
    Ok((launched, text))
}

/// The kernels of the gated delta rule on Hopper: how they are launched, and their text in CUDA C++. The four stages
/// of `rule` are filled in.
///
/// # Errors
/// [`ContractError`](butterfly_ir::ContractError) for the first other field that the kernels do not take.
#[cfg(feature = "cuda")]
pub fn delta_rule(
    rule: butterfly_ir::DeltaRule,
) -> Result<(butterfly_ir::DeltaRule, String), butterfly_ir::ContractError> {
    use crate::hopper::delta;
    let launched = delta::launched(rule);
    launched.check()?;
    let text = launched.heading() + &delta::text(&launched);
    Ok((launched, text))
}

/// The kernel for products with experts on Hopper: how it is launched, and its text in CUDA C++. Entry point, threads
/// and shared memory of `grouped` are filled in.
///
/// # Errors
/// [`ContractError`](butterfly_ir::ContractError) for the first other field that the kernel does not take.
#[cfg(feature = "cuda")]
pub fn grouped(
    grouped: butterfly_ir::Grouped,
) -> Result<(butterfly_ir::Grouped, String), butterfly_ir::ContractError> {
    let launched = crate::hopper::grouped::launched(grouped);
    launched.check()?;
    let text = launched.heading() + &crate::hopper::grouped::text(&launched);
    Ok((launched, text))
}

#[cfg(not(all(feature = "cuda", feature = "wgpu", feature = "metal")))]
fn not_built(target: Target, feature: &'static str) -> EmitError {
    EmitError::NotBuilt { target, feature }
}

/// Expands and prints a portable kernel under the lock; a panic becomes an error.
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "metal"))]
fn print(
    spec: &KernelSpec,
    target: Target,
    blueprint: &portable::Blueprint,
    printer: impl Fn(Definition) -> Result<String, String>,
) -> Result<String, EmitError> {
    let _one_at_a_time = EXPANSION.lock().unwrap_or_else(PoisonError::into_inner);
    let internal = |message| EmitError::Internal { target, message };
    let printed = catch_unwind(AssertUnwindSafe(|| {
        let definition = portable::define(spec, blueprint);
        printer(definition).map(|text| crate::canonical::canonicalize(&text))
    }));
    match printed {
        Ok(text) => text.map_err(internal),
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                .unwrap_or_else(|| "a printer panicked".to_string());
            Err(internal(message))
        }
    }
}

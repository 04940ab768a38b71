//! KernelSpec × Target → Kernel: checks, expansion, printing.
//!
//! In:  any spec. Out: a kernel with all of its files, or an error that says what to ask for
//! instead. CubeCL's printers panic on features that they do not support, so `check` refuses those
//! beforehand; a panic after it is a bug of this crate and becomes an error.

use crate::EmitError;
use crate::portable::{self, Definition};
use butterfly_ir::{Dtype, Geometry, Kernel, KernelSpec, Target};
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
    check(spec, target)?;
    let (files, geometry): (Files, Geometry) = match target {
        Target::Cuda(_) => {
            #[cfg(feature = "cuda")]
            {
                let (text, geometry) = match hopper(spec, target) {
                    Ok(plan) => (plan.text(spec), plan.geometry()),
                    Err(_) => print(spec, target, crate::cuda::print)?,
                };
                let text = geometry.heading() + &text;
                (vec![("cu".to_string(), text.into_bytes())], geometry)
            }
            #[cfg(not(feature = "cuda"))]
            return Err(not_built(target, "cuda"));
        }
        Target::Vulkan | Target::Webgpu => {
            #[cfg(feature = "wgpu")]
            {
                let (text, geometry) = print(spec, target, |definition| {
                    crate::wgpu::print(definition, target)
                })?;
                let text = geometry.heading() + &text;
                (crate::wgpu::files(text, target)?, geometry)
            }
            #[cfg(not(feature = "wgpu"))]
            return Err(not_built(target, "wgpu"));
        }
        Target::Metal => {
            #[cfg(feature = "metal")]
            {
                let (text, geometry) = print(spec, target, crate::metal::print)?;
                let text = geometry.heading() + &text;
                (vec![("metal".to_string(), text.into_bytes())], geometry)
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

/// The launch geometry of the kernel that [`emit`] would make, without making it.
///
/// `target` must be able to run `spec`: [`choose`](crate::choose) checks that.
pub fn geometry(spec: &KernelSpec, target: Target) -> Geometry {
    #[cfg(feature = "cuda")]
    if let Ok(plan) = hopper(spec, target) {
        return plan.geometry();
    }
    portable::geometry(spec, target)
}

/// The numbers of a kernel with Hopper's own instructions, or the reason why the portable kernel
/// is emitted instead.
#[cfg(feature = "cuda")]
pub(crate) fn hopper(
    spec: &KernelSpec,
    target: Target,
) -> Result<crate::hopper::Blueprint, &'static str> {
    match target == crate::hopper::TARGET {
        true => crate::hopper::Blueprint::new(spec),
        false => Err("they are of sm_90a"),
    }
}

/// The files of the matrix product's kernel: its text and, where NVRTC is found, `ptx` and `cubin`.
///
/// # Errors
/// [`EmitError::Nvrtc`] if NVRTC refuses the text.
#[cfg(feature = "cuda")]
pub fn assemble_product(text: String) -> Result<Vec<(String, Vec<u8>)>, EmitError> {
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

#[cfg(not(all(feature = "cuda", feature = "wgpu", feature = "metal")))]
fn not_built(target: Target, feature: &'static str) -> EmitError {
    EmitError::NotBuilt { target, feature }
}

/// Refuses specs that cannot be emitted.
pub(crate) fn check(spec: &KernelSpec, target: Target) -> Result<(), EmitError> {
    let limit = |what, given: u32, ok: bool, limit| match ok {
        true => Ok(()),
        false => Err(EmitError::Limit {
            what,
            given: u64::from(given),
            limit,
        }),
    };
    let dim = |d: u32| d > 0 && d <= 576 && d.is_multiple_of(8);
    let dims = "a multiple of 8, at most 576";
    limit("head_dim", spec.head_dim, dim(spec.head_dim), dims)?;
    limit("v_head_dim", spec.v_head_dim, dim(spec.v_head_dim), dims)?;
    limit("group", spec.group, spec.group > 0, "at least 1")?;
    let block = (1..=1 << 24).contains(&spec.block);
    limit("block", spec.block, block, "between 1 and 16777216")?;
    if !portable::rows_fit(spec) {
        return Err(EmitError::Unsupported {
            target,
            what: "room in registers for more than 64 bands a row".to_string(),
            instead: "use rows from a table".to_string(),
        });
    }
    match (target, spec.dtype) {
        (Target::Vulkan | Target::Webgpu, Dtype::Bf16) => Err(EmitError::Unsupported {
            target,
            what: "bf16 arithmetic".to_string(),
            instead: "use f16 or f32".to_string(),
        }),
        (Target::Cuda(_) | Target::Metal, Dtype::Bf16)
        | (_, Dtype::F16 | Dtype::F32)
        | (Target::Cpu, Dtype::Bf16) => Ok(()),
    }
}

/// Expands and prints a portable kernel under the lock; a panic becomes an error.
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "metal"))]
fn print(
    spec: &KernelSpec,
    target: Target,
    printer: impl Fn(Definition) -> Result<String, String>,
) -> Result<(String, Geometry), EmitError> {
    let _one_at_a_time = EXPANSION.lock().unwrap_or_else(PoisonError::into_inner);
    let internal = |message| EmitError::Internal { target, message };
    let printed = catch_unwind(AssertUnwindSafe(|| {
        let definition = portable::define(spec, target);
        let geometry = definition.geometry;
        printer(definition).map(|text| (crate::canonical::canonicalize(&text), geometry))
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

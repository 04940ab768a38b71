//! Makes one kernel and its entry in a manifest.
//!
//! In:  a specification and a target. Out: the kernel's files, and the entry that lists them.

use crate::BuildError;
use butterfly_ir::kernel::NATIVE_ENTRY;
use butterfly_ir::manifest::{self, FileEntry, KernelEntry};
use butterfly_ir::{Geometry, Kernel, KernelSpec, Role, Target, key};

/// Files as pairs of a path relative to the artifact folder and the content.
pub type Files = Vec<(String, Vec<u8>)>;

/// Makes one kernel: [`write()`], [`assemble`], [`describe`].
///
/// # Errors
/// [`BuildError::Kernel`] if the kernel cannot be made.
pub fn make(spec: &KernelSpec, target: Target) -> Result<(KernelEntry, Files), BuildError> {
    write(spec, target).and_then(assemble).map(describe)
}

/// Writes a kernel in the language of its target.
///
/// # Errors
/// [`BuildError::Kernel`] if the emitter rejects the specification, or if this build has no
/// emitters for the target.
pub fn write(spec: &KernelSpec, target: Target) -> Result<Kernel, BuildError> {
    match target {
        Target::Cpu => native(spec),
        Target::Cuda(_) | Target::Vulkan | Target::Webgpu | Target::Metal => emit(spec, target),
    }
}

/// The entry of a file in a manifest.
pub(crate) fn file((path, bytes): &(String, Vec<u8>)) -> FileEntry {
    FileEntry {
        path: path.clone(),
        bytes: bytes.len() as u64,
        blake3: blake3::hash(bytes).to_hex().to_string(),
    }
}

/// Compiles a kernel beside attention for [`HOPPER`]; its files are called `name`.
///
/// # Errors
/// [`BuildError::Kernel`] if NVRTC rejects the text.
#[cfg(feature = "emitters")]
pub(crate) fn beside_attention(name: &str, text: String) -> Result<Files, BuildError> {
    let made = butterfly_codegen::assemble_text(text);
    let made = made.map_err(|error| BuildError::Kernel(error.to_string()))?;
    let path = |extension: &str| format!("kernels/{name}.{extension}");
    let files = made.into_iter();
    Ok(files
        .map(|(extension, bytes)| (path(&extension), bytes))
        .collect())
}

/// Where kernels beside attention run.
#[cfg(feature = "emitters")]
pub(crate) const HOPPER: Target = Target::Cuda(butterfly_ir::Sm {
    version: 90,
    arch_specific: true,
});

/// The entry of a kernel in a manifest, and its files.
pub fn describe(kernel: Kernel) -> (KernelEntry, Files) {
    let (spec, target) = (kernel.spec, kernel.target);
    let key = key::of(&spec, target);
    let path = |extension: &str| format!("kernels/{key}.{extension}");
    let files: Files = kernel
        .files
        .into_iter()
        .map(|(extension, bytes)| (path(&extension), bytes))
        .collect();
    let entry = KernelEntry {
        grid: manifest::grid_formulas(&spec, &kernel.geometry),
        alone: manifest::alone(&kernel.entry, &kernel.geometry),
        spread: manifest::spread(&kernel.entry, &spec, &kernel.geometry),
        arguments: manifest::arguments(&spec, &kernel.geometry),
        files: files.iter().map(file).collect(),
        spec,
        entry: kernel.entry,
        geometry: kernel.geometry,
        registers: kernel.resources.map(|r| r.registers),
        spills: kernel.resources.map(|r| r.spill_store_bytes),
        key,
        target,
    };
    (entry, files)
}

/// Adds PTX and a cubin to the files of a CUDA kernel if NVRTC is found; returns kernels for other
/// targets unchanged.
///
/// # Errors
/// [`BuildError::Kernel`] if NVRTC rejects the kernel's text.
#[cfg(feature = "emitters")]
pub fn assemble(kernel: Kernel) -> Result<Kernel, BuildError> {
    butterfly_codegen::assemble(kernel).map_err(|error| BuildError::Kernel(error.to_string()))
}

/// Returns the kernel unchanged: this build has no emitters.
#[cfg(not(feature = "emitters"))]
pub fn assemble(kernel: Kernel) -> Result<Kernel, BuildError> {
    Ok(kernel)
}

#[cfg(feature = "emitters")]
fn emit(spec: &KernelSpec, target: Target) -> Result<Kernel, BuildError> {
    butterfly_codegen::write(spec, target).map_err(|error| BuildError::Kernel(error.to_string()))
}

#[cfg(not(feature = "emitters"))]
fn emit(_: &KernelSpec, target: Target) -> Result<Kernel, BuildError> {
    Err(BuildError::Kernel(format!(
        "this build makes no kernels for {target}: build it with `--features emitters`, or give --target cpu"
    )))
}

/// The geometry of the kernel that [`make`] makes, and the reason why this kernel was chosen.
///
/// # Errors
/// As [`write()`].
pub fn choice(spec: &KernelSpec, target: Target) -> Result<(Geometry, String), BuildError> {
    match target {
        Target::Cpu => Ok((geometry(spec), NATIVE.into())),
        Target::Cuda(_) | Target::Vulkan | Target::Webgpu | Target::Metal => {
            #[cfg(feature = "emitters")]
            {
                let choice = butterfly_codegen::choose(spec, target)
                    .map_err(|error| BuildError::Kernel(error.to_string()))?;
                Ok((choice.geometry, choice.reason))
            }
            #[cfg(not(feature = "emitters"))]
            emit(spec, target).map(|kernel| (kernel.geometry, String::new()))
        }
    }
}

const NATIVE: &str = "native tile kernel: the lanes of a vector are queries, of all heads of a group; f16 and bf16 are widened to f32";

/// The native kernel chooses its tiles when it runs; for a manifest, they are a block of queries
/// (one query in decode) and a block of keys.
fn geometry(spec: &KernelSpec) -> Geometry {
    let q_tile = match spec.role {
        Role::Prefill => spec.block,
        Role::Decode => 1,
    };
    Geometry::new([1, 1, 1], [q_tile, spec.block], 0)
}

/// The native kernel needs only the specification, so its one file is that, as JSON.
fn native(spec: &KernelSpec) -> Result<Kernel, BuildError> {
    let text = serde_json::to_string_pretty(spec)
        .map_err(|error| BuildError::Kernel(error.to_string()))?;
    Ok(Kernel {
        spec: spec.clone(),
        target: Target::Cpu,
        entry: NATIVE_ENTRY.into(),
        geometry: geometry(spec),
        resources: None,
        files: vec![("json".into(), (text + "\n").into_bytes())],
    })
}

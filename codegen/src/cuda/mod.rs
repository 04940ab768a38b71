//! Definition → CUDA C++, and with NVRTC → PTX and cubin.

pub mod nvrtc;
pub mod ptx;
mod resources;

use crate::EmitError;
use crate::portable::Definition;
use butterfly_ir::{Kernel, Sm, Target};
use cubecl_core::{Compiler, ExecutionMode, ir::AddressType};
use cubecl_cpp::cuda::{CudaDialect, mma::CudaWmmaCompiler};
use cubecl_cpp::shared::{CompilationOptions, CppCompiler, Dialect, SharedMemory};

/// Prints a definition as CUDA C++.
pub(crate) fn print(definition: Definition) -> Result<String, String> {
    let mut options = CompilationOptions::default();
    options.supports_features.fast_math = true;
    let address = AddressType::U32.unsigned_type();
    let threads = definition.geometry.threads.iter().product();
    let mut kernel = CppCompiler::<CudaDialect<CudaWmmaCompiler>>::default()
        .compile(
            definition.kernel,
            &options,
            ExecutionMode::Unchecked,
            address,
        )
        .map_err(|error| error.to_string())?;
    // CubeCL lays shared memory out in hash-map order: do it again, in a fixed order.
    let shared = &mut kernel.body.shared_memories;
    shared.sort_by_key(index);
    let mut end = 0usize;
    for memory in shared.iter_mut() {
        let size = memory.size();
        let SharedMemory::Array { align, offset, .. } = memory else {
            return Err("a shared value".to_string());
        };
        *offset = end.next_multiple_of(*align);
        end = *offset + size;
    }
    if end != definition.geometry.shared_bytes as usize {
        let planned = definition.geometry.shared_bytes;
        return Err(format!("{end} bytes of shared memory, {planned} planned"));
    }
    // Drop CubeCL's buffer of lengths, which no kernel reads.
    kernel.flags.has_info = false;
    kernel.body.info_by_ptr = false;
    kernel.info = Default::default();
    // NVRTC declares by itself whatever the kernels use of this header.
    let text = kernel
        .to_string()
        .replacen("#include <cuda_runtime.h>\n", "", 1);
    match definition.one_per_sm {
        true => bound_registers(&text, threads),
        false => Ok(text),
    }
}

/// Lets one workgroup use all registers of an SM. Without the second launch bound, the compiler
/// leaves room for two workgroups, and then delays loads or spills registers.
fn bound_registers(text: &str, threads: u32) -> Result<String, String> {
    let bounds = format!("__launch_bounds__({threads})");
    match text.contains(&bounds) {
        true => Ok(text.replacen(&bounds, &format!("__launch_bounds__({threads}, 1)"), 1)),
        false => Err(format!("no {bounds} in the text")),
    }
}

fn index<D: Dialect>(memory: &SharedMemory<D>) -> u32 {
    match memory {
        SharedMemory::Array { index, .. } | SharedMemory::Value { index, .. } => *index,
    }
}

/// Compiles a text; `None` where NVRTC or the headers that the text includes were not found.
pub(crate) fn compile(text: &str, sm: Sm) -> Result<Option<nvrtc::Compiled>, EmitError> {
    let nvrtc = nvrtc::find().nvrtc.as_ref();
    let Some(nvrtc) = nvrtc.filter(|nvrtc| nvrtc.has_headers(text)) else {
        return Ok(None);
    };
    let failed = |log| EmitError::Nvrtc {
        target: Target::Cuda(sm),
        version: format!("{}.{}", nvrtc.version.0, nvrtc.version.1),
        log,
    };
    nvrtc
        .compile(text, &sm.to_string())
        .map_err(failed)
        .map(Some)
}

/// Compiles a kernel's text, and adds PTX, cubin and resources. Without NVRTC, returns the kernel
/// as it is.
pub(crate) fn assemble(mut kernel: Kernel, sm: Sm) -> Result<Kernel, EmitError> {
    let Some((_, text)) = kernel.files.first() else {
        return Ok(kernel);
    };
    let Some(compiled) = compile(&String::from_utf8_lossy(text), sm)? else {
        return Ok(kernel);
    };
    kernel.resources = compiled.resources;
    kernel.files.push(("ptx".to_string(), compiled.ptx));
    kernel.files.push(("cubin".to_string(), compiled.cubin));
    Ok(kernel)
}

//! Where attention runs, and with which kernel.
//!
//! With artifacts no compiler is called: the kernel comes from the folder or the command
//! fails. Without, the kernel is emitted for this one run.

use crate::args::DeviceArg;
use crate::compile;
use crate::failure::Failure;
use crate::tensors::{self, Tensor};
use butterfly_compiler::plan;
use butterfly_cpu::Problem;
use butterfly_ir::manifest::KernelEntry;
use butterfly_ir::{Context, KernelSpec, LaunchScalars, Phase, Rows, Sm, Sparsity, Target, rows};
use butterfly_runtime::artifacts::Artifacts;
use butterfly_runtime::{Arguments, Device, Loaded, adapters, launch};
use std::time::Instant;

/// One attention call, checked.
pub(crate) struct Call<'a> {
    pub(crate) sparsity: &'a Sparsity,
    pub(crate) context: Context,
    pub(crate) q: &'a Tensor,
    pub(crate) k: &'a Tensor,
    pub(crate) v: &'a Tensor,
    pub(crate) q_offset: usize,
    pub(crate) scale: f32,
    pub(crate) threads: Option<usize>,
}

/// What came back.
pub(crate) struct Outcome {
    pub(crate) device: String,
    pub(crate) kernel: Option<String>,
    pub(crate) o: Vec<f32>,
    pub(crate) lse: Vec<f32>,
    pub(crate) milliseconds: f64,
    pub(crate) first_milliseconds: f64,
}

/// Runs a call on the device that was asked for; `auto` is the first GPU there is, else
/// the CPU.
pub(crate) fn attend(
    call: &Call,
    device: DeviceArg,
    artifacts: Option<&Artifacts>,
) -> Result<Outcome, Failure> {
    let gpu = match device {
        DeviceArg::Cpu => None,
        DeviceArg::Cuda => Some(Device::Cuda),
        DeviceArg::Vulkan => Some(Device::Vulkan),
        DeviceArg::Webgpu => Some(Device::Webgpu),
        DeviceArg::Metal => {
            return Err(Failure::Bad("--device metal: launching on Metal is not supported yet; the kernels are in the artifacts".into()));
        }
        DeviceArg::Auto => adapters()
            .into_iter()
            .find(|a| a.found.is_ok() && a.device == Device::Cuda)
            .map(|a| a.device),
    };
    match gpu {
        None => native(call, artifacts),
        Some(device) => on_gpu(call, device, artifacts),
    }
}

fn spec(call: &Call) -> KernelSpec {
    let ([_, q_heads, q_len, head_dim], [_, kv_heads, _, v_head_dim]) =
        (call.q.shape, call.v.shape);
    KernelSpec {
        // One workgroup a query pays while there are few of them.
        phase: if q_len <= 4 {
            Phase::Decode
        } else {
            Phase::Prefill
        },
        head_dim: head_dim as u32,
        v_head_dim: v_head_dim as u32,
        group: (q_heads / kv_heads) as u32,
        dtype: call.q.dtype,
        block: call.sparsity.block,
        rows: plan::rows(call.sparsity),
    }
}

fn native(call: &Call, artifacts: Option<&Artifacts>) -> Result<Outcome, Failure> {
    let kernel = match artifacts {
        Some(artifacts) => {
            let entry = artifacts
                .select(&spec(call), Target::Cpu)
                .map_err(Failure::bad)?;
            artifacts.image(entry).map_err(Failure::bad)?;
            Some(entry.key.clone())
        }
        None => None,
    };
    let ([batch, q_heads, q_len, head_dim], [_, kv_heads, kv_len, v_head_dim]) =
        (call.q.shape, call.v.shape);
    let table = rows::table(&call.sparsity.pattern, &call.context);
    let problem = Problem {
        batch,
        q_heads,
        kv_heads,
        q_len,
        kv_len,
        head_dim,
        v_head_dim,
        q_offset: call.q_offset,
        block: call.sparsity.block as usize,
        scale: call.scale,
        q: &call.q.values,
        k: &call.k.values,
        v: &call.v.values,
        rows: &table,
    };
    let started = Instant::now();
    let result = butterfly_cpu::attend(&problem, call.threads).map_err(Failure::bad)?;
    let milliseconds = started.elapsed().as_secs_f64() * 1e3;
    let device = "cpu".to_string();
    Ok(Outcome {
        device,
        kernel,
        o: result.o,
        lse: result.lse,
        milliseconds,
        first_milliseconds: milliseconds,
    })
}

fn on_gpu(call: &Call, device: Device, artifacts: Option<&Artifacts>) -> Result<Outcome, Failure> {
    let spec = spec(call);
    let (entry, image) = match artifacts {
        Some(artifacts) => {
            let entry = artifacts
                .select(&spec, stored_target(device, artifacts))
                .map_err(Failure::bad)?;
            (entry.clone(), artifacts.image(entry).map_err(Failure::bad)?)
        }
        None => emitted(&spec, device)?,
    };
    let table =
        (spec.rows == Rows::Table).then(|| rows::table(&call.sparsity.pattern, &call.context));
    let [q, k, v] =
        [call.q, call.k, call.v].map(|tensor| tensors::encode(&tensor.values, tensor.dtype));
    let kernel = Loaded {
        key: &entry.key,
        entry: &entry.entry,
        spec: &spec,
        geometry: entry.geometry,
        image: &image,
    };
    let arguments = Arguments {
        scalars: scalars(call),
        batch: call.q.shape[0] as u32,
        q: &q,
        k: &k,
        v: &v,
        rows: table.as_ref(),
    };
    let output = launch(device, &kernel, &arguments).map_err(Failure::bad)?;
    Ok(Outcome {
        device: device.name().to_string(),
        kernel: Some(entry.key),
        o: tensors::floats(&output.o, call.q.dtype),
        lse: output.lse,
        milliseconds: output.milliseconds,
        first_milliseconds: output.first_launch_milliseconds,
    })
}

/// The target whose kernels a device runs; for CUDA the newest that the folder holds.
fn stored_target(device: Device, artifacts: &Artifacts) -> Target {
    let newest = Target::Cuda(Sm {
        version: 90,
        arch_specific: true,
    });
    match device {
        Device::Vulkan => Target::Vulkan,
        Device::Webgpu => Target::Webgpu,
        Device::Cuda => {
            let targets = artifacts
                .manifest
                .kernels
                .iter()
                .map(|kernel| kernel.target);
            targets
                .filter(|target| matches!(target, Target::Cuda(_)))
                .max()
                .unwrap_or(newest)
        }
    }
}

/// Makes the kernel for this one run.
fn emitted(spec: &KernelSpec, device: Device) -> Result<(KernelEntry, Vec<u8>), Failure> {
    let (target, form) = match device {
        Device::Vulkan => (Target::Vulkan, "spv"),
        Device::Webgpu => (Target::Webgpu, "wgsl"),
        Device::Cuda => (
            Target::Cuda(Sm {
                version: 90,
                arch_specific: true,
            }),
            "cubin",
        ),
    };
    let (entry, mut files) = compile::emit(spec, target)?;
    match files.pop() {
        Some((path, image)) if path.ends_with(form) => Ok((entry, image)),
        _ => Err(Failure::Bad(format!(
            "no NVRTC to compile the kernel with; install it, or give --artifacts that hold {target} kernels"
        ))),
    }
}

fn scalars(call: &Call) -> LaunchScalars {
    let strides = |shape: [usize; 4]| {
        let [_, heads, tokens, dim] = shape.map(|n| n as u32);
        [heads * tokens * dim, tokens * dim, dim]
    };
    let ([batch, q_heads, q_len, _], [_, kv_heads, kv_len, v_head_dim]) =
        (call.q.shape, call.v.shape);
    LaunchScalars {
        q_len: q_len as u32,
        kv_len: kv_len as u32,
        q_offset: call.q_offset as u32,
        kv_heads: kv_heads as u32,
        blocks: call.context.blocks(),
        index: call.context.index,
        scale_bits: call.scale.to_bits(),
        q_strides: strides(call.q.shape),
        k_strides: strides(call.k.shape),
        v_strides: strides(call.v.shape),
        o_strides: strides([batch, q_heads, q_len, v_head_dim]),
    }
}

/// Whether a folder was made for the pattern that is asked for.
pub(crate) fn check_pattern(artifacts: &Artifacts, sparsity: &Sparsity) -> Result<(), Failure> {
    let made = &artifacts.manifest.sparsity;
    if (made.block, &made.pattern) == (sparsity.block, &sparsity.pattern) {
        return Ok(());
    }
    Err(Failure::Bad(format!(
        "{}: was compiled for the pattern\n{}\nnot for\n{}\ngive the same --pattern, or compile again",
        artifacts.dir().display(),
        artifacts.manifest.pattern,
        sparsity
    )))
}

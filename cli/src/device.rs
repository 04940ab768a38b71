//! Where attention runs, and with which kernel.
//!
//! With artifacts no compiler is called: the kernel comes from the folder or the command
//! fails. Without, the kernel is emitted for this one run.

use crate::args::DeviceArg;
use crate::failure::Failure;
use crate::kernel;
use butterfly_ir::manifest::KernelEntry;
use butterfly_ir::{KernelSpec, Sm, Sparsity, Target};
use butterfly_runtime::artifacts::Artifacts;
use butterfly_runtime::{Device, Found, adapters};

/// A device, and the kernel that it will run.
pub(crate) struct Chosen {
    pub(crate) device: Runner,
    /// As the driver or the processor calls itself.
    pub(crate) name: String,
    pub(crate) spec: KernelSpec,
    pub(crate) kernel: Option<(KernelEntry, Vec<u8>)>,
}

/// What executes a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runner {
    Cpu,
    Gpu(Device),
}

impl Runner {
    /// The name in flags and JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu(device) => device.name(),
        }
    }
}

/// What to run: a specification, or whatever kernel a folder has for a target.
pub(crate) type Wanted<'a> = &'a dyn Fn(Target) -> Result<KernelSpec, Failure>;

/// Chooses a device and a kernel. `auto` is the first GPU that is there and for which
/// there is a kernel, else the CPU; a program that acts as a GPU is taken only by name.
pub(crate) fn choose(
    asked: DeviceArg,
    wanted: Wanted<'_>,
    artifacts: Option<&Artifacts>,
) -> Result<Chosen, Failure> {
    let device = match asked {
        DeviceArg::Cpu => return cpu(wanted, artifacts),
        DeviceArg::Cuda => Device::Cuda,
        DeviceArg::Vulkan => Device::Vulkan,
        DeviceArg::Webgpu => Device::Webgpu,
        DeviceArg::Metal => {
            return Err(Failure::Bad("--device metal: launching on Metal is not supported yet; the kernels are in the artifacts".into()));
        }
        DeviceArg::Auto => {
            for adapter in adapters() {
                let Ok(found) = adapter.found.as_ref().map_err(|_| ()) else {
                    continue;
                };
                if found.software {
                    continue;
                }
                match gpu(adapter.device, found, wanted, artifacts) {
                    Ok(chosen) => return Ok(chosen),
                    Err(Failure::Bad(reason) | Failure::Check(reason)) => {
                        let (device, name) = (adapter.device, &found.name);
                        eprintln!("note: {name} is there, but not used for {device}: {reason}");
                    }
                }
            }
            return cpu(wanted, artifacts);
        }
    };
    let mut adapters = adapters().into_iter();
    let adapter = adapters.find(|adapter| adapter.device == device);
    match adapter.map(|adapter| adapter.found) {
        Some(Ok(found)) => gpu(device, &found, wanted, artifacts),
        Some(Err(reason)) => Err(Failure::Bad(format!(
            "--device {device}: {reason}; `butterfly doctor` lists what is here"
        ))),
        None => Err(Failure::Bad(format!("--device {device}: not looked for"))),
    }
}

fn cpu(wanted: Wanted<'_>, artifacts: Option<&Artifacts>) -> Result<Chosen, Failure> {
    let spec = wanted(Target::Cpu)?;
    let kernel = artifacts.map(|artifacts| stored(artifacts, &spec, Target::Cpu));
    Ok(Chosen {
        device: Runner::Cpu,
        name: format!("{:?}", butterfly_cpu::Isa::best()),
        spec,
        kernel: kernel.transpose()?,
    })
}

fn gpu(
    device: Device,
    found: &Found,
    wanted: Wanted<'_>,
    artifacts: Option<&Artifacts>,
) -> Result<Chosen, Failure> {
    let target = match artifacts {
        Some(artifacts) => stored_target(device, found, artifacts)?,
        None => own_target(device, found)?,
    };
    let spec = wanted(target)?;
    let kernel = match artifacts {
        Some(artifacts) => stored(artifacts, &spec, target)?,
        None => emitted(&spec, target)?,
    };
    Ok(Chosen {
        device: Runner::Gpu(device),
        name: found.name.clone(),
        spec,
        kernel: Some(kernel),
    })
}

/// The target that suits a device best.
fn own_target(device: Device, found: &Found) -> Result<Target, Failure> {
    Ok(match device {
        Device::Vulkan => Target::Vulkan,
        Device::Webgpu => Target::Webgpu,
        Device::Cuda => Target::Cuda(capability(found)?),
    })
}

fn capability(found: &Found) -> Result<Sm, Failure> {
    let unknown = || Failure::Bad(format!("{}: no compute capability", found.name));
    found.sm.ok_or_else(unknown)
}

/// The target of a folder whose kernels a device runs; for CUDA the newest of those that
/// its architecture executes.
fn stored_target(device: Device, found: &Found, artifacts: &Artifacts) -> Result<Target, Failure> {
    if device != Device::Cuda {
        return own_target(device, found);
    }
    let own = capability(found)?;
    let kernels = artifacts.manifest.kernels.iter();
    let mut there: Vec<Sm> = kernels
        .filter_map(|kernel| match kernel.target {
            Target::Cuda(sm) => Some(sm),
            Target::Vulkan | Target::Webgpu | Target::Metal | Target::Cpu => None,
        })
        .collect();
    there.sort_unstable();
    there.dedup();
    match there.iter().rev().find(|sm| runs(own, **sm)) {
        Some(sm) => Ok(Target::Cuda(*sm)),
        None => Err(Failure::Bad(format!(
            "{}: no kernels for {own} ({}) among {there:?}; compile again with --target cuda:{own}",
            artifacts.dir().display(),
            found.name,
            there = there.iter().map(Sm::to_string).collect::<Vec<_>>(),
        ))),
    }
}

/// Whether a device of capability `own` executes a cubin made for `made`: the same major
/// version, and no later minor one; with the suffix, exactly this architecture.
fn runs(own: Sm, made: Sm) -> bool {
    match made.arch_specific {
        true => made.version == own.version,
        false => made.version / 10 == own.version / 10 && made.version <= own.version,
    }
}

fn stored(
    artifacts: &Artifacts,
    spec: &KernelSpec,
    target: Target,
) -> Result<(KernelEntry, Vec<u8>), Failure> {
    let entry = artifacts.select(spec, target).map_err(Failure::bad)?;
    let image = artifacts.image(entry).map_err(Failure::bad)?;
    Ok((entry.clone(), image))
}

/// Makes the kernel for this one run.
fn emitted(spec: &KernelSpec, target: Target) -> Result<(KernelEntry, Vec<u8>), Failure> {
    let form = match target {
        Target::Vulkan => ".spv",
        Target::Webgpu => ".wgsl",
        Target::Cuda(_) => ".cubin",
        Target::Metal => ".metal",
        Target::Cpu => ".json",
    };
    let (entry, mut files) = kernel::make(spec, target)?;
    match files.pop() {
        Some((path, image)) if path.ends_with(form) => Ok((entry, image)),
        _ => Err(Failure::Bad(format!(
            "no NVRTC to compile the kernel with; install it, or give --artifacts that hold {target} kernels"
        ))),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cubins_run_on_their_own_generation() {
        let sm = |text: &str| match format!("cuda:{text}").parse() {
            Ok(Target::Cuda(sm)) => sm,
            other => panic!("{other:?}"),
        };
        for (own, made, yes) in [
            ("sm_90a", "sm_90a", true),
            ("sm_90a", "sm_90", true),
            ("sm_90a", "sm_80", false),
            ("sm_86", "sm_80", true),
            ("sm_80", "sm_86", false),
            ("sm_100a", "sm_90a", false),
        ] {
            assert_eq!(runs(sm(own), sm(made)), yes, "{made} on {own}");
        }
    }
}

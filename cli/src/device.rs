//! Where attention runs, and with which kernel.
//!
//! With artifacts, no compiler is called: if the folder does not have the kernel, the command
//! fails. Without artifacts, the kernel is emitted for this run only.

use crate::args::DeviceArg;
use crate::failure::Failure;
use crate::{kernel, output};
use butterfly_compiler::{form, plan};
use butterfly_ir::manifest::KernelEntry;
use butterfly_ir::model::ModelConfig;
use butterfly_ir::{Dtype, KernelSpec, Phase, Sm, Sparsity, Target};
use butterfly_runtime::artifacts::{ArtifactError, Artifacts};
use butterfly_runtime::{Device, Found, adapters, find};
use std::path::Path;

/// A device, and the kernel that it will run.
pub(crate) struct Chosen {
    pub(crate) device: Runner,
    /// Name of the device, as its driver reports it; of the CPU, its instruction set.
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

/// The specification of the kernel to run, for a target.
pub(crate) type Wanted<'a> = &'a dyn Fn(Target) -> Result<KernelSpec, Failure>;

/// Chooses a device and a kernel. `auto` takes the first GPU that is present and has a kernel, else
/// the CPU; a software implementation of a GPU is taken only by name.
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
                    Err(failure) => note_passed_over(adapter.device, &found.name, &failure),
                }
            }
            return cpu(wanted, artifacts);
        }
    };
    match find(device) {
        Ok(found) => gpu(device, &found, wanted, artifacts),
        Err(reason) => Err(Failure::Bad(format!(
            "--device {device}: {reason}; `butterfly doctor` lists what is here"
        ))),
    }
}

fn cpu(wanted: Wanted<'_>, artifacts: Option<&Artifacts>) -> Result<Chosen, Failure> {
    let spec = wanted(Target::Cpu)?;
    let kernel = artifacts.map(|artifacts| stored(artifacts, &spec, Target::Cpu, None));
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
        Some(artifacts) => artifacts.target_for(device, found.sm),
        None => device.target(found.sm),
    };
    let target = target.map_err(|error| Failure::Bad(format!("{}: {error}", found.name)))?;
    let spec = wanted(target)?;
    let kernel = match artifacts {
        Some(artifacts) => stored(artifacts, &spec, target, found.sm)?,
        None => emitted(&spec, target)?,
    };
    Ok(Chosen {
        device: Runner::Gpu(device),
        name: found.name.clone(),
        spec,
        kernel: Some(kernel),
    })
}

fn stored(
    artifacts: &Artifacts,
    spec: &KernelSpec,
    target: Target,
    sm: Option<Sm>,
) -> Result<(KernelEntry, Vec<u8>), Failure> {
    let entry = artifacts.select(spec, target).map_err(Failure::bad)?;
    let image = artifacts.image_for(entry, sm).map_err(Failure::bad)?;
    Ok((entry.clone(), image))
}

/// Makes the kernel for this run only.
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

/// Notes why `auto` does not take a device that is present.
pub(crate) fn note_passed_over(device: Device, name: &str, failure: &Failure) {
    let reason = match failure {
        Failure::Bad(reason) | Failure::Check(reason) => reason,
        Failure::Interrupted => return,
    };
    output::note(format_args!(
        "note: {name} is there, but not used for {device}: {reason}"
    ));
}

/// The element type to run in on `target`, for a model whose own type is `model`: the one that is
/// asked for, else the one that `compile` makes kernels in by default. If the artifacts have no
/// kernels in that default, it is one that they have, and a note says so.
pub(crate) fn dtype(
    asked: Option<Dtype>,
    model: Dtype,
    target: Target,
    artifacts: Option<&Artifacts>,
) -> Dtype {
    let default = plan::dtype(target, model);
    let held = match (asked, artifacts) {
        (Some(asked), _) => return asked,
        (None, None) => return default,
        (None, Some(artifacts)) => artifacts.dtypes(target),
    };
    let instead = held.iter().find(|held| **held == model).or(held.first());
    match instead {
        Some(instead) if !held.contains(&default) => {
            output::note(format_args!(
                "note: the artifacts have no {} kernels for {target}; running in {}",
                default.name(),
                instead.name()
            ));
            *instead
        }
        _ => default,
    }
}

/// Checks that a folder has the kernels of a model for a target and element type. It looks only for
/// those of the pattern: a folder that has these also has those of layers that keep their
/// attention.
pub(crate) fn check_model(
    artifacts: &Artifacts,
    config: &ModelConfig,
    path: &Path,
    (target, dtype): (Target, Dtype),
) -> Result<(), Failure> {
    let manifest = &artifacts.manifest;
    let variants = manifest.variants.iter();
    let wanted = variants.flat_map(|variant| {
        let forms = [Phase::Prefill, Phase::Decode].map(|phase| {
            let forms = form::all(&config.attention, phase, &variant.pattern).iter();
            forms.map(move |form| (&variant.rows, (phase, *form)))
        });
        forms.into_iter().flatten()
    });
    for (rows, kernel) in wanted {
        let spec = KernelSpec {
            rows: rows.clone(),
            ..plan::spec(config, &manifest.sparsity, kernel, dtype)
        };
        artifacts
            .select(&spec, target)
            .map_err(|error| match error {
                ArtifactError::OtherModel {
                    dir,
                    made_for,
                    wanted,
                    way_out,
                } => Failure::bad(ArtifactError::OtherModel {
                    dir,
                    made_for,
                    wanted: format!("{} ({}), {wanted}", path.display(), config.family.name()),
                    way_out,
                }),
                other => Failure::bad(other),
            })?;
    }
    let (made_for, own) = (&artifacts.manifest.config.model_type, config.family.name());
    if made_for != own {
        output::note(format_args!(
            "note: {} was compiled for {made_for}: where its kernels fit this model ({own}), what was proved of its layers does not hold for it",
            artifacts.dir().display()
        ));
    }
    Ok(())
}

/// Stops Mesa's device-selection layer for Vulkan from complaining on stderr that `XDG_RUNTIME_DIR`
/// is not set, as it is without a login session. There is then no desktop whose device the layer
/// could ask for. No other message of a driver is suppressed.
pub(crate) fn quiet_loader() {
    let set = std::env::var_os("XDG_RUNTIME_DIR");
    if set.is_none_or(|dir| !Path::new(&dir).is_absolute()) {
        // SAFETY: no other thread has been started yet.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", "/nonexistent") };
    }
}

/// Checks that a folder was compiled for the pattern that is asked for.
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

//! Vulkan (SPIR-V) and WebGPU (WGSL) through CubeCL's wgpu runtime.
//!
//! Launches from host memory use a device that is opened here, with one wgpu buffer for each
//! allocation. On the servers of other code, several arguments may be parts of one wgpu buffer,
//! which allows only one kind of access; so the WGSL of our kernels declares all buffers
//! read-write.

use super::bind::{Buffers, Map};
use super::ready::{Code, Image};
use super::shared::Launches;
use super::{Device, Found, LaunchError, Output, Ready, run};
use butterfly_ir::geometry::{Entry, Fitted};
use butterfly_ir::{Dtype, Geometry};
use cubecl_common::future::block_on;
use cubecl_core::ir::{AddressType, DeviceProperties, StorageType};
use cubecl_core::{Compiler, MemoryConfiguration, Runtime};
use cubecl_runtime::client::ComputeClient;
use cubecl_runtime::compiler::{CompilationError, CubeTask};
use cubecl_runtime::id::KernelId;
use cubecl_runtime::kernel::{CompiledKernel, KernelMetadata, Visibility};
use cubecl_runtime::server::{CubeDim, ExecutionMode, Handle, TensorMapBinding};
use cubecl_spirv::SpirvKernel;
use cubecl_wgpu::{AutoCompiler, AutoRepresentation, RuntimeOptions, WgpuRuntime, WgpuSetup};
use std::sync::{Arc, Mutex, PoisonError};
use wgpu::{Adapter, Backend, DeviceType, Features};

/// An open device. Locked during a launch, so that times and errors belong to that launch.
struct Opened {
    client: ComputeClient<WgpuRuntime>,
    features: Features,
    /// Errors that wgpu reports outside of any call.
    errors: Arc<Mutex<Vec<String>>>,
}

/// Open devices by wgpu backend. Where WebGPU runs on Vulkan, both share a device.
static OPEN: Mutex<Vec<(Backend, Opened)>> = Mutex::new(Vec::new());

pub(super) fn launch(
    kernel: &Ready,
    buffers: &Buffers<'_>,
    runs: u32,
) -> Result<Output, LaunchError> {
    let device = kernel.device();
    if let Some(output) = run::nothing(buffers) {
        return Ok(output);
    }
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let backend = backend(device);
    if !open.iter().any(|(b, _)| *b == backend) {
        let opened = run::caught(|| open_device(device))
            .map_err(|reason| LaunchError::Missing { device, reason })?;
        open.push((backend, opened));
    }
    let (_, opened) = &open[open.iter().position(|(b, _)| *b == backend).unwrap_or(0)];

    run::check_limits(
        device,
        kernel.geometry(),
        buffers.grid,
        buffers.largest(),
        opened.client.properties(),
    )?;
    for (needed, feature, what) in [
        (
            device == Device::Vulkan,
            Features::PASSTHROUGH_SHADERS,
            "SPIR-V modules",
        ),
        (
            kernel.spec().dtype == Dtype::F16,
            Features::SHADER_F16,
            "f16 arithmetic",
        ),
    ] {
        if needed && !opened.features.contains(feature) {
            return Err(LaunchError::Unsupported {
                device,
                key: kernel.key().into(),
                what: what.into(),
            });
        }
    }

    let take = || {
        let mut errors = opened.errors.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *errors)
    };
    take();
    let fitted = Fitted {
        grid: buffers.grid,
        entry: Entry::First,
    };
    let steps = run::Steps {
        steps: kernel.steps(fitted, buffers.grid),
        partial_bytes: 0,
    };
    let output = run::caught(|| {
        run::run(
            &opened.client,
            (&steps, buffers),
            runs,
            |_| vec![],
            WgpuRuntime::task,
        )
    });
    let errors = take();
    let failed = |reason| LaunchError::Failed {
        device,
        key: kernel.key().into(),
        reason,
    };
    match errors.is_empty() {
        true => output.map_err(failed),
        false => Err(failed(errors.join("; "))),
    }
}

pub(super) fn probe(device: Device) -> Result<Found, String> {
    run::caught(|| {
        let (_, adapter) = adapter(device)?;
        let info = adapter.get_info();
        let driver = format!("{} {}", info.driver, info.driver_info);
        Ok(Found {
            name: format!("{} ({})", info.name, driver.trim()),
            software: info.device_type == DeviceType::Cpu,
            sm: None,
            memory: None,
        })
    })
}

fn backend(device: Device) -> Backend {
    match device {
        Device::Vulkan | Device::Cuda => Backend::Vulkan,
        Device::Webgpu if cfg!(target_os = "macos") => Backend::Metal,
        Device::Webgpu if cfg!(windows) => Backend::Dx12,
        Device::Webgpu => Backend::Vulkan,
    }
}

/// The best adapter; a software one only if there is no other.
fn adapter(device: Device) -> Result<(wgpu::Instance, Adapter), String> {
    let backend = backend(device);
    if backend == Backend::Vulkan {
        find_vulkan()?;
    }
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: backend.into(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let options = wgpu::RequestAdapterOptions {
        power_preference: wgpu::PowerPreference::HighPerformance,
        ..Default::default()
    };
    let adapter = block_on(instance.request_adapter(&options))
        .map_err(|error| format!("{backend:?} has no adapter: {error}"))?;
    Ok((instance, adapter))
}

/// Whether the Vulkan loader can be opened.
fn find_vulkan() -> Result<(), String> {
    let names: &[&str] = if cfg!(windows) {
        &["vulkan-1.dll"]
    } else if cfg!(target_os = "macos") {
        &["libvulkan.dylib", "libvulkan.1.dylib", "libMoltenVK.dylib"]
    } else {
        &["libvulkan.so.1", "libvulkan.so"]
    };
    // SAFETY: opening the loader runs none of our code.
    let open = |name: &&str| unsafe { libloading::Library::new(*name) }.is_ok();
    match names.iter().any(open) {
        true => Ok(()),
        false => Err(format!(
            "{} is not installed; it comes with a graphics driver, or with Mesa for software",
            names[0]
        )),
    }
}

fn open_device(device: Device) -> Result<Opened, String> {
    let (instance, adapter) = adapter(device)?;
    let backend = backend(device);
    let with_extensions = match backend {
        Backend::Vulkan => block_on(cubecl_wgpu::vulkan::request_vulkan_device(&adapter)),
        _ => None,
    };
    let (device, queue) = match with_extensions {
        Some(opened) => opened,
        None => block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            required_features: adapter.features() & Features::SHADER_F16,
            required_limits: adapter.limits(),
            ..Default::default()
        }))
        .map_err(|error| error.to_string())?,
    };
    let errors = Arc::new(Mutex::new(Vec::new()));
    let sink = errors.clone();
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        let mut errors = sink.lock().unwrap_or_else(PoisonError::into_inner);
        errors.push(error.to_string());
    }));
    let features = device.features();
    let setup = WgpuSetup {
        instance,
        adapter,
        device,
        queue,
        backend,
    };
    let options = RuntimeOptions {
        memory_config: MemoryConfiguration::ExclusivePages,
        ..Default::default()
    };
    Ok(Opened {
        client: WgpuRuntime::client(&cubecl_wgpu::init_device(setup, options)),
        features,
        errors,
    })
}

impl Launches for WgpuRuntime {
    fn device(client: &ComputeClient<Self>) -> Device {
        match client.info() {
            Backend::Vulkan => Device::Vulkan,
            _ => Device::Webgpu,
        }
    }

    fn task(image: &Arc<Image>) -> Box<dyn CubeTask<AutoCompiler>> {
        Box::new(Task(image.clone()))
    }

    fn tensor_maps(_: &[Map], _: &[Handle]) -> Vec<TensorMapBinding> {
        Vec::new()
    }

    fn fitted(_: &Geometry, grid: [u32; 3], _: u32, _: &DeviceProperties) -> Fitted {
        Fitted {
            grid,
            entry: Entry::First,
        }
    }
}

/// A finished kernel, as CubeCL's wgpu runtime takes it.
#[derive(Clone)]
struct Task(Arc<Image>);

impl Task {
    fn threads(&self) -> CubeDim {
        let [x, y, z] = self.0.threads;
        CubeDim::new_3d(x, y, z)
    }
}

impl KernelMetadata for Task {
    fn name(&self) -> &'static str {
        "butterfly"
    }

    fn id(&self) -> KernelId {
        KernelId::new::<Self>()
            .cube_dim(self.threads())
            .info((self.0.identity.clone(), self.0.device))
    }

    fn address_type(&self) -> StorageType {
        AddressType::U32.unsigned_type()
    }
}

impl CubeTask<AutoCompiler> for Task {
    fn compile(
        &self,
        _: &mut AutoCompiler,
        _: &<AutoCompiler as Compiler>::CompilationOptions,
        _: ExecutionMode,
        _: StorageType,
    ) -> Result<CompiledKernel<AutoCompiler>, CompilationError> {
        let (source, repr) = match &*self.0.code {
            Code::Wgsl(text) | Code::Cuda(text) => (text.clone(), None),
            Code::SpirV { words, bindings } => {
                let module = SpirvKernel {
                    module: None,
                    optimizer: None,
                    assembled_module: words.clone(),
                    bindings: vec![Visibility::ReadWrite; *bindings],
                    shared_size: self.0.identity.shared_bytes as usize,
                    uniform_info: false,
                };
                (String::new(), Some(AutoRepresentation::SpirV(module)))
            }
            Code::Module(_) => (String::new(), None),
        };
        Ok(CompiledKernel {
            entrypoint_name: self.0.identity.entry.clone(),
            debug_name: None,
            source,
            repr,
            cube_dim: self.threads(),
            debug_info: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Loaded;
    use butterfly_ir::{KernelSpec, Role, Rows, Target};

    /// The device is given exactly the bytes of the artifact folder, those that the digest is of.
    #[test]
    fn what_runs_is_what_the_artifact_holds() {
        for (device, target) in [
            (Device::Webgpu, Target::Webgpu),
            (Device::Vulkan, Target::Vulkan),
        ] {
            for rows in [Rows::Table, Rows::ClosedForm(Default::default())] {
                let spec = KernelSpec {
                    role: Role::Decode,
                    head_dim: 16,
                    v_head_dim: 16,
                    group: 1,
                    dtype: Dtype::F16,
                    block: 32,
                    rows,
                    score: Default::default(),
                };
                let kernel = butterfly_codegen::emit(&spec, target).expect("emits");
                let (_, image) = kernel.files.last().expect("a file");
                let loaded = Loaded {
                    key: "key",
                    entry: &kernel.entry,
                    spec: &spec,
                    geometry: kernel.geometry,
                    image,
                };
                let ready = Ready::new(device, &loaded).expect("a kernel");
                let given = Task(ready.image().clone())
                    .compile(
                        &mut AutoCompiler::Wgsl(Default::default()),
                        &Default::default(),
                        ExecutionMode::Unchecked,
                        AddressType::U32.unsigned_type(),
                    )
                    .expect("a kernel");
                let bytes = match given.repr {
                    Some(AutoRepresentation::SpirV(module)) => {
                        let words = module.assembled_module.iter();
                        words.flat_map(|word| word.to_le_bytes()).collect()
                    }
                    _ => given.source.into_bytes(),
                };
                assert_eq!(blake3::hash(&bytes), blake3::hash(image), "{device}");
                // In WGSL no buffer is read-only: see the header of this file.
                let text = String::from_utf8_lossy(&bytes);
                assert!(device == Device::Vulkan || !text.contains("<storage, read>"));
            }
        }
    }
}

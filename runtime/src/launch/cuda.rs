//! NVIDIA devices through CubeCL's CUDA runtime, from cubins.
//!
//! CubeCL takes compiled code only from its cache on disk, which a server reads once,
//! when it is made. So each kernel gets a folder of its own, holding its cubin, and a
//! server that is made on it. The text behind the kernel is an error: a miss in the
//! cache never compiles.

use super::bind::Buffers;
use super::{Device, Found, LaunchError, Loaded, Output};
use super::{run, tensor_maps};
use butterfly_ir::Sm;
use cubecl_common::cache::CacheOption;
use cubecl_common::compilation_cache::CompilationCache;
use cubecl_common::device::{Device as CubeDevice, DeviceId};
use cubecl_common::hash::StableHash;
use cubecl_core::Compiler;
use cubecl_core::ir::{AddressType, StorageType};
use cubecl_cpp::shared::{Body, ComputeKernel, Elem, Flags, Item, SharedMemory};
use cubecl_cuda::{CudaCompiler, CudaComputeKernel, CudaRuntime};
use cubecl_runtime::client::ComputeClient;
use cubecl_runtime::compiler::{CompilationError, CubeTask};
use cubecl_runtime::config::cache::CacheConfig;
use cubecl_runtime::config::{CubeClRuntimeConfig, RuntimeConfig};
use cubecl_runtime::id::KernelId;
use cubecl_runtime::kernel::{CompiledKernel, KernelMetadata};
use cubecl_runtime::server::{CubeDim, ExecutionMode, Handle};
use std::ffi::{CStr, c_char, c_int};
use std::sync::{Arc, Mutex, PoisonError};

/// What is seen where a cubin was not found in the cache.
const TEXT: &str = "#error the cubin of this kernel is not in the cache\n";

/// Servers by the kernel they were made for. Launches take turns, for their times.
static OPEN: Mutex<Vec<(Task, ComputeClient<CudaRuntime>)>> = Mutex::new(Vec::new());

pub(super) fn launch(
    kernel: &Loaded<'_>,
    mut buffers: Buffers<'_>,
    runs: u32,
) -> Result<Output, LaunchError> {
    let device = Device::Cuda;
    if !kernel.image.starts_with(b"\x7fELF") {
        return Err(LaunchError::Image {
            key: kernel.key.into(),
            expected: "a cubin",
        });
    }
    if let Some(output) = run::nothing(&buffers) {
        return Ok(output);
    }
    probe().map_err(|reason| LaunchError::Missing { device, reason })?;
    let failed = |reason| LaunchError::Failed {
        device,
        key: kernel.key.into(),
        reason,
    };
    let task = Task::new(kernel);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let at = match open.iter().position(|(known, _)| *known == task) {
        Some(at) => at,
        None => {
            let server = open.len();
            let opened = run::caught(|| open_server(server, &task, kernel.image));
            open.push((task.clone(), opened.map_err(failed)?));
            server
        }
    };
    let client = &open[at].1;
    let properties = client.properties();
    let processors = properties.hardware.num_streaming_multiprocessors;
    buffers.grid = kernel
        .geometry
        .fitted(buffers.grid, processors.unwrap_or(1));
    run::check_limits(device, &kernel.geometry, &buffers, properties)?;
    let output = run::caught(|| {
        let maps = |inputs: &[Handle]| tensor_maps::bind(&buffers, inputs);
        run::run(client, &buffers, runs, maps, || {
            Box::new(task.clone()) as Box<dyn CubeTask<CudaCompiler>>
        })
    });
    // Servers do not share memory.
    let _ = run::caught(|| {
        client.memory_cleanup();
        Ok(())
    });
    output.map_err(failed)
}

/// Numbers of `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*` in the driver's header.
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

/// Asks the driver for its first device.
pub(super) fn probe() -> Result<Found, String> {
    let name = if cfg!(windows) {
        "nvcuda.dll"
    } else {
        "libcuda.so.1"
    };
    // SAFETY: the driver's library runs nothing of ours when it is opened, and these are
    // its functions as its header declares them.
    unsafe {
        let Ok(driver) = libloading::Library::new(name) else {
            return Err(format!(
                "{name} is not installed; it comes with the NVIDIA driver"
            ));
        };
        // Once initialised the driver must stay.
        let driver = std::mem::ManuallyDrop::new(driver);
        let lacks = |error: libloading::Error| error.to_string();
        type Init = unsafe extern "C" fn(u32) -> c_int;
        type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
        type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
        type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
        let init = driver.get::<Init>(b"cuInit\0").map_err(lacks)?;
        let get = driver.get::<Get>(b"cuDeviceGet\0").map_err(lacks)?;
        let get_name = driver.get::<Name>(b"cuDeviceGetName\0").map_err(lacks)?;
        let attribute = driver
            .get::<Attribute>(b"cuDeviceGetAttribute\0")
            .map_err(lacks)?;
        let said = |what: &str, code: c_int| match code {
            0 => Ok(()),
            _ => Err(format!("{what} returned error {code}")),
        };
        said("cuInit", init(0))?;
        let mut device = 0;
        said("cuDeviceGet", get(&mut device, 0))?;
        let mut text = [0; 256];
        let length = text.len() as c_int - 1;
        said(
            "cuDeviceGetName",
            get_name(text.as_mut_ptr(), length, device),
        )?;
        let capability = |which| {
            let mut value = 0;
            said("cuDeviceGetAttribute", attribute(&mut value, which, device))?;
            u32::try_from(value).map_err(|_| "a negative compute capability".to_string())
        };
        let version = 10 * capability(CAPABILITY_MAJOR)? + capability(CAPABILITY_MINOR)?;
        Ok(Found {
            name: CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned(),
            software: false,
            sm: Some(Sm {
                version,
                // Since 9.0 each generation has instructions of its own.
                arch_specific: version >= 90,
            }),
        })
    }
}

/// The first device, seen by the `server`-th server of ours. The runtime tells servers
/// apart by type and index, and takes the device from the index alone.
#[derive(Clone, Copy, Debug, Default)]
struct Server(u16);

/// The runtime's own devices are of type 0.
const FIRST_TYPE: u16 = 0x4200;

impl CubeDevice for Server {
    fn from_id(id: DeviceId) -> Self {
        Self(id.type_id.saturating_sub(FIRST_TYPE))
    }

    fn to_id(&self) -> DeviceId {
        DeviceId {
            type_id: FIRST_TYPE.saturating_add(self.0),
            index_id: 0,
        }
    }
}

/// Same shape as the entries of the runtime's cache.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct CacheEntry {
    entrypoint_name: String,
    shared_mem_bytes: usize,
    ptx: Vec<c_char>,
}

/// A server that has `cubin` in its cache. The folder is gone afterwards: what is in it
/// was read when the server was made.
fn open_server(
    server: usize,
    task: &Task,
    cubin: &[u8],
) -> Result<ComputeClient<CudaRuntime>, String> {
    let server = u16::try_from(server)
        .ok()
        .filter(|server| *server < u16::MAX - FIRST_TYPE)
        .ok_or_else(|| "too many kernels for one process".to_string())?;
    let folder = tempfile::Builder::new()
        .prefix("butterfly-cubin-")
        .tempdir()
        .map_err(|error| error.to_string())?;
    let options = CacheOption::default().name("cuda").root(folder.path());
    let mut cache = CompilationCache::<StableHash, CacheEntry>::new("ptx", options);
    let bytes = cubin.iter().chain(&[0]);
    let ptx: Vec<c_char> = bytes.map(|byte| *byte as c_char).collect();
    for mode in [
        ExecutionMode::Checked,
        ExecutionMode::Validate,
        ExecutionMode::Unchecked,
    ] {
        let mut id = task.id();
        id.mode(mode);
        let entry = CacheEntry {
            entrypoint_name: task.identity.1.clone(),
            shared_mem_bytes: task.shared_bytes,
            ptx: ptx.clone(),
        };
        cache
            .insert(id.stable_hash(), entry)
            .map_err(|error| format!("{error:?}"))?;
    }
    drop(cache);

    // The folder is configured only while the server is made: others keep theirs.
    let before = CubeClRuntimeConfig::get();
    let mut config = (*before).clone();
    config.compilation.cache = Some(CacheConfig::File(folder.path().into()));
    let configure = |config| *CubeClRuntimeConfig::storage().lock() = Some(config);
    configure(Arc::new(config));
    let client = run::caught(|| Ok(ComputeClient::load(&Server(server))));
    configure(before);
    client
}

/// A finished kernel, as the runtime takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Task {
    identity: (String, String, [u8; 32]),
    threads: CubeDim,
    shared_bytes: usize,
}

impl Task {
    fn new(kernel: &Loaded<'_>) -> Self {
        let [x, y, z] = kernel.geometry.threads;
        Self {
            identity: super::identity(kernel),
            threads: CubeDim::new_3d(x, y, z),
            shared_bytes: kernel.geometry.shared_bytes as usize,
        }
    }
}

impl KernelMetadata for Task {
    fn name(&self) -> &'static str {
        "butterfly"
    }

    fn id(&self) -> KernelId {
        KernelId::new::<Self>()
            .cube_dim(self.threads)
            .info((self.identity.clone(), self.shared_bytes))
    }

    fn address_type(&self) -> StorageType {
        AddressType::U32.unsigned_type()
    }
}

impl CubeTask<CudaCompiler> for Task {
    fn compile(
        &self,
        _: &mut CudaCompiler,
        _: &<CudaCompiler as Compiler>::CompilationOptions,
        _: ExecutionMode,
        _: StorageType,
    ) -> Result<CompiledKernel<CudaCompiler>, CompilationError> {
        Ok(CompiledKernel {
            entrypoint_name: self.identity.1.clone(),
            debug_name: None,
            source: TEXT.into(),
            repr: Some(representation(self.shared_bytes, self.threads)),
            cube_dim: self.threads,
            debug_info: None,
        })
    }
}

/// A representation that exists only to say how much shared memory there is.
fn representation(shared_bytes: usize, cube_dim: CubeDim) -> CudaComputeKernel {
    let word = Item::scalar(Elem::U32, true);
    let memory = SharedMemory::Array {
        index: 0,
        item: Item::scalar(Elem::U8, true),
        length: shared_bytes,
        align: 1024,
        offset: 0,
    };
    ComputeKernel {
        tensor_maps: vec![],
        buffers: vec![],
        scalars: vec![],
        info: Default::default(),
        meta_static_len: 0,
        body: Body {
            instructions: vec![],
            shared_memories: match shared_bytes {
                0 => vec![],
                _ => vec![memory],
            },
            pipelines: vec![],
            barriers: vec![],
            const_arrays: vec![],
            local_arrays: vec![],
            info_by_ptr: false,
            has_dynamic_meta: false,
            address_type: word,
        },
        cube_dim,
        cluster_dim: None,
        extensions: vec![],
        flags: Flags {
            elem_fp4: false,
            elem_fp6: false,
            elem_fp8: false,
            elem_bf16: false,
            elem_f16: false,
            elem_tf32: false,
            indexes: Default::default(),
            op_barrier: false,
            op_pipeline: false,
            inst_tma: false,
            inst_tma_im2col: false,
            inst_wmma: false,
            inst_ptx_wrappers: false,
            inst_async_copy: false,
            use_grid_constants: true,
            static_meta_length: 0,
            has_dynamic_meta: false,
            has_info: false,
            cube_dim,
            cluster_dim: None,
            address_type: word,
        },
        items: Default::default(),
        kernel_name: String::new(),
    }
}

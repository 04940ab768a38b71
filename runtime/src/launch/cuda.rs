//! NVIDIA devices through CubeCL's CUDA runtime.
//!
//! For kernels on host memory each gets a folder of its own, holding its cubin, and a
//! server that is made on it (see [`cubins`]). Kernels on the tensors of others run on
//! these others' server.

use super::bind::Buffers;
use super::cubins::{self, Task};
use super::ready::Code;
use super::shared::Launches;
use super::{Device, Found, LaunchError, Output, Ready, run, tensor_maps};
use butterfly_ir::Sm;
use cubecl_common::device::{Device as CubeDevice, DeviceId};
use cubecl_cuda::CudaRuntime;
use cubecl_runtime::client::ComputeClient;
use cubecl_runtime::server::Handle;
use std::ffi::{CStr, c_char, c_int};
use std::sync::{Mutex, PoisonError};

/// Servers by the kernel they were made for. Launches take turns, for their times.
static OPEN: Mutex<Vec<(Task, ComputeClient<CudaRuntime>)>> = Mutex::new(Vec::new());

pub(super) fn launch(
    kernel: &Ready,
    mut buffers: Buffers<'_>,
    runs: u32,
) -> Result<Output, LaunchError> {
    let device = Device::Cuda;
    if !matches!(kernel.image().code, Code::Cubin(_)) {
        return Err(LaunchError::Image {
            key: kernel.key().into(),
            expected: "a cubin",
        });
    }
    if let Some(output) = run::nothing(&buffers) {
        return Ok(output);
    }
    probe().map_err(|reason| LaunchError::Missing { device, reason })?;
    let failed = |reason| LaunchError::Failed {
        device,
        key: kernel.key().into(),
        reason,
    };
    let task = Task::new(kernel);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let at = match open.iter().position(|(known, _)| *known == task) {
        Some(at) => at,
        None => {
            let server = open.len();
            let opened = run::caught(|| open_server(server, kernel));
            open.push((task.clone(), opened.map_err(failed)?));
            server
        }
    };
    let client = &open[at].1;
    let properties = client.properties();
    let processors = properties.hardware.num_streaming_multiprocessors;
    buffers.grid = kernel
        .geometry()
        .fitted(buffers.grid, processors.unwrap_or(1));
    let (grid, largest) = (buffers.grid, buffers.largest());
    run::check_limits(device, kernel.geometry(), grid, largest, properties)?;
    let output = run::caught(|| {
        let maps = buffers.maps.as_ref().map_or(&[][..], |maps| maps);
        let maps = |inputs: &[Handle]| tensor_maps::bind(maps, inputs);
        run::run(client, &buffers, runs, maps, || {
            CudaRuntime::task(kernel.image())
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
        type Total = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
        type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
        let init = driver.get::<Init>(b"cuInit\0").map_err(lacks)?;
        let get = driver.get::<Get>(b"cuDeviceGet\0").map_err(lacks)?;
        let get_name = driver.get::<Name>(b"cuDeviceGetName\0").map_err(lacks)?;
        let attribute = driver
            .get::<Attribute>(b"cuDeviceGetAttribute\0")
            .map_err(lacks)?;
        let total = driver
            .get::<Total>(b"cuDeviceTotalMem_v2\0")
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
        let mut memory = 0;
        said("cuDeviceTotalMem", total(&mut memory, device))?;
        Ok(Found {
            memory: Some(memory as u64),
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

/// A server that has the cubin of `kernel` in its cache. The folder is gone afterwards: what
/// is in it was read when the server was made.
fn open_server(server: usize, kernel: &Ready) -> Result<ComputeClient<CudaRuntime>, String> {
    let server = u16::try_from(server)
        .ok()
        .filter(|server| *server < u16::MAX - FIRST_TYPE)
        .ok_or_else(|| "too many kernels for one process".to_string())?;
    let folder = tempfile::Builder::new()
        .prefix("butterfly-cubin-")
        .tempdir()
        .map_err(|error| error.to_string())?;
    cubins::store(folder.path(), std::iter::once(kernel.image()))?;
    // The folder is configured only while the server is made: others keep theirs.
    let before = cubins::configure(folder.path());
    let client = run::caught(|| Ok(ComputeClient::load(&Server(server))));
    cubins::restore(before);
    client
}

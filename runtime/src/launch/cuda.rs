//! Launches on NVIDIA devices through CubeCL's CUDA runtime.
//!
//! For launches from host memory, each kernel gets a folder that holds only its cubin, and a server
//! that uses this folder as its cache (see [`cubins`]). Launches on tensors of other code run on
//! the server of these tensors (see [`super::shared`]).

use super::bind::Buffers;
use super::cubins::{self, Task};
use super::ready::Code;
use super::shared::Launches;
use super::{Device, LaunchError, Output, Ready, bind, driver, run, tensor_maps};
use cubecl_common::device::{Device as CubeDevice, DeviceId};
use cubecl_cuda::CudaRuntime;
use cubecl_runtime::client::ComputeClient;
use cubecl_runtime::server::Handle;
use std::sync::{Mutex, PoisonError};

/// Servers, each with the kernel that it was created for. Locked during a launch, so that launches
/// do not disturb each other's times.
static OPEN: Mutex<Vec<(Task, ComputeClient<CudaRuntime>)>> = Mutex::new(Vec::new());

pub(super) fn launch(
    kernel: &Ready,
    mut buffers: Buffers<'_>,
    runs: u32,
) -> Result<Output, LaunchError> {
    let device = Device::Cuda;
    if !matches!(*kernel.image().code, Code::Module(_)) {
        return Err(LaunchError::Image {
            key: kernel.key().into(),
            expected: "a cubin",
        });
    }
    if let Some(output) = run::nothing(&buffers) {
        return Ok(output);
    }
    driver::probe().map_err(|reason| LaunchError::Missing { device, reason })?;
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
    let grid = buffers.grid;
    let fitted = CudaRuntime::fitted(kernel.geometry(), grid, buffers.keys, properties);
    buffers.words.set_parts(fitted.entry);
    let steps = run::Steps {
        steps: kernel.steps(fitted, grid),
        partial_bytes: bind::partial_bytes(kernel, grid, fitted.entry),
    };
    let largest = buffers.largest().max(steps.partial_bytes);
    for step in &steps.steps {
        run::check_limits(
            device,
            &step.geometry(kernel),
            step.grid,
            largest,
            properties,
        )?;
    }
    let output = run::caught(|| {
        let maps = |inputs: &[Handle]| tensor_maps::bind(&buffers.maps, inputs);
        run::run(client, (&steps, &buffers), runs, maps, CudaRuntime::task)
    });
    // Free unused memory: other servers cannot use what this one has reserved.
    let _ = run::caught(|| {
        client.memory_cleanup();
        Ok(())
    });
    output.map_err(failed)
}

/// The first device, for the server of this number. CubeCL tells servers apart by type and index,
/// but chooses the device only by the index.
#[derive(Clone, Copy, Debug, Default)]
struct Server(u16);

/// The type of our first server. CubeCL's own devices have type 0.
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

/// Creates a server that has the cubin of `kernel` in its cache. The cache folder is deleted
/// afterwards: the server has read it when it was created.
fn open_server(server: usize, kernel: &Ready) -> Result<ComputeClient<CudaRuntime>, String> {
    let server = u16::try_from(server)
        .ok()
        .filter(|server| *server < u16::MAX - FIRST_TYPE)
        .ok_or_else(|| "too many kernels for one process".to_string())?;
    let folder = tempfile::Builder::new()
        .prefix("butterfly-cubin-")
        .tempdir()
        .map_err(|error| error.to_string())?;
    cubins::store(folder.path(), kernel.images())?;
    cubins::with_cache(folder.path(), || {
        run::caught(|| Ok(ComputeClient::load(&Server(server))))
    })
}

//! NVIDIA devices through CubeCL's CUDA runtime.
//!
//! For kernels on host memory each gets a folder of its own, holding its cubin, and a
//! server that is made on it (see [`cubins`]). Kernels on the tensors of others run on
//! these others' server.

use super::bind::Buffers;
use super::cubins::{self, Task};
use super::ready::Code;
use super::shared::Launches;
use super::{Device, LaunchError, Output, Ready, driver, run, tensor_maps};
use butterfly_ir::geometry::Fitted;
use cubecl_common::device::{Device as CubeDevice, DeviceId};
use cubecl_cuda::CudaRuntime;
use cubecl_runtime::client::ComputeClient;
use cubecl_runtime::server::Handle;
use std::sync::{Mutex, PoisonError};

/// Servers by the kernel they were made for. Launches take turns, for their times.
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
    let Fitted { grid, alone } = CudaRuntime::fitted(kernel.geometry(), buffers.grid, properties);
    buffers.grid = grid;
    let largest = buffers.largest();
    run::check_limits(device, kernel.geometry(), grid, largest, properties)?;
    let output = run::caught(|| {
        let maps = |inputs: &[Handle]| tensor_maps::bind(&buffers.maps, inputs);
        run::run(client, (kernel, &buffers), runs, maps, || {
            CudaRuntime::task(kernel.image_of(alone))
        })
    });
    // Servers do not share memory.
    let _ = run::caught(|| {
        client.memory_cleanup();
        Ok(())
    });
    output.map_err(failed)
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
    cubins::store(folder.path(), kernel.images())?;
    cubins::with_cache(folder.path(), || {
        run::caught(|| Ok(ComputeClient::load(&Server(server))))
    })
}

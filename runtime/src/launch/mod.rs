//! Kernel × arguments → output: the only owner of devices.
//!
//! In:  a kernel as an artifact or an emitter holds it, and host memory. Out: o and lse
//! in host memory, and how long the second launch took; or an error, never a panic.
//!
//! Kernels run unchecked, so every length is checked before anything reaches a device.
//! No compiler of a kernel language is called here for SPIR-V and cubin; WGSL is
//! translated by the graphics library, as in a browser.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "wgpu")]
mod wgpu;

use butterfly_ir::{BandTable, Geometry, KernelSpec, LaunchScalars, Rows};
use std::borrow::Cow;
use std::fmt;

/// What launches kernels. The native CPU kernel is not launched, but called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The best Vulkan device, running SPIR-V.
    Vulkan,
    /// The best device of the system's graphics interface, running WGSL.
    Webgpu,
    /// The first NVIDIA device, running a cubin.
    Cuda,
}

impl Device {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cuda, Self::Vulkan, Self::Webgpu];

    /// The name in flags and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vulkan => "vulkan",
            Self::Webgpu => "webgpu",
            Self::Cuda => "cuda",
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A kernel ready to launch: what an artifact or an emitter holds.
#[derive(Clone, Copy, Debug)]
pub struct Loaded<'a> {
    /// Key of its content, the name of its files in an artifact folder.
    pub key: &'a str,
    /// Name of the entry point.
    pub entry: &'a str,
    /// What it was made for.
    pub spec: &'a KernelSpec,
    /// How it is launched.
    pub geometry: Geometry,
    /// The words of a SPIR-V module (little-endian), WGSL text, or a cubin.
    pub image: &'a [u8],
}

/// Tensors in host memory, little-endian in the kernel's dtype, and scalars.
///
/// The strides in `scalars` say where an element is. A tensor may be longer than they
/// reach, not shorter.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    /// The run-time scalars.
    pub scalars: LaunchScalars,
    /// B: sequences.
    pub batch: u32,
    /// Queries.
    pub q: &'a [u8],
    /// Keys.
    pub k: &'a [u8],
    /// Values.
    pub v: &'a [u8],
    /// The bands, for [`Rows::Table`] only.
    pub rows: Option<&'a BandTable>,
}

/// What a launch wrote, and how long it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// o in the kernel's dtype, up to the last element that its strides reach; 0 where
    /// they reach nothing.
    pub o: Vec<u8>,
    /// Natural log-sum-exp, `[B, Hq, q_len]`; -inf where a query sees nothing.
    pub lse: Vec<f32>,
    /// Wall time of the second launch, from submission until the device was idle again.
    pub milliseconds: f64,
    /// The same of the first launch, which also loads the kernel.
    pub first_launch_milliseconds: f64,
}

/// Why a kernel was not launched, or did not finish.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A cargo feature is off.
    #[error("this build cannot launch on {device}: it was built without the feature `{feature}`")]
    NotBuilt {
        /// The device asked for.
        device: Device,
        /// The feature it needs.
        feature: &'static str,
    },
    /// There is no such device.
    #[error("no {device} device: {reason}")]
    Missing {
        /// The device asked for.
        device: Device,
        /// What was not found.
        reason: String,
    },
    /// A tensor ends before its last element.
    #[error("`{name}` holds {given} bytes, but its strides reach {needed}")]
    Short {
        /// The argument.
        name: &'static str,
        /// Its length in bytes.
        given: u64,
        /// The least length in bytes.
        needed: u64,
    },
    /// The rows do not fit the kernel or the queries.
    #[error("the band table {0}")]
    Rows(&'static str),
    /// More than the device or the kernels' 32-bit arithmetic can do.
    #[error("{what} is {asked}, but {device} allows {available}")]
    Limit {
        /// The device asked for.
        device: Device,
        /// What is limited.
        what: &'static str,
        /// What was asked for.
        asked: u64,
        /// What there is.
        available: u64,
    },
    /// The device lacks arithmetic or an extension.
    #[error("{device} device cannot run kernel {key}: it lacks {what}")]
    Unsupported {
        /// The device asked for.
        device: Device,
        /// The kernel.
        key: String,
        /// What is lacking.
        what: String,
    },
    /// The bytes are no kernel for this device.
    #[error("kernel {key} is not {expected}")]
    Image {
        /// The kernel.
        key: String,
        /// What the device runs.
        expected: &'static str,
    },
    /// The driver refused the kernel, or it did not finish.
    #[error("kernel {key} failed on {device}: {reason}")]
    Failed {
        /// The device asked for.
        device: Device,
        /// The kernel.
        key: String,
        /// What the driver said.
        reason: String,
    },
}

/// Runs `kernel` twice on `device` and returns what the second run wrote.
///
/// # Errors
/// See [`LaunchError`]. Nothing is launched unless all arguments fit.
pub fn launch(
    device: Device,
    kernel: &Loaded<'_>,
    arguments: &Arguments<'_>,
) -> Result<Output, LaunchError> {
    let buffers = buffers(device, kernel, arguments)?;
    match device {
        Device::Vulkan | Device::Webgpu => {
            #[cfg(feature = "wgpu")]
            return wgpu::launch(device, kernel, &buffers);
            #[cfg(not(feature = "wgpu"))]
            return Err(not_built(device, "wgpu", &buffers));
        }
        Device::Cuda => {
            #[cfg(feature = "cuda")]
            return cuda::launch(kernel, &buffers);
            #[cfg(not(feature = "cuda"))]
            return Err(not_built(device, "cuda", &buffers));
        }
    }
}

/// What [`launch`] would find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// The device.
    pub device: Device,
    /// What it is called, or why it cannot be used.
    pub found: Result<String, String>,
}

/// Looks for every device, without opening any.
pub fn adapters() -> Vec<Adapter> {
    let found = |device| match device {
        Device::Vulkan | Device::Webgpu => {
            #[cfg(feature = "wgpu")]
            return wgpu::probe(device);
            #[cfg(not(feature = "wgpu"))]
            Err("built without the feature `wgpu`".to_string())
        }
        Device::Cuda => {
            #[cfg(feature = "cuda")]
            return cuda::probe();
            #[cfg(not(feature = "cuda"))]
            Err("built without the feature `cuda`".to_string())
        }
    };
    Device::ALL
        .into_iter()
        .map(|device| Adapter {
            device,
            found: found(device),
        })
        .collect()
}

/// What is bound, checked.
#[cfg_attr(not(any(feature = "wgpu", feature = "cuda")), expect(dead_code))]
struct Buffers<'a> {
    /// q, k, v, parameters and, for rows from a table, offsets and bands; each a
    /// positive multiple of [`ALIGN`] bytes.
    inputs: Vec<Cow<'a, [u8]>>,
    /// Bytes of o and lse, as they are read.
    outputs: [usize; 2],
    /// Workgroups.
    grid: [u32; 3],
}

/// Bytes of the widest load, and more than any device asks a copy to be a multiple of.
const ALIGN: usize = 16;

fn buffers<'a>(
    device: Device,
    kernel: &Loaded<'_>,
    arguments: &Arguments<'a>,
) -> Result<Buffers<'a>, LaunchError> {
    let (spec, scalars) = (kernel.spec, &arguments.scalars);
    let batch = arguments.batch;
    let limit = |what, asked: u64, available: u64| match asked <= available {
        true => Ok(()),
        false => Err(LaunchError::Limit {
            device,
            what,
            asked,
            available,
        }),
    };
    // Positions are signed 32-bit numbers in a kernel.
    let positions = i32::MAX as u64;
    let last = u64::from(scalars.q_offset) + u64::from(scalars.q_len);
    limit("the end of the queries", last, positions)?;
    limit("kv_len", scalars.kv_len.into(), positions)?;
    let heads = u64::from(scalars.kv_heads) * u64::from(spec.group);
    let results = u128::from(batch) * u128::from(heads) * u128::from(scalars.q_len);
    let results = u64::try_from(results).unwrap_or(u64::MAX);
    limit("the number of results", results, positions)?;

    let (hq, hkv) = (heads, scalars.kv_heads.into());
    let (q_len, kv_len) = (scalars.q_len.into(), scalars.kv_len.into());
    let reach = |what, [b, h, t]: [u32; 3], heads: u64, tokens: u64, dim: u32| {
        if batch == 0 || heads == 0 || tokens == 0 {
            return Ok(0);
        }
        let step = |count: u64, stride: u32| u128::from(count - 1) * u128::from(stride);
        let elements = step(batch.into(), b) + step(heads, h) + step(tokens, t) + u128::from(dim);
        let elements = u64::try_from(elements).unwrap_or(u64::MAX);
        limit(what, elements, u32::MAX.into())?;
        Ok(elements * u64::from(spec.dtype.bytes()))
    };
    let (d, dv) = (spec.head_dim, spec.v_head_dim);
    let q = reach("the length of q", scalars.q_strides, hq, q_len, d)?;
    let k = reach("the length of k", scalars.k_strides, hkv, kv_len, d)?;
    let v = reach("the length of v", scalars.v_strides, hkv, kv_len, dv)?;
    let o = reach("the length of o", scalars.o_strides, hq, q_len, dv)?;

    let mut inputs = Vec::with_capacity(6);
    for (name, bytes, needed) in [
        ("q", arguments.q, q),
        ("k", arguments.k, k),
        ("v", arguments.v, v),
    ] {
        let given = bytes.len() as u64;
        if given < needed {
            return Err(LaunchError::Short {
                name,
                given,
                needed,
            });
        }
        inputs.push(padded(Cow::Borrowed(bytes)));
    }
    inputs.push(padded(words(scalars.words())));
    match (&spec.rows, arguments.rows) {
        (Rows::ClosedForm(_), None) => {}
        (Rows::ClosedForm(_), Some(_)) => {
            return Err(LaunchError::Rows("is not read by this kernel"));
        }
        (Rows::Table, None) => return Err(LaunchError::Rows("is missing")),
        (Rows::Table, Some(table)) => {
            check_table(table, last.div_ceil(spec.block.into()))?;
            let bands = table.bands.iter();
            inputs.push(padded(words(table.offsets.iter().copied())));
            inputs.push(padded(words(bands.flat_map(|band| {
                [band.lo, band.hi, band.first, band.end].map(|x| x as u32)
            }))));
        }
    }
    // Nothing to compute: no tiles, whatever the offset.
    let grid = match results {
        0 => [0; 3],
        _ => kernel.geometry.grid(spec, scalars, batch),
    };
    Ok(Buffers {
        inputs,
        outputs: [o as usize, results as usize * 4],
        grid,
    })
}

fn check_table(table: &BandTable, rows: u64) -> Result<(), LaunchError> {
    let offsets = &table.offsets;
    if (offsets.len() as u64) <= rows {
        return Err(LaunchError::Rows("has fewer rows than the queries reach"));
    }
    if !offsets.is_sorted() {
        return Err(LaunchError::Rows("has offsets that decrease"));
    }
    if offsets
        .last()
        .is_some_and(|end| *end as usize > table.bands.len())
    {
        return Err(LaunchError::Rows("has fewer bands than its offsets reach"));
    }
    Ok(())
}

fn words(words: impl IntoIterator<Item = u32>) -> Cow<'static, [u8]> {
    Cow::Owned(words.into_iter().flat_map(u32::to_le_bytes).collect())
}

fn padded(mut bytes: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    let length = bytes.len().max(1).next_multiple_of(ALIGN);
    if length != bytes.len() {
        bytes.to_mut().resize(length, 0);
    }
    bytes
}

/// Without anything to compute, the output there is.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn nothing(buffers: &Buffers<'_>) -> Option<Output> {
    buffers.grid.contains(&0).then(|| Output {
        o: vec![0; buffers.outputs[0]],
        lse: Vec::new(),
        milliseconds: 0.0,
        first_launch_milliseconds: 0.0,
    })
}

/// Numbers a device has, of which a launch asks for some.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn check_limits(
    device: Device,
    geometry: &Geometry,
    buffers: &Buffers<'_>,
    properties: &cubecl_core::ir::DeviceProperties,
) -> Result<(), LaunchError> {
    let hardware = &properties.hardware;
    let threads: u64 = geometry.threads.iter().copied().map(u64::from).product();
    let largest = buffers.inputs.iter().map(|b| b.len());
    let largest = largest.chain(buffers.outputs).max().unwrap_or(0);
    let (grid, cubes) = (buffers.grid, hardware.max_cube_count);
    let (group, units) = (geometry.threads, hardware.max_cube_dim);
    let memory = properties.memory.max_page_size;
    let shared = hardware.max_shared_memory_size as u64;
    for (what, asked, available) in [
        ("workgroups in x", grid[0].into(), cubes.0.into()),
        ("workgroups in y", grid[1].into(), cubes.1.into()),
        ("workgroups in z", grid[2].into(), cubes.2.into()),
        ("threads in x", group[0].into(), units.0.into()),
        ("threads in y", group[1].into(), units.1.into()),
        ("threads in z", group[2].into(), units.2.into()),
        ("threads", threads, hardware.max_units_per_cube.into()),
        ("shared memory", geometry.shared_bytes.into(), shared),
        ("bytes of one buffer", largest as u64, memory),
    ] {
        if asked > available {
            return Err(LaunchError::Limit {
                device,
                what,
                asked,
                available,
            });
        }
    }
    Ok(())
}

/// Runs `f`, turning a panic below into its message.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn caught<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "the driver's library panicked".to_string()))
    })
}

/// Uploads, launches twice, reads back. `task` makes the same kernel each time.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn run<R: cubecl_core::Runtime>(
    client: &cubecl_runtime::client::ComputeClient<R>,
    buffers: &Buffers<'_>,
    task: impl Fn() -> <R::Server as cubecl_runtime::server::ComputeServer>::Kernel,
) -> Result<Output, String> {
    use cubecl_common::future::block_on;
    use cubecl_runtime::server::{CubeCount, KernelArguments};

    // Zeros, so that what lies between the rows of o is always the same.
    let outputs = buffers
        .outputs
        .map(|bytes| client.create_from_slice(&padded(Cow::Owned(vec![0; bytes]))));
    let inputs = buffers.inputs.iter();
    let inputs: Vec<_> = inputs.map(|b| client.create_from_slice(b)).collect();
    let wait = || block_on(client.sync()).map_err(|error| format!("{error:?}"));
    let once = || {
        let bindings = inputs.iter().chain(&outputs).map(|h| h.clone().binding());
        let arguments = KernelArguments::new().with_buffers(bindings.collect());
        let [x, y, z] = buffers.grid;
        let start = std::time::Instant::now();
        // SAFETY: every length was checked against the strides, the rows and the grid.
        unsafe { client.launch_unchecked(task(), CubeCount::Static(x, y, z), arguments) };
        wait()?;
        Ok::<_, String>(start.elapsed().as_secs_f64() * 1e3)
    };
    wait()?;
    let first_launch_milliseconds = once()?;
    let milliseconds = once()?;
    let read = |i: usize| {
        let handle = outputs[i].clone();
        let bytes = client
            .read_one(handle)
            .map_err(|error| format!("{error:?}"))?;
        let bytes = bytes.get(..buffers.outputs[i]);
        bytes
            .map(<[u8]>::to_vec)
            .ok_or_else(|| "a buffer came back short".to_string())
    };
    let lse = read(1)?;
    let floats = lse.chunks_exact(4);
    Ok(Output {
        o: read(0)?,
        lse: floats
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        milliseconds,
        first_launch_milliseconds,
    })
}

/// Bits of a kernel's identity that no cache may mix up.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn identity(kernel: &Loaded<'_>) -> (String, String, [u8; 32]) {
    let digest = blake3::hash(kernel.image);
    (kernel.key.into(), kernel.entry.into(), *digest.as_bytes())
}

#[cfg(not(all(feature = "wgpu", feature = "cuda")))]
fn not_built(device: Device, feature: &'static str, _: &Buffers<'_>) -> LaunchError {
    LaunchError::NotBuilt { device, feature }
}

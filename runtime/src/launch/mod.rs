//! Kernel × arguments → output: the only owner of devices.
//!
//! In:  a kernel as an artifact or an emitter holds it, and host memory. Out: o and lse
//! in host memory, and how long the launches took; or an error, never a panic.
//!
//! Kernels run unchecked, so specification, geometry, and every length are checked before anything
//! reaches a device. That the image is the kernel of its specification is not seen there: artifact
//! folders hold digests for that, and are trusted as programs are.
//! No compiler of a kernel language is called here for SPIR-V and cubin; WGSL is
//! translated by the graphics library, as in a browser.

#[cfg_attr(
    not(all(feature = "wgpu", feature = "cuda")),
    allow(dead_code, unreachable_pub)
)]
mod bind;
#[cfg(feature = "cuda")]
mod cubins;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod product;
#[cfg_attr(
    not(all(feature = "wgpu", feature = "cuda")),
    allow(dead_code, unreachable_pub)
)]
mod ready;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod run;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod shared;
#[cfg(feature = "cuda")]
mod tensor_maps;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "cuda")]
pub use cubins::{seed, seed_folder};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub use product::{Multiply, ReadyProduct};
pub use ready::Ready;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub use shared::{DeviceTable, Launches, Tensors, enqueue};

use bind::buffers;
use butterfly_ir::{
    BandTable, ContractError, Geometry, KernelSpec, LaunchScalars, ScoreValues, Sm,
};
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
    /// The words of a SPIR-V module (little-endian), WGSL text, a cubin, or CUDA C++.
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
    /// The bands, for [`Rows::Table`](butterfly_ir::Rows::Table) only.
    pub rows: Option<&'a BandTable>,
    /// The values for the kernel's [`Score`](butterfly_ir::Score), no more and no fewer.
    pub score: ScoreValues<'a>,
}

/// The scalars of a launch, wherever its tensors are.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The run-time scalars.
    pub scalars: LaunchScalars,
    /// B: sequences.
    pub batch: u32,
    /// The values for the kernel's [`Score`](butterfly_ir::Score), no more and no fewer.
    pub score: ScoreValues<'a>,
}

/// What a launch wrote, and how long it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// o in the kernel's dtype, up to the last element that its strides reach; 0 where
    /// they reach nothing.
    pub o: Vec<u8>,
    /// Natural log-sum-exp, `[B, Hq, q_len]`; -inf where a query sees nothing.
    pub lse: Vec<f32>,
    /// Wall time of the first launch, which also loads the kernel, from submission until
    /// the device was idle again.
    pub first_milliseconds: f64,
    /// The same of the timed launches; means of a few in a row where they are short.
    pub milliseconds: Vec<f64>,
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
    /// The specification or the geometry is none of a kernel for this device.
    #[error("kernel {key} cannot be launched: {reason}")]
    Unfit {
        /// The kernel.
        key: String,
        /// The field, and what it must be.
        reason: ContractError,
    },
    /// A kernel for one device, and the tensors of another.
    #[error("kernel {key} is for {made}, but the tensors are on {given}")]
    Elsewhere {
        /// The kernel.
        key: String,
        /// Its device.
        made: Device,
        /// That of the tensors.
        given: Device,
    },
    /// The rows do not fit the kernel or the queries.
    #[error("the band table {0}")]
    Rows(&'static str),
    /// Softcap or sinks do not fit the kernel.
    #[error("{0}")]
    Score(String),
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

/// Runs `kernel` on `device`, once to load it and then `runs` times (at least once) for
/// the clock, and returns what the last run wrote.
///
/// # Errors
/// See [`LaunchError`]. Nothing is launched unless all arguments fit.
pub fn launch(
    device: Device,
    kernel: &Loaded<'_>,
    arguments: &Arguments<'_>,
    runs: u32,
) -> Result<Output, LaunchError> {
    let kernel = &Ready::new(device, kernel)?;
    let buffers = buffers(device, kernel, arguments)?;
    match device {
        Device::Vulkan | Device::Webgpu => {
            #[cfg(feature = "wgpu")]
            return wgpu::launch(kernel, &buffers, runs);
            #[cfg(not(feature = "wgpu"))]
            return Err(not_built(device, "wgpu", &buffers, runs));
        }
        Device::Cuda => {
            #[cfg(feature = "cuda")]
            return cuda::launch(kernel, buffers, runs);
            #[cfg(not(feature = "cuda"))]
            return Err(not_built(device, "cuda", &buffers, runs));
        }
    }
}

/// What [`launch`] would find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// The device.
    pub device: Device,
    /// What was found, or why it cannot be used.
    pub found: Result<Found, String>,
}

/// A device that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What its driver calls it.
    pub name: String,
    /// Whether it is a program on the CPU.
    pub software: bool,
    /// Its compute capability, on NVIDIA.
    pub sm: Option<Sm>,
    /// Bytes of its memory, where its driver says so.
    pub memory: Option<u64>,
}

/// Looks for every device, without opening any.
pub fn adapters() -> Vec<Adapter> {
    let adapters = Device::ALL.into_iter().map(|device| Adapter {
        device,
        found: find(device),
    });
    adapters.collect()
}

/// Looks for a device, without opening it.
///
/// # Errors
/// Why it cannot be used.
pub fn find(device: Device) -> Result<Found, String> {
    match device {
        Device::Vulkan | Device::Webgpu => {
            #[cfg(feature = "wgpu")]
            return wgpu::probe(device);
            #[cfg(not(feature = "wgpu"))]
            Err("built without the feature `wgpu`".to_string())
        }
        Device::Cuda => {
            #[cfg(feature = "cuda")]
            return driver::probe();
            #[cfg(not(feature = "cuda"))]
            Err("built without the feature `cuda`".to_string())
        }
    }
}

#[cfg(not(all(feature = "wgpu", feature = "cuda")))]
fn not_built(device: Device, feature: &'static str, _: &bind::Buffers<'_>, _: u32) -> LaunchError {
    LaunchError::NotBuilt { device, feature }
}

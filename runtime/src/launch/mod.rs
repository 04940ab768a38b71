//! Launches kernels; the only owner of GPU devices.
//!
//! In:  a kernel, from an artifact or an emitter, and its arguments in host memory.
//! Out: o and lse in host memory, and the times of the launches; or an error, never a panic.
//!
//! Kernels run without bounds checks, so the specification, the geometry and every length are
//! checked before anything reaches a device. Whether the image really is the kernel of its
//! specification cannot be checked: the digests of an artifact folder detect damage, but a folder
//! has to be trusted like a program.
//!
//! For SPIR-V and cubins no compiler of a kernel language is called here; WGSL is translated by the
//! graphics library, as in a browser.

#[cfg_attr(
    not(all(feature = "wgpu", feature = "cuda")),
    allow(dead_code, unreachable_pub)
)]
mod bind;
#[cfg(feature = "cuda")]
mod cubins;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod delta_rule;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod grouped;
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
mod scorer;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod shared;
#[cfg(feature = "cuda")]
mod tensor_maps;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "cuda")]
pub use cubins::{seed, seed_folder};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub use delta_rule::{DeltaTensors, DeltaTokens, ReadyDeltaRule};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub use grouped::{
    FewGates, FewPairs, FewSizes, FewTensors, GroupedSizes, GroupedTensors, NormedSizes,
    NormedTensors, QuantisedExperts, QuantisedSizes, QuantisedTensors, ReadyGrouped,
};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub use product::{Multiply, ReadyProduct, Written};
pub use ready::Ready;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub use scorer::{ReadyScorer, Scoring, ScoringTensors};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub use shared::{DeviceTable, Launches, Tensors, enqueue};

use bind::buffers;
use butterfly_ir::{
    BandTable, ContractError, Geometry, KernelSpec, LaunchScalars, ScoreValues, Sm,
};
use std::fmt;

/// An interface to GPUs through which kernels are launched. The native CPU kernel needs none: it is
/// a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The best Vulkan device, running SPIR-V.
    Vulkan,
    /// The best device of the system's graphics interface (Metal, Direct3D 12 or Vulkan), running
    /// WGSL.
    Webgpu,
    /// The first NVIDIA device, running a cubin or PTX.
    Cuda,
}

impl Device {
    /// All devices, in the order in which they are preferred.
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

/// A kernel as an artifact or an emitter holds it.
#[derive(Clone, Copy, Debug)]
pub struct Loaded<'a> {
    /// Its content key, which is also the name of its files in an artifact folder.
    pub key: &'a str,
    /// Name of the entry point.
    pub entry: &'a str,
    /// The specification that it was compiled for.
    pub spec: &'a KernelSpec,
    /// Its tile sizes, and how it is launched.
    pub geometry: Geometry,
    /// The words of a SPIR-V module (little-endian), WGSL text, a cubin, PTX, or CUDA C++.
    pub image: &'a [u8],
}

/// The arguments of a launch from host memory.
///
/// Tensors are little-endian, in the kernel's element type, with the strides of `scalars`. A tensor
/// may be longer than its strides reach, but not shorter.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    /// The run-time scalars.
    pub scalars: LaunchScalars,
    /// B, the number of sequences.
    pub batch: u32,
    /// Queries, `[B, Hq, q_len, D]`.
    pub q: &'a [u8],
    /// Keys, `[B, Hkv, kv_len, D]`.
    pub k: &'a [u8],
    /// Values, `[B, Hkv, kv_len, Dv]`.
    pub v: &'a [u8],
    /// The band table, if and only if the kernel's rows are
    /// [`Rows::Table`](butterfly_ir::Rows::Table).
    pub rows: Option<&'a BandTable>,
    /// Softcap and sink logits: exactly those that the kernel's [`Score`](butterfly_ir::Score) asks
    /// for.
    pub score: ScoreValues<'a>,
}

/// The arguments of a launch other than its tensors.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The run-time scalars.
    pub scalars: LaunchScalars,
    /// B, the number of sequences.
    pub batch: u32,
    /// Softcap and sink logits: exactly those that the kernel's [`Score`](butterfly_ir::Score) asks
    /// for.
    pub score: ScoreValues<'a>,
    /// Whether the values are the first elements of the keys: v then has the memory and the strides of
    /// k. Kernels may read them once.
    pub v_in_k: bool,
    /// For decode, how many tokens each sequence is behind the longest, to which the scalars apply: its keys end, and its
    /// queries begin, so many tokens earlier. Empty if all are equally long.
    pub lags: &'a [u32],
}

impl Call<'_> {
    /// The first position of a query of any sequence.
    fn first_query(&self) -> u32 {
        let most = self.lags.iter().max().copied().unwrap_or(0);
        self.scalars.q_offset.saturating_sub(most)
    }
}

/// What a launch wrote, and how long it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// o, `[B, Hq, q_len, Dv]`, in the kernel's element type, up to the last element that its
    /// strides reach; bytes in gaps between the strides are 0.
    pub o: Vec<u8>,
    /// Natural log-sum-exp, `[B, Hq, q_len]`; -inf where a query sees nothing.
    pub lse: Vec<f32>,
    /// Wall time of the first launch, which also loads the kernel, from submission until
    /// the device was idle again.
    pub first_milliseconds: f64,
    /// The same for the timed launches. If they are short, each is the mean over a burst of
    /// launches.
    pub milliseconds: Vec<f64>,
}

/// Why a kernel was not launched, or did not finish.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The Cargo feature for the device is off.
    #[error("this build cannot launch on {device}: it was built without the feature `{feature}`")]
    NotBuilt {
        /// The device asked for.
        device: Device,
        /// The feature it needs.
        feature: &'static str,
    },
    /// There is no such device, or it cannot be used.
    #[error("no {device} device: {reason}")]
    Missing {
        /// The device asked for.
        device: Device,
        /// Why it cannot be used.
        reason: String,
    },
    /// A tensor is shorter than its strides reach.
    #[error("`{name}` holds {given} bytes, but its strides reach {needed}")]
    Short {
        /// The argument.
        name: &'static str,
        /// Its length in bytes.
        given: u64,
        /// The least length in bytes.
        needed: u64,
    },
    /// The specification or the geometry is invalid for this device.
    #[error("kernel {key} cannot be launched: {reason}")]
    Unfit {
        /// The kernel.
        key: String,
        /// The field, and its allowed values.
        reason: ContractError,
    },
    /// The kernel is for another device than the one that holds the tensors.
    #[error("kernel {key} is for {made}, but the tensors are on {given}")]
    Elsewhere {
        /// The kernel.
        key: String,
        /// The device that it is for.
        made: Device,
        /// The device of the tensors.
        given: Device,
    },
    /// The band table does not fit the kernel or the queries.
    #[error("the band table {0}")]
    Rows(&'static str),
    /// The lags of sequences do not fit the kernel or the queries.
    #[error("the lags of sequences do not fit: {0}")]
    Lags(String),
    /// Softcap or sinks do not fit the kernel, or are invalid.
    #[error("{0}")]
    Score(String),
    /// A size is above a limit of the device, or of the index arithmetic of the kernel.
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
    /// The device or the kernel lacks something that the launch needs.
    #[error("{device} device cannot run kernel {key}: it lacks {what}")]
    Unsupported {
        /// The device asked for.
        device: Device,
        /// The kernel.
        key: String,
        /// What it lacks.
        what: String,
    },
    /// The image is not a kernel for this device.
    #[error("kernel {key} is not {expected}")]
    Image {
        /// The kernel.
        key: String,
        /// The kind of image that the device runs.
        expected: &'static str,
    },
    /// The driver refused the kernel, or it did not finish.
    #[error("kernel {key} failed on {device}: {reason}")]
    Failed {
        /// The device asked for.
        device: Device,
        /// The kernel.
        key: String,
        /// The message of the driver, or of the library around it.
        reason: String,
    },
}

/// Runs `kernel` on `device`, once to load it and then timed: `runs` measurements, at least one.
/// Returns the results of the last launch.
///
/// # Errors
/// See [`LaunchError`]. Nothing is launched unless all arguments have passed their checks.
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

/// The result of looking for a device.
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
    /// Its name, as its driver reports it.
    pub name: String,
    /// Whether it is a software implementation that runs on the CPU.
    pub software: bool,
    /// Its compute capability, on NVIDIA.
    pub sm: Option<Sm>,
    /// Size of its memory in bytes, if its driver reports it.
    pub memory: Option<u64>,
}

/// Looks for every device without opening one, in the order of [`Device::ALL`].
pub fn adapters() -> Vec<Adapter> {
    let adapters = Device::ALL.into_iter().map(|device| Adapter {
        device,
        found: find(device),
    });
    adapters.collect()
}

/// Looks for a device without opening it.
///
/// # Errors
/// The reason why it cannot be used.
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

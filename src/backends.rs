//! Burn's backends by the device that they run on: those that this build's features include.

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub use burn_cubecl::CubeRuntime;
#[cfg(feature = "cpu")]
pub use burn_flex::Flex as Cpu;
#[cfg(feature = "cuda")]
pub use cubecl::cuda::{CudaDevice, CudaRuntime};
#[cfg(feature = "vulkan")]
pub use cubecl::wgpu::{WgpuDevice, WgpuRuntime};

/// Burn's CUDA backend, without fusion.
#[cfg(feature = "cuda")]
pub type Cuda = burn_cubecl::CubeBackend<CudaRuntime, f32, i32, u8>;
/// Burn's Vulkan backend, without fusion.
#[cfg(feature = "vulkan")]
pub type Vulkan = burn_cubecl::CubeBackend<WgpuRuntime, f32, i32, u8>;

//! Backends of Burn by the device that they run on, as far as this build has them.

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub use burn_cubecl::CubeRuntime;
#[cfg(feature = "cpu")]
pub use burn_flex::Flex as Cpu;
#[cfg(feature = "cuda")]
pub use cubecl::cuda::{CudaDevice, CudaRuntime};
#[cfg(feature = "vulkan")]
pub use cubecl::wgpu::{WgpuDevice, WgpuRuntime};

/// NVIDIA, without fusion.
#[cfg(feature = "cuda")]
pub type Cuda = burn_cubecl::CubeBackend<CudaRuntime, f32, i32, u8>;
/// Vulkan, without fusion.
#[cfg(feature = "vulkan")]
pub type Vulkan = burn_cubecl::CubeBackend<WgpuRuntime, f32, i32, u8>;

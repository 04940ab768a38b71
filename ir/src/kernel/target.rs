//! Targets: the devices and languages for which kernels are made.

use super::Dtype;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A kind of device, and the language of its kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// An NVIDIA GPU of this compute capability: CUDA C++, PTX and cubins.
    Cuda(Sm),
    /// Vulkan 1.1 and later: SPIR-V.
    Vulkan,
    /// WebGPU: WGSL.
    Webgpu,
    /// An Apple GPU: the Metal shading language.
    Metal,
    /// The native kernel of the CPU.
    Cpu,
}

impl Target {
    /// Whether the target's language has the element type `dtype`.
    pub fn has(self, dtype: Dtype) -> bool {
        match (self, dtype) {
            (Self::Vulkan | Self::Webgpu, Dtype::Bf16) => false,
            (Self::Vulkan | Self::Webgpu, Dtype::F32 | Dtype::F16)
            | (Self::Cuda(_) | Self::Metal | Self::Cpu, Dtype::F32 | Dtype::F16 | Dtype::Bf16) => {
                true
            }
        }
    }
}

/// A CUDA compute capability, with or without the architecture-specific suffix `a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sm {
    /// The compute capability times ten: 80 for 8.0.
    pub version: u32,
    /// Whether architecture-specific features are included (`sm_90a`).
    pub arch_specific: bool,
}

impl fmt::Display for Sm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sm_{}{}",
            self.version,
            if self.arch_specific { "a" } else { "" }
        )
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cuda(sm) => write!(f, "cuda:{sm}"),
            Self::Vulkan => f.write_str("vulkan"),
            Self::Webgpu => f.write_str("webgpu"),
            Self::Metal => f.write_str("metal"),
            Self::Cpu => f.write_str("cpu"),
        }
    }
}

/// The name of an unknown target.
#[derive(Debug, thiserror::Error)]
#[error(
    "unknown target `{0}`: give cuda:sm_80, cuda:sm_90a (or another cuda:sm_NN), vulkan, webgpu, metal or cpu"
)]
pub struct UnknownTarget(pub String);

impl TryFrom<String> for Target {
    type Error = UnknownTarget;
    fn try_from(text: String) -> Result<Self, UnknownTarget> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl std::str::FromStr for Target {
    type Err = UnknownTarget;
    fn from_str(text: &str) -> Result<Self, UnknownTarget> {
        let unknown = || UnknownTarget(text.to_string());
        Ok(match text {
            "vulkan" => Self::Vulkan,
            "webgpu" => Self::Webgpu,
            "metal" => Self::Metal,
            "cpu" => Self::Cpu,
            _ => {
                let sm = text.strip_prefix("cuda:sm_").ok_or_else(unknown)?;
                let digits = sm.strip_suffix('a').unwrap_or(sm);
                let version = digits
                    .parse()
                    .ok()
                    .filter(|v| (75..200).contains(v))
                    .ok_or_else(unknown)?;
                Self::Cuda(Sm {
                    version,
                    arch_specific: digits.len() < sm.len(),
                })
            }
        })
    }
}

//! What a kernel runs on.

use super::Dtype;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a kernel runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// NVIDIA, by compute capability.
    Cuda(Sm),
    /// Vulkan 1.1 and later, by SPIR-V.
    Vulkan,
    /// WebGPU, by WGSL.
    Webgpu,
    /// Apple, by the Metal shading language.
    Metal,
    /// The native tile kernel.
    Cpu,
}

impl Target {
    /// Whether its language has an element type.
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

/// A CUDA compute capability with its architecture-specific suffix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sm {
    /// 80 for 8.0.
    pub version: u32,
    /// Whether the `a` feature set is meant (`sm_90a`).
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

/// A target name that is not known.
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

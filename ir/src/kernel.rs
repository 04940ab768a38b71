//! What a kernel is compiled for, and what comes out.

use crate::{Geometry, RowProgram};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Name of the entry point of every kernel for a GPU.
pub const ENTRY: &str = "butterfly_attention";

/// What stands for it where the native kernel runs.
pub const NATIVE_ENTRY: &str = "native";

/// Element type of q, k, v and o. Sums and the log-sum-exp are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> u32 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The name in flags and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

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

/// Which of the attention kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Many queries: one tile of queries of one head at a time.
    Prefill,
    /// Few queries: one query and one GQA group at a time, split over its keys.
    Decode,
}

impl Phase {
    /// The name in reports and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// Where a kernel gets the bands of a row from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    /// Computed in registers.
    ClosedForm(RowProgram),
    /// Read from a table made for one sequence length and stage (see [`BandTable`]).
    Table,
}

/// What a kernel does to logits beside scale and mask; the values come at run time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Score {
    /// A logit `x` becomes `c tanh(x / c)`, which keeps it within `-c..c`.
    pub softcap: bool,
    /// Each q head has one more logit, which takes weight and has no value.
    pub sinks: bool,
}

impl Score {
    /// Whether there is nothing to do.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// The values for a [`Score`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScoreValues<'a> {
    /// c, positive.
    pub softcap: Option<f32>,
    /// The logit of each q head, `[Hq]`; it counts in lse.
    pub sinks: Option<&'a [f32]>,
}

impl ScoreValues<'_> {
    /// Whether `cap` can be a softcap.
    pub fn is_softcap(cap: f32) -> bool {
        cap > 0.0 && cap.is_finite()
    }

    /// Whether `logit` can be that of a sink; minus infinity is none.
    pub fn is_sink(logit: f32) -> bool {
        logit < f32::INFINITY
    }

    /// What a kernel has to be able to do.
    pub fn kind(&self) -> Score {
        Score {
            softcap: self.softcap.is_some(),
            sinks: self.sinks.is_some(),
        }
    }
}

/// Everything a kernel is specialised by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KernelSpec {
    /// Prefill or decode.
    pub phase: Phase,
    /// D, the length of a q and k vector: a multiple of 8, at most 576.
    pub head_dim: u32,
    /// Dv, the length of a v and o vector: a multiple of 8, at most 576.
    pub v_head_dim: u32,
    /// q heads for each kv head.
    pub group: u32,
    /// Element type of q, k, v and o.
    pub dtype: Dtype,
    /// Tokens in a block.
    pub block: u32,
    /// Which keys a row sees.
    pub rows: Rows,
    /// What is done to logits beside scale and mask.
    #[serde(default, skip_serializing_if = "Score::is_plain")]
    pub score: Score,
}

impl KernelSpec {
    /// Most columns of an output that the registers of a warpgroup of Hopper hold.
    pub const WARPGROUP_COLUMNS: u32 = 256;

    /// Whether q and k, or v and o, have more columns than that.
    pub fn is_wide(&self) -> bool {
        self.head_dim.max(self.v_head_dim) > Self::WARPGROUP_COLUMNS
    }
}

/// Bands of all rows, row after row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BandTable {
    /// Bands of row `b` are `bands[offsets[b]..offsets[b + 1]]`; one more entry than rows.
    pub offsets: Vec<u32>,
    /// `lo, hi, first, end` of each band.
    pub bands: Vec<crate::Band>,
}

/// The run-time scalars of a launch, in the order in which every GPU kernel reads
/// them from its `u32` parameter buffer (signed and float values by their bits).
///
/// Strides are in elements; the innermost dimension is contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaunchScalars {
    /// Queries.
    pub q_len: u32,
    /// Keys.
    pub kv_len: u32,
    /// Absolute position of the first query.
    pub q_offset: u32,
    /// Number of kv heads.
    pub kv_heads: u32,
    /// N: blocks of the capacity, which fixes the stages.
    pub blocks: u32,
    /// Index of the layer that picks the stage.
    pub index: u32,
    /// Bits of the f32 factor on the logits.
    pub scale_bits: u32,
    /// Strides of q: batch, head, token.
    pub q_strides: [u64; 3],
    /// Strides of k: batch, head, token.
    pub k_strides: [u64; 3],
    /// Strides of v: batch, head, token.
    pub v_strides: [u64; 3],
    /// Strides of o: batch, head, token. lse is contiguous [B, Hq, q_len].
    pub o_strides: [u64; 3],
}

impl LaunchScalars {
    /// Number of words in the parameter buffer of a plain kernel.
    pub const WORDS: usize = 19;

    /// Number of words that kernels take by value which copy by tensor maps: these, the number of
    /// sequences, the softcap, and one that is not read.
    pub const BY_VALUE: usize = 22;

    /// Where the softcap and the logits of sinks stand, in kernels that read them.
    pub const SOFTCAP_AT: u32 = 20;
    /// See [`LaunchScalars::SOFTCAP_AT`].
    pub const SINKS_AT: u32 = 21;

    /// The parameter buffer for a kernel of `score`: these scalars and, as far as the kernel
    /// reads them, the number of sequences, the softcap, and the logits of sinks.
    pub fn parameters(&self, score: Score, batch: u32, values: &ScoreValues<'_>) -> Vec<u32> {
        let mut words = self.words().to_vec();
        if !score.is_plain() {
            words.extend([batch, values.softcap.unwrap_or(0.0).to_bits()]);
        }
        if score.sinks {
            let sinks = values.sinks.unwrap_or_default();
            words.extend(sinks.iter().map(|sink| sink.to_bits()));
        }
        words
    }

    /// What kernels take by value that copy by tensor maps.
    pub fn by_value(&self, batch: u32, values: &ScoreValues<'_>) -> [u32; Self::BY_VALUE] {
        let mut words = [0; Self::BY_VALUE];
        words[..Self::WORDS].copy_from_slice(&self.words());
        words[Self::WORDS..][..2]
            .copy_from_slice(&[batch, values.softcap.unwrap_or(0.0).to_bits()]);
        words
    }

    /// The parameter buffer. Of strides it holds the low 32 bits: who launches makes sure that there
    /// are no others, but for dimensions of length 1, whose strides are multiplied by zero.
    pub fn words(&self) -> [u32; Self::WORDS] {
        let mut words = [0; Self::WORDS];
        words[..7].copy_from_slice(&[
            self.q_len,
            self.kv_len,
            self.q_offset,
            self.kv_heads,
            self.blocks,
            self.index,
            self.scale_bits,
        ]);
        for (i, strides) in [
            self.q_strides,
            self.k_strides,
            self.v_strides,
            self.o_strides,
        ]
        .iter()
        .enumerate()
        {
            words[7 + 3 * i..10 + 3 * i].copy_from_slice(&strides.map(|stride| stride as u32));
        }
        words
    }
}

/// What a compiled kernel takes of the hardware, as its compiler reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory of a thread, spilled registers and all else.
    pub stack_bytes: u32,
    /// Bytes that the code stores to spill registers, each store counted once.
    pub spill_store_bytes: u32,
    /// Bytes that the code loads to get them back.
    pub spill_load_bytes: u32,
    /// Bytes of shared memory of fixed size; those of [`Geometry::shared_bytes`] that
    /// are asked for at launch are no part of it.
    pub static_shared_bytes: u32,
}

/// The text or binary of one kernel for one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What it was made for.
    pub spec: KernelSpec,
    /// Where it runs.
    pub target: Target,
    /// Name of the entry point.
    pub entry: String,
    /// How it is launched.
    pub geometry: Geometry,
    /// What it takes, where machine code was made whose compiler says so.
    pub resources: Option<Resources>,
    /// File extension and content, the form that is launched last: `cu` then `cubin`.
    /// Buffers in order: q, k, v, parameters (u32), and for [`Rows::Table`] offsets
    /// (u32) and bands (i32, 4 for each), then o, lse (f32).
    pub files: Vec<(String, Vec<u8>)>,
}

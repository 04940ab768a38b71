//! Kernels: what one is compiled for, how it is launched, what it is given, and what comes out.

mod architecture;
mod dtype;
pub mod geometry;
mod scalars;
pub mod signature;
mod spec;
mod target;

pub use architecture::{ARCHITECTURES, Architecture};
pub use dtype::Dtype;
pub use geometry::{Boxes, Geometry, Launch, Resident, Split};
pub use scalars::{LaunchScalars, scalar};
pub use signature::{Binding, Role};
pub use spec::{KernelSpec, Phase, Rows, Score, ScoreValues};
pub use target::{Sm, Target, UnknownTarget};

use serde::{Deserialize, Serialize};

/// Name of the entry point of every kernel for a GPU.
pub const ENTRY: &str = "butterfly_attention";

/// What stands for it where the native kernel runs.
pub const NATIVE_ENTRY: &str = "native";

/// Bands of all rows, row after row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BandTable {
    /// Bands of row `b` are `bands[offsets[b]..offsets[b + 1]]`; one more entry than rows.
    pub offsets: Vec<u32>,
    /// `lo, hi, first, end` of each band.
    pub bands: Vec<crate::Band>,
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

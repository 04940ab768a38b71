//! Kernels: specification, target, launch geometry and arguments, and the emitted result.

mod architecture;
mod dtype;
pub mod geometry;
mod role;
mod scalars;
pub mod signature;
mod spec;
mod target;

pub use architecture::{ARCHITECTURES, Architecture};
pub use dtype::Dtype;
pub use geometry::{Boxes, Geometry, Launch, Resident, Split, Spread};
pub use role::Role;
pub use scalars::{LaunchScalars, TableLayout, scalar};
pub use signature::{Binding, Operand};
pub use spec::{KernelSpec, Rows, Score, ScoreValues};
pub use target::{Sm, Target, UnknownTarget};

use serde::{Deserialize, Serialize};

/// Name of the entry point of every kernel for a GPU.
pub const ENTRY: &str = "butterfly_attention";

/// Name that stands in place of an entry point for the native kernel of the CPU.
pub const NATIVE_ENTRY: &str = "native";

/// The bands of all rows, one row after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BandTable {
    /// Number of kv heads that have rows of their own; 1 if all heads share them.
    pub heads: u32,
    /// Number of sequences that have rows of their own, as those have that choose by content; 1 if
    /// all sequences share them.
    pub sequences: u32,
    /// The row of blocks with which the table begins.
    pub first_row: u32,
    /// Where each row's bands begin and end, sequence by sequence, in each the rows of a head one after
    /// the other: those of row `first_row + i` of the first head are
    /// `bands[offsets[i]..offsets[i + 1]]`. One more entry than there are rows of all heads.
    pub offsets: Vec<u32>,
    /// The bands. A kernel reads each as four `i32`: `lo, hi, first, end`.
    pub bands: Vec<crate::Band>,
}

impl Default for BandTable {
    /// A table without rows, shared by all heads and sequences.
    fn default() -> Self {
        Self {
            heads: 1,
            sequences: 1,
            first_row: 0,
            offsets: Vec::new(),
            bands: Vec::new(),
        }
    }
}

impl BandTable {
    /// Number of rows of a head.
    pub fn rows(&self) -> usize {
        self.offsets.len().saturating_sub(1) / self.lists()
    }

    /// Number of heads, over all sequences, that have rows of their own.
    fn lists(&self) -> usize {
        self.heads.max(1) as usize * self.sequences.max(1) as usize
    }

    /// The most bands of a row.
    pub fn widest_row(&self) -> u32 {
        let rows = self.offsets.windows(2).map(|row| row[1] - row[0]);
        rows.max().unwrap_or_default()
    }

    /// Where its rows lie, as kernels are told.
    pub fn layout(&self) -> TableLayout {
        let rows = self.rows() as u32;
        TableLayout {
            head_rows: if self.heads > 1 { rows } else { 0 },
            sequence_rows: if self.sequences > 1 {
                rows * self.heads
            } else {
                0
            },
            first_row: self.first_row,
        }
    }

    /// The bands of row `b` for kv head `kv_head`, counted through all sequences.
    ///
    /// # Panics
    /// If the table does not have the row, or its offsets are beyond its bands.
    pub fn row(&self, kv_head: usize, b: usize) -> &[crate::Band] {
        let row = kv_head % self.lists() * self.rows() + b - self.first_row as usize;
        &self.bands[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }
}

/// The hardware resources that a compiled kernel uses, as its compiler reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Registers per thread.
    pub registers: u32,
    /// Local memory per thread in bytes, for spilled registers and everything else.
    pub stack_bytes: u32,
    /// Bytes stored by register spills; each store instruction counts once.
    pub spill_store_bytes: u32,
    /// Bytes loaded to restore spilled registers; each load instruction counts once.
    pub spill_load_bytes: u32,
    /// Shared memory of fixed size in bytes, without that which a launch asks for in addition
    /// (see [`Geometry::shared_bytes`]).
    pub static_shared_bytes: u32,
}

/// The text or binary of one kernel for one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What it computes.
    pub spec: KernelSpec,
    /// Where it runs.
    pub target: Target,
    /// Name of the entry point.
    pub entry: String,
    /// How it is launched; its arguments follow from this and the specification
    /// (see [`signature::of`]).
    pub geometry: Geometry,
    /// Its resources; `None` if it was not compiled to machine code, or the compiler did not
    /// report them.
    pub resources: Option<Resources>,
    /// File extension and content of each form. The last one is the form that is launched, for
    /// example first `cu`, then `cubin`.
    pub files: Vec<(String, Vec<u8>)>,
}

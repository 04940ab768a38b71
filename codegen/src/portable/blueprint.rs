//! KernelSpec × target → Blueprint: the compile-time numbers of a portable kernel.
//!
//! In:  a checked `KernelSpec`. Out: tile sizes whose shared memory fits the target.

use butterfly_ir::rows::RowExpressions;
use butterfly_ir::{Dtype, Geometry, KernelSpec, Role, RowProgram, Rows, Score, Target};

/// Threads that compute the score of one key together in decode; divides every head size.
pub(crate) const TEAM: u32 = 8;

/// Threads that reduce one row of scores in decode.
pub(crate) const REDUCERS: u32 = 16;

/// Compile-time numbers of one portable kernel. A tile is `q_tile` query rows by `k_tile` keys.
/// Threads form a grid of `ty` rows by `tx`; a row of threads owns `rows` query rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Blueprint {
    pub(crate) head_dim: u32,
    pub(crate) v_head_dim: u32,
    pub(crate) group: u32,
    pub(crate) block: u32,
    /// The closed form, or `None` for rows from a table.
    pub(crate) rows_in_registers: Option<RowExpressions>,
    pub(crate) score: Score,
    pub(crate) tx: u32,
    pub(crate) ty: u32,
    pub(crate) rows: u32,
    pub(crate) k_tile: u32,
    /// Elements of a head that are in shared memory at a time (in decode: that a team multiplies at
    /// a time); divides `head_dim`.
    pub(crate) d_slice: u32,
    /// Columns of v that a thread owns in each slice, and the number of slices (in decode: the
    /// number of threads that share a column).
    pub(crate) v_cols: u32,
    pub(crate) v_slices: u32,
    /// Words of shared memory: those for weights and reductions, then those for operands (in
    /// decode: for partial products).
    pub(crate) p_words: u32,
    pub(crate) operand_words: u32,
    /// Elements of the kernel's dtype in shared memory; not 0 exactly where matrix units are used.
    pub(crate) operand_elements: u32,
}

impl Blueprint {
    /// The blueprint of `spec` on `target`.
    pub(crate) fn new(spec: &KernelSpec, target: Target) -> Self {
        let rows_in_registers = match &spec.rows {
            Rows::ClosedForm(program) => Some(trimmed(program).lower(spec.block)),
            Rows::Table => None,
        };
        let base = Self {
            head_dim: spec.head_dim,
            v_head_dim: spec.v_head_dim,
            group: spec.group,
            block: spec.block,
            rows_in_registers,
            score: spec.score,
            tx: 0,
            ty: 0,
            rows: 0,
            k_tile: 0,
            d_slice: 0,
            v_cols: 0,
            v_slices: 0,
            p_words: 0,
            operand_words: 0,
            operand_elements: 0,
        };
        match spec.role {
            Role::Prefill => {
                let matrix = has_matrix_units(target, spec.dtype);
                let tiled = matrix.then(|| base.clone().matrix(target)).flatten();
                tiled.unwrap_or_else(|| base.prefill(target))
            }
            Role::Decode => base.decode(target),
        }
    }

    fn prefill(mut self, target: Target) -> Self {
        let dv = self.v_head_dim;
        self.rows = 4;
        self.tx = if dv <= 256 { 16 } else { 32 };
        let most = match target {
            Target::Webgpu => 8,
            Target::Cuda(_) | Target::Vulkan | Target::Metal | Target::Cpu => 256 / self.tx,
        };
        // A tile of queries never crosses the end of a block, so a small block needs a small tile.
        self.ty = (self.block.div_ceil(self.rows))
            .next_power_of_two()
            .clamp(2, most);
        self.k_tile = 32;
        let per_thread = dv.div_ceil(self.tx);
        let cols = match target {
            Target::Webgpu => 64 / self.tx,
            Target::Cuda(_) | Target::Vulkan | Target::Metal | Target::Cpu => 4,
        };
        self.v_slices = per_thread.div_ceil(cols);
        self.v_cols = per_thread.div_ceil(self.v_slices);
        self.p_words = self.q_tile() * (self.k_tile + 1);
        let v_words = self.k_tile * self.tx * self.v_cols;
        self.slice_d(target, v_words)
    }

    /// Prefill on matrix units, with the longest tile of keys that fits shared memory; `None` if
    /// none fits.
    fn matrix(mut self, target: Target) -> Option<Self> {
        // With 256 columns, 16 rows of output take half of the registers of a subgroup's threads.
        if self.v_head_dim > 256 {
            return None;
        }
        self.tx = 32;
        self.rows = 16;
        self.ty = self
            .block
            .div_ceil(self.rows)
            .next_power_of_two()
            .clamp(1, 4);
        let d_pitch = self.head_dim.next_multiple_of(16) + 8;
        let v_pitch = self.v_head_dim.next_multiple_of(16) + 8;
        for k_tile in [64, 32] {
            self.k_tile = k_tile;
            // Queries, keys and values; at the end the output overwrites them.
            let operands = self.q_tile() * d_pitch + k_tile * (d_pitch + v_pitch);
            self.operand_elements = operands.max(self.q_tile() * v_pitch);
            if self.shared_bytes() <= opt_in_limit(target) {
                return Some(self);
            }
        }
        None
    }

    fn decode(mut self, target: Target) -> Self {
        // Numbers of threads, keys and rows with which partial products fit shared memory.
        let (threads, k_tile, most) = match target {
            Target::Cuda(_) => (512, 128, 8),
            Target::Vulkan | Target::Metal | Target::Cpu => (256, 64, 8),
            Target::Webgpu => (256, 64, 4),
        };
        let chunks = self.group.div_ceil(most);
        self.rows = self.group.div_ceil(chunks);
        self.tx = threads;
        self.ty = 1;
        self.k_tile = k_tile;
        let fits =
            |unroll: &u32| self.rows * unroll <= 32 && self.head_dim.is_multiple_of(TEAM * unroll);
        let unroll = [8, 4, 2].into_iter().find(fits).unwrap_or(1);
        self.d_slice = TEAM * unroll;
        // `v_slices` threads share a column, each with its part of the keys.
        self.v_cols = self.v_head_dim.div_ceil(self.tx);
        self.v_slices = (self.tx / self.v_head_dim.next_power_of_two()).max(1);
        self.p_words = self.rows * (self.k_tile + 1 + REDUCERS);
        self.operand_words = self.rows * self.k_tile * (TEAM + 1);
        self
    }

    /// Chooses the longest slice of a head that fits shared memory; operands need at least `least`
    /// words.
    fn slice_d(mut self, target: Target, least: u32) -> Self {
        let rows = self.q_tile() + self.k_tile;
        let fits = |slice: &u32| {
            let words = self.p_words + least.max(rows * (slice + 1));
            self.head_dim.is_multiple_of(*slice) && 4 * words <= shared_limit(target)
        };
        let slice = [32, 16, 8].into_iter().find(fits).unwrap_or(8);
        self.d_slice = slice;
        self.operand_words = least.max(rows * (slice + 1));
        self
    }

    /// Query rows of a tile.
    pub(crate) fn q_tile(&self) -> u32 {
        self.ty * self.rows
    }

    /// Threads of a workgroup.
    pub(crate) fn threads(&self) -> u32 {
        self.tx * self.ty
    }

    /// Whether the kernel multiplies on matrix units.
    pub(crate) fn uses_matrix_units(&self) -> bool {
        self.operand_elements > 0
    }

    fn shared_bytes(&self) -> u32 {
        4 * (self.p_words + self.operand_words) + 2 * self.operand_elements
    }

    /// The launch geometry.
    pub(crate) fn geometry(&self, role: Role) -> Geometry {
        let q_tile = match role {
            Role::Prefill => self.q_tile(),
            Role::Decode => 1,
        };
        Geometry::new(
            [self.threads(), 1, 1],
            [q_tile, self.k_tile],
            self.shared_bytes(),
        )
    }
}

/// Whether kernels use matrix units for `dtype` on `target`.
fn has_matrix_units(target: Target, dtype: Dtype) -> bool {
    match (target, dtype) {
        (Target::Cuda(sm), Dtype::Bf16 | Dtype::F16) => sm.architecture().matrix_units,
        (Target::Cuda(_), Dtype::F32)
        | (Target::Vulkan | Target::Webgpu | Target::Metal | Target::Cpu, _) => false,
    }
}

/// Bytes of shared memory that a kernel may request; on CUDA by raising the function's limit.
fn opt_in_limit(target: Target) -> u32 {
    match target {
        Target::Cuda(sm) => sm.architecture().shared_bytes,
        Target::Webgpu | Target::Vulkan | Target::Metal | Target::Cpu => shared_limit(target),
    }
}

/// Bytes of shared memory that a kernel may use on every device of a target.
fn shared_limit(target: Target) -> u32 {
    match target {
        Target::Webgpu => 16 << 10,
        Target::Vulkan | Target::Metal => 32 << 10,
        Target::Cuda(_) | Target::Cpu => 48 << 10,
    }
}

/// Removes the bands that are empty for every query.
fn trimmed(program: &RowProgram) -> RowProgram {
    let mut program = program.clone();
    program.bands.retain(|band| band.first < band.end);
    program
}

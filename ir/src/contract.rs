//! Preconditions of a launch: a valid specification, and a geometry that fits it.
//!
//! In:  values from a manifest or from a caller. Out: nothing, or the first field that is wrong and
//! its allowed values.
//!
//! Invariants: a launch with checked values never divides by zero, indexes only within its lists,
//! and covers every query with its grid. Everything that the emitters make passes these checks.

use crate::band::MAX_TOKENS;
use crate::kernel::geometry::{Boxes, Geometry, Launch, Resident, Split, Spread};
use crate::pattern::limits::{MAX_BLOCK, MAX_COUNT, MAX_RADIX};
use crate::{
    Atom, Bound, DeltaRule, Dtype, Grouped, GroupedFormat, KernelSpec, PartnerRule, Product, Role,
    RowProgram, Rows, Scorer, Target,
};

/// Most threads of a workgroup, on any device.
const MOST_THREADS: u32 = 1024;
/// Most shared memory of a workgroup, on any device, in bytes.
pub(crate) const MOST_SHARED: u32 = 232_448;
/// Most q heads of a GQA group.
const MOST_GROUP: u32 = 1 << 16;
/// Largest head dimension of GPU kernels, in elements.
const MOST_HEAD_DIM: u32 = 576;
/// Most heads of a linear attention layer.
const MOST_LINEAR_HEADS: u32 = 1024;
/// Most elements of a row of an expert's weight.
const MOST_COLUMNS: u32 = 1 << 24;
/// Threads of a warpgroup.
const WARPGROUP: u32 = 128;
/// Rows of one wgmma product; in Hopper prefill kernels, these rows of logits are a unit of work.
const UNIT_ROWS: u32 = 64;

/// A field whose value would break a launch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {given}, must be {expected}")]
pub struct ContractError {
    /// Path of the field in the checked value.
    pub field: String,
    /// The value found.
    pub given: String,
    /// The allowed values.
    pub expected: String,
}

type Checked = Result<(), ContractError>;

/// Returns an error unless `ok` holds.
fn demand(
    ok: bool,
    field: &str,
    given: impl std::fmt::Debug,
    expected: impl Into<String>,
) -> Checked {
    match ok {
        true => Ok(()),
        false => Err(ContractError {
            field: field.into(),
            given: format!("{given:?}"),
            expected: expected.into(),
        }),
    }
}

/// As [`demand`], for a value between `least` and `most`, both inclusive.
fn within(field: &str, given: u32, least: u32, most: u32) -> Checked {
    let expected = format!("between {least} and {most}");
    demand((least..=most).contains(&given), field, given, expected)
}

/// As [`demand`], for one allowed value.
fn equal<T: std::fmt::Debug + PartialEq>(field: &str, given: T, expected: T) -> Checked {
    let text = format!("{expected:?}");
    demand(given == expected, field, given, text)
}

impl KernelSpec {
    /// Checks the ranges of all fields, for a kernel on `target`.
    ///
    /// # Errors
    /// [`ContractError`] for the first field out of range.
    pub fn check(&self, target: Target) -> Result<(), ContractError> {
        for (field, dim) in [
            ("spec.head_dim", self.head_dim),
            ("spec.v_head_dim", self.v_head_dim),
        ] {
            match target {
                Target::Cpu => within(field, dim, 1, 1 << 16)?,
                Target::Cuda(_) | Target::Vulkan | Target::Webgpu | Target::Metal => {
                    let expected = format!("a multiple of 8, at most {MOST_HEAD_DIM}");
                    let fits = (1..=MOST_HEAD_DIM).contains(&dim) && dim.is_multiple_of(8);
                    demand(fits, field, dim, expected)?;
                }
            }
        }
        within("spec.group", self.group, 1, MOST_GROUP)?;
        within("spec.block", self.block, 1, MAX_BLOCK)?;
        match &self.rows {
            Rows::ClosedForm(program) => program.check(),
            Rows::Table => Ok(()),
        }
    }
}

impl RowProgram {
    /// Checks that bands refer to existing atoms, and that the arguments of atoms are in range.
    ///
    /// # Errors
    /// [`ContractError`] for the first value that is wrong.
    pub fn check(&self) -> Result<(), ContractError> {
        for (i, atom) in self.atoms.iter().enumerate() {
            let Atom::Partner {
                rule,
                radix,
                offset,
                step,
            } = *atom
            else {
                continue;
            };
            let field = |name| format!("rows.atoms[{i}].{name}");
            let most = match rule {
                PartnerRule::CausalShift => MAX_RADIX,
                PartnerRule::Xor
                | PartnerRule::BitReversal
                | PartnerRule::Benes
                | PartnerRule::FixedStride
                | PartnerRule::Random => 2,
            };
            within(&field("radix"), radix, 2, most)?;
            within(&field("offset"), offset, 0, MAX_COUNT)?;
            within(&field("step"), step, 1, radix - 1)?;
        }
        for (i, band) in self.bands.iter().enumerate() {
            for bound in band.lo.iter().chain(&band.hi) {
                let (Bound::Start(atom) | Bound::Stop(atom)) = *bound;
                let there = (atom as usize) < self.atoms.len();
                let expected = format!("one of the {} atoms", self.atoms.len());
                demand(there, &format!("rows.bands[{i}]"), bound, expected)?;
            }
        }
        Ok(())
    }
}

impl Geometry {
    /// Checks that the emitters could have chosen this geometry for `spec` on `target`, so that its
    /// grid covers every query. `spec` must have passed [`KernelSpec::check`].
    ///
    /// # Errors
    /// [`ContractError`] for the first field that does not fit.
    pub fn check(&self, spec: &KernelSpec, target: Target) -> Result<(), ContractError> {
        let [x, y, z] = self.threads;
        equal("geometry.threads", [y, z], [1, 1])?;
        within("geometry.shared_bytes", self.shared_bytes, 0, MOST_SHARED)?;
        let Some(boxes) = self.boxes else {
            equal("the launch of geometry", self.launch, Launch::Grid)?;
            return match target {
                Target::Cpu => self.check_native(spec),
                Target::Cuda(_) | Target::Vulkan | Target::Webgpu | Target::Metal => {
                    self.check_portable(spec)
                }
            };
        };
        let hopper = target.to_string() == "cuda:sm_90a" && spec.dtype != Dtype::F32;
        demand(
            hopper,
            "geometry.boxes",
            boxes,
            "absent but for 16-bit floats on cuda:sm_90a",
        )?;
        let threads = x.is_multiple_of(WARPGROUP) && (WARPGROUP..=MOST_THREADS).contains(&x);
        let expected = format!("a multiple of {WARPGROUP}, at most {MOST_THREADS}");
        demand(threads, "geometry.threads", x, expected)?;
        match (spec.role, self.launch) {
            (Role::Prefill, Launch::Resident(resident)) => {
                self.check_resident(spec, boxes, resident)
            }
            (Role::Decode, Launch::Split(split)) => self.check_split(spec, boxes, split),
            (Role::Prefill, other) => demand(false, "the launch of geometry", other, "`resident`"),
            (Role::Decode, other) => demand(false, "the launch of geometry", other, "`split`"),
        }
    }

    /// The native kernel divides its work itself, so its geometry has only one form.
    fn check_native(&self, spec: &KernelSpec) -> Checked {
        let q_tile = match spec.role {
            Role::Prefill => spec.block,
            Role::Decode => 1,
        };
        equal(
            "geometry",
            *self,
            Self::new([1, 1, 1], [q_tile, spec.block], 0),
        )
    }

    fn check_portable(&self, spec: &KernelSpec) -> Checked {
        let [x, ..] = self.threads;
        let threads = x.is_multiple_of(32) && (32..=MOST_THREADS).contains(&x);
        let expected = format!("a multiple of 32, at most {MOST_THREADS}");
        demand(threads, "geometry.threads", x, expected)?;
        let k_tile = matches!(self.k_tile, 16 | 32 | 64 | 128);
        demand(k_tile, "geometry.k_tile", self.k_tile, "16, 32, 64 or 128")?;
        match spec.role {
            Role::Decode => equal("geometry.q_tile", self.q_tile, 1),
            Role::Prefill => {
                // Without matrix units, each line of 16 or 32 threads computes four queries; with
                // them, each warp computes 16.
                let line = if spec.v_head_dim <= 256 { 16 } else { 32 };
                let tile = self.q_tile;
                let fits = tile == x / line * 4 || (spec.dtype != Dtype::F32 && tile == x / 2);
                let expected = format!("{} or {}", x / line * 4, x / 2);
                demand(fits, "geometry.q_tile", tile, expected)
            }
        }
    }

    fn check_resident(&self, spec: &KernelSpec, boxes: Boxes, resident: Resident) -> Checked {
        let tokens = spec.block.min(UNIT_ROWS);
        let whole = UNIT_ROWS.is_multiple_of(tokens) && spec.block.is_multiple_of(tokens);
        demand(
            whole,
            "spec.block",
            spec.block,
            "16, 32 or a multiple of 64",
        )?;
        let heads = UNIT_ROWS / tokens;
        equal("geometry.boxes.q", boxes.q, [heads, tokens])?;
        let cluster = resident.cluster;
        within("geometry.resident.cluster", cluster, 1, 2)?;
        let k_tile = matches!(self.k_tile, 32 | 64 | 128);
        demand(k_tile, "geometry.k_tile", self.k_tile, "32, 64 or 128")?;
        equal("geometry.boxes.k", boxes.k, self.k_tile / cluster)?;
        // All warpgroups compute, except the producer.
        let consumers = self.threads[0] / WARPGROUP - 1;
        within("consumers by geometry.threads", consumers, 1, 4)?;
        let units = match spec.is_wide() {
            true => cluster,
            false => cluster * consumers,
        };
        let of_heads = spec.group.div_ceil(heads);
        let of_row = u64::from(of_heads) * u64::from(spec.block / tokens);
        let items = of_row.div_ceil(u64::from(units));
        let given = u64::from(resident.items_per_row);
        equal("geometry.resident.items_per_row", given, items)?;
        let q_tile = tokens * units.div_ceil(of_heads);
        equal("geometry.q_tile", self.q_tile, q_tile)
    }

    fn check_split(&self, spec: &KernelSpec, boxes: Boxes, split: Split) -> Checked {
        within("spec.group", spec.group, 1, 32)?;
        equal("geometry.threads", self.threads[0], WARPGROUP)?;
        equal("geometry.boxes.q", boxes.q, [spec.group, 1])?;
        equal("geometry.q_tile", self.q_tile, 1)?;
        equal("geometry.k_tile", self.k_tile, 16)?;
        equal("geometry.boxes.k", boxes.k, self.k_tile)?;
        let cluster = matches!(split.cluster, 1 | 2 | 4 | 8);
        demand(
            cluster,
            "geometry.split.cluster",
            split.cluster,
            "1, 2, 4 or 8",
        )?;
        split.spread.map_or(Ok(()), |spread| spread.check(spec))
    }
}

impl Spread {
    /// That it pays is not checked, only that a launch covers all keys.
    fn check(&self, spec: &KernelSpec) -> Checked {
        let closed = matches!(spec.rows, Rows::ClosedForm(_));
        let absent = "absent where rows come from a table";
        demand(closed, "geometry.split.spread", self, absent)?;
        let field = |name: &str| format!("geometry.split.spread.{name}");
        within(&field("from"), self.from, 1, MAX_TOKENS)?;
        within(&field("part"), self.part, 1, MAX_TOKENS)?;
        within(&field("per_processor"), self.per_processor, 1, 32)?;
        within(&field("shared_bytes"), self.shared_bytes, 0, MOST_SHARED)?;
        // Values by columns of the tiles of keys, 64 at a time.
        let [d, dv] = [spec.head_dim, spec.v_head_dim];
        let whole = dv <= d && d.is_multiple_of(64) && dv.is_multiple_of(64);
        let sizes = "false but for head sizes that are multiples of 64, that of v the smaller one";
        demand(whole || !self.v_in_k, &field("v_in_k"), self.v_in_k, sizes)?;
        let clusters = self.v_in_k || self.within == 0;
        demand(clusters, &field("within"), self.within, "0 where v is read")
    }
}

impl Product {
    /// Checks that the fields are those of a matrix product on Hopper.
    ///
    /// # Errors
    /// [`ContractError`] for the first field that does not fit.
    pub fn check(&self) -> Result<(), ContractError> {
        let half = self.dtype != Dtype::F32;
        demand(half, "product.dtype", self.dtype, "a 16-bit float")?;
        demand(is_name(&self.entry), "product.entry", &self.entry, "a name")?;
        let threads = self.threads;
        let whole = threads.is_multiple_of(WARPGROUP);
        let whole = whole && (2 * WARPGROUP..=MOST_THREADS).contains(&threads);
        demand(
            whole,
            "product.threads",
            threads,
            format!("a multiple of {WARPGROUP} from {} on", 2 * WARPGROUP),
        )?;
        within("product.shared_bytes", self.shared_bytes, 0, MOST_SHARED)?;
        let rows = (threads / WARPGROUP - 1) * UNIT_ROWS;
        equal("product.m_tile", self.m_tile, rows)?;
        let n_tile = self.n_tile.is_multiple_of(16) && (16..=256).contains(&self.n_tile);
        demand(
            n_tile,
            "product.n_tile",
            self.n_tile,
            "a multiple of 16, at most 256",
        )?;
        equal("product.k_tile", self.k_tile, 64)
    }
}

impl Scorer {
    /// Checks that the fields are those of a kernel that scores blocks on Hopper.
    ///
    /// # Errors
    /// [`ContractError`] for the first field that does not fit.
    pub fn check(&self) -> Result<(), ContractError> {
        let half = self.dtype != Dtype::F32;
        demand(half, "scorer.dtype", self.dtype, "a 16-bit float")?;
        demand(is_name(&self.entry), "scorer.entry", &self.entry, "a name")?;
        let d = self.head_dim;
        let whole = d.is_multiple_of(8) && (8..=256).contains(&d);
        demand(whole, "scorer.head_dim", d, "a multiple of 8, at most 256")?;
        within("scorer.group", self.group, 1, MOST_GROUP)?;
        within("scorer.block", self.block, 1, MAX_BLOCK)?;
        for (field, step) in [("scorer.pool", self.pool), ("scorer.every", self.every)] {
            let divides = step > 0 && self.block.is_multiple_of(step);
            demand(divides, field, step, "a divisor of the block")?;
        }
        let means = self.means();
        let tiled = means.is_power_of_two() && means <= Self::MEANS_TILE;
        demand(
            tiled,
            "scorer.pool",
            self.pool,
            "1 to 128 means a block, a power of two",
        )?;
        equal("scorer.threads", self.threads, 2 * WARPGROUP + 32)?;
        within("scorer.shared_bytes", self.shared_bytes, 0, MOST_SHARED)
    }
}

impl DeltaRule {
    /// Checks that the fields are those of kernels for the gated delta rule on Hopper.
    ///
    /// # Errors
    /// [`ContractError`] for the first field that does not fit.
    pub fn check(&self) -> Result<(), ContractError> {
        let half = self.dtype != Dtype::F32;
        demand(half, "delta_rule.dtype", self.dtype, "a 16-bit float")?;
        within("delta_rule.k_heads", self.k_heads, 1, MOST_LINEAR_HEADS)?;
        within("delta_rule.v_heads", self.v_heads, 1, MOST_LINEAR_HEADS)?;
        let shared = self.v_heads.is_multiple_of(self.k_heads);
        let heads = "a multiple of k_heads";
        demand(shared, "delta_rule.v_heads", self.v_heads, heads)?;
        within("delta_rule.taps", self.taps, 2, 8)?;
        // The kernels share their work out to exactly so many threads.
        let threads = [WARPGROUP, WARPGROUP, WARPGROUP + 32, 2 * WARPGROUP];
        for ((name, stage), threads) in self.stages().into_iter().zip(threads) {
            let field = |field: &str| format!("delta_rule.{name}.{field}");
            demand(
                is_name(&stage.entry),
                &field("entry"),
                &stage.entry,
                "a name",
            )?;
            equal(&field("threads"), stage.threads, threads)?;
            let shared = stage.shared_bytes;
            within(&field("shared_bytes"), shared, 0, MOST_SHARED)?;
        }
        Ok(())
    }
}

impl Grouped {
    /// Checks that the fields are those of kernels for products with packed weights on Hopper.
    ///
    /// # Errors
    /// [`ContractError`] for the first field that does not fit.
    pub fn check(&self) -> Result<(), ContractError> {
        let half = self.dtype != Dtype::F32;
        demand(half, "grouped.dtype", self.dtype, "a 16-bit float")?;
        let known = match self.format {
            GroupedFormat::Affine4 { group, .. } => matches!(group, 32 | 64 | 128),
            GroupedFormat::Dense | GroupedFormat::Float8 { .. } | GroupedFormat::Microscaled => {
                true
            }
        };
        let groups = "groups of 32, 64 or 128 elements";
        demand(known, "grouped.format", self.format, groups)?;
        within("grouped.columns", self.columns, 1, MOST_COLUMNS)?;
        let whole = format!("a multiple of {} and of the group", Self::K_TILE);
        demand(self.is_whole(), "grouped.columns", self.columns, whole)?;
        // The kernels share their work out to exactly so many threads.
        let few = Self::FEW_THREADS;
        let threads = [4 * WARPGROUP, few, few, 3 * WARPGROUP];
        let what = "a kernel for FP8 with whole groups, and for nothing else";
        let fits = self.quantised.is_some() == self.has_quantised();
        demand(fits, "grouped.quantised", &self.quantised, what)?;
        for ((name, stage), threads) in self.stages().zip(threads) {
            let field = |field: &str| format!("grouped.{name}.{field}");
            let entry = &stage.entry;
            demand(is_name(entry), &field("entry"), entry, "a name")?;
            equal(&field("threads"), stage.threads, threads)?;
            let shared = stage.shared_bytes;
            within(&field("shared_bytes"), shared, 0, MOST_SHARED)?;
        }
        Ok(())
    }
}

/// Whether `text` can be the name of an entry point.
pub(crate) fn is_name(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    let rest = |c: char| letter(c) || c.is_ascii_digit();
    text.starts_with(letter) && text.chars().all(rest)
}

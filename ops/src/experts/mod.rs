//! Feed-forward layers of experts: a router chooses some experts for each row, and only those compute.
//!
//! [`Route`] turns the logits of a router into a choice, [`Experts`] runs rows through what was chosen. Rows are
//! sorted by expert, so that each weight is read once for all rows that need it.

mod choose;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod cube;
#[cfg(feature = "cpu")]
pub(crate) mod flex;
mod grouped;

pub use choose::Choose;
pub use grouped::GroupedProducts;
#[cfg(feature = "cuda")]
pub use grouped::MakeGrouped;

use crate::OperationError;
use crate::gate::Activation;
use crate::inputs::{Inputs, Names, Outputs, with_rows};
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use crate::limits::{Limits, MOST, product};
use crate::linear::{Part, Storage, storage};
use burn::tensor::DType;
use butterfly_ir::model::{ExpertGroups, Router};
use std::sync::Arc;

/// The choice of experts: logits `[.., E]` in f32 and, if the router is biased, numbers `[E]` in f32 → ids `[.., k]`
/// in i32 and weights `[.., k]` in f32, the expert that ranks highest first; of equal ones the expert with the
/// smaller number. Where an expert is `shared`, ids and weights have one more, and with a gate the logits too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Route {
    /// k, the number of experts that are chosen.
    pub chosen: usize,
    /// How they are chosen.
    pub router: Router,
    /// Whether every row chooses one expert more.
    pub shared: Joined,
}

/// The expert that computes for every row, where it is the last one of a choice: number E, after all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Joined {
    /// The choice has none.
    None,
    /// Its weight is 1.
    Plain,
    /// Its weight is the sigmoid of one more logit, the last one of a row.
    Gated,
}

/// Rows through their experts: x `[.., H]`, ids `[.., k]` in i32 from 0 to below `count` (others stand for the last
/// expert), weights `[.., k]` in f32; the tensors of the inner weights, of which each expert has 2 I rows of H elements,
/// and of the outer weights, H rows of I; if `biased`, two more in f32, `[count, 2 I]` and `[count, H]`; what is
/// `shared` → the sum of weight * expert(x) over the chosen experts and of what is shared, `[.., H]` in x's type.
#[derive(Clone, Debug)]
pub struct Experts {
    /// Number of experts.
    pub count: usize,
    /// The inner weights, section below section.
    pub inner: Sections,
    /// The outer weights, likewise.
    pub outer: Sections,
    /// What is between the two.
    pub activation: Activation,
    /// Whether there are biases.
    pub biased: bool,
    /// What the expert that computes for every row adds.
    pub shared: Shared,
    /// Whether the rows of all chosen experts are wanted, `[.., k, H]`, instead of their sum. There are no biases then, and
    /// nothing is shared.
    pub apart: bool,
    /// Generated kernels for 16-bit floats on Hopper.
    pub products: GroupedProducts,
}

/// What is added to the sum over the chosen experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shared {
    /// Nothing.
    None,
    /// Rows, one more input `[.., H]` in x's type.
    Rows,
    /// Such rows, each multiplied with sigmoid(x g): one more input g, `[H]` in f32.
    Gated,
}

impl Shared {
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::Rows => &["shared"],
            Self::Gated => &["shared", "shared gate"],
        }
    }
}

/// Some rows of the weight of each expert, stored in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Section {
    /// How these rows are stored.
    pub storage: Storage,
    /// Number of rows of an expert.
    pub rows: usize,
    /// Whether tensors hold the rows of all experts, one after another. If not, each expert has tensors of its own,
    /// which devices other than the host do not take.
    pub joined: bool,
}

/// The sections of a weight, one below another. They have the same number of columns.
pub type Sections = Arc<[Section]>;

impl Section {
    /// Bytes of each tensor of an expert's rows.
    ///
    /// # Errors
    /// If rows of `k` elements cannot be stored in this way.
    pub fn sizes(&self, k: usize) -> Result<Vec<usize>, String> {
        match self.storage {
            Storage::Dense(dtype) => Ok(vec![
                self.rows.saturating_mul(k).saturating_mul(dtype.size()),
            ]),
            Storage::Packed(packed) => packed.sizes(self.rows, k),
        }
    }

    /// Names of the tensors of an expert, or of all experts.
    fn names(&self) -> &'static [&'static str] {
        let Self { storage, rows, .. } = *self;
        Part { storage, rows }.names()
    }

    /// Number of tensors.
    pub(crate) fn tensors(&self, experts: usize) -> usize {
        self.names().len() * self.pieces(experts)
    }

    fn pieces(&self, experts: usize) -> usize {
        match self.joined {
            true => 1,
            false => experts,
        }
    }

    /// Checks the tensors, which are the inputs from `at` on, for rows of `k` elements.
    fn check(
        &self,
        inputs: &Inputs<'_>,
        at: usize,
        k: usize,
        experts: usize,
    ) -> Result<(), OperationError> {
        let pieces = self.pieces(experts);
        let each = experts / pieces;
        inputs.positive([("N", self.rows)])?;
        let sizes = self.sizes(k).map_err(|what| inputs.argument(what))?;
        for (i, size) in (0..pieces).flat_map(|_| &sizes).enumerate() {
            match self.storage {
                Storage::Dense(stored) => {
                    inputs.is(at + i, &[each.saturating_mul(self.rows), k])?;
                    inputs.has(at + i, inputs.kernels_for(stored)?)?;
                }
                Storage::Packed(_) => storage::bytes(inputs, at + i, each.saturating_mul(*size))?,
            }
        }
        Ok(())
    }
}

impl Route {
    /// What weights are multiplied with.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "weights are f32, and a scale beyond its range is refused"
    )]
    pub(crate) fn scale(&self) -> f32 {
        self.router.scale as f32
    }

    pub(crate) fn names(&self) -> &'static [&'static str] {
        match self.router.biased {
            true => &["logits", "bias"],
            false => &["logits"],
        }
    }

    /// Logits of a row that are no experts'.
    pub(crate) fn gates(&self) -> usize {
        match self.shared {
            Joined::None | Joined::Plain => 0,
            Joined::Gated => 1,
        }
    }

    /// Experts of a choice.
    pub(crate) fn all(&self) -> usize {
        match self.shared {
            Joined::None => self.chosen,
            Joined::Plain | Joined::Gated => self.chosen + 1,
        }
    }

    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let experts = inputs.row(0)? - self.gates();
        inputs.positive([("experts", experts)])?;
        inputs.has(0, DType::F32)?;
        if self.router.biased {
            inputs.is(1, &[experts])?;
            inputs.has(1, DType::F32)?;
        }
        inputs.positive([("k", self.chosen)])?;
        let all = ExpertGroups {
            count: 1,
            chosen: 1,
        };
        let groups = self.router.groups.unwrap_or(all);
        let [count, chosen] = [groups.count, groups.chosen].map(|n| n as usize);
        inputs.positive([("groups", count), ("chosen groups", chosen)])?;
        if !experts.is_multiple_of(count) || chosen > count {
            return Err(inputs.argument(format!("{chosen} of {count} groups of {experts} experts")));
        }
        let choices = experts / count * chosen;
        if self.chosen > choices {
            return Err(inputs.argument(format!("{} of {choices} experts", self.chosen)));
        }
        if !self.scale().is_finite() {
            return Err(inputs.argument(format!(
                "scale is {}, but must be finite",
                self.router.scale
            )));
        }
        let shape = with_rows(inputs.shape(0), self.all());
        Ok(vec![(shape.clone(), DType::I32), (shape, DType::F32)])
    }
}

/// Most experts, and groups of them, of which kernels on devices choose.
#[cfg(any(feature = "cuda", feature = "vulkan"))]
const MOST_CHOICES: [u64; 2] = [1024, 64];

#[cfg(any(feature = "cuda", feature = "vulkan"))]
impl Route {
    pub(crate) fn limits(&self, limits: &Limits<'_>) -> Result<(), OperationError> {
        limits.rows()?;
        let logits = limits.dims(0).last().copied().unwrap_or_default();
        let experts = (logits - self.gates()) as u64;
        let groups = self.router.groups.map_or(1, |groups| groups.count.into());
        let [most, most_groups] = MOST_CHOICES;
        few(limits, "experts", experts, most)?;
        few(limits, "groups of experts", groups, most_groups)
    }
}

/// Holds a number that a model fixes to what kernels on devices take.
#[cfg(any(feature = "cuda", feature = "vulkan"))]
fn few(limits: &Limits<'_>, what: &str, given: u64, most: u64) -> Result<(), OperationError> {
    match given <= most {
        true => Ok(()),
        false => Err(limits.inputs.argument(format!(
            "{given} {what}, but kernels of this device take at most {most}; run the model on the CPU"
        ))),
    }
}

#[cfg(any(feature = "cuda", feature = "vulkan"))]
impl Experts {
    /// Kernels count elements of activations and words of weights with 32 bits.
    pub(crate) fn limits(&self, limits: &Limits<'_>) -> Result<(), OperationError> {
        limits.counted(0..limits.inputs.inputs.len())?;
        let [most, _] = MOST_CHOICES;
        few(limits, "experts", self.count as u64, most)?;
        let (x, ids) = (limits.dims(0), limits.dims(1));
        let hidden = x.last().copied().unwrap_or_default();
        let pairs = product(ids);
        let widest = hidden.max(2 * self.size()) as u64;
        limits.at_most(
            "ids",
            "elements of results",
            pairs.saturating_mul(widest),
            MOST,
        )?;
        let (_, y, _) = limits.device.hardware.max_cube_count;
        let tiles = pairs / 64 + self.count as u64;
        limits.at_most("ids", "tiles of rows", tiles.max(64), y.into())?;
        for (sections, columns) in [(&self.inner, hidden), (&self.outer, self.size())] {
            for section in sections.iter() {
                if !section.joined {
                    return Err(limits.inputs.argument(
                        "weights of each expert in tensors of their own: devices take one for all"
                            .into(),
                    ));
                }
            }
            if !columns.is_multiple_of(8) {
                return Err(limits.inputs.argument(format!(
                    "rows of {columns} elements: devices multiply rows of a multiple of 8 with experts"
                )));
            }
        }
        Ok(())
    }
}

impl Experts {
    /// Most pairs of a row and an expert that are multiplied one by one, and never quantised.
    pub const FEW: usize = 64;

    pub(crate) fn names(&self) -> Names {
        let sections = self.inner.iter().chain(self.outer.iter());
        let tensors = sections.flat_map(|section| {
            let pieces = 0..section.pieces(self.count);
            pieces.flat_map(|_| section.names())
        });
        let biases: &[&str] = match self.biased {
            true => &["inner bias", "outer bias"],
            false => &[],
        };
        let given = ["x", "ids", "weights"].iter().chain(tensors).chain(biases);
        given.chain(self.shared.names()).copied().collect()
    }

    /// I, the inner size of an expert.
    pub(crate) fn size(&self) -> usize {
        rows(&self.inner) / 2
    }

    pub(crate) fn outputs(&self, inputs: &Inputs<'_>) -> Outputs {
        let (hidden, dtype) = (inputs.row(0)?, inputs.float(0)?);
        let chosen = inputs.row(1)?;
        let choice = with_rows(inputs.shape(0), chosen);
        inputs.positive([("experts", self.count)])?;
        for (i, kind) in [(1, DType::I32), (2, DType::F32)] {
            inputs.is(i, choice.as_slice())?;
            inputs.has(i, kind)?;
        }
        let size = self.size();
        inputs.positive([("I", size)])?;
        for (what, given, expected) in [
            ("inner", rows(&self.inner), size.saturating_mul(2)),
            ("outer", rows(&self.outer), hidden),
        ] {
            if given != expected {
                return Err(inputs.argument(format!(
                    "{what} weights of {given} rows, expected {expected}"
                )));
            }
        }
        let inner = self.inner.iter().map(|section| (section, hidden));
        let outer = self.outer.iter().map(|section| (section, size));
        let mut at = 3;
        for (section, columns) in inner.chain(outer) {
            section.check(inputs, at, columns, self.count)?;
            at += section.tensors(self.count);
        }
        if self.biased {
            for (i, length) in [(at, 2 * size), (at + 1, hidden)] {
                inputs.is(i, &[self.count, length])?;
                inputs.has(i, DType::F32)?;
            }
            at += 2;
        }
        if self.shared != Shared::None {
            inputs.is(at, inputs.shape(0))?;
            inputs.has(at, dtype)?;
        }
        if self.shared == Shared::Gated {
            inputs.is(at + 1, &[hidden])?;
            inputs.has(at + 1, DType::F32)?;
        }
        if !self.apart {
            return Ok(vec![(inputs.inputs[0].0.clone(), dtype)]);
        }
        if self.biased || self.shared != Shared::None {
            let what =
                "rows of experts apart from each other, but with biases or with what is shared";
            return Err(inputs.argument(what.into()));
        }
        Ok(vec![([inputs.shape(1), &[hidden]].concat().into(), dtype)])
    }
}

/// Shapes of [`Operation::Combine`](crate::Operation::Combine).
pub(crate) fn combined(inputs: &Inputs<'_>) -> Outputs {
    let (hidden, dtype) = (inputs.row(0)?, inputs.float(0)?);
    inputs.row(1)?;
    inputs.has(1, DType::F32)?;
    inputs.is(0, &[inputs.shape(1), &[hidden]].concat())?;
    let sums = with_rows(inputs.shape(1), hidden);
    Ok(vec![(sums, dtype)])
}

/// The rows of an expert in all sections.
fn rows(sections: &[Section]) -> usize {
    let rows = sections.iter().map(|section| section.rows);
    rows.fold(0, usize::saturating_add)
}

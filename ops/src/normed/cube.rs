//! Products of norms on CubeCL's runtimes.

use super::{Added, Normed};
use crate::Activation;
use crate::OperationError;
use crate::cube::launch::{empty, shaped};
use crate::experts::cube::combine;
use crate::linear::cube::{FEW, normed_few, project, rest};
use crate::linear::few::{self, Rows};
use crate::linear::packed::cube::words_of;
use crate::linear::{Part, Storage};
use crate::norm::cube::{add_norm, norm};
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_runtime::{Device, Launches};

/// Most rows that each workgroup of a kernel reads to make the norms: more cost more than the launch that they save.
const MOST_READ: usize = 24;

/// Rows, and what makes norms of them; all contiguous.
pub(crate) struct Given<R: CubeRuntime> {
    /// [m, K] in f32.
    pub(crate) x: CubeTensor<R>,
    /// [m, terms, K].
    pub(crate) added: Option<CubeTensor<R>>,
    /// [m, terms] in f32, if they are not all 1.
    pub(crate) factors: Option<CubeTensor<R>>,
    /// [K] in f32.
    pub(crate) norm: CubeTensor<R>,
    pub(crate) epsilon: f32,
}

/// Where sums and norms go that are wanted, of the shape of x.
pub(crate) struct Kept<R: CubeRuntime> {
    /// In f32.
    pub(crate) sums: Option<CubeTensor<R>>,
    pub(crate) norms: Option<CubeTensor<R>>,
}

impl<R: CubeRuntime> Kept<R> {
    /// Memory for sums if anything is added, and for norms if they are wanted.
    pub(crate) fn of<F: FloatElement>(given: &Given<R>, norms: bool) -> Self {
        let memory = |dtype| empty(&given.x, given.x.shape(), dtype);
        Self {
            sums: given.added.is_some().then(|| memory(DType::F32)),
            norms: norms.then(|| memory(F::dtype())),
        }
    }

    /// The outputs, with these of shapes [.., n] or [m, n] behind them.
    pub(crate) fn with(
        self,
        given: &Given<R>,
        others: impl IntoIterator<Item = CubeTensor<R>>,
    ) -> Vec<CubeTensor<R>> {
        let others = others.into_iter().map(|y| {
            let mut shape = given.x.shape().to_vec();
            if let (Some(last), Some(n)) = (shape.last_mut(), y.meta.shape().last()) {
                *last = *n;
            }
            shaped(y, shape)
        });
        let outputs = self.sums.into_iter().chain(self.norms);
        outputs.chain(others).collect()
    }
}

impl<R: CubeRuntime> Given<R> {
    /// Elements of a row.
    pub(crate) fn columns(&self) -> usize {
        self.norm.meta.num_elements()
    }

    pub(crate) fn rows(&self) -> usize {
        self.x.meta.num_elements() / self.columns()
    }

    /// Rows that are added to each row.
    pub(crate) fn terms(&self) -> usize {
        let elements = |rows: &CubeTensor<R>| rows.meta.num_elements() / self.x.meta.num_elements();
        self.added.as_ref().map_or(0, elements)
    }
}

/// # Errors
/// If a generated kernel cannot be made or launched.
pub(crate) fn normed<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Normed,
    inputs: Vec<CubeTensor<R>>,
) -> Result<Vec<CubeTensor<R>>, OperationError> {
    let (given, weight) = given_to(op, inputs);
    if let Some(outputs) = at_once::<R, F>(op, &given, &weight)? {
        return Ok(outputs);
    }
    let mut outputs = one_by_one::<R, F>(given);
    let normed = match op.keep {
        true => outputs.last().cloned(),
        false => outputs.pop(),
    };
    let given = normed.into_iter().chain(weight);
    outputs.extend(project::<R, F>(&op.project, given.collect())?);
    Ok(outputs)
}

/// What makes the norms, and the tensors of the weight, contiguous.
pub(crate) fn given_to<R: CubeRuntime>(
    op: &Normed,
    inputs: Vec<CubeTensor<R>>,
) -> (Given<R>, Vec<CubeTensor<R>>) {
    let mut inputs = inputs.into_iter().map(into_contiguous);
    let mut next = || inputs.next().expect("the inputs were counted");
    let x = next();
    let (added, factors) = match op.added {
        Added::None => (None, None),
        Added::Rows => (Some(next()), None),
        Added::Weighted => (Some(next()), Some(next())),
    };
    let given = Given {
        x,
        added,
        factors,
        norm: next(),
        epsilon: op.epsilon,
    };
    (given, inputs.collect())
}

/// The sum, if anything is added, and its norm.
fn one_by_one<R: CubeRuntime, F: FloatElement>(given: Given<R>) -> Vec<CubeTensor<R>> {
    let Given {
        x,
        added,
        factors,
        norm: scale,
        epsilon,
    } = given;
    let added = match factors {
        None => added,
        Some(factors) => added.map(|rows| combine::<R, F>(rows, &factors)),
    };
    match added {
        None => norm::<R, F>(vec![x, scale], epsilon),
        Some(added) => add_norm::<R, F>(vec![x, added, scale], epsilon),
    }
}

/// All of it by one kernel, but for parts of the weight after the first; `None` if no kernel takes them.
fn at_once<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Normed,
    given: &Given<R>,
    weight: &[CubeTensor<R>],
) -> Result<Option<Vec<CubeTensor<R>>>, OperationError> {
    let project = &op.project;
    let (m, k) = (given.rows(), given.columns());
    let few = m > 0 && m <= FEW && m * (given.terms() + 2) <= MOST_READ;
    let Some((&Part { storage, rows }, others)) = project.parts.split_first() else {
        return Ok(None);
    };
    if !few {
        return Ok(None);
    }
    if project.wide {
        let alone = others.is_empty().then(|| &weight[0]);
        return Ok(alone.and_then(|weight| wide::<R, F>(op, given, weight)));
    }
    let gated = match project.gate {
        None => false,
        Some(Activation::Silu) if others.is_empty() => true,
        Some(_) => return Ok(None),
    };
    if let Storage::Dense(_) = storage {
        return Ok(None);
    }
    let (first, weight) = weight.split_at(storage.names().len());
    let n = project.rows() / if gated { 2 } else { 1 };
    let kept = Kept::of::<F>(given, op.keep || !others.is_empty());
    let y = empty(&given.x, [m, n], F::dtype());
    let words = words_of(storage, k, rows, first);
    let of_first = match gated {
        false => Rows::All(&words),
        true => Rows::Gated(&words),
    };
    if !few::multiply_normed::<R, F>(given, of_first, &kept, &y, &project.grouped)? {
        return Ok(None);
    }
    if let Some(norms) = &kept.norms
        && !others.is_empty()
    {
        let norms = shaped(norms.clone(), [m, k]);
        let tensors = weight.iter().cloned();
        rest::<R, F>(project, &norms, (others, tensors), &y, rows)?;
    }
    let norms = kept.norms.filter(|_| op.keep);
    Ok(Some(Kept { norms, ..kept }.with(given, [y])))
}

/// Products in f32 with a dense weight; `None` if the kernel does not take them.
fn wide<R: CubeRuntime + Launches, F: FloatElement>(
    op: &Normed,
    given: &Given<R>,
    weight: &CubeTensor<R>,
) -> Option<Vec<CubeTensor<R>>> {
    let sizes = [given.rows(), given.columns(), op.project.rows()];
    let half = F::dtype() != DType::F32;
    if R::device(&given.x.client) != Device::Cuda || !half || !normed_few::takes(sizes) {
        return None;
    }
    let kept = Kept::of::<F>(given, op.keep);
    let y = match op.project.parts[0].storage {
        Storage::Dense(stored) if stored == F::dtype() => {
            normed_few::multiply::<R, F, F>(given, weight, &kept)
        }
        Storage::Dense(DType::F32) => normed_few::multiply::<R, F, f32>(given, weight, &kept),
        Storage::Dense(_) | Storage::Packed(_) => return None,
    };
    Some(kept.with(given, [y]))
}

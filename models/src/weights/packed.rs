//! The tensors of a folder that together form one packed weight.
//!
//! - MLX (`mlx.core.quantize`, mode `affine`): `X.weight` holds integers of 2, 4 or 8 bits in 32-bit
//!   words [N, K * bits / 32], `X.scales` and `X.biases` are floats [N, K / group].
//! - FP8 with scales of blocks, as DeepSeek-V3 introduced it (arXiv:2412.19437, section 3.3):
//!   `X.weight` holds e4m3 [N, K], `X.weight_scale_inv` floats for squares of 128 × 128.
//! - MXFP4, as gpt-oss has it: `X_blocks` holds bytes [N, K / 32, 16], `X_scales` exponents [N, K / 32].
//!
//! All are told by the shapes and element types of the tensors alone, so that a layer may differ from
//! the others.

use super::change::Layout;
use super::{Element, Region, View};
use burn::tensor::DType;
use butterfly::Dtype;
use butterfly::ops::{Activations, Packed, Storage};

/// A weight matrix as it is stored: the storage, and the bytes of each of its tensors.
#[derive(Debug)]
pub(crate) struct Stored<'a> {
    pub(crate) storage: Storage,
    pub(crate) tensors: Vec<Region<'a>>,
}

impl Stored<'_> {
    /// The same, with rows that become `activations` if it is in FP8.
    pub(crate) fn with(self, activations: Activations) -> Self {
        let storage = match self.storage {
            Storage::Packed(packed) => Storage::Packed(packed.with(activations)),
            Storage::Dense(_) => self.storage,
        };
        Self { storage, ..self }
    }

    /// The matrix that these are together, if their tensors lie one after another in one file.
    pub(crate) fn span(all: &[Self]) -> Option<Self> {
        let first = all.first()?;
        let spans = (0..first.tensors.len()).map(|i| {
            let regions = all.iter().map(|stored| stored.tensors[i].clone());
            Region::span(&regions.collect::<Vec<_>>())
        });
        Some(Self {
            storage: first.storage,
            tensors: spans.collect::<Option<_>>()?,
        })
    }
}

/// Finds the tensors of the weight `name` of `rows` rows of `columns` elements by `find`, which is
/// asked for the names of all tensors that belong to it.
///
/// # Errors
/// What is missing or does not fit: one line, which begins with the name of the tensor.
pub(crate) fn stored<'a>(
    name: &str,
    [rows, columns]: [usize; 2],
    mut find: impl FnMut(&str) -> Option<View<'a>>,
) -> Result<Stored<'a>, String> {
    let expected = [rows, columns];
    let missing =
        |name: &str, expected: &[usize]| format!("{name}: missing, expected {expected:?}");
    let Some(view) = find(name) else {
        let blocks = format!("{name}_blocks");
        return match find(&blocks) {
            Some(view) => microscaled((&blocks, view), name, expected, find),
            None => Err(missing(name, &expected)),
        };
    };
    // Where a file stores a matrix transposed, that is what is asked for.
    let transposed = [columns, rows];
    let expected = match view.change.layout {
        Layout::Transposed => transposed,
        Layout::Same | Layout::Tiled(_) => expected,
    };
    let shaped = |view: &View<'_>, name: &str, expected: [usize; 2]| match view.shape == expected {
        true => Ok(()),
        false => {
            let given = view.shape;
            Err(format!(
                "{name}: has shape {given:?}, expected {expected:?}"
            ))
        }
    };
    let float = |view: &View<'_>, name: &str| match view.element {
        Element::Float(dtype) => Ok(dtype),
        ref other => Err(format!("{name}: is {other}, expected F32, F16 or BF16")),
    };
    match view.element {
        Element::Float(dtype) => {
            shaped(&view, name, expected)?;
            Ok(Stored {
                storage: Storage::Dense(dense(dtype)),
                tensors: vec![view.bytes],
            })
        }
        Element::Block(packed) => {
            shaped(&view, name, expected)?;
            Ok(Stored {
                storage: Storage::Packed(packed),
                tensors: vec![view.bytes],
            })
        }
        Element::F8 => {
            shaped(&view, name, expected)?;
            let scales_name = format!("{name}_scale_inv");
            let across = [rows.div_ceil(128), columns.div_ceil(128)];
            let scales = find(&scales_name).ok_or_else(|| missing(&scales_name, &across))?;
            shaped(&scales, &scales_name, across)?;
            let packed = Packed::Float8 {
                scales: float(&scales, &scales_name)?,
                activations: Activations::Kept,
            };
            Ok(Stored {
                storage: Storage::Packed(packed),
                tensors: vec![view.bytes, scales.bytes],
            })
        }
        Element::Words => {
            let base = name.strip_suffix(".weight").unwrap_or(name);
            let [scales_name, biases_name] =
                ["scales", "biases"].map(|part| format!("{base}.{part}"));
            let some = [rows, columns / 64];
            let scales = find(&scales_name).ok_or_else(|| missing(&scales_name, &some))?;
            let biases = find(&biases_name).ok_or_else(|| missing(&biases_name, &some))?;
            let (&[words_rows, words], &[scale_rows, groups]) = (view.shape, scales.shape) else {
                return Err(format!(
                    "{name}: has shape {:?} and scales {:?}, expected two dimensions each",
                    view.shape, scales.shape
                ));
            };
            let number =
                |part: usize, of: usize| (part > 0 && of.is_multiple_of(part)).then(|| of / part);
            let group = number(groups, columns).filter(|group| [32, 64, 128].contains(group));
            let bits = number(columns, words * 32).filter(|bits| [2, 4, 8].contains(bits));
            let (Some(group), Some(bits)) = (group, bits) else {
                return Err(format!(
                    "{name}: has {words} words and {groups} scales a row, which are no integers of 2, 4 or 8 bits in groups of 32, 64 or 128 for {columns} elements"
                ));
            };
            if [words_rows, scale_rows] != [rows; 2] {
                return Err(format!(
                    "{name}: has {words_rows} rows and scales for {scale_rows}, expected {rows}"
                ));
            }
            shaped(&biases, &biases_name, [rows, groups])?;
            let dtype = float(&scales, &scales_name)?;
            if float(&biases, &biases_name)? != dtype {
                return Err(format!("{biases_name}: is not of the type of the scales"));
            }
            let packed = Packed::Affine {
                bits: bits as u32,
                group: group as u32,
                scales: dtype,
            };
            Ok(Stored {
                storage: Storage::Packed(packed),
                tensors: vec![view.bytes, scales.bytes, biases.bytes],
            })
        }
        Element::Other(ref other) => Err(format!(
            "{name}: is {other}; F32, F16, BF16, packed integers with scales (MLX) and F8_E4M3 with scales of blocks can be read"
        )),
    }
}

/// The weight `name`, of which `blocks` were found.
fn microscaled<'a>(
    (blocks_name, blocks): (&str, View<'a>),
    name: &str,
    [rows, columns]: [usize; 2],
    mut find: impl FnMut(&str) -> Option<View<'a>>,
) -> Result<Stored<'a>, String> {
    if !columns.is_multiple_of(32) {
        return Err(format!(
            "{blocks_name}: rows of {columns} elements are no whole blocks of 32"
        ));
    }
    let groups = columns / 32;
    let bytes = |name: &str, view: &View<'_>, expected: &[usize]| {
        let (given, element) = (view.shape, &view.element);
        match given == expected && *element == Element::Other("U8".into()) {
            true => Ok(()),
            false => Err(format!(
                "{name}: is {element} of shape {given:?}, expected U8 of {expected:?}"
            )),
        }
    };
    bytes(blocks_name, &blocks, &[rows, groups, 16])?;
    let scales_name = format!("{name}_scales");
    let scales = find(&scales_name)
        .ok_or_else(|| format!("{scales_name}: missing, expected [{rows}, {groups}]"))?;
    bytes(&scales_name, &scales, &[rows, groups])?;
    Ok(Stored {
        storage: Storage::Packed(Packed::Microscaled),
        tensors: vec![blocks.bytes, scales.bytes],
    })
}

/// The element type of tensors for a float type.
pub(crate) fn dense(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    }
}

//! Tensors in safetensors files.

use crate::failure::Failure;
use butterfly_ir::Dtype;
use butterfly_runtime::artifacts::write_file;
use half::{bf16, f16};
use safetensors::tensor::{SafeTensors, TensorView};
use std::path::Path;

/// A tensor `[B, H, T, D]` from a file. `dtype` is its element type there; the values are converted
/// to f32.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) shape: [usize; 4],
    pub(crate) dtype: Dtype,
    pub(crate) values: Vec<f32>,
}

/// Reads the tensors called `names`.
///
/// # Errors
/// A file that cannot be read or is truncated, a missing tensor, another rank or dtype:
/// the message names the file and the tensor.
pub(crate) fn read<const N: usize>(path: &Path, names: [&str; N]) -> Result<[Tensor; N], Failure> {
    let bytes = bytes(path)?;
    let file = whole(path, &bytes)?;
    let mut tensors = Vec::with_capacity(N);
    for name in names {
        let view = named(path, &file, name)?;
        tensors.push(decode(name, &view).map_err(|error| Failure::file(path, error))?);
    }
    tensors
        .try_into()
        .map_err(|_| Failure::Bad("a tensor was lost".into()))
}

/// Reads the vector called `name`.
///
/// # Errors
/// Those of [`read`].
pub(crate) fn vector(path: &Path, name: &str) -> Result<Vec<f32>, Failure> {
    let bytes = bytes(path)?;
    let file = whole(path, &bytes)?;
    let view = named(path, &file, name)?;
    if view.shape().len() != 1 {
        let shape = view.shape();
        let error = format!("`{name}` has shape {shape:?}; one dimension is needed");
        return Err(Failure::file(path, error));
    }
    let dtype = dtype(name, &view).map_err(|error| Failure::file(path, error))?;
    Ok(floats(view.data(), dtype))
}

/// Tokens from a file, and the names of its other tensors.
#[derive(Debug)]
pub(crate) struct Ids {
    /// Sequences and tokens.
    pub(crate) shape: [usize; 2],
    pub(crate) tokens: Vec<u32>,
    /// Names of the tensors that are not read.
    pub(crate) unread: Vec<String>,
}

/// Reads the tokens `input_ids`, `[B, T]`, I64 or I32. An `attention_mask` beside them must be all
/// ones.
///
/// # Errors
/// Those of [`read`], a token below 0, and a mask that hides tokens.
pub(crate) fn ids(path: &Path) -> Result<Ids, Failure> {
    const TOKENS: &str = "input_ids";
    const MASK: &str = "attention_mask";
    let bytes = bytes(path)?;
    let file = whole(path, &bytes)?;
    let view = named(path, &file, TOKENS)?;
    let wrong = |what: String| Failure::file(path, format!("`{TOKENS}` {what}"));
    let shape = <[usize; 2]>::try_from(view.shape())
        .ok()
        .filter(|shape| !shape.contains(&0));
    let Some(shape) = shape else {
        let shape = view.shape();
        return Err(wrong(format!(
            "has shape {shape:?}; two dimensions are needed, sequences and tokens, with at least one of each"
        )));
    };
    let data = view.data();
    let ids: Vec<i64> = match view.dtype() {
        safetensors::Dtype::I64 => {
            let words = data.as_chunks::<8>().0.iter();
            words.map(|b| i64::from_le_bytes(*b)).collect()
        }
        safetensors::Dtype::I32 => {
            let words = data.as_chunks::<4>().0.iter();
            words.map(|b| i32::from_le_bytes(*b).into()).collect()
        }
        other => return Err(wrong(format!("is {other:?}; give I64 or I32"))),
    };
    let tokens = ids.iter().map(|id| u32::try_from(*id));
    let tokens: Result<Vec<u32>, _> = tokens.collect();
    let Ok(tokens) = tokens else {
        return Err(wrong(
            "has a token that is none; give numbers from 0 on".into(),
        ));
    };
    if let Ok(mask) = file.tensor(MASK) {
        check_mask(&mask, shape).map_err(|what| Failure::file(path, format!("`{MASK}` {what}")))?;
    }
    let names = file.names().into_iter();
    let unread = names.filter(|name| ![TOKENS, MASK].contains(name));
    let mut unread: Vec<String> = unread.map(ToString::to_string).collect();
    unread.sort_unstable();
    Ok(Ids {
        shape,
        tokens,
        unread,
    })
}

/// Checks that a mask over tokens of `shape` hides none of them.
fn check_mask(mask: &TensorView<'_>, shape: [usize; 2]) -> Result<(), String> {
    let given = mask.shape();
    if given != shape {
        return Err(format!(
            "has shape {given:?}, `input_ids` {shape:?}; give the same to both"
        ));
    }
    let one: &[u8] = match mask.dtype() {
        safetensors::Dtype::BOOL | safetensors::Dtype::U8 | safetensors::Dtype::I8 => &[1],
        safetensors::Dtype::I16 | safetensors::Dtype::U16 => &[1, 0],
        safetensors::Dtype::I32 | safetensors::Dtype::U32 => &[1, 0, 0, 0],
        safetensors::Dtype::I64 | safetensors::Dtype::U64 => &[1, 0, 0, 0, 0, 0, 0, 0],
        safetensors::Dtype::F32 => &1f32.to_le_bytes(),
        safetensors::Dtype::F16 => &f16::ONE.to_le_bytes(),
        safetensors::Dtype::BF16 => &bf16::ONE.to_le_bytes(),
        other => return Err(format!("is {other:?}; give I64 or BOOL")),
    };
    match mask.data().chunks(one.len()).position(|x| x != one) {
        None => Ok(()),
        Some(at) => Err(format!(
            "hides token {} of sequence {}; padded sequences are not run: give each length a file of its own, without padding",
            at % shape[1],
            at / shape[1]
        )),
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::file(path, format!("cannot read: {error}")))
}

fn whole<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, Failure> {
    SafeTensors::deserialize(bytes).map_err(|error| {
        Failure::file(
            path,
            format!("not a whole safetensors file ({error}); write it again"),
        )
    })
}

fn named<'a>(path: &Path, file: &SafeTensors<'a>, name: &str) -> Result<TensorView<'a>, Failure> {
    file.tensor(name).map_err(|_| {
        let mut found = file.names();
        found.sort_unstable();
        Failure::file(path, format!("no tensor `{name}`; the file has {found:?}"))
    })
}

fn dtype(name: &str, view: &TensorView<'_>) -> Result<Dtype, String> {
    match view.dtype() {
        safetensors::Dtype::F32 => Ok(Dtype::F32),
        safetensors::Dtype::F16 => Ok(Dtype::F16),
        safetensors::Dtype::BF16 => Ok(Dtype::Bf16),
        other => Err(format!(
            "`{name}` is {other:?}; F32, F16 and BF16 are supported"
        )),
    }
}

fn decode(name: &str, view: &TensorView<'_>) -> Result<Tensor, String> {
    let shape: [usize; 4] = view.shape().try_into().map_err(|_| {
        format!(
            "`{name}` has shape {:?}; four dimensions are needed: batch, heads, tokens, head size",
            view.shape()
        )
    })?;
    let dtype = dtype(name, view)?;
    Ok(Tensor {
        shape,
        dtype,
        values: floats(view.data(), dtype),
    })
}

/// The values of little-endian `bytes`.
pub(crate) fn floats(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let halves = bytes.as_chunks::<2>().0.iter();
    match dtype {
        Dtype::F32 => bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect(),
        Dtype::F16 => halves.map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::Bf16 => halves.map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
    }
}

/// Bytes of `values` in `dtype`, rounded to nearest even.
pub(crate) fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => values
            .iter()
            .flat_map(|x| f16::from_f32(*x).to_le_bytes())
            .collect(),
        Dtype::Bf16 => values
            .iter()
            .flat_map(|x| bf16::from_f32(*x).to_le_bytes())
            .collect(),
    }
}

/// Writes named tensors to a file, completely or not at all.
pub(crate) fn write(
    path: &Path,
    tensors: &[(&str, Vec<usize>, Dtype, &[f32])],
) -> Result<(), Failure> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, dtype, values)| encode(values, *dtype))
        .collect();
    let mut views = Vec::new();
    for ((name, shape, dtype, _), data) in tensors.iter().zip(&bytes) {
        let dtype = match dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::Bf16 => safetensors::Dtype::BF16,
        };
        views.push((
            *name,
            TensorView::new(dtype, shape.clone(), data).map_err(Failure::bad)?,
        ));
    }
    let whole = safetensors::serialize(views, None).map_err(Failure::bad)?;
    write_file(path, &whole).map_err(Failure::bad)
}

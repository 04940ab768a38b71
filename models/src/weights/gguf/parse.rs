//! The bytes of one file → its metadata, and where its tensors lie.
//!
//! In:  any bytes. Out: values by key, and tensors whose bytes are in the file; two may have the same
//! name. Nothing is allocated that is larger than what was read for it.
//!
//! Layout, all little endian: `GGUF`, version (u32), number of tensors (u64), number of values
//! (u64), the values (key, type, value), the tensors (name, number of dimensions as u32, dimensions
//! as u64 from the innermost to the outermost, type as u32, offset as u64), zeros up to a multiple of
//! `general.alignment`, and the data, in which offsets count.
//!
//! Source: ggml-org/ggml, `docs/gguf.md`.

use super::cursor::Cursor;
use super::types::GgmlType;
use super::value::{LEAST_ENTRY, Value};
use crate::ModelError;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

/// What one file holds.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) metadata: HashMap<String, Value>,
    pub(super) tensors: Vec<Entry>,
}

/// A tensor of one file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) kind: GgmlType,
    /// From the outermost dimension to the innermost.
    pub(super) shape: Vec<usize>,
    /// Where it lies in the file.
    pub(super) bytes: Range<usize>,
}

/// Alignment of data where the metadata do not give it, in bytes.
const ALIGNMENT: usize = 32;
/// Most dimensions of a tensor in ggml.
const DIMENSIONS: u32 = 4;
/// The fewest bytes that the description of a tensor takes.
const LEAST_TENSOR: usize = 8 + 4 + 4 + 8;

/// Reads the values and tensors of a file; `path` names it in messages.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Parsed, ModelError> {
    let mut cursor = Cursor::new(path, bytes);
    if cursor.take(4, "its magic number").ok() != Some(b"GGUF") {
        return Err(cursor.wrong(
            "is no GGUF file: it does not begin with GGUF; give a .gguf file, or a Hugging Face folder",
        ));
    }
    match cursor.u32("its version")? {
        2 | 3 => {}
        version if (1..=3).contains(&version.swap_bytes()) => {
            return Err(cursor.wrong("is big endian; take the little-endian file of this model"));
        }
        version => {
            return Err(cursor.wrong(format!(
                "is of GGUF version {version}; only 2 and 3 can be read: convert the model again"
            )));
        }
    }
    let tensors = cursor.count(LEAST_TENSOR, "the number of tensors")?;
    let values = cursor.count(LEAST_ENTRY, "the number of metadata values")?;
    let mut metadata = HashMap::new();
    for index in 0..values {
        let key = cursor.string(&format!("key {index} of the metadata"))?;
        let value = Value::read(&mut cursor, &format!("`{key}`"))?;
        if metadata.insert(key.to_string(), value).is_some() {
            return Err(cursor.wrong(format!("has `{key}` twice; convert it again")));
        }
    }
    let mut described = Vec::new();
    for index in 0..tensors {
        described.push(describe(&mut cursor, index)?);
    }
    let alignment = alignment(&cursor, &metadata)?;
    let start = cursor.position().checked_next_multiple_of(alignment);
    let located = described.into_iter().map(|one| {
        let wrong = |what: String| cursor.wrong(format!("tensor `{}` {what}", one.name));
        if !one.offset.is_multiple_of(alignment as u64) {
            return Err(wrong(format!(
                "begins at offset {}, which is not a multiple of `general.alignment`, {alignment}; convert it again",
                one.offset
            )));
        }
        let from = usize::try_from(one.offset).ok();
        let from = from.and_then(|offset| start?.checked_add(offset));
        let to = from.and_then(|from| from.checked_add(one.bytes));
        match (from, to) {
            (Some(from), Some(to)) if to <= bytes.len() => Ok(Entry {
                name: one.name.to_string(),
                kind: one.kind,
                shape: one.shape,
                bytes: from..to,
            }),
            _ => Err(wrong(format!(
                "has {} bytes at offset {} of the data, beyond the file's end at {} bytes: it is truncated; download it again",
                one.bytes,
                one.offset,
                bytes.len()
            ))),
        }
    });
    let located: Result<Vec<Entry>, ModelError> = located.collect();
    Ok(Parsed {
        metadata,
        tensors: located?,
    })
}

/// A tensor before its place in the file is known.
struct Described<'a> {
    name: &'a str,
    kind: GgmlType,
    shape: Vec<usize>,
    /// From the begin of the data.
    offset: u64,
    /// Number of bytes.
    bytes: usize,
}

fn describe<'a>(cursor: &mut Cursor<'a>, index: usize) -> Result<Described<'a>, ModelError> {
    let name = cursor.string(&format!("the name of tensor {index}"))?;
    let what = format!("the description of tensor `{name}`");
    let wrong =
        |cursor: &Cursor<'_>, problem: String| cursor.wrong(format!("tensor `{name}` {problem}"));
    let dimensions = cursor.u32(&what)?;
    if dimensions > DIMENSIONS {
        let problem =
            format!("has {dimensions} dimensions, more than {DIMENSIONS}; download it again");
        return Err(wrong(cursor, problem));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.push(cursor.u64(&what)?);
    }
    let kind = GgmlType::of(cursor.u32(&what)?).map_err(|problem| wrong(cursor, problem))?;
    let offset = cursor.u64(&what)?;
    let block = kind.block();
    let row = shape.first().copied().unwrap_or(1);
    shape.reverse();
    let sizes: Option<Vec<usize>> = shape.iter().map(|n| usize::try_from(*n).ok()).collect();
    let elements = shape
        .iter()
        .try_fold(1u64, |product, n| product.checked_mul(*n));
    let bytes = elements.and_then(|n| (n / block.elements as u64).checked_mul(block.bytes as u64));
    let bytes = bytes.and_then(|n| usize::try_from(n).ok());
    let (Some(sizes), Some(bytes)) = (sizes, bytes) else {
        let problem =
            format!("has more elements than can be counted, {shape:?}; download it again");
        return Err(wrong(cursor, problem));
    };
    if sizes.contains(&0) {
        let problem = format!("has no elements, {shape:?}; download it again");
        return Err(wrong(cursor, problem));
    }
    if !row.is_multiple_of(block.elements as u64) {
        let problem = format!(
            "has rows of {row} elements, which are no whole blocks of {}: {} elements each; convert it again",
            block.name, block.elements
        );
        return Err(wrong(cursor, problem));
    }
    Ok(Described {
        name,
        kind,
        shape: sizes,
        offset,
        bytes,
    })
}

/// `general.alignment`, in bytes.
fn alignment(cursor: &Cursor<'_>, metadata: &HashMap<String, Value>) -> Result<usize, ModelError> {
    let Some(value) = metadata.get("general.alignment") else {
        return Ok(ALIGNMENT);
    };
    let given = value.integer().and_then(|n| usize::try_from(n).ok());
    match given {
        Some(alignment) if alignment.is_power_of_two() => Ok(alignment),
        _ => {
            let given = value.integer().map_or(value.kind(), |n| n.to_string());
            Err(cursor.wrong(format!(
                "`general.alignment` is {given}, expected a power of two; convert it again"
            )))
        }
    }
}

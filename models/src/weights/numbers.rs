//! The elements of stored tensors as numbers.

use super::change::Layout;
use super::upload::convert;
use super::{Element, View, packed};
use burn::tensor::DType;
#[cfg(feature = "cpu")]
use butterfly::ops::Storage;

/// Whether two tensors have the same shape and elements, whatever the types they are stored in.
pub(crate) fn same(a: &View<'_>, b: &View<'_>) -> bool {
    if a.element == b.element || a.shape != b.shape {
        return a.shape == b.shape && a.bytes.bytes() == b.bytes.bytes();
    }
    match (&a.element, &b.element) {
        (Element::Float(_), Element::Float(_)) => numbers(a).eq(numbers(b)),
        _ => false,
    }
}

/// The elements of a tensor in f32, in pieces, since it may be large; none of a tensor that does not
/// say by itself what it stands for.
pub(crate) fn numbers<'a>(view: &View<'a>) -> Box<dyn Iterator<Item = Vec<f32>> + 'a> {
    match view.element {
        Element::Float(dtype) => Box::new(floats(packed::dense(dtype), view.bytes.bytes())),
        #[cfg(feature = "cpu")]
        Element::Block(packed) => rows(packed, view),
        _ => Box::new(std::iter::empty()),
    }
}

fn floats(dtype: DType, bytes: &[u8]) -> impl Iterator<Item = Vec<f32>> {
    const TOGETHER: usize = 4096;
    bytes.chunks(TOGETHER * dtype.size()).map(move |part| {
        let mut bytes = Vec::new();
        convert(dtype, part, DType::F32, &mut bytes);
        let words = bytes.as_chunks::<4>().0.iter();
        words.map(|b| f32::from_le_bytes(*b)).collect()
    })
}

/// The rows of a packed matrix.
#[cfg(feature = "cpu")]
fn rows<'a>(
    packed: butterfly::ops::Packed,
    view: &View<'a>,
) -> Box<dyn Iterator<Item = Vec<f32>> + 'a> {
    let mut shape = view.shape.to_vec();
    if view.change.layout == Layout::Transposed {
        shape.reverse();
    }
    // Vectors are one row.
    let columns = shape.last().copied().unwrap_or(1);
    let count = shape.iter().rev().skip(1).product();
    let storage = Storage::Packed(packed);
    match butterfly::ops::Rows::new(storage, [count, columns], &[view.bytes.bytes()]) {
        Err(_) => Box::new(std::iter::empty()),
        Ok(rows) => Box::new((0..count).map(move |row| {
            let mut out = vec![0.0; columns];
            rows.unpack(row, &mut out);
            out
        })),
    }
}

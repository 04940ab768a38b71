//! Writes GGUF files: small ones for tests of readers, and twins of fixture models.
//!
//! In:  values by key, and tensors with the bytes of their blocks. Out: a file of version 3, or any
//! other that [`Layout`] describes. Nothing is checked, so that broken files can be written too.

pub mod twin;

use std::path::Path;

/// A value of the metadata; whole numbers are written as u32 and i32, floats as f32.
#[derive(Clone, Debug)]
pub enum Value {
    /// u32.
    U32(u32),
    /// i32.
    I32(i32),
    /// u64.
    U64(u64),
    /// f32.
    F32(f32),
    /// bool.
    Bool(bool),
    /// string.
    Text(String),
    /// Array of strings.
    Texts(Vec<String>),
    /// Array of i32.
    Integers(Vec<i32>),
    /// Array of f32.
    Floats(Vec<f32>),
    /// Array of bools.
    Bools(Vec<bool>),
    /// The type's number, and the bytes that follow it.
    Raw(u32, Vec<u8>),
}

/// A tensor.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// From the outermost dimension to the innermost, as in safetensors.
    pub shape: Vec<usize>,
    /// The number of its ggml type: 0 is F32, 1 F16, 30 BF16.
    pub kind: u32,
    /// Its blocks.
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// A tensor of f32.
    pub fn floats(name: &str, shape: &[usize], values: &[f32]) -> Self {
        Self {
            name: name.to_string(),
            shape: shape.to_vec(),
            kind: 0,
            bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

/// How a file is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The version in its header.
    pub version: u32,
    /// To what data is aligned, in bytes. The value `general.alignment` is not written by itself.
    pub alignment: usize,
}

impl Default for Layout {
    /// Version 3, aligned to 32 bytes.
    fn default() -> Self {
        Self {
            version: 3,
            alignment: 32,
        }
    }
}

/// Writes a file of version 3 with the usual alignment.
///
/// # Panics
/// If the file cannot be written.
pub fn write(path: &Path, metadata: &[(&str, Value)], tensors: &[Tensor]) {
    let bytes = bytes(Layout::default(), metadata, tensors);
    std::fs::write(path, bytes).expect("a file that can be written");
}

/// The bytes of a file.
pub fn bytes(layout: Layout, metadata: &[(&str, Value)], tensors: &[Tensor]) -> Vec<u8> {
    let padded = |length: usize| length.next_multiple_of(layout.alignment);
    let mut out = b"GGUF".to_vec();
    out.extend(layout.version.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        value.write(&mut out);
    }
    let mut offset = 0;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in tensor.shape.iter().rev() {
            out.extend((*size as u64).to_le_bytes());
        }
        out.extend(tensor.kind.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += padded(tensor.bytes.len());
    }
    for tensor in tensors {
        out.resize(padded(out.len()), 0);
        out.extend(&tensor.bytes);
    }
    out
}

impl Value {
    fn write(&self, out: &mut Vec<u8>) {
        let mut array = |kind: u32, count: usize, bytes: Vec<u8>| {
            out.extend(9u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((count as u64).to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Self::Integers(list) => {
                let bytes = list.iter().flat_map(|x| x.to_le_bytes()).collect();
                array(5, list.len(), bytes);
            }
            Self::Floats(list) => {
                let bytes = list.iter().flat_map(|x| x.to_le_bytes()).collect();
                array(6, list.len(), bytes);
            }
            Self::Bools(list) => {
                array(7, list.len(), list.iter().map(|x| u8::from(*x)).collect());
            }
            Self::Texts(list) => {
                let mut bytes = Vec::new();
                list.iter().for_each(|one| text(&mut bytes, one));
                array(8, list.len(), bytes);
            }
            Self::U32(x) => one(out, 4, &x.to_le_bytes()),
            Self::I32(x) => one(out, 5, &x.to_le_bytes()),
            Self::F32(x) => one(out, 6, &x.to_le_bytes()),
            Self::Bool(x) => one(out, 7, &[u8::from(*x)]),
            Self::U64(x) => one(out, 10, &x.to_le_bytes()),
            Self::Text(x) => {
                one(out, 8, &[]);
                text(out, x);
            }
            Self::Raw(kind, bytes) => one(out, *kind, bytes),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_string())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::U32(number)
    }
}

impl From<f32> for Value {
    fn from(number: f32) -> Self {
        Self::F32(number)
    }
}

fn one(out: &mut Vec<u8>, kind: u32, bytes: &[u8]) {
    out.extend(kind.to_le_bytes());
    out.extend(bytes);
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

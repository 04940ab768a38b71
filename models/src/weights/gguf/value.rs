//! The values of a file's metadata.
//!
//! In:  the bytes behind a key. Out: a [`Value`]. Arrays may be long (a vocabulary), so they are
//! checked here, but stay in the file until they are asked for.

use super::cursor::Cursor;
use crate::ModelError;
use std::ops::Range;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of the metadata, which lies in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Array {
    pub(super) kind: Kind,
    pub(super) count: usize,
    /// Its elements, in bytes of the file.
    pub(super) bytes: Range<usize>,
}

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

/// How deep arrays of arrays may be nested.
const DEEPEST: u32 = 4;

/// The fewest bytes that a value takes, together with its key.
pub(super) const LEAST_ENTRY: usize = 8 + 4 + 1;

impl Kind {
    /// In the order of their numbers in a file.
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    fn read(cursor: &mut Cursor<'_>, what: &str) -> Result<Self, ModelError> {
        let number = cursor.u32(what)?;
        let kind = Self::ALL.get(number as usize).copied();
        kind.ok_or_else(|| {
            cursor.wrong(format!(
                "{what} has the type {number}, and there are only 0 to {}; download it again, or update Butterfly",
                Self::ALL.len() - 1
            ))
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// Bytes of a value; of a string or an array, the fewest that it takes.
    fn least(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

impl Value {
    /// Reads the type of a value, and the value; `what` names it in messages.
    pub(super) fn read(cursor: &mut Cursor<'_>, what: &str) -> Result<Self, ModelError> {
        let kind = Kind::read(cursor, what)?;
        Self::of(kind, cursor, what)
    }

    /// Reads a value of a type.
    pub(super) fn of(kind: Kind, cursor: &mut Cursor<'_>, what: &str) -> Result<Self, ModelError> {
        Ok(match kind {
            Kind::U8 => Self::U8(u8::from_le_bytes(cursor.array(what)?)),
            Kind::I8 => Self::I8(i8::from_le_bytes(cursor.array(what)?)),
            Kind::U16 => Self::U16(u16::from_le_bytes(cursor.array(what)?)),
            Kind::I16 => Self::I16(i16::from_le_bytes(cursor.array(what)?)),
            Kind::U32 => Self::U32(cursor.u32(what)?),
            Kind::I32 => Self::I32(i32::from_le_bytes(cursor.array(what)?)),
            Kind::F32 => Self::F32(f32::from_le_bytes(cursor.array(what)?)),
            Kind::Bool => Self::Bool(flag(cursor, what)?),
            Kind::String => Self::String(cursor.string(what)?.to_string()),
            Kind::Array => Self::Array(array(cursor, what, DEEPEST)?),
            Kind::U64 => Self::U64(cursor.u64(what)?),
            Kind::I64 => Self::I64(i64::from_le_bytes(cursor.array(what)?)),
            Kind::F64 => Self::F64(f64::from_le_bytes(cursor.array(what)?)),
        })
    }

    /// The type, as messages name it.
    pub(crate) fn kind(&self) -> String {
        let kind = match self {
            Self::U8(_) => Kind::U8,
            Self::I8(_) => Kind::I8,
            Self::U16(_) => Kind::U16,
            Self::I16(_) => Kind::I16,
            Self::U32(_) => Kind::U32,
            Self::I32(_) => Kind::I32,
            Self::F32(_) => Kind::F32,
            Self::Bool(_) => Kind::Bool,
            Self::String(_) => Kind::String,
            Self::Array(array) => return format!("array of {} {}", array.count, array.kind.name()),
            Self::U64(_) => Kind::U64,
            Self::I64(_) => Kind::I64,
            Self::F64(_) => Kind::F64,
        };
        kind.name().to_string()
    }

    /// The whole number, whatever its size.
    pub(super) fn integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(x) => x.into(),
            Self::I8(x) => x.into(),
            Self::U16(x) => x.into(),
            Self::I16(x) => x.into(),
            Self::U32(x) => x.into(),
            Self::I32(x) => x.into(),
            Self::U64(x) => x.into(),
            Self::I64(x) => x.into(),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) | Self::String(_) | Self::Array(_) => {
                return None;
            }
        })
    }

    /// The number; of an f32, its [`decimal`].
    pub(super) fn float(&self) -> Option<f64> {
        match *self {
            Self::F32(x) => Some(decimal(x)),
            Self::F64(x) => Some(x),
            _ => None,
        }
    }
}

/// The shortest decimal that stands for an f32: 1e-5 was a decimal before it became an f32, and is
/// one in a `config.json`.
pub(crate) fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

fn flag(cursor: &mut Cursor<'_>, what: &str) -> Result<bool, ModelError> {
    match cursor.array(what)? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(cursor.wrong(format!(
            "{what} is a bool of {other}, neither 0 nor 1; convert it again"
        ))),
    }
}

/// Reads the type and number of an array's elements, and walks over them.
fn array(cursor: &mut Cursor<'_>, what: &str, deepest: u32) -> Result<Array, ModelError> {
    let kind = Kind::read(cursor, what)?;
    let count = cursor.count(kind.least(), &format!("the number of elements of {what}"))?;
    let start = cursor.position();
    match kind {
        Kind::String => {
            for _ in 0..count {
                cursor.string(what)?;
            }
        }
        Kind::Array if deepest == 0 => {
            return Err(cursor.wrong(format!(
                "{what} has arrays nested more than {DEEPEST} deep; convert it again"
            )));
        }
        Kind::Array => {
            for _ in 0..count {
                array(cursor, what, deepest - 1)?;
            }
        }
        Kind::Bool => {
            for _ in 0..count {
                flag(cursor, what)?;
            }
        }
        Kind::U8
        | Kind::I8
        | Kind::U16
        | Kind::I16
        | Kind::U32
        | Kind::I32
        | Kind::F32
        | Kind::U64
        | Kind::I64
        | Kind::F64 => {
            cursor.take(count as u64 * kind.least() as u64, what)?;
        }
    }
    Ok(Array {
        kind,
        count,
        bytes: start..cursor.position(),
    })
}

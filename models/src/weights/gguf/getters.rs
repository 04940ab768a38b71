//! Reads of metadata that know the type they expect.
//!
//! Whole numbers may be of any integer type, since writers differ in that; a value that does not fit
//! is an error. An absent key is `None`; [`Gguf::required`] makes it an error.

use super::Gguf;
use super::cursor::Cursor;
use super::value::{Array, Kind, Value};
use crate::ModelError;

impl Gguf {
    /// The value of a key.
    pub(crate) fn metadata(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// A value that has to be there: `value` is what was found.
    pub(crate) fn required<T>(
        &self,
        key: &str,
        expected: &str,
        value: Option<T>,
    ) -> Result<T, ModelError> {
        value.ok_or_else(|| {
            self.wrong(format!(
                "has no `{key}` ({expected}) in its metadata; convert the model again"
            ))
        })
    }

    /// A string.
    pub(crate) fn string(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.typed(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A whole number from 0 to 4294967295, of any integer type.
    pub(crate) fn count(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.typed(key, "a whole number from 0 to 4294967295", |value| {
            value.integer().and_then(|n| u32::try_from(n).ok())
        })
    }

    /// A finite f32 or f64.
    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.typed(key, "a finite number of type f32 or f64", |value| {
            value.float().filter(|x| x.is_finite())
        })
    }

    /// A bool.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "a bool", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// An array of strings, such as a vocabulary; they stay in the file.
    pub(crate) fn strings(&self, key: &str) -> Result<Option<Vec<&str>>, ModelError> {
        let Some(array) = self.array(key, "an array of strings", |kind| kind == Kind::String)?
        else {
            return Ok(None);
        };
        let mut cursor = self.cursor(array);
        let strings = (0..array.count).map(|_| cursor.string(key));
        strings.collect::<Result<_, _>>().map(Some)
    }

    /// An array of whole numbers of any integer type, each of which fits i64.
    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, ModelError> {
        let expected = "an array of whole numbers below 2^63";
        let integer = |kind| {
            matches!(
                kind,
                Kind::U8
                    | Kind::I8
                    | Kind::U16
                    | Kind::I16
                    | Kind::U32
                    | Kind::I32
                    | Kind::U64
                    | Kind::I64
            )
        };
        self.elements(key, expected, integer, |value| {
            value.integer().and_then(|n| i64::try_from(n).ok())
        })
    }

    /// An array of f32 or f64, as f32.
    pub(crate) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, ModelError> {
        let float = |kind| matches!(kind, Kind::F32 | Kind::F64);
        self.elements(key, "an array of f32 or f64", float, |value| match value {
            Value::F32(x) => Some(*x),
            Value::F64(x) => Some(*x as f32),
            _ => None,
        })
    }

    /// An array of bools.
    pub(crate) fn flags(&self, key: &str) -> Result<Option<Vec<bool>>, ModelError> {
        let bool = |kind| kind == Kind::Bool;
        self.elements(key, "an array of bools", bool, |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        self.metadata(key)
            .map(|value| convert(value).ok_or_else(|| self.unexpected(key, expected, value)))
            .transpose()
    }

    fn array(
        &self,
        key: &str,
        expected: &str,
        is: impl Fn(Kind) -> bool,
    ) -> Result<Option<&Array>, ModelError> {
        self.typed(key, expected, |value| match value {
            Value::Array(array) if is(array.kind) => Some(array),
            _ => None,
        })
    }

    fn elements<T>(
        &self,
        key: &str,
        expected: &str,
        is: impl Fn(Kind) -> bool,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ModelError> {
        let Some(array) = self.array(key, expected, is)? else {
            return Ok(None);
        };
        let mut cursor = self.cursor(array);
        let elements = (0..array.count).map(|index| {
            let value = Value::of(array.kind, &mut cursor, key)?;
            let key = format!("{key}[{index}]");
            convert(&value).ok_or_else(|| self.unexpected(&key, expected, &value))
        });
        elements.collect::<Result<_, _>>().map(Some)
    }

    /// The elements of an array; metadata are those of the first file.
    fn cursor(&self, array: &Array) -> Cursor<'_> {
        Cursor::at(&self.path, &self.maps[0], array.bytes.start)
    }

    /// The error of a value that is not what it should be.
    pub(crate) fn unexpected(&self, key: &str, expected: &str, value: &Value) -> ModelError {
        let number = value.integer().map(|n| format!("{n} ("));
        let number = number.or(value.float().map(|x| format!("{x} (")));
        let (open, close) = match number {
            Some(open) => (open, ")"),
            None => (String::new(), ""),
        };
        self.wrong(format!(
            "`{key}` is {open}{}{close}, expected {expected}; convert the model again",
            value.kind()
        ))
    }
}

//! Typed reads from a JSON object that know the file and the full path of each field.

use super::ConfigError;
use serde_json::{Map, Value};

/// Length in characters up to which a message quotes a value in full.
const QUOTED: usize = 60;

/// A JSON object and where it stands.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    pub(super) file: &'a str,
    /// Empty, or the path of the object followed by a dot.
    prefix: &'a str,
    object: &'a Map<String, Value>,
    /// Sizes that count where the object has none.
    defaults: &'static [(&'static str, u32)],
}

impl<'a> Fields<'a> {
    pub(super) fn new(file: &'a str, prefix: &'a str, object: &'a Map<String, Value>) -> Self {
        Self {
            file,
            prefix,
            object,
            defaults: &[],
        }
    }

    pub(super) fn with_defaults(self, defaults: &'static [(&'static str, u32)]) -> Self {
        Self { defaults, ..self }
    }

    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The value, unless absent or null.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there, even if null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    pub(super) fn count(&self, name: &str) -> Result<Option<u32>, ConfigError> {
        let expected = "a whole number from 1 to 4294967295";
        self.read(name, expected, |value| {
            u32::try_from(value.as_u64()?).ok().filter(|n| *n > 0)
        })
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u32>, ConfigError> {
        let expected = "a whole number from 0 to 4294967295";
        self.read(name, expected, |value| u32::try_from(value.as_u64()?).ok())
    }

    /// A list of `count` numbers above 0.
    pub(super) fn positives(&self, name: &str, count: usize) -> Result<Vec<f64>, ConfigError> {
        let expected = format!("a list of {count} numbers above 0");
        let numbers = self.read(name, &expected, |value| {
            let numbers = value.as_array()?.iter();
            let numbers: Option<Vec<f64>> = numbers
                .map(|number| number.as_f64().filter(|x| *x > 0.0))
                .collect();
            numbers.filter(|numbers| numbers.len() == count)
        })?;
        numbers.ok_or_else(|| self.missing(name, &expected))
    }

    pub(super) fn count_or(&self, name: &str, default: u32) -> Result<u32, ConfigError> {
        Ok(self.count(name)?.unwrap_or(default))
    }

    pub(super) fn required_count(&self, name: &str) -> Result<u32, ConfigError> {
        let usual = self.defaults.iter().find(|(field, _)| *field == name);
        let usual = usual.map(|(_, size)| *size).filter(|_| !self.has(name));
        let given = self.count(name)?.or(usual);
        given.ok_or_else(|| self.missing(name, "a whole number of at least 1"))
    }

    pub(super) fn positive(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        self.read(name, "a number above 0", |value| {
            value.as_f64().filter(|x| *x > 0.0)
        })
    }

    pub(super) fn required_positive(&self, name: &str) -> Result<f64, ConfigError> {
        self.positive(name)?
            .ok_or_else(|| self.missing(name, "a number above 0"))
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self
            .read(name, "true or false", Value::as_bool)?
            .unwrap_or(default))
    }

    pub(super) fn text(&self, name: &str, expected: &str) -> Result<Option<&'a str>, ConfigError> {
        self.read(name, expected, Value::as_str)
    }

    pub(super) fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, ConfigError> {
        self.read(name, "a JSON object", Value::as_object)
    }

    pub(super) fn list(&self, name: &str) -> Result<Option<&'a Vec<Value>>, ConfigError> {
        self.read(name, "a list", Value::as_array)
    }

    pub(super) fn missing(&self, name: &str, expected: &str) -> ConfigError {
        ConfigError::Missing {
            file: self.file.to_string(),
            field: self.path(name),
            expected: expected.to_string(),
        }
    }

    pub(super) fn bad(&self, name: &str, given: &Value, expected: &str) -> ConfigError {
        ConfigError::Value {
            file: self.file.to_string(),
            field: self.path(name),
            given: quote(given),
            expected: expected.to_string(),
        }
    }

    pub(super) fn unsupported(&self, name: &str, given: &Value, expected: &str) -> ConfigError {
        ConfigError::Unsupported {
            file: self.file.to_string(),
            field: self.path(name),
            given: quote(given),
            expected: expected.to_string(),
        }
    }

    fn read<T>(
        &self,
        name: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        self.get(name)
            .map(|value| convert(value).ok_or_else(|| self.bad(name, value, expected)))
            .transpose()
    }
}

/// A value as JSON, cut off after `QUOTED` characters.
pub(super) fn quote(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(QUOTED) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

//! Models in parts: `NAME-00001-of-00003.gguf`, numbered from 1.
//!
//! Each part is a GGUF file with `split.count` and `split.no`, which counts from 0. The first also
//! has all other metadata.
//!
//! Source: ggml-org/llama.cpp, `tools/gguf-split` and `llama_split_path` in `src/llama.cpp`.

use super::{Gguf, Value};
use crate::ModelError;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The parts of a model.
pub(super) struct Parts {
    /// The path up to the number.
    prefix: PathBuf,
    /// How many there are, at least 2.
    pub(super) count: u32,
}

/// The parts of the model to which a file belongs; `None` if it is the whole model.
pub(super) fn of(
    path: &Path,
    metadata: &HashMap<String, Value>,
) -> Result<Option<Parts>, ModelError> {
    let wrong = |what: String| ModelError::File {
        path: path.to_path_buf(),
        what,
    };
    let Some(count) = number(path, metadata, "split.count")? else {
        return Ok(None);
    };
    if count < 2 {
        return Ok(None);
    }
    let own = number(path, metadata, "split.no")?.unwrap_or(0);
    let tail = tail(own, count);
    let name = path.file_name().and_then(|name| name.to_str());
    match name.and_then(|name| name.strip_suffix(&tail)) {
        Some(begin) => Ok(Some(Parts {
            prefix: path.with_file_name(begin),
            count,
        })),
        None => Err(wrong(format!(
            "is part {} of {count} (`split.no`, `split.count`), and its name does not end in `{tail}`: give the parts the names that they were published with",
            u64::from(own) + 1,
        ))),
    }
}

impl Parts {
    /// The path of a part, counted from 0.
    pub(super) fn path(&self, part: u32) -> PathBuf {
        let mut path = self.prefix.clone().into_os_string();
        path.push(tail(part, self.count));
        path.into()
    }

    /// Checks that a file is the part that its name says.
    pub(super) fn check(
        &self,
        part: u32,
        path: &Path,
        metadata: &HashMap<String, Value>,
    ) -> Result<(), ModelError> {
        for (key, expected) in [("split.no", part), ("split.count", self.count)] {
            let given = number(path, metadata, key)?;
            if given != Some(expected) {
                let given = given.map_or("missing".to_string(), |n| n.to_string());
                return Err(ModelError::File {
                    path: path.to_path_buf(),
                    what: format!(
                        "`{key}` is {given}, expected {expected} by its name; download all parts again"
                    ),
                });
            }
        }
        Ok(())
    }

    /// Checks the number of tensors that all parts have together.
    pub(super) fn check_tensors(&self, model: &Gguf) -> Result<(), ModelError> {
        let expected = number(&model.path, &model.metadata, "split.tensors.count")?;
        match expected {
            Some(expected) if expected as usize != model.tensors.len() => {
                Err(model.wrong(format!(
                    "`split.tensors.count` is {expected}, and the {} parts have {} tensors; download all parts again",
                    self.count,
                    model.tensors.len()
                )))
            }
            _ => Ok(()),
        }
    }
}

/// How the name of a part ends; `part` counts from 0.
fn tail(part: u32, count: u32) -> String {
    format!("-{:05}-of-{count:05}.gguf", u64::from(part) + 1)
}

/// A whole number of a part's metadata.
fn number(
    path: &Path,
    metadata: &HashMap<String, Value>,
    key: &str,
) -> Result<Option<u32>, ModelError> {
    let Some(value) = metadata.get(key) else {
        return Ok(None);
    };
    let number = value.integer().and_then(|n| u32::try_from(n).ok());
    match number {
        Some(number) => Ok(Some(number)),
        None => Err(ModelError::File {
            path: path.to_path_buf(),
            what: format!(
                "`{key}` is {}, expected a whole number of at least 0; download it again",
                value.integer().map_or(value.kind(), |n| n.to_string())
            ),
        }),
    }
}

//! Reads of numbers and strings, one after another, that cannot leave the file.

use crate::ModelError;
use std::fmt::Display;
use std::path::Path;

/// A position in a file. `what`, in every function, is the thing that is being read: where the file
/// ends within it, the error says so.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, at: 0 }
    }

    /// The same file, read from byte `at` on.
    pub(super) fn at(path: &'a Path, bytes: &'a [u8], at: usize) -> Self {
        Self { path, bytes, at }
    }

    /// The position, in bytes from the file's begin.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Number of bytes that follow.
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    /// An error of this file.
    pub(super) fn wrong(&self, what: impl Display) -> ModelError {
        ModelError::File {
            path: self.path.to_path_buf(),
            what: what.to_string(),
        }
    }

    /// The next `count` bytes.
    pub(super) fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], ModelError> {
        let remaining = self.remaining();
        match usize::try_from(count) {
            Ok(count) if count <= remaining => {
                let taken = &self.bytes[self.at..self.at + count];
                self.at += count;
                Ok(taken)
            }
            _ => Err(self.wrong(format!(
                "is truncated: {what} takes {count} bytes from byte {}, where {remaining} remain; download it again",
                self.at
            ))),
        }
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ModelError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, ModelError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, ModelError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A string: its length in bytes (u64), and its bytes, which are UTF-8.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a str, ModelError> {
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes)
            .map_err(|error| self.wrong(format!("{what} is not UTF-8: {error}; convert it again")))
    }

    /// A count (u64) of things that take at least `least` bytes each.
    pub(super) fn count(&mut self, least: usize, what: &str) -> Result<usize, ModelError> {
        let given = self.u64(what)?;
        let most = self.remaining() / least;
        match usize::try_from(given) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(self.wrong(format!(
                "claims that {what} is {given}, but at most {most} fit into the rest of the file; download it again"
            ))),
        }
    }
}

//! What was measured so far, kept beside the policy so that a second start goes on from there.
//!
//! In:  the digest of all that results depend on. Out: `POLICY.json.partial`, JSON lines: the digest,
//! then what was measured, each line written at once. A last line without its end is what a process was
//! writing when it was stopped, and is dropped.

use crate::failure::Failure;
use butterfly_models::calibrate::{Comparison, Site};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Something that was measured on one window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// The window, by its number among those that the choice is made on.
    pub(super) window: usize,
    pub(super) replaced: Replaced,
    pub(super) sums: Comparison,
}

/// What was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Replaced {
    /// One part alone.
    Site(Site),
    /// So many of the least harmful parts.
    First(usize),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    digest: String,
}

/// The file, open for more lines.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    file: File,
    entries: Vec<Entry>,
}

impl Partial {
    /// Opens what is kept for the policy at `output`, or begins it.
    pub(super) fn open(output: &Path, digest: &str) -> Result<Self, Failure> {
        let mut path = output.as_os_str().to_os_string();
        path.push(".partial");
        let path = PathBuf::from(path);
        let (entries, kept) = match fs::read_to_string(&path) {
            Ok(text) => read(&text, digest).map_err(|what| {
                let way_out = "delete it, or give another --output";
                Failure::file(&path, format!("{what}; {way_out}"))
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (Vec::new(), 0),
            Err(error) => return Err(Failure::file(&path, format!("cannot read: {error}"))),
        };
        let open = || {
            let mut options = File::options();
            let file = options.create(true).append(true).open(&path)?;
            file.set_len(kept as u64)?;
            Ok(file)
        };
        let failed = |error: std::io::Error| Failure::file(&path, format!("cannot write: {error}"));
        let mut partial = Self {
            file: open().map_err(failed)?,
            path,
            entries,
        };
        if kept == 0 {
            let digest = digest.to_string();
            partial.line(&Head { digest })?;
        }
        Ok(partial)
    }

    /// Number of measurements that there are already.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn find(&self, window: usize, replaced: Replaced) -> Option<Comparison> {
        let is = |entry: &&Entry| entry.window == window && entry.replaced == replaced;
        self.entries.iter().find(is).map(|entry| entry.sums)
    }

    /// Keeps a measurement.
    pub(super) fn add(&mut self, entry: Entry) -> Result<(), Failure> {
        self.line(&entry)?;
        self.entries.push(entry);
        Ok(())
    }

    fn line(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let line = serde_json::to_string(value).map_err(Failure::bad)? + "\n";
        let written = self.file.write_all(line.as_bytes());
        written.map_err(|error| Failure::file(&self.path, format!("cannot write: {error}")))
    }

    /// Removes the file: the policy is written.
    pub(super) fn remove(self) -> Result<(), Failure> {
        let removed = fs::remove_file(&self.path);
        removed.map_err(|error| Failure::file(&self.path, format!("cannot remove: {error}")))
    }
}

/// The measurements of a text, and the length in bytes of its whole lines.
fn read(text: &str, digest: &str) -> Result<(Vec<Entry>, usize), String> {
    let kept = text.rfind('\n').map_or(0, |at| at + 1);
    let mut lines = text[..kept].lines().zip(1..);
    let Some((first, _)) = lines.next() else {
        // Stopped before the first line was whole.
        return Ok((Vec::new(), 0));
    };
    let head: Head = serde_json::from_str(first)
        .map_err(|error| format!("is not what a calibration keeps: line 1: {error}"))?;
    if head.digest != digest {
        return Err("was begun with another model, text or pattern, or with other options".into());
    }
    let entries = lines.map(|(line, number)| {
        serde_json::from_str(line).map_err(|error| format!("line {number}: {error}"))
    });
    Ok((entries.collect::<Result<_, _>>()?, kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(window: usize, replaced: Replaced) -> Entry {
        let sums = Comparison {
            scored: 7,
            kl: 0.1 + window as f64 / 3.0,
            ..Comparison::default()
        };
        Entry {
            window,
            replaced,
            sums,
        }
    }

    #[test]
    fn what_was_measured_is_found_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let output = dir.path().join("policy.json");
        let site = Replaced::Site(Site {
            layer: 3,
            head: Some(1),
        });
        let mut partial = Partial::open(&output, "abc").expect("begun");
        assert_eq!(partial.len(), 0);
        partial.add(entry(0, site)).expect("kept");
        partial.add(entry(1, Replaced::First(2))).expect("kept");
        drop(partial);
        // The process was stopped in the middle of a line.
        let path = dir.path().join("policy.json.partial");
        let mut file = File::options().append(true).open(&path).expect("there");
        file.write_all(b"{\"window\":1,\"repl").expect("written");
        let mut partial = Partial::open(&output, "abc").expect("goes on");
        assert_eq!(partial.find(0, site), Some(entry(0, site).sums));
        assert_eq!(partial.find(1, site), None);
        partial.add(entry(2, site)).expect("kept");
        let partial = Partial::open(&output, "abc").expect("goes on");
        assert_eq!(partial.len(), 3);
        assert_eq!(partial.find(2, site), Some(entry(2, site).sums));
        partial.remove().expect("removed");
        assert!(!path.exists());
    }

    #[test]
    fn what_belongs_to_something_else_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let output = dir.path().join("policy.json");
        let path = dir.path().join("policy.json.partial");
        for (text, said) in [
            ("{\"digest\":\"other\"}\n", "another model, text or pattern"),
            ("nothing\n", "line 1"),
            ("{\"digest\":\"abc\"}\n{}\n", "line 2"),
        ] {
            fs::write(&path, text).expect("written");
            let Err(Failure::Bad(message)) = Partial::open(&output, "abc") else {
                panic!("{text} is taken");
            };
            assert!(message.contains("policy.json.partial: "), "{message}");
            assert!(
                message.contains(said) && message.contains("delete it"),
                "{message}"
            );
            assert_eq!(fs::read_to_string(&path).expect("there"), text);
        }
        // A first line that is not whole is no reason to stop.
        fs::write(&path, "{\"dig").expect("written");
        assert_eq!(Partial::open(&output, "abc").expect("begun").len(), 0);
    }
}

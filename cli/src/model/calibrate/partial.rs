//! What was measured so far, kept beside the policy so that a second start goes on from there.
//!
//! In:  the digest of all that results depend on. Out: `POLICY.json.partial`, JSON lines: the digest,
//! then what was measured, each line written at once. A last line without its end is what a process was
//! writing when it was stopped, and is dropped.

use super::recall::Recall;
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

/// What a set of so many of the least harmful parts finds in prompts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Found {
    parts: usize,
    recall: Recall,
}

/// A line of the file, after the first.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Entry(Entry),
    Found(Found),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    digest: String,
}

/// What the file has, and what is added to it. It is made with the first measurement, so that a
/// calibration which is refused leaves none.
pub(super) struct Partial {
    path: PathBuf,
    digest: String,
    /// The file, once a line was added.
    file: Option<File>,
    /// Bytes of the whole lines that it had.
    kept: usize,
    lines: Vec<Line>,
}

impl Partial {
    /// Reads what is kept for the policy at `output`, if there is anything.
    pub(super) fn open(output: &Path, digest: &str) -> Result<Self, Failure> {
        let mut path = output.as_os_str().to_os_string();
        path.push(".partial");
        let path = PathBuf::from(path);
        let (lines, kept) = match fs::read_to_string(&path) {
            Ok(text) => read(&text, digest).map_err(|what| {
                let way_out = "delete it, or give another --output";
                Failure::file(&path, format!("{what}; {way_out}"))
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (Vec::new(), 0),
            Err(error) => return Err(Failure::file(&path, format!("cannot read: {error}"))),
        };
        Ok(Self {
            path,
            digest: digest.to_string(),
            file: None,
            kept,
            lines,
        })
    }

    /// Number of measurements that there are already.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    pub(super) fn find(&self, window: usize, replaced: Replaced) -> Option<Comparison> {
        self.lines.iter().find_map(|line| match line {
            Line::Entry(entry) if (entry.window, entry.replaced) == (window, replaced) => {
                Some(entry.sums)
            }
            Line::Entry(_) | Line::Found(_) => None,
        })
    }

    /// What a set of so many parts finds in prompts that `made` says are those of this run.
    pub(super) fn recall(&self, parts: usize, made: impl Fn(&Recall) -> bool) -> Option<Recall> {
        self.lines.iter().find_map(|line| match line {
            Line::Found(found) if found.parts == parts && made(&found.recall) => Some(found.recall),
            Line::Entry(_) | Line::Found(_) => None,
        })
    }

    /// Keeps a measurement.
    pub(super) fn add(&mut self, entry: Entry) -> Result<(), Failure> {
        self.keep(Line::Entry(entry))
    }

    /// Keeps what a set of so many parts finds.
    pub(super) fn add_recall(&mut self, parts: usize, recall: Recall) -> Result<(), Failure> {
        self.keep(Line::Found(Found { parts, recall }))
    }

    fn keep(&mut self, line: Line) -> Result<(), Failure> {
        self.line(&line)?;
        self.lines.push(line);
        Ok(())
    }

    fn line(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let failed =
            |error: std::io::Error| Failure::file(&self.path, format!("cannot write: {error}"));
        let line = |text: String| text + "\n";
        let mut text = line(serde_json::to_string(value).map_err(Failure::bad)?);
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let mut options = File::options();
                let file = options.create(true).append(true).open(&self.path);
                let file = file.map_err(failed)?;
                // Without the line that a process was writing when it was stopped.
                file.set_len(self.kept as u64).map_err(failed)?;
                if self.kept == 0 {
                    let digest = self.digest.clone();
                    let head = serde_json::to_string(&Head { digest }).map_err(Failure::bad)?;
                    text = line(head) + &text;
                }
                none.insert(file)
            }
        };
        file.write_all(text.as_bytes()).map_err(failed)
    }

    /// Removes the file: the policy is written.
    pub(super) fn remove(self) -> Result<(), Failure> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Failure::file(&self.path, format!("cannot remove: {error}")))
            }
            _ => Ok(()),
        }
    }
}

/// The measurements of a text, and the length in bytes of its whole lines.
fn read(text: &str, digest: &str) -> Result<(Vec<Line>, usize), String> {
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
    let lines = lines.map(|(line, number)| {
        serde_json::from_str(line).map_err(|error| format!("line {number}: {error}"))
    });
    Ok((lines.collect::<Result<_, _>>()?, kept))
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
        assert!(!dir.path().join("policy.json.partial").exists());
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
        let recall = Recall {
            prompts: 20,
            tokens: 4088,
            seed: 0,
            share: 0.85,
            interval: [0.6, 0.95],
        };
        partial.add_recall(4, recall).expect("kept");
        let partial = Partial::open(&output, "abc").expect("goes on");
        assert_eq!(partial.len(), 4);
        assert_eq!(partial.recall(4, |found| found.seed == 0), Some(recall));
        assert_eq!(partial.recall(4, |found| found.seed == 1), None);
        assert_eq!(partial.recall(3, |_| true), None);
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

//! The policies that are compared with dense attention.
//!
//! In:  patterns and policies of the command line. Out: each with a name of its own, its pattern
//! checked, and its kernels.

use crate::args::{Replace, Several};
use crate::failure::Failure;
use crate::model::{self, Sparse};
use crate::source;
use butterfly_ir::model::{ModelConfig, ModelSizes};
use butterfly_models::Policy;
use std::path::Path;

/// The name of dense attention in reports.
pub(super) const DENSE: &str = "dense";
/// The name of a policy that is alone.
const ONLY: &str = "butterfly";

/// A policy beside dense attention.
pub(super) struct Contender {
    /// The name in reports; no two have the same.
    pub(super) name: String,
    /// As it was given; `None` if it is the pattern of artifacts.
    pub(super) given: Option<Replace>,
    pub(super) sparse: Sparse,
    pub(super) policy: Policy,
}

/// Reads all policies, and checks them for sequences from `shortest` up to `capacity` tokens. None
/// if all attention is dense.
pub(super) fn read(
    given: &Several,
    [shortest, capacity]: [usize; 2],
    (config, sizes, path): (&ModelConfig, &ModelSizes, &Path),
) -> Result<Vec<Contender>, Failure> {
    let replace = &given.replace;
    if let (Some(dir), [_, _, ..]) = (&given.run.artifacts, &replace[..]) {
        return Err(Failure::Bad(format!(
            "--artifacts {}: a folder has the kernels of one pattern, but {} are given; give one, or leave the artifacts out",
            dir.display(),
            replace.len()
        )));
    }
    if let Some(i) = (1..replace.len()).find(|&i| replace[..i].contains(&replace[i])) {
        let error = format!("{} is given twice; give it once", replace[i]);
        return Err(Failure::Bad(error));
    }
    let mut contenders = Vec::new();
    for ((i, name), run) in names(replace).into_iter().enumerate().zip(given.runs()) {
        let Some(sparse) = model::sparse(&run, capacity, (config, sizes))? else {
            continue;
        };
        source::check_tail(&sparse.sparsity.pattern, shortest)?;
        contenders.push(Contender {
            name,
            given: replace.get(i).cloned(),
            policy: model::policy(config, Some(&sparse), path)?,
            sparse,
        });
    }
    Ok(contenders)
}

/// A name for each, at least one: a file's name without its ending, or the whole path where others
/// have the same; of a text its number.
fn names(replace: &[Replace]) -> Vec<String> {
    if replace.len() < 2 {
        return vec![ONLY.into()];
    }
    let (short, long): (Vec<_>, Vec<_>) = (1..)
        .zip(replace)
        .map(|(number, replace)| {
            let path = match replace {
                Replace::Policy(path) => path.as_path(),
                Replace::Pattern(pattern) => Path::new(pattern),
            };
            let is_file = matches!(replace, Replace::Policy(_)) || path.is_file();
            match path.file_stem() {
                Some(stem) if is_file => (
                    stem.to_string_lossy().into_owned(),
                    path.display().to_string(),
                ),
                _ => (format!("pattern {number}"), format!("--pattern {number}")),
            }
        })
        .unzip();
    let taken = |name: &String| name == DENSE || short.iter().filter(|x| *x == name).count() > 1;
    let names = short.iter().zip(long);
    names
        .map(|(short, long)| if taken(short) { long } else { short.clone() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_differ() {
        let policy = |path: &str| Replace::Policy(path.into());
        let text = Replace::Pattern("causal & window(64)".into());
        assert_eq!(names(&[]), ["butterfly"]);
        assert_eq!(names(&[policy("a/half.json")]), ["butterfly"]);
        assert_eq!(
            names(&[policy("a/half.json"), text.clone(), policy("most.json")]),
            ["half", "pattern 2", "most"]
        );
        assert_eq!(
            names(&[policy("a/half.json"), policy("b/half.json")]),
            ["a/half.json", "b/half.json"]
        );
        assert_eq!(
            names(&[policy("dense.json"), policy("pattern 3.json"), text]),
            ["dense.json", "pattern 3.json", "--pattern 3"]
        );
    }
}

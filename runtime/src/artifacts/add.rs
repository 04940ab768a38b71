//! Adds kernels to an artifact folder that was made from the same plan.
//!
//! In:  a manifest and its files.
//! Out: the folder with its old kernels and the new ones, the same as if all had been written at
//! once: a kernel that is made twice has the same content key.

use super::write::{check_replaceable, write_from};
use super::{ArtifactError, Artifacts, MANIFEST};
use butterfly_ir::manifest::Manifest;
use std::collections::BTreeMap;
use std::path::Path;

/// Adds kernels to an artifact folder; creates the folder if there is none.
///
/// `files` are pairs of a path relative to `dir` and its content. A new kernel replaces one with
/// the same target and key, a new matrix product one with the same target and element type. Returns
/// the merged manifest, whose `digest` is filled in only in the file.
///
/// # Errors
/// [`ArtifactError::NotTheSame`] if the folder was made for another pattern, config or capacity, or
/// by another version of the compiler; also those of [`Artifacts::open`] and [`super::write()`].
pub fn add(
    dir: &Path,
    manifest: &Manifest,
    files: &[(String, Vec<u8>)],
) -> Result<Manifest, ArtifactError> {
    write_from(dir, || {
        if !(check_replaceable(dir)? && dir.join(MANIFEST).is_file()) {
            return Ok((manifest.clone(), files.to_vec()));
        }
        let there = Artifacts::open(dir)?;
        there.admits(manifest)?;
        let mut all = BTreeMap::new();
        for file in there.manifest.files() {
            all.insert(file.path.clone(), there.content(file)?);
        }
        all.extend(files.iter().cloned());
        let merged = merged(&there.manifest, manifest);
        // Only the files that the merged manifest lists: a kernel that was made again may have
        // fewer forms, such as no cubin.
        let files = merged.files().map(|file| {
            let content = all.get(&file.path).cloned().unwrap_or_default();
            (file.path.clone(), content)
        });
        let files = files.collect();
        Ok((merged, files))
    })
}

/// The kernels of both, without duplicates (`new` wins), in the order of a manifest: by target, then by key,
/// element type or shape.
fn merged(there: &Manifest, new: &Manifest) -> Manifest {
    let mut kernels = new.kernels.clone();
    let is_new = |target, key: &str| {
        let mut new = new.kernels.iter();
        new.any(|kernel| kernel.target == target && kernel.key == key)
    };
    let old = there.kernels.iter();
    kernels.extend(old.filter(|old| !is_new(old.target, &old.key)).cloned());
    kernels.sort_by(|a, b| (a.target, &a.key).cmp(&(b.target, &b.key)));

    let mut products = new.products.clone();
    let is_new = |target, dtype| {
        let mut new = new.products.iter();
        new.any(|entry| entry.target == target && entry.product.dtype == dtype)
    };
    let old = there.products.iter();
    let old = old.filter(|old| !is_new(old.target, old.product.dtype));
    products.extend(old.cloned());
    products.sort_by_key(|entry| (entry.target, entry.product.dtype));

    let mut scorers = new.scorers.clone();
    let old = there.scorers.iter().filter(|old| {
        let mut new = new.scorers.iter();
        !new.any(|entry| entry.target == old.target && entry.scorer.computes_as(&old.scorer))
    });
    scorers.extend(old.cloned());
    scorers.sort_by(|a, b| (a.target, &a.scorer).cmp(&(b.target, &b.scorer)));

    let mut delta_rules = new.delta_rules.clone();
    let old = there.delta_rules.iter().filter(|old| {
        let mut new = new.delta_rules.iter();
        !new.any(|entry| entry.target == old.target && entry.rule.computes_as(&old.rule))
    });
    delta_rules.extend(old.cloned());
    delta_rules.sort_by(|a, b| (a.target, &a.rule).cmp(&(b.target, &b.rule)));

    let mut grouped = new.grouped.clone();
    let old = there.grouped.iter().filter(|old| {
        let mut new = new.grouped.iter();
        !new.any(|entry| entry.target == old.target && entry.grouped.computes_as(&old.grouped))
    });
    grouped.extend(old.cloned());
    grouped.sort_by(|a, b| (a.target, &a.grouped).cmp(&(b.target, &b.grouped)));
    Manifest {
        kernels,
        products,
        scorers,
        delta_rules,
        grouped,
        ..new.clone()
    }
}

impl Artifacts {
    /// Checks that kernels of `manifest` can be added to this folder: that both were made for the
    /// same pattern, config and capacity, by the same version of the compiler.
    ///
    /// # Errors
    /// [`ArtifactError::NotTheSame`], which names the first difference.
    pub fn admits(&self, manifest: &Manifest) -> Result<(), ArtifactError> {
        let (there, given) = (&self.manifest, manifest);
        let differs = |what, there: &dyn ToString, given: &dyn ToString| {
            Err(ArtifactError::NotTheSame {
                dir: self.dir().to_path_buf(),
                what,
                there: there.to_string(),
                given: given.to_string(),
            })
        };
        if there.sparsity != given.sparsity {
            let text = |manifest: &Manifest| format!("`{}`", one_line(&manifest.pattern));
            return differs("pattern", &text(there), &text(given));
        }
        if there.config.blake3 != given.config.blake3 {
            let text = |manifest: &Manifest| {
                let config = &manifest.config;
                let digest = &config.blake3[..config.blake3.len().min(8)];
                format!("{} ({}, digest {digest})", config.file, config.model_type)
            };
            return differs("config", &text(there), &text(given));
        }
        if there.capacity != given.capacity {
            return differs("capacity", &there.capacity, &given.capacity);
        }
        if there.compiler != given.compiler {
            return differs("version of the compiler", &there.compiler, &given.compiler);
        }
        Ok(())
    }
}

/// A pattern's text on one line.
pub(super) fn one_line(pattern: &str) -> String {
    pattern.split_whitespace().collect::<Vec<_>>().join(" ")
}

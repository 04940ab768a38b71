//! Kernels → a folder that has others of the same plan already.
//!
//! In:  a manifest and its files. Out: the folder with what it had and with these, as if all had
//! been made at once: kernels have content keys, so that equal ones coincide.

use super::write::{check_replaceable, write_from};
use super::{ArtifactError, Artifacts, MANIFEST};
use butterfly_ir::manifest::Manifest;
use std::collections::BTreeMap;
use std::path::Path;

/// Adds kernels to an artifact folder, which is made where there is none.
///
/// `files` are paths below `dir` and contents. Kernels that the folder has and `manifest` too are
/// replaced. Gives the manifest that was written.
///
/// # Errors
/// [`ArtifactError::NotTheSame`] where the folder was made for another pattern, config or capacity
/// or by another version, those of [`Artifacts::open`], and those of [`super::write()`]; `dir` is then as
/// it was.
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
        // A kernel that was made again may have fewer forms.
        let files = merged.files().map(|file| {
            let content = all.get(&file.path).cloned().unwrap_or_default();
            (file.path.clone(), content)
        });
        let files = files.collect();
        Ok((merged, files))
    })
}

/// The kernels of both, each once, in the order of a manifest.
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
    Manifest {
        kernels,
        products,
        ..new.clone()
    }
}

impl Artifacts {
    /// Whether kernels of the plan that `manifest` is made from may stand beside these.
    ///
    /// # Errors
    /// [`ArtifactError::NotTheSame`].
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

/// A pattern in one line.
pub(super) fn one_line(pattern: &str) -> String {
    pattern.split_whitespace().collect::<Vec<_>>().join(" ")
}

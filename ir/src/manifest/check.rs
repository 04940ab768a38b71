//! Checks that a manifest could have been written by this version.
//!
//! A manifest's digest detects a damaged file. These checks detect an intact file whose content
//! would break a launch, such as one of another version.

use super::{
    DeltaRuleEntry, FileEntry, GroupedEntry, KernelEntry, Manifest, ProductEntry, ScorerEntry,
    alone, arguments, grid_formulas, spread,
};
use crate::band::MAX_TOKENS;
use crate::kernel::{ENTRY, NATIVE_ENTRY};
use crate::plan::{Kept, SwappedLayer, Variant};
use crate::{Rows, Target, key};
use std::collections::BTreeSet;
use std::fmt;

/// A wrong statement in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct ManifestError {
    /// The part of the manifest that is wrong.
    pub place: String,
    /// What is wrong with it.
    pub what: String,
}

fn wrong(place: impl fmt::Display, what: impl fmt::Display) -> ManifestError {
    ManifestError {
        place: place.to_string(),
        what: what.to_string(),
    }
}

impl Manifest {
    /// Checks everything on which opening the folder, choosing a kernel and launching it rely,
    /// except the content of files.
    ///
    /// Values must be in range, and derived values (keys, grids, arguments) must be those that
    /// this version derives.
    ///
    /// # Errors
    /// [`ManifestError`] for the first member that is wrong.
    pub fn check(&self) -> Result<(), ManifestError> {
        let sparsity = &self.sparsity;
        sparsity.check().map_err(|error| wrong("sparsity", error))?;
        if self.pattern != sparsity.to_string() {
            return Err(wrong("pattern", "is not the text of `sparsity`"));
        }
        if !(1..=MAX_TOKENS).contains(&self.capacity) {
            let what = format!("is {}, must be between 1 and {MAX_TOKENS}", self.capacity);
            return Err(wrong("capacity", what));
        }
        if !self.layers.is_sorted_by(|a, b| a.layer < b.layer) {
            return Err(wrong("layers", "do not increase"));
        }
        for (i, variant) in self.variants.iter().enumerate() {
            let of =
                |layer: &SwappedLayer| sparsity.pattern.of_layer(layer.layer) == variant.pattern;
            if !self.layers.iter().any(of) {
                return Err(wrong("variants", "one is the pattern of no layer"));
            }
            if self.variants[..i]
                .iter()
                .any(|other| other.pattern == variant.pattern)
            {
                return Err(wrong("variants", "one is listed twice"));
            }
            if let Rows::ClosedForm(program) = &variant.rows {
                program.check().map_err(|error| wrong("variants", error))?;
            }
        }
        if !self.kept.is_sorted_by(|a, b| a.own < b.own) {
            return Err(wrong("kept", "does not increase"));
        }
        for kept in &self.kept {
            if kept.own.window == Some(0) {
                return Err(wrong("kept", "has a window of no tokens"));
            }
            if let Rows::ClosedForm(program) = &kept.rows {
                program.check().map_err(|error| wrong("kept", error))?;
            }
        }
        let mut kernels = BTreeSet::new();
        for kernel in &self.kernels {
            let place = format!("kernel {} for {}", kernel.key, kernel.target);
            kernel.check(self).map_err(|what| wrong(&place, what))?;
            if !kernels.insert((kernel.target, &kernel.key)) {
                return Err(wrong(place, "is listed twice"));
            }
        }
        for product in &self.products {
            let place = format!("product of {}", product.product.dtype.name());
            product.check().map_err(|what| wrong(place, what))?;
        }
        for scorer in &self.scorers {
            let place = format!("scorer {}", scorer.scorer.entry);
            scorer.check().map_err(|what| wrong(place, what))?;
        }
        for rule in &self.delta_rules {
            let place = format!("delta rule of {}", rule.rule.dtype.name());
            rule.check().map_err(|what| wrong(place, what))?;
        }
        for grouped in &self.grouped {
            let place = format!("product with packed weights, {}", grouped.grouped.format);
            grouped.check().map_err(|what| wrong(place, what))?;
        }
        Ok(())
    }
}

impl KernelEntry {
    fn check(&self, manifest: &Manifest) -> Result<(), String> {
        let (spec, target, geometry) = (&self.spec, self.target, &self.geometry);
        let said = |error: crate::ContractError| error.to_string();
        spec.check(target).map_err(said)?;
        if self.key != key::of(spec, target) {
            return Err("its key is not that of its `spec` by this version's emitters".into());
        }
        let of_variant = |variant: &Variant| {
            (spec.block, &spec.rows) == (manifest.sparsity.block, &variant.rows)
        };
        let of_pattern = manifest.variants.iter().any(of_variant);
        let of_kept =
            |kept: &Kept| (spec.block, &spec.rows) == (kept.own.sparsity().block, &kept.rows);
        if !of_pattern && !manifest.kept.iter().any(of_kept) {
            return Err("its block and rows are neither those of the pattern nor of `kept`".into());
        }
        geometry.check(spec, target).map_err(said)?;
        let entry = match target {
            Target::Cpu => NATIVE_ENTRY,
            Target::Cuda(_) | Target::Vulkan | Target::Webgpu | Target::Metal => ENTRY,
        };
        if self.entry != entry {
            return Err(format!("entry is {:?}, must be {entry:?}", self.entry));
        }
        for (field, same) in [
            ("grid", self.grid == grid_formulas(spec, geometry)),
            ("alone", self.alone == alone(&self.entry, geometry)),
            ("spread", self.spread == spread(&self.entry, spec, geometry)),
            ("arguments", self.arguments == arguments(spec, geometry)),
        ] {
            if !same {
                return Err(format!(
                    "{field} does not follow from its `spec` and `geometry`"
                ));
            }
        }
        launched(&self.files, target)
    }
}

impl ProductEntry {
    fn check(&self) -> Result<(), String> {
        for_hopper(self.target)?;
        self.product.check().map_err(|error| error.to_string())?;
        launched(&self.files, self.target)
    }
}

impl ScorerEntry {
    fn check(&self) -> Result<(), String> {
        for_hopper(self.target)?;
        self.scorer.check().map_err(|error| error.to_string())?;
        launched(&self.files, self.target)
    }
}

impl DeltaRuleEntry {
    fn check(&self) -> Result<(), String> {
        for_hopper(self.target)?;
        self.rule.check().map_err(|error| error.to_string())?;
        launched(&self.files, self.target)
    }
}

impl GroupedEntry {
    fn check(&self) -> Result<(), String> {
        for_hopper(self.target)?;
        self.grouped.check().map_err(|error| error.to_string())?;
        launched(&self.files, self.target)
    }
}

fn for_hopper(target: Target) -> Result<(), String> {
    match target.to_string() == "cuda:sm_90a" {
        true => Ok(()),
        false => Err(format!("target is {target}, must be cuda:sm_90a")),
    }
}

/// Checks that the last of a kernel's files has a form that `target` launches.
fn launched(files: &[FileEntry], target: Target) -> Result<(), String> {
    let forms: &[&str] = match target {
        Target::Cuda(_) => &["cubin", "cu"],
        Target::Vulkan => &["spv"],
        Target::Webgpu => &["wgsl"],
        Target::Metal => &["metal"],
        Target::Cpu => &["json"],
    };
    let last = files.last().map_or("", |file| &file.path);
    let form = last.rsplit_once('.').map_or("", |(_, form)| form);
    match forms.contains(&form) {
        true => Ok(()),
        false => Err(format!(
            "the last of its files is {last:?}, must be one that {target} launches: {}",
            forms.join(" or ")
        )),
    }
}

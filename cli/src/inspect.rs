//! `butterfly inspect` and `butterfly verify`: what an artifact folder or a model holds, and whether
//! this version of the compiler makes the bytes of an artifact folder again.

use crate::failure::Failure;
use crate::kernel;
use butterfly_ir::manifest::{FileEntry, KernelEntry};
use butterfly_runtime::artifacts::Artifacts;
use rayon::prelude::*;
use serde::Serialize;
use std::path::Path;

/// Lists the kernels of an artifact folder, or the contents of a model.
pub(crate) fn inspect(path: &Path, json: bool) -> Result<(), Failure> {
    #[cfg(feature = "models")]
    if path.is_file() || (path.join("config.json").exists() && !path.join("manifest.json").exists())
    {
        return crate::model::contents::inspect(path, json);
    }
    artifacts(path, json)
}

fn artifacts(dir: &Path, json: bool) -> Result<(), Failure> {
    let artifacts = Artifacts::open(dir).map_err(Failure::bad)?;
    let manifest = &artifacts.manifest;
    crate::print(json, manifest, || {
        let layers: Vec<_> = manifest
            .layers
            .iter()
            .map(|l| l.layer.to_string())
            .collect();
        let mut text = format!(
            "{} ({}), compiler {}, schema {}\n{}\nlayers {}\n",
            manifest.config.file,
            manifest.config.model_type,
            manifest.compiler,
            manifest.schema,
            manifest.pattern,
            layers.join(",")
        );
        for kernel in &manifest.kernels {
            text += &line(kernel);
        }
        for entry in &manifest.products {
            let product = &entry.product;
            text += &format!(
                "{:<32} {:<13} product {:<4} tile {}x{}x{} threads {} shared {} B\n    {}\n",
                product.entry,
                entry.target.to_string(),
                product.dtype.name(),
                product.m_tile,
                product.n_tile,
                product.k_tile,
                product.threads,
                product.shared_bytes,
                listed(&entry.files)
            );
        }
        for entry in &manifest.scorers {
            let scorer = &entry.scorer;
            text += &format!(
                "{:<32} {:<13} scorer  {:<4} D {} group {} block {} pool {} every {} threads {} shared {} B\n    {}\n",
                scorer.entry,
                entry.target.to_string(),
                scorer.dtype.name(),
                scorer.head_dim,
                scorer.group,
                scorer.block,
                scorer.pool,
                scorer.every,
                scorer.threads,
                scorer.shared_bytes,
                listed(&entry.files)
            );
        }
        for entry in &manifest.delta_rules {
            let rule = &entry.rule;
            text += &format!(
                "{:<32} {:<13} kernels {:<4} heads {}/{}{} taps {}\n",
                "delta rule",
                entry.target.to_string(),
                rule.dtype.name(),
                rule.k_heads,
                rule.v_heads,
                if rule.tiled { " tiled" } else { "" },
                rule.taps
            );
            for (_, stage) in rule.stages() {
                text += &format!(
                    "    {} threads {} shared {} B\n",
                    stage.entry, stage.threads, stage.shared_bytes
                );
            }
            text += &format!("    {}\n", listed(&entry.files));
        }
        for entry in &manifest.grouped {
            let grouped = &entry.grouped;
            text += &format!(
                "{:<32} {:<13} {} {} K {}\n",
                "packed weights",
                entry.target.to_string(),
                grouped.dtype.name(),
                grouped.format,
                grouped.columns
            );
            for (_, stage) in grouped.stages() {
                text += &format!(
                    "    {} threads {} shared {} B\n",
                    stage.entry, stage.threads, stage.shared_bytes
                );
            }
            text += &format!("    {}\n", listed(&entry.files));
        }
        text
    })
}

fn line(kernel: &KernelEntry) -> String {
    let spec = &kernel.spec;
    let number = |n: Option<u32>| n.map_or("-".to_string(), |n| n.to_string());
    format!(
        "{} {:<13} {:<7} {:<4} D {}/{} group {} block {} tile {}x{} threads {} shared {} B registers {} spills {}\n    {}\n",
        kernel.key,
        kernel.target.to_string(),
        spec.role.name(),
        spec.dtype.name(),
        spec.head_dim,
        spec.v_head_dim,
        spec.group,
        spec.block,
        kernel.geometry.q_tile,
        kernel.geometry.k_tile,
        kernel.geometry.threads.iter().product::<u32>(),
        kernel.geometry.shared_bytes,
        number(kernel.registers),
        number(kernel.spills),
        listed(&kernel.files)
    )
}

fn listed(files: &[FileEntry]) -> String {
    let files = files.iter().map(|f| format!("{} {} B", f.path, f.bytes));
    files.collect::<Vec<_>>().join(", ")
}

#[derive(Serialize)]
struct Report {
    kernels: usize,
    files: usize,
    /// Files that were made again with the same bytes.
    same: usize,
    /// Binaries that could not be made again, because a library is not installed.
    not_made_again: Vec<String>,
    /// What differs.
    different: Vec<String>,
}

impl Report {
    /// Compares files with those that were made again.
    fn compare(&mut self, files: &[FileEntry], again: &[FileEntry]) {
        for file in files {
            match again.iter().find(|f| f.path == file.path) {
                Some(other) if other == file => self.same += 1,
                Some(_) => self.different.push(format!("{}: other bytes", file.path)),
                None => self.not_made_again.push(file.path.clone()),
            }
        }
    }
}

pub(crate) fn verify(dir: &Path, json: bool) -> Result<(), Failure> {
    let artifacts = Artifacts::open(dir).map_err(Failure::bad)?;
    let kernels = &artifacts.manifest.kernels;
    let again = kernels
        .par_iter()
        .map(|old| kernel::make(&old.spec, old.target).map(|(entry, _)| (old, entry)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut report = Report {
        kernels: kernels.len(),
        files: artifacts.manifest.files().count(),
        same: 0,
        not_made_again: Vec::new(),
        different: Vec::new(),
    };
    for (kernel, entry) in again {
        if (&kernel.key, &kernel.geometry, &kernel.entry)
            != (&entry.key, &entry.geometry, &entry.entry)
        {
            report
                .different
                .push(format!("{}: now has the key {}", kernel.key, entry.key));
        }
        report.compare(&kernel.files, &entry.files);
    }
    let products = &artifacts.manifest.products;
    let wanted = products.iter().map(|entry| entry.product.dtype);
    let (again, _) = butterfly_build::products(wanted).map_err(Failure::bad)?;
    for old in products {
        let name = &old.product.entry;
        match again
            .iter()
            .find(|new| new.target == old.target && new.product.dtype == old.product.dtype)
        {
            Some(new) if new.product == old.product => report.compare(&old.files, &new.files),
            Some(_) => report
                .different
                .push(format!("{name}: now has other tiles")),
            None => report
                .different
                .push(format!("{name}: is not made any more")),
        }
    }
    let scorers = &artifacts.manifest.scorers;
    let wanted = scorers.iter().map(|entry| entry.scorer.clone());
    let (again, _) = butterfly_build::scorers(wanted).map_err(Failure::bad)?;
    for old in scorers {
        let same = |new: &&butterfly_ir::manifest::ScorerEntry| new.scorer == old.scorer;
        match again.iter().find(same) {
            Some(new) => report.compare(&old.files, &new.files),
            None => {
                let name = &old.scorer.entry;
                let what = format!("{name}: is not made any more, or launched otherwise");
                report.different.push(what);
            }
        }
    }
    let rules = &artifacts.manifest.delta_rules;
    let wanted = rules.iter().map(|entry| entry.rule.clone());
    let (again, _) = butterfly_build::delta_rules(wanted).map_err(Failure::bad)?;
    for old in rules {
        match again.iter().find(|new| new.rule == old.rule) {
            Some(new) => report.compare(&old.files, &new.files),
            None => {
                let what = "delta rule: is not made any more, or launched otherwise";
                report.different.push(what.into());
            }
        }
    }
    let grouped = &artifacts.manifest.grouped;
    let wanted = grouped.iter().map(|entry| entry.grouped.clone());
    let (again, _) = butterfly_build::grouped(wanted).map_err(Failure::bad)?;
    for old in grouped {
        match again.iter().find(|new| new.grouped == old.grouped) {
            Some(new) => report.compare(&old.files, &new.files),
            None => {
                let name = &old.grouped.tiles.entry;
                let what = format!("{name}: is not made any more, or launched otherwise");
                report.different.push(what);
            }
        }
    }
    crate::print(json, &report, || {
        let mut text = format!(
            "{} kernels, {} files: every digest holds; {} made again with the same bytes\n",
            report.kernels, report.files, report.same
        );
        for path in &report.not_made_again {
            text += &format!("  not made again: {path} (no NVRTC here; see `butterfly doctor`)\n");
        }
        report
            .different
            .iter()
            .for_each(|what| text += &format!("  differs: {what}\n"));
        text
    })?;
    match report.different.len() {
        0 => Ok(()),
        count => Err(Failure::Check(format!(
            "{count} differences in {}",
            dir.display()
        ))),
    }
}

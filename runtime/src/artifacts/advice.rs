//! Errors for missing kernels, with the command that adds them.
//!
//! Invariant: no command that is suggested removes kernels from the folder.

use super::add::one_line;
use super::{ArtifactError, Artifacts};
use butterfly_ir::{Dtype, KernelSpec, Role, Target};
use std::path::Path;

impl Artifacts {
    /// Tells the user how to add kernels for `target` to this folder, in `dtype` or, if that is
    /// `None`, in the default element types.
    pub fn adding(&self, target: Target, dtype: Option<Dtype>) -> String {
        if let Some(dtype) = dtype.filter(|dtype| !target.has(*dtype)) {
            return format!("{target} has no {}: take f16 or f32", dtype.name());
        }
        let dtype = dtype.map(Dtype::name);
        if self.is_embedded() {
            let dtype = dtype.map(|dtype| format!(" and the element type {dtype}"));
            return format!(
                "they are inside this program: give what builds it the target {target}{} too, and build it again",
                dtype.unwrap_or_default()
            );
        }
        let dtype = dtype.map(|dtype| format!(" --dtype {dtype}"));
        let dtype = dtype.unwrap_or_default();
        let manifest = &self.manifest;
        format!(
            "add them with: butterfly compile CONFIG --pattern '{}' --capacity {} --target {target}{dtype} --add -o {} (CONFIG is the {} of the model)",
            one_line(&manifest.pattern),
            manifest.capacity,
            quoted(self.dir()),
            manifest.config.file,
        )
    }

    /// The error for a `spec` that has no kernel on `target`.
    pub(super) fn missing(&self, spec: &KernelSpec, target: Target) -> ArtifactError {
        let dir = self.dir().to_path_buf();
        let heads = |spec: &KernelSpec| {
            let KernelSpec {
                head_dim,
                v_head_dim,
                group,
                ..
            } = spec;
            format!("head size {head_dim}/{v_head_dim}, group {group}")
        };
        let role = |role: Role| {
            let mut kernels = self.manifest.kernels.iter();
            kernels.find(|kernel| kernel.spec.role == role)
        };
        let own = role(spec.role).map(|kernel| heads(&kernel.spec));
        let pattern = one_line(&self.manifest.pattern);
        match own {
            Some(own) if own != heads(spec) => ArtifactError::OtherModel {
                dir,
                made_for: format!("{}, {own}", self.model()),
                wanted: heads(spec),
                way_out: format!(
                    "compile for that model into another folder: butterfly compile CONFIG --pattern '{pattern}' -o DIR"
                ),
            },
            _ => ArtifactError::Missing {
                dir,
                target,
                wanted: format!(
                    "{} of {}, {}, block {}",
                    spec.role.name(),
                    heads(spec),
                    spec.dtype.name(),
                    spec.block
                ),
                way_out: self.adding(target, Some(spec.dtype)),
            },
        }
    }

    /// The model that the folder was compiled for: its config file and model type.
    pub fn model(&self) -> String {
        let config = &self.manifest.config;
        format!("{} ({})", config.file, config.model_type)
    }
}

/// A path, quoted for a shell where necessary.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

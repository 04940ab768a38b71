//! Checked artifacts × device → kernels.

use super::{ArtifactError, Artifacts};
use crate::{Device, Loaded, Ready};
use butterfly_ir::manifest::{self, KernelEntry};
use butterfly_ir::{Dtype, Rows, Sm, Sparsity, Target};

impl Device {
    /// The target that suits a device best; `sm` is its compute capability, on NVIDIA.
    ///
    /// # Errors
    /// [`ArtifactError::NoCapability`] without one there.
    pub fn target(self, sm: Option<Sm>) -> Result<Target, ArtifactError> {
        Ok(match self {
            Self::Vulkan => Target::Vulkan,
            Self::Webgpu => Target::Webgpu,
            Self::Cuda => Target::Cuda(sm.ok_or(ArtifactError::NoCapability)?),
        })
    }
}

impl Artifacts {
    /// The target whose kernels a device runs; for CUDA the newest of those that its
    /// architecture executes.
    ///
    /// # Errors
    /// [`ArtifactError::Architecture`] without any.
    pub fn target_for(&self, device: Device, sm: Option<Sm>) -> Result<Target, ArtifactError> {
        let own = match device.target(sm)? {
            Target::Cuda(own) => own,
            other => return Ok(other),
        };
        let kernels = self.manifest.kernels.iter();
        let mut there: Vec<Sm> = kernels
            .filter_map(|kernel| match kernel.target {
                Target::Cuda(sm) => Some(sm),
                Target::Vulkan | Target::Webgpu | Target::Metal | Target::Cpu => None,
            })
            .collect();
        there.sort_unstable();
        there.dedup();
        match there.iter().rev().find(|sm| runs(own, **sm)) {
            Some(sm) => Ok(Target::Cuda(*sm)),
            None => Err(ArtifactError::Architecture {
                dir: self.dir().to_path_buf(),
                own,
                there: there.iter().map(Sm::to_string).collect(),
                way_out: self.adding(Target::Cuda(own), None),
            }),
        }
    }

    /// Element types of the kernels for `target`, each once.
    pub fn dtypes(&self, target: Target) -> Vec<Dtype> {
        let kernels = self.manifest.kernels.iter();
        let kernels = kernels.filter(|kernel| kernel.target == target);
        let mut dtypes: Vec<Dtype> = kernels.map(|kernel| kernel.spec.dtype).collect();
        dtypes.sort_unstable();
        dtypes.dedup();
        dtypes
    }

    /// All kernels that a device runs; none where the folder has none for it.
    ///
    /// # Errors
    /// As [`Artifacts::image`].
    pub fn ready(&self, device: Device, sm: Option<Sm>) -> Result<Vec<Ready>, ArtifactError> {
        let Ok(target) = self.target_for(device, sm) else {
            return Ok(Vec::new());
        };
        let kernels = self.manifest.kernels.iter();
        let kernels = kernels.filter(|kernel| kernel.target == target);
        kernels
            .map(|kernel| self.ready_one(device, kernel))
            .collect()
    }

    /// All matrix products that a device runs.
    ///
    /// # Errors
    /// As [`Artifacts::image`].
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    pub fn products(
        &self,
        device: Device,
        sm: Option<Sm>,
    ) -> Result<Vec<crate::ReadyProduct>, ArtifactError> {
        let Ok(target) = self.target_for(device, sm) else {
            return Ok(Vec::new());
        };
        let products = self.manifest.products.iter();
        let products = products.filter(|entry| entry.target == target);
        let ready = products.map(|entry| {
            let image = self.last(&entry.product.entry, &entry.files)?;
            Ok(crate::ReadyProduct::new(entry.product.clone(), &image)?)
        });
        ready.collect()
    }

    /// One kernel, prepared for launching.
    ///
    /// # Errors
    /// As [`Artifacts::image`].
    pub fn ready_one(&self, device: Device, kernel: &KernelEntry) -> Result<Ready, ArtifactError> {
        let image = self.image(kernel)?;
        Ok(Ready::new(
            device,
            &Loaded {
                key: &kernel.key,
                entry: &kernel.entry,
                spec: &kernel.spec,
                geometry: kernel.geometry,
                image: &image,
            },
        )?)
    }

    /// Where the kernels of the pattern get their rows from.
    pub fn rows(&self) -> Rows {
        let dense = self.manifest.dense.as_ref();
        let mut rows = self.manifest.kernels.iter().map(|kernel| &kernel.spec.rows);
        let other = rows.find(|rows| Some(*rows) != dense).or(dense);
        other.cloned().unwrap_or(Rows::Table)
    }

    /// Causal attention for layers that keep it: its pattern and rows.
    ///
    /// # Errors
    /// [`ArtifactError::NoDense`] where the folder was made for a model whose layers are all
    /// replaced.
    pub fn dense(&self) -> Result<(Sparsity, Rows), ArtifactError> {
        let rows = self.manifest.dense.clone();
        let none = || ArtifactError::NoDense {
            dir: self.dir().to_path_buf(),
            way_out: "name the layers to replace in the pattern (`layers 3,7 …`) and compile again"
                .into(),
        };
        Ok((manifest::dense(), rows.ok_or_else(none)?))
    }
}

/// Whether a device of capability `own` executes a cubin made for `made`: the same major
/// version, and no later minor one; with the suffix, exactly this architecture.
fn runs(own: Sm, made: Sm) -> bool {
    match made.arch_specific {
        true => made.version == own.version,
        false => made.version / 10 == own.version / 10 && made.version <= own.version,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cubins_run_on_their_own_generation() {
        let sm = |text: &str| match format!("cuda:{text}").parse() {
            Ok(Target::Cuda(sm)) => sm,
            other => panic!("{other:?}"),
        };
        for (own, made, yes) in [
            ("sm_90a", "sm_90a", true),
            ("sm_90a", "sm_90", true),
            ("sm_90a", "sm_80", false),
            ("sm_86", "sm_80", true),
            ("sm_80", "sm_86", false),
            ("sm_100a", "sm_90a", false),
        ] {
            assert_eq!(runs(sm(own), sm(made)), yes, "{made} on {own}");
        }
    }
}

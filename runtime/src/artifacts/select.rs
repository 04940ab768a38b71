//! Selects the kernels of an artifact folder that a device can run.

use super::{ArtifactError, Artifacts};
use crate::{Device, Loaded, Ready};
use butterfly_ir::manifest::{FileEntry, KernelEntry};
use butterfly_ir::model::OwnAttention;
use butterfly_ir::{Dtype, Pattern, Rows, Sm, Target};

impl Device {
    /// The target to compile for, given a device. `sm` is the compute capability of an NVIDIA
    /// device; other devices ignore it.
    ///
    /// # Errors
    /// [`ArtifactError::NoCapability`] for [`Device::Cuda`] without `sm`.
    pub fn target(self, sm: Option<Sm>) -> Result<Target, ArtifactError> {
        Ok(match self {
            Self::Vulkan => Target::Vulkan,
            Self::Webgpu => Target::Webgpu,
            Self::Cuda => Target::Cuda(sm.ok_or(ArtifactError::NoCapability)?),
        })
    }
}

impl Artifacts {
    /// The target whose kernels of this folder a device runs.
    ///
    /// For CUDA, this is the newest architecture in the folder whose cubins the device executes,
    /// else the newest one whose PTX its driver can compile.
    ///
    /// # Errors
    /// [`ArtifactError::Architecture`] if the folder has neither, and those of [`Device::target`].
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
        let newest = |fits: &dyn Fn(Sm) -> bool| there.iter().rev().copied().find(|sm| fits(*sm));
        let executes = |sm| own.executes(sm);
        let compiles = |sm| own.compiles(sm) && self.has_ptx(Target::Cuda(sm));
        match newest(&executes).or_else(|| newest(&compiles)) {
            Some(sm) => Ok(Target::Cuda(sm)),
            None => Err(ArtifactError::Architecture {
                dir: self.dir().to_path_buf(),
                own,
                there: there.iter().map(Sm::to_string).collect(),
                way_out: self.adding(Target::Cuda(own), None),
            }),
        }
    }

    /// Whether all kernels for `target` have PTX.
    fn has_ptx(&self, target: Target) -> bool {
        let kernels = self.manifest.kernels.iter();
        let mut kernels = kernels.filter(|kernel| kernel.target == target);
        kernels.all(|kernel| ptx(kernel).is_some())
    }

    /// The image of a kernel to launch on a device; `own` is its compute capability, on NVIDIA.
    ///
    /// This is the kernel's PTX if the device does not execute its cubin, else
    /// [`Artifacts::image`]. The kernel is one for the target that [`Artifacts::target_for`]
    /// returned.
    ///
    /// # Errors
    /// [`ArtifactError::Io`] or [`ArtifactError::Malformed`] if the file cannot be read, or was
    /// changed after it was written.
    pub fn image_for(
        &self,
        kernel: &KernelEntry,
        own: Option<Sm>,
    ) -> Result<Vec<u8>, ArtifactError> {
        match (kernel.target, own, ptx(kernel)) {
            (Target::Cuda(made), Some(own), Some(ptx)) if !own.executes(made) => self.content(ptx),
            _ => self.image(kernel),
        }
    }

    /// Element types of the kernels for `target`, sorted and without duplicates.
    pub fn dtypes(&self, target: Target) -> Vec<Dtype> {
        let kernels = self.manifest.kernels.iter();
        let kernels = kernels.filter(|kernel| kernel.target == target);
        let mut dtypes: Vec<Dtype> = kernels.map(|kernel| kernel.spec.dtype).collect();
        dtypes.sort_unstable();
        dtypes.dedup();
        dtypes
    }

    /// All kernels that a device runs, prepared for launching; empty if the folder has none for it.
    ///
    /// # Errors
    /// Those of [`Artifacts::image`], and [`ArtifactError::Image`].
    pub fn ready(&self, device: Device, sm: Option<Sm>) -> Result<Vec<Ready>, ArtifactError> {
        let Ok(target) = self.target_for(device, sm) else {
            return Ok(Vec::new());
        };
        let kernels = self.manifest.kernels.iter();
        let kernels = kernels.filter(|kernel| kernel.target == target);
        kernels
            .map(|kernel| self.ready_one(device, sm, kernel))
            .collect()
    }

    /// All matrix products that a device runs, prepared for launching; empty if the folder has none
    /// for it.
    ///
    /// # Errors
    /// Those of [`Artifacts::image`], and [`ArtifactError::Image`].
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

    /// All kernels that score blocks by content on a device, prepared for launching; empty if the folder has
    /// none for it.
    ///
    /// # Errors
    /// Those of [`Artifacts::image`], and [`ArtifactError::Image`].
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    pub fn scorers(
        &self,
        device: Device,
        sm: Option<Sm>,
    ) -> Result<Vec<crate::ReadyScorer>, ArtifactError> {
        let Ok(target) = self.target_for(device, sm) else {
            return Ok(Vec::new());
        };
        let scorers = self.manifest.scorers.iter();
        let scorers = scorers.filter(|entry| entry.target == target);
        let ready = scorers.map(|entry| {
            let image = self.last(&entry.scorer.entry, &entry.files)?;
            Ok(crate::ReadyScorer::new(entry.scorer.clone(), &image)?)
        });
        ready.collect()
    }

    /// All kernels of the gated delta rule that a device runs, prepared for launching; empty if the folder has
    /// none for it.
    ///
    /// # Errors
    /// Those of [`Artifacts::image`], and [`ArtifactError::Image`].
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    pub fn delta_rules(
        &self,
        device: Device,
        sm: Option<Sm>,
    ) -> Result<Vec<crate::ReadyDeltaRule>, ArtifactError> {
        let Ok(target) = self.target_for(device, sm) else {
            return Ok(Vec::new());
        };
        let rules = self.manifest.delta_rules.iter();
        let rules = rules.filter(|entry| entry.target == target);
        let ready = rules.map(|entry| {
            let image = self.last("of the delta rule", &entry.files)?;
            Ok(crate::ReadyDeltaRule::new(entry.rule.clone(), &image)?)
        });
        ready.collect()
    }

    /// All kernels for products with experts that a device runs, prepared for launching; empty if the folder has none
    /// for it.
    ///
    /// # Errors
    /// Those of [`Artifacts::image`], and [`ArtifactError::Image`].
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    pub fn grouped(
        &self,
        device: Device,
        sm: Option<Sm>,
    ) -> Result<Vec<crate::ReadyGrouped>, ArtifactError> {
        let Ok(target) = self.target_for(device, sm) else {
            return Ok(Vec::new());
        };
        let grouped = self.manifest.grouped.iter();
        let grouped = grouped.filter(|entry| entry.target == target);
        let ready = grouped.map(|entry| {
            let image = self.last("of a product with packed weights", &entry.files)?;
            Ok(crate::ReadyGrouped::new(entry.grouped.clone(), &image)?)
        });
        ready.collect()
    }

    /// One kernel, prepared for launching.
    ///
    /// # Errors
    /// Those of [`Artifacts::image_for`], and [`ArtifactError::Image`].
    pub fn ready_one(
        &self,
        device: Device,
        sm: Option<Sm>,
        kernel: &KernelEntry,
    ) -> Result<Ready, ArtifactError> {
        let image = self.image_for(kernel, sm)?;
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

    /// The rows of the kernels for swapped layers with `pattern`, which has no `per_layer`.
    ///
    /// # Errors
    /// [`ArtifactError::NotSwapped`] if no swapped layer has this pattern.
    pub fn rows(&self, pattern: &Pattern) -> Result<Rows, ArtifactError> {
        let mut variants = self.manifest.variants.iter();
        let found = variants.find(|variant| variant.pattern == *pattern);
        let none = || ArtifactError::NotSwapped {
            dir: self.dir().to_path_buf(),
            pattern: pattern.to_string(),
        };
        Ok(found.ok_or_else(none)?.rows.clone())
    }

    /// The rows of the kernels for layers that keep their own attention.
    ///
    /// # Errors
    /// [`ArtifactError::NotKept`] if the pattern replaces every layer with this attention, so that
    /// the folder has no kernels for it.
    pub fn kept(&self, own: OwnAttention) -> Result<Rows, ArtifactError> {
        let mut kept = self.manifest.kept.iter();
        let none = || ArtifactError::NotKept {
            dir: self.dir().to_path_buf(),
            own: own.sparsity().pattern.to_string(),
            way_out: "name the layers to replace in the pattern (`layers 3,7 …`) and compile again"
                .into(),
        };
        let kept = kept.find(|kept| kept.own == own).ok_or_else(none)?;
        Ok(kept.rows.clone())
    }
}

/// The PTX file of a kernel for CUDA, if it has one.
fn ptx(kernel: &KernelEntry) -> Option<&FileEntry> {
    kernel.files.iter().find(|file| file.path.ends_with(".ptx"))
}

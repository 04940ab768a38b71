//! Checked artifacts × device → kernels.

use super::{ArtifactError, Artifacts};
use crate::{Device, Loaded, Ready};
use butterfly_ir::manifest::{self, FileEntry, KernelEntry};
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
    /// The target whose kernels a device runs; for CUDA the newest of those whose machine code its
    /// architecture executes, else of those whose PTX its driver compiles.
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

    /// What a device of capability `own`, on NVIDIA, takes of a kernel that was picked for it: PTX
    /// where it does not execute the machine code, else what the folder has to be launched.
    ///
    /// # Errors
    /// [`ArtifactError`] when the file cannot be read, or is not the one that was written.
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
            .map(|kernel| self.ready_one(device, sm, kernel))
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
    /// As [`Artifacts::image_for`].
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

/// The PTX of a kernel for CUDA, where there is any.
fn ptx(kernel: &KernelEntry) -> Option<&FileEntry> {
    kernel.files.iter().find(|file| file.path.ends_with(".ptx"))
}

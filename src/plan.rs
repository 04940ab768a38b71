//! A pattern, and where the kernels for it come from.
//!
//! In:  a pattern alone, an artifact folder, or files inside the program. Out: kernels for a
//! device and a shape, each prepared once; rows of blocks, each table made once.

use crate::OperationError;
#[cfg(all(feature = "jit", any(feature = "cuda", feature = "vulkan")))]
use crate::compiled;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use butterfly_ir::Sm;
use butterfly_ir::Target;
use butterfly_ir::{BandTable, Context, Dtype, KernelSpec, Phase, Rows, Score, Sparsity, rows};
use butterfly_runtime::artifacts::Artifacts;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use butterfly_runtime::{Device, Ready};
use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

pub use butterfly_runtime::artifacts::Embedded;

/// What attention layers run: one pattern, and the source of its kernels. Clones share it.
#[derive(Clone)]
pub struct Plan(Arc<Inner>);

struct Inner {
    sparsity: Sparsity,
    rows: Rows,
    source: Source,
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    ready: Mutex<HashMap<(Target, KernelShape), Ready>>,
    tables: Mutex<HashMap<(u32, u32), Arc<BandTable>>>,
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    on_device: Mutex<HashMap<(String, u32, u32), butterfly_runtime::DeviceTable>>,
}

enum Source {
    #[cfg(feature = "jit")]
    Jit,
    Artifacts(Box<Artifacts>),
}

/// What tells the kernels of a plan apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KernelShape {
    pub(crate) phase: Phase,
    pub(crate) head_dim: u32,
    pub(crate) v_head_dim: u32,
    pub(crate) group: u32,
    pub(crate) dtype: Dtype,
    pub(crate) score: Score,
}

impl Plan {
    /// A plan whose kernels are made when they are first needed.
    #[cfg(feature = "jit")]
    pub fn new(sparsity: Sparsity) -> Self {
        let rows = butterfly_compiler::plan::rows(&sparsity);
        Self::of(sparsity, rows, Source::Jit)
    }

    /// Causal attention without a pattern, by the same kernels.
    #[cfg(feature = "jit")]
    pub fn dense() -> Self {
        Self::new(butterfly_ir::manifest::dense())
    }

    /// The plan of an artifact folder, every byte of which is checked.
    ///
    /// On a machine with an NVIDIA device this has to come before the device is first used:
    /// CubeCL reads compiled kernels only when it opens one.
    ///
    /// # Errors
    /// [`OperationError::Artifact`], or [`OperationError::Launch`] where compiled kernels
    /// cannot be laid ready.
    pub fn open(dir: &Path) -> Result<Self, OperationError> {
        Self::from_artifacts(Artifacts::open(dir)?)
    }

    /// The plan of artifacts inside the program, as `include_artifacts!` makes them.
    ///
    /// # Errors
    /// As [`Plan::open`].
    pub fn embedded(embedded: &'static Embedded) -> Result<Self, OperationError> {
        Self::from_artifacts(Artifacts::embedded(embedded)?)
    }

    /// The plan of opened artifacts.
    ///
    /// # Errors
    /// As [`Plan::open`].
    pub fn from_artifacts(artifacts: Artifacts) -> Result<Self, OperationError> {
        let sparsity = artifacts.manifest.sparsity.clone();
        let rows = artifacts.rows();
        let plan = Self::of(sparsity, rows, Source::Artifacts(Box::new(artifacts)));
        plan.seed()?;
        Ok(plan)
    }

    /// Causal attention by the kernels of the same artifacts, for layers that keep it.
    ///
    /// # Errors
    /// [`OperationError::Artifact`] where the folder holds none.
    pub fn dense_of(&self) -> Result<Self, OperationError> {
        match &self.0.source {
            #[cfg(feature = "jit")]
            Source::Jit => Ok(Self::dense()),
            Source::Artifacts(artifacts) => {
                let (dense, rows) = artifacts.dense()?;
                Ok(Self::of(dense, rows, Source::Artifacts(artifacts.clone())))
            }
        }
    }

    fn of(sparsity: Sparsity, rows: Rows, source: Source) -> Self {
        Self(Arc::new(Inner {
            sparsity,
            rows,
            source,
            #[cfg(any(feature = "cuda", feature = "vulkan"))]
            ready: Mutex::default(),
            tables: Mutex::default(),
            #[cfg(any(feature = "cuda", feature = "vulkan"))]
            on_device: Mutex::default(),
        }))
    }

    /// The pattern.
    pub fn sparsity(&self) -> &Sparsity {
        &self.0.sparsity
    }

    /// The artifacts, if kernels come from there.
    pub fn artifacts(&self) -> Option<&Artifacts> {
        match &self.0.source {
            #[cfg(feature = "jit")]
            Source::Jit => None,
            Source::Artifacts(artifacts) => Some(artifacts),
        }
    }

    /// Lays compiled kernels ready for an NVIDIA device, if there is one.
    fn seed(&self) -> Result<(), OperationError> {
        #[cfg(feature = "cuda")]
        if let (Some(artifacts), Ok(found)) =
            (self.artifacts(), butterfly_runtime::find(Device::Cuda))
        {
            let kernels = artifacts.ready(Device::Cuda, found.sm)?;
            let products = artifacts.products(Device::Cuda, found.sm)?;
            if !kernels.is_empty() {
                butterfly_runtime::seed(&kernels, &products)?;
            }
            crate::cube::offer(products);
        }
        Ok(())
    }

    fn spec(&self, shape: KernelShape) -> KernelSpec {
        KernelSpec {
            phase: shape.phase,
            head_dim: shape.head_dim,
            v_head_dim: shape.v_head_dim,
            group: shape.group,
            dtype: shape.dtype,
            block: self.0.sparsity.block,
            rows: self.0.rows.clone(),
            score: shape.score,
        }
    }

    /// The kernel for `shape` on a device; `sm` is its compute capability, on NVIDIA.
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn kernel(
        &self,
        device: Device,
        sm: Option<Sm>,
        shape: KernelShape,
    ) -> Result<Ready, OperationError> {
        let target = match &self.0.source {
            #[cfg(feature = "jit")]
            Source::Jit => device.target(sm)?,
            Source::Artifacts(artifacts) => artifacts.target_for(device, sm)?,
        };
        let mut ready = self.0.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = ready.get(&(target, shape)) {
            return Ok(kernel.clone());
        }
        let spec = self.spec(shape);
        let kernel = match &self.0.source {
            #[cfg(feature = "jit")]
            Source::Jit => emitted(device, &spec, target)?,
            Source::Artifacts(artifacts) => {
                let entry = artifacts.select(&spec, target)?;
                artifacts.ready_one(device, entry)?
            }
        };
        ready.insert((target, shape), kernel.clone());
        Ok(kernel)
    }

    /// Checks that artifacts hold the native kernel for `shape`, and names it.
    #[cfg(feature = "cpu")]
    pub(crate) fn native(&self, shape: KernelShape) -> Result<String, OperationError> {
        match &self.0.source {
            #[cfg(feature = "jit")]
            Source::Jit => Ok(format!("native {}", shape.phase.name())),
            Source::Artifacts(artifacts) => {
                let entry = artifacts.select(&self.spec(shape), Target::Cpu)?;
                Ok(format!("native {} {}", shape.phase.name(), entry.key))
            }
        }
    }

    /// What each row of blocks sees, for so many tokens.
    pub(crate) fn table(&self, capacity: u32, index: u32) -> Arc<BandTable> {
        let sparsity = &self.0.sparsity;
        let stages = sparsity
            .pattern
            .stage_count(capacity.div_ceil(sparsity.block));
        let index = index % stages.max(1);
        let mut tables = self.0.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let context = Context::new(sparsity.block, capacity, index);
            Arc::new(rows::table(&sparsity.pattern, &context))
        };
        tables.entry((capacity, index)).or_insert_with(make).clone()
    }

    /// The same on a device, for kernels that read a table.
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn device_table<R: butterfly_runtime::Launches>(
        &self,
        client: &cubecl::client::ComputeClient<R>,
        device: &R::Device,
        capacity: u32,
        index: u32,
    ) -> Option<butterfly_runtime::DeviceTable> {
        if !matches!(self.0.rows, Rows::Table) {
            return None;
        }
        let key = (format!("{device:?}"), capacity, index);
        let mut tables = self
            .0
            .on_device
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let make = || butterfly_runtime::DeviceTable::new(client, &self.table(capacity, index));
        Some(tables.entry(key).or_insert_with(make).clone())
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match &self.0.source {
            #[cfg(feature = "jit")]
            Source::Jit => "made at first use".to_string(),
            Source::Artifacts(artifacts) => format!("from {}", artifacts.dir().display()),
        };
        write!(f, "Plan({}; kernels {source})", self.0.sparsity)
    }
}

/// Writes the kernel; what a driver or its library makes of it comes at the first launch.
#[cfg(all(feature = "jit", any(feature = "cuda", feature = "vulkan")))]
fn emitted(device: Device, spec: &KernelSpec, target: Target) -> Result<Ready, OperationError> {
    let emit = |error: butterfly_codegen::EmitError| OperationError::Emit(error.to_string());
    let kernel = butterfly_codegen::write(spec, target).map_err(emit)?;
    let key = butterfly_compiler::key::of(spec, target);
    compiled::add(format!("{target} {} {key}", spec.phase.name()));
    let none = || OperationError::Emit(format!("kernel {key} for {target} has no form to launch"));
    let (_, image) = kernel.files.last().ok_or_else(none)?;
    Ok(Ready::new(
        device,
        &butterfly_runtime::Loaded {
            key: &key,
            entry: &kernel.entry,
            spec,
            geometry: kernel.geometry,
            image,
        },
    )?)
}

//! A pattern, and the source of its kernels.
//!
//! In:  a pattern without artifacts, an artifact folder, or files inside the program. Out: kernels
//! for a device and a shape, each prepared once; tables of the bands that rows see (`tables.rs`).

#[cfg(all(feature = "jit", any(feature = "cuda", feature = "vulkan")))]
use crate::compiled;
use crate::delta_rules;
use crate::grouped;
use crate::tables::{Tables, Wanted};
use crate::{Attend, OperationError};
use butterfly_ir::Target;
use butterfly_ir::model::OwnAttention;
use butterfly_ir::pattern::Routing;
use butterfly_ir::{BandTable, Context, Dtype, KernelSpec, Role, Rows, Score, Sparsity, rows};
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use butterfly_ir::{Scorer, Sm};
use butterfly_ops::{DeltaRules, GroupedProducts, Products};
use butterfly_runtime::artifacts::{ArtifactError, Artifacts};
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use butterfly_runtime::{Device, Ready, ReadyScorer};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

pub use butterfly_runtime::artifacts::Embedded;

/// A pattern that attention layers run, and the source of its kernels. Clones share it.
#[derive(Clone)]
pub struct Plan(Arc<Inner>);

struct Inner {
    sparsity: Sparsity,
    /// What rows choose by content: every call asks for it, and finding it walks the pattern.
    routing: Option<Routing>,
    rows: Rows,
    source: Source,
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    ready: Mutex<HashMap<(Target, KernelShape), Ready>>,
    /// Band tables.
    #[cfg(feature = "cpu")]
    tables: Tables<TableKey, Arc<BandTable>>,
    /// Band tables in device memory, by device.
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    on_device: Tables<(String, TableKey), butterfly_runtime::DeviceTable>,
    /// The matrix products among the artifacts that run on the NVIDIA device.
    products: Products,
    /// The kernels of the gated delta rule among the artifacts that run on the NVIDIA device.
    delta_rules: DeltaRules,
    /// The kernels for products with experts among the artifacts that run on the NVIDIA device.
    grouped: GroupedProducts,
    /// The kernels among the artifacts that score blocks by content on the NVIDIA device.
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    scorers: Arc<[ReadyScorer]>,
}

enum Source {
    #[cfg(feature = "jit")]
    Jit,
    Artifacts(Box<Artifacts>),
}

/// What a band table depends on besides the capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TableKey {
    stage: u32,
    /// Tokens of the prompt; 0 if the pattern has no tail.
    prompt: u32,
    /// Kv heads with rows of their own; 1 if they share them.
    heads: u32,
}

/// The properties in which the kernels of a plan differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KernelShape {
    pub(crate) role: Role,
    pub(crate) head_dim: u32,
    pub(crate) v_head_dim: u32,
    pub(crate) group: u32,
    pub(crate) dtype: Dtype,
    pub(crate) score: Score,
}

impl Plan {
    /// A plan whose kernels are made when they are first needed.
    ///
    /// # Errors
    /// [`OperationError::Pattern`] for a value out of range, which only patterns built by hand can
    /// have: `pattern!`, text and JSON are checked when they are parsed.
    #[cfg(feature = "jit")]
    pub fn new(sparsity: Sparsity) -> Result<Self, OperationError> {
        sparsity.check()?;
        Ok(Self::jit(sparsity))
    }

    #[cfg(feature = "jit")]
    fn jit(sparsity: Sparsity) -> Self {
        let rows = butterfly_compiler::plan::rows(&sparsity.pattern);
        Self(Arc::new(Inner::new(sparsity, rows, Source::Jit)))
    }

    /// Dense causal attention, by the same kind of kernels, made when they are first needed.
    #[cfg(feature = "jit")]
    pub fn dense() -> Self {
        Self::jit(OwnAttention { window: None }.sparsity())
    }

    /// The plan of an artifact folder, whose files are all checked against their digests.
    ///
    /// On a machine with an NVIDIA device, call this before the device is first used: CubeCL reads
    /// compiled kernels only when it opens a device.
    ///
    /// # Errors
    /// [`OperationError::Artifact`] if the folder is not valid, or [`OperationError::Launch`] if
    /// its compiled kernels cannot be written to CubeCL's cache.
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
        // A pattern that differs by layer has no rows of its own: `of_layer` finds those of a layer.
        let rows = match sparsity.pattern.is_by_layer() {
            true => Rows::Table,
            false => artifacts.rows(&sparsity.pattern)?,
        };
        let plan = Inner::new(sparsity, rows, Source::Artifacts(Box::new(artifacts)));
        #[cfg(feature = "cuda")]
        let plan = {
            let beside = plan.seed()?;
            Inner {
                products: products(&beside.products),
                scorers: beside.scorers.into(),
                delta_rules: delta_rules::of(&beside.delta_rules),
                grouped: grouped::of(&beside.grouped),
                ..plan
            }
        };
        Ok(Self(Arc::new(plan)))
    }

    /// The plan of the layer of index `layer` in the model, from the same source of kernels. Layers
    /// share the plan itself, unless its pattern tells them apart by `per_layer`.
    ///
    /// # Errors
    /// [`OperationError::Artifact`] if the artifacts hold no kernels for the layer's pattern.
    pub fn of_layer(&self, layer: u32) -> Result<Self, OperationError> {
        if !self.sparsity().pattern.is_by_layer() {
            return Ok(self.clone());
        }
        let sparsity = self.sparsity().of_layer(layer);
        let pattern = sparsity.pattern.clone();
        self.with(sparsity, |artifacts| artifacts.rows(&pattern))
    }

    /// The plan of layers that keep their own attention, from the same source of kernels.
    ///
    /// # Errors
    /// [`OperationError::Artifact`] if the artifacts hold no kernels for it.
    pub fn keeping(&self, own: OwnAttention) -> Result<Self, OperationError> {
        self.with(own.sparsity(), |artifacts| artifacts.kept(own))
    }

    /// A plan of another pattern from the same source; `rows` finds its rows in artifacts.
    fn with(
        &self,
        sparsity: Sparsity,
        rows: impl FnOnce(&Artifacts) -> Result<Rows, ArtifactError>,
    ) -> Result<Self, OperationError> {
        match &self.0.source {
            #[cfg(feature = "jit")]
            Source::Jit => Ok(Self::jit(sparsity)),
            Source::Artifacts(artifacts) => {
                let rows = rows(artifacts)?;
                let source = Source::Artifacts(artifacts.clone());
                let plan = Inner::new(sparsity, rows, source);
                #[cfg(feature = "cuda")]
                let plan = Inner {
                    products: self.0.products.clone(),
                    delta_rules: self.0.delta_rules.clone(),
                    grouped: self.0.grouped.clone(),
                    scorers: self.0.scorers.clone(),
                    ..plan
                };
                Ok(Self(Arc::new(plan)))
            }
        }
    }

    /// The pattern.
    pub fn sparsity(&self) -> &Sparsity {
        &self.0.sparsity
    }

    /// What the rows of the pattern choose by content; `None` if the pattern alone says what they see.
    pub fn routing(&self) -> Option<Routing> {
        self.0.routing
    }

    /// Why sequences of different lengths cannot share a call; `None` if they can.
    pub fn takes_no_lags(&self) -> Option<&'static str> {
        match (self.routing(), self.sparsity().pattern.tail()) {
            (Some(_), _) => Some("`routed` chooses blocks for sequences of equal length"),
            (None, tail) if tail > 0 => Some("`tail` counts from the end of the longest prompt"),
            (None, _) => None,
        }
    }

    /// The artifacts, if the kernels come from artifacts.
    pub fn artifacts(&self) -> Option<&Artifacts> {
        match &self.0.source {
            #[cfg(feature = "jit")]
            Source::Jit => None,
            Source::Artifacts(artifacts) => Some(artifacts),
        }
    }

    /// The plan's own kernels for matrix products.
    pub fn products(&self) -> Products {
        self.0.products.clone()
    }

    /// The plan's own kernels for the gated delta rule.
    pub fn delta_rules(&self) -> DeltaRules {
        self.0.delta_rules.clone()
    }

    /// The plan's own kernels for products with experts, and of a few rows with packed weights.
    pub fn grouped(&self) -> GroupedProducts {
        self.0.grouped.clone()
    }

    /// The kernel that scores blocks by content on Hopper; `None` if there is none for this shape.
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn scorer(&self, wanted: Scorer) -> Result<Option<ReadyScorer>, OperationError> {
        let mut ready = self.0.scorers.iter();
        match ready.find(|ready| ready.scorer().computes_as(&wanted)) {
            Some(ready) => Ok(Some(ready.clone())),
            None => crate::scorers::made(wanted),
        }
    }

    fn spec(&self, shape: KernelShape) -> KernelSpec {
        KernelSpec {
            role: shape.role,
            head_dim: shape.head_dim,
            v_head_dim: shape.v_head_dim,
            group: shape.group,
            dtype: shape.dtype,
            block: self.0.sparsity.block,
            rows: self.0.rows.clone(),
            score: shape.score,
        }
    }

    /// The kernel for `shape` on a device; `sm` is the device's compute capability, on NVIDIA.
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
                artifacts.ready_one(device, sm, entry)?
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
            Source::Jit => Ok(format!("native {}", shape.role.name())),
            Source::Artifacts(artifacts) => {
                let entry = artifacts.select(&self.spec(shape), Target::Cpu)?;
                Ok(format!("native {} {}", shape.role.name(), entry.key))
            }
        }
    }

    /// A table with at least the rows that the queries of a call are in.
    #[cfg(feature = "cpu")]
    pub(crate) fn table(&self, attend: &Attend, lengths: [usize; 2]) -> Arc<BandTable> {
        let (key, wanted) = self.wanted(attend, lengths);
        let capacity = wanted.capacity;
        let make = |rows| Arc::new(self.rows(capacity, key, rows));
        self.0.tables.get(key, wanted, make)
    }

    /// The same in device memory, for kernels that read a table; `None` for a closed form.
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn device_table<R: butterfly_runtime::Launches>(
        &self,
        client: &cubecl::client::ComputeClient<R>,
        device: &R::Device,
        attend: &Attend,
        lengths: [usize; 2],
    ) -> Option<butterfly_runtime::DeviceTable> {
        if !matches!(self.0.rows, Rows::Table) {
            return None;
        }
        let (key, wanted) = self.wanted(attend, lengths);
        let capacity = wanted.capacity;
        let make = |rows| {
            let table = self.rows(capacity, key, rows);
            butterfly_runtime::DeviceTable::new(client, &table)
        };
        let key = (format!("{device:?}"), key);
        Some(self.0.on_device.get(key, wanted, make))
    }

    /// The most blocks that a row of each kv head chooses by content.
    pub(crate) fn routed_blocks(&self, kv_heads: usize) -> Vec<u32> {
        let heads = u32::try_from(kv_heads).unwrap_or(u32::MAX);
        self.0.sparsity.pattern.routed_blocks(heads)
    }

    /// What the table of a call with so many kv heads and queries depends on, and the rows of blocks
    /// that its queries are in.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "positions were checked to stay below 2^30"
    )]
    fn wanted(&self, attend: &Attend, [kv_heads, q_len]: [usize; 2]) -> (TableKey, Wanted) {
        let sparsity = &self.0.sparsity;
        let block = sparsity.block;
        let capacity = attend.capacity as u32;
        let lag = attend.lags.iter().max().copied().unwrap_or(0);
        let first = attend.q_offset.saturating_sub(lag) as u32;
        let end = (attend.q_offset + q_len) as u32;
        let all = capacity.div_ceil(block);
        let pattern = &sparsity.pattern;
        let stages = pattern.stage_count(all).max(1);
        let wanted = Wanted {
            capacity,
            rows: first / block..end.div_ceil(block),
            all,
        };
        let key = TableKey {
            stage: attend.index % stages,
            prompt: if pattern.tail() > 0 {
                attend.prompt as u32
            } else {
                0
            },
            heads: if pattern.is_by_head() {
                kv_heads as u32
            } else {
                1
            },
        };
        (key, wanted)
    }

    fn rows(&self, capacity: u32, key: TableKey, rows: Range<u32>) -> BandTable {
        let sparsity = &self.0.sparsity;
        let context = Context {
            prompt: key.prompt,
            ..Context::new(sparsity.block, capacity, key.stage)
        };
        rows::table_of(&sparsity.pattern, &context, key.heads, rows)
    }
}

/// The kernels beside attention among artifacts.
#[cfg(feature = "cuda")]
#[derive(Default)]
struct BesideAttention {
    products: Vec<butterfly_runtime::ReadyProduct>,
    scorers: Vec<ReadyScorer>,
    delta_rules: Vec<butterfly_runtime::ReadyDeltaRule>,
    grouped: Vec<butterfly_runtime::ReadyGrouped>,
}

impl Inner {
    fn new(sparsity: Sparsity, rows: Rows, source: Source) -> Self {
        Self {
            routing: sparsity.pattern.routing(),
            sparsity,
            rows,
            source,
            #[cfg(any(feature = "cuda", feature = "vulkan"))]
            ready: Mutex::default(),
            #[cfg(feature = "cpu")]
            tables: Tables::default(),
            #[cfg(any(feature = "cuda", feature = "vulkan"))]
            on_device: Tables::default(),
            products: products(&[]),
            delta_rules: delta_rules::of(&[]),
            grouped: grouped::of(&[]),
            #[cfg(any(feature = "cuda", feature = "vulkan"))]
            scorers: Arc::default(),
        }
    }

    /// Writes compiled kernels to CubeCL's cache if there is an NVIDIA device; returns the kernels
    /// beside attention among the artifacts.
    #[cfg(feature = "cuda")]
    fn seed(&self) -> Result<BesideAttention, OperationError> {
        let artifacts = match &self.source {
            #[cfg(feature = "jit")]
            Source::Jit => return Ok(Default::default()),
            Source::Artifacts(artifacts) => artifacts,
        };
        let Ok(found) = butterfly_runtime::find(Device::Cuda) else {
            return Ok(Default::default());
        };
        let kernels = artifacts.ready(Device::Cuda, found.sm)?;
        let beside = BesideAttention {
            products: artifacts.products(Device::Cuda, found.sm)?,
            scorers: artifacts.scorers(Device::Cuda, found.sm)?,
            delta_rules: artifacts.delta_rules(Device::Cuda, found.sm)?,
            grouped: artifacts.grouped(Device::Cuda, found.sm)?,
        };
        if !kernels.is_empty() {
            let BesideAttention {
                products,
                scorers,
                delta_rules,
                grouped,
            } = &beside;
            butterfly_runtime::seed(&kernels, products, scorers, delta_rules, grouped)?;
        }
        Ok(beside)
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

/// Generates the kernel's text. The driver or its library compiles it at the first launch.
#[cfg(all(feature = "jit", any(feature = "cuda", feature = "vulkan")))]
fn emitted(device: Device, spec: &KernelSpec, target: Target) -> Result<Ready, OperationError> {
    let emit = |error: butterfly_codegen::EmitError| OperationError::Emit(error.to_string());
    let kernel = butterfly_codegen::write(spec, target).map_err(emit)?;
    let key = butterfly_compiler::key::of(spec, target);
    compiled::add(format!("{target} {} {key}", spec.role.name()));
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

/// The products of a plan: those of its artifacts; others are generated when they are needed.
#[cfg(feature = "cuda")]
fn products(ready: &[butterfly_runtime::ReadyProduct]) -> Products {
    #[cfg(feature = "jit")]
    return Products::new(ready, Some(made));
    #[cfg(not(feature = "jit"))]
    Products::new(ready, None)
}

/// Without CUDA there are no generated products.
#[cfg(not(feature = "cuda"))]
fn products(_: &[()]) -> Products {
    Products::default()
}

/// The product for an element type, generated once per process: it depends only on the type.
#[cfg(all(feature = "jit", feature = "cuda"))]
fn made(dtype: Dtype) -> Result<Option<butterfly_runtime::ReadyProduct>, OperationError> {
    static MADE: Mutex<Vec<butterfly_runtime::ReadyProduct>> = Mutex::new(Vec::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(product) = made.iter().find(|product| product.dtype() == dtype) {
        return Ok(Some(product.clone()));
    }
    let Some((product, text)) = butterfly_codegen::product(dtype) else {
        return Ok(None);
    };
    compiled::add(format!("cuda:sm_90a product {}", dtype.name()));
    let product = butterfly_runtime::ReadyProduct::new(product, text.as_bytes())?;
    made.push(product.clone());
    Ok(Some(product))
}

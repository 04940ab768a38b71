//! Commands that run whole models.
//!
//! A command is a [`Task`], written once for every backend of Burn; [`run_on`] picks the backend.
//! Artifacts are opened first: on NVIDIA, their cubins must be in CubeCL's cache before the device
//! is opened.

mod batch;
pub(crate) mod bench;
pub(crate) mod calibrate;
pub(crate) mod chat;
pub(crate) mod contents;
mod continuation;
mod conversation;
mod defaults;
pub(crate) mod eval;
mod finite;
pub(crate) mod generate;
mod interrupt;
mod lines;
mod listing;
pub(crate) mod logits;
mod memory;
mod prompts;
mod report;
mod shown;
mod weights;

use crate::args::{ActivationsArg, DeviceArg, Draw, Run};
use crate::device::{self, check_pattern};
use crate::failure::Failure;
use crate::{output, source};
use burn::prelude::Backend;
use butterfly::ops::Packed;
use butterfly::{AttentionBackend, Plan, backends};
use butterfly_compiler::lengths;
use butterfly_ir::band::MAX_TOKENS;
use butterfly_ir::model::{ModelConfig, ModelSizes};
use butterfly_ir::pattern::Parsed;
use butterfly_ir::{Context, Dtype, Sparsity, Target};
use butterfly_models::{
    Checkpoint, Extent, Footprint, Model, Policy, Sampler, Sampling, Unused, read_packing,
};
use butterfly_runtime::{Device, Found, find};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Something to do with a model, on any backend.
pub(crate) trait Task {
    type Output;

    fn run<B: AttentionBackend>(self, place: Place<B>) -> Result<Self::Output, Failure>;
}

/// A device, opened by its backend.
pub(crate) struct Place<B: Backend> {
    pub(crate) device: B::Device,
    /// The name in flags and JSON.
    pub(crate) kind: &'static str,
    /// Its name, as its driver reports it.
    pub(crate) name: String,
    /// Element type to run in.
    pub(crate) dtype: Dtype,
    /// Memory of the device: in use, and in total.
    pub(crate) memory: memory::Memory,
}

impl<B: Backend> Place<B> {
    /// The device and the element type, for which memory is estimated.
    fn target(&self) -> (&B::Device, Dtype) {
        (&self.device, self.dtype)
    }

    /// Whether the device has room for what a run needs.
    fn has_room(&self, dir: &Path, needs: &Footprint) -> bool {
        self.check_room(dir, needs, 0).is_ok()
    }

    /// Checks that the device has room for what a run needs, and the host for `on_host` more bytes
    /// of this process.
    pub(crate) fn check_room(
        &self,
        config: &Path,
        needs: &Footprint,
        on_host: u64,
    ) -> Result<(), Failure> {
        let device = format!("{} ({})", self.kind, self.name);
        let total = self.memory.total;
        if self.kind == "cpu" {
            return memory::fits(&device, total, config, needs, on_host);
        }
        memory::fits(&device, total, config, needs, 0)?;
        let none = Footprint::default();
        memory::fits("this machine", memory::available(), config, &none, on_host)
    }
}

impl<B: AttentionBackend> Place<B> {
    /// Loads the model of a folder, after checking that there is room for it, for a run of
    /// `extent`, and for `on_host` bytes of this process. Notes and returns the tensors of the
    /// folder that the model does not use; returns also what the run needs.
    fn load(
        &self,
        folder: &Checkpoint,
        extent: Extent,
        on_host: u64,
    ) -> Result<(Model<B>, Unused, Footprint), Failure> {
        let taken = Model::<B>::check(folder, self.dtype, &self.device).map_err(Failure::bad)?;
        let needs =
            Footprint::new::<B>(&folder.config, &folder.sizes, taken, self.target(), extent);
        self.check_room(&folder.config_file(), &needs, on_host)?;
        let (model, unused) = self.load_checked(folder)?;
        Ok((model, unused, needs))
    }

    /// Loads the model of a folder for which there is room. Notes and returns the tensors of the
    /// folder that the model does not use.
    fn load_checked(&self, folder: &Checkpoint) -> Result<(Model<B>, Unused), Failure> {
        let loaded = Model::load(folder, self.dtype, &self.device);
        let (model, unused) = loaded.map_err(Failure::bad)?;
        if !unused.is_empty() {
            output::note(format_args!(
                "note: {} tensors of the folder are not used by this model: {}",
                unused.len(),
                unused.join(", ")
            ));
        }
        Ok((model, unused))
    }
}

impl Draw {
    /// A sampler at the start of its sequence of random numbers.
    fn sampler(&self) -> Sampler {
        Sampler::new(Sampling {
            temperature: self.temperature,
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p,
            seed: self.seed,
        })
    }
}

/// Opens a model's folder for a run, and notes if its weights overrule its config or the run's arguments.
fn open(dir: &Path, run: &Run) -> Result<Checkpoint, Failure> {
    let folder = Checkpoint::open(dir).map_err(Failure::bad)?;
    if run.activations == ActivationsArg::Fp8 && !folder.has_float8() {
        note_of_activations(dir);
    }
    let folder = folder.with_activations(run.activations.into());
    if folder.own_output() {
        output::note(format_args!(
            "note: {}: `tie_word_embeddings` is true, but lm_head.weight differs from the embedding: both are used; write false there to silence this",
            dir.join("config.json").display()
        ));
    }
    Ok(folder)
}

/// The packing of random weights of a config's shapes, for a run.
fn packing(config: &Path, run: &Run) -> Result<Option<Packed>, Failure> {
    let packed = read_packing(config).map_err(Failure::bad)?;
    let float8 = matches!(packed, Some(Packed::Float8 { .. }));
    if run.activations == ActivationsArg::Fp8 && !float8 {
        note_of_activations(config);
    }
    Ok(packed.map(|packed| packed.with(run.activations.into())))
}

fn note_of_activations(model: &Path) {
    output::note(format_args!(
        "note: --activations fp8 changes nothing: {} has no weights in FP8",
        model.display()
    ));
}

/// The model of a run, and its kernels.
pub(crate) struct Setting<'a> {
    pub(crate) config: &'a ModelConfig,
    /// Its folder or config file.
    pub(crate) path: &'a Path,
    /// The element type that the default is derived from: the model's own, or f32.
    pub(crate) dtype: Dtype,
    pub(crate) sparse: Option<&'a Sparse>,
}

impl Setting<'_> {
    /// The element type to run in on `target`. Checks, before weights are loaded, that the
    /// artifacts have every kernel for it.
    fn dtype(&self, run: &Run, target: Target) -> Result<Dtype, Failure> {
        let artifacts = self.sparse.and_then(|sparse| sparse.plan.artifacts());
        let dtype = device::dtype(run.dtype, self.dtype, target, artifacts);
        if !target.has(dtype) {
            return Err(Failure::Bad(format!(
                "--dtype {0}: {target} has no {0}; give f16 or f32",
                dtype.name()
            )));
        }
        if let Some(artifacts) = artifacts {
            device::check_model(artifacts, self.config, self.path, (target, dtype))?;
        }
        Ok(dtype)
    }

    /// The target of a device; with artifacts, the one that they have kernels for.
    fn target(&self, device: Device, found: &Found) -> Result<Target, Failure> {
        let artifacts = self.sparse.and_then(|sparse| sparse.plan.artifacts());
        let target = match artifacts {
            Some(artifacts) => artifacts.target_for(device, found.sm),
            None => device.target(found.sm),
        };
        target.map_err(|error| Failure::Bad(format!("{}: {error}", found.name)))
    }
}

/// Tokens of a prompt that are taken at once. On the CPU more of them are not faster, and tensors of
/// fewer take less memory.
fn chunk_of<B: AttentionBackend>(run: &Run) -> u32 {
    run.chunk.unwrap_or(if B::ON_HOST { 512 } else { 8192 })
}

/// Tokens of each sequence of a batch that are taken at once: all together as many as of one sequence
/// alone, so that they take as much memory.
fn chunk_of_each<B: AttentionBackend>(run: &Run, batch: usize) -> usize {
    (chunk_of::<B>(run) as usize / batch).max(1)
}

/// Runs a task on the device that is asked for. A panic, such as one in a driver's library, becomes
/// a failure.
pub(crate) fn run_on<T: Task>(
    run: &Run,
    setting: &Setting<'_>,
    task: T,
) -> Result<T::Output, Failure> {
    let result = catch_unwind(AssertUnwindSafe(|| match place(run, setting)? {
        (None, dtype) => task.run::<backends::Cpu>(Place {
            device: Default::default(),
            kind: "cpu",
            name: format!("{:?}", butterfly_cpu::Isa::best()),
            dtype,
            memory: memory::Memory::host(),
        }),
        (Some((device, found)), dtype) => on_device(device, found, dtype, task),
    }));
    result.unwrap_or_else(|panic| {
        let said = crate::failure::said(&*panic);
        Err(Failure::Bad(format!(
            "the device or its library failed: {said}; if memory ran out, give a smaller --capacity or --chunk"
        )))
    })
}

/// The device to run on, `None` for the CPU, and the element type to run in. `auto` takes the first
/// GPU that is present and has kernels, else the CPU; software implementations of a GPU are
/// skipped.
fn place(run: &Run, setting: &Setting<'_>) -> Result<(Option<(Device, Found)>, Dtype), Failure> {
    let on = |device, found: Found| {
        let dtype = setting.dtype(run, setting.target(device, &found)?)?;
        Ok((Some((device, found)), dtype))
    };
    let device = match run.device {
        DeviceArg::Cpu => return Ok((None, setting.dtype(run, Target::Cpu)?)),
        DeviceArg::Cuda => Device::Cuda,
        DeviceArg::Vulkan => Device::Vulkan,
        DeviceArg::Webgpu => {
            return Err(Failure::Bad(
                "--device webgpu: models run on the graphics interface through vulkan here; give --device vulkan".into(),
            ));
        }
        DeviceArg::Metal => {
            return Err(Failure::Bad(
                "--device metal: models are not run on Metal yet; give --device cpu".into(),
            ));
        }
        DeviceArg::Auto => {
            for device in [Device::Cuda, Device::Vulkan] {
                let Some(found) = find(device).ok().filter(|found| !found.software) else {
                    continue;
                };
                let name = found.name.clone();
                match on(device, found) {
                    Ok(place) => return Ok(place),
                    Err(failure) => device::note_passed_over(device, &name, &failure),
                }
            }
            return Ok((None, setting.dtype(run, Target::Cpu)?));
        }
    };
    let found = find(device).map_err(|reason| {
        Failure::Bad(format!(
            "--device {device}: {reason}; `butterfly doctor` lists what is here"
        ))
    })?;
    on(device, found)
}

#[cfg_attr(
    not(any(feature = "cuda", feature = "vulkan")),
    allow(unused_variables)
)]
fn on_device<T: Task>(
    device: Device,
    found: Found,
    dtype: Dtype,
    task: T,
) -> Result<T::Output, Failure> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda => {
            // Sets the cache folder even without artifacts, so that kernels which CubeCL compiles
            // are kept for the next start.
            butterfly_runtime::seed(&[], &[], &[], &[], &[]).map_err(Failure::bad)?;
            let device = backends::CudaDevice::default();
            task.run::<backends::Cuda>(Place {
                kind: "cuda",
                name: found.name,
                dtype,
                memory: memory::Memory::of::<backends::CudaRuntime>(&device, found.memory),
                device,
            })
        }
        #[cfg(feature = "vulkan")]
        Device::Vulkan => {
            let device = match found.software {
                true => backends::WgpuDevice::Cpu,
                false => backends::WgpuDevice::default(),
            };
            task.run::<backends::Vulkan>(Place {
                kind: "vulkan",
                name: found.name,
                dtype,
                memory: memory::Memory::of::<backends::WgpuRuntime>(&device, found.memory),
                device,
            })
        }
        #[allow(unreachable_patterns)]
        other => Err(Failure::Bad(format!(
            "--device {other}: this build cannot run models there: build it with that feature"
        ))),
    }
}

/// A pattern and its kernels, from flags and artifacts.
pub(crate) struct Sparse {
    /// Pattern and kernels of the replaced layers.
    pub(crate) plan: Plan,
    /// The pattern, with the layers that it replaces.
    pub(crate) sparsity: Sparsity,
}

/// Checks that chunks of a prompt end on borders of blocks, if the rows of a block choose together.
fn check_chunk(run: &Run, sparsity: &Sparsity) -> Result<(), Failure> {
    // The smaller of the defaults.
    check_chunk_of_each([run.chunk.unwrap_or(512), 1], sparsity)
}

/// As [`check_chunk`], where `batch` sequences share a chunk.
fn check_chunk_of_each([chunk, batch]: [u32; 2], sparsity: &Sparsity) -> Result<(), Failure> {
    let (each, block) = ((chunk / batch).max(1), sparsity.block);
    match sparsity.pattern.routing().is_some() && !each.is_multiple_of(block) {
        true => Err(Failure::Bad(format!(
            "chunks of {each} tokens cut blocks of {block}, whose queries choose blocks together; give --chunk {}, or another multiple of {}",
            batch.saturating_mul(each.next_multiple_of(block)),
            batch.saturating_mul(block)
        ))),
        false => Ok(()),
    }
}

/// Reads pattern and artifacts, and checks the pattern for sequences of up to `tokens` tokens.
/// `None` without both: all attention is dense.
pub(crate) fn sparse(
    run: &Run,
    tokens: usize,
    model: (&ModelConfig, &ModelSizes),
) -> Result<Option<Sparse>, Failure> {
    let parsed = match (&run.pattern, &run.policy) {
        (Some(pattern), _) => Some(source::read(pattern)?),
        (None, Some(path)) => {
            let (policy, parsed) = source::read_policy(path)?;
            policy.check(path, model.0, model.1).map_err(Failure::bad)?;
            Some(parsed)
        }
        (None, None) => None,
    };
    let counted = u32::try_from(tokens).ok().filter(|n| *n <= MAX_TOKENS);
    let counted = counted.ok_or_else(|| {
        Failure::Bad(format!(
            "{tokens} tokens are asked for; at most {MAX_TOKENS} are counted"
        ))
    })?;
    if let Some(parsed) = &parsed {
        check(parsed, counted)?;
    }
    let plan = match (&run.artifacts, &parsed) {
        (Some(dir), _) => Plan::open(dir).map_err(Failure::bad)?,
        (None, Some(parsed)) => jit(parsed.sparsity.clone())?,
        (None, None) if run.swap.is_some() => {
            return Err(Failure::Bad(
                "--swap names layers to replace, but not by what; give --pattern, --policy or --artifacts"
                    .into(),
            ));
        }
        (None, None) => return Ok(None),
    };
    check_chunk(run, plan.sparsity())?;
    if let (Some(artifacts), Some(parsed)) = (plan.artifacts(), &parsed) {
        check_pattern(artifacts, &parsed.sparsity)?;
        let longest = artifacts.manifest.capacity as usize;
        if tokens > longest {
            output::note(format_args!(
                "note: {} was checked for up to {longest} tokens, {tokens} are asked for",
                artifacts.dir().display()
            ));
        }
    }
    let pattern = &plan.sparsity().pattern;
    let blocks = counted.div_ceil(plan.sparsity().block);
    if run.capacity.is_none() && pattern.stage_count(blocks) > 1 {
        output::note(format_args!(
            "note: the stages of the pattern are those of {tokens} tokens, all of this run; with other lengths layers see other blocks, unless --capacity fixes them"
        ));
    }
    let mut sparsity = parsed.map_or_else(|| plan.sparsity().clone(), |parsed| parsed.sparsity);
    if run.swap.is_some() {
        sparsity.swapped_layers = run.swap.clone();
    }
    Ok(Some(Sparse { plan, sparsity }))
}

fn check(parsed: &Parsed, tokens: u32) -> Result<(), Failure> {
    let sparsity = &parsed.sparsity;
    let context = Context::new(sparsity.block, tokens, 0);
    source::check_tables(parsed, &context)?;
    let pattern = &sparsity.pattern;
    let mut checked = Vec::new();
    // Without a model, layers that no case names are like the one after those that are named.
    for layer in 0..=pattern.named_layers() {
        for (of_head, heads) in pattern.of_layer(layer).head_classes(pattern.sample_heads()) {
            if checked.contains(&of_head) {
                continue;
            }
            let one = Sparsity {
                pattern: of_head.clone(),
                ..sparsity.clone()
            };
            let context = Context {
                layer,
                kv_head: heads[0],
                ..context
            };
            lengths::check(&one, tokens)
                .map_err(|error| source::blame(parsed, &context, &error))?;
            checked.push(of_head);
        }
    }
    Ok(())
}

/// The plan of each attention layer.
pub(crate) fn policy(
    config: &ModelConfig,
    sparse: Option<&Sparse>,
    path: &Path,
) -> Result<Policy, Failure> {
    match sparse {
        None => Policy::dense(config, &dense()?),
        Some(Sparse { plan, sparsity }) => Policy::new(config, plan, sparsity),
    }
    .map_err(|error| Failure::file(path, error))
}

#[cfg(feature = "emitters")]
fn jit(sparsity: Sparsity) -> Result<Plan, Failure> {
    Plan::new(sparsity).map_err(Failure::bad)
}

#[cfg(not(feature = "emitters"))]
fn jit(_: Sparsity) -> Result<Plan, Failure> {
    Err(Failure::Bad(
        "this build makes no kernels: give --artifacts".into(),
    ))
}

#[cfg(feature = "emitters")]
fn dense() -> Result<Plan, Failure> {
    Ok(Plan::dense())
}

#[cfg(not(feature = "emitters"))]
fn dense() -> Result<Plan, Failure> {
    Err(Failure::Bad(
        "this build makes no kernels: give --artifacts".into(),
    ))
}

/// Waits until the device has finished all work.
fn sync<B: Backend>(device: &B::Device) -> Result<(), Failure> {
    B::sync(device).map_err(|error| Failure::Bad(format!("the device failed: {error:?}")))
}

/// Copies logits to host memory, as f32.
pub(crate) fn floats<B: Backend>(logits: burn::prelude::Tensor<B, 3>) -> Result<Vec<f32>, Failure> {
    butterfly_models::floats(logits).map_err(Failure::bad)
}

/// Warns if a text is longer than the model was made for.
pub(crate) fn warn_of_length(config: &ModelConfig, tokens: usize) {
    let most = config.max_positions as usize;
    if tokens > most {
        output::note(format_args!(
            "warning: {tokens} tokens are more than the {most} positions that the model was made for (`max_position_embeddings`): what it says beyond is a guess"
        ));
    }
}

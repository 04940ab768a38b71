//! Makes artifacts in a build script: turns a model config and a pattern into a Rust module that
//! embeds the kernels.
//!
//! Owns: the steps from a plan to files, which the `butterfly` command uses too, and the module.
//! In: a `config.json`, a pattern, targets. Out: an artifact folder, and beside it a Rust file
//! for `include!`.
//!
//! Invariants: the same input gives the same bytes; the module is written only when its folder is
//! complete; a program that includes it needs neither files nor a compiler for attention.
//!
//! ```no_run
//! // build.rs
//! fn main() -> Result<(), butterfly_build::BuildError> {
//!     butterfly_build::Build::new("config.json")
//!         .pattern("causal & (local(1) | partner(causal_shift) | sink(1))")
//!         .targets("cpu,vulkan")
//!         .module("attention")
//! }
//! // main.rs
//! // mod attention { include!(concat!(env!("OUT_DIR"), "/attention.rs")); }
//! // let plan = attention::plan()?;
//! ```

#![forbid(unsafe_code)]

mod delta_rule;
mod grouped;
mod kernel;
mod module;
mod product;
mod scorer;

pub use delta_rule::{delta_rules, wanted_delta_rules};
pub use grouped::{grouped, wanted_grouped};
pub use kernel::{Files, assemble, choice, describe, make, write};
pub use product::{product_dtypes, products};
pub use scorer::{scorers, wanted_scorers};

use butterfly_compiler::config;
use butterfly_compiler::pipeline::{self, Request};
use butterfly_ir::manifest::{ConfigRef, KernelEntry, Manifest, SCHEMA};
use butterfly_ir::model::ModelConfig;
use butterfly_ir::plan::Plan;
use butterfly_ir::{Dtype, Sparsity, Target};
use butterfly_runtime::artifacts;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Why artifacts could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file that cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        error: std::io::Error,
    },
    /// A config that the compiler rejects.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// A pattern that cannot be read.
    #[error("{0}")]
    Pattern(String),
    /// An unknown target.
    #[error(transparent)]
    Target(#[from] butterfly_ir::kernel::UnknownTarget),
    /// A pattern that the compiler rejects for the model.
    #[error(transparent)]
    Pipeline(#[from] pipeline::PipelineError),
    /// A kernel that cannot be made.
    #[error("{0}")]
    Kernel(String),
    /// The folder or the module cannot be written.
    #[error(transparent)]
    Artifacts(#[from] artifacts::ArtifactError),
    /// [`Build::module`] was called outside a build script.
    #[error("OUT_DIR is not set: call this from build.rs, or `artifacts` with a folder")]
    OutDir,
    /// The name of a module that is not a Rust identifier.
    #[error("`{0}` cannot be the name of a module")]
    Name(String),
}

/// What to compile.
///
/// Relative paths start at the current directory; in a build script, that is the folder of the
/// package.
#[derive(Clone, Debug)]
pub struct Build {
    config: PathBuf,
    pattern: String,
    targets: String,
    dtypes: Vec<Dtype>,
    capacity: Option<u32>,
}

impl Build {
    /// Compiles the attention layers of the model in a Hugging Face `config.json`.
    ///
    /// By default with the pattern `causal & (local(1) | partner(causal_shift) | sink(1))`, for the
    /// targets `cuda:sm_90a`, `cuda:sm_80`, `vulkan`, `webgpu`, `metal` and `cpu`, with the element
    /// types of [`Build::dtype`] and the model's own limit as capacity.
    pub fn new(config: impl Into<PathBuf>) -> Self {
        Self {
            config: config.into(),
            pattern: "causal & (local(1) | partner(causal_shift) | sink(1))".into(),
            targets: "cuda:sm_90a,cuda:sm_80,vulkan,webgpu,metal,cpu".into(),
            dtypes: Vec::new(),
            capacity: None,
        }
    }

    /// Sets the pattern: pattern text, or the path of a `.pattern` or `.json` file.
    pub fn pattern(mut self, pattern: impl Into<String>) -> Self {
        self.pattern = pattern.into();
        self
    }

    /// Sets the targets, separated by commas without blanks.
    pub fn targets(mut self, targets: impl Into<String>) -> Self {
        self.targets = targets.into();
        self
    }

    /// Adds an element type to those of earlier calls.
    ///
    /// Without any call, kernels are made in the model's own element type, and on each target also
    /// in the one that models use there by default.
    pub fn dtype(mut self, dtype: Dtype) -> Self {
        self.dtypes.push(dtype);
        self
    }

    /// Sets the longest sequence, in tokens. Without a call it is the model's own limit.
    pub fn capacity(mut self, capacity: u32) -> Self {
        self.capacity = Some(capacity);
        self
    }

    /// Compiles, and writes the artifact folder `dir`. Returns its manifest.
    ///
    /// # Errors
    /// [`BuildError`]; the folder is then unchanged.
    pub fn artifacts(&self, dir: &Path) -> Result<Manifest, BuildError> {
        let text = read(&self.config)?;
        let name = self.config.display().to_string();
        let model = config::read(&name, &text)?;
        let targets: Result<Vec<Target>, _> = self.targets.split(',').map(str::parse).collect();
        let request = Request {
            targets: &targets?,
            dtypes: &self.dtypes,
            capacity: self.capacity,
            verify: false,
        };
        let lowered = pipeline::lower(&model, &self.sparsity()?, &request)?;
        let made = lowered.plan.kernels.par_iter();
        let made = made.map(|planned| make(&planned.spec, planned.target));
        let made: Vec<(KernelEntry, Files)> = made.collect::<Result<_, _>>()?;
        let (kernels, files): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        let (products, more) = products(product_dtypes(&lowered.plan))?;
        let (scorers, of_scorers) = scorers(wanted_scorers(&lowered.plan))?;
        let linear = config::linear(&name, &text, &model)?;
        let rules = wanted_delta_rules(&lowered.plan, linear.as_ref());
        let (delta_rules, of_rules) = delta_rules(rules)?;
        let experts = config::expert_weights(&name, &text, &model)?;
        let weights = experts
            .into_iter()
            .chain(config::linear_weights(&name, &text, &model));
        let wanted = wanted_grouped(&lowered.plan, &weights.collect::<Vec<_>>());
        let (grouped, of_weights) = grouped(wanted)?;
        let beside = of_scorers.into_iter().chain(of_rules).chain(of_weights);
        let files = files.into_iter().flatten().chain(more);
        let files: Files = files.chain(beside).collect();
        let bare = manifest(&lowered.plan, &model, (&self.config, &text));
        let manifest = Manifest {
            kernels,
            products,
            scorers,
            delta_rules,
            grouped,
            ..bare
        };
        artifacts::write(dir, &manifest, &files)?;
        Ok(manifest)
    }

    /// For build scripts: writes the artifact folder `$OUT_DIR/NAME` and the module
    /// `$OUT_DIR/NAME.rs`.
    ///
    /// The module has `ARTIFACTS`, `plan()`, and the constants `PATTERN`, `CAPACITY` and `LAYERS`.
    /// Also tells cargo when to run the build script again: if the config, a pattern file or the
    /// variable `BUTTERFLY_NVRTC` changes.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn module(&self, name: &str) -> Result<(), BuildError> {
        let out = std::env::var_os("OUT_DIR").ok_or(BuildError::OutDir)?;
        let out = PathBuf::from(out);
        let dir = out.join(name);
        println!("cargo::rerun-if-changed={}", self.config.display());
        println!("cargo::rerun-if-env-changed=BUTTERFLY_NVRTC");
        if self.pattern_file().is_some() {
            println!("cargo::rerun-if-changed={}", self.pattern);
        }
        let manifest = self.artifacts(&dir)?;
        let text = module::text(name, &dir, &manifest)?;
        let path = out.join(format!("{name}.rs"));
        Ok(artifacts::write_file(&path, text.as_bytes())?)
    }

    fn pattern_file(&self) -> Option<&Path> {
        let path = Path::new(&self.pattern);
        let named = path
            .extension()
            .is_some_and(|e| e == "pattern" || e == "json");
        named.then_some(path)
    }

    fn sparsity(&self) -> Result<Sparsity, BuildError> {
        let text = match self.pattern_file() {
            Some(path) => read(path)?,
            None => self.pattern.clone(),
        };
        let parsed = Sparsity::parse_any(&self.pattern, &text);
        Ok(parsed
            .map_err(|error| BuildError::Pattern(error.to_string()))?
            .sparsity)
    }
}

fn read(path: &Path) -> Result<String, BuildError> {
    std::fs::read_to_string(path).map_err(|error| BuildError::Io {
        path: path.to_path_buf(),
        error,
    })
}

/// The manifest of an artifact folder, still without kernels and digest; the config is given by its path
/// and text.
pub fn manifest(plan: &Plan, model: &ModelConfig, (path, text): (&Path, &str)) -> Manifest {
    let name = path.file_name().unwrap_or(path.as_os_str());
    Manifest {
        schema: SCHEMA,
        compiler: env!("CARGO_PKG_VERSION").into(),
        pattern: plan.sparsity.to_string(),
        sparsity: plan.sparsity.clone(),
        config: ConfigRef {
            file: name.to_string_lossy().into_owned(),
            model_type: model.family.name().into(),
            blake3: blake3::hash(text.as_bytes()).to_hex().to_string(),
        },
        layers: plan.layers.clone(),
        capacity: plan.capacity,
        proof: plan.proof.clone(),
        variants: plan.variants.clone(),
        kept: plan.kept.clone(),
        kernels: Vec::new(),
        products: Vec::new(),
        scorers: Vec::new(),
        delta_rules: Vec::new(),
        grouped: Vec::new(),
        digest: String::new(),
    }
}

//! The command line: commands, their flags and their help.

// Doc comments are the help text: shapes in brackets are not links.
#![allow(rustdoc::broken_intra_doc_links)]

mod model;
mod several;

pub(crate) use model::{
    ActivationsArg, BenchLayer, BenchModel, By, Calibrate, Chat, Draw, Eval, Generate, Logits,
    Measure, RetrievalTask, Run,
};
pub(crate) use several::{Replace, Several};

use butterfly_compiler::card::Card;
use butterfly_ir::band::MAX_TOKENS;
use butterfly_ir::{Dtype, Target};
use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Block-sparse attention, compiled ahead of time.
#[derive(Debug, Parser)]
#[command(name = "butterfly", version, about, propagate_version = true)]
pub(crate) struct Args {
    /// Print one JSON object on stdout and nothing else there.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compile kernels for the attention layers of a model, ahead of time; needs no GPU.
    Compile(Compile),
    /// List what an artifact folder or a model holds.
    Inspect {
        /// An artifact folder, a Hugging Face folder, or a .gguf file.
        #[arg(value_name = "DIR|FILE.gguf")]
        path: PathBuf,
    },
    /// Check every digest of an artifact folder and make its kernels again.
    Verify {
        /// The artifact folder.
        dir: PathBuf,
    },
    /// List the kv blocks that every row of query blocks reads.
    Topology(Topology),
    /// Prove what a stack of layers reaches.
    Prove(Prove),
    /// Show a layer's graph before and after fusion, and what it costs on every target.
    Explain(Explain),
    /// Run attention over tensors from a file.
    Attend(Attend),
    /// Run a model over tokens and write its logits.
    Logits(Logits),
    /// Continue a text, or several.
    Generate(Generate),
    /// Talk with a model.
    Chat(Chat),
    /// Compare a pattern with dense attention by what the model makes of a text.
    Eval(Eval),
    /// Find which layers or heads of a model a pattern can replace, and write a policy.
    Calibrate(Calibrate),
    /// Measure kernels and models on this machine.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// How patterns are written: leaves, operators, header lines, JSON, examples.
    #[command(override_help = butterfly_ir::pattern::reference())]
    Patterns,
    /// Say which devices and libraries are found, and what a missing one costs.
    Doctor,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// A pattern: a `.pattern` or `.json` file, or the text itself.
#[derive(Debug, clap::Args)]
pub(crate) struct PatternArg {
    /// A `.pattern` or `.json` file, or the pattern's text (see `butterfly help patterns`).
    #[cfg_attr(
        feature = "models",
        arg(long, value_name = "FILE|TEXT", required_unless_present = "policy")
    )]
    #[cfg_attr(
        not(feature = "models"),
        arg(long, value_name = "FILE|TEXT", required = true)
    )]
    pub(crate) pattern: Option<String>,
    /// The pattern of a policy that `butterfly calibrate` wrote.
    #[cfg(feature = "models")]
    #[arg(long, value_name = "POLICY.json", conflicts_with = "pattern")]
    pub(crate) policy: Option<PathBuf>,
    /// Tokens that fix the number of blocks and with it the stages [default: the number of keys].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_TOKENS)))]
    pub(crate) capacity: Option<u32>,
}

/// Which stage of the network.
#[derive(Debug, clap::Args)]
pub(crate) struct StageArg {
    /// The stage, counted from 0; taken modulo the number of stages.
    #[arg(long, conflicts_with_all = ["layer", "layers"])]
    pub(crate) stage: Option<u32>,
    /// The layer whose stage is meant, by its index in the model.
    #[arg(long, value_name = "I")]
    pub(crate) layer: Option<u32>,
    /// The swapped layers: how many (0, 1, …), or which (3,7,11).
    #[arg(long, value_name = "L|I,I,…")]
    pub(crate) layers: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
    Svg,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Topology {
    #[command(flatten)]
    pub(crate) pattern: PatternArg,
    /// Number of tokens.
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    pub(crate) seq_len: u32,
    #[command(flatten)]
    pub(crate) stage: StageArg,
    /// The kv head whose rows are meant, where the pattern differs by head.
    #[arg(long, value_name = "H")]
    pub(crate) kv_head: Option<u32>,
    /// What to print.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Prove {
    #[command(flatten)]
    pub(crate) pattern: PatternArg,
    /// Number of tokens.
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    pub(crate) seq_len: u32,
    /// The swapped layers: how many (0, 1, …), or which (3,7,11).
    #[arg(long, value_name = "L|I,I,…")]
    pub(crate) layers: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Attend {
    #[command(flatten)]
    pub(crate) pattern: PatternArg,
    #[command(flatten)]
    pub(crate) stage: StageArg,
    /// A safetensors file with q [B,Hq,Tq,D], k [B,Hkv,T,D] and v [B,Hkv,T,Dv].
    #[arg(long, value_name = "FILE")]
    pub(crate) inputs: PathBuf,
    /// The safetensors file to write o [B,Hq,Tq,Dv] and lse [B,Hq,Tq] to.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Factor on the logits [default: 1/sqrt(D)].
    #[arg(long)]
    pub(crate) scale: Option<f32>,
    /// A logit x becomes C tanh(x / C).
    #[arg(long, value_name = "C")]
    pub(crate) softcap: Option<f32>,
    /// Each q head has one more logit without a value: the tensor `sinks` [Hq] of the input.
    #[arg(long)]
    pub(crate) sinks: bool,
    /// Absolute position of the first query [default: T - Tq].
    #[arg(long)]
    pub(crate) q_offset: Option<u32>,
    /// Tokens of the prompt, whose end `tail` patterns see densely [default: T].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_TOKENS)))]
    pub(crate) prompt: Option<u32>,
    /// Report NaN and infinity in the inputs.
    #[arg(long)]
    pub(crate) check: bool,
    /// CPU threads [default: one a core].
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Where to run; `auto` is the first GPU for which there is a kernel, else the CPU.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) device: DeviceArg,
    /// Run the kernels of this artifact folder; no compiler is called.
    #[arg(long, value_name = "DIR")]
    pub(crate) artifacts: Option<PathBuf>,
    /// Also compute gradients.
    #[arg(long)]
    pub(crate) backward: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Attention over one layer: median time, predicted time, rate.
    Attention(BenchAttention),
    /// One query at the end of each sequence: predicted beside measured time.
    Decode(BenchAttention),
    /// One layer of a model, random weights: prefill and decode, dense beside a pattern.
    Layer(BenchLayer),
    /// A whole model: prefill and decode, dense beside a pattern.
    Model(BenchModel),
}

#[derive(Debug, clap::Args)]
pub(crate) struct BenchAttention {
    #[command(flatten)]
    pub(crate) pattern: PatternArg,
    /// Numbers of tokens.
    #[arg(long, value_name = "T,T,…", value_delimiter = ',', default_value = "8192",
          value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    pub(crate) seq_len: Vec<u32>,
    /// The stage, counted from 0 [default: the pattern's own, or 3].
    #[arg(long)]
    pub(crate) stage: Option<u32>,
    /// q heads [default: 16; with artifacts, as many as the kv heads need].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) q_heads: Option<u32>,
    /// kv heads.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) kv_heads: u32,
    /// Number of sequences.
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub(crate) batch: u32,
    /// D and Dv [default: 128; with artifacts, the kernel's].
    #[arg(long, conflicts_with = "artifacts", value_parser = clap::value_parser!(u32).range(1..=576))]
    pub(crate) head_dim: Option<u32>,
    /// Element type: f32, f16 or bf16 [default: f32; with artifacts, the kernel's].
    #[arg(long, conflicts_with = "artifacts", value_parser = dtype)]
    pub(crate) dtype: Option<Dtype>,
    /// Where to run; `auto` is the first GPU for which there is a kernel, else the CPU.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) device: DeviceArg,
    /// Run the kernel of this artifact folder; no compiler is called for it.
    #[arg(long, value_name = "DIR")]
    pub(crate) artifacts: Option<PathBuf>,
    /// Compare some of the queries with attention by its definition in f64.
    #[arg(long)]
    pub(crate) check: bool,
    /// Timed runs, after one that is not.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeats: u32,
    /// Also measure dense causal attention with the same kernel.
    #[arg(long)]
    pub(crate) dense: bool,
    /// CPU threads [default: one a core].
    #[arg(long)]
    pub(crate) threads: Option<usize>,
}

/// What kernels are made for.
#[derive(Debug, clap::Args)]
pub(crate) struct MadeFor {
    /// Targets of the kernels.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "TARGET,…",
        default_value = "cuda:sm_90a,cuda:sm_80,vulkan,webgpu,metal,cpu"
    )]
    pub(crate) target: Vec<Target>,
    /// Element types: f32, f16, bf16 [default: the model's own, and the one that models run in by
    /// default on the target].
    #[arg(long, value_name = "DTYPE,…", value_delimiter = ',', value_parser = dtype)]
    pub(crate) dtype: Vec<Dtype>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Compile {
    /// Hugging Face `config.json` files; with several, each gets a folder of its own.
    #[arg(required = true, value_name = "CONFIG")]
    pub(crate) configs: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) pattern: PatternArg,
    #[command(flatten)]
    pub(crate) made_for: MadeFor,
    /// The artifact folder to write; what it had is replaced.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Keep the kernels that the folder has for the same pattern and config.
    #[arg(long)]
    pub(crate) add: bool,
    /// Also print stages on the way from pattern to kernel.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "STAGE,…")]
    pub(crate) emit: Vec<Show>,
    /// Print what each pass took.
    #[arg(long)]
    pub(crate) timings: bool,
    /// Hold the rows that kernels execute to what the pattern says.
    #[arg(long)]
    pub(crate) verify: bool,
}

/// A stage from pattern to kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Show {
    Pattern,
    Topology,
    Proof,
    Graph,
    Plan,
    Cuda,
    Ptx,
    Wgsl,
    Metal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PhaseArg {
    Prefill,
    Decode,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    /// A Hugging Face `config.json` file.
    #[arg(value_name = "CONFIG")]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) pattern: PatternArg,
    /// The layer to explain [default: the first that is replaced].
    #[arg(long, value_name = "I")]
    pub(crate) layer: Option<u32>,
    /// Many queries, or one.
    #[arg(long, value_enum, default_value = "prefill")]
    pub(crate) phase: PhaseArg,
    /// Number of tokens [default: 32768, or what the model takes if that is less].
    #[arg(long, visible_alias = "tokens", value_name = "T", value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    pub(crate) seq_len: Option<u32>,
    /// Also predict the whole model, part by part: a prompt of that many tokens, and the token after it.
    #[arg(long)]
    pub(crate) model: bool,
    /// Tokens of a prompt that the model takes at once.
    #[arg(long, value_name = "TOKENS", default_value_t = 8192, requires = "model",
          value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    pub(crate) chunk: u32,
    /// Number of sequences.
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub(crate) batch: u32,
    /// The type in which many rows meet weights in FP8, if the model has any.
    #[arg(long, value_enum, default_value = "bf16", requires = "model")]
    pub(crate) activations: ActivationsArg,
    #[command(flatten)]
    pub(crate) made_for: MadeFor,
    /// The card to predict times for, on targets that are measured: h100 or h200.
    #[arg(long, default_value_t = Card::default(), conflicts_with = "tflops")]
    pub(crate) card: Card,
    /// What the device multiplies, in 10^12 FLOP a second, to predict times for a device
    /// that is not known.
    #[arg(long, value_name = "TFLOPS", requires = "bandwidth", value_parser = positive)]
    pub(crate) tflops: Option<f64>,
    /// What the device copies, in 10^9 bytes read and written a second.
    #[arg(long, value_name = "GB/S", requires = "tflops", value_parser = positive)]
    pub(crate) bandwidth: Option<f64>,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|x: &f64| x.is_finite() && *x > 0.0)
        .ok_or_else(|| "give a positive number".to_string())
}

fn dtype(text: &str) -> Result<Dtype, String> {
    let all = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    all.into_iter()
        .find(|dtype| dtype.name() == text)
        .ok_or_else(|| "give f32, f16 or bf16".to_string())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceArg {
    Auto,
    Cuda,
    Vulkan,
    Metal,
    Webgpu,
    Cpu,
}

//! Arguments of the commands that run models.

use super::{DeviceArg, Several, dtype};
use butterfly::ops::Activations;
use butterfly_ir::Dtype;
use clap::ValueEnum;
use std::path::PathBuf;

/// How a model is run.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Run {
    /// A `.pattern` or `.json` file, or the pattern's text [default: that of the artifacts;
    /// without either, dense attention].
    #[arg(long, value_name = "FILE|TEXT")]
    pub(crate) pattern: Option<String>,
    /// A policy that `butterfly calibrate` wrote, in the place of a pattern.
    #[arg(long, value_name = "POLICY.json", conflicts_with = "pattern")]
    pub(crate) policy: Option<PathBuf>,
    /// The layers to replace, by index [default: those of the pattern, or
    /// all with full attention].
    #[arg(long, value_name = "I,I,…", value_delimiter = ',')]
    pub(crate) swap: Option<Vec<u32>>,
    /// Tokens that fix the stages of the pattern and the room for keys [default: all tokens
    /// of the run; for chat 8192, or what the model was made for if that is less].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    pub(crate) capacity: Option<u32>,
    /// Tokens of a prompt that are taken at once [default: 8192, on the CPU 512].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) chunk: Option<u32>,
    /// Element type: f32, f16 or bf16 [default: the model's own on CUDA, else and for logits f32;
    /// where artifacts hold no kernels in that, one that they hold].
    #[arg(long, value_parser = dtype)]
    pub(crate) dtype: Option<Dtype>,
    /// The type in which rows meet weights in FP8: bf16 keeps them as they are, in any --dtype; fp8 rounds many rows at
    /// once, 128 elements with a power of two of their own, which is faster on Hopper and less precise.
    #[arg(long, value_enum, default_value = "bf16")]
    pub(crate) activations: ActivationsArg,
    /// Where to run; `auto` is the first GPU, else the CPU.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) device: DeviceArg,
    /// Run the kernels of this artifact folder; no compiler is called for them.
    #[arg(long, value_name = "DIR")]
    pub(crate) artifacts: Option<PathBuf>,
}

/// What rows become before they are multiplied with a weight in FP8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ActivationsArg {
    Bf16,
    Fp8,
}

impl From<ActivationsArg> for Activations {
    fn from(arg: ActivationsArg) -> Self {
        match arg {
            ActivationsArg::Bf16 => Self::Kept,
            ActivationsArg::Fp8 => Self::Float8,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Logits {
    /// A Hugging Face folder (config.json, safetensors), or a GGUF file.
    #[arg(short, long, value_name = "DIR|FILE.gguf")]
    pub(crate) model: PathBuf,
    /// A safetensors file with `input_ids` [B,T], I64 or I32.
    #[arg(long, value_name = "FILE")]
    pub(crate) inputs: PathBuf,
    /// The safetensors file to write `logits` [B,T,V] to, f32.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Generate {
    /// A Hugging Face folder (config.json, safetensors, tokenizer.json), or a GGUF file.
    #[arg(short, long, value_name = "DIR|FILE.gguf")]
    pub(crate) model: PathBuf,
    /// The text to continue; `-` reads it from stdin, without the newline at its end.
    #[arg(short, long, value_name = "TEXT|-", required_unless_present_any = ["prompt_file", "tokens"], conflicts_with_all = ["prompt_file", "tokens"])]
    pub(crate) prompt: Option<String>,
    /// A file with the text to continue; `-` is stdin.
    #[arg(long, value_name = "FILE", conflicts_with = "tokens")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// Take each line of the prompt file as a prompt of its own; up to 64 run together, or 256 of equally many tokens,
    /// and share what --chunk takes at once.
    #[arg(long, requires = "prompt_file", conflicts_with_all = ["prompt", "tokens"])]
    pub(crate) batch: bool,
    /// The tokens to continue; no tokenizer is needed, and tokens are printed.
    #[arg(
        long,
        value_name = "N,N,…",
        value_delimiter = ',',
        conflicts_with = "chat"
    )]
    pub(crate) tokens: Option<Vec<u32>>,
    /// Take the prompt as what a user says, by the model's chat template.
    #[arg(long)]
    pub(crate) chat: bool,
    /// What a chat's system message says.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// Most tokens to generate.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(crate) max_new_tokens: u32,
    #[command(flatten)]
    pub(crate) draw: Draw,
    /// Go on after a token that ends a text.
    #[arg(long)]
    pub(crate) ignore_end: bool,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Chat {
    /// A Hugging Face folder (config.json, safetensors, tokenizer.json), or a GGUF file.
    #[arg(short, long, value_name = "DIR|FILE.gguf")]
    pub(crate) model: PathBuf,
    /// What the system message says.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Most tokens of an answer [default: what the capacity leaves].
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(crate) max_new_tokens: Option<u32>,
    #[command(flatten)]
    pub(crate) draw: Draw,
    #[command(flatten)]
    pub(crate) run: Run,
}

/// How the next token is chosen.
#[derive(Debug, clap::Args)]
pub(crate) struct Draw {
    /// Divides logits; 0 takes the most likely token.
    #[arg(long, default_value_t = 0.0, value_parser = temperature)]
    pub(crate) temperature: f32,
    /// Of the most likely tokens only so many [default: all].
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Of the most likely tokens those that make up this share.
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = share)]
    pub(crate) top_p: f32,
    /// The same seed gives the same text.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BenchModel {
    /// A Hugging Face folder, or a GGUF file.
    #[arg(
        short,
        long,
        value_name = "DIR|FILE.gguf",
        required_unless_present = "random_weights"
    )]
    pub(crate) model: Option<PathBuf>,
    /// A `config.json`, whose shapes are filled with random weights, packed as it says.
    #[arg(long, value_name = "CONFIG", conflicts_with = "model")]
    pub(crate) random_weights: Option<PathBuf>,
    /// Another pattern or policy to measure in the same run; may be given several times.
    #[arg(long, value_name = "FILE|TEXT", conflicts_with = "artifacts")]
    pub(crate) also: Vec<String>,
    #[command(flatten)]
    pub(crate) measure: Measure,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BenchLayer {
    /// A `config.json`, whose shapes are filled with random weights, packed as it says.
    #[arg(long, value_name = "CONFIG")]
    pub(crate) config: PathBuf,
    /// The layer, by its index in the model [default: the first with softmax attention].
    #[arg(long, value_name = "I")]
    pub(crate) layer: Option<u32>,
    #[command(flatten)]
    pub(crate) measure: Measure,
    #[command(flatten)]
    pub(crate) run: Run,
}

/// What is measured of a model.
#[derive(Debug, clap::Args)]
pub(crate) struct Measure {
    /// Numbers of tokens in the prompt.
    #[arg(long, value_name = "T,T,…", value_delimiter = ',', default_value = "8192",
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(crate) prompt_tokens: Vec<u32>,
    /// Numbers of sequences that run together; they share what --chunk takes at once [default: 1].
    #[arg(long, value_name = "N,N,…", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(1..=1 << 12))]
    pub(crate) batch: Option<Vec<u32>>,
    /// Sequences of a batch have different lengths, in equal steps from --prompt-tokens down to this [default: all have the
    /// same].
    #[arg(long, value_name = "T", requires = "batch", conflicts_with = "profile",
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(crate) shortest_prompt: Option<u32>,
    /// Tokens to generate after each prompt.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    pub(crate) decode: u32,
    /// Leave out dense attention.
    #[arg(long)]
    pub(crate) no_dense: bool,
    /// Also say what each part of the model takes, with a wait after each, beside what is predicted.
    #[arg(long)]
    pub(crate) profile: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Eval {
    /// A Hugging Face folder (config.json, safetensors, tokenizer.json), or a GGUF file.
    #[arg(short, long, value_name = "DIR|FILE.gguf")]
    pub(crate) model: PathBuf,
    /// The text to predict.
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Tokens of a window; each begins anew [default: all of the text, up to the model's limit].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..=1 << 24))]
    pub(crate) window: Option<u32>,
    /// Predict so many windows of the text, at even distances [default: all, and what is left over].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub(crate) windows: Option<u32>,
    /// Positions before this one in each window are run but not scored.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..1 << 24))]
    pub(crate) from: u32,
    /// Also put tasks of retrieval to the model, in prompts of the --lengths.
    #[arg(
        long,
        value_enum,
        value_name = "TASK,…",
        value_delimiter = ',',
        group = "retrieval",
        requires = "lengths"
    )]
    pub(crate) tasks: Vec<RetrievalTask>,
    /// Tokens of each prompt, the question included.
    #[arg(long, value_name = "T,T,…", value_delimiter = ',', requires = "tasks",
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(crate) lengths: Vec<u32>,
    /// Short for `--tasks needle --lengths T,T,…`.
    #[arg(long, value_name = "T,T,…", value_delimiter = ',', group = "retrieval",
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(crate) needle: Vec<u32>,
    /// Where the fact is hidden, as shares of the text before the question.
    #[arg(long, value_name = "X,X,…", value_delimiter = ',', default_value = "0,0.25,0.5,0.75,1",
          value_parser = depth)]
    pub(crate) depths: Vec<f32>,
    /// Prompts of each task, length and depth.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub(crate) trials: u32,
    /// The same seed gives the same prompts.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Prompts that run together [default: as many as there is memory for, at most 32; on the CPU 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 12))]
    pub(crate) batch: Option<u32>,
    /// An HTML file to write the report to, with charts.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// An SVG file to draw what was found to.
    #[arg(long, value_name = "FILE", requires = "retrieval")]
    pub(crate) plot: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) several: Several,
}

/// A task of retrieval, after RULER.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RetrievalTask {
    /// One fact in a text.
    Needle,
    /// Four facts in a text, one of which is asked for.
    Multikey,
    /// Nothing but keys with values.
    Kv,
    /// Chains of variables, each assigned to the next, all over a text.
    Tracking,
}

impl RetrievalTask {
    /// The name in flags and reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Needle => "needle",
            Self::Multikey => "multikey",
            Self::Kv => "kv",
            Self::Tracking => "tracking",
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Calibrate {
    /// A Hugging Face folder (config.json, safetensors, tokenizer.json), or a GGUF file.
    #[arg(
        short,
        long,
        value_name = "DIR|FILE.gguf",
        required_unless_present = "random_weights"
    )]
    pub(crate) model: Option<PathBuf>,
    /// The text to measure on, like what the model is to read later.
    #[arg(long, value_name = "FILE", required_unless_present = "random_weights")]
    pub(crate) text: Option<PathBuf>,
    /// A `config.json`, whose shapes are filled with random weights that read random tokens: for the
    /// time and memory that a calibration takes. What it finds means nothing.
    #[arg(long, value_name = "CONFIG", conflicts_with_all = ["model", "text", "retrieval"])]
    pub(crate) random_weights: Option<PathBuf>,
    /// The same seed gives the same random weights, tokens, and prompts of --retrieval.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Measure no part alone: choose again by the damages that this policy has. Only sets and the
    /// verification are measured, and --pattern, --tail, --share, --max-kl and the text may differ.
    #[arg(long, value_name = "POLICY.json")]
    pub(crate) from: Option<PathBuf>,
    /// What is measured and replaced on its own.
    #[arg(long, value_enum, default_value = "head")]
    pub(crate) by: By,
    /// Replace this share of the heads or layers, the least harmful ones [default: 0.5].
    #[arg(long, value_name = "X", value_parser = part, conflicts_with = "max_kl")]
    pub(crate) share: Option<f64>,
    /// Replace as many as move the predictions by at most X nats, measured together.
    #[arg(long, value_name = "X", value_parser = nats)]
    pub(crate) max_kl: Option<f64>,
    /// Tokens of a window; each begins anew [default: 4096, or what the model takes if that is less].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..=1 << 24))]
    pub(crate) window: Option<u32>,
    /// Windows of the text to choose on; as many others verify the choice.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub(crate) windows: u32,
    /// The last tokens of a prompt, which see what they see by the model's own attention; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) tail: u32,
    /// Positions of a window before this one are not scored [default: those that see by the pattern
    /// what they see without it].
    #[arg(long, value_name = "N")]
    pub(crate) skip: Option<u32>,
    /// Score only every N-th position [default: 1, or as many that dense logits of a window take at
    /// most 2 GiB].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(crate) every: Option<u32>,
    /// Also hide a fact in N prompts of the length of a window, and count how often dense attention
    /// and each set find it [default without a number: 20].
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "20",
          value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub(crate) retrieval: Option<u32>,
    /// The policy file to write. What is measured is kept beside it in FILE.partial until then, and
    /// the same command goes on from there.
    #[arg(short, long, value_name = "POLICY.json")]
    pub(crate) output: PathBuf,
    /// An HTML file to write the report to: damages as a map, and what sets of them cost together.
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) run: Run,
}

/// What is replaced on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    /// A kv head with its query heads.
    Head,
    /// A layer.
    Layer,
}

fn part(text: &str) -> Result<f64, String> {
    let number = text.parse().ok();
    let fits = number.filter(|x: &f64| (0.0..=1.0).contains(x));
    fits.ok_or_else(|| "give a number from 0 to 1".to_string())
}

fn nats(text: &str) -> Result<f64, String> {
    let number = text.parse().ok();
    let fits = number.filter(|x: &f64| x.is_finite() && *x >= 0.0);
    fits.ok_or_else(|| "give 0 or a positive number".to_string())
}

fn temperature(text: &str) -> Result<f32, String> {
    let number = text.parse().ok();
    let fits = number.filter(|x: &f32| x.is_finite() && *x >= 0.0);
    fits.ok_or_else(|| "give 0 or a positive number".to_string())
}

fn share(text: &str) -> Result<f32, String> {
    let number = text.parse().ok();
    let fits = number.filter(|x: &f32| *x > 0.0 && *x <= 1.0);
    fits.ok_or_else(|| "give a number above 0, at most 1".to_string())
}

fn depth(text: &str) -> Result<f32, String> {
    let number = text.parse().ok();
    let fits = number.filter(|x: &f32| (0.0..=1.0).contains(x));
    fits.ok_or_else(|| "give numbers from 0 to 1".to_string())
}

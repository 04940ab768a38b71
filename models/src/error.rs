//! Why a model was not loaded, or did not run.

use butterfly::OperationError;
use std::path::PathBuf;

/// What is wrong with a model folder, or with what it is asked to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The system refused to read a file.
    #[error("{}: cannot read: {error}{hint}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// A config that is refused.
    #[error(transparent)]
    Config(#[from] butterfly_compiler::config::ConfigError),
    /// A file that is not what its name says.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// Tensors that are not there, or not as they should be.
    #[error("{}: {} of the model's tensors cannot be used:\n{}\ndownload the folder again, or give the config.json that belongs to these weights", dir.display(), problems.len(), listed(problems))]
    Tensors {
        /// The folder.
        dir: PathBuf,
        /// One line for each.
        problems: Vec<String>,
    },
    /// A model that is known to the compiler, but does not run yet.
    #[error("{}: `model_type` {family} cannot be run yet: its kernels can be compiled, its layers are not written; give gpt2, llama, qwen3 or qwen3_5", path.display())]
    Family {
        /// The config.
        path: PathBuf,
        /// `model_type`.
        family: &'static str,
    },
    /// A layer with a step that does not run yet.
    #[error("this layer cannot be run yet: {0}; its kernels can be compiled")]
    Layer(String),
    /// Tokens that the model does not know.
    #[error(
        "token {token} at position {position}: the model has {vocabulary} tokens; use its own tokenizer"
    )]
    Token {
        /// The token.
        token: u32,
        /// Where it stands.
        position: usize,
        /// How many there are.
        vocabulary: usize,
    },
    /// More tokens than were planned for.
    #[error("{tokens} tokens are more than the capacity of {capacity}; give a larger --capacity")]
    Capacity {
        /// Tokens in all.
        tokens: usize,
        /// What was planned for.
        capacity: usize,
    },
    /// More positions than the model has an embedding for.
    #[error(
        "{tokens} tokens are more than the {positions} positions that the model has an embedding for; shorten the prompt"
    )]
    Positions {
        /// Tokens in all.
        tokens: usize,
        /// Positions.
        positions: usize,
    },
    /// A chunk that is no token for each text, or the same number for all.
    #[error(
        "{tokens} tokens are no chunk for {batch} texts: give each of them the same number, at least 1"
    )]
    Chunk {
        /// Tokens of all texts.
        tokens: usize,
        /// Texts.
        batch: usize,
    },
    /// A state that does not go with the model.
    #[error("the state {0}; begin with a new one of this model and policy")]
    State(&'static str),
    /// A template or tokenizer that fails.
    #[error("{}: {what}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A kernel that is missing or failed.
    #[error(transparent)]
    Operation(#[from] OperationError),
}

/// The first problems, and how many more.
fn listed(problems: &[String]) -> String {
    const MOST: usize = 20;
    let mut text: Vec<String> = problems
        .iter()
        .take(MOST)
        .map(|p| format!("  {p}"))
        .collect();
    if problems.len() > MOST {
        text.push(format!("  and {} more", problems.len() - MOST));
    }
    text.join("\n")
}

//! Errors of loading and running a model.

use butterfly::OperationError;
use std::path::PathBuf;

/// What is wrong with a model folder, or with a request to its model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file cannot be read.
    #[error("{}: cannot read: {error}{hint}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
        /// Advice to the user, appended to the message; may be empty.
        hint: &'static str,
    },
    /// The `config.json` is not accepted.
    #[error(transparent)]
    Config(#[from] butterfly_compiler::config::ConfigError),
    /// A file whose contents are not what its name promises.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// Tensors that are missing, or have a wrong shape or element type.
    #[error("{}: {} of the model's tensors cannot be used:\n{}\ndownload the folder again, or give the config.json that belongs to these weights", path.display(), problems.len(), listed(problems))]
    Tensors {
        /// The folder or file.
        path: PathBuf,
        /// One line for each tensor.
        problems: Vec<String>,
    },
    /// A layer with a step that does not run yet.
    #[error("this layer cannot be run yet: {0}; its kernels can be compiled")]
    Layer(String),
    /// A token outside the model's vocabulary.
    #[error(
        "token {token} at position {position}: the model has {vocabulary} tokens; use its own tokenizer"
    )]
    Token {
        /// The token.
        token: u32,
        /// Its position in the sequence, counted from 0.
        position: usize,
        /// Number of tokens in the vocabulary.
        vocabulary: usize,
    },
    /// More tokens than the state's capacity.
    #[error("{tokens} tokens are more than the capacity of {capacity}; give a larger --capacity")]
    Capacity {
        /// Tokens of a sequence, those before this chunk included.
        tokens: usize,
        /// The state's capacity, in tokens of a sequence.
        capacity: usize,
    },
    /// More positions than the model has an embedding for.
    #[error(
        "{tokens} tokens are more than the {positions} positions that the model has an embedding for; shorten the prompt"
    )]
    Positions {
        /// Tokens of a sequence, those before this chunk included.
        tokens: usize,
        /// Number of positions with an embedding.
        positions: usize,
    },
    /// A chunk that is empty, or that cannot be divided evenly among the sequences of the batch.
    #[error(
        "{tokens} tokens are no chunk for {batch} texts: give each of them the same number, at least 1"
    )]
    Chunk {
        /// Tokens of all sequences together.
        tokens: usize,
        /// Number of sequences.
        batch: usize,
    },
    /// Sequences of different lengths, which the model or a pattern does not take.
    #[error("sequences of different lengths cannot run together: {0}; run those of equal length")]
    Uneven(&'static str),
    /// A state that does not fit the model, or that was lost when a device failed.
    #[error("the state {0}; begin with a new one of this model and policy")]
    State(&'static str),
    /// Results cannot be read from the device.
    #[error("the device failed: {0}")]
    Device(String),
    /// A chat template or tokenizer that cannot be used, or that failed.
    #[error("{}: {what}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// An operation failed: a kernel is missing, its inputs do not fit, or the device failed.
    #[error(transparent)]
    Operation(#[from] OperationError),
}

/// The first problems, one a line, and the number of the others.
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

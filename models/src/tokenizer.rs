//! `tokenizer.json`, or the metadata of a GGUF file: text ↔ tokens.
//!
//! Invariants: the whole text is tokenized, without truncation or padding; the settings of
//! `tokenizer.json` for these are meant for training batches and ignored. The `tokenizers` crate
//! panics on some malformed files; here this is an error that names the file.

use crate::ModelError;
use crate::checkpoint::read;
use crate::guard::guarded;
use crate::vocabulary::Vocabulary;
use std::path::{Path, PathBuf};
use tokenizers::{
    DecodeStream, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper,
};

/// A tokenizer, and the file it was read from.
#[derive(Clone, Debug)]
pub(crate) struct Tokenizer {
    path: PathBuf,
    tokenizer: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let text = read(
            path,
            "; download tokenizer.json into the folder, or give tokens instead of text",
        )?;
        let wrong = |what| ModelError::Text {
            path: path.to_path_buf(),
            what: format!("is no tokenizer that can be used: {what}; download it again"),
        };
        let parsed = guarded(|| text.parse::<tokenizers::Tokenizer>()).map_err(wrong)?;
        let mut tokenizer = parsed.map_err(|error| wrong(error.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| wrong(error.to_string()))?;
        let opened = Self {
            path: path.to_path_buf(),
            tokenizer,
        };
        opened.tried().map_err(wrong)?;
        Ok(opened)
    }

    /// The tokenizer of a GGUF file.
    pub(crate) fn of(path: &Path, vocabulary: &Vocabulary<'_>) -> Result<Self, ModelError> {
        let wrong = |what| ModelError::Text {
            path: path.to_path_buf(),
            what,
        };
        let unusable = |what| {
            wrong(format!(
                "has no tokenizer that can be used: {what}; convert the model again"
            ))
        };
        let built = guarded(|| vocabulary.tokenizer()).map_err(unusable)?;
        let opened = Self {
            path: path.to_path_buf(),
            tokenizer: built.map_err(wrong)?,
        };
        opened.tried().map_err(unusable)?;
        Ok(opened)
    }

    /// Tokenizes a short text and back. Most defects of a tokenizer show with any text; finding
    /// them now saves the user the time of loading the weights first.
    fn tried(&self) -> Result<(), String> {
        let tried = guarded(|| {
            let encoded = self.tokenizer.encode_fast("A b, 1.", true)?;
            self.tokenizer.decode(encoded.get_ids(), true)
        });
        tried?.map(drop).map_err(|error| error.to_string())
    }

    /// Tokenizes a text; with `special`, adds the special tokens around every text.
    pub(crate) fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, ModelError> {
        let encoded = guarded(|| self.tokenizer.encode_fast(text, special));
        let encoded = encoded.map_err(|said| self.wrong("this text", said))?;
        let encoded = encoded.map_err(|error| self.wrong("this text", error))?;
        Ok(encoded.get_ids().to_vec())
    }

    /// The text of `tokens`; special tokens are skipped.
    pub(crate) fn decode(&self, tokens: &[u32]) -> Result<String, ModelError> {
        let text = guarded(|| self.tokenizer.decode(tokens, true));
        let text = text.map_err(|said| self.wrong("these tokens", said))?;
        text.map_err(|error| self.wrong("these tokens", error))
    }

    fn wrong(&self, what: &str, error: impl ToString) -> ModelError {
        ModelError::Text {
            path: self.path.clone(),
            what: format!("the tokenizer fails at {what}: {}", error.to_string()),
        }
    }
}

/// Decodes tokens that arrive one by one; each is decoded once.
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<u32>,
    /// `None` once it has failed: [`finish`](Self::finish) then returns the rest of the text.
    decoder: Option<Decoder<'a>>,
    /// Bytes of the text that were returned so far.
    given: usize,
}

type Decoder<'a> = DecodeStream<
    'a,
    ModelWrapper,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

impl<'a> Stream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            tokens: Vec::new(),
            decoder: Some(tokenizer.tokenizer.decode_stream(true)),
            given: 0,
        }
    }

    /// Adds a token, and returns the text that it completes. This is empty as long as the token
    /// ends within a character.
    pub fn push(&mut self, token: u32) -> String {
        self.tokens.push(token);
        let step = self
            .decoder
            .as_mut()
            .map(|decoder| guarded(|| decoder.step(token)));
        let text = match step {
            None => None,
            Some(Ok(Ok(text))) => text,
            Some(Ok(Err(_)) | Err(_)) => {
                self.decoder = None;
                None
            }
        };
        let text = text.unwrap_or_default();
        self.given += text.len();
        text
    }

    /// The text that [`push`](Self::push) has not returned yet, and the whole text. An incomplete
    /// character at the end is shown as `\u{fffd}`.
    ///
    /// # Errors
    /// [`ModelError::Text`] if the tokenizer fails on the tokens.
    pub fn finish(self) -> Result<(String, String), ModelError> {
        let whole = self.tokenizer.decode(&self.tokens)?;
        let rest = whole.get(self.given..).unwrap_or_default().to_string();
        Ok((rest, whole))
    }
}

impl std::fmt::Debug for Stream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("tokens", &self.tokens)
            .field("given", &self.given)
            .finish_non_exhaustive()
    }
}

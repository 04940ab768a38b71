//! `tokenizer.json`: text ↔ tokens.
//!
//! Invariants: all of a text becomes tokens, and nothing else does, whatever the file says of
//! truncation and padding, which are for batches of training. The library behind it panics on some
//! files; this is an error that names the file.

use crate::ModelError;
use crate::folder::read;
use crate::guard::guarded;
use std::path::{Path, PathBuf};
use tokenizers::{
    DecodeStream, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper,
};

/// A tokenizer, and the file that it is from.
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
        // Much of what is wrong shows at any text; to know it now spares loading the weights.
        let tried = guarded(|| {
            let encoded = opened.tokenizer.encode_fast("A b, 1.", true)?;
            opened.tokenizer.decode(encoded.get_ids(), true)
        });
        tried
            .map_err(wrong)?
            .map_err(|error| wrong(error.to_string()))?;
        Ok(opened)
    }

    /// The tokens of a text; with `special` also those that begin every text.
    pub(crate) fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, ModelError> {
        let encoded = guarded(|| self.tokenizer.encode_fast(text, special));
        let encoded = encoded.map_err(|said| self.wrong("this text", said))?;
        let encoded = encoded.map_err(|error| self.wrong("this text", error))?;
        Ok(encoded.get_ids().to_vec())
    }

    /// The text of tokens, without special ones.
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

/// The text of tokens that come one by one, where each takes the time of its own text.
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<u32>,
    /// None after it failed: what follows then comes with the end.
    decoder: Option<Decoder<'a>>,
    /// Bytes of the text that were given out.
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

    /// What a token adds. A part of a character waits for the other parts.
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

    /// What is still missing, a part of a character among it, which shows as `\u{fffd}`; and the
    /// whole text.
    ///
    /// # Errors
    /// [`ModelError::Text`].
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

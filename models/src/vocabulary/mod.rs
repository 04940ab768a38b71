//! The tokenizer that a GGUF file describes in its metadata.
//!
//! In:  the keys `tokenizer.ggml.*` of an opened file. Out: a tokenizer as `tokenizer.json` would
//! give it, so that everything after it is the same for files and folders.
//!
//! The objects of the `tokenizers` crate are built without JSON between, which that crate parses by
//! way of two further copies of the whole vocabulary.
//!
//! Source of the keys and their defaults: ggml-org/llama.cpp, `gguf-py/gguf/constants.py` and
//! `src/llama-vocab.cpp`.

mod added;
mod byte_level;
mod merges;
mod pieces;
mod read;
mod split;
#[cfg(test)]
mod tests;

use tokenizers::Tokenizer;
use tokenizers::models::bpe::Vocab;

/// What a GGUF file says about its tokenizer. The texts stay in the file.
#[derive(Debug)]
pub(crate) struct Vocabulary<'a> {
    algorithm: Algorithm,
    /// Every token's text by its id.
    tokens: Vec<&'a str>,
    /// As many as tokens.
    kinds: Vec<Kind>,
    /// A score for each token; the highest is merged first.
    scores: Option<Vec<f32>>,
    /// Pairs with a space between, the first of which is merged first.
    merges: Option<Vec<&'a str>>,
    special: Special,
    /// Whether each text begins with the token `special.begin`.
    begins: bool,
    /// Whether each text ends with the token `special.end`.
    ends: bool,
    /// Whether a space is put before the text (SentencePiece's `add_dummy_prefix`).
    spaced: bool,
    /// Whether control tokens swallow the white space after them.
    swallows: bool,
    templates: Templates<'a>,
}

/// How text becomes tokens: `tokenizer.ggml.model`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    /// `gpt2`: byte-pair encoding of bytes, within the parts that a pattern cuts text into.
    ByteLevel(split::Split),
    /// `llama`: byte-pair encoding of characters, across the whole text, as SentencePiece does it.
    Pieces,
}

/// What a token is for: `tokenizer.ggml.token_type`, with SentencePiece's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// Tokens with a role, each within the vocabulary.
#[derive(Clone, Copy, Debug, Default)]
struct Special {
    begin: Option<u32>,
    end: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
}

/// The chat templates of a file.
#[derive(Debug)]
struct Templates<'a> {
    default: Option<&'a str>,
    /// Names of those that are not the default.
    others: Vec<&'a str>,
}

impl Vocabulary<'_> {
    /// The tokenizer.
    ///
    /// # Errors
    /// A sentence without subject (of the file) that names the key, and what is wrong with it.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, String> {
        let mut tokenizer = match self.algorithm {
            Algorithm::ByteLevel(split) => byte_level::build(self, split),
            Algorithm::Pieces => pieces::build(self),
        }?;
        added::add(self, &mut tokenizer)?;
        Ok(tokenizer)
    }

    /// The text of the default chat template.
    pub(crate) fn template(&self) -> Option<&str> {
        self.templates.default
    }

    /// Names of chat templates other than the default.
    pub(crate) fn other_templates(&self) -> &[&str] {
        &self.templates.others
    }

    /// Texts of special tokens, under the names that chat templates use for them.
    pub(crate) fn names(&self) -> Vec<(String, String)> {
        let special = &self.special;
        let named = [
            ("bos_token", special.begin),
            ("eos_token", special.end),
            ("unk_token", special.unknown),
            ("pad_token", special.padding),
        ];
        let text = |(name, token): (&str, Option<u32>)| {
            Some((name.to_string(), self.text(token?).to_string()))
        };
        named.into_iter().filter_map(text).collect()
    }

    fn text(&self, token: u32) -> &str {
        self.tokens[token as usize]
    }

    /// Texts, ids and kinds of all tokens that have a text.
    fn iter(&self) -> impl Iterator<Item = (u32, &str, Kind)> {
        let tokens = (0..).zip(&self.tokens).zip(&self.kinds);
        let tokens = tokens.map(|((id, text), kind)| (id, *text, *kind));
        tokens.filter(|(_, text, _)| !text.is_empty())
    }

    /// The ids by text. Tokens without a text are left out: no text is encoded as one of them.
    fn ids(&self) -> Result<Vocab, String> {
        let mut ids = Vocab::with_capacity(self.tokens.len());
        for (id, text, _) in self.iter() {
            if let Some(first) = ids.insert(text.to_string(), id) {
                return Err(format!(
                    "gives tokens {first} and {id} the same text {} in `tokenizer.ggml.tokens`; convert the model again",
                    shown(text)
                ));
            }
        }
        Ok(ids)
    }
}

/// A text for messages: quoted, and its beginning only if it is long.
fn shown(text: &str) -> String {
    const MOST: usize = 40;
    match text.char_indices().nth(MOST) {
        None => format!("{text:?}"),
        Some((at, _)) => format!("{:?}… ({} bytes)", &text[..at], text.len()),
    }
}

//! Text ↔ tokens, and conversation → prompt by the model's chat template.

use crate::ModelError;
use crate::special::ChatFiles;
use crate::template::Template;
use crate::tokenizer::{Stream, Tokenizer};
use crate::vocabulary::Vocabulary;
use crate::weights::gguf::Gguf;
use minijinja::Value;
use minijinja::value::Serde;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text of this turn.
    pub content: String,
}

/// The tokenizer of a model, and its chat template where it has one.
#[derive(Clone, Debug)]
pub struct Chat {
    /// The folder, or the GGUF file.
    path: PathBuf,
    tokenizer: Tokenizer,
    files: ChatFiles,
}

impl Chat {
    /// Reads the tokenizer and the chat template of a folder or a GGUF file.
    ///
    /// A folder's tokenizer comes from `tokenizer.json`, without the truncation and padding that
    /// the file may ask for. The template comes from `chat_template.jinja` or, if there is none,
    /// from `tokenizer_config.json` (of several templates, the one named `default`). The names of
    /// special tokens come from `tokenizer_config.json` and `special_tokens_map.json`.
    ///
    /// In a GGUF file all of this comes from the metadata (`tokenizer.*`); of several templates,
    /// the default one is used.
    ///
    /// # Errors
    /// A [`ModelError`] that names the file which cannot be read or used.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if path.is_file() {
            return Self::of(&Gguf::open(path)?);
        }
        Ok(Self {
            path: path.to_path_buf(),
            tokenizer: Tokenizer::open(&path.join("tokenizer.json"))?,
            files: ChatFiles::open(path)?,
        })
    }

    /// The tokenizer and the chat template of an opened GGUF file.
    pub(crate) fn of(gguf: &Gguf) -> Result<Self, ModelError> {
        let vocabulary = Vocabulary::read(gguf)?;
        Ok(Self {
            path: gguf.path().to_path_buf(),
            tokenizer: Tokenizer::of(gguf.path(), &vocabulary)?,
            files: ChatFiles::of(gguf.path(), &vocabulary),
        })
    }

    /// Tokenizes a text; with `special`, adds the special tokens that the tokenizer puts around
    /// every text, such as a begin-of-text token.
    ///
    /// # Errors
    /// [`ModelError::Text`] if the tokenizer fails on this text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, ModelError> {
        self.tokenizer.encode(text, special)
    }

    /// The text of `tokens`; special tokens are skipped.
    ///
    /// # Errors
    /// [`ModelError::Text`] if the tokenizer fails on these tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, ModelError> {
        self.tokenizer.decode(tokens)
    }

    /// A decoder for tokens that arrive one by one.
    pub fn stream(&self) -> Stream<'_> {
        Stream::new(&self.tokenizer)
    }

    /// Renders a conversation as a prompt with the model's chat template, up to where the model's
    /// answer begins.
    ///
    /// The result is that of `apply_chat_template` in transformers with `add_generation_prompt`,
    /// and without tools and documents.
    ///
    /// # Errors
    /// [`ModelError::Text`] if the model has no template, or the template fails.
    pub fn apply(&self, messages: &[Message]) -> Result<String, ModelError> {
        let wrong = |path: &PathBuf, what: &String| ModelError::Text {
            path: path.clone(),
            what: what.clone(),
        };
        let template = self.files.template.as_ref();
        let (path, text) = template.map_err(|none| wrong(&self.path, none))?;
        let names = self.files.names.iter();
        let values = names
            .map(|(name, token)| (name.as_str(), Value::from(token.as_str())))
            .chain([
                ("messages", Value::from(Serde(messages))),
                ("tools", Value::from(())),
                ("documents", Value::from(())),
                ("add_generation_prompt", Value::from(true)),
            ]);
        let values = Value::from_pairs(values);
        let prompt =
            Template::new(text).and_then(|template| template.render(&values, jiff::Zoned::now()));
        prompt.map_err(|what| wrong(path, &what))
    }
}

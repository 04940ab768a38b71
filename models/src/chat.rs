//! Text ↔ tokens, and conversations by the folder's template.

use crate::ModelError;
use crate::special::ChatFiles;
use crate::template::Template;
use crate::tokenizer::{Stream, Tokenizer};
use minijinja::Value;
use minijinja::value::Serde;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// The tokenizer of a folder, and its chat template where it has one.
#[derive(Clone, Debug)]
pub struct Chat {
    dir: PathBuf,
    tokenizer: Tokenizer,
    files: ChatFiles,
}

impl Chat {
    /// Reads `tokenizer.json`; the template from `chat_template.jinja` or `tokenizer_config.json`
    /// (of several the one called `default`); the names of special tokens from
    /// `tokenizer_config.json` and `special_tokens_map.json`.
    ///
    /// Truncation and padding that `tokenizer.json` asks for are left out.
    ///
    /// # Errors
    /// [`ModelError`] that names the file.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        Ok(Self {
            dir: dir.to_path_buf(),
            tokenizer: Tokenizer::open(&dir.join("tokenizer.json"))?,
            files: ChatFiles::open(dir)?,
        })
    }

    /// The tokens of a text; with `special` also those that begin every text.
    ///
    /// # Errors
    /// [`ModelError::Text`].
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, ModelError> {
        self.tokenizer.encode(text, special)
    }

    /// The text of tokens, without special ones.
    ///
    /// # Errors
    /// [`ModelError::Text`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, ModelError> {
        self.tokenizer.decode(tokens)
    }

    /// The text of tokens that come one by one.
    pub fn stream(&self) -> Stream<'_> {
        Stream::new(&self.tokenizer)
    }

    /// A conversation as the model was trained on it, up to where its answer begins: what
    /// transformers gives for it, without tools and documents.
    ///
    /// # Errors
    /// [`ModelError::Text`] without a template, or where it fails.
    pub fn apply(&self, messages: &[Message]) -> Result<String, ModelError> {
        let Some((path, text)) = &self.files.template else {
            return Err(ModelError::Text {
                path: self.dir.clone(),
                what: "has no chat template (chat_template.jinja, or in tokenizer_config.json); leave --chat out".into(),
            });
        };
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
        prompt.map_err(|what| ModelError::Text {
            path: path.clone(),
            what,
        })
    }
}

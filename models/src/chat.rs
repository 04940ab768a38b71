//! Text ↔ tokens, and conversations by the folder's template.

use crate::ModelError;
use crate::folder::read;
use serde::Serialize;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

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
    path: PathBuf,
    tokenizer: Tokenizer,
    template: Option<String>,
    /// Special tokens by their names in templates.
    names: serde_json::Map<String, serde_json::Value>,
}

impl Chat {
    /// Reads `tokenizer.json`, and the template from `chat_template.jinja` or
    /// `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`ModelError`] that names the file.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("tokenizer.json");
        let text = read(
            &path,
            "; download tokenizer.json into the folder, or give tokens instead of text",
        )?;
        let wrong = |what: String| ModelError::Text {
            path: path.clone(),
            what,
        };
        let tokenizer: Tokenizer = text
            .parse()
            .map_err(|error| wrong(format!("is no tokenizer: {error}; download it again")))?;
        let config = dir.join("tokenizer_config.json");
        let mut names = match config.exists() {
            false => serde_json::Map::new(),
            true => {
                serde_json::from_str(&read(&config, "")?).map_err(|error| ModelError::Text {
                    path: config.clone(),
                    what: format!("is no JSON object: {error}; download it again"),
                })?
            }
        };
        let jinja = dir.join("chat_template.jinja");
        let template = match jinja.exists() {
            true => Some(read(&jinja, "")?),
            false => names
                .remove("chat_template")
                .and_then(|value| value.as_str().map(str::to_string)),
        };
        // A token is its text, or an object that holds it.
        names.retain(|name, _| name.ends_with("_token"));
        for value in names.values_mut() {
            if let Some(content) = value.get("content") {
                *value = content.clone();
            }
        }
        Ok(Self {
            path,
            tokenizer,
            template,
            names,
        })
    }

    /// The tokens of a text; with `special` also those that begin every text.
    ///
    /// # Errors
    /// [`ModelError::Text`].
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, ModelError> {
        let encoded = self.tokenizer.encode_fast(text, special);
        Ok(encoded
            .map_err(|error| self.wrong(error))?
            .get_ids()
            .to_vec())
    }

    /// The text of tokens, without special ones.
    ///
    /// # Errors
    /// [`ModelError::Text`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, ModelError> {
        let text = self.tokenizer.decode(tokens, true);
        text.map_err(|error| self.wrong(error))
    }

    /// A conversation as the model was trained on it, up to where its answer begins.
    ///
    /// # Errors
    /// [`ModelError::Text`] without a template, or where it fails.
    pub fn apply(&self, messages: &[Message]) -> Result<String, ModelError> {
        let Some(template) = &self.template else {
            return Err(self.wrong(
                "the folder has no chat template (chat_template.jinja, or in tokenizer_config.json); leave --chat out",
            ));
        };
        let mut environment = minijinja::Environment::new();
        environment.set_unknown_method_callback(methods);
        environment.add_function("raise_exception", |text: String| {
            Err::<String, _>(minijinja::Error::new(
                minijinja::ErrorKind::InvalidOperation,
                text,
            ))
        });
        let context = minijinja::context! {
            messages,
            add_generation_prompt => true,
            ..minijinja::Value::from_serialize(&self.names)
        };
        let rendered = environment.render_str(template, context);
        rendered.map_err(|error| self.wrong(format!("the chat template fails: {error:#}")))
    }

    fn wrong(&self, what: impl ToString) -> ModelError {
        ModelError::Text {
            path: self.path.clone(),
            what: what.to_string(),
        }
    }
}

/// The methods of Python's strings that published templates call.
fn methods(
    _: &minijinja::State<'_, '_>,
    value: &minijinja::Value,
    name: &str,
    arguments: &[minijinja::Value],
) -> Result<minijinja::Value, minijinja::Error> {
    use minijinja::{Error, ErrorKind, Value};
    let unknown = || Error::new(ErrorKind::UnknownMethod, format!("no method {name}"));
    let text = value.as_str().ok_or_else(unknown)?;
    let argument = arguments.first().and_then(|argument| argument.as_str());
    let set = |c: char| argument.map_or(c.is_whitespace(), |set| set.contains(c));
    Ok(match (name, argument) {
        ("strip", _) => Value::from(text.trim_matches(set)),
        ("lstrip", _) => Value::from(text.trim_start_matches(set)),
        ("rstrip", _) => Value::from(text.trim_end_matches(set)),
        ("startswith", Some(start)) => Value::from(text.starts_with(start)),
        ("endswith", Some(end)) => Value::from(text.ends_with(end)),
        ("split", Some(by)) => Value::from_serialize(text.split(by).collect::<Vec<_>>()),
        ("split", None) => Value::from_serialize(text.split_whitespace().collect::<Vec<_>>()),
        _ => return Err(unknown()),
    })
}

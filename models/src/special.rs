//! A model's chat template, and the special tokens under the names that templates use for them.
//!
//! Files of a folder are read as transformers reads them: `chat_template.jinja` takes precedence
//! over the template in `tokenizer_config.json`; `special_tokens_map.json` is read only if
//! `tokenizer_config.json` has no `added_tokens_decoder`; a token that is null is left out.
//! Templates in `additional_chat_templates/` are for purposes that a caller names, such as
//! `tool_use`; here the default one is used.

use crate::ModelError;
use crate::checkpoint::read;
use crate::vocabulary::Vocabulary;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The chat template and the special tokens of a folder or a GGUF file.
#[derive(Clone, Debug)]
pub(crate) struct ChatFiles {
    /// The file that holds the template, and the template's text; if there is none, what to say
    /// about the folder or the file.
    pub(crate) template: Result<(PathBuf, String), String>,
    /// Names and texts of special tokens, such as `bos_token` and `<s>`.
    pub(crate) names: Vec<(String, String)>,
}

impl ChatFiles {
    pub(crate) fn open(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("tokenizer_config.json");
        let mut config = object(&path)?.unwrap_or_default();
        let jinja = dir.join("chat_template.jinja");
        let template = match jinja.exists() {
            true => Some((jinja.clone(), read(&jinja, "")?)),
            false => template(&path, config.remove("chat_template"))?.map(|text| (path, text)),
        };
        if !config.contains_key("added_tokens_decoder") {
            let map = object(&dir.join("special_tokens_map.json"))?;
            config.extend(map.unwrap_or_default());
        }
        if let Some(Value::Object(extra)) = config.remove("extra_special_tokens") {
            config.extend(extra);
        }
        // A token is given as its text, or as an object with the text in `content`.
        let text = |value: &Value| {
            let text = value.get("content").unwrap_or(value);
            text.as_str().map(str::to_string)
        };
        let tokens = config
            .into_iter()
            .filter(|(name, _)| name.ends_with("_token"));
        let names = tokens.filter_map(|(name, value)| Some((name, text(&value)?)));
        let none = "has no chat template (chat_template.jinja, or in tokenizer_config.json); continue a text instead: `butterfly generate` without --chat";
        Ok(Self {
            template: template.ok_or_else(|| none.into()),
            names: names.collect(),
        })
    }

    /// What a GGUF file holds.
    pub(crate) fn of(path: &Path, vocabulary: &Vocabulary<'_>) -> Self {
        let others = vocabulary.other_templates();
        let none = match others.is_empty() {
            true => "has no chat template (`tokenizer.chat_template`); continue a text instead: `butterfly generate` without --chat".into(),
            false => format!(
                "has several chat templates ({}), and none that is the default (`tokenizer.chat_template`); continue a text instead: `butterfly generate` without --chat",
                others.join(", ")
            ),
        };
        let template = vocabulary.template();
        Self {
            template: template
                .map(|text| (path.to_path_buf(), text.to_string()))
                .ok_or(none),
            names: vocabulary.names(),
        }
    }
}

/// The JSON object in a file; `None` if there is no such file.
fn object(path: &Path) -> Result<Option<Map<String, Value>>, ModelError> {
    if !path.exists() {
        return Ok(None);
    }
    let object = serde_json::from_str(&read(path, "")?);
    object.map(Some).map_err(|error| ModelError::Text {
        path: path.to_path_buf(),
        what: format!("is no JSON object: {error}; download it again"),
    })
}

/// The text of `chat_template`; of several templates, the one called `default`.
fn template(path: &Path, value: Option<Value>) -> Result<Option<String>, ModelError> {
    let wrong = |what: &str| ModelError::Text {
        path: path.to_path_buf(),
        what: format!("`chat_template` {what}; download it again"),
    };
    let named: Vec<(String, Value)> = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text)),
        Some(Value::Object(named)) => named.into_iter().collect(),
        Some(Value::Array(list)) => {
            let pair = |entry: &Value| {
                let name = entry.get("name")?.as_str()?;
                Some((name.to_string(), entry.get("template")?.clone()))
            };
            let pairs: Option<Vec<_>> = list.iter().map(pair).collect();
            pairs
                .ok_or_else(|| wrong("is a list, but not of objects with `name` and `template`"))?
        }
        Some(Value::Bool(_) | Value::Number(_)) => {
            return Err(wrong("is neither text nor a list of templates"));
        }
    };
    let default = named.iter().find(|(name, _)| name == "default");
    match default.and_then(|(_, text)| text.as_str()) {
        Some(text) => Ok(Some(text.to_string())),
        None => Err(wrong("holds several templates, and none called `default`")),
    }
}

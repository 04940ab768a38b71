//! `generation_config.json`: a folder's settings for generating text.
//!
//! Only the tokens that end a text are taken from it. How tokens are sampled is up to the caller,
//! so that the same command gives the same text; settings of the file that are not followed are
//! listed, so that the user can be told.

use crate::ModelError;
use crate::checkpoint::read;
use serde_json::{Map, Value};
use std::path::Path;

/// The contents of `generation_config.json` that bear on the generated text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Defaults {
    /// The tokens that end a text (`eos_token_id`): `None` if the file does not mention them, an
    /// empty list if it says that no token ends a text.
    pub ends: Option<Vec<u32>>,
    /// Sampling settings by name, as in [`Sampling`](crate::Sampling); empty if `do_sample` is not
    /// true, which means that the most likely token is taken.
    pub sampling: Vec<(String, Value)>,
    /// Other settings that would change the text, and that this crate does not support.
    pub ignored: Vec<(String, Value)>,
}

/// Sampling settings that [`crate::Sampling`] has too.
const SAMPLING: [&str; 3] = ["temperature", "top_k", "top_p"];

/// Unsupported settings that change the text, each with the values at which it changes nothing.
const OTHERS: [(&str, &[f64]); 22] = [
    ("bad_words_ids", &[]),
    ("begin_suppress_tokens", &[]),
    ("diversity_penalty", &[0.0]),
    ("encoder_no_repeat_ngram_size", &[0.0]),
    ("encoder_repetition_penalty", &[1.0]),
    ("epsilon_cutoff", &[0.0]),
    ("eta_cutoff", &[0.0]),
    ("exponential_decay_length_penalty", &[]),
    ("forced_bos_token_id", &[]),
    ("forced_eos_token_id", &[]),
    ("guidance_scale", &[1.0]),
    ("min_length", &[0.0]),
    ("min_new_tokens", &[0.0]),
    ("min_p", &[0.0]),
    ("no_repeat_ngram_size", &[0.0]),
    ("num_beams", &[1.0]),
    ("penalty_alpha", &[0.0]),
    ("repetition_penalty", &[1.0]),
    ("sequence_bias", &[]),
    ("stop_strings", &[]),
    ("suppress_tokens", &[]),
    ("typical_p", &[1.0]),
];

impl Defaults {
    /// Reads `generation_config.json`; a missing file gives the default.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let wrong = |what: String| ModelError::File {
            path: path.to_path_buf(),
            what: format!("{what}; download it again"),
        };
        let object: Map<String, Value> = serde_json::from_str(&read(path, "")?)
            .map_err(|error| wrong(format!("is no JSON object: {error}")))?;
        let ends = object.get("eos_token_id").map(|value| {
            ends(value).ok_or_else(|| {
                wrong(format!(
                    "`eos_token_id` is {value}, expected a token, a list of tokens or null"
                ))
            })
        });
        let given = |name: &str| object.get(name).filter(|value| !value.is_null());
        let named = |name: &str| Some((name.to_string(), given(name)?.clone()));
        let sampled = given("do_sample").and_then(Value::as_bool) == Some(true);
        let changes = |(name, nothing): &(&str, &[f64])| {
            let (name, value) = named(name)?;
            let same = value.as_f64().is_some_and(|x| nothing.contains(&x))
                || value.as_array().is_some_and(Vec::is_empty);
            (!same).then_some((name, value))
        };
        Ok(Self {
            ends: ends.transpose()?,
            sampling: match sampled {
                true => SAMPLING.iter().filter_map(|name| named(name)).collect(),
                false => Vec::new(),
            },
            ignored: OTHERS.iter().filter_map(changes).collect(),
        })
    }
}

/// The tokens of `eos_token_id`: one token, a list of tokens, or null. `None` if it is anything
/// else.
fn ends(value: &Value) -> Option<Vec<u32>> {
    let token = |value: &Value| u32::try_from(value.as_u64()?).ok();
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(list) => list.iter().map(token).collect(),
        one => Some(vec![token(one)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(text: &str) -> Result<Defaults, ModelError> {
        let path = std::env::temp_dir().join(format!("generation-{}.json", std::process::id()));
        // All cases share one file: they run one after the other in one test.
        std::fs::write(&path, text).expect("written");
        let read = Defaults::open(&path);
        std::fs::remove_file(&path).expect("removed");
        read
    }

    #[test]
    fn what_ends_a_text_and_what_is_not_followed() {
        let ends = |text: &str| read(&format!("{{\"eos_token_id\": {text}}}")).map(|d| d.ends);
        assert_eq!(ends("[0, 2]").expect("read"), Some(vec![0, 2]));
        assert_eq!(ends("7").expect("read"), Some(vec![7]));
        assert_eq!(ends("null").expect("read"), Some(vec![]));
        assert_eq!(ends("[]").expect("read"), Some(vec![]));
        for bad in ["-1", "\"a\"", "[1, null]", "1.5", "4294967296", "{}"] {
            let error = ends(bad).expect_err(bad).to_string();
            assert!(error.contains("`eos_token_id`"), "{error}");
        }
        assert!(read("[1]").is_err() && read("{").is_err());
        let none = read(r#"{"top_p": 0.9, "repetition_penalty": 1.0, "min_p": null}"#);
        assert_eq!(none.expect("read"), Defaults::default());
        let some = r#"{"do_sample": true, "top_p": 0.9, "temperature": 0.6, "num_beams": 4}"#;
        let some = read(some).expect("read");
        let pair = |name: &str, value| (name.to_string(), value);
        assert_eq!(some.ends, None);
        assert_eq!(
            some.sampling,
            [pair("temperature", json!(0.6)), pair("top_p", json!(0.9))]
        );
        assert_eq!(some.ignored, [pair("num_beams", json!(4))]);
    }
}

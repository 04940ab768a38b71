//! Tokens that are found in a text before anything else, and those that are put around it.

use super::{Kind, Vocabulary};
use serde_json::{Value, json};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

/// The automaton that finds added tokens takes about 40 bytes of memory for each byte of them.
const MOST_BYTES: usize = 1 << 20;

/// Adds control, unknown and user-defined tokens; the first two are special, which means that they
/// are left out of decoded text.
pub(super) fn add(vocabulary: &Vocabulary<'_>, tokenizer: &mut Tokenizer) -> Result<(), String> {
    let mut bytes = 0;
    let mut added = Vec::new();
    for (_, text, kind) in vocabulary.iter() {
        let special = match kind {
            Kind::Control | Kind::Unknown => true,
            Kind::UserDefined => false,
            Kind::Normal | Kind::Unused | Kind::Byte => continue,
        };
        bytes += text.len();
        // Phi 3's tokenizer.json marks every token so but these.
        let kept = ["<unk>", "<s>", "<|endoftext|>"].contains(&text);
        let token = AddedToken::from(text, special)
            .normalized(false)
            .rstrip(vocabulary.swallows && !kept);
        added.push(token);
        if bytes > MOST_BYTES {
            return Err(format!(
                "has more than {MOST_BYTES} bytes of control and user-defined tokens (`tokenizer.ggml.token_type`)"
            ));
        }
    }
    tokenizer.add_tokens(&added);
    if let Some(around) = around(vocabulary)? {
        tokenizer.with_post_processor(Some(around));
    }
    Ok(())
}

/// What puts the first and the last token around each text.
fn around(vocabulary: &Vocabulary<'_>) -> Result<Option<TemplateProcessing>, String> {
    let begin = vocabulary.special.begin.filter(|_| vocabulary.begins);
    let end = vocabulary.special.end.filter(|_| vocabulary.ends);
    if begin.is_none() && end.is_none() {
        return Ok(None);
    }
    // The token's name in the template is its text, which may be anything: the parts are given as
    // objects and not as a line of text.
    let part = |token: Option<u32>| {
        token.map(|id| json!({"SpecialToken": {"id": vocabulary.text(id), "type_id": 0}}))
    };
    let text = |name: &str| Some(json!({"Sequence": {"id": name, "type_id": 0}}));
    let parts = |parts: Vec<Option<Value>>| parts.into_iter().flatten().collect::<Vec<_>>();
    let tokens = [begin, end].into_iter().flatten().map(|id| {
        let text = vocabulary.text(id);
        let token = json!({"id": text, "ids": [id], "tokens": [text]});
        (text.to_string(), token)
    });
    let template = json!({
        "type": "TemplateProcessing",
        "single": parts(vec![part(begin), text("A"), part(end)]),
        "pair": parts(vec![part(begin), text("A"), text("B"), part(end)]),
        "special_tokens": tokens.collect::<serde_json::Map<_, _>>(),
    });
    let template = serde_json::from_value(template).map_err(|error| error.to_string())?;
    Ok(Some(template))
}

use super::*;
use crate::chat::{Chat, Message};
use crate::weights::gguf::Gguf;
use butterfly_tests::gguf::{Layout, Value as Stored, bytes};
use serde_json::Value;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

type Entry = (&'static str, Stored);

fn chat(metadata: &[Entry]) -> Result<Chat, String> {
    let gguf = Gguf::of(&bytes(Layout::default(), metadata, &[])).expect("a file");
    Chat::of(&gguf).map_err(|error| error.to_string())
}

/// The metadata with one entry replaced or added.
fn with(metadata: &[Entry], key: &'static str, value: Stored) -> Vec<Entry> {
    let mut entries = without(metadata, key);
    entries.push((key, value));
    entries
}

fn without(metadata: &[Entry], key: &str) -> Vec<Entry> {
    let others = metadata.iter().filter(|(other, _)| *other != key);
    others.cloned().collect()
}

fn fixture(name: &str) -> Value {
    let path = butterfly_tests::fixture(&format!("gguf/vocabulary/{name}.json"));
    let text = std::fs::read_to_string(path).expect("fixture");
    serde_json::from_str(&text).expect("JSON")
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).expect("of this type")
}

fn texts(list: &[&str]) -> Stored {
    Stored::Texts(list.iter().map(|text| text.to_string()).collect())
}

/// A SentencePiece model as gguf-py writes it.
fn pieces(fixture: &Value) -> Vec<Entry> {
    let pieces: Vec<(String, f32, i32)> = read(&fixture["pieces"]);
    vec![
        ("general.architecture", "llama".into()),
        ("tokenizer.ggml.model", "llama".into()),
        (
            "tokenizer.ggml.tokens",
            Stored::Texts(pieces.iter().map(|piece| piece.0.clone()).collect()),
        ),
        (
            "tokenizer.ggml.scores",
            Stored::Floats(pieces.iter().map(|piece| piece.1).collect()),
        ),
        (
            "tokenizer.ggml.token_type",
            Stored::Integers(pieces.iter().map(|piece| piece.2).collect()),
        ),
    ]
}

/// A byte-level vocabulary, which cuts text in the way of this name.
fn byte_level(fixture: &Value, split: &str) -> Vec<Entry> {
    let tokens: Vec<String> = read(&fixture["tokens"]);
    let mut kinds = vec![1; tokens.len()];
    kinds[tokens.len() - 2..].copy_from_slice(&[3, 4]);
    let end = tokens.len() as u32 - 2;
    vec![
        ("general.architecture", "llama".into()),
        ("tokenizer.ggml.model", "gpt2".into()),
        ("tokenizer.ggml.pre", split.into()),
        ("tokenizer.ggml.tokens", Stored::Texts(tokens)),
        ("tokenizer.ggml.token_type", Stored::Integers(kinds)),
        (
            "tokenizer.ggml.merges",
            Stored::Texts(read(&fixture["merges"])),
        ),
        ("tokenizer.ggml.bos_token_id", end.into()),
        ("tokenizer.ggml.eos_token_id", end.into()),
    ]
}

#[test]
fn pieces_are_those_of_sentencepiece() {
    let fixture = fixture("pieces");
    let given: Vec<String> = read(&fixture["texts"]);
    for (spaced, expected) in [(true, &fixture["spaced"]), (false, &fixture["bare"])] {
        let key = "tokenizer.ggml.add_space_prefix";
        let metadata = with(&pieces(&fixture), key, Stored::Bool(spaced));
        let chat = chat(&metadata).expect("a tokenizer");
        let ids: Vec<Vec<u32>> = read(&expected["ids"]);
        let back: Vec<String> = read(&expected["texts"]);
        for ((text, ids), back) in given.iter().zip(&ids).zip(&back) {
            assert_eq!(&chat.encode(text, false).expect("encoded"), ids, "{text:?}");
            assert_eq!(&chat.decode(ids).expect("decoded"), back);
            let begun = [&[1][..], ids].concat();
            assert_eq!(chat.encode(text, true).expect("encoded"), begun);
        }
    }
}

#[test]
fn bytes_are_merged_in_the_order_of_the_file() {
    let fixture = fixture("bytes");
    let given: Vec<String> = read(&fixture["texts"]);
    for (split, begins) in [("gpt-2", false), ("llama-bpe", true), ("qwen2", false)] {
        let chat = chat(&byte_level(&fixture, split)).expect("a tokenizer");
        let expected: Vec<Vec<u32>> = read(&fixture["ids"][split]);
        let [end] = chat.encode("<|end|>", false).expect("encoded")[..] else {
            panic!("a control token is one token");
        };
        for (text, ids) in given.iter().zip(&expected) {
            assert_eq!(
                &chat.encode(text, false).expect("encoded"),
                ids,
                "{split} {text:?}"
            );
            let mut around = ids.clone();
            if begins {
                around.insert(0, end);
            }
            assert_eq!(chat.encode(text, true).expect("encoded"), around);
            // Only qwen2 changes a text, by composing its characters.
            if split != "qwen2" {
                assert_eq!(&chat.decode(ids).expect("decoded"), text);
            }
        }
        // Special tokens are not part of the text; user-defined ones are.
        let ids = chat.encode("a<tool><|end|>", false).expect("encoded");
        assert_eq!(ids.len(), 3);
        assert_eq!(chat.decode(&ids).expect("decoded"), "a<tool>");
    }
}

#[test]
fn text_is_cut_as_each_name_says() {
    let fixture = fixture("cuts");
    let given: Vec<String> = read(&fixture["texts"]);
    let cuts = fixture["cuts"].as_object().expect("an object");
    let named = |name: &str| split::Split::of(name).expect("a known name");
    for name in ["dbrx", "glm4", "starcoder", "llama3", "deepseek-r1-qwen"] {
        named(name);
    }
    for (name, expected) in cuts {
        let split = named(name).build().expect("patterns");
        let expected: Vec<Vec<usize>> = read(expected);
        for (text, expected) in given.iter().zip(&expected) {
            let mut cut = PreTokenizedString::from(text.as_str());
            split.pre_tokenize(&mut cut).expect("cut");
            let parts = cut.get_splits(OffsetReferential::Original, OffsetType::Char);
            let parts = parts.iter().map(|(_, (start, end), _)| end - start);
            let parts: Vec<usize> = parts.filter(|length| *length > 0).collect();
            assert_eq!(&parts, expected, "{name} {text:?}");
        }
    }
}

#[test]
fn templates_and_names() {
    let fixture = fixture("bytes");
    let hello = [Message {
        role: "user".into(),
        content: "hello".into(),
    }];
    let plain = byte_level(&fixture, "gpt-2");
    let key = "tokenizer.chat_template";
    let template = "{{ bos_token }}{{ messages[0].content }}{{ pad_token is defined }}";
    let with_template = with(&plain, key, template.into());
    let prompt = chat(&with_template).expect("read").apply(&hello);
    assert_eq!(prompt.expect("rendered"), "<|end|>helloFalse");
    let padded = with(&with_template, "tokenizer.ggml.padding_token_id", 0.into());
    let prompt = chat(&padded).expect("read").apply(&hello);
    assert_eq!(prompt.expect("rendered"), "<|end|>helloTrue");

    let refused = |metadata: &[Entry]| {
        let prompt = chat(metadata).expect("read").apply(&hello);
        prompt.expect_err("no template").to_string()
    };
    assert_eq!(
        refused(&plain),
        "model.gguf: has no chat template (`tokenizer.chat_template`); continue a text instead: `butterfly generate` without --chat"
    );
    let named = with(
        &plain,
        "tokenizer.chat_templates",
        texts(&["rag", "tool_use"]),
    );
    assert!(refused(&named).contains("has several chat templates (rag, tool_use), and none"));
}

#[test]
fn tokens_around_every_text() {
    let fixture = fixture("bytes");
    let metadata = byte_level(&fixture, "gpt-2");
    let metadata = with(
        &metadata,
        "tokenizer.ggml.add_bos_token",
        Stored::Bool(true),
    );
    let both = with(
        &metadata,
        "tokenizer.ggml.add_eos_token",
        Stored::Bool(true),
    );
    let chat = chat(&both).expect("read");
    let ids = |text: &str, special| chat.encode(text, special).expect("encoded");
    let end = ids("<|end|>", false);
    let inner = ids("The cat", false);
    assert_eq!(ids("The cat", true), [&end[..], &inner, &end].concat());
    assert_eq!(ids("", true), [end.clone(), end].concat());
}

/// Phi 3's special tokens swallow the white space that follows them.
#[test]
fn white_space_after_special_tokens() {
    let metadata = |architecture: &str| {
        with(
            &pieces(&fixture("pieces")),
            "general.architecture",
            architecture.into(),
        )
    };
    let ids = |architecture: &str, text: &str| {
        let chat = chat(&metadata(architecture)).expect("read");
        chat.encode(text, false).expect("encoded")
    };
    assert_eq!(ids("phi3", "</s> \nThe"), ids("phi3", "</s>The"));
    assert_ne!(ids("phi3", "<s> \nThe"), ids("phi3", "<s>The"));
    assert_ne!(ids("llama", "</s> \nThe"), ids("llama", "</s>The"));
}

#[test]
fn metadata_that_is_wrong() {
    let of_bytes = byte_level(&fixture("bytes"), "gpt-2");
    let of_pieces = pieces(&fixture("pieces"));
    let refused = |metadata: &[Entry], says: &str| {
        let said = chat(metadata).expect_err(says);
        assert!(said.starts_with("model.gguf: "), "{said}");
        assert!(said.contains(says), "{said}");
    };
    let cases: [(&'static str, Stored, &str); 12] = [
        (
            "model",
            "bert".into(),
            "`tokenizer.ggml.model` is \"bert\", expected gpt2 or llama",
        ),
        ("model", 1.into(), "`tokenizer.ggml.model` is "),
        (
            "pre",
            "kimi-k2".into(),
            "`tokenizer.ggml.pre` is \"kimi-k2\", expected one of default, gpt-2,",
        ),
        (
            "tokens",
            texts(&[]),
            "has 0 tokens in `tokenizer.ggml.tokens`",
        ),
        (
            "token_type",
            Stored::Integers(vec![1]),
            "but 1 values in `tokenizer.ggml.token_type`",
        ),
        (
            "scores",
            Stored::Floats(vec![1.0; 4]),
            "but 4 values in `tokenizer.ggml.scores`",
        ),
        (
            "merges",
            texts(&["a", "b c"]),
            "`tokenizer.ggml.merges[0]`: \"a\" is no pair",
        ),
        (
            "merges",
            texts(&["t h", "th qq"]),
            "`tokenizer.ggml.merges[1]`: \"th qq\" needs \"qq\", which",
        ),
        ("merges", texts(&["q q"]), "needs \"qq\", which is no token"),
        (
            "merges",
            texts(&["", "é"]),
            "`tokenizer.ggml.merges[0]`: \"\" is no pair",
        ),
        (
            "bos_token_id",
            1_000_000.into(),
            "but `tokenizer.ggml.bos_token_id` is 1000000",
        ),
        (
            "eot_token_id",
            u32::MAX.into(),
            "but `tokenizer.ggml.eot_token_id` is 4294967295",
        ),
    ];
    for (name, value, says) in cases {
        let key: &'static str = format!("tokenizer.ggml.{name}").leak();
        refused(&with(&of_bytes, key, value), says);
    }
    for name in ["model", "pre", "tokens", "merges"] {
        let key = format!("tokenizer.ggml.{name}");
        refused(&without(&of_bytes, &key), &format!("has no `{key}`"));
    }
    let begins = with(
        &of_bytes,
        "tokenizer.ggml.add_bos_token",
        Stored::Bool(true),
    );
    refused(
        &without(&begins, "tokenizer.ggml.bos_token_id"),
        "has no `tokenizer.ggml.bos_token_id`",
    );

    let count = match &of_pieces[2].1 {
        Stored::Texts(tokens) => tokens.len(),
        _ => panic!("tokens are texts"),
    };
    let mut kinds = vec![1; count];
    kinds[3] = 7;
    refused(
        &with(
            &of_pieces,
            "tokenizer.ggml.token_type",
            Stored::Integers(kinds),
        ),
        "gives token 3 the type 7 in `tokenizer.ggml.token_type`",
    );
    refused(
        &with(
            &of_pieces,
            "tokenizer.ggml.scores",
            Stored::Floats(vec![f32::NAN; count]),
        ),
        "`tokenizer.ggml.scores[0]`: it is not a number",
    );
    refused(
        &without(&of_pieces, "tokenizer.ggml.scores"),
        "has neither `tokenizer.ggml.scores` nor `tokenizer.ggml.merges`",
    );
    let same = ["<unk>", "<s>", "</s>", "a", "b", "a"];
    let named = [("tokenizer.ggml.model", "llama".into())];
    let few = |tokens: &[&str]| {
        let scores = Stored::Floats(vec![0.0; tokens.len()]);
        let metadata = with(&named, "tokenizer.ggml.scores", scores);
        with(&metadata, "tokenizer.ggml.tokens", texts(tokens))
    };
    refused(&few(&same), "gives tokens 3 and 5 the same text \"a\"");
    let long = "a".repeat(600);
    refused(
        &few(&["<unk>", "<s>", "</s>", &long]),
        "(600 bytes) in `tokenizer.ggml.tokens[3]`, expected at most 512 bytes",
    );
    let all: Vec<String> = (1..200).map(|length| "a".repeat(length)).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    refused(&few(&all), "can be merged in too many ways");
}

/// Tokens without a text, and ids without a token, are no reason to refuse a vocabulary.
#[test]
fn tokens_without_text() {
    let mut tokens = vec!["<unk>", "<s>", "</s>", "", "", "a", "b", "ab"];
    let metadata = |tokens: &[&str]| {
        let scores = Stored::Floats((0..tokens.len()).map(|n| n as f32).collect());
        [
            ("tokenizer.ggml.model", "llama".into()),
            ("tokenizer.ggml.tokens", texts(tokens)),
            ("tokenizer.ggml.scores", scores),
            ("tokenizer.ggml.add_space_prefix", Stored::Bool(false)),
        ]
    };
    let empty = chat(&metadata(&tokens)).expect("read");
    assert_eq!(empty.encode("abcab", true).expect("encoded"), [1, 7, 0, 7]);
    assert_eq!(empty.decode(&[3, 7, 4, 99]).expect("decoded"), "ab");
    // Without ids of their own, a vocabulary of two has no token that ends a text.
    tokens.truncate(2);
    assert!(chat(&metadata(&tokens)).is_ok());
}

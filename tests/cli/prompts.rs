//! Prompts: tokenizers, chat templates, and the tokens that end a text.

mod byte_model;

use byte_model::{butterfly, folder, generate, refused, report};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Changes fields of a JSON file.
fn change(path: &Path, fields: Value) {
    let text = fs::read_to_string(path).unwrap_or_else(|_| "{}".into());
    let mut object: Value = serde_json::from_str(&text).expect("JSON");
    for (name, value) in fields.as_object().expect("fields") {
        object[name] = value.clone();
    }
    fs::write(path, object.to_string()).expect("written");
}

const PROMPT: [&str; 4] = ["--prompt", "Blocks attend", "--max-new-tokens", "1"];

#[test]
fn all_of_a_text_becomes_tokens_and_nothing_else() {
    for (name, value) in [
        (
            "truncation",
            json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}),
        ),
        (
            "truncation",
            json!({"direction": "Left", "max_length": 2, "strategy": "LongestFirst", "stride": 2}),
        ),
        (
            "padding",
            json!({"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}),
        ),
        (
            "padding",
            json!({"strategy": {"Fixed": 1_000_000_000_000_u64}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}),
        ),
    ] {
        let folder = folder();
        let plain = report(folder.path(), &PROMPT);
        change(&folder.path().join("tokenizer.json"), json!({name: value}));
        let changed = report(folder.path(), &PROMPT);
        assert_eq!(changed["prompt_tokens"], 13, "{name} {value}");
        assert_eq!(changed["tokens"], plain["tokens"], "{name} {value}");

        let text = folder.path().join("text.txt");
        fs::write(&text, "Some blocks attend. ".repeat(20)).expect("written");
        let args = ["eval", "--device", "cpu", "--json", "--model"];
        let dir = folder.path().to_str().expect("utf-8");
        let text = ["--text", text.to_str().expect("utf-8")];
        let output = butterfly(&[&args[..], &[dir], &text].concat());
        let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        assert_eq!(object["predicted"], 399, "{name} {value}");
    }
}

#[test]
fn tokenizers_that_are_wrong_are_named() {
    for (name, value) in [
        (
            "normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ),
        (
            "normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
        ),
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        (
            "post_processor",
            json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {}}),
        ),
        (
            "model",
            json!({"type": "Unigram", "vocab": [], "unk_id": 3}),
        ),
        ("version", json!("2.0")),
    ] {
        let folder = folder();
        let path = folder.path().join("tokenizer.json");
        change(&path, json!({name: value}));
        let said = refused(folder.path(), &PROMPT);
        let start = format!("{}: is no tokenizer", path.display());
        assert!(said.starts_with(&start), "{name} {value}: {said}");
    }
    // Patterns that match the empty text may be used or refused, but must not crash the process.
    for (name, value) in [
        (
            "normalizer",
            json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
        ),
        (
            "normalizer",
            json!({"type": "Replace", "pattern": {"Regex": "(?=b)"}, "content": "x"}),
        ),
        (
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false}),
        ),
        (
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": ""}, "behavior": "MergedWithNext", "invert": true}),
        ),
    ] {
        let folder = folder();
        change(&folder.path().join("tokenizer.json"), json!({name: value}));
        let output = generate(folder.path(), &PROMPT);
        let error = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 2)), "{name} {value}: {error}");
        assert!(!error.contains("panicked"), "{name} {value}: {error}");
        assert!(
            code == Some(0) || error.contains("tokenizer.json"),
            "{error}"
        );
    }
}

#[test]
fn generation_config_says_what_ends_a_text() {
    let folder = folder();
    let config = folder.path().join("config.json");
    let generation = folder.path().join("generation_config.json");
    let args = ["--prompt", "Blocks attend", "--max-new-tokens", "6"];
    change(&config, json!({"eos_token_id": null}));
    let free = report(folder.path(), &args);
    let tokens = free["tokens"].as_array().expect("tokens").clone();
    assert_eq!(tokens.len(), 6);
    // With this token, the model's own config ends the text at once.
    change(&config, json!({"eos_token_id": tokens[0]}));
    assert_eq!(report(folder.path(), &args)["tokens"], json!([]));
    // `generation_config.json` takes precedence over it.
    for ends in [json!([255, tokens[3]]), json!(tokens[3])] {
        change(&generation, json!({"eos_token_id": ends}));
        let first = tokens.iter().position(|token| *token == tokens[3]);
        let ended = report(folder.path(), &args);
        assert_eq!(ended["ended"], true);
        assert_eq!(ended["tokens"].as_array().map(Vec::len), first);
    }
    for ends in [json!(null), json!([])] {
        change(&generation, json!({"eos_token_id": ends}));
        let free = report(folder.path(), &args);
        assert_eq!(free["tokens"].as_array(), Some(&tokens));
        assert_eq!(free["ended"], false);
    }
    // Without `eos_token_id` in the file, the config's token ends the text; a note lists the rest.
    let sampling =
        json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1});
    fs::write(&generation, sampling.to_string()).expect("written");
    let output = generate(folder.path(), &args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("--temperature 0.6 --top-p 0.9"), "{said}");
    assert!(
        said.contains("repetition_penalty 1.1 not followed"),
        "{said}"
    );
    assert_eq!(report(folder.path(), &args)["tokens"], json!([]));
    fs::write(&generation, r#"{"eos_token_id": ["</s>"]}"#).expect("written");
    let said = refused(folder.path(), &args);
    assert!(
        said.contains("generation_config.json: `eos_token_id`"),
        "{said}"
    );
}

/// The streamed text is complete to its last byte, even where it ends within a character.
#[test]
fn the_last_half_of_a_character_is_shown() {
    let folder = folder();
    let mut halves = 0;
    for count in 1..12 {
        let count = count.to_string();
        let args = [
            "--prompt",
            "Blocks",
            "--ignore-end",
            "--max-new-tokens",
            &count,
        ];
        let text = report(folder.path(), &args)["text"].clone();
        let text = text.as_str().expect("text");
        let shown = generate(folder.path(), &args).stdout;
        assert_eq!(String::from_utf8_lossy(&shown), format!("{text}\n"));
        halves += usize::from(text.ends_with('\u{fffd}'));
    }
    assert!(halves > 0);
}

#[test]
fn templates_come_from_where_transformers_takes_them() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let config = at("tokenizer_config.json");
    let length = |content: &str| {
        let args = ["--prompt", content, "--chat", "--max-new-tokens", "1"];
        report(folder.path(), &args)["prompt_tokens"]
            .as_u64()
            .expect("a number")
    };
    let template = |text: &str| change(&config, json!({"chat_template": text}));
    // Every byte of a prompt is one token. A null token renders as nothing, a token of text as its
    // text.
    template("{{ bos_token }}{{ eos_token }}{{ messages[0].content }}");
    assert_eq!(length("Hi"), 5 + 2);
    template("{{ tools is none and documents is none and bos_token is not defined }}");
    assert_eq!(length("Hi"), 4);
    template(
        "{% if true %}\n  {% if true %}\n{{ messages[0].content }}\n  {% endif %}\n{% endif %}\n",
    );
    assert_eq!(length("Hi"), 3);
    // `special_tokens_map.json` is used if the config has no tokens of its own.
    template("{{ bos_token }}");
    fs::write(
        at("special_tokens_map.json"),
        r#"{"bos_token": {"content": "<s>"}}"#,
    )
    .expect("written");
    assert_eq!(length("Hi"), 3);
    change(
        &config,
        json!({"added_tokens_decoder": {}, "bos_token": "<bos>", "add_bos_token": true}),
    );
    assert_eq!(length("Hi"), 5);
    let named =
        json!([{"name": "tool_use", "template": "a"}, {"name": "default", "template": "bc"}]);
    change(&config, json!({"chat_template": named}));
    assert_eq!(length("Hi"), 2);

    let chat = ["--prompt", "Hi", "--chat"];
    change(
        &config,
        json!({"chat_template": [{"name": "rag", "template": "a"}]}),
    );
    let said = refused(folder.path(), &chat);
    assert!(
        said.contains("tokenizer_config.json: `chat_template`"),
        "{said}"
    );
    template("{{ messages[0].nothing.role }}");
    let said = refused(folder.path(), &chat);
    assert!(
        said.contains("tokenizer_config.json: its chat template fails in line 1"),
        "{said}"
    );
    fs::write(at("chat_template.jinja"), "\n{{ raise_exception('No.') }}").expect("written");
    let said = refused(folder.path(), &chat);
    assert!(
        said.contains("chat_template.jinja: its chat template refuses"),
        "{said}"
    );
    // The text of this value is too long for any memory: it doubles 90 times.
    let twice = "{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}";
    fs::write(at("chat_template.jinja"), twice).expect("written");
    let said = refused(folder.path(), &chat);
    assert!(
        said.contains("chat_template.jinja: its chat template takes"),
        "{said}"
    );
    fs::remove_file(at("chat_template.jinja")).expect("removed");
    change(&config, json!({"chat_template": null}));
    let said = refused(folder.path(), &chat);
    assert!(said.contains("has no chat template"), "{said}");
}

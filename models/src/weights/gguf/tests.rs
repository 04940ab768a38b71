use super::types::ALL;
use super::*;
use butterfly_tests::gguf::{self as files, Layout, Value as Stored};
use serde_json::Value as Json;

fn fixture(name: &str) -> PathBuf {
    butterfly_tests::fixture("gguf").join(name)
}

fn expected() -> Json {
    let text = std::fs::read(fixture("reader.json")).expect("read");
    serde_json::from_slice(&text).expect("JSON")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Compares tensors with what `GGUFReader` found in one file.
fn compare(model: &Gguf, file: usize, expected: &Json) {
    let tensors: Vec<&Tensor> = model.tensors().iter().filter(|t| t.file == file).collect();
    let expected = expected["tensors"].as_array().expect("tensors");
    assert_eq!(tensors.len(), expected.len());
    for (tensor, expected) in tensors.into_iter().zip(expected) {
        assert_eq!(expected["name"], tensor.name.as_str());
        assert_eq!(expected["kind"], tensor.kind.name(), "{}", tensor.name);
        assert_eq!(expected["shape"], serde_json::json!(tensor.shape));
        assert_eq!(expected["offset"], tensor.bytes.start, "{}", tensor.name);
        assert_eq!(expected["bytes"], tensor.bytes.len(), "{}", tensor.name);
        assert_eq!(expected["hex"], hex(model.bytes(tensor)), "{}", tensor.name);
        assert_eq!(model.tensor(&tensor.name), Some(tensor));
    }
}

#[test]
fn every_kind_is_read_as_by_gguf_of_python() {
    let model = Gguf::open(&fixture("kinds.gguf")).expect("opened");
    let expected = &expected()["kinds.gguf"];
    compare(&model, 0, expected);
    let kinds: Vec<GgmlType> = model.tensors().iter().map(|one| one.kind).collect();
    assert!(ALL.iter().all(|kind| kinds.contains(kind)));
    let metadata = expected["metadata"].as_object().expect("values");
    assert_eq!(metadata.len(), model.metadata.len());
    let read = |key: &str| -> Json {
        use serde_json::json;
        match model.metadata(key).expect("there") {
            Value::String(_) => json!(model.string(key).expect("read")),
            Value::Bool(_) => json!(model.flag(key).expect("read")),
            Value::F64(_) | Value::F32(_) => json!(model.float(key).expect("read")),
            Value::U64(x) => json!(x),
            value @ Value::Array(_) => match value.kind().rsplit_once(' ').expect("two words").1 {
                "string" => json!(model.strings(key).expect("read")),
                "f32" => json!(model.floats(key).expect("read")),
                "bool" => json!(model.flags(key).expect("read")),
                _ => json!(model.integers(key).expect("read")),
            },
            other => json!(i64::try_from(other.integer().expect("whole")).expect("fits")),
        }
    };
    for (key, value) in metadata {
        match key.as_str() {
            // Python prints the nearest f64 of the f32.
            "a.f32" => assert_eq!(model.float(key).expect("read"), Some(1e-5)),
            key => assert_eq!(read(key), *value, "{key}"),
        }
    }
}

#[test]
fn values_of_wrong_types_are_refused_by_name() {
    let model = Gguf::open(&fixture("kinds.gguf")).expect("opened");
    let said = |result: Result<(), ModelError>| result.expect_err("refused").to_string();
    assert_eq!(model.count("a.u8").expect("read"), Some(200));
    assert_eq!(model.count("absent").expect("read"), None);
    for (result, part) in [
        (
            model.count("a.i8").map(drop),
            "`a.i8` is -100 (i8), expected a whole number",
        ),
        (
            model.count("a.u64").map(drop),
            "`a.u64` is 9223372036854775809 (u64)",
        ),
        (
            model.count("a.f64").map(drop),
            "`a.f64` is 0.1 (f64), expected a whole number",
        ),
        (
            model.string("a.u8").map(drop),
            "`a.u8` is 200 (u8), expected a string",
        ),
        (
            model.float("a.string").map(drop),
            "`a.string` is string, expected a finite number",
        ),
        (model.flag("a.u8").map(drop), "expected a bool"),
        (
            model.strings("a.floats").map(drop),
            "`a.floats` is array of 2 f32, expected an array of strings",
        ),
        (
            model.integers("a.bools").map(drop),
            "`a.bools` is array of 3 bool",
        ),
        (
            model.floats("a.integers").map(drop),
            "`a.integers` is array of 3 i32",
        ),
        (
            model.flags("a.strings").map(drop),
            "`a.strings` is array of 3 string",
        ),
        (model.required::<()>("b", "u32", None), "has no `b` (u32)"),
    ] {
        let error = said(result);
        assert!(
            error.contains(part) && error.contains("kinds.gguf: "),
            "{error}"
        );
    }
}

#[test]
fn parts_are_opened_together_whichever_is_given() {
    let name = |part| format!("parts-0000{part}-of-00003.gguf");
    let all = expected();
    for part in 1..=3 {
        let model = Gguf::open(&fixture(&name(part))).expect("opened");
        assert_eq!(model.tensors().len(), 5);
        assert_eq!(model.path(), fixture(&name(1)));
        assert_eq!(model.count("llama.block_count").expect("read"), Some(1));
        for part in 1..=3 {
            compare(&model, part - 1, &all[name(part)]);
        }
    }
    let dir = std::env::temp_dir().join(format!("gguf-parts-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("made");
    let copy = |from: usize, to: &str| {
        std::fs::copy(fixture(&name(from)), dir.join(to)).expect("copied");
        dir.join(to)
    };
    let said = |path: &Path| Gguf::open(path).expect_err("refused").to_string();
    let first = copy(1, &name(1));
    copy(3, &name(3));
    let error = said(&first);
    assert!(
        error.contains(&name(2)) && error.contains("in parts"),
        "{error}"
    );
    copy(1, &name(2));
    let error = said(&first);
    assert!(
        error.contains("`split.no` is 0, expected 1 by its name"),
        "{error}"
    );
    let error = said(&copy(2, "renamed.gguf"));
    assert!(
        error.contains("part 2 of 3") && error.contains("`-00002-of-00003.gguf`"),
        "{error}"
    );
    std::fs::remove_dir_all(&dir).expect("removed");
}

fn small() -> (Vec<(&'static str, Stored)>, Vec<files::Tensor>) {
    let tensors = vec![
        files::Tensor::floats("a", &[2, 3], &[1.0; 6]),
        files::Tensor {
            name: "b".into(),
            shape: vec![2, 64],
            kind: 8,
            bytes: vec![1; 2 * 2 * 34],
        },
    ];
    (
        vec![
            ("general.architecture", "llama".into()),
            ("list", Stored::Integers(vec![1, 2])),
        ],
        tensors,
    )
}

#[test]
fn versions_and_alignments() {
    let (mut metadata, tensors) = small();
    let bytes = |version, alignment, metadata: &[_]| {
        files::bytes(Layout { version, alignment }, metadata, &tensors)
    };
    for version in [2, 3] {
        let model = Gguf::of(&bytes(version, 32, &metadata)).expect("opened");
        assert_eq!(model.tensors()[1].shape, [2, 64]);
        assert_eq!(model.bytes(&model.tensors()[1]), [1; 136]);
    }
    let said = |bytes: &[u8]| Gguf::of(bytes).expect_err("refused").to_string();
    assert!(said(&bytes(1, 32, &metadata)).contains("version 1; only 2 and 3"));
    assert!(said(&bytes(3 << 24, 32, &metadata)).contains("is big endian"));
    metadata.push(("general.alignment", 64.into()));
    let model = Gguf::of(&bytes(3, 64, &metadata)).expect("opened");
    assert_eq!(model.bytes(&model.tensors()[1]), [1; 136]);
    // Offsets that are multiples of 32 only.
    assert!(said(&bytes(3, 32, &metadata)).contains(
        "tensor `b` begins at offset 32, which is not a multiple of `general.alignment`, 64"
    ));
    for (alignment, part) in [
        (0.into(), "is 0,"),
        (48.into(), "is 48,"),
        ("a".into(), "is string,"),
        (Stored::I32(-32), "is -32,"),
    ] {
        metadata.pop();
        metadata.push(("general.alignment", alignment));
        let error = said(&bytes(3, 64, &metadata));
        assert!(
            error.contains("`general.alignment`") && error.contains(part),
            "{error}"
        );
    }
}

#[test]
fn broken_files_are_refused() {
    let (metadata, tensors) = small();
    let good = files::bytes(Layout::default(), &metadata, &tensors);
    let said = |bytes: &[u8]| match Gguf::of(bytes) {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    };
    assert!(said(b"").contains("is no GGUF file"));
    assert!(said(b"GGML\x03\0\0\0").contains("is no GGUF file"));
    for end in 0..good.len() {
        let error = said(&good[..end]);
        assert!(error.starts_with("model.gguf: "), "{error}");
    }
    let error = said(&good[..good.len() - 1]);
    assert!(
        error.contains("tensor `b` has 136 bytes at offset 32") && error.contains("truncated"),
        "{error}"
    );

    let with = |metadata: &[(&str, Stored)], tensors: &[files::Tensor]| {
        said(&files::bytes(Layout::default(), metadata, tensors))
    };
    let huge = (1u64 << 60).to_le_bytes();
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let deep = (0..6).flat_map(|_| array(9, 1)).collect();
    for (value, part) in [
        (Stored::Raw(99, vec![]), "`k` has the type 99"),
        (
            Stored::Raw(8, huge.to_vec()),
            "`k` takes 1152921504606846976 bytes",
        ),
        (
            Stored::Raw(9, array(8, 1 << 60)),
            "the number of elements of `k` is 1152921504606846976",
        ),
        (
            Stored::Raw(9, array(0, u64::MAX)),
            "the number of elements of `k` is 18446744073709551615",
        ),
        (Stored::Raw(9, array(13, 0)), "`k` has the type 13"),
        (
            Stored::Raw(9, deep),
            "`k` has arrays nested more than 4 deep",
        ),
        (Stored::Raw(7, vec![2]), "`k` is a bool of 2"),
        (
            Stored::Raw(8, [&1u64.to_le_bytes()[..], &[0xff]].concat()),
            "`k` is not UTF-8",
        ),
    ] {
        let error = with(&[("k", value)], &tensors);
        assert!(error.contains(part), "{error}");
    }
    let twice = with(&[("k", 1.into()), ("k", 2.into())], &tensors);
    assert!(twice.contains("has `k` twice"), "{twice}");
    for (at, part) in [
        (8, "the number of tensors"),
        (16, "the number of metadata values"),
    ] {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&huge);
        let error = said(&bytes);
        assert!(
            error.contains(&format!("claims that {part} is 1152921504606846976")),
            "{error}"
        );
    }

    let one = |shape: &[usize], kind| {
        let name = "t".into();
        let (shape, bytes) = (shape.to_vec(), vec![0; 64]);
        with(
            &metadata,
            &[files::Tensor {
                name,
                shape,
                kind,
                bytes,
            }],
        )
    };
    for (error, part) in [
        (
            one(&[1 << 40, 1 << 40], 0),
            "tensor `t` has more elements than can be counted",
        ),
        (
            one(&[usize::MAX], 0),
            "tensor `t` has more elements than can be counted",
        ),
        (
            one(&[1 << 62], 0),
            "tensor `t` has more elements than can be counted",
        ),
        (
            one(&[1 << 60], 0),
            "tensor `t` has 4611686018427387904 bytes",
        ),
        (one(&[2, 0], 0), "tensor `t` has no elements"),
        (one(&[1; 5], 0), "tensor `t` has 5 dimensions"),
        (
            one(&[2, 33], 8),
            "tensor `t` has rows of 33 elements, which are no whole blocks of Q8_0: 32",
        ),
        (one(&[], 8), "tensor `t` has rows of 1 elements"),
        (
            one(&[2, 256], 18),
            "tensor `t` is of type 18 (IQ3_XXS), which cannot be read",
        ),
        (one(&[2], 4242), "tensor `t` is of type 4242 (unknown)"),
    ] {
        assert!(error.contains(part), "{error}");
    }
    let error = with(&metadata, &[tensors[0].clone(), tensors[0].clone()]);
    assert!(error.contains("has a second tensor `a`"), "{error}");
}

#[test]
fn a_path_that_is_no_file_is_named() {
    let error = Gguf::open(Path::new("/nowhere/model.gguf")).expect_err("refused");
    assert!(
        error
            .to_string()
            .contains("/nowhere/model.gguf: cannot read")
    );
    assert!(Gguf::open(&std::env::temp_dir()).is_err());
}

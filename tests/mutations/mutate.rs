//! Valid files → slightly broken files.
//!
//! In:  the bytes of a file, and a random number generator. Out: mutated bytes. There is a function
//! for each kind of file: any bytes, JSON, safetensors (a JSON header, and data), and pattern text.

use fastrand::Rng;
use serde_json::{Map, Number, Value};

/// Numbers at which programs tend to break.
const NUMBERS: [&str; 24] = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "127",
    "128",
    "129",
    "255",
    "65536",
    "268435456",
    "1073741823",
    "1073741824",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "1000000000000",
    "9007199254740993",
    "18446744073709551615",
    "1e-320",
    "1e308",
    "0.5",
];

const WORDS: [&str; 22] = [
    "",
    " ",
    "\0",
    "é",
    "\u{feff}",
    "../../etc",
    "%999999999d",
    "{{",
    "{% for i in range(99999999) %}{% endfor %}",
    "{{ 'x' * 999999999 }}",
    "{{ messages[99].x.y }}",
    "F32",
    "BF16",
    "I64",
    "causal",
    "llama",
    "gpt2",
    "qwen3_5_text",
    "(?:a{999}){999}",
    "<|never|>",
    "full_attention",
    "linear_attention",
];

/// Flips a bit, or cuts, repeats or inserts bytes, at a random place.
pub(crate) fn bytes(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let at = rng.usize(0..=bytes.len());
    let end = (at + rng.usize(0..64)).min(bytes.len());
    match rng.u8(0..6) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(0..8),
        1 => bytes.truncate(at),
        2 => drop(bytes.drain(at..end)),
        3 => {
            let part = bytes[at..end].to_vec();
            bytes.splice(at..at, part);
        }
        4 => {
            let word = rng.choice(WORDS).unwrap_or_default();
            bytes.splice(at..at, word.bytes());
        }
        _ => bytes.extend((0..rng.usize(1..100)).map(|_| rng.u8(..))),
    }
}

/// Changes, adds, removes or renames one value of a JSON document. Bytes that are not JSON are left
/// unchanged.
pub(crate) fn json(rng: &mut Rng, bytes: &mut Vec<u8>) {
    if let Ok(mut root) = serde_json::from_slice(bytes) {
        change(rng, &mut root);
        *bytes = root.to_string().into_bytes();
    }
}

/// Changes a value found by a random walk from the root. This way a value near the root is as
/// likely to change as a vocabulary of a thousand entries.
fn change(rng: &mut Rng, value: &mut Value) {
    let deeper = rng.u8(0..8) > 0;
    match value {
        Value::Object(entries) if deeper && !entries.is_empty() => {
            let at = rng.usize(0..entries.len());
            if rng.u8(0..5) == 0 {
                entry(rng, entries, at);
            } else if let Some(value) = entries.values_mut().nth(at) {
                change(rng, value);
            }
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let at = rng.usize(0..items.len());
            match rng.u8(0..8) {
                0 => drop(items.remove(at)),
                1 => items.insert(at, items[at].clone()),
                2 => items.truncate(at),
                _ => change(rng, &mut items[at]),
            }
        }
        Value::Number(number) if rng.u8(0..3) > 0 => *value = near(rng, number),
        Value::String(text) if rng.u8(0..3) > 0 => {
            let mut changed = std::mem::take(text).into_bytes();
            self::bytes(rng, &mut changed);
            *text = String::from_utf8_lossy(&changed).into_owned();
        }
        _ => *value = any(rng),
    }
}

/// Removes, renames or adds an entry.
fn entry(rng: &mut Rng, entries: &mut Map<String, Value>, at: usize) {
    let Some(key) = entries.keys().nth(at).cloned() else {
        return;
    };
    match rng.u8(0..3) {
        0 => drop(entries.remove(&key)),
        1 => {
            let value = entries.remove(&key).unwrap_or_default();
            entries.insert(format!("{key}_"), value);
        }
        _ => drop(entries.insert("added".into(), any(rng))),
    }
}

fn near(rng: &mut Rng, number: &Number) -> Value {
    let Some(number) = number.as_i64() else {
        return any(rng);
    };
    let by = [-1, 1, number, -number, number.saturating_mul(1 << 20)];
    number.saturating_add(*rng.choice(&by).unwrap_or(&0)).into()
}

fn any(rng: &mut Rng) -> Value {
    match rng.u8(0..9) {
        0 => Value::Null,
        1 => rng.bool().into(),
        2 => Value::Array(Vec::new()),
        3 => Value::Object(Map::new()),
        4 => {
            // Deeper than recursive parsers and printers permit.
            let depth = rng.usize(1..200);
            (0..depth).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
        }
        5 => rng.choice(WORDS).unwrap_or_default().into(),
        6 => "x".repeat(rng.usize(1..1000)).into(),
        _ => {
            let number = rng.choice(NUMBERS).unwrap_or("0");
            serde_json::from_str(number).unwrap_or_default()
        }
    }
}

/// Changes a binary file where it begins, since there its structure is: a number, or bytes.
pub(crate) fn front(rng: &mut Rng, bytes: &mut Vec<u8>) {
    const FRONT: usize = 4096;
    let mut rest = bytes.split_off(bytes.len().min(FRONT));
    let at = rng.usize(0..=bytes.len().saturating_sub(8));
    match rng.u8(0..8) {
        0..=2 if bytes.len() >= 8 => {
            let numbers = [0, 1, 7, 1 << 16, 1 << 31, 1 << 32, 1 << 60, u64::MAX];
            let number: u64 = rng.choice(numbers).unwrap_or(0);
            let width = rng.choice([1, 4, 8]).unwrap_or(1);
            bytes[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
        }
        3 => self::bytes(rng, &mut rest),
        4 => not_finite(rng, &mut rest),
        _ => self::bytes(rng, bytes),
    }
    bytes.append(&mut rest);
}

/// Changes the header, its length, or the data. A file that is not safetensors is mutated as bytes.
pub(crate) fn safetensors(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let length = bytes.first_chunk::<8>().map(|x| u64::from_le_bytes(*x));
    let length = length.and_then(|x| usize::try_from(x).ok());
    let header = length.and_then(|length| Some((length, bytes.get(8..length.checked_add(8)?)?)));
    let Some((length, header)) = header else {
        return self::bytes(rng, bytes);
    };
    let mut header = header.to_vec();
    match rng.u8(0..10) {
        0..=3 => {
            json(rng, &mut header);
            let data = bytes.split_off(8 + length);
            *bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
        }
        4 => {
            let wrong: u64 = rng
                .choice([0, 1, 7, u64::MAX, 1 << 40, length as u64 + 1])
                .unwrap_or(0);
            bytes[..8].copy_from_slice(&wrong.to_le_bytes());
        }
        5 => not_finite(rng, &mut bytes[8 + length..]),
        6 => bytes.extend([0; 16]),
        7 | 8 => small(rng, &mut bytes[8 + length..]),
        _ => self::bytes(rng, bytes),
    }
}

/// Writes NaN or infinity to a few places; each pattern of 4 bytes is one as an f32, and two as
/// bf16.
fn not_finite(rng: &mut Rng, data: &mut [u8]) {
    let words = data.len() / 4;
    for _ in 0..rng.usize(1..4) {
        if words > 0 {
            let at = 4 * rng.usize(0..words);
            let word = rng
                .choice([0x7fc0_7fc0_u32, 0x7f80_7f80, 0xff80_ff80])
                .unwrap_or(0);
            data[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// Flips bits other than the two highest of a byte, which keeps most integers and floats in range.
fn small(rng: &mut Rng, data: &mut [u8]) {
    for _ in 0..rng.usize(1..9).min(data.len()) {
        let at = rng.usize(0..data.len());
        data[at] ^= 1 << rng.u8(0..6);
    }
}

/// Changes a word, a number or a bracket of a pattern's text.
pub(crate) fn pattern(rng: &mut Rng, bytes: &mut Vec<u8>) {
    const PARTS: [&str; 26] = [
        "causal",
        "local(1)",
        "local(0, 3)",
        "window(0)",
        "partner(xor)",
        "partner(causal_shift, radix=3)",
        "sink(0)",
        "sink_tokens(5)",
        "global(1)",
        "table([[0], [0, 1]])",
        "table([])",
        "all",
        "none",
        "|",
        "&",
        "-",
        "(",
        ")",
        ",",
        "=",
        "#",
        "\n",
        "block 64\n",
        "stage 3\n",
        "layers 1,2\n",
        "\"",
    ];
    let text = String::from_utf8_lossy(bytes).into_owned();
    let mut parts = split(&text);
    let at = rng.usize(0..=parts.len());
    match rng.u8(0..8) {
        0 if at < parts.len() => drop(parts.remove(at)),
        1 if at < parts.len() => parts.insert(at, parts[at].clone()),
        2 => parts.insert(at, rng.choice(PARTS).unwrap_or_default().into()),
        3 if at < parts.len() => parts[at] = rng.choice(PARTS).unwrap_or_default().into(),
        4 => {
            let depth = rng.usize(1..400);
            parts.insert(0, "(".repeat(depth));
            parts.push(")".repeat(depth));
        }
        5 => parts.extend((0..rng.usize(1..250)).map(|i| format!(" | window({i})"))),
        _ => {
            let numbers = parts
                .iter_mut()
                .filter(|part| part.starts_with(|c: char| c.is_ascii_digit()));
            let mut numbers: Vec<_> = numbers.collect();
            if !numbers.is_empty() {
                let at = rng.usize(0..numbers.len());
                *numbers[at] = rng.choice(NUMBERS).unwrap_or("0").into();
            }
        }
    }
    *bytes = parts.concat().into_bytes();
}

/// Splits a text into words, numbers, and single other characters.
fn split(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut last = None;
    for c in text.chars() {
        let class = (c.is_ascii_digit(), c.is_alphabetic() || c == '_');
        match parts.last_mut() {
            Some(part) if last == Some(class) && class != (false, false) => part.push(c),
            _ => parts.push(c.into()),
        }
        last = Some(class);
    }
    parts
}

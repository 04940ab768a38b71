//! The `tojson` filter of chat templates: JSON as Python's `json.dumps` writes it.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Deepest nesting that is written, like Python's recursion limit.
const DEEPEST: usize = 1000;

/// `value | tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn filter(
    state: &State,
    value: &Value,
    flags: Rest<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let flag = |at: usize, name| {
        let named = named.get::<Option<Value>>(name)?;
        Ok::<_, Error>(named.or_else(|| flags.get(at).cloned()).unwrap_or_default())
    };
    let indent = flag(1, "indent")?;
    let indent = match indent.as_str() {
        Some(text) => Some(text.to_string()),
        None if indent.is_none() || indent.is_undefined() => None,
        None => {
            let spaces = i64::try_from(indent)?.clamp(0, 64);
            Some(" ".repeat(spaces as usize))
        }
    };
    let separators = flag(2, "separators")?;
    let (item, key) = match separators.is_none() || separators.is_undefined() {
        true if indent.is_some() => (",".to_string(), ": ".to_string()),
        true => (", ".to_string(), ": ".to_string()),
        false => {
            let part = |at: usize| Ok::<_, Error>(separators.get_item_by_index(at)?.to_string());
            (part(0)?, part(1)?)
        }
    };
    let mut writer = Writer {
        state,
        out: String::new(),
        paid: 0,
        ascii: flag(0, "ensure_ascii")?.is_true(),
        sorted: flag(3, "sort_keys")?.is_true(),
        indent,
        item,
        key,
    };
    named.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(Value::from(writer.out))
}

struct Writer<'a> {
    state: &'a State<'a, 'a>,
    out: String,
    /// Bytes of `out` that fuel was taken for.
    paid: usize,
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let wrong = |what: String| Error::new(ErrorKind::BadSerialization, what);
        if depth > DEEPEST {
            return Err(wrong(format!("a value nests deeper than {DEEPEST}")));
        }
        // A list that holds another list twice, which holds a third one twice, and so on, is cheap
        // to build, but its text doubles with each level: so writing takes fuel too.
        if self.out.len() >= self.paid + 64 {
            let fuel = (self.out.len() - self.paid) as u64 / 64;
            self.state.consume_fuel(fuel)?;
            self.paid = self.out.len();
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.checked();
                self.list(['[', ']'], depth, items, |writer, item| {
                    writer.value(&item?, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let keys = value.try_iter()?.checked();
                let mut keys = keys.collect::<Result<Vec<_>, _>>()?;
                if self.sorted {
                    keys.sort();
                }
                self.list(['{', '}'], depth, keys, |writer, key| {
                    match key.kind() {
                        ValueKind::String => writer.text(key.as_str().unwrap_or_default()),
                        ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                            writer.out.push('"');
                            writer.value(&key, depth + 1)?;
                            writer.out.push('"');
                        }
                        other => return Err(wrong(format!("a key cannot be a {other}"))),
                    }
                    writer.out.push_str(&writer.key);
                    writer.value(&value.get_item(&key)?, depth + 1)
                })?;
            }
            other => {
                return Err(wrong(format!("a value that is {other} has no JSON")));
            }
        }
        Ok(())
    }

    fn list<T>(
        &mut self,
        [open, close]: [char; 2],
        depth: usize,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        let mut any = false;
        for item in items {
            if any {
                self.out.push_str(&self.item);
            }
            any = true;
            self.line(depth + 1);
            write(self, item)?;
        }
        if any {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A number as Python prints it: the shortest text that reads back the same.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Err(_) => value.to_string(),
        Ok(x) if x.is_nan() => "NaN".into(),
        Ok(x) if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        // Rust and Python switch to exponents at the same numbers, but Python writes a sign and at
        // least two digits.
        Ok(x) => match format!("{x:?}").split_once('e') {
            None => format!("{x:?}"),
            Some((digits, exponent)) => {
                let (sign, exponent) = match exponent.strip_prefix('-') {
                    Some(exponent) => ('-', exponent),
                    None => ('+', exponent),
                };
                format!("{digits}e{sign}{exponent:0>2}")
            }
        },
    }
}

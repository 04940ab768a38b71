//! Python's methods of strings, lists and dicts that `minijinja_contrib::pycompat` lacks, or where
//! it differs from Python.

use minijinja::value::{Kwargs, Rest, Tuple, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Calls a method of a value: one of this file, or else of `pycompat`.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let own = match value.as_str() {
        Some(text) => of_text(state, text, name, arguments)?,
        None => of_others(value, name, arguments)?,
    };
    match own {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

fn of_others(value: &Value, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    use minijinja::value::ValueKind::{Map, Seq};
    Ok(Some(match (value.kind(), name) {
        (Map, "copy") | (Seq, "copy") => {
            let () = from_args(arguments)?;
            value.clone()
        }
        (Seq, "index") => {
            let (what,): (&Value,) = from_args(arguments)?;
            let mut items = value.try_iter()?;
            let place = items.position(|item| item == *what);
            Value::from(place.ok_or_else(|| wrong(format!("{what} is not in the list")))?)
        }
        _ => return Ok(None),
    }))
}

fn of_text(
    state: &mut State,
    text: &str,
    name: &str,
    arguments: &[Value],
) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "strip" => trimmed(text, arguments, true, true)?,
        "lstrip" => trimmed(text, arguments, true, false)?,
        "rstrip" => trimmed(text, arguments, false, true)?,
        "split" => split(text, arguments, false)?,
        "rsplit" => split(text, arguments, true)?,
        "splitlines" => lines(text, arguments)?,
        "partition" => {
            let (by,): (&str,) = from_args(arguments)?;
            let (before, found, after) = match text.split_once(by) {
                Some((before, after)) => (before, by, after),
                None => (text, "", ""),
            };
            Value::from(Tuple::from([before, found, after].map(Value::from)))
        }
        "rpartition" => {
            let (by,): (&str,) = from_args(arguments)?;
            let (before, found, after) = match text.rsplit_once(by) {
                Some((before, after)) => (before, by, after),
                None => ("", "", text),
            };
            Value::from(Tuple::from([before, found, after].map(Value::from)))
        }
        "removeprefix" => {
            let (start,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_prefix(start).unwrap_or(text))
        }
        "removesuffix" => {
            let (end,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_suffix(end).unwrap_or(text))
        }
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(arguments)?;
            let place = match name {
                "index" => text.find(what),
                _ => text.rfind(what),
            };
            let place = place.ok_or_else(|| wrong("substring not found".into()))?;
            Value::from(text[..place].chars().count())
        }
        "title" => {
            let () = from_args(arguments)?;
            Value::from(title(text))
        }
        "swapcase" => {
            let () = from_args(arguments)?;
            let swap = |c: char| match c.is_uppercase() {
                true => c.to_lowercase().collect::<String>(),
                false => c.to_uppercase().collect(),
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        "casefold" => {
            let () = from_args(arguments)?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        "isdecimal" => {
            let () = from_args(arguments)?;
            Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit()))
        }
        "ljust" | "rjust" | "center" | "zfill" => padded(state, text, name, arguments)?,
        "join" => {
            let (values,): (&Value,) = from_args(arguments)?;
            let mut joined = String::new();
            for (i, value) in values.try_iter()?.checked().enumerate() {
                let value = value?;
                let part = value.as_str();
                let part = part.ok_or_else(|| wrong(format!("join of a {}", value.kind())))?;
                state.consume_fuel((text.len() + part.len()) as u64 / 64)?;
                joined.push_str(if i > 0 { text } else { "" });
                joined.push_str(part);
            }
            Value::from(joined)
        }
        "format" => {
            afford(state, text, arguments)?;
            return Ok(None);
        }
        _ => return Ok(None),
    }))
}

fn wrong(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Whether Python counts a character as white space: Unicode's white space, and the four ASCII
/// separators.
fn blank(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn trimmed(text: &str, arguments: &[Value], start: bool, end: bool) -> Result<Value, Error> {
    let (set,): (Option<&str>,) = from_args(arguments)?;
    let goes = |c: char| set.map_or_else(|| blank(c), |set| set.contains(c));
    let text = if start {
        text.trim_start_matches(goes)
    } else {
        text
    };
    let text = if end {
        text.trim_end_matches(goes)
    } else {
        text
    };
    Ok(Value::from(text))
}

/// `split(sep=None, maxsplit=-1)`, from the left or from the right.
fn split(text: &str, arguments: &[Value], right: bool) -> Result<Value, Error> {
    let (given, named): (Rest<Value>, Kwargs) = from_args(arguments)?;
    let argument = |at: usize, name| {
        let named = named.get::<Option<Value>>(name)?;
        Ok::<_, Error>(named.or_else(|| given.get(at).cloned()).unwrap_or_default())
    };
    let (by, most) = (argument(0, "sep")?, argument(1, "maxsplit")?);
    named.assert_all_used()?;
    let most = match most.is_undefined() {
        true => -1,
        false => i64::try_from(most)?,
    };
    // `maxsplit` counts splits; there is one part more.
    let most = usize::try_from(most).map_or(usize::MAX, |most| most.saturating_add(1));
    let parts: Vec<&str> = match (by.as_str(), right) {
        (Some(""), _) => return Err(wrong("empty separator".into())),
        (Some(by), false) => text.splitn(most, by).collect(),
        (Some(by), true) => {
            let mut parts: Vec<&str> = text.rsplitn(most, by).collect();
            parts.reverse();
            parts
        }
        (None, _) if !(by.is_undefined() || by.is_none()) => {
            return Err(wrong(format!("split by a {}", by.kind())));
        }
        (None, false) => {
            let mut parts = Vec::new();
            let mut rest = text.trim_start_matches(blank);
            while !rest.is_empty() {
                let end = rest.find(blank).filter(|_| parts.len() + 1 < most);
                let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
                // With `maxsplit` reached, `end` is `None`: the last part is the whole rest, with
                // its white space.
                parts.push(part);
                rest = after.trim_start_matches(blank);
            }
            parts
        }
        (None, true) => {
            let mut parts = Vec::new();
            let mut rest = text.trim_end_matches(blank);
            while !rest.is_empty() {
                let last = rest.char_indices().rev().find(|(_, c)| blank(*c));
                let last = last.filter(|_| parts.len() + 1 < most);
                let start = last.map_or(0, |(at, c)| at + c.len_utf8());
                parts.push(&rest[start..]);
                rest = rest[..start].trim_end_matches(blank);
            }
            parts.reverse();
            parts
        }
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// `splitlines(keepends=False)`, at all line ends that Python knows.
fn lines(text: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (keep,): (Option<bool>,) = from_args(arguments)?;
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ends) {
        let mut end = rest[at..].chars().next().map_or(at, |c| at + c.len_utf8());
        if rest[at..].starts_with("\r\n") {
            end = at + 2;
        }
        let kept = if keep == Some(true) { end } else { at };
        lines.push(Value::from(&rest[..kept]));
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(Value::from(rest));
    }
    Ok(Value::from(lines))
}

/// The first letter of each run of letters is upper case, the others are lower case.
fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::new();
    for c in text.chars() {
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        inside = c.is_alphabetic();
    }
    out
}

/// `ljust`, `rjust`, `center` and `zfill`: pads a text to `width` characters.
fn padded(state: &State, text: &str, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<char>) = from_args(arguments)?;
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    state.consume_fuel(missing as u64 / 16)?;
    let of = |count| fill.unwrap_or(' ').to_string().repeat(count);
    Ok(Value::from(match name {
        "ljust" => format!("{text}{}", of(missing)),
        "rjust" => format!("{}{text}", of(missing)),
        "zfill" => {
            let sign = text.len() - text.trim_start_matches(['+', '-']).len();
            let (sign, digits) = text.split_at(sign.min(1));
            format!("{sign}{}{digits}", "0".repeat(missing))
        }
        _ => {
            // Of an odd number of fill characters Python puts the extra one on the left if the
            // width is odd, else on the right.
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", of(left), of(missing - left))
        }
    }))
}

/// Takes the fuel for the longest result that `str.format` could have: every field as long as the
/// longest value or the largest number in the format.
fn afford(state: &mut State, text: &str, arguments: &[Value]) -> Result<(), Error> {
    let fields = text.matches('{').count();
    let digits = text.split(|c: char| !c.is_ascii_digit());
    let widest = digits.filter(|digits| !digits.is_empty());
    let widest = widest.map(|digits| digits.parse().unwrap_or(usize::MAX));
    let mut longest = widest.max().unwrap_or(0);
    for value in arguments {
        let text = state.apply_filter("string", std::slice::from_ref(value))?;
        longest = longest.max(text.as_str().map_or(0, str::len));
    }
    state.consume_fuel((fields.saturating_mul(longest) / 64) as u64)
}

//! JSON ⇄ [`Sparsity`].
//!
//! There are two forms. The *flat* form of older configurations is an object with a `rule`, and
//! means `causal & (local(L) | partner(rule, radix, count) | sink(S))`. The *structured* form is
//! an object with a `pattern`; serde writes it.
//!
//! In:  text, and its name for error messages.
//! Out: a value that passes [`Sparsity::check`], or a diagnostic for the field that is wrong.
//!
//! Invariants: unknown fields are ignored in the flat form, and are errors in the structured
//! one; [`parse`] reads text that [`to_flat`] wrote back to an equal value.

use super::diagnostic::{Diagnostic, Source, did_you_mean, list, quote, shorten};
use super::limits::{self, MAX_BLOCK, MAX_COUNT, MAX_RADIX};
use super::{DEFAULT_BLOCK, Leaf, Parsed, PartnerRule, Pattern, Sparsity, StageBy, arguments};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::{RawValue, Value};
use std::{collections::HashSet, fmt, ops::Range};

/// Reads either JSON form, and records the place of each leaf: in the flat form the value of
/// its field, in the structured one the whole pattern.
///
/// # Errors
/// [`Diagnostic`] with the first wrong field, its value and the allowed values.
pub fn parse(name: &str, text: &str) -> Result<Parsed, Diagnostic> {
    let source = Source::new(name, text);
    limits::check_length(&source)?;
    // A byte order mark counts as blank, as in pattern text.
    let blanked = text
        .strip_prefix('\u{feff}')
        .map(|rest| format!("   {rest}"));
    let text = blanked.as_deref().unwrap_or(text);
    let Fields(fields) =
        serde_json::from_str(text).map_err(|error| syntax(&source, 0, text, &error))?;
    let object = Object {
        source: &source,
        text,
        fields,
    };
    if let Some(pattern) = object.span("pattern") {
        return object.structured(pattern);
    }
    object.flat()
}

/// The flat JSON form of `sparsity`; `None` if it has none.
pub fn to_flat(sparsity: &Sparsity) -> Option<String> {
    let Pattern::And(causal, body) = &sparsity.pattern else {
        return None;
    };
    let (body, sink) = match &**body {
        Pattern::Or(body, last) if matches!(**body, Pattern::Or(..)) => match &**last {
            Pattern::Leaf(Leaf::Sink { blocks }) if *blocks > 0 => (body, *blocks),
            _ => return None,
        },
        _ => (body, 0),
    };
    let Pattern::Or(local, partner) = &**body else {
        return None;
    };
    let (
        Pattern::Leaf(Leaf::Causal),
        Pattern::Leaf(Leaf::Local { before, after: 0 }),
        Pattern::Leaf(Leaf::Partner { rule, radix, count }),
    ) = (&**causal, &**local, &**partner)
    else {
        return None;
    };
    let mut json = format!(
        "{{\"rule\":\"{}\",\"block_size\":{},\"local_window\":{before},\"sink\":{sink},\
         \"partner_count\":{count},\"radix\":{radix},\"stage_by\":\"{}\"",
        rule.name(),
        sparsity.block,
        sparsity.stage_by,
    );
    if let Some(layers) = &sparsity.swapped_layers {
        let layers: Vec<_> = layers.iter().map(u32::to_string).collect();
        json += &format!(",\"swapped_layers\":[{}]", layers.join(","));
    }
    if let Some(stage) = sparsity.stage {
        json += &format!(",\"stage\":{stage}");
    }
    Some(json + "}")
}

/// A JSON object whose values are not parsed yet.
struct Object<'a> {
    source: &'a Source,
    text: &'a str,
    fields: Vec<(String, &'a RawValue)>,
}

impl<'a> Object<'a> {
    fn raw(&self, name: &str) -> Option<&'a str> {
        let field = self.fields.iter().find(|(field, _)| field == name);
        field.map(|(_, value)| value.get())
    }

    /// The byte range of a field's value.
    fn span(&self, name: &str) -> Option<Range<usize>> {
        let value = self.raw(name)?;
        let start = value.as_ptr() as usize - self.text.as_ptr() as usize;
        Some(start..start + value.len())
    }

    /// The byte range of the object's first character.
    fn start(&self) -> Range<usize> {
        let start = self.text.find('{').unwrap_or(0);
        start..start + 1
    }

    fn flat(&self) -> Result<Parsed, Diagnostic> {
        for field in ["window_tokens", "summary_weight", "coverage"] {
            if self.raw(field).is_some_and(|value| value != "null") {
                let message = format!("compressed mode is not supported yet (`{field}`)");
                return Err(self.error(field, message, "asks for compressed mode"));
            }
        }
        let Some(rule_span) = self.span("rule") else {
            let message = "the object has neither a `rule` nor a `pattern`";
            let rules = list(PartnerRule::ALL.map(PartnerRule::name));
            let error = Diagnostic::new(self.source, self.start(), message, "");
            return Err(error.with_help(format!("`rule` is one of {rules}")));
        };
        let rule = self.rule()?;
        let block = self
            .number("block_size", 1, MAX_BLOCK)?
            .unwrap_or(DEFAULT_BLOCK);
        let before = self.number("local_window", 0, u32::MAX)?.unwrap_or(1);
        let blocks = self.number("sink", 0, u32::MAX)?.unwrap_or(1);
        let count = self.number("partner_count", 1, MAX_COUNT)?.unwrap_or(1);
        let radix = self.number("radix", 2, MAX_RADIX)?.unwrap_or(2);
        let stage_by = self.stage_by()?;
        let swapped_layers = self.layers()?;
        let stage = match self.raw("stage") {
            Some("null") => None,
            _ => self.number("stage", 0, u32::MAX)?,
        };
        let partner = Leaf::Partner { rule, radix, count };
        limits::check_leaf(&partner)
            .map_err(|error| self.error("radix", error.message, error.given))?;

        let place = |field| self.span(field).unwrap_or_else(|| rule_span.clone());
        let mut leaves = vec![self.start(), place("local_window"), rule_span.clone()];
        let mut body = Pattern::from(Leaf::Local { before, after: 0 }) | partner.into();
        if blocks > 0 {
            leaves.push(place("sink"));
            body = body | Leaf::Sink { blocks }.into();
        }
        Ok(Parsed {
            sparsity: Sparsity {
                block,
                stage_by,
                swapped_layers,
                stage,
                pattern: Pattern::from(Leaf::Causal) & body,
            },
            source: self.source.clone(),
            leaves,
            has_header: true,
        })
    }

    fn structured(&self, pattern: Range<usize>) -> Result<Parsed, Diagnostic> {
        let start = self.start().start;
        let sparsity: Sparsity = serde_json::from_str(&self.text[start..])
            .map_err(|error| syntax(self.source, start, self.text, &error))?;
        sparsity.check().map_err(|error| {
            let field = match error.argument {
                "layers" => "swapped_layers",
                "block" => "block",
                _ => "pattern",
            };
            self.error(field, error.message, error.given)
        })?;
        let leaves = vec![pattern; sparsity.pattern.leaves().len()];
        Ok(Parsed {
            sparsity,
            source: self.source.clone(),
            leaves,
            has_header: true,
        })
    }

    fn error(
        &self,
        field: &str,
        message: impl Into<String>,
        label: impl Into<String>,
    ) -> Diagnostic {
        let span = self.span(field).unwrap_or_else(|| self.start());
        Diagnostic::new(self.source, span, message, label)
    }

    /// The error for a field whose value is not what it `must` be.
    fn wrong(&self, field: &str, must: &str) -> Diagnostic {
        let given = self.raw(field).unwrap_or("nothing");
        let given = shorten(given);
        let given = given.split_whitespace().collect::<Vec<_>>().join(" ");
        self.error(
            field,
            format!("`{field}` must be {must}"),
            format!("given {given}"),
        )
    }

    fn value(&self, field: &str) -> Option<Value> {
        // A value that serde_json rejects, as too deep or too large, is none that we accept: a
        // stand-in of the wrong type gives the usual error.
        let value = serde_json::from_str(self.raw(field)?);
        Some(value.unwrap_or(Value::Bool(false)))
    }

    fn number(&self, field: &str, least: u32, most: u32) -> Result<Option<u32>, Diagnostic> {
        let Some(value) = self.value(field) else {
            return Ok(None);
        };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        match number.filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(field, &format!("a whole number from {least} to {most}"))),
        }
    }

    fn rule(&self) -> Result<PartnerRule, Diagnostic> {
        let names = PartnerRule::ALL.map(PartnerRule::name);
        let value = self.value("rule");
        let given = value.as_ref().and_then(Value::as_str).unwrap_or_default();
        arguments::rule(given).ok_or_else(|| {
            let error = self.wrong("rule", &format!("one of {}", list(names)));
            error.or_help(did_you_mean(given, names))
        })
    }

    fn stage_by(&self) -> Result<StageBy, Diagnostic> {
        let Some(value) = self.value("stage_by") else {
            return Ok(StageBy::default());
        };
        let names = StageBy::ALL.map(StageBy::name);
        let mut all = StageBy::ALL.into_iter();
        all.find(|by| Some(by.name()) == value.as_str())
            .ok_or_else(|| self.wrong("stage_by", &format!("one of {}", list(names))))
    }

    fn layers(&self) -> Result<Option<Vec<u32>>, Diagnostic> {
        let layers = match self.value("swapped_layers") {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let must = format!(
            "a list of whole numbers from 0 to {}, which increase",
            u32::MAX
        );
        let wrong = || self.wrong("swapped_layers", &must);
        let layers: Vec<u32> = serde_json::from_value(layers).map_err(|_| wrong())?;
        limits::check_layers(&layers).map_err(|_| wrong())?;
        Ok(Some(layers))
    }
}

/// The fields of an object in order; a repeated field is an error.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a `rule` or a `pattern`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Self::Value::new();
                let mut names = HashSet::new();
                while let Some((name, value)) = map.next_entry::<String, _>()? {
                    if !names.insert(name.clone()) {
                        return Err(de::Error::custom(format!(
                            "{} is given twice",
                            quote(&name)
                        )));
                    }
                    fields.push((name, value));
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Collect).map(Fields)
    }
}

/// The error that serde_json found in `text[start..]`, as a diagnostic at the same place.
fn syntax(source: &Source, start: usize, text: &str, error: &serde_json::Error) -> Diagnostic {
    let message = error.to_string();
    let message = match message.rfind(" at line ") {
        Some(end) => &message[..end],
        None => &message,
    };
    // Lines and columns count from 1 and in bytes; column 0 is the end of the line before.
    let body = &text[start..];
    let mut ends = body.match_indices('\n').map(|(at, _)| at + 1);
    let line = match error.line() {
        0 | 1 => 0,
        line => ends.nth(line - 2).unwrap_or(body.len()),
    };
    let at = start + line + error.column().saturating_sub(1);
    let span = at..at + usize::from(at < text.len());
    Diagnostic::new(source, span, message, "")
}

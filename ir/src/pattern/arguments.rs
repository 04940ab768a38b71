//! The leaves of the text form: their names, arguments and defaults.
//!
//! In:  a parser that stands behind the name of a leaf.
//! Out: the leaf, its arguments within [`limits`]; the parser stands behind it.
//!
//! Invariant: every leaf takes its arguments by position, by name, or both in that
//! order; a leaf without arguments needs no parentheses.

use super::diagnostic::{Diagnostic, did_you_mean, list};
use super::lexer::Kind;
use super::limits;
use super::parser::Parser;
use super::{Leaf, PartnerRule};
use std::ops::Range;

/// A leaf as text knows it.
pub(super) struct Signature {
    name: &'static str,
    /// As shown in errors.
    usage: &'static str,
    parameters: &'static [Parameter],
}

struct Parameter {
    name: &'static str,
    kind: ParameterKind,
}

#[derive(Clone, Copy)]
enum ParameterKind {
    Number { default: Option<u32> },
    Rule,
    Rows,
}

enum Value {
    Number(u32),
    Rule(PartnerRule),
    Rows(Vec<Vec<u32>>),
}

const fn number(name: &'static str) -> Parameter {
    let kind = ParameterKind::Number { default: None };
    Parameter { name, kind }
}

const fn optional(name: &'static str, default: u32) -> Parameter {
    let kind = ParameterKind::Number {
        default: Some(default),
    };
    Parameter { name, kind }
}

const RULE: Parameter = Parameter {
    name: "rule",
    kind: ParameterKind::Rule,
};
const ROWS: Parameter = Parameter {
    name: "rows",
    kind: ParameterKind::Rows,
};

#[rustfmt::skip]
const SIGNATURES: [Signature; 10] = [
    Signature { name: "causal", usage: "causal", parameters: &[] },
    Signature { name: "local", usage: "local(before[, after])",
        parameters: &[number("before"), optional("after", 0)] },
    Signature { name: "window", usage: "window(tokens)", parameters: &[number("tokens")] },
    Signature { name: "partner", usage: "partner(rule[, radix=2][, count=1])",
        parameters: &[RULE, optional("radix", 2), optional("count", 1)] },
    Signature { name: "sink", usage: "sink(blocks)", parameters: &[number("blocks")] },
    Signature { name: "sink_tokens", usage: "sink_tokens(n)", parameters: &[number("n")] },
    Signature { name: "global", usage: "global(blocks)", parameters: &[number("blocks")] },
    Signature { name: "table", usage: "table([[0], [0, 1], …])", parameters: &[ROWS] },
    Signature { name: "all", usage: "all", parameters: &[] },
    Signature { name: "none", usage: "none", parameters: &[] },
];

/// Names of the design that this version does not read yet, and what to use meanwhile.
const PLANNED: [(&str, &str); 10] = [
    (
        "strided",
        "use `partner(…)`, or list the blocks in `table(…)`",
    ),
    (
        "dilated",
        "use `local(before)`, or list the blocks in `table(…)`",
    ),
    ("landmarks", "use `sink(blocks)` or `global(blocks)`"),
    ("random", "use `partner(random)`"),
    ("cycle", "use `window(tokens) | partner(xor)`"),
    (
        "document",
        "use one sequence in a batch row for each document",
    ),
    ("where", "use leaves joined with `|`, `&` and `-`"),
    ("per_head", "use one pattern for all heads"),
    (
        "per_layer",
        "use a `layers` header line to say which layers are swapped",
    ),
    (
        "by_stage",
        "use `partner(…)`, which changes from stage to stage",
    ),
];

/// The leaf called `name`.
pub(super) fn signature(name: &str) -> Option<&'static Signature> {
    SIGNATURES.iter().find(|signature| signature.name == name)
}

/// Message and help for a word that is no leaf.
pub(super) fn unknown(name: &str) -> (String, Option<String>) {
    if let Some((_, meanwhile)) = PLANNED.iter().find(|(planned, _)| *planned == name) {
        let message = format!("`{name}` is known but not supported yet");
        return (message, Some((*meanwhile).to_owned()));
    }
    let message = format!("`{name}` is not a pattern");
    if rule(name).is_some() {
        let help = format!("it is a rule: write `partner({name})`");
        return (message, Some(help));
    }
    let names = SIGNATURES.iter().map(|signature| signature.name);
    let all = format!("the patterns are {}", list(names.clone()));
    (message, Some(did_you_mean(name, names).unwrap_or(all)))
}

/// The rule called `name`.
pub(super) fn rule(name: &str) -> Option<PartnerRule> {
    PartnerRule::ALL
        .into_iter()
        .find(|rule| rule.name() == name)
}

/// Reads the arguments of the leaf whose name stands at `word`.
pub(super) fn parse(
    parser: &mut Parser,
    signature: &Signature,
    word: Range<usize>,
) -> Result<Leaf, Diagnostic> {
    let mut values: Vec<Option<(Value, Range<usize>)>> = Vec::new();
    values.resize_with(signature.parameters.len(), || None);
    let open = parser.peek().span.clone();
    if parser.eat('(') {
        let mut named = false;
        let mut position = 0;
        while !parser.eat(')') {
            let index = argument_index(parser, signature, &mut named, position)?;
            position += 1;
            let start = parser.peek().span.clone();
            let parameter = &signature.parameters[index];
            let value = value(parser, parameter)?;
            if values[index].is_some() {
                let message = format!("`{}` is given twice", parameter.name);
                return Err(parser.error(start, message, "a second time here"));
            }
            values[index] = Some((value, start));
            if !parser.eat(',') {
                parser.close(')', open, "`,`")?;
                break;
            }
        }
    }
    let missing = signature.parameters.iter().zip(&values);
    let missing = missing.filter(|(parameter, value)| value.is_none() && parameter.is_required());
    if let Some((parameter, _)) = missing.into_iter().next() {
        let message = format!("`{}` needs `{}`", signature.name, parameter.name);
        let help = format!("write `{}`", signature.usage);
        return Err(parser.error(word, message, "").with_help(help));
    }
    let leaf = leaf(signature, &values);
    limits::check_leaf(&leaf).map_err(|error| {
        let mut parameters = signature.parameters.iter();
        let index = parameters.position(|parameter| parameter.name == error.argument);
        let span = index.and_then(|index| values[index].as_ref());
        parser.limit(error, span.map_or(word, |(_, span)| span.clone()))
    })?;
    Ok(leaf)
}

impl Parameter {
    fn is_required(&self) -> bool {
        !matches!(self.kind, ParameterKind::Number { default: Some(_) })
    }
}

/// Which parameter the next argument is for; steps over `name =`.
fn argument_index(
    parser: &mut Parser,
    signature: &Signature,
    named: &mut bool,
    position: usize,
) -> Result<usize, Diagnostic> {
    let token = parser.peek().clone();
    let parameters = signature.parameters;
    if token.kind == Kind::Word && parser.peek_second().kind == Kind::Sign('=') {
        let name = parser.text(&token);
        let found = parameters
            .iter()
            .position(|parameter| parameter.name == name);
        let Some(index) = found else {
            let message = format!("`{}` has no argument `{name}`", signature.name);
            let names = parameters.iter().map(|parameter| parameter.name);
            let usage = format!("write `{}`", signature.usage);
            let help = did_you_mean(name, names).unwrap_or(usage);
            return Err(parser.error(token.span, message, "").with_help(help));
        };
        *named = true;
        parser.advance();
        parser.advance();
        return Ok(index);
    }
    if *named {
        let message = "an argument by position must stand before those by name";
        return Err(parser.error(token.span, message, ""));
    }
    if position >= parameters.len() {
        if token.kind == Kind::End {
            return Err(parser.expected("`)`"));
        }
        let message = match parameters.len() {
            0 => format!("`{}` takes no arguments", signature.name),
            1 => format!("`{}` takes one argument", signature.name),
            count => format!("`{}` takes at most {count} arguments", signature.name),
        };
        let help = format!("write `{}`", signature.usage);
        return Err(parser.error(token.span, message, "").with_help(help));
    }
    Ok(position)
}

fn value(parser: &mut Parser, parameter: &Parameter) -> Result<Value, Diagnostic> {
    match parameter.kind {
        ParameterKind::Number { .. } => {
            let token = parser.peek().clone();
            if parameter.name == "radix" && parser.text(&token) == "auto" {
                let message = "`radix=auto` is known but not supported yet";
                let help = "use a number, such as `radix=2`";
                return Err(parser.error(token.span, message, "").with_help(help));
            }
            let what = format!("a whole number for `{}`", parameter.name);
            Ok(Value::Number(parser.number(&what)?.0))
        }
        ParameterKind::Rule => {
            let token = parser.peek().clone();
            if token.kind != Kind::Word {
                return Err(parser.expected("a rule"));
            }
            let name = parser.text(&token);
            let Some(rule) = rule(name) else {
                let names = PartnerRule::ALL.map(PartnerRule::name);
                let message = format!("`{name}` is not a rule");
                let all = format!("the rules are {}", list(names));
                let help = did_you_mean(name, names).unwrap_or(all);
                return Err(parser.error(token.span, message, "").with_help(help));
            };
            parser.advance();
            Ok(Value::Rule(rule))
        }
        ParameterKind::Rows => {
            let what = "a list of rows, such as `[[0], [0, 1]]`";
            let rows = bracketed(parser, what, |parser| {
                let what = "a row, such as `[0, 1]`";
                bracketed(parser, what, |parser| Ok(parser.number("a block")?.0))
            })?;
            Ok(Value::Rows(rows))
        }
    }
}

/// `[ item , … ]`, a comma after the last one allowed.
fn bracketed<T>(
    parser: &mut Parser,
    what: &str,
    item: impl Fn(&mut Parser) -> Result<T, Diagnostic>,
) -> Result<Vec<T>, Diagnostic> {
    let open = parser.peek().span.clone();
    if !parser.eat('[') {
        return Err(parser.expected(what));
    }
    let mut items = Vec::new();
    while !parser.eat(']') {
        if parser.peek().kind == Kind::End {
            parser.close(']', open.clone(), "")?;
        }
        items.push(item(parser)?);
        if !parser.eat(',') {
            parser.close(']', open, "`,`")?;
            break;
        }
    }
    Ok(items)
}

/// The leaf itself; every required value is there.
fn leaf(signature: &Signature, values: &[Option<(Value, Range<usize>)>]) -> Leaf {
    let value = |index: usize| values.get(index)?.as_ref().map(|(value, _)| value);
    let number = |index: usize| match (value(index), &signature.parameters[index].kind) {
        (Some(Value::Number(number)), _) => *number,
        (_, ParameterKind::Number { default }) => default.unwrap_or_default(),
        _ => 0,
    };
    match signature.name {
        "causal" => Leaf::Causal,
        "local" => Leaf::Local {
            before: number(0),
            after: number(1),
        },
        "window" => Leaf::Window { tokens: number(0) },
        "partner" => Leaf::Partner {
            rule: match value(0) {
                Some(Value::Rule(rule)) => *rule,
                _ => PartnerRule::Xor,
            },
            radix: number(1),
            count: number(2),
        },
        "sink" => Leaf::Sink { blocks: number(0) },
        "sink_tokens" => Leaf::SinkTokens { tokens: number(0) },
        "global" => Leaf::Global { blocks: number(0) },
        "table" => Leaf::Table {
            rows: match value(0) {
                Some(Value::Rows(rows)) => rows.clone(),
                _ => Vec::new(),
            },
        },
        "all" => Leaf::All,
        _ => Leaf::None,
    }
}

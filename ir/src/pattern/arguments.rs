//! The arguments of a leaf in text.
//!
//! In:  a parser whose next token follows the name of a leaf.
//! Out: the leaf, with arguments that passed [`limits`]; the parser has read all of it.
//!
//! Invariant: every leaf takes its arguments by position, by name, or first by position
//! and then by name; a leaf without arguments needs no parentheses.

use super::diagnostic::{Diagnostic, did_you_mean, list, quote};
use super::leaves::{Arguments, LeafName, Missing, Parameter, ParameterKind, Signature};
use super::lexer::Kind;
use super::limits;
use super::parser::Parser;
use super::{Leaf, PartnerRule};
use std::ops::Range;

/// Planned leaves that this version does not read yet, and what to use instead.
pub(super) const PLANNED: [(&str, &str); 8] = [
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
    (
        "by_stage",
        "use `partner(…)`, which changes from stage to stage",
    ),
];

/// Message and help for a word that is not a leaf.
pub(super) fn unknown(name: &str) -> (String, Option<String>) {
    if let Some((_, meanwhile)) = PLANNED.iter().find(|(planned, _)| *planned == name) {
        let message = format!("`{name}` is known but not supported yet");
        return (message, Some((*meanwhile).to_owned()));
    }
    let message = format!("{} is not a pattern", quote(name));
    if rule(name).is_some() {
        let help = format!("it is a rule: write `partner({name})`");
        return (message, Some(help));
    }
    let names = LeafName::ALL.iter().map(|name| name.word());
    let all = format!("the patterns are {}", list(names.clone()));
    (message, Some(did_you_mean(name, names).unwrap_or(all)))
}

/// The rule called `name`.
pub(super) fn rule(name: &str) -> Option<PartnerRule> {
    PartnerRule::ALL
        .into_iter()
        .find(|rule| rule.name() == name)
}

/// Reads the arguments of the leaf called `name`; `word` is the place of the name.
pub(super) fn parse(
    parser: &mut Parser,
    name: LeafName,
    word: Range<usize>,
) -> Result<Leaf, Diagnostic> {
    let signature = name.signature();
    let mut arguments = Arguments::default();
    let mut given: Vec<Option<Range<usize>>> = vec![None; signature.parameters.len()];
    let open = parser.peek().span.clone();
    if parser.eat('(') {
        let mut named = false;
        let mut position = 0;
        while !parser.eat(')') {
            let index = argument_index(parser, name, &signature, &mut named, position)?;
            position += 1;
            let start = parser.peek().span.clone();
            let parameter = &signature.parameters[index];
            value(parser, parameter, &mut arguments)?;
            if given[index].is_some() {
                let message = format!("`{}` is given twice", parameter.name);
                return Err(parser.error(start, message, "a second time here"));
            }
            given[index] = Some(start);
            if !parser.eat(',') {
                parser.close(')', open, "`,`")?;
                break;
            }
        }
    }
    let leaf = name.build(arguments).map_err(|Missing(parameter)| {
        let message = format!("`{}` needs `{parameter}`", name.word());
        let help = format!("write `{}`", signature.usage);
        parser.error(word.clone(), message, "").with_help(help)
    })?;
    limits::check_leaf(&leaf).map_err(|error| {
        let mut parameters = signature.parameters.iter();
        let index = parameters.position(|parameter| parameter.name == error.argument);
        let span = index.and_then(|index| given[index].clone());
        parser.limit(error, span.unwrap_or(word))
    })?;
    Ok(leaf)
}

/// Index of the parameter to which the next argument belongs; steps over `name =`.
fn argument_index(
    parser: &mut Parser,
    leaf: LeafName,
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
            let message = format!("`{}` has no argument {}", leaf.word(), quote(name));
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
            0 => format!("`{}` takes no arguments", leaf.word()),
            1 => format!("`{}` takes one argument", leaf.word()),
            count => format!("`{}` takes at most {count} arguments", leaf.word()),
        };
        let help = format!("write `{}`", signature.usage);
        return Err(parser.error(token.span, message, "").with_help(help));
    }
    Ok(position)
}

/// Reads one value into `arguments`.
fn value(
    parser: &mut Parser,
    parameter: &Parameter,
    arguments: &mut Arguments,
) -> Result<(), Diagnostic> {
    match parameter.kind {
        ParameterKind::Number => {
            let token = parser.peek().clone();
            if parameter.name == "radix" && parser.text(&token) == "auto" {
                let message = "`radix=auto` is known but not supported yet";
                let help = "use a number, such as `radix=2`";
                return Err(parser.error(token.span, message, "").with_help(help));
            }
            let what = format!("a whole number for `{}`", parameter.name);
            let (number, _) = parser.number(&what)?;
            arguments.numbers.push((parameter.name, number));
        }
        ParameterKind::Rule => {
            let token = parser.peek().clone();
            if token.kind != Kind::Word {
                return Err(parser.expected("a rule"));
            }
            let name = parser.text(&token);
            let Some(rule) = rule(name) else {
                let names = PartnerRule::ALL.map(PartnerRule::name);
                let message = format!("{} is not a rule", quote(name));
                let all = format!("the rules are {}", list(names));
                let help = did_you_mean(name, names).unwrap_or(all);
                return Err(parser.error(token.span, message, "").with_help(help));
            };
            parser.advance();
            arguments.rule = Some(rule);
        }
        ParameterKind::Rows => {
            let what = "a list of rows, such as `[[0], [0, 1]]`";
            let rows = bracketed(parser, what, |parser| {
                let what = "a row, such as `[0, 1]`";
                bracketed(parser, what, |parser| Ok(parser.number("a block")?.0))
            })?;
            arguments.rows = Some(rows);
        }
    }
    Ok(())
}

/// Reads `[ item , … ]`; a comma after the last item is allowed.
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

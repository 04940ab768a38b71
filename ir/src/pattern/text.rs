//! Pattern text → [`Sparsity`].
//!
//! ```text
//! text   = header* expr
//! header = "block" NUMBER                          # once each, in any order
//!        | "stage_by" ("swapped_index" | "layer_index")
//!        | "layers" ("none" | NUMBER ("," NUMBER)*)
//!        | "stage" NUMBER
//! expr   = both ("|" both)*
//! both   = minus ("&" minus)*
//! minus  = leaf ("-" leaf)*
//! leaf   = "(" expr ")" | WORD [ "(" [argument ("," argument)* [","]] ")" ]
//!        | ("per_head" | "per_layer") "{" case (";" case)* [";"] "}"
//! case   = ("else" | range ("," range)*) "=>" expr
//! range  = NUMBER [".." NUMBER]                    # the end is not part of it
//! ```
//!
//! The operators bind as in Rust (`-` tightest, then `&`, then `|`, each from left to
//! right), so that text, `pattern!` and the operators on [`Pattern`] agree. Line ends
//! count as blanks, `#` begins a comment.
//!
//! In:  text, and its name for error messages.
//! Out: a value that passes [`Sparsity::check`], and the place of each leaf.
//!
//! Invariant: no text makes this panic or overflow the stack.

use super::diagnostic::{Diagnostic, Source, did_you_mean, list};
use super::leaves::LeafName;
use super::lexer::{Kind, Token};
use super::limits::{self, MAX_DEPTH, MAX_INDEX, MAX_LEAVES};
use super::parser::Parser;
use super::{Case, DEFAULT_BLOCK, Leaf, Parsed, Pattern, Sparsity, StageBy, arguments, routed};
use crate::Indices;
use std::ops::Range;

impl Sparsity {
    /// Reads pattern text; `name` is its name in error messages.
    ///
    /// # Errors
    /// [`Diagnostic`] at the first mistake.
    pub fn parse(name: &str, text: &str) -> Result<Self, Diagnostic> {
        Ok(Self::parse_with_spans(name, text)?.sparsity)
    }

    /// Reads pattern text, and records the place of each leaf.
    ///
    /// # Errors
    /// [`Diagnostic`] at the first mistake.
    pub fn parse_with_spans(name: &str, text: &str) -> Result<Parsed, Diagnostic> {
        parse(Source::new(name, text))
    }
}

pub(super) fn parse(source: Source) -> Result<Parsed, Diagnostic> {
    limits::check_length(&source)?;
    let mut parser = Parser::new(source);
    let header = parser.header()?;
    let (pattern, _) = parser.either()?;
    if parser.peek().kind != Kind::End {
        return Err(parser.after_expression());
    }
    let parsed = Parsed {
        sparsity: Sparsity {
            block: header.block.unwrap_or(DEFAULT_BLOCK),
            stage_by: header.stage_by.unwrap_or_default(),
            swapped_layers: header.layers,
            stage: header.stage,
            pattern,
        },
        source: parser.source,
        leaves: parser.leaves,
        has_header: header.lines > 0,
    };
    match routed::check(&parsed.sparsity) {
        Ok(()) => Ok(parsed),
        Err(error) => {
            Err(parsed.at_leaf(error.leaf.unwrap_or_default(), &error.message, &error.given))
        }
    }
}

/// Words that begin a header line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderWord {
    Block,
    StageBy,
    Layers,
    Stage,
}

impl HeaderWord {
    pub(super) const ALL: &[Self] = &[Self::Block, Self::StageBy, Self::Layers, Self::Stage];

    fn word(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::StageBy => "stage_by",
            Self::Layers => "layers",
            Self::Stage => "stage",
        }
    }

    fn of_word(word: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|header| header.word() == word)
    }
}

#[derive(Default)]
struct Header {
    block: Option<u32>,
    stage_by: Option<StageBy>,
    layers: Option<Vec<u32>>,
    stage: Option<u32>,
    lines: u32,
}

/// A pattern, and the number of operators around its deepest leaf.
type Deep = (Pattern, u32);

#[derive(Clone, Copy)]
enum Operator {
    Or,
    And,
    Minus,
}

impl Operator {
    fn sign(self) -> char {
        match self {
            Self::Or => '|',
            Self::And => '&',
            Self::Minus => '-',
        }
    }
}

impl Parser {
    fn header(&mut self) -> Result<Header, Diagnostic> {
        let mut header = Header::default();
        loop {
            let word = self.peek().clone();
            let Some(line) = HeaderWord::of_word(self.text(&word)) else {
                return Ok(header);
            };
            self.advance();
            let again = match line {
                HeaderWord::Block => {
                    let (block, span) = self.number("a block size")?;
                    limits::check_block(block).map_err(|error| self.limit(error, span))?;
                    header.block.replace(block).is_some()
                }
                HeaderWord::StageBy => {
                    let stage_by = self.stage_by()?;
                    header.stage_by.replace(stage_by).is_some()
                }
                HeaderWord::Layers => {
                    let layers = self.layers()?;
                    header.layers.replace(layers).is_some()
                }
                HeaderWord::Stage => {
                    let (stage, _) = self.number("a stage")?;
                    header.stage.replace(stage).is_some()
                }
            };
            if again {
                let message = format!("`{}` is given twice", self.text(&word));
                return Err(self.error(word.span, message, "a second time here"));
            }
            header.lines += 1;
        }
    }

    fn stage_by(&mut self) -> Result<StageBy, Diagnostic> {
        let token = self.peek().clone();
        let names = StageBy::ALL.map(StageBy::name);
        let found = StageBy::ALL
            .into_iter()
            .find(|by| by.name() == self.text(&token));
        match found {
            Some(stage_by) => {
                self.advance();
                Ok(stage_by)
            }
            None => {
                let error = self.expected(&format!("one of {}", list(names)));
                Err(error.or_help(did_you_mean(self.text(&token), names)))
            }
        }
    }

    fn layers(&mut self) -> Result<Vec<u32>, Diagnostic> {
        if self.text(self.peek()) == "none" {
            self.advance();
            return Ok(Vec::new());
        }
        let mut layers = Vec::new();
        loop {
            let (layer, span) = self.number("a layer index")?;
            layers.push(layer);
            // Checking the last two is enough: earlier pairs have passed.
            let last = &layers[layers.len().saturating_sub(2)..];
            limits::check_layers(last).map_err(|error| self.limit(error, span))?;
            if !self.eat(',') {
                return Ok(layers);
            }
        }
    }

    fn either(&mut self) -> Result<Deep, Diagnostic> {
        self.chain(Operator::Or, |parser| {
            parser.chain(Operator::And, |parser| {
                parser.chain(Operator::Minus, Self::operand)
            })
        })
    }

    /// Reads `next (operator next)*`, which binds from left to right.
    fn chain(
        &mut self,
        operator: Operator,
        next: impl Fn(&mut Self) -> Result<Deep, Diagnostic>,
    ) -> Result<Deep, Diagnostic> {
        let (mut pattern, mut depth) = next(self)?;
        loop {
            let span = self.peek().span.clone();
            if !self.eat(operator.sign()) {
                return Ok((pattern, depth));
            }
            let (right, right_depth) = next(self)?;
            depth = 1 + depth.max(right_depth);
            if depth > MAX_DEPTH {
                return Err(self.too_deep(span, "operators"));
            }
            pattern = match operator {
                Operator::Or => pattern | right,
                Operator::And => pattern & right,
                Operator::Minus => pattern - right,
            };
        }
    }

    fn operand(&mut self) -> Result<Deep, Diagnostic> {
        let token = self.peek().clone();
        match token.kind {
            Kind::Sign('(') => {
                self.advance();
                self.parentheses += 1;
                if self.parentheses > MAX_DEPTH {
                    return Err(self.too_deep(token.span, "parentheses"));
                }
                let inner = self.either()?;
                self.close(')', token.span, "`|`, `&`, `-`")?;
                self.parentheses -= 1;
                Ok(inner)
            }
            Kind::Word => match self.text(&token) {
                "per_head" => self.cases("kv heads", Pattern::PerHead),
                "per_layer" => self.cases("layers", Pattern::PerLayer),
                _ => Ok((self.leaf(token)?.into(), 0)),
            },
            Kind::Sign('{' | '}') => {
                let help = "group with `(` and `)`";
                Err(self.expected("a pattern").with_help(help))
            }
            Kind::Sign('|' | '&') if self.last().is_some_and(|last| last.kind == token.kind) => {
                let help = format!("write `{}` once", self.text(&token));
                Err(self.expected("a pattern").with_help(help))
            }
            Kind::Sign(_) | Kind::Number | Kind::Unknown(_) | Kind::End => {
                Err(self.expected("a pattern"))
            }
        }
    }

    /// Reads a combinator of cases, of which each names `what`.
    fn cases(
        &mut self,
        what: &str,
        combine: impl FnOnce(Vec<Case>) -> Pattern,
    ) -> Result<Deep, Diagnostic> {
        let word = self.peek().span.clone();
        self.advance();
        let open = self.peek().span.clone();
        if !self.eat('{') {
            return Err(self.expected("`{`"));
        }
        let (mut cases, mut depth) = (Vec::new(), 0);
        loop {
            // Cases can be nested without operators between them.
            self.parentheses += 1;
            if self.parentheses > MAX_DEPTH {
                return Err(self.too_deep(word, "parentheses"));
            }
            let of = self.indices(what)?;
            if !(self.eat('=') && self.eat('>')) {
                return Err(self.expected("`=>`"));
            }
            let (pattern, inner) = self.either()?;
            self.parentheses -= 1;
            depth = depth.max(limits::CASES + inner);
            if depth > MAX_DEPTH {
                return Err(self.too_deep(word, "operators"));
            }
            cases.push(Case { of, pattern });
            let more = self.eat(';');
            if !more || self.peek().kind == Kind::Sign('}') {
                self.close('}', open, "`|`, `&`, `-`, `;`")?;
                return Ok((combine(cases), depth));
            }
        }
    }

    /// Reads `else`, or numbers and ranges with their ends left out.
    fn indices(&mut self, what: &str) -> Result<Indices, Diagnostic> {
        if self.text(self.peek()) == "else" {
            self.advance();
            return Ok(Indices::All);
        }
        let expected = format!("{what}, such as `0, 2..4`, or `else`");
        let mut ranges = Vec::new();
        loop {
            let (first, start) = self.number(&expected)?;
            if first >= MAX_INDEX {
                let message = format!("{what} are numbered below {MAX_INDEX}");
                return Err(self.error(start, message, format!("given {first}")));
            }
            let mut end = first + 1;
            if self.eat('.') {
                if !self.eat('.') {
                    return Err(self.expected("`..`"));
                }
                let (given, stop) = self.number("the end of the range")?;
                if given <= first || given > MAX_INDEX {
                    let message = "a range ends after it begins; its end is not part of it";
                    let span = start.start..stop.end;
                    return Err(self.error(span, message, format!("at most {MAX_INDEX}")));
                }
                end = given;
            }
            ranges.push((first, end));
            if !self.eat(',') {
                return Ok(Indices::of(ranges));
            }
        }
    }

    fn leaf(&mut self, word: Token) -> Result<Leaf, Diagnostic> {
        let name = self.text(&word).to_owned();
        if HeaderWord::of_word(&name).is_some() {
            return Err(self.late_header(word));
        }
        let Some(leaf_name) = LeafName::of_word(&name) else {
            let (message, help) = arguments::unknown(&name);
            return Err(self.error(word.span, message, "").or_help(help));
        };
        if self.leaves.len() >= MAX_LEAVES {
            let message = format!("a pattern has at most {MAX_LEAVES} leaves");
            return Err(self.error(word.span, message, "one too many"));
        }
        self.advance();
        let leaf = arguments::parse(self, leaf_name, word.span.clone())?;
        let end = self.last().map_or(0, |last| last.span.end);
        self.leaves.push(word.span.start..end);
        Ok(leaf)
    }

    fn after_expression(&self) -> Diagnostic {
        let token = self.peek().clone();
        if token.kind == Kind::Sign(')') {
            return self.error(token.span, "this `)` closes nothing", "");
        }
        if HeaderWord::of_word(self.text(&token)).is_some() {
            return self.late_header(token);
        }
        self.expected("`|`, `&`, `-` or the end")
    }

    fn late_header(&self, word: Token) -> Diagnostic {
        let message = format!("`{}` must stand before the pattern", self.text(&word));
        self.error(word.span, message, "belongs to the header")
    }

    fn too_deep(&self, span: Range<usize>, what: &str) -> Diagnostic {
        let message = format!("a pattern must nest at most {MAX_DEPTH} {what} deep");
        self.error(span, message, "one too many")
    }
}

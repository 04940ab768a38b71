//! Rewrites Jinja2 syntax that minijinja does not support.
//!
//! - `{% generation %}` marks the assistant's turns, for training. In a prompt it is no more than a
//!   scope, so it becomes `{% with %}`.
//! - `a % b` formats if `a` is a string, which minijinja's operator does not do, so it becomes a
//!   call of [`MODULO`].
//!
//! Line numbers do not change, so that errors name the right line.

/// The name of the function that replaces `%`.
pub(super) const MODULO: &str = "__modulo__";

/// Most tokens of one tag. Published templates have up to some hundreds; the limit exists because
/// the engine's time and stack grow with the depth of an expression.
const MOST: usize = 2048;

/// Rewrites a template.
///
/// # Errors
/// A message with the line of a tag that has more than [`MOST`] tokens.
pub(super) fn translate(text: &str) -> Result<String, String> {
    // As Jinja2 does with all line ends.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(found) = text[at..].find('{') {
        let start = at + found;
        let close = match text.as_bytes().get(start + 1) {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            Some(b'#') => "#}",
            _ => {
                out.push_str(&text[at..=start]);
                at = start + 1;
                continue;
            }
        };
        out.push_str(&text[at..start]);
        at = start;
        if close == "#}" {
            let Some(length) = text[start + 2..].find(close) else {
                break;
            };
            at = start + 2 + length + 2;
            out.push_str(&text[start..at]);
            continue;
        }
        // The engine reports a tag that does not end.
        let Some(tag) = Tag::read(&text, start, close) else {
            break;
        };
        if tag.tokens.len() > MOST {
            let line = text[..start].matches('\n').count() + 1;
            return Err(format!(
                "its chat template has a tag of more than {MOST} words and signs in line {line}"
            ));
        }
        tag.write(&text, &mut out);
        at = tag.end;
        if close == "%}" && tag.name(&text) == Some("raw") {
            at = end_of_raw(&text, tag.end);
            out.push_str(&text[tag.end..at]);
        }
    }
    out.push_str(&text[at..]);
    Ok(out)
}

/// Where the first `{% endraw %}` after `from` begins, or the end of the text.
fn end_of_raw(text: &str, from: usize) -> usize {
    let mut tags = text[from..].match_indices("{%").map(|(at, _)| from + at);
    let ends = |at: &usize| {
        let inside = text[at + 2..].trim_start_matches(['-', '+']);
        inside.trim_start().starts_with("endraw")
    };
    tags.find(ends).unwrap_or(text.len())
}

/// A tag, `{{ … }}` or `{% … %}`, and the tokens between its braces.
struct Tag {
    start: usize,
    end: usize,
    tokens: Vec<Token>,
}

#[derive(Clone, Copy)]
struct Token {
    start: usize,
    end: usize,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A name, a keyword or a number.
    Word,
    Text,
    Open,
    Close,
    Sign,
}

impl Tag {
    /// Reads the tag at `start`, up to the first `close` outside of brackets and quoted text.
    fn read(text: &str, start: usize, close: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let mut at = start + 2;
        if matches!(bytes.get(at), Some(b'-' | b'+')) {
            at += 1;
        }
        let mut tokens = Vec::new();
        let mut depth = 0;
        loop {
            let rest = &text[at..];
            let first = rest.chars().next()?;
            let sign = usize::from(matches!(first, '-' | '+'));
            // A tag with too many tokens will be refused: no need to read the rest.
            if (depth == 0 && rest[sign..].starts_with(close)) || tokens.len() > MOST {
                let end = at + sign + close.len();
                return Some(Self { start, end, tokens });
            }
            let (kind, length) = match first {
                c if c.is_whitespace() => {
                    at += c.len_utf8();
                    continue;
                }
                '\'' | '"' => (Kind::Text, quoted(rest, first)?),
                '(' | '[' | '{' => {
                    depth += 1;
                    (Kind::Open, 1)
                }
                ')' | ']' | '}' => {
                    depth -= 1;
                    (Kind::Close, 1)
                }
                c if c == '_' || c.is_alphanumeric() => {
                    let other = |c: char| c != '_' && !c.is_alphanumeric();
                    (Kind::Word, rest.find(other).unwrap_or(rest.len()))
                }
                c => {
                    let double = ["**", "//", "==", "!=", "<=", ">="];
                    let double = double.iter().any(|sign| rest.starts_with(sign));
                    (Kind::Sign, if double { 2 } else { c.len_utf8() })
                }
            };
            let end = at + length;
            tokens.push(Token {
                start: at,
                end,
                kind,
            });
            at = end;
        }
    }

    /// The first token of the tag, which is the name of a `{% … %}` tag.
    fn name<'a>(&self, text: &'a str) -> Option<&'a str> {
        let first = self.tokens.first()?;
        Some(&text[first.start..first.end])
    }

    /// Writes the tag with its replacements.
    fn write(&self, text: &str, out: &mut String) {
        let words: Vec<&str> = self.tokens.iter().map(|t| &text[t.start..t.end]).collect();
        let block = text[self.start..].starts_with("{%");
        let replaced = match (block, &words[..]) {
            (true, ["generation"]) => Some("with"),
            (true, ["endgeneration"]) => Some("endwith"),
            _ => None,
        };
        let calls = Calls::find(&self.tokens, &words, block);
        let mut at = self.start;
        for (i, token) in self.tokens.iter().enumerate() {
            out.push_str(&text[at..token.start]);
            for _ in 0..calls.opened[i] {
                out.push_str(MODULO);
                out.push('(');
            }
            let own = &text[token.start..token.end];
            out.push_str(match replaced {
                Some(other) => other,
                None if calls.commas[i] => ",",
                None => own,
            });
            out.push_str(&")".repeat(calls.closed[i]));
            at = token.end;
        }
        out.push_str(&text[at..self.end]);
    }
}

/// The length of the quoted text that `text` begins with, quotes included; `None` if it does not
/// end.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Where calls of [`MODULO`] begin and end: one entry for each token.
struct Calls {
    /// How many calls begin before the token.
    opened: Vec<usize>,
    /// Whether the token is a `%` that becomes the comma between the two arguments.
    commas: Vec<bool>,
    /// How many calls end after the token.
    closed: Vec<usize>,
}

/// The state of reading one level of brackets.
#[derive(Clone, Copy)]
struct Level {
    /// The first token of the current product: operands joined by `*`, `/`, `//` and `%`.
    product: usize,
    /// Whether the right operand of a `%` is being read.
    right: bool,
}

impl Calls {
    fn find(tokens: &[Token], words: &[&str], block: bool) -> Self {
        let mut calls = Self {
            opened: vec![0; tokens.len()],
            commas: vec![false; tokens.len()],
            closed: vec![0; tokens.len()],
        };
        let mut levels = vec![Level {
            product: usize::from(block),
            right: false,
        }];
        // Whether the last token ended an operand, so that a sign is a binary operator.
        let mut operand = false;
        for (i, token) in tokens.iter().enumerate() {
            let Some(level) = levels.last_mut() else {
                break;
            };
            let mut end_of_right = || {
                if std::mem::take(&mut level.right) {
                    calls.closed[i - 1] += 1;
                }
            };
            match token.kind {
                Kind::Open => {
                    levels.push(Level {
                        product: i + 1,
                        right: false,
                    });
                    operand = false;
                }
                Kind::Close => {
                    end_of_right();
                    levels.pop();
                    operand = true;
                }
                Kind::Sign => {
                    match words[i] {
                        "." | "|" | "**" => {}
                        "+" | "-" if !operand => {}
                        "*" | "/" | "//" => end_of_right(),
                        "%" if i > level.product => {
                            end_of_right();
                            level.right = true;
                            calls.opened[level.product] += 1;
                            calls.commas[i] = true;
                        }
                        _ => {
                            end_of_right();
                            level.product = i + 1;
                        }
                    }
                    operand = false;
                }
                Kind::Word if KEYWORDS.contains(&words[i]) => {
                    end_of_right();
                    level.product = i + 1;
                    operand = false;
                }
                Kind::Word | Kind::Text => operand = !(block && i == 0),
            }
        }
        if levels.last().is_some_and(|level| level.right) {
            calls.closed[tokens.len() - 1] += 1;
        }
        calls
    }
}

/// Keywords that end a product.
const KEYWORDS: [&str; 6] = ["and", "else", "if", "in", "not", "or"];

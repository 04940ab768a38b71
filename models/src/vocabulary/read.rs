//! The metadata of a GGUF file → [`Vocabulary`].
//!
//! Out: as many kinds and scores as tokens; every id is within the vocabulary.

use super::split::Split;
use super::{Algorithm, Kind, Special, Templates, Vocabulary, shown};
use crate::ModelError;
use crate::weights::gguf::Gguf;

/// More tokens than any vocabulary has; each takes about 150 bytes of memory.
const MOST_TOKENS: usize = 1 << 21;

impl<'a> Vocabulary<'a> {
    /// Reads the keys `tokenizer.*`.
    ///
    /// # Errors
    /// A [`ModelError`] that names the file, the key, and what is wrong with it.
    pub(crate) fn read(gguf: &'a Gguf) -> Result<Self, ModelError> {
        let keys = Keys { gguf };
        let algorithm = keys.algorithm()?;
        let tokens = keys.tokens()?;
        let special = keys.special(algorithm, tokens.len())?;
        let scores = gguf.floats(&key("scores"))?;
        if let Some(scores) = &scores {
            keys.same("scores", scores.len(), tokens.len())?;
        }
        let flag = |name: &str| gguf.flag(&key(name));
        let default = match algorithm {
            Algorithm::ByteLevel(split) => split.begins() && special.begin.is_some(),
            Algorithm::Pieces => true,
        };
        let begins = flag("add_bos_token")?.unwrap_or(default);
        keys.present(begins, "bos", special.begin)?;
        let ends = flag("add_eos_token")?.unwrap_or(false);
        keys.present(ends, "eos", special.end)?;
        // A vocabulary of bytes has no such space: llama.cpp reads the key and ignores it.
        let spaced = flag("add_space_prefix")?.unwrap_or(true);
        // Files do not say so; llama.cpp goes by the model's name.
        let phi = gguf.string("general.architecture")? == Some("phi3");
        Ok(Self {
            algorithm,
            kinds: keys.kinds(&tokens, special)?,
            tokens,
            scores,
            merges: gguf.strings(&key("merges"))?,
            special,
            begins,
            ends,
            spaced: algorithm == Algorithm::Pieces && spaced,
            swallows: algorithm == Algorithm::Pieces && phi,
            templates: keys.templates()?,
        })
    }
}

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

/// The keys of a file's tokenizer.
#[derive(Clone, Copy)]
struct Keys<'a> {
    gguf: &'a Gguf,
}

impl<'a> Keys<'a> {
    fn algorithm(self) -> Result<Algorithm, ModelError> {
        let name = self.gguf.string(&key("model"))?;
        match self.gguf.required(&key("model"), "string", name)? {
            "gpt2" => Ok(Algorithm::ByteLevel(self.split()?)),
            "llama" => Ok(Algorithm::Pieces),
            other => Err(self.gguf.wrong(format!(
                "has a tokenizer that does not run: `tokenizer.ggml.model` is {}, expected gpt2 or llama; give a model folder with tokenizer.json, or tokens instead of text",
                shown(other)
            ))),
        }
    }

    fn split(self) -> Result<Split, ModelError> {
        let name = self.gguf.string(&key("pre"))?;
        let expected = "string: how text is cut before its parts are tokenized";
        let name = self.gguf.required(&key("pre"), expected, name)?;
        Split::of(name).ok_or_else(|| {
            self.gguf.wrong(format!(
                "cuts text in a way that is not known: `tokenizer.ggml.pre` is {}, expected one of {}; give a model folder with tokenizer.json, or tokens instead of text",
                shown(name),
                Split::names()
            ))
        })
    }

    fn tokens(self) -> Result<Vec<&'a str>, ModelError> {
        let tokens = self.gguf.strings(&key("tokens"))?;
        let tokens = self.gguf.required(&key("tokens"), "strings", tokens)?;
        match tokens.len() {
            1..=MOST_TOKENS => Ok(tokens),
            count => Err(self.gguf.wrong(format!(
                "has {count} tokens in `tokenizer.ggml.tokens`, expected 1 to {MOST_TOKENS}; convert the model again"
            ))),
        }
    }

    fn same(self, name: &str, count: usize, tokens: usize) -> Result<(), ModelError> {
        if count == tokens {
            return Ok(());
        }
        Err(self.gguf.wrong(format!(
            "has {tokens} tokens, but {count} values in `tokenizer.ggml.{name}`; convert the model again"
        )))
    }

    /// Requires the token that is added to every text.
    fn present(self, added: bool, name: &str, token: Option<u32>) -> Result<(), ModelError> {
        if !added || token.is_some() {
            return Ok(());
        }
        Err(self.gguf.wrong(format!(
            "adds a token to every text, but has no `tokenizer.ggml.{name}_token_id`; convert the model again"
        )))
    }

    /// The token of a role, if the file names one.
    fn token(self, name: &str, tokens: usize) -> Result<Option<u32>, ModelError> {
        let key = key(&format!("{name}_token_id"));
        let token = self.gguf.count(&key)?;
        match token {
            Some(id) if id as usize >= tokens => Err(self.gguf.wrong(format!(
                "has {tokens} tokens, but `{key}` is {id}; convert the model again"
            ))),
            token => Ok(token),
        }
    }

    fn special(self, algorithm: Algorithm, tokens: usize) -> Result<Special, ModelError> {
        let given = Special {
            begin: self.token("bos", tokens)?,
            end: self.token("eos", tokens)?,
            unknown: self.token("unknown", tokens)?,
            padding: self.token("padding", tokens)?,
        };
        let or = |given: Option<u32>, id: u32| {
            let usual = Some(id).filter(|id| (*id as usize) < tokens);
            given.or(usual)
        };
        Ok(match algorithm {
            Algorithm::ByteLevel(_) => given,
            // SentencePiece's own ids, which llama.cpp assumes too.
            Algorithm::Pieces => Special {
                begin: or(given.begin, 1),
                end: or(given.end, 2),
                unknown: or(given.unknown, 0),
                padding: given.padding,
            },
        })
    }

    /// The kind of every token. Tokens that begin or end a text are control tokens whatever the
    /// file says.
    fn kinds(self, tokens: &[&str], special: Special) -> Result<Vec<Kind>, ModelError> {
        let mut kinds = match self.gguf.integers(&key("token_type"))? {
            None => vec![Kind::Normal; tokens.len()],
            Some(numbers) => {
                self.same("token_type", numbers.len(), tokens.len())?;
                let kinds = numbers.iter().enumerate().map(|(id, number)| {
                    Kind::of(*number).ok_or_else(|| {
                        self.gguf.wrong(format!(
                            "gives token {id} the type {number} in `tokenizer.ggml.token_type`, expected 1 to 6; convert the model again"
                        ))
                    })
                });
                kinds.collect::<Result<_, _>>()?
            }
        };
        let turn = self.token("eot", tokens.len())?;
        let message = self.token("eom", tokens.len())?;
        let named = [special.begin, special.end, turn, message];
        for token in named.into_iter().flatten() {
            kinds[token as usize] = Kind::Control;
        }
        Ok(kinds)
    }

    /// The chat templates; gguf-py lists the names of those that are not the default.
    fn templates(self) -> Result<Templates<'a>, ModelError> {
        Ok(Templates {
            default: self.gguf.string("tokenizer.chat_template")?,
            others: self
                .gguf
                .strings("tokenizer.chat_templates")?
                .unwrap_or_default(),
        })
    }
}

impl Kind {
    fn of(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

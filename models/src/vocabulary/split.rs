//! How byte-level vocabularies cut text before its parts are tokenized.
//!
//! GGUF files name the way (`tokenizer.ggml.pre`). What each name stands for is taken from the
//! `tokenizer.json` of the models that use it, and, for `default`, from ggml-org/llama.cpp,
//! `src/llama-vocab.cpp`.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split as Cut, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

/// A way to cut text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Split {
    Default,
    Gpt2,
    Smollm,
    Llama3,
    /// Llama 3's cuts, in vocabularies of which every token can be reached by merges.
    Cl100k,
    Qwen2,
    Qwen35,
    Tekken,
    Gpt4o,
}

/// Names in files.
const NAMES: [(&str, Split); 20] = [
    ("default", Split::Default),
    ("gpt-2", Split::Gpt2),
    ("phi-2", Split::Gpt2),
    ("smollm", Split::Smollm),
    ("starcoder", Split::Smollm),
    ("refact", Split::Smollm),
    ("codeshell", Split::Smollm),
    ("llama3", Split::Llama3),
    ("llama-v3", Split::Llama3),
    ("llama-bpe", Split::Llama3),
    ("falcon3", Split::Llama3),
    ("dbrx", Split::Cl100k),
    ("smaug-bpe", Split::Cl100k),
    ("glm4", Split::Cl100k),
    ("chatglm-bpe", Split::Cl100k),
    ("qwen2", Split::Qwen2),
    ("deepseek-r1-qwen", Split::Qwen2),
    ("qwen35", Split::Qwen35),
    ("tekken", Split::Tekken),
    ("gpt-4o", Split::Gpt4o),
];

/// Contractions, whatever their case.
macro_rules! contractions {
    () => {
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    };
}

/// Symbols, line breaks and other white space, in that order.
macro_rules! rest {
    () => {
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    };
}

/// As [`rest`], but slashes may follow symbols.
macro_rules! rest_and_slashes {
    () => {
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    };
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

const LLAMA3: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    rest!()
);

const QWEN2: &str = concat!(contractions!(), r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}", rest!());

const QWEN35: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}",
    rest_and_slashes!()
);

const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    contractions!(),
    r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    contractions!(),
    r"?|\p{N}{1,3}",
    rest_and_slashes!()
);

impl Split {
    /// The way with this name.
    pub(super) fn of(name: &str) -> Option<Self> {
        let found = NAMES.iter().find(|(other, _)| *other == name);
        found.map(|(_, split)| *split)
    }

    /// Every name, for messages.
    pub(super) fn names() -> String {
        NAMES.map(|(name, _)| name).join(", ")
    }

    /// Whether texts begin with a special token if the file does not say.
    pub(super) fn begins(self) -> bool {
        match self {
            Self::Llama3 | Self::Tekken => true,
            Self::Default | Self::Gpt2 | Self::Smollm | Self::Cl100k => false,
            Self::Qwen2 | Self::Qwen35 | Self::Gpt4o => false,
        }
    }

    /// Whether a part that is a token as a whole stays whole, though no merges may lead to it.
    pub(super) fn keeps_whole(self) -> bool {
        match self {
            Self::Llama3 | Self::Tekken => true,
            Self::Default | Self::Gpt2 | Self::Smollm | Self::Cl100k => false,
            Self::Qwen2 | Self::Qwen35 | Self::Gpt4o => false,
        }
    }

    /// Whether characters are composed first (Unicode's normal form C).
    pub(super) fn composes(self) -> bool {
        match self {
            Self::Qwen2 | Self::Qwen35 => true,
            Self::Default | Self::Gpt2 | Self::Smollm | Self::Cl100k => false,
            Self::Llama3 | Self::Tekken | Self::Gpt4o => false,
        }
    }

    /// The cuts, and then bytes as the characters that stand for them in the vocabulary.
    pub(super) fn build(self) -> tokenizers::Result<PreTokenizerWrapper> {
        let patterns: &[&str] = match self {
            Self::Gpt2 => return Ok(ByteLevel::new(false, false, true).into()),
            Self::Smollm => {
                let steps = vec![
                    Digits::new(true).into(),
                    ByteLevel::new(false, false, true).into(),
                ];
                return Ok(Sequence::new(steps).into());
            }
            Self::Default => &[r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
            Self::Llama3 | Self::Cl100k => &[LLAMA3],
            Self::Qwen2 => &[QWEN2],
            Self::Qwen35 => &[QWEN35],
            Self::Tekken => &[TEKKEN],
            Self::Gpt4o => &[GPT4O],
        };
        let cut = |pattern: &&str| {
            let pattern = SplitPattern::Regex(pattern.to_string());
            Cut::new(pattern, SplitDelimiterBehavior::Isolated, false).map(Into::into)
        };
        let mut steps: Vec<PreTokenizerWrapper> = patterns
            .iter()
            .map(cut)
            .collect::<tokenizers::Result<_>>()?;
        steps.push(ByteLevel::new(false, false, false).into());
        Ok(Sequence::new(steps).into())
    }
}

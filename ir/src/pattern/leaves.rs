//! The leaves in pattern text: names, parameters, defaults and meaning.
//!
//! In:  a word. Out: its [`LeafName`], whose signature lists the arguments that it takes.
//!
//! Invariant: a new [`Leaf`] does not compile until it has a name here, nor does a new
//! name until it has a signature and a way to build its leaf.

use super::{DEFAULT_POOL, Leaf, PartnerRule};

/// Makes the enum, the list of all names and the words from one list.
macro_rules! names {
    ($($name:ident $word:literal,)*) => {
        /// The name of a leaf.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum LeafName {
            $($name,)*
        }

        impl LeafName {
            /// Every name, in the order of the documentation.
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word in text.
            pub(crate) fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

names! {
    Causal "causal",
    Local "local",
    Window "window",
    Partner "partner",
    Sink "sink",
    SinkTokens "sink_tokens",
    Global "global",
    Tail "tail",
    Routed "routed",
    Table "table",
    All "all",
    None "none",
}

/// The parameters of a leaf, and its meaning.
pub(crate) struct Signature {
    /// The form that errors and the reference show.
    pub(crate) usage: &'static str,
    pub(crate) parameters: &'static [Parameter],
    /// The keys that it admits, as text for the reference.
    pub(crate) meaning: &'static str,
}

pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    pub(crate) kind: ParameterKind,
    /// The value if none is given; a parameter without a default is required.
    pub(crate) default: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParameterKind {
    Number,
    Rule,
    Rows,
}

/// The arguments of one leaf, by kind.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    pub(crate) numbers: Vec<(&'static str, u32)>,
    pub(crate) rule: Option<PartnerRule>,
    pub(crate) rows: Option<Vec<Vec<u32>>>,
}

/// A required parameter that was not given.
#[derive(Debug)]
pub(crate) struct Missing(pub(crate) &'static str);

const fn number(name: &'static str) -> Parameter {
    parameter(name, ParameterKind::Number, None)
}

const fn optional(name: &'static str, default: u32) -> Parameter {
    parameter(name, ParameterKind::Number, Some(default))
}

const fn parameter(name: &'static str, kind: ParameterKind, default: Option<u32>) -> Parameter {
    Parameter {
        name,
        kind,
        default,
    }
}

impl LeafName {
    /// The name that is written `word`.
    pub(crate) fn of_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|name| name.word() == word)
    }

    /// The name of `leaf`.
    pub(crate) fn of(leaf: &Leaf) -> Self {
        match leaf {
            Leaf::Causal => Self::Causal,
            Leaf::Local { .. } => Self::Local,
            Leaf::Window { .. } => Self::Window,
            Leaf::Partner { .. } => Self::Partner,
            Leaf::Sink { .. } => Self::Sink,
            Leaf::SinkTokens { .. } => Self::SinkTokens,
            Leaf::Global { .. } => Self::Global,
            Leaf::Tail { .. } => Self::Tail,
            Leaf::Routed { .. } => Self::Routed,
            Leaf::Table { .. } => Self::Table,
            Leaf::All => Self::All,
            Leaf::None => Self::None,
        }
    }

    pub(crate) fn signature(self) -> Signature {
        const LOCAL: &[Parameter] = &[number("before"), optional("after", 0)];
        const TOKENS: &[Parameter] = &[number("tokens")];
        const N: &[Parameter] = &[number("n")];
        const BLOCKS: &[Parameter] = &[number("blocks")];
        const PARTNER: &[Parameter] = &[
            parameter("rule", ParameterKind::Rule, None),
            optional("radix", 2),
            optional("count", 1),
        ];
        const ROUTED: &[Parameter] = &[
            number("blocks"),
            optional("pool", DEFAULT_POOL),
            optional("every", 1),
        ];
        const ROWS: &[Parameter] = &[parameter("rows", ParameterKind::Rows, None)];
        let (usage, parameters, meaning): (_, &[Parameter], _) = match self {
            Self::Causal => ("causal", &[], "keys at or before the query"),
            Self::Local => (
                "local(before[, after])",
                LOCAL,
                "the query's own block, `before` blocks before it and `after` (0) after it",
            ),
            Self::Window => (
                "window(tokens)",
                TOKENS,
                "the last `tokens` keys, the query's own included",
            ),
            Self::Partner => (
                "partner(rule[, radix=2][, count=1])",
                PARTNER,
                "one far block for each digit that the layer's stage visits",
            ),
            Self::Sink => (
                "sink(blocks)",
                BLOCKS,
                "the first `blocks` blocks, none later than the query's own",
            ),
            Self::SinkTokens => ("sink_tokens(n)", N, "the first `n` keys"),
            Self::Global => (
                "global(blocks)",
                BLOCKS,
                "the first `blocks` blocks are seen by all, and their queries see all",
            ),
            Self::Tail => (
                "tail(tokens)",
                TOKENS,
                "every key, from the block of the last `tokens` tokens of the prompt on",
            ),
            Self::Routed => (
                "routed(blocks[, pool=16][, every=1])",
                ROUTED,
                "the earlier blocks that score best, by means of keys and every n-th query",
            ),
            Self::Table => (
                "table([[0], [0, 1], …])",
                ROWS,
                "the blocks listed: one list for each block of queries",
            ),
            Self::All => ("all", &[], "every key"),
            Self::None => ("none", &[], "no key"),
        };
        Signature {
            usage,
            parameters,
            meaning,
        }
    }

    /// Builds the leaf of this name.
    ///
    /// # Errors
    /// [`Missing`] for the first required parameter that is not given.
    pub(crate) fn build(self, arguments: Arguments) -> Result<Leaf, Missing> {
        let Signature { parameters, .. } = self.signature();
        let number = |name: &'static str| {
            let given = arguments.numbers.iter().find(|(of, _)| *of == name);
            let default = || {
                parameters
                    .iter()
                    .find(|parameter| parameter.name == name)?
                    .default
            };
            given
                .map(|(_, number)| *number)
                .or_else(default)
                .ok_or(Missing(name))
        };
        Ok(match self {
            Self::Causal => Leaf::Causal,
            Self::Local => Leaf::Local {
                before: number("before")?,
                after: number("after")?,
            },
            Self::Window => Leaf::Window {
                tokens: number("tokens")?,
            },
            Self::Partner => Leaf::Partner {
                rule: arguments.rule.ok_or(Missing("rule"))?,
                radix: number("radix")?,
                count: number("count")?,
            },
            Self::Sink => Leaf::Sink {
                blocks: number("blocks")?,
            },
            Self::SinkTokens => Leaf::SinkTokens {
                tokens: number("n")?,
            },
            Self::Global => Leaf::Global {
                blocks: number("blocks")?,
            },
            Self::Tail => Leaf::Tail {
                tokens: number("tokens")?,
            },
            Self::Routed => Leaf::Routed {
                blocks: number("blocks")?,
                pool: number("pool")?,
                every: number("every")?,
            },
            Self::Table => Leaf::Table {
                rows: arguments.rows.ok_or(Missing("rows"))?,
            },
            Self::All => Leaf::All,
            Self::None => Leaf::None,
        })
    }
}

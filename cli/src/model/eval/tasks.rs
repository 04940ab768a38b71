//! Retrieval tasks: what is hidden in a text, the question about it, and the answer.
//!
//! In:  a [`Case`], the tokens of a text, and a tokenizer. Out: a [`Prompt`] of exactly the length
//!      that the case names, which ends with the question.
//! Invariants: the same case gives the same prompt; facts and question are tokenized apart from the
//! text around them, so that they are the same tokens wherever they stand.
//!
//! # Source
//! Hsieh et al., RULER, arXiv:2404.06654, section 3: single and multi-key needles, a context of
//! key-value pairs (its multi-key task in which all of the haystack is needles), variable tracking.
//! Sentences are shorter here, and no example precedes the question.

use crate::args::RetrievalTask;
use crate::failure::Failure;
use std::collections::BTreeSet;

/// Needles of `multikey`, the one that is asked for included.
const NEEDLES: usize = 4;
/// Chains of `tracking`, and names of each.
const CHAINS: usize = 2;
const NAMES: usize = 5;
/// What needles are about.
const PLACES: [&str; 32] = [
    "abbey",
    "airport",
    "archive",
    "bakery",
    "barn",
    "bridge",
    "castle",
    "cellar",
    "chapel",
    "embassy",
    "factory",
    "farm",
    "ferry",
    "fortress",
    "garden",
    "harbour",
    "hospital",
    "hotel",
    "kitchen",
    "laboratory",
    "library",
    "lighthouse",
    "mill",
    "museum",
    "observatory",
    "palace",
    "prison",
    "quarry",
    "school",
    "theatre",
    "tower",
    "vineyard",
];

/// Tokenizes a piece of text, without special tokens.
pub(crate) type Encode<'a> = &'a dyn Fn(&str) -> Result<Vec<u32>, Failure>;

/// One prompt among those of a run. Each field changes the random choices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) task: RetrievalTask,
    pub(crate) seed: u64,
    /// Number of the prompt among those that differ in nothing else.
    pub(crate) trial: u32,
    /// Tokens of the prompt.
    pub(crate) length: usize,
    /// Where the fact stands that is asked for, as a share of the text before the question; of
    /// `tracking`, the first assignment of the chain: the others follow anywhere after it.
    pub(crate) depth: f32,
}

/// A prompt, and the answer to the question at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<u32>,
    pub(crate) answer: Answer,
}

/// What a model is to say after a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// These tokens, in this order.
    Exactly(Vec<u32>),
    /// All of these names, in any order and among other words.
    Names {
        names: Vec<String>,
        /// The names as a list, in the order of the chain.
        list: Vec<u32>,
    },
}

impl Answer {
    /// Most tokens that a model may use for it.
    pub(crate) fn most(&self) -> usize {
        match self {
            Self::Exactly(tokens) => tokens.len(),
            Self::Names { list, .. } => 2 * list.len(),
        }
    }

    /// Whether a model that has said `said` so far can still get more of it right.
    pub(crate) fn goes_on(&self, said: &[u32]) -> bool {
        match self {
            Self::Exactly(tokens) => said.len() < tokens.len() && tokens.starts_with(said),
            Self::Names { .. } => said.len() < self.most(),
        }
    }

    /// The share of it in what a model said, as tokens and as text: of its tokens, those before the
    /// first that is wrong; of names, those that the text has.
    pub(crate) fn found(&self, said: &[u32], text: &str) -> f64 {
        let (right, all) = match self {
            Self::Exactly(tokens) => {
                let right = tokens.iter().zip(said).take_while(|(a, b)| a == b).count();
                (right, tokens.len())
            }
            Self::Names { names, .. } => {
                let right = names.iter().filter(|name| text.contains(*name)).count();
                (right, names.len())
            }
        };
        right as f64 / all.max(1) as f64
    }
}

/// The fewest tokens of a prompt for a case, whatever its length, and the most of its answer.
///
/// # Errors
/// Those of `encode`.
pub(crate) fn least(case: &Case, encode: Encode<'_>) -> Result<(usize, usize), Failure> {
    let asked = ask(case, &mut Random::of(case), encode)?;
    Ok((asked.tokens(), asked.answer.most()))
}

/// The prompt of a case. The facts are hidden in `text`, which has at least one token and is
/// repeated if it is shorter; it begins anywhere. The context of `kv` is pairs, and only what is
/// left over is text.
///
/// # Errors
/// A length below the [`least`], and those of `encode`.
pub(crate) fn prompt(case: &Case, text: &[u32], encode: Encode<'_>) -> Result<Prompt, Failure> {
    let mut random = Random::of(case);
    let mut asked = ask(case, &mut random, encode)?;
    let least = asked.tokens();
    let room = case.length.checked_sub(least).ok_or_else(|| {
        Failure::Bad(format!(
            "task {} needs at least {least} tokens, not {}",
            case.task.name(),
            case.length
        ))
    })?;
    let room = match case.task {
        RetrievalTask::Needle | RetrievalTask::Multikey | RetrievalTask::Tracking => room,
        RetrievalTask::Kv => fill(&mut asked, case.depth, room, &mut random, encode)?,
    };
    let start = random.below(text.len().max(1));
    let hay: Vec<u32> = text
        .iter()
        .cycle()
        .skip(start)
        .take(room)
        .copied()
        .collect();
    asked.facts.sort_by(|a, b| a.depth.total_cmp(&b.depth));
    let mut tokens = Vec::with_capacity(case.length);
    let mut from = 0;
    for fact in &asked.facts {
        let at = place(fact.depth, room);
        tokens.extend_from_slice(&hay[from..at]);
        tokens.extend_from_slice(&fact.tokens);
        from = at;
    }
    tokens.extend_from_slice(&hay[from..]);
    tokens.extend_from_slice(&asked.question);
    Ok(Prompt {
        tokens,
        answer: asked.answer,
    })
}

/// A piece of a prompt, and where in the text it stands, from 0 to 1.
struct Fact {
    depth: f64,
    tokens: Vec<u32>,
}

/// What a task asks about.
struct Asked {
    /// Those of the same depth stand in this order.
    facts: Vec<Fact>,
    question: Vec<u32>,
    answer: Answer,
    /// Keys that are taken.
    keys: BTreeSet<String>,
}

impl Asked {
    fn tokens(&self) -> usize {
        let facts = self.facts.iter().map(|fact| fact.tokens.len());
        facts.sum::<usize>() + self.question.len()
    }
}

/// The facts that a task cannot do without, its question and its answer.
fn ask(case: &Case, random: &mut Random, encode: Encode<'_>) -> Result<Asked, Failure> {
    match case.task {
        RetrievalTask::Needle => needles(case, 1, random, encode),
        RetrievalTask::Multikey => needles(case, NEEDLES, random, encode),
        RetrievalTask::Kv => {
            let mut keys = BTreeSet::new();
            let (key, value) = (random.new_word(&mut keys, b'a'), random.number());
            Ok(Asked {
                // All text stands before the pairs.
                facts: vec![Fact {
                    depth: 1.0,
                    tokens: encode(&pair(&key, value))?,
                }],
                question: encode(&format!("\n{key}:"))?,
                answer: Answer::Exactly(encode(&format!(" {value}"))?),
                keys,
            })
        }
        RetrievalTask::Tracking => chains(case, random, encode),
    }
}

fn needles(
    case: &Case,
    count: usize,
    random: &mut Random,
    encode: Encode<'_>,
) -> Result<Asked, Failure> {
    let mut places = PLACES;
    let mut facts = Vec::new();
    let mut asked = None;
    for i in 0..count {
        // The first of these places are taken.
        let other = i + random.below(PLACES.len() - i);
        places.swap(i, other);
        let value = random.number();
        let question = format!("\nThe secret code of the {} is", places[i]);
        let depth = match i {
            0 => f64::from(case.depth),
            _ => random.share(),
        };
        facts.push(Fact {
            depth,
            tokens: encode(&format!("{question} {value}.\n"))?,
        });
        asked.get_or_insert((question, value));
    }
    let (question, value) = asked.unwrap_or_default();
    Ok(Asked {
        facts,
        question: encode(&question)?,
        answer: Answer::Exactly(encode(&format!(" {value}"))?),
        keys: BTreeSet::new(),
    })
}

fn chains(case: &Case, random: &mut Random, encode: Encode<'_>) -> Result<Asked, Failure> {
    let mut keys = BTreeSet::new();
    let mut facts = Vec::new();
    let mut asked = None;
    for chain in 0..CHAINS {
        // Distinct, since the digits differ in the number of the chain.
        let value = random.number() / CHAINS * CHAINS + chain;
        let names: Vec<String> = (0..NAMES)
            .map(|_| random.new_word(&mut keys, b'A'))
            .collect();
        let mut depths: Vec<f64> = (0..NAMES).map(|_| random.share()).collect();
        if chain == 0 {
            let first = f64::from(case.depth);
            for depth in &mut depths {
                *depth = first + (1.0 - first) * *depth;
            }
            depths[0] = first;
        }
        depths.sort_by(f64::total_cmp);
        let mut is = value.to_string();
        for (name, depth) in names.iter().zip(depths) {
            let tokens = encode(&format!("\nVAR {name} = {is}\n"))?;
            facts.push(Fact { depth, tokens });
            is = format!("VAR {name}");
        }
        asked.get_or_insert((value, names));
    }
    let (value, names) = asked.unwrap_or_default();
    Ok(Asked {
        facts,
        question: encode(&format!(
            "\nQuestion: Find all variables that are assigned the value {value} in the text above.\nAnswer: {NAMES} variables are assigned the value {value}, they are:"
        ))?,
        answer: Answer::Names {
            list: encode(&format!(" {}", names.join(", ")))?,
            names,
        },
        keys,
    })
}

fn pair(key: &str, value: usize) -> String {
    format!("\n{key}: {value}")
}

/// Adds pairs around the one that is asked for until no other fits. Returns the tokens that are
/// left.
fn fill(
    asked: &mut Asked,
    depth: f32,
    mut room: usize,
    random: &mut Random,
    encode: Encode<'_>,
) -> Result<usize, Failure> {
    let mut others = Vec::new();
    loop {
        let key = random.new_word(&mut asked.keys, b'a');
        let tokens = encode(&pair(&key, random.number()))?;
        // A pair without tokens would never fill anything.
        if tokens.len() > room || tokens.is_empty() {
            break;
        }
        room -= tokens.len();
        others.push(Fact { depth: 1.0, tokens });
    }
    let after = others.split_off(place(f64::from(depth), others.len()));
    asked.facts.splice(0..0, others);
    asked.facts.extend(after);
    Ok(room)
}

/// The place at a share of `room` places.
#[expect(clippy::cast_possible_truncation, reason = "a share of `room`")]
fn place(depth: f64, room: usize) -> usize {
    ((room as f64 * depth) as usize).min(room)
}

/// Random choices that are the same on every machine and in every version: BLAKE3's stream of the
/// case.
struct Random(blake3::OutputReader);

impl Random {
    fn of(case: &Case) -> Self {
        let Case {
            task,
            seed,
            trial,
            length,
            depth,
        } = case;
        let text = format!("{} {seed} {trial} {length} {depth}", task.name());
        Self(blake3::Hasher::new().update(text.as_bytes()).finalize_xof())
    }

    /// A number below `n`, which is not 0.
    #[expect(clippy::cast_possible_truncation, reason = "below `n`")]
    fn below(&mut self, n: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        ((u128::from(u64::from_le_bytes(bytes)) * n as u128) >> 64) as usize
    }

    /// A number from 0 to 1, 1 excluded.
    fn share(&mut self) -> f64 {
        self.below(1 << 53) as f64 / (1_u64 << 53) as f64
    }

    /// A number of five digits.
    fn number(&mut self) -> usize {
        10_000 + self.below(90_000)
    }

    /// Five letters, counted from `first`, that are not among `taken`; adds them.
    fn new_word(&mut self, taken: &mut BTreeSet<String>, first: u8) -> String {
        loop {
            #[expect(clippy::cast_possible_truncation, reason = "below 26")]
            let letters = (0..5).map(|_| char::from(first + self.below(26) as u8));
            let word: String = letters.collect();
            if taken.insert(word.clone()) {
                return word;
            }
        }
    }
}

#[cfg(test)]
mod tests;

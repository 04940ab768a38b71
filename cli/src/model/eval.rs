//! `butterfly eval`: how much a pattern changes what a model predicts on a text.

use super::continuation::Continuation;
use super::finite::{self, Watch};
use super::{Place, Setting, Task, chunk_of, open, policy, report, run_on, sparse, warn_of_length};
use crate::args::Eval as Command;
use crate::failure::Failure;
use crate::{source, svg};
use butterfly::AttentionBackend;
use butterfly_ir::Dtype;
use butterfly_models::{Chat, Checkpoint, Extent, Logits, Model, Policy, Sampler};
use butterfly_runtime::artifacts::{check_file, write_file};
use serde::Serialize;

/// The retrieval test: the fact that is hidden in a text, the question about it, and the answer.
const FACT: &str = "\nThe secret code of the lighthouse is 48213.\n";
const QUESTION: &str = "\nThe secret code of the lighthouse is";
const ANSWER: &str = " 48213";
/// Tokens whose logits are compared at once, so that they fit in memory.
const COMPARED: usize = 256;

#[derive(Serialize)]
struct Report {
    device: &'static str,
    device_name: String,
    dtype: Dtype,
    tokens: usize,
    window: usize,
    /// Number of tokens that were predicted.
    predicted: u64,
    dense_perplexity: f64,
    /// With the pattern.
    #[serde(flatten)]
    sparse: Option<Difference>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    needles: Vec<Needle>,
    /// What is wrong with the logits, if not all are finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_finite: Option<String>,
    layers: Vec<report::LayerReport>,
}

#[derive(Serialize)]
struct Difference {
    perplexity: f64,
    /// Share of the predictions in which both find the same token most likely.
    top1_agreement: f64,
    /// Mean Kullback-Leibler divergence of the pattern's distribution from the dense one, nats.
    kl_divergence: f64,
}

#[derive(Serialize)]
struct Needle {
    tokens: usize,
    depth: f32,
    attention: &'static str,
    /// Share of the answer's tokens that were right, up to the first that was not.
    found: f32,
}

pub(crate) fn run(command: &Command, json: bool) -> Result<(), Failure> {
    let folder = open(&command.model)?;
    let chat = Chat::open(&command.model).map_err(Failure::bad)?;
    let text = source::read_text(&command.text)?;
    let encode = |text: &str| chat.encode(text, false).map_err(Failure::bad);
    let tokens = encode(&text)?;
    if tokens.len() < 2 {
        let error = format!("has {} tokens; give at least 2", tokens.len());
        return Err(Failure::file(&command.text, error));
    }
    let limit = folder.config.max_positions as usize;
    let window = command.window.map_or(limit, |n| n as usize);
    let window = window.min(tokens.len());
    if window < 2 {
        let config = command.model.join("config.json");
        let error = "`max_position_embeddings` is 1: no token is left to predict; give the model's own, or --window";
        return Err(Failure::file(&config, error));
    }
    let fact = [encode(FACT)?, encode(QUESTION)?, encode(ANSWER)?];
    let longest = command.needle.iter().max().copied().unwrap_or(0) as usize;
    let most = window.max(longest + fact[2].len());
    warn_of_length(&folder.config, most);
    let capacity = command.run.capacity.map_or(most, |n| n as usize).max(most);
    let sparse = sparse(&command.run, capacity)?;
    let dense = match &sparse {
        Some(sparse) => Policy::dense(&folder.config, &sparse.plan).map_err(Failure::bad)?,
        None => policy(&folder.config, None, &command.model)?,
    };
    let swapped = match &sparse {
        None => None,
        sparse => Some(policy(&folder.config, sparse.as_ref(), &command.model)?),
    };
    if let Some(path) = &command.plot {
        check_file(path).map_err(Failure::bad)?;
    }
    let work = Work {
        command,
        folder: &folder,
        dense: &dense,
        swapped: swapped.as_ref(),
        tokens: &tokens,
        fact: &fact,
        window,
        capacity,
    };
    let setting = Setting {
        config: &folder.config,
        path: &command.model,
        dtype: folder.config.dtype,
        sparse: sparse.as_ref(),
    };
    let report = run_on(&command.run, &setting, work)?;
    if let Some(path) = &command.plot {
        let cells = report.needles.iter();
        let cells = cells.map(|n| (n.attention, n.tokens, n.depth, n.found));
        let plot = svg::needles(&cells.collect::<Vec<_>>());
        write_file(path, plot.as_bytes()).map_err(Failure::bad)?;
    }
    crate::print(json, &report, || text_of(&report))?;
    finite::check(report.not_finite)
}

fn text_of(report: &Report) -> String {
    let mut text = format!(
        "{} tokens in windows of {} on {} ({}), {}\ndense perplexity {:.4}\n",
        report.tokens,
        report.window,
        report.device,
        report.device_name,
        report.dtype.name(),
        report.dense_perplexity
    );
    if let Some(sparse) = &report.sparse {
        text += &format!(
            "with the pattern {:.4}; same most likely token at {:.2} %, KL divergence {:.5} nats\n",
            sparse.perplexity,
            100.0 * sparse.top1_agreement,
            sparse.kl_divergence
        );
    }
    for needle in &report.needles {
        text += &format!(
            "fact in {:>8} tokens at {:.2}, {:<9}: {:.0} % of the answer\n",
            needle.tokens,
            needle.depth,
            needle.attention,
            100.0 * needle.found
        );
    }
    text + &report::text(&report.layers)
}

struct Work<'a> {
    command: &'a Command,
    folder: &'a Checkpoint,
    dense: &'a Policy,
    swapped: Option<&'a Policy>,
    tokens: &'a [u32],
    fact: &'a [Vec<u32>; 3],
    window: usize,
    capacity: usize,
}

/// Sums over the predicted tokens.
#[derive(Default)]
struct Sums {
    count: u64,
    dense: f64,
    sparse: f64,
    agree: u64,
    divergence: f64,
    watch: Watch,
}

impl Task for Work<'_> {
    type Output = Report;

    fn run<B: AttentionBackend>(self, place: Place<B>) -> Result<Report, Failure> {
        let compared = COMPARED.min(self.window) as u64;
        let needle = match self.command.needle.is_empty() {
            true => 0,
            false => chunk_of::<B>(&self.command.run).into(),
        };
        let (capacity, chunk) = (self.capacity as u64, compared.max(needle));
        let policies = [Some(self.dense), self.swapped].into_iter().flatten();
        let cached = policies.map(|policy| policy.cached(capacity, chunk));
        // Two sequences: one with the pattern, one without.
        let extent = Extent {
            batch: 2,
            capacity,
            cached: cached.max().unwrap_or_default(),
            chunk,
            logits: compared,
        };
        // Logits in f32, and log-probabilities of a row in f64, each with the pattern and without.
        let each = u64::from(self.folder.sizes.vocabulary);
        let on_host = each.saturating_mul(2 * 4 * compared + 2 * 8);
        let (model, ..) = place.load(self.folder, extent, on_host)?;
        let mut sums = Sums::default();
        let bar = crate::progress(self.tokens.len() as u64, "tokens");
        for window in self.tokens.chunks(self.window) {
            if !self.compare(&model, window, &mut sums, &bar)? {
                break;
            }
        }
        bar.finish_and_clear();
        let mut needles = Vec::new();
        let policies = [
            Some(("dense", self.dense)),
            self.swapped.map(|policy| ("butterfly", policy)),
        ];
        let policies: Vec<_> = policies.into_iter().flatten().collect();
        let all: u64 = self.command.needle.iter().map(|n| u64::from(*n)).sum();
        let each = (self.command.depths.len() * policies.len()) as u64;
        let bar = crate::progress(all * each, "tokens with needles");
        for &tokens in &self.command.needle {
            for &depth in &self.command.depths {
                for &(attention, policy) in &policies {
                    let watch = (&mut sums.watch, &bar);
                    needles.push(Needle {
                        tokens: tokens as usize,
                        depth,
                        attention,
                        found: self.needle(&model, policy, (tokens, depth), watch)?,
                    });
                }
            }
        }
        bar.finish_and_clear();
        let mean = |sum: f64| sum / sums.count.max(1) as f64;
        let [dense, swapped] = [sums.dense, sums.sparse].map(|sum| mean(sum).exp());
        let unlikely = || {
            let beyond = !dense.is_finite() || !swapped.is_finite();
            beyond.then(|| "the perplexity is beyond the range of numbers: the model rules out tokens of this text; give the config.json that belongs to these weights".to_string())
        };
        let said = sums.watch.says(Some(self.folder), place.dtype);
        Ok(Report {
            device: place.kind,
            device_name: place.name,
            dtype: place.dtype,
            tokens: self.tokens.len(),
            window: self.window,
            predicted: sums.count,
            dense_perplexity: dense,
            sparse: self.swapped.map(|_| Difference {
                perplexity: swapped,
                top1_agreement: mean(sums.agree as f64),
                kl_divergence: mean(sums.divergence),
            }),
            needles,
            not_finite: said.or_else(unlikely),
            layers: report::layers(self.swapped.unwrap_or(self.dense)),
        })
    }
}

impl Work<'_> {
    /// Runs both kinds of attention over one window, [`COMPARED`] tokens at a time, and adds to
    /// `sums`. Returns whether all logits were finite.
    fn compare<B: AttentionBackend>(
        &self,
        model: &Model<B>,
        window: &[u32],
        sums: &mut Sums,
        bar: &indicatif::ProgressBar,
    ) -> Result<bool, Failure> {
        let vocabulary = model.sizes.vocabulary as usize;
        let capacity = Some(self.window);
        let mut dense = model.state(1, capacity, self.dense);
        let mut sparse = self
            .swapped
            .map(|policy| (model.state(1, capacity, policy), policy));
        dense.set_prompt(window.len());
        if let Some((state, _)) = &mut sparse {
            state.set_prompt(window.len());
        }
        for (i, chunk) in window.chunks(COMPARED).enumerate() {
            let logits = model.forward(chunk, &mut dense, self.dense, Logits::All);
            let a = super::floats(logits.map_err(Failure::bad)?)?;
            let b = match &mut sparse {
                None => None,
                Some((state, policy)) => {
                    let logits = model.forward(chunk, state, policy, Logits::All);
                    Some(super::floats(logits.map_err(Failure::bad)?)?)
                }
            };
            for logits in [Some(&a), b.as_ref()].into_iter().flatten() {
                if !sums.watch.see(logits, vocabulary, [0, i * COMPARED]) {
                    return Ok(false);
                }
            }
            for at in 0..chunk.len() {
                let Some(next) = window.get(i * COMPARED + at + 1) else {
                    continue;
                };
                let row = at * vocabulary..(at + 1) * vocabulary;
                let a = log_softmax(&a[row.clone()]);
                sums.count += 1;
                sums.dense -= a[*next as usize];
                if let Some(b) = &b {
                    let b = log_softmax(&b[row]);
                    sums.sparse -= b[*next as usize];
                    sums.agree += u64::from(most_likely(&a) == most_likely(&b));
                    let terms = a.iter().zip(&b);
                    sums.divergence += terms.map(|(a, b)| a.exp() * (a - b)).sum::<f64>();
                }
            }
            bar.inc(chunk.len() as u64);
        }
        Ok(true)
    }

    /// The share of the answer that the model gives when the fact is hidden in `tokens` tokens.
    fn needle<B: AttentionBackend>(
        &self,
        model: &Model<B>,
        policy: &Policy,
        (tokens, depth): (u32, f32),
        (watch, bar): (&mut Watch, &indicatif::ProgressBar),
    ) -> Result<f32, Failure> {
        let [fact, question, answer] = self.fact;
        let room = (tokens as usize).saturating_sub(fact.len() + question.len());
        #[expect(clippy::cast_possible_truncation, reason = "a share of `room`")]
        let at = (room as f32 * depth) as usize;
        // The text is repeated if it is shorter.
        let hay: Vec<u32> = self.tokens.iter().cycle().take(room).copied().collect();
        let (before, after) = hay.split_at(at);
        let prompt = [before, fact, after, question].concat();
        let mut continuation = Continuation {
            model,
            policy,
            state: model.state(1, Some(prompt.len() + answer.len()), policy),
            texts: vec![(Sampler::new(Default::default()), 0)],
            watch: std::mem::take(watch),
            interrupt: None,
        };
        let chunk = chunk_of::<B>(&self.command.run) as usize;
        let mut token = continuation.prefill(&[&prompt], chunk, bar)?;
        let mut right = 0;
        while right < answer.len() && token == [Some(answer[right])] {
            right += 1;
            if right < answer.len() {
                token = continuation.next(&answer[right - 1..right])?;
            }
        }
        *watch = continuation.watch;
        Ok(right as f32 / answer.len() as f32)
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = logits.iter().map(|x| f64::from(x - top));
    let total = shifted.clone().map(f64::exp).sum::<f64>().ln();
    shifted.map(|x| x - total).collect()
}

fn most_likely(logits: &[f64]) -> usize {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

//! Runs the model: damages of parts, costs of sets, and the verification.

use super::super::finite::Watch;
use super::super::memory::Use;
use super::super::{Place, Task, chunk_of, dense, report};
use super::Calibration;
use super::partial::{Entry, Partial, Replaced};
use super::recall::{Questions, Recall};
use super::report::{Cost, Point, Report};
use super::room::Needs;
use crate::failure::Failure;
use butterfly::AttentionBackend;
use butterfly_models::calibrate::{
    Comparison, Front, Reading, Reference, Site, count, grid, largest, ranked,
};
use butterfly_models::{Chosen, Model, Policy, PolicyFile};
use indicatif::ProgressBar;
use std::collections::{BTreeMap, btree_map};
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

pub(super) struct Work<'a> {
    pub(super) task: &'a Calibration<'a>,
    pub(super) partial: Partial,
}

/// A model in the middle of its calibration.
struct Measurement<'a, B: AttentionBackend> {
    task: &'a Calibration<'a>,
    place: Place<B>,
    partial: Partial,
    model: Model<B>,
    dense: Policy,
    reading: Reading,
    needs: Needs,
    /// The last window that was read, whether it verifies, and its dense pass.
    last: Option<(usize, bool, Rc<Reference<B>>)>,
    /// Bytes that the device had in use at most.
    peak: Option<u64>,
}

impl Task for Work<'_> {
    type Output = (Report, PolicyFile, Partial);

    fn run<B: AttentionBackend>(self, place: Place<B>) -> Result<Self::Output, Failure> {
        let Self { task, partial } = self;
        let started = Instant::now();
        let (subject, resumed) = (&task.subject, partial.len());
        let dense = dense()?;
        let dense = Policy::dense(&subject.config, &dense).map_err(Failure::bad)?;
        let reading = task.reading(chunk_of::<B>(&task.command.run) as usize);
        let needs = Needs::check(task, &place, &dense, &reading)?;
        let model = subject.load(&place)?;
        let mut measurement = Measurement {
            task,
            place,
            partial,
            model,
            dense,
            reading,
            needs,
            last: None,
            peak: None,
        };
        let damages = match &task.earlier {
            Some(earlier) => earlier.damages.clone(),
            None => measurement.damages()?,
        };
        let order = ranked(&damages);
        let (mut curve, parts) = measurement.choose(&order)?;
        let pattern = task.pattern(&order[..parts])?;
        let policy = task.policy(&pattern)?;
        let verified = measurement.verify(&policy)?;
        measurement.recalls(&order, &mut curve)?;
        let chosen = curve.iter().find(|point| point.parts == parts).copied();
        let chosen =
            chosen.ok_or_else(|| Failure::Bad("the chosen set was not measured".into()))?;
        let (damage, replaced) = task.table(&damages, &order[..parts]);
        let mut file = PolicyFile::new(
            subject.shape(),
            &pattern,
            Chosen {
                by: task.command.by.into(),
                share: chosen.share,
                kl_nats: verified.kl_nats,
                top1: verified.top1,
                perplexity_ratio: verified.perplexity_ratio,
                text_digest: task.text.digest.clone(),
                tokens: verified.scored,
                random_weights: subject.seed(),
            },
            damage.clone(),
        );
        let ranking = task.earlier.as_ref().map(|earlier| earlier.ranking.clone());
        file.ranking.clone_from(&ranking);
        let Measurement {
            place,
            partial,
            needs,
            peak,
            ..
        } = measurement;
        let report = Report {
            device: place.kind,
            device_name: place.name,
            dtype: place.dtype,
            model: subject.path.display().to_string(),
            random_weights: subject.seed(),
            text: task.text.name.clone(),
            tokens: task.text.tokens.len(),
            window: task.text.window,
            windows: task.text.windows,
            scored: reading.scored(task.text.window),
            same: task.same,
            skip: task.skip,
            every: task.every,
            tail: task.tail.unwrap_or(0),
            by: task.command.by.into(),
            replaces: task.sparsity.to_string(),
            ranking,
            damage,
            replaced,
            curve,
            chosen,
            verified,
            pattern: pattern.to_string(),
            layers: report::layers(&policy),
            resumed,
            seconds: started.elapsed().as_secs_f64(),
            memory: Use {
                memory_bytes: peak,
                planned_bytes: needs.device.total().saturating_add(needs.device.mapped),
            },
            logits_bytes: needs.logits,
            output: task.command.output.display().to_string(),
        };
        Ok((report, file, partial))
    }
}

impl<B: AttentionBackend> Measurement<'_, B> {
    /// A window by dense attention.
    fn reference(&mut self, window: usize, verify: bool) -> Result<Rc<Reference<B>>, Failure> {
        // The last one is freed before the next is made.
        if let Some((known, verified, reference)) = self.last.take()
            && (known, verified) == (window, verify)
        {
            self.last = Some((window, verify, reference.clone()));
            return Ok(reference);
        }
        let tokens = self.task.text.window(window, verify);
        let reference = Reference::new(&self.model, tokens, &self.dense, self.reading);
        let reference = Rc::new(reference.map_err(Failure::bad)?);
        let mut watch = Watch::default();
        let vocabulary = self.model.sizes.vocabulary as usize;
        watch.see(reference.logits(), vocabulary, [0, self.reading.skip]);
        match watch.says(self.task.subject.checkpoint(), self.place.dtype) {
            None => {
                self.last = Some((window, verify, reference.clone()));
                Ok(reference)
            }
            Some(said) => Err(Failure::Check(said)),
        }
    }

    /// Compares a policy from a layer on, and counts the layers on `bar`.
    fn compare(
        &mut self,
        front: &Front<'_, B>,
        policy: &Policy,
        bar: &ProgressBar,
    ) -> Result<Comparison, Failure> {
        let sums = front.compare(policy).map_err(Failure::bad)?;
        self.peak = self.peak.max(self.place.memory.taken());
        bar.inc((self.model.config.layers.len() - front.layer()) as u64);
        if sums.kl.is_finite() && sums.loss.is_finite() {
            return Ok(sums);
        }
        Err(Failure::Check(format!(
            "from layer {} on, the pattern makes logits that are not finite, or rules out a token of the text; give another pattern, or --dtype f32",
            front.layer()
        )))
    }

    /// The damage of each part, in nats for each scored position.
    fn damages(&mut self) -> Result<Vec<(Site, f64)>, Failure> {
        let task = self.task;
        let layers = self.model.config.layers.len();
        let missing = |partial: &Partial, window: usize| -> Vec<Site> {
            let known = |site: &Site| partial.find(window, Replaced::Site(*site)).is_some();
            task.sites
                .iter()
                .copied()
                .filter(|site| !known(site))
                .collect()
        };
        let open: Vec<Vec<Site>> = (0..task.text.windows)
            .map(|i| missing(&self.partial, i))
            .collect();
        let work = |site: &Site| (layers - site.layer as usize) as u64;
        let all = open.iter().flatten().map(work).sum();
        let bar = crate::progress(all, "damage of each part, layers");
        let mut policies: BTreeMap<Site, Policy> = BTreeMap::new();
        for (window, open) in open.into_iter().enumerate() {
            if open.is_empty() {
                continue;
            }
            let reference = self.reference(window, false)?;
            let model = self.model.clone();
            let mut front = Front::new(&model, &reference).map_err(Failure::bad)?;
            for site in open {
                while front.layer() < site.layer as usize {
                    front.advance(&self.dense).map_err(Failure::bad)?;
                }
                let policy = match policies.entry(site) {
                    btree_map::Entry::Occupied(made) => made.into_mut(),
                    btree_map::Entry::Vacant(none) => {
                        none.insert(task.policy(&task.pattern(&[site])?)?)
                    }
                };
                let sums = self.compare(&front, policy, &bar)?;
                self.partial.add(Entry {
                    window,
                    replaced: Replaced::Site(site),
                    sums,
                })?;
            }
        }
        bar.finish_and_clear();
        let sum = |site: &Site| self.sum(Replaced::Site(*site)).kl_nats();
        Ok(task.sites.iter().map(|site| (*site, sum(site))).collect())
    }

    /// What was measured on all windows.
    fn sum(&self, replaced: Replaced) -> Comparison {
        let mut sum = Comparison::default();
        for window in 0..self.task.text.windows {
            if let Some(sums) = self.partial.find(window, replaced) {
                sum += sums;
            }
        }
        sum
    }

    /// Costs of the sets of the first `counts` parts, together.
    fn sets(&mut self, order: &[Site], counts: &[usize]) -> Result<Vec<Comparison>, Failure> {
        let task = self.task;
        let missing = |partial: &Partial, window| -> Vec<usize> {
            let known = |count: &usize| partial.find(window, Replaced::First(*count)).is_some();
            counts
                .iter()
                .copied()
                .filter(|count| !known(count))
                .collect()
        };
        let open: Vec<Vec<usize>> = (0..task.text.windows)
            .map(|i| missing(&self.partial, i))
            .collect();
        let layers = self.model.config.layers.len();
        let all = open.iter().flatten().filter(|count| **count > 0).count() * layers;
        let bar = crate::progress(all as u64, "sets of parts, layers");
        for (window, open) in open.into_iter().enumerate() {
            if open.is_empty() {
                continue;
            }
            let reference = self.reference(window, false)?;
            let model = self.model.clone();
            let front = Front::new(&model, &reference).map_err(Failure::bad)?;
            for count in open {
                let sums = match count {
                    0 => reference.unchanged(&model),
                    _ => {
                        let policy = task.policy(&task.pattern(&order[..count])?)?;
                        self.compare(&front, &policy, &bar)?
                    }
                };
                self.partial.add(Entry {
                    window,
                    replaced: Replaced::First(count),
                    sums,
                })?;
            }
        }
        bar.finish_and_clear();
        Ok(counts
            .iter()
            .map(|count| self.sum(Replaced::First(*count)))
            .collect())
    }

    /// The curve, in rising order of parts, and the number of parts that are replaced.
    fn choose(&mut self, order: &[Site]) -> Result<(Vec<Point>, usize), Failure> {
        let command = self.task.command;
        let all = order.len();
        let mut counts = grid(all);
        let by_share = match command.max_kl {
            Some(_) => None,
            None => Some(count(command.share.unwrap_or(0.5), all)),
        };
        if let Some(count) = by_share
            && !counts.contains(&count)
        {
            counts.push(count);
            counts.sort_unstable();
        }
        let costs = self.sets(order, &counts)?;
        let mut measured: BTreeMap<usize, Comparison> = counts.into_iter().zip(costs).collect();
        let chosen = match (by_share, command.max_kl) {
            (Some(count), _) => count,
            (None, most) => {
                let known = measured
                    .iter()
                    .map(|(count, sums)| (*count, sums.kl_nats()));
                let known: Vec<(usize, f64)> = known.collect();
                largest(&known, most.unwrap_or(0.0), |count| {
                    let sums = self.sets(order, &[count])?[0];
                    measured.insert(count, sums);
                    Ok::<_, Failure>(sums.kl_nats())
                })?
            }
        };
        let points = measured.into_iter().map(|(parts, sums)| Point {
            parts,
            share: parts as f64 / all.max(1) as f64,
            cost: sums.into(),
            retrieval: None,
        });
        Ok((points.collect(), chosen))
    }

    /// The policy on the windows that the choice has not seen.
    fn verify(&mut self, policy: &Policy) -> Result<Cost, Failure> {
        let layers = self.model.config.layers.len() * self.task.text.windows;
        let bar = crate::progress(layers as u64, "verification, layers");
        let mut sum = Comparison::default();
        for window in 0..self.task.text.windows {
            let reference = self.reference(window, true)?;
            let model = self.model.clone();
            let front = Front::new(&model, &reference).map_err(Failure::bad)?;
            sum += self.compare(&front, policy, &bar)?;
        }
        bar.finish_and_clear();
        Ok(sum.into())
    }

    /// Adds what each set of a curve finds in prompts, if that was asked for.
    fn recalls(&mut self, order: &[Site], curve: &mut [Point]) -> Result<(), Failure> {
        let task = self.task;
        let Some(questions) = &task.questions else {
            return Ok(());
        };
        self.last = None;
        self.place.memory.release();
        let chunk = chunk_of::<B>(&task.command.run) as usize;
        let together = questions.together(B::ON_HOST, |prompts| {
            let needs = self
                .needs
                .asking::<B>(task, &self.place, &self.dense, (prompts, chunk));
            self.place.has_room(Path::new(""), &needs)
        });
        for point in curve {
            let known = self
                .partial
                .recall(point.parts, |recall| questions.made(recall));
            let recall = match known {
                Some(recall) => recall,
                None => {
                    let chosen = &order[..point.parts];
                    let recall = self.recall(questions, chosen, (together, chunk))?;
                    self.partial.add_recall(point.parts, recall)?;
                    recall
                }
            };
            point.retrieval = Some(recall);
        }
        Ok(())
    }

    /// What the set of `chosen` parts finds.
    fn recall(
        &self,
        questions: &Questions,
        chosen: &[Site],
        sizes: (usize, usize),
    ) -> Result<Recall, Failure> {
        let made;
        let policy = match chosen {
            [] => &self.dense,
            _ => {
                made = self.task.policy(&self.task.pattern(chosen)?)?;
                &made
            }
        };
        let (text, mut watch) = (&self.task.text.tokens, Watch::default());
        let recall = questions.ask((&self.model, policy), text, sizes, &mut watch)?;
        match watch.says(self.task.subject.checkpoint(), self.place.dtype) {
            None => Ok(recall),
            Some(said) => Err(Failure::Check(said)),
        }
    }
}

//! Runs the model: damages of parts, costs of sets, and the verification.

use super::super::finite::Watch;
use super::super::{Place, Task, chunk_of, dense, jit, report};
use super::Calibration;
use super::partial::{Entry, Partial, Replaced};
use super::report::{Cost, Point, Report};
use crate::failure::Failure;
use butterfly::AttentionBackend;
use butterfly_ir::{Dtype, Sparsity};
use butterfly_models::calibrate::{
    Comparison, Front, Reading, Reference, Site, compose, count, grid, largest, ranked,
};
use butterfly_models::{Chosen, Extent, Footprint, Model, ModelShape, Policy, PolicyFile};
use indicatif::ProgressBar;
use std::collections::{BTreeMap, btree_map};
use std::time::Instant;

pub(super) struct Work<'a> {
    pub(super) task: &'a Calibration<'a>,
    pub(super) partial: Partial,
}

/// A model in the middle of its calibration.
struct Measurement<'a, B: AttentionBackend> {
    task: &'a Calibration<'a>,
    partial: Partial,
    model: Model<B>,
    dtype: Dtype,
    dense: Policy,
    reading: Reading,
}

impl Task for Work<'_> {
    type Output = (Report, PolicyFile, Partial);

    fn run<B: AttentionBackend>(self, place: Place<B>) -> Result<Self::Output, Failure> {
        let Self { task, partial } = self;
        let started = Instant::now();
        let (folder, resumed) = (&task.folder, partial.len());
        let dense = dense()?;
        let dense = Policy::dense(&folder.config, &dense).map_err(Failure::bad)?;
        let reading = Reading {
            same: task.same,
            skip: task.skip,
            every: task.every,
            chunk: chunk_of::<B>(&task.command.run) as usize,
            capacity: task.capacity,
        };
        let scored = reading.scored(task.window);
        let model = load(task, &place, &dense, &reading)?;
        let mut measurement = Measurement {
            task,
            partial,
            model,
            dtype: place.dtype,
            dense,
            reading,
        };
        let damages = measurement.damages()?;
        let order = ranked(&damages);
        let (curve, parts) = measurement.choose(&order)?;
        let pattern = task.pattern(&order[..parts])?;
        let policy = task.policy(&pattern)?;
        let verified = measurement.verify(&policy)?;
        let chosen = curve.iter().find(|point| point.parts == parts).copied();
        let chosen =
            chosen.ok_or_else(|| Failure::Bad("the chosen set was not measured".into()))?;
        let (damage, replaced) = task.table(&damages, &order[..parts]);
        let file = PolicyFile::new(
            ModelShape::new(&folder.config, &folder.sizes),
            &pattern,
            Chosen {
                by: task.command.by.into(),
                share: chosen.share,
                kl_nats: verified.kl_nats,
                top1: verified.top1,
                perplexity_ratio: verified.perplexity_ratio,
                text_digest: task.text_digest.clone(),
                tokens: verified.scored,
            },
            damage.clone(),
        );
        let report = Report {
            device: place.kind,
            device_name: place.name,
            dtype: place.dtype,
            model: task.command.model.display().to_string(),
            text: task.command.text.display().to_string(),
            tokens: task.tokens.len(),
            window: task.window,
            windows: task.windows,
            scored,
            same: task.same,
            skip: task.skip,
            every: task.every,
            tail: task.tail.unwrap_or(0),
            by: task.command.by.into(),
            replaces: task.sparsity.to_string(),
            damage,
            replaced,
            curve,
            chosen,
            verified,
            pattern: pattern.to_string(),
            layers: report::layers(&policy),
            resumed,
            seconds: started.elapsed().as_secs_f64(),
            output: task.command.output.display().to_string(),
        };
        Ok((report, file, measurement.partial))
    }
}

/// Loads the model, after checking that there is room for it and for all that is kept.
fn load<B: AttentionBackend>(
    task: &Calibration<'_>,
    place: &Place<B>,
    dense: &Policy,
    reading: &Reading,
) -> Result<Model<B>, Failure> {
    let folder = &task.folder;
    let tokens = task.window as u64;
    // Two sequences: the tokens that all policies share, and a policy.
    let extent = Extent {
        batch: 2,
        capacity: tokens,
        cached: dense.attention().count() as u64 * tokens,
        chunk: (reading.chunk as u64).min(tokens),
        logits: tokens.min(256),
    };
    let taken = Model::<B>::check(folder, place.dtype, &place.device).map_err(Failure::bad)?;
    let mut needs = Footprint::new::<B>(&folder.config, &folder.sizes, taken, place.dtype, extent);
    // The residual stream of a window and what is not yet added to it, before and after a layer.
    let stream = u64::from(folder.sizes.hidden) * u64::from(4 + place.dtype.bytes());
    needs.activations = needs.activations.saturating_add(2 * stream * tokens);
    // Dense logits of the scored positions; those of some by a policy, as they come and in f32.
    let rows = reading.scored(task.window) as u64 + 2 * extent.logits;
    let on_host = rows.saturating_mul(4 * u64::from(folder.sizes.vocabulary));
    place.check_room(&folder.config_file(), &needs, on_host)?;
    place.load_checked(folder).map(|(model, _)| model)
}

impl Calibration<'_> {
    /// The pattern that replaces `chosen`.
    fn pattern(&self, chosen: &[Site]) -> Result<Sparsity, Failure> {
        compose(&self.folder.config, &self.sparsity, chosen, self.tail)
            .map_err(|error| Failure::file(&self.command.model, error))
    }

    /// The policy that runs a pattern.
    fn policy(&self, pattern: &Sparsity) -> Result<Policy, Failure> {
        let plan = jit(pattern.clone())?;
        let policy = Policy::new(&self.folder.config, &plan, pattern);
        policy.map_err(|error| Failure::file(&self.command.model, error))
    }

    /// Damages, and whether each part is chosen, by layer and head.
    fn table(&self, damages: &[(Site, f64)], chosen: &[Site]) -> (Vec<Vec<f64>>, Vec<Vec<bool>>) {
        let rows = |layer: u32| damages.iter().filter(move |(site, _)| site.layer == layer);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a model has at most 4096 layers"
        )]
        let layers = 0..self.folder.config.layers.len() as u32;
        let row = |layer| {
            let row = rows(layer).map(|(site, damage)| (*damage, chosen.contains(site)));
            row.unzip::<_, _, Vec<_>, Vec<_>>()
        };
        layers.map(row).unzip()
    }
}

impl<B: AttentionBackend> Measurement<'_, B> {
    /// A window by dense attention.
    fn reference(&self, tokens: &[u32]) -> Result<Reference<B>, Failure> {
        let reference = Reference::new(&self.model, tokens, &self.dense, self.reading);
        let reference = reference.map_err(Failure::bad)?;
        let mut watch = Watch::default();
        let vocabulary = self.model.sizes.vocabulary as usize;
        watch.see(reference.logits(), vocabulary, [0, self.reading.skip]);
        match watch.says(Some(&self.task.folder), self.dtype) {
            None => Ok(reference),
            Some(said) => Err(Failure::Check(said)),
        }
    }

    /// Compares a policy from a layer on, and counts the layers on `bar`.
    fn compare(
        &self,
        front: &Front<'_, B>,
        policy: &Policy,
        bar: &ProgressBar,
    ) -> Result<Comparison, Failure> {
        let sums = front.compare(policy).map_err(Failure::bad)?;
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
        let open: Vec<Vec<Site>> = (0..task.windows)
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
            let reference = self.reference(task.window(window, false))?;
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
        for window in 0..self.task.windows {
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
        let open: Vec<Vec<usize>> = (0..task.windows)
            .map(|i| missing(&self.partial, i))
            .collect();
        let layers = self.model.config.layers.len();
        let all = open.iter().flatten().filter(|count| **count > 0).count() * layers;
        let bar = crate::progress(all as u64, "sets of parts, layers");
        for (window, open) in open.into_iter().enumerate() {
            if open.is_empty() {
                continue;
            }
            let reference = self.reference(task.window(window, false))?;
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
        });
        Ok((points.collect(), chosen))
    }

    /// The policy on the windows that the choice has not seen.
    fn verify(&self, policy: &Policy) -> Result<Cost, Failure> {
        let layers = self.model.config.layers.len() * self.task.windows;
        let bar = crate::progress(layers as u64, "verification, layers");
        let mut sum = Comparison::default();
        for window in 0..self.task.windows {
            let reference = self.reference(self.task.window(window, true))?;
            let front = Front::new(&self.model, &reference).map_err(Failure::bad)?;
            sum += self.compare(&front, policy, &bar)?;
        }
        bar.finish_and_clear();
        Ok(sum.into())
    }
}

//! Measured damages → which parts of a model's attention are replaced.
//!
//! In:  the damage of each part alone, and a function that measures sets together. Out: the parts in
//! the order in which they are replaced, and how many of them.

use butterfly_ir::model::ModelConfig;
use serde::{Deserialize, Serialize};

/// What is replaced on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A layer with all of its heads.
    Layer,
    /// A kv head, with the q heads that it serves; with latent attention, which is expanded to full
    /// heads in prefill, a q head.
    Head,
}

impl Unit {
    /// The name in flags and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Head => "head",
        }
    }

    /// How many of them an attention layer of this model has.
    pub fn in_layer(self, model: &ModelConfig) -> u32 {
        match self {
            Self::Layer => 1,
            Self::Head => model.attention.kv_heads(),
        }
    }
}

/// A part of a model's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// The layer, by its index in the model.
    pub layer: u32,
    /// The head; `None` for all of them.
    pub head: Option<u32>,
}

/// The parts of `layers`, layer by layer.
pub fn sites(model: &ModelConfig, unit: Unit, layers: &[u32]) -> Vec<Site> {
    let of_layer = |&layer: &u32| {
        let heads = match unit {
            Unit::Layer => vec![None],
            Unit::Head => (0..unit.in_layer(model)).map(Some).collect(),
        };
        heads.into_iter().map(move |head| Site { layer, head })
    };
    layers.iter().flat_map(of_layer).collect()
}

/// The parts from the least harmful on; of equal damages, in nats, the earlier part comes first.
pub fn ranked(damages: &[(Site, f64)]) -> Vec<Site> {
    let mut order = damages.to_vec();
    order.sort_by(|(a, x), (b, y)| x.total_cmp(y).then(a.cmp(b)));
    order.into_iter().map(|(site, _)| site).collect()
}

/// The largest number of parts that is no more than a share, 0 to 1, of `all`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of `all`"
)]
pub fn count(share: f64, all: usize) -> usize {
    // 0.7 of 90 is 62.999… in binary.
    ((share * all as f64 + 1e-9).floor().max(0.0) as usize).min(all)
}

/// Numbers of parts at shares 0, 1/8, …, 1 of `all`, each once.
pub fn grid(all: usize) -> Vec<usize> {
    let mut counts: Vec<usize> = (0..=8).map(|eighths| eighths * all / 8).collect();
    counts.dedup();
    counts
}

/// The largest set whose divergence, measured together, is at most `most` nats: `measured` holds
/// numbers of parts in rising order, the first of which is 0, each with the divergence of the set of so
/// many. Between the last of them that is good enough and the next, `measure` is asked; the
/// divergence is taken to rise there.
///
/// # Errors
/// That of `measure`.
pub fn largest<E>(
    measured: &[(usize, f64)],
    most: f64,
    mut measure: impl FnMut(usize) -> Result<f64, E>,
) -> Result<usize, E> {
    let Some(at) = measured.iter().rposition(|(_, kl)| *kl <= most) else {
        return Ok(0);
    };
    let mut good = measured[at].0;
    let Some((mut bad, _)) = measured.get(at + 1).copied() else {
        return Ok(good);
    };
    while bad - good > 1 {
        let middle = good.midpoint(bad);
        match measure(middle)? <= most {
            true => good = middle,
            false => bad = middle,
        }
    }
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn site(layer: u32, head: u32) -> Site {
        Site {
            layer,
            head: Some(head),
        }
    }

    #[test]
    fn equal_damages_are_ranked_by_place() {
        let damages = [
            (site(1, 1), 0.5),
            (site(1, 0), 0.5),
            (site(0, 2), 0.5),
            (site(2, 0), -1e-9),
            (site(0, 0), 0.7),
        ];
        let want = [(2, 0), (0, 2), (1, 0), (1, 1), (0, 0)].map(|(l, h)| site(l, h));
        assert_eq!(ranked(&damages), want);
        let mut turned = damages;
        turned.reverse();
        assert_eq!(ranked(&turned), want);
    }

    #[test]
    fn shares_are_counted_down() {
        let counts = [0.0, 0.1, 0.5, 0.7, 0.999, 1.0].map(|share| count(share, 90));
        assert_eq!(counts, [0, 9, 45, 63, 89, 90]);
        assert_eq!(count(0.5, 3), 1);
        assert_eq!(grid(90), [0, 11, 22, 33, 45, 56, 67, 78, 90]);
        assert_eq!(grid(3), [0, 1, 2, 3]);
        assert_eq!(grid(0), [0]);
    }

    #[test]
    fn the_largest_set_that_is_good_enough() {
        let kl = |count: usize| (count * count) as f64;
        let measured: Vec<(usize, f64)> = grid(40).into_iter().map(|n| (n, kl(n))).collect();
        for most in [0.0, 1.0, 99.0, 100.0, 101.0, 1599.0, 1600.0, 1e9] {
            let mut asked = Vec::new();
            let got = largest(&measured, most, |count| {
                asked.push(count);
                Ok::<_, Infallible>(kl(count))
            });
            let want = (0..=40).filter(|n| kl(*n) <= most).max();
            assert_eq!(got.ok(), want, "{most}");
            // Five parts lie between two points: three questions at most.
            assert!(asked.len() <= 3, "{asked:?}");
        }
        let failed = largest(&measured, 90.0, |_| Err("no"));
        assert_eq!(failed, Err("no"));
    }
}

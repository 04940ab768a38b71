//! The steps of feed-forward layers, dense and of experts.

use super::{Counter, Kind, Step};
use butterfly_ir::Dtype;
use butterfly_ir::model::{ExpertsShape, FeedForwardGate, Part};

impl Counter<'_> {
    /// The steps of the feed-forward layer of layer number `layer`.
    pub(super) fn feed_forward(&self, layer: u32) -> Vec<Step> {
        let sizes = self.subject.sizes;
        let wide = f64::from(sizes.intermediate);
        if self.is_gpt2() {
            let mut steps = self.product([wide, self.hidden], true);
            steps.push(self.over_rows(Part::Gates, 2.0 * self.bytes * wide));
            steps.extend(self.product([self.hidden, wide], true));
            return steps;
        }
        match self.routed(layer) {
            Some(shape) => self.experts(shape),
            None => self.gated(wide),
        }
    }

    /// The experts of a layer, if it has any.
    pub(super) fn routed(&self, layer: u32) -> Option<&ExpertsShape> {
        let shape = self.subject.sizes.experts.as_ref();
        shape.filter(|shape| !shape.dense.contains(&layer))
    }

    /// `down(activation(gate(x), up(x)))`, with `wide` elements within. As on Hopper, the product writes gated rows.
    fn gated(&self, wide: f64) -> Vec<Step> {
        let both = self.product_of(Part::Projections, self.rows, [2.0 * wide, self.hidden]);
        let bytes = both.bytes - self.bytes * self.rows * wide;
        let mut steps = vec![Step { bytes, ..both }];
        steps.extend(self.product([self.hidden, wide], false));
        steps
    }

    /// A router, the experts that it chooses, and the one that computes for every token.
    fn experts(&self, shape: &ExpertsShape) -> Vec<Step> {
        let [count, chosen, size] = [shape.count, shape.chosen, shape.intermediate].map(f64::from);
        let (hidden, bytes, rows) = (self.hidden, self.bytes, self.rows);
        let router = Step {
            // Logits, choice.
            kernels: 2,
            flop: 2.0 * rows * count * hidden,
            // Ids and weights of the chosen ones are 32 bits each.
            bytes: rows * (bytes * hidden + 8.0 * count + 8.0 * chosen)
                + self.stored(Part::Router) * count * hidden,
            ..self.over_rows(Part::Router, 0.0)
        };
        let biased = matches!(self.subject.sizes.gate, FeedForwardGate::Clamped { .. });
        let matrices = 3.0 * size * hidden;
        // Of a few rows, the next norm adds up what experts give, and the one for every token is one of them if it is as
        // large and there are no biases.
        let shared = shape.shared.as_ref();
        let same = shared.is_none_or(|shared| shared.intermediate == shape.intermediate);
        let apart = self.few() && same && !biased;
        let own = if apart {
            shared.map_or(0.0, |_| 1.0)
        } else {
            0.0
        };
        // Experts that no token chooses are not read: with independent choices, so many are expected to be.
        let read = own + count * (1.0 - (1.0 - chosen / count).powf(rows));
        let chosen = chosen + own;
        // Gathered rows, both halves of the inner vector, the gated one, the rows that are summed, and the sum.
        let moved = chosen * (2.0 * hidden + 4.0 * size + 2.0 * size + hidden) + hidden;
        let experts = Step {
            // Both products and the sum; where there are many, sorted pairs, their tiles, and the gate.
            kernels: match (rows * chosen > FEW_PAIRS, apart) {
                (true, _) => 6,
                (false, false) => 3,
                (false, true) => 2,
            },
            flop: 2.0 * rows * chosen * matrices,
            bytes: rows * bytes * moved
                + read * (matrices * self.stored(Part::Experts) + biases(biased, [size, hidden])),
            kind: Kind::Experts {
                pairs: rows * chosen,
                size,
                packed: self.stored(Part::Experts) < f64::from(Dtype::Bf16.bytes()),
                quantised: self.quantises(Part::Experts) && rows * chosen > FEW_PAIRS,
            },
            ..self.over_rows(Part::Experts, 0.0)
        };
        let mut steps = vec![router, experts];
        if let Some(shared) = shared.filter(|_| !apart) {
            steps.extend(self.gated(f64::from(shared.intermediate)));
        }
        steps
    }
}

/// Pairs of a row and an expert that are computed without being sorted.
pub(crate) const FEW_PAIRS: f64 = 64.0;

/// Bytes of the biases of an expert, which are f32.
fn biases(biased: bool, [size, hidden]: [f64; 2]) -> f64 {
    match biased {
        true => 4.0 * (2.0 * size + hidden),
        false => 0.0,
    }
}

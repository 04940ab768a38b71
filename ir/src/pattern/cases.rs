//! Patterns that differ by kv head and by layer.
//!
//! In:  a pattern with `per_head` or `per_layer`. Out: what one head or layer sees, a pattern without
//! them; and which heads see the same.

use super::{Leaf, Pattern, Sparsity};
use crate::Indices;
use serde::{Deserialize, Serialize};

/// What some of the kv heads, or layers, see. Of several cases that name an index, the first counts;
/// an index that none names sees nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The indices of these heads or layers.
    pub of: Indices,
    /// What they see.
    pub pattern: Pattern,
}

impl Case {
    /// The pattern of `index`.
    pub(crate) fn find(cases: &[Self], index: u32) -> Option<&Pattern> {
        let case = cases.iter().find(|case| case.of.contains(index));
        case.map(|case| &case.pattern)
    }
}

impl Sparsity {
    /// The same for the layer of index `layer` in the model, whose pattern has no `per_layer`.
    pub fn of_layer(&self, layer: u32) -> Self {
        Self {
            pattern: self.pattern.of_layer(layer),
            ..self.clone()
        }
    }
}

impl Pattern {
    /// What kv head `head` sees: the pattern without `per_head`.
    pub fn of_head(&self, head: u32) -> Self {
        self.rewritten(&|pattern| match pattern {
            Self::PerHead(cases) => Some(match Case::find(cases, head) {
                Some(case) => case.of_head(head),
                None => Leaf::None.into(),
            }),
            Self::PerLayer(_) | Self::Leaf(_) => None,
            Self::Or(..) | Self::And(..) | Self::Minus(..) => None,
        })
    }

    /// What the layer of index `layer` in the model sees: the pattern without `per_layer`.
    pub fn of_layer(&self, layer: u32) -> Self {
        self.rewritten(&|pattern| match pattern {
            Self::PerLayer(cases) => Some(match Case::find(cases, layer) {
                Some(case) => case.of_layer(layer),
                None => Leaf::None.into(),
            }),
            Self::PerHead(_) | Self::Leaf(_) => None,
            Self::Or(..) | Self::And(..) | Self::Minus(..) => None,
        })
    }

    /// The pattern with each part for which `of` gives another replaced by that one, as a whole.
    pub(super) fn rewritten(&self, of: &dyn Fn(&Self) -> Option<Self>) -> Self {
        if let Some(other) = of(self) {
            return other;
        }
        let part = |pattern: &Self| Box::new(pattern.rewritten(of));
        let cases = |cases: &[Case]| {
            let case = |case: &Case| Case {
                of: case.of.clone(),
                pattern: case.pattern.rewritten(of),
            };
            cases.iter().map(case).collect()
        };
        match self {
            Self::Leaf(leaf) => leaf.clone().into(),
            Self::Or(a, b) => Self::Or(part(a), part(b)),
            Self::And(a, b) => Self::And(part(a), part(b)),
            Self::Minus(a, b) => Self::Minus(part(a), part(b)),
            Self::PerHead(of) => Self::PerHead(cases(of)),
            Self::PerLayer(of) => Self::PerLayer(cases(of)),
        }
    }

    /// Whether kv heads of a layer can see different keys.
    pub fn is_by_head(&self) -> bool {
        self.nodes()
            .any(|pattern| matches!(pattern, Self::PerHead(_)))
    }

    /// Whether layers can differ in more than their stage.
    pub fn is_by_layer(&self) -> bool {
        self.nodes()
            .any(|pattern| matches!(pattern, Self::PerLayer(_)))
    }

    /// One past the largest kv head that a case names.
    pub fn named_heads(&self) -> u32 {
        self.named(|pattern| match pattern {
            Self::PerHead(cases) => cases,
            Self::PerLayer(_) | Self::Leaf(_) => &[],
            Self::Or(..) | Self::And(..) | Self::Minus(..) => &[],
        })
    }

    /// One past the largest layer that a case names.
    pub fn named_layers(&self) -> u32 {
        self.named(|pattern| match pattern {
            Self::PerLayer(cases) => cases,
            Self::PerHead(_) | Self::Leaf(_) => &[],
            Self::Or(..) | Self::And(..) | Self::Minus(..) => &[],
        })
    }

    fn named(&self, cases: impl Fn(&Self) -> &[Case]) -> u32 {
        let ends = self.nodes().flat_map(cases).map(|case| case.of.end());
        ends.max().unwrap_or_default()
    }

    /// As many kv heads as a model needs for every case to be taken, where no model is given.
    pub fn sample_heads(&self) -> u32 {
        let rest = self.nodes().any(|pattern| match pattern {
            Self::PerHead(cases) => cases.iter().any(|case| case.of.is_all()),
            Self::PerLayer(_) | Self::Leaf(_) => false,
            Self::Or(..) | Self::And(..) | Self::Minus(..) => false,
        });
        (self.named_heads() + u32::from(rest)).max(1)
    }

    /// The distinct patterns of `kv_heads` heads, in the order of their first heads, each with its
    /// heads.
    pub fn head_classes(&self, kv_heads: u32) -> Vec<(Self, Vec<u32>)> {
        if !self.is_by_head() {
            return vec![(self.clone(), (0..kv_heads).collect())];
        }
        let mut classes: Vec<(Self, Vec<u32>)> = Vec::new();
        for head in 0..kv_heads {
            let pattern = self.of_head(head);
            match classes.iter_mut().find(|(other, _)| *other == pattern) {
                Some((_, heads)) => heads.push(head),
                None => classes.push((pattern, vec![head])),
            }
        }
        classes
    }
}

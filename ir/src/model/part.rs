//! The kinds of work that a model does.

use serde::Serialize;
use std::fmt;

/// A kind of work in a model: what profiles time, and what the compiler counts and predicts.
///
/// In the order of their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "&'static str")]
pub enum Part {
    /// Softmax attention, and the choice of blocks by content.
    Attention,
    /// Tokens to vectors.
    Embedding,
    /// Feed-forward layers of experts, without their router.
    Experts,
    /// What is between the two projections of a feed-forward layer, and gates on outputs.
    Gates,
    /// Heads out of projections: norms, rotation, and the cache.
    Heads,
    /// Latent attention's products of the matrices of each head.
    Latents,
    /// Linear attention between its projections.
    LinearAttention,
    /// Norms of the residual stream, and additions to it.
    Norms,
    /// Hidden vectors to logits.
    OutputProjection,
    /// All other matrix products.
    Projections,
    /// The choice of experts.
    Router,
}

impl Part {
    /// Every part, in order.
    pub const ALL: [Self; 11] = [
        Self::Attention,
        Self::Embedding,
        Self::Experts,
        Self::Gates,
        Self::Heads,
        Self::Latents,
        Self::LinearAttention,
        Self::Norms,
        Self::OutputProjection,
        Self::Projections,
        Self::Router,
    ];

    /// The name in reports and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Embedding => "embedding",
            Self::Experts => "experts",
            Self::Gates => "gates",
            Self::Heads => "heads and cache",
            Self::Latents => "latents",
            Self::LinearAttention => "linear attention",
            Self::Norms => "norms",
            Self::OutputProjection => "output projection",
            Self::Projections => "projections",
            Self::Router => "router",
        }
    }
}

impl From<Part> for &'static str {
    fn from(part: Part) -> Self {
        part.name()
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_in_the_order_of_their_names() {
        assert!(Part::ALL.is_sorted_by_key(|part| part.name()));
        assert!(Part::ALL.is_sorted());
        let json = serde_json::to_string(&Part::Heads).expect("JSON");
        assert_eq!(json, "\"heads and cache\"");
    }
}

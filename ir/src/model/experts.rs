//! Feed-forward layers of experts.

use serde::Serialize;

/// The feed-forward layers of experts, of which a router chooses some for each token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpertsShape {
    /// Number of experts of a layer.
    pub count: u32,
    /// Number of experts that compute for a token.
    pub chosen: u32,
    /// Length of the vector between the two projections of an expert.
    pub intermediate: u32,
    /// The expert that computes for every token, if there is one.
    pub shared: Option<SharedExpert>,
    /// How experts are chosen.
    pub router: Router,
    /// The layers that have a dense feed-forward layer instead, in order.
    pub dense: Vec<u32>,
}

/// An expert that computes for every token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SharedExpert {
    /// Length of the vector between its two projections.
    pub intermediate: u32,
    /// Whether its result is multiplied by a sigmoid of the token.
    pub gated: bool,
}

/// How the logits of a router become a choice of experts and their weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Router {
    /// How logits become scores.
    pub scores: Scores,
    /// Whether a learned number is added to the score of each expert for the choice alone.
    pub biased: bool,
    /// Groups of consecutive experts of which only some take part in the choice; `None` if all do.
    pub groups: Option<ExpertGroups>,
    /// Whether the weights of a token are divided by their sum.
    pub normalised: bool,
    /// Factor on the weights.
    pub scale: f64,
}

/// How the logits of a router become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scores {
    /// Softmax over all experts.
    Softmax,
    /// The sigmoid of each (DeepSeek-V3, arXiv:2412.19437, section 2.1.2).
    Sigmoid,
}

/// Groups of experts: those whose two best experts have the highest sums of scores take part in the choice
/// (arXiv:2412.19437, section 2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ExpertGroups {
    /// Number of groups.
    pub count: u32,
    /// Number of groups that take part.
    pub chosen: u32,
}

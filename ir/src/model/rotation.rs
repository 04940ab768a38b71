//! Rotary position embedding.

use serde::Serialize;

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Number of elements that are rotated: the first ones of a head (in latent attention,
    /// of the part that [`AttentionShape::Mla`](super::AttentionShape::Mla) calls `rope_dim`).
    pub dims: u32,
    /// Whether neighbours such as (0, 1) are rotated together; if not, element `i` is rotated
    /// together with `i + dims / 2`.
    pub interleaved: bool,
    /// How the frequencies are changed for longer sequences.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are changed for longer sequences.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All divided by `factor`.
    Linear {
        /// Divides every frequency.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// Divides low frequencies.
        factor: f64,
        /// A frequency counts as low if its wavelength is above `original_max / low` tokens.
        low: f64,
        /// A frequency counts as high if its wavelength is below `original_max / high` tokens.
        high: f64,
        /// Longest sequence before the extension, in tokens.
        original_max: u32,
    },
    /// High frequencies kept, low ones divided by `factor`, those between blended (YaRN, arXiv:2309.00071).
    Yarn {
        /// Divides low frequencies.
        factor: f64,
        /// The number of a pair up to which frequencies are kept, and that from which they are divided.
        range: [f64; 2],
        /// Multiplies cosines and sines.
        amplitude: f64,
    },
    /// Each frequency divided by a factor of its own, one of `short` for sequences of up to
    /// `original_max` tokens, one of `long` for longer ones.
    LongRope {
        /// One factor for each pair of rotated elements.
        short: Vec<f64>,
        /// One factor for each pair of rotated elements.
        long: Vec<f64>,
        /// Longest sequence before the extension, in tokens.
        original_max: u32,
        /// Multiplies cosines and sines, for sequences of any length.
        amplitude: f64,
    },
}

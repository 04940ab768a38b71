//! Kernels that compute the gated delta rule in chunks of tokens on matrix units.

use crate::Dtype;
use crate::model::LinearShape;
use serde::{Deserialize, Serialize};

/// How the four kernels of the gated delta rule are launched, one after the other, for B sequences of T tokens. They
/// are entry points of one text. In the order of launches, with all tensors contiguous except the rows of projections,
/// of 16-bit floats except where f32 is said:
///
/// - `prepare`: convolution, silu and norms of all tokens, and the gates. Arguments: rows `[B, T, n]`, the convolution
///   `[taps, channels]`, decays `[Hv]` and biases `[Hv]` (f32), the last rows `[B, taps - 1, channels]`, mixed
///   `[B, T, channels]`, the rows that are kept (as the last ones), gates `[2, B, Hv, T]` (f32). Grid: T by
///   [`PREPARE_TOKENS`](Self::PREPARE_TOKENS), channels by 8 a thread and one more, B.
/// - `chunk`: what the v heads of a chunk of [`CHUNK`](Self::CHUNK) tokens need of its keys and queries. Arguments:
///   tensor maps of k and q, the buffers behind them, gates, solved and scores `[B, Hv, chunks * 64, 64]`, cumulative
///   `[B, Hv, chunks, 64]` (f32). Grid: chunks, Hk, B.
/// - `walk`: chunks in their order, with the state in registers. Arguments: tensor maps of k, q, v, solved, scores and
///   out, the buffers behind them, cumulative, the state and the new one `[B, Hv, 128, 128]` (f32). Grid: the halves
///   of a v head, Hv, B.
/// - `finish`: the norm of each head, times its gate, in place. Arguments: rows, the norm `[128]` (f32), out
///   `[B, T, Hv * 128]`. Grid: T by [`FINISH_TOKENS`](Self::FINISH_TOKENS), the elements of out by 8 a thread, B.
///
/// All of them take, last and by value, the stride of rows by sequence (64 bits), T, chunks, the stride of rows by token,
/// and the epsilon of the norm (f32). Tensor maps have rank 4, `[B, heads, tokens, columns]`, boxes of 64 tokens by 64
/// columns, 128-byte swizzle, zero outside; q, k and v are parts of mixed. Rows start at multiples of 16 bytes, in which
/// q, k, v, the output gate, b and a lie one after the other.
///
/// The text in CUDA C++ declares only one of the kernels, by its number in this order from 0 on, where the macro
/// [`ONLY`](Self::ONLY) is defined as that number: who compiles it for each entry point has not to compile all of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaRule {
    /// Element type of rows and of what is made of them.
    pub dtype: Dtype,
    /// Hk, heads of q and k.
    pub k_heads: u32,
    /// Hv, heads of v, a multiple of `k_heads`.
    pub v_heads: u32,
    /// Taps of the convolution, 2 to 8.
    pub taps: u32,
    /// Whether head `h` of v belongs to head `h % k_heads` of k, and not to `h / (v_heads / k_heads)`.
    pub tiled: bool,
    /// Makes q, k, v and the gates.
    pub prepare: DeltaStage,
    /// Solves each chunk.
    pub chunk: DeltaStage,
    /// Carries the state through the chunks.
    pub walk: DeltaStage,
    /// Norms and gates the result.
    pub finish: DeltaStage,
}

/// How one of these kernels is launched.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaStage {
    /// Name of the entry point.
    pub entry: String,
    /// Threads of a workgroup.
    pub threads: u32,
    /// Bytes of shared memory, in addition to what the kernel declares.
    pub shared_bytes: u32,
}

impl DeltaRule {
    /// Elements of a head of q, k or v.
    pub const HEAD_DIM: u32 = 128;

    /// Tokens of a chunk.
    pub const CHUNK: u32 = 64;

    /// Tokens of a workgroup of `prepare`.
    pub const PREPARE_TOKENS: u32 = 16;

    /// Tokens of a workgroup of `finish`.
    pub const FINISH_TOKENS: u32 = 4;

    /// The macro that chooses one kernel of the text.
    pub const ONLY: &str = "BUTTERFLY_ONLY";

    /// Kernels for this shape, of which emitters fill in the four stages; `None` if its heads have not
    /// [`HEAD_DIM`](Self::HEAD_DIM) elements. With as many heads of v as of k, `tiled` makes no difference and is false.
    pub fn of(dtype: Dtype, shape: &LinearShape) -> Option<Self> {
        let LinearShape {
            k_heads,
            v_heads,
            k_dim,
            v_dim,
            taps,
            tiled,
        } = *shape;
        ([k_dim, v_dim] == [Self::HEAD_DIM; 2]).then(|| Self {
            dtype,
            k_heads,
            v_heads,
            taps,
            tiled: tiled && k_heads != v_heads,
            prepare: DeltaStage::default(),
            chunk: DeltaStage::default(),
            walk: DeltaStage::default(),
            finish: DeltaStage::default(),
        })
    }

    /// Whether both do the same, however they are launched.
    pub fn computes_as(&self, other: &Self) -> bool {
        let what = |rule: &Self| {
            let Self { dtype, taps, .. } = *rule;
            (dtype, rule.k_heads, rule.v_heads, taps, rule.tiled)
        };
        what(self) == what(other)
    }

    /// The stages by name, in the order of launches.
    pub fn stages(&self) -> [(&'static str, &DeltaStage); 4] {
        [
            ("prepare", &self.prepare),
            ("chunk", &self.chunk),
            ("walk", &self.walk),
            ("finish", &self.finish),
        ]
    }

    /// Elements of q, k and v of a token.
    pub fn channels(&self) -> u32 {
        (2 * self.k_heads + self.v_heads) * Self::HEAD_DIM
    }

    /// Elements of v of a token, and of the result.
    pub fn values(&self) -> u32 {
        self.v_heads * Self::HEAD_DIM
    }

    /// Elements of a row of projections that the kernels read.
    pub fn width(&self) -> u32 {
        self.channels() + self.values() + 2 * self.v_heads
    }

    /// The first line of the kernels' text: a comment that records how they are launched.
    pub fn heading(&self) -> String {
        crate::kernel::geometry::heading(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(k_heads: u32, v_heads: u32, tiled: bool) -> LinearShape {
        LinearShape {
            k_heads,
            v_heads,
            k_dim: 128,
            v_dim: 128,
            taps: 4,
            tiled,
        }
    }

    fn rule(k_heads: u32, v_heads: u32) -> DeltaRule {
        let stage = |entry: &str, threads| DeltaStage {
            entry: entry.into(),
            threads,
            shared_bytes: 0,
        };
        DeltaRule {
            prepare: stage("prepare", 128),
            chunk: stage("chunk", 128),
            walk: stage("walk", 160),
            finish: stage("finish", 256),
            ..DeltaRule::of(Dtype::Bf16, &shape(k_heads, v_heads, true)).expect("heads of 128")
        }
    }

    #[test]
    fn elements_of_a_row() {
        let rule = rule(16, 32);
        assert_eq!(
            (rule.channels(), rule.values(), rule.width()),
            (8192, 4096, 12_352)
        );
    }

    #[test]
    fn only_heads_of_128_elements() {
        for (k_dim, v_dim) in [(64, 128), (128, 256), (0, 0)] {
            let other = LinearShape {
                k_dim,
                v_dim,
                ..shape(1, 2, false)
            };
            assert_eq!(DeltaRule::of(Dtype::F16, &other), None);
        }
    }

    #[test]
    fn equal_heads_are_not_tiled() {
        let tiled = |v_heads| DeltaRule::of(Dtype::F16, &shape(2, v_heads, true)).map(|r| r.tiled);
        assert_eq!((tiled(2), tiled(4)), (Some(false), Some(true)));
    }

    #[test]
    fn what_is_computed_does_not_depend_on_stages() {
        let (made, bare) = (rule(2, 4), DeltaRule::of(Dtype::Bf16, &shape(2, 4, true)));
        assert!(made.computes_as(&bare.expect("heads of 128")));
        assert!(!made.computes_as(&rule(1, 4)));
        let other = DeltaRule {
            tiled: false,
            ..made.clone()
        };
        assert!(!made.computes_as(&other));
    }

    #[test]
    fn wrong_fields_are_named() {
        let right = rule(2, 6);
        right.check().expect("right");
        let said = |rule: DeltaRule| rule.check().expect_err("wrong").field;
        let with = |change: &dyn Fn(&mut DeltaRule)| {
            let mut rule = right.clone();
            change(&mut rule);
            said(rule)
        };
        let heads = "delta_rule.v_heads";
        assert_eq!(with(&|rule| rule.dtype = Dtype::F32), "delta_rule.dtype");
        assert_eq!(with(&|rule| rule.k_heads = 0), "delta_rule.k_heads");
        assert_eq!(with(&|rule| rule.v_heads = 0), heads);
        assert_eq!(with(&|rule| rule.v_heads = 5), heads);
        assert_eq!(with(&|rule| rule.v_heads = 1026), heads);
        assert_eq!(with(&|rule| rule.taps = 1), "delta_rule.taps");
        assert_eq!(with(&|rule| rule.taps = 9), "delta_rule.taps");
        assert_eq!(
            with(&|rule| rule.walk.entry = "a b".into()),
            "delta_rule.walk.entry"
        );
        assert_eq!(
            with(&|rule| rule.finish.threads = 128),
            "delta_rule.finish.threads"
        );
        assert_eq!(
            with(&|rule| rule.chunk.shared_bytes = u32::MAX),
            "delta_rule.chunk.shared_bytes"
        );
    }
}

//! Heads of attention layers, and the shapes that their kernels have.

use serde::Serialize;

/// The two ways to compute latent attention (arXiv:2405.04434, section 2.1), which give the same result.
/// Attention of other kinds has only one, whichever is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Every head gets keys and values of its own, made from the latents of all tokens that are read.
    Expanded,
    /// The projections that would make them are applied to q and o instead: all heads read the latents.
    Absorbed,
    /// As [`Absorbed`](Self::Absorbed), but heads read the latents apart, since each has rows of its own.
    AbsorbedByHead,
}

impl Form {
    /// The name in reports and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Expanded => "expanded",
            Self::Absorbed => "absorbed",
            Self::AbsorbedByHead => "absorbed, by head",
        }
    }
}

/// Heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionShape {
    /// Each kv head serves `q_heads / kv_heads` q heads.
    Gqa {
        /// Query heads.
        q_heads: u32,
        /// Key and value heads.
        kv_heads: u32,
        /// Length of a q, k and v vector.
        head_dim: u32,
    },
    /// Multi-head latent attention (MLA): k and v are projected up from one latent vector.
    Mla {
        /// Query heads.
        q_heads: u32,
        /// Length of the latent q vector; `None` where q is projected directly.
        q_lora_rank: Option<u32>,
        /// Length of the latent k and v vector.
        kv_lora_rank: u32,
        /// Elements of a q and k vector that are not rotated.
        nope_dim: u32,
        /// Elements of a q and k vector that are rotated; in k, all heads share them.
        rope_dim: u32,
        /// Length of a v vector.
        v_dim: u32,
    },
}

/// Head shapes as an attention kernel sees them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KernelShape {
    /// Query heads.
    pub q_heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// D, the length of a q and k vector.
    pub head_dim: u32,
    /// Dv, the length of a v and o vector.
    pub v_head_dim: u32,
    /// q heads of a GQA group: `q_heads / kv_heads`.
    pub group: u32,
    /// Factor on the logits.
    pub scale: f64,
}

impl AttentionShape {
    /// The kv heads that patterns tell apart. Those of latent attention are the heads for which it can
    /// be expanded.
    pub fn kv_heads(&self) -> u32 {
        self.kernel_shape(Form::Expanded).kv_heads
    }

    /// Elements of a token in the KV cache of a layer: key and value of every kv head or, of latent
    /// attention, the latent vector and the rotated part of k that all heads share.
    pub fn cached(&self) -> u64 {
        match *self {
            Self::Gqa {
                kv_heads, head_dim, ..
            } => 2 * u64::from(kv_heads) * u64::from(head_dim),
            Self::Mla {
                kv_lora_rank,
                rope_dim,
                ..
            } => u64::from(kv_lora_rank) + u64::from(rope_dim),
        }
    }

    /// The shape of the kernels of a form.
    ///
    /// Where latent attention is absorbed, all heads share one kv head, whose key is the latent
    /// vector followed by the rotated part of k, and whose value is the latent vector; by head, as many kv
    /// heads share these.
    pub fn kernel_shape(&self, form: Form) -> KernelShape {
        match *self {
            Self::Gqa {
                q_heads,
                kv_heads,
                head_dim,
            } => KernelShape {
                q_heads,
                kv_heads,
                head_dim,
                v_head_dim: head_dim,
                group: q_heads / kv_heads,
                scale: inverse_root(head_dim),
            },
            Self::Mla {
                q_heads,
                q_lora_rank: _,
                kv_lora_rank,
                nope_dim,
                rope_dim,
                v_dim,
            } => {
                let (kv_heads, head_dim, v_head_dim) = match form {
                    Form::Expanded => (q_heads, nope_dim + rope_dim, v_dim),
                    Form::Absorbed => (1, kv_lora_rank + rope_dim, kv_lora_rank),
                    Form::AbsorbedByHead => (q_heads, kv_lora_rank + rope_dim, kv_lora_rank),
                };
                KernelShape {
                    q_heads,
                    kv_heads,
                    head_dim,
                    v_head_dim,
                    group: q_heads / kv_heads,
                    scale: inverse_root(nope_dim + rope_dim),
                }
            }
        }
    }
}

fn inverse_root(dim: u32) -> f64 {
    1.0 / f64::from(dim).sqrt()
}

//! Names of tensors in GGUF files → those of Hugging Face checkpoints.
//!
//! In:  a tensor of a file, and the sizes of its model. Out: the name and shape that the checkpoint
//! has for it, and what the conversion changed, so that it can be undone.
//!
//! llama.cpp's conversion changes more than names. This is all of it, for the architectures here:
//! - `llama`: within each head of q and k, rows are moved so that elements that are rotated together
//!   are neighbours (2i and 2i + 1) and no longer half a head apart (i and i + D/2). This is not
//!   undone: [`metadata`](super::metadata) sets `rope_interleave`, and logits are the same.
//! - `llama`, `phi3`: the divisors of scaled rotary frequencies are tensors, `rope_freqs.weight` or
//!   `rope_factors_{long,short}.weight`, of which [`metadata`](super::metadata) makes the fields of
//!   the config again.
//! - `gpt2`: the matrices of projections are transposed to `[out, in]`, as in all other models.
//! - `qwen35`: one is added to the weights of all norms but that of linear attention; `A_log` becomes
//!   `-exp(A_log)`; the convolution loses its dimension of size 1; the v heads of linear attention are
//!   reordered ([`Tiled`]). Layers for the prediction of further tokens are appended.
//! - `phi3`: nothing else. q, k and v are one matrix in the checkpoint too, and so are gate and up.
//!
//! Source: ggml-org/llama.cpp, `conversion/{base,llama,qwen,gpt2,phi}.py` and
//! `gguf-py/gguf/{constants,tensor_mapping}.py`.

use super::architecture::Architecture;
use super::change::{Axis, Change, Layout, Tiled, Values};
use super::gguf::Tensor;
use butterfly_ir::model::LinearShape;

/// What a tensor of a file is to its model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A tensor of the checkpoint.
    Weight(Weight),
    /// Divisors of rotary frequencies, which are a part of the config.
    Rotation,
    /// Nothing that is known; the model does not read it.
    Unknown,
}

/// A tensor of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Weight {
    /// Its name there, with the prefix.
    pub(crate) name: String,
    /// Its shape there.
    pub(crate) shape: Vec<usize>,
    /// How the stored tensor differs from it.
    pub(crate) change: Change,
}

/// The name of a gated architecture's tensors: in the file after `blk.N.`, in the checkpoint after
/// `model.layers.N.`, both before `.weight` or `.bias`.
const GATED: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The one of qwen35 that differs from [`GATED`].
const QWEN35: [(&str, &str); 1] = [("post_attention_norm", "post_attention_layernorm")];

/// Those of phi3 that differ from [`GATED`].
const PHI3: [(&str, &str); 2] = [
    ("attn_qkv", "self_attn.qkv_proj"),
    ("ffn_up", "mlp.gate_up_proj"),
];

/// Those of gpt2, in the checkpoint after `transformer.h.N.`.
const GPT2: [(&str, &str); 6] = [
    ("attn_norm", "ln_1"),
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
];

/// The tensors of linear attention in qwen35: the whole name in the file after `blk.N.`, that in the
/// checkpoint after `model.layers.N.linear_attn.`.
const LINEAR: [(&str, &str); 9] = [
    ("attn_qkv.weight", "in_proj_qkv.weight"),
    ("attn_gate.weight", "in_proj_z.weight"),
    ("ssm_alpha.weight", "in_proj_a.weight"),
    ("ssm_beta.weight", "in_proj_b.weight"),
    ("ssm_conv1d.weight", "conv1d.weight"),
    ("ssm_a", "A_log"),
    ("ssm_dt.bias", "dt_bias"),
    ("ssm_norm.weight", "norm.weight"),
    ("ssm_out.weight", "out_proj.weight"),
];

/// The tensors outside layers: without `.weight` or `.bias`, in the file, in the checkpoint of a
/// gated model, and in that of gpt2.
const OUTSIDE: [(&str, Option<&str>, &str); 4] = [
    ("token_embd", Some("model.embed_tokens"), "transformer.wte"),
    ("position_embd", None, "transformer.wpe"),
    ("output_norm", Some("model.norm"), "transformer.ln_f"),
    ("output", Some("lm_head"), "lm_head"),
];

/// The tensors of which [`metadata`](super::metadata) makes fields of the config.
const ROTATION: [&str; 3] = [
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
];

/// How the tensors of one model are named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'a> {
    pub(crate) architecture: Architecture,
    /// Number of layers; those that follow are no part of the model.
    pub(crate) layers: usize,
    /// The heads of linear attention, where the model has any.
    pub(crate) linear: Option<&'a LinearShape>,
}

impl Names<'_> {
    /// What a tensor of the model's file is.
    pub(crate) fn of(&self, tensor: &Tensor) -> Role {
        let named = match tensor.name.strip_prefix("blk.") {
            None => self.outside(&tensor.name),
            Some(rest) => match rest.split_once('.') {
                None => Role::Unknown,
                Some((layer, name)) => match layer.parse::<usize>() {
                    Ok(layer) if layer < self.layers => self.inside(layer, name),
                    // Checkpoints name these layers `mtp`, and no model here reads them.
                    Ok(layer) if self.architecture == Architecture::Qwen35 => {
                        weight(format!("mtp.layers.{}.{name}", layer - self.layers))
                    }
                    _ => Role::Unknown,
                },
            },
        };
        match named {
            Role::Weight(weight) => Role::Weight(self.shaped(weight, tensor)),
            other => other,
        }
    }

    fn outside(&self, name: &str) -> Role {
        if ROTATION.contains(&name) {
            return Role::Rotation;
        }
        let Some((begin, what)) = end(name) else {
            return Role::Unknown;
        };
        let row = OUTSIDE.iter().find(|(stored, ..)| *stored == begin);
        let name = match self.architecture {
            Architecture::Gpt2 => row.map(|(_, _, name)| *name),
            Architecture::Llama
            | Architecture::Qwen2
            | Architecture::Qwen3
            | Architecture::Qwen35
            | Architecture::Phi3 => row.and_then(|(_, name, _)| *name),
        };
        name.map_or(Role::Unknown, |name| weight(format!("{name}.{what}")))
    }

    fn inside(&self, layer: usize, name: &str) -> Role {
        if self.architecture == Architecture::Qwen35
            && let Some((_, linear)) = LINEAR.iter().find(|(stored, _)| *stored == name)
        {
            return weight(format!("model.layers.{layer}.linear_attn.{linear}"));
        }
        let Some((begin, what)) = end(name) else {
            return Role::Unknown;
        };
        let find = |table: &[(&str, &'static str)]| {
            let row = table.iter().find(|(stored, _)| *stored == begin);
            row.map(|(_, name)| *name)
        };
        let (prefix, found) = match self.architecture {
            Architecture::Gpt2 => ("transformer.h", find(&GPT2)),
            Architecture::Phi3 => ("model.layers", find(&PHI3).or(find(&GATED))),
            Architecture::Qwen35 => ("model.layers", find(&QWEN35).or(find(&GATED))),
            Architecture::Llama | Architecture::Qwen2 | Architecture::Qwen3 => {
                ("model.layers", find(&GATED))
            }
        };
        found.map_or(Role::Unknown, |name| {
            weight(format!("{prefix}.{layer}.{name}.{what}"))
        })
    }

    /// Adds the checkpoint's shape, and what was changed.
    fn shaped(&self, mut weight: Weight, tensor: &Tensor) -> Weight {
        weight.shape.clone_from(&tensor.shape);
        match self.architecture {
            Architecture::Llama
            | Architecture::Qwen2
            | Architecture::Qwen3
            | Architecture::Phi3 => {}
            Architecture::Gpt2 => {
                let projection = weight.name.contains(".c_") && weight.name.ends_with(".weight");
                if projection && weight.shape.len() == 2 {
                    weight.shape.reverse();
                    weight.change.layout = Layout::Transposed;
                }
            }
            Architecture::Qwen35 => match weight.name.split_once(".linear_attn.") {
                None if weight.name.ends_with("norm.weight") => {
                    weight.change.values = Values::PlusOne;
                }
                None => {}
                Some((_, name)) => {
                    if name == "A_log" {
                        weight.change.values = Values::NegExp;
                    }
                    if name == "conv1d.weight" && weight.shape.len() == 2 {
                        weight.shape.insert(1, 1);
                    }
                    if let Some(tiled) = self.tiled(name) {
                        weight.change.layout = Layout::Tiled(tiled);
                    }
                }
            },
        }
        weight
    }

    /// Where the v heads are in a tensor of linear attention, if it has any and they were moved.
    fn tiled(&self, name: &str) -> Option<Tiled> {
        let shape = self.linear?;
        let (k_heads, v_dim) = (shape.k_heads as usize, shape.v_dim as usize);
        let group = shape.v_heads as usize / k_heads;
        let keys = 2 * k_heads * shape.k_dim as usize;
        let (axis, first, dim) = match name {
            "in_proj_qkv.weight" | "conv1d.weight" => (Axis::Rows, keys, v_dim),
            "in_proj_z.weight" => (Axis::Rows, 0, v_dim),
            "in_proj_a.weight" | "in_proj_b.weight" | "A_log" | "dt_bias" => (Axis::Rows, 0, 1),
            "out_proj.weight" => (Axis::Columns, 0, v_dim),
            _ => return None,
        };
        (group > 1).then_some(Tiled {
            axis,
            first,
            k_heads,
            group,
            dim,
        })
    }
}

/// A tensor of the checkpoint whose shape is not known yet.
fn weight(name: String) -> Role {
    Role::Weight(Weight {
        name,
        shape: Vec::new(),
        change: Change::NONE,
    })
}

/// Splits `.weight` or `.bias` off a name.
fn end(name: &str) -> Option<(&str, &str)> {
    let parts = name.rsplit_once('.')?;
    ["weight", "bias"].contains(&parts.1).then_some(parts)
}

#[cfg(test)]
mod tests;

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
//! - `qwen35`, `qwen35moe`: one is added to the weights of all norms but that of linear attention;
//!   `A_log` becomes `-exp(A_log)`; the convolution and the gate of the shared expert lose their dimension
//!   of size 1; the v heads of linear attention are reordered ([`Tiled`]). Layers for the prediction of
//!   further tokens are appended.
//! - `qwen3moe`, `qwen35moe`, `gpt-oss`: the matrices of a layer's experts become one tensor for each
//!   projection, `[experts, out, in]`, whatever the checkpoint has. This is not undone: layers take stacked
//!   matrices under the names that the conversion gives them before it looks them up,
//!   `mlp.experts.gate_proj.weight` and so on. On demand, gate and up are one tensor, gate first.
//! - `gpt-oss`: the rows of gate and up, and their biases, are two tensors, while they take turns in the one
//!   of the checkpoint. Not undone either. The sinks get the ending `.weight`.
//! - `deepseek2`: of the weight that makes keys and values of latents, each head's rows for keys, transposed, become
//!   one tensor `[heads, rank, nope]`, and its rows for values another, `[heads, v, rank]`; in older files the weight
//!   stays whole. Not undone: layers take both under the names that the conversion gives them before it looks them
//!   up, `self_attn.k_b_proj.weight` and `self_attn.v_b_proj.weight`. Elements that are rotated together are
//!   neighbours in the checkpoint too, so that q and k stay as they are. Layers for the prediction of further tokens
//!   are appended.
//! - `gemma3`: one is added to the weights of all norms. Rows of the embedding without a token are cut off.
//! - `phi3`: nothing else. q, k and v are one matrix in the checkpoint too, and so are gate and up.
//!
//! Source: ggml-org/llama.cpp, `conversion/{base,llama,qwen,gemma,gpt_oss,gpt2,phi,deepseek,glm}.py` and
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

/// Names in the file, and those in the checkpoint.
type Table = &'static [(&'static str, &'static str)];

/// The name of a gated architecture's tensors: in the file after `blk.N.`, in the checkpoint after
/// `model.layers.N.`, both before `.weight` or `.bias`.
const GATED: Table = &[
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

/// The one of qwen35, qwen35moe and gpt-oss that differs from [`GATED`].
const AFTER: Table = &[("post_attention_norm", "post_attention_layernorm")];

/// Those of layers of experts.
const EXPERTS: Table = &[
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.experts.gate_proj"),
    ("ffn_up_exps", "mlp.experts.up_proj"),
    ("ffn_gate_up_exps", "mlp.experts.gate_up_proj"),
    ("ffn_down_exps", "mlp.experts.down_proj"),
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
];

/// The one of gpt-oss that differs from [`EXPERTS`].
const ROUTER: Table = &[("ffn_gate_inp", "mlp.router")];

/// Those of latent attention and of the shared expert in deepseek2.
const LATENT: Table = &[
    ("attn_q_a", "self_attn.q_a_proj"),
    ("attn_q_a_norm", "self_attn.q_a_layernorm"),
    ("attn_q_b", "self_attn.q_b_proj"),
    ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
    ("attn_kv_a_norm", "self_attn.kv_a_layernorm"),
    ("attn_kv_b", "self_attn.kv_b_proj"),
    ("attn_k_b", "self_attn.k_b_proj"),
    ("attn_v_b", "self_attn.v_b_proj"),
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
];

/// Those of gemma3 that differ from [`GATED`].
const GEMMA3: Table = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// Those of phi3 that differ from [`GATED`].
const PHI3: Table = &[
    ("attn_qkv", "self_attn.qkv_proj"),
    ("ffn_up", "mlp.gate_up_proj"),
];

/// Those of gpt2, in the checkpoint after `transformer.h.N.`.
const GPT2: Table = &[
    ("attn_norm", "ln_1"),
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
];

/// The tensors of linear attention in qwen35 and qwen35moe: the whole name in the file after `blk.N.`,
/// that in the checkpoint after `model.layers.N.`.
const LINEAR: Table = &[
    ("attn_qkv.weight", "linear_attn.in_proj_qkv.weight"),
    ("attn_gate.weight", "linear_attn.in_proj_z.weight"),
    ("ssm_alpha.weight", "linear_attn.in_proj_a.weight"),
    ("ssm_beta.weight", "linear_attn.in_proj_b.weight"),
    ("ssm_conv1d.weight", "linear_attn.conv1d.weight"),
    ("ssm_a", "linear_attn.A_log"),
    ("ssm_dt.bias", "linear_attn.dt_bias"),
    ("ssm_norm.weight", "linear_attn.norm.weight"),
    ("ssm_out.weight", "linear_attn.out_proj.weight"),
];

/// The sinks of gpt-oss, likewise.
const SINKS: Table = &[("attn_sinks.weight", "self_attn.sinks")];

/// What is added to the scores of deepseek2's experts, likewise.
const CORRECTION: Table = &[("exp_probs_b.bias", "mlp.gate.e_score_correction_bias")];

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
                    Ok(layer) if self.predicts() => {
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
            | Architecture::Qwen3Moe
            | Architecture::Qwen35
            | Architecture::Qwen35Moe
            | Architecture::Gemma3
            | Architecture::GptOss
            | Architecture::Deepseek2
            | Architecture::Phi3 => row.and_then(|(_, name, _)| *name),
        };
        name.map_or(Role::Unknown, |name| weight(format!("{name}.{what}")))
    }

    fn inside(&self, layer: usize, name: &str) -> Role {
        let (whole, tables) = self.tables();
        if let Some((_, name)) = whole.iter().find(|(stored, _)| *stored == name) {
            return weight(format!("model.layers.{layer}.{name}"));
        }
        let Some((begin, what)) = end(name) else {
            return Role::Unknown;
        };
        let mut rows = tables.iter().copied().flatten();
        let prefix = match self.architecture == Architecture::Gpt2 {
            true => "transformer.h",
            false => "model.layers",
        };
        match rows.find(|(stored, _)| *stored == begin) {
            None => Role::Unknown,
            Some((_, name)) => weight(format!("{prefix}.{layer}.{name}.{what}")),
        }
    }

    /// The table of whole names, and those of names before `.weight` or `.bias`, of which the first that
    /// has a name counts.
    fn tables(&self) -> (Table, &'static [Table]) {
        match self.architecture {
            Architecture::Llama | Architecture::Qwen2 | Architecture::Qwen3 => (&[], &[GATED]),
            Architecture::Qwen3Moe => (&[], &[EXPERTS, GATED]),
            Architecture::Qwen35 => (LINEAR, &[AFTER, GATED]),
            Architecture::Qwen35Moe => (LINEAR, &[AFTER, EXPERTS, GATED]),
            Architecture::Gemma3 => (&[], &[GEMMA3, GATED]),
            Architecture::GptOss => (SINKS, &[AFTER, ROUTER, EXPERTS, GATED]),
            Architecture::Deepseek2 => (CORRECTION, &[LATENT, EXPERTS, GATED]),
            Architecture::Phi3 => (&[], &[PHI3, GATED]),
            Architecture::Gpt2 => (&[], &[GPT2]),
        }
    }

    /// Whether layers beyond the model's own predict further tokens.
    fn predicts(&self) -> bool {
        matches!(
            self.architecture,
            Architecture::Qwen35 | Architecture::Qwen35Moe | Architecture::Deepseek2
        )
    }

    /// Adds the checkpoint's shape, and what was changed.
    fn shaped(&self, mut weight: Weight, tensor: &Tensor) -> Weight {
        weight.shape.clone_from(&tensor.shape);
        match self.architecture {
            Architecture::Llama
            | Architecture::Qwen2
            | Architecture::Qwen3
            | Architecture::Qwen3Moe
            | Architecture::GptOss
            | Architecture::Deepseek2
            | Architecture::Phi3 => {}
            Architecture::Gpt2 => {
                let projection = weight.name.contains(".c_") && weight.name.ends_with(".weight");
                if projection && weight.shape.len() == 2 {
                    weight.shape.reverse();
                    weight.change.layout = Layout::Transposed;
                }
            }
            Architecture::Gemma3 => {
                if weight.name.ends_with("norm.weight") {
                    weight.change.values = Values::PlusOne;
                }
            }
            Architecture::Qwen35 | Architecture::Qwen35Moe => self.shaped_qwen35(&mut weight),
        }
        weight
    }

    fn shaped_qwen35(&self, weight: &mut Weight) {
        let Some((_, name)) = weight.name.split_once(".linear_attn.") else {
            if weight.name.ends_with("norm.weight") {
                weight.change.values = Values::PlusOne;
            }
            // [1, H] once; llama.cpp writes files without outer dimensions of size 1.
            if weight.name.ends_with(".shared_expert_gate.weight") && weight.shape.len() == 1 {
                weight.shape.insert(0, 1);
            }
            return;
        };
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

//! What a model takes of a device's memory, before anything is put there.

use butterfly::Dtype;
use butterfly_ir::Phase;
use butterfly_ir::model::{Family, LayerKind, ModelConfig, ModelSizes};

/// Bytes that a run needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Weights.
    pub weights: u64,
    /// Keys, values and states of all layers.
    pub caches: u64,
    /// The tensors of one chunk that are there at the same time, about.
    pub activations: u64,
}

impl Footprint {
    /// For `batch` texts of `capacity` tokens each, taken `chunk` tokens at a time.
    pub fn new(
        config: &ModelConfig,
        sizes: &ModelSizes,
        dtype: Dtype,
        [batch, capacity, chunk]: [u64; 3],
    ) -> Self {
        let heads = config.attention.kernel_shape(Phase::Prefill);
        let [q, kv, dim] = [heads.q_heads, heads.kv_heads, heads.head_dim].map(u64::from);
        let hidden = u64::from(sizes.hidden);
        let wide = u64::from(sizes.intermediate);
        let vocabulary = u64::from(sizes.vocabulary);
        let gate = if config.output_gate { 2 } else { 1 };
        let rows = (gate * q + 2 * kv) * dim;
        let linear = sizes.linear.map(|shape| {
            let [k, v] = [shape.k_heads * shape.k_dim, shape.v_heads * shape.v_dim].map(u64::from);
            let state = u64::from(shape.v_heads * shape.k_dim * shape.v_dim);
            (2 * k + 2 * v + 2 * u64::from(shape.v_heads), v, state)
        });
        let mlp = match config.family {
            Family::Gpt2 => 2 * hidden * wide,
            _ => 3 * hidden * wide,
        };
        let of = |kind| config.layers.iter().filter(|layer| **layer == kind).count() as u64;
        let (full, recurrent) = (of(LayerKind::FullAttention), of(LayerKind::LinearAttention));
        let (linear_rows, values, state) = linear.unwrap_or_default();
        let embeddings = if sizes.tied { 1 } else { 2 };
        let parameters = embeddings * vocabulary * hidden
            + (full + recurrent) * mlp
            + full * (rows * hidden + q * dim * hidden)
            + recurrent * (linear_rows * hidden + values * hidden);
        let bytes = u64::from(dtype.bytes());
        // A feed-forward layer holds both halves and their product; linear attention its rows,
        // and in f32 what is convolved and what is read.
        let feed_forward = bytes * 3 * wide;
        let attention = bytes * (rows + 2 * q * dim);
        let recurrence = bytes * (linear_rows + values) + 4 * (linear_rows + values);
        let stream = 2 * 4 * hidden + 2 * bytes * hidden;
        let widest = feed_forward.max(attention).max(recurrence);
        Self {
            weights: bytes * parameters,
            caches: batch * (full * 2 * kv * dim * bytes * capacity + recurrent * 4 * state),
            activations: batch * chunk.min(capacity) * (stream + widest)
                + batch * bytes * vocabulary,
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.caches + self.activations
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use butterfly_compiler::config;

    #[test]
    fn a_llama_of_8_billion() {
        let text = r#"{"model_type": "llama", "dtype": "bfloat16", "num_hidden_layers": 32,
            "max_position_embeddings": 131072, "hidden_size": 4096, "intermediate_size": 14336,
            "vocab_size": 128256, "rms_norm_eps": 1e-5, "num_attention_heads": 32,
            "num_key_value_heads": 8}"#;
        let model = config::read("config.json", text).expect("config");
        let sizes = config::sizes("config.json", text, &model).expect("sizes");
        let footprint = Footprint::new(&model, &sizes, Dtype::Bf16, [1, 8192, 8192]);
        // 8.03 billion parameters; 128 KiB for each token.
        assert!((16_000_000_000..16_100_000_000).contains(&footprint.weights));
        assert_eq!(footprint.caches, 8192 * 131_072);
        assert!(footprint.activations > 8192 * 3 * 14336 * 2);
    }
}

//! Estimates the device memory of a run before anything is allocated.

mod chunk;

use crate::Taken;
use crate::weights::packed;
use butterfly::{AttentionBackend, Dtype};
use butterfly_ir::model::{ModelConfig, ModelSizes};

/// The memory that a run needs, in bytes; each figure saturates at `u64::MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Weights that are allocated in memory of the device.
    pub weights: u64,
    /// Weights that are used in the memory of their mapped files.
    pub mapped: u64,
    /// KV caches and recurrent states of all layers, these twice.
    pub caches: u64,
    /// The tensors of one chunk that exist at the same time, and the panel of a packed weight.
    pub activations: u64,
    /// The logits that are computed at once.
    pub logits: u64,
}

/// The sizes of a run, in sequences and in tokens of each sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Number of sequences; all have the same length.
    pub batch: u64,
    /// Largest length of a sequence.
    pub capacity: u64,
    /// Tokens of a sequence that the KV caches of all attention layers have room for, together
    /// ([`Policy::cached`](crate::Policy::cached)).
    pub cached: u64,
    /// Tokens of a sequence that keys and values which are made of latents have room for
    /// ([`Policy::expanded`](crate::Policy::expanded)).
    pub expanded: u64,
    /// Tokens of a sequence that one call of the model takes.
    pub chunk: u64,
    /// Tokens of a sequence whose logits are computed at once.
    pub logits: u64,
}

/// Where a run's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// That of the host, which it gives back and uses for other sizes.
    Host,
    /// That of a device.
    Device {
        /// Whether it runs kernels for Hopper: gated rows without a tensor of gates and what they gate, linear
        /// attention in chunks.
        hopper: bool,
    },
}

impl Footprint {
    /// Estimates a run of a model whose weights take `weights`, and whose KV caches and logits are of
    /// type `dtype`, on a device.
    pub fn new<B: AttentionBackend>(
        config: &ModelConfig,
        sizes: &ModelSizes,
        weights: Taken,
        (device, dtype): (&B::Device, Dtype),
        extent: Extent,
    ) -> Self {
        let place = match B::ON_HOST {
            true => Place::Host,
            false => Place::Device {
                hopper: B::has_hopper_kernels(packed::dense(dtype), device),
            },
        };
        Self::of(config, sizes, weights, dtype, extent, place)
    }

    fn of(
        config: &ModelConfig,
        sizes: &ModelSizes,
        weights: Taken,
        dtype: Dtype,
        extent: Extent,
        place: Place,
    ) -> Self {
        // 128 bits hold the product of two 32-bit sizes, up to 4096 layers, 576 elements of a head
        // and 4 bytes with a factor of a million to spare.
        let wide = |n: u64| u128::from(n);
        let vocabulary = wide32(sizes.vocabulary);
        let full = config
            .layers
            .iter()
            .filter(|kind| kind.is_softmax())
            .count() as u128;
        let recurrent = config.layers.len() as u128 - full;
        let bytes = wide32(dtype.bytes());
        let state = sizes.linear.map_or(0, |shape| {
            let [heads, k_dim, v_dim] = [shape.v_heads, shape.k_dim, shape.v_dim].map(wide32);
            let channels = 2 * wide32(shape.k_heads) * k_dim + heads * v_dim;
            let rows = wide32(shape.taps.saturating_sub(1)) * channels;
            // Those before a chunk are kept until it has run, in case that it fails.
            2 * (4 * heads * k_dim * v_dim + bytes * rows)
        });
        let on_host = place == Place::Host;
        let steps = chunk::steps(config, sizes, (bytes, weights.quantises), place);
        let token = chunk::token(&steps, on_host);
        // A cosine and a sine in f32 for each pair of rotated dimensions.
        let ropes = config.rope.iter().chain(&config.window_rope);
        let rotation = 4 * ropes.map(|rope| wide32(rope.dims)).sum::<u128>();
        let Extent {
            batch,
            capacity,
            cached,
            expanded,
            chunk,
            logits,
        } = extent;
        let of_expanded = wide(expanded).saturating_mul(chunk::expanded(config, bytes, on_host));
        let chunk = wide(chunk.min(capacity));
        let tokens = |each: u128| each.saturating_mul(wide(batch));
        let count = |bytes: u128| u64::try_from(bytes).unwrap_or(u64::MAX);
        Self {
            weights: weights.allocated,
            mapped: weights.mapped,
            caches: count(tokens(
                (wide(config.attention.cached()) * bytes)
                    .saturating_mul(wide(cached))
                    .saturating_add(recurrent * state),
            )),
            activations: count(
                tokens(chunk.saturating_mul(token).saturating_add(of_expanded))
                    .saturating_add(chunk * rotation)
                    .saturating_add(chunk::partials(config, on_host))
                    .saturating_add(wide(weights.panel)),
            ),
            logits: count(tokens((bytes * vocabulary).saturating_mul(wide(logits)))),
        }
    }

    /// All that is allocated: without mapped files, which the system can read again.
    pub fn total(&self) -> u64 {
        let parts = [self.weights, self.caches, self.activations, self.logits];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

fn wide32(n: u32) -> u128 {
    u128::from(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Model;
    use burn::tensor::DType;
    use burn_flex::Flex;
    use butterfly_compiler::config;

    const HOPPER: Place = Place::Device { hopper: true };

    #[test]
    fn a_llama_of_8_billion() {
        let text = r#"{"model_type": "llama", "dtype": "bfloat16", "num_hidden_layers": 32,
            "max_position_embeddings": 131072, "hidden_size": 4096, "intermediate_size": 14336,
            "vocab_size": 128256, "rms_norm_eps": 1e-5, "num_attention_heads": 32,
            "num_key_value_heads": 8}"#;
        let model = config::read("config.json", text).expect("config");
        let sizes = config::sizes("config.json", text, &model).expect("sizes");
        let extent = Extent {
            batch: 1,
            capacity: 8192,
            cached: 32 * 8192,
            expanded: 0,
            chunk: 8192,
            logits: 1,
        };
        let taken = Model::<Flex>::taken(&model, &sizes, None, Dtype::Bf16, &Default::default());
        let footprint = Footprint::new::<Flex>(
            &model,
            &sizes,
            taken.expect("runs"),
            (&Default::default(), Dtype::Bf16),
            extent,
        );
        // 8.03 billion parameters; 128 KiB of keys and values for each token.
        assert!((16_000_000_000..16_100_000_000).contains(&footprint.weights));
        assert_eq!(footprint.caches, 8192 * 131_072);
        assert!(footprint.activations > 8192 * 3 * 14336 * 2);
        assert_eq!(footprint.logits, 2 * 128_256);
    }

    /// Within 1 % of what `bench model --random-weights` had reserved on an H200, for a prompt of 8192
    /// tokens in one chunk and 128 more: 19,333,603,296 bytes in bf16, 6,480,862,696 in 4 bits, 10.49 GB in FP8 with
    /// `--activations fp8`.
    #[test]
    fn as_much_as_a_device_reserved() {
        let file = butterfly_tests::fixture("configs/qwen3.5-9b.json");
        let text = std::fs::read_to_string(&file).expect("a config");
        let model = config::read("config.json", &text).expect("config");
        let sizes = config::sizes("config.json", &text, &model).expect("sizes");
        let extent = Extent {
            batch: 1,
            capacity: 8320,
            cached: 8 * 8320,
            expanded: 0,
            chunk: 8192,
            logits: 1,
        };
        let panel = |bytes| Taken {
            allocated: bytes,
            panel: crate::weights::upload::panel(DType::BF16),
            ..Taken::default()
        };
        let dense = Taken {
            panel: 0,
            ..panel(17_909_747_712)
        };
        // In FP8 with quantised rows, as the command rounds it.
        let float8 = Taken {
            quantises: true,
            ..panel(8_960_000_000)
        };
        for (taken, reserved) in [
            (dense, 19_333_603_296u64),
            (panel(5_040_181_248), 6_480_862_696),
            (float8, 10_490_000_000),
        ] {
            let footprint = Footprint::of(&model, &sizes, taken, Dtype::Bf16, extent, HOPPER);
            let off = reserved.abs_diff(footprint.total());
            assert!(off * 100 < reserved, "{footprint:?}, not {reserved}");
        }
    }

    /// With the largest sizes that a config may have.
    #[test]
    fn nothing_overflows() {
        let most = u32::MAX - 255;
        for family in [
            "gpt2",
            "llama",
            "qwen3",
            "qwen3_5",
            "qwen3_5_moe",
            "gpt_oss",
            "glm4_moe_lite",
        ] {
            let text = format!(
                r#"{{"model_type": "{family}", "num_hidden_layers": 4096, "n_layer": 4096,
                "max_position_embeddings": {most}, "n_positions": {most}, "hidden_size": {most},
                "n_embd": {most_embd}, "intermediate_size": {most}, "n_inner": {most},
                "vocab_size": {most}, "num_attention_heads": 65536, "n_head": 65536,
                "num_key_value_heads": 65536, "head_dim": 576, "linear_num_key_heads": 65536,
                "linear_num_value_heads": 65536, "linear_key_head_dim": 256,
                "linear_value_head_dim": 256, "num_experts": 4096, "num_local_experts": 4096,
                "moe_intermediate_size": {most}, "shared_expert_intermediate_size": {most},
                "kv_lora_rank": 512, "qk_rope_head_dim": 64}}"#,
                most_embd = 65536 * 576,
            );
            let model = config::read("config.json", &text).expect(family);
            let sizes = config::sizes("config.json", &text, &model).expect(family);
            let taken = Model::<Flex>::taken(&model, &sizes, None, Dtype::F32, &Default::default());
            let taken = taken.expect(family);
            for most in [1 << 28, u64::MAX] {
                let extent = Extent {
                    batch: most,
                    capacity: most,
                    cached: most,
                    expanded: most,
                    chunk: most,
                    logits: most,
                };
                let footprint = Footprint::new::<Flex>(
                    &model,
                    &sizes,
                    taken,
                    (&Default::default(), Dtype::F32),
                    extent,
                );
                assert_eq!(footprint.total(), u64::MAX, "{family}");
            }
        }
    }
}

//! What a model's files hold, in numbers: for `butterfly inspect`.
//!
//! In:  a model folder or a `.gguf` file. Out: the family and sizes of the model, and the bytes of its
//! tensors by type. Nothing is read but headers, and no device is needed.

use crate::{Checkpoint, Model, ModelError, Unused};
use butterfly::AttentionBackend;
use butterfly_ir::model::{AttentionShape, ExpertsShape, LayerKind};
use std::collections::BTreeMap;
use std::path::Path;

/// What a model's files hold.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Contents {
    /// The family, by its `model_type`.
    pub family: &'static str,
    /// The kind of each layer, first to last.
    pub layers: Vec<LayerKind>,
    /// Heads of the softmax attention layers.
    pub attention: AttentionShape,
    /// The experts of feed-forward layers, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertsShape>,
    /// Length of the hidden vector of a token.
    pub hidden: u32,
    /// Number of tokens in the vocabulary.
    pub vocabulary: u32,
    /// Longest text that the model was made for, in tokens.
    pub context: u32,
    /// Whether the embedding is also the output projection.
    pub tied: bool,
    /// The types of elements, those with most bytes first.
    pub types: Vec<OfType>,
    /// Tensors that the model needs and that are missing, or have a wrong shape or type; each with
    /// what is wrong.
    pub missing: Vec<String>,
    /// Names of tensors that the model does not use, sorted.
    pub extra: Unused,
}

/// The tensors of one type.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct OfType {
    /// The type, by the name that its format gives it.
    pub name: String,
    /// Number of tensors.
    pub tensors: usize,
    /// Their bytes together, as stored.
    pub bytes: u64,
}

impl Contents {
    /// What a model folder or a `.gguf` file holds.
    ///
    /// # Errors
    /// A [`ModelError`] that names the file and, where there is one, the field or tensor.
    pub fn of<B: AttentionBackend>(path: &Path, device: &B::Device) -> Result<Self, ModelError> {
        let model = Checkpoint::open(path)?;
        let mut types = Types::default();
        let views = model.names().filter_map(|name| model.tensor(name));
        views.for_each(|view| types.add(&view.element.to_string(), view.bytes.len()));
        let (missing, extra) = Model::<B>::compare(&model, device)?;
        let (config, sizes) = (&model.config, &model.sizes);
        Ok(Self {
            family: config.family.name(),
            layers: config.layers.clone(),
            attention: config.attention,
            experts: sizes.experts.clone(),
            hidden: sizes.hidden,
            vocabulary: sizes.vocabulary,
            context: config.max_positions,
            tied: sizes.tied,
            types: types.sorted(),
            missing,
            extra,
        })
    }
}

/// Tensors and bytes by type.
#[derive(Default)]
struct Types(BTreeMap<String, (usize, u64)>);

impl Types {
    fn add(&mut self, name: &str, bytes: usize) {
        let (tensors, all) = self.0.entry(name.to_string()).or_default();
        *tensors += 1;
        *all += bytes as u64;
    }

    fn sorted(self) -> Vec<OfType> {
        let types = self.0.into_iter().map(|(name, (tensors, bytes))| OfType {
            name,
            tensors,
            bytes,
        });
        let mut types: Vec<OfType> = types.collect();
        types.sort_by_key(|one| std::cmp::Reverse(one.bytes));
        types
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;
    use butterfly_tests::gguf::{self as files, Tensor, Value as Stored};

    fn of_type(name: &str, tensors: usize, bytes: u64) -> OfType {
        OfType {
            name: name.to_string(),
            tensors,
            bytes,
        }
    }

    #[test]
    fn a_folder_and_a_file_of_the_same_model_say_the_same() {
        let folder = butterfly_tests::fixture("models/llama");
        let folder = Contents::of::<Flex>(&folder, &Default::default()).expect("read");
        // Four layers of nine tensors, the embedding, the last norm, the output projection.
        let bytes = 2 * (2 * 256 * 64 + 9 * 64 + 4 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64));
        assert_eq!(folder.types, [of_type("BF16", 39, bytes)]);
        assert_eq!((folder.family, folder.layers.len()), ("llama", 4));
        assert_eq!((folder.context, folder.tied), (512, false));

        let metadata: [(&str, Stored); 9] = [
            ("general.architecture", "llama".into()),
            ("llama.block_count", 4.into()),
            ("llama.context_length", 512.into()),
            ("llama.embedding_length", 64.into()),
            ("llama.feed_forward_length", 128.into()),
            ("llama.attention.head_count", 4.into()),
            ("llama.attention.head_count_kv", 2.into()),
            ("llama.attention.layer_norm_rms_epsilon", 1e-5.into()),
            ("llama.vocab_size", 256.into()),
        ];
        let packed = |name: &str| Tensor {
            name: name.to_string(),
            shape: vec![256, 64],
            kind: 8,
            bytes: vec![0; 256 * 2 * 34],
        };
        let tensors = [
            packed("token_embd.weight"),
            packed("output.weight"),
            Tensor::floats("output_norm.weight", &[64], &[1.0; 64]),
            Tensor::floats("what.weight", &[1], &[1.0]),
        ];
        let path = std::env::temp_dir().join(format!("contents-{}.gguf", std::process::id()));
        files::write(&path, &metadata, &tensors);
        let file = Contents::of::<Flex>(&path, &Default::default());
        std::fs::remove_file(&path).expect("removed");
        let mut file = file.expect("read");
        // The file has none of the layers' tensors.
        let missing = std::mem::take(&mut file.missing);
        assert_eq!(missing.len(), 36);
        let first = "model.layers.0.input_layernorm.weight: missing, expected [64]";
        assert_eq!(missing[0], first);
        let expected = Contents {
            types: vec![
                of_type("Q8_0", 2, 2 * 256 * 2 * 34),
                of_type("F32", 2, 65 * 4),
            ],
            missing: Vec::new(),
            extra: vec!["what.weight".into()],
            ..folder
        };
        assert_eq!(file, expected);
    }
}

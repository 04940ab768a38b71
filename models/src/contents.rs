//! What a model's files hold, in numbers: for `butterfly inspect`.
//!
//! In:  a model folder or a `.gguf` file. Out: the family and sizes of the model, and the bytes of its
//! tensors by type. Nothing is read but headers, and no device is needed.

use crate::weights::architecture::Architecture;
use crate::weights::gguf::Gguf;
use crate::weights::metadata;
use crate::weights::names::{Names, Role};
use crate::{Folder, ModelError};
use butterfly_compiler::config;
use butterfly_ir::model::{AttentionShape, LayerKind, ModelConfig, ModelSizes};
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
    /// Tensors of a GGUF file whose names mean nothing to its family. Those of a folder are known
    /// when it is loaded.
    pub unknown: Vec<String>,
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
    pub fn of(path: &Path) -> Result<Self, ModelError> {
        match path.is_dir() {
            true => Self::of_folder(&Folder::open(path)?),
            false => Self::of_gguf(&Gguf::open(path)?),
        }
    }

    fn of_folder(folder: &Folder) -> Result<Self, ModelError> {
        let mut types = Types::default();
        let views = folder.names().filter_map(|name| folder.tensor(name));
        views.for_each(|view| types.add(&format!("{:?}", view.dtype), view.bytes.len()));
        Ok(Self::new(&folder.config, &folder.sizes, types, Vec::new()))
    }

    fn of_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let architecture = Architecture::of(gguf)?;
        let file = gguf.path().display().to_string();
        let json = metadata::config(gguf, architecture)?.to_string();
        let config = config::read(&file, &json)?;
        let sizes = config::sizes(&file, &json, &config)?;
        let names = Names {
            architecture,
            layers: config.layers.len(),
            linear: sizes.linear.as_ref(),
        };
        let mut types = Types::default();
        let mut unknown = Vec::new();
        for tensor in gguf.tensors() {
            types.add(tensor.kind.name(), tensor.bytes.len());
            if names.of(tensor) == Role::Unknown {
                unknown.push(tensor.name.clone());
            }
        }
        Ok(Self::new(&config, &sizes, types, unknown))
    }

    fn new(config: &ModelConfig, sizes: &ModelSizes, types: Types, unknown: Vec<String>) -> Self {
        Self {
            family: config.family.name(),
            layers: config.layers.clone(),
            attention: config.attention,
            hidden: sizes.hidden,
            vocabulary: sizes.vocabulary,
            context: config.max_positions,
            tied: sizes.tied,
            types: types.sorted(),
            unknown,
        }
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
        let folder = Contents::of(&folder).expect("read");
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
        let file = Contents::of(&path);
        std::fs::remove_file(&path).expect("removed");
        let expected = Contents {
            types: vec![
                of_type("Q8_0", 2, 2 * 256 * 2 * 34),
                of_type("F32", 2, 65 * 4),
            ],
            unknown: vec!["what.weight".into()],
            ..folder
        };
        assert_eq!(file.expect("read"), expected);
    }
}

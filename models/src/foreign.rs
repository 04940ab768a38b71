//! Model files of other kinds: what they are, and how they become safetensors.
//!
//! In:  the path that is given as a model. Out: nothing, or an error that names the file which
//! cannot be read here and says what to do. A folder with `model.safetensors` or its index may
//! hold any other files beside them.

use crate::ModelError;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A kind of file that is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `adapter_config.json`: differences to another model.
    Adapter,
    /// A part of a safetensors model, whose index is not there.
    Part,
    /// `consolidated.safetensors`: tensors under the names of their authors' own code.
    Consolidated,
    Gguf,
    /// `pytorch_model.bin` and its parts.
    PyTorchModel,
    /// `consolidated.00.pth`, as Meta published Llama.
    Meta,
    /// `.pt`, `.pth`, `.ckpt`, and `.bin` of another name.
    PyTorch,
    TensorFlow,
    Flax,
    Onnx,
    NeMo,
    /// MLX's `.npz`, from before it took safetensors.
    Npz,
}

/// All kinds: of several in a folder, the first is named.
const KINDS: [Kind; 12] = [
    Kind::Adapter,
    Kind::Part,
    Kind::Gguf,
    Kind::PyTorchModel,
    Kind::Consolidated,
    Kind::TensorFlow,
    Kind::Flax,
    Kind::Meta,
    Kind::PyTorch,
    Kind::Onnx,
    Kind::NeMo,
    Kind::Npz,
];

/// Checks that a path is no model of a kind that is not read: neither by its files, nor by the way
/// in which `config.json` says that the weights are packed. Whether it is a model is left to those
/// who read it.
///
/// # Errors
/// [`ModelError::File`].
pub(crate) fn check(path: &Path) -> Result<(), ModelError> {
    if path.is_file() {
        let parent = path.parent().filter(|parent| *parent != Path::new(""));
        let parent = parent.unwrap_or(Path::new("."));
        return match Kind::of(path) {
            Some(Kind::Gguf) => Ok(()),
            Some(kind) => Err(kind.refused(path)),
            None => Err(ModelError::File {
                path: path.to_path_buf(),
                what: format!("is a file; give its folder: {}", parent.display()),
            }),
        };
    }
    let has = |name: &str| path.join(name).exists();
    if has("model.safetensors") || has("model.safetensors.index.json") {
        // A file that cannot be read is left to those who need it.
        let config = path.join("config.json");
        return match config.is_file() {
            true => crate::read_packing(&config).map(|_| ()),
            false => Ok(()),
        };
    }
    // A path that is no folder is left to those who read it.
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    for kind in KINDS {
        let file = files.iter().find(|file| Kind::of(file) == Some(kind));
        if let Some(file) = file {
            return Err(kind.refused(file));
        }
    }
    Ok(())
}

impl Kind {
    /// The kind of a file, by its name.
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let (stem, extension) = name.rsplit_once('.')?;
        match extension {
            "json" => (name == "adapter_config.json").then_some(Self::Adapter),
            "safetensors" => match stem {
                _ if stem.starts_with("model-") && stem.contains("-of-") => Some(Self::Part),
                _ if stem.starts_with("consolidated") => Some(Self::Consolidated),
                _ => None,
            },
            "gguf" => Some(Self::Gguf),
            "bin" if stem.starts_with("pytorch_model") => Some(Self::PyTorchModel),
            "pth" if stem.starts_with("consolidated") => Some(Self::Meta),
            "bin" | "pt" | "pth" | "ckpt" => Some(Self::PyTorch),
            "h5" | "keras" | "pb" => Some(Self::TensorFlow),
            "msgpack" => Some(Self::Flax),
            "onnx" => Some(Self::Onnx),
            "nemo" => Some(Self::NeMo),
            "npz" => Some(Self::Npz),
            _ => None,
        }
    }

    /// The error for a file of this kind.
    fn refused(self, path: &Path) -> ModelError {
        let dir = path.parent().unwrap_or(Path::new("."));
        let convert = |flag: &str| {
            format!(
                "convert the folder with transformers: AutoModelForCausalLM.from_pretrained({:?}{flag}).save_pretrained(\"converted\", safe_serialization=True)",
                dir.display().to_string()
            )
        };
        let what = match self {
            Self::Adapter => format!(
                "is an adapter of {}, no model; merge the two with peft: PeftModel.from_pretrained(model, {:?}).merge_and_unload().save_pretrained(\"merged\")",
                base(path),
                dir.display().to_string()
            ),
            Self::Part => "is one part of a model, and model.safetensors.index.json, which names the parts, is missing; download it into the folder".into(),
            Self::Consolidated => "names its tensors as its authors' own code does; download the model.safetensors of the same model, or the parts with model.safetensors.index.json".into(),
            Self::Gguf => "is a model in one file; give the file itself, not its folder".into(),
            Self::PyTorchModel => format!(
                "is a pickle, which can run any code when it is read; {}",
                convert("")
            ),
            Self::Meta => "is a checkpoint of Meta's own code; convert it with convert_llama_weights_to_hf.py of transformers, or download the model in its Hugging Face layout".into(),
            Self::PyTorch => "is a pickle of PyTorch, which can run any code when it is read; load it with the code that wrote it, and save the model with transformers: save_pretrained(…, safe_serialization=True)".into(),
            Self::TensorFlow => format!("holds weights for TensorFlow; {}", convert(", from_tf=True")),
            Self::Flax => format!("holds weights for Flax; {}", convert(", from_flax=True")),
            Self::Onnx => "is a graph of ONNX, which is not read; give the safetensors folder that it was exported from".into(),
            Self::NeMo => "is an archive of NeMo; convert it to a Hugging Face folder with NeMo's scripts/checkpoint_converters".into(),
            Self::Npz => "is an archive of NumPy, as MLX wrote once; convert the original model again with mlx_lm.convert, which writes safetensors".into(),
        };
        ModelError::File {
            path: path.to_path_buf(),
            what,
        }
    }
}

/// The model that an adapter belongs to.
fn base(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let object: Value = serde_json::from_str(&text).unwrap_or_default();
    let name = object["base_model_name_or_path"].as_str();
    name.map_or("another model".into(), |name| format!("{name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind has a file that is of it, and only of it.
    #[test]
    fn names_tell_kinds() {
        for (name, kind) in [
            ("adapter_config.json", Some(Kind::Adapter)),
            ("model-00001-of-00002.safetensors", Some(Kind::Part)),
            ("consolidated.safetensors", Some(Kind::Consolidated)),
            ("adapter_model.safetensors", None),
            ("SmolLM2.Q4_K_M.GGUF", Some(Kind::Gguf)),
            ("pytorch_model.bin", Some(Kind::PyTorchModel)),
            ("pytorch_model-00001-of-00002.bin", Some(Kind::PyTorchModel)),
            ("consolidated.00.pth", Some(Kind::Meta)),
            ("checkpoint.pth", Some(Kind::PyTorch)),
            ("last.ckpt", Some(Kind::PyTorch)),
            ("model.pt", Some(Kind::PyTorch)),
            ("tf_model.h5", Some(Kind::TensorFlow)),
            ("saved_model.pb", Some(Kind::TensorFlow)),
            ("flax_model.msgpack", Some(Kind::Flax)),
            ("model.onnx", Some(Kind::Onnx)),
            ("llama.nemo", Some(Kind::NeMo)),
            ("weights.npz", Some(Kind::Npz)),
            ("model.safetensors", None),
            ("config.json", None),
            ("tokenizer.json", None),
            ("README", None),
        ] {
            assert_eq!(Kind::of(&Path::new("some.bin").join(name)), kind, "{name}");
        }
    }
}

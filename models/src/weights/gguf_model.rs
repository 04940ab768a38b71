//! The model of a GGUF file: its config, and its tensors under their names in Hugging Face folders.

use super::architecture::Architecture;
use super::change::Change;
use super::gguf::{GgmlType, Gguf};
use super::names::{Names, Role};
use super::{Element, Region, View, metadata};
use crate::ModelError;
use butterfly::Dtype;
use butterfly::ops::Packed;
use butterfly_compiler::config;
use butterfly_ir::model::{ModelConfig, ModelSizes};
use std::collections::HashMap;
use std::path::Path;

/// The tensors of an opened GGUF model.
#[derive(Debug)]
pub(crate) struct GgufModel {
    gguf: Gguf,
    /// By their names in Hugging Face folders; those that are unknown by their own.
    tensors: HashMap<String, Named>,
}

/// A tensor by its name in Hugging Face folders.
#[derive(Debug)]
struct Named {
    /// Which of the file's tensors it is.
    at: usize,
    /// The shape that it has in Hugging Face folders.
    shape: Vec<usize>,
    change: Change,
}

impl GgufModel {
    /// Opens a file and reads the config of its model.
    ///
    /// # Errors
    /// A [`ModelError`] that names the file and the key or tensor that is wrong.
    pub(crate) fn open(path: &Path) -> Result<(Self, ModelConfig, ModelSizes), ModelError> {
        let gguf = Gguf::open(path)?;
        let architecture = Architecture::of(&gguf)?;
        let text = metadata::config(&gguf, architecture)?.to_string();
        let file = gguf.path().display().to_string();
        let config = config::read(&file, &text)?;
        let mut sizes = config::sizes(&file, &text, &config)?;
        let names = Names {
            architecture,
            layers: config.layers.len(),
            linear: sizes.linear.as_ref(),
        };
        let mut tensors = HashMap::new();
        for (at, tensor) in gguf.tensors().iter().enumerate() {
            let (name, shape, change) = match names.of(tensor) {
                Role::Weight(weight) => (weight.name, weight.shape, weight.change),
                Role::Rotation => continue,
                Role::Unknown => (tensor.name.clone(), tensor.shape.clone(), Change::NONE),
            };
            tensors.insert(name, Named { at, shape, change });
        }
        if let Some(linear) = &mut sizes.linear {
            linear.tiled = true;
        }
        Ok((Self { gguf, tensors }, config, sizes))
    }

    pub(crate) fn get(&self, name: &str) -> Option<View<'_>> {
        let named = self.tensors.get(name)?;
        let tensor = &self.gguf.tensors()[named.at];
        Some(View {
            element: element(tensor.kind),
            shape: &named.shape,
            bytes: Region::new(self.gguf.map(tensor), tensor.bytes.clone()),
            change: named.change,
        })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }
}

fn element(kind: GgmlType) -> Element {
    match kind {
        GgmlType::F32 => Element::Float(Dtype::F32),
        GgmlType::F16 => Element::Float(Dtype::F16),
        GgmlType::Bf16 => Element::Float(Dtype::Bf16),
        GgmlType::Q8_0 => Element::Block(Packed::Q8_0),
        GgmlType::Q4_0 => Element::Block(Packed::Q4_0),
        GgmlType::Q4_1 => Element::Block(Packed::Q4_1),
        GgmlType::Q5_0 => Element::Block(Packed::Q5_0),
        GgmlType::Q5_1 => Element::Block(Packed::Q5_1),
        GgmlType::Q2K => Element::Block(Packed::Q2K),
        GgmlType::Q3K => Element::Block(Packed::Q3K),
        GgmlType::Q4K => Element::Block(Packed::Q4K),
        GgmlType::Q5K => Element::Block(Packed::Q5K),
        GgmlType::Q6K => Element::Block(Packed::Q6K),
        GgmlType::Mxfp4 => Element::Block(Packed::Mxfp4),
    }
}

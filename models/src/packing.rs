//! How a `config.json` says that weights are packed.
//!
//! In:  the settings `quantization` (MLX) and `quantization_config` (transformers). Out: the format of
//! most weights, or an error that names the setting. What single tensors are is told by their shapes
//! and types alone, since layers may differ from the others.

use crate::ModelError;
use butterfly::Dtype;
use butterfly::ops::Packed;
use serde_json::Value;
use std::path::Path;

/// The format in which the weights of a model with this `config.json` are packed; `None` if they are
/// not.
///
/// # Errors
/// [`ModelError::File`] for a packing that is not read, and if there is no such file.
pub fn read_packing(path: &Path) -> Result<Option<Packed>, ModelError> {
    let text = crate::checkpoint::read(path, "")?;
    let object: Value = serde_json::from_str(&text).unwrap_or_default();
    packing(&object).map_err(|what| ModelError::File {
        path: path.to_path_buf(),
        what,
    })
}

fn packing(object: &Value) -> Result<Option<Packed>, String> {
    if let Some(settings) = object["quantization"].as_object() {
        let packed = affine("quantization", &object["quantization"])?;
        let layers = settings.iter().filter(|(_, value)| value.is_object());
        for (name, settings) in layers {
            affine(&format!("quantization.{name}"), settings)?;
        }
        return Ok(Some(packed));
    }
    // Multimodal models keep it beside the settings of their text model, or among them.
    let settings = [object, &object["text_config"]].map(|part| &part["quantization_config"]);
    let method = settings
        .iter()
        .find_map(|part| part["quant_method"].as_str());
    match method {
        None => Ok(None),
        Some("mxfp4") => Ok(Some(Packed::Microscaled)),
        Some("fp8") => Ok(Some(Packed::float8(Dtype::Bf16))),
        Some(method) => Err(format!(
            "`quantization_config.quant_method` is {method}, a packing that is not read; give the model in bf16 or f16, or packed as MLX affine, FP8 in blocks, or GGUF"
        )),
    }
}

/// MLX's settings of a layer, or of all.
fn affine(name: &str, settings: &Value) -> Result<Packed, String> {
    match settings.get("mode").map(|mode| mode.as_str()) {
        None | Some(Some("affine")) => {}
        Some(mode) => {
            return Err(format!(
                "`{name}.mode` is {}, a packing that is not read; convert the model again with mlx_lm.convert --q-mode affine",
                mode.unwrap_or("no text")
            ));
        }
    }
    let one_of = |field: &str, known: [u64; 3]| match settings[field].as_u64() {
        Some(number) if known.contains(&number) => Ok(number as u32),
        _ => Err(format!(
            "`{name}.{field}` is {}; {}, {} and {} can be read, for which mlx_lm.convert has options",
            settings[field], known[0], known[1], known[2]
        )),
    };
    Ok(Packed::Affine {
        bits: one_of("bits", [2, 4, 8])?,
        group: one_of("group_size", [32, 64, 128])?,
        scales: Dtype::Bf16,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_of_packings() {
        let affine = |bits, group| Packed::Affine {
            bits,
            group,
            scales: Dtype::Bf16,
        };
        let read = |object: Value| packing(&object);
        assert_eq!(read(json!({})), Ok(None));
        let four = json!({"quantization": {"bits": 4, "group_size": 64, "mode": "affine",
            "lm_head": {"bits": 8, "group_size": 32}, "norm": false}});
        assert_eq!(read(four), Ok(Some(affine(4, 64))));
        let float8 = json!({"text_config": {"quantization_config": {"quant_method": "fp8"}}});
        assert_eq!(read(float8), Ok(Some(Packed::float8(Dtype::Bf16))));
        let experts = json!({"quantization_config": {"quant_method": "mxfp4"}});
        assert_eq!(read(experts), Ok(Some(Packed::Microscaled)));
        for (object, part) in [
            (
                json!({"quantization": {"bits": 4, "group_size": 32, "mode": "nvfp4"}}),
                "`quantization.mode` is nvfp4",
            ),
            (
                json!({"quantization": {"bits": 4, "group_size": 64, "lm_head": {"bits": 6, "group_size": 64}}}),
                "`quantization.lm_head.bits` is 6; 2, 4 and 8",
            ),
            (
                json!({"quantization": {"bits": 4}}),
                "`quantization.group_size` is null; 32, 64 and 128",
            ),
            (
                json!({"quantization_config": {"quant_method": "awq"}}),
                "`quantization_config.quant_method` is awq",
            ),
        ] {
            let error = read(object).expect_err(part);
            assert!(error.contains(part), "{error}");
        }
    }
}
